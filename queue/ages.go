package queue

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Detail is what Look tells beside what Stats does.
type Detail struct {
	Now time.Time
	// Bounds are ages, rising: what is pending is counted by them.
	Bounds []time.Duration
	// Examples gives one record for each reason for which some wait.
	Examples bool
}

func (d *Detail) wanted() bool { return len(d.Bounds) > 0 }

// Class says into which of the bounds, or behind the last, a record falls.
func (d *Detail) Class(receivedMillis int64) int {
	age := d.Now.Sub(time.UnixMilli(receivedMillis))
	return sort.Search(len(d.Bounds), func(i int) bool { return age < d.Bounds[i] })
}

// addInMemory counts by age what is in the window and in the side place. Of the latter
// only the oldest of each user is known, so all of a user's count as old as that. The
// caller holds c.mu.
func (c *Consumer) addInMemory(st *ConsumerStats, d *Detail) {
	for i := range c.window {
		if e := c.window[i].e; e != nil {
			st.Ages[d.Class(e.rec.Received)]++
			st.Newest = max(st.Newest, e.rec.Received)
		}
	}
	for _, l := range c.side.lanes {
		st.Ages[d.Class(l.aside.oldest)] += l.aside.count
		st.Newest = max(st.Newest, l.aside.oldest)
		st.Approximate = st.Approximate || l.aside.count > 1
	}
}

// addUnread counts by age what is still in the log: what the consumer takes of it behind
// after, where before of the project's records stand, up to count of them. That
// means to look at some chunks, whatever the backlog, and what is between is reckoned.
func (c *Consumer) addUnread(st *ConsumerStats, d *Detail, s *ledgerState, after, before, count uint64) error {
	upTo := func(ord uint64) (n uint64) {
		for _, r := range takenRuns(s.spans, before, ord) {
			n += r.len() - overlap(s.done, r)
		}
		return n
	}
	look := logLook{l: c.log}
	defer look.end()
	older := uint64(0)
	for i := len(d.Bounds) - 1; i >= 0; i-- {
		ord, err := look.receivedBefore(s.project, after, before, count, d.Now.Add(-d.Bounds[i]).UnixMilli())
		if err != nil {
			return fmt.Errorf("sync %s: %w", c.o.Name, err)
		}
		n := max(upTo(ord), older)
		st.Ages[i+1] += n - older
		older = n
	}
	st.Ages[0] += upTo(count) - min(older, upTo(count))
	m, err := look.markAt(c.log.Tail())
	if m != nil {
		st.Newest = max(st.Newest, m.newest)
	}
	st.Approximate = true
	return err
}

// mark is what a chunk tells of the times around it. A chunk never changes, so neither
// does its mark.
type mark struct {
	first, last    uint64            // sequences
	oldest, newest int64             // when its first and its last record were received, ms since 1970 UTC
	before, within map[string]uint64 // records by project: before the chunk, and in it
}

// mostMarks is how many are remembered: a few kilobytes in all but the strangest log. A
// look once a second needs about one new one for each bound.
const mostMarks = 1024

// logLook is a look at some places of the log. The files that it reads stay open until its
// end: to open one takes longer than to read a chunk.
type logLook struct {
	l    *Log
	held []*logFile
}

func (k *logLook) end() {
	for _, f := range k.held {
		f.release()
	}
}

// chunkAt reads the chunk that has a sequence or, in a gap, the next one; nil when there is none.
func (k *logLook) chunkAt(seq uint64) (*Chunk, error) {
	l := k.l
	l.mu.Lock()
	var f *logFile
	if n := len(l.recent); n == 0 || seq < l.recent[0].First { // else it is in memory
		if i := sort.Search(len(l.files), func(i int) bool { return l.files[i].first > seq }); i > 0 {
			f = l.files[i-1]
		}
	}
	l.mu.Unlock()
	if f != nil && !slices.Contains(k.held, f) {
		if _, ok, err := f.acquire(); ok && err == nil { // else the reader meets what is wrong with it
			k.held = append(k.held, f)
		}
	}
	return l.Reader(seq - 1).Try()
}

// receivedBefore gives about how many records of a project stand in the log up to the one
// that was the first to be received at a time or later, or count if there is none; before
// of them stand up to sequence after. It reads a few chunks, and remembers what it has
// seen: every other time it looks where the time would be if records had come evenly, so
// that few files have to be opened.
func (k *logLook) receivedBefore(project string, after, before, count uint64, at int64) (uint64, error) {
	low, high, found := after+1, k.l.Tail(), before
	lowAt, highAt := int64(0), int64(0) // when about low and high were received; 0 = not known
	if low <= high {
		first, err := k.markAt(low)
		if err != nil || first == nil || first.oldest >= at {
			return min(before, count), err
		}
		last, err := k.markAt(high)
		if err != nil {
			return 0, err
		}
		if last != nil {
			lowAt, highAt = first.oldest, last.newest
		}
	}
	for try := 0; low <= high; try++ {
		middle := low + (high-low)/2
		if try%2 == 0 && lowAt < at && at < highAt && lowAt != 0 {
			middle = low + uint64(float64(high-low)*(float64(at-lowAt)/float64(highAt-lowAt)))
		}
		m, err := k.markAt(middle)
		switch {
		case err != nil:
			return 0, err
		case m == nil:
			high = middle - 1
		case m.oldest >= at:
			high, highAt = min(middle, m.first)-1, m.oldest
		case m.newest < at:
			lowAt = m.newest
			low, found = m.last+1, m.before[project]+m.within[project]
		default: // somewhere in it: records are taken to have come evenly
			share := float64(at-m.oldest) / float64(m.newest-m.oldest+1)
			found = m.before[project] + uint64(share*float64(m.within[project]))
			return min(max(found, before), count), nil
		}
	}
	return min(max(found, before), count), nil
}

// markAt is of the chunk that has a sequence or, in a gap, the next one; nil when there is none.
func (k *logLook) markAt(seq uint64) (*mark, error) {
	l := k.l
	l.marksMu.Lock()
	i := sort.Search(len(l.marks), func(i int) bool { return l.marks[i].last >= seq })
	if i < len(l.marks) && l.marks[i].first <= seq {
		defer l.marksMu.Unlock()
		return l.marks[i], nil
	}
	l.marksMu.Unlock()
	c, err := k.chunkAt(seq)
	if err != nil || c == nil {
		return nil, err
	}
	m := &mark{first: c.First, last: c.Last(), before: c.Before, within: map[string]uint64{}}
	d := decoder{b: c.raw}
	for range c.Count {
		project := d.bytes()
		d.bytes()
		received := d.varint()
		d.take(16)
		d.bytes()
		if d.err != nil {
			return nil, d.err
		}
		if m.oldest == 0 {
			m.oldest = received
		}
		m.newest = max(m.newest, received)
		m.within[string(project)]++
	}
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	if len(l.marks) >= mostMarks {
		l.marks = nil // the next looks find what they need anew
	}
	i, known := slices.BinarySearchFunc(l.marks, m.first, func(m *mark, first uint64) int { return cmp.Compare(m.first, first) })
	if !known {
		l.marks = slices.Insert(l.marks, i, m)
	}
	return m, nil
}

// harmless passes over what does not matter to somebody who only looks: that a ledger is
// damaged is found and told by who delivers of it, and one that was just closed is gone.
func harmless(err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return nil
	}
	return err
}

// asideExamples fills in the examples that are in the side place, which is in the file.
func (c *Consumer) asideExamples(st *ConsumerStats, view func(func(*bolt.Tx) error) error) error {
	need := false
	for _, w := range st.Waiting {
		need = need || w.example != "" && w.Example == nil
	}
	if !need {
		return nil
	}
	err := view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketAside)
		if b == nil {
			return nil
		}
		for reason, w := range st.Waiting {
			if w.example == "" || w.Example != nil {
				continue
			}
			key := laneKeyOf(w.example)
			k, v := b.Cursor().Seek(key[:])
			if len(k) != 24 || laneKey(k[:16]) != key {
				continue // not written yet, or gone meanwhile
			}
			if e, err := openAside(k, v); err == nil && !c.log.Forgotten(st.Project, e.rec.Lane, e.rec.Seq) {
				e.rec.Project = st.Project
				w.Example = &e.rec
				st.Waiting[reason] = w
			}
		}
		return nil
	})
	return harmless(err)
}
