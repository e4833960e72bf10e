package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// bound is how much may be pending of a consumer.
type bound struct {
	most    int64 // bytes on disk, 0 = no bound
	discard bool  // beyond it the oldest are given up; else the log refuses what is new
	refuse  bool  // and may: not while an operator, or a key, keeps the consumer from delivering
}

// SetBound says how many bytes may be pending, on disk and about; 0 = as many as the
// disk takes. Beyond that the oldest end as Discarded (discardOldest), or else the log
// refuses to store more (FullError), as long as MayRefuse.
func (c *Consumer) SetBound(most int64, discardOldest bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound.most, c.bound.discard = most, discardOldest
	c.tellBound()
}

// MayRefuse says whether too much pending of this consumer lets the log refuse what is
// new; until it is told, not. A consumer that is paused or not enabled never does.
func (c *Consumer) MayRefuse(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound.refuse = yes
	c.tellBound()
}

// tellBound lets the log know of the bound. The caller holds c.mu.
func (c *Consumer) tellBound() {
	most := c.bound.most
	if c.bound.discard || !c.bound.refuse || c.state.paused != 0 || !c.o.Enabled {
		most = 0
	}
	c.log.setBound(c.holder(), c.o.Name, most, c.side.bytes)
}

// keepHouse is what Run does about once a second, unless an operator is at work.
func (c *Consumer) keepHouse() error {
	if !c.operating.TryLock() {
		return nil
	}
	defer c.operating.Unlock()
	if err := c.discardOldest(); err != nil {
		return err
	}
	c.mu.Lock()
	c.tellBound()
	if len(c.side.fresh) > 0 {
		c.touch() // the last checkpoint may have left them for want of space
	}
	c.mu.Unlock()
	if err := c.expireDead(); err != nil {
		return err
	}
	return c.compact()
}

// discardOldest gives up the oldest of what is pending while it is more than the bound,
// down to nine tenths of it. What is in a claim is not touched.
func (c *Consumer) discardOldest() error {
	c.mu.Lock()
	b, side := c.bound, c.side.bytes
	c.mu.Unlock()
	if b.most == 0 || !b.discard {
		return nil
	}
	low := c.log.held(c.holder())
	if c.log.bytesBehind(low)+side <= b.most {
		return nil
	}
	// The side place is as old as the log there: both shrink with the sequence up to which
	// all goes. Halve until it fits.
	tail := c.log.Tail()
	sides, err := c.sideBytes()
	if err != nil {
		return err
	}
	from, to := low, tail
	for from < to {
		middle := from + (to-from)/2
		left := c.log.bytesBehind(middle)
		for _, s := range sides {
			if s.seq > middle {
				left += s.bytes
			}
		}
		if left > b.most/10*9 {
			from = middle + 1
		} else {
			to = middle
		}
	}
	return c.discardUpTo(to)
}

// sideRecord is a record of the side place, as little of it as is needed to choose.
type sideRecord struct {
	lane  string
	seq   uint64
	bytes int64
}

// sideBytes lists the side place as it is in the file.
func (c *Consumer) sideBytes() (list []sideRecord, err error) {
	c.mu.Lock()
	none := c.side.records == 0
	c.mu.Unlock()
	if none {
		return nil, nil
	}
	if err := c.Flush(); err != nil {
		if noSpace(err) {
			return nil, nil // it is tried again
		}
		return nil, err
	}
	return c.sideList()
}

// sideList is sideBytes for who knows that the file is as memory has it.
func (c *Consumer) sideList() (list []sideRecord, err error) {
	err = c.eachAside(context.Background(), func(e *entry) error {
		list = append(list, sideRecord{e.rec.Lane, e.rec.Seq, e.bytes()})
		return nil
	})
	return list, err
}

// discardUpTo ends everything pending up to a sequence as Discarded, but for what is in
// a claim: in the window and the side place now, in the log as it is read.
func (c *Consumer) discardUpTo(seq uint64) error {
	sides, err := c.sideBytes()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.discardTo = max(c.discardTo, seq)
	for _, l := range c.lanes.byKey {
		if l.aside != nil {
			continue
		}
		kept := l.records[:l.taken:l.taken]
		for _, e := range l.records[l.taken:] {
			if e.rec.Seq > seq {
				kept = append(kept, e)
				continue
			}
			c.leaveWindow(e)
			c.discarded(1)
		}
		l.records = kept
	}
	for _, s := range sides {
		l := c.side.lanes[s.lane]
		if s.seq > seq || l == nil || c.inClaim(l, s.seq) || c.side.gone[laneKeyOf(s.lane)][s.seq] || c.side.going[laneKeyOf(s.lane)][s.seq] {
			continue
		}
		c.leaveAside(l, s.seq, s.bytes)
		c.discarded(1)
	}
	for _, l := range c.lanes.byKey {
		if l.empty() && !l.claimed {
			c.setRetry(l, retryState{})
			c.lanes.drop(l)
		}
	}
	c.advance()
	c.touch()
	c.wake()
	return nil
}

// inClaim says whether a record of a lane is in its claim. The caller holds c.mu.
func (c *Consumer) inClaim(l *lane, seq uint64) bool {
	for _, e := range l.records[:min(l.taken, len(l.records))] {
		if e.rec.Seq == seq {
			return true
		}
	}
	return false
}

// discarded enters records that are given up. The caller holds c.mu.
func (c *Consumer) discarded(n uint64) {
	c.state.ended[Discarded] += n
	c.state.newest[Discarded] = c.o.Now().UnixMilli()
	c.count(Tally{Key: "record/discarded/max_pending_bytes"}, n)
}

// logBound is a consumer's bound as the log keeps it.
type logBound struct {
	name string
	most int64
	side int64 // what the consumer has beside the log
}

func (l *Log) setBound(holder, name string, most, side int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most == 0 {
		delete(l.bounds, holder)
		return
	}
	l.bounds[holder] = logBound{name, most, side}
}

// overfull says which consumer has too much pending to store more; nil when none has.
func (l *Log) overfull(more int64) *FullError {
	l.mu.Lock()
	defer l.mu.Unlock()
	for holder, b := range l.bounds {
		if held := l.bytesBehindLocked(l.holders[holder]) + b.side; held+more > b.most {
			return &FullError{RetryAfter: 30 * time.Second, Reason: fmt.Sprintf("%s pending of sync %s, its max_pending_bytes is %s",
				humanize.IBytes(uint64(held)), b.name, humanize.IBytes(uint64(b.most)))}
		}
	}
	return nil
}

// held is the position up to which a holder has released the log.
func (l *Log) held(holder string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holders[holder]
}

// bytesBehind is how much of the disk the records behind a sequence take, about: files
// as they are, and of the one that holds the sequence the share that is behind it.
func (l *Log) bytesBehind(seq uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytesBehindLocked(seq)
}

func (l *Log) bytesBehindLocked(seq uint64) (sum int64) {
	end := l.end.seq
	for i := len(l.files) - 1; i >= 0; i-- {
		f := l.files[i]
		if f.first > seq {
			if end >= f.first {
				sum += f.bytes.Load()
			}
			end = f.first - 1
			continue
		}
		if end > seq {
			sum += int64(float64(f.bytes.Load()) * float64(end-seq) / float64(end-f.first+1))
		}
		break
	}
	return sum
}
