package delivery

import (
	"sync"
	"sync/atomic"
)

// throttles are the lanes of which the destination has taken too many operations at once,
// and how many may go in one request. The number is halved each time that it was too many,
// and doubled when it was not: where a user has sent more than the destination takes within
// a while, sending the same run again and again would never get through.
type throttles struct {
	any   atomic.Bool
	mu    sync.Mutex
	lanes map[string]int
}

// maxThrottles bounds how many lanes are remembered; the others find out again each time.
const maxThrottles = 10_000

// unthrottled is more than a lane's claim may have.
const unthrottled = 1 << 20

// most is how many records of a lane may go in one request.
func (t *throttles) most(lane string) int {
	if !t.any.Load() {
		return unthrottled
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if most, known := t.lanes[lane]; known {
		return most
	}
	return unthrottled
}

// exceeded says that so many records of a lane were too many.
func (t *throttles) exceeded(lane string, records int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lanes == nil {
		t.lanes = map[string]int{}
	}
	if _, known := t.lanes[lane]; known || len(t.lanes) < maxThrottles {
		t.lanes[lane] = max(records/2, 1)
		t.any.Store(true)
	}
}

// passed says that so many records of a lane got through.
func (t *throttles) passed(lane string, records int) {
	if !t.any.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	most, known := t.lanes[lane]
	switch {
	case !known:
	case records < most || most > maxRelayEvents: // there were no more, or there is no limit any longer
		delete(t.lanes, lane)
		t.any.Store(len(t.lanes) > 0)
	default:
		t.lanes[lane] = 2 * most
	}
}

// takeOver goes on with what the generation before knew.
func (t *throttles) takeOver(before *throttles) {
	before.mu.Lock()
	defer before.mu.Unlock()
	for lane, most := range before.lanes {
		t.exceeded(lane, 2*most)
	}
}

// sift gives a verdict to the operations of a request that an answer names. The lanes of
// those that have to wait stop there; those that are not named go on.
func (s *Sync) sift(operations []*operation, r reading) {
	for i, why := range r.refusals {
		operations[i].verdict, operations[i].refused = refused, why
	}
	waiting := reading{verdict: retry, reason: reasonThrottled, wait: r.wait}
	told := map[*taken]bool{}
	for _, i := range r.throttled {
		o := operations[i]
		if postpone(operations[i:i+1], waiting); told[o.of] {
			continue
		}
		told[o.of] = true
		count := 0
		for _, other := range operations {
			if other.of == o.of {
				count++
			}
		}
		s.throttles.exceeded(o.of.claim.Lane(), count)
	}
}
