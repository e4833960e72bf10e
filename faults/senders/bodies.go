package senders

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"

	"ampcio/recordings"
)

var longText = strings.Repeat("long ", 4000)

// values are those that no sender should send there, and some that are only odd.
var values = []string{"null", "true", "false", "0", "-0", "-1", "1.5", "1e400", "-1e-400", "123456789012345678901234567890", "9007199254740993", "0.1e+308", "[]", "{}", `""`, `"x"`, `[[]]`, `{"":{}}`, `[null]`, `{"a":1,"a":2}`,
	`"\ud800"`, `"\udc00\ud800"`, `"\u0000"`, "\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\x01\"", `"\x"`, `"\u12"`, `"`, `'x'`, "NaN", "-Infinity", "undefined", "0x10", "01", "+1", ".5", "1.", "--1", "1e", "tru", "nul", "True", "[1,]", "{,}", "[1 2]", "{1:2}",
	`{"a"}`, `{"a":}`, "/**/1", "]", "}", ",", ":", "", " ", "\ufeff1", `"` + "\u2028" + `"`, `"2026-11-23T11:16:57Z"`, "1795432617042.5", "99999999999999", "-62135596800000", `"anonymous"`, `"null"`, `"-1"`, `"ab"`, `{"$set":1}`, `{"$add":"x"}`, `{"$unset":[]}`, `{"$clearAll":"-","$set":{}}`,
	`{"$set":{"a":{"b":[1,{"c":null}]}}}`}

// names of members that mean something somewhere.
var names = []string{"events", "api_key", "options", "event_type", "user_id", "device_id", "insert_id", "time", "event_properties", "user_properties", "groups", "group_properties", "identification", "client_upload_time", "$skip_user_properties_sync",
	"$insert_id", "event_time", "session_id", "ip", "revenue", "price", "quantity", "productId", "plan", "", `\u0065vents`, `api\u005fkey`, `\ud800`, "\xff", "__proto__"}

// value is one of them, now and then a very long or very deep one.
func (g *grammar) value() []byte {
	switch n := g.IntN(200); {
	case n == 0:
		return deep(pick(g, []int{40, 41, 63, 64, 65, 1000, 10_000, 10_001}), pick(g, []string{"[", `{"a":`}))
	case n == 1:
		return []byte(`"` + longText + `"`)
	case n == 2:
		return bytes.Repeat([]byte("9"), 1+g.IntN(5000))
	}
	return []byte(pick(g, values))
}

// deep is a value that nests.
func deep(levels int, open string) []byte {
	end := map[string]string{"[": "]", `{"a":`: "}"}[open]
	return []byte(strings.Repeat(open, levels) + "1" + strings.Repeat(end, levels))
}

// spoil does something to a JSON text, mostly once.
func (g *grammar) spoil(b []byte, a *attempt) []byte {
	b = bytes.Clone(b)
	for {
		how := pick(g, spoilers)
		if b = how.do(g, b); len(a.what) < 200 {
			a.what += ", " + how.name
		}
		if g.percent(75) {
			return b
		}
	}
}

// spoilers are the ways. Each may change what it is given.
var spoilers = []struct {
	name string
	do   func(*grammar, []byte) []byte
}{
	{"another value", (*grammar).anotherValue}, {"another value", (*grammar).anotherValue}, {"another value", (*grammar).anotherValue}, {"another value", (*grammar).anotherValue},
	{"a member more", (*grammar).anotherMember}, {"a member more", (*grammar).anotherMember},
	{"another name", (*grammar).anotherName}, {"another name", (*grammar).anotherName},
	{"cut off", func(g *grammar, b []byte) []byte { return b[:g.IntN(len(b)+1)] }},
	{"a bit", func(g *grammar, b []byte) []byte {
		if len(b) > 0 {
			b[g.IntN(len(b))] ^= 1 << g.IntN(8)
		}
		return b
	}},
	{"bytes put in", func(g *grammar, b []byte) []byte {
		i := g.IntN(len(b) + 1)
		extra := []byte(pick(g, []string{"\x00", "\xff", "\xc3", "\"", "\\", "{", "}", "[", "]", ",", ":", "\n", "\v", " ", "e", "-", "\u00a0", "\xed\xa0\x80", "\r\n\r\n", "\x1f\x8b"}))
		return append(b[:i:i], append(extra, b[i:]...)...)
	}},
	{"bytes gone", func(g *grammar, b []byte) []byte {
		i := g.IntN(len(b) + 1)
		return append(b[:i], b[min(len(b), i+1+g.IntN(20)):]...)
	}},
	{"bytes twice", func(g *grammar, b []byte) []byte {
		i := g.IntN(len(b) + 1)
		part := bytes.Clone(b[i:min(len(b), i+1+g.IntN(200))])
		return append(b[:i:i], append(part, b[i:]...)...)
	}},
	{"something behind it", func(g *grammar, b []byte) []byte {
		return append(b, pick(g, []string{"x", "}", "]", ",", "{}", "\x00", " ", "\n\n", "null", "[]"})...)
	}},
	{"something before it", func(g *grammar, b []byte) []byte {
		return append([]byte(pick(g, []string{"x", "{", "[", ",", "{}", "\x00", " ", "\ufeff", "null", "\xff\xfe", "//\n", "callback("})), b...)
	}},
	{"another key", func(g *grammar, b []byte) []byte {
		return bytes.Replace(b, []byte(recordings.Key), []byte(pick(g, []string{"", "x", strings.ToUpper(recordings.Key), recordings.Key + "0", recordings.Key[1:], `\u0030` + recordings.Key[1:], longText})), 1)
	}},
	{"something else", func(g *grammar, b []byte) []byte {
		switch g.IntN(6) {
		case 0:
			return nil
		case 1:
			return g.value()
		case 2:
			return []byte("<html><body>no JSON</body></html>")
		case 3:
			return bytes.ReplaceAll(b, []byte(`"`), []byte(`'`))
		case 4:
			wide := make([]byte, 0, 2*len(b))
			for _, c := range b {
				wide = append(wide, c, 0)
			}
			return wide
		}
		noise := make([]byte, g.IntN(300))
		for i := range noise {
			noise[i] = byte(g.Uint32())
		}
		return noise
	}},
	{"2,001 events", func(g *grammar, b []byte) []byte {
		if !g.percent(3) { // a large one
			return b
		}
		event := `{"event_type":"E","user_id":"user-000001"},`
		return fmt.Appendf(nil, `{"api_key":%q,"events":[%s]}`, recordings.Key, strings.TrimSuffix(strings.Repeat(event, 2001), ","))
	}},
}

// member finds some member of an object, in a text that need not be JSON: where its name and its value begin.
func (g *grammar) member(b []byte) (nameFrom, valueFrom int, ok bool) {
	from := g.IntN(len(b) + 1)
	at := bytes.Index(b[from:], []byte(`":`))
	if at < 0 {
		from = 0
		if at = bytes.Index(b, []byte(`":`)); at < 0 {
			return 0, 0, false
		}
	}
	at += from
	return bytes.LastIndexByte(b[:at], '"') + 1, at + 2, true
}

func (g *grammar) anotherValue(b []byte) []byte {
	_, from, ok := g.member(b)
	if !ok {
		return b
	}
	return append(b[:from:from], append(g.value(), b[valueEnd(b, from):]...)...)
}

func (g *grammar) anotherName(b []byte) []byte {
	from, value, ok := g.member(b)
	if !ok {
		return b
	}
	return append(b[:from:from], append([]byte(pick(g, names)), b[value-2:]...)...)
}

func (g *grammar) anotherMember(b []byte) []byte {
	from := g.IntN(len(b) + 1)
	at := bytes.IndexByte(b[from:], '{')
	if at < 0 {
		from = 0
		if at = bytes.IndexByte(b, '{'); at < 0 {
			return b
		}
	}
	at += from
	extra := append([]byte(`"`+pick(g, names)+`":`), g.value()...)
	return append(b[:at+1:at+1], append(append(extra, ','), b[at+1:]...)...)
}

// valueEnd is where the value ends that begins at i, or the text.
func valueEnd(b []byte, i int) int {
	depth := 0
	for inText := false; i < len(b); i++ {
		switch c := b[i]; {
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return i
			}
		case c == ',' && depth == 0:
			return i
		}
	}
	return len(b)
}

// zipper packs again and again.
type zipper struct {
	w   *gzip.Writer
	out bytes.Buffer
}

func (z *zipper) pack(b []byte) []byte {
	z.out.Reset()
	if z.w == nil {
		z.w, _ = gzip.NewWriterLevel(&z.out, gzip.BestSpeed) // the level is one that there is
	} else {
		z.w.Reset(&z.out)
	}
	_, _ = z.w.Write(b) // to memory
	_ = z.w.Close()
	return bytes.Clone(z.out.Bytes())
}

// coding packs a body, and does so wrongly if spoil says so.
func (g *grammar) coding(body []byte, header []string, a *attempt, spoil bool) ([]byte, []string) {
	said := "gzip"
	packed := g.zip.pack(body)
	if spoil {
		switch g.IntN(10) {
		case 0:
			packed = packed[:g.IntN(len(packed))]
		case 1:
			packed[g.IntN(len(packed))] ^= 1 << g.IntN(8)
		case 2:
			packed = append(packed, pick(g, []string{"x", "\x00", "\x1f\x8b", longText, string(packed[:12])})...)
		case 3:
			packed = g.zip.pack(packed)
		case 4:
			packed = body
		case 5:
			said = pick(g, []string{"deflate", "br", "zstd", "compress", "gzip, gzip", "gzip\r\nContent-Encoding: gzip", "gzip;q=1", "*", "\x80"})
		case 6:
			said = pick(g, []string{"GZIP", "x-gzip", " gzip ", "identity"})
		case 7:
			half := g.IntN(len(body) + 1) // of two members, as RFC 1952 lets be
			packed = append(g.zip.pack(body[:half]), g.zip.pack(body[half:])...)
		case 8:
			packed = nil
		}
	}
	a.what += fmt.Sprintf(", %s", said)
	return packed, append(header, "Content-Encoding: "+said)
}
