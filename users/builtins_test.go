package users

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ampcio/mapping"
)

// said reads an event written short, with fields of built-in properties behind a second "|".
func said(t testing.TB, short string) mapping.Event {
	t.Helper()
	short, fields, _ := strings.Cut(short, "|")
	ev := event(t, strings.TrimSpace(short))
	if fields = strings.TrimSpace(fields); fields == "" {
		return ev
	}
	whole, problems := mapping.ParseEvent([]byte(strings.TrimSuffix(string(ev.Raw), "}") + "," + fields + "}"))
	if problems != nil {
		t.Fatalf("%s: %v", short, problems)
	}
	return whole
}

func (w *world) say(source mapping.Source, short ...string) {
	w.t.Helper()
	a := mapping.Arrival{Project: "app", Received: w.clock.now().UnixMilli(), Source: source}
	for _, s := range short {
		ev := said(w.t, s)
		ev.Snapshot = source == mapping.SourceWebhook
		a.Events = append(a.Events, ev)
	}
	if _, err := w.store.Append(context.Background(), a); err != nil {
		w.t.Fatal(err)
	}
}

// fully tells all that is known of some devices and users, built-in properties among it.
func (w *world) fully() string {
	w.t.Helper()
	var b strings.Builder
	for i := range 4 {
		for _, known := range []func() (Known, error){
			func() (Known, error) { return w.store.Device("app", fmt.Sprintf("d%d", i)) },
			func() (Known, error) { return w.store.User("app", []string{"ann", "bob", "cat", "dan"}[i]) },
		} {
			k, err := known()
			if err != nil {
				w.t.Fatal(err)
			}
			fmt.Fprintf(&b, "%q sole %v %s %s %d insert_ids, hour %d\n", k.UserID, k.Sole, k.Properties, mapping.BuiltinsJSON(k.Builtins), k.InsertIDs, k.Seen)
		}
	}
	return b.String()
}

// sameAfterCrash compares what is known with what is known after a crash here: the log replayed onto the last checkpoint, or
// onto nothing.
func (w *world) sameAfterCrash(what string, o Options) {
	w.t.Helper()
	w.isAfterCrash(what, w.fully(), o)
}

func (w *world) isAfterCrash(what, want string, o Options) {
	w.t.Helper()
	after := w.crash(o)
	defer after.stop()
	if diff := cmp.Diff(want, after.fully()); diff != "" {
		w.t.Fatalf("%s, then a crash: -before +after\n%s", what, diff)
	}
}

// The stories of identity, with what devices say of themselves. Each line is a request; want tells of each record what its
// event and it say together, by rules that name all built-ins.
func TestBuiltins(t *testing.T) {
	for _, c := range []struct {
		name       string
		sent, want []string
	}{
		{"an event that says nothing has what the user has",
			[]string{`d1/ann | "platform":"iOS","city":"Paris"`, `d1`, `d2/ann`, `/ann`},
			[]string{`{"platform":"iOS","city":"Paris"}`, `{"platform":"iOS","city":"Paris"}`, `{"platform":"iOS","city":"Paris"}`, `{"platform":"iOS","city":"Paris"}`}},
		{"another device resets the group, the place stays",
			[]string{`d1/ann | "platform":"iOS","os_name":"ios","city":"Paris"`, `d2/ann | "platform":"Web"`, `d1/ann`},
			[]string{`{"platform":"iOS","os_name":"ios","city":"Paris"}`, `{"platform":"Web","city":"Paris"}`, `{"platform":"Web","city":"Paris"}`}},
		{"the first login takes over what the device was",
			[]string{`d1 | "platform":"iOS","language":"fr"`, `d1/ann`, `d1/bob`, `d1`},
			[]string{`{"platform":"iOS","language":"fr"}`, `{"platform":"iOS","language":"fr"}`, `{}`, `{}`}},
		{"and what the user has wins, by groups",
			[]string{`/ann | "os_name":"windows"`, `d1 | "platform":"iOS","language":"fr"`, `d1/ann`},
			[]string{`{"os_name":"windows"}`, `{"platform":"iOS","language":"fr"}`, `{"os_name":"windows","language":"fr"}`}},
		{"logout with a new device, and login there",
			[]string{`d1/ann | "platform":"iOS"`, `d2 | "country":"France"`, `d2/ann`},
			[]string{`{"platform":"iOS"}`, `{"country":"France"}`, `{"platform":"iOS","country":"France"}`}},
		{"the last user of a device has what it says",
			[]string{`d1/ann`, `d1/bob`, `d1 | "platform":"iOS"`, `/ann`, `/bob`},
			[]string{`{}`, `{}`, `{"platform":"iOS"}`, `{}`, `{"platform":"iOS"}`}},
		{"$skip_user_properties_sync: only what the event carries, and nothing stays",
			[]string{`d1/ann | "platform":"iOS","city":"Paris"`, `d1/ann!skip | "platform":"Web"`, `d1/ann!skip`, `d1`},
			[]string{`{"platform":"iOS","city":"Paris"}`, `{"platform":"Web"}`, `{}`, `{"platform":"iOS","city":"Paris"}`}},
		{"a skipped first login takes over all the same",
			[]string{`d1 | "platform":"iOS"`, `d1/ann!skip`, `d1`},
			[]string{`{"platform":"iOS"}`, `{}`, `{"platform":"iOS"}`}},
		{"versions, the first of them, and paying",
			[]string{`d1/ann | "version_name":"1"`, `d1 | "app_version":"2","price":3`, `d1/ann`},
			[]string{`{"app_version":"1","start_version":"1"}`, `{"app_version":"2","start_version":"1","paying":true}`, `{"app_version":"2","start_version":"1","paying":true}`}},
		{"$clearAll clears user properties, built-ins are none of them",
			[]string{`d1/ann - {"a":1} | "platform":"iOS"`, `d1/ann - {"$clearAll":"-"}`},
			[]string{`{"platform":"iOS"}`, `{"platform":"iOS"}`}},
		{"a repeat changes nothing",
			[]string{`d1/ann i1 | "platform":"iOS"`, `d1/ann i2 | "platform":"Web"`, `d1/ann i1 | "platform":"iOS"`, `d1/ann i3`},
			[]string{`{"platform":"iOS"}`, `{"platform":"Web"}`, `{"platform":"Web"}`}},
		{"with neither id nobody keeps it",
			[]string{`- | "platform":"iOS"`, `-`},
			[]string{`{"platform":"iOS"}`, `{}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{}).run()
			defer w.stop()
			w.store.perWrite = 1
			for i, s := range c.sent {
				w.say(mapping.SourceHTTP, s)
				w.sameAfterCrash(fmt.Sprintf("%d requests", i+1), Options{})
				if i == len(c.sent)/2 {
					w.checkpoint()
				}
			}
			var got []string
			for _, r := range w.records() {
				got = append(got, builtinsOf(t, &r))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("sent %q: -want +got\n%s", c.sent, diff)
			}
			w.checkpoint()
			w.sameAfterCrash("all in users.db", Options{})
		})
	}
}

// builtinsOf tells what a record and its event say together.
func builtinsOf(t testing.TB, r *mapping.Record) string {
	t.Helper()
	if len(r.Builtins) > 0 {
		return string(mapping.BuiltinsJSON(r.Builtins))
	}
	ev, problems := mapping.ParseEvent(r.Raw)
	if problems != nil {
		t.Fatal(problems)
	}
	return string(mapping.BuiltinsJSON(mapping.ApplyBuiltins(nil, r.Beside, &mapping.Event{Builtins: ev.Builtins}).After))
}

// What the webhook brings is all there was; what is older than what is known changes nothing.
func TestBuiltinsOfSnapshots(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.say(mapping.SourceHTTP, `d1/ann - {"a":1} | "platform":"iOS","city":"Paris"`)
	w.clock.advance(time.Second)
	w.say(mapping.SourceWebhook, `d1/ann - {"a":2} | "platform":"Web"`)
	if k, err := w.store.User("app", "ann"); err != nil || string(mapping.BuiltinsJSON(k.Builtins)) != `{"platform":"Web"}` {
		t.Errorf("%s, %v", mapping.BuiltinsJSON(k.Builtins), err)
	}
	w.say(mapping.SourceWebhook, fmt.Sprintf(`d1/ann - {"a":3} | "platform":"Old","time":%d`, w.clock.now().UnixMilli()-5000))
	if k, err := w.store.User("app", "ann"); err != nil || string(mapping.BuiltinsJSON(k.Builtins)) != `{"platform":"Web"}` {
		t.Errorf("%s, %v", mapping.BuiltinsJSON(k.Builtins), err)
	}
	if got := builtinsOf(t, &w.records()[2]); got != `{"platform":"Old"}` {
		t.Errorf("the record of the past has %s", got)
	}
	w.sameAfterCrash("snapshots", Options{})
}

// Random requests, and a crash after each of them: what a replay gives is what was known, whatever of users.db a checkpoint
// had written by then.
func TestEveryCut(t *testing.T) {
	histories := 4
	if testing.Short() {
		histories = 1
	}
	for seed := range uint64(histories) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		pick := func(from ...string) string { return from[rnd.IntN(len(from))] }
		o := Options{CarryBytes: 60, CacheBytes: []int64{1, 4000, 1 << 20}[rnd.IntN(3)]}
		w := start(t, t.TempDir(), o).run()
		w.failing = true
		w.store.perWrite = 1
		var sent []string
		for i := range 12 {
			var request []string
			for range 1 + rnd.IntN(3) {
				request = append(request, pick("d0", "d1", "d2", "")+"/"+pick("", "", "ann", "bob", "ann!skip")+" "+
					pick("-", "-", fmt.Sprintf("i%d", i), "i1")+" "+
					pick(`{"$set":{"a":1}}`, `{"$setOnce":{"a":2}}`, `{"$add":{"n":1}}`, `{"$append":{"l":"xxxxxxxxxxxxxxxxxxxxxxxx"}}`, `{"$clearAll":"-"}`, `{"b":3}`, `{"$unset":{"a":"-"}}`)+" | "+
					pick(`"platform":"iOS"`, `"os_name":"ios","carrier":"x"`, `"city":"Paris"`, `"country":"France"`, `"language":"fr"`, `"app_version":"2"`, `"price":1`, "", ""))
			}
			sent = append(sent, request...)
			w.say(mapping.SourceHTTP, request...)
			w.clock.advance(time.Duration(rnd.IntN(2)) * time.Hour)
			w.sameAfterCrash(fmt.Sprintf("seed %d, %q", seed, sent), o)
			switch rnd.IntN(4) {
			case 0:
				w.checkpoint()
			case 1: // cut off after some steps; the store is then over, and goes on after a start
				left, want := rnd.IntN(6), w.fully()
				w.store.interrupt = func(string) error {
					if left--; left < 0 {
						return context.Canceled
					}
					return nil
				}
				w.store.checkpointNow()
				w.isAfterCrash(fmt.Sprintf("seed %d, %q, a checkpoint cut off", seed, sent), want, o)
				again := w.crash(o)
				w.stop()
				w = again.run()
				w.failing = true
				w.store.perWrite = 1
			}
		}
		w.stop()
	}
}

// An entry of a program before there were built-in properties is read as one of whom none are known, and written as it was.
func TestEntriesBeforeBuiltins(t *testing.T) {
	// Version, checksum; seq 7, seen 9; the user; the properties.
	old := []byte("\x01\x00\x00\x00\x00" + "\x07\x09" + "\x01\x03ann" + "\x02\x07{\"a\":1}")
	key := appendKey(nil, "app", "d1")
	seal(device, key, old)
	s, err := readEntry(device, key, old)
	if err != nil || s.seq != 7 || string(s.user) != "ann" || string(s.properties) != `{"a":1}` || s.builtins != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if again := sealed(device, key, &s); string(again) != string(old) {
		t.Errorf("it is written as %q", again)
	}
	s.builtins = []byte{1, 3, '"', 'x', '"'}
	if s, err = readEntry(device, key, sealed(device, key, &s)); err != nil || len(s.builtins) != 5 {
		t.Errorf("%+v, %v", s, err)
	}
}

// The record of a first login says all of the user's built-in properties, so that a replay does not need what users.db had of
// the device; and the device keeps none of them.
func TestTakenOverBuiltins(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.say(mapping.SourceHTTP, `d1 | "platform":"iOS"`)
	w.say(mapping.SourceHTTP, `d1/ann`, `d1`)
	r := w.records()
	if got := string(mapping.BuiltinsJSON(r[1].Builtins)); got != `{"platform":"iOS"}` || r[2].Builtins != nil || r[2].Beside == nil {
		t.Errorf("the login's record says %s, the next one %x and %x beside its event", got, r[2].Builtins, r[2].Beside)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	e, err := w.store.entry(w.store.project("app"), device, "d1")
	if err != nil || len(w.store.block(e).builtins()) > 0 {
		t.Errorf("%v; the device keeps %x", err, w.store.block(e).builtins())
	}
}

// A property that changes is written where it stands, however much is known of built-in properties.
func TestBuiltinsDoNotMoveTheirUser(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	where := func() (at ref) {
		w.store.mu.Lock()
		defer w.store.mu.Unlock()
		e, err := w.store.entry(w.store.project("app"), user, "ann")
		if err != nil {
			t.Fatal(err)
		}
		return w.store.slots[e].at
	}
	w.say(mapping.SourceHTTP, `/ann - {"$set":{"a":1}} | "device_model":"`+strings.Repeat("x", 500)+`"`)
	before := where()
	for n := range 5 {
		if w.say(mapping.SourceHTTP, fmt.Sprintf(`/ann - {"$set":{"a":%d}} |`, n)); where() != before {
			t.Fatalf("change %d has moved the user", n)
		}
	}
}
