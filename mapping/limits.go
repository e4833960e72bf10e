package mapping

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Customer.io's limits, in bytes of UTF-8. What is beyond one is never cut: it is left out, or the operation is not sent.
// Where Customer.io says kB, 1000 is right whether it means 1000 or 1024.
const (
	maxIdentifier     = 150     // of a person, and of an anonymous_id
	maxEventName      = 100     // without the space around it
	maxAttributeName  = 150     // of a person
	maxAttributeValue = 1000    // of a person: the text, or the JSON of anything else
	maxAttributes     = 300     // of one identify
	maxOperation      = 32_000  // of the v2 API
	maxEventData      = 100_000 // of the v1 API; of an event's data there is no other limit
)

// Why an operation is not sent (Apart.Refused), and why an attribute is left out of an identify (Decision.LeftOut). They
// are shown to people and stored in books.
const (
	reasonTooLong        = "identifier_too_long"      // more than 150 bytes
	reasonNameTooLong    = "event_name_too_long"      // more than 100 bytes
	reasonTooLarge       = "operation_too_large"      // more than 32,000 bytes, or of an event's data more than 100,000
	reasonAttributeName  = "attribute_name_too_long"  // more than 150 bytes
	reasonAttributeValue = "attribute_value_too_long" // more than 1000 bytes
	reasonTooMany        = "too_many_attributes"      // more than 300 in one identify
)

// LeftOut is an attribute that an identify lacks for one of Customer.io's limits. It is told once, and again only when
// its value has changed.
type LeftOut struct {
	Name   string // the attribute
	Reason string // attribute_name_too_long, attribute_value_too_long or too_many_attributes
}

// attributeFits says whether Customer.io takes an attribute; the reason when it does not. name is unquoted, value JSON.
func attributeFits(name, value []byte) (reason string) {
	if len(name) > maxAttributeName {
		return reasonAttributeName
	}
	if len(value) <= maxAttributeValue {
		return ""
	}
	if value[0] == '"' && len(plainText(value)) <= maxAttributeValue {
		return ""
	}
	return reasonAttributeValue
}

// Apart is what an operation has that is not simply an element of a batch.
type Apart struct {
	Path            string // where it goes instead, alone: its body is then one of the v1 API; "" = it is an element of a batch
	Refused, Detail string // why it must not be sent; "" = it may be
}

func (o *Operation) apart() *Apart {
	if o.Apart == nil {
		o.Apart = &Apart{}
	}
	return o.Apart
}

func (o *Operation) refuse(reason, detail string) {
	if a := o.apart(); a.Refused == "" {
		a.Refused, a.Detail = reason, detail
	}
}

// refuseIdentifier marks operations on somebody whom Customer.io cannot know.
func refuseIdentifier(operations []Operation, id Identifier) {
	if len(id.Value) <= maxIdentifier {
		return
	}
	for i := range operations {
		operations[i].refuse(reasonTooLong, fmt.Sprintf("the identifier has %d bytes; Customer.io takes %d", len(id.Value), maxIdentifier))
	}
}

// eventName is the name as Customer.io has it in the end: it cuts off the space around it.
func eventName(name []byte) []byte { return bytes.TrimSpace(name) }

// The v1 API takes one event in a request, whose path names the person. It takes larger ones than v2; and events of
// nobody are in its contract, while in that of v2 they are not.
const (
	v1Anonymous = "/api/v1/events"
	v1People    = "/api/v1/customers/"
)

// NamesPerson says whether a person stands in a path of Operation.Path.
func NamesPerson(path string) bool { return strings.HasPrefix(path, v1People) }

// appendV1 writes the body of an event for v1. data is its JSON object.
func appendV1(dst []byte, action string, name []byte, id [16]byte, seconds int64, anonymous string, data []byte) []byte {
	dst = append(dst, `{"name":`...)
	dst = appendQuoted(dst, name)
	if action != "event" {
		dst = append(append(append(dst, `,"type":"`...), action...), '"')
	}
	dst = appendULID(append(dst, `,"id":"`...), id)
	dst = strconv.AppendInt(append(dst, `","timestamp":`...), seconds, 10)
	if anonymous != "" {
		dst = appendQuoted(append(dst, `,"anonymous_id":`...), anonymous)
	}
	dst = append(append(dst, `,"data":`...), data...)
	return append(dst, '}')
}

// v1Path is where v1 takes events of a person; ok is false where v1 would take the identifier for another one: it tells
// the kind by the form alone, and . and .. do not survive every proxy.
func v1Path(id Identifier) (path string, ok bool) {
	segment := id.Value
	switch id.Kind {
	case "cio_id":
		segment = "cio_" + segment
	case "email":
		ok = looksLikeEmail(segment) && !hasCioPrefix(segment)
	default:
		ok = !looksLikeEmail(segment) && !hasCioPrefix(segment) && segment != "." && segment != ".."
	}
	if !ok && id.Kind != "cio_id" {
		return "", false
	}
	dst := append(make([]byte, 0, len(v1People)+3*len(segment)+len("/events")), v1People...)
	for i := range len(segment) {
		switch c := segment[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c), c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		default:
			const hex = "0123456789ABCDEF"
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(append(dst, "/events"...)), true
}
