package sandbox

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	mergeBefore = 30 * 24 * time.Hour // anonymous events this old still join the person an identify names
	mergeAfter  = 5 * time.Minute     // and those that come this long after it
)

// An event is one accepted, first-seen event. Only who it belongs to can change
// after it was stored. The fields belong to Sandbox.mu.
type event struct {
	number    int64 // of arrival, from 1
	person    *person
	anonymous string // anonymous_id, "" for an identified event
	action    action
	name      string
	id        string
	timestamp int64 // unix s, 0 = absent
	received  time.Time
	values    []byte
	seq       int64 // value of the order attribute, when hasSeq
	hasSeq    bool
}

// A stranger is an anonymous_id: its events, until an identify names a person for it.
type stranger struct {
	events   []*event
	received int64
	order    sequence
	person   *person
	claimed  time.Time
}

// event takes an event: a repeated id is ignored, whoever sends it.
func (s *Sandbox) event(p *person, o *operation, now time.Time) {
	w := s.world
	if !s.first(o) {
		return
	}
	if o.timestamp == 0 {
		s.note("event_without_timestamp")
	}
	var st *stranger
	anonymous := ""
	switch {
	case o.who.kind == byAnonymous:
		s.n.anonymous++
		if len(o.who.value) > 0 {
			anonymous = string(o.who.value)
			st = w.stranger(anonymous)
			if st.person != nil && !st.person.gone && now.Sub(st.claimed) <= mergeAfter {
				p, st = st.person, nil
				s.n.merged++
			}
		}
	case p == nil:
		p = s.create(o.who)
		s.note("person_created_by_event")
	}
	w.arrived++
	seq, hasSeq := s.sequenceOf(o)
	if len(w.events) < s.o.MaxKeptEvents {
		e := &event{number: w.arrived, person: p, anonymous: anonymous, action: o.action, name: w.intern(o.name), id: string(o.id),
			timestamp: o.timestamp, received: now, values: bytes.Clone(o.values), seq: seq, hasSeq: hasSeq}
		w.events = append(w.events, e)
		switch {
		case p != nil:
			p.events = append(p.events, e)
		case st != nil:
			st.events = append(st.events, e)
		}
	} else {
		s.n.notKept++
	}
	var order *sequence
	switch {
	case p != nil:
		p.received++
		order = &p.order
	case st != nil:
		st.received++
		order = &st.order
	}
	if hasSeq && order != nil && !order.add(seq) && s.n.firstOutOfOrder == "" {
		s.n.firstOutOfOrder = fmt.Sprintf("event %d, %s of %s %q: %s %d came after %d", w.arrived, o.name,
			kindNames[o.who.kind], o.who.value, s.o.OrderAttribute, seq, order.last)
	}
}

// first tells whether the event's id is new, and remembers it. An id that is no
// ULID is not looked at.
func (s *Sandbox) first(o *operation) bool {
	w := s.world
	s.n.events++
	if !o.isULID {
		if o.id == nil {
			s.note("event_without_id")
		} else {
			s.note("event_id_not_ulid")
		}
		return true
	}
	var h maphash.Hash
	h.SetSeed(w.seed)
	h.Write(fold(o.who.kind, o.who.value))
	h.WriteByte(0)
	h.Write(o.name)
	var t [8]byte
	binary.LittleEndian.PutUint64(t[:], uint64(o.timestamp))
	h.Write(t[:])
	print := h.Sum64()
	old, known := w.seen[o.ulid]
	if !known {
		old, known = w.seenBefore[o.ulid]
	}
	if !known {
		if half := s.o.MaxEventIDs / 2; half > 0 && len(w.seen) >= half {
			s.n.forgottenIDs += int64(len(w.seenBefore))
			w.seen, w.seenBefore = make(map[ulid.ULID]uint64, half), w.seen
		}
		w.seen[o.ulid] = print
		s.n.unique++
		return true
	}
	s.n.duplicates++
	if old != print {
		s.n.differing++
		if s.n.firstDiffering == "" {
			s.n.firstDiffering = string(o.id)
		}
	}
	return false
}

func (w *world) intern(name []byte) string {
	if s, ok := w.names[string(name)]; ok {
		return s
	}
	s := string(name)
	if len(w.names) < 10_000 {
		w.names[s] = s
	}
	return s
}

// claim ties an anonymous_id to p and moves its recent events over. An
// anonymous_id is good for one person only.
func (s *Sandbox) claim(p *person, id string, now time.Time) {
	st := s.world.stranger(id)
	switch st.person {
	case nil:
	case p:
		return
	default:
		s.n.failedChanges++
		s.note("failed_change:anonymous_id_belongs_to_another_person")
		return
	}
	st.person, st.claimed = p, now
	p.anonymous = append(p.anonymous, id)
	var stay, move []*event
	for _, e := range st.events {
		if e.received.Before(now.Add(-mergeBefore)) {
			stay = append(stay, e)
			continue
		}
		e.person = p
		move = append(move, e)
	}
	if s.n.notKept == 0 {
		s.n.merged += int64(len(move))
		p.received += int64(len(move))
		st.received = int64(len(stay))
		p.take(move)
		st.events, st.order = stay, orderOf(stay)
		return
	}
	// Without the events only the sums can move: all of them do.
	s.n.merged += st.received
	p.received += st.received
	p.order.join(&st.order)
	p.events = byArrival(p.events, move)
	st.events, st.received, st.order = stay, 0, sequence{}
}

func (w *world) stranger(id string) *stranger {
	st := w.strangers[id]
	if st == nil {
		st = &stranger{}
		w.strangers[id] = st
	}
	return st
}

// take adds events that another owner had, and judges the order of all anew: by
// arrival at the sandbox, whoever they belonged to then.
func (p *person) take(events []*event) {
	if len(events) == 0 {
		return
	}
	p.events = byArrival(p.events, events)
	p.order = orderOf(p.events)
}

func byArrival(a, b []*event) []*event {
	all := append(slices.Clone(a), b...)
	slices.SortFunc(all, func(x, y *event) int { return cmp.Compare(x.number, y.number) })
	return all
}
