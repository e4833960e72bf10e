package users

import (
	"fmt"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// sweep looks at some entries of users.db, further on each time, and drops of them
// what has expired. It does so as an event would, by changing the entry in memory: the
// next checkpoint writes it.
func (s *Store) sweep() error {
	hour := hourOf(s.o.Now().UnixMilli())
	var stale []named
	err := queue.Guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			stale = s.findExpired(tx, hour)
			return nil
		})
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return s.broke(fmt.Errorf("sweep %s: %w", s.o.Path, err))
	}
	defer s.closeReads()
	for _, n := range stale {
		s.evict()
		e, err := s.entry(s.project(n.project), n.kind, n.id)
		if err != nil {
			return s.broke(fmt.Errorf("sweep %s: %w", s.o.Path, err))
		}
		if s.slots[e].marks&anyDirty == 0 {
			s.block(e).expire(hour, s.unlinkedHours)
			s.touch(e)
			s.expired++
		}
	}
	return nil
}

// named is the name of an entry.
type named struct {
	kind        kind
	project, id string
}

// findExpired goes through the next sweepEntries keys, users and then devices, and
// notes where to go on. An entry whose id is not in its key expires when it is looked at.
func (s *Store) findExpired(tx *bolt.Tx, hour uint32) (stale []named) {
	k, from := user, []byte(nil)
	if len(s.sweepAt) > 0 {
		k, from = kind(s.sweepAt[0]), s.sweepAt[1:]
	}
	b := tx.Bucket(bucketOf(k))
	if b == nil {
		k, from = user, nil
		b = tx.Bucket(bucketUsers)
	}
	cursor := b.Cursor()
	key, value := cursor.Seek(from)
	for range sweepEntries {
		if key == nil {
			if k == device {
				s.sweepAt = nil // next time from the start
				return stale
			}
			k = device
			cursor = tx.Bucket(bucketDevices).Cursor()
			if key, value = cursor.First(); key == nil {
				s.sweepAt = nil
				return stale
			}
		}
		if st, err := readEntry(k, key, value); err == nil {
			project, id, ok := splitKey(key)
			if ok && st.expire(k, hour, s.unlinkedHours) {
				stale = append(stale, named{k, project, id})
			}
		}
		key, value = cursor.Next()
	}
	if key == nil {
		s.sweepAt = nil
		if k == user {
			s.sweepAt = []byte{byte(device)}
		}
		return stale
	}
	s.sweepAt = append([]byte{byte(k)}, key...)
	return stale
}
