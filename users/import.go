package users

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"

	"ampcio/mapping"
	"ampcio/queue"
)

// An import takes a part of an archive line by line, in an order that is always the same. How far it has come is known
// as the number of the last line taken. With events, that number is in the record: it becomes durable in the commit of
// the event itself, neither before nor after it, and a replay finds it where it finds the event. With seeds, which are
// in no record, it is in the last transaction of the checkpoint that has written them; what a crash before that forgets
// is taken again, and gives the same.

// archivePart names a part of an archive by the digest of what is in it.
type archivePart struct {
	project string
	seed    bool // it is taken for what it says of users, not for its events
	part    [16]byte
}

// Lines are some lines of a part of an archive, in their order.
type Lines struct {
	Project  string
	Part     [16]byte
	Received int64  // ms since 1970 UTC, our clock
	From     uint64 // the number of the first line, from 1
	Upto     uint64 // and of the last
	Events   []mapping.Event
	Numbers  []uint64 // of each event's line, rising; lines between them have no event
}

// Taken is what became of Lines.
type Taken struct {
	Place      uint64 `json:"place"`      // lines up to this number have been taken, now or before
	Stored     int    `json:"stored"`     // events that are records now; of seeds, lines that changed what is known
	Duplicates int    `json:"duplicates"` // an SDK or the webhook has brought the same event of late
	Before     int    `json:"before"`     // events that had been taken before
	Gap        bool   `json:"gap"`        // nothing was taken: lines before these are missing
}

// Import stores events of an archive. They change nothing that is known of anybody. Lines that have been taken before
// are passed over. Errors are those of Append.
func (s *Store) Import(ctx context.Context, l Lines) (Taken, error) { return s.take(ctx, l, false) }

// Seed makes known what lines of an archive say of users, and stores no events. A user of whom nothing was known
// gets the properties of the newest line. Who has come by already keeps what is known, and gets what that lacks, once,
// from the first line that is taken: so the newest lines are to come first. A device is linked unless that was done by
// something newer. After nil it is not yet durable: see Checkpoint.
func (s *Store) Seed(ctx context.Context, l Lines) (Taken, error) { return s.take(ctx, l, true) }

func (s *Store) take(ctx context.Context, l Lines, seed bool) (Taken, error) {
	b := &lineBatch{s: s, l: l, of: archivePart{project: l.Project, seed: seed, part: l.Part}, ids: make([][16]byte, len(l.Events))}
	for i := range l.Events {
		ev := &l.Events[i]
		b.size += eventBytes + len(ev.Raw) + len(ev.UserProperties)
		b.ids[i] = eventID(l.Project, mapping.SourceImport, ev)
	}
	if err := s.log.Append(ctx, b); err != nil {
		return Taken{}, err
	}
	if s.awaited.Load() {
		s.wakeRun()
	}
	return b.taken, nil
}

// Place is how many lines of a part have been taken, as events or as seeds.
func (s *Store) Place(project string, part [16]byte, seed bool) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[archivePart{project, seed, part}]
}

// lineBatch is Lines on their way through the log.
type lineBatch struct {
	s     *Store
	l     Lines
	of    archivePart
	ids   [][16]byte
	size  int
	taken Taken // the resolver's until Append has returned
}

// Size implements queue.Batch.
func (b *lineBatch) Size() int { return b.size }

// Project implements queue.Batch.
func (b *lineBatch) Project() string { return b.l.Project }

// Resolve implements queue.Batch.
func (b *lineBatch) Resolve(w *queue.Writer) error {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.makeRoom(); err != nil {
		return err
	}
	defer s.closeReads()
	p, from := s.project(b.l.Project), s.places[b.of]
	if b.l.From > from+1 {
		b.taken.Place, b.taken.Gap = from, true
		return nil
	}
	for i := range b.l.Events {
		n := b.l.Numbers[i]
		if n <= from {
			b.taken.Before++
			continue
		}
		s.evict()
		take := s.importEvent
		if b.of.seed {
			take = s.seedEvent
		}
		if err := take(p, b, i, w); err != nil {
			return s.broke(fmt.Errorf("look into %s: %w", s.o.Path, err))
		}
		s.reached(b.of, n)
	}
	s.reached(b.of, b.l.Upto)
	b.taken.Place = s.places[b.of]
	return nil
}

// reached notes how far a part has been taken. The caller holds s.mu.
func (s *Store) reached(part archivePart, n uint64) {
	if n <= s.places[part] {
		return
	}
	if s.movedPlaces == nil {
		s.movedPlaces = map[archivePart]uint64{}
	}
	s.places[part], s.movedPlaces[part] = n, n
}

// whose finds the device and the user of an event, by what is known now.
func (s *Store) whose(p *project, ev *mapping.Event, hour uint32) (t step, userID string, err error) {
	t = step{hour: hour, login: ev.UserID}
	userID = ev.UserID
	if ev.DeviceID != "" {
		if t.device, err = s.entry(p, device, ev.DeviceID); err != nil {
			return t, "", err
		}
		d := s.block(t.device)
		d.expire(hour, s.unlinkedHours)
		if userID == "" {
			userID = string(d.user())
		}
	}
	if userID != "" {
		if t.user, err = s.entry(p, user, userID); err != nil {
			return t, "", err
		}
		s.block(t.user).expire(hour, s.unlinkedHours)
	}
	return t, userID, nil
}

func (s *Store) importEvent(p *project, b *lineBatch, i int, w *queue.Writer) error {
	ev, l := &b.l.Events[i], &b.l
	t, userID, err := s.whose(p, ev, hourOf(l.Received))
	if err != nil {
		return err
	}
	known := t.device
	if known == nobody {
		known = t.user
	}
	if known != nobody {
		if r := s.block(known).recent(); r.has(part(b.ids[i]), t.hour) || s.sentByServer(l.Project, ev, &t) {
			b.taken.Duplicates++
			s.duplicates++
			return nil
		}
	}
	at := w.Next()
	r := mapping.Record{
		Received: l.Received, UserID: userID, DeviceID: ev.DeviceID, Source: mapping.SourceImport,
		Time: mapping.EventTime(ev.Time, 0, l.Received), Raw: ev.Raw, Past: true, Part: l.Part, Place: l.Numbers[i],
		Properties: noProperties,
	}
	if ev.Snapshot {
		r.Properties, r.Snapshot = ev.UserProperties, true
	}
	s.bodyBuf = r.AppendBody(s.bodyBuf[:0])
	lane := laneOfNobody
	switch {
	case t.user != nobody:
		lane = text(s.block(t.user).key())
	case t.device != nobody:
		lane = text(s.block(t.device).key())
	}
	w.Put(queue.Record{Project: p.name, Lane: lane, Received: l.Received, ID: b.ids[i], Body: s.bodyBuf})
	s.resolved = at.Seq
	s.sinceCut += int64(len(s.bodyBuf))
	b.taken.Stored++
	return nil
}

// seedEvent changes states as of the last record that has been resolved: all records up to that are in them.
func (s *Store) seedEvent(p *project, b *lineBatch, i int, _ *queue.Writer) error {
	ev := &b.l.Events[i]
	t, _, err := s.whose(p, ev, hourOf(b.l.Received))
	if err != nil {
		return err
	}
	t.seq, t.dated, t.snapshot = s.resolved, true, ev.Snapshot
	t.at = mapping.EventTime(ev.Time, 0, b.l.Received)
	t.hour = hourOf(t.at) // of an anonymous device: its properties expire when they would have
	before := s.changes
	owner, d := t.user, t.device
	if owner == nobody {
		owner = d
	}
	if ev.Snapshot && owner != nobody {
		s.fill(owner, &t, ev)
	}
	if d != nobody && t.login != "" {
		// Where nobody has logged in before, this one has, whatever the device has sent since.
		t.dated = len(s.block(d).user()) > 0
		s.takeOver(&t)
		s.link(&t)
	}
	if s.changes != before {
		b.taken.Stored++
	}
	return nil
}

// fill gives who the event belongs to what the snapshot has: all of it when nothing newer is known, else what is lacking,
// unless a snapshot is in it already.
func (s *Store) fill(owner entry, t *step, ev *mapping.Event) {
	was, past := s.block(owner).asOf(), s.past(owner, t)
	switch {
	case !past:
		if len(ev.Builtins) > 0 {
			s.applyBuiltins(owner, t, ev)
		}
		s.become(owner, t, ev.UserProperties)
	case !was.whole():
		s.setBuiltins(owner, t, mapping.TakeOverBuiltins(s.block(owner).builtins(), ev.Builtins))
		merged, err := mapping.TakeOver(s.block(owner).properties(), ev.UserProperties)
		if err != nil {
			s.unappliable++
			return
		}
		s.become(owner, t, merged)
	}
}

// Checkpoint waits until what is known now is in users.db: Run writes it, when that has begun.
func (s *Store) Checkpoint(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.written.Broadcast()
	})
	defer unhook()
	s.mu.Lock()
	defer s.mu.Unlock()
	for epoch := s.epoch; s.broken == nil; {
		if !s.changed() && s.cutting == nil || s.epoch > epoch && s.cutting == nil {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.over {
			return queue.ErrClosed
		}
		if s.waits != "" {
			return &queue.FullError{Reason: s.waits}
		}
		s.asked = s.epoch == epoch
		s.wakeRun()
		s.written.Wait()
	}
	return s.broken
}

// The key of a part in users.db: twice the length of the project's name, plus 1 for seeds (uvarint); the name; the
// digest. The value: the place (8 bytes big-endian), and CRC-32C over key and place.
func placeKey(p archivePart) []byte {
	n := uint64(len(p.project)) << 1
	if p.seed {
		n |= 1
	}
	return append(append(binary.AppendUvarint(nil, n), p.project...), p.part[:]...)
}

func placeValue(key []byte, n uint64) []byte {
	value := binary.BigEndian.AppendUint64(nil, n)
	return binary.BigEndian.AppendUint32(value, crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value))
}

func readPlace(key, value []byte) (p archivePart, n uint64, err error) {
	head, m := binary.Uvarint(key)
	if m <= 0 || uint64(len(key)-m) != head>>1+uint64(len(p.part)) || len(value) != 12 {
		return p, 0, errEntry
	}
	name := key[m : len(key)-len(p.part)]
	p.project, p.seed = string(name), head&1 == 1
	copy(p.part[:], key[len(key)-len(p.part):])
	n = binary.BigEndian.Uint64(value)
	if string(placeValue(key, n)) != string(value) {
		return p, 0, errEntry
	}
	return p, n, nil
}

// readPlaces reads how far imports have come. A value that is damaged counts as none: those of events are in records too,
// as long as the log keeps them.
func readPlaces(tx *bolt.Tx) (map[archivePart]uint64, error) {
	places := map[archivePart]uint64{}
	b := tx.Bucket(bucketImports)
	if b == nil {
		return places, nil
	}
	return places, b.ForEach(func(key, value []byte) error {
		if p, n, err := readPlace(key, value); err == nil {
			places[p] = n
		}
		return nil
	})
}

func writePlaces(tx *bolt.Tx, places map[archivePart]uint64) error {
	for p, n := range places {
		key := placeKey(p)
		if err := tx.Bucket(bucketImports).Put(key, placeValue(key, n)); err != nil {
			return err
		}
	}
	return nil
}
