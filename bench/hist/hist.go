// Package hist counts durations in buckets that are a 64th wide, so that percentiles of millions cost nothing.
package hist

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	steps = 64 // a power of two: buckets in each doubling
	rows  = 34 // doublings: up to an hour in microseconds, and beyond
)

// A Hist may be added to by many at once.
type Hist struct {
	n   [rows * steps]atomic.Uint64
	max atomic.Int64
}

// bucket of a count of microseconds, and the least of a bucket.
func bucket(us uint64) int {
	if us < steps {
		return int(us)
	}
	e := bits.Len64(us) - 7
	return min((e+1)*steps+int(us>>e)-steps, rows*steps-1)
}

func least(i int) uint64 {
	if i < steps {
		return uint64(i)
	}
	return uint64(steps+i%steps) << (i/steps - 1)
}

// Add counts d.
func (h *Hist) Add(d time.Duration) {
	h.n[bucket(uint64(max(0, d.Microseconds())))].Add(1)
	for m := h.max.Load(); int64(d) > m && !h.max.CompareAndSwap(m, int64(d)); m = h.max.Load() {
	}
}

// Percentiles in milliseconds.
type Percentiles struct {
	Count               uint64
	P50, P90, P99, Most float64
}

// Take returns what was counted and begins anew.
func (h *Hist) Take() (p Percentiles) {
	var all [rows * steps]uint64
	for i := range all {
		all[i] = h.n[i].Swap(0)
		p.Count += all[i]
	}
	p.Most = float64(h.max.Swap(0)) / 1e6
	for _, q := range []struct {
		share float64
		to    *float64
	}{{.5, &p.P50}, {.9, &p.P90}, {.99, &p.P99}} {
		want, seen := uint64(q.share*float64(p.Count)), uint64(0)
		for i, n := range all {
			if seen += n; seen > want {
				*q.to = float64(least(i)) / 1e3
				break
			}
		}
	}
	return p
}
