package users

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ampcio/mapping"
	"ampcio/queue"
)

// lines tells of each record whose it is and what was known: "user {properties}".
func lines(records []mapping.Record) (out []string) {
	for _, r := range records {
		who := r.UserID
		if who == "" {
			who = "(nobody)"
		}
		out = append(out, who+" "+string(r.Properties))
	}
	return out
}

// What Amplitude's page on unique users says, as stories. Each line of sent is one
// request of one event, each line of want one record.
func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		name       string
		sent, want []string
	}{
		{"an anonymous event belongs to its device",
			[]string{`d1`},
			[]string{`(nobody) {}`}},
		{"an event without user_id belongs to the user the device was last linked to",
			[]string{`d1/ann`, `d1`},
			[]string{`ann {}`, `ann {}`}},
		{"the first login takes the anonymous properties over",
			[]string{`d1 - {"utm":"ad"}`, `d1/ann`, `d1`},
			[]string{`(nobody) {"utm":"ad"}`, `ann {"utm":"ad"}`, `ann {"utm":"ad"}`}},
		{"what the user has already wins, and the login's own operations come last",
			[]string{`/ann - {"plan":"pro","seats":1}`, `d1 - {"plan":"free","utm":"ad"}`, `d1/ann - {"$add":{"seats":1}}`},
			[]string{`ann {"plan":"pro","seats":1}`, `(nobody) {"plan":"free","utm":"ad"}`, `ann {"plan":"pro","seats":2,"utm":"ad"}`}},
		{"a second user on the device gets none of it, and later anonymous events are his",
			[]string{`d1 - {"utm":"ad"}`, `d1/ann`, `d1/bob`, `d1 - {"page":1}`, `d1/ann`},
			[]string{`(nobody) {"utm":"ad"}`, `ann {"utm":"ad"}`, `bob {}`, `bob {"page":1}`, `ann {"utm":"ad"}`}},
		{"one user on several devices",
			[]string{`d1/ann - {"plan":"pro"}`, `d2 - {"utm":"mail"}`, `d2/ann`, `d1`, `d2 - {"plan":"team"}`, `d1`},
			[]string{`ann {"plan":"pro"}`, `(nobody) {"utm":"mail"}`, `ann {"plan":"pro","utm":"mail"}`,
				`ann {"plan":"pro","utm":"mail"}`, `ann {"plan":"team","utm":"mail"}`, `ann {"plan":"team","utm":"mail"}`}},
		{"logout with a new device id, login on it",
			[]string{`d1/ann - {"plan":"pro"}`, `d2 - {"seen":true}`, `d2/ann`},
			[]string{`ann {"plan":"pro"}`, `(nobody) {"seen":true}`, `ann {"plan":"pro","seen":true}`}},
		{"clearing the user_id alone keeps counting to the last user",
			[]string{`d1/ann`, `d1 - {"$set":{"a":1}}`, `/ann`},
			[]string{`ann {}`, `ann {"a":1}`, `ann {"a":1}`}},
		{"a user without a device",
			[]string{`/ann - {"a":1}`, `/ann`, `/bob`},
			[]string{`ann {"a":1}`, `ann {"a":1}`, `bob {}`}},
		{"user ids are case-sensitive, and a user is not a device of that name",
			[]string{`/ann - {"a":1}`, `/Ann`, `ann`},
			[]string{`ann {"a":1}`, `Ann {}`, `(nobody) {}`}},
		{"with neither id an event has what it carries, and nobody keeps it",
			[]string{`- - {"a":1}`, `-`},
			[]string{`(nobody) {"a":1}`, `(nobody) {}`}},
		{"$skip_user_properties_sync: only what the event carries, and nothing stays",
			[]string{`d1/ann - {"a":1}`, `d1/ann!skip - {"$set":{"b":2}}`, `d1`},
			[]string{`ann {"a":1}`, `ann {"b":2}`, `ann {"a":1}`}},
		{"a skipped login is a login: the anonymous properties stay with the person",
			[]string{`d1 - {"utm":"ad"}`, `d1/ann!skip - {"x":1}`, `d1`, `d1/bob`},
			[]string{`(nobody) {"utm":"ad"}`, `ann {"x":1}`, `ann {"utm":"ad"}`, `bob {}`}},
		{"properties that are all gone",
			[]string{`d1 - {"a":1}`, `d1 - {"$clearAll":"-"}`, `d1/ann`},
			[]string{`(nobody) {"a":1}`, `(nobody) {}`, `ann {}`}},
		{"operations that say nothing leave everything",
			[]string{`d1 - {"a":1}`, `d1 - {"$set":"x","$add":{"a":"y"}}`, `d1 - {"$append":7}`},
			[]string{`(nobody) {"a":1}`, `(nobody) {"a":1}`, `(nobody) {"a":1}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{}).run()
			defer w.stop()
			for _, s := range c.sent {
				w.send(s)
			}
			if diff := cmp.Diff(c.want, lines(w.records())); diff != "" {
				t.Errorf("sent %q: -want +got\n%s", c.sent, diff)
			}
			// The same after a crash: replayed onto nothing, and from a checkpoint.
			for range 2 {
				after := w.crash(Options{})
				for _, who := range []string{"d1", "d2", "/ann", "/bob"} {
					device, user, _ := strings.Cut(who, "/")
					if got, want := after.know(device, user), w.know(device, user); got != want {
						t.Errorf("%s after a crash: got %s, want %s", who, got, want)
					}
				}
				after.stop()
				w.checkpoint()
			}
		})
	}
}

func (w *world) know(device, user string) string {
	w.t.Helper()
	var k Known
	var err error
	if device != "" {
		k, err = w.store.Device("app", device)
	} else {
		k, err = w.store.User("app", user)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%s %s %d insert_ids", k.UserID, k.Properties, k.InsertIDs)
}

// One request is resolved in the order of its events, as if each had come alone.
func TestOneRequest(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d1 - {"utm":"ad"}`, `d1/ann - {"$set":{"n":1}}`, `d1 - {"$add":{"n":1}}`, `d2/ann - {"$add":{"n":1}}`)
	want := []string{`(nobody) {"utm":"ad"}`, `ann {"utm":"ad","n":1}`, `ann {"utm":"ad","n":2}`, `ann {"utm":"ad","n":3}`}
	if diff := cmp.Diff(want, lines(w.records())); diff != "" {
		t.Error(diff)
	}
}

func TestLanes(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d1`, `d1/ann`, `d1`, `/ann`, `-`, `d2`)
	var lanes []string
	chunk, err := w.log.Reader(0).Try()
	if err != nil {
		t.Fatal(err)
	}
	chunk.Records(func(r queue.Record) error { lanes = append(lanes, r.Lane); return nil })
	if diff := cmp.Diff([]string{"dd1", "uann", "uann", "uann", "g", "dd2"}, lanes); diff != "" {
		t.Error(diff)
	}
}

// The same names in two projects are different people.
func TestProjectsAreApart(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.sendTo("app", `d1/ann i1 {"a":1}`)
	if n := w.sendTo("web", `d1 i1 {"b":1}`); n != 0 {
		t.Errorf("an insert_id of another project: %d duplicates", n)
	}
	want := []string{`ann {"a":1}`, `(nobody) {"b":1}`}
	if diff := cmp.Diff(want, lines(w.records())); diff != "" {
		t.Error(diff)
	}
}

// An id is what is hashed: published vectors are mapping's, here is what goes in.
func TestEventIDs(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d1/ann i1`, `/ann i1`, `d2 i1`, `d1`, `d1`, `- i1`, `- i1`)
	r := w.records()
	if len(r) != 7 {
		t.Fatalf("%d records", len(r))
	}
	for i, want := range map[int][16]byte{
		0: mapping.EventID("app", "device", "d1", "i1"),
		1: mapping.EventID("app", "user", "ann", "i1"),
		2: mapping.EventID("app", "device", "d2", "i1"),
	} {
		if r[i].ID != want {
			t.Errorf("record %d: id %x, want %x", i, r[i].ID, want)
		}
	}
	ids := map[[16]byte]bool{}
	for _, r := range r {
		ids[r.ID] = true
	}
	if len(ids) != 7 {
		t.Errorf("%d different ids of 7: events that cannot be told apart by insert_id have their own", len(ids))
	}
}

// Ids longer than bbolt's keys work like others.
func TestLongIDs(t *testing.T) {
	long := strings.Repeat("é", 20_000)
	w := start(t, t.TempDir(), Options{CacheBytes: 1}).run()
	defer w.stop()
	w.send(`/` + long + ` - {"a":1}`)
	w.checkpoint()
	w.send(`/`+long, `/`+long+`x`)
	want := []string{long + ` {"a":1}`, long + ` {"a":1}`, long + `x {}`}
	if diff := cmp.Diff(want, lines(w.records())); diff != "" {
		t.Error(diff)
	}
}

// Above CarryBytes a record carries what the rules name, and the whole set stays.
func TestLargeSets(t *testing.T) {
	carry := func(project, name string) bool { return project == "app" && (name == "email" || name == `odd "name"`) }
	o := Options{CarryBytes: 1000, Carry: carry}
	w := start(t, t.TempDir(), o).run()
	defer w.stop()
	big := strings.Repeat("x", 1000)
	w.send(`d1 - {"email":"a@b.c","odd \"name\"":1.50,"small":1}`)
	w.send(`d1 - {"big":"` + big + `"}`)
	w.send(`d1/ann - {"$add":{"small":1}}`)
	w.send(`d1 - {"$unset":{"big":"-"}}`)
	r := w.records()
	want := []string{
		`(nobody) {"email":"a@b.c","odd \"name\"":1.50,"small":1}`,
		`(nobody) {"odd \"name\"":1.50,"email":"a@b.c"}`,
		`ann {"odd \"name\"":1.50,"email":"a@b.c"}`,
		`ann {"email":"a@b.c","odd \"name\"":1.50,"small":2}`,
	}
	if diff := cmp.Diff(want, lines(r)); diff != "" {
		t.Error(diff)
	}
	for i, partial := range []bool{false, true, true, false} {
		if r[i].Partial != partial {
			t.Errorf("record %d: partial %v", i, r[i].Partial)
		}
	}
	if n := w.store.Stats().Partial; n != 2 {
		t.Errorf("%d partial records counted, want 2", n)
	}
	before := w.know("", "ann")
	if !strings.Contains(before, `"small":2`) {
		t.Errorf("state: %s", before)
	}
	after := w.crash(o)
	defer after.stop()
	if got := after.know("", "ann"); got != before {
		t.Errorf("after a crash: got %s, want %s", got, before)
	}
}

// No request makes one user so large that all others wait for it.
func TestPropertiesAreBounded(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	big := strings.Repeat("x", maxPropertiesBytes/3)
	for _, name := range []string{"a", "b", "c", "d"} {
		w.send(fmt.Sprintf(`/ann - {%q:%q}`, name, big))
	}
	w.send(`/ann - {"$unset":{"a":"-"},"$set":{"e":1}}`)
	if n := w.store.Stats().Oversize; n != 2 {
		t.Errorf("%d events counted that would have made the set too large, want 2", n)
	}
	k, err := w.store.User("app", "ann")
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"b":"` + big + `","e":1}`; string(k.Properties) != want {
		t.Errorf("%d bytes of properties, want %d: a smaller set is always taken", len(k.Properties), len(want))
	}
}

// A small request of a user with a very large set must not become a large one in the
// log: each of its events carries what is named, but only so much of it.
func TestSmallRequestsStaySmall(t *testing.T) {
	w := start(t, t.TempDir(), Options{Carry: func(string, string) bool { return true }}).run()
	defer w.stop()
	w.send(`/ann - {"email":"a@b.c","huge":"` + strings.Repeat("x", 100_000) + `"}`)
	for range 20 {
		w.send(`/ann -`)
	}
	for _, r := range w.records() {
		// What has no room is not gone.
		if p := string(r.Properties); len(p) > carryMost || p != `{"email":"a@b.c","huge":null}` {
			t.Errorf("%d bytes: %.80s", len(p), p)
		}
	}
}

// Somebody of whom nothing is left is told from somebody who was never there.
func TestKnownOrNot(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	w.send(`d1/ann - {"plan":"pro"}`, `d1/ann - {"$clearAll":"-"}`)
	for _, test := range []struct {
		name  string
		known func() (Known, error)
		want  Known
	}{
		{"a user", func() (Known, error) { return w.store.User("app", "ann") }, Known{UserID: "ann", Properties: noProperties, Seq: 2, Seen: hourOf(startOfTests)}},
		{"by a device", func() (Known, error) { return w.store.Device("app", "d1") }, Known{UserID: "ann", Sole: true, Properties: noProperties, Seq: 2, Seen: hourOf(startOfTests)}},
		{"nobody", func() (Known, error) { return w.store.User("app", "bob") }, Known{UserID: "bob", Properties: noProperties}},
		{"no device", func() (Known, error) { return w.store.Device("app", "d2") }, Known{Properties: noProperties}},
		{"another project", func() (Known, error) { return w.store.User("shop", "ann") }, Known{UserID: "ann", Properties: noProperties}},
	} {
		got, err := test.known()
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", test.name, err, diff)
		}
	}
	w.stop()
}
