package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// ErrNotKept says that the log does not reach back as far as was asked for.
var ErrNotKept = errors.New("the log does not reach back so far")

// Rewound is what a rewind takes again.
type Rewound struct {
	Records     uint64 `json:"records"`      // that had ended, dead letters apart
	DeadLetters uint64 `json:"dead_letters"` // that are pending again and no dead letters any more
	Untaken     uint64 `json:"untaken"`      // records that were never taken, and are now (TakeSince)
	Pending     uint64 `json:"pending"`      // records behind that point that were pending anyhow
	From        int64  `json:"from"`         // when the first of all these was received, ms since 1970 UTC; 0 = there is none
}

// Kept tells since when the log has records: when the oldest was received, ms since
// 1970 UTC; 0 = it has none.
func (l *Log) Kept() (int64, error) {
	c, err := l.Reader(l.beforeFiles()).Try()
	if err != nil || c == nil {
		return 0, err
	}
	first := int64(0)
	err = c.Records(func(r Record) error { first = r.Received; return errStop })
	if errors.Is(err, errStop) {
		err = nil
	}
	return first, err
}

// beforeFiles is the sequence before the first that a file has. The newest chunks are in
// memory for longer, but a start would not find them.
func (l *Log) beforeFiles() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[0].first - 1
}

// rewindPoint is where a rewind begins.
type rewindPoint struct {
	position
	received int64 // of the first record behind it, 0 = there is none
	gone     bool  // records of that time may have been deleted
}

// pointAt finds the position before the first record that was received at or after a
// time. What a clock that was set back has stored behind it belongs to it too.
func (c *Consumer) pointAt(ctx context.Context, since int64) (p rewindPoint, err error) {
	r := c.log.OpenReader(c.log.beforeFiles())
	defer r.Close()
	first := true
	for {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		chunk, err := r.Try()
		if err != nil {
			return p, err
		}
		if chunk == nil {
			p.seq, p.count = c.log.endOf(c.o.Project)
			p.gone = p.gone || first && p.seq > 0
			return p, nil
		}
		if first {
			p.gone = chunk.First > 1
		}
		p.position = position{chunk.First - 1, chunk.Before[c.o.Project]}
		err = chunk.Records(func(r Record) error {
			if r.Received >= since {
				p.received = r.Received
				return errStop
			}
			p.gone = false // one from before is still there
			p.seq = r.Seq
			if r.Project == c.o.Project {
				p.count++
			}
			return nil
		})
		first = false
		if errors.Is(err, errStop) {
			return p, nil
		}
		if err != nil {
			return p, err
		}
	}
}

// RecordsSince calls f for each record that Rewind would take again (TakeSince, with
// untaken), and for those that are pending behind that point, in the order of the log.
func (c *Consumer) RecordsSince(ctx context.Context, since int64, untaken bool, f func(Record) error) error {
	release := c.log.holdFor("a look back of "+c.o.Name, 0)
	defer release()
	p, err := c.pointAt(ctx, since)
	if err != nil {
		return err
	}
	c.mu.Lock()
	spans := append([]span(nil), c.state.spans...)
	c.mu.Unlock()
	tail := c.log.Tail() // which may move as fast as it is read, while no file is deleted
	return c.eachTaken(ctx, p.position, tail, func(r Record, ord uint64) error {
		if r.Forgotten || !untaken && !takes(spans, ord) {
			return nil
		}
		return f(r)
	})
}

// Rewind goes back in the log: what the consumer has taken since a time (ms since 1970
// UTC), whatever became of it, is pending again, under the same ids and in the order of
// the log. Its dead letters among that are none any more. It waits for claims to end, as
// long as ctx allows. With dryRun nothing changes.
//
// Where records of that time have been deleted it is ErrNotKept, with what the log still
// has in From, unless what is there is enough (partly). It is durable when it returns
// nil; a crash before leaves everything as it was.
func (c *Consumer) Rewind(ctx context.Context, since int64, partly, dryRun bool) (Rewound, error) {
	return c.rewind(ctx, since, partly, false, dryRun)
}

// TakeSince is Rewind, and what the consumer has not taken since that time, because it
// was not enabled, is taken too. It is enabled.
func (c *Consumer) TakeSince(ctx context.Context, since int64, partly, dryRun bool) (Rewound, error) {
	return c.rewind(ctx, since, partly, true, dryRun)
}

func (c *Consumer) rewind(ctx context.Context, since int64, partly, untaken, dryRun bool) (re Rewound, err error) {
	c.operating.Lock()
	defer c.operating.Unlock()
	// The files that are needed must not go while they are looked for.
	letGo := c.log.holdFor("a rewind of "+c.o.Name, 0)
	defer letGo()
	p, err := c.pointAt(ctx, since)
	if err != nil {
		return re, fmt.Errorf("sync %s: rewind: %w", c.o.Name, err)
	}
	re.From = p.received
	if p.gone && !partly {
		return re, fmt.Errorf("sync %s: rewind: %w", c.o.Name, ErrNotKept)
	}
	if !dryRun { // which holds up nobody, and counts what is in flight as pending
		release, err := c.hold(ctx)
		if err != nil {
			return re, err
		}
		defer release()
	}
	// No checkpoint that began before may end after this one, and release the log; nor
	// may one move what the reader adds to the side place meanwhile out of sight.
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.checkpointLocked(); err != nil {
		return re, err
	}
	dead, err := c.deadBehind(p.seq)
	if err != nil {
		return re, err
	}
	sides, err := c.sideList()
	if err != nil {
		return re, err
	}
	// Whole copies stay where the log cannot be read any more.
	if len(dead)+len(sides) > 0 {
		newest := uint64(0)
		for _, d := range dead {
			newest = max(newest, d.seq)
		}
		for _, s := range sides {
			newest = max(newest, s.seq)
		}
		readable, err := c.log.readable(ctx, p.seq, newest)
		if err != nil {
			return re, err
		}
		dead = slices.DeleteFunc(dead, func(d deadRecord) bool { return !inRuns(readable, d.seq) })
		sides = slices.DeleteFunc(sides, func(s sideRecord) bool { return s.seq > p.seq && !inRuns(readable, s.seq) })
	}
	if err := c.rewindTo(p.position, &re, dead, sides, untaken, dryRun); err != nil || dryRun {
		return re, err
	}
	return re, c.checkpointLocked()
}

// rewindTo counts, and unless it is a dry run goes back; the next checkpoint writes it.
func (c *Consumer) rewindTo(p position, re *Rewound, dead []deadRecord, sides []sideRecord, untaken, dryRun bool) error {
	tail, count := c.log.endOf(c.o.Project)
	c.mu.Lock()
	defer c.mu.Unlock()
	tail, count = max(tail, c.read), max(count, c.readCount)
	was := c.snapshot()
	for name, l := range c.side.lanes {
		for _, e := range l.aside.fresh { // the reader has gone on since
			sides = append(sides, sideRecord{name, e.rec.Seq, e.bytes()})
		}
	}
	behind := uint64(0)
	for _, r := range takenRuns(was.spans, p.count, count) {
		behind += r.len()
	}
	for _, r := range takenRuns(was.spans, max(p.count, was.lowCount), count) {
		re.Pending += r.len() - overlap(was.done, r)
	}
	for _, s := range sides {
		if s.seq > p.seq {
			re.Pending++
		}
	}
	re.DeadLetters = uint64(len(dead))
	if known := re.Pending + re.DeadLetters; behind < known {
		return fmt.Errorf("sync %s: rewind: there are %d records behind that time, but %d of them are pending or dead letters: the books are wrong (ampcio audit tells more)", c.o.Name, behind, known)
	}
	re.Records = behind - re.Pending - re.DeadLetters
	spans := was.spans
	if untaken {
		spans = spanningFrom(was.spans, p)
		re.Untaken = takenOf(spans, count) - takenOf(was.spans, count)
	}
	if dryRun || re.Records+re.DeadLetters+re.Untaken == 0 {
		return nil
	}
	for _, s := range sides {
		if l := c.side.lanes[s.lane]; s.seq > p.seq && l != nil {
			c.leaveAside(l, s.seq, s.bytes)
		}
	}
	// What stands before the position stays as it is, also what is still pending there.
	start, done := p, []run(nil)
	if was.low < p.seq {
		start = position{was.low, was.lowCount}
		for _, r := range was.done {
			if r = r.within(r.first, p.count); r.len() > 0 {
				done = append(done, r)
			}
		}
	}
	c.goBack(start, done)
	st := &c.state
	st.spans = spans
	st.rewound += re.Records
	st.lastRewind = c.o.Now().UnixMilli()
	st.rewindTail, st.rewindCount = tail, count
	st.ended[Dead] -= re.DeadLetters
	for _, d := range dead {
		c.deadGone[d.seq] = true
		st.deadBytes -= d.bytes
	}
	c.log.holdBack(c.holder(), start.seq)
	c.touch()
	return nil
}

// goBack makes the reader begin behind a position, with nothing in the window and what
// has ended from there on. Nothing is in a claim. The caller holds c.mu.
func (c *Consumer) goBack(p position, done []run) {
	aside := c.side.lanes
	c.lanes = newLanes()
	c.window, c.windowBytes, c.endedSlots, c.pending = nil, 0, 0, 0
	for name, old := range aside {
		l := c.lanes.lane(name, c.restored)
		l.aside, l.failed, l.others = old.aside, old.failed, old.others
		aside[name] = l
		c.lanes.schedule(l)
	}
	c.read, c.readCount = p.seq, p.count
	c.state.done, c.discardTo = done, 0
	c.epoch++
	if c.reread != nil {
		c.reread()
	}
	c.room.ring()
}

// readable lists the sequences behind one, up to another, that readers can still get at, in runs;
// and some behind that. It does not go on to the log's end: that may move as fast as it reads.
func (l *Log) readable(ctx context.Context, after, upTo uint64) (runs []run, err error) {
	r := l.OpenReader(after)
	defer r.Close()
	for len(runs) == 0 || runs[len(runs)-1].last < upTo {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		chunk, err := r.Try()
		if err != nil || chunk == nil {
			return runs, err
		}
		if n := len(runs); n > 0 && runs[n-1].last+1 == chunk.First {
			runs[n-1].last = chunk.Last()
			continue
		}
		runs = append(runs, run{chunk.First, chunk.Last()})
	}
	return runs, nil
}

// deadRecord is a dead letter, as little of it as its deletion needs.
type deadRecord struct {
	seq   uint64
	bytes int64
}

// deadBehind lists the dead letters behind a sequence.
func (c *Consumer) deadBehind(after uint64) (list []deadRecord, err error) {
	err = c.view(func(tx *bolt.Tx) error {
		cur := tx.Bucket(bucketDead).Cursor()
		for k, v := cur.Seek(seqKey(after + 1)); k != nil; k, v = cur.Next() {
			if len(k) == 8 {
				list = append(list, deadRecord{binary.BigEndian.Uint64(k), int64(len(v))})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sync %s: read dead letters: %w", c.o.Name, err)
	}
	return list, nil
}

// holdFor keeps files from being deleted that have records behind a sequence, until
// release. What is gone already does not come back.
func (l *Log) holdFor(holder string, upTo uint64) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdings++
	holder = fmt.Sprintf("%s (%d)", holder, l.holdings)
	l.holders[holder] = upTo
	return func() { l.Forget(holder) }
}

// holdBack lets a holder need what is behind a sequence again; something else holds it
// at this moment.
func (l *Log) holdBack(holder string, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[holder] = min(l.holders[holder], upTo)
}
