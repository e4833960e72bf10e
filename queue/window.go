package queue

import (
	"sort"
	"time"
)

// slot is a place in the window: of one record, or of a run of records that have
// ended, or were lost.
type slot struct {
	run
	e *entry // nil = ended
}

// take puts the records of a chunk into the window. One of no records tells only
// that what stands before it cannot be read. One that was read before the consumer
// went back in the log (epoch) tells nothing.
func (c *Consumer) take(chunk *Chunk, epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != c.epoch {
		return nil
	}
	chunk = c.log.marked(chunk) // somebody may have been forgotten since it was read
	if chunk.First > c.read {
		if before := chunk.Before[c.o.Project]; before > c.readCount {
			c.lose(before)
		}
		c.read = chunk.First - 1
	}
	err := chunk.Records(func(r Record) error {
		if r.Project != c.o.Project || r.Seq <= c.read {
			return nil
		}
		c.readCount++
		switch {
		case !takes(c.state.spans, c.readCount):
		case inRuns(c.state.done, c.readCount):
			// It keeps a slot, so that the next checkpoint still knows that it has ended.
			c.addEnded(run{c.readCount, c.readCount})
		case r.Seq <= c.discardTo:
			c.addEnded(run{c.readCount, c.readCount})
			c.discarded(r.Seq)
		case r.Forgotten:
			c.addEnded(run{c.readCount, c.readCount})
			c.discardedAs(r.Seq, forgottenTally)
		default:
			c.addEntry(r)
		}
		return nil
	})
	c.read = max(c.read, chunk.Last())
	c.advance()
	c.touch()
	c.wake()
	return err
}

// addEntry puts a record at the end of the window and of its lane, or, where the lane is
// in the side place, there.
func (c *Consumer) addEntry(r Record) {
	// A copy: the window holds single records, not whole chunks.
	r.Body = append([]byte(nil), r.Body...)
	r.Project = c.o.Project
	e := &entry{rec: r, ord: c.readCount}
	c.tellFollowers(&e.rec, Step{Kind: StepRead})
	l := c.lanes.lane(r.Lane, c.restored)
	e.rec.Lane = l.key // one memory for all of its records
	if l.aside != nil {
		c.addEnded(run{e.ord, e.ord})
		c.setAside(l, e)
		if !c.flowing || c.state.paused != 0 {
			c.side.idle += e.bytes()
		}
		return
	}
	c.window = append(c.window, slot{run{e.ord, e.ord}, e})
	c.windowBytes += e.bytes() + slotBytes
	c.pending++
	c.lanes.add(l, e)
}

// addEnded puts a run of records that are no longer pending at the end of the window.
func (c *Consumer) addEnded(r run) {
	if n := len(c.window); n > 0 && c.window[n-1].e == nil && c.window[n-1].last+1 == r.first {
		c.window[n-1].last = r.last
		return
	}
	c.window = append(c.window, slot{run: r})
	c.windowBytes += slotBytes
}

// lose enters the records that stood behind what has been read, up to number count,
// and cannot be read any more. They stay in the window as ended: a crash that reads
// from the low-water mark again must not count them again.
func (c *Consumer) lose(count uint64) {
	var missing uint64
	for _, r := range takenRuns(c.state.spans, c.readCount, count) {
		missing += r.len() - overlap(c.state.done, r)
		c.addEnded(r)
	}
	c.readCount = count
	if missing > 0 {
		c.state.ended[Lost] += missing
		c.state.newest[Lost] = c.o.Now().UnixMilli()
		c.count(Tally{Key: "record/lost"}, missing)
	}
}

// restored gives the failed tries that the ledger remembers of a lane, and when its
// head is due. The clock may have been set meanwhile: the wait is never longer than it
// was meant to be.
func (c *Consumer) restored(key string) (retryState, time.Time) {
	r := c.retries[key]
	if r.attempts == 0 {
		return r, time.Time{}
	}
	wait := min(max(r.due-c.o.Now().UnixMilli(), 0), r.delay)
	return r, time.Now().Add(time.Duration(wait) * time.Millisecond)
}

// leaveWindow lets go of a record that has ended, or moves to the side place.
func (c *Consumer) leaveWindow(e *entry) {
	i := int(e.ord - c.window[0].first) // where no slot before it has more than one
	if i >= len(c.window) || c.window[i].first != e.ord {
		i = sort.Search(len(c.window), func(i int) bool { return c.window[i].first >= e.ord })
	}
	c.window[i].e = nil
	c.windowBytes -= e.bytes()
	c.pending--
	c.endedSlots++
}

// joinSlots makes one of neighbouring slots without a record, once they are many: one
// record that waits would fill the window with those of what has ended behind it.
func (c *Consumer) joinSlots() {
	if int64(c.endedSlots)*slotBytes < c.o.WindowBytes/4 {
		return
	}
	joined := c.window[:0:0]
	for _, w := range c.window {
		if n := len(joined); w.e == nil && n > 0 && joined[n-1].e == nil && joined[n-1].last+1 == w.first {
			joined[n-1].last = w.last
			continue
		}
		joined = append(joined, w)
	}
	c.windowBytes -= int64(len(c.window)-len(joined)) * slotBytes
	c.window, c.endedSlots = joined, 0
}

// enter ends one record.
func (c *Consumer) enter(l *lane, e *entry, o Outcome) {
	now := c.o.Now().UnixMilli()
	var counts tallying
	c.enterAt(l, e, o, now, &counts)
	counts.enter(c, now)
}

// enterAt is enter, but for the outcome's tallies, which are added to counts.
func (c *Consumer) enterAt(l *lane, e *entry, o Outcome, now int64, counts *tallying) {
	if c.log.Forgotten(c.o.Project, e.rec.Lane, e.rec.Seq) {
		o = o.forgotten()
	}
	if e.aside {
		c.leaveAside(l, e.rec.Seq, e.bytes())
	} else {
		c.leaveWindow(e)
	}
	c.state.ended[o.Ending]++
	c.state.newest[o.Ending] = now
	c.changedBytes += 64
	noted := Ended{Seq: e.rec.Seq, At: now, Ending: o.Ending, Reason: o.Reason, Tries: 1, Tallies: o.Tallies}
	head := len(l.records) > 0 && l.records[0] == e // whom the lane's failed tries are counted against
	if head {
		noted.Tries += l.retry.attempts
	}
	switch o.Ending {
	case Filtered, Discarded:
		noted.Tries = 0
	case Delivered:
		c.delivered++
		if !e.replay && e.rec.Seq > c.state.rewindTail {
			c.latencies.note(now, e.rec.Received)
		}
		if head {
			noted.Reason = l.retry.reason
		}
	case Dead:
		c.bury(&DeadLetter{Record: e.rec, At: now, Reason: o.Reason, Results: o.Results})
		c.count(Tally{Key: buriedTally}, 1)
	}
	if o.SentKey != "" && o.Sent != nil {
		c.sentNew[o.SentKey] = o.Sent
		c.changedBytes += int64(len(o.SentKey) + len(o.Sent))
	}
	counts.add(c, o.Tallies, now)
	c.note(noted)
	c.tellFollowers(&e.rec, Step{Kind: StepEnded, Outcome: o})
}

// tallying adds up the tallies of records that end together. Most have the very same list, and are counted by that.
type tallying struct {
	alike [16]struct {
		list []Tally
		n    uint64
	}
	used int
}

func (t *tallying) add(c *Consumer, list []Tally, now int64) {
	if len(list) == 0 {
		return
	}
	for i := range t.alike[:t.used] {
		if a := &t.alike[i]; &a.list[0] == &list[0] && len(a.list) == len(list) {
			a.n++
			return
		}
	}
	if t.used == len(t.alike) {
		t.enter(c, now)
	}
	t.alike[t.used].list, t.alike[t.used].n = list, 1
	t.used++
}

func (t *tallying) enter(c *Consumer, now int64) {
	for i := range t.alike[:t.used] {
		for _, one := range t.alike[i].list {
			c.countAt(one, t.alike[i].n, now)
		}
	}
	t.used = 0
}

// count adds to a tally.
func (c *Consumer) count(t Tally, n uint64) { c.countAt(t, n, c.o.Now().UnixMilli()) }

func (c *Consumer) countAt(t Tally, n uint64, now int64) {
	k := c.tallies[t.Key]
	k.N += n
	k.Newest = now
	if t.Example != "" {
		k.Example = t.Example
	}
	c.tallies[t.Key] = k
	c.talliesNew[t.Key] = true
}

// setRetry remembers the failed tries of a lane; none forgets it.
func (c *Consumer) setRetry(l *lane, r retryState) {
	if l.retry == r {
		return
	}
	l.retry = r
	if r.attempts > 0 {
		l.failed = time.Now()
	}
	if r.attempts == 1 {
		l.others = c.delivered
	}
	if r.attempts == 0 {
		delete(c.retries, l.key)
	} else {
		c.retries[l.key] = r
	}
	c.retriesNew[l.key] = true
	c.touch()
}

// advance moves the low-water mark over the records that have ended.
func (c *Consumer) advance() {
	n := 0
	for n < len(c.window) && c.window[n].e == nil {
		n++
	}
	c.window = c.window[n:]
	c.windowBytes -= int64(n) * slotBytes
	c.endedSlots = max(c.endedSlots-n, 0)
	c.room.ring()
}

// makeRoomIfCrowded lets the reader look again whether it may go on.
func (c *Consumer) makeRoomIfCrowded() {
	if c.crowded() {
		c.room.ring()
	}
}

// touch asks for a checkpoint.
func (c *Consumer) touch() {
	c.changed = true
	notify(c.dirty)
	if c.changedBytes >= dirtyBytes {
		notify(c.haste)
	}
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wake lets look again who waits for something to be due, or to end: of those in Claim one,
// who passes it on. The lane may become ready only after the call, before c.mu is let go.
func (c *Consumer) wake() {
	c.woken.ring()
	notify(c.ready)
}

// passOn lets the next waiting Claim look, where this one leaves something for it: another
// lane, or one that is due earlier than the next one knows. The caller holds c.mu.
func (c *Consumer) passOn() {
	if len(c.lanes.ready) > 0 || len(c.lanes.waiting) > 0 {
		notify(c.ready)
	}
}

// unread counts what the consumer takes of the project's first count records and has
// yet to read. The caller holds c.mu.
func (c *Consumer) unread(count uint64) (n uint64) {
	for _, r := range takenRuns(c.state.spans, c.readCount, count) {
		n += r.len() - overlap(c.state.done, r)
	}
	return n
}

// snapshot is the state as the window has it now: every record at or below its low
// has ended. The caller holds c.mu.
func (c *Consumer) snapshot() ledgerState {
	s := c.state
	s.low, s.lowCount = c.read, c.readCount
	if len(c.window) > 0 {
		s.low, s.lowCount = c.window[0].e.rec.Seq-1, c.window[0].first-1
	}
	s.done = c.runs()
	s.spans = append([]span(nil), c.state.spans...)
	return s
}

// runs lists what has ended above the low-water mark: in the window, and behind it
// what an earlier run of this consumer has ended.
func (c *Consumer) runs() []run {
	var runs []run
	for _, w := range c.window {
		switch n := len(runs); {
		case w.e != nil:
		case n > 0 && runs[n-1].last+1 == w.first:
			runs[n-1].last = w.last
		default:
			runs = append(runs, w.run)
		}
	}
	for _, r := range c.state.done {
		if behind := r.within(c.readCount+1, r.last); behind.len() > 0 {
			runs = append(runs, behind)
		}
	}
	return runs
}
