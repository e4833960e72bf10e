package users

import (
	"strings"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// project holds the cached entries of one project, by their keys.
type project struct {
	name    string
	entries map[string]*entry
}

// cache is what is held of users.db in memory, bounded by bytes and not by the number
// of users. All of it is guarded by Store.mu.
//
// Clean entries stand in a clock and go when room is needed. Dirty ones are pinned and
// stand in one of two collections: dirty (changed since the last cut) and, while a
// checkpoint runs, the cut's. An entry of the cut that changes again is frozen first:
// the checkpoint writes the value it had at the cut.
type cache struct {
	projects map[string]*project
	keyBuf   []byte

	hand  *entry // the clock; nil = no clean entry
	bytes int64  // of all entries and frozen values
	count int

	epoch      uint64 // of the dirty collection, from 1
	dirty      []*entry
	dirtyBytes int64 // of entries not clean and of frozen values

	// A read transaction is opened by the first miss and closed before Store.mu is given
	// up: no entry can become clean, and be forgotten, while an older view is looked at.
	reads      *bolt.Tx
	bucketUser *bolt.Bucket
	bucketDev  *bolt.Bucket

	hits, misses, damaged uint64
}

func (s *Store) project(name string) *project {
	p := s.projects[name]
	if p == nil {
		p = &project{name: strings.Clone(name), entries: map[string]*entry{}}
		s.projects[p.name] = p
	}
	return p
}

// entry gives what is known of a user or device, from memory or users.db: an empty
// entry when nothing is. It stays valid until the next evict. The caller holds s.mu.
func (s *Store) entry(p *project, k kind, id string) (*entry, error) {
	s.keyBuf = append(append(s.keyBuf[:0], byte(k)), id...)
	if e := p.entries[string(s.keyBuf)]; e != nil {
		s.hits++
		e.used = true
		return e, nil
	}
	s.misses++
	e := &entry{project: p, key: string(s.keyBuf)}
	if err := s.load(e); err != nil {
		return nil, err
	}
	p.entries[e.key] = e
	s.count++
	s.pushClean(e)
	s.account(e)
	return e, nil
}

// userOf is entry for the user of a device's event; d may be nil.
func (s *Store) userOf(p *project, d *entry, id string) (*entry, error) {
	if d != nil && d.last != nil && !d.last.forgotten && d.last.id() == id {
		s.hits++
		d.last.used = true
		return d.last, nil
	}
	u, err := s.entry(p, user, id)
	if err == nil && d != nil {
		d.last = u
	}
	return u, err
}

// load reads an entry's state from users.db. A value that is damaged counts as none.
func (s *Store) load(e *entry) error {
	return queue.Guard(func() error {
		if err := s.openReads(); err != nil {
			return err
		}
		s.keyBuf = appendKey(s.keyBuf[:0], e.project.name, e.id())
		b := s.bucketUser
		if e.kind() == device {
			b = s.bucketDev
		}
		value := b.Get(s.keyBuf)
		if value == nil {
			return nil
		}
		e.stored = true
		st, err := readEntry(e.kind(), s.keyBuf, value)
		if err != nil {
			s.damaged++
			return nil
		}
		e.state = st
		return nil
	})
}

func (s *Store) openReads() error {
	if s.reads != nil {
		return nil
	}
	tx, err := s.db.Begin(false)
	if err != nil {
		return err
	}
	s.reads = tx
	s.bucketUser, s.bucketDev = tx.Bucket(bucketUsers), tx.Bucket(bucketDevices)
	return nil
}

// closeReads ends the read transaction: an open one keeps pages from being used again,
// and makes a growing file wait.
func (s *Store) closeReads() {
	if s.reads != nil {
		s.reads.Rollback() // of a read transaction: there is nothing that could fail
		s.reads, s.bucketUser, s.bucketDev = nil, nil, nil
	}
}

// touch is called before an entry changes.
func (s *Store) touch(e *entry) {
	switch e.epoch {
	case s.epoch:
		return
	case 0:
		s.unlinkClean(e)
		s.dirtyBytes += e.size
	default: // in the running checkpoint's cut
		s.freeze(e)
	}
	e.epoch = s.epoch
	s.dirty = append(s.dirty, e)
}

// freeze keeps the value that an entry has, which is the one it had at the cut.
func (s *Store) freeze(e *entry) {
	e.frozen = []byte{}
	if !e.empty() {
		s.keyBuf = appendKey(s.keyBuf[:0], e.project.name, e.id())
		e.frozen = appendEntry(make([]byte, 0, e.size), e.kind(), s.keyBuf, &e.state)
	}
	s.bytes += int64(cap(e.frozen))
	s.dirtyBytes += int64(cap(e.frozen))
}

func (s *Store) unfreeze(e *entry) {
	s.bytes -= int64(cap(e.frozen))
	s.dirtyBytes -= int64(cap(e.frozen))
	e.frozen = nil
}

// account brings the books up to date with what an entry costs now.
func (s *Store) account(e *entry) {
	size := e.cost()
	s.bytes += size - e.size
	if e.epoch != 0 {
		s.dirtyBytes += size - e.size
	}
	e.size = size
}

// settle makes an entry clean when it has not changed since the cut it belonged to.
func (s *Store) settle(e *entry, cut uint64, stored bool) {
	e.stored = stored
	if e.frozen != nil {
		s.unfreeze(e)
	}
	if e.epoch == cut {
		e.epoch = 0
		s.dirtyBytes -= e.size
		s.pushClean(e)
	}
}

// evict forgets clean entries until the cache is within its bound: those that were
// not looked at since the clock's hand passed them last.
func (s *Store) evict() {
	for s.bytes > s.o.CacheBytes && s.hand != nil {
		e := s.hand
		if e.used {
			e.used = false
			s.hand = e.next
			continue
		}
		s.unlinkClean(e)
		delete(e.project.entries, e.key)
		s.bytes -= e.size
		s.count--
		e.state, e.forgotten, e.last = state{}, true, nil // somebody's last may still be this
	}
}

// pushClean puts an entry into the clock, behind the hand: it is looked at last.
func (s *Store) pushClean(e *entry) {
	if s.hand == nil {
		e.prev, e.next = e, e
		s.hand = e
		return
	}
	e.prev, e.next = s.hand.prev, s.hand
	e.prev.next, e.next.prev = e, e
}

func (s *Store) unlinkClean(e *entry) {
	if e.next == e {
		s.hand = nil
	} else {
		e.prev.next, e.next.prev = e.next, e.prev
		if s.hand == e {
			s.hand = e.next
		}
	}
	e.prev, e.next = nil, nil
}
