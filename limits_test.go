package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

func requestOf(events ...string) string {
	return `{"api_key":"` + recordings.Key + `","options":{"min_id_length":1},"events":[` + strings.Join(events, ",") + `]}`
}

func countOf(list []admin.Reason, kind, reason string) (n uint64) {
	for _, r := range list {
		if r.Kind == kind && r.Reason == reason {
			n += r.Count
		}
	}
	return n
}

// What devices did before anybody logged in, by each word of the key, with the daemon killed before the login.
func TestAnonymousEventsOfADevice(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		keys     string
		merged   bool   // the person has them in the end
		filtered uint64 // events, as no_identifier
		dead     uint64
		explains string // what explain says of one of them
	}{
		{keys: `anonymous = "filter"`, filtered: 5, explains: "no_identifier"},
		{keys: `anonymous = "dead_letter"`, dead: 5, explains: "no_identifier"},
		{keys: `anonymous = "send"`, merged: true, explains: "/api/v1/events"},
		{keys: "anonymous = \"send\"\nanonymous_api = \"v2\"", merged: true, explains: `"identifiers":{"anonymous_id":"device-0001"}`},
	} {
		t.Run(strings.ReplaceAll(test.keys, "\n", " "), func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			edit(t, r, `identifier   = "user_id"`, "identifier   = \"user_id\"\n"+test.keys)
			up(t, r)
			event := func(user string, seq int) string {
				return fmt.Sprintf(`{"event_type":"Order Completed","device_id":"device-0001"%s,"insert_id":"i-%d","event_properties":{"seq":%d}}`, user, seq, seq)
			}
			for seq := range 5 {
				accepted(t, r, requestOf(event("", seq+1)))
			}
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			up(t, r)
			accepted(t, r, requestOf(event(`,"user_id":"user-000001","user_properties":{"plan":"pro"}`, 6), event("", 7)))
			accepted(t, r, requestOf(event(`,"user_id":"user-000002"`, 8), event("", 9)))
			snap := drained(t, r)
			y := only(t, snap)
			if !y.Books.Balanced {
				t.Errorf("books: %+v %+v", y.Books, y.Totals)
			}
			if got := countOf(y.Filtered, "event", "no_identifier"); got != test.filtered {
				t.Errorf("%d events are filtered: %+v", got, y.Filtered)
			}
			if got := countOf(y.Dead, "event", "no_identifier"); got != test.dead || y.Depth.Dead != test.dead {
				t.Errorf("%d events are dead: %+v", got, y.Dead)
			}
			first, _ := r.Sandbox.Person("id", "user-000001")
			second, _ := r.Sandbox.Person("id", "user-000002")
			want, anonymous := 2, ""
			if test.merged {
				want, anonymous = 7, `"device-0001"`
			}
			if len(first.Events) != want || len(second.Events) != 2 || string(first.Attributes["anonymous_id"]) != anonymous || second.Attributes["anonymous_id"] != nil {
				t.Errorf("the first user has %d events and the anonymous_id %s, the second %d and %s", len(first.Events), first.Attributes["anonymous_id"],
					len(second.Events), second.Attributes["anonymous_id"])
			}
			report := r.Sandbox.Report()
			if len(report.Invalid) != 0 || report.Order.OutOfOrder != 0 {
				t.Errorf("sandbox: %v %+v", report.Invalid, report.Order)
			}
			write(t, filepath.Join(r.Dir, "event.json"), `{"event_type":"Order Completed","device_id":"device-0001","insert_id":"i-x"}`)
			out := run(t, "explain", "--config", r.ConfigPath, "--new", "--json", filepath.Join(r.Dir, "event.json"))
			contains(t, out.stdout, test.explains)
			down(t, r)
		})
	}
}

// Each limit, one byte below, at it and one above, in characters of two bytes; what is beyond has its reason in queue-stats
// and in explain, and Customer.io, which checks the same by itself, has nothing to refuse.
func TestLimitsOfCustomerIO(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, `properties = ["plan", "email", "role"]`, `properties = ["*"]`)
	edit(t, r, `properties = ["seq", "total", "currency"]`, `properties = ["*"]`)
	edit(t, r, `identifier   = "user_id"`, `identifier   = "user.ref"`)
	up(t, r)
	text := func(bytes int) string { return strings.Repeat("x", bytes%2) + strings.Repeat("é", bytes/2) }
	properties := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"p%d":%d,`, i, i)
		}
		return b.String()
	}
	type wanted struct{ event, property string } // the reason of a dead event, and of a property that is left out
	number := 0
	say := func(user, name, userProperties, eventProperties string) string {
		number++
		return fmt.Sprintf(`{"event_type":%q,"user_id":"user-%d","insert_id":"i-%d","user_properties":{%s"ref":%q},"event_properties":{%s"seq":1}}`,
			name, number, number, userProperties, user, eventProperties)
	}
	for _, test := range []struct {
		name   string
		limit  int
		make   func(n int) string
		beyond wanted
	}{
		{"identifier", 150, func(n int) string { return say(text(n), "A", "", "") }, wanted{event: "identifier_too_long"}},
		{"event name", 100, func(n int) string { return say(fmt.Sprint("n", n), text(n), "", "") }, wanted{event: "event_name_too_long"}},
		{"attribute name", 150, func(n int) string { return say(fmt.Sprint("a", n), "A", `"`+text(n)+`":1,`, "") }, wanted{property: "attribute_name_too_long"}},
		{"attribute value", 1000, func(n int) string { return say(fmt.Sprint("v", n), "A", `"v":"`+text(n)+`",`, "") }, wanted{property: "attribute_value_too_long"}},
		{"attributes", 300, func(n int) string { return say(fmt.Sprint("m", n), "A", properties(n-1), "") }, wanted{property: "too_many_attributes"}},
		{"event data", 100_000, func(n int) string {
			return say(fmt.Sprint("d", n), "A", "", `"x":[`+strings.Repeat("1,", (n-17)/2)+strings.Repeat("1", 1+(n-17)%2)+`],`)
		}, wanted{event: "operation_too_large"}},
	} {
		before := only(t, stats(t, r))
		for n := test.limit - 1; n <= test.limit+1; n++ {
			event := test.make(n)
			write(t, filepath.Join(r.Dir, "event.json"), event)
			out := run(t, "explain", "--config", r.ConfigPath, "--new", "--json", filepath.Join(r.Dir, "event.json"))
			var e explanation
			if err := json.Unmarshal([]byte(out.stdout), &e); err != nil || len(e.Syncs) != 1 {
				t.Fatalf("%s, %d: %v in %s %s", test.name, n, err, out.stdout, out.stderr)
			}
			verdict, property := "", ""
			for _, op := range e.Syncs[0].Operations {
				if op.Action == "event" {
					verdict = op.Refused
				}
			}
			for _, p := range e.Syncs[0].Attributes {
				if strings.Contains(p.Why, "_too_") || strings.HasPrefix(p.Why, "too_") {
					property = p.Why
				}
			}
			want := wanted{}
			if n > test.limit {
				want = test.beyond
			}
			if got := (wanted{verdict, property}); got != want {
				t.Errorf("%s, %d: explained as %v, want %v", test.name, n, got, want)
			}
			accepted(t, r, requestOf(event))
		}
		snap := drained(t, r)
		after := only(t, snap)
		if !after.Books.Balanced {
			t.Errorf("books: %+v %+v", after.Books, after.Totals)
		}
		if reason := test.beyond.event; reason != "" {
			if n := countOf(after.Dead, "event", reason) - countOf(before.Dead, "event", reason); n != 1 {
				t.Errorf("%s: %d events are dead for it: %+v", test.name, n, after.Dead)
			}
		}
		if reason := test.beyond.property; reason != "" {
			if n := countOf(after.Filtered, "property", reason) - countOf(before.Filtered, "property", reason); n != 1 {
				t.Errorf("%s: %d properties are left out: %+v", test.name, n, after.Filtered)
			}
		}
	}
	report := r.Sandbox.Report()
	if len(report.Invalid) != 0 {
		t.Errorf("Customer.io refused %v: %s", report.Invalid, report.FirstInvalid)
	}
	if got, want := int(report.Events.Unique), 18-3; got != want {
		t.Errorf("%d events arrived, want %d", got, want)
	}
	out := run(t, "queue-stats", "--config", r.ConfigPath)
	contains(t, out.stdout, "identifier_too_long", "event_name_too_long", "operation_too_large", "attribute_value_too_long")
	down(t, r)
}

// Somebody whose properties grow beyond what Customer.io takes in one identify: it is refused whole and said so, no attribute
// that is there is cleared for want of room, and the events go on.
func TestAnIdentifyThatGrowsTooLarge(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, `properties = ["plan", "email", "role"]`, `properties = ["*"]`)
	up(t, r)
	with := func(insertID, prefix string, n, bytes int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"%s%d":%q,`, prefix, i, strings.Repeat("x", bytes))
		}
		return requestOf(fmt.Sprintf(`{"event_type":"Order Completed","user_id":"user-1","insert_id":%q,"user_properties":{%s"plan":"pro"}}`, insertID, b.String()))
	}
	accepted(t, r, with("i-1", "long", 30, 900))
	balanced(t, drained(t, r))
	accepted(t, r, with("i-2", "short", 10, 700))
	accepted(t, r, requestOf(`{"event_type":"Order Completed","user_id":"user-1","insert_id":"i-3"}`))
	y := only(t, drained(t, r))
	if n := countOf(y.Dead, "user", "operation_too_large"); n != 1 {
		t.Errorf("%d updates are refused: %+v", n, y.Dead)
	}
	person, _ := r.Sandbox.Person("id", "user-1")
	for i := range 30 {
		if name := fmt.Sprint("long", i); len(person.Attributes[name]) != 902 {
			t.Errorf("%s is %q in Customer.io", name, person.Attributes[name])
		}
	}
	if len(person.Events) != 3 {
		t.Errorf("%d events have arrived, want 3", len(person.Events))
	}
	down(t, r)
}
