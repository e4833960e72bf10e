package ingest

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"ampcio/mapping"
)

// maxDepth is how deeply brackets may nest in a value before it is refused unseen. Amplitude's
// limit of 40 levels in properties is kept where events are read; this only keeps deeper
// ones from any code that recurses.
const maxDepth = 64

// request is what a body says around its events. Slices alias the body, but for key.
type request struct {
	key         []byte   // the API key, empty when there was none
	items       [][]byte // the events (or identifications), each one JSON value as it came
	minIDLength int      // characters
	uploaded    int64    // client_upload_time, ms since 1970 UTC; 0 = absent or no time

	deep []bool // by item: nests deeper than maxDepth
	// By item, where they are events: what was seen of them when they were cut out.
	outlines []mapping.Outline
	outliner mapping.Outliner
	event    itemReader // of the items; nil = they are events
}

func (q *request) reset() {
	clear(q.items)
	q.outliner.Reset()
	*q = request{key: q.key[:0], items: q.items[:0], deep: q.deep[:0], outlines: q.outlines[:0], outliner: q.outliner, minIDLength: defaultMinIDLength}
}

// parse cuts body, a JSON object, into its members and the array named list into its items, in
// one pass. Around the items it is strict: names occur once, values are valid JSON in UTF-8.
// Of an item it only finds the end; parseEvents looks inside. Events are outlined on the way, so
// that this is all that is left to do.
func (q *request) parse(body []byte, list string, maxItems int) *refusal {
	q.reset()
	c := cutter{b: body}
	c.space()
	if c.i == len(body) {
		return missingList(refuseEmpty, list)
	}
	invalid := missingList(refuseJSON, list)
	if !c.take('{') {
		return invalid
	}
	var m members
	var many bool
	c.space()
	for more := !c.take('}'); more; {
		name, ok := c.name()
		if !ok || !m.first(name) {
			return invalid
		}
		if string(name) == list {
			if many, ok = q.cutItems(&c, maxItems, list != "events"); !ok {
				return invalid
			}
		} else {
			value, depth := c.value()
			if !validValue(value, depth) {
				return invalid
			}
			m.set(name, value)
		}
		c.space()
		if more = c.take(','); !more && !c.take('}') {
			return invalid
		}
		c.space()
	}
	switch {
	case c.i != len(body):
		return invalid
	case many:
		return refuseMany
	}
	return q.settle(&m, list)
}

// settle reads the members that stand beside the list.
func (q *request) settle(m *members, list string) *refusal {
	if m.key != nil && m.key[0] == '"' {
		q.key, _ = jsontext.AppendUnquote(q.key, m.key) // a half surrogate is no error here, and no key
	} else if m.key != nil && string(m.key) != "null" {
		return refuseField("api_key")
	}
	if len(q.key) == 0 {
		return refuseNoKey
	}
	if len(q.items) == 0 {
		return refuseField(list)
	}
	q.uploaded = parseUploadTime(m.upload)
	return q.parseOptions(m.options)
}

// members are those of a request that are read beside its list: values as they came, nil when absent.
type members struct {
	key, options, upload []byte
	seen                 []string // their names and those of others
	many                 map[string]bool
}

// first says whether name was not there before.
func (m *members) first(name []byte) bool {
	if m.many == nil && len(m.seen) == 16 {
		m.many = map[string]bool{}
		for _, s := range m.seen {
			m.many[s] = true
		}
	}
	if m.many != nil {
		before := m.many[string(name)]
		m.many[string(name)] = true
		return !before
	}
	for _, s := range m.seen {
		if s == string(name) {
			return false
		}
	}
	m.seen = append(m.seen, string(name))
	return true
}

func (m *members) set(name, value []byte) {
	switch string(name) {
	case "api_key":
		m.key = value
	case "options":
		m.options = value
	case "client_upload_time":
		m.upload = value
	}
}

func missingList(refused *refusal, list string) *refusal {
	if refused.missingField == list {
		return refused
	}
	named := *refused
	named.missingField = list
	return &named
}

// cutItems takes the value of the list at c. An array is cut into items, at most maxItems of them
// (many says that there were more); an object is an item where single says so; null and other
// values are none. ok is false when what is there is no JSON.
func (q *request) cutItems(c *cutter, maxItems int, single bool) (many, ok bool) {
	if !c.take('[') {
		value, depth := c.value()
		if single && len(value) > 0 && value[0] == '{' {
			q.items, q.deep, q.outlines = append(q.items, value), append(q.deep, depth > maxDepth), append(q.outlines, mapping.Outline{})
			return false, true
		}
		return false, validValue(value, depth)
	}
	c.space()
	if c.take(']') {
		return false, true
	}
	for {
		var outline mapping.Outline
		var value []byte
		depth := 0
		if !single && len(q.items) < maxItems {
			outline, value = q.outline(c)
		}
		if value == nil {
			value, depth = c.value()
		}
		if len(value) == 0 {
			return false, false
		}
		if len(q.items) < maxItems {
			q.items, q.deep, q.outlines = append(q.items, value), append(q.deep, depth > maxDepth), append(q.outlines, outline)
		} else {
			many = true
		}
		c.space()
		if c.take(']') {
			return many, true
		}
		if !c.take(',') {
			return false, false
		}
		c.space()
	}
}

// outline takes the event at c when it is one that can be outlined, else nothing.
func (q *request) outline(c *cutter) (mapping.Outline, []byte) {
	o, n := q.outliner.Outline(c.b[c.i:])
	if !o.Read() {
		return o, nil
	}
	value := c.b[c.i : c.i+n : c.i+n]
	c.i += n
	return o, value
}

// parseOptions reads the only documented option. A wrong type is refused: who sets the option
// would else wonder about events refused for their IDs.
func (q *request) parseOptions(options []byte) *refusal {
	if options == nil || string(options) == "null" {
		return nil
	}
	if options[0] != '{' {
		return refuseField("options")
	}
	err := mapping.Members(options, func(name string, value []byte) error {
		if name != "min_id_length" || string(value) == "null" {
			return nil
		}
		n, err := strconv.ParseUint(string(value), 10, 16)
		q.minIDLength = int(n)
		return err
	})
	if err != nil {
		return refuseField("options")
	}
	return nil
}

// parseUploadTime reads client_upload_time, ISO 8601. It only serves to correct clocks, so a
// text that is no time (phones have written it with the digits of their language) is as good as none.
func parseUploadTime(value []byte) int64 {
	if len(value) < 2 || value[0] != '"' {
		return 0
	}
	text := string(value[1 : len(value)-1])
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"} {
		if at, err := time.Parse(layout, text); err == nil {
			return max(0, at.UnixMilli())
		}
	}
	return 0
}

// parseEvents turns the items into events. Every event that is wrong is named, by its index
// and for each of its fields, since SDKs drop the events named and send the others again.
func (j *job) parseEvents() *refusal {
	q := &j.request
	refused := &refusal{reason: reasonEvents, status: http.StatusBadRequest}
	broken := false
	j.events = j.events[:0]
	for i, item := range q.items {
		if item[0] != '{' || q.deep[i] {
			refused.invalid.add("event", i)
			broken = true
			continue
		}
		var wrong []mapping.Problem
		outline := mapping.Outline{}
		if q.event != nil {
			item, wrong = q.event(item)
		} else {
			outline = q.outlines[i]
		}
		event, problems := q.outliner.Event(item, outline)
		if wrong != nil {
			problems = wrong
		}
		if problems == nil && !outline.Short() {
			if cut := mapping.CutTexts(event.Raw); len(cut) != len(event.Raw) {
				event, problems = mapping.ParseEvent(cut) // what is left of an event_type may be blank
			}
		}
		for _, problem := range problems {
			field := problem.Field
			if field == "" {
				field, broken = "event", true
			}
			if problem.Missing {
				refused.missing.add(field, i)
			} else {
				refused.invalid.add(field, i)
			}
		}
		if problems == nil {
			checkIDs(&event, i, q.minIDLength, refused)
		}
		j.events = append(j.events, event)
	}
	switch {
	case refused.missing != nil:
		refused.message = textMissingField
	case broken:
		refused.message = textEventJSON
	case refused.lengths != nil:
		refused.message = textIDLength
	case refused.invalid != nil:
		refused.message = textFieldValues
	default:
		return nil
	}
	return refused
}

// validValue says whether value, depth brackets deep, is JSON in UTF-8. Half surrogates in
// escapes are let pass, as in events: JavaScript makes them when it cuts a text.
func validValue(value []byte, depth int) bool {
	if len(value) == 0 || depth > maxDepth || !utf8.Valid(value) {
		return false
	}
	return jsontext.Value(value).IsValid(jsontext.AllowInvalidUTF8(true))
}

// cutter finds where JSON values end, without looking at what is in them.
type cutter struct {
	b []byte
	i int
}

func (c *cutter) space() {
	for c.i < len(c.b) {
		switch c.b[c.i] {
		case ' ', '\n', '\r', '\t':
			c.i++
		default:
			return
		}
	}
}

func (c *cutter) take(want byte) bool {
	if c.i < len(c.b) && c.b[c.i] == want {
		c.i++
		return true
	}
	return false
}

// name takes a member's name and the colon after it. The name is decoded.
func (c *cutter) name() ([]byte, bool) {
	if c.i == len(c.b) || c.b[c.i] != '"' {
		return nil, false
	}
	quoted, _ := c.value()
	name, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		return nil, false
	}
	c.space()
	if !c.take(':') {
		return nil, false
	}
	c.space()
	return name, true
}

// value takes the value that starts here and says how many brackets deep it goes. It is empty when
// there is none or it does not end. Nothing but its end is certain: brackets of different
// kinds count as one, so a value can be cut short by a wrong bracket, but is then no JSON.
func (c *cutter) value() (value []byte, depth int) {
	b, from := c.b, c.i
	if from == len(b) {
		return nil, 0
	}
	switch b[from] {
	case '"':
		end := stringEnd(b, from+1)
		if end < 0 {
			return nil, 0
		}
		c.i = end
	case '{', '[':
		end, depth := bracketEnd(b, from)
		if end < 0 {
			return nil, 0
		}
		c.i = end
		return b[from:end:end], depth
	default:
		for c.i < len(b) && strings.IndexByte(" \n\r\t,:]}[{\"", b[c.i]) < 0 {
			c.i++
		}
	}
	return b[from:c.i:c.i], 0
}

// stringEnd is the index after the string whose opening quote is before i, -1 when it has no end.
func stringEnd(b []byte, i int) int {
	for i < len(b) {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
		i++
	}
	return -1
}

// bracketEnd is the index after the object or array that starts at i, -1 when it has no end.
func bracketEnd(b []byte, i int) (end, deepest int) {
	depth := 0
	for i < len(b) {
		c := b[i]
		i++
		if plain[c] {
			continue
		}
		switch c {
		case '"':
			if i = stringEnd(b, i); i < 0 {
				return -1, 0
			}
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		default:
			if depth--; depth == 0 {
				return i, deepest
			}
		}
	}
	return -1, math.MaxInt
}

// plain: bytes that neither open nor close anything.
var plain = func() (t [256]bool) {
	for c := range t {
		t[c] = strings.IndexByte(`"{}[]`, byte(c)) < 0
	}
	return
}()

func startsObject(body []byte) bool {
	c := cutter{b: body}
	c.space()
	return c.take('{')
}
