package bitrot

import (
	"math/rand/v2"
	"os"
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

var _ = os.Stdout
var _ = house.Sync
