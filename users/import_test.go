package users

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ampcio/mapping"
)

// part is the digest of a part of an archive in these tests.
var partOfTests = [16]byte{1, 2, 3}

// take has lines taken, the first of which has a number.
func (w *world) take(seed bool, from uint64, all ...happening) Taken {
	w.t.Helper()
	l := Lines{Project: "app", Part: partOfTests, Received: w.clock.now().UnixMilli(), From: from, Upto: from + uint64(len(all)) - 1}
	for i, h := range all {
		if h.short == "" { // a bad line
			continue
		}
		l.Events = append(l.Events, h.event(w.t))
		l.Numbers = append(l.Numbers, from+uint64(i))
	}
	do := w.store.Import
	if seed {
		do = w.store.Seed
	}
	taken, err := do(context.Background(), l)
	if err != nil {
		w.t.Fatal(err)
	}
	return taken
}

func TestAnImportChangesNothingThatIsKnown(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.send(`d0/u0 i1 {"a":1}`)
	taken := w.take(false, 1,
		happening{-9, `d0/u0 old1 {"a":0,"b":0}`}, happening{-8, ``}, happening{-7, `d0/u1 old2 {"c":0}`}, happening{-6, `d0 old3 {"d":0}`},
		happening{-5, `d9 old4 {"e":0}`}, happening{-4, `d0/u0 i1 {"a":1}`}, happening{-3, `/u5 old5`})
	if want := (Taken{Place: 7, Stored: 5, Duplicates: 1}); taken != want {
		t.Errorf("%+v, want %+v", taken, want)
	}
	w.knows("user u0", `{"a":1}`)
	w.knows("user u1", `{}`)
	w.knows("device d0", `u0 {"a":1}`)
	w.knows("device d9", ` {}`)
	equalLines(t, w.recorded(), `d0/u0 {"a":1}`, `d0/u0 {"a":0,"b":0} past`, `d0/u1 {"c":0} past`, `d0/u0 {"d":0} past`, `d9/ {"e":0} past`, `/u5 {} past`)
	for i, r := range w.records()[1:] {
		if r.Source != mapping.SourceImport || r.Part != partOfTests || r.Place == 0 {
			t.Errorf("record %d: %+v", i, r)
		}
	}
	if w.send(`d0/u1 old2`) != 0 {
		t.Error("an import takes places in the memory for duplicates, which SDKs need")
	}
}

// An event has one identity, whichever way it comes.
func TestAnImportedEventIsTheOneOfTheSDK(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.take(false, 1, happening{-1, `d0/u0 i1`})
	w.send(`d0/u0 i1`)
	if r := w.records(); len(r) != 2 || r[0].ID != r[1].ID {
		t.Errorf("%d records, %x and %x", len(r), r[0].ID, r[1].ID)
	}
}

func TestLinesAreTakenOnceAndWithoutGaps(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	line := func(n int) happening { return happening{-100 + n, fmt.Sprintf("d0/u0 i%d", n)} }
	w.take(false, 1, line(1), line(2), line(3))
	if taken := w.take(false, 2, line(2), line(3), line(4)); taken != (Taken{Place: 4, Stored: 1, Before: 2}) {
		t.Errorf("overlapping: %+v", taken)
	}
	if taken := w.take(false, 6, line(6)); taken != (Taken{Place: 4, Gap: true}) {
		t.Errorf("behind a gap: %+v", taken)
	}
	if n := w.store.Place("app", partOfTests, true); n != 0 {
		t.Errorf("as seeds %d are taken", n)
	}
	if n := len(w.records()); n != 4 {
		t.Errorf("%d records", n)
	}
}

// What is seeded: each story on what is known before.
func TestSeeds(t *testing.T) {
	tests := []struct {
		name  string
		live  func(w *world)
		seeds []happening
		known []string
	}{
		{"nothing is known", nil, []happening{{-3, `d0/u0 i3 {"a":3}`}, {-4, `d0/u0 i2 {"a":2,"b":2}`}},
			[]string{"user u0", `{"a":3}`, "device d0", `u0 {"a":3}`}},
		{"in the wrong order", nil, []happening{{-4, `d0/u0 i2 {"a":2,"b":2}`}, {-3, `d0/u0 i3 {"a":3}`}},
			[]string{"user u0", `{"a":3}`}},
		{"an SDK knows something newer: what lacks is filled, once", func(w *world) { w.send(`d0/u0 i1 {"a":1}`) },
			[]happening{{-3, `d0/u0 i3 {"a":3,"b":3}`}, {-4, `d0/u0 i2 {"a":2,"c":2}`}},
			[]string{"user u0", `{"a":1,"b":3}`}},
		{"the webhook knows something newer: nothing lacks", func(w *world) { w.hook(happening{-2, `d0/u0 i1 {"a":1}`}) },
			[]happening{{-3, `d0/u0 i3 {"a":3,"b":3}`}}, []string{"user u0", `{"a":1}`}},
		{"the webhook knew something older", func(w *world) { w.hook(happening{-5, `d0/u0 i1 {"a":1,"c":1}`}) },
			[]happening{{-3, `d0/u0 i3 {"a":3,"b":3}`}}, []string{"user u0", `{"a":3,"b":3}`}},
		{"a device that was anonymous here is known there", func(w *world) { w.send(`d0 i1 {"seen":"page","a":1}`) },
			[]happening{{-3, `d0/u0 i3 {"a":3}`}}, []string{"device d0", `u0 {"a":3,"seen":"page"}`}},
		{"a device that is another's by now", func(w *world) { w.send(`d0/u1 i1`) },
			[]happening{{-3, `d0/u0 i3 {"a":3}`}}, []string{"device d0", `u1 {}`, "user u0", `{"a":3}`}},
		{"two users of one device: the last one has it", nil, []happening{{-3, `d0/u1 i3 {"b":3}`}, {-4, `d0/u0 i2 {"a":2}`}},
			[]string{"device d0", `u1 {"b":3}`, "user u0", `{"a":2}`}},
		{"nobody's device", nil, []happening{{-3, `d0 i3 {"a":3}`}}, []string{"device d0", ` {"a":3}`}},
		{"without properties", nil, []happening{{-3, `d0/u0 i3`}}, []string{"device d0", `u0 {}`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{}).run().runStore()
			defer w.stop()
			if test.live != nil {
				test.live(w)
			}
			before := len(w.records())
			w.take(true, 1, test.seeds...)
			if n := len(w.records()); n != before {
				t.Errorf("%d records are stored", n-before)
			}
			look := func(w *world) {
				t.Helper()
				for i := 0; i < len(test.known); i += 2 {
					w.knows(test.known[i], test.known[i+1])
				}
			}
			look(w)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := w.store.Checkpoint(ctx); err != nil {
				t.Fatal(err)
			}
			after := w.crash(Options{})
			defer after.stop()
			look(after)
			if n := after.store.Place("app", partOfTests, true); n != uint64(len(test.seeds)) {
				t.Errorf("%d of %d lines are taken", n, len(test.seeds))
			}
		})
	}
}

// A known user's device is not anonymous on the first day, and what it then does builds on what is known.
func TestAnSDKBuildsOnSeeds(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.take(true, 1, happening{-60, `d0/u0 i1 {"n":41,"plan":"pro"}`})
	w.send(`d0 i2 {"$add":{"n":1}}`)
	equalLines(t, w.recorded(), `d0/u0 {"n":42,"plan":"pro"}`)
}

// A device without a user is forgotten 30 days after it was seen, not after it was seeded.
func TestSeedsOfDevicesExpireInTheirTime(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.take(true, 1, happening{-29 * 24 * 60, `d0 i1 {"a":1}`})
	w.knows("device d0", ` {"a":1}`)
	w.clock.advance(48 * time.Hour)
	w.knows("device d0", ` {}`)
}

// An archive is taken as events and as seeds, in pieces that overlap, with crashes anywhere: no event is stored twice or
// missing, the order is that of the lines, and what was seeded is there as soon as the lines count as taken.
func TestImportsThroughCrashes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := Options{CheckpointEvery: time.Hour, CacheBytes: rapid.SampledFrom([]int64{1, 1 << 20}).Draw(rt, "cache")}
		w := start(t, t.TempDir(), o).run()
		w.store.perWrite = 2
		defer func() { w.stop() }()
		const lines = 30
		line := func(n uint64) happening {
			if n%7 == 0 {
				return happening{}
			}
			return happening{-int(n), fmt.Sprintf(`d%d/u%d i%d {"n":%d}`, n%3, n%5, n, n)}
		}
		events := func(upto uint64) (all []string) {
			for n := uint64(1); n <= upto; n++ {
				if h := line(n); h.short != "" {
					all = append(all, fmt.Sprintf(`d%d/u%d {"n":%d} past`, n%3, n%5, n))
				}
			}
			return all
		}
		again := func(after *world) {
			w.stop()
			w = after.run()
			w.store.perWrite = 2
		}
		rt.Repeat(map[string]func(*rapid.T){
			"lines": func(t *rapid.T) {
				seed := rapid.Bool().Draw(t, "seed")
				at := w.store.Place("app", partOfTests, seed)
				from := max(1, at+1-min(at, uint64(rapid.IntRange(0, 4).Draw(t, "back"))))
				var some []happening
				for n := from; n < from+uint64(rapid.IntRange(1, 6).Draw(t, "lines")) && n <= lines; n++ {
					some = append(some, line(n))
				}
				if len(some) > 0 {
					w.take(seed, from, some...)
				}
			},
			"checkpoint": func(t *rapid.T) {
				if err := w.store.checkpointNow(); err != nil {
					t.Fatal(err)
				}
			},
			"crash": func(t *rapid.T) { again(w.crash(o)) },
			"crash in a checkpoint": func(t *rapid.T) {
				left := rapid.IntRange(0, 6).Draw(t, "steps")
				w.failing = true
				w.store.interrupt = func(string) error {
					if left--; left < 0 {
						return errors.New("the power is cut")
					}
					return nil
				}
				w.store.checkpointNow()
				again(w.crash(o))
			},
			"": func(t *rapid.T) {
				at := w.store.Place("app", partOfTests, false)
				got, want := w.recorded(), events(at)
				if strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Fatalf("up to line %d the log has\n%s\nwant\n%s", at, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				seeded := w.store.Place("app", partOfTests, true)
				for u := range 5 {
					want := "{}"
					for n := uint64(1); n <= seeded; n++ { // the first line of a user is the newest
						if n%5 == uint64(u) && n%7 != 0 {
							want = fmt.Sprintf(`{"n":%d}`, n)
							break
						}
					}
					k, err := w.store.User("app", fmt.Sprintf("u%d", u))
					if err != nil {
						t.Fatal(err)
					}
					if string(k.Properties) != want && seeded > 0 && want != "{}" {
						t.Fatalf("seeded up to line %d: u%d has %s, want %s", seeded, u, k.Properties, want)
					}
				}
			},
		})
	})
}
