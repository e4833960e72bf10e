package users

import (
	"bytes"
	"context"
	"fmt"

	"ampcio/mapping"
	"ampcio/queue"
)

// replay takes up what the log holds behind the sequence that users.db is good for.
// It writes checkpoints on the way when the changes get large, so a crash in a long
// one does not start it over.
func (s *Store) replay(ctx context.Context) error {
	tail := s.log.Tail()
	s.resolved = s.good
	reader := s.log.Reader(s.good)
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
	// Sequences that users.db knows and the log does not (it was restored from an older
	// copy, or is damaged) must not be used again, or a later replay would pass new records
	// over. So the log is told, when all that it does have is in users.db.
	s.resolved = max(s.resolved, tail, s.reach)
	if s.rebuilt != nil {
		s.rebuilt.Replayed, s.rebuilt.Lost = s.replayed, s.lost
	}
	if s.dirtyBytes >= s.o.CheckpointBytes || s.reach > tail {
		return s.writeNow()
	}
	return nil
}

// writeNow writes a checkpoint in the middle of a replay, or at its end.
func (s *Store) writeNow() error {
	s.mu.Lock()
	s.takeCut()
	c := s.cutting
	s.mu.Unlock()
	if err := s.write(c); err != nil {
		return err
	}
	s.log.Hold(holder, s.good)
	return nil
}

func (s *Store) replayChunk(chunk *queue.Chunk) error {
	s.mu.Lock()
	err := chunk.Records(func(r queue.Record) error {
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
	if r.DeviceID == "" && r.UserID == "" {
		return nil
	}
	p := s.project(q.Project)
	t := step{seq: q.Seq, hour: hourOf(q.Received), login: r.UserID}
	var err error
	if r.DeviceID != "" {
		if t.device, err = s.entry(p, device, r.DeviceID); err != nil {
			return err
		}
		t.device.expire(t.hour, s.unlinkedHours)
		if t.device.seq >= q.Seq {
			t.device = nil
		}
	}
	if r.UserID != "" {
		if t.user, err = s.entry(p, user, r.UserID); err != nil {
			return err
		}
		t.user.expire(t.hour, s.unlinkedHours)
		if t.user.seq >= q.Seq {
			t.user = nil
		}
	}
	if t.device == nil && t.user == nil {
		return nil
	}
	ev, problems := mapping.ParseEvent(r.Raw)
	if problems != nil {
		return fmt.Errorf("the stored event: %s", problems[0].Detail)
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
	switch {
	case owner == nil || ev.SkipUserPropertiesSync:
	case r.Partial:
		s.apply(owner, &t, ev.UserProperties)
	default:
		s.setProperties(owner, &t, bytes.Clone(r.Properties))
	}
	s.seen(&t)
	if known != nil && ev.InsertID != "" {
		s.remember(known, &t, q.ID)
	}
	return nil
}
