package bitrot

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"ampcio-faults/house"
	"ampcio-faults/scoreboard"
)

// folder is a storage folder of some lives, and what is known of it.
func folder(t *testing.T, seed uint64) *whole {
	t.Helper()
	memory := t.TempDir()
	dir, journal := filepath.Join(memory, "storage"), filepath.Join(memory, "journal")
	c := &scoreboard.Case{Seed: seed, Rand: rand.New(rand.NewPCG(seed, 1))}
	if err := prepare(t.Context(), c, dir, journal); err != nil {
		t.Fatal(err)
	}
	w, err := look(dir, journal, filepath.Join(memory, "flipped"), seed)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// The same chances choose the same damage, and it is done to that file and no other.
func TestFlipsHold(t *testing.T) {
	w := folder(t, 11)
	for i := range uint64(100) {
		f, err := pick(rand.New(rand.NewPCG(11, i)), w.dir)
		if err != nil {
			t.Fatal(err)
		}
		again, err := pick(rand.New(rand.NewPCG(11, i)), w.dir)
		if err != nil || again.text != f.text || again.at != f.at {
			t.Fatalf("%q, again %q, %v", f.text, again.text, err)
		}
		if err := w.try(f); err != nil {
			t.Errorf("%s: %v", f.text, err)
		}
	}
}

// A judge of one flip says what is wrong: what never came and is not counted, what is counted and came, what came that had
// ended, what is lost without a trace of the damage.
func TestTheJudgeSees(t *testing.T) {
	w := &whole{flipped: t.TempDir(), journal: &house.Journal{Acked: map[int]int{}}, pending: map[event]bool{{0, 2}: true, {0, 3}: true}, taken: 3}
	w.journal.Acked[0] = 3
	for _, test := range []struct {
		name    string
		claimed []event
		lost    uint64
		taken   uint64
		right   bool
	}{
		{"all came", []event{{0, 2}, {0, 3}}, 0, 3, true},
		{"one never came", []event{{0, 2}}, 0, 3, false},
		{"one never came, and no damaged file is kept", []event{{0, 2}}, 1, 3, false},
		{"one is counted as lost, and came", []event{{0, 2}, {0, 3}}, 1, 3, false},
		{"one came that had ended", []event{{0, 1}, {0, 2}, {0, 3}}, 0, 3, false},
		{"one was never taken", []event{{0, 2}, {0, 3}}, 0, 2, false},
	} {
		j := &judge{whole: w, file: "log/00000000000000000001.db", claimed: map[event]bool{}}
		for _, e := range test.claimed {
			j.claimed[e] = true
		}
		j.books.Taken, j.books.Lost = test.taken, test.lost
		j.books.Delivered = test.taken - test.lost
		if err := j.settled(); (err == nil) != test.right {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
