package queue

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// sampled sums up a sample by what each record is.
func sampled(t *testing.T, most int, sample func(int, func(Sampled)) (bool, error)) (weights map[string]float64, all bool) {
	t.Helper()
	weights = map[string]float64{}
	all, err := sample(most, func(s Sampled) {
		weights["lane "+s.Lane] += s.Weight
		weights[s.State+" "+s.Reason+map[bool]string{true: " behind"}[s.Behind]] += s.Weight
		weights["all"] += s.Weight
	})
	if err != nil {
		t.Fatal(err)
	}
	return weights, all
}

// Of few records every one is told of, wherever it is: in the window, in a claim, in the
// side place or still in the log.
func TestASampleOfFewIsAll(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	c := cs["p"]
	h.append("a:1", "b:2", "b:3", "c:4", "d:5")
	mustClaim(t, c)
	mustClaim(t, c).Retry(time.Hour, "http_500")
	mustClaim(t, c).Retry(time.Hour, "timeout")
	c.mu.Lock()
	c.moveAside(c.lanes.byKey["c"])
	c.mu.Unlock()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	got, all := sampled(t, 100, c.Sample)
	for what, want := range map[string]float64{"inflight ": 1, "retry http_500": 1, "retry http_500 behind": 1, "retry timeout": 1, "ready ": 1, "all": 5, "lane b": 2, "lane c": 1} {
		if got[what] != want {
			t.Errorf("%q: %v, it is %v", what, got[what], want)
		}
	}
	if !all {
		t.Error("it is said to be a part")
	}
	h.close(cs)
	got, all = sampled(t, 100, func(most int, f func(Sampled)) (bool, error) { return SampleFiles(dir, "p", most, f) })
	for what, want := range map[string]float64{"retry http_500": 2, "retry timeout": 1, "ready ": 2, "all": 5} {
		if got[what] != want {
			t.Errorf("stopped: %q: %v, it is %v", what, got[what], want)
		}
	}
	if !all {
		t.Error("stopped: it is said to be a part")
	}
}

// Of many a part stands for all: the shares are about right, and nothing is read but some
// chunks.
func TestASampleOfMany(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.RotateBytes = 1 << 20
	h, cs := mustOpen(t, o, "p") // a window of 1 MiB
	c := cs["p"]
	h.fill("another", 200, 50)
	h.fill("app", 6000, 400) // of eight lanes, as many of each
	eventually(t, "the window is full", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.windowBytes >= c.o.WindowBytes })
	check := func(got map[string]float64, all bool) {
		t.Helper()
		if all || math.Abs(got["all"]-6000) > 1 {
			t.Errorf("it stands for %v of 6000, all: %t", got["all"], all)
		}
		for lane := range 8 {
			if n := got[fmt.Sprintf("lane %d", lane)]; n < 300 || n > 1200 {
				t.Errorf("lane %d: %v, it is 750", lane, n)
			}
		}
	}
	check(sampled(t, 400, c.Sample))
	h.close(cs)
	check(sampled(t, 400, func(most int, f func(Sampled)) (bool, error) { return SampleFiles(dir, "p", most, f) }))
}

// A sample reads the log without the consumer's lock, while users fail and get through.
func TestASampleWhileUsersFail(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes = 1 << 20
	h, cs := mustOpen(t, o, "p")
	defer h.close(cs)
	c := cs["p"]
	h.fill("app", 6000, 400)
	eventually(t, "the window is full", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.windowBytes >= c.o.WindowBytes })
	looked := make(chan struct{})
	failing := make(chan struct{})
	go func() {
		defer close(failing)
		for {
			select {
			case <-looked:
				return
			default:
			}
			if cl := c.TryClaim(); cl != nil {
				cl.Retry(time.Microsecond, "http_500")
			} else {
				c.Hasten(time.Time{})
			}
		}
	}()
	for range 20 {
		sampled(t, 400, c.Sample)
	}
	close(looked)
	<-failing
}
