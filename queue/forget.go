package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// discardForgotten ends a record of somebody who was forgotten.
var discardForgotten = Outcome{Ending: Discarded, Reason: ForgottenReason, Tallies: []Tally{forgottenTally}}

// forgotten is what is entered of an outcome that was in flight when the person was
// forgotten. It happened, and counts; but it leaves no memory of the person.
func (o Outcome) forgotten() Outcome {
	if o.Ending == Dead {
		return discardForgotten
	}
	o.SentKey, o.Sent = "", nil
	return o
}

func (c *Consumer) isForgotten(e *entry) bool {
	return c.log.Forgotten(c.o.Project, e.rec.Lane, e.rec.Seq)
}

// endForgotten ends what a lane has in memory, and in no claim, of somebody who was
// forgotten. The caller holds c.mu.
func (c *Consumer) endForgotten(l *lane) (n uint64) {
	if ts := c.log.forgotten.Load(); ts == nil || len(l.records) == l.taken || l.records[l.taken].rec.Seq > ts.most {
		return 0
	}
	kept := l.records[:l.taken:l.taken]
	for _, e := range l.records[l.taken:] {
		if c.isForgotten(e) {
			c.enter(l, e, discardForgotten)
			n++
		} else {
			kept = append(kept, e)
		}
	}
	l.records = kept
	return n
}

// Forgotten is what a consumer had of somebody whom it has forgotten.
type Forgotten struct {
	Pending     uint64 // records that waited, in the log or the side place
	DeadLetters uint64
	Sent        int // identifiers of which it was known what they were last sent
	// Rewritten: the ledger was written anew, so that nothing of it stands in pages that
	// are free. A very large one is not, nor one that is being audited.
	Rewritten bool
}

// Forget lets go of everything that the tombstones of the log forget, and of what the
// given identifiers were last sent. What waits ends as Discarded, so do dead letters.
// What is in flight to Customer.io cannot be called back: its answer is waited for, as
// long as ctx allows, and counts. It is durable when it returns nil; after an error it may
// be done again, and the next start does. Safe while Run runs, and when it does not.
func (c *Consumer) Forget(ctx context.Context, sent []string) (f Forgotten, err error) {
	c.operating.Lock()
	defer c.operating.Unlock()
	if err := c.Flush(); err != nil {
		return f, err
	}
	dead, err := c.forgottenDead(ctx)
	if err != nil {
		return f, err
	}
	n, err := c.exhumeNow(dead, func(d *DeadLetter) { c.discardedAs(d.Record.Seq, forgottenTally) })
	f.DeadLetters = uint64(n)
	if err != nil {
		return f, err
	}
	for {
		n, woken, err := c.forgetWaiting()
		f.Pending += n
		if err != nil {
			return f, err
		}
		if woken == nil {
			break
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return f, fmt.Errorf("sync %s: wait for requests in flight to end: %w", c.o.Name, ctx.Err())
		}
	}
	for _, key := range sent {
		known, err := c.sent(key)
		if err != nil {
			return f, err
		}
		if known != nil {
			f.Sent++
		}
		c.mu.Lock()
		c.sentNew[key] = nil
		c.touch()
		c.mu.Unlock()
	}
	if err := c.Flush(); err != nil {
		return f, err
	}
	f.Rewritten, err = c.compactIf(func(_, _ int64) bool { return true })
	return f, err
}

// forgottenDead lists the dead letters of who is forgotten.
func (c *Consumer) forgottenDead(ctx context.Context) (seqs []uint64, err error) {
	c.mu.Lock()
	kept := c.state.ended[Dead]
	c.mu.Unlock()
	ts := c.log.forgotten.Load()
	if kept == 0 || ts == nil {
		return nil, nil
	}
	err = eachDeadLetter(c.view, func(d DeadLetter) error {
		if d.Record.Seq > ts.most {
			return errStop
		}
		if ts.cover(c.o.Project, d.Record.Lane, d.Record.Seq) {
			seqs = append(seqs, d.Record.Seq)
		}
		return ctx.Err()
	})
	if err == errStop {
		err = nil
	}
	if errors.Is(err, ErrDamaged) { // it may be one of theirs: the next start mends the ledger and goes on with it
		suspect(c.path())
		err = fmt.Errorf("sync %s: look for who is forgotten: %w", c.o.Name, err)
	}
	return seqs, err
}

// forgetWaiting ends what waits of who is forgotten. woken is closed when it is worth to
// look again, since something of them is in flight; nil = nothing is.
func (c *Consumer) forgetWaiting() (n uint64, woken <-chan struct{}, err error) {
	ts := c.log.forgotten.Load()
	// Nothing moves between memory and file while both are looked at.
	c.writing.Lock()
	defer c.writing.Unlock()
	var names []string
	c.mu.Lock()
	for name := range c.side.lanes {
		if ts.upToOf(c.o.Project, name) > 0 {
			names = append(names, name)
		}
	}
	c.mu.Unlock()
	sides := map[string][]sideRecord{}
	for _, name := range names {
		if sides[name], err = c.sideOf(name); err != nil {
			return 0, nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	inFlight := false
	for name, l := range c.lanes.byKey {
		upTo := ts.upToOf(c.o.Project, name)
		if upTo == 0 {
			continue
		}
		if l.aside == nil {
			n += c.endForgotten(l)
		} else {
			n += c.forgetAsideOf(l, sides[name], upTo)
		}
		switch {
		case l.claimed && (l.taken == 0 || len(l.records) > 0 && l.records[0].rec.Seq <= upTo):
			inFlight = true
		case l.empty() && !l.claimed:
			c.setRetry(l, retryState{})
			c.lanes.drop(l)
		}
	}
	for name := range c.retries { // of lanes of which nothing is read yet
		if l := c.lanes.byKey[name]; l == nil && ts.upToOf(c.o.Project, name) > 0 {
			delete(c.retries, name)
			c.retriesNew[name] = true
		}
	}
	c.advance()
	c.touch()
	c.wake()
	if inFlight {
		woken = c.woken.wait()
	}
	return n, woken, nil
}

// sideOf lists what the file has of a lane in the side place.
func (c *Consumer) sideOf(lane string) (list []sideRecord, err error) {
	key := laneKeyOf(lane)
	err = c.view(func(tx *bolt.Tx) error {
		cur := tx.Bucket(bucketAside).Cursor()
		for k, v := cur.Seek(key[:]); len(k) == 24 && bytes.HasPrefix(k, key[:]); k, v = cur.Next() {
			if e, err := openAside(k, v); err == nil && e.rec.Lane == lane {
				list = append(list, sideRecord{lane, binary.BigEndian.Uint64(k[16:]), e.bytes()})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sync %s: read the side place: %w", c.o.Name, err)
	}
	return list, nil
}

// forgetAsideOf ends what waits in the side place of a lane, up to a sequence. The caller
// holds c.mu, and c.writing since before inFile was read.
func (c *Consumer) forgetAsideOf(l *lane, inFile []sideRecord, upTo uint64) (n uint64) {
	seen := map[uint64]bool{}
	for _, e := range l.aside.fresh {
		seen[e.rec.Seq] = true // memory's is the newer
		inFile = append(inFile, sideRecord{l.key, e.rec.Seq, e.bytes()})
	}
	fileOnly := len(inFile) - len(l.aside.fresh)
	key := laneKeyOf(l.key)
	for i, s := range inFile {
		fresh := i >= fileOnly
		if s.seq > upTo || l.aside == nil || c.inClaim(l, s.seq) || !fresh && (seen[s.seq] || c.side.gone[key][s.seq]) {
			continue
		}
		c.leaveAside(l, s.seq, s.bytes)
		c.discardedAs(s.seq, forgottenTally)
		n++
	}
	kept := l.records[:l.taken:l.taken]
	for _, e := range l.records[l.taken:] { // that a claim has given back before its end
		if e.rec.Seq > upTo {
			kept = append(kept, e)
		}
	}
	l.records = kept
	return n
}
