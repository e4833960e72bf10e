package mapping

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// texts are of exactly n bytes, of characters of one to four bytes each, with one-byte ones before where n is no multiple.
func texts(n int) map[string]string {
	of := func(character string) string {
		return strings.Repeat("x", n%len(character)) + strings.Repeat(character, n/len(character))
	}
	return map[string]string{"a": of("a"), "é": of("é"), "€": of("€"), "😀": of("😀")}
}

// around calls f for texts one byte below a limit, at it and one above.
func around(t *testing.T, limit int, f func(t *testing.T, text string, within bool)) {
	for n := limit - 1; n <= limit+1; n++ {
		all := texts(n)
		for _, kind := range slices.Sorted(maps.Keys(all)) {
			t.Run(fmt.Sprintf("%d bytes of %s", n, kind), func(t *testing.T) {
				text := all[kind]
				if len(text) != n || !utf8.ValidString(text) {
					t.Fatalf("the test's own text has %d bytes", len(text))
				}
				f(t, text, n <= limit)
			})
		}
	}
}

func compiled(t testing.TB, change func(*Spec)) *Rules {
	t.Helper()
	spec := everything()
	spec.EventProperties, spec.UserProperties = []string{"*"}, []string{"*"}
	if change != nil {
		change(&spec)
	}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func eventOf(user, device, name, properties string) *Record {
	raw := `{"event_type":` + strconv.Quote(name) + `,"event_properties":` + properties + `}`
	return &Record{UserID: user, DeviceID: device, Received: 2_000_000_000_000, Time: 2_000_000_000_000, Properties: []byte("{}"), Raw: []byte(raw)}
}

// mapped maps by whatever way delivery would.
func mapped(t testing.TB, rules *Rules, r *Record, earlier []byte) Decision {
	t.Helper()
	agrees(t, rules, r, earlier)
	id, reason := rules.Identifier(r)
	if reason != "" {
		return rules.NoIdentifier(r, reason)
	}
	d, err := rules.Map(r, id, earlier)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func whyRefusedOf(op Operation) string {
	reason, detail := op.Refused()
	if (reason == "") != (detail == "") {
		return "a reason and a sentence belong together"
	}
	return reason
}

func TestLimitOfIdentifier(t *testing.T) {
	rules := compiled(t, func(s *Spec) { s.UserProperties, s.Identifier = nil, "user.ref" })
	around(t, 150, func(t *testing.T, text string, within bool) {
		want := ""
		if !within {
			want = "identifier_too_long"
		}
		r := eventOf("u", "", "A", "{}")
		r.Properties = []byte(`{"ref":` + string(appendQuoted(nil, text)) + `}`)
		d := mapped(t, rules, r, nil)
		if len(d.Operations) != 2 || whyRefusedOf(d.Operations[0]) != want || whyRefusedOf(d.Operations[1]) != want {
			t.Fatalf("got %+v", d)
		}
		if got := string(valueOf(member(member(d.Operations[1].Body, []byte("identifiers")), []byte("id"))).text); got != text {
			t.Errorf("it is sent as %q", got)
		}
		id, _ := rules.Identifier(r)
		if key := id.Key(); within != (key == "id:"+text) || len(key) > 200 {
			t.Errorf("its key is %q", key)
		}
		// An identify that was refused for it is not made again with each event.
		again := mapped(t, rules, r, Refused(d.Sent, ""))
		if len(again.Operations) != 1 || again.UserReason != "unchanged" {
			t.Errorf("then: %+v", again)
		}
	})
	long := eventOf("u", "", "A", "{}")
	long.Properties = []byte(`{"ref":"` + strings.Repeat("x", 100_000) + `"}`)
	if id, _ := rules.Identifier(long); len(id.Key()) > 200 {
		t.Errorf("a key of %d bytes", len(id.Key()))
	}
}

func TestLimitOfEventName(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Spec)
		record func(text string) *Record
	}{
		{"as it came", nil, func(text string) *Record { return eventOf("u", "", text, "{}") }},
		{"without the space around it", nil, func(text string) *Record { return eventOf("u", "", "  "+text+" ", "{}") }},
		{"of a device", func(s *Spec) { s.Anonymous = "send" }, func(text string) *Record { return eventOf("", "d", text, "{}") }},
		{"of a device, in a batch", func(s *Spec) { s.Anonymous, s.AnonymousAPI = "send", "v2" }, func(text string) *Record { return eventOf("", "d", text, "{}") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			rules := compiled(t, test.change)
			around(t, 100, func(t *testing.T, text string, within bool) {
				d := mapped(t, rules, test.record(text), nil)
				want := ""
				if !within {
					want = "event_name_too_long"
				}
				if len(d.Operations) != 1 || whyRefusedOf(d.Operations[0]) != want {
					t.Fatalf("got %+v", d)
				}
				if got := string(valueOf(member(d.Operations[0].Body, []byte("name"))).text); got != text {
					t.Errorf("it is called %q", got)
				}
			})
		})
	}
	// A page whose address is too long is called by what fits.
	rules := compiled(t, func(s *Spec) { s.PageViews = "page" })
	around(t, 100, func(t *testing.T, text string, within bool) {
		r := eventOf("u", "", "[Amplitude] Page Viewed", `{"[Amplitude] Page URL":"`+text+`","[Amplitude] Page Path":"/p"}`)
		want := "/p"
		if within {
			want = text
		}
		d := mapped(t, rules, r, nil)
		if got := string(valueOf(member(d.Operations[0].Body, []byte("name"))).text); got != want || whyRefusedOf(d.Operations[0]) != "" {
			t.Errorf("the page is called %q: %+v", got, d)
		}
	})
}

// userUpdate maps an $identify of a user who has these properties.
func userUpdate(t testing.TB, rules *Rules, properties string, earlier []byte) (attributes map[string]string, d Decision) {
	t.Helper()
	r := eventOf("u", "", "$identify", "{}")
	r.Properties = []byte(properties)
	d = mapped(t, rules, r, earlier)
	if len(d.Operations) == 0 {
		return nil, d
	}
	attributes = map[string]string{}
	for w := walkObject(member(d.Operations[0].Body, []byte("attributes"))); w.next(); {
		attributes[string(plainText(w.name))] = string(w.value)
	}
	return attributes, d
}

func TestLimitOfAttributeName(t *testing.T) {
	rules := compiled(t, nil)
	around(t, 150, func(t *testing.T, text string, within bool) {
		attributes, d := userUpdate(t, rules, `{"a":1,`+string(appendQuoted(nil, text))+`:2}`, nil)
		if _, sent := attributes[text]; sent != within || attributes["a"] != "1" {
			t.Errorf("sent %v", attributes)
		}
		leftOut(t, d, within, "attribute_name_too_long")
		// It is told once; and when it is gone, there is nothing to clear.
		if _, d = userUpdate(t, rules, `{"a":1,`+string(appendQuoted(nil, text))+`:2}`, d.Sent); len(d.Operations)+len(d.LeftOut) > 0 {
			t.Errorf("again: %+v", d)
		}
		if attributes, _ := userUpdate(t, rules, `{"a":2}`, d.Sent); !within && len(attributes) != 1 {
			t.Errorf("then %v", attributes)
		}
	})
}

// What a program that looked at no limits has sent under a name that is too long was refused: there is nothing to clear, and
// to try would only have a whole identify refused.
func TestNamesTooLongOfBeforeLimits(t *testing.T) {
	rules, long := compiled(t, nil), strings.Repeat("x", 151)
	for _, state := range []sentState{sentValue, sentRefused, sentUnsure} {
		before := sent{known: true, attributes: []sentAttribute{{name: []byte("a"), hash: hash([]byte("1")), state: sentValue}, {name: []byte(long), hash: hash([]byte("2")), state: state}}}
		for _, properties := range []string{`{"a":1}`, `{"a":1,"` + long + `":2}`} {
			if attributes, d := userUpdate(t, rules, properties, before.encode()); attributes != nil {
				t.Errorf("state %d, %.12s…: sent %v, and remembered %q", state, properties, attributes, d.Sent)
			}
		}
	}
}

// What a record had no room for is there all the same: it stays at Customer.io as it is, and follows once it is carried.
func TestPropertiesThatWereNotCarried(t *testing.T) {
	rules := compiled(t, func(s *Spec) { s.UserRename = map[string]string{"old": "new"} })
	var earlier []byte
	for i, step := range []struct{ properties, want string }{
		{`{"a":1,"bio":"x","old":"y"}`, `map[a:1 bio:"x" new:"y"]`},
		{`{"a":1,"bio":null,"old":null}`, `map[]`},
		{`{"a":2,"bio":null,"old":null,"never":null}`, `map[a:2]`},
		{`{"bio":null}`, `map[a:"" new:""]`},
		{`{"bio":null}`, `map[]`},
		{`{"bio":"x","old":null}`, `map[]`},
		{`{"bio":"x","old":"y"}`, `map[bio:"x" new:"y"]`},
		{`{"new":"z","old":null}`, `map[bio:"" new:"z"]`},
	} {
		attributes, d := userUpdate(t, rules, step.properties, earlier)
		if got := fmt.Sprint(attributes); got != step.want {
			t.Errorf("step %d: sent %s, want %s", i, got, step.want)
		}
		if d.Sent != nil {
			earlier = d.Sent
		}
	}
}

// What the rules choose no more stays at Customer.io. When they choose it again it is sent, or cleared if the person has lost it.
func TestPropertyThatIsChosenAgain(t *testing.T) {
	all := compiled(t, nil)
	one := compiled(t, func(s *Spec) { s.UserProperties = []string{"plan"} })
	none := compiled(t, func(s *Spec) { s.UserProperties = nil })
	keeps := compiled(t, func(s *Spec) { s.OnUnset = "keep" })
	type step struct {
		rules            *Rules
		properties, want string
	}
	for name, steps := range map[string][]step{
		"gone meanwhile":         {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {one, `{"plan":3,"spent":2}`, `map[plan:3]`}, {all, `{}`, `map[plan:"" spent:""]`}, {all, `{}`, `map[]`}},
		"gone, and nothing new":  {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {one, `{"plan":1}`, `map[]`}, {all, `{"plan":1}`, `map[plan:1 spent:""]`}},
		"the same":               {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {one, `{"plan":3,"spent":2}`, `map[plan:3]`}, {all, `{"plan":3,"spent":2}`, `map[plan:3 spent:2]`}, {all, `{"plan":3,"spent":2}`, `map[]`}},
		"another value":          {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {one, `{"plan":3,"spent":2}`, `map[plan:3]`}, {all, `{"plan":3,"spent":4}`, `map[plan:3 spent:4]`}},
		"cleared before":         {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {all, `{"plan":1}`, `map[plan:1 spent:""]`}, {one, `{"plan":3}`, `map[plan:3]`}, {all, `{"plan":3}`, `map[]`}},
		"no property was chosen": {{all, `{"plan":1}`, `map[plan:1]`}, {none, `{"plan":1}`, `map[]`}, {all, `{}`, `map[plan:""]`}},
		"on_unset keeps it":      {{all, `{"plan":1,"spent":2}`, `map[plan:1 spent:2]`}, {one, `{"plan":3}`, `map[plan:3]`}, {keeps, `{"plan":3}`, `map[]`}},
	} {
		var earlier []byte
		for i, step := range steps {
			attributes, d := userUpdate(t, step.rules, step.properties, earlier)
			if got := fmt.Sprint(attributes); got != step.want {
				t.Errorf("%s, step %d: sent %s, want %s", name, i, got, step.want)
			}
			if d.Sent != nil {
				earlier = d.Sent
			}
		}
	}
}

func leftOut(t *testing.T, d Decision, within bool, reason string) {
	t.Helper()
	switch {
	case within && len(d.LeftOut) != 0:
		t.Errorf("left out: %+v", d.LeftOut)
	case !within && (len(d.LeftOut) != 1 || d.LeftOut[0].Reason != reason || !utf8.ValidString(d.LeftOut[0].Name)):
		t.Errorf("left out: %+v, want one for %s", d.LeftOut, reason)
	}
}

func TestLimitOfAttributeValue(t *testing.T) {
	values := map[string]func(text string) (raw, sent string){
		"a text":           func(s string) (string, string) { return quotedText(s), quotedText(s) },
		"a text, escaped":  func(s string) (string, string) { e := escapedText(s); return e, e },
		"a list":           func(s string) (string, string) { v := `["` + s[4:] + `"]`; return v, v },
		"a list, spaced":   func(s string) (string, string) { return `[ "` + s[4:] + `" ]`, `["` + s[4:] + `"]` },
		"an object":        func(s string) (string, string) { v := `{"x":"` + s[8:] + `"}`; return v, v },
		"a list in a text": func(s string) (string, string) { return `["` + s[4:] + `"]`, quotedText(`["` + s[4:] + `"]`) },
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		t.Run(name, func(t *testing.T) {
			rules := compiled(t, func(s *Spec) {
				if name == "a list in a text" {
					s.UserPropertyValues = "string"
				}
			})
			for n := 999; n <= 1001; n++ {
				text := strings.Repeat("x", 8) + texts(n - 8)["é"]
				if name != "a text" && name != "a text, escaped" {
					text = strings.Repeat("x", 9) + texts(n - 9)["a"] // cut at the front above
				}
				raw, want := values[name](text)
				within := n <= 1000
				attributes, d := userUpdate(t, rules, `{"a":"b","v":`+raw+`}`, nil)
				if got, sent := attributes["v"]; sent != within || sent && got != want {
					t.Errorf("%d bytes: sent %q", n, got)
				}
				leftOut(t, d, within, "attribute_value_too_long")
			}
		})
	}
	rules := compiled(t, nil)
	around(t, 1000, func(t *testing.T, text string, within bool) {
		attributes, d := userUpdate(t, rules, `{"v":`+quotedText(text)+`}`, nil)
		if _, sent := attributes["v"]; sent != within {
			t.Errorf("sent %q", attributes["v"])
		}
		leftOut(t, d, within, "attribute_value_too_long")
	})
}

func quotedText(s string) string { return string(appendQuoted(nil, s)) }

// escapedText writes every character as an escape: six bytes of JSON for one or two of text.
func escapedText(s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return `"` + b.String() + `"`
}

// A value that is too large leaves the others alone, is told once, and leaves the one before it at Customer.io until it is
// gone, or fits again.
func TestValueTooLargeForAWhile(t *testing.T) {
	rules := compiled(t, nil)
	large := `"` + strings.Repeat("x", 1001) + `"`
	var earlier []byte
	for i, step := range []struct {
		properties, want string // want: the attributes that are sent, sorted; "-" = no identify
		leftOut          int
	}{
		{`{"bio":"short","plan":"free"}`, `bio="short" plan="free"`, 0},
		{`{"bio":` + large + `,"plan":"free"}`, `-`, 1},
		{`{"bio":` + large + `,"plan":"free"}`, `-`, 0},
		{`{"bio":` + large + `,"plan":"pro"}`, `plan="pro"`, 0},
		{`{"bio":[` + large + `],"plan":"pro"}`, `-`, 1},
		{`{"bio":"short","plan":"pro"}`, `bio="short" plan="pro"`, 0},
		{`{"bio":` + large + `,"plan":"pro"}`, `-`, 1},
		{`{"plan":"pro"}`, `bio="" plan="pro"`, 0},
		{`{"plan":"pro"}`, `-`, 0},
	} {
		attributes, d := userUpdate(t, rules, step.properties, earlier)
		got := "-"
		if attributes != nil {
			var parts []string
			for _, name := range slices.Sorted(maps.Keys(attributes)) {
				parts = append(parts, name+"="+attributes[name])
			}
			got = strings.Join(parts, " ")
		}
		if got != step.want || len(d.LeftOut) != step.leftOut {
			t.Errorf("step %d: sent %s, left out %v; want %s and %d", i, got, d.LeftOut, step.want, step.leftOut)
		}
		if d.Sent != nil {
			earlier = d.Sent
		}
	}
}

func manyProperties(from, n int) string {
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf(`"p%04d":%d`, from+i, i))
	}
	return strings.Join(parts, ",")
}

func TestLimitOfAttributes(t *testing.T) {
	for _, test := range []struct{ properties, sent, leftOut int }{{299, 299, 0}, {300, 300, 0}, {301, 300, 1}, {700, 300, 400}} {
		rules := compiled(t, nil)
		attributes, d := userUpdate(t, rules, "{"+manyProperties(0, test.properties)+"}", nil)
		if len(attributes) != test.sent || len(d.LeftOut) != test.leftOut {
			t.Errorf("of %d: %d are sent, %d left out", test.properties, len(attributes), len(d.LeftOut))
		}
		for _, one := range d.LeftOut {
			if one.Reason != "too_many_attributes" || one.Name < "p0300" {
				t.Errorf("left out: %+v", one)
			}
		}
		if _, again := userUpdate(t, rules, "{"+manyProperties(0, test.properties)+"}", d.Sent); len(again.Operations)+len(again.LeftOut) != 0 {
			t.Errorf("again: %+v", again)
		}
	}
	// Those that are cleared count, too; what had to make way for them follows with the next.
	rules := compiled(t, nil)
	_, d := userUpdate(t, rules, "{"+manyProperties(0, 300)+"}", nil)
	attributes, d := userUpdate(t, rules, "{"+manyProperties(10, 300)+"}", d.Sent)
	cleared := 0
	for _, value := range attributes {
		if value == `""` {
			cleared++
		}
	}
	if len(attributes) != 300 || cleared != 10 {
		t.Errorf("%d attributes, %d of them cleared", len(attributes), cleared)
	}
	if attributes, d = userUpdate(t, rules, "{"+manyProperties(10, 300)+"}", d.Sent); len(attributes) != 300 || attributes["p0309"] == "" {
		t.Errorf("then %d attributes, with p0309 %q", len(attributes), attributes["p0309"])
	}
	if attributes, _ = userUpdate(t, rules, "{"+manyProperties(10, 300)+"}", d.Sent); attributes != nil {
		t.Errorf("and then %d more", len(attributes))
	}
	// Everything is replaced: more clears than one identify takes. All of them get through in the end.
	_, d = userUpdate(t, rules, "{"+manyProperties(0, 300)+"}", nil)
	_, d = userUpdate(t, rules, "{"+manyProperties(1000, 300)+"}", d.Sent)
	for range 4 {
		if _, next := userUpdate(t, rules, "{"+manyProperties(1000, 300)+"}", d.Sent); next.Sent != nil {
			d = next
		}
	}
	_, has, _, _ := LastSent(d.Sent)
	if len(has) != 300 || slices.Min(has) != "p1000" {
		t.Errorf("Customer.io has %d, from %s", len(has), slices.Min(has))
	}
	// An anonymous_id takes the place of one, of a value and of a clear.
	rules = compiled(t, func(s *Spec) { s.Anonymous = "send" })
	for _, then := range []string{"{" + manyProperties(1000, 300) + "}", "{" + manyProperties(0, 301) + "}", "{}"} {
		_, before := userUpdate(t, rules, "{"+manyProperties(0, 300)+"}", nil)
		r := eventOf("u", "d", "$identify", "{}")
		r.Sole, r.Properties = true, []byte(then)
		d := mapped(t, rules, r, before.Sent)
		n, told := 0, false
		for w := walkObject(member(d.Operations[0].Body, []byte("attributes"))); w.next(); n++ {
			told = told || string(w.name) == `"anonymous_id"`
		}
		if n != 300 || !told {
			t.Errorf("%d attributes, the anonymous_id among them: %t", n, told)
		}
	}
}

func TestLimitOfOperations(t *testing.T) {
	rules := compiled(t, nil)
	// An identify of n bytes.
	update := func(n int) Decision {
		var parts []string
		for i := range 40 {
			parts = append(parts, fmt.Sprintf(`"p%02d":"%s"`, i, strings.Repeat("x", 750)))
		}
		properties := strings.Join(parts, ",")
		_, d := userUpdate(t, rules, "{"+properties+`,"z":""}`, nil)
		rest := n - len(d.Operations[0].Body)
		for rest > 900 {
			properties += fmt.Sprintf(`,"q%d":"%s"`, rest, strings.Repeat("y", 900-len(fmt.Sprintf(`,"q%d":""`, rest))))
			rest -= 900
		}
		_, d = userUpdate(t, rules, "{"+properties+`,"z":"`+strings.Repeat("z", rest)+`"}`, nil)
		if len(d.Operations[0].Body) != n {
			t.Fatalf("the test made one of %d bytes, not %d", len(d.Operations[0].Body), n)
		}
		return d
	}
	for n := 31_999; n <= 32_001; n++ {
		want := ""
		if n > 32_000 {
			want = "operation_too_large"
		}
		if got := whyRefusedOf(update(n).Operations[0]); got != want {
			t.Errorf("an identify of %d bytes: %q", n, got)
		}
	}
	// An event whose v2 form has n bytes, of a user or of nobody.
	sized := func(user, device string, n int, data bool) Operation {
		rules := compiled(t, func(s *Spec) { s.UserProperties, s.Anonymous, s.AnonymousAPI = nil, "send", "v2" })
		size := func(op Operation) int {
			if data {
				for _, name := range []string{"data", "attributes"} {
					if raw := member(op.Body, []byte(name)); raw != nil {
						return len(raw)
					}
				}
			}
			return len(op.Body)
		}
		last := func(text string) Operation {
			d := mapped(t, rules, eventOf(user, device, "A", `{"p":["`+text+`"]}`), nil)
			return d.Operations[len(d.Operations)-1]
		}
		return last(strings.Repeat("x", n-size(last(""))))
	}
	for _, test := range []struct {
		name         string
		user, device string
		n            int
		data         bool // n is of the data, else of the v2 form
		path, refuse string
	}{
		{"of v2, -1", "user-1", "", 31_999, false, "", ""},
		{"of v2", "user-1", "", 32_000, false, "", ""},
		{"of v2, +1", "user-1", "", 32_001, false, "/api/v1/customers/user-1/events", ""},
		{"of v1, -1", "user-1", "", 99_999, true, "/api/v1/customers/user-1/events", ""},
		{"of v1", "user-1", "", 100_000, true, "/api/v1/customers/user-1/events", ""},
		{"of v1, +1", "user-1", "", 100_001, true, "/api/v1/customers/user-1/events", "operation_too_large"},
		{"nobody's, of v2", "", "d", 32_000, false, "", ""},
		{"nobody's, of v2, +1", "", "d", 32_001, false, "/api/v1/events", ""},
		{"nobody's, of v1, +1", "", "d", 100_001, true, "/api/v1/events", "operation_too_large"},
		{"an email", "ada+x@example.com", "", 50_000, true, "/api/v1/customers/ada%2Bx%40example.com/events", ""},
		{"a cio_id", "cio_a7", "", 50_000, true, "/api/v1/customers/cio_a7/events", ""},
		{"an id with everything", "a/b c%20é", "", 50_000, true, "/api/v1/customers/a%2Fb%20c%2520%C3%A9/events", ""},
		{"an id that a path cannot say", "..", "", 50_000, true, "", "operation_too_large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			op := sized(test.user, test.device, test.n, test.data)
			if op.Path() != test.path || whyRefusedOf(op) != test.refuse {
				t.Errorf("to %q, refused %q, %d bytes", op.Path(), whyRefusedOf(op), len(op.Body))
			}
			if err := check(op.Body); err != nil {
				t.Error(err)
			}
		})
	}
	for kind, value := range map[string]string{"id": "ada@example.com", "email": "nobody"} {
		if _, ok := v1Path(Identifier{kind, value}); ok {
			t.Errorf("v1 takes the %s %s for something else", kind, value)
		}
	}
}

// What v1 is sent of an event, byte for byte.
func TestEventByV1(t *testing.T) {
	rules := compiled(t, func(s *Spec) { s.Anonymous, s.PageViews = "send", "page" })
	r := eventOf("", "device-1", "[Amplitude] Page Viewed", `{"[Amplitude] Page Path":"/a \"b\"","n":1.50}`)
	d := mapped(t, rules, r, nil)
	want := `{"name":"/a \"b\"","type":"page","id":"00000000000000000000000000","timestamp":2000000000,"anonymous_id":"device-1","data":{"[Amplitude] Page Path":"/a \"b\"","n":1.50}}`
	if len(d.Operations) != 1 || string(d.Operations[0].Body) != want || d.Operations[0].Path() != "/api/v1/events" || d.Operations[0].Action != "page" {
		t.Errorf("got %+v", d)
	}
}
