package users

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	bolt "go.etcd.io/bbolt"

	"ampcio/mapping"
	"ampcio/queue"
)

// Forgetting a user has two parts. Forget changes what is in memory; the log's resolver
// calls it in the turn in which the tombstone becomes durable, so that every event is
// resolved either by all that was known or by nothing. Flush brings that to users.db. A
// crash between the two leaves entries in users.db that are as old as the tombstone, or
// older: Open finds the tombstone unfinished, and forgets them again. Entries that a later
// record has changed are somebody new's.

// LaneOfUser is the lane of a user's records.
func LaneOfUser(userID string) string { return string(rune(user)) + userID }

// LaneOfDevice is the lane of a device's records, as long as nobody has logged in on it.
func LaneOfDevice(deviceID string) string { return mapping.LaneOfDevice(deviceID) }

// OfLane says whose records a lane has: one of the two is empty, or both.
func OfLane(lane string) (userID, deviceID string) {
	if lane == "" {
		return "", ""
	}
	switch kind(lane[0]) {
	case user:
		return lane[1:], ""
	case device:
		return "", lane[1:]
	}
	return "", ""
}

// Forget forgets users and devices: properties, links, insert_ids. Devices that have come
// to one of these users since the caller looked are forgotten, too. Nothing is being
// resolved meanwhile: the log's resolver calls it, or the log does not run.
func (s *Store) Forget(projectName string, lanes []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	defer s.closeReads()
	known, number := map[string]bool{}, s.project(projectName).number
	for _, lane := range lanes {
		known[lane] = true
	}
	for e := 1; e < len(s.slots); e++ { // what is new is in memory
		if s.slots[e].at == 0 {
			continue
		}
		if b := s.block(entry(e)); b.kind() == device && b.project() == number && len(b.user()) > 0 && known[LaneOfUser(string(b.user()))] {
			if lane := string(b.key()); !known[lane] {
				known[lane] = true
				lanes = append(slices.Clip(lanes), lane)
			}
		}
	}
	for _, lane := range lanes {
		if err := s.forgetOne(projectName, lane, ^uint64(0)); err != nil {
			return s.broke(err)
		}
	}
	return nil
}

// forgetOne forgets whoever has a lane, unless a record behind upTo has changed them since.
func (s *Store) forgetOne(projectName, lane string, upTo uint64) error {
	userID, deviceID := OfLane(lane)
	k, id := user, userID
	if userID == "" {
		k, id = device, deviceID
	}
	if id == "" {
		return nil
	}
	s.evict()
	e, err := s.entry(s.project(projectName), k, id)
	if err != nil {
		return fmt.Errorf("look into %s: %w", s.o.Path, err)
	}
	if b := s.block(e); b.empty() && s.slots[e].marks&(markStored|anyDirty) == 0 || b.seq() > upTo {
		return nil
	}
	s.touch(e)
	s.resize(e, &state{}, 0)
	return nil
}

// forgetUnfinished does it for those whom a crash has kept from being forgotten.
func (s *Store) forgetUnfinished() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.closeReads()
	for _, t := range s.log.Unfinished() {
		for _, lane := range t.Unfinished.Lanes {
			if err := s.forgetOne(t.Project, lane, t.UpTo); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush makes durable what is known now. ctx bounds the wait.
func (s *Store) Flush(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.written.Broadcast()
	})
	defer unhook()
	did, err := s.writeAlone(func() error {
		err := s.finish()
		if queue.NoSpace(err) && s.log.GiveReserve() {
			err = s.finish()
		}
		return err
	})
	if did {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine *cut
	for {
		switch {
		case s.broken != nil:
			return s.broken
		case ctx.Err() != nil:
			return ctx.Err()
		case !s.running:
			return queue.ErrClosed
		case mine != nil && s.cutting != mine:
			return nil
		case s.waits != "":
			return fmt.Errorf("users.db is not written at the moment: %s", s.waits)
		case s.cutting == nil:
			s.takeCut()
			mine = s.cutting
		}
		s.wakeRun()
		s.written.Wait()
	}
}

// Devices are those that were last linked to a user. It walks over all devices, and lets
// the resolver in between.
func (s *Store) Devices(ctx context.Context, projectName, userID string) ([]string, error) {
	found := map[string]bool{}
	for from, more := []byte(nil), true; more; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := queue.Guard(func() error {
			s.rewriting.RLock()
			defer s.rewriting.RUnlock()
			return s.db.View(func(tx *bolt.Tx) error {
				c := tx.Bucket(bucketDevices).Cursor()
				key, value := c.Seek(from)
				for range 20 * writeEntries {
					if more = key != nil; !more {
						return nil
					}
					project, id, ok := splitKey(key)
					if st, err := readEntry(device, key, value); err == nil && ok && project == projectName && string(st.user) == userID {
						found[id] = true
					}
					key, value = c.Next()
				}
				if more = key != nil; more {
					from = append(from[:0], key...)
				}
				return nil
			})
		})
		if err != nil {
			return nil, fmt.Errorf("look into %s: %w", s.o.Path, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number := s.project(projectName).number
	for e := 1; e < len(s.slots); e++ { // what has changed since it was written, or never was
		if s.slots[e].at == 0 {
			continue
		}
		if b := s.block(entry(e)); b.kind() == device && b.project() == number {
			if id := string(b.id()); string(b.user()) == userID {
				found[id] = true
			} else {
				delete(found, id)
			}
		}
	}
	devices := make([]string, 0, len(found))
	for id := range found {
		devices = append(devices, id)
	}
	slices.Sort(devices)
	return devices, nil
}

// rewriteMost is how large a users.db may be to be written anew: all that is written to
// it waits meanwhile.
const rewriteMost = 512 << 20

// rewrittenSuffix is behind the name of users.db while it is being written anew.
const rewrittenSuffix = ".rewritten"

// rewriting is a wish that users.db be written anew.
type rewriting struct {
	answer chan error
	done   bool
}

// Rewrite writes users.db anew, so that nothing of who was forgotten stands in pages that
// are free, and says whether it did: a very large one it leaves as it is. Events are taken
// meanwhile. A crash leaves the old one or the new one.
func (s *Store) Rewrite(ctx context.Context) (done bool, err error) {
	s.mu.Lock()
	err = s.broken
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	r := &rewriting{answer: make(chan error, 1)}
	if did, err := s.writeAlone(func() error { return s.rewrite(r) }); did {
		return r.done, err
	}
	select {
	case s.rewrites <- r:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	err = <-r.answer
	return r.done, err
}

// rewrite is Run's, who alone writes.
func (s *Store) rewrite(r *rewriting) error {
	live := s.db.Stats().FreePageN
	if size := fileBytes(s.o.Path) - int64(live)*int64(s.db.Info().PageSize); size > rewriteMost {
		return nil
	}
	fresh := s.o.Path + rewrittenSuffix
	err := os.Remove(fresh)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	var to *bolt.DB
	if err == nil {
		to, err = bolt.Open(fresh, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true})
	}
	if err == nil {
		err = queue.Guard(func() error { return bolt.Compact(to, s.db, 1<<20) })
		if synced := to.Sync(); synced != nil {
			err = errors.Join(err, &os.PathError{Op: "fsync", Path: fresh, Err: synced}) // of a file that nobody needs yet: NoSpace is that
		}
		err = errors.Join(err, to.Close())
	}
	if err == nil {
		err = s.step("rewrite")
	}
	if err != nil {
		os.Remove(fresh)
		if queue.NoSpace(err) || errors.Is(err, queue.ErrDamaged) {
			return nil // who reads there next meets it
		}
		return fmt.Errorf("write %s anew: %w", s.o.Path, err)
	}
	s.rewriting.Lock()
	defer s.rewriting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeReads()
	if err := s.db.Close(); err != nil {
		return s.broke(fmt.Errorf("close %s: %w", s.o.Path, err))
	}
	err = rename(fresh, s.o.Path)
	if err == nil {
		s.db, err = queue.OpenDB(s.o.Path, fileOptions())
	}
	if err != nil {
		s.torn = true // it is closed already
		return s.broke(fmt.Errorf("write %s anew: %w", s.o.Path, err))
	}
	r.done, s.unknown = true, nil
	return nil
}
