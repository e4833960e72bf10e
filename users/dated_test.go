package users

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"ampcio/mapping"
)

// happening is an event with a snapshot, written short as event does, and when it happened, in minutes after the tests begin.
type happening struct {
	minute int
	short  string
}

func (h happening) event(t testing.TB) mapping.Event {
	t.Helper()
	ev := event(t, h.short)
	ev.Time = startOfTests + int64(h.minute)*60_000
	ev.Snapshot = len(ev.UserProperties) > 0
	return ev
}

// hook sends events as the webhook does, each alone.
func (w *world) hook(all ...happening) (duplicates int) {
	w.t.Helper()
	for _, h := range all {
		n, err := w.store.Append(context.Background(), mapping.Arrival{
			Project: "app", Received: w.clock.now().UnixMilli(), Source: mapping.SourceWebhook, Events: []mapping.Event{h.event(w.t)},
		})
		if err != nil {
			w.t.Fatal(err)
		}
		duplicates += n
	}
	return duplicates
}

func (w *world) knows(what, want string) {
	w.t.Helper()
	look, id := w.store.User, strings.TrimPrefix(what, "user ")
	if rest, ok := strings.CutPrefix(what, "device "); ok {
		look, id = w.store.Device, rest
	}
	k, err := look("app", id)
	if err != nil {
		w.t.Fatal(err)
	}
	got := string(k.Properties)
	if strings.HasPrefix(what, "device ") {
		got = k.UserID + " " + got
	}
	if got != want {
		w.t.Errorf("%s: known is %s, want %s", what, got, want)
	}
}

// recorded are the records, short: whose, properties, and "past".
func (w *world) recorded() (all []string) {
	for _, r := range w.records() {
		s := fmt.Sprintf("%s/%s %s", r.DeviceID, r.UserID, r.Properties)
		if r.Past {
			s += " past"
		}
		all = append(all, s)
	}
	return all
}

func equalLines(t testing.TB, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("records\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Each story ends with a look at what is known, and the same look after a crash.
func TestSnapshots(t *testing.T) {
	tests := []struct {
		name  string
		story func(w *world)
		known []string // what, state, …
		want  []string // records
	}{
		{"the first is the state", func(w *world) { w.hook(happening{-5, `d0/u0 i1 {"a":1}`}) },
			[]string{"user u0", `{"a":1}`, "device d0", `u0 {"a":1}`}, []string{`d0/u0 {"a":1}`}},
		{"a newer one is the whole state", func(w *world) { w.hook(happening{-5, `/u0 i1 {"a":1,"b":2}`}, happening{-4, `/u0 i2 {"b":3}`}) },
			[]string{"user u0", `{"b":3}`}, []string{`/u0 {"a":1,"b":2}`, `/u0 {"b":3}`}},
		{"an older one is its record's only", func(w *world) { w.hook(happening{-4, `/u0 i2 {"b":3}`}, happening{-5, `/u0 i1 {"a":1}`}) },
			[]string{"user u0", `{"b":3}`}, []string{`/u0 {"b":3}`, `/u0 {"a":1} past`}},
		{"of one moment the last counts", func(w *world) { w.hook(happening{-4, `/u0 i2 {"b":3}`}, happening{-4, `/u0 i1 {"a":1}`}) },
			[]string{"user u0", `{"a":1}`}, []string{`/u0 {"b":3}`, `/u0 {"a":1}`}},
		{"what is unchanged is known to be newer", func(w *world) {
			w.hook(happening{-5, `/u0 i1 {"a":1}`}, happening{-3, `/u0 i2 {"a":1}`}, happening{-4, `/u0 i3 {"a":2}`})
		}, []string{"user u0", `{"a":1}`}, []string{`/u0 {"a":1}`, `/u0 {"a":1}`, `/u0 {"a":2} past`}},
		{"older than what an SDK has set", func(w *world) { w.send(`/u0 i1 {"a":1}`); w.hook(happening{-1, `/u0 i2 {"a":2}`}) },
			[]string{"user u0", `{"a":1}`}, []string{`/u0 {"a":1}`, `/u0 {"a":2} past`}},
		{"newer than what an SDK has set", func(w *world) {
			w.send(`/u0 i1 {"a":1,"b":1}`)
			w.clock.advance(5 * time.Minute)
			w.hook(happening{1, `/u0 i2 {"a":2}`})
		}, []string{"user u0", `{"a":2}`}, []string{`/u0 {"a":1,"b":1}`, `/u0 {"a":2}`}},
		{"an SDK's operations work on it", func(w *world) { w.hook(happening{-5, `/u0 i1 {"n":1}`}); w.send(`/u0 i2 {"$add":{"n":1}}`) },
			[]string{"user u0", `{"n":2}`}, []string{`/u0 {"n":1}`, `/u0 {"n":2}`}},
		{"of the future it is of now", func(w *world) {
			w.hook(happening{500, `/u0 i1 {"a":1}`})
			w.clock.advance(2 * time.Minute)
			w.hook(happening{2, `/u0 i2 {"a":2}`})
		}, []string{"user u0", `{"a":2}`}, []string{`/u0 {"a":1}`, `/u0 {"a":2}`}},
		{"an event without one says nothing of the user", func(w *world) { w.hook(happening{-5, `/u0 i1 {"a":1}`}, happening{-4, `d0/u0 i2`}) },
			[]string{"user u0", `{"a":1}`, "device d0", `u0 {"a":1}`}, []string{`/u0 {"a":1}`, `d0/u0 {"a":1}`}},
		{"a device's link is not undone by what is older", func(w *world) {
			w.hook(happening{-4, `d0/u1 i1 {"a":1}`}, happening{-5, `d0/u0 i2 {"b":1}`}, happening{-3, `d0 i3`})
		}, []string{"device d0", `u1 {"a":1}`, "user u0", `{"b":1}`}, []string{`d0/u1 {"a":1}`, `d0/u0 {"b":1}`, `d0/u1 {"a":1}`}},
		{"nor is an SDK's", func(w *world) { w.send(`d0/u1 i1 {"a":1}`); w.hook(happening{-5, `d0/u0 i2`}) },
			[]string{"device d0", `u1 {"a":1}`}, []string{`d0/u1 {"a":1}`, `d0/u0 {}`}},
		{"of nobody's device", func(w *world) { w.hook(happening{-4, `d0 i1 {"a":1}`}, happening{-5, `d0 i2 {"a":2}`}) },
			[]string{"device d0", ` {"a":1}`}, []string{`d0/ {"a":1}`, `d0/ {"a":2} past`}},
		{"a login has the user's, and takes over what that lacks", func(w *world) {
			w.hook(happening{-5, `d0 i1 {"a":1,"b":1}`}, happening{-4, `d0/u0 i2`}, happening{-3, `d0/u0 i3 {"b":2}`})
		}, []string{"user u0", `{"b":2}`}, []string{`d0/ {"a":1,"b":1}`, `d0/u0 {"a":1,"b":1}`, `d0/u0 {"b":2}`}},
		{"sent twice it is stored once", func(w *world) {
			if n := w.hook(happening{-5, `d0/u0 i1 {"a":1}`}, happening{-5, `d0/u0 i1 {"a":1}`}); n != 1 {
				w.t.Errorf("%d duplicates", n)
			}
		}, []string{"user u0", `{"a":1}`}, []string{`d0/u0 {"a":1}`}},
		{"what a server SDK sent without a device comes back with one", func(w *world) {
			w.send(`/u0 i1 {"a":1}`)
			if n := w.hook(happening{-1, `d7/u0 i1 {"a":1}`}); n != 1 {
				w.t.Errorf("%d duplicates", n)
			}
		}, []string{"user u0", `{"a":1}`, "device d7", ` {}`}, []string{`/u0 {"a":1}`}},
		{"a large one is stored whole", func(w *world) { w.hook(happening{-5, `/u0 i1 {"a":"` + strings.Repeat("x", 300) + `"}`}) },
			[]string{"user u0", `{"a":"` + strings.Repeat("x", 300) + `"}`}, []string{`/u0 {"a":"` + strings.Repeat("x", 300) + `"}`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := Options{CarryBytes: 100}
			w := start(t, t.TempDir(), o).run()
			defer w.stop()
			look := func(w *world) {
				t.Helper()
				for i := 0; i < len(test.known); i += 2 {
					w.knows(test.known[i], test.known[i+1])
				}
			}
			test.story(w)
			look(w)
			equalLines(t, w.recorded(), test.want...)
			after := w.crash(o)
			look(after)
			after.stop()
			w.checkpoint()
			after = w.crash(o)
			if n := after.store.Stats().Replayed; n != 0 {
				t.Errorf("%d records replayed behind a checkpoint", n)
			}
			look(after)
			after.stop()
		})
	}
}
