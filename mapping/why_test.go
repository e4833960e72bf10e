package mapping

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// agrees checks that what Explain tells leads to the decision that Map has made.
func agrees(t rapid.TB, r *Rules, record *Record, earlier []byte) {
	t.Helper()
	why, err := r.Explain(record, earlier)
	if err != nil {
		t.Fatal(err)
	}
	id, none := r.Identifier(record)
	var d Decision
	if none != "" {
		d = r.NoIdentifier(record, none)
	} else if d, err = r.Map(record, id, earlier); err != nil {
		t.Fatal(err)
	}
	fail := func(what string) { t.Errorf("%s: decided %+v, explained by %+v, about %s", what, d, why, record.Raw) }

	// The event, by the rules.
	event := reasonNotSelected
	for i, rule := range why.Rules {
		holds := rule.Event && !slices.ContainsFunc(rule.Where, func(w WhereWhy) bool { return !w.Matches })
		if rule.Decides != holds || rule.Decides && i != len(why.Rules)-1 {
			fail("a rule")
		}
		switch {
		case rule.Decides && rule.Drops:
			event = reasonDropped
		case rule.Decides && none != "" && len(d.Operations) == 0:
			event = none
		case rule.Decides:
			event = ""
		}
	}
	switch d.EventReason {
	case reasonEventsOff, reasonIdentify, reasonGroupIdentify:
		if len(why.Rules) > 0 {
			fail("the event")
		}
	default:
		if d.EventReason != event {
			fail("the event")
		}
	}

	// What is sent, by the properties.
	sentWith := func(action func(string) bool) (names []string) {
		for _, o := range d.Operations {
			if !action(o.Action) {
				continue
			}
			attributes := member(o.Body, []byte("attributes"))
			if attributes == nil {
				attributes = member(o.Body, []byte("data"))
			}
			if attributes == nil {
				continue
			}
			for w := walkObject(attributes); w.next(); {
				names = append(names, string(plainText(w.name)))
			}
		}
		slices.Sort(names)
		return names
	}
	explained := func(list []PropertyWhy, sent ...string) (names []string) {
		for _, p := range list {
			if slices.Contains(sent, p.Why) {
				names = append(names, p.As)
			}
		}
		slices.Sort(names)
		return names
	}
	if got, want := explained(why.EventProperties, whySent), sentWith(func(a string) bool { return a != "identify" }); !slices.Equal(got, want) {
		fail("the event's properties")
	}
	switch never := d.UserReason == reasonUsersOff || d.UserReason == reasonSkipSync || d.UserReason == reasonPast; {
	case never && len(why.Attributes) > 0:
		fail("attributes that no update carries")
	case none == "" && !never:
		changes := slices.ContainsFunc(why.Attributes, func(p PropertyWhy) bool { return p.Changes() })
		if r.users.chooser.isEmpty() { // then being new is enough
			var before sent
			before.decode(earlier)
			changes = changes || !before.known
		}
		if changes != (d.UserReason == "") {
			fail("the user update")
		}
	}
	if d.UserReason == "" {
		got := explained(why.Attributes, whyNew, whyChanged, whyUnsure, whySame, whyCleared)
		if want := sentWith(func(a string) bool { return a == "identify" }); !slices.Equal(got, want) {
			fail("the attributes")
		}
	}
}

// Explain agrees with Map about every event of the pairs, at every point of each story.
func TestExplainAgreesOnPairs(t *testing.T) {
	names, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(names) == 0 {
		t.Fatal("no pairs", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".in.json"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var p pair
			if err := json.Unmarshal(data, &p, json.RejectUnknownMembers(true), jsontext.AllowInvalidUTF8(true)); err != nil {
				t.Fatal(err)
			}
			rules, err := Compile(p.spec(t))
			if err != nil {
				t.Fatal(err)
			}
			p.each(t, rules, func(record *Record, earlier []byte) { agrees(t, rules, record, earlier) })
		})
	}
}

// Explain agrees with Map about rules, events and pasts of all sorts.
func TestExplainAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b", "c", "email", "plan", "cio_x", "a*", "*"})
		names := rapid.SliceOfN(name, 0, 3)
		bare := rapid.SampledFrom([]string{"a", "b", "c", "email"})
		rename := rapid.MapOfN(bare, rapid.SampledFrom([]string{"a", "x", "y"}), 0, 2)
		op := rapid.SampledFrom(operators)
		spec := Spec{
			Identifier: rapid.SampledFrom([]string{"user_id", "user.email", "event.a"}).Draw(t, "identifier"),
			SendEvents: rapid.IntRange(0, 5).Draw(t, "events.send") > 0, SendUsers: rapid.IntRange(0, 5).Draw(t, "users.send") > 0,
			EventProperties: names.Draw(t, "events.properties"), EventUserProperties: names.Draw(t, "events.user_properties"),
			EventExclude: names.Draw(t, "events.exclude"), EventFields: []string{"platform", "revenue"}, EventRename: rename.Draw(t, "events.rename"),
			UserProperties: names.Draw(t, "users.properties"), UserExclude: names.Draw(t, "users.exclude"), UserRename: rename.Draw(t, "users.rename"),
			OnUnset: rapid.SampledFrom([]string{"clear", "keep"}).Draw(t, "on_unset"),
		}
		for range rapid.IntRange(1, 3).Draw(t, "rules") {
			rule := SelectSpec{Event: []string{rapid.SampledFrom([]string{"*", "A", "session_start", "[Amplitude] *"}).Draw(t, "name")},
				Action: rapid.SampledFrom([]string{"send", "drop"}).Draw(t, "action"), Properties: names.Draw(t, "properties")}
			for range rapid.IntRange(0, 2).Draw(t, "where") {
				w := WhereSpec{Path: rapid.SampledFrom([]string{"event.a", "user.plan", "event_type", "revenue"}).Draw(t, "path"), Op: op.Draw(t, "op")}
				switch w.Op {
				case "is set", "is not set":
				case "<", "<=", ">", ">=":
					w.Value = int64(1)
				default:
					w.Value = rapid.SampledFrom([]any{"A", "1", []any{"x", "session_start"}}).Draw(t, "value")
				}
				rule.Where = append(rule.Where, w)
			}
			spec.Select = append(spec.Select, rule)
		}
		rules, err := Compile(spec)
		if err != nil {
			t.Skip("not a configuration")
		}
		var earlier []byte
		for range rapid.IntRange(1, 4).Draw(t, "records") {
			value := rapid.SampledFrom([]string{`1`, `"x"`, `null`, `"A"`, `[1,"x"]`, `""`, `2.0`})
			object := func(label string) string {
				m := rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c", "email", "plan", "cio_x", "recipient", "x"}), value, 0, 5).Draw(t, label)
				var members []string
				for k, v := range m {
					members = append(members, `"`+k+`":`+v)
				}
				slices.Sort(members)
				return "{" + strings.Join(members, ",") + "}"
			}
			raw := `{"event_type":"` + rapid.SampledFrom([]string{"A", "B", "$identify", "session_start"}).Draw(t, "event") +
				`","platform":"Web","event_properties":` + object("event_properties") + `}`
			if rapid.IntRange(0, 8).Draw(t, "skip") == 0 {
				raw = strings.Replace(raw, "{", `{"$skip_user_properties_sync":true,`, 1)
			}
			record := &Record{Project: "app", Received: 1_700_000_000_000, UserID: "anna@mail.example", Properties: []byte(object("user_properties")), Raw: []byte(raw),
				Past: rapid.IntRange(0, 8).Draw(t, "past") == 0}
			agrees(t, rules, record, earlier)
			if id, none := rules.Identifier(record); none == "" {
				if d, err := rules.Map(record, id, earlier); err == nil && d.Sent != nil {
					earlier = d.Sent
					switch rapid.IntRange(0, 4).Draw(t, "refused") {
					case 0:
						earlier = Refused(earlier, "attributes.a")
					case 1:
						earlier = Unrefused(Refused(earlier, ""))
					}
				}
			}
		}
	})
}
