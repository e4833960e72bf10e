package users

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

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
	epoch uint64
	dirty []*entry // not yet written
	gone  []pair   // to be deleted
}

const (
	// Bounds of one transaction of a checkpoint: the log's own commits share the disk.
	writeBytes   = 1 << 20
	writeEntries = 1024 // Store.perWrite, but in tests
	// freezeEntries is how many entries are encoded before the committer gets its turn.
	freezeEntries = 64
	// A checkpoint is worth its writes when the log has taken this many times as much.
	worth = 8
	// patience, in CheckpointEvery, is how long it waits for that.
	patience = 8
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
	s.running = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running = false
		s.written.Broadcast()
		s.mu.Unlock()
	}()
	tick := time.NewTicker(s.o.CheckpointEvery)
	defer tick.Stop()
	for {
		ticked := false
		select {
		case <-ctx.Done():
			return s.finish()
		case <-s.wake:
		case <-tick.C:
			ticked = true
		}
		if err := s.maybeWrite(ticked); err != nil {
			return err
		}
	}
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
// safe even where bbolt cannot tell what it has written: the same values go to the
// same keys again. Other errors are given back.
func (s *Store) noRoom(err error) error {
	if !diskFull(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = err.Error()
	s.written.Broadcast()
	return nil
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, bolterrors.ErrMaxSizeReached)
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
		case <-patience.C:
			return fmt.Errorf("last checkpoint of %s: the log has not committed record %d", s.o.Path, c.seq)
		}
	}
	return nil
}

func (s *Store) changed() bool { return len(s.dirty) > 0 || s.resolved > s.good }

// due says whether a checkpoint should begin. A write of users.db costs whole pages
// for each entry, so it is put off while the log has taken little for what would be
// written; not for long, since a replay takes time too. The caller holds s.mu.
func (s *Store) due() bool {
	switch {
	case !s.changed():
		return false
	case s.dirtyBytes >= s.o.CheckpointBytes:
		return true
	case s.ticks < 1:
		return false
	}
	return s.ticks >= patience || s.sinceCut >= worth*s.dirtyBytes
}

// takeCut closes the collection of what has changed. The caller holds s.mu, and no
// batch is half resolved.
func (s *Store) takeCut() {
	s.cutting = &cut{seq: s.resolved, epoch: s.epoch, dirty: s.dirty}
	s.epoch++
	s.dirty = nil
	s.sinceCut, s.ticks = 0, 0
}

// makeRoom is called before a batch is resolved. When changes hold much memory it
// sees to it that a checkpoint begins, and when they hold all of it, it waits for the
// one that runs; but never for the log to commit, since that is who calls, nor for a
// full disk, which the log sees to. The caller holds s.mu.
func (s *Store) makeRoom() error {
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

func usersFirst(a, b *entry) int {
	return cmp.Or(
		-cmp.Compare(a.kind(), b.kind()),
		cmp.Compare(a.project.name, b.project.name),
		cmp.Compare(a.key, b.key))
}

// pair is what one entry becomes in users.db; a nil value means: none.
type pair struct {
	e          *entry
	key, value []byte
}

// write writes a cut that the log has committed.
func (s *Store) write(c *cut) error {
	slices.SortFunc(c.dirty, usersFirst)
	var arena []byte
	reach := binary.BigEndian.AppendUint64(nil, c.seq)
	for len(c.dirty) > 0 {
		some, pairs, gone := s.freezeSome(c, &arena)
		if len(pairs) > 0 {
			wrote := uint64(0)
			err := s.update(func(tx *bolt.Tx) error {
				for _, p := range pairs {
					if err := tx.Bucket(bucketOf(p.e.kind())).Put(p.key, p.value); err != nil {
						return err
					}
					wrote += uint64(len(p.key) + len(p.value))
				}
				return tx.Bucket(bucketMeta).Put(keyReach, reach)
			})
			if err != nil {
				return err
			}
			s.mu.Lock()
			for _, p := range pairs {
				s.settle(p.e, c.epoch, true)
			}
			s.checkpointBytes += wrote
			s.mu.Unlock()
		}
		c.dirty, c.gone = c.dirty[some:], append(c.gone, gone...)
	}
	err := s.update(func(tx *bolt.Tx) error {
		for _, p := range c.gone {
			if !p.e.stored { // only the checkpoint changes this
				continue
			}
			if err := tx.Bucket(bucketOf(p.e.kind())).Delete(p.key); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyReach, reach), meta.Put(keyGood, reach), meta.Put(keySweep, s.sweepAt))
	})
	if err != nil {
		return err
	}
	if err := s.step("good"); err != nil {
		return err
	}
	s.mu.Lock()
	for _, p := range c.gone {
		s.settle(p.e, c.epoch, false)
	}
	s.good, s.cutting, s.waits = c.seq, nil, ""
	s.checkpoints++
	s.written.Broadcast()
	s.mu.Unlock()
	s.log.Release(holder, c.seq)
	return nil
}

// freezeSome encodes entries, as of the cut, for one transaction: of the next some of
// the cut's, those to be stored and those to be deleted. The committer is let in
// between a few. Nothing is settled yet: the transaction may have to be tried again.
func (s *Store) freezeSome(c *cut, arena *[]byte) (some int, pairs, gone []pair) {
	*arena = (*arena)[:0]
	most := min(len(c.dirty), s.perWrite)
	at := make([]int, 1, 2*most+1) // where keys and values end in the arena
	for some < most && len(*arena) < writeBytes {
		s.mu.Lock()
		for _, e := range c.dirty[some:min(some+freezeEntries, most)] {
			some++
			key := appendKey(*arena, e.project.name, e.id())
			k := key[len(*arena):]
			if e.frozen != nil && len(e.frozen) == 0 || e.frozen == nil && e.empty() {
				gone = append(gone, pair{e: e, key: bytes.Clone(k)})
				continue
			}
			at = append(at, len(key))
			if e.frozen != nil {
				*arena = append(key, e.frozen...)
			} else {
				*arena = appendEntry(key, e.kind(), k, &e.state)
			}
			at = append(at, len(*arena))
			pairs = append(pairs, pair{e: e})
			if len(*arena) >= writeBytes {
				break
			}
		}
		s.mu.Unlock()
	}
	for i := range pairs {
		pairs[i].key = (*arena)[at[2*i]:at[2*i+1]]
		pairs[i].value = (*arena)[at[2*i+1]:at[2*i+2]]
	}
	return some, pairs, gone
}

// update is one transaction on users.db, durable when it returns nil. After an error
// its outcome is unknown, and the store is broken, unless the disk is full.
func (s *Store) update(f func(*bolt.Tx) error) error {
	if err := s.step("update"); err != nil {
		return err
	}
	err := queue.Guard(func() error { return s.db.Update(f) })
	if err == nil {
		return nil
	}
	if err = fmt.Errorf("checkpoint of %s: %w", s.o.Path, err); diskFull(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.torn = s.torn || errors.Is(err, queue.ErrDamaged)
	return s.broke(err)
}

// broke ends the work of the store: nothing is resolved or written from here on. A
// users.db that is damaged is put where the next start looks for what can be saved.
// The caller holds s.mu.
func (s *Store) broke(err error) error {
	if s.broken == nil {
		s.broken = err
		if errors.Is(err, queue.ErrDamaged) {
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

// sweep looks at some entries of users.db, further on each time, and drops of them
// what has expired. It does so as an event would, by changing the entry in memory: the
// next checkpoint writes it.
func (s *Store) sweep() error {
	hour := hourOf(s.o.Now().UnixMilli())
	var stale []pair
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
	for _, p := range stale {
		s.evict()
		e, err := s.entry(s.project(p.e.project.name), p.e.kind(), p.e.id())
		if err != nil {
			return s.broke(fmt.Errorf("sweep %s: %w", s.o.Path, err))
		}
		if e.epoch == 0 {
			e.expire(hour, s.unlinkedHours)
			s.touch(e)
			s.account(e)
			s.expired++
		}
	}
	return nil
}

// findExpired goes through the next sweepEntries keys, users and then devices, and
// notes where to go on. An entry whose id is not in its key expires when it is looked at.
func (s *Store) findExpired(tx *bolt.Tx, hour uint32) (stale []pair) {
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
			name, id, ok := splitKey(key)
			e := &entry{project: &project{name: name}, key: string([]byte{byte(k)}) + id, state: st}
			if ok && e.expire(hour, s.unlinkedHours) {
				stale = append(stale, pair{e: e})
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
