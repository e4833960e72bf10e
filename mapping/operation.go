package mapping

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// Operation is one operation for Customer.io's Track API: an element of a v2 batch unless Apart says otherwise.
type Operation struct {
	Action string // "identify", "event", "page" or "screen"
	Body   []byte // compact JSON; it may have capacity, which is others'
	Apart  *Apart // nil as a rule
}

// Room is where operations are written one behind the other, as they stand in a batch: with a comma behind each. It is for
// one goroutine; the zero Room is empty.
type Room struct {
	bytes      []byte
	operations [2]Operation // of the last decision
}

// NewRoom gives one whose operations stay where they are until they are more than so many bytes.
func NewRoom(bytes int) *Room { return &Room{bytes: make([]byte, 0, bytes)} }

// Len is how much is written, for Cut.
func (r *Room) Len() int { return len(r.bytes) }

// Cap is how many bytes of memory it has.
func (r *Room) Cap() int { return cap(r.bytes) }

// Cut forgets what was written behind the first n bytes: it must not be used any more.
func (r *Room) Cut(n int) { r.bytes = r.bytes[:n] }

// Run gives what stands in the Room from a place on, so many bytes: the bodies that have their places there, and commas between.
func (r *Room) Run(from, size int) []byte { return r.bytes[from : from+size : from+size] }

// Place says where a body stands, or -1 when that is not here: all that stands in one piece of memory has its end in common.
func (r *Room) Place(body []byte) int {
	at := cap(r.bytes) - cap(body)
	if len(body) == 0 || at < 0 || at+len(body) > len(r.bytes) || &r.bytes[at] != &body[0] {
		return -1
	}
	return at
}

// end takes dst, to which an operation was written from start on, for what is in the Room, and gives the operation's body.
func (r *Room) end(start int, dst []byte) []byte {
	r.bytes = append(dst, ',')
	return r.bytes[start:len(dst)]
}

// Path is where the operation goes, alone, instead of into a batch; "" = into a batch.
func (o *Operation) Path() string {
	if o.Apart == nil {
		return ""
	}
	return o.Apart.Path
}

// Refused is why the operation must not be sent, in a word and in a sentence; "" = it may be.
func (o *Operation) Refused() (reason, detail string) {
	if o.Apart == nil {
		return "", ""
	}
	return o.Apart.Refused, o.Apart.Detail
}

// appendHead writes what every operation on a person begins with. There is exactly one identifier, always a string: that
// is what the v2 API is sure to take.
func appendHead(dst []byte, action string, id Identifier) []byte {
	dst = append(dst, `{"type":"person","action":"`...)
	dst = append(dst, action...)
	dst = append(dst, `","identifiers":{"`...)
	dst = append(dst, id.Kind...)
	dst = append(dst, `":`...)
	dst = appendQuoted(dst, id.Value)
	return append(dst, '}')
}

// identify writes an identify. attributes are members without their braces; seconds is unix time.
func (s *scratch) identify(id Identifier, seconds int64, attributes []byte) Operation {
	start := s.room.Len()
	dst := appendHead(s.room.bytes, "identify", id)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, seconds, 10)
	dst = append(dst, `,"attributes":{`...)
	dst = append(dst, attributes...)
	op := Operation{Action: "identify", Body: s.room.end(start, append(dst, "}}"...))}
	if len(op.Body) > maxOperation {
		op.refuse(reasonTooLarge, fmt.Sprintf("%d bytes; Customer.io takes %d", len(op.Body), maxOperation))
	}
	return op
}

// eventRules say what is sent of an event.
type eventRules struct {
	send       bool
	properties chooser // of the event
	user       chooser // of the user, sent along
	fields     []field
	pageViews  bool // page and screen views become Customer.io's
	asText     bool // user_property_values = "string"
}

// field is a chosen built-in under the name it is sent by.
type field struct {
	name   string
	quoted []byte
}

// kindAnonymous is the kind of an identifier that names nobody: the events of a device, in the hope of a person.
const kindAnonymous = "anonymous_id"

// operation writes the event, page or screen for the record in v. Where two sources have a property of one name, the event's
// own wins, then the built-in field, then the user's. What is too large for v2 goes by v1. byV1 says that it does anyhow.
func (e *eventRules) operation(s *scratch, id Identifier, rule *selectRule, byV1 bool) (Operation, error) {
	v, names := &s.view, &s.names
	names.reset()
	action, name := "event", v.event
	if e.pageViews {
		action, name = v.asView()
	}
	if rule.name != "" {
		name = []byte(rule.name)
	}
	name = eventName(name)
	start := s.room.Len()
	dst := appendHead(s.room.bytes, action, id)
	dst = append(dst, `,"name":`...)
	dst = appendQuoted(dst, name)
	dst = append(dst, `,"id":"`...)
	dst = appendULID(dst, v.record.ID)
	dst = append(dst, `","timestamp":`...)
	dst = strconv.AppendInt(dst, v.record.Time/1000, 10)
	dst = append(dst, `,"attributes":`...)
	data := len(dst)
	dst = append(dst, '{')
	if !(e.properties.isEmpty() && rule.properties.isEmpty()) && isObjectStart(v.field(fieldEventProperties)) {
		w := walkObject(v.field(fieldEventProperties))
		for w.next() {
			name := w.nameText()
			if !e.properties.chooses(name) && !rule.properties.chooses(name) {
				continue
			}
			if quoted := e.properties.newName(name, w.name); names.add(quoted) {
				dst = append(append(appendComma(dst), quoted...), ':')
				dst = appendCompact(dst, w.value)
			}
		}
		if w.bad {
			return Operation{}, errMalformed
		}
	}
	for _, f := range e.fields {
		if value := v.builtin(f.name); value.isSet() && names.add(f.quoted) {
			dst = append(append(appendComma(dst), f.quoted...), ':')
			dst = value.appendJSON(dst)
		}
	}
	if !e.user.isEmpty() {
		w := walkObject(v.userProperties)
		for w.next() {
			name := w.nameText()
			if isNull(w.value) || !e.user.chooses(name) {
				continue
			}
			if quoted := e.user.newName(name, w.name); names.add(quoted) {
				dst = append(append(appendComma(dst), quoted...), ':')
				dst = appendUserValue(dst, w.value, e.asText)
			}
		}
		if w.bad {
			return Operation{}, errMalformed
		}
		e.user.eachBuiltin(v, func(_, quoted, raw []byte) {
			if names.add(quoted) {
				dst = append(append(appendComma(dst), quoted...), ':')
				dst = appendUserValue(dst, raw, e.asText)
			}
		})
	}
	dst = append(dst, "}}"...)
	if byV1 || len(dst)-start > maxOperation {
		if s.room == &s.own {
			s.own.bytes = dst[:start] // its memory, for release to see
		}
		return v.byV1(action, name, id, dst[data:len(dst)-1]), nil
	}
	op := Operation{Action: action, Body: s.room.end(start, dst)}
	op.checkName(name)
	return op, nil
}

// byV1 is the event as a request of the v1 API. Where that is not possible it is refused, for being too large.
func (v *view) byV1(action string, name []byte, id Identifier, data []byte) Operation {
	anonymous, path, addressed := "", v1Anonymous, true
	if id.Kind == kindAnonymous {
		anonymous = id.Value
	} else {
		path, addressed = v1Path(id)
	}
	op := Operation{Action: action, Body: appendV1(nil, action, name, v.record.ID, v.record.Time/1000, anonymous, data)}
	op.apart().Path = path
	op.checkName(name)
	switch {
	case len(data) > maxEventData:
		op.refuse(reasonTooLarge, fmt.Sprintf("its data has %d bytes; Customer.io takes %d", len(data), maxEventData))
	case !addressed:
		op.refuse(reasonTooLarge, fmt.Sprintf("larger than %d bytes; by the API that takes larger ones nobody can be told by an %s of this form", maxOperation, id.Kind))
	}
	return op
}

func (o *Operation) checkName(name []byte) {
	if len(name) > maxEventName {
		o.refuse(reasonNameTooLong, fmt.Sprintf("its name has %d bytes; Customer.io takes %d", len(name), maxEventName))
	}
}

// asView returns the action and the name under which page_views = "page" sends an event. Customer.io calls a page by its
// address, so that campaigns can pick pages by it: the name is the page's URL without its query, or where that is absent,
// or longer than an event's name may be, the path, else the title. A screen is called by its name.
func (v *view) asView() (action string, name []byte) {
	switch string(v.event) {
	case "[Amplitude] Page Viewed":
		for _, property := range []string{"[Amplitude] Page URL", "[Amplitude] Page Path", "[Amplitude] Page Title"} {
			if name := v.viewName(property); name != nil {
				return "page", name
			}
		}
		return "page", v.event
	case "[Amplitude] Screen Viewed":
		if name := v.viewName("[Amplitude] Screen Name"); name != nil {
			return "screen", name
		}
		return "screen", v.event
	}
	return "event", v.event
}

func (v *view) viewName(property string) []byte {
	name := valueOf(member(v.field(fieldEventProperties), []byte(property))).text
	if name = eventName(name); len(name) == 0 || len(name) > maxEventName {
		return nil
	}
	return name
}

func isObjectStart(value []byte) bool { return len(value) > 0 && value[0] == '{' }

// appendComma writes the comma before a member unless it is the first.
func appendComma(dst []byte) []byte {
	if len(dst) > 0 && dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	return dst
}

// nameSet holds the quoted names that an object has already.
type nameSet struct {
	few  [][]byte
	many map[string]bool
	// marks has a bit for each name of few: where a name's is not there, it is new. Most are.
	marks uint64
}

func (s *nameSet) reset() {
	clear(s.few)
	s.few, s.many, s.marks = s.few[:0], nil, 0
}

// add reports whether the name was new.
func (s *nameSet) add(quoted []byte) bool {
	if s.many != nil {
		if s.many[string(quoted)] {
			return false
		}
		s.many[string(quoted)] = true
		return true
	}
	key := nameKey(quoted)
	mark := uint64(1) << (key * 0x9e3779b97f4a7c15 >> 58)
	if s.marks&mark != 0 && slices.ContainsFunc(s.few, func(n []byte) bool { return bytes.Equal(n, quoted) }) {
		return false
	}
	s.marks |= mark
	if s.few = append(s.few, quoted); len(s.few) > indexAfter {
		s.many = make(map[string]bool, 2*len(s.few))
		for _, n := range s.few {
			s.many[string(n)] = true
		}
	}
	return true
}
