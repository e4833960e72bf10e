package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// What an operator may do to a consumer. Each of these is durable when it returns nil;
// after an error of a full disk it is in force and becomes durable when there is space.
// All work while Run runs, and when it does not.

// ErrOtherWorkspace says that the ledger's pending records were taken for another
// workspace of Customer.io.
var ErrOtherWorkspace = errors.New("what is pending was accepted for another workspace")

// Pause lets nothing be claimed from here on, over restarts too; records are taken as
// before. What is in flight ends. A consumer that is paused stays paused since then.
func (c *Consumer) Pause() error { return c.setPaused(true) }

// Resume ends a pause.
func (c *Consumer) Resume() error { return c.setPaused(false) }

func (c *Consumer) setPaused(yes bool) error {
	c.mu.Lock()
	switch {
	case !yes:
		c.state.paused, c.side.idle = 0, 0
	case c.state.paused == 0:
		c.state.paused = max(c.o.Now().UnixMilli(), 1)
	}
	c.tellBound()
	c.touch()
	c.room.ring()
	c.wake()
	c.mu.Unlock()
	return c.Flush()
}

// SetEnabled lets the consumer take new records from the log's tail on, or none from
// there on. What it has taken it keeps.
func (c *Consumer) SetEnabled(on bool) error {
	c.mu.Lock()
	tail, count := c.log.endOf(c.o.Project)
	c.state.spans = toggled(c.state.spans, on, tail, count)
	c.o.Enabled = on
	c.tellBound()
	c.touch()
	c.mu.Unlock()
	return c.Flush()
}

// Takes says whether the record of that sequence, which the log has and which is of that
// project, is one that the consumer takes, or took.
func (c *Consumer) Takes(project string, seq uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return project == c.o.Project && slices.ContainsFunc(c.state.spans, func(s span) bool {
		return seq > s.from && (s.to == 0 || seq <= s.to)
	})
}

// Flowing tells the consumer whether Customer.io takes deliveries now. Only then do lanes
// that hold up others move to the side place; else the reader stops when the window is
// full. A consumer that was never told does not.
func (c *Consumer) Flowing(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flowing != yes {
		c.flowing, c.side.idle = yes, 0
		c.room.ring()
	}
}

// Hasten makes every lane due now that waits for a try and whose last one failed at or
// after since, in this process (all that wait, with the zero time), and says how many.
// A try that is under way, should it fail, is due at once: it began before.
func (c *Consumer) Hasten(since time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.lanes.hasten(since)
	c.hastens++
	if n > 0 {
		c.wake()
	}
	return n
}

// Workspace is Customer.io's number for where deliveries go; 0 = not known yet.
func (c *Consumer) Workspace() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.workspace
}

// EnterWorkspace says which workspace deliveries go to from here on. Where it is not
// the ledger's, what identifiers were last sent is forgotten: nobody there was sent
// anything. But with records pending, unless forced, it is ErrOtherWorkspace and nothing
// has changed.
func (c *Consumer) EnterWorkspace(id int64, force bool) error {
	tail, count := c.log.endOf(c.o.Project)
	c.mu.Lock()
	s := &c.state
	if s.workspace == id {
		c.mu.Unlock()
		return nil
	}
	if s.workspace != 0 {
		if pending := c.pendingNow(count); pending > 0 && !force {
			c.mu.Unlock()
			return fmt.Errorf("%d records up to %d, workspace %d: %w", pending, tail, s.workspace, ErrOtherWorkspace)
		}
		c.forget = true
		clear(c.sentNew)
	}
	s.workspace = id
	c.touch()
	c.mu.Unlock()
	return c.Flush()
}

// pendingNow counts what is pending of the project's first count records, which may be
// fewer than have been read. The caller holds c.mu.
func (c *Consumer) pendingNow(count uint64) uint64 {
	return uint64(c.pending) + c.side.records + c.unread(max(count, c.readCount))
}

// hold lets nothing be claimed, and waits until nothing is, or ctx ends; release ends
// it. After an error there is nothing to release.
func (c *Consumer) hold(ctx context.Context) (release func(), err error) {
	release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held--
		c.wake()
	}
	c.mu.Lock()
	c.held++
	for c.claims > 0 {
		woken := c.woken.wait()
		c.mu.Unlock()
		select {
		case <-woken:
		case <-ctx.Done():
			release()
			return nil, fmt.Errorf("sync %s: wait for requests in flight to end: %w", c.o.Name, ctx.Err())
		}
		c.mu.Lock()
	}
	c.mu.Unlock()
	return release, nil
}

// PendingRecords calls f for each pending record, those of one lane in their order, and
// ends early with f's error, or ctx's. It may run for long and holds nothing up: what
// comes or ends meanwhile may be among them or not. Records must not be changed.
func (c *Consumer) PendingRecords(ctx context.Context, f func(Record) error) error {
	if err := c.Flush(); err != nil {
		return err
	}
	c.mu.Lock()
	s := c.snapshot()
	c.mu.Unlock()
	tail, count := c.log.endOf(c.o.Project)
	release := c.log.holdFor("a look at what is pending of "+c.o.Name, s.low)
	defer release()
	c.mu.Lock()
	fresh := slices.Clone(c.side.fresh) // that the disk has no room for
	c.mu.Unlock()
	if err := c.eachAside(ctx, func(e *entry) error { return f(e.rec) }); err != nil {
		return err
	}
	for _, e := range fresh {
		if err := f(e.rec); err != nil {
			return err
		}
	}
	return c.eachTaken(ctx, position{s.low, s.lowCount}, tail, func(r Record, ord uint64) error {
		if ord > count || r.Forgotten || !takes(s.spans, ord) || inRuns(s.done, ord) {
			return nil
		}
		return f(r)
	})
}

// position is a place in the log: a sequence, and how many records of the consumer's
// project the log has up to there.
type position struct{ seq, count uint64 }

// eachTaken calls f for the project's records behind a position, up to sequence to.
func (c *Consumer) eachTaken(ctx context.Context, from position, to uint64, f func(r Record, ord uint64) error) error {
	r := c.log.OpenReader(from.seq)
	defer r.Close()
	ord := from.count
	for ctx.Err() == nil {
		chunk, err := r.Try()
		if err != nil || chunk == nil || chunk.First > to {
			return err
		}
		if chunk.First > from.seq {
			ord = max(ord, chunk.Before[c.o.Project])
		}
		err = chunk.Records(func(r Record) error {
			if r.Project != c.o.Project || r.Seq <= from.seq {
				return nil
			}
			ord++
			if r.Seq > to {
				return errStop
			}
			return f(r, ord)
		})
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// sideAtOnce is how many bytes of the side place are read in one transaction: an open
// one keeps pages from being used again.
const sideAtOnce = 1 << 20

// eachAside calls f for each record of the side place that the file has: Flush before.
// Those of one lane come in their order. What cannot be read is passed over.
func (c *Consumer) eachAside(ctx context.Context, f func(*entry) error) error {
	for next := []byte{0}; next != nil && ctx.Err() == nil; {
		var some []*entry
		at := next
		next = nil
		err := c.view(func(tx *bolt.Tx) error {
			cur := tx.Bucket(bucketAside).Cursor()
			size := 0
			for k, v := cur.Seek(at); k != nil; k, v = cur.Next() {
				if size >= sideAtOnce {
					next = append([]byte(nil), k...)
					return nil
				}
				size += len(v)
				if len(k) != 24 {
					continue
				}
				if e, err := openAside(k, v); err == nil {
					some = append(some, e)
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) {
			return fmt.Errorf("sync %s: read the side place: %w", c.o.Name, err)
		}
		for _, e := range some {
			if err := f(e); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}
