package queue

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// sentMemory is how many bytes of what identifiers were last sent are kept in memory: who
// sends much is asked for again and again, and each look at the file is a transaction.
const sentMemory = 4 << 20

// sentSpareMost bounds the memory that is kept for what identifiers were newly sent.
const sentSpareMost = 1 << 14

// sentTogether is for how many of the next lanes a look at the file is made, where one has to be.
const sentTogether = 64

// sentEntryBytes is about what an entry costs beside its bytes.
const sentEntryBytes = 96

// sentCache holds what the ledger's file has of some identifiers; nil = nothing. When the
// young half is full it becomes the old one: what was asked for meanwhile stays. It is
// guarded by the consumer.
type sentCache struct {
	young, old map[string][]byte
	bytes      int64  // of young
	moved      uint64 // counts the times when what the file has, or is about to have, changed
}

func (s *sentCache) get(identifier string) (v []byte, ok bool) {
	if v, ok = s.young[identifier]; ok {
		return v, true
	}
	if v, ok = s.old[identifier]; ok {
		s.put(identifier, v)
	}
	return v, ok
}

func (s *sentCache) put(identifier string, v []byte) {
	if s.young == nil || s.bytes >= sentMemory/2 {
		s.young, s.old, s.bytes = make(map[string][]byte, len(s.young)), s.young, 0
	}
	if before, ok := s.young[identifier]; ok {
		s.bytes += int64(len(v) - len(before))
	} else {
		s.bytes += int64(len(identifier)+len(v)) + sentEntryBytes
	}
	s.young[identifier] = v
}

// written takes over what a checkpoint has brought into the file, or its forgetting.
func (s *sentCache) written(sent map[string][]byte, forgetting bool) {
	if forgetting {
		s.clear()
	}
	for identifier, v := range sent {
		s.put(identifier, v)
	}
}

func (s *sentCache) clear() {
	s.young, s.old, s.bytes = nil, nil, 0
}

// sent reads what the first of some identifiers was last sent, and where the file has to be looked at for that, what the
// others were is known from then on too.
func (c *Consumer) sent(wanted ...string) ([]byte, error) {
	c.mu.Lock()
	v, known, moved := c.sentInMemory(wanted[0])
	if !known {
		for i := len(wanted) - 1; i > 0; i-- {
			if _, known, _ := c.sentInMemory(wanted[i]); known {
				wanted = slices.Delete(wanted, i, i+1)
			}
		}
	}
	c.mu.Unlock()
	if known {
		return v, nil
	}
	return c.sentInFile(wanted, moved)
}

// sentInMemory is sent where that is known without the file; else moved is for
// sentInFile. The caller holds c.mu.
func (c *Consumer) sentInMemory(identifier string) (v []byte, known bool, moved uint64) {
	v, known = c.sentNew[identifier]
	if known = known || c.forget; !known {
		v, known = c.sentWriting[identifier]
		known = known || c.forgetting
	}
	if !known {
		v, known = c.sentKnown.get(identifier)
	}
	return v, known, c.sentKnown.moved
}

// sentInFile looks up all that is wanted, in the order of the file, and gives the first of it.
func (c *Consumer) sentInFile(wanted []string, moved uint64) (v []byte, err error) {
	first := wanted[0]
	found := make(map[string][]byte, len(wanted))
	slices.Sort(wanted)
	err = c.view(func(tx *bolt.Tx) error {
		cur := tx.Bucket(bucketSent).Cursor()
		var key []byte
		for _, identifier := range wanted {
			key = append(key[:0], identifier...)
			found[identifier] = nil
			if k, stored := cur.Seek(key); bytes.Equal(k, key) {
				if whole, err := unseal(key, stored); err == nil {
					found[identifier] = append([]byte(nil), whole...)
				} // else: taken as never sent; an identify is sent once more
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, ErrDamaged): // likewise
		suspect(c.path())
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("sync %s: read what was sent: %w", c.o.Name, err)
	}
	c.mu.Lock()
	if moved == c.sentKnown.moved { // else it may be older than what the file has by now
		for identifier, v := range found {
			c.sentKnown.put(identifier, v)
		}
	}
	c.mu.Unlock()
	return found[first], nil
}
