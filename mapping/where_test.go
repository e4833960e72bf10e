package mapping

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// specValue reads JSON as a TOML reader would give it: int64 and float64 apart.
func specValue(t testing.TB, raw string) any {
	t.Helper()
	if raw == "" {
		return nil
	}
	switch v := valueOf([]byte(raw)); v.kind {
	case text:
		return string(v.text)
	case boolean:
		return raw == "true"
	case number:
		if n, ok := wholeNumber(v.raw); ok {
			return n
		}
		token, err := jsontext.NewDecoder(strings.NewReader(raw)).ReadToken()
		if err != nil {
			t.Fatal(err)
		}
		f, err := token.Float()
		if err != nil {
			t.Fatal(err)
		}
		return f
	case list:
		values := []any{}
		for _, e := range elements(v.raw) {
			values = append(values, specValue(t, string(e)))
		}
		return values
	}
	t.Fatalf("%s cannot stand in a configuration", raw)
	return nil
}

func TestWhereOperators(t *testing.T) {
	rows := readTables(t, "where-operators.md")
	header, used := rows[0], map[string]bool{}
	for _, row := range rows[1:] {
		op := row[0]
		used[op] = true
		c := compileWhere(WhereSpec{Path: "event.p", Op: op, Value: specValue(t, row[1])}, func(key, message string) {
			t.Errorf("%s %s: %s %s", op, row[1], key, message)
		})
		for i, have := range header[2:] {
			raw := `{"event_properties":{"p":` + have + `}}`
			if have == "absent" {
				raw = `{"event_properties":{}}`
			}
			var v view
			if err := v.open(&Record{Raw: []byte(raw)}); err != nil {
				t.Fatal(err)
			}
			if got, want := c.matches(&v), row[i+2] == "yes"; got != want {
				t.Errorf("%s %s on %s: got %v, want %v", op, row[1], have, got, want)
			}
		}
	}
	for _, op := range operators {
		if !used[op] {
			t.Errorf("the table has no row for %q", op)
		}
	}
}

func TestWhereMistakes(t *testing.T) {
	tests := []struct {
		name     string
		spec     WhereSpec
		key, say string
	}{
		{"unknown operator", WhereSpec{"user.a", "=", "x"}, "op", `did you mean "is"?`},
		{"slip in an operator", WhereSpec{"user.a", "is_not", "x"}, "op", `did you mean "is not"?`},
		{"nothing like it", WhereSpec{"user.a", "frobnicates", "x"}, "op", "use one of is, is not"},
		{"bare name", WhereSpec{"plan", "is", "x"}, "path", `did you mean "user.plan"?`},
		{"no value", WhereSpec{"user.a", "is", nil}, "value", "needs a value"},
		{"empty list", WhereSpec{"user.a", "is", []any{}}, "value", "needs a value"},
		{"value for is set", WhereSpec{"user.a", "is set", true}, "value", "takes no value"},
		{"text for <", WhereSpec{"user.a", "<", "10"}, "value", "without quotes"},
		{"number for contains", WhereSpec{"user.a", "does not contain", int64(5)}, "value", `"does not contain" looks into texts`},
		{"bad regex", WhereSpec{"user.a", "regex match", "("}, "value", "regular expression"},
		{"date", WhereSpec{"user.a", "is", time.Time{}}, "value", "must be a text"},
		{"list in a list", WhereSpec{"user.a", "is", []any{[]any{"a"}}}, "value", "must be a text"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Compile(Spec{Identifier: "user_id", SendEvents: true,
				Select: []SelectSpec{{Event: []string{"*"}}, {Event: []string{"A"}, Where: []WhereSpec{{"user.x", "is set", nil}, test.spec}}}})
			mistake, ok := errors.AsType[*SpecError](err)
			if !ok || mistake.Path != "select[1].where[1]."+test.key || !strings.Contains(mistake.Message, test.say) {
				t.Errorf("got %v, want select[1].where[1].%s: … %s …", err, test.key, test.say)
			}
		})
	}
}

func TestWhereOnEventTypeKnowsBothNames(t *testing.T) {
	tests := []struct {
		event, op string
		value     any
		want      bool
	}{
		{"session_start", "is", "[Amplitude] Start Session", true},
		{"[Amplitude] Start Session", "is", "session_start", true},
		{"session_start", "is not", "[Amplitude] Start Session", false},
		{"revenue_amount", "contains", "amplitude", true},
		{"revenue_amount", "does not contain", "amplitude", false},
		{"Order", "is not", "[Amplitude] Start Session", true},
	}
	for _, test := range tests {
		c := compileWhere(WhereSpec{"event_type", test.op, test.value}, func(key, message string) { t.Error(key, message) })
		var v view
		if err := v.open(&Record{Raw: []byte(`{"event_type":"` + test.event + `"}`)}); err != nil {
			t.Fatal(err)
		}
		if got := c.matches(&v); got != test.want {
			t.Errorf("%s %s %v: got %v", test.event, test.op, test.value, got)
		}
	}
}

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern string
		yes, no []string
	}{
		{"Order *", []string{"Order Completed", "Order "}, []string{"Order", "order x", "An Order x"}},
		{"*", []string{"", "anything"}, nil},
		{"a*a", []string{"aa", "aba"}, []string{"a", "ab"}},
		{"*ab*ab*", []string{"abab", "xxabyyabzz"}, []string{"ab", "aab"}},
		{"a*b*c", []string{"abc", "axxbxxc", "abbc"}, []string{"acb", "ab"}},
		{"[Amplitude] ?*", []string{"[Amplitude] ?x"}, []string{"[Amplitude] x", "A ?x"}},
		{"plain", []string{"plain"}, []string{"plai", "plainer", ""}},
		{"**", []string{"", "x"}, nil},
	}
	for _, test := range tests {
		g := newGlob(test.pattern)
		for _, s := range test.yes {
			if !g.matches([]byte(s)) {
				t.Errorf("%q does not match %q", test.pattern, s)
			}
		}
		for _, s := range test.no {
			if g.matches([]byte(s)) {
				t.Errorf("%q matches %q", test.pattern, s)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{"user_i": "user_id", "evnet_type": "event_type", "email": "", "os_": "os", "plan": "", "userid": "user_id", "deviceid": "device_id"} {
		if got := nearest(word, builtins); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
	if !slices.Contains(builtins, "insert_id") {
		t.Error("insert_id is a built-in")
	}
}
