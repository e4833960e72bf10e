package mapping

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// When a person is updated, and with what. All that is known of the past is in "sent": what this identifier was last
// sent, in a form that only this file reads.

// sentVersion begins every sent. Behind it: a uvarint of the last identify's timestamp (unix seconds), then for each
// attribute a byte state, 8 bytes hash of the value (big-endian), a uvarint length and the attribute's name, unquoted
// and as it is called at Customer.io. Attributes are in order of their names. Without the last two states it is written
// in version 1; a program that knows that alone takes version 2 for never, and sends everything once more.
const sentVersion, sentVersion2 = 1, 2

// sentNothing stands for sentVersion in what Unrefused makes of an identifier that was sent no values: whether the one
// identify got through does not count, only its time. It is never stored.
const sentNothing = 0xff

type sentState byte

const (
	sentValue   sentState = 1 // Customer.io has this value
	sentRefused sentState = 2 // Customer.io refused this value: not sent again until it changes
	sentCleared sentState = 3 // Customer.io was told to clear it
	sentUnsure  sentState = 4 // it was in an identify that was refused for another attribute's sake: Customer.io may have an older value

	// From version 2 on.
	sentLeftOut sentState = 5 // this value is beyond a limit, and was told of: Customer.io may have an older one
	sentDevice  sentState = 6 // no attribute: an anonymous_id that Customer.io has for this person; its hash is in the name, and for hash there is 0 or deviceRefused
)

// Notes are of no attribute of their name, but of something whose hash is in it.
const (
	noteDevice = '\x00'
	noteName   = '\x01' // of an attribute whose name is too long, which must not make memory grow
)

func noteOf(kind byte, what []byte) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, hash(what))
}

// isNote: names are UTF-8, and nine bytes with such a beginning that are one by chance are only not cleared.
func (a *sentAttribute) isNote() bool {
	return a.state == sentDevice || a.state == sentLeftOut && len(a.name) == 9 && a.name[0] == noteName
}

// deviceRefused is the hash of a sentDevice of which it is not known that Customer.io has it: an identify with it, or after
// it, was refused. It is told of again only with a dead letter; of one that it had already that changes nothing.
const deviceRefused = 1

// maxDevices bounds how many anonymous_ids are remembered of a person; of one that is not, it is told once more.
const maxDevices = 100

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
	if len(data) == 0 || data[0] != sentVersion && data[0] != sentVersion2 && data[0] != sentNothing {
		return errSent
	}
	last, n := binary.Uvarint(data[1:])
	if n <= 0 || last > 1<<62 {
		return errSent
	}
	s.known, s.last = data[0] != sentNothing, int64(last)
	for data = data[1+n:]; len(data) > 0; {
		if len(data) < 10 {
			return errSent
		}
		a := sentAttribute{state: sentState(data[0]), hash: binary.BigEndian.Uint64(data[1:])}
		length, n := binary.Uvarint(data[9:])
		if n <= 0 || a.state < sentValue || a.state > sentDevice || length > uint64(len(data)-9-n) {
			return errSent
		}
		a.name = data[9+n : 9+n+int(length)]
		data = data[9+n+int(length):]
		s.attributes = append(s.attributes, a)
	}
	return nil
}

func (s *sent) encode() []byte {
	byName := func(a, b sentAttribute) int { return bytes.Compare(a.name, b.name) }
	if !slices.IsSortedFunc(s.attributes, byName) {
		slices.SortFunc(s.attributes, byName)
	}
	size := 1 + binary.MaxVarintLen64
	version := byte(sentVersion)
	for _, a := range s.attributes {
		size += 1 + 8 + 2 + len(a.name)
		if a.state > sentUnsure {
			version = sentVersion2
		}
	}
	data := append(make([]byte, 0, size), version)
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
	culprit, named := -1, false
	if name, ok := strings.CutPrefix(field, "attributes."); ok {
		for i := range s.attributes {
			a := &s.attributes[i]
			if matches := string(a.name) == name || strings.HasPrefix(name, string(a.name)+"."); matches && !a.isNote() &&
				(culprit < 0 || len(a.name) > len(s.attributes[culprit].name)) {
				culprit = i
			}
		}
		named = culprit >= 0 || name == kindAnonymous
	}
	kept := s.attributes[:0]
	for i := range s.attributes {
		a := s.attributes[i]
		switch {
		case a.state == sentDevice && culprit >= 0:
			continue // it was not taken: it is told of again when something comes from that device
		case a.state == sentDevice:
			a.hash = deviceRefused
		case a.state == sentLeftOut, a.state == sentRefused, a.state == sentUnsure: // not in this identify
		case !named || i == culprit:
			a.state = sentRefused
		default:
			a.state = sentUnsure
		}
		kept = append(kept, a)
	}
	s.attributes = kept
	return s.encode()
}

// Unrefused returns what an identifier has been sent so that a Map with it sends once more the values and anonymous_ids
// that Customer.io refused, and an identify without values that it refused: for dead letters that are tried again. It is to be given to
// Map and not to be kept.
func Unrefused(earlier []byte) []byte {
	var s sent
	if s.decode(earlier); !s.known {
		return earlier
	}
	s.attributes = slices.DeleteFunc(s.attributes, func(a sentAttribute) bool { return a.state == sentDevice && a.hash == deviceRefused })
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
	devices bool                // anonymous = "send": identifies bring the anonymous_ids
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
	device := u.newDevice(v.record, before)
	if u.chooser.isEmpty() {
		if before.known && device == "" {
			return Operation{}, nil, reasonUnchanged, nil
		}
		for _, was := range before.attributes {
			if !was.isNote() {
				after.keepUnchosen(was)
			}
		}
		u.keepDevices(before, after)
		s.attributes = u.appendDevice(s.attributes[:0], after, device)
		after.last = max(before.last, v.record.Received/1000)
		return s.identify(id, after.last, s.attributes), after.encode(), "", nil
	}
	values, clears, changed, err := u.collect(s, maxAttributes, device)
	if err == nil && values+clears > maxAttributes && clears > 0 {
		// The next identify has room for those that had to make way, once these are cleared.
		after.reset()
		s.names.reset()
		s.leftOut = nil
		_, _, changed, err = u.collect(s, max(0, maxAttributes-clears), device)
	}
	switch {
	case err != nil:
		return Operation{}, nil, "", err
	case !changed && len(s.leftOut) == 0:
		return Operation{}, nil, reasonUnchanged, nil
	case !changed:
		after.last = before.last
		return Operation{}, after.encode(), reasonUnchanged, nil
	}
	// Customer.io silently drops an identify that is older than the last one, so the time never goes back, and never is
	// the event's own.
	after.last = max(before.last, v.record.Received/1000)
	return s.identify(id, after.last, s.attributes), after.encode(), "", nil
}

// collect makes of the record in s.view the attributes of an identify, and what will have been sent by it: values of
// properties as far as there is room, clears of those that were sent before and are gone, and a new anonymous_id. It says
// how many values and clears there are, and whether they are worth an identify.
func (u *userRules) collect(s *scratch, room int, device string) (values, clears int, changed bool, err error) {
	v, before, after := &s.view, &s.before, &s.after
	attributes := s.attributes[:0]
	most := maxAttributes // clears of one identify
	if device != "" {
		values++
		most--
	}
	add := func(name, quoted, raw []byte) {
		if !s.names.add(quoted) {
			return
		}
		start := len(attributes)
		attributes = append(append(appendComma(attributes), quoted...), ':')
		valueAt := len(attributes)
		attributes = u.appendValue(attributes, name, raw)
		attribute := sentAttribute{name: plainText(quoted), hash: hash(attributes[valueAt:]), state: sentValue}
		beyond := attributeFits(attribute.name, attributes[valueAt:])
		shown := attribute.name
		if beyond == reasonAttributeName {
			attribute.name = noteOf(noteName, attribute.name)
		}
		was := before.find(attribute.name)
		if was != nil {
			was.seen = true
		}
		same := was != nil && was.hash == attribute.hash
		if beyond == "" && values >= room && !(same && was.state == sentRefused) {
			beyond = reasonTooMany
		}
		switch {
		case beyond != "":
			attributes = attributes[:start]
			switch {
			case same && (was.state == sentValue || was.state == sentLeftOut):
				attribute.state = was.state // there before others came; or told of
			default:
				attribute.state = sentLeftOut
				s.leftOut = append(s.leftOut, LeftOut{clipName(shown), beyond})
			}
		case same && was.state == sentRefused:
			attribute.state = sentRefused
			attributes = attributes[:start]
		default:
			values++
			changed = changed || !same || was.state != sentValue
		}
		after.attributes = append(after.attributes, attribute)
	}
	w := walkObject(v.userProperties)
	for w.next() {
		name := w.nameText()
		if !u.chooser.chooses(name) {
			continue
		}
		quoted := u.chooser.newName(name, w.name)
		if !isNull(w.value) {
			add(name, quoted, w.value)
		} else if was := before.find(plainText(quoted)); was != nil && s.names.add(quoted) { // it is there, but not carried (Record.Partial)
			was.seen = true
			after.attributes = append(after.attributes, *was)
		}
	}
	u.chooser.eachBuiltin(v, add)
	if w.bad {
		return 0, 0, false, errMalformed
	}
	for i := range before.attributes {
		was := &before.attributes[i]
		switch {
		case was.seen || was.isNote():
		case !u.chosenAs(was.name):
			after.keepUnchosen(*was)
		case len(was.name) > maxAttributeName: // of a program that looked at no limits: Customer.io never took it
		case was.state == sentCleared, was.hash == clearedHash && was.state != sentUnsure:
			// It is empty already; and a refused clear is not repeated.
		case u.keep:
			after.attributes = append(after.attributes, *was)
		default:
			changed = true
			if clears++; clears > most {
				after.attributes = append(after.attributes, *was) // the next identify's
				continue
			}
			attributes = appendQuoted(appendComma(attributes), was.name)
			attributes = append(attributes, `:""`...)
			after.attributes = append(after.attributes, sentAttribute{name: was.name, hash: clearedHash, state: sentCleared})
		}
	}
	u.keepDevices(before, after)
	if device != "" && s.names.add(anonymousName) { // else a property of that name was chosen, by its name, and stands
		attributes = u.appendDevice(attributes, after, device)
		changed = true
	}
	s.attributes = attributes
	return values, clears, changed, nil
}

// keepUnchosen remembers an attribute of which the rules say nothing any more. It stays at Customer.io; should they choose
// it again, it is to be sent, or cleared if the person has lost it meanwhile: somebody else may have changed it, so it
// is not known what is there.
func (s *sent) keepUnchosen(was sentAttribute) {
	if was.state == sentCleared || len(was.name) > maxAttributeName || len(s.attributes) >= maxAttributes {
		return // nothing of it is there; or memory would grow
	}
	if was.state != sentRefused {
		was.state = sentUnsure
	}
	s.attributes = append(s.attributes, was)
}

var anonymousName = []byte(`"anonymous_id"`)

// clipName bounds a name as it is shown, at the end of a character.
func clipName(name []byte) string {
	if len(name) <= maxAttributeName {
		return string(name)
	}
	end := maxAttributeName
	for end > 0 && !utf8.RuneStart(name[end]) {
		end--
	}
	return string(name[:end]) + "…"
}

// newDevice is the anonymous_id that an identify for the record brings: its device, whose first and only user this is,
// if Customer.io has not been told of it; else "".
func (u *userRules) newDevice(record *Record, before *sent) string {
	if !u.devices || !record.Sole || record.DeviceID == "" || len(record.DeviceID) > maxIdentifier {
		return ""
	}
	if before.find(noteOf(noteDevice, []byte(record.DeviceID))) != nil {
		return ""
	}
	return record.DeviceID
}

func (u *userRules) keepDevices(before, after *sent) {
	n := 0
	for i := range before.attributes {
		if before.attributes[i].state == sentDevice && n < maxDevices {
			after.attributes = append(after.attributes, before.attributes[i])
			n++
		}
	}
}

func (u *userRules) appendDevice(attributes []byte, after *sent, device string) []byte {
	if device == "" {
		return attributes
	}
	attributes = append(append(appendComma(attributes), anonymousName...), ':')
	attributes = appendQuoted(attributes, device)
	after.attributes = append(after.attributes, sentAttribute{name: noteOf(noteDevice, []byte(device)), state: sentDevice})
	return attributes
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
