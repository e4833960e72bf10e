package queue

import (
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// agesAt are the ages that the tests count by: records of houses are received one a
// second from 1970 on.
func agesAt(last uint64) Detail {
	return Detail{Now: time.UnixMilli(int64(last) * 1000), Bounds: []time.Duration{time.Minute, 10 * time.Minute, time.Hour, 4 * time.Hour}, Examples: true}
}

// exactAges is what a count of every record says, of those behind the first done ones.
func exactAges(d Detail, done, last uint64) []uint64 {
	ages := make([]uint64, len(d.Bounds)+1)
	for seq := done + 1; seq <= last; seq++ {
		ages[d.Class(int64(seq)*1000)]++
	}
	return ages
}

func sumOf(ages []uint64) (n uint64) {
	for _, a := range ages {
		n += a
	}
	return n
}

// What has been read is counted, one by one.
func TestAgesOfWhatIsInMemory(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	h.fill("app", 5000, 0)
	caughtUp(t, h, c)
	done := mustClaim(t, c)
	n := uint64(len(done.Records()))
	first := done.Records()[0].Seq
	done.Finish(delivered(int(n)))
	d := agesAt(5000)
	st, err := c.Look(d)
	if err != nil {
		t.Fatal(err)
	}
	if sumOf(st.Ages) != 5000-n || st.Approximate || st.Newest != 5000_000 || st.Oldest == 0 || first != 1 {
		t.Errorf("%d of %v, approximate %t, newest %d", sumOf(st.Ages), st.Ages, st.Approximate, st.Newest)
	}
	whole := exactAges(d, 0, 5000)
	for i := range whole { // one lane of eight has lost its first
		if st.Ages[i] > whole[i] || whole[i]-st.Ages[i] > n {
			t.Errorf("class %d: %d of %d", i, st.Ages[i], whole[i])
		}
	}
	h.close(cs)
}

// Of a backlog that is on disk only, a few chunks are looked at, and the answer is good;
// while it runs and when it is stopped.
func TestAgesOfABacklog(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.RotateBytes = 1 << 20
	h, cs := mustOpen(t, o, "p") // a window of 1 MiB
	c := cs["p"]
	h.fill("another", 300, 50)
	h.fill("app", 6000, 400)
	last := h.log.Tail()
	d := agesAt(last)
	check := func(st ConsumerStats) {
		t.Helper()
		if st.Books.Pending != 6000 || sumOf(st.Ages) != 6000 || !st.Approximate || st.Newest != int64(last)*1000 {
			t.Fatalf("pending %d, ages %v, approximate %t, newest %d", st.Books.Pending, st.Ages, st.Approximate, st.Newest)
		}
		for i, want := range exactAges(d, last-6000, last) {
			if off := math.Abs(float64(st.Ages[i]) - float64(want)); off > 3 { // of times that are even, hardly anything is missed
				t.Errorf("class %d: %d, it is %d", i, st.Ages[i], want)
			}
		}
	}
	eventually(t, "the window is full", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.windowBytes >= c.o.WindowBytes })
	st, err := c.Look(d)
	if err != nil {
		t.Fatal(err)
	}
	check(st)
	seen := len(h.log.marks)
	if seen == 0 || seen > 80 {
		t.Errorf("%d chunks were looked at", seen)
	}
	if _, err := c.Look(d); err != nil || len(h.log.marks) > seen {
		t.Errorf("the second look reads again: %d, then %d, %v", seen, len(h.log.marks), err)
	}
	h.close(cs)
	_, all, err := InspectDetail(dir, d)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d, %v", len(all), err)
	}
	check(all[0])
}

// Who waits for a retry is told of by the one who waits longest, wherever that is.
func TestAnExampleOfWhatWaits(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	c := cs["p"]
	h.append("b:first", "a:second", "a:third")
	for range 2 {
		mustClaim(t, c).Retry(time.Hour, "http_503")
	}
	look := func() Wait {
		t.Helper()
		st, err := c.Look(agesAt(10))
		if err != nil {
			t.Fatal(err)
		}
		return st.Waiting["http_503"]
	}
	w := look()
	if w.Lanes != 2 || w.Records != 3 || w.Oldest != 1000 || w.Example == nil || string(w.Example.Body) != "b:first" {
		t.Errorf("in the window: %+v", w)
	}
	c.mu.Lock()
	c.moveAside(c.lanes.byKey["b"])
	c.mu.Unlock()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if w = look(); w.Oldest != 1000 || w.Example == nil || string(w.Example.Body) != "b:first" {
		t.Errorf("in the side place: %+v", w)
	}
	h.close(cs)
	_, all, err := InspectDetail(dir, agesAt(10))
	if err != nil {
		t.Fatal(err)
	}
	if w := all[0].Waiting["http_503"]; w.Lanes != 2 || w.Oldest != 1000 || w.Example == nil || string(w.Example.Body) != "b:first" {
		t.Errorf("stopped: %+v", w)
	}
}

// The oldest dead letter is known, and is another one when that is gone.
func TestTheOldestDeadLetter(t *testing.T) {
	o := options(t.TempDir())
	var now atomic.Int64 // ms; the consumer looks at it, too
	now.Store(50_000)
	o.Now = func() time.Time { return time.UnixMilli(now.Load()) }
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	h.append("a:1", "b:2")
	for range 2 {
		mustClaim(t, c).Finish([]Outcome{{Ending: Dead, Reason: "invalid"}})
		now.Add(60_000)
	}
	oldest := func() int64 {
		t.Helper()
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		st, err := c.Look(agesAt(10))
		if err != nil {
			t.Fatal(err)
		}
		return st.OldestDead
	}
	if at := oldest(); at != 50_000 {
		t.Errorf("%d", at)
	}
	if _, err := c.DropDead([]uint64{1}); err != nil {
		t.Fatal(err)
	}
	if at := oldest(); at != 110_000 {
		t.Errorf("when the first is gone: %d", at)
	}
	h.close(cs)
}

func TestLatencyQuantiles(t *testing.T) {
	var l latencies
	for took := int64(1); took <= 1000; took++ { // 1 ms to 1 s, evenly, over five minutes
		l.note(took*300, took*300-took)
	}
	st := l.stats(300_000)
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.95: 950 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		if q := st.Quantile(share); q == nil || math.Abs(q.Seconds()-want.Seconds()) > 0.02 {
			t.Errorf("%v: %v, it is %v", share, q, want)
		}
	}
	if sumOf(st.Total) != 1000 || st.Sum != 500_500*time.Millisecond {
		t.Errorf("%d in %s", sumOf(st.Total), st.Sum)
	}
	if later := l.stats(300_000 + 20*60_000); later.Quantile(0.5) != nil || !slices.Equal(later.Total, st.Total) {
		t.Error("what is long ago counts as recent, or the sum has shrunk")
	}
	l.note(0, 0)
	l.note(1<<60, 0)
	if st := l.stats(1 << 60); st.Quantile(0.99) == nil || !slices.IsSorted(LatencyBounds) {
		t.Error("what takes very long has no class")
	}
}

// What a record's latency is: from receipt to delivery; what is tried again after it was
// refused, and what is rewound, says nothing of that.
func TestLatencyOfDeliveries(t *testing.T) {
	o := options(t.TempDir())
	o.Now = func() time.Time { return time.UnixMilli(5_000) }
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	h.append("a:1", "b:2", "c:3") // received at 1, 2 and 3 s
	mustClaim(t, c).Finish(delivered(1))
	mustClaim(t, c).Finish([]Outcome{{Ending: Dead}})
	mustClaim(t, c).Finish([]Outcome{{Ending: Filtered}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplayDead([]uint64{2}); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, c).Finish(delivered(1))
	if st := mustStats(t, c); st.Latencies.Sum != 4*time.Second || sumOf(st.Latencies.Total) != 1 || st.Books.Delivered != 2 {
		t.Errorf("%+v", st.Latencies)
	}
	h.close(cs)
}
