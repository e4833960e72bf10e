package mapping

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"unicode/utf8"
)

// Outliner reads events in one pass, which finds where each ends, checks it as strictly as check does, and notes where
// its members stand. What it does not read, since something is wrong with it or rare in it, is left to ParseEvent, which
// knows why: so it never has to say what is wrong. The memory is its owner's, for the events of one request at a time.
type Outliner struct {
	members []memberPlace
	names   []nameSeen // of the objects that the reading is inside of
	packed  []byte     // of the events' built-in properties
	long    bool       // there was a text that may be too long
	escaped bool       // and an escape
}

// Outline is what an Outliner knows of one event. The zero Outline knows nothing.
type Outline struct {
	from, to uint32 // in members
	read     bool   // the event is right as JSON, nests no deeper than it may, and needs no repair
	long     bool
}

// Short says that no text of the event is so long that CutTexts would cut it.
func (o Outline) Short() bool { return o.read && !o.long }

// Read says that the event was read.
func (o Outline) Read() bool { return o.read }

// memberPlace is where a member stands, in bytes from the event's begin: its name with the quotes.
type memberPlace struct{ name, nameEnd, value, valueEnd int32 }

// nameSeen is the name of a member: a key by which most others differ from it, and where it stands.
type nameSeen struct {
	key      uint64
	from, to int32
}

const (
	// mostNames of one object are compared with each other; jsontext has a better way for more.
	mostNames = 64
	// keptMembers: an Outliner that has grown beyond gives its memory back.
	keptMembers  = 1 << 14
	keptBuiltins = 1 << 18 // bytes
	// mostOutlined bytes have places that an int32 can tell.
	mostOutlined = 1 << 30
)

var outliners = sync.Pool{New: func() any { return new(Outliner) }}

// Reset forgets all outlines. The events that were made of them must not be used any more.
func (s *Outliner) Reset() {
	if cap(s.members) > keptMembers {
		s.members = nil
	}
	if cap(s.packed) > keptBuiltins {
		s.packed = nil
	}
	s.members, s.names, s.packed = s.members[:0], s.names[:0], s.packed[:0]
}

// Outline reads the event that b begins with, and says where it ends; the outline knows nothing when it could not.
func (s *Outliner) Outline(b []byte) (o Outline, end int) {
	if len(b) == 0 || b[0] != '{' {
		return Outline{}, 0
	}
	b = b[:min(len(b), mostOutlined)]
	from := len(s.members)
	s.names, s.long = s.names[:0], false
	end = s.object(b, 1, 1)
	if end < 0 {
		s.members = s.members[:from]
		return Outline{}, 0
	}
	return Outline{from: uint32(from), to: uint32(len(s.members)), read: true, long: s.long}, end
}

// Event is ParseEvent for an event of which there may be an outline. What it gives aliases the Outliner too, until Reset.
func (s *Outliner) Event(raw []byte, o Outline) (Event, []Problem) {
	if !o.read {
		return ParseEvent(raw)
	}
	return readEvent(raw, s.members[o.from:o.to], &s.packed)
}

// The readers below take the place where something begins, for an object or text that behind its first byte, and give the
// place behind its end, or -1. depth is that of the value, the event's own being 1.

func (s *Outliner) value(b []byte, i, depth int) int {
	if i >= len(b) {
		return -1
	}
	switch c := b[i]; c {
	case '"':
		return s.text(b, i+1)
	case '{':
		return s.object(b, i+1, depth)
	case '[':
		return s.list(b, i+1, depth)
	case 't':
		return literalEnd(b, i, "true")
	case 'f':
		return literalEnd(b, i, "false")
	case 'n':
		return literalEnd(b, i, "null")
	}
	return numberEnd(b, i)
}

func (s *Outliner) object(b []byte, i, depth int) int {
	if depth > maxDepth+1 {
		return -1
	}
	base := len(s.names)
	if i = spaceEnd(b, i); i < len(b) && b[i] == '}' {
		return i + 1
	}
	for {
		if i >= len(b) || b[i] != '"' {
			return -1
		}
		name := i
		s.escaped = false
		// An escape in a name makes two names of one spelling.
		if i = s.text(b, i+1); i < 0 || s.escaped || !s.first(b, name+1, i-1, base) {
			return -1
		}
		nameEnd := i
		if i = spaceEnd(b, i); i >= len(b) || b[i] != ':' {
			return -1
		}
		i = spaceEnd(b, i+1)
		value := i
		if i = s.value(b, i, depth+1); i < 0 {
			return -1
		}
		if depth == 1 {
			s.members = append(s.members, memberPlace{int32(name), int32(nameEnd), int32(value), int32(i)})
		}
		if i = spaceEnd(b, i); i >= len(b) {
			return -1
		}
		switch b[i] {
		case ',':
			i = spaceEnd(b, i+1)
		case '}':
			s.names = s.names[:base]
			return i + 1
		default:
			return -1
		}
	}
}

func (s *Outliner) list(b []byte, i, depth int) int {
	if depth > maxDepth+1 {
		return -1
	}
	if i = spaceEnd(b, i); i < len(b) && b[i] == ']' {
		return i + 1
	}
	for {
		if i = s.value(b, i, depth+1); i < 0 {
			return -1
		}
		if i = spaceEnd(b, i); i >= len(b) {
			return -1
		}
		switch b[i] {
		case ',':
			i = spaceEnd(b, i+1)
		case ']':
			return i + 1
		default:
			return -1
		}
	}
}

// A byte in each of eight places: the lowest and the highest bit of each.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// text goes over eight bytes at a time that are ASCII and neither quote, backslash nor control.
func (s *Outliner) text(b []byte, i int) int {
	from := i
	for i < len(b) {
		for i+8 <= len(b) {
			x := binary.LittleEndian.Uint64(b[i:])
			quote, escape := x^(ones*'"'), x^(ones*'\\')
			// A byte below the first that is meant is never hit: only a hit borrows from the next.
			hits := ((quote-ones)&^quote | (escape-ones)&^escape | (x - ones*' ') | x) & highs
			if hits != 0 {
				i += bits.TrailingZeros64(hits) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			return -1
		}
		switch c := b[i]; {
		case c == '"':
			if i-from > maxText {
				s.long = true
			}
			return i + 1
		case c == '\\':
			s.escaped = true
			if i = escapeEnd(b, i); i < 0 {
				return -1
			}
		case c < ' ':
			return -1
		case c < utf8.RuneSelf:
			i++ // one of the last seven bytes
		default:
			r, size := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && size <= 1 {
				return -1
			}
			i += size
		}
	}
	return -1
}

// escapeEnd leaves halves of surrogate pairs to repairSurrogates.
func escapeEnd(b []byte, i int) int {
	if i+1 >= len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	}
	unit, ok := escapedUnit(b[i:])
	switch {
	case !ok:
		return -1
	case unit < 0xd800 || unit > 0xdfff:
		return i + 6
	}
	if low, ok := escapedUnit(b[i+6:]); ok && unit < 0xdc00 && low >= 0xdc00 && low <= 0xdfff {
		return i + 12
	}
	return -1
}

func spaceEnd(b []byte, i int) int {
	for i < len(b) && b[i] <= ' ' && isSpace(b[i]) {
		i++
	}
	return i
}

func literalEnd(b []byte, i int, literal string) int {
	if len(b)-i < len(literal) || string(b[i:i+len(literal)]) != literal {
		return -1
	}
	return i + len(literal)
}

func digitsEnd(b []byte, i int) int {
	for i < len(b) && isDigit(b[i]) {
		i++
	}
	return i
}

func numberEnd(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	digits := i
	if i = digitsEnd(b, i); i == digits || b[digits] == '0' && i > digits+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		fraction := i + 1
		if i = digitsEnd(b, fraction); i == fraction {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		exponent := i
		if i = digitsEnd(b, i); i == exponent {
			return -1
		}
	}
	return i
}

// first says whether a name was not in its object before, whose names begin at base. Too many count as no.
func (s *Outliner) first(b []byte, from, to, base int) bool {
	name := b[from:to]
	key := nameKey(name)
	seen := s.names[base:]
	if len(seen) == mostNames {
		return false
	}
	for i := range seen {
		if seen[i].key == key && string(b[seen[i].from:seen[i].to]) == string(name) {
			return false
		}
	}
	s.names = append(s.names, nameSeen{key, int32(from), int32(to)})
	return true
}

func nameKey(name []byte) uint64 {
	n := len(name)
	switch {
	case n >= 8:
		return binary.LittleEndian.Uint64(name) ^ bits.RotateLeft64(binary.LittleEndian.Uint64(name[n-8:]), 32) + uint64(n)
	case n >= 4:
		return uint64(binary.LittleEndian.Uint32(name))<<32 | uint64(binary.LittleEndian.Uint32(name[n-4:]))
	case n > 0:
		return uint64(name[0])<<16 | uint64(name[n/2])<<8 | uint64(name[n-1])
	}
	return 0
}
