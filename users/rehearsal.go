package users

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// A Rehearsal resolves arrivals as a Store does, by the same code, in memory alone. What
// is known at its beginning is what it was told.
type Rehearsal struct {
	s     *Store
	queue queue.Rehearsal
}

// NewRehearsal begins one; of the options Carry, CarryBytes and UnlinkedExpiry count.
// Close gives its memory back.
func NewRehearsal(o Options) *Rehearsal {
	return &Rehearsal{s: inMemory(o)}
}

// inMemory is a Store without a file, and without a log.
func inMemory(o Options) *Store {
	o.setDefaults()
	o.Path, o.CacheBytes = "", 1<<50 // nothing can be forgotten that no file has
	s := &Store{o: o, unlinkedHours: uint32(o.UnlinkedExpiry / time.Hour)}
	s.written = sync.NewCond(&s.mu)
	s.cache = newCache()
	return s
}

// Close ends the rehearsal.
func (r *Rehearsal) Close() { r.s.slab.close() }

// KnowUser lets a user have these properties, a JSON object, and built-in properties, packed, at a time (ms since 1970 UTC).
func (r *Rehearsal) KnowUser(project, userID string, properties, builtins []byte, at int64) error {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.entry(s.project(project), user, userID)
	if err == nil {
		t := step{user: e, hour: hourOf(at), seq: 1}
		s.setProperties(e, &t, properties)
		s.setBuiltins(e, &t, builtins)
	}
	return err
}

// KnowDevice lets a device be linked to a user, the first and only one or not, or, without one, have these properties.
func (r *Rehearsal) KnowDevice(project, deviceID, userID string, sole bool, properties, builtins []byte, at int64) error {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.entry(s.project(project), device, deviceID)
	if err != nil {
		return err
	}
	t := step{device: e, hour: hourOf(at), seq: 1, login: userID}
	if s.link(&t); userID == "" {
		s.setProperties(e, &t, properties)
		s.setBuiltins(e, &t, builtins)
	} else if !sole {
		s.block(e).setNotSole()
	}
	return nil
}

// User tells what is known of a user by now, Device of a device.
func (r *Rehearsal) User(project, userID string) (Known, error) { return r.s.User(project, userID) }

func (r *Rehearsal) Device(project, deviceID string) (Known, error) {
	return r.s.Device(project, deviceID)
}

// Take gives the records that an arrival would be stored as, in order; none for an event
// whose insert_id has come before.
func (r *Rehearsal) Take(a mapping.Arrival) ([]queue.Record, error) {
	return r.queue.Take(newBatch(r.s, a))
}

// A Reading looks into the users.db of an ampcio that is stopped, and changes nothing.
type Reading struct {
	s *Store
	// Good is the sequence of the last record that the file has taken in: what came after
	// it a start takes from the log.
	Good uint64
}

// ReadFile opens a users.db to be read.
func ReadFile(path string) (*Reading, error) {
	o := fileOptions()
	o.ReadOnly, o.MmapBytes = true, 0
	db, err := queue.OpenDB(path, o)
	if err != nil {
		return nil, err
	}
	s := inMemory(Options{})
	s.db = db
	r := &Reading{s: s}
	err = queue.Guard(func() error {
		tx, err := db.Begin(false)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		r.Good, _, _, err = readMeta(tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, errors.Join(err, r.Close()))
	}
	return r, nil
}

// Close closes the file.
func (r *Reading) Close() error {
	r.s.slab.close()
	return r.s.db.Close()
}

// User and Device are as those of a Store.
func (r *Reading) User(project, userID string) (Known, error) { return r.s.User(project, userID) }

func (r *Reading) Device(project, deviceID string) (Known, error) {
	return r.s.Device(project, deviceID)
}
