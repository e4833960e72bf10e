package users

import (
	"context"
	"fmt"
	"unsafe"

	"ampcio/mapping"
	"ampcio/queue"
)

// Append stores an arrival: it waits for its turn in the log, resolves each event and
// returns when the records are on stable storage. duplicates is how many events were
// not stored again, since one with their insert_id had come from the same device (else
// user) in the last seven days, or earlier in the arrival.
//
// Errors are those of queue's Append: *queue.FullError, queue.ErrBusy and
// queue.ErrClosed mean that nothing was stored; after any other the outcome is unknown.
// The arrival's memory is the caller's again when Append returns. Safe for concurrent use.
func (s *Store) Append(ctx context.Context, a mapping.Arrival) (duplicates int, err error) {
	b := newBatch(s, a)
	if err := s.log.Append(ctx, b); err != nil {
		return 0, err
	}
	if s.awaited.Load() {
		s.wakeRun()
	}
	return b.duplicates, nil
}

// batch is an arrival on its way through the log.
type batch struct {
	s       *Store
	arrival mapping.Arrival
	// ids are the identities of the events that have an insert_id; hashed here, in the
	// caller's goroutine, since the resolver's is the one that all requests share.
	ids        [][16]byte
	size       int
	duplicates int // the resolver's until Append has returned
}

// eventBytes is about what an event costs in memory besides its raw bytes.
const eventBytes = 256

func newBatch(s *Store, a mapping.Arrival) *batch {
	b := &batch{s: s, arrival: a, ids: make([][16]byte, len(a.Events))}
	for i := range a.Events {
		ev := &a.Events[i]
		b.size += eventBytes + len(ev.Raw)
		if ev.InsertID != "" {
			b.ids[i] = eventID(a.Project, a.Source, ev)
		}
	}
	return b
}

// identity is who an event is counted to for its own identity and for duplicates: the
// device, else the user that it names.
func identity(deviceID, userID string) (kind, id string) {
	if deviceID != "" {
		return "device", deviceID
	}
	return "user", userID
}

// eventID is the identity of an event that has an insert_id.
func eventID(project string, source mapping.Source, ev *mapping.Event) (id [16]byte) {
	if source.FromAmplitude() {
		if id, relayed := mapping.RelayedID(ev.InsertID); relayed {
			return id
		}
	}
	if k, who := identity(ev.DeviceID, ev.UserID); who != "" {
		id = mapping.EventID(project, k, who, ev.InsertID)
	}
	return id
}

// Size implements queue.Batch.
func (b *batch) Size() int { return b.size }

// Project implements queue.Batch.
func (b *batch) Project() string { return b.arrival.Project }

// Resolve implements queue.Batch. What it changes in memory is not yet committed: a
// checkpoint writes it when the log says that it is.
func (b *batch) Resolve(w *queue.Writer) error {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.makeRoom(); err != nil {
		return err
	}
	defer s.closeReads()
	p := s.project(b.arrival.Project)
	events := b.arrival.Events
	var ahead []hashes
	for i := range events {
		if i%together == 0 {
			ahead = s.lookAhead(p, events[i:])
		}
		s.evict()
		if err := s.resolve(p, b, i, ahead[i%together], w); err != nil {
			return s.broke(fmt.Errorf("look into %s: %w", s.o.Path, err))
		}
	}
	return nil
}

func (s *Store) resolve(p *project, b *batch, i int, h hashes, w *queue.Writer) (err error) {
	ev, a := &b.arrival.Events[i], &b.arrival
	t := step{hour: hourOf(a.Received), login: ev.UserID}
	happened := mapping.EventTime(ev.Time, a.Uploaded, a.Received)
	t.at, t.dated = stepTime(a.Source, happened, a.Received)
	userID := ev.UserID
	if ev.DeviceID != "" {
		if t.device, err = s.hashedEntry(p, device, ev.DeviceID, h.device); err != nil {
			return err
		}
		d := s.block(t.device)
		d.expire(t.hour, s.unlinkedHours)
		if userID == "" {
			s.userBuf = append(s.userBuf[:0], d.user()...)
			userID = text(s.userBuf)
		}
	}
	if userID != "" {
		if userID != ev.UserID {
			h.user = s.hash(p, user, userID)
		}
		if t.user, err = s.hashedEntry(p, user, userID, h.user); err != nil {
			return err
		}
		s.block(t.user).expire(t.hour, s.unlinkedHours)
	}
	known := t.device // who remembers the insert_id
	if known == nobody {
		known = t.user
	}
	named := known != nobody && ev.InsertID != ""
	if named {
		if r := s.block(known).recent(); r.has(part(b.ids[i]), t.hour) || a.Source.FromAmplitude() && s.sentByServer(a.Project, ev, &t) {
			b.duplicates++
			s.duplicates++
			return nil
		}
	}

	place := w.Next()
	t.seq = place.Seq
	owner := t.user
	if owner == nobody {
		owner = t.device
	}
	past := s.past(owner, &t)
	t.snapshot = ev.Snapshot && !past
	s.takeOver(&t)
	wasLinked := t.device == nobody || len(s.block(t.device).user()) > 0
	s.link(&t)
	sole := t.device != nobody && userID != "" && s.block(t.device).sole() && string(s.block(t.device).user()) == userID
	r := mapping.Record{
		Received: a.Received, UserID: userID, DeviceID: ev.DeviceID,
		Time: happened, Source: a.Source, Address: a.Address, KeyID: a.KeyID, Raw: ev.Raw, Snapshot: ev.Snapshot, Past: past,
		Login: t.dated && ev.UserID != "", Sole: sole, Links: sole && !wasLinked,
	}
	if owner != nobody && !past && (ev.Snapshot || !ev.SkipUserPropertiesSync) {
		r.Builtins, r.Beside = s.applyBuiltins(owner, &t, ev)
	}
	switch {
	case ev.Snapshot: // all of it came with the event, so all of it is stored
		if r.Properties = ev.UserProperties; !past && owner != nobody {
			s.become(owner, &t, r.Properties)
		}
	case past:
		r.Properties = s.block(owner).properties()
	case owner == nobody || ev.SkipUserPropertiesSync:
		r.Properties = s.own(ev)
	default:
		s.apply(owner, &t, ev.UserProperties)
		r.Properties = s.block(owner).properties()
	}
	s.seen(&t)
	if len(r.Properties) > s.o.CarryBytes && !r.Snapshot {
		r.Properties, r.Partial = s.carried(a.Project, r.Properties), true
		s.partial++
	} else if len(r.Properties) == 0 {
		r.Properties = noProperties
	}
	s.bodyBuf = r.AppendBody(s.bodyBuf[:0])
	// From here on r.Properties is not looked at: the block may move.
	id := b.ids[i]
	if named {
		s.remember(known, &t, id)
	} else {
		id = mapping.PlaceID(place.Nonce, place.Index)
	}
	lane := laneOfNobody
	if owner != nobody {
		lane = text(s.block(owner).key())
	}
	w.Put(queue.Record{Project: p.name, Lane: lane, Received: a.Received, ID: id, Body: s.bodyBuf})
	s.resolved = t.seq
	s.sinceCut += int64(len(s.bodyBuf))
	return nil
}

// sentByServer says whether an event that comes from Amplitude was brought by an SDK that had named no device: Amplitude
// has given it one since, made of the user_id in a way that nobody tells.
func (s *Store) sentByServer(project string, ev *mapping.Event, t *step) bool {
	if ev.DeviceID == "" || ev.UserID == "" {
		return false
	}
	r := s.block(t.user).recent()
	return r.n > 0 && r.has(part(mapping.EventID(project, "user", ev.UserID, ev.InsertID)), t.hour)
}

// text is b without a copy of it, for who looks at it before b changes and does not
// keep it: two of them for each event would be most of what the resolver allocates.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// laneOfNobody is the lane of events that name neither user nor device.
const laneOfNobody = "g"

var noProperties = []byte("{}")

// own gives the properties that an event carries itself.
func (s *Store) own(ev *mapping.Event) []byte {
	own, err := mapping.ApplyOperations(nil, nil, ev.UserProperties)
	if err != nil {
		s.unappliable++
		return nil
	}
	return own
}
