package mapping

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func everything() Spec {
	return Spec{Identifier: "user_id", SendEvents: true, SendUsers: true, Select: []SelectSpec{{Event: []string{"*"}}}}
}

func TestCompileMistakes(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Spec)
		want   []string // path, then a part of the message
	}{
		{"no identifier", func(s *Spec) { s.Identifier = "" }, []string{"identifier", "is required"}},
		{"identifier is a bare name", func(s *Spec) { s.Identifier = "email" }, []string{"identifier", `did you mean "user.email"?`}},
		{"identifier with a slip", func(s *Spec) { s.Identifier = "user_ids" }, []string{"identifier", `did you mean "user_id"?`}},
		{"identifier in Amplitude's words", func(s *Spec) { s.Identifier = "user_properties.email" }, []string{"identifier", `did you mean "user.email"?`}},
		{"identifier in capitals", func(s *Spec) { s.Identifier = "Event.id" }, []string{"identifier", `did you mean "event.id"?`}},
		{"identifier without a name", func(s *Spec) { s.Identifier = "user." }, []string{"identifier", `write "user.NAME"`}},
		{"identifier like nothing known", func(s *Spec) { s.Identifier = "a.b" }, []string{"identifier", "A path is user.NAME"}},
		{"unknown kind", func(s *Spec) { s.IdentifierKind = "mail" }, []string{"identifier_kind", `"mail" is not known: did you mean "email"?`}},
		{"no select", func(s *Spec) { s.Select = nil }, []string{"select", `event = ["*"]`}},
		{"only drops", func(s *Spec) { s.Select[0].Action = "drop" }, []string{"select", `no rule with action = "send"`}},
		{"rule without events", func(s *Spec) { s.Select[0].Event = nil }, []string{"select[0].event", "is required"}},
		{"empty event name", func(s *Spec) { s.Select[0].Event = []string{"A", ""} }, []string{"select[0].event[1]", "is empty"}},
		{"$identify is no event", func(s *Spec) { s.Select[0].Event = []string{"$identify"} }, []string{"select[0].event[0]", "users.properties"}},
		{"unknown action", func(s *Spec) { s.Select[0].Action = "skip" }, []string{"select[0].action", "use one of send, drop"}},
		{"name too long", func(s *Spec) { s.Select[0].Name = strings.Repeat("x", 101) }, []string{"select[0].name", "101 bytes"}},
		{"name blank", func(s *Spec) { s.Select[0].Name = " " }, []string{"select[0].name", "is blank"}},
		{"path in a list of names", func(s *Spec) { s.Select[0].Properties = []string{"event.total"} }, []string{"select[0].properties[0]", `did you mean "total"?`}},
		{"empty property name", func(s *Spec) { s.EventProperties = []string{""} }, []string{"events.properties[0]", "is empty"}},
		{"path among user properties", func(s *Spec) { s.UserProperties = []string{"*", "user.email"} }, []string{"users.properties[1]", `did you mean "email"?`}},
		{"unknown field", func(s *Spec) { s.EventFields = []string{"os", "revenu"} }, []string{"events.fields[1]", `did you mean "revenue"?`}},
		{"property among the fields", func(s *Spec) { s.EventFields = []string{"total"} }, []string{"events.fields[0]", "event properties go into events.properties"}},
		{"page_views", func(s *Spec) { s.PageViews = "pages" }, []string{"events.page_views", `did you mean "page"?`}},
		{"user_property_values", func(s *Spec) { s.UserPropertyValues = "text" }, []string{"events.user_property_values", "use one of json, string"}},
		{"on_unset", func(s *Spec) { s.OnUnset = "delete" }, []string{"users.on_unset", "use one of clear, keep"}},
		{"convert", func(s *Spec) { s.UserConvert = map[string]string{"a": "iso"} }, []string{"users.convert.a", `"unix"`}},
		{"convert a path", func(s *Spec) { s.UserConvert = map[string]string{"user.a": "unix"} }, []string{"users.convert.user.a", `did you mean "a"?`}},
		{"rename a glob", func(s *Spec) { s.UserRename = map[string]string{"a*": "b"} }, []string{"users.rename.a*", "whole names"}},
		{"rename to nothing", func(s *Spec) { s.EventRename = map[string]string{"a": ""} }, []string{"events.rename.a", "use exclude"}},
		{"two of one name", func(s *Spec) { s.EventRename = map[string]string{"a": "x", "b": "x"} }, []string{"events.rename.b", `already is the new name of "a"`}},
		{"renamed onto a chosen one", func(s *Spec) { s.UserProperties, s.UserRename = []string{"a", "b"}, map[string]string{"a": "b"} },
			[]string{"users.rename.a", `"b" is itself chosen`}},
		{"several at once", func(s *Spec) { s.Identifier, s.OnUnset, s.Select[0].Event = "", "x", nil },
			[]string{"identifier", "is required", "select[0].event", "is required", "users.on_unset", "use one of"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := everything()
			test.change(&spec)
			rules, err := Compile(spec)
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok || rules != nil {
				t.Fatalf("got %v, %v", rules, err)
			}
			mistakes := joined.Unwrap()
			if len(mistakes) != len(test.want)/2 {
				t.Errorf("got %d mistakes: %v", len(mistakes), err)
			}
			for i, m := range mistakes {
				mistake, ok := errors.AsType[*SpecError](m)
				if !ok || 2*i+1 >= len(test.want) || mistake.Path != test.want[2*i] || !strings.Contains(mistake.Message, test.want[2*i+1]) {
					t.Errorf("got %v, want %q", m, test.want)
				}
			}
		})
	}
}

func TestCompileTakes(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Spec)
	}{
		{"the least", func(*Spec) {}},
		{"users alone need no select", func(s *Spec) { s.SendEvents, s.Select = false, nil }},
		{"a property whose name has dots", func(s *Spec) { s.Identifier, s.UserProperties = "user.address.city", []string{"address.city"} }},
		{"two properties that change names", func(s *Spec) {
			s.UserProperties, s.UserRename = []string{"a", "b"}, map[string]string{"a": "b", "b": "a"}
		}},
		{"every word", func(s *Spec) {
			s.IdentifierKind, s.PageViews, s.UserPropertyValues, s.OnUnset, s.Select[0].Action = "cio_id", "page", "string", "keep", "send"
			s.EventFields = builtins
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := everything()
			test.change(&spec)
			if _, err := Compile(spec); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNames(t *testing.T) {
	rules, err := Compile(Spec{Identifier: "user.ref", SendEvents: true, SendUsers: true,
		Select: []SelectSpec{{Event: []string{"*"}, Where: []WhereSpec{{"user.plan", "is", "pro"}, {"event.total", ">", int64(1)}, {"user_id", "is set", nil}},
			Properties: []string{"of the event"}}},
		EventProperties: []string{"total"}, EventUserProperties: []string{"city"}, UserProperties: []string{"email", "a_*"}, UserExclude: []string{"a_b"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"ref": true, "plan": true, "city": true, "email": true, "a_x": true, "a_b": true,
		"total": false, "of the event": false, "user_id": false, "": false, "other": false} {
		if got := rules.Names(name); got != want {
			t.Errorf("Names(%q) = %v", name, got)
		}
	}
}

func TestIdentifierKey(t *testing.T) {
	ids := []Identifier{{"email", "Ada@Example.com"}, {"email", "ada@example.com"}, {"id", "Ada@Example.com"}, {"id", "ada@example.com"}, {"cio_id", "7"}, {"id", "7"}}
	keys := map[string]bool{}
	for _, id := range ids {
		keys[id.Key()] = true
	}
	if len(keys) != 5 || ids[0].Key() != ids[1].Key() {
		t.Errorf("got %v: only the two spellings of one email are one person", slices.Sorted(maps.Keys(keys)))
	}
}

func TestMapReportsDamage(t *testing.T) {
	spec := everything()
	spec.EventProperties, spec.EventUserProperties, spec.UserProperties = []string{"*"}, []string{"*"}, []string{"*"}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Record{
		{Raw: []byte(`{"event_type":"A"`), Properties: []byte("{}")},
		{Raw: []byte(`{"event_type":"A"}`), Properties: []byte(`{"a":`)},
		{Raw: nil, Properties: []byte("{}")},
		{Raw: []byte(`[]`), Properties: []byte("{}")},
	} {
		if d, err := rules.Map(&r, Identifier{"id", "x"}, nil); err == nil {
			t.Errorf("%s %s: got %v", r.Raw, r.Properties, d)
		}
		rules.NoIdentifier(&r, "no_identifier")
	}
}

// What cannot be read of the past, because a newer program wrote it or it was damaged, counts as no past.
func TestUnreadablePast(t *testing.T) {
	spec := everything()
	spec.UserProperties = []string{"plan"}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Raw: []byte(`{"event_type":"$identify"}`), Properties: []byte(`{"plan":"pro"}`), Received: 5000}
	first, err := rules.Map(&r, Identifier{"id", "x"}, nil)
	if err != nil || len(first.Operations) != 1 {
		t.Fatal(first, err)
	}
	for n := range first.Sent {
		d, err := rules.Map(&r, Identifier{"id", "x"}, first.Sent[:n])
		if err != nil || n != 2 && len(d.Operations) != 1 {
			t.Errorf("the first %d bytes: got %v, %v", n, d, err)
		}
	}
	newer := append([]byte{sentVersion2 + 1}, first.Sent[1:]...)
	if d, err := rules.Map(&r, Identifier{"id", "x"}, newer); err != nil || !bytes.Equal(d.Sent, first.Sent) {
		t.Errorf("a newer form: got %v, %v", d, err)
	}
	if got := Refused(newer, "attributes.plan"); !bytes.Equal(got, newer) {
		t.Errorf("a newer form was changed to %x", got)
	}
	if got := Refused(nil, ""); got != nil {
		t.Errorf("no past became %x", got)
	}
}

func TestRefusedNamesNestedAttributes(t *testing.T) {
	spec := everything()
	spec.UserProperties = []string{"*"}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Raw: []byte(`{"event_type":"$identify"}`), Properties: []byte(`{"a":{"b":1},"a.b":2,"c":3}`)}
	tests := []struct{ field, want string }{
		{"attributes.a.b", `{"a":{"b":1},"c":3}`},
		{"attributes.a.b.c", `{"a":{"b":1},"c":3}`},
		{"attributes.a.x", `{"a.b":2,"c":3}`},
		{"attributes.c", `{"a":{"b":1},"a.b":2}`},
		{"attributes.zz", ""},
		{"identifiers.id", ""},
		{"", ""},
	}
	for _, test := range tests {
		d, err := rules.Map(&r, Identifier{"id", "x"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d, err = rules.Map(&r, Identifier{"id", "x"}, Refused(d.Sent, test.field)); err != nil {
			t.Fatal(err)
		}
		got := ""
		if len(d.Operations) > 0 {
			got = string(member(d.Operations[0].Body, []byte("attributes")))
		}
		if got != test.want {
			t.Errorf("%q refused: then sent %s, want %s", test.field, got, test.want)
		}
	}
}

// What was refused is sent once more when a dead letter is tried again, and only then; the time never goes back.
func TestUnrefused(t *testing.T) {
	record := func(properties string, received int64) *Record {
		return &Record{Raw: []byte(`{"event_type":"$identify"}`), Properties: []byte(properties), Received: received}
	}
	for _, test := range []struct {
		name   string
		chosen []string
		refuse string // field
		now    string // properties when it is tried again
		want   string // the attributes it is sent, "" = no identify
	}{
		{"the refused one, and those it took along", []string{"a", "b"}, "attributes.a", `{"a":1,"b":2}`, `{"a":1,"b":2}`},
		{"all of them", []string{"a", "b"}, "", `{"a":1,"b":2}`, `{"a":1,"b":2}`},
		{"as they are now", []string{"a", "b"}, "attributes.a", `{"a":3,"b":2}`, `{"a":3,"b":2}`},
		{"one is no more", []string{"a", "b"}, "attributes.a", `{"b":2}`, `{"b":2,"a":""}`},
		{"an identify without values", nil, "identifiers.id", `{"a":1}`, `{}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := everything()
			spec.UserProperties = test.chosen
			rules, err := Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			id := Identifier{"id", "x"}
			first, err := rules.Map(record(`{"a":1,"b":2}`, 9_000_000), id, nil)
			if err != nil || len(first.Operations) != 1 {
				t.Fatal(first, err)
			}
			refused := Refused(first.Sent, test.refuse)
			d, err := rules.Map(record(test.now, 5_000_000), id, Unrefused(refused))
			if err != nil {
				t.Fatal(err)
			}
			if len(d.Operations) != 1 {
				t.Fatalf("%d operations: %s", len(d.Operations), d.UserReason)
			}
			body := d.Operations[0].Body
			if got := string(member(body, []byte("attributes"))); got != test.want {
				t.Errorf("sent %s, want %s", got, test.want)
			}
			if at := string(member(body, []byte("timestamp"))); at != "9000" {
				t.Errorf("at %s, after one at 9000", at)
			}
			// Accepted now, nothing of it is sent a second time, tried again or not.
			for _, known := range [][]byte{d.Sent, Unrefused(d.Sent)} {
				if test.chosen == nil && len(known) > 0 && known[0] == sentNothing {
					continue // an identify without values leaves no trace of whether it was refused
				}
				if d, err := rules.Map(record(test.now, 9_500_000), id, known); err != nil || len(d.Operations) != 0 {
					t.Errorf("sent once more: %s, %v", d.Operations[0].Body, err)
				}
			}
		})
	}
	for _, unread := range [][]byte{nil, {}, {77}} {
		if got := Unrefused(unread); !bytes.Equal(got, unread) {
			t.Errorf("%x became %x", unread, got)
		}
	}
}

// TestPeopleConverge plays Customer.io: it keeps a person, takes identifies or refuses them for a value it does not like.
// Once it has had its say, the person is what the chosen properties are, but for the values it refused.
func TestPeopleConverge(t *testing.T) {
	spec := everything()
	spec.UserProperties, spec.UserRename = []string{"a", "b", "g*"}, map[string]string{"a": "A"}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	values := rapid.SampledFrom([]string{"", `"x"`, `"y"`, `"bad"`, `1`, `[1]`, `""`})
	rapid.Check(t, func(t *rapid.T) {
		person, known := map[string]string{}, []byte(nil)
		last := int64(0)
		for range rapid.IntRange(1, 5).Draw(t, "records") {
			state, want := "", map[string]string{}
			for _, name := range []string{"a", "b", "g1", "g2", "other"} {
				value := values.Draw(t, name)
				if value == "" {
					continue
				}
				state += fmt.Sprintf(`,"%s":%s`, name, value)
				if sentAs := map[string]string{"a": "A", "b": "b", "g1": "g1", "g2": "g2"}[name]; sentAs != "" {
					want[sentAs] = value
				}
			}
			r := Record{Raw: []byte(`{"event_type":"$identify"}`), Properties: []byte("{" + strings.TrimPrefix(state, ",") + "}"),
				Received: rapid.Int64Range(0, 10_000).Draw(t, "received")}
			for try := 0; ; try++ {
				d, err := rules.Map(&r, Identifier{"id", "x"}, known)
				if err != nil {
					t.Fatal(err)
				}
				if len(d.Operations) == 0 {
					break
				}
				if try == 6 {
					t.Fatalf("%s is sent for ever: %s", r.Properties, d.Operations[0].Body)
				}
				at, _ := wholeNumber(member(d.Operations[0].Body, []byte("timestamp")))
				if at < last {
					t.Fatalf("an identify of %d follows one of %d", at, last)
				}
				last, known = at, d.Sent
				attributes := member(d.Operations[0].Body, []byte("attributes"))
				refused := ""
				for w := walkObject(attributes); w.next(); {
					if string(w.value) == `"bad"` {
						refused = string(plainText(w.name))
					}
				}
				if refused != "" {
					known = Refused(d.Sent, "attributes."+refused)
					continue
				}
				for w := walkObject(attributes); w.next(); {
					if person[string(plainText(w.name))] = string(w.value); string(w.value) == `""` {
						delete(person, string(plainText(w.name)))
					}
				}
			}
			for _, name := range []string{"A", "b", "g1", "g2"} {
				value := want[name]
				if value == `""` {
					value = ""
				}
				if value != `"bad"` && person[name] != value {
					t.Fatalf("after %s the person's %s is %q", r.Properties, name, person[name])
				}
			}
		}
	})
}

func TestRulesServeManyAtOnce(t *testing.T) {
	spec := everything()
	spec.EventProperties, spec.UserProperties = []string{"*"}, []string{"*"}
	rules, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	record := benchmarkRecord()
	want, err := rules.Map(&record, Identifier{"id", "x"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for range 100 {
				other := Record{Raw: []byte(`{"event_type":"A"}`), Properties: fmt.Appendf(nil, `{"n":%d}`, i)}
				if _, err := rules.Map(&other, Identifier{"id", "y"}, nil); err != nil {
					t.Error(err)
				}
				got, err := rules.Map(&record, Identifier{"id", "x"}, nil)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	group.Wait()
}
