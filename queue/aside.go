package queue

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The side place is where a lane waits that would otherwise hold up the others, as a
// mail server moves mail from its active queue to its deferred one. A lane moves there
// whole: every record of it that has been read, those in a claim too. From then on its
// new records go there as they are read, until the last one there has ended. So a lane
// is either in the window or in the side place, never in both, and its order is that
// of the sequences.
//
// For the window such a record has ended: the low-water mark passes it, and the log may
// delete its file. That is safe since a checkpoint writes both together.
//
// In memory the side place is one small struct a lane. Records are there only while
// they are in a claim, or not yet written.

// asideLane is a lane's part of the side place.
type asideLane struct {
	count  uint64
	bytes  int64    // of its records
	oldest int64    // the first of them was not received before, as far as is known; ms since 1970 UTC
	fresh  []*entry // those not in the file yet, as far as is known, in sequence
	next   int64    // of a claimed lane: when the record behind those in memory was received; 0 = there is none
}

// asideTries is how many tries of a lane may fail before it moves to the side place,
// when others get through meanwhile: with the usual backoff some 15 seconds.
const asideTries = 5

// laneKey is the part of a key of the side place that names the lane.
type laneKey [16]byte

func laneKeyOf(lane string) laneKey { return laneKey(retryKey(lane)) }

func asideKey(lane laneKey, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 24), lane[:]...), seq)
}

// appendAside writes a record of the side place: a byte that says whether it is a dead
// letter that is tried again, what was answered to that the last time, the record.
func appendAside(b []byte, e *entry) []byte {
	if e.replay {
		b = appendBytes(append(b, 1), e.results)
	} else {
		b = append(b, 0)
	}
	return appendRecord(b, &e.rec)
}

// readAside reads what appendAside wrote, which it does not alias.
func readAside(seq uint64, v []byte) (*entry, error) {
	d := decoder{b: bytes.Clone(v)}
	e := &entry{aside: true}
	kind := d.take(1)
	if d.err != nil || kind[0] > 1 {
		return nil, fmt.Errorf("record %d of the side place: %w", seq, ErrDamaged)
	}
	if kind[0] == 1 {
		e.replay, e.results = true, d.bytes()
	}
	var err error
	if d.err != nil {
		return nil, d.err
	}
	e.rec, _, err = readRecord(d.b, Record{})
	e.rec.Seq = seq
	return e, err
}

func (a *asideLane) append(b []byte, lane string) []byte {
	b = appendBytes(b, lane)
	b = binary.AppendUvarint(b, a.count)
	b = binary.AppendVarint(b, a.bytes)
	return binary.AppendVarint(b, a.oldest)
}

func readAsideLane(v []byte) (lane string, a asideLane, err error) {
	d := decoder{b: v}
	lane = string(d.bytes())
	a = asideLane{count: d.uvarint(), bytes: d.varint(), oldest: d.varint()}
	return lane, a, d.err
}

// sideplace is the consumer's account of its lanes there, and what the next checkpoint
// has to write of it. It is guarded by the consumer.
type sideplace struct {
	lanes   map[string]*lane
	records uint64
	bytes   int64

	fresh      []*entry // to be written
	freshBytes int64    // of all that only memory holds, what is being written included
	idle       int64    // bytes that the reader has put there since deliveries have stopped
	changed    map[string]bool
	// Deletions by lane: those to be written, and those that are being written. What is
	// in the file and here has ended.
	gone, going map[laneKey]map[uint64]bool
}

func newSideplace() sideplace {
	return sideplace{lanes: map[string]*lane{}, changed: map[string]bool{}, gone: map[laneKey]map[uint64]bool{}}
}

// loadAside takes up the lanes of the side place when the ledger is opened.
func (c *Consumer) loadAside(tx *bolt.Tx) error {
	b := tx.Bucket(bucketAsideLane)
	if b == nil {
		return nil // format 1
	}
	return b.ForEach(func(k, stored []byte) error {
		v, err := unseal(k, stored)
		if err != nil {
			return fmt.Errorf("lane of the side place: %w", err)
		}
		name, a, err := readAsideLane(v)
		if err != nil {
			return fmt.Errorf("lane of the side place: %w", err)
		}
		c.putAside(name, &a)
		return nil
	})
}

// putAside makes a lane one of the side place and lets it be claimed when it is due.
func (c *Consumer) putAside(name string, a *asideLane) {
	l := c.lanes.lane(name, c.restored)
	l.aside = a
	c.side.lanes[name] = l
	c.side.records += a.count
	c.side.bytes += a.bytes
	c.lanes.schedule(l)
}

// moveAside moves a lane to the side place. What is claimed of it stays claimed.
func (c *Consumer) moveAside(l *lane) {
	for _, e := range l.records {
		c.leaveWindow(e)
		c.setAside(l, e)
	}
	l.aside.next = 0
	if len(l.records) > l.taken {
		l.aside.next = l.records[l.taken].rec.Received
	}
	clear(l.records[l.taken:]) // the lane may be here for long: its records must not stay in memory
	if l.records = l.records[:l.taken:l.taken]; l.taken == 0 {
		l.records, l.one[0] = nil, nil
	}
	c.advance()
	c.touch()
}

// setAside puts a record into the side place.
func (c *Consumer) setAside(l *lane, e *entry) {
	if l.aside == nil {
		l.aside = &asideLane{oldest: e.rec.Received}
		c.side.lanes[l.key] = l
	}
	a := l.aside
	e.aside = true
	a.count++
	a.bytes += e.bytes()
	if i := sort.Search(len(a.fresh), func(i int) bool { return a.fresh[i].rec.Seq >= e.rec.Seq }); i < len(a.fresh) {
		a.fresh = slices.Insert(a.fresh, i, e) // a dead letter comes back
	} else {
		a.fresh = append(a.fresh, e)
	}
	a.oldest = min(a.oldest, e.rec.Received)
	if a.next == 0 || e.rec.Received < a.next { // earlier: a dead letter comes back before what waits
		a.next = e.rec.Received
	}
	c.side.records++
	c.side.bytes += e.bytes()
	c.side.fresh = append(c.side.fresh, e)
	c.side.freshBytes += e.bytes()
	c.side.changed[l.key] = true
	c.changedBytes += e.bytes()
}

// leaveAside takes a record that has ended, or is read once more, out of the side place.
func (c *Consumer) leaveAside(l *lane, seq uint64, bytes int64) {
	a := l.aside
	a.count--
	a.bytes -= bytes
	c.side.records--
	c.side.bytes -= bytes
	if i, ok := slices.BinarySearchFunc(a.fresh, seq, func(f *entry, seq uint64) int { return cmp.Compare(f.rec.Seq, seq) }); ok {
		a.fresh[i].over = true
		a.fresh = slices.Delete(a.fresh, i, i+1)
	}
	key := laneKeyOf(l.key)
	if c.side.gone[key] == nil {
		c.side.gone[key] = map[uint64]bool{}
	}
	c.side.gone[key][seq] = true
	c.side.changed[l.key] = true
	c.changedBytes += 64
	if a.count == 0 {
		l.aside = nil
		delete(c.side.lanes, l.key)
	}
}

// unload forgets the records of a lane of the side place that were in a claim and have
// not ended. A dead letter that came back meanwhile may be from before them.
func (c *Consumer) unload(l *lane) {
	oldest := l.aside.next
	if len(l.records) > 0 && (oldest == 0 || l.records[0].rec.Received < oldest) {
		oldest = l.records[0].rec.Received
	}
	if oldest != l.aside.oldest && oldest != 0 {
		l.aside.oldest = oldest
		c.side.changed[l.key] = true
	}
	clear(l.records)
	l.records, l.one[0] = nil, nil
}

// head reads the first records of a claimed lane of the side place, as many as a claim
// may have, and when the one behind them was received. It does not hold c.mu.
func (c *Consumer) head(l *lane) (entries []*entry, next int64, err error) {
	key := laneKeyOf(l.key)
	// Memory first: what a checkpoint writes meanwhile is then found in both, not in none.
	c.mu.Lock()
	expected, weight := l.aside.count, l.aside.bytes
	l.aside.next = 0 // what comes from here on may not be found below; setAside keeps the earliest
	fresh := slices.Clone(l.aside.fresh)
	over := map[uint64]bool{}
	for _, gone := range []map[laneKey]map[uint64]bool{c.side.gone, c.side.going} {
		for seq := range gone[key] {
			over[seq] = true
		}
	}
	c.mu.Unlock()
	for _, e := range fresh {
		delete(over, e.rec.Seq) // it has come back
	}

	size, found, whole := int64(0), uint64(0), true
	take := func(e *entry) bool {
		found++
		weight -= e.bytes()
		if len(entries) >= claimRecords || len(entries) > 0 && size+e.bytes() > claimBytes {
			next, whole = e.rec.Received, false
			return false
		}
		size += e.bytes()
		entries = append(entries, e)
		return true
	}
	err = c.view(func(tx *bolt.Tx) error {
		cur := tx.Bucket(bucketAside).Cursor()
		for k, v := cur.Seek(key[:]); len(k) == 24 && bytes.HasPrefix(k, key[:]); k, v = cur.Next() {
			seq := binary.BigEndian.Uint64(k[16:])
			for len(fresh) > 0 && fresh[0].rec.Seq < seq {
				if !take(fresh[0]) {
					return nil
				}
				fresh = fresh[1:]
			}
			if len(fresh) > 0 && fresh[0].rec.Seq == seq {
				continue // memory's is the newer
			}
			if over[seq] {
				continue
			}
			e, err := openAside(k, v)
			if err != nil || e.rec.Lane != l.key {
				continue // damaged; found less than expected, in the end
			}
			if !take(e) {
				return nil
			}
		}
		for _, e := range fresh {
			if !take(e) {
				return nil
			}
		}
		return nil
	})
	if errors.Is(err, ErrDamaged) {
		suspect(c.path())
		err = nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("sync %s: read the side place: %w", c.o.Name, err)
	}
	if whole && found < expected {
		c.loseAside(l, expected-found, weight)
	}
	return entries, next, nil
}

func openAside(k, stored []byte) (*entry, error) {
	v, err := unseal(k, stored)
	if err != nil {
		return nil, err
	}
	return readAside(binary.BigEndian.Uint64(k[16:]), v)
}

// loseAside enters records of the side place that cannot be read any more.
func (c *Consumer) loseAside(l *lane, n uint64, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := l.aside
	a.count -= n
	a.bytes -= bytes
	c.side.records -= n
	c.side.bytes -= bytes
	if a.count == 0 {
		l.aside = nil
		delete(c.side.lanes, l.key)
	}
	c.side.changed[l.key] = true
	c.state.ended[Lost] += n
	c.state.newest[Lost] = c.o.Now().UnixMilli()
	c.count(Tally{Key: "record/lost"}, n)
	c.touch()
}

// relieve makes room in a window that is full, and says whether there is some now. The
// caller holds c.mu.
//
// Slots of what has ended are joined. Where that is not enough, and somebody finds
// nothing to claim although Customer.io takes deliveries, lanes that wait move to the
// side place, the largest first: those with failed tries, those that need an identifier
// that another one holds, and those of which more waits than is in a claim.
func (c *Consumer) relieve() bool {
	c.joinSlots()
	if c.windowBytes >= c.o.WindowBytes && c.flowing && c.idle > 0 && c.claimable() && len(c.lanes.ready) == 0 {
		c.lanes.promote(time.Now())
		if len(c.lanes.ready) == 0 {
			c.moveLargestAside()
		}
	}
	if c.side.freshBytes >= c.o.WindowBytes/2 {
		notify(c.haste)
	}
	return !c.crowded()
}

// crowded says that the reader must not go on. The caller holds c.mu.
func (c *Consumer) crowded() bool {
	return c.windowBytes+c.side.freshBytes+c.side.idle >= c.o.WindowBytes
}

func (c *Consumer) moveLargestAside() {
	type waiting struct {
		l     *lane
		bytes int64
	}
	var all []waiting
	for _, l := range c.lanes.byKey {
		if l.aside != nil || len(l.records) == l.taken {
			continue
		}
		w := waiting{l: l}
		for _, e := range l.records {
			w.bytes += e.bytes()
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, w := range all {
		if c.windowBytes < c.o.WindowBytes/2 {
			return
		}
		c.moveAside(w.l)
	}
}

// Aside is the side place at one moment.
type Aside struct {
	Lanes   int
	Records uint64
	Bytes   int64
	Oldest  int64 // when the first of its records was received, ms since 1970 UTC; 0 = none
}

// stats walks over the lanes there. The caller holds the consumer's mu.
func (s *sideplace) stats() Aside {
	a := Aside{Lanes: len(s.lanes), Records: s.records, Bytes: s.bytes}
	for _, l := range s.lanes {
		if a.Oldest == 0 || l.aside.oldest < a.Oldest {
			a.Oldest = l.aside.oldest
		}
	}
	return a
}
