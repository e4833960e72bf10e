package mapping

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// The built-in properties of a user: what events say beside their user_properties. Amplitude keeps them with the user as
// it does the others, so an event that says nothing of them has those that the user had. Only where it says one of a
// group are all the others of that group reset, as they were of another device, or another place.
//
// They are kept apart from the properties that somebody has named so: a user property country is not the built-in.
//
// Their stored form ("packed"), one after the other in the order of their numbers: a byte number, a uvarint length, and
// the value, compact JSON. The numbers are stored, so they must stay what they are; what has a number beyond those known
// here, of a later program, is passed over.
const (
	noBuiltin = iota

	// One group: of which device. They come first.
	builtinPlatform
	builtinOSName
	builtinOSVersion
	builtinBrand
	builtinManufacturer
	builtinModel
	builtinCarrier

	// One group: in which place.
	builtinCountry
	builtinRegion
	builtinCity
	builtinDMA

	// Each for itself.
	builtinLanguage
	builtinVersion
	builtinStartVersion // the first version seen
	builtinPaying       // true for ever after the first revenue

	builtinCount
)

// builtinFields are their names as fields of an event.
var builtinFields = [builtinCount]string{
	builtinPlatform: "platform", builtinOSName: "os_name", builtinOSVersion: "os_version", builtinBrand: "device_brand",
	builtinManufacturer: "device_manufacturer", builtinModel: "device_model", builtinCarrier: "carrier",
	builtinCountry: "country", builtinRegion: "region", builtinCity: "city", builtinDMA: "dma",
	builtinLanguage: "language", builtinVersion: "app_version",
	builtinStartVersion: "start_version", builtinPaying: "paying",
}

func builtinNumber(field []byte) int {
	switch string(field) {
	case "platform":
		return builtinPlatform
	case "os_name":
		return builtinOSName
	case "os_version":
		return builtinOSVersion
	case "device_brand":
		return builtinBrand
	case "device_manufacturer":
		return builtinManufacturer
	case "device_model":
		return builtinModel
	case "carrier":
		return builtinCarrier
	case "country":
		return builtinCountry
	case "region":
		return builtinRegion
	case "city":
		return builtinCity
	case "dma":
		return builtinDMA
	case "language":
		return builtinLanguage
	case "app_version":
		return builtinVersion
	case "start_version":
		return builtinStartVersion
	case "paying":
		return builtinPaying
	}
	return noBuiltin
}

// groupOf gives the first and the last number of the group that n is in.
func groupOf(n int) (first, last int) {
	switch {
	case n <= builtinCarrier:
		return builtinPlatform, builtinCarrier
	case n <= builtinDMA:
		return builtinCountry, builtinDMA
	}
	return n, n
}

// builtinSet has the value of each built-in property by its number, as JSON; nil = absent.
type builtinSet [builtinCount][]byte

// maxBuiltinsBytes bounds what is kept of one user. Amplitude cuts texts after 1,024 characters; what a device says of
// itself is some 100 bytes.
const maxBuiltinsBytes = 8 << 10

// read sets what packed has, unless s is nil; false when it is not what pack writes.
func (s *builtinSet) read(packed []byte) bool {
	for before := 0; len(packed) > 0; {
		number := int(packed[0])
		length, n := binary.Uvarint(packed[1:])
		if n <= 0 || number <= before || length == 0 || length > uint64(len(packed)-1-n) {
			return false
		}
		if s != nil && number < builtinCount {
			s[number] = packed[1+n : 1+n+int(length)]
		}
		packed, before = packed[1+n+int(length):], number
	}
	return true
}

func (s *builtinSet) pack(dst []byte) []byte {
	for number, value := range s {
		if value != nil {
			dst = binary.AppendUvarint(append(dst, byte(number)), uint64(len(value)))
			dst = append(dst, value...)
		}
	}
	return dst
}

// set takes a field of an event. Null and the empty text are no values, lists and objects none of these.
func (s *builtinSet) set(number int, value []byte) {
	if !isNull(value) && string(value) != `""` && value[0] != '{' && value[0] != '[' {
		s[number] = value
	}
}

// packed is nil when there is none. One allocation.
func (s *builtinSet) packed() []byte { return s.packedInto(nil) }

// packedInto is packed, but appended to *into when that is given.
func (s *builtinSet) packedInto(into *[]byte) []byte {
	size := 0
	for _, value := range s {
		if value != nil {
			size += 1 + binary.MaxVarintLen16 + len(value)
		}
	}
	if size == 0 {
		return nil
	}
	if into == nil {
		return s.pack(make([]byte, 0, size))
	}
	*into = slices.Grow(*into, size)
	start := len(*into)
	*into = s.pack(*into)
	return (*into)[start:len(*into):len(*into)]
}

// overlay lets what an event says become part of s, by the rules of the groups.
func (s *builtinSet) overlay(own *builtinSet) {
	for number := builtinPlatform; number < builtinCount; {
		first, last := groupOf(number)
		said := false
		for i := first; i <= last; i++ {
			said = said || own[i] != nil
		}
		if said {
			copy(s[first:last+1], own[first:last+1])
		}
		number = last + 1
	}
}

// KnownBuiltins are a user's built-in properties after an event, for the event's record. Both are packed.
type KnownBuiltins struct {
	After   []byte
	Changed bool // After is not what it was before, or has to be told whole
	// Beside are those of After that the event itself does not say. It is not worked out when After has changed, and stands in
	// the memory behind After.
	Beside []byte
}

// ApplyBuiltins says what an event makes of the built-in properties of its user. before are those before it, packed or nil;
// what is damaged in them counts as none. The result is appended to dst and shares no other memory; After has the capacity of
// all of it, so that the next event of whoever keeps After[:0] costs none.
func ApplyBuiltins(dst, before []byte, e *Event) KnownBuiltins {
	start := len(dst)
	if len(e.Builtins) == 0 && !e.Pays {
		dst = append(append(dst, before...), before...)
		middle := start + len(before)
		return KnownBuiltins{After: dst[start:middle], Beside: dst[middle:]}
	}
	var was, own builtinSet
	if !was.read(before) {
		was = builtinSet{}
	}
	own.read(e.Builtins)
	now := was
	if e.Snapshot && len(e.Builtins) > 0 { // all there was
		now = own
		for _, number := range [...]int{builtinStartVersion, builtinPaying} {
			if now[number] == nil {
				now[number] = was[number]
			}
		}
	} else {
		now.overlay(&own)
	}
	if now[builtinStartVersion] == nil {
		now[builtinStartVersion] = now[builtinVersion]
	}
	if e.Pays {
		now[builtinPaying] = jsonTrue
	}
	dst = now.pack(dst)
	end := len(dst)
	if end-start > maxBuiltinsBytes {
		// What the event says is not the user's, and what it does not say has not gone: the record is to say so, with After alone.
		return KnownBuiltins{After: append(dst[:start], before...)[start:], Changed: true}
	}
	if !bytes.Equal(dst[start:end], before) {
		return KnownBuiltins{After: dst[start:end], Changed: true}
	}
	for number := range now {
		if own[number] != nil {
			now[number] = nil
		}
	}
	dst = now.pack(dst)
	return KnownBuiltins{After: dst[start:end], Beside: dst[end:]}
}

var jsonTrue = []byte("true")

// TakeOverBuiltins gives the built-in properties of a user who logs in for the first time on a device whose anonymous ones
// are given: of each group of which own has nothing, the anonymous. It returns own itself when that changes nothing.
func TakeOverBuiltins(own, anonymous []byte) []byte {
	if len(anonymous) == 0 {
		return own
	}
	var mine, theirs builtinSet
	if !mine.read(own) {
		mine = builtinSet{}
	}
	if !theirs.read(anonymous) {
		return own
	}
	theirs.overlay(&mine)
	after := theirs.packed()
	if bytes.Equal(after, own) || len(after) > maxBuiltinsBytes {
		return own
	}
	return after
}

// BuiltinsJSON shows packed built-in properties as one JSON object, "{}" when there are none.
func BuiltinsJSON(packed []byte) []byte {
	var s builtinSet
	if !s.read(packed) {
		s = builtinSet{}
	}
	out := []byte{'{'}
	for number, value := range s {
		if value != nil {
			out = append(append(appendQuoted(appendComma(out), builtinFields[number]), ':'), value...)
		}
	}
	return append(out, '}')
}

// PackBuiltins reads what BuiltinsJSON has written.
func PackBuiltins(object []byte) ([]byte, error) {
	var s builtinSet
	w := walkObject(object)
	for w.next() {
		number := builtinNumber(w.nameText())
		if number == noBuiltin {
			return nil, fmt.Errorf("%s is no built-in property of a user", w.name)
		}
		s.set(number, w.value)
	}
	if w.bad {
		return nil, fmt.Errorf("built-in properties: %w", errNotObject)
	}
	return s.packed(), nil
}

// pays says whether an event is about money that came in: such a user is a paying one.
func pays(raw []byte) bool {
	var v view
	if v.open(&Record{Raw: raw}) != nil {
		return false
	}
	earned := v.revenueValue()
	if earned.kind != number {
		return false
	}
	d, ok := parseDecimal(earned.raw, nil)
	return ok && d.compare(decimal{}) > 0
}
