package users

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// A checkpoint brings users.db from the sequence it is good for to a later one, the
// cut. It writes every entry that has changed up to the cut, with the value it had at
// the cut, in small transactions:
//
//	users, then devices, sorted by key; with the first of them, "reach" := the cut
//	last: what is no longer kept is deleted, and "good" := the cut
//
// and only then lets the log have its files. It begins when the log has committed
// the cut: what is in users.db is in the log.
//
// A crash in between leaves some entries as of the cut and others as of the last
// checkpoint, and a replay from there makes all of them whole: each entry carries the
// sequence of the record that changed it last, so a record is passed over for the
// entries that have it already. Two records depend on more than one entry or on an
// older state: the one that takes a device's anonymous properties over (hence users
// before devices: the device still has them while the user does not), and one that
// carries only part of its properties (hence the deletions last: the state that its
// operations start from is there as long as they are to be applied).
type cut struct {
	seq   uint64
	mark  uint32  // of its entries
	dirty []entry // all of them
	// Of imports; written with "good", so that none is ahead of what it stands for.
	places map[archivePart]uint64
	// Kept from one try to the next, when the disk is full.
	ordered bool
	rest    []place // not yet written
	gone    []pair  // to be deleted
}

const (
	// Bounds of one transaction of a checkpoint: the log's own commits share the disk.
	writeBytes   = 1 << 20
	writeEntries = 2048 // Store.perWrite, but in tests
	// freezeEntries is how many entries are encoded before the resolver gets its turn,
	// and orderEntries how many are looked at to be sorted.
	freezeEntries = 64
	orderEntries  = 512
	// A checkpoint is worth its writes when the log has taken this many times as much.
	worth = 16
	// patience, in CheckpointEvery, is how long it waits for that, and replayRecords how
	// many records (Store.mostReplay, but in tests): a start replays no more than these and what came while they were
	// written, at some 2 µs each.
	patience      = 30
	replayRecords = 150_000
	// sweepEntries is how many entries a checkpoint looks at for what has expired: a
	// bound, so that a large users.db is passed through over many checkpoints.
	sweepEntries = 512
	// lastWait bounds the wait for the log's commit when Run is to end.
	lastWait = 2 * time.Second
)

// Run writes checkpoints until ctx ends; it then writes a last one, and nil means
// that it is durable, so that the next start replays nothing. The log's Run should
// have returned when ctx ends: what it commits later is replayed.
//
// After an error the outcome of a write is unknown: nothing is resolved any more, and
// the process has to end. The next start repairs users.db from the log. A full disk is
// no such error: what could not be written is tried again, and until then the log keeps
// its files (Stats.Waits says so).
func (s *Store) Run(ctx context.Context) error {
	s.mu.Lock()
	for s.alone {
		s.written.Wait()
	}
	s.running = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running, s.over = false, true
		s.written.Broadcast()
		s.mu.Unlock()
	}()
	tick := time.NewTicker(s.o.CheckpointEvery)
	defer tick.Stop()
	for {
		ticked := false
		select {
		case <-ctx.Done():
			if err := s.finish(); !queue.NoSpace(err) {
				return err
			}
			return nil // the next start takes it from the log
		case r := <-s.rewrites:
			err := s.rewrite(r)
			r.answer <- err
			if err != nil {
				return err
			}
		case <-s.wake:
		case <-tick.C:
			ticked = true
		}
		if err := s.maybeWrite(ticked); err != nil {
			return err
		}
	}
}

// writeAlone does what writes users.db while Run does not run, one after the other: what one has written another would
// take back. Run begins behind it. False = Run runs, and nobody else may write.
func (s *Store) writeAlone(f func() error) (did bool, err error) {
	s.mu.Lock()
	for s.alone {
		s.written.Wait()
	}
	if s.running {
		s.mu.Unlock()
		return false, nil
	}
	s.alone = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.alone = false
		s.written.Broadcast()
	}()
	return true, f()
}

func (s *Store) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// maybeWrite cuts when a checkpoint is due, and writes it when the log has committed it.
func (s *Store) maybeWrite(ticked bool) error {
	s.mu.Lock()
	if ticked {
		s.ticks++
	}
	if s.cutting == nil && s.due() {
		s.takeCut()
	}
	c, err := s.cutting, s.broken
	s.mu.Unlock()
	if c == nil || err != nil {
		return err
	}
	if !s.committed(c) || s.waits != "" && !ticked {
		return nil // Append wakes us, or the ticker
	}
	if err := s.write(c); err != nil {
		return s.noRoom(err)
	}
	return s.sweep()
}

// noRoom lets a checkpoint that found the disk full wait for the next tick. That is
// safe even where nobody knows what was written (then users.db is opened anew first): the same
// values go to the same keys again. Other errors are given back.
func (s *Store) noRoom(err error) error {
	if !queue.NoSpace(err) {
		return err
	}
	if !errors.Is(err, errLookedAt) {
		s.log.GiveReserve()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = err.Error()
	s.written.Broadcast()
	return nil
}

// committed says whether the log has committed a cut; if not, Append will wake Run.
func (s *Store) committed(c *cut) bool {
	s.awaited.Store(true)
	if s.log.Tail() < c.seq {
		return false
	}
	s.awaited.Store(false)
	return true
}

// finish writes what there is, once the log has committed it: a checkpoint that was
// under way, and one more.
func (s *Store) finish() error {
	patience := time.NewTimer(lastWait)
	defer patience.Stop()
	for left := 2; left > 0; {
		s.mu.Lock()
		if s.cutting == nil && s.changed() {
			s.takeCut()
		}
		c, err := s.cutting, s.broken
		s.mu.Unlock()
		if c == nil || err != nil {
			return err
		}
		if s.committed(c) {
			if err := s.write(c); err != nil {
				return err
			}
			left--
			continue
		}
		select {
		case <-s.wake:
			continue
		case <-s.log.Gone(): // it may have committed this last
			if s.log.Tail() >= c.seq {
				continue
			}
		case <-patience.C:
		}
		return fmt.Errorf("last checkpoint of %s: the log has not committed record %d", s.o.Path, c.seq)
	}
	return nil
}

func (s *Store) changed() bool {
	return len(s.dirty) > 0 || s.resolved > s.good || len(s.movedPlaces) > 0
}

// due says whether a checkpoint should begin. A write of users.db costs whole pages
// for each entry, so it is put off while the log has taken little for what would be
// written; not for long, since a replay takes time too. The caller holds s.mu.
func (s *Store) due() bool {
	switch {
	case !s.changed():
		return false
	case s.asked, s.dirtyBytes >= s.o.CheckpointBytes, s.resolved-s.lastCut >= s.mostReplay:
		return true
	case s.ticks < 1:
		return false
	case s.log.Refusing(): // the log's files are wanted back
		return true
	}
	return s.ticks >= patience || s.sinceCut >= worth*s.dirtyBytes
}

// takeCut closes the collection of what has changed. The caller holds s.mu, and no
// batch is half resolved.
func (s *Store) takeCut() {
	s.cutting = &cut{seq: s.resolved, mark: s.dirtyMark(), dirty: s.dirty, places: s.movedPlaces}
	s.epoch++
	s.movedPlaces, s.asked = nil, false
	s.dirty, s.settled = s.settled[:0], nil
	s.lastCut, s.sinceCut, s.ticks = s.resolved, 0, 0
}

// makeRoom is called before a batch is resolved. When changes hold much memory it
// sees to it that a checkpoint begins, and when they hold all of it, it waits for the
// one that runs; but never for the log to commit, which the caller may have to hand over first, nor for a
// full disk, which the log sees to. The caller holds s.mu.
func (s *Store) makeRoom() error {
	if s.running && s.cutting == nil && s.resolved-s.lastCut >= s.mostReplay {
		s.takeCut()
		s.wakeRun()
	}
	for s.broken == nil && s.running && s.dirtyBytes >= s.o.CheckpointBytes {
		if s.cutting == nil {
			s.takeCut()
		}
		s.wakeRun()
		if s.dirtyBytes < s.o.CacheBytes || s.log.Tail() < s.cutting.seq || s.waits != "" {
			break
		}
		s.written.Wait()
	}
	return s.broken
}

// place is where an entry of a cut stands in the order in which it is written: users
// before devices, and then near to their neighbours in users.db, so that each page is
// written once. For that the first bytes of the ids are enough, so that no id is
// looked at in the sort: keys that begin alike stand in any order.
type place struct {
	group  uint32 // the project's number; of devices, the top bit too
	e      entry
	prefix [2]uint64
}

const devicesLast = 1 << 31

func inOrder(a, b place) int {
	switch {
	case a.group != b.group:
		return cmp.Compare(a.group, b.group)
	case a.prefix[0] != b.prefix[0]:
		return cmp.Compare(a.prefix[0], b.prefix[0])
	}
	return cmp.Compare(a.prefix[1], b.prefix[1])
}

// order sorts the entries of a cut. The resolver is let in between some entries.
func (s *Store) order(entries []entry) []place {
	places := make([]place, 0, len(entries))
	for rest := entries; len(rest) > 0; {
		some := rest[:min(len(rest), orderEntries)]
		rest = rest[len(some):]
		s.mu.Lock()
		for _, e := range some {
			b := s.block(e)
			p := place{group: b.project(), e: e}
			if b.kind() == device {
				p.group |= devicesLast
			}
			id := b.id()
			p.prefix[0] = prefix(id)
			p.prefix[1] = prefix(id[min(8, len(id)):])
			places = append(places, p)
		}
		s.mu.Unlock()
	}
	slices.SortFunc(places, inOrder)
	return places
}

// prefix makes of the first eight bytes a number that compares as they do.
func prefix(id []byte) uint64 {
	if len(id) >= 8 {
		return binary.BigEndian.Uint64(id)
	}
	var b [8]byte
	copy(b[:], id)
	return binary.BigEndian.Uint64(b[:])
}

// pair is what one entry becomes in users.db.
type pair struct {
	e          entry
	kind       kind
	stored     bool // users.db has a value for it; only the checkpoint changes this
	key, value []byte
}

// write writes a cut that the log has committed.
func (s *Store) write(c *cut) error {
	if !c.ordered {
		c.rest, c.ordered = s.order(c.dirty), true
	}
	var arena []byte
	reach := binary.BigEndian.AppendUint64(nil, c.seq)
	for len(c.rest) > 0 {
		some, pairs, gone := s.freezeSome(c.rest, &arena)
		if len(pairs) > 0 {
			wrote := uint64(0)
			err := s.update(func(tx *bolt.Tx) error {
				users, devices := tx.Bucket(bucketUsers), tx.Bucket(bucketDevices)
				for _, p := range pairs {
					b := users
					if p.kind == device {
						b = devices
					}
					if err := b.Put(p.key, p.value); err != nil {
						return err
					}
					wrote += uint64(len(p.key) + len(p.value))
				}
				meta := tx.Bucket(bucketMeta)
				return errors.Join(meta.Put(keyReach, reach), meta.Put(keyEnd, s.log.End()))
			})
			if err != nil {
				return err
			}
			s.mu.Lock()
			for _, p := range pairs {
				s.settle(p.e, c.mark, true)
			}
			s.checkpointBytes += wrote
			s.mu.Unlock()
		}
		c.rest, c.gone = c.rest[some:], append(c.gone, gone...)
	}
	err := s.update(func(tx *bolt.Tx) error {
		for _, p := range c.gone {
			if !p.stored {
				continue
			}
			if err := tx.Bucket(bucketOf(p.kind)).Delete(p.key); err != nil {
				return err
			}
		}
		if err := writePlaces(tx, c.places); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyReach, reach), meta.Put(keyGood, reach), meta.Put(keySweep, s.sweepAt), meta.Put(keyEnd, s.log.End()))
	})
	if err != nil {
		return err
	}
	if err := s.step("good"); err != nil {
		return err
	}
	s.mu.Lock()
	for _, p := range c.gone {
		s.settle(p.e, c.mark, false)
	}
	s.good, s.cutting, s.settled, s.waits = c.seq, nil, c.dirty, ""
	s.checkpoints++
	s.written.Broadcast()
	s.mu.Unlock()
	s.log.Release(holder, c.seq)
	return nil
}

// freezeSome encodes entries, as of the cut, for one transaction: of the next some of
// the rest, those to be stored and those to be deleted. The resolver is let in
// between a few. Nothing is settled yet: the transaction may have to be tried again.
func (s *Store) freezeSome(rest []place, arena *[]byte) (some int, pairs, gone []pair) {
	*arena = (*arena)[:0]
	most := min(len(rest), s.perWrite)
	pairs = make([]pair, 0, most)
	at := make([]int, 1, 2*most+1) // where keys and values end in the arena
	for some < most && len(*arena) < writeBytes {
		s.mu.Lock()
		for _, p := range rest[some:min(some+freezeEntries, most)] {
			some++
			sl := &s.slots[p.e]
			b := s.slab.at(sl.at)
			if sl.frozen != 0 {
				b = s.slab.at(sl.frozen)
			}
			became := pair{e: p.e, kind: b.kind(), stored: sl.marks&markStored != 0}
			name := s.numbered[b.project()].name
			if b.empty() {
				if became.stored {
					became.key = appendKey(nil, name, b.id())
				}
				gone = append(gone, became)
				continue
			}
			pairs = append(pairs, became)
			*arena = appendKey(*arena, name, b.id())
			at = append(at, len(*arena))
			st := b.state()
			*arena = appendEntry(*arena, &st)
			if at = append(at, len(*arena)); len(*arena) >= writeBytes {
				break
			}
		}
		s.mu.Unlock()
	}
	for i := range pairs {
		p := &pairs[i]
		p.key = (*arena)[at[2*i]:at[2*i+1]]
		p.value = (*arena)[at[2*i+1]:at[2*i+2]]
		seal(p.kind, p.key, p.value)
	}
	return some, pairs, gone
}

// update is one transaction on users.db, durable when it returns nil. After an error
// its outcome is unknown, and the store is broken, unless the disk is full.
func (s *Store) update(f func(*bolt.Tx) error) error {
	if err := s.step("update"); err != nil {
		return err
	}
	if s.unknown != nil {
		if err := s.openAnew(); err != nil {
			return err
		}
	}
	err := queue.Update(s.db, f)
	if err == nil {
		return nil
	}
	if queue.Unknown(err) {
		s.unknown = err
	}
	if err = fmt.Errorf("checkpoint of %s: %w", s.o.Path, err); queue.NoSpace(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.torn = s.torn || queue.Stuck(err)
	return s.broke(err)
}

// errLookedAt says that users.db has to be opened anew, and that a backup or a look is reading it.
var errLookedAt = errors.New("somebody reads it, and it has to be opened anew")

// openAnew opens users.db again, behind a write of its meta page that found no space. While somebody reads it, for as long
// as that takes, it is as if the disk were still full.
func (s *Store) openAnew() error {
	if !s.rewriting.TryLock() {
		return fmt.Errorf("checkpoint of %s: %w: %w", s.o.Path, errLookedAt, s.unknown)
	}
	defer s.rewriting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeReads()
	db, err := queue.OpenAnew(s.db, s.o.Path, fileOptions())
	if err == nil {
		s.db, s.unknown = db, nil
		return nil
	}
	if err = fmt.Errorf("checkpoint of %s: %w", s.o.Path, err); queue.NoSpace(err) {
		return err
	}
	s.torn = true // it may be closed already
	return s.broke(err)
}

// broke ends the work of the store: nothing is resolved or written from here on. A
// users.db that is damaged is put where the next start looks for what can be saved.
// The caller holds s.mu.
func (s *Store) broke(err error) error {
	if s.broken == nil {
		s.broken = err
		if errors.Is(err, queue.ErrDamaged) && s.o.Path != "" {
			if aside := setAside(s.o.Path); aside != nil {
				s.broken = errors.Join(err, aside)
			}
		}
		s.written.Broadcast()
		s.wakeRun()
	}
	return s.broken
}

func (s *Store) step(name string) error {
	if s.interrupt == nil {
		return nil
	}
	if err := s.interrupt(name); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.broke(err)
	}
	return nil
}
