package queue

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

func TestAPauseHoldsOverRestarts(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	h.append("a:1", "b:1")
	inFlight := mustClaim(t, cs["p"])
	must(t, cs["p"].Pause())
	since := mustStats(t, cs["p"]).PausedSince
	if since == 0 {
		t.Error("not paused")
	}
	if cl := cs["p"].TryClaim(); cl != nil {
		t.Error("claimed in a pause")
	}
	inFlight.Finish(delivered(1)) // what is in flight ends
	h.append("a:2")
	h.close(cs)

	h, cs = mustOpen(t, o, "p")
	defer func() { h.close(cs) }()
	c := cs["p"]
	caughtUp(t, h, c)
	if cl := c.TryClaim(); cl != nil {
		t.Error("claimed in a pause, after a restart")
	}
	must(t, c.Pause())
	if st := mustStats(t, c); st.PausedSince != since || st.Books.Pending != 2 {
		t.Errorf("%+v", st)
	}
	must(t, c.Resume())
	if got := drain(t, c); len(got["a"])+len(got["b"]) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestDisabledAndEnabledWhileItRuns(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	h.append("a:1")
	must(t, c.SetEnabled(false))
	h.append("a:not taken")
	must(t, c.SetEnabled(false))
	must(t, c.SetEnabled(true))
	h.append("a:2")
	if got := drain(t, c); !slices.Equal(got["a"], []string{"a:1", "a:2"}) {
		t.Errorf("got %v", got)
	}
	if st := mustStats(t, c); st.Books.Taken != 2 || !st.Enabled {
		t.Errorf("%+v", st)
	}
	h.close(cs)
	h, cs = mustOpen(t, o, "p")
	defer h.close(cs)
	if st := mustStats(t, cs["p"]); st.Books.Taken != 2 || st.Books.Delivered != 2 {
		t.Errorf("after a restart: %+v", st)
	}
}

// The memory of what people were sent belongs to a workspace.
func TestAnotherWorkspace(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	must(t, c.EnterWorkspace(7, false))
	send := func(body string) {
		h.append(body)
		cl := mustClaim(t, c)
		cl.Hold("id:a")
		cl.Finish([]Outcome{{Ending: Delivered, SentKey: "id:a", Sent: []byte(body)}})
	}
	memory := func() string {
		v, err := c.sent("id:a")
		must(t, err)
		return string(v)
	}
	send("a:1")
	must(t, c.EnterWorkspace(7, false))
	if memory() != "a:1" {
		t.Error("forgotten though the workspace is the same")
	}
	h.append("a:2")
	caughtUp(t, h, c)
	if err := c.EnterWorkspace(8, false); !errors.Is(err, ErrOtherWorkspace) || memory() != "a:1" || c.Workspace() != 7 {
		t.Errorf("with something pending: %v, workspace %d", err, c.Workspace())
	}
	must(t, c.EnterWorkspace(8, true))
	if memory() != "" || c.Workspace() != 8 {
		t.Errorf("forced: %q, workspace %d", memory(), c.Workspace())
	}
	drain(t, c)
	send("a:3")
	if memory() != "a:3" {
		t.Error("what was sent there is not remembered")
	}
	must(t, c.EnterWorkspace(9, false)) // nothing is pending
	if memory() != "" {
		t.Error("remembered over a change")
	}
	h.close(cs)
	h, cs = mustOpen(t, o, "p")
	defer h.close(cs)
	c = cs["p"]
	if memory() != "" || c.Workspace() != 9 {
		t.Errorf("after a restart: %q, workspace %d", memory(), c.Workspace())
	}
}

func TestMemoryIsForgottenBeforeItIsWritten(t *testing.T) {
	l, err := Open(options(t.TempDir()))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	defer func() { must(t, errors.Join(c.Close(), l.Close())) }()
	must(t, c.EnterWorkspace(1, false))
	remember := func(v string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sentNew["id:a"] = []byte(v)
		c.touch()
	}
	remember("old")
	must(t, c.Flush())
	c.mu.Lock()
	c.forget = true
	c.touch()
	running := c.takeChanges(true)
	c.mu.Unlock()
	if v, _ := c.sent("id:a"); v != nil {
		t.Errorf("%q while it is being forgotten", v)
	}
	remember("new")
	full := errors.New("no space")
	c.putOff(full, running)
	if v, _ := c.sent("id:a"); string(v) != "new" {
		t.Errorf("%q", v)
	}
	must(t, c.Flush())
	if v, _ := c.sent("id:a"); string(v) != "new" {
		t.Errorf("%q in the end", v)
	}
}

func TestARewindWaitsForWhatIsInFlight(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a:1", "b:1", "c:1")
	mustClaim(t, c).Finish([]Outcome{{Ending: Filtered, Reason: "not_selected"}})
	cl := mustClaim(t, c)
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := c.Rewind(short, 0, false, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it did not wait: %v", err)
	}
	done := make(chan Rewound)
	go func() {
		re, err := c.Rewind(t.Context(), 0, false, false)
		if err != nil {
			t.Error(err)
		}
		done <- re
	}()
	eventually(t, "it holds the claims", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.held > 0
	})
	cl.Finish([]Outcome{{Ending: Dead, Reason: "invalid"}})
	if re := <-done; re != (Rewound{Records: 1, DeadLetters: 1, Pending: 1, From: 1000}) {
		t.Errorf("%+v", re)
	}
	if got := drain(t, c); len(got) != 3 {
		t.Errorf("got %v", got)
	}
	st := mustStats(t, c)
	if want := (Books{Taken: 3, Rewound: 1, Filtered: 1, Delivered: 3}); st.Books != want || st.LastRewind == 0 || st.DeadBytes != 0 {
		t.Errorf("%+v", st)
	}
}

func TestARewindSaysWhatIsNoLongerKept(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes, o.Keep, o.KeepBytes = 256<<10, time.Hour, 1<<20
	h, cs := mustOpen(t, o, "p")
	defer h.close(cs)
	c := cs["p"]
	for range 8 {
		h.fill("app", 2000, 300)
	}
	drain(t, c)
	eventually(t, "old files go", func() bool { h.log.clean(); return h.log.files[0].first > 1 })
	kept, err := h.log.Kept()
	must(t, err)
	re, err := c.Rewind(t.Context(), 0, false, false)
	if !errors.Is(err, ErrNotKept) || re.From != kept {
		t.Errorf("%+v, %v; kept since %d", re, err, kept)
	}
	tail := int64(h.log.Tail())
	dry, err := c.Rewind(t.Context(), kept, true, true)
	must(t, err)
	if dry.Records != uint64(tail-kept/1000+1) {
		t.Errorf("%+v", dry)
	}
	if st := mustStats(t, c); st.Books.Pending != 0 || st.Books.Rewound != 0 {
		t.Errorf("a dry run changed %+v", st.Books)
	}
	seen := uint64(0)
	must(t, c.RecordsSince(t.Context(), (tail-9)*1000, false, func(Record) error { seen++; return nil }))
	if seen != 10 {
		t.Errorf("%d records since then", seen)
	}
	re, err = c.Rewind(t.Context(), (tail-9)*1000, false, false)
	must(t, err)
	if got := drain(t, c); re.Records != 10 || len(got) != 8 {
		t.Errorf("%+v, got %d lanes", re, len(got))
	}
}

// Whoever only asks what a rewind would take does not stop deliveries, nor waits for a
// request that hangs.
func TestADryRunOfARewindHoldsNobodyUp(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a:1", "b:1", "c:1")
	mustClaim(t, c).Finish(delivered(1))
	hangs := mustClaim(t, c)
	limit, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	re, err := c.Rewind(limit, 0, true, true)
	if want := (Rewound{Records: 1, Pending: 2, From: 1000}); err != nil || re != want {
		t.Errorf("%+v, %v", re, err)
	}
	cl := c.TryClaim()
	if cl == nil {
		t.Fatal("nobody else is delivered")
	}
	cl.Finish(delivered(1))
	hangs.Finish(delivered(1))
	if st := mustStats(t, c); st.Books.Delivered != 3 || st.Books.Rewound != 0 {
		t.Errorf("%+v", st.Books)
	}
}

// A rewind goes back over a part of the log that is damaged. The dead letter and the
// record of the side place that were in it are whole in the ledger: they stay. What the log
// had of them is taken once more, and lost: the books know of a place in the log, not what
// was there.
func TestARewindOverDamageKeepsWholeCopies(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes, o.Keep, o.KeepBytes = 64<<10, time.Hour, 1<<30
	h, c, closeAll := flowingConsumer(t, o, 1<<20)
	h.append("first:1")
	aside := "F:aside" + noise(4, 300)
	h.append("D:dead"+noise(3, 300), aside)
	for range 3 {
		switch cl := mustClaim(t, c); cl.Lane() {
		case "D":
			cl.Finish([]Outcome{{Ending: Dead, Reason: "invalid"}})
		case "F":
			cl.Retry(time.Hour, "http_500")
		default:
			cl.Finish(delivered(1))
		}
	}
	sideplaced(t, h, c)
	h.fill("app", 400, 300)
	for n := 400; n > 0; {
		n -= len(deliver(t, c, "F", time.Hour))
	}
	closeAll()
	path := logPaths(t, o.Dir)[0]
	whole, err := os.ReadFile(path)
	must(t, err)
	damaged := bytes.ReplaceAll(whole, []byte("F:aside"), []byte("F:bside"))
	if bytes.Equal(whole, damaged) {
		t.Fatal("not found in the file")
	}
	must(t, os.WriteFile(path, damaged, 0o600))

	h, c, closeAll = flowingConsumer(t, o, 1<<20)
	defer closeAll()
	re, err := c.Rewind(t.Context(), 0, true, false)
	must(t, err)
	caughtUp(t, h, c)
	c.Hasten(time.Time{})
	if got := drain(t, c); !slices.Equal(got["F"], []string{aside}) || !slices.Equal(got["first"], []string{"first:1"}) {
		t.Errorf("%d of F, %d of first, in order: what was whole is gone, or came twice", len(got["F"]), len(got["first"]))
	}
	if st := mustStats(t, c); st.Books.Dead != 1 || st.DeadKept != 1 || st.Books.Lost != 2 || re.DeadLetters != 0 {
		t.Errorf("%+v, %+v", st.Books, re)
	}
}

func TestDeadLettersExpire(t *testing.T) {
	now := atomic.Int64{}
	now.Store(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	o := options(t.TempDir())
	o.Now = func() time.Time { return time.UnixMilli(now.Load()) }
	h, cs := mustOpen(t, o, "p")
	defer h.close(cs)
	c := cs["p"]
	bury := func(n int) {
		h.fill("app", n, 100)
		for left := n; left > 0; {
			cl := mustClaim(t, c)
			left -= len(cl.Records())
			out := delivered(len(cl.Records()))
			for i := range out {
				out[i] = Outcome{Ending: Dead, Reason: "invalid"}
			}
			cl.Finish(out)
		}
		must(t, c.Flush())
	}
	bury(2500)
	now.Add((48 * time.Hour).Milliseconds())
	bury(10)
	c.SetDeadLetterBounds(72*time.Hour, 0)
	must(t, c.keepHouse())
	if st := mustStats(t, c); st.DeadKept != 2510 {
		t.Errorf("%d kept before their time", st.DeadKept)
	}
	now.Add((25 * time.Hour).Milliseconds())
	for range 4 { // some at a look
		must(t, c.keepHouse())
	}
	st := mustStats(t, c)
	if st.DeadKept != 10 || st.Books.Discarded != 2500 || st.Tallies["record/discarded/dead_letter_expired"].N != 2500 {
		t.Errorf("%+v", st)
	}
	must(t, c.Flush())
	each := st.DeadBytes / 10
	c.SetDeadLetterBounds(0, 4*each+each/2)
	must(t, c.keepHouse())
	must(t, c.Flush())
	var left []uint64
	must(t, c.DeadLetters(func(d DeadLetter) error { left = append(left, d.Record.Seq); return nil }))
	if !slices.Equal(left, []uint64{2507, 2508, 2509, 2510}) || mustStats(t, c).DeadKept != 4 {
		t.Errorf("left: %v", left)
	}
}

// A sync that takes too much of the disk is bounded, in the way that was chosen.
func TestTooMuchPending(t *testing.T) {
	t.Run("new ones are refused, unless the operator holds it", func(t *testing.T) {
		h, cs := mustOpen(t, options(t.TempDir()), "p")
		defer h.close(cs)
		c := cs["p"]
		c.SetBound(300<<10, false)
		full := func() bool { return isFull(h.log.Append(context.Background(), batch("a:1"))) }
		if h.fill("app", 1000, 400); full() {
			t.Error("refused though the sync never said that it may")
		}
		c.MayRefuse(true)
		if !full() || h.log.Stats().Full == "" {
			t.Error("not refused")
		}
		must(t, c.Pause())
		if full() {
			t.Error("a paused sync made it refuse")
		}
		must(t, c.Resume())
		if !full() {
			t.Error("not refused after the pause")
		}
		must(t, c.SetEnabled(false))
		if full() {
			t.Error("a disabled sync made it refuse")
		}
		must(t, c.SetEnabled(true))
		drain(t, c)
		eventually(t, "it takes again", func() bool { return !full() })
	})
	t.Run("the oldest are given up", func(t *testing.T) {
		o := options(t.TempDir())
		o.RotateBytes = 256 << 10
		co := consumerOptions("p")
		co.WindowBytes = 64 << 10
		h, cs := mustOpenAs(t, o, co)
		defer h.close(cs)
		c := cs["p"]
		c.Flowing(true)
		h.append("S:aside")
		caughtUp(t, h, c)
		c.mu.Lock()
		c.moveAside(c.lanes.byKey["S"])
		c.mu.Unlock()
		inFlight := mustClaim(t, c)
		c.SetBound(400<<10, true)
		h.fill("app", 4000, 300)
		eventually(t, "enough is given up", func() bool {
			st := mustStats(t, c)
			return st.Books.Discarded > 1000 && st.PendingBytes <= 400<<10
		})
		if inFlight.Lane() != "S" {
			t.Fatal(inFlight.Lane())
		}
		inFlight.Finish(delivered(1)) // what is in a claim is not touched
		got := drain(t, c)
		st := mustStats(t, c)
		n := 0
		for lane, texts := range got {
			n += len(texts)
			if !slices.IsSorted(texts) {
				t.Errorf("lane %s is out of order", lane)
			}
		}
		if st.Books.Delivered != uint64(n)+1 || st.Books.Discarded != 4000-uint64(n) || n < 100 {
			t.Errorf("%d delivered, %+v", n, st.Books)
		}
	})
}

// A sync that waits with little must not keep what others have long been done with, nor
// count it as its own.
func TestLittlePendingKeepsNoMuchLargerLog(t *testing.T) {
	for name, hold := range map[string]func(c *Consumer) error{
		"paused":               (*Consumer).Pause,
		"disabled":             func(c *Consumer) error { return c.SetEnabled(false) },
		"of a smaller project": func(*Consumer) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t.TempDir())
			o.RotateBytes = 192 << 10
			busy := consumerOptions("busy")
			busy.Project = "web"
			h, cs := mustOpenAs(t, o, consumerOptions("p"), busy)
			defer h.close(cs)
			c := cs["p"]
			c.SetBound(200<<10, false)
			c.MayRefuse(true)
			h.append("a:1", "b:1", "a:2")
			caughtUp(t, h, c)
			must(t, hold(c))
			for range 5 {
				h.fill("web", 500, 400)
				drain(t, cs["busy"])
			}
			eventually(t, "the files go", func() bool {
				h.log.clean()
				return h.log.Stats().Files <= 2
			})
			st := mustStats(t, c)
			if st.Books.Pending != 3 || st.PendingBytes > 10<<10 || st.Aside.Records != 3 {
				t.Errorf("%+v", st)
			}
			must(t, errors.Join(c.Resume(), c.SetEnabled(true)))
			if got := drain(t, c); !slices.Equal(got["a"], []string{"a:1", "a:2"}) || len(got["b"]) != 1 {
				t.Errorf("got %v", got)
			}
		})
	}
}

// What was refused is refused no longer once files that were only kept would make room.
func TestFullIsWhatComesNext(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes, o.Keep, o.KeepBytes = 192<<10, time.Hour, 1<<30
	now := atomic.Int64{}
	now.Store(time.Now().UnixMilli())
	o.Now = func() time.Time { return time.UnixMilli(now.Load()) }
	h, cs := mustOpen(t, o, "p")
	defer h.close(cs)
	h.fill("app", 2000, 400)
	c := cs["p"]
	tight := o
	tight.MaxBytes = h.log.Stats().Used
	h.log.SetLimits(tight)
	eventually(t, "it refuses", func() bool { return isFull(h.log.Append(context.Background(), batch("a:1"))) })
	if h.log.Stats().Full == "" {
		t.Error("it does not say so")
	}
	drain(t, c)
	must(t, c.Flush())
	if st := h.log.Stats(); st.Full != "" || st.Kept == 0 {
		t.Errorf("kept files would make room: %+v", st)
	}
	h.append("a:1")
}
