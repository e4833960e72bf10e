package mapping

import (
	"bytes"
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
	if id.Kind == "email" {
		return "email:" + strings.ToLower(id.Value)
	}
	return id.Kind + ":" + id.Value
}

// maxIdentifier is Customer.io's limit for a person's id, in bytes.
const maxIdentifier = 150

// Why a record has no identifier, or an event or user update is not sent: Decision.EventReason and .UserReason, and the
// second result of Rules.Identifier. They are shown to people and stored in books.
const (
	reasonNoIdentifier = "no_identifier"       // the property is absent or null
	reasonNotText      = "identifier_not_text" // it is a bool, a list or an object
	reasonTooLong      = "identifier_too_long" // more than 150 bytes
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

// newIdentifier makes an identifier of the value that the identifier path led to, or says why there is none.
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
	if kind == "auto" {
		switch {
		case looksLikeEmail(s):
			kind = "email"
		case strings.HasPrefix(s, "cio_"):
			kind = "cio_id"
		default:
			kind = "id"
		}
	}
	if kind == "cio_id" {
		s = strings.TrimPrefix(s, "cio_")
	}
	switch {
	case strings.TrimSpace(s) == "":
		return Identifier{}, reasonBlank
	case len(s) > maxIdentifier:
		return Identifier{}, reasonTooLong
	}
	return Identifier{kind, s}, ""
}

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
