package mapping

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// When a person is updated, and with what. All that is known of the past is in "sent": what this identifier was last
// sent, in a form that only this file reads.

// sentVersion begins every sent. Behind it: a uvarint of the last identify's timestamp (unix seconds), then for each
// attribute a byte state, 8 bytes hash of the value (big-endian), a uvarint length and the attribute's name, unquoted
// and as it is called at Customer.io. Attributes are in order of their names.
const sentVersion = 1

// sentNothing stands for sentVersion in what Unrefused makes of an identifier that was sent no values: whether the one
// identify got through does not count, only its time. It is never stored.
const sentNothing = 0xff

type sentState byte

const (
	sentValue   sentState = 1 // Customer.io has this value
	sentRefused sentState = 2 // Customer.io refused this value: not sent again until it changes
	sentCleared sentState = 3 // Customer.io was told to clear it
	sentUnsure  sentState = 4 // it was in an identify that was refused for another attribute's sake: Customer.io may have an older value
)

type sentAttribute struct {
	name  []byte
	hash  uint64
	state sentState
	seen  bool // while deciding: it stands in the current properties
}

// sent is the decoded form.
type sent struct {
	known      bool // this identifier has been sent an identify before
	last       int64
	attributes []sentAttribute
}

var errSent = errors.New("malformed")

// decodeSent takes nil, and what it cannot read (damaged, or of a newer program), for never: everything is then sent once more,
// which changes nothing at Customer.io.
func (s *sent) decode(data []byte) {
	s.reset()
	if err := s.read(data); err != nil {
		s.reset()
	}
}

// reset forgets everything but the memory.
func (s *sent) reset() {
	clear(s.attributes)
	*s = sent{attributes: s.attributes[:0]}
}

func (s *sent) read(data []byte) error {
	if len(data) == 0 || data[0] != sentVersion && data[0] != sentNothing {
		return errSent
	}
	last, n := binary.Uvarint(data[1:])
	if n <= 0 || last > 1<<62 {
		return errSent
	}
	s.known, s.last = data[0] == sentVersion, int64(last)
	for data = data[1+n:]; len(data) > 0; {
		if len(data) < 10 {
			return errSent
		}
		a := sentAttribute{state: sentState(data[0]), hash: binary.BigEndian.Uint64(data[1:])}
		length, n := binary.Uvarint(data[9:])
		if n <= 0 || a.state < sentValue || a.state > sentUnsure || length > uint64(len(data)-9-n) {
			return errSent
		}
		a.name = data[9+n : 9+n+int(length)]
		data = data[9+n+int(length):]
		s.attributes = append(s.attributes, a)
	}
	return nil
}

func (s *sent) encode() []byte {
	slices.SortFunc(s.attributes, func(a, b sentAttribute) int { return bytes.Compare(a.name, b.name) })
	size := 1 + binary.MaxVarintLen64
	for _, a := range s.attributes {
		size += 1 + 8 + 2 + len(a.name)
	}
	data := append(make([]byte, 0, size), sentVersion)
	data = binary.AppendUvarint(data, uint64(max(0, s.last)))
	for _, a := range s.attributes {
		data = append(data, byte(a.state))
		data = binary.BigEndian.AppendUint64(data, a.hash)
		data = binary.AppendUvarint(data, uint64(len(a.name)))
		data = append(data, a.name...)
	}
	return data
}

// find looks an attribute up by its name. Decoded attributes are in order.
func (s *sent) find(name []byte) *sentAttribute {
	i, ok := slices.BinarySearchFunc(s.attributes, name, func(a sentAttribute, name []byte) int { return bytes.Compare(a.name, name) })
	if !ok {
		return nil
	}
	return &s.attributes[i]
}

// Refused returns what an identifier has been sent after Customer.io refused the identify whose Decision.Sent is given.
// field is the one Customer.io named: with "attributes.plan" the value of plan is not sent again until it changes, and
// the others of that identify count as not sent, so the next record of this person sends them. With any other field, or
// "", nobody knows which value was at fault, and none of them is sent again until it changes.
func Refused(earlier []byte, field string) []byte {
	var s sent
	if s.decode(earlier); !s.known {
		return earlier
	}
	culprit := -1
	if name, ok := strings.CutPrefix(field, "attributes."); ok {
		for i, a := range s.attributes {
			if matches := string(a.name) == name || strings.HasPrefix(name, string(a.name)+"."); matches &&
				(culprit < 0 || len(a.name) > len(s.attributes[culprit].name)) {
				culprit = i
			}
		}
	}
	for i := range s.attributes {
		switch a := &s.attributes[i]; {
		case a.state == sentRefused:
		case culprit < 0 || i == culprit:
			a.state = sentRefused
		default:
			a.state = sentUnsure
		}
	}
	return s.encode()
}

// Unrefused returns what an identifier has been sent so that a Map with it sends once more the values that Customer.io
// refused, and an identify without values that it refused: for dead letters that are tried again. It is to be given to
// Map and not to be kept.
func Unrefused(earlier []byte) []byte {
	var s sent
	if s.decode(earlier); !s.known {
		return earlier
	}
	for i := range s.attributes {
		if s.attributes[i].state == sentRefused {
			s.attributes[i].state = sentUnsure
		}
	}
	again := s.encode()
	if len(s.attributes) == 0 {
		again[0] = sentNothing
	}
	return again
}

// userRules say which properties of a user are sent on.
type userRules struct {
	send    bool
	chooser chooser
	sources map[string][]string // property names by the new name that rename gives them
	toUnix  map[string]bool     // property names under convert
	asText  bool                // user_property_values = "string"
	keep    bool                // on_unset = "keep"
}

// chosenAs reports whether the rules as they are now choose a property that would be sent under this name.
func (u *userRules) chosenAs(attribute []byte) bool {
	for _, source := range u.sources[string(attribute)] {
		if u.chooser.chooses([]byte(source)) {
			return true
		}
	}
	if _, renamed := u.chooser.rename[string(attribute)]; renamed {
		return false // a property of this name is sent under another
	}
	return u.chooser.chooses(attribute)
}

// decide returns the identify for the record in s.view, and what the identifier will have been sent; or why there is none.
//
// A record whose properties are Partial is treated like any other. Should rules come to name a property only while such
// a record waits, its absence there is taken for real and the attribute cleared, until the person's next record sends it
// again; never to clear for people with many properties would leave wrong values for good.
func (u *userRules) decide(s *scratch, id Identifier, earlier []byte) (op Operation, now []byte, reason string, err error) {
	v, before, after := &s.view, &s.before, &s.after
	switch {
	case !u.send:
		return Operation{}, nil, reasonUsersOff, nil
	case v.skipSync:
		// Its properties are those that it carries, not the user's.
		return Operation{}, nil, reasonSkipSync, nil
	case v.record.Past:
		return Operation{}, nil, reasonPast, nil
	}
	before.decode(earlier)
	if u.chooser.isEmpty() {
		if before.known {
			return Operation{}, nil, reasonUnchanged, nil
		}
		after.last = max(before.last, v.record.Received/1000)
		return s.identify(id, after.last, nil), after.encode(), "", nil
	}
	attributes := s.attributes[:0]
	changed := false
	add := func(name, quoted, raw []byte) {
		if !s.names.add(quoted) {
			return
		}
		start := len(attributes)
		attributes = append(append(appendComma(attributes), quoted...), ':')
		valueAt := len(attributes)
		attributes = u.appendValue(attributes, name, raw)
		attribute := sentAttribute{name: plainText(quoted), hash: hash(attributes[valueAt:]), state: sentValue}
		if was := before.find(attribute.name); was != nil {
			was.seen = true
			switch {
			case was.state == sentRefused && was.hash == attribute.hash:
				attribute.state = sentRefused
				attributes = attributes[:start]
			case was.state != sentValue || was.hash != attribute.hash:
				changed = true
			}
		} else {
			changed = true
		}
		after.attributes = append(after.attributes, attribute)
	}
	w := walkObject(v.userProperties)
	for w.next() {
		if name := plainText(w.name); !isNull(w.value) && u.chooser.chooses(name) {
			add(name, u.chooser.newName(name, w.name), w.value)
		}
	}
	u.chooser.eachBuiltin(v, add)
	if w.bad {
		return Operation{}, nil, "", errMalformed
	}
	for _, was := range before.attributes {
		switch {
		case was.seen || !u.chosenAs(was.name):
		case was.state == sentCleared, was.hash == clearedHash && was.state != sentUnsure:
			// It is empty already; and a refused clear is not repeated.
		case u.keep:
			after.attributes = append(after.attributes, was)
		default:
			changed = true
			attributes = appendQuoted(appendComma(attributes), was.name)
			attributes = append(attributes, `:""`...)
			after.attributes = append(after.attributes, sentAttribute{name: was.name, hash: clearedHash, state: sentCleared})
		}
	}
	s.attributes = attributes
	if !changed {
		return Operation{}, nil, reasonUnchanged, nil
	}
	// Customer.io silently drops an identify that is older than the last one, so the time never goes back, and never is
	// the event's own.
	after.last = max(before.last, v.record.Received/1000)
	return s.identify(id, after.last, attributes), after.encode(), "", nil
}

func (u *userRules) appendValue(dst []byte, name, raw []byte) []byte {
	if u.toUnix[string(name)] {
		if seconds, ok := unixSeconds(raw); ok {
			return strconv.AppendInt(dst, seconds, 10)
		}
	}
	return appendUserValue(dst, raw, u.asText)
}

// appendUserValue writes a user property as it is, or as Amplitude's hosted destination would: everything a string, with
// lists and objects as their JSON.
func appendUserValue(dst, raw []byte, asText bool) []byte {
	if !asText || raw[0] == '"' {
		return appendCompact(dst, raw)
	}
	return appendQuoted(dst, compact(raw))
}

// unixSeconds reads what `convert = "unix"` converts: a whole number of milliseconds, taken for one from 10^11 (1973 in
// ms, the year 5138 in s) to 10^14; or a date or time of ISO 8601, also with a space for the T, in UTC where it names no
// zone. Parts of a second are cut off. Anything else, seconds included, stays as it is.
func unixSeconds(raw []byte) (seconds int64, ok bool) {
	v := valueOf(raw)
	switch v.kind {
	case number:
		ms, ok := wholeNumber(numberText(v.raw))
		if !ok || ms < 1e11 || ms >= 1e14 {
			return 0, false
		}
		return ms / 1000, true
	case text:
		s := strings.TrimSpace(string(v.text))
		for _, layout := range isoLayouts {
			if t, err := time.Parse(layout, s); err == nil {
				return t.Unix(), true
			}
		}
	}
	return 0, false
}

// Parsing takes a fraction of a second after any of these.
var isoLayouts = []string{
	"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05",
	"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02 15:04",
	"2006-01-02",
}

// clearedHash is the hash of the empty text that clears an attribute.
var clearedHash = hash([]byte(`""`))

// hash is FNV-1a of 64 bits. It is stored, so it must stay what it is.
func hash(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}
