package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"weak"
)

// flowingConsumer has a small window, and a destination that takes deliveries.
func flowingConsumer(t *testing.T, o Options, window int64) (*house, *Consumer, func()) {
	t.Helper()
	co := consumerOptions("p")
	co.WindowBytes, co.Now = window, o.Now
	h, cs := mustOpenAs(t, o, co)
	cs["p"].Flowing(true)
	return h, cs["p"], func() { h.close(cs) }
}

// deliver claims until nothing is due for a moment, fails the lanes named, each time for
// twice as long, and delivers the others.
func deliver(t *testing.T, c *Consumer, failing string, wait time.Duration) (got []string) {
	t.Helper()
	for {
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		cl, err := c.Claim(ctx)
		stop()
		if err != nil {
			return got
		}
		if strings.Contains(failing, cl.Lane()) {
			cl.Retry(wait<<min(cl.Attempts(), 8), "http_500")
			continue
		}
		for _, r := range cl.Records() {
			got = append(got, string(r.Body))
		}
		cl.Finish(delivered(len(cl.Records())))
	}
}

// One user fails for ever, with far more waiting than a sync reads ahead. Everybody
// else's events get through, the log's files go, and after a restart the user's events
// come in their order.
func TestALaneThatFailsMovesAsideAndHoldsNobodyUp(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes = 256 << 10
	h, c, closeAll := flowingConsumer(t, o, 64<<10)
	var want []string
	others := 0
	for i := range 40 {
		var items []string
		for j := range 100 {
			if j%2 == 0 {
				want = append(want, fmt.Sprintf("F:%08d%s", 100*i+j, noise(uint64(i*j), 100)))
				items = append(items, want[len(want)-1])
				continue
			}
			others++
			items = append(items, fmt.Sprintf("%d:%08d%s", j%8, 100*i+j, noise(uint64(j), 100)))
		}
		h.append(items...)
	}
	eventually(t, "all of the others' records are delivered", func() bool {
		others -= len(deliver(t, c, "F", time.Millisecond))
		return others == 0
	})
	eventually(t, "the log's files go", func() bool {
		h.log.clean()
		return h.log.Stats().Files == 1
	})
	st := mustStats(t, c)
	if st.Aside.Lanes != 1 || st.Aside.Records != uint64(len(want)) || st.Books.Pending != uint64(len(want)) || st.Oldest != st.Aside.Oldest || st.PendingBytes < st.Aside.Bytes {
		t.Errorf("%+v", st)
	}
	if st.Waiting["http_500"].Records != uint64(len(want)) && st.Ready == 0 {
		t.Errorf("waiting: %+v", st.Waiting)
	}
	c.mu.Lock()
	if n := len(c.window); n != 0 || c.windowBytes != 0 {
		t.Errorf("the window holds %d slots of %d bytes", n, c.windowBytes)
	}
	c.mu.Unlock()
	closeAll()

	h, c, closeAll = flowingConsumer(t, o, 64<<10)
	defer closeAll()
	h.append("F:new", "z:new")
	if st := mustStats(t, c); st.Aside.Records < uint64(len(want)) || st.Books.Pending != uint64(len(want))+2 {
		t.Errorf("after a restart: %+v", st)
	}
	got := drain(t, c)
	if !slices.Equal(got["F"], append(want, "F:new")) {
		t.Errorf("%d records of the lane came back, the first %.10q", len(got["F"]), got["F"][0])
	}
	if st := mustStats(t, c); st.Aside != (Aside{}) {
		t.Errorf("left over: %+v", st.Aside)
	}
	h.append("F:back")
	cl := mustClaim(t, c)
	if cl.entries[0].aside || bodies(cl.Records()) != "F:back " {
		t.Errorf("the lane is not back in the window: %s", bodies(cl.Records()))
	}
	cl.Finish(delivered(1))
}

// A user with more waiting than the window holds is in delivery; whoever comes behind is
// served at once.
func TestABusyLaneMakesWayInAFullWindow(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 32<<10)
	defer closeAll()
	var busy []string
	for i := range 2000 {
		busy = append(busy, fmt.Sprintf("B:%08d%s", i, noise(uint64(i), 50)))
	}
	h.append(busy...)
	inFlight := mustClaim(t, c)
	h.append("x:1")
	cl := mustClaim(t, c) // waits in vain unless the window makes way
	if cl.Lane() != "x" {
		t.Fatalf("claimed %s", cl.Lane())
	}
	cl.Finish(delivered(1))
	got := []string{}
	for _, r := range inFlight.Records() {
		got = append(got, string(r.Body))
	}
	inFlight.Finish(delivered(len(got)))
	if got = append(got, drain(t, c)["B"]...); !slices.Equal(got, busy) {
		t.Errorf("%d records, want %d in order", len(got), len(busy))
	}
}

// While Customer.io takes nothing there is no sense in copying the queue: the reader
// stops.
func TestTheReaderStopsWhileNothingFlows(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 32<<10)
	defer closeAll()
	c.Flowing(false)
	for range 5 {
		h.fill("app", 1000, 100)
	}
	deliver(t, c, "01234567", time.Hour)
	if st := mustStats(t, c); st.Aside.Lanes != 0 || st.Books.Pending != 5000 {
		t.Errorf("%+v", st)
	}
	c.mu.Lock()
	if c.windowBytes > 2*c.o.WindowBytes+chunkBytes {
		t.Errorf("the window grew to %d", c.windowBytes)
	}
	c.mu.Unlock()
	c.Flowing(true)
	c.Hasten(time.Time{})
	if n := len(deliver(t, c, "", 0)); n != 5000 {
		t.Errorf("%d delivered", n)
	}
}

// Five failures while others get through are enough, also in an empty window: a lane
// that waits must not keep files of the log.
func TestALaneThatKeepsFailingMovesAsideByItself(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 1<<20)
	defer closeAll()
	h.append("F:1")
	for i := range asideTries {
		cl := mustClaim(t, c)
		cl.Retry(0, "http_500")
		if side := mustStats(t, c).Aside.Lanes; side != 0 {
			t.Errorf("aside after %d tries although nobody else was served", i+1)
		}
	}
	h.append("g:1")
	deliver(t, c, "F", time.Hour)
	c.Hasten(time.Time{})
	deliver(t, c, "F", time.Hour)
	if side := mustStats(t, c).Aside; side.Lanes != 1 {
		t.Errorf("%+v", side)
	}
	caughtUp(t, h, c)
	eventually(t, "the low-water mark passes it", func() bool { return h.log.held("sync/p") == h.log.Tail() })
	if n := c.Hasten(time.Now().Add(time.Hour)); n != 0 {
		t.Errorf("%d lanes have failed in an hour", n)
	}
	if n := c.Hasten(time.Time{}); n != 1 {
		t.Errorf("%d lanes to hasten", n)
	}
	cl := mustClaim(t, c)
	if cl.Attempts() != asideTries+2 {
		t.Errorf("%d attempts", cl.Attempts())
	}
	cl.Finish(delivered(1))
}

// What a damaged side place has lost is counted, and the rest goes on.
func TestDamagedRecordsOfTheSidePlaceAreLost(t *testing.T) {
	o := options(t.TempDir())
	h, c, closeAll := flowingConsumer(t, o, 1<<20)
	h.append("F:1", "F:2", "F:3")
	caughtUp(t, h, c)
	c.mu.Lock()
	c.moveAside(c.lanes.byKey["F"])
	c.mu.Unlock()
	closeAll()
	db, err := OpenDB(ledgerPath(o.Dir, "p"), ledgerOptions())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	k := asideKey(laneKeyOf("F"), 2)
	v := slices.Clone(tx.Bucket(bucketAside).Get(k))
	v[5] ^= 1
	if err := errors.Join(tx.Bucket(bucketAside).Put(k, v), tx.Commit(), db.Close()); err != nil {
		t.Fatal(err)
	}
	_, c, closeAll = flowingConsumer(t, o, 1<<20)
	defer closeAll()
	if got := drain(t, c)["F"]; !slices.Equal(got, []string{"F:1", "F:3"}) {
		t.Errorf("got %v", got)
	}
	if st := mustStats(t, c); st.Books.Lost != 1 || st.Books.Delivered != 2 {
		t.Errorf("%+v", st.Books)
	}
}

// A large side place leaves a ledger that gives its space back.
func TestALedgerGivesSpaceBack(t *testing.T) {
	o := options(quickDir(t))
	h, c, closeAll := flowingConsumer(t, o, 1<<20)
	defer func() { closeAll() }()
	large := noise(1, 1<<20)
	for i := range 24 {
		h.append(fmt.Sprintf("F:%02d%s", i, large))
		caughtUp(t, h, c)
		c.mu.Lock()
		if l := c.lanes.byKey["F"]; l.aside == nil {
			c.moveAside(l)
		}
		c.mu.Unlock()
		must(t, c.Flush())
	}
	drain(t, c)
	must(t, c.Flush())
	h.append("g:1")
	mustClaim(t, c).Finish([]Outcome{{Ending: Delivered, SentKey: "id:g", Sent: []byte("kept")}})
	eventually(t, "the ledger is small", func() bool { return mustStats(t, c).LedgerBytes < 2<<20 })
	closeAll()
	_, c, closeAll = flowingConsumer(t, o, 1<<20)
	if v, err := c.sent("id:g"); string(v) != "kept" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if st := mustStats(t, c); st.Books.Delivered != 25 {
		t.Errorf("%+v", st.Books)
	}
}

// A paused sync has a user in the side place, whose events keep coming. They would all be
// copied there for nothing: the reader stops when it has put a window's worth there.
func TestTheReaderDoesNotCopyTheQueueAsideInAPause(t *testing.T) {
	for name, hold := range map[string]func(*Consumer) error{
		"paused":        (*Consumer).Pause,
		"nothing flows": func(c *Consumer) error { c.Flowing(false); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 64<<10)
			defer closeAll()
			want := []string{"F:0"}
			h.append(want...)
			sideplaced(t, h, c)
			must(t, hold(c))
			for i := range 10 {
				var items []string
				for j := range 100 {
					items = append(items, fmt.Sprintf("F:%d%02d%s", i+1, j, noise(uint64(j), 1000)))
				}
				h.append(items...)
				want = append(want, items...)
			}
			eventually(t, "the reader stands", func() bool {
				must(t, c.Flush())
				c.mu.Lock()
				defer c.mu.Unlock()
				if c.read == h.log.Tail() {
					t.Fatal("all of it was copied")
				}
				return c.crowded() && c.side.freshBytes == 0 && c.windowBytes < c.o.WindowBytes
			})
			if st := mustStats(t, c); st.Aside.Bytes > 64<<10+chunkBytes || st.Books.Pending != uint64(len(want)) {
				t.Errorf("%+v", st)
			}
			c.Flowing(true)
			must(t, c.Resume())
			if got := drain(t, c)["F"]; !slices.Equal(got, want) {
				t.Errorf("%d records, want %d in order", len(got), len(want))
			}
		})
	}
}

// The disk's bound is reached, and one user fails, with the oldest record of all or with
// many. All others get through: then there must be room again, although what moves to the
// side place needs some first. Else that one user would hold up everybody for ever.
func TestOneUserDoesNotKeepTheDiskFull(t *testing.T) {
	for name, failing := range map[string]func(n int) bool{
		"with one record":       func(n int) bool { return n == 0 },
		"with a seventh of all": func(n int) bool { return n%7 == 3 },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(quickDir(t))
			o.RotateBytes, o.MaxBytes = 128<<10, 2<<20
			h, c, closeAll := flowingConsumer(t, o, 64<<10)
			defer closeAll()
			h.log.disk.usedFor = 0
			c.Flowing(false)
			n, fails := 0, 0
			for size := 50; size > 0; { // to the last byte
				b := &texts{project: "app", size: 1}
				bad := 0
				for i := range size {
					lane := fmt.Sprint(i % 7)
					if failing(n + i) {
						lane, bad = "F", bad+1
					}
					b.items = append(b.items, fmt.Sprintf("%s:%06d%s", lane, n+i, noise(uint64(n+i), 100)))
				}
				err := h.log.Append(t.Context(), b)
				if isFull(err) {
					size /= 2
					continue
				}
				must(t, err)
				n, fails = n+size, fails+bad
			}
			if fails == 0 {
				t.Fatalf("nobody fails of %d", n)
			}
			c.Flowing(true)
			others := n - fails
			eventually(t, "all others' are delivered", func() bool {
				others -= len(deliver(t, c, "F", time.Hour))
				return others == 0
			})
			eventually(t, "there is room again", func() bool {
				h.log.clean()
				err := h.log.Append(t.Context(), batch("z:new"))
				if err != nil && !isFull(err) {
					t.Fatal(err)
				}
				return err == nil
			})
			c.Hasten(time.Time{})
			if got := drain(t, c)["F"]; len(got) != fails || !slices.IsSorted(got) {
				t.Errorf("%d of the failing user's %d came in the end, or out of order", len(got), fails)
			}
		})
	}
}

// A dead letter that comes back while what waits behind it in the side place is being
// tried is the lane's first from then on, and the lane's summary says so.
func TestADeadLetterComesBackIntoALaneThatIsTried(t *testing.T) {
	o := options(t.TempDir())
	var now atomic.Int64 // ms
	now.Store(1_000_000)
	o.Now = func() time.Time { return time.UnixMilli(now.Load()) }
	h, c, closeAll := flowingConsumer(t, o, 64<<10)
	h.append("F:1")
	cl := mustClaim(t, c)
	buried := cl.Records()[0].Seq
	cl.Finish([]Outcome{{Ending: Dead, Reason: "http_400"}})
	now.Add(time.Hour.Milliseconds())
	h.append("F:2", "F:3")
	caughtUp(t, h, c)
	c.mu.Lock()
	c.moveAside(c.lanes.byKey["F"])
	c.mu.Unlock()
	must(t, c.Flush())

	cl = mustClaim(t, c)
	if n, err := c.ReplayDead([]uint64{buried}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	cl.Retry(0, "http_500")
	must(t, c.Flush())
	a, err := c.Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	if got := bodies(claimWithin(t, c, 5*time.Second).Records()); got != "F:1 F:2 F:3 " {
		t.Errorf("claimed in this order: %s", got)
	}
	closeAll()
}

// After a start the side place has records that come after some of the log that are still to be read. They are not
// claimed with those before them: a lane that they have to wait for would seem empty.
func TestTheSidePlaceDoesNotOvertakeTheReader(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 64<<10)
	h.append("U:1", "D:1", "U:2")
	caughtUp(t, h, c)
	c.mu.Lock()
	c.moveAside(c.lanes.byKey["U"])
	all := c.read
	c.read -= 2 // as if D:1 and U:2 were still to be read
	c.mu.Unlock()
	must(t, c.Flush())
	claimed := func() string {
		for {
			cl := mustClaim(t, c)
			got := bodies(cl.Records())
			if cl.Return(); cl.Lane() == "U" {
				return got
			}
		}
	}
	if got := claimed(); got != "U:1 " {
		t.Errorf("claimed %s", got)
	}
	c.mu.Lock()
	c.read = all
	c.mu.Unlock()
	if got := claimed(); got != "U:1 U:2 " {
		t.Errorf("and then %s", got)
	}
	closeAll()
}

// A lane may wait in the side place for long: memory has none of its records then, however it came there.
func TestTheSidePlaceHasNoRecordsInMemory(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(quickDir(t)), 1<<20)
	defer closeAll()
	h.append("one:1", "two:1", "two:2", "claimed:1", "grown:1")
	caughtUp(t, h, c)
	claims := map[string]*Claim{}
	for range 4 {
		cl := mustClaim(t, c)
		claims[cl.Lane()] = cl
	}
	claims["one"].Return()
	claims["two"].Return()
	h.append("grown:2")
	caughtUp(t, h, c)
	entries := map[string]weak.Pointer[entry]{}
	c.mu.Lock()
	for _, l := range c.lanes.byKey {
		for _, e := range l.records {
			entries[string(e.rec.Body)] = weak.Make(e)
		}
	}
	c.mu.Unlock()
	sideplaced(t, h, c)
	claims["claimed"].Retry(time.Hour, "http_503")
	claims["grown"].Retry(time.Hour, "http_503")
	claims = nil
	must(t, c.Flush())
	runtime.GC()
	for body, e := range entries {
		if e.Value() != nil {
			t.Errorf("%s is still in memory", body)
		}
	}
	if st := mustStats(t, c); len(entries) != 6 || st.Aside.Records != 6 {
		t.Errorf("%d records, %+v", len(entries), st.Aside)
	}
}
