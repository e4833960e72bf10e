package delivery

import (
	"context"
	"time"
)

// send brings the batch's operations to a verdict each, with as many requests as
// that takes. What is still unsent afterwards goes back into the queue as if it
// had never been claimed.
func (s *Sync) send(ctx context.Context, b *batch) {
	for operations := b.operations; len(operations) > 0; {
		now, then := s.to.together(operations)
		goOn := s.exchange(ctx, b, now)
		behind := s.judgeForbidden(ctx, b)
		if !goOn {
			return
		}
		if operations = behind; len(behind) == 0 && len(then) > 0 {
			operations = sendable(then)
			b.suspect, b.bisecting = false, false // what was found of one request says nothing of another
		}
	}
}

// exchange sends operations in array order, in one request where they fit and
// are not refused as a whole, else in halves, one after the other. It returns
// false when the rest of the batch must not be sent now.
//
// Halves that go one after the other keep each person's order: once an operation
// has to wait, the later ones of its lane are left out.
func (s *Sync) exchange(ctx context.Context, b *batch, operations []*operation) bool {
	operations = sendable(operations)
	if len(operations) == 0 {
		return true
	}
	// The first record of a batch may be more than one request's worth.
	if len(operations) > s.o.BatchOperations {
		return s.halves(ctx, b, operations)
	}
	if !b.paid && s.pace.wait(ctx) != nil {
		return false
	}
	b.paid = false
	if ctx.Err() != nil || !s.mayGoOn(b.pass) {
		return false
	}
	expected, later := b.expected || b.alone, b.later
	b.expected, b.later = false, false
	a := s.post(operations)
	if a.err != nil && s.cut.Err() != nil {
		return false // we hung up ourselves, at the end of StopGrace
	}
	r := s.to.read(operations, a, s.o.Now())
	s.o.Meter.answered(&r, &a)
	s.pace.answered(r.reason == "http_429")
	accepted := 0
	if r.verdict == delivered {
		accepted = len(operations) - len(r.refusals)
	}
	var before news
	if r.verdict != forbidden { // then it is told once it is known what it means
		before = s.answered(b, operations, r, accepted, expected)
	}

	switch r.verdict {
	case delivered:
		for i, o := range operations {
			o.verdict = delivered
			if why := r.refusals[i]; len(why) > 0 {
				o.verdict, o.refused = refused, why
			}
		}
		return true
	case refused:
		operations[0].verdict, operations[0].refused = refused, []refusal{r.refusal}
		return true
	case split:
		return s.halves(ctx, b, operations)
	case sifted:
		s.sift(operations, r)
		return s.exchange(ctx, b, operations)
	case forbidden:
		return s.forbidden(ctx, b, operations, r)
	case blocked:
		s.door.block(s.to.blockedBy(r, a), a.began)
		return false
	}
	b.failed++
	switch {
	case b.pass.probe:
		// All of it goes back as it was, to the end of the queue: the next probe is another lane.
		return false
	case s.bisects(b, operations, &r, before.worked):
		if b.unsearched = later; later {
			return true
		}
		return s.bisect(ctx, b, operations)
	}
	postpone(operations, r)
	if before.blamed || (b.bisecting || b.alone) && r.ambiguous() && s.gate.holds(b.pass) {
		t := operations[0].of
		t.atFault, t.atHead = true, b.alone && (b.bisecting || len(t.parts) == 1)
		return true
	}
	// The destination has failed. The rest of this batch would most likely fail
	// too; it goes back without an attempt being counted against it.
	return false
}

// answered tells those who have to know of the answer to a request of data.
func (s *Sync) answered(b *batch, operations []*operation, r reading, accepted int, expected bool) news {
	s.door.answered(r, accepted)
	if r.verdict == blocked {
		return news{} // that is the door's
	}
	n := s.gate.answered(told{pass: b.pass, reading: r, lane: laneOf(operations), suspect: suspect(operations), expected: expected})
	if n.opened {
		// Whoever failed because of the outage does not wait for it any longer.
		// By the monotonic clock, so that one which was set back meanwhile does not keep them waiting.
		s.source.Hasten(n.since.Add(-time.Millisecond))
	}
	return n
}

// mayGoOn tells whether nothing has come up that keeps a worker from claiming and sending.
func (s *Sync) mayGoOn(p pass) bool { return s.door.passable() && s.gate.holds(p) }

// post is one request: it ends by its own timeout or StopGrace after Run's ctx, not
// with that.
func (s *Sync) post(operations []*operation) answer {
	s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	return s.to.post(s.cut, operations)
}

func (s *Sync) halves(ctx context.Context, b *batch, operations []*operation) bool {
	middle := len(operations) / 2
	return s.exchange(ctx, b, operations[:middle]) && s.exchange(ctx, b, operations[middle:])
}

// forbidden deals with a 403, and a 404 or 405 at a path that names a person: either the keys or the endpoint are not good
// (any more), or nothing is let through, or something that inspects requests dislikes what is in this one.
func (s *Sync) forbidden(ctx context.Context, b *batch, operations []*operation, r reading) bool {
	if !b.suspect {
		verdict := s.interpretForbidden(ctx)
		if verdict != refused {
			if r.verdict = verdict; verdict == unsent {
				r.verdict = blocked
			}
			s.answered(b, operations, r, 0, false)
			if verdict == retry && !b.pass.probe {
				postpone(operations, r)
			}
			return false
		}
		b.suspect = true
		if len(operations) == 1 {
			// Perhaps nothing was let through, and just now that has ended: it is sent once more before it is buried.
			s.answered(b, operations, r, 0, false)
			return s.exchange(ctx, b, operations)
		}
	}
	s.answered(b, operations, r, 0, false)
	if len(operations) > 1 {
		return s.halves(ctx, b, operations)
	}
	postpone(operations, r)
	return true
}

// judgeForbidden decides on the single operations that got such an answer. Keys that were
// revoked in the meantime give the same answer, so it is looked into once more. It
// returns the operations that were left out behind those that are now refused.
func (s *Sync) judgeForbidden(ctx context.Context, b *batch) (behind []*operation) {
	var verdict verdict
	for _, o := range b.operations {
		if o.verdict != forbidden {
			continue
		}
		if verdict == unsent {
			if verdict = s.interpretForbidden(ctx); verdict == unsent {
				verdict = blocked
			}
		}
		if o.verdict = verdict; verdict == refused {
			o.refused = []refusal{o.answer.refusal}
			o.of.stopped = false
		}
	}
	if verdict == refused {
		behind = sendable(b.operations)
	}
	return behind
}

// interpretForbidden says what such an answer to data means at this moment:
// refused, it is the data; retry, it is not, or that cannot be told; unsent, the
// keys or the endpoint are not good, and the sync is blocked.
//
// It asks the region endpoint about the keys, then sends a batch without
// operations: where that gets any other answer than 403, requests do come through.
// Without it, a firewall that dislikes this machine would bury the whole queue.
func (s *Sync) interpretForbidden(ctx context.Context) verdict {
	if !s.door.passable() {
		return unsent // another worker has found out
	}
	began := s.o.Now()
	_, err := s.ask(s.cut, began)
	switch {
	case s.cut.Err() != nil:
		return unsent
	case err != nil && err.Blocked:
		s.door.block(err, began)
		return unsent
	case err != nil:
		return retry
	case s.pace.wait(ctx) != nil:
		return unsent
	}
	a := s.post(nil)
	if s.cut.Err() != nil {
		return unsent
	}
	switch r := s.to.read(nil, a, s.o.Now()); r.verdict {
	case delivered, refused, sifted:
		return refused
	case blocked:
		s.door.block(s.to.blockedBy(r, a), a.began)
		return unsent
	}
	return retry
}

// postpone marks operations that must wait, and with each the rest of its lane.
func postpone(operations []*operation, r reading) {
	for _, o := range operations {
		o.verdict, o.answer = r.verdict, &r
		o.of.stopped = true
	}
}

// sendable leaves out the operations of lanes that have come to a stop, and those that
// are done with.
func sendable(operations []*operation) []*operation {
	keep := operations[:0:0]
	for _, o := range operations {
		if !o.of.stopped && o.verdict == unsent {
			keep = append(keep, o)
		}
	}
	return keep
}
