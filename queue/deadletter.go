package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// DeadLetter is a record that Customer.io has refused, whole.
type DeadLetter struct {
	Record  Record
	At      int64  // when it died, ms since 1970 UTC
	Reason  string // in the words of its Outcome
	Results []byte // what was answered, opaque
}

func (d *DeadLetter) append(b []byte) []byte {
	b = binary.AppendVarint(b, d.At)
	b = appendBytes(b, d.Reason)
	b = appendBytes(b, d.Results)
	return appendRecord(b, &d.Record)
}

func readDeadLetter(seq uint64, v []byte) (l DeadLetter, err error) {
	d := decoder{b: v}
	l.At = d.varint()
	l.Reason = string(d.bytes())
	l.Results = append([]byte(nil), d.bytes()...)
	if d.err != nil {
		return l, d.err
	}
	l.Record, _, err = readRecord(append([]byte(nil), d.b...), Record{})
	l.Record.Seq = seq
	return l, err
}

// bury enters a dead letter. The caller holds c.mu.
func (c *Consumer) bury(d *DeadLetter) {
	v := seal(seqKey(d.Record.Seq), d.append(nil))
	c.deadNew[d.Record.Seq] = v
	c.state.deadBytes += int64(len(v))
	c.changedBytes += int64(len(v))
}

// DeadLetters calls f for each dead letter in the ledger, in order of sequence, and
// ends early with f's error. Those of the last checkpoint are among them, later ones
// not yet. What f does takes as long as it likes: it holds nothing up. After all that
// can be read, ErrDamaged tells that some cannot. Safe for concurrent use.
func (c *Consumer) DeadLetters(f func(DeadLetter) error) error {
	return eachDeadLetter(c.view, c.log.forgotten.Load().unless(f))
}

// oldestDead is when the first of the dead letters died, ms since 1970 UTC; 0 when that
// is not known before the next checkpoint.
func (c *Consumer) oldestDead() (at int64, err error) {
	err = c.view(func(tx *bolt.Tx) error {
		at = firstDead(tx, func(seq uint64) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.deadGone[seq] || c.deadGoing[seq]
		})
		return nil
	})
	return at, harmless(err)
}

// firstDead is when the first dead letter in the file died that is not gone. It does not
// look behind deadLook of them.
func firstDead(tx *bolt.Tx, gone func(seq uint64) bool) int64 {
	cur := tx.Bucket(bucketDead).Cursor()
	k, v := cur.First()
	for n := 0; n < deadLook && k != nil; n++ {
		if d, err := openDeadLetter(k, v); err == nil && !gone(d.Record.Seq) {
			return d.At
		}
		k, v = cur.Next()
	}
	return 0
}

// DeadLetter gives the dead letter of a sequence, as of the last checkpoint; false when
// there is none. ErrDamaged when it cannot be read.
func (c *Consumer) DeadLetter(seq uint64) (d DeadLetter, ok bool, err error) {
	err = c.view(func(tx *bolt.Tx) (err error) {
		if v := tx.Bucket(bucketDead).Get(seqKey(seq)); v != nil {
			ok = true
			d, err = openDeadLetter(seqKey(seq), v)
		}
		return err
	})
	if err != nil {
		return d, false, fmt.Errorf("dead letter %d of sync %s: %w", seq, c.o.Name, err)
	}
	return d, ok, nil
}

// ReplayDead makes dead letters pending again, in the side place, before all that waits
// in their lanes. Those that are not there are passed over. n is how many there were; it
// is durable when it returns nil.
func (c *Consumer) ReplayDead(seqs []uint64) (n int, err error) {
	return c.exhume(seqs, func(d *DeadLetter) {
		e := &entry{rec: d.Record, replay: true, results: d.Results}
		e.rec.Project = c.o.Project
		l := c.lanes.lane(e.rec.Lane, c.restored)
		if l.aside == nil && len(l.records) > 0 {
			c.moveAside(l)
		}
		c.setAside(l, e)
		c.lanes.schedule(l)
	})
}

// DropDead ends dead letters as Discarded. Those that are not there are passed over. n
// is how many there were; it is durable when it returns nil.
func (c *Consumer) DropDead(seqs []uint64) (n int, err error) {
	return c.exhume(seqs, func(d *DeadLetter) { c.discardedDead(d, "dropped") })
}

// discardedDead enters a dead letter that is given up. The caller holds c.mu.
func (c *Consumer) discardedDead(d *DeadLetter, why string) {
	c.discardedAs(d.Record.Seq, Tally{Key: "record/discarded/dead_letter_" + why})
}

// exhume takes dead letters out of the ledger, and lets become decide, with c.mu held,
// what becomes of each. One that is damaged stays, and the error says so.
func (c *Consumer) exhume(seqs []uint64, become func(*DeadLetter)) (n int, err error) {
	c.operating.Lock()
	defer c.operating.Unlock()
	if err := c.Flush(); err != nil {
		return 0, err
	}
	return c.exhumeNow(seqs, become)
}

// exhumeNow is exhume for who holds c.operating; what has ended before is in the file.
func (c *Consumer) exhumeNow(seqs []uint64, become func(*DeadLetter)) (n int, err error) {
	one := func(seq uint64) error {
		c.writing.Lock() // else a checkpoint may come between the look at the file and the other
		defer c.writing.Unlock()
		d, ok, err := c.DeadLetter(seq)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if ok && !c.deadGone[seq] {
			n++
			c.unbury(&d)
			become(&d)
		}
		return nil
	}
	var damaged []error
	for _, seq := range seqs {
		if err := one(seq); errors.Is(err, ErrDamaged) {
			damaged = append(damaged, err)
		} else if err != nil {
			return n, err
		}
	}
	return n, errors.Join(append(damaged, c.Flush())...)
}

// unbury takes a dead letter that is in the file out of the books. The caller holds c.mu.
func (c *Consumer) unbury(d *DeadLetter) {
	c.deadGone[d.Record.Seq] = true
	delete(c.deadNew, d.Record.Seq) // where a checkpoint was put off that counted after all
	c.state.ended[Dead]--
	c.state.deadBytes -= int64(len(d.append(nil)) + sealBytes)
	c.changedBytes += 64
	c.touch()
	c.wake()
}

// SetDeadLetterBounds says how long dead letters are kept, and in how many bytes; 0 = no
// bound. Those that are older, and the first beyond, end as Discarded.
func (c *Consumer) SetDeadLetterBounds(keep time.Duration, most int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadKeep, c.deadMost = keep, most
}

// deadLook is how many dead letters one look for expired ones reads: a bound, so that
// many are passed through over many looks.
const deadLook = 1000

// expireDead gives up what is beyond the bounds. The caller holds c.operating.
func (c *Consumer) expireDead() error {
	c.mu.Lock()
	keep, most, have, kept := c.deadKeep, c.deadMost, c.state.deadBytes, c.state.ended[Dead]
	c.mu.Unlock()
	if kept == 0 || keep == 0 && most == 0 {
		return nil
	}
	from, before := c.deadLooked, c.o.Now().Add(-keep).UnixMilli()
	tooMany := most > 0 && have > most
	if tooMany {
		from = 0 // the first go, whatever their age
	}
	var gone []DeadLetter
	// A checkpoint between the look at the file and what follows would let one that has
	// gone seem to be there still.
	c.writing.Lock()
	defer c.writing.Unlock()
	err := c.view(func(tx *bolt.Tx) error {
		cur := tx.Bucket(bucketDead).Cursor()
		k, v := cur.Seek(seqKey(from))
		for n := 0; n < deadLook && k != nil; n++ {
			d, err := openDeadLetter(k, v)
			switch {
			case err != nil: // who lists them tells of it
			case most > 0 && have > most:
				have -= int64(len(v))
				gone = append(gone, d)
			case keep > 0 && d.At < before:
				gone = append(gone, d)
			}
			k, v = cur.Next()
		}
		c.deadLooked = 0
		if k != nil && !tooMany {
			c.deadLooked = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("sync %s: read dead letters: %w", c.o.Name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range gone {
		if !c.deadGone[d.Record.Seq] && !c.deadGoing[d.Record.Seq] {
			c.unbury(&d)
			c.discardedDead(&d, "expired")
		}
	}
	return nil
}

// DeadLetters reads those of a consumer that no process has open (else ErrLocked), as
// [Consumer.DeadLetters] does. It writes nothing.
func DeadLetters(storage, name string, f func(DeadLetter) error) error {
	ts, err := tombstonesIn(storage)
	if err == nil {
		err = eachDeadLetter(func(look func(*bolt.Tx) error) error { return viewLedger(storage, name, look) }, ts.unless(f))
	}
	if err != nil {
		return fmt.Errorf("dead letters of sync %s: %w", name, err)
	}
	return nil
}

// deadAtOnce is how many bytes of dead letters are read in one transaction: an open
// one keeps pages from being used again.
const deadAtOnce = 1 << 20

func eachDeadLetter(view func(func(*bolt.Tx) error) error, f func(DeadLetter) error) error {
	damaged := 0
	for next := []byte{0}; next != nil; {
		var some []DeadLetter
		at := next
		next = nil // what cannot be looked at ends the walk
		err := Guard(func() error {
			return view(func(tx *bolt.Tx) error {
				cur := tx.Bucket(bucketDead).Cursor()
				k, v := cur.Seek(at)
				for size := 0; k != nil; k, v = cur.Next() {
					if size >= deadAtOnce {
						next = append([]byte(nil), k...)
						return nil
					}
					size += len(v)
					d, err := openDeadLetter(k, v)
					if err != nil {
						damaged++
						continue
					}
					some = append(some, d)
				}
				return nil
			})
		})
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		if err != nil {
			damaged++
		}
		for _, d := range some {
			if err := f(d); err != nil {
				return err
			}
		}
	}
	if damaged > 0 {
		return fmt.Errorf("%d dead letters or more: %w", damaged, ErrDamaged)
	}
	return nil
}

func openDeadLetter(k, stored []byte) (DeadLetter, error) {
	v, err := unseal(k, stored)
	if err != nil || len(k) != 8 {
		return DeadLetter{}, ErrDamaged
	}
	return readDeadLetter(binary.BigEndian.Uint64(k), v)
}
