package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// inBubble runs a story in virtual time; the folder is made outside of it.
func inBubble(t *testing.T, story func(t *testing.T, dir string)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { story(t, dir) })
}

func outcomes(endings ...Ending) (out []Outcome) {
	for _, e := range endings {
		out = append(out, Outcome{Ending: e, Reason: "r"})
	}
	return out
}

func TestOneClaimPerLane(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	h.append("a1", "b1", "a2", "c1", "a3")
	c := cs["p"]
	a, b, d := mustClaim(t, c), mustClaim(t, c), mustClaim(t, c)
	if got := bodies(a.Records()) + bodies(b.Records()) + bodies(d.Records()); got != "a1 a2 a3 b1 c1 " {
		t.Fatal(got)
	}
	h.append("a4", "b2")
	caughtUp(t, h, c)
	if cl := c.TryClaim(); cl != nil {
		t.Fatalf("a second claim of lane %s", cl.Lane())
	}
	b.Finish(delivered(1))
	if got := bodies(mustClaim(t, c).Records()); got != "b2 " {
		t.Fatal(got)
	}
	h.close(cs)
}

func TestOrderThroughTrimReturnRetryAndPartialOutcomes(t *testing.T) {
	inBubble(t, func(t *testing.T, dir string) {
		h, cs := mustOpen(t, options(dir), "p")
		c := cs["p"]
		h.append("a1", "a2", "a3", "a4", "a5", "a6")
		want := func(cl *Claim, texts string, attempts int) *Claim {
			t.Helper()
			if got := bodies(cl.Records()); got != texts || cl.Attempts() != attempts {
				t.Fatalf("%q after %d tries, want %q after %d", got, cl.Attempts(), texts, attempts)
			}
			return cl
		}
		cl := want(mustClaim(t, c), "a1 a2 a3 a4 a5 a6 ", 0)
		cl.Trim(9)
		cl.Trim(2)
		if c.TryClaim() != nil {
			t.Fatal("what was given back must wait for the rest of its lane")
		}
		want(cl, "a1 a2 ", 0).Finish(delivered(2))
		want(mustClaim(t, c), "a3 a4 a5 a6 ", 0).Return()
		want(mustClaim(t, c), "a3 a4 a5 a6 ", 0).Retry(time.Minute, "http_503")
		if c.TryClaim() != nil {
			t.Fatal("not due")
		}
		st := mustStats(t, c)
		if st.Retry != 4 || st.Ready != 0 || st.Waiting["http_503"].Records != 4 || st.Oldest != 3000 {
			t.Fatalf("%+v", st)
		}
		begun := time.Now()
		cl = want(claimWithin(t, c, time.Hour), "a3 a4 a5 a6 ", 1)
		if waited := time.Since(begun); waited < time.Minute || waited > time.Minute+time.Second {
			t.Fatalf("waited %s", waited)
		}
		cl.Retry(time.Minute, "http_503")
		// Some end, the next one fails: it is another head, with one try.
		want(claimWithin(t, c, time.Hour), "a3 a4 a5 a6 ", 2).Settle(outcomes(Delivered, Dead), time.Second, "timeout")
		h.close(cs)
		h, cs = mustOpen(t, options(dir), "p")
		c = cs["p"]
		h.append("a7")
		synctest.Wait()
		want(mustClaim(t, c), "a5 a6 a7 ", 1).Settle(outcomes(Filtered), 0, "again")
		want(mustClaim(t, c), "a6 a7 ", 1).Finish(delivered(2))
		if st := mustStats(t, c); st.Books != (Books{Taken: 7, Delivered: 5, Filtered: 1, Dead: 1}) || len(c.retries) != 0 || len(c.lanes.byKey) != 0 {
			t.Fatalf("%+v, %d retries, %d lanes", st.Books, len(c.retries), len(c.lanes.byKey))
		}
		h.close(cs)
	})
}

func TestClaimsAreBounded(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	b := batch()
	for i := range 1200 {
		b.items = append(b.items, fmt.Sprintf("a:%04d", i))
	}
	must(t, h.log.Append(t.Context(), b))
	h.append("b:" + strings.Repeat("x", 2*claimBytes))
	caughtUp(t, h, c)
	n := 0
	for n < 1200 {
		cl := mustClaim(t, c)
		if cl.Lane() == "b" {
			cl.Finish(delivered(1)) // one record larger than the bound is claimed alone
			continue
		}
		if r := cl.Records(); len(r) > claimRecords || string(r[0].Body) != fmt.Sprintf("a:%04d", n) {
			t.Fatalf("%d records from %s", len(r), r[0].Body)
		}
		n += len(cl.Records())
		cl.Finish(delivered(len(cl.Records())))
	}
	h.close(cs)
}

func TestAClaimEndsOnce(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	h.append("a1", "b1")
	first, second := mustClaim(t, cs["p"]), mustClaim(t, cs["p"])
	first.Finish(delivered(1))
	for name, misuse := range map[string]func(){
		"twice":             func() { first.Return() },
		"too many outcomes": func() { second.Finish(delivered(2)) },
		"lost by a claim":   func() { second.Finish(outcomes(Lost)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			misuse()
		}()
	}
	second.Finish(delivered(1))
	if st := mustStats(t, cs["p"]); st.Books.Delivered != 2 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
}

func TestTwoLanesWithOneIdentifierGoOneAfterTheOther(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	h.append("a1", "b1", "b2", "c1")
	caughtUp(t, h, c)
	a, b := mustClaim(t, c), mustClaim(t, c)
	for range 2 {
		if !a.Hold("x@y.z") {
			t.Fatal("a holds it")
		}
	}
	if b.Hold("x@y.z") {
		t.Fatal("b must not")
	}
	b.Return()
	if cl := c.TryClaim(); cl == nil || cl.Lane() != "c" {
		t.Fatal("another lane goes on")
	} else {
		cl.Finish(delivered(1))
	}
	if c.TryClaim() != nil {
		t.Fatal("b comes back before the identifier is free")
	}
	if st := mustStats(t, c); st.Ready != 2 || st.InFlight != 1 {
		t.Fatalf("%+v", st)
	}
	a.Finish(delivered(1))
	b = c.TryClaim() // at once
	if b == nil || !b.Hold("x@y.z") {
		t.Fatal("b is free to go")
	}
	if v, err := b.Sent("x@y.z"); err != nil || v != nil {
		t.Fatal(v, err)
	}
	// Only the second record needs what another has.
	h.append("d1")
	d := mustClaim(t, c)
	d.Hold("id:d")
	if b.Hold("id:d") {
		t.Fatal("d holds it")
	}
	b.Trim(1)
	b.Finish(delivered(1))
	if cl := c.TryClaim(); cl != nil {
		t.Fatalf("%s waits for an identifier", bodies(cl.Records()))
	}
	d.Retry(time.Hour, "http_503") // a failed try frees it too
	if cl := c.TryClaim(); cl == nil || bodies(cl.Records()) != "b2 " {
		t.Fatal("lost wake-up")
	}
	h.close(cs)
}

// Who was woken since an identifier is free has nothing left to send: the next one is.
func TestAnIdentifierIsPassedOnByWhoIsGivenUpMeanwhile(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a1", "b1", "c1")
	caughtUp(t, h, c)
	a, b, d := mustClaim(t, c), mustClaim(t, c), mustClaim(t, c)
	if !d.Hold("x") || a.Hold("x") || b.Hold("x") {
		t.Fatal("c holds it")
	}
	a.Return()
	b.Return()
	d.Finish(delivered(1))
	c.writing.Lock()
	c.mu.Lock()
	c.discardUpTo(1, nil)
	c.mu.Unlock()
	c.writing.Unlock()
	if cl := c.TryClaim(); cl == nil || cl.Lane() != "b" {
		t.Error("b waits for an identifier that nobody holds")
	} else {
		cl.Finish(delivered(1))
	}
}

// A try that fails behind a Hasten began before it: it is hastened too, once.
func TestATryThatIsUnderWayIsHastened(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a1")
	cl := mustClaim(t, c)
	c.Hasten(time.Now())
	cl.Retry(time.Hour, "http_503")
	if cl = c.TryClaim(); cl == nil || cl.Attempts() != 1 {
		t.Fatalf("%+v", cl)
	}
	cl.Retry(time.Hour, "http_503")
	if c.TryClaim() != nil {
		t.Error("it does not wait any more")
	}
	if st := mustStats(t, c); st.Retry != 1 {
		t.Errorf("%+v", st)
	}
	c.Hasten(time.Time{})
	mustClaim(t, c).Finish(delivered(1))
}

// A lane that never runs empty does not keep the record that it began with.
func TestABusyLaneLetsGoOfWhatHasEnded(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a:1")
	cl := mustClaim(t, c)
	c.mu.Lock()
	first := weak.Make(c.lanes.byKey["a"].records[0])
	c.mu.Unlock()
	h.append("a:2")
	caughtUp(t, h, c)
	cl.Finish(delivered(1))
	cl = nil
	runtime.GC()
	if first.Value() != nil {
		t.Error("it is still in memory")
	}
	mustClaim(t, c).Finish(delivered(1))
}

// Workers on few lanes and fewer identifiers, in every way to end a claim: nobody
// waits for ever, no identifier is held twice, and each lane keeps its order.
func TestIdentifiersNeverDeadlock(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	const total = 4000
	var mu sync.Mutex
	holding := map[string]int{}
	last := map[string]string{}
	ended := 0
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	var wg sync.WaitGroup
	for w := range 6 {
		random := rand.New(rand.NewPCG(7, uint64(w)))
		wg.Go(func() {
			for {
				cl, err := c.Claim(ctx)
				if err != nil {
					return
				}
				held := map[string]bool{}
				n := 0
				for _, r := range cl.Records() {
					id := fmt.Sprintf("id:%d", (r.Seq*7+uint64(r.Lane[0]))%3)
					if !cl.Hold(id) {
						break
					}
					if !held[id] {
						held[id] = true
						mu.Lock()
						holding[id]++
						if holding[id] > 1 {
							t.Errorf("%s is held twice", id)
						}
						mu.Unlock()
					}
					n++
				}
				runtime.Gosched()
				if n > 0 && n < len(cl.Records()) {
					cl.Trim(n)
				}
				finish := n
				if n > 0 && random.IntN(3) == 0 {
					finish = random.IntN(n)
				}
				mu.Lock()
				for id := range held {
					holding[id]--
				}
				for _, r := range cl.Records()[:finish] {
					if text := string(r.Body); last[r.Lane] >= text {
						t.Errorf("%s behind %s", text, last[r.Lane])
					} else {
						last[r.Lane] = text
					}
				}
				if ended += finish; ended == total {
					stop()
				}
				mu.Unlock()
				switch {
				case n == 0:
					cl.Return()
				default:
					cl.Settle(delivered(finish), 0, "again")
				}
			}
		})
	}
	for i := range total / 8 {
		b := batch()
		for lane := range 8 {
			b.items = append(b.items, fmt.Sprintf("%d:%06d", lane, i))
		}
		must(t, h.log.Append(t.Context(), b))
	}
	wg.Wait()
	if ended != total {
		t.Fatalf("%d of %d ended: %+v", ended, total, mustStats(t, c))
	}
	h.close(cs)
}

// One event into an idle consumer is claimed at once; a lost wake-up would show as a
// claim that never comes.
func TestNoWakeUpIsLost(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	rounds := 10000
	if testing.Short() || raceEnabled {
		rounds = 2000
	}
	claimed := make(chan *Claim)
	go func() {
		for range rounds {
			cl, err := c.Claim(context.Background())
			if err != nil {
				t.Error(err)
			}
			claimed <- cl
		}
	}()
	// As the log's reader does it, without the disk: its own wake-ups are next.
	for i := range rounds {
		w := newWriter(logEnd{seq: uint64(i), counts: map[string]uint64{"app": uint64(i)}}, nil)
		must(t, batch("a1").Resolve(&w))
		must(t, c.take(w.finish()[0], 0))
		select {
		case cl := <-claimed:
			cl.Finish(delivered(1))
		case <-time.After(10 * time.Second):
			t.Fatalf("round %d: no claim", i)
		}
	}
	if st := mustStats(t, c); st.Books.Delivered != uint64(rounds) {
		t.Fatalf("%+v", st.Books)
	}
	must(t, h.log.inTurn(t.Context(), func() error { // its resolver looks at the end about once a second
		h.log.mu.Lock()
		defer h.log.mu.Unlock()
		h.log.end = logEnd{seq: uint64(rounds), counts: map[string]uint64{"app": uint64(rounds)}}
		return nil
	}))
	h.close(cs)
}

func TestAnEventIsClaimedAsSoonAsItIsStored(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	rounds := 1000
	if testing.Short() || raceEnabled {
		rounds = 200
	}
	for i := range rounds {
		h.append(fmt.Sprintf("a:%d", i))
		mustClaim(t, cs["p"]).Finish(delivered(1))
	}
	h.close(cs)
}

func TestAWaitingLaneHoldsUpNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, dir string) {
		h, cs := mustOpen(t, options(dir), "p")
		c := cs["p"]
		h.append("a1")
		mustClaim(t, c).Retry(72*time.Hour, "timeout")
		begun := time.Now()
		for i := range 200 {
			h.append(fmt.Sprintf("b:%d", i), "a2")
			cl := mustClaim(t, c)
			if cl.Lane() != "b" {
				t.Fatal("a is not due")
			}
			cl.Finish(delivered(1))
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("b waited")
		}
		ctx, stop := context.WithTimeout(t.Context(), 71*time.Hour)
		if cl, err := c.Claim(ctx); err == nil {
			t.Fatalf("too early: %s", cl.Lane())
		}
		stop()
		cl, err := c.Claim(t.Context())
		if err != nil || len(cl.Records()) != 201 {
			t.Fatal(err, len(cl.Records()))
		}
		cl.Return()
		h.close(cs)
	})
}

func TestLanesTakeTurns(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	hot := batch()
	for i := range 5000 {
		hot.items = append(hot.items, fmt.Sprintf("hot:%d", i))
	}
	must(t, h.log.Append(t.Context(), hot))
	h.append("b1", "c1", "d1")
	caughtUp(t, h, c)
	var turns []string
	for range 6 {
		cl := mustClaim(t, c)
		turns = append(turns, cl.Lane())
		cl.Finish(delivered(len(cl.Records())))
	}
	if !slices.Equal(turns, []string{"hot", "b", "c", "d", "hot", "hot"}) {
		t.Fatal(turns)
	}
	h.close(cs)
}

func TestTheWindowIsBounded(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p") // a window of 1 MiB
	c := cs["p"]
	h.fill("app", 20000, 400) // 8 MiB, a lane of which never moves
	stuck := mustClaim(t, c)
	full := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.windowBytes >= c.o.WindowBytes
	}
	eventually(t, "the window is full", full)
	at := c.read
	if c.windowBytes > 2<<20 || at > 5000 {
		t.Fatalf("%d bytes, read up to %d", c.windowBytes, at)
	}
	if st := mustStats(t, c); st.Books.Pending != 20000 || st.Ready+st.InFlight != 20000 {
		t.Fatalf("%+v", st)
	}
	for cl := c.TryClaim(); cl != nil; cl = c.TryClaim() {
		cl.Finish(delivered(len(cl.Records())))
	}
	eventually(t, "it goes on", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.read > at })
	stuck.Return()
	for lane, texts := range drain(t, c) {
		if !slices.IsSortedFunc(texts, strings.Compare) {
			t.Errorf("lane %s is out of order", lane)
		}
	}
	if c.windowBytes != 0 || c.pending != 0 || c.inFlight != 0 {
		t.Fatalf("%d bytes, %d pending, %d in flight when all has ended", c.windowBytes, c.pending, c.inFlight)
	}
	h.close(cs)
}

// A clock that is set back or forth by days neither loses a retry nor lets it wait
// longer than it was meant to.
func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-96 * time.Hour, -time.Hour, 0, time.Hour, 96 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, dir string) {
				o := options(dir)
				wall := time.Duration(0)
				var mu sync.Mutex
				o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Round(0).Add(wall) }
				set := func(d time.Duration) { mu.Lock(); wall += d; mu.Unlock() }
				h, cs := mustOpen(t, o, "p")
				h.append("a1")
				mustClaim(t, cs["p"]).Retry(10*time.Minute, "http_503")
				set(jump) // while it runs, nothing changes
				begun := time.Now()
				cl, err := cs["p"].Claim(t.Context())
				if waited := time.Since(begun).Round(time.Second); err != nil || waited != 10*time.Minute {
					t.Fatalf("waited %s", waited)
				}
				cl.Retry(10*time.Minute, "http_503")
				h.close(cs)
				set(jump) // while it is stopped, the wait is at most as long as it was set
				h, cs = mustOpen(t, o, "p")
				begun = time.Now()
				cl, err = cs["p"].Claim(t.Context())
				if waited := time.Since(begun); err != nil || waited > 10*time.Minute+time.Second || cl.Attempts() != 2 {
					t.Fatalf("waited %s", waited)
				}
				cl.Finish(delivered(1))
				h.close(cs)
			})
		})
	}
}
