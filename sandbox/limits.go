package sandbox

import (
	"bytes"
	"strconv"

	"github.com/oklog/ulid/v2"
)

// The limits of Customer.io's Track API as documented in its OpenAPI document and
// on its page about invalid requests. Whether "kB" there is 1000 or 1024 bytes is
// not said: the smaller reading is enforced.
const (
	maxRequestBytes        = 500_000
	maxOperationBytes      = 32_000
	maxIdentifierBytes     = 150
	maxAttributeNameBytes  = 150
	maxAttributeValueBytes = 1000 // people; event attributes have no such limit
	maxAttributes          = 300  // of one identify
	maxEventNameBytes      = 100
	maxEventDataBytes      = 100_000 // v1
	minTimestamp           = 1_000_000_000
	maxTimestamp           = 100_000_000_000
)

// A problem is one broken rule: rule names it in the report, field and message are
// what the client is told.
type problem struct{ rule, field, message string }

type action uint8

const (
	actIdentify action = iota
	actEvent
	actPage
	actScreen
	actDelete
	actMerge
	actSuppress
	actUnsuppress
	actAddDevice
	actDeleteDevice
	actAddRelationships
	actDeleteRelationships
	actObject   // any operation on an object
	actDelivery // any operation on a delivery
	actions
)

var actionNames = [actions]string{"identify", "event", "page", "screen", "delete", "merge", "suppress", "unsuppress",
	"add_device", "delete_device", "add_relationships", "delete_relationships", "object", "delivery"}

func (a action) isEvent() bool { return a == actEvent || a == actPage || a == actScreen }

type identifierKind uint8

const (
	noIdentifier identifierKind = iota
	byID
	byEmail
	byPhone
	byCio
	byAnonymous
)

var kindNames = [...]string{"", "id", "email", "phone", "cio_id", "anonymous_id"}

// An identifier says whom an operation is about. The value is as sent, a number as
// its digits, and may alias the request's body.
type identifier struct {
	kind  identifierKind
	value []byte
}

// An operation is one checked change, of v1 or v2. Its slices alias the request's
// body: whoever keeps it copies them.
type operation struct {
	action    action
	who       identifier // of a merge: the primary
	secondary identifier // of a merge
	name      []byte     // of an event, trimmed
	id        []byte     // of an event as sent, nil when absent
	ulid      ulid.ULID  // id decoded, when isULID
	isULID    bool
	timestamp int64  // unix seconds, 0 = absent
	values    []byte // attributes or event data: a raw object, nil when absent
	v1        bool
	token     []byte // of a device
	device    []byte // raw object
	anonymous []byte // anonymous_id of a v1 anonymous event
	misplaced [][]byte
}

func invalid(rule, field, message string) *problem { return &problem{rule, field, message} }

func checkTimestamp(raw []byte, field string) (int64, *problem) {
	if isNull(raw) {
		return 0, nil
	}
	t, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, invalid("timestamp_not_whole_seconds", field, "timestamp must be a whole number of unix seconds")
	}
	if t < minTimestamp || t > maxTimestamp {
		return 0, invalid("timestamp_out_of_range", field, "timestamp must be unix seconds")
	}
	return t, nil
}

// checkName returns the event's name, trimmed.
func checkName(raw []byte) ([]byte, *problem) {
	if raw == nil || isNull(raw) {
		return nil, invalid("name_missing", "name", "name is required")
	}
	if !isString(raw) {
		return nil, invalid("name_not_string", "name", "name must be a string")
	}
	name := bytes.TrimSpace(text(raw))
	if len(name) == 0 {
		return nil, invalid("name_blank", "name", "name cannot be blank")
	}
	if len(name) > maxEventNameBytes {
		return nil, invalid("name_too_long", "name", "name cannot be longer than 100 bytes")
	}
	return name, nil
}

func (o *operation) setEventID(raw []byte) *problem {
	if isNull(raw) {
		return nil
	}
	if !isString(raw) {
		return invalid("event_id_not_string", "id", "id must be a string")
	}
	o.id = text(raw)
	if u, err := ulid.ParseStrict(string(o.id)); err == nil {
		o.ulid, o.isULID = u, true
	}
	return nil
}

// checkIdentifier checks one member of an identifiers object.
func checkIdentifier(name string, raw []byte, field string) (identifier, *problem) {
	field += "." + name
	var id identifier
	for k := byID; k <= byAnonymous; k++ {
		if kindNames[k] == name {
			id.kind = k
		}
	}
	if id.kind == noIdentifier {
		return id, invalid("identifier_unknown", field, "not an identifier: use id, email, phone or cio_id")
	}
	switch {
	case isString(raw):
		id.value = text(raw)
	case isNumber(raw):
		id.value = raw
	default:
		return id, invalid("identifier_type", field, "must be a string or a number")
	}
	return id, checkIdentifierText(id, field)
}

func checkIdentifierText(id identifier, field string) *problem {
	switch {
	case len(bytes.TrimSpace(id.value)) == 0:
		return invalid("identifier_blank", field, "cannot be blank")
	case len(id.value) > maxIdentifierBytes:
		return invalid("identifier_too_long", field, "cannot be longer than 150 bytes")
	case id.kind == byEmail && !looksLikeEmail(id.value):
		return invalid("identifier_not_email", field, "is not an email address")
	case id.kind == byPhone && !looksLikePhone(id.value):
		return invalid("identifier_not_phone", field, "is not an E.164 phone number")
	}
	return nil
}

// checkIdentifiers takes the one identifier out of an identifiers object.
func checkIdentifiers(raw []byte, field string) (identifier, *problem) {
	if raw == nil || isNull(raw) {
		return identifier{}, invalid("identifiers_missing", field, field+" is required")
	}
	if !isObject(raw) {
		return identifier{}, invalid("identifiers_not_object", field, field+" must be an object")
	}
	var found identifier
	for w := walk(raw); ; {
		name, value, ok := w.member()
		if !ok {
			break
		}
		id, p := checkIdentifier(string(name), value, field)
		if p != nil {
			return identifier{}, p
		}
		if found.kind != noIdentifier {
			return identifier{}, invalid("identifiers_several", field, "exactly one identifier is allowed")
		}
		found = id
	}
	if found.kind == noIdentifier {
		return identifier{}, invalid("identifiers_missing", field, "one of id, email, phone or cio_id is required")
	}
	return found, nil
}

// checkAttributes tells report every broken limit of a person's attributes;
// prefix goes before an attribute's name in the field.
func checkAttributes(raw []byte, prefix string, report func(*problem)) {
	n := 0
	for w := walk(raw); ; {
		name, value, ok := w.member()
		if !ok {
			break
		}
		if isControl(name) {
			continue
		}
		n++
		if len(name) > maxAttributeNameBytes {
			report(invalid("attribute_name_too_long", prefix+string(name), "property name cannot be longer than 150 bytes"))
			continue
		}
		size := len(value)
		if isString(value) && size > maxAttributeValueBytes {
			size = len(text(value))
		}
		if size > maxAttributeValueBytes {
			report(invalid("attribute_value_too_long", prefix+string(name), "property value cannot be longer than 1000 bytes"))
		}
	}
	if n > maxAttributes {
		field := "attributes"
		if prefix == "" {
			field = ""
		}
		report(invalid("too_many_attributes", field, "cannot have more than 300 attributes"))
	}
}

// isControl tells the members of an identify's body that steer it from those that
// are attributes.
func isControl(name []byte) bool {
	switch string(name) {
	case "_update", "_timestamp", "cio_relationships":
		return true
	}
	return false
}

// looksLikeEmail is the guess by shape that v1 makes of a path: x@y.z.
func looksLikeEmail(v []byte) bool {
	at := bytes.IndexByte(v, '@')
	if at < 1 || bytes.ContainsAny(v, " \t\r\n") || bytes.IndexByte(v[at+1:], '@') >= 0 {
		return false
	}
	dot := bytes.LastIndexByte(v, '.')
	return dot > at+1 && dot < len(v)-1
}

func looksLikePhone(v []byte) bool {
	if len(v) < 8 || len(v) > 16 || v[0] != '+' || v[1] == '0' {
		return false
	}
	for _, c := range v[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
