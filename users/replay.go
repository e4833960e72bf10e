package users

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"ampcio/mapping"
	"ampcio/queue"
)

// replay takes up what the log holds behind the sequence that users.db is good for.
// It writes checkpoints on the way when the changes get large, so a crash in a long
// one does not start it over.
func (s *Store) replay(ctx context.Context) error {
	tail := s.log.Tail()
	if s.reach > tail {
		if err := s.rewind(tail); err != nil {
			return fmt.Errorf("%s is ahead of the log: %w", s.o.Path, err)
		}
	}
	s.resolved, s.lastCut = s.good, s.good
	reader := s.log.OpenReader(s.good)
	defer reader.Close()
	for s.resolved < tail {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk, err := reader.Try()
		if err != nil {
			return fmt.Errorf("replay the log: %w", err)
		}
		if chunk == nil {
			s.lost += tail - s.resolved
			break
		}
		if chunk.First > s.resolved+1 {
			s.lost += chunk.First - s.resolved - 1
		}
		if err := s.replayChunk(chunk); err != nil {
			return err
		}
	}
	s.resolved = max(s.resolved, tail)
	if s.repair != nil {
		s.repair.Replayed, s.repair.Lost = s.replayed, s.lost
	}
	if s.dirtyBytes >= s.o.CheckpointBytes {
		return s.writeNow()
	}
	return nil
}

// writeNow writes a checkpoint in the middle of a replay, or at its end.
func (s *Store) writeNow() error {
	s.mu.Lock()
	if s.cutting == nil {
		s.takeCut()
	}
	c := s.cutting
	s.mu.Unlock()
	if err := s.write(c); err != nil {
		return s.noRoom(err)
	}
	return nil
}

func (s *Store) replayChunk(chunk *queue.Chunk) error {
	s.mu.Lock()
	err := chunk.AllRecords(func(r queue.Record) error {
		if r.Seq <= s.resolved {
			return nil
		}
		s.evict()
		if err := s.replayRecord(&r); err != nil {
			return fmt.Errorf("replay record %d: %w", r.Seq, err)
		}
		s.resolved = r.Seq
		s.replayed++
		return nil
	})
	s.closeReads()
	full := s.dirtyBytes >= s.o.CheckpointBytes
	s.mu.Unlock()
	if err == nil && full {
		err = s.writeNow()
	}
	return err
}

// replayRecord does to the state what resolving the record's event did. It takes the
// properties that the record says resulted; only for a record that does not carry
// them all are the event's operations applied again.
func (s *Store) replayRecord(q *queue.Record) error {
	var r mapping.Record
	if err := r.DecodeBody(q.Body); err != nil {
		return err
	}
	p := s.project(q.Project)
	if r.Source == mapping.SourceImport {
		s.reached(archivePart{project: p.name, part: r.Part}, r.Place)
		return nil
	}
	if r.DeviceID == "" && r.UserID == "" {
		return nil
	}
	t := step{seq: q.Seq, hour: hourOf(q.Received), login: r.UserID, snapshot: r.Snapshot && !r.Past}
	if t.at, t.dated = stepTime(r.Source, r.Time, q.Received); t.dated && !r.Login {
		t.login = "" // else it is whom the device was linked to already, which changes nothing
	}
	var err error
	if r.DeviceID != "" {
		if t.device, err = s.entry(p, device, r.DeviceID); err != nil {
			return err
		}
		b := s.block(t.device)
		b.expire(t.hour, s.unlinkedHours)
		if b.seq() >= q.Seq || s.log.Forgotten(q.Project, LaneOfDevice(r.DeviceID), q.Seq) {
			t.device = nobody
		}
	}
	if r.UserID != "" {
		if t.user, err = s.entry(p, user, r.UserID); err != nil {
			return err
		}
		b := s.block(t.user)
		b.expire(t.hour, s.unlinkedHours)
		if b.seq() >= q.Seq || s.log.Forgotten(q.Project, LaneOfUser(r.UserID), q.Seq) {
			t.user = nobody
		}
	}
	if t.device == nobody && t.user == nobody {
		return nil
	}
	ev, err := originalOf(&r, q)
	if err != nil {
		return err
	}
	s.takeOver(&t)
	s.link(&t)
	owner, known := t.user, t.device
	if r.UserID == "" {
		owner = t.device
	}
	if r.DeviceID == "" {
		known = t.user
	}
	if owner != nobody && !r.Past && len(r.Builtins) > 0 {
		s.setBuiltins(owner, &t, r.Builtins)
	}
	switch {
	case owner == nobody || r.Past:
	case r.Snapshot:
		s.become(owner, &t, r.Properties)
	case ev.skip:
	case r.Partial:
		s.apply(owner, &t, ev.operations)
	default:
		s.setProperties(owner, &t, r.Properties)
	}
	s.seen(&t)
	if known != nobody && ev.named {
		s.remember(known, &t, q.ID)
	}
	return nil
}

// original is what a replay needs of an event besides its record.
type original struct {
	named      bool // it had an insert_id
	skip       bool // SkipUserPropertiesSync
	operations []byte
}

var (
	insertIDName = []byte(`"insert_id":`)
	skipName     = []byte("skip_user_properties_sync")
	escapedASCII = []byte(`\u00`)
)

// originalOf reads the stored event, if it must: to parse it would take most of the
// time of a replay. An event has no field whose name is nowhere in it, unless in an
// escaped form; and that its id is the one that some text in it gives as insert_id
// proves that this was its insert_id, since such an id is a hash.
func originalOf(r *mapping.Record, q *queue.Record) (original, error) {
	if !r.Partial && !bytes.Contains(r.Raw, skipName) && !bytes.Contains(r.Raw, escapedASCII) {
		if i := bytes.Index(r.Raw, insertIDName); i >= 0 {
			_, v, _ := bytes.Cut(r.Raw[i+len(insertIDName):], []byte{'"'})
			v, _, _ = bytes.Cut(v, []byte{'"'})
			k, id := identity(r.DeviceID, r.UserID)
			if mapping.EventID(q.Project, k, id, text(v)) == q.ID {
				return original{named: true}, nil
			}
		}
	}
	ev, problems := mapping.ParseEvent(r.Raw)
	if problems != nil {
		return original{}, fmt.Errorf("the stored event: %s", problems[0].Detail)
	}
	return original{named: ev.InsertID != "", skip: ev.SkipUserPropertiesSync, operations: ev.UserProperties}, nil
}

// tellEnd tells the log where it ended when users.db was written last: a log that has
// lost its newest records may not know that there were any, and would give their
// sequences to others.
func (s *Store) tellEnd() error {
	if len(s.logEnd) == 0 {
		return nil
	}
	tail := s.log.Tail()
	raised, err := s.log.SeenEnd(s.logEnd)
	if err == nil && raised && s.repair == nil {
		s.repair = &Repair{Path: s.o.Path, Reason: fmt.Sprintf("it has seen record %d, and the log ended with %d", s.log.Tail(), tail)}
	}
	return err
}

// rewind is for a users.db that knows of later sequences than the log, but not where the
// log ended, as a version before this has written it, when the log alone was restored from
// an older copy. What is known stays known; but the log will
// give these sequences to new records, and no replay may pass those over, so every
// entry is marked as of the log's end at the latest. A crash on the way begins it anew:
// nothing has been appended yet, and "reach" is lowered last.
func (s *Store) rewind(tail uint64) error {
	if s.repair == nil {
		s.repair = &Repair{Path: s.o.Path, Reason: fmt.Sprintf("it has seen record %d, and the log ends with %d", s.reach, tail)}
	}
	for _, k := range []kind{user, device} {
		for from := []byte(nil); ; {
			keys, values, next, err := s.laterThan(tail, k, from)
			if err == nil && len(keys) > 0 {
				err = s.update(func(tx *bolt.Tx) error {
					for i, key := range keys {
						if err := tx.Bucket(bucketOf(k)).Put(key, values[i]); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err != nil {
				return err
			}
			if from = next; from == nil {
				break
			}
		}
	}
	s.good, s.reach = min(s.good, tail), tail
	return s.update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyGood, binary.BigEndian.AppendUint64(nil, s.good)), meta.Put(keyReach, binary.BigEndian.AppendUint64(nil, s.reach)))
	})
}

// laterThan looks at some entries from a key on and gives those that a record behind
// tail has changed, marked as of tail, and the key to go on with; nil = that was all.
func (s *Store) laterThan(tail uint64, k kind, from []byte) (keys, values [][]byte, next []byte, err error) {
	err = queue.Guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket(bucketOf(k)).Cursor()
			key, value := c.Seek(from)
			for range writeEntries {
				if key == nil {
					return nil
				}
				if st, err := readEntry(k, key, value); err == nil && st.seq > tail {
					st.seq = tail
					key := bytes.Clone(key)
					value := appendEntry(nil, &st)
					seal(k, key, value)
					keys, values = append(keys, key), append(values, value)
				}
				key, value = c.Next()
			}
			next = bytes.Clone(key)
			return nil
		})
	})
	return keys, values, next, err
}
