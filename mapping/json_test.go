package mapping

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestMembers(t *testing.T) {
	many := "{"
	for i := range 40 {
		many += fmt.Sprintf(`"k%d":%d,`, i, i)
	}
	tests := []struct{ name, object, want string }{
		{"in order, nulls included", ` {"b": null, "a" : [1, {"x":2}],"c":"\u00e9"} `, `b=null a=[1, {"x":2}] c="\u00e9"`},
		{"names are decoded", `{"a\u0062":1,"half \ud83d":2}`, "ab=1 half \ufffd=2"},
		{"values are only checked for syntax", `{"a":{"x":1,"x":"` + "\xff" + `"}}`, `a={"x":1,"x":"` + "\xff" + `"}`},
		{"digits stay", `{"n":9007199254740993,"m":1e400}`, `n=9007199254740993 m=1e400`},
		{"empty", `{}`, ""},
		{"a name twice", `{"a":1,"\u0061":2}`, `error: a name stands twice`},
		{"a name twice among many", many + `"k7":1}`, `error: a name stands twice`},
		{"a list", `[1]`, "error: not a JSON object"},
		{"nothing", ``, "error: not a JSON object"},
		{"cut", `{"a":1`, "error: malformed"},
		{"no value", `{"a":}`, "error: malformed"},
		{"a bad name", `{"a`, "error: malformed"},
		{"something behind", `{"a":1} x`, "error: something follows"},
		{"two objects", `{} {}`, "error: something follows"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			err := Members([]byte(test.object), func(name string, value []byte) error {
				got = append(got, name+"="+string(value))
				return nil
			})
			if message, wrong := strings.CutPrefix(test.want, "error: "); wrong {
				if err == nil || !strings.Contains(err.Error(), message) {
					t.Errorf("got %q, %v, want the error %s", got, err, message)
				}
			} else if s := strings.Join(got, " "); err != nil || s != test.want {
				t.Errorf("got %q, %v, want %q", s, err, test.want)
			}
		})
	}
	stop := errors.New("enough")
	if err := Members([]byte(`{"a":1,"b":2}`), func(string, []byte) error { return stop }); err != stop {
		t.Errorf("got %v, want the error of f", err)
	}
}

// A walk over bytes that were never checked ends early and says so.
func TestWalkOverDamage(t *testing.T) {
	for _, damaged := range []string{"", " ", "{", `{"a"`, `{"a":`, `{"a":"x`, `{"a":{"b":1`, `{"a":1`, `{a:1}`, `{"a":1,,"b":2}`, `{,}`, `{"a"1}`, `[1]`, `{"a":]}`, `{"a\`} {
		w := walkObject([]byte(damaged))
		for n := 0; w.next(); n++ {
			if n > 10 {
				t.Fatalf("%q: the walk does not end", damaged)
			}
		}
		if !w.bad || w.err() == nil {
			t.Errorf("%q passes for an object", damaged)
		}
	}
}

func TestEqualityKey(t *testing.T) {
	same := [][]string{
		{`1`, `1.0`, `1e0`, `10E-1`, `0.1e+1`},
		{`0`, `-0`, `0.0`, `0e5`},
		{`"a"`, `"\u0061"`},
		{`{"a":1,"b":[1,2]}`, `{ "b":[1.0,2], "a":1 }`},
		{`[1,"1"]`, `[ 1.0 , "1" ]`},
		{`"1"`}, {`true`}, {`"true"`}, {`false`}, {`null`}, {`"null"`}, {`[]`}, {`{}`}, {`[1]`}, {`[[1]]`}, {`""`}, {`-1`}, {`1e400`}, {`1e401`},
		{`{"a":null}`}, {`["a,b"]`}, {`["a","b"]`}, {`9007199254740993`}, {`9007199254740992`},
	}
	seen := map[string]string{}
	for _, group := range same {
		first := string(appendEqualityKey(nil, []byte(group[0])))
		for _, v := range group[1:] {
			if got := string(appendEqualityKey(nil, []byte(v))); got != first {
				t.Errorf("%s is not %s", v, group[0])
			}
		}
		if other, taken := seen[first]; taken {
			t.Errorf("%s is taken for %s", group[0], other)
		}
		seen[first] = group[0]
	}
}

func TestCompact(t *testing.T) {
	for in, want := range map[string]string{
		`{ "a" : [ 1 , "x y\" \\" ] }`: `{"a":[1,"x y\" \\"]}`,
		`"a b"`:                        `"a b"`,
		`[1,2]`:                        `[1,2]`,
		"[\n\t1\r]":                    `[1]`,
	} {
		if got := string(compact([]byte(in))); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
	in := []byte(`{"a":[1]}`)
	if got := compact(in); !bytes.Equal(got, in) || &got[0] != &in[0] {
		t.Error("what is compact is not copied")
	}
}

// A string's end is found eight bytes at a time; here each byte by itself says the same, wherever the string begins.
func TestStringEnd(t *testing.T) {
	alphabet := []string{`a`, `"`, `\\`, `\"`, `\u00fc`, "ü", "\xff", " ", `bcdefgh`, `ijklmnopqrstuvwx`, "\x01", `!`, `[`}
	random := rand.New(rand.NewPCG(3, 1))
	for range 200_000 {
		b := []byte(`{"x":"`)[random.IntN(6):]
		from := len(b) - 1
		for range random.IntN(8) {
			b = append(b, alphabet[random.IntN(len(alphabet))]...)
		}
		end, plain := -1, true
		for i := from + 1; i < len(b) && end < 0; i++ {
			switch {
			case b[i] == '"':
				end = i + 1
			case b[i] == '\\':
				plain = false
				i++
			case b[i] >= 0x80:
				plain = false
			}
		}
		if gotEnd, got := stringEnd(b, from); gotEnd != end || end > 0 && got != plain {
			t.Fatalf("%q from %d: end %d, plain %t, want %d, %t", b, from, gotEnd, got, end, plain)
		}
	}
}
