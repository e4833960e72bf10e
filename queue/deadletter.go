package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

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

// DeadLetters calls f for each dead letter in the ledger, in order of sequence, and
// ends early with f's error. Those of the last checkpoint are among them, later ones
// not yet. What f does takes as long as it likes: it holds nothing up. After all that
// can be read, ErrDamaged tells that some cannot. Safe for concurrent use.
func (c *Consumer) DeadLetters(f func(DeadLetter) error) error {
	return eachDeadLetter(func(look func(*bolt.Tx) error) error { return c.db.View(look) }, f)
}

// DeadLetters reads those of a consumer that no process has open (else ErrLocked), as
// [Consumer.DeadLetters] does. It writes nothing.
func DeadLetters(storage, name string, f func(DeadLetter) error) error {
	err := eachDeadLetter(func(look func(*bolt.Tx) error) error { return viewLedger(storage, name, look) }, f)
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
