package mapping

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Event is one Amplitude event as it came in. The byte slices alias one buffer: the one ParseEvent was given, or a
// repaired copy of it.
type Event struct {
	Raw              []byte // the event's own JSON object as received, without an api_key; valid UTF-8, no name twice
	Type             string // event_type
	UserID, DeviceID string // "" when absent, null or empty; a number becomes its digits
	InsertID         string // insert_id, else the legacy SDKs' uuid; "" when absent
	Time             int64  // ms since 1970 UTC by the client's clock (time, else the legacy SDKs' timestamp); 0 = absent
	UserProperties   []byte // raw object; nil when absent, null or empty
	// Builtins are what it says of its user's built-in properties, packed (builtins.go); nil = nothing.
	Builtins []byte
	Pays     bool // it is about revenue, and some came in
	// Snapshot: UserProperties are all that the user had at Time, not what the event does to them. Raw does not have them.
	Snapshot bool

	SkipUserPropertiesSync bool // $skip_user_properties_sync
}

// Problem is why an event cannot be taken.
type Problem struct {
	Field   string // of the event, "user_properties"; "" = the event as a whole
	Missing bool   // belongs into events_with_missing_fields, else into events_with_invalid_fields
	Detail  string // for people; never quotes the event
}

// Source says how an event came to us. The numbers are stored.
type Source uint8

const (
	SourceHTTP    Source = iota // an SDK or anything else that speaks Amplitude's ingestion API
	SourceWebhook               // Amplitude's webhook destination
	SourceImport                // an export file
)

// FromAmplitude says that Amplitude has the event already: it is never passed on to it.
func (s Source) FromAmplitude() bool { return s == SourceWebhook || s == SourceImport }

// Arrival is what one request brought.
type Arrival struct {
	Project  string
	Received int64  // ms since 1970 UTC, our clock
	Uploaded int64  // client_upload_time in ms since 1970 UTC, the client's clock; 0 = absent
	Address  string // peer IP
	Source   Source
	KeyID    uint64 // of the API key, where the project has several; else 0
	Events   []Event
}

// maxDepth is how deep Amplitude lets objects and lists nest in one field (HTTP V2 page).
const maxDepth = 40

// ParseEvent reads one event. With problems the Event is not to be used; without, it may alias raw, which must then not
// change. The rules are those of the HTTP V2 page, read kindly where the page leaves room and a refusal would lose data:
//
//   - null is absent, for every field;
//   - event_type, the IDs, insert_id and time are held to their types (numbers as IDs become their digits; a time must
//     be a whole number of milliseconds); a blank event_type counts as missing;
//   - other fields that should hold one value may hold any string, number or bool, but no list or object;
//   - an empty list where an object belongs is an empty object (PHP writes it so);
//   - unknown fields are kept and not looked at.
//
// How long an ID must be, and which values are no IDs, is not decided here.
func ParseEvent(raw []byte) (Event, []Problem) {
	s := outliners.Get().(*Outliner)
	defer outliners.Put(s)
	s.Reset()
	trimmed := trimSpace(raw)
	if o, end := s.Outline(trimmed); o.read && end == len(trimmed) {
		return readEvent(trimmed, s.members[o.from:o.to], nil)
	}
	return s.parseThoroughly(trimmed)
}

// parseThoroughly is ParseEvent for what an Outliner does not read.
func (s *Outliner) parseThoroughly(raw []byte) (Event, []Problem) {
	raw = repairSurrogates(raw)
	if len(raw) == 0 || raw[0] != '{' {
		return Event{}, []Problem{{Detail: "the event is not a JSON object"}}
	}
	if err := check(raw); err != nil {
		return Event{}, []Problem{syntaxProblem(err)}
	}
	var problems []Problem
	deep := nestsDeeper(raw, maxDepth+1)
	s.members = s.members[:0]
	for w := walkObject(raw); w.next(); {
		if deep && nestsDeeper(w.value, maxDepth) {
			problems = append(problems, Problem{Field: fieldName(w.name), Detail: "nests deeper than 40 levels"})
		}
		name, value := w.pos-len(w.value), w.pos
		// The name's place is told by its capacity: both are slices of raw.
		at := cap(raw) - cap(w.name)
		s.members = append(s.members, memberPlace{int32(at), int32(at + len(w.name)), int32(name), int32(value)})
	}
	e, more := readEvent(raw, s.members, nil)
	if problems = append(problems, more...); problems != nil {
		return Event{}, problems
	}
	return e, nil
}

// readEvent makes an event of JSON that has been checked, whose members are given. Its built-in properties are appended
// to packed, when that is not nil.
func readEvent(raw []byte, members []memberPlace, packed *[]byte) (Event, []Problem) {
	e := Event{Raw: raw}
	var problems []Problem
	invalid := func(field, detail string) {
		problems = append(problems, Problem{Field: field, Detail: detail})
	}
	var texts eventTexts
	var timestamp int64
	typed, apiKey, sells := true, false, false
	var own builtinSet
	var versionName []byte
	for _, m := range members {
		value := raw[m.value:m.valueEnd:m.valueEnd]
		if isNull(value) {
			continue
		}
		name := plainText(raw[m.name:m.nameEnd])
		switch string(name) {
		case "event_type":
			if value[0] != '"' {
				invalid("event_type", "must be a string")
				typed = false
				continue
			}
			texts.eventType = plainText(value)
		case "user_id", "device_id", "insert_id":
			text, ok := idText(value)
			switch {
			case !ok:
				invalid(string(name), "must be a string")
			case name[0] == 'u':
				texts.user = text
			case name[0] == 'd':
				texts.device = text
			default:
				texts.insert = text
			}
		case "uuid":
			texts.uuid, _ = idText(value)
		case "time":
			ms, ok := wholeNumber(value)
			if !ok || ms < 0 {
				invalid("time", "must be a whole number of milliseconds since 1970")
				continue
			}
			e.Time = ms
		case "timestamp":
			// Not a field of the HTTP V2 page: anything but the legacy SDKs' milliseconds is somebody's own field.
			if ms, ok := wholeNumber(value); ok && ms > 0 {
				timestamp = ms
			}
		case "user_properties":
			switch {
			case !isObject(value):
				invalid("user_properties", "must be an object")
			case value[0] == '{' && hasMembers(value):
				e.UserProperties = value
			}
		case "event_properties", "groups", "group_properties":
			if !isObject(value) {
				invalid(string(name), "must be an object")
			}
		case "$skip_user_properties_sync":
			if value[0] != 't' && value[0] != 'f' {
				invalid(string(name), "must be true or false")
			}
			e.SkipUserPropertiesSync = value[0] == 't'
		case "api_key":
			apiKey = true
		case "library":
			if value[0] == '[' {
				invalid("library", "must be a string")
			}
		case "version_name":
			if value[0] == '{' || value[0] == '[' {
				invalid("version_name", "must be a single value")
			}
			versionName = value
		default:
			if (value[0] == '{' || value[0] == '[') && slices.Contains(singleValued, string(name)) {
				invalid(string(name), "must be a single value")
			}
			switch string(name) {
			case "price", "revenue":
				sells = true
			default:
				if number := builtinNumber(name); number != noBuiltin {
					own.set(number, value)
				}
			}
		}
	}
	if typed && len(bytes.TrimSpace(texts.eventType)) == 0 {
		problems = append(problems, Problem{Field: "event_type", Missing: true, Detail: "is required"})
	}
	if problems != nil {
		return Event{}, problems
	}
	texts.copyTo(&e)
	if e.Time == 0 {
		e.Time = timestamp
	}
	if own[builtinVersion] == nil && versionName != nil {
		own.set(builtinVersion, versionName)
	}
	e.Builtins = own.packedInto(packed)
	e.Pays = (sells || slices.Contains(revenueEvents, e.Type)) && pays(raw)
	if apiKey {
		e.Raw = withoutMember(raw, "api_key")
	}
	return e, nil
}

// eventTexts are those of an event that are kept as strings.
type eventTexts struct{ eventType, user, device, insert, uuid []byte }

// copyTo makes one string of all texts: four of them for each event would be most of what a request allocates.
func (t *eventTexts) copyTo(e *Event) {
	if len(t.insert) == 0 {
		t.insert = t.uuid
	}
	var few [256]byte
	all := append(append(append(append(few[:0], t.eventType...), t.user...), t.device...), t.insert...)
	rest := string(all)
	cut := func(n int) (text string) {
		text, rest = rest[:n], rest[n:]
		return text
	}
	e.Type, e.UserID, e.DeviceID, e.InsertID = cut(len(t.eventType)), cut(len(t.user)), cut(len(t.device)), cut(len(t.insert))
}

// singleValued are the fields of the HTTP V2 page that hold one value and are read by nothing above.
var singleValued = []string{
	"user_agent", "app_version", "version_name", "platform", "os_name", "os_version", "device_brand",
	"device_manufacturer", "device_model", "carrier", "country", "region", "city", "dma", "language", "price",
	"quantity", "revenue", "productId", "product_id", "revenueType", "revenue_type", "currency", "location_lat",
	"location_lng", "ip", "idfa", "idfv", "adid", "android_id", "android_app_set_id", "event_id", "session_id",
	"partner_id",
}

// EventTime corrects a client's clock as Amplitude does: where client_upload_time and our receipt are 60 s or more
// apart, the event is moved by that much. All times are ms since 1970 UTC, 0 = absent. An event without a time happened
// when it was received, and no event happens later than 60 s after that.
func EventTime(client, uploaded, received int64) int64 {
	const minute = 60_000
	if client <= 0 {
		return received
	}
	if uploaded > 0 {
		if skew := received - uploaded; skew >= minute || skew <= -minute {
			client = addWithin(client, skew)
		}
	}
	if client <= 0 { // what was called an upload time was none
		return received
	}
	return min(client, addWithin(received, minute))
}

// addWithin is a+b, held at the ends of int64.
func addWithin(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}

// syntaxProblem names the field that an error of check stands in, and never what stands there.
func syntaxProblem(err error) Problem {
	p := Problem{Detail: "is not valid JSON"}
	s, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok {
		return p
	}
	for token := range s.JSONPointer.Tokens() {
		if len(token) <= 64 {
			p.Field = token
		}
		break
	}
	switch {
	case s.Err == jsontext.ErrDuplicateName:
		p.Detail = "a name stands twice in one object"
	case strings.Contains(s.Err.Error(), "UTF-8"):
		p.Detail = "text is not valid UTF-8"
	}
	return p
}

func fieldName(quoted []byte) string {
	name := plainText(quoted)
	if len(name) > 64 {
		return ""
	}
	return string(name)
}

// textOrDigits reads a string, or a number as its digits.
func textOrDigits(value []byte) (string, bool) {
	text, ok := idText(value)
	return string(text), ok
}

// idText is textOrDigits, but may alias value.
func idText(value []byte) ([]byte, bool) {
	switch c := value[0]; {
	case c == '"':
		return plainText(value), true
	case c == '-' || isDigit(c):
		return numberText(value), true
	}
	return nil, false
}

func wholeNumber(value []byte) (int64, bool) {
	if n, ok := smallInteger(value); ok {
		return n, true
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	return n, err == nil
}

// isObject also takes an empty list for an object.
func isObject(value []byte) bool {
	return value[0] == '{' || value[0] == '[' && len(trimSpace(value[1:len(value)-1])) == 0
}

func hasMembers(object []byte) bool {
	return len(trimSpace(object[1:len(object)-1])) > 0
}

// withoutMember returns a copy of a checked object that lacks one member.
func withoutMember(object []byte, name string) []byte {
	out := append(make([]byte, 0, len(object)), '{')
	for w := walkObject(object); w.next(); {
		if bytes.Equal(w.nameText(), []byte(name)) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, w.name...), ':'), w.value...)
	}
	return append(out, '}')
}
