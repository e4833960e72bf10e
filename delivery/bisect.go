package delivery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"ampcio/queue"
)

// This file finds the one user whose data makes a whole request fail, without
// Customer.io saying so: a 5xx, silence, a connection that is cut. Everybody else in
// the request is delivered, and that user alone waits.

// bisects tells whether operations that failed together are to be halved. They must
// be suspect: one of them has failed before, while the destination is known to work.
// Several lanes are halved until the culprit stands alone. One lane is only halved
// when it is known to be at fault and has a request of its own: then nobody else
// waits for it meanwhile.
func (s *Sync) bisects(b *batch, operations []*operation, r *reading, worked bool) bool {
	if len(operations) < 2 || !r.ambiguous() || !s.gate.holds(b.pass) {
		return false
	}
	if !b.bisecting && !(worked && suspect(operations)) {
		return false
	}
	return b.alone || laneOf(operations) == ""
}

func suspect(operations []*operation) bool {
	for _, o := range operations {
		if o.of.failedBefore {
			return true
		}
	}
	return false
}

// laneOf is the lane that all operations are of, "" when they are of several.
func laneOf(operations []*operation) string {
	if len(operations) == 0 {
		return ""
	}
	for _, o := range operations[1:] {
		if o.of != operations[0].of {
			return ""
		}
	}
	return operations[0].of.claim.Lane()
}

// bisect sends operations that failed together in two parts, and then goes on in the
// same way with what has failed again. The first part may well fail, and when it does
// not, the second is bound to: such failures tell nothing of the destination. One that
// fails unexpectedly does, and so a destination that dies meanwhile closes the gate,
// which ends the search.
//
// Parts without a lane in common may go in any order: both are sent before either is
// searched further, so that the innocent do not wait for a search of many timeouts.
// Within one lane the first part is done with before the second is sent. So it is when
// one more unexpected failure would close the gate: where many are at fault, at least
// one of them is found before it does.
func (s *Sync) bisect(ctx context.Context, b *batch, operations []*operation) bool {
	b.bisecting = true
	middle := cut(operations)
	oneLane := laneOf(operations) != ""
	var again [][]*operation
	failed := b.failed
	for _, part := range [][]*operation{operations[:middle], operations[middle:]} {
		b.expected, b.later, b.unsearched = b.failed == failed, !oneLane && !s.gate.doubts(), false
		if !s.exchange(ctx, b, part) {
			return false
		}
		if b.unsearched {
			again = append(again, part)
		}
		s.settleDone(b)
	}
	for _, part := range again {
		if !s.bisect(ctx, b, part) {
			return false
		}
	}
	return true
}

// cut is where to halve: between two lanes where there are several, so that each
// stands alone in the end.
func cut(operations []*operation) int {
	middle := len(operations) / 2
	for d := range middle + 1 {
		for _, i := range []int{middle - d, middle + d} {
			if i > 0 && i < len(operations) && operations[i-1].of != operations[i].of {
				return i
			}
		}
	}
	return middle
}

// settleDone settles the claims that nothing more can happen to, so that neither
// those who were delivered nor the one who waits have to wait for the rest of the
// search, which may take many timeouts.
func (s *Sync) settleDone(b *batch) {
	s.inLedger(b.ledger, func() {
		var done []*taken
		for _, t := range b.taken {
			if !t.settled && t.done() {
				done = append(done, t)
			}
		}
		s.settle(done...)
	})
}

// done tells whether every record has ended but for those that wait behind a failure.
func (t *taken) done() bool {
	for i := range t.parts {
		if o := t.parts[i].waiting(); o != nil {
			return o.verdict == retry
		}
	}
	return true
}

// culprits are the lanes that made requests fail while the destination worked. Each
// has requests of its own from then on, until one gets through: were it sent with
// others, all of them would have to be searched again at each try. They are known
// to this process only; after a restart they are found once more.
type culprits struct {
	some  atomic.Bool // there has been one: until then nobody is looked for
	mu    sync.Mutex
	lanes map[string]culprit
}

type culprit struct {
	head   bool   // it is known to be its first record: only that is sent
	reason string // of its last failure
}

// maxCulprits bounds how many are remembered; the others are found again each time.
const maxCulprits = 10_000

func (c *culprits) of(lane string) (culprit, bool) {
	if !c.some.Load() {
		return culprit{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.lanes[lane]
	return known, ok
}

func (c *culprits) convict(lane string, as culprit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.lanes[lane]; known || len(c.lanes) < maxCulprits {
		c.lanes[lane] = as
		c.some.Store(true)
	}
}

func (c *culprits) acquit(lane string) {
	if !c.some.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.lanes, lane)
}

// seat takes, for as long as the claim lasts, one of the requests that culprits may have
// in flight, if one is free: users who let requests hang must not take all of the
// workers. Who gets none is returned, and then waits in the queue until it is its turn:
// no try of it has failed, so it must not wait as if one had.
func (s *Sync) seat(claim *queue.Claim) bool {
	seats := max(1, s.o.Concurrency/2)
	first := rand.IntN(seats) // who gets none waits for the last one tried: not all for the same
	for i := range seats {
		if claim.Hold(fmt.Sprint(seatOf, (first+i)%seats)) {
			return true
		}
	}
	return false
}

// seatOf begins what stands for a seat where others stand for an identifier. No
// identifier begins so.
const seatOf = "\x00seat "

// takeOver goes on with what the generation before knew.
func (c *culprits) takeOver(before *culprits) {
	before.mu.Lock()
	defer before.mu.Unlock()
	for lane, known := range before.lanes {
		c.lanes[lane] = known
		c.some.Store(true)
	}
}
