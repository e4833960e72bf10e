package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A trial that does not get on keeps no file of the log and lets nothing be refused; what
// was deleted before it came to it is counted. It begins where it was after a restart,
// and what is left of it can be removed.
func TestATrialKeepsNothing(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, TrialsFolder), 0o700))
	o := options(dir)
	o.RotateBytes, o.Keep, o.KeepBytes = 256<<10, time.Hour, 1<<20
	trial := consumerOptions("p.dry")
	trial.Trial, trial.WindowBytes = true, 64<<10
	h, cs := mustOpenAs(t, o, consumerOptions("p"), trial)
	cs["p.dry"].SetBound(1, false)
	cs["p.dry"].SetBound(0, false)
	for range 8 {
		h.fill("app", 1000, 1800)
		drain(t, cs["p"])
	}
	eventually(t, "old files go", func() bool { h.log.clean(); return h.log.files[0].first > 1 })
	drain(t, cs["p.dry"])
	st := mustStats(t, cs["p.dry"])
	if st.Books.Taken != 8000 || st.Books.Lost == 0 || st.Books.Delivered+st.Books.Lost != 8000 {
		t.Errorf("%+v", st.Books)
	}
	if names, err := Ledgers(dir); err != nil || fmt.Sprint(names) != "[p]" {
		t.Errorf("ledgers %v, %v", names, err)
	}
	h.close(cs)

	h, cs = mustOpenAs(t, o, consumerOptions("p"), trial)
	h.fill("app", 10, 0)
	got := drain(t, cs["p.dry"])
	if n := mustStats(t, cs["p.dry"]).Books.Taken; n != 8010 || len(got) != 8 {
		t.Errorf("taken %d, %d lanes", n, len(got))
	}
	h.close(cs)
	names, err := Trials(dir)
	if err != nil || fmt.Sprint(names) != "[p.dry]" {
		t.Errorf("trials %v, %v", names, err)
	}
	must(t, RemoveTrial(dir, "p.dry"))
	must(t, RemoveTrial(dir, "p.dry"))
	if _, err := os.Stat(filepath.Join(dir, TrialsFolder, "p.dry.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// The bytes of trials are not the log's: a trial that writes much fills no storage.max_bytes.
func TestATrialFillsNothing(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, TrialsFolder), 0o700))
	h, cs := mustOpen(t, options(dir), "p")
	defer h.close(cs)
	before := h.log.Stats().Used
	must(t, os.WriteFile(filepath.Join(dir, TrialsFolder, "p.jsonl"), make([]byte, 1<<20), 0o600))
	if after := h.log.Stats().Used; after != before {
		t.Errorf("%d bytes used before, %d after", before, after)
	}
}

// A damaged ledger of a trial is nothing to be saved.
func TestADamagedTrialIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, TrialsFolder), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, TrialsFolder, "p.dry.db"), make([]byte, 1<<16), 0o600))
	l, err := Open(options(dir))
	must(t, err)
	defer l.Close()
	o := consumerOptions("p.dry")
	o.Trial = true
	if _, err := OpenConsumer(l, o); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

// What came while a consumer was not enabled can be taken later: all of it and nothing
// else, in the order of the log, with books that balance.
func TestTakeSince(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			chance := rand.New(rand.NewPCG(seed, 1))
			h, cs := mustOpen(t, options(t.TempDir()), "p")
			defer h.close(cs)
			c := cs["p"]
			taken := map[uint64]bool{}
			on := true
			for range 3 + chance.IntN(5) {
				first := h.log.Tail() + 1
				h.fill("app", chance.IntN(12), 0)
				if chance.IntN(3) == 0 {
					h.fill("other", 1+chance.IntN(3), 0)
				}
				for seq := first; on && seq <= h.log.Tail(); seq++ {
					taken[seq] = true
				}
				if chance.IntN(2) == 0 {
					drain(t, c)
				}
				if chance.IntN(2) == 0 {
					on = !on
					must(t, c.SetEnabled(on))
				}
			}
			must(t, c.SetEnabled(true))
			h.fill("app", 3, 0)
			tail := h.log.Tail()
			since := 1 + chance.Uint64N(tail)
			dry, err := c.TakeSince(t.Context(), int64(since)*1000, false, true)
			must(t, err)
			if pending := mustStats(t, c).Books.Pending; chance.IntN(2) == 0 && pending > 0 {
				drain(t, c)
				dry, err = c.TakeSince(t.Context(), int64(since)*1000, false, true)
				must(t, err)
			}
			want, again := map[string][]string{}, uint64(0)
			app := func(f func(Record)) {
				must(t, h.log.Records(since, tail, func(r Record) error {
					if r.Project == "app" {
						f(r)
					}
					return nil
				}))
			}
			app(func(r Record) {
				want[r.Lane] = append(want[r.Lane], string(r.Body))
				if !taken[r.Seq] && r.Seq <= tail-3 {
					again++
				}
			})
			must(t, c.Pause())
			re, err := c.TakeSince(t.Context(), int64(since)*1000, false, false)
			must(t, err)
			if re != dry || re.Untaken != again {
				t.Errorf("%+v, the dry run said %+v, want %d untaken", re, dry, again)
			}
			must(t, c.Resume())
			got := drain(t, c)
			for lane, bodies := range want {
				have := got[lane]
				if len(have) < len(bodies) || fmt.Sprint(have[len(have)-len(bodies):]) != fmt.Sprint(bodies) {
					t.Errorf("lane %s: %v, want %v last", lane, have, bodies)
				}
			}
			a, err := c.Audit(t.Context())
			if err != nil || !a.Balanced() {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}
