package users

import (
	"bytes"
	"encoding/binary"
	"strings"

	bolt "go.etcd.io/bbolt"

	"ampcio/mapping"
	"ampcio/queue"
)

// project numbers one project: the number stands for the name in memory.
type project struct {
	name   string
	number uint32
}

// entry is the slot of what is known of one user or device. It stays what it is until
// the next evict.
type entry uint32

const nobody entry = 0

// slot is an entry's place in the cache. An entry is clean (as in users.db; may be
// forgotten) or dirty (changed since; stays until a checkpoint has written it).
type slot struct {
	at     ref // its block; 0 = the slot is free
	frozen ref // a copy as of the running checkpoint's cut, when it has changed since
	marks  uint32
}

const (
	markUsed   = 1 << iota // looked at since the clock's hand passed
	markStored             // users.db has a value under its key
	// Two marks for the two collections of dirty entries that there are at most: what has
	// changed since the last cut and, while a checkpoint runs, the cut's. They take turns.
	markDirty
	markDirtyToo
	anyDirty = markDirty | markDirtyToo
)

// entryBytes is what an entry costs besides its block: its slot and its place in the index.
const entryBytes = 12 + 16

// cache is what is held of users.db in memory, bounded by bytes and not by the number
// of users. All of it is guarded by Store.mu.
//
// An entry is a slot, its place in the index and a block of bytes: three arrays without
// pointers. Clean ones go when room is needed, in the order of the clock: a hand that
// goes round the slots. Dirty ones are pinned. An entry of a running checkpoint's cut
// that changes again is frozen first: the checkpoint writes the copy as of the cut.
type cache struct {
	projects map[string]*project
	numbered []*project
	latest   *project // that was asked for

	slab                      slab
	index                     index
	slots                     []slot // the first is nobody's
	unused                    []entry
	nameBuf, keyBuf, valueBuf []byte

	hand  entry // the clock's
	bytes int64 // of all entries and frozen copies
	count int
	clean int

	epoch      uint64 // of the dirty collection, from 1
	dirty      []entry
	settled    []entry // the memory of the last collection, for the next
	dirtyBytes int64   // of entries not clean and of frozen copies

	// A read transaction is opened by the first miss and closed before Store.mu is given
	// up: no entry can become clean, and be forgotten, while an older view is looked at.
	reads          *bolt.Tx
	users, devices *bolt.Cursor

	ahead   [together]hashes // of lookAhead
	fetched uint64           // means nothing: what is read must go somewhere

	hits, misses, damaged uint64
}

func newCache() cache {
	return cache{projects: map[string]*project{}, index: newIndex(), slots: make([]slot, 1), epoch: 1}
}

func (s *Store) project(name string) *project {
	if s.latest != nil && s.latest.name == name {
		return s.latest
	}
	p := s.projects[name]
	if p == nil {
		p = &project{name: strings.Clone(name), number: uint32(len(s.numbered))}
		s.projects[p.name] = p
		s.numbered = append(s.numbered, p)
	}
	s.latest = p
	return p
}

// block is an entry's. It stays valid until the entry changes, or the next evict.
func (c *cache) block(e entry) block { return c.slab.at(c.slots[e].at) }

// dirtyMark is the mark of those that have changed since the last cut.
func (c *cache) dirtyMark() uint32 { return markDirty << (c.epoch & 1) }

// entry gives what is known of a user or device, from memory or users.db: an empty
// entry when nothing is. The caller holds s.mu.
func (s *Store) entry(p *project, k kind, id string) (entry, error) {
	return s.hashedEntry(p, k, id, s.hash(p, k, id))
}

// hash is what the index finds an entry by. It leaves the entry's name in nameBuf.
func (s *Store) hash(p *project, k kind, id string) uint32 {
	s.nameBuf = append(append(binary.LittleEndian.AppendUint32(s.nameBuf[:0], p.number), byte(k)), id...)
	return s.index.hash(s.nameBuf)
}

// hashedEntry is entry for who knows the hash.
func (s *Store) hashedEntry(p *project, k kind, id string, hash uint32) (entry, error) {
	s.nameBuf = append(append(binary.LittleEndian.AppendUint32(s.nameBuf[:0], p.number), byte(k)), id...)
	for at := s.index.start(hash); ; at = s.index.next(at) {
		v := s.index.table[at]
		if v == 0 {
			break
		}
		if uint32(v>>32) == hash && bytes.Equal(s.block(entry(v)).name(), s.nameBuf) {
			e := entry(v)
			s.hits++
			s.slots[e].marks |= markUsed
			return e, nil
		}
	}
	s.misses++
	st, marks, err := s.load(p, k, id)
	if err != nil {
		return nobody, err
	}
	e := s.newSlot()
	key, places := s.nameBuf[blockHead-blockProject:], ringPlaces(st.recent.n)
	at := s.slab.alloc(blockBytes(key, &st, places), e)
	s.slab.at(at).fill(p.number, key, &st, places)
	s.slots[e] = slot{at: at, marks: marks}
	s.index.insert(hash, e)
	s.count++
	s.clean++
	s.bytes += s.cost(e)
	return e, nil
}

// hashes are those of the device and the user that an event names; 0 where it names none.
type hashes struct{ device, user uint32 }

// together is how many events are looked ahead.
const together = 32

// lookAhead gives the hashes of the first events, together at most, and has the processor
// fetch what these will look at. A look at an entry goes through four places, each known
// from the one before only: with many users none of them is near, and one event after the
// other waits for each. Here the waits of all are one. What it meets may be somebody
// else's; it is a hint.
func (s *Store) lookAhead(p *project, events []mapping.Event) []hashes {
	events = events[:min(len(events), together)]
	ahead := s.ahead[:len(events)]
	var entries [2 * together]entry
	for i := range events {
		ahead[i] = hashes{}
		if id := events[i].DeviceID; id != "" {
			ahead[i].device = s.hash(p, device, id)
		}
		if id := events[i].UserID; id != "" {
			ahead[i].user = s.hash(p, user, id)
		}
	}
	for i, h := range ahead {
		entries[2*i] = entry(s.index.table[s.index.start(h.device)])
		entries[2*i+1] = entry(s.index.table[s.index.start(h.user)])
	}
	var refs [2 * together]ref
	for i, e := range entries[:2*len(ahead)] {
		refs[i] = s.slots[e].at
	}
	for _, at := range refs[:2*len(ahead)] {
		if at != 0 {
			s.fetched += uint64(s.slab.at(at).seen())
		}
	}
	for _, at := range refs[:2*len(ahead)] {
		if at != 0 {
			b := s.slab.at(at)
			s.fetched += uint64(b[b.ring()-1]) + uint64(b[b.afterRing()-1])
		}
	}
	return ahead
}

func (s *Store) newSlot() entry {
	if last := len(s.unused) - 1; last >= 0 {
		e := s.unused[last]
		s.unused = s.unused[:last]
		return e
	}
	s.slots = append(s.slots, slot{})
	return entry(len(s.slots) - 1)
}

// load reads an entry's state from users.db, into memory that is good until the next
// load. A value that is damaged counts as none.
func (s *Store) load(p *project, k kind, id string) (st state, marks uint32, err error) {
	if s.db == nil { // a rehearsal
		return state{}, 0, nil
	}
	err = queue.Guard(func() error {
		if err := s.openReads(); err != nil {
			return err
		}
		s.keyBuf = appendKey(s.keyBuf[:0], p.name, id)
		c := s.users
		if k == device {
			c = s.devices
		}
		key, value := c.Seek(s.keyBuf)
		if !bytes.Equal(key, s.keyBuf) {
			if s.strayed(c, k, key, value) {
				s.damaged++
			}
			return nil
		}
		marks = markStored
		s.valueBuf = append(s.valueBuf[:0], value...)
		return nil
	})
	if err == nil && marks != 0 {
		if st, err = readEntry(k, s.keyBuf, s.valueBuf); err != nil {
			s.damaged++
			st, err = state{}, nil
		}
	}
	return st, marks, err
}

// strayed says whether beside a key that was not found stands an entry that is not what
// was written, or not in order: it may be the one that was looked for, under another key,
// or stand on the way to it.
func (s *Store) strayed(c *bolt.Cursor, k kind, next, value []byte) bool {
	if next != nil && (bytes.Compare(next, s.keyBuf) < 0 || !wholeEntry(k, next, value)) {
		return true
	}
	before, value := c.Prev()
	if next == nil {
		before, value = c.Last()
	}
	return before != nil && (bytes.Compare(before, s.keyBuf) > 0 || !wholeEntry(k, before, value))
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
	s.users, s.devices = tx.Bucket(bucketUsers).Cursor(), tx.Bucket(bucketDevices).Cursor()
	return nil
}

// closeReads ends the read transaction: an open one keeps pages from being used again,
// and makes a growing file wait.
func (s *Store) closeReads() {
	if s.reads != nil {
		s.reads.Rollback() // of a read transaction: there is nothing that could fail
		s.reads, s.users, s.devices = nil, nil, nil
	}
}

func (s *Store) cost(e entry) int64 { return s.slab.sizeOf(s.slots[e].at) + entryBytes }

// touch is called before an entry changes.
func (s *Store) touch(e entry) {
	sl, now := &s.slots[e], s.dirtyMark()
	switch {
	case sl.marks&now != 0:
		return
	case sl.marks&anyDirty == 0:
		s.clean--
		s.dirtyBytes += s.cost(e)
	default: // in the running checkpoint's cut
		s.freeze(e)
	}
	sl.marks |= now
	s.dirty = append(s.dirty, e)
}

// freeze keeps an entry as it is, which is as it was at the cut: what changes is a copy.
func (s *Store) freeze(e entry) {
	sl := &s.slots[e]
	sl.frozen = sl.at
	b := s.slab.at(sl.frozen)
	sl.at = s.slab.alloc(b.afterBuiltins()+len(b.properties()), e)
	copy(s.slab.at(sl.at), b)
	size := s.slab.sizeOf(sl.at)
	s.bytes += size
	s.dirtyBytes += size
}

// resize gives a dirty entry another block, with st and a ring of so many places.
func (s *Store) resize(e entry, st *state, places int) {
	sl := &s.slots[e]
	old := s.slab.at(sl.at)
	before := s.slab.sizeOf(sl.at)
	at := s.slab.alloc(blockBytes(old.key(), st, places), e)
	s.slab.at(at).fill(old.project(), old.key(), st, places)
	s.slab.free(sl.at)
	sl.at = at
	more := s.slab.sizeOf(at) - before
	s.bytes += more
	s.dirtyBytes += more
}

// settle notes that users.db has the value, or none, that an entry had at the cut. An
// entry that has not changed since is clean.
func (s *Store) settle(e entry, cut uint32, stored bool) {
	sl := &s.slots[e]
	sl.marks &^= cut | markStored
	if stored {
		sl.marks |= markStored
	}
	if sl.frozen != 0 {
		size := s.slab.sizeOf(sl.frozen)
		s.bytes -= size
		s.dirtyBytes -= size
		s.slab.free(sl.frozen)
		sl.frozen = 0
	}
	if sl.marks&anyDirty == 0 {
		s.clean++
		s.dirtyBytes -= s.cost(e)
	}
}

// evictSteps bounds how many slots one evict looks at: nearly all may be pinned.
const evictSteps = 2048

// evict is called before each event. It forgets clean entries until the cache is within
// its bound: those that were not looked at since the clock's hand passed them last. And
// it moves blocks together when many are free between them.
func (s *Store) evict() {
	for steps := 0; s.bytes > s.o.CacheBytes && s.clean > 0 && steps < evictSteps; steps++ {
		if s.hand++; int(s.hand) >= len(s.slots) {
			s.hand = 1
		}
		sl := &s.slots[s.hand]
		switch {
		case sl.at == 0 || sl.marks&anyDirty != 0:
		case sl.marks&markUsed != 0:
			sl.marks &^= markUsed
		default:
			s.forget(s.hand)
		}
	}
	if s.slab.sparse != 0 {
		s.slab.vacate(s.moved)
	}
}

func (s *Store) forget(e entry) {
	sl := &s.slots[e]
	s.bytes -= s.cost(e)
	s.index.remove(s.index.hash(s.slab.at(sl.at).name()), e)
	s.slab.free(sl.at)
	*sl = slot{}
	s.unused = append(s.unused, e)
	s.count--
	s.clean--
}

// moved is told when a block stands elsewhere.
func (c *cache) moved(e entry, from, to ref) {
	if sl := &c.slots[e]; sl.frozen == from {
		sl.frozen = to
	} else {
		sl.at = to
	}
}
