package queue

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A log that has lost its newest file, and with it all that told of its last records, counts these as lost when somebody
// else knows where it ended; their sequences are not used again.
func TestWhatOthersKnowOfALostEndIsCounted(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "sync")
	h.fill("app", 10, 0)
	drain(t, cs["sync"])
	h.close(cs)
	h, _ = mustOpen(t, o)
	h.fill("app", 5, 0)
	h.fill("other", 3, 0)
	end := h.log.End()
	h.close(nil)
	for range 2 { // the second time it is known already
		must(t, os.RemoveAll(filepath.Join(o.Dir, "log")))
		l, err := Open(o)
		must(t, err)
		if raised, err := l.SeenEnd(end); err != nil || !raised || l.Tail() != 18 || l.Count("app") != 15 || l.Count("other") != 3 {
			t.Fatalf("raised %t, %v; the log ends with %d: %d, %d", raised, err, l.Tail(), l.Count("app"), l.Count("other"))
		}
		if raised, err := l.SeenEnd(end); err != nil || raised {
			t.Fatalf("once more: raised %t, %v", raised, err)
		}
		must(t, l.Close())
	}
	h, cs = mustOpen(t, o, "sync")
	h.append("a1")
	drain(t, cs["sync"])
	if b := mustStats(t, cs["sync"]).Books; b.Taken != 16 || b.Lost != 5 || b.Delivered != 11 || b.Difference() != 0 {
		t.Errorf("%+v", b)
	}
	h.close(cs)
	end[3] ^= 1
	l, err := Open(o)
	must(t, err)
	if _, err := l.SeenEnd(end); !errors.Is(err, ErrDamaged) {
		t.Errorf("of an end that is not what was given: %v", err)
	}
	must(t, l.Close())
}

// A project that has no records is nothing that a log could have lost: of a sync that was added and removed again a ledger
// knew the project, and users.db wrote that down.
func TestAProjectWithoutRecordsIsNotMissed(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "sync")
	h.fill("app", 3, 0)
	drain(t, cs["sync"])
	h.close(cs)
	l, err := Open(o)
	must(t, err)
	fresh := consumerOptions("new")
	fresh.Project = "new"
	c, err := OpenConsumer(l, fresh)
	must(t, err)
	must(t, c.Close())
	must(t, l.Close())
	l, err = Open(o) // it has met the new ledger
	must(t, err)
	end := l.End()
	must(t, l.Close())
	must(t, os.Remove(ledgerPath(o.Dir, "new")))
	l, err = Open(o)
	must(t, err)
	defer l.Close()
	if raised, err := l.SeenEnd(end); err != nil || raised || l.Tail() != 3 {
		t.Errorf("raised %t, %v; the log ends with %d", raised, err, l.Tail())
	}
	// Nor is one that a version before this has written down.
	older := logEnd{seq: 3, counts: map[string]uint64{"app": 3, "new": 0}}
	if raised, err := l.SeenEnd(seal(keyEnd, older.append(nil))); err != nil || raised || l.Tail() != 3 {
		t.Errorf("of an older version: raised %t, %v; the log ends with %d", raised, err, l.Tail())
	}
}
