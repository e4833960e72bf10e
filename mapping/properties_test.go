package mapping

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

func TestApplyOperations(t *testing.T) {
	for _, row := range readTables(t, "operations.md") {
		if row[0] == "before" {
			continue
		}
		before, change, want, why := row[0], row[1], row[2], row[3]
		got, err := ApplyOperations(nil, []byte(before), []byte(change))
		if err != nil || string(got) != want {
			t.Errorf("%s, then %s\n got %s (%v)\nwant %s (%s)", before, change, got, err, want, why)
		}
	}
}

func TestApplyOperationsWithNothing(t *testing.T) {
	before := []byte(`{"a":1}`)
	for _, change := range []string{"", "null", "{}", `{"a":1}`, `{"$unset":{"b":"-"}}`} {
		got, err := ApplyOperations(nil, before, []byte(change))
		if err != nil || &got[0] != &before[0] {
			t.Errorf("%q: got %s, %v, want the same bytes back", change, got, err)
		}
	}
	if got, err := ApplyOperations(nil, nil, nil); err != nil || string(got) != "{}" {
		t.Errorf("a user nobody knows: got %s, %v", got, err)
	}
	if got, err := ApplyOperations(nil, nil, []byte(`{"a":1}`)); err != nil || string(got) != `{"a":1}` {
		t.Errorf("first property: got %s, %v", got, err)
	}
}

func TestApplyOperationsNeverChangesItsInput(t *testing.T) {
	before, change := []byte(`{"l":["a"],"n":1}`), []byte(`{"$append":{"l":["b"]},"$prepend":{"l":["c"]},"$add":{"n":1}}`)
	b, c := bytes.Clone(before), bytes.Clone(change)
	got, err := ApplyOperations(nil, before, change)
	if err != nil || string(got) != `{"l":["c","a","b"],"n":2}` {
		t.Fatalf("got %s, %v", got, err)
	}
	clear(got)
	if !bytes.Equal(before, b) || !bytes.Equal(change, c) {
		t.Error("the arguments were changed")
	}
}

func TestApplyOperationsRefusesWhatIsNoObject(t *testing.T) {
	for _, bad := range []string{`[]`, `"x"`, `{`, `{"a"`, `{"a":`, `{"a":[}`, `x`} {
		if got, err := ApplyOperations(nil, []byte(bad), []byte(`{"a":1}`)); err == nil {
			t.Errorf("properties %s: got %s", bad, got)
		}
		if got, err := ApplyOperations(nil, []byte(`{}`), []byte(bad)); err == nil {
			t.Errorf("user_properties %s: got %s", bad, got)
		}
	}
}

// A long set with many changes goes another way inside than a short one.
func TestApplyOperationsOnManyProperties(t *testing.T) {
	before, change, want := []byte("{"), []byte(`{"$set":{`), []byte("{")
	for i := range 300 {
		key := []byte{'"', 'p', byte('a' + i/26), byte('a' + i%26), '"', ':'}
		if i > 0 {
			before, change, want = append(before, ','), append(change, ','), append(want, ',')
		}
		before = append(append(before, key...), '1')
		change = append(append(change, key...), '2')
		want = append(append(want, key...), '2')
	}
	change = append(change, `,"new":3,"new2":4},"$add":{"new":1,"paa":1},"$unset":{"pab":"-"}}`...)
	before, want = append(before, '}'), append(want, `,"new":4,"new2":4}`...)
	want = bytes.Replace(want, []byte(`"paa":2`), []byte(`"paa":3`), 1)
	got, err := ApplyOperations(nil, before, change)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

// A list grows to 10,000 characters, of several bytes or of one, and what stands behind them is left out.
func TestListsThatGrow(t *testing.T) {
	for _, letter := range []string{"x", "é", "😀"} {
		text := func(n int) string { return `"` + strings.Repeat(letter, n-2) + `"` }
		list := func(lengths ...int) string { // of the elements, in characters
			var all []string
			for _, n := range lengths {
				all = append(all, text(n))
			}
			return "[" + strings.Join(all, ",") + "]"
		}
		full := []int{1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000} // and 2 brackets, 9 commas; so 989 more
		with := func(n ...int) string { return list(append(slices.Clone(full), n...)...) }
		for _, test := range []struct{ name, before, change, want string }{
			{"to the last character", with(), `{"$append":{"l":` + text(989) + `}}`, with(989)},
			{"one more", with(), `{"$append":{"l":` + text(990) + `}}`, with()},
			{"the first of several", with(), `{"$append":{"l":[1,` + text(988) + `,2]}}`, strings.TrimSuffix(with(), "]") + ",1]"},
			{"in front", with(5), `{"$prepend":{"l":` + text(989) + `}}`, list(989, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)},
			{"in front, and the last falls off", with(), `{"$preInsert":{"l":` + text(1001) + `}}`, list(1001, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)},
			{"in front, nothing fits", with(), `{"$prepend":{"l":` + text(9999) + `}}`, with()},
			{"nothing before it, nothing fits", "", `{"$postInsert":{"l":` + text(9999) + `}}`, ""},
			{"nothing before it", "", `{"$append":{"l":` + text(9998) + `}}`, list(9998)},
			{"longer already", with(1000, 1000), `{"$postInsert":{"l":1}}`, with(1000, 1000)},
			{"longer, by $set", with(), `{"$set":{"l":` + with(1000) + `}}`, with(1000)},
			{"longer, and less", with(1000, 1000), `{"$remove":{"l":` + text(1000) + `}}`, "[]"},
		} {
			object := func(l string) []byte {
				if l == "" {
					return []byte("{}")
				}
				return []byte(`{"l":` + l + `}`)
			}
			if got, err := ApplyOperations(nil, object(test.before), []byte(test.change)); err != nil || string(got) != string(object(test.want)) {
				t.Errorf("%s, %s: %d characters (%v), want %d", letter, test.name, utf8.RuneCount(got), err, utf8.RuneCountInString(test.want)+6)
			}
		}
	}
}

func TestTakeOver(t *testing.T) {
	tests := []struct{ name, own, anonymous, want string }{
		{"a new user gets all", "", `{"a":1,"b":[2]}`, `{"a":1,"b":[2]}`},
		{"own values win", `{"a":"mine"}`, `{"a":"theirs","b":2}`, `{"a":"mine","b":2}`},
		{"nothing to take", `{"a":1}`, `{}`, `{"a":1}`},
		{"no anonymous properties", `{"a":1}`, ``, `{"a":1}`},
		{"names that look like operations are names", `{"a":1}`, `{"$set":{"a":2}}`, `{"a":1,"$set":{"a":2}}`},
		{"both empty", "", "", "{}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := TakeOver([]byte(test.own), []byte(test.anonymous))
			if err != nil || string(got) != test.want {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
		})
	}
	if _, err := TakeOver([]byte("[]"), []byte("{}")); err == nil {
		t.Error("a list is no set of properties")
	}
	if _, err := TakeOver([]byte("{}"), []byte("[")); err == nil {
		t.Error("half a list is no set of properties")
	}
}

// The short way for events that only set gives what the general one does, whatever dst has already.
func FuzzSetFew(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"a":1,"b":"x"}`, `{"$set":{"a":2,"c":[1, 2]}}`}, {`{}`, `{"a":1}`}, {`{"a":null}`, `{"a":1}`}, {`{"a":1}`, `{"$set":{}}`}, {`{"a":1}`, `{"$set":null}`},
		{`{"a":1}`, `{"b":1,"$set":{"a":2}}`}, {`{"a":1}`, `{"\u0061":2}`}, {`{"a":1}`, `{"a":2,"a":3}`}, {`{"a":1}`, `{"$other":2}`}, {`{"a":1}`, `{"":2}`},
	} {
		f.Add([]byte(seed[0]), []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, properties, userProperties []byte) {
		if !isCheckedObject(properties) || !isCheckedObject(userProperties) {
			return
		}
		prefix := []byte("before")
		few, ok := setFew(prefix, properties, userProperties)
		if !ok {
			return
		}
		// An operation that does nothing sends the same the general way.
		general, err := ApplyOperations(prefix, properties, append([]byte(`{"$add":{},`), userProperties[1:]...))
		if string(userProperties) == "{}" {
			general, err = ApplyOperations(prefix, properties, []byte(`{"$add":{}}`))
		}
		if err != nil || string(few) != string(general) || string(prefix) != "before" {
			t.Errorf("%s after %s: the short way gives %s, the general %s (%v)", properties, userProperties, few, general, err)
		}
	})
}

func FuzzApplyOperations(f *testing.F) {
	for _, row := range readTables(f, "operations.md") {
		f.Add([]byte(row[0]), []byte(row[1]))
	}
	f.Fuzz(func(t *testing.T, before, change []byte) {
		got, err := ApplyOperations(nil, before, change)
		over, overErr := TakeOver(before, change)
		if !isCheckedObject(before) || !isCheckedObject(change) {
			return
		}
		if err != nil || !isCheckedObject(got) {
			t.Errorf("%s, then %s: got %s, %v", before, change, got, err)
		}
		if overErr != nil || !isCheckedObject(over) {
			t.Errorf("%s takes over %s: got %s, %v", before, change, over, overErr)
		}
		if again, err := ApplyOperations(nil, got, nil); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s changes without a reason to %s, %v", got, again, err)
		}
	})
}

func isCheckedObject(b []byte) bool {
	return check(b) == nil && jsontext.Value(b).Kind() == '{'
}
