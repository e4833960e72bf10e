package queue

import (
	"container/heap"
	"slices"
	"strings"
	"time"
)

// entry is a pending record in memory.
type entry struct {
	rec Record
	ord uint64 // its number among the records of its project; 0 when it was read from the side place

	aside   bool // it is in the side place, not in the window
	over    bool // it was, and is no more
	replay  bool // a dead letter that is tried again
	results []byte
}

func (e *entry) bytes() int64 { return int64(len(e.rec.Body)+len(e.rec.Lane)) + entryBytes }

// entryBytes is about what an entry costs beside its record's bytes; slotBytes what
// it still costs once it has ended behind one that has not.
const (
	entryBytes = 160
	slotBytes  = 24
)

// lane is one user's records in order. It has at most one claim: this is the one
// place that keeps the order of a user.
type lane struct {
	key     string
	records []*entry   // oldest first; the first of them may be in the claim; of the side place none but these
	taken   int        // how many are
	one     [1]*entry  // memory of records, as long as that is enough
	aside   *asideLane // what of it is in the side place; nil = it is in the window
	claimed bool
	queued  bool // in lanes.ready
	retry   retryState
	due     time.Time // the head is not due before, by the monotonic clock; zero = now
	heap    int       // position in lanes.waiting, -1 = not there
	parked  string    // the identifier that the head needs and another claim holds, or laneWait and the lane it waits for
	turn    string    // the identifier for which it was woken, before others that need it
	failed  time.Time // when the last try failed, by the monotonic clock; zero = none has since the start
	others  uint64    // what the consumer had delivered when the first of the failed tries did
}

func (l *lane) empty() bool { return len(l.records) == 0 && l.aside == nil }

// waiting counts the records that are not in a claim.
func (l *lane) waiting() uint64 {
	if l.aside != nil {
		return l.aside.count - min(l.aside.count, uint64(l.taken))
	}
	return uint64(len(l.records) - l.taken)
}

// oldest is when the first of its records was received, ms since 1970 UTC; 0 = not known.
func (l *lane) oldest() int64 {
	switch {
	case l == nil:
		return 0
	case l.aside != nil:
		return l.aside.oldest
	case len(l.records) > 0:
		return l.records[0].rec.Received
	}
	return 0
}

// lanes holds what is in the window, by lane. It is guarded by the consumer.
type lanes struct {
	byKey   map[string]*lane
	ready   []*lane // due, not claimed, not parked; first in, first out
	waiting laneHeap
	holds   map[string]*Claim  // identifier → the claim that holds it
	parked  map[string][]*lane // identifier → lanes whose head needs it
}

func newLanes() lanes {
	return lanes{byKey: map[string]*lane{}, holds: map[string]*Claim{}, parked: map[string][]*lane{}}
}

// lane gives the lane of a key, a new one with the tries that restored remembers.
func (ls *lanes) lane(key string, restored func(key string) (retryState, time.Time)) *lane {
	l := ls.byKey[key]
	if l == nil {
		l = &lane{key: key, heap: -1}
		l.records = l.one[:0]
		l.retry, l.due = restored(key)
		ls.byKey[key] = l
	}
	return l
}

// add puts a record at the end of its lane, which is in the window.
func (ls *lanes) add(l *lane, e *entry) {
	l.records = append(l.records, e)
	if len(l.records) == 1 {
		ls.schedule(l)
	}
}

// schedule puts a lane where it belongs now: nowhere (claimed or empty), with the
// parked, with the waiting, or with the ready.
func (ls *lanes) schedule(l *lane) {
	switch {
	case l.claimed || l.queued || l.heap >= 0:
	case l.empty():
		if l.retry.attempts == 0 {
			delete(ls.byKey, l.key)
		}
		ls.passOnLane(l)
	case l.parked != "" && ls.isHeld(l.parked):
		ls.parked[l.parked] = append(ls.parked[l.parked], l)
	case !l.due.IsZero():
		heap.Push(&ls.waiting, l)
	default:
		l.parked = ""
		l.queued = true
		ls.ready = append(ls.ready, l)
	}
}

// laneWait begins what stands for a lane where others stand for an identifier: it is held
// for as long as the lane has records. No identifier begins so.
const laneWait = "\x00lane "

func (ls *lanes) isHeld(what string) bool {
	if lane, ok := strings.CutPrefix(what, laneWait); ok {
		l := ls.byKey[lane]
		return l != nil && !l.empty()
	}
	return ls.holds[what] != nil
}

// passOnLane wakes who waits for a lane that has become empty.
func (ls *lanes) passOnLane(l *lane) {
	if len(ls.parked) > 0 {
		ls.passOn(laneWait + l.key)
	}
}

// promote moves lanes whose time has come to the ready ones, and gives the time of
// the next; zero when nothing waits.
func (ls *lanes) promote(now time.Time) time.Time {
	for len(ls.waiting) > 0 {
		l := ls.waiting[0]
		if l.due.After(now) {
			return l.due
		}
		heap.Pop(&ls.waiting)
		l.due = time.Time{}
		ls.schedule(l)
	}
	return time.Time{}
}

// hasten makes every lane due now that waits for a try and whose last one failed at or
// after since, and says how many those were.
func (ls *lanes) hasten(since time.Time) (n int) {
	var later laneHeap
	for _, l := range ls.waiting {
		l.heap = -1
		if l.failed.Before(since) {
			later = append(later, l)
			continue
		}
		n++
		l.due = time.Time{}
		ls.schedule(l)
	}
	for i, l := range later {
		l.heap = i
	}
	ls.waiting = later
	heap.Init(&ls.waiting)
	return n
}

// take gives the next ready lane, nil when there is none.
func (ls *lanes) take() *lane {
	if len(ls.ready) == 0 {
		return nil
	}
	l := ls.ready[0]
	ls.ready[0] = nil
	ls.ready = ls.ready[1:]
	l.queued = false
	return l
}

// next gives the first records of the lanes that are claimed next, of up to so many.
func (ls *lanes) next(most int) (records []Record) {
	for _, l := range ls.ready[:min(most, len(ls.ready))] {
		if len(l.records) > 0 {
			records = append(records, l.records[0].rec)
		}
	}
	return records
}

// drop forgets a lane that is empty and not claimed. Where it stands among the ready or
// parked it is dropped when its turn comes.
func (ls *lanes) drop(l *lane) {
	if l.heap >= 0 {
		heap.Remove(&ls.waiting, l.heap)
	}
	l.due = time.Time{}
	if !l.queued && l.parked == "" {
		delete(ls.byKey, l.key)
	}
	ls.passOnLane(l)
}

// letGo lets go of what a claim holds.
func (ls *lanes) letGo(held []string) {
	for _, id := range held {
		delete(ls.holds, id)
		ls.passOn(id)
	}
}

// passOn wakes one lane that needs an identifier, since only one can have it; the
// next is woken when that one's claim ends. Lanes that wait for a retry are not
// waited for: they look for themselves when they are due.
func (ls *lanes) passOn(id string) {
	if len(ls.parked) == 0 {
		return
	}
	for len(ls.parked[id]) > 0 {
		l := ls.parked[id][0]
		ls.parked[id][0] = nil
		ls.parked[id] = ls.parked[id][1:]
		l.parked = ""
		if ls.schedule(l); l.queued {
			l.turn = id
			return
		}
	}
	delete(ls.parked, id)
}

// passTurn wakes the next one that needs what a lane was woken for, and did not need in
// the end: it was not among what its claim held, or nothing was left to claim.
func (ls *lanes) passTurn(l *lane, held []string) {
	turn := l.turn
	l.turn = ""
	if turn != "" && !ls.isHeld(turn) && !slices.Contains(held, turn) {
		ls.passOn(turn)
	}
}

// laneHeap orders lanes by the time their head is due.
type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laneHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heap, h[j].heap = i, j
}
func (h *laneHeap) Push(x any) {
	l := x.(*lane)
	l.heap = len(*h)
	*h = append(*h, l)
}
func (h *laneHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.heap = -1
	return l
}
