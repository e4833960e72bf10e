package sandbox

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// checkJSON reports why body is not exactly one JSON value in the strict sense of
// RFC 7493: valid UTF-8, no name twice in an object, nothing after the value.
func checkJSON(body []byte) error {
	if jsontext.Value(body).IsValid() {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(body))
	if _, err := d.ReadValue(); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("body is empty")
		}
		return err
	}
	if _, err := d.ReadToken(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errors.New("body holds more than one JSON value")
}

// A walker steps through the members of an object or the elements of an array
// that checkJSON has found valid. Values stay raw, so numbers keep every digit.
type walker struct {
	b []byte
	i int
}

func walk(v []byte) walker { return walker{b: v, i: 1} }

// member returns the next name (decoded) and raw value of an object.
func (w *walker) member() (name, value []byte, ok bool) {
	if w.separator(); w.b[w.i] == '}' {
		return nil, nil, false
	}
	name = text(w.value())
	w.separator()
	return name, w.value(), true
}

// element returns the next raw element of an array.
func (w *walker) element() (value []byte, ok bool) {
	if w.separator(); w.b[w.i] == ']' {
		return nil, false
	}
	return w.value(), true
}

func (w *walker) separator() {
	for {
		switch w.b[w.i] {
		case ' ', '\t', '\r', '\n', ',', ':':
			w.i++
		default:
			return
		}
	}
}

func (w *walker) value() []byte {
	start := w.i
	switch w.b[w.i] {
	case '"':
		w.quoted()
	case '{', '[':
		for depth := 0; ; {
			switch w.b[w.i] {
			case '"':
				w.quoted()
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			if w.i++; depth == 0 {
				break
			}
		}
	default:
		w.scalar()
	}
	return w.b[start:w.i]
}

func (w *walker) scalar() {
	for ; w.i < len(w.b); w.i++ {
		switch w.b[w.i] {
		case ',', ']', '}', ' ', '\t', '\r', '\n':
			return
		}
	}
}

func (w *walker) quoted() {
	for w.i++; ; w.i++ {
		w.i += bytes.IndexByte(w.b[w.i:], '"')
		n := 0
		for w.b[w.i-1-n] == '\\' {
			n++
		}
		if n%2 == 0 {
			w.i++
			return
		}
	}
}

// text decodes a valid JSON string. The result may share memory with raw.
func text(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	out, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return raw[1 : len(raw)-1]
	}
	return out
}

func isString(raw []byte) bool { return raw[0] == '"' }
func isObject(raw []byte) bool { return raw[0] == '{' }
func isNull(raw []byte) bool   { return raw[0] == 'n' }
func isNumber(raw []byte) bool { return raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9' }

// trimJSON cuts the whitespace around a valid JSON value.
func trimJSON(v []byte) []byte { return bytes.Trim(v, " \t\r\n") }

// appendQuoted writes s as a JSON string.
func appendQuoted[T ~[]byte | ~string](dst []byte, s T) []byte {
	out, err := jsontext.AppendQuote(dst, s)
	if err != nil { // only bad UTF-8, which AppendQuote has then replaced
		return out
	}
	return out
}
