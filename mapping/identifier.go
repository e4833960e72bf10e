package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
)

// Identifier is how Customer.io knows a person.
type Identifier struct {
	Kind  string // "id", "email" or "cio_id"
	Value string // of a cio_id without the prefix cio_, as the v2 API wants it
}

// Key names the person for claims and for the memory of what was sent: what Customer.io takes for one person has one
// key. It ignores the case of emails and minds that of ids.
func (id Identifier) Key() string {
	if len(id.Value) > maxIdentifier { // nobody's; its length is the sender's, and a key has to be bounded
		sum := sha256.Sum256([]byte(id.Value))
		return id.Kind + "#" + hex.EncodeToString(sum[:16])
	}
	if id.Kind == "email" {
		return "email:" + strings.ToLower(id.Value)
	}
	return id.Kind + ":" + id.Value
}

// Why a record has no identifier, or an event or user update is not sent: Decision.EventReason and .UserReason, and the
// second result of Rules.Identifier. They are shown to people and stored in books.
const (
	reasonNoIdentifier = "no_identifier"       // the property is absent or null
	reasonNotText      = "identifier_not_text" // it is a bool, a list or an object
	reasonBlank        = "identifier_blank"    // nothing, or nothing but space

	reasonEventsOff     = "events_off"      // events.send = false
	reasonIdentify      = "identify"        // $identify is no event
	reasonGroupIdentify = "group_identify"  // $groupidentify is no event
	reasonNotSelected   = "not_selected"    // no select rule matched
	reasonDropped       = "dropped_by_rule" // the first rule that matched says drop

	reasonUsersOff  = "users_off"                 // users.send = false
	reasonUnchanged = "unchanged"                 // nothing chosen differs from what was last sent
	reasonSkipSync  = "skip_user_properties_sync" // the event asked to leave the user alone
	reasonPast      = "past_properties"           // an event of an import, or of the webhook, whose properties are older than what is known
)

// newIdentifier makes an identifier of the value that the identifier path led to, or says why there is none. One that is
// too long for Customer.io is one all the same: what would be sent of it is not filtered but kept, as a dead letter.
func newIdentifier(v value, kind string) (Identifier, string) {
	var s string
	switch v.kind {
	case absent, null:
		return Identifier{}, reasonNoIdentifier
	case text:
		s = string(v.text)
	case number:
		s = string(numberText(v.raw))
	default:
		return Identifier{}, reasonNotText
	}
	return textIdentifier(s, kind)
}

// fieldIdentifier is that of a record's own field, of which "" is absent.
func fieldIdentifier(s, kind string) (Identifier, string) {
	if s == "" {
		return Identifier{}, reasonNoIdentifier
	}
	return textIdentifier(s, kind)
}

func textIdentifier(s, kind string) (Identifier, string) {
	if kind == "auto" {
		switch {
		case looksLikeEmail(s):
			kind = "email"
		case hasCioPrefix(s):
			kind = "cio_id"
		default:
			kind = "id"
		}
	}
	if kind == "cio_id" {
		s = strings.TrimPrefix(s, "cio_")
	}
	if strings.TrimSpace(s) == "" {
		return Identifier{}, reasonBlank
	}
	return Identifier{kind, s}, ""
}

func hasCioPrefix(s string) bool { return strings.HasPrefix(s, "cio_") }

// looksLikeEmail is the shape x@y.z: one @ with something before it, and behind it a dot that neither begins nor ends the
// rest, no space anywhere.
func looksLikeEmail(s string) bool {
	at := strings.IndexByte(s, '@')
	if at < 1 || strings.IndexByte(s[at+1:], '@') >= 0 {
		return false
	}
	domain := s[at+1:]
	dot := strings.IndexByte(domain, '.')
	return dot > 0 && domain[len(domain)-1] != '.' && !strings.ContainsFunc(s, unicode.IsSpace)
}

// isBlank reports whether text holds nothing but space.
func isBlank(text []byte) bool { return len(bytes.TrimSpace(text)) == 0 }
