package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/queue"
	"ampcio/rehearsal"
)

// spoilt overwrites a part of a file, from and to in hundredths of what is in it.
func spoilt(t testing.TB, path string, from, to int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.TrimRight(string(b), "\x00")) // bbolt's files have an empty end
	junk := make([]byte, len(b)*(to-from)/100)
	for i := range junk {
		junk[i] = byte(i*7 + 1)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(junk, int64(len(b)*from/100)); err != nil {
		t.Fatal(err)
	}
}

// readable counts what can be read of a bbolt file.
func readable(t testing.TB, path string) (entries int) {
	t.Helper()
	if err := queue.Salvage(path, func(string, []byte, []byte) error { entries++; return nil }); err != nil {
		t.Fatal(err)
	}
	return entries
}

// A file of the storage is damaged while ampcio is stopped. It starts all the same, says
// so, keeps the damaged file, delivers what is left once and in order, and the books
// balance: what is missing is counted as lost.
func TestDamagedFilesAtStart(t *testing.T) {
	t.Parallel()
	for _, tt := range fewUnderRace([]struct {
		name   string
		damage func(t *testing.T, storage string)
		says   string // in queue-stats
		kept   string // where the damaged file is
		lost   bool
	}{
		{"the ledger", func(t *testing.T, storage string) {
			path := filepath.Join(storage, "sync", "demo.db")
			// Where the pages in use stand is a matter of chance: the damage grows until it has met one.
			for whole, w := readable(t, path), 0; readable(t, path) == whole; w += 5 {
				spoilt(t, path, 30-w, 80+w)
			}
		},
			"the ledger of sync demo was damaged and is kept at ", "damaged/demo.db-*", false},
		{"all of the ledger", func(t *testing.T, storage string) { spoilt(t, filepath.Join(storage, "sync", "demo.db"), 0, 100) },
			"the ledger of sync demo was damaged and is kept at ", "damaged/demo.db-*", false},
		{"users.db", func(t *testing.T, storage string) { spoilt(t, filepath.Join(storage, "users.db"), 20, 60) },
			"records replayed from the log", "users.db.damaged-*", false},
		{"all of users.db", func(t *testing.T, storage string) { spoilt(t, filepath.Join(storage, "users.db"), 0, 100) },
			"0 users and devices were saved", "users.db.damaged-*", false},
		{"no users.db", func(t *testing.T, storage string) {
			if err := os.Remove(filepath.Join(storage, "users.db")); err != nil {
				t.Fatal(err)
			}
		}, "users.db had to be repaired: it was missing", "", false},
		{"the log", func(t *testing.T, storage string) {
			paths, _ := filepath.Glob(filepath.Join(storage, "log", "*.db"))
			for _, path := range paths {
				spoilt(t, path, 40, 70)
			}
		}, "a damaged log file is kept at ", "damaged/0*.db-*", true},
	}, 3) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{Storage: "rotate_bytes = \"1MiB\"\n", Sync: "requests_per_second = 1000\n"})
			up(t, r)
			const people, each = 30, 40
			post := func(from, to int) {
				t.Helper()
				for u := range people {
					accepted(t, r, padded(fmt.Sprintf("ann-%d", u), from, to, func() string { return noise(u + from)()[:400] }))
				}
			}
			post(1, each/2)
			drained(t, r)
			did(t, r, "sync", "pause", "demo")
			post(each/2+1, each)
			down(t, r)
			storage := filepath.Join(r.Dir, "storage")
			tt.damage(t, storage)
			if strings.Contains(tt.kept, "demo.db") {
				stopped := did(t, r, "queue-stats")
				contains(t, strings.Join(strings.Fields(stopped), " "), "the ledger of sync demo is damaged: what is pending is unknown until ampcio is started, which sets it aside and goes on",
					"books UNKNOWN")
				if strings.Contains(stopped, "balanced") {
					t.Errorf("books that nobody can read balance:\n%s", stopped)
				}
			}

			up(t, r)
			if tt.kept != "" {
				if kept, _ := filepath.Glob(filepath.Join(storage, tt.kept)); len(kept) == 0 {
					t.Errorf("no %s: the damaged file was not kept", tt.kept)
				}
			}
			if notes := strings.Join(stats(t, r).Notes, "\n"); !strings.Contains(notes, tt.says) {
				t.Errorf("queue-stats says %q, and nothing of %q", notes, tt.says)
			}
			did(t, r, "sync", "resume", "demo")
			accepted(t, r, numbered("bob-1", 1, 5)) // what comes now is taken as ever
			snap := drained(t, r)
			eventually(t, 20*time.Second, "what is missing was counted", func() bool { return only(t, stats(t, r)).Books.Balanced })
			y := only(t, snap)
			if (y.Totals.Lost > 0) != tt.lost || y.Totals.Dead != 0 {
				t.Errorf("%+v", y.Totals)
			}
			if got := run(t, "audit", "--config", r.ConfigPath); got.code != 0 || !strings.HasPrefix(got.stdout, "demo: balanced\n") {
				t.Errorf("audit: %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			report := r.Sandbox.Report()
			if o := report.Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Overlaps != 0 {
				t.Errorf("order: %+v", o)
			}
			if got := report.Events.Accepted + int64(y.Totals.Lost); got < people*each+5 || !tt.lost && got != people*each+5 {
				t.Errorf("Customer.io has %d events, %d are counted as lost, of %d", report.Events.Accepted, y.Totals.Lost, people*each+5)
			}
			if report.Events.Differing != 0 {
				t.Errorf("two events share the id %s", report.Events.FirstDiffering)
			}
		})
	}
}
