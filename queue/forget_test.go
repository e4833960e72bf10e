package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// forgetting does the steps of forgetting a lane, and what is after the last of them.
var forgetSteps = []string{"tombstone", "first ledger", "second ledger", "finished"}

func forgetLane(t testing.TB, l *Log, cs map[string]*Consumer, lane string, upTo string) (ts Tombstone) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	cleared := false
	ts, err := l.ForgetLanes(ctx, "app", Forgetting{Lanes: []string{lane}, Sent: []string{"id:" + lane}}, func(seq uint64) error {
		cleared = seq == l.Tail()
		return nil
	})
	if err != nil || !cleared {
		t.Fatalf("%v, cleared in its turn: %t", err, cleared)
	}
	if upTo != forgetSteps[0] {
		finishForgetting(t, l, cs, upTo)
	}
	return ts
}

func finishForgetting(t testing.TB, l *Log, cs map[string]*Consumer, upTo string) {
	t.Helper()
	for _, u := range l.Unfinished() {
		for i, name := range sortedKeys(cs) {
			if _, err := cs[name].Forget(t.Context(), u.Unfinished.Sent); err != nil {
				t.Fatal(err)
			}
			if upTo == forgetSteps[i+1] {
				return
			}
		}
		must(t, l.FinishForgetting(u.ID))
	}
}

// livedWith fills two consumers with what lane a has everywhere: delivered, dead, waiting in
// the window of p, in the side place of q, unread.
func livedWith(t testing.TB, h *house, cs map[string]*Consumer) {
	t.Helper()
	h.append("a:1", "b:1", "a:2", "b:2", "a:3", "c:1")
	for _, c := range cs {
		caughtUp(t, h, c)
		for range 3 {
			cl := mustClaim(t, c)
			lane := cl.Lane()
			out := []Outcome{{Ending: Delivered, SentKey: "id:" + lane, Sent: []byte("sent")}}
			if len(cl.Records()) > 1 {
				out = append(out, Outcome{Ending: Dead, Reason: "invalid", Results: []byte("[]")})
			}
			cl.Settle(out, time.Hour, "http_503")
		}
	}
	q := cs["q"]
	q.mu.Lock()
	q.moveAside(q.lanes.byKey["a"])
	q.mu.Unlock()
	h.append("a:4", "b:3")
	for _, c := range cs {
		must(t, c.Flush())
	}
}

// gone insists that a consumer has nothing of lane a up to a sequence.
func gone(t testing.TB, c *Consumer, upTo uint64) {
	t.Helper()
	must(t, c.Flush())
	err := eachDeadLetter(c.view, func(d DeadLetter) error {
		if d.Record.Lane == "a" && d.Record.Seq <= upTo {
			t.Errorf("%s: dead letter %d", c.o.Name, d.Record.Seq)
		}
		return nil
	})
	must(t, err)
	if v, err := c.Sent("id:a"); v != nil || err != nil {
		t.Errorf("%s still knows what was sent: %q %v", c.o.Name, v, err)
	}
	must(t, c.PendingRecords(t.Context(), func(r Record) error {
		if r.Lane == "a" && r.Seq <= upTo {
			t.Errorf("%s: %d is pending", c.o.Name, r.Seq)
		}
		return nil
	}))
	a, err := c.Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	mustStats(t, c)
}

// Whatever step a crash comes after, the next start forgets the whole person, and books
// balance; a rewind does not bring them back, and what comes later is somebody new's.
func TestForgetIsWholeAfterACrashAtAnyStep(t *testing.T) {
	for _, step := range forgetSteps {
		t.Run(step, func(t *testing.T) {
			dir := quickDir(t)
			o := options(dir)
			o.Keep, o.KeepBytes = time.Hour, 1<<30
			h, cs := mustOpen(t, o, "p", "q")
			livedWith(t, h, cs)
			ts := forgetLane(t, h.log, cs, "a", step)
			if ts.UpTo != 8 {
				t.Fatalf("up to %d", ts.UpTo)
			}
			after := quickDir(t)
			copyTree(t, dir, after) // all is at rest: what a power cut would leave
			for _, c := range cs {
				c.Forget(t.Context(), nil)
			}
			h.close(cs)

			o.Dir = after
			h, cs = mustOpen(t, o, "p", "q")
			if n := len(h.log.Unfinished()); (n == 1) != (step != "finished") {
				t.Fatalf("%d are unfinished", n)
			}
			finishForgetting(t, h.log, cs, "")
			if len(h.log.Unfinished()) != 0 {
				t.Fatal("not finished")
			}
			text, err := os.ReadFile(filepath.Join(after, tombstoneFile))
			if err != nil || !bytes.Contains(text, []byte(`"up_to":8`)) || bytes.Contains(text, []byte(`"names"`)) {
				t.Errorf("%s %v", text, err)
			}
			for _, c := range cs {
				caughtUp(t, h, c)
				gone(t, c, ts.UpTo)
			}
			if seqs, texts := readAll(t, h.log, 0); len(seqs) != 8 || slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, "a") }) {
				t.Errorf("a reader sees %v", texts)
			}
			h.append("a:5")
			c := cs["p"]
			if _, err := c.Rewind(t.Context(), 0, false, false); err != nil {
				t.Fatal(err)
			}
			got := drain(t, c)
			if fmt.Sprint(got["a"]) != "[a:5]" || len(got["b"]) != 3 || len(got) != 3 {
				t.Errorf("after a rewind it sends %v", got)
			}
			gone(t, c, ts.UpTo)
			h.close(cs)

			// Its records go with their file, and the tombstone with them.
			o.Keep, o.KeepBytes = 0, 0
			h, cs = mustOpen(t, o, "p", "q")
			for _, c := range cs {
				drain(t, c)
				must(t, c.Flush())
			}
			must(t, h.log.inTurn(t.Context(), h.log.rotate))
			h.append("b:4")
			for _, c := range cs {
				drain(t, c)
				must(t, c.Flush())
			}
			eventually(t, "the tombstone goes", func() bool {
				h.log.clean()
				h.log.dropTombstones()
				return len(h.log.forgotten.Load().list) == 0
			})
			h.close(cs)
		})
	}
}

// What is in flight cannot be called back: forgetting waits for it, its outcome counts, and
// leaves no memory.
func TestForgetWaitsForWhatIsInFlight(t *testing.T) {
	for _, story := range []struct {
		name string
		end  func(cl *Claim)
		want Books
	}{
		{"delivered", func(cl *Claim) {
			cl.Finish([]Outcome{{Ending: Delivered, SentKey: "id:a", Sent: []byte("x")}, {Ending: Delivered}})
		}, Books{Delivered: 2, Discarded: 1}},
		{"dead", func(cl *Claim) {
			cl.Finish([]Outcome{{Ending: Dead, Reason: "invalid"}, {Ending: Filtered, Reason: "x"}})
		}, Books{Filtered: 1, Discarded: 2}},
		{"failed", func(cl *Claim) { cl.Retry(time.Hour, "http_503") }, Books{Discarded: 3}},
		{"failed for the sixth time, while others get through", func(cl *Claim) {
			cl.c.mu.Lock()
			cl.c.flowing, cl.lane.retry.attempts = true, asideTries
			cl.c.delivered += 10
			cl.c.mu.Unlock()
			cl.Retry(time.Hour, "http_503")
		}, Books{Discarded: 3}},
		{"given back", func(cl *Claim) { cl.Return() }, Books{Discarded: 3}},
		{"the first delivered, the rest failed", func(cl *Claim) { cl.Settle(delivered(1), time.Hour, "http_503") }, Books{Delivered: 1, Discarded: 2}},
		{"trimmed", func(cl *Claim) { cl.Trim(1); cl.Finish(delivered(1)) }, Books{Delivered: 1, Discarded: 2}},
	} {
		for _, aside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, aside: %t", story.name, aside), func(t *testing.T) {
				h, cs := mustOpen(t, options(quickDir(t)), "p")
				c := cs["p"]
				h.append("a:1", "a:2", "b:1")
				caughtUp(t, h, c)
				cl := mustClaim(t, c)
				for cl.Lane() != "a" {
					cl.Retry(time.Hour, "not this one")
					cl = mustClaim(t, c)
				}
				if aside {
					c.mu.Lock()
					c.moveAside(cl.lane)
					c.mu.Unlock()
				}
				h.append("a:3")
				caughtUp(t, h, c)
				ts := forgetLane(t, h.log, cs, "a", forgetSteps[0])
				soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
				if _, err := c.Forget(soon, nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("it did not wait: %v", err)
				}
				stop()
				story.end(cl)
				c.mu.Lock()
				if c.state.ended[Dead] != 0 || c.sentNew["id:a"] != nil || c.inFlight != 0 {
					t.Errorf("its answer leaves %d dead letters, %q that was sent, %d in flight", c.state.ended[Dead], c.sentNew["id:a"], c.inFlight)
				}
				c.mu.Unlock()
				_, err := c.Forget(t.Context(), []string{"id:a"})
				must(t, err)
				gone(t, c, ts.UpTo)
				got := mustStats(t, c).Books
				if got.Delivered != story.want.Delivered || got.Filtered != story.want.Filtered || got.Discarded != story.want.Discarded || got.Dead != 0 || got.Pending != 1 {
					t.Errorf("%+v", got)
				}
				h.append("a:4")
				cl = mustClaim(t, c)
				for cl.Lane() != "a" {
					cl.Retry(time.Hour, "not this one")
					cl = mustClaim(t, c)
				}
				if bodies(cl.Records()) != "a:4 " || cl.Attempts() != 0 {
					t.Errorf("somebody new begins with %q, after %d tries", bodies(cl.Records()), cl.Attempts())
				}
				cl.Finish(delivered(1))
				h.close(cs)
			})
		}
	}
}

// A chunk that was read before somebody was forgotten, and is taken behind that.
func TestForgetWhatIsOnItsWayIntoTheWindow(t *testing.T) {
	dir := quickDir(t)
	l, err := Open(options(dir))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	w := newWriter(l.end, nil)
	must(t, batch("a:1", "b:1").Resolve(&w))
	chunks := w.finish()
	must(t, l.commit(chunks, logEnd{2, w.counts}))
	close(l.publish(chunks, logEnd{2, w.counts}))
	chunk, err := l.Reader(0).Try()
	must(t, err)
	forgetLane(t, l, map[string]*Consumer{"p": c}, "a", "finished")
	must(t, c.take(chunk, c.epoch))
	if st := mustStats(t, c); st.Books.Pending != 1 || st.Books.Discarded != 1 || st.Tallies[forgottenTally.Key].N != 1 {
		t.Errorf("%+v", st)
	}
	must(t, c.Close())
	must(t, l.Close())
}

// Random work, with lanes forgotten while it goes on, and lives that end at any moment: no
// lane is ever claimed again up to where it was forgotten, and the books always balance.
func TestForgetUnderLoad(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := quickDir(t)
	o := small(dir)
	o.Keep, o.KeepBytes = time.Hour, 1<<30
	upTo := map[string]uint64{}
	for life := range 3 {
		h, cs := mustOpen(t, o, "p", "q")
		finishForgetting(t, h.log, cs, "")
		ctx, stop := context.WithCancel(t.Context())
		var claimers []chan error
		for _, c := range cs {
			c.Flowing(true)
			for w := range 2 {
				done := make(chan error, 1)
				claimers = append(claimers, done)
				mine := rand.New(rand.NewPCG(seed, uint64(life*10+w)))
				go func() {
					for {
						cl, err := c.Claim(ctx)
						if err != nil {
							done <- nil
							return
						}
						settleSomehow(cl, mine)
					}
				}()
			}
		}
		for round := range 40 {
			h.fill("app", 1+random.IntN(30), 20)
			if round%4 != 3 {
				continue
			}
			lane := fmt.Sprint(random.IntN(8))
			step := forgetSteps[random.IntN(len(forgetSteps))]
			ts := forgetLane(t, h.log, cs, lane, step)
			upTo[lane] = ts.UpTo
			if step != "finished" {
				continue // the next round, or life, finishes it
			}
			for _, c := range cs {
				if _, err := c.Rewind(t.Context(), int64(random.IntN(int(h.log.Tail())))*1000, true, false); err != nil {
					t.Fatal(err)
				}
				c.mu.Lock()
				for name, l := range c.lanes.byKey {
					if len(l.records) > 0 && l.records[0].rec.Seq <= upTo[name] {
						t.Errorf("lane %s has record %d again, forgotten up to %d", name, l.records[0].rec.Seq, upTo[name])
					}
				}
				c.mu.Unlock()
			}
		}
		stop()
		for _, done := range claimers {
			must(t, <-done)
		}
		for _, c := range cs {
			a, err := c.Audit(t.Context())
			must(t, err)
			mustBalance(t, a)
		}
		h.close(cs)
	}
	h, cs := mustOpen(t, o, "p", "q")
	finishForgetting(t, h.log, cs, "")
	for _, c := range cs {
		caughtUp(t, h, c)
		must(t, eachDeadLetter(c.view, func(d DeadLetter) error {
			if d.Record.Seq <= upTo[d.Record.Lane] {
				t.Errorf("dead letter %d of lane %s, forgotten up to %d", d.Record.Seq, d.Record.Lane, upTo[d.Record.Lane])
			}
			return nil
		}))
		a, err := c.Audit(t.Context())
		must(t, err)
		mustBalance(t, a)
	}
	h.close(cs)
}

// A damaged line is put aside and the others count; one of a later version is refused.
func TestTombstonesThatCannotBeRead(t *testing.T) {
	dir := quickDir(t)
	h, cs := mustOpen(t, options(dir), "p")
	h.append("a:1", "b:1")
	forgetLane(t, h.log, cs, "a", "finished")
	forgetLane(t, h.log, cs, "b", "finished")
	h.close(cs)
	path := filepath.Join(dir, tombstoneFile)
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, bytes.Replace(text, []byte(`"up_to":2`), []byte(`"up_to":3`), 1), 0o600))
	h, cs = mustOpen(t, options(dir), "p")
	if n := len(h.log.forgotten.Load().list); n != 1 || len(h.log.SetAside()) != 1 {
		t.Errorf("%d tombstones, %+v", n, h.log.SetAside())
	}
	if h.log.Forgotten("app", "a", 1) || !h.log.Forgotten("app", "b", 2) || h.log.Forgotten("app", "b", 3) || h.log.Forgotten("other", "b", 2) {
		t.Error("not those of the whole line")
	}
	h.close(cs)
	list, _, err := readTombstones(path)
	must(t, err)
	must(t, writeTombstones(path, list))
	text, err = os.ReadFile(path)
	must(t, err)
	line := bytes.Replace(text[9:len(text)-1], []byte(`"v":1`), []byte(`"v":9`), 1)
	must(t, os.WriteFile(path, fmt.Appendf(nil, "%08x %s\n", crcOf(line), line), 0o600))
	if _, err := Open(options(dir)); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("%v", err)
	}
}

// A backup holds who was forgotten; nobody is forgotten while one is made.
func TestBackupKeepsTombstones(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p", "q")
	livedWith(t, h, cs)
	forgetLane(t, h.log, cs, "a", "finished")
	var b bytes.Buffer
	_, err := h.log.Backup(t.Context(), &b, backupOptions(cs))
	must(t, err)
	slow := &asked{t.Context(), func() {
		if _, err := h.log.BarBackups(); !errors.Is(err, ErrBackupRuns) {
			t.Error("somebody could be forgotten while a backup is made")
		}
	}}
	_, err = h.log.Backup(slow, &bytes.Buffer{}, backupOptions(cs))
	must(t, err)
	letGo, err := h.log.BarBackups()
	must(t, err)
	letGo()
	h.close(cs)
	dir, _ := restored(t, b.Bytes())
	h, cs = mustOpen(t, options(dir), "p", "q")
	caughtUp(t, h, cs["p"])
	gone(t, cs["p"], 8)
	if _, texts := readAll(t, h.log, 0); slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, "a") }) {
		t.Errorf("a restore brings back %v", texts)
	}
	h.close(cs)
}
