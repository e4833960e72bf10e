package sandbox

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

const someULID = "01HT8Z5W3V9Q4R6S7T8V9WXYZA"

// A step is one request: "METHOD path body". {cio 1} becomes the cio_id of the
// first person made.
func (r *rig) steps(steps ...string) {
	r.t.Helper()
	for _, step := range steps {
		for n := range 3 {
			step = strings.ReplaceAll(step, fmt.Sprintf("{cio %d}", n+1), fmt.Sprintf("0001%08x", n+1))
		}
		f := strings.SplitN(step, " ", 3)
		f = append(f, "", "")
		r.must(200, f[0], f[1], f[2])
	}
}

// Whom a request is about, told as requests and the people there are afterwards.
// All of them answer 200, whether Customer.io applies them or not.
func TestIdentityResolution(t *testing.T) {
	const path = "/api/v1/customers/"
	v2 := func(identifiers, attributes string) string {
		return `POST /api/v2/entity {"type":"person","action":"identify","identifiers":` + identifiers + `,"attributes":` + attributes + `}`
	}
	for _, c := range []struct {
		name   string
		o      Options
		steps  []string
		people string // id/email attributes, in order of creation
		notes  map[string]int64
	}{
		{"a known id is updated, other attributes stay", Options{},
			[]string{"PUT " + path + `1 {"a":1,"b":2}`, "PUT " + path + `1 {"b":3,"c":9007199254740993}`},
			`1/- {"a":1,"b":3,"c":9007199254740993}`, nil},
		{"ids are told apart by case, emails are not", Options{},
			[]string{"PUT " + path + `u {"n":1}`, "PUT " + path + `U {"n":2}`, "PUT " + path + `A@Example.com {"n":3}`, v2(`{"email":"a@example.COM"}`, `{"n":4}`)},
			`u/- {"n":1}; U/- {"n":2}; -/A@Example.com {"n":4}`, nil},
		{"a number is the id of its digits", Options{},
			[]string{v2(`{"id":42}`, `{"n":1}`), "PUT " + path + `42 {"n":2}`},
			`42/- {"n":2}`, nil},
		{"unknown path, known email in the body: that person gets the id", Options{},
			[]string{"PUT " + path + `a@example.com {"n":1}`, "PUT " + path + `1 {"email":"a@example.com","n":2}`},
			`1/a@example.com {"n":2}`, nil},
		{"unknown email, known id in the body: that person gets the email", Options{},
			[]string{"PUT " + path + `1 {"n":1}`, v2(`{"email":"a@example.com"}`, `{"id":"1","n":2}`)},
			`1/a@example.com {"n":2}`, nil},
		{"unknown id, the email's owner has another id: nothing is applied", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com","n":1}`, "PUT " + path + `2 {"email":"a@example.com","n":2}`},
			`1/a@example.com {"n":1}`, map[string]int64{"failed_change:identifier_taken": 1}},
		{"two different people: the conflicting attribute alone is left out", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "PUT " + path + `2 {}`, "PUT " + path + `2 {"email":"a@example.com","n":2}`},
			`1/a@example.com {}; 2/- {"n":2}`, map[string]int64{"failed_change:email_belongs_to_another_person": 1}},
		{"an email that is set does not change by id", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "PUT " + path + `1 {"email":"b@example.com","n":2}`},
			`1/a@example.com {"n":2}`, map[string]int64{"failed_change:email_already_set": 1}},
		{"but does where the workspace allows it", Options{EmailMayChange: true},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "PUT " + path + `1 {"email":"b@example.com"}`, "PUT " + path + `a@example.com {}`},
			`1/b@example.com {}; -/a@example.com {}`, nil},
		{"and by cio_id, on v1 and v2", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "PUT " + path + `cio_{cio 1} {"email":"b@example.com"}`, v2(`{"cio_id":"{cio 1}"}`, `{"id":"9"}`)},
			`9/b@example.com {}`, nil},
		{"a different case of the same email is no change", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "PUT " + path + `1 {"email":"A@Example.com"}`}, `1/a@example.com {}`, nil},
		{"an unknown cio_id is dropped", Options{},
			[]string{"PUT " + path + `cio_ffff {"n":1}`, v2(`{"cio_id":"cio_ffff"}`, `{"n":1}`)},
			``, map[string]int64{"unknown_cio_id_dropped": 2, "cio_id_with_prefix": 1}},
		{"a foreign id that begins with cio_ is misread on v1, not on v2", Options{},
			[]string{"PUT " + path + `cio_7 {"n":1}`, v2(`{"id":"cio_7"}`, `{"n":2}`)},
			`cio_7/- {"n":2}`, map[string]int64{"unknown_cio_id_dropped": 1}},
		{"_update creates nobody", Options{},
			[]string{"PUT " + path + `1 {"_update":true,"n":1}`, v2(`{"id":"2"}`, `{"_update":true,"n":1}`), v2(`{"id":"3"}`, `{"n":1}`), v2(`{"id":"3"}`, `{"_update":true,"n":2}`)},
			`3/- {"n":2}`, map[string]int64{"failed_change:update_of_unknown_person": 2}},
		{"an event for somebody unknown creates the person", Options{},
			[]string{"POST " + path + `1/events {"name":"Buy"}`}, `1/- {}`, map[string]int64{"person_created_by_event": 1, "event_without_id": 1, "event_without_timestamp": 1}},
		{"a deleted person comes back anew", Options{},
			[]string{"PUT " + path + `1 {"n":1}`, "DELETE " + path + `1`, "PUT " + path + `1 {"m":1}`}, `1/- {"m":1}`, nil},
		{"a suppressed person is ignored under every identifier, until unsuppressed", Options{},
			[]string{"PUT " + path + `1 {"email":"a@example.com"}`, "POST " + path + `1/suppress`, "PUT " + path + `1 {"n":1}`, "PUT " + path + `A@example.com {"n":1}`,
				"POST " + path + `1/events {"name":"Buy"}`, `POST /api/v2/entity {"type":"person","action":"unsuppress","identifiers":{"id":"1"}}`, "PUT " + path + `1 {"n":2}`},
			`1/- {"n":2}`, map[string]int64{"suppressed_person_ignored": 3}},
		{"merge: the secondary goes, the primary's values win", Options{},
			[]string{"PUT " + path + `1 {"a":1}`, "PUT " + path + `2 {"a":2,"b":2}`, `POST /api/v1/merge_customers {"primary":{"id":"1"},"secondary":{"id":"2"}}`},
			`1/- {"a":1,"b":2}`, nil},
		{"merge into somebody unknown does nothing", Options{},
			[]string{"PUT " + path + `2 {"a":2}`, `POST /api/v2/entity {"type":"person","action":"merge","primary":{"id":"1"},"secondary":{"id":"2"}}`},
			`2/- {"a":2}`, map[string]int64{"merge_without_effect": 1}},
		{"null and the empty string clear an attribute", Options{},
			[]string{"PUT " + path + `1 {"a":1,"b":2,"c":""}`, "PUT " + path + `1 {"a":"","b":null}`}, `1/- {}`, nil},
		{"unless they are kept", Options{KeepEmpty: true},
			[]string{"PUT " + path + `1 {"a":1,"b":2}`, "PUT " + path + `1 {"a":"","b":null}`}, `1/- {"a":"","b":null}`, nil},
		{"attributes of the system are not written", Options{},
			[]string{"PUT " + path + `1 {"cio_id":"x","a":1}`}, `1/- {"a":1}`, map[string]int64{"system_attribute_ignored": 1}},
		{"v1's event data key is unknown to v2", Options{},
			[]string{`POST /api/v2/entity {"type":"person","action":"event","identifiers":{"id":"1"},"name":"Buy","data":{}}`}, `1/- {}`, map[string]int64{"unknown_member:data": 1}},
		{"an id of reserved characters is one segment", Options{},
			[]string{"PUT " + path + url.PathEscape("1/ ?#+&@") + ` {"n":1}`, "PUT " + path + `1%20 {}`, "PUT " + path + `1%2F {}`, "PUT " + path + `a%2Bb@example.com {}`},
			`1/ ?#+&@/- {"n":1}; 1 /- {}; 1//- {}; -/a+b@example.com {}`, nil},
		{"dots as ids are resolved on the way: this becomes an anonymous event", Options{},
			[]string{"POST " + path + `../events {"name":"Buy"}`}, ``, map[string]int64{"dot_segments_in_path": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, c.o)
			r.steps(c.steps...)
			var got []string
			dash := func(s string) string {
				if s == "" {
					return "-"
				}
				return s
			}
			for _, p := range r.People() {
				got = append(got, dash(p.ID)+"/"+dash(p.Email)+" "+r.attributes("cio_id", p.CioID))
			}
			if g := strings.Join(got, "; "); g != c.people {
				t.Errorf("people are\n%s, want\n%s", g, c.people)
			}
			wantCounts(t, "notes", r.Report().Notes, c.notes)
		})
	}
}

func TestIdentifyOrder(t *testing.T) {
	identify := func(timestamp int, attributes string) string {
		return fmt.Sprintf(`POST /api/v2/entity {"type":"person","action":"identify","identifiers":{"id":"1"},"timestamp":%d,"attributes":%s}`, timestamp, attributes)
	}
	r := start(t, Options{})
	r.steps(identify(1700000010, `{"a":1}`),
		identify(1700000009, `{"a":2,"b":2}`), // older: dropped whole, and in silence
		identify(1700000010, `{"a":3}`),       // equal: applied
		identify(1700000011, `{"a":3}`),       // changes nothing
		`PUT /api/v1/customers/1 {"_timestamp":1700000010,"a":4}`)
	if got := r.attributes("id", "1"); got != `{"a":3}` {
		t.Errorf("attributes %s", got)
	}
	got := r.Report()
	if want := (IdentifyReport{Applied: 3, Unchanged: 1, Stale: 2}); got.Identifies != want {
		t.Errorf("%+v, want %+v", got.Identifies, want)
	}
	wantCounts(t, "notes", got.Notes, map[string]int64{"attribute_changed_twice_in_a_second": 1})
	r.steps(`PUT /api/v1/customers/1 {"a":5}`) // without a timestamp: by arrival
	if got := r.attributes("id", "1"); got != `{"a":5}` {
		t.Errorf("attributes %s", got)
	}
}

func TestEventsOfAPerson(t *testing.T) {
	clock := newClock()
	r := start(t, Options{Now: clock.now})
	r.steps(`PUT /api/v1/customers/1 {"email":"a@example.com"}`,
		`POST /api/v1/customers/1/events {"name":" Buy ","type":"other","id":"`+someULID+`","timestamp":1700000000,"data":{"n":1e400,"deep":{"a":[1,2.50]}}}`,
		`POST /api/v1/customers/a@example.com/events {"name":"/home","type":"page"}`,
		`POST /api/v2/entity {"type":"person","action":"screen","identifiers":{"email":"A@EXAMPLE.COM"},"name":"Main","attributes":{"n":18446744073709551616}}`)
	got := r.must(200, "GET", "/_sandbox/people/1", "").body
	want := `{"cio_id":"000100000001","id":"1","email":"a@example.com","last_identify":` + fmt.Sprint(clock.now().Unix()) + `,"event_count":3,"devices":[],"attributes":{"email":"a@example.com","id":"1"},"events":[
{"n":1,"received":"2026-11-23T12:00:00.000Z","person":{"cio_id":"000100000001","id":"1","email":"a@example.com"},"action":"event","name":"Buy","id":"` + someULID + `","timestamp":1700000000,"attributes":{"n":1e400,"deep":{"a":[1,2.50]}}},
{"n":2,"received":"2026-11-23T12:00:00.000Z","person":{"cio_id":"000100000001","id":"1","email":"a@example.com"},"action":"page","name":"/home","id":"","timestamp":0,"attributes":{}},
{"n":3,"received":"2026-11-23T12:00:00.000Z","person":{"cio_id":"000100000001","id":"1","email":"a@example.com"},"action":"screen","name":"Main","id":"","timestamp":0,"attributes":{"n":18446744073709551616}}
]}
`
	if got != want {
		t.Errorf("person is\n%s, want\n%s", got, want)
	}
}

func TestDevices(t *testing.T) {
	r := start(t, Options{})
	r.steps(`PUT /api/v1/customers/1/devices {"device":{"id":"t/1","platform":"ios"}}`,
		`POST /api/v2/entity {"type":"person","action":"add_device","identifiers":{"id":"1"},"device":{"token":"t2","platform":"android"}}`,
		`DELETE /api/v1/customers/1/devices/t%2F1`, `DELETE /api/v1/customers/1/devices/t9`)
	if p, _ := r.Person("id", "1"); fmt.Sprint(p.Devices) != "[t2]" {
		t.Errorf("devices %q", p.Devices)
	}
	wantCounts(t, "notes", r.Report().Notes, map[string]int64{"unknown_device_deleted": 1})
}

// Repeats of a ULID are ignored, whichever door they come by; the first one stays.
func TestDedupe(t *testing.T) {
	event := func(id, who, rest string) string {
		return `POST /api/v2/entity {"type":"person","action":"event","identifiers":{"id":"` + who + `"},"name":"Buy","id":"` + id + `","timestamp":1700000000` + rest + `}`
	}
	for _, c := range []struct {
		name  string
		steps []string
		want  EventReport
		notes map[string]int64
	}{
		{"a repeat", []string{event(someULID, "1", ``), event(someULID, "1", `,"attributes":{"a":1}`)},
			EventReport{Received: 2, Accepted: 1, Unique: 1, Duplicates: 1, Kept: 1}, nil},
		{"a repeat in lower case", []string{event(someULID, "1", ``), event(strings.ToLower(someULID), "1", ``)},
			EventReport{Received: 2, Accepted: 1, Unique: 1, Duplicates: 1, Kept: 1}, nil},
		{"a repeat by v1", []string{event(someULID, "1", ``), `POST /api/v1/customers/1/events {"name":"Buy","id":"` + someULID + `","timestamp":1700000000}`},
			EventReport{Received: 2, Accepted: 1, Unique: 1, Duplicates: 1, Kept: 1}, nil},
		{"the same id for somebody else loses an event", []string{event(someULID, "1", ``), event(someULID, "2", ``)},
			EventReport{Received: 2, Accepted: 1, Unique: 1, Duplicates: 1, Differing: 1, FirstDiffering: someULID, Kept: 1}, nil},
		{"ids that are no ULID do not protect", []string{event("order-7", "1", ``), event("order-7", "1", ``), event("8"+someULID[1:], "1", ``), event(someULID[:25]+"U", "1", ``)},
			EventReport{Received: 4, Accepted: 4, Kept: 4}, map[string]int64{"event_id_not_ulid": 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{})
			r.steps(c.steps...)
			if got := r.Report(); got.Events != c.want {
				t.Errorf("%+v, want %+v", got.Events, c.want)
			} else {
				wantCounts(t, "notes", got.Notes, c.notes)
			}
		})
	}
	t.Run("with bounded memory old ids are forgotten", func(t *testing.T) {
		r := start(t, Options{MaxEventIDs: 4, MaxKeptEvents: 1})
		id := func(n int) string { return fmt.Sprintf("%s%02d", someULID[:24], n) }
		for n := range 5 {
			r.steps(event(id(n), "1", ``))
		}
		r.steps(event(id(4), "1", ``), event(id(0), "1", ``))
		want := EventReport{Received: 7, Accepted: 6, Unique: 6, Duplicates: 1, Kept: 1, NotKept: 5, ForgottenIDs: 2}
		if got := r.Report().Events; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if p, _ := r.Person("id", "1"); p.EventCount != 6 || len(p.Events) != 1 {
			t.Errorf("%d events counted, %d kept", p.EventCount, len(p.Events))
		}
	})
}

// Anonymous events join the person an identify names for them: those of the last
// thirty days, and those of the next five minutes.
func TestAnonymousEvents(t *testing.T) {
	clock := newClock()
	r := start(t, Options{Now: clock.now, OrderAttribute: "seq"})
	seq := 0
	seen := func(name string) string {
		seq++
		return fmt.Sprintf(`POST /api/v1/events {"name":"%s","anonymous_id":"an-1","data":{"seq":%d}}`, name, seq)
	}
	r.steps(seen("too old"))
	clock.pass(29*24*time.Hour + 23*time.Hour)
	r.steps(seen("yesterday"), `POST /api/v1/events {"name":"never anybody's"}`, `POST /api/v1/events {"name":"blank","anonymous_id":" "}`)
	clock.pass(2 * time.Hour)
	r.steps(`POST /api/v2/entity {"type":"person","action":"page","identifiers":{"anonymous_id":"an-1"},"name":"today","attributes":{"seq":3}}`)
	seq++
	r.steps(`PUT /api/v1/customers/1 {"anonymous_id":"an-1"}`, `POST /api/v1/customers/1/events {"name":"known","data":{"seq":4}}`)
	seq++
	clock.pass(5 * time.Minute)
	r.steps(seen("still joins"))
	clock.pass(time.Second)
	r.steps(seen("too late"), `PUT /api/v1/customers/2 {"anonymous_id":"an-1"}`)
	p, _ := r.Person("id", "1")
	var names []string
	for _, e := range p.Events {
		names = append(names, e.Name)
	}
	if got, want := strings.Join(names, ", "), "yesterday, today, known, still joins"; got != want {
		t.Errorf("events are %s, want %s", got, want)
	}
	got := r.Report()
	if got.Events.Anonymous != 7 || got.Events.Merged != 3 || got.Order.OutOfOrder != 0 || p.EventCount != 4 {
		t.Errorf("%+v %+v", got.Events, got.Order)
	}
	wantCounts(t, "notes", got.Notes, map[string]int64{"failed_change:anonymous_id_belongs_to_another_person": 1})
}

// Anonymous events that arrive after the person's own are out of order once merged.
func TestMergedEventsAreJudgedByArrival(t *testing.T) {
	r := start(t, Options{OrderAttribute: "seq"})
	r.steps(`POST /api/v1/customers/1/events {"name":"login","data":{"seq":2}}`,
		`POST /api/v1/events {"name":"before login","anonymous_id":"an-1","data":{"seq":1}}`)
	if n := r.Report().Order.OutOfOrder; n != 0 {
		t.Errorf("%d out of order while they are two people", n)
	}
	r.steps(`PUT /api/v1/customers/1 {"anonymous_id":"an-1"}`)
	if n := r.Report().Order.OutOfOrder; n != 1 {
		t.Errorf("%d out of order, want 1", n)
	}
}

func TestMergeMovesRecentEvents(t *testing.T) {
	clock := newClock()
	r := start(t, Options{Now: clock.now})
	r.steps(`POST /api/v1/customers/2/events {"name":"old"}`)
	clock.pass(31 * 24 * time.Hour)
	r.steps(`POST /api/v1/customers/2/events {"name":"new"}`, `POST /api/v1/customers/1/events {"name":"own"}`,
		`PUT /api/v1/customers/2 {"anonymous_id":"an-2"}`,
		`POST /api/v1/merge_customers {"primary":{"id":"1"},"secondary":{"id":"2"}}`,
		`POST /api/v1/events {"name":"of the merged","anonymous_id":"an-2"}`)
	p, _ := r.Person("id", "1")
	if len(p.Events) != 3 || p.Events[0].Name != "new" || p.Events[1].Name != "own" || p.Events[2].Name != "of the merged" || p.EventCount != 3 {
		t.Errorf("%+v", p)
	}
	if n := len(r.Events(0, 0)); n != 4 {
		t.Errorf("%d events in the log, want all 4", n)
	}
}

func TestOrderChecker(t *testing.T) {
	for _, c := range []struct {
		name  string
		first int64
		seqs  []any
		want  OrderReport
	}{
		{"rising", 0, []any{5, 6, 7}, OrderReport{Checked: 3}},
		{"gaps are missing", 0, []any{5, 7, 10}, OrderReport{Checked: 3, Missing: 3}},
		{"the beginning is missing", 1, []any{3, 4}, OrderReport{Checked: 2, Missing: 2}},
		{"a late one is out of order, not missing", 0, []any{1, 3, 2, 4}, OrderReport{Checked: 4, OutOfOrder: 1}},
		{"order is against the highest", 0, []any{1, 4, 2, 3, 5}, OrderReport{Checked: 5, OutOfOrder: 2}},
		{"below the lowest", 0, []any{5, 1, 3}, OrderReport{Checked: 3, OutOfOrder: 2, Missing: 2}},
		{"a number twice", 0, []any{1, 2, 2, 3}, OrderReport{Checked: 4, OutOfOrder: 1, Repeated: 1}},
		{"numbers as text count, others do not", 0, []any{`"1"`, 2, `"x"`, 2.5, `null`, 3}, OrderReport{Checked: 3, Without: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{OrderAttribute: "seq", OrderFirst: c.first})
			for _, v := range c.seqs {
				r.steps(fmt.Sprintf(`POST /api/v1/customers/1/events {"name":"a","data":{"seq":%v}}`, v), `POST /api/v1/customers/2/events {"name":"other","data":{"seq":null}}`)
			}
			got := r.Report().Order
			if (got.First != "") != (c.want.OutOfOrder > 0) {
				t.Errorf("example %q", got.First)
			}
			c.want.Attribute, c.want.First = "seq", got.First
			c.want.Without += int64(len(c.seqs))
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			for _, id := range []string{"1", "2"} {
				r.must(200, "DELETE", "/api/v1/customers/"+id, "")
			}
			if after := r.Report().Order; after != got {
				t.Errorf("deleting the people changed the counts to %+v", after)
			}
		})
	}
}

// Above its bound a sequence still counts, and every missing number only once.
func TestLongSequence(t *testing.T) {
	var q sequence
	for v := int64(2); v <= 2000; v += 2 {
		if !q.add(v) {
			t.Fatalf("%d is out of order", v)
		}
	}
	if len(q.spans) > maxSpans {
		t.Errorf("%d spans kept", len(q.spans))
	}
	if got, want := q.counts(1), (orderCounts{missing: 1000, given: 1000}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if q.add(1999) || q.counts(1).missing != 999 {
		t.Errorf("filling a gap: %+v", q.counts(1))
	}
}
