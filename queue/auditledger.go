package queue

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// checkEntries reads every entry of the ledger: whether its checksum is right, whether
// it says what its key says, and whether what belongs together fits.
func (au *auditor) checkEntries() error {
	var names []string
	err := Guard(func() error {
		return au.tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
			names = append(names, string(name))
			return nil
		})
	})
	if err != nil {
		return err
	}
	lanes := &asideLanes{au: au, b: au.tx.Bucket(bucketAsideLane)}
	for _, name := range names {
		bad, broken := found{}, found{}
		err := Guard(func() error {
			return au.tx.Bucket([]byte(name)).ForEach(func(k, stored []byte) error {
				if err := au.ctx.Err(); err != nil {
					return err
				}
				v, err := unseal(k, stored)
				if err != nil {
					bad.add(seqOf(k))
					return nil
				}
				if !au.entry(name, k, v, int64(len(stored)), lanes) {
					broken.add(seqOf(k))
				}
				return nil
			})
		})
		if ctxErr := au.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		if err != nil {
			au.damaged = true
			au.differs("the bucket %q cannot be read to its end: %v", name, err)
		}
		au.damaged = au.damaged || bad.n+broken.n > 0
		if bad.n > 0 {
			au.differs("in the bucket %q the checksum of %s is wrong%s", name, plural(bad.n, "value"), bad.where(name))
		}
		if broken.n > 0 {
			au.differs("in the bucket %q %s cannot be what was written%s", name, plural(broken.n, "value"), broken.where(name))
		}
	}
	lanes.finish()
	au.dead = newDeadSequences(au.tx.Bucket(bucketDead))
	dead := au.tx.Bucket(bucketDead)
	au.side = &asideSequences{b: au.tx.Bucket(bucketAside), most: asideAtOnce, each: func(seq uint64, times int) {
		if times > 1 {
			au.asideAside.add(seq)
		}
		if dead.Get(seqKey(seq)) != nil {
			au.deadAside.add(seq)
		}
	}}
	au.side.over = au.side.b == nil // format 1
	return nil
}

// seqOf gives the sequence in which a key ends.
func seqOf(k []byte) uint64 {
	if len(k) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(k[len(k)-8:])
}

// entry checks one entry whose checksum is right, and says whether it is well-formed.
func (au *auditor) entry(bucket string, k, v []byte, stored int64, lanes *asideLanes) bool {
	switch bucket {
	case string(bucketRetry):
		lane, r, err := readRetryState(v)
		return err == nil && r.attempts > 0 && bytes.Equal(retryKey(lane), k)
	case string(bucketTally):
		_, err := readCount(v)
		return err == nil
	case string(bucketDead):
		if len(k) != 8 {
			return false
		}
		d, err := readDeadLetter(binary.BigEndian.Uint64(k), v)
		if err != nil || d.Record.Project != au.s.project || d.Record.Seq > au.s.seen {
			return false
		}
		au.DeadLetters++
		au.deadBytes += stored
		return true
	case string(bucketAside):
		return lanes.entry(k, v)
	case string(bucketAsideLane):
		lane, a, err := readAsideLane(v)
		return err == nil && a.count > 0 && bytes.Equal(retryKey(lane), k)
	}
	return true
}

// found counts what is wrong in one way, and remembers where first.
type found struct{ n, first uint64 }

func (f *found) add(seq uint64) {
	if f.n == 0 {
		f.first = seq
	}
	f.n++
}

// where names the first one in a bucket whose keys are no people's names.
func (f *found) where(bucket string) string {
	if bucket != string(bucketDead) && bucket != string(bucketAside) {
		return ""
	}
	return ", the first is that of record " + comma(f.first)
}

// asideLanes compares the records of the side place, which come lane by lane, with what
// the ledger says of each lane.
type asideLanes struct {
	au    *auditor
	b     *bolt.Bucket
	key   laneKey
	count uint64
	bytes int64
	// The first of them, and when it was received. A clock that jumped back may have
	// given one behind it an earlier time.
	first    uint64
	received int64
	wrong    found // under the key of another lane
}

// entry takes the next record, and says whether it is well-formed.
func (l *asideLanes) entry(k, v []byte) bool {
	if len(k) != 24 {
		return false
	}
	e, err := readAside(seqOf(k), v)
	if err != nil || e.rec.Project != l.au.s.project || e.rec.Seq > l.au.s.seen {
		return false
	}
	l.au.Aside++
	if key := laneKey(k[:16]); key != l.key {
		l.finishLane()
		l.key, l.first, l.received = key, e.rec.Seq, e.rec.Received
	}
	if laneKeyOf(e.rec.Lane) != l.key {
		l.wrong.add(e.rec.Seq)
		return true
	}
	l.count++
	l.bytes += e.bytes()
	return true
}

func (l *asideLanes) finishLane() {
	if l.first == 0 {
		return
	}
	defer func() { l.count, l.bytes, l.first = 0, 0, 0 }()
	au := l.au
	where := "the lane of record " + comma(l.first) + " in the side place"
	var stored []byte
	if l.b != nil {
		stored = l.b.Get(l.key[:])
	}
	v, err := unseal(l.key[:], stored)
	if err != nil {
		au.differs("%s has no summary", where)
		return
	}
	_, a, err := readAsideLane(v)
	switch {
	case err != nil: // told already
	case a.count != l.count || a.bytes != l.bytes:
		au.differs("%s has by its summary %s of %s bytes; %s of %s bytes can be read", where,
			records(a.count), comma(uint64(a.bytes)), comma(l.count), comma(uint64(l.bytes)))
	case a.oldest > l.received:
		au.differs("%s has by its summary none that was received before %s; one was, at %s", where, clock(a.oldest), clock(l.received))
	}
}

// finish looks for lanes of which there is no record.
func (l *asideLanes) finish() {
	l.finishLane()
	if l.wrong.n > 0 {
		l.au.differs("in the side place %s under the key of another lane, the first is record %s", is(l.wrong.n), comma(l.wrong.first))
	}
	if l.b == nil {
		return
	}
	empty, counted := found{}, uint64(0)
	err := Guard(func() error {
		cur := l.au.tx.Bucket(bucketAside).Cursor()
		return l.b.ForEach(func(k, stored []byte) error {
			if at, _ := cur.Seek(k); !bytes.HasPrefix(at, k) {
				empty.add(0)
				if v, err := unseal(k, stored); err == nil {
					_, a, _ := readAsideLane(v)
					counted += a.count
				}
			}
			return nil
		})
	})
	if err == nil && empty.n > 0 { // else it was told
		l.au.differs("the side place should have %s of %s of which it has none", records(counted), plural(empty.n, "lane"))
	}
}

func is(n uint64) string {
	if n == 1 {
		return "1 record is"
	}
	return records(n) + " are"
}

func clock(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// twice is what is found of records that are in two places.
type twice struct{ logDead, logAside, deadAside, asideAside found }

// pendingRecord looks whether a record that is pending in the log is anywhere else.
func (au *auditor) pendingRecord(r *Record) {
	if au.dead.has(r.Seq) {
		au.logDead.add(r.Seq)
	}
	if au.side.has(r.Seq) {
		au.logAside.add(r.Seq)
	}
}

// tellTwice looks at what is left of the side place, and tells what was found.
func (au *auditor) tellTwice() {
	au.side.has(math.MaxUint64)
	for _, t := range []struct {
		found
		what string
	}{
		{au.logDead, "pending in the log and a dead letter"},
		{au.logAside, "pending in the log and in the side place"},
		{au.deadAside, "in the side place and a dead letter"},
		{au.asideAside, "in the side place twice"},
	} {
		if t.n > 0 {
			au.differs("%s %s, the first is %s", is(t.n), t.what, comma(t.first))
		}
	}
}

// deadSequences tells of sequences that only rise whether they are dead letters.
type deadSequences struct {
	cur  *bolt.Cursor
	at   uint64
	over bool
}

func newDeadSequences(b *bolt.Bucket) *deadSequences {
	d := &deadSequences{cur: b.Cursor()}
	d.take(d.cur.First())
	return d
}

func (d *deadSequences) take(k, _ []byte) {
	for k != nil && len(k) != 8 {
		k, _ = d.cur.Next()
	}
	d.at, d.over = seqOf(k), k == nil
}

func (d *deadSequences) has(seq uint64) bool {
	for !d.over && d.at < seq {
		d.take(d.cur.Next())
	}
	return !d.over && d.at == seq
}

// asideAtOnce is how many sequences of the side place are held in memory. It is in the
// order of lanes, so for each further half million its keys are walked over once more.
const asideAtOnce = 1 << 19

// asideSequences does the same for the side place.
type asideSequences struct {
	b     *bolt.Bucket
	most  int
	each  func(seq uint64, times int) // is called for each, in order
	some  []uint64                    // the next ones, in order
	taken int                         // of those
	after uint64                      // the last of them
	over  bool                        // there are none behind them
}

func (a *asideSequences) has(seq uint64) bool {
	for {
		if a.taken == len(a.some) {
			if a.over {
				return false
			}
			a.fill()
			continue
		}
		at := a.some[a.taken]
		if at >= seq {
			return at == seq
		}
		times := 0
		for ; a.taken < len(a.some) && a.some[a.taken] == at; a.taken++ {
			times++
		}
		a.each(at, times)
	}
}

// fill finds the next ones in the file.
func (a *asideSequences) fill() {
	some, cut := a.some[:0], false
	shorten := func() {
		slices.Sort(some)
		if len(some) > a.most {
			some, cut = some[:a.most], true
		}
	}
	cur := a.b.Cursor()
	for k, _ := cur.First(); k != nil; k, _ = cur.Next() {
		if seq := seqOf(k); len(k) == 24 && seq > a.after {
			if some = append(some, seq); len(some) == 2*a.most {
				shorten()
			}
		}
	}
	shorten()
	if cut { // there may be more of the last one
		last, _ := slices.BinarySearch(some, some[len(some)-1])
		some = some[:max(last, 1)]
	}
	if n := len(some); n > 0 {
		a.after = some[n-1]
	}
	a.some, a.taken, a.over = some, 0, !cut
}
