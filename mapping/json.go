package mapping

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// JSON enters this package at two doors, ParseEvent and Members, and is checked there by jsontext. Everything behind
// the doors walks bytes that are known to be good: a walk only finds where a value ends and never decodes what nobody
// asked for, so that digits, escapes and nesting reach the other side as they came. A walk over damaged bytes stops
// with errMalformed; it never panics.

var (
	errMalformed = errors.New("malformed JSON")
	errNotObject = errors.New("not a JSON object")
	errTwice     = errors.New("a name stands twice in the object")
	errTrailing  = errors.New("something follows the JSON value")
)

// checker holds a jsontext.Decoder and the buffer it reads, so that a check allocates nothing.
type checker struct {
	source  bytes.Buffer
	decoder jsontext.Decoder
}

var (
	checkers = sync.Pool{New: func() any { return new(checker) }}
	// strictly: valid UTF-8, no half surrogates, no name twice in one object.
	strictly = []jsontext.Options{jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false)}
	// leniently: syntax only.
	leniently = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}
)

func newChecker(data []byte, options ...jsontext.Options) *checker {
	c := checkers.Get().(*checker)
	c.source = *bytes.NewBuffer(data)
	c.decoder.Reset(&c.source, options...)
	return c
}

func (c *checker) release() {
	c.source = bytes.Buffer{}
	c.decoder.Reset(&c.source) // lets go of the caller's bytes
	checkers.Put(c)
}

// check returns nil when data is exactly one JSON value, strictly. The error is a *jsontext.SyntacticError, which knows
// where in the value it stands, or errTrailing.
func check(data []byte) error {
	c := newChecker(data, strictly...)
	defer c.release()
	if _, err := c.decoder.ReadValue(); err != nil {
		return err
	}
	if _, err := c.decoder.ReadToken(); err != io.EOF {
		return errTrailing
	}
	return nil
}

// Members calls f for each member of a JSON object in the order they stand, null members included. The name is decoded;
// the value is raw, aliases object, and was checked for syntax only: names used twice inside it and text that is not
// UTF-8 are left to ParseEvent. An error of f ends the walk and is returned as it is; other errors mean that object is
// not one JSON object, or that a name stands in it twice.
func Members(object []byte, f func(name string, value []byte) error) error {
	c := newChecker(object, leniently...)
	defer c.release()
	d := &c.decoder
	if d.PeekKind() != '{' {
		return errNotObject
	}
	if _, err := d.ReadToken(); err != nil {
		return errMalformed
	}
	var few [16]string
	seen := few[:0]
	var many map[string]bool
	for d.PeekKind() != '}' {
		quoted, err := d.ReadValue()
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, withoutContent(err))
		}
		name := string(plainText(quoted))
		switch {
		case many != nil:
			if many[name] {
				return errTwice
			}
			many[name] = true
		case slices.Contains(seen, name):
			return errTwice
		default:
			if seen = append(seen, name); len(seen) > len(few) {
				many = make(map[string]bool)
				for _, s := range seen {
					many[s] = true
				}
			}
		}
		value, err := d.ReadValue()
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, withoutContent(err))
		}
		if err := f(name, value); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return errMalformed
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errTrailing
	}
	return nil
}

// withoutContent keeps where an error stands and drops the bytes and names that jsontext quotes: errors carry no
// event content.
func withoutContent(err error) error {
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("at byte %d", s.ByteOffset)
	}
	return errMalformed
}

// walk steps through the members of an object or the elements of a list that has passed a check.
//
//	for w := walkObject(b); w.next(); { … w.name … w.value … }
type walk struct {
	data  []byte
	pos   int
	close byte   // '}' or ']'
	name  []byte // of a member: quoted, as it stands
	value []byte // without surrounding space
	plain bool   // the name is ASCII without an escape
	bad   bool   // the bytes were damaged; the walk has ended early
}

func walkObject(object []byte) walk { return newWalk(object, '{', '}') }

func walkList(list []byte) walk { return newWalk(list, '[', ']') }

func newWalk(data []byte, open, closing byte) walk {
	w := walk{data: data, close: closing}
	w.space()
	if w.pos >= len(data) || data[w.pos] != open {
		w.bad = true
		w.pos = len(data)
		return w
	}
	w.pos++
	return w
}

func (w *walk) space() {
	w.pos = spaceEnd(w.data, w.pos)
}

func (w *walk) next() bool {
	data, i := w.data, spaceEnd(w.data, w.pos)
	if i >= len(data) {
		return w.fail()
	}
	switch c := data[i]; {
	case c == w.close:
		w.pos = i
		return false
	case w.value != nil: // a member or element came before
		if c != ',' {
			return w.fail()
		}
		if i = spaceEnd(data, i+1); i >= len(data) {
			return w.fail()
		}
	}
	if w.close == '}' {
		if data[i] != '"' {
			return w.fail()
		}
		end, plain := stringEnd(data, i)
		if end < 0 {
			return w.fail()
		}
		w.name, w.plain = data[i:end], plain
		if i = spaceEnd(data, end); i >= len(data) || data[i] != ':' {
			return w.fail()
		}
		i = spaceEnd(data, i+1)
	}
	end := skipValue(data, i)
	if end < 0 {
		return w.fail()
	}
	w.value = data[i:end]
	w.pos = end
	return true
}

// nameText is the text of the member's name: of most it stands in the data.
func (w *walk) nameText() []byte {
	if w.plain {
		return w.name[1 : len(w.name)-1]
	}
	return plainText(w.name)
}

func (w *walk) fail() bool {
	w.bad = true
	w.pos = len(w.data)
	return false
}

func (w *walk) err() error {
	if w.bad {
		return errMalformed
	}
	return nil
}

// skipValue returns where the value that starts at data[pos] ends, or -1.
func skipValue(data []byte, pos int) int {
	if pos >= len(data) {
		return -1
	}
	switch data[pos] {
	case '"':
		return skipString(data, pos)
	case '{', '[':
		depth := 0
		for pos < len(data) {
			switch data[pos] {
			case '"':
				if pos = skipString(data, pos); pos < 0 {
					return -1
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return pos + 1
				}
			}
			pos++
		}
		return -1
	case '}', ']', ',', ':':
		return -1
	}
	for pos < len(data) {
		switch c := data[pos]; {
		case c == ',' || c == '}' || c == ']' || c == ':' || c == '"' || isSpace(c):
			return pos
		}
		pos++
	}
	return pos
}

// skipString returns the place after the closing quote of the string that opens at data[pos], or -1.
func skipString(data []byte, pos int) int {
	end, _ := stringEnd(data, pos)
	return end
}

// stringEnd is skipString, and says whether the string is ASCII without an escape. It goes over eight bytes at a time.
func stringEnd(data []byte, pos int) (end int, plain bool) {
	plain = true
	i := pos + 1
	for i < len(data) {
		if i+8 <= len(data) {
			x := binary.LittleEndian.Uint64(data[i:])
			quote, escape := x^(ones*'"'), x^(ones*'\\')
			// A byte below the first that is meant is never hit: only a hit borrows from the next.
			hits := ((quote-ones)&^quote | (escape-ones)&^escape) & highs
			if hits == 0 {
				plain = plain && x&highs == 0
				i += 8
				continue
			}
			n := bits.TrailingZeros64(hits) / 8
			plain = plain && x&highs&(1<<(8*n)-1) == 0
			i += n
		}
		switch c := data[i]; {
		case c == '"':
			return i + 1, plain
		case c == '\\':
			plain = false
			i += 2
		default: // one of the last seven bytes
			plain = plain && c < utf8.RuneSelf
			i++
		}
	}
	return -1, false
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// trimSpace is bytes.TrimSpace for JSON's four kinds of space.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// plainText returns the text of a quoted JSON string: aliasing it when nothing is escaped, else newly allocated. Halves
// of surrogate pairs become U+FFFD.
func plainText(quoted []byte) []byte {
	if len(quoted) < 2 {
		return nil
	}
	if inside := quoted[1 : len(quoted)-1]; bytes.IndexByte(inside, '\\') < 0 && utf8.Valid(inside) {
		return inside
	}
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return text
}

// canonicalName returns a quoted name in the one form in which two equal names have equal bytes. In strictly checked
// JSON only a name with a backslash can have another.
func canonicalName(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted
	}
	return appendQuoted(nil, plainText(quoted))
}

// appendQuoted writes text as a JSON string, with the fewest escapes JSON allows. What is not UTF-8 becomes U+FFFD.
func appendQuoted[T ~string | ~[]byte](dst []byte, text T) []byte {
	dst, _ = jsontext.AppendQuote(dst, text)
	return dst
}

// appendCompact writes a checked value without the space around its parts and otherwise as it came.
func appendCompact(dst, value []byte) []byte {
	if !hasSpace(value) {
		return append(dst, value...)
	}
	for i := 0; i < len(value); {
		switch c := value[i]; {
		case c == '"':
			end := skipString(value, i)
			if end < 0 {
				end = len(value)
			}
			dst = append(dst, value[i:end]...)
			i = end
		case isSpace(c):
			i++
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// compact returns value itself when it has no space around its parts.
func compact(value []byte) []byte {
	if !hasSpace(value) {
		return value
	}
	return appendCompact(nil, value)
}

// hasSpace may say yes for space inside a string of a list or object; then a compact copy is made in vain.
func hasSpace(value []byte) bool {
	return len(value) > 0 && (value[0] == '{' || value[0] == '[') && bytes.ContainsAny(value, " \n\r\t")
}

func isNull(value []byte) bool { return len(value) > 0 && value[0] == 'n' }

// repairSurrogates replaces each \uD800–\uDFFF escape that is not one of a pair by \ufffd, in a copy when there is any:
// JavaScript that cuts text in the middle of an emoji sends such halves, and no strict reader takes them. Both spellings
// have six bytes, so everything else stays where it was.
func repairSurrogates(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\ud`)) && !bytes.Contains(data, []byte(`\uD`)) {
		return data
	}
	owned := false
	for i := 0; i+1 < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		unit, ok := escapedUnit(data[i:])
		switch {
		case !ok:
			i++ // \" \\ \n …
		case unit < 0xd800 || unit > 0xdfff:
			i += 5
		default:
			if low, ok := escapedUnit(data[i+6:]); ok && unit < 0xdc00 && low >= 0xdc00 && low <= 0xdfff {
				i += 11
				continue
			}
			if !owned {
				data, owned = bytes.Clone(data), true
			}
			copy(data[i:], `\ufffd`)
			i += 5
		}
	}
	return data
}

// escapedUnit reads the \uXXXX that data begins with.
func escapedUnit(data []byte) (unit rune, ok bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	for _, c := range data[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		unit = unit<<4 | rune(c)
	}
	return unit, true
}

// nestsDeeper reports whether lists and objects stand more than limit deep in value, itself counted.
func nestsDeeper(value []byte, limit int) bool {
	if bytes.Count(value, []byte{'{'})+bytes.Count(value, []byte{'['}) <= limit {
		return false
	}
	depth := 0
	for i := 0; i < len(value); i++ {
		switch value[i] {
		case '"':
			if i = skipString(value, i) - 1; i < 0 {
				return false
			}
		case '{', '[':
			if depth++; depth > limit {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// appendEqualityKey writes a form of a checked value that two values share exactly when they are the same value: text
// by its characters, numbers by their worth (1, 1.0 and 1e0 are one number, "1" is not), objects whatever the order of
// their members.
func appendEqualityKey(dst, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	switch value[0] {
	case '"':
		return appendQuoted(dst, plainText(value))
	case '[':
		dst = append(dst, '[')
		for w := walkList(value); w.next(); {
			dst = append(appendEqualityKey(dst, w.value), ',')
		}
		return append(dst, ']')
	case '{':
		var members [][]byte
		for w := walkObject(value); w.next(); {
			member := append(appendQuoted(nil, w.nameText()), ':')
			members = append(members, appendEqualityKey(member, w.value))
		}
		slices.SortFunc(members, bytes.Compare)
		dst = append(dst, '{')
		for _, m := range members {
			dst = append(append(dst, m...), ',')
		}
		return append(dst, '}')
	case 't', 'f', 'n':
		return append(dst, value[0])
	}
	return appendNumberKey(dst, value)
}
