package admin

import (
	"sync"
	"time"
)

// Rates remembers totals of the last minute, so that a snapshot can say how fast
// they grow. Safe for concurrent use.
type Rates struct {
	mu     sync.Mutex
	points map[string][]point
}

type point struct {
	at      time.Time
	in, out uint64
}

const rateWindow = time.Minute

// Note adds the totals of one sync at one moment.
func (r *Rates) Note(name string, at time.Time, in, out uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.points == nil {
		r.points = map[string][]point{}
	}
	ps := append(r.points[name], point{at, in, out})
	// One point older than the window stays, so that the span is a whole minute.
	for len(ps) > 2 && at.Sub(ps[1].at) >= rateWindow {
		ps = ps[1:]
	}
	r.points[name] = ps
}

// Forget is of a sync whose totals begin anew, or that is gone.
func (r *Rates) Forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.points, name)
}

// Of gives records a second in and out; nil when too little is known.
func (r *Rates) Of(name string) (in, out *float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ps := r.points[name]
	if len(ps) < 2 {
		return nil, nil
	}
	first, last := ps[0], ps[len(ps)-1]
	seconds := last.at.Sub(first.at).Seconds()
	if seconds <= 0 || last.in < first.in || last.out < first.out {
		return nil, nil
	}
	i, o := float64(last.in-first.in)/seconds, float64(last.out-first.out)/seconds
	return &i, &o
}
