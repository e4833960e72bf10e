package mapping

import (
	"strings"
	"testing"
)

// What becomes of events without an identifier, by each word of the key.
func TestAnonymous(t *testing.T) {
	of := func(user, device string, sole bool) *Record {
		r := eventOf(user, device, "A", `{"n":1}`)
		r.Sole = sole
		return r
	}
	v1 := `{"name":"A","id":"00000000000000000000000000","timestamp":2000000000,"anonymous_id":"device-1","data":{"n":1}}`
	v2 := `{"type":"person","action":"event","identifiers":{"anonymous_id":"device-1"},"name":"A","id":"00000000000000000000000000","timestamp":2000000000,"attributes":{"n":1}}`
	for _, test := range []struct {
		name              string
		anonymous, api    string
		identifier        string
		record            *Record
		reason            string // why there is no event
		refused           string
		path, body        string
		eventsOff, noRule bool
	}{
		{name: "filter, the default", record: of("", "device-1", false), reason: "no_identifier"},
		{name: "filter", anonymous: "filter", record: of("", "device-1", false), reason: "no_identifier"},
		{name: "dead_letter", anonymous: "dead_letter", record: of("", "device-1", false), refused: "no_identifier"},
		{name: "dead_letter, an empty text", anonymous: "dead_letter", identifier: "event.empty", record: of("u", "", false), refused: "no_identifier"},
		{name: "dead_letter, events that are not sent anyhow", anonymous: "dead_letter", record: of("", "device-1", false), noRule: true, reason: "not_selected"},
		{name: "dead_letter, no events", anonymous: "dead_letter", record: of("", "device-1", false), eventsOff: true, reason: "events_off"},
		{name: "send", anonymous: "send", record: of("", "device-1", false), path: "/api/v1/events", body: v1},
		{name: "send by v1", anonymous: "send", api: "v1", record: of("", "device-1", false), path: "/api/v1/events", body: v1},
		{name: "send by v2", anonymous: "send", api: "v2", record: of("", "device-1", false), body: v2},
		{name: "send, events that are not sent anyhow", anonymous: "send", record: of("", "device-1", false), noRule: true, reason: "not_selected"},
		{name: "send, nobody and no device", anonymous: "send", record: of("", "", false), reason: "no_identifier"},
		{name: "send, a user without a device", anonymous: "send", identifier: "user.email", record: of("u", "", false), reason: "no_identifier"},
		{name: "send, the device's first user, not known at Customer.io yet", anonymous: "send", identifier: "user.email", record: of("u", "device-1", true), path: "/api/v1/events", body: v1},
		{name: "send, a later user, who would count as the first", anonymous: "send", identifier: "user.email", record: of("u", "device-1", false), reason: "no_identifier"},
		{name: "send, a device_id that is too long", anonymous: "send", record: of("", strings.Repeat("d", 151), false), path: "/api/v1/events", refused: "identifier_too_long"},
		{name: "send, an identifier that is no text", anonymous: "send", identifier: "event.list", record: of("u", "device-1", true), reason: "identifier_not_text"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rules := compiled(t, func(s *Spec) {
				s.Anonymous, s.AnonymousAPI = test.anonymous, test.api
				s.EventProperties = []string{"n"}
				if test.identifier != "" {
					s.Identifier = test.identifier
				}
				if test.noRule {
					s.Select = []SelectSpec{{Event: []string{"B"}}}
				}
				s.SendEvents = !test.eventsOff
			})
			test.record.Raw = []byte(strings.Replace(string(test.record.Raw), `"n":1`, `"n":1,"empty":" ","list":[1]`, 1))
			d := mapped(t, rules, test.record, nil)
			if d.EventReason != test.reason {
				t.Errorf("no event because %q, want %q", d.EventReason, test.reason)
			}
			if test.reason != "" {
				if len(d.Operations) != 0 {
					t.Errorf("and yet %s", d.Operations[0].Body)
				}
				return
			}
			if len(d.Operations) != 1 || whyRefusedOf(d.Operations[0]) != test.refused || d.Operations[0].Path() != test.path {
				t.Fatalf("got %+v", d)
			}
			if test.body != "" && string(d.Operations[0].Body) != test.body {
				t.Errorf("sent\n%s, want\n%s", d.Operations[0].Body, test.body)
			}
		})
	}
}

// An identify brings the anonymous_id of each device whose first user the person is, once.
func TestAnonymousIDOfIdentifies(t *testing.T) {
	for _, chosen := range [][]string{nil, {"plan"}} {
		rules := compiled(t, func(s *Spec) { s.Anonymous, s.UserProperties = "send", chosen })
		var earlier []byte
		step := func(what, device string, sole bool, want string, change ...func(*Record)) {
			t.Helper()
			r := eventOf("u", device, "$identify", "{}")
			r.Sole, r.Properties = sole, []byte(`{"plan":"pro"}`)
			for _, c := range change {
				c(r)
			}
			d := mapped(t, rules, r, earlier)
			got := "-"
			if len(d.Operations) == 1 {
				got = string(valueOf(member(member(d.Operations[0].Body, []byte("attributes")), []byte("anonymous_id"))).text)
			}
			if got != want {
				t.Errorf("%v, %s: anonymous_id %q, want %q", chosen, what, got, want)
			}
			if d.Sent != nil {
				earlier = d.Sent
			}
		}
		step("not its first user", "d1", false, "")
		step("as before", "d1", false, "-")
		step("properties of the past", "d2", true, "-", func(r *Record) { r.Past = true })
		step("the first user", "d2", true, "d2")
		step("as before", "d2", true, "-")
		step("another device", "d3", true, "d3")
		step("the first again", "d2", true, "-")
		step("no device", "", false, "-")
		step("a device_id that is too long to have had events", strings.Repeat("d", 151), true, "-")
		good := earlier
		for _, field := range []string{"", "identifiers.id", "attributes.anonymous_id"} {
			earlier = Refused(good, field)
			step("refused for "+field+", and not told again by itself", "d3", true, map[bool]string{false: "-", true: ""}[field == "attributes.anonymous_id" && chosen != nil])
			earlier = Unrefused(Refused(good, field))
			step("refused for "+field+", and tried again", "d3", true, "d3")
			if _, has, _, ok := LastSent(earlier); !ok || len(has) > len(chosen) {
				t.Errorf("shown as %q", has)
			}
		}
		earlier = good
		earlier = Refused(earlier, "attributes.plan")
		if chosen != nil {
			step("refused for another attribute: told once more", "d3", true, "d3")
		}
		for i := range 3 * maxDevices {
			step("many devices", "m"+string(rune('A'+i)), true, "m"+string(rune('A'+i)))
		}
		if len(earlier) > 4000 {
			t.Errorf("what is remembered of them has %d bytes", len(earlier))
		}
	}
	rules := compiled(t, func(s *Spec) { s.Anonymous, s.UserProperties = "filter", nil })
	r := eventOf("u", "d1", "$identify", "{}")
	r.Sole = true
	if d := mapped(t, rules, r, nil); strings.Contains(string(d.Operations[0].Body), "anonymous_id") {
		t.Errorf("with filter: %s", d.Operations[0].Body)
	}
	// Somebody who names the attribute has it.
	rules = compiled(t, func(s *Spec) { s.Anonymous, s.UserProperties = "send", []string{"anonymous_id"} })
	r.Properties = []byte(`{"anonymous_id":"mine"}`)
	d := mapped(t, rules, r, nil)
	if got := string(member(d.Operations[0].Body, []byte("attributes"))); got != `{"anonymous_id":"mine"}` {
		t.Errorf("named: %s", got)
	}
	if d = mapped(t, rules, r, d.Sent); len(d.Operations) != 0 {
		t.Errorf("and again: %s", d.Operations[0].Body)
	}
}

// What was sent is stored. A program of before reads what says nothing new, and takes the rest for never.
func TestVersionsOfSent(t *testing.T) {
	plain := compiled(t, nil)
	_, d := userUpdate(t, plain, `{"a":1}`, nil)
	if d.Sent[0] != 1 {
		t.Errorf("a plain one is of version %d", d.Sent[0])
	}
	_, large := userUpdate(t, plain, `{"a":1,"b":"`+strings.Repeat("x", 1001)+`"}`, nil)
	device := eventOf("u", "d", "$identify", "{}")
	device.Sole = true
	with := mapped(t, compiled(t, func(s *Spec) { s.Anonymous = "send" }), device, nil)
	for what, data := range map[string][]byte{"left out": large.Sent, "device": with.Sent} {
		if data[0] != 2 {
			t.Errorf("%s: version %d", what, data[0])
		}
		if _, has, _, ok := LastSent(data); !ok || len(has) > 1 {
			t.Errorf("%s: shown as %q", what, has)
		}
	}
	// As written by the version before.
	old := []byte{1, 0x80, 0xa8, 0xd6, 0xb9, 0x07, 1}
	old = append(append(old, d.Sent[len(d.Sent)-10:len(d.Sent)-2]...), 1, 'a')
	if _, again := userUpdate(t, plain, `{"a":1}`, old); len(again.Operations) != 0 {
		t.Errorf("what an older one has written is not known: %s", again.Operations[0].Body)
	}
}
