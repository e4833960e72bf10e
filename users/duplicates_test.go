package users

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ampcio/mapping"
)

// A sender that got no answer sends again. Each case: requests, and how many events
// of each were known already.
func TestDuplicates(t *testing.T) {
	for _, c := range []struct {
		name string
		sent [][]string
		want []int
	}{
		{"the same request twice",
			[][]string{{`d1 i1`, `d1 i2`}, {`d1 i1`, `d1 i2`}}, []int{0, 2}},
		{"twice in one request",
			[][]string{{`d1 i1`, `d1 i1`, `d1 i2`}}, []int{1}},
		{"the same insert_id on another device is another event",
			[][]string{{`d1 i1`}, {`d2 i1`}}, []int{0, 0}},
		{"on the same device it is the same, whoever is logged in",
			[][]string{{`d1 i1`}, {`d1/ann i1`}, {`d1/bob i1`}}, []int{0, 1, 1}},
		{"without a device the user counts",
			[][]string{{`/ann i1`}, {`/ann i1`}, {`/bob i1`}, {`d1/ann i1`}}, []int{0, 1, 0, 0}},
		{"without insert_id nothing is known again",
			[][]string{{`d1`, `d1`}, {`d1`}}, []int{0, 0}},
		{"without any id neither",
			[][]string{{`- i1`}, {`- i1`}}, []int{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{}).run()
			defer w.stop()
			stored, known := 0, 0
			for i, events := range c.sent {
				if n := w.send(events...); n != c.want[i] {
					t.Errorf("request %d %q: %d duplicates, want %d", i, events, n, c.want[i])
				}
				stored, known = stored+len(events)-c.want[i], known+c.want[i]
			}
			if n := len(w.records()); n != stored {
				t.Errorf("%d records, want %d", n, stored)
			}
			if n := w.store.Stats().Duplicates; n != uint64(known) {
				t.Errorf("%d duplicates counted, want %d", n, known)
			}
		})
	}
}

// A repeat changes nothing: its $add is not added again, its login is no login.
func TestDuplicateChangesNothing(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d1/ann i1 {"$add":{"n":1}}`)
	w.send(`d1/ann i1 {"$add":{"n":1}}`, `d1/bob i1`, `d1 i2`)
	if got, want := w.know("d1", ""), `ann {"n":1} 2 insert_ids`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// At least the last 256 insert_ids of a device are known, also after a crash (from the
// log alone, and from users.db alone).
func TestDuplicateWindow(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	const sent = recentMax + 40
	ids := func(from, to int) (events []string) {
		for i := from; i < to; i++ {
			events = append(events, fmt.Sprintf(`d1 i%d`, i), `d1`) // what has no insert_id takes no place
		}
		return events
	}
	for i := 0; i < sent; i += recentMax / 8 {
		w.send(ids(i, min(i+recentMax/8, sent))...)
	}
	stored := len(w.records())
	check := func(w *world) {
		t.Helper()
		if n := w.send(ids(sent-recentMax, sent)...); n != recentMax {
			t.Fatalf("%d of the last %d insert_ids are known", n, recentMax)
		}
	}
	replayed := w.crash(Options{}).run()
	check(replayed)
	if s := replayed.store.Stats(); s.Replayed != uint64(stored) {
		t.Errorf("%d records replayed, want %d", s.Replayed, stored)
	}
	replayed.stop()
	check(w)
	w.checkpoint()
	kept := w.crash(Options{}).run()
	check(kept)
	if s := kept.store.Stats(); s.Replayed != 0 {
		t.Errorf("%d records replayed behind a checkpoint", s.Replayed)
	}
	kept.stop()
	if n := w.send(`d1 i0`); n != 0 {
		t.Error("the memory of a device is not bounded")
	}
}

func TestDuplicatesForSevenDays(t *testing.T) {
	const day = 24 * time.Hour
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d1 i1`, `d1 i2`, `d1 i3`)
	w.clock.advance(7 * day)
	if n := w.send(`d1 i1`); n != 1 {
		t.Error("an insert_id is forgotten within 7 days")
	}
	w.checkpoint()
	after := w.crash(Options{}).run()
	defer after.stop()
	after.clock.advance(2 * time.Hour)
	if n := after.send(`d1 i1`, `d1 i2`); n != 0 {
		t.Error("an insert_id is known for longer than 7 days and an hour")
	}
	if n := after.send(`d1 i1`, `d1 i2`); n != 2 {
		t.Error("sent again, they are known again")
	}
	after.clock.advance(-30 * day) // somebody sets the clock
	if n := after.send(`d1 i1`, `d1 i4`, `d1 i4`); n != 2 {
		t.Error("a clock that goes back makes the memory forget")
	}
}

// The ring against the plainest thing that does the same.
func TestRecentRing(t *testing.T) {
	type seen struct {
		id   uint64
		hour uint32
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		var r recent
		hour := uint32(400_000 + rnd.IntN(100_000))
		var plain []seen
		for range rnd.IntN(1200) {
			if rnd.IntN(8) == 0 {
				hour += uint32(rnd.IntN(60))
			}
			r.prune(hour)
			id := 1 + rnd.Uint64N(600)
			known := false
			for _, s := range plain[max(0, len(plain)-recentMax):] {
				known = known || s.id == id && hour-s.hour <= recentHours
			}
			if got := r.has(id, hour); known && !got {
				t.Fatalf("round %d: %d should be known", round, id)
			} else if got && !known {
				t.Fatalf("round %d: %d should not be known", round, id)
			}
			if !known {
				remember(&r, id, hour)
				plain = append(plain, seen{id, hour})
			}
			if rnd.IntN(50) == 0 && r.n > 0 {
				again, ok := readRecent(r.append(nil))
				if !ok || again.n != r.n {
					t.Fatalf("round %d: written and read again: %v, %d of %d", round, ok, again.n, r.n)
				}
				r = again
			}
		}
	}
}

// Many senders at once, each repeating what it sent: every event is there once.
func TestDuplicatesConcurrently(t *testing.T) {
	w := start(t, t.TempDir(), Options{CheckpointEvery: time.Millisecond, CacheBytes: 20_000}).run().runStore()
	var senders sync.WaitGroup
	const each = 40
	var mu sync.Mutex
	total := 0
	for sender := range 8 {
		senders.Go(func() {
			for i := range each {
				a := mapping.Arrival{Project: "app", Received: startOfTests, Events: []mapping.Event{
					event(t, fmt.Sprintf(`d%d/u%d i%d {"$add":{"n":1}}`, sender%4, sender%2, i)),
				}}
				n, err := w.store.Append(context.Background(), a)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				total += n
				mu.Unlock()
			}
		})
	}
	senders.Wait()
	if total != 4*each {
		t.Errorf("%d duplicates, want %d", total, 4*each)
	}
	for _, user := range []string{"u0", "u1"} {
		if got, want := w.know("", user), fmt.Sprintf(`%s {"n":%d} 0 insert_ids`, user, 2*each); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	w.stop()
}

// What the memory for duplicates of one device costs, as docs/configuring.md says: go test ./users -run DuplicatesCost -v
func TestDuplicatesCost(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	cost := func() (memory, disk int64) {
		s := w.store
		s.mu.Lock()
		defer s.mu.Unlock()
		e, err := s.entry(s.project("app"), device, "d1")
		if err != nil {
			t.Fatal(err)
		}
		st := s.block(e).state()
		return s.cost(e), int64(len(appendEntry(nil, &st)))
	}
	w.send(`d1/ann`)
	m0, d0 := cost()
	var all []string
	for i := range 2 * recentMax {
		all = append(all, fmt.Sprintf(`d1 i%d`, i))
	}
	w.send(all...)
	m, d := cost()
	t.Logf("%d insert_ids: %d bytes in memory, %d in users.db", recentMax, m-m0, d-d0)
	// A block is up to an eighth larger than what is in it; an entry on disk has a tag and two lengths more.
	if most := int64(recentMax * recentBytes); m-m0 > most*9/8+unitBytes || d-d0 > most+8 {
		t.Errorf("%d bytes in memory and %d in users.db, for %d insert_ids", m-m0, d-d0, recentMax)
	}
}
