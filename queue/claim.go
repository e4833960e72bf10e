package queue

import (
	"context"
	"fmt"
	"time"
)

// The bounds of one claim: a run of one lane.
const (
	claimRecords = 500
	claimBytes   = 512 << 10
	unreadWait   = 50 * time.Millisecond // until it is looked again whether the reader has come to a lane
)

// Claim is a run of records from the head of one lane. Nobody else sends anything
// of that lane before it ends: by Settle, Finish, Retry or Return. It is for one
// goroutine. A crash ends it too: the records are then read again.
type Claim struct {
	c       *Consumer
	lane    *lane
	entries []*entry
	records []Record
	held    []string
	tries   int    // of the head that had failed when it began
	hastens uint64 // how often the consumer had been hastened when it began
	wanted  string // the identifier that the last Hold did not get, or the lane that it waits for
	over    bool

	// Memory of records and held, as long as that is enough: most claims are of one record.
	oneRecord [1]Record
	oneHeld   [1]string
}

// Outcome is how a record ends.
type Outcome struct {
	Ending  Ending  // Delivered, Filtered or Dead
	Reason  string  // of Filtered and Dead
	Results []byte  // of Dead: what was answered, kept with the whole record; opaque
	Tallies []Tally // what else to count, such as an event and a user update apart

	// SentKey, when not empty, is an identifier that the claim holds, and Sent what it
	// has now been sent (opaque); the ledger remembers it.
	SentKey string
	Sent    []byte // nil = what it was sent before stands
}

// Claim waits until the head of some lane is due and claims a run of it. The error
// is ctx's. Safe for concurrent use.
func (c *Consumer) Claim(ctx context.Context) (*Claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		l, next := c.claimLane()
		if l != nil {
			c.passOn()
			if cl := c.claim(l); cl != nil {
				return cl, nil
			}
			continue
		}
		c.idle++
		c.makeRoomIfCrowded()
		c.mu.Unlock()
		err := c.pause(ctx, next)
		c.mu.Lock()
		c.idle--
		if err != nil {
			c.passOn() // the others may not know when the next lane is due
			return nil, err
		}
	}
}

// pause waits for something to become ready, at the latest until next.
func (c *Consumer) pause(ctx context.Context, next time.Time) error {
	var due <-chan time.Time
	if !next.IsZero() {
		t := time.NewTimer(time.Until(next))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ready:
	case <-due:
	}
	return nil
}

// TryClaim claims a run if one is due now, else it gives nil.
func (c *Consumer) TryClaim() *Claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		l, _ := c.claimLane()
		if l == nil {
			return nil
		}
		if cl := c.claim(l); cl != nil {
			return cl
		}
	}
}

// claimable says whether anything may be claimed. The caller holds c.mu.
func (c *Consumer) claimable() bool {
	return c.full == "" && c.failed == nil && c.state.paused == 0 && c.held == 0
}

// claimLane takes the next lane that is due; nil when there is none, and then the time
// when there will be one, if that is known. The caller holds c.mu.
func (c *Consumer) claimLane() (l *lane, next time.Time) {
	if !c.claimable() {
		return nil, time.Time{}
	}
	next = c.lanes.promote(time.Now())
	if l = c.lanes.take(); l != nil {
		l.claimed = true
		c.claims++
	}
	return l, next
}

// claim claims a run of a lane that claimLane gave. It is nil when nothing of the lane
// could be read. The caller holds c.mu, which is let go while the side place is read.
func (c *Consumer) claim(l *lane) *Claim {
	cl := &Claim{c: c, lane: l}
	read := c.read // behind this the reader may find, while the lane is read, what comes before what is found of it
	if l.aside != nil {
		c.mu.Unlock()
		head, next, err := c.head(l)
		c.mu.Lock()
		if err != nil {
			c.fail(err)
		}
		if l.aside != nil { // else all of it was lost, and what came since is in the window
			l.records = head
			if l.aside.next == 0 || next != 0 && next < l.aside.next {
				l.aside.next = next
			}
			if len(head) > 0 && head[0].rec.Seq > read {
				// After a rename, or a start: the log may have records of this lane before it
				// that are still to be read.
				c.unload(l)
				l.due = time.Now().Add(unreadWait)
			}
		}
	}
	if len(l.records) == 0 {
		l.claimed = false
		c.claims--
		c.lanes.passTurn(l, nil)
		c.lanes.schedule(l)
		c.wake()
		return nil
	}
	n, size := 0, int64(0)
	// Of the side place there may be records that come, in the log, after others that are still to be read: of
	// those it could not be told whether a lane has ended that they have to wait for.
	isRead := func(e *entry) bool { return l.aside == nil || e.rec.Seq <= read }
	for n < len(l.records) && n < claimRecords && (n == 0 || size+l.records[n].bytes() <= claimBytes && isRead(l.records[n])) {
		size += l.records[n].bytes()
		n++
	}
	cl.tries, cl.hastens = l.retry.attempts, c.hastens
	cl.entries, cl.records, cl.held = l.records[:n:n], cl.oneRecord[:], cl.oneHeld[:0]
	if n > 1 {
		cl.records = make([]Record, n)
	}
	for i, e := range cl.entries {
		cl.records[i] = e.rec
		c.tellFollowers(&e.rec, Step{Kind: StepClaimed})
	}
	l.taken = n
	c.inFlight += n
	return cl
}

// Lane is the key of the lane.
func (cl *Claim) Lane() string { return cl.lane.key }

// Records are the claimed records in order, never none. They must not be changed.
func (cl *Claim) Records() []Record { return cl.records }

// Replay says whether record i is a dead letter that is tried again, and gives what was
// answered the last time, as its Outcome had it.
func (cl *Claim) Replay(i int) (results []byte, ok bool) {
	return cl.entries[i].results, cl.entries[i].replay
}

// Attempts is how many tries of the head had failed when it was claimed, restarts included.
func (cl *Claim) Attempts() int { return cl.tries }

// Hold takes an identifier for this claim until it ends. False means that another
// claim has it: then Trim before the record that needs it, or Return if that is the
// first; the lane comes back as soon as the identifier is free.
func (cl *Claim) Hold(identifier string) bool {
	cl.c.mu.Lock()
	defer cl.c.mu.Unlock()
	return cl.hold(identifier)
}

// hold is Hold; the caller holds the consumer's lock.
func (cl *Claim) hold(identifier string) bool {
	switch owner := cl.c.lanes.holds[identifier]; owner {
	case cl:
	case nil:
		cl.c.lanes.holds[identifier] = cl
		cl.held = append(cl.held, identifier)
	default:
		cl.wanted = identifier
		return false
	}
	cl.wanted = "" // it has got another one instead
	return true
}

// Waits says whether the claim has to wait for a lane: something of it has not ended. Then
// Trim before the record that has to, or Return if that is the first; the claim's lane comes
// back as soon as the other is empty. A lane that others wait for may wait for none itself.
func (cl *Claim) Waits(lane string) bool {
	cl.c.mu.Lock()
	defer cl.c.mu.Unlock()
	if lane == cl.lane.key || !cl.c.lanes.isHeld(laneWait+lane) {
		return false
	}
	cl.wanted = laneWait + lane
	return true
}

// Sent is what the ledger remembers of an identifier that the claim holds; nil when
// it was never sent anything.
func (cl *Claim) Sent(identifier string) ([]byte, error) { return cl.c.sent(identifier) }

// HoldSent is Hold, and Sent where that is granted: the two are asked for together by each
// record, from all workers, so that one look is worth a name. ahead, when not nil, gives the identifier that a record will
// be asked for, or "": where the file has to be looked at, those of the next lanes are looked for in the same transaction.
func (cl *Claim) HoldSent(identifier string, ahead func(*Record) string) (sent []byte, held bool, err error) {
	c := cl.c
	c.mu.Lock()
	if !cl.hold(identifier) {
		c.mu.Unlock()
		return nil, false, nil
	}
	sent, known, _ := c.sentInMemory(identifier)
	var next []Record
	if !known && ahead != nil {
		next = c.lanes.next(sentTogether)
	}
	c.mu.Unlock()
	if known {
		return sent, true, nil
	}
	wanted := append(make([]string, 0, 1+len(next)), identifier)
	for i := range next {
		if other := ahead(&next[i]); other != "" && other != identifier {
			wanted = append(wanted, other)
		}
	}
	sent, err = c.sent(wanted...)
	return sent, true, err
}

// Trim keeps the first n records, at least one, and gives the rest back to the
// head of the lane.
func (cl *Claim) Trim(n int) {
	if n >= len(cl.entries) {
		return
	}
	cl.c.mu.Lock()
	defer cl.c.mu.Unlock()
	cl.giveBack(n)
}

// giveBack leaves the entries from n on to the lane, where they still stand.
func (cl *Claim) giveBack(n int) {
	cl.c.inFlight -= len(cl.entries) - n
	cl.lane.taken = n
	cl.lane.parked, cl.wanted = cl.wanted, ""
	cl.entries, cl.records = cl.entries[:n:n], cl.records[:n:n]
}

// Finish ends all records, each with its outcome.
func (cl *Claim) Finish(outcomes []Outcome) { cl.Settle(outcomes, 0, "") }

// Retry lets all records wait for the given time, in order.
func (cl *Claim) Retry(wait time.Duration, reason string) { cl.Settle(nil, wait, reason) }

// Settle ends the first records, one for each outcome, and lets the others wait, in
// order, for the given time and reason: the first of them has failed once more. What
// it enters is durable with the next checkpoint, all of it together.
func (cl *Claim) Settle(outcomes []Outcome, wait time.Duration, reason string) {
	cl.c.Settle(Settlement{Claim: cl, Outcomes: outcomes, Wait: wait, Reason: reason})
}

// Return gives everything back as it was: due at once or, after a Hold that was
// refused, when that identifier is free.
func (cl *Claim) Return() { cl.c.Settle(Settlement{Claim: cl, Return: true}) }

// Settlement is how a claim ends: as by its Settle, with these arguments, or as by its Return.
type Settlement struct {
	Claim    *Claim
	Outcomes []Outcome
	Wait     time.Duration
	Reason   string
	Return   bool
}

// settleTogether is how many claims end before others have their turn.
const settleTogether = 64

// Settle ends claims of the consumer, one after the other. Each stands for itself; but that
// workers meet at the consumer's lock once for many is what their speed depends on.
func (c *Consumer) Settle(all ...Settlement) {
	for _, s := range all {
		s.check()
	}
	for len(all) > 0 {
		n := min(len(all), settleTogether)
		c.settle(all[:n])
		all = all[n:]
	}
}

func (c *Consumer) settle(some []Settlement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, changed := c.o.Now().UnixMilli(), false
	var counts tallying
	for _, s := range some {
		changed = s.Claim.end(s, now, &counts) || changed
	}
	counts.enter(c, now)
	c.advance()
	if changed {
		c.touch()
	}
	c.wake()
}

// check says whether the claim may end so. What does not is a mistake of the program.
func (s *Settlement) check() {
	if cl := s.Claim; cl.over || len(s.Outcomes) > len(cl.entries) || s.Return && len(s.Outcomes) > 0 {
		panic(fmt.Sprintf("claim of %d records ended with %d outcomes (ended before: %t)", len(cl.entries), len(s.Outcomes), cl.over))
	}
	for _, o := range s.Outcomes {
		if o.Ending != Delivered && o.Ending != Filtered && o.Ending != Dead {
			panic("a claim cannot end a record as " + o.Ending.String())
		}
	}
	s.Claim.over = true
}

// end ends the claim, and says whether there is something to write. The caller holds the consumer's lock, enters the counts
// and moves the low-water mark.
func (cl *Claim) end(s Settlement, now int64, counts *tallying) (changed bool) {
	c, l, outcomes, tried := cl.c, cl.lane, s.Outcomes, !s.Return
	var r retryState
	var due time.Time
	if tried && len(outcomes) < len(cl.entries) {
		due = time.Now().Add(s.Wait) // by the monotonic clock; what is stored is the wall clock's
		r = retryState{attempts: 1, due: c.o.Now().Add(s.Wait).UnixMilli(), delay: s.Wait.Milliseconds(), reason: s.Reason}
		if len(outcomes) == 0 {
			r.attempts += cl.tries
		}
	}
	for len(outcomes) < len(cl.entries) && c.isForgotten(cl.entries[len(outcomes)]) {
		outcomes = append(outcomes, discardForgotten)
		r, due, tried = retryState{}, time.Time{}, true // what failed is not tried again
	}
	for i, o := range outcomes {
		c.enterAt(l, cl.entries[i], o, now, counts)
		l.records[i], l.one[0] = nil, nil // the lane's memory may live on for long: the record must not
	}
	ended := len(outcomes)
	c.inFlight -= ended
	l.records = l.records[ended:]
	cl.entries, cl.records = cl.entries[ended:], cl.records[ended:]
	if tried {
		c.setRetry(l, r)
		if l.due = due; cl.hastens != c.hastens {
			l.due = time.Time{} // what failed began before that, and is hastened with all others
		}
		for _, e := range cl.entries {
			c.tellFollowers(&e.rec, Step{Kind: StepWaits, Reason: r.reason, Wait: time.Duration(r.delay) * time.Millisecond})
		}
	}
	if len(cl.entries) > 0 {
		cl.giveBack(0)
	}
	l.claimed, l.taken = false, 0
	c.claims--
	c.endForgotten(l)
	switch {
	case l.aside != nil:
		c.unload(l)
	case r.attempts >= asideTries && c.flowing && c.delivered > l.others:
		c.moveAside(l)
	}
	c.lanes.letGo(cl.held)
	c.lanes.passTurn(l, cl.held)
	c.lanes.schedule(l)
	return ended > 0 || tried
}
