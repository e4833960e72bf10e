package queue

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// bound is how much may be pending of a consumer.
type bound struct {
	most    int64 // bytes on disk, 0 = no bound
	discard bool  // beyond it the oldest are given up; else the log refuses what is new
	refuse  bool  // and may: not while an operator, or a key, keeps the consumer from delivering
}

// SetBound says how many bytes may be pending, on disk and about (ConsumerStats.PendingBytes);
// 0 = as many as the disk takes. Beyond that the oldest end as Discarded (discardOldest), or else the log
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
	var have int64
	if most > 0 {
		have = c.boundBytes()
	}
	c.log.setBound(c.holder(), logBound{name: c.o.Name, project: c.o.Project, most: most, have: have})
}

// inLog is the part of what is pending that is in the log: how many records, how many
// bytes of the disk these take, about, and how many bytes of the log cannot go because of
// them. The caller holds c.mu.
func (c *Consumer) inLog() (records uint64, bytes, pinned int64) {
	tail, count := c.log.endOf(c.o.Project)
	low := c.read
	if len(c.window) > 0 {
		low = c.window[0].e.rec.Seq - 1
	}
	records = uint64(c.pending) + c.unread(max(count, c.readCount))
	if records == 0 || tail <= low {
		return records, 0, 0
	}
	pinned = c.log.bytesBehind(low)
	return records, int64(float64(pinned) * min(float64(records)/float64(tail-low), 1)), pinned
}

// pendingBytes is how much of the disk is taken by what is pending, about: the share that
// its records have in the log, and the side place. The caller holds c.mu.
func (c *Consumer) pendingBytes() int64 {
	_, bytes, _ := c.inLog()
	return bytes + c.side.bytes
}

// boundBytes is that part of it which the bound is about: not what a rewind has taken
// again, since the log had kept that anyhow. The caller holds c.mu.
func (c *Consumer) boundBytes() int64 {
	s := &c.state
	from := c.read
	if len(c.window) > 0 {
		from = c.window[0].e.rec.Seq - 1
	}
	if s.rewindTail <= from {
		return c.pendingBytes()
	}
	tail, count := c.log.endOf(c.o.Project)
	if tail <= s.rewindTail {
		return c.side.bytes
	}
	since := uint64(0) // records that came after the rewind, and are pending
	for i := len(c.window) - 1; i >= 0; i-- {
		e := c.window[i].e
		if e == nil {
			continue
		}
		if e.rec.Seq <= s.rewindTail {
			break
		}
		since++
	}
	for _, r := range takenRuns(s.spans, max(s.rewindCount, c.readCount), max(count, c.readCount)) {
		since += r.len()
	}
	return c.side.bytes + int64(float64(c.log.bytesBehind(s.rewindTail))*min(float64(since)/float64(tail-s.rewindTail), 1))
}

// A consumer that has little pending must not keep much of the log, be it since it is
// disabled, or blocked, or since its project is a small one: what it has moves to the side
// place. unpinShare is how many times as much of the log it keeps then, unpinLanes how
// many lanes may be there at most: each takes some memory.
const (
	unpinShare = 8
	unpinLanes = 20_000
)

// unpin lets go of the log where that is worth a copy.
func (c *Consumer) unpin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, bytes, pinned := c.inLog()
	if pinned < 2*c.log.limits.Load().RotateBytes || pinned/unpinShare < bytes {
		return
	}
	c.side.idle = 0
	for _, l := range c.lanes.byKey {
		if l.aside == nil && len(l.records) > 0 && len(c.side.lanes) < unpinLanes {
			c.moveAside(l)
		}
	}
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
	c.unpin()
	c.mu.Lock()
	c.tellBound()
	if len(c.side.fresh) > 0 {
		c.touch() // the last checkpoint may have left them for want of space
	}
	c.mu.Unlock()
	if err := c.expireDead(); err != nil {
		return err
	}
	c.writing.Lock()
	c.history.tidy(c.log.beforeFiles() + 1)
	c.writing.Unlock()
	return c.compact()
}

// discardOldest gives up the oldest of what is pending while it is more than the bound,
// down to nine tenths of it. What is in a claim is not touched.
func (c *Consumer) discardOldest() error {
	c.mu.Lock()
	b := c.bound
	over := c.boundBytes() > b.most
	c.mu.Unlock()
	if b.most == 0 || !b.discard || !over {
		return nil
	}
	if err := c.Flush(); err != nil {
		if NoSpace(err) {
			return nil // it is tried again
		}
		return err
	}
	// A checkpoint between the look at the file and what follows would let a record that
	// has just ended seem to be there still.
	c.writing.Lock()
	defer c.writing.Unlock()
	sides, err := c.sideList()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is in the side place is older than what is in the log, or as old: both shrink
	// with the sequence up to which all goes. Halve until it fits.
	_, inLog, _ := c.inLog()
	low, tail := c.snapshot().low, max(c.log.Tail(), c.read)
	from, to := uint64(0), tail
	for from < to {
		middle := from + (to-from)/2
		left := inLog
		if middle > low {
			left = int64(float64(inLog) * float64(tail-middle) / float64(tail-low))
		}
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
	c.discardUpTo(to, sides)
	return nil
}

// sideRecord is a record of the side place, as little of it as is needed to choose.
type sideRecord struct {
	lane  string
	seq   uint64
	bytes int64
}

// sideList lists the side place as it is in the file. It reads all of it, some at a time.
func (c *Consumer) sideList() (list []sideRecord, err error) {
	err = c.eachAside(context.Background(), func(e *entry) error {
		list = append(list, sideRecord{e.rec.Lane, e.rec.Seq, e.bytes()})
		return nil
	})
	return list, err
}

// discardUpTo ends everything pending up to a sequence as Discarded, but for what is in
// a claim: in the window and the side place now, in the log as it is read. The caller
// holds c.writing, since before it has listed the side place, and c.mu.
func (c *Consumer) discardUpTo(seq uint64, sides []sideRecord) {
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
			c.discarded(e.rec.Seq)
		}
		l.records = kept
	}
	for _, s := range sides {
		l := c.side.lanes[s.lane]
		if s.seq > seq || l == nil || c.inClaim(l, s.seq) || c.side.gone[laneKeyOf(s.lane)][s.seq] {
			continue
		}
		c.leaveAside(l, s.seq, s.bytes)
		c.discarded(s.seq)
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
}

// inClaim says whether a record of a lane is in its claim, or may be in the one that is
// being made of it. The caller holds c.mu.
func (c *Consumer) inClaim(l *lane, seq uint64) bool {
	if l.claimed && l.taken == 0 {
		return true
	}
	for _, e := range l.records[:min(l.taken, len(l.records))] {
		if e.rec.Seq == seq {
			return true
		}
	}
	return false
}

// discarded enters a record that is given up for the bound. The caller holds c.mu.
func (c *Consumer) discarded(seq uint64) {
	c.discardedAs(seq, Tally{Key: "record/discarded/max_pending_bytes"})
}

// discardedAs enters a record that is given up. The caller holds c.mu.
func (c *Consumer) discardedAs(seq uint64, why Tally) {
	now := c.o.Now().UnixMilli()
	c.state.ended[Discarded]++
	c.state.newest[Discarded] = now
	c.count(why, 1)
	c.note(Ended{Seq: seq, At: now, Ending: Discarded, Reason: strings.TrimPrefix(why.Key, "record/discarded/")})
}

// logBound is a consumer's bound as the log keeps it.
type logBound struct {
	name, project string
	most          int64
	have          int64  // what was pending …
	seq, count    uint64 // … when the log ended here, with so many records of the project
}

func (l *Log) setBound(holder string, b logBound) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.most == 0 {
		delete(l.bounds, holder)
		return
	}
	b.seq, b.count = l.end.seq, l.end.counts[b.project]
	l.bounds[holder] = b
}

// overfull says, by project, which consumer has too much pending to store more.
func (l *Log) overfull(more int64) (full map[string]*FullError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.bounds {
		have := b.have
		if came := l.end.counts[b.project] - b.count; came > 0 { // since then
			have += int64(float64(l.bytesBehindLocked(b.seq)) * float64(came) / float64(l.end.seq-b.seq))
		}
		if have+more > b.most {
			if full == nil {
				full = map[string]*FullError{}
			}
			full[b.project] = &FullError{RetryAfter: 30 * time.Second, Sync: b.name, Reason: fmt.Sprintf("%s pending of sync %s, its max_pending_bytes is %s",
				humanize.IBytes(uint64(have)), b.name, humanize.IBytes(uint64(b.most)))}
		}
	}
	return full
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
