package sandbox

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/oklog/ulid/v2"
)

// A person is one profile. All fields belong to Sandbox.mu.
type person struct {
	number       int // creation order, from 1
	cio          string
	id           string
	email        string // as given; looked up in lower case
	phone        string
	attributes   map[string][]byte // raw JSON values
	lastIdentify int64             // timestamp of the newest applied identify, unix s
	events       []*event          // by arrival
	received     int64             // events, kept or not
	order        sequence
	devices      map[string][]byte // token → raw object
	anonymous    []string          // anonymous_ids that are its own
	gone         bool
}

// world is what a workspace knows. It belongs to Sandbox.mu.
type world struct {
	people     []*person
	alive      int
	index      [byAnonymous]map[string]*person // by identifier kind; emails in lower case
	strangers  map[string]*stranger
	suppressed map[string]struct{} // kind and value
	names      map[string]string   // event names seen, so that each is stored once

	events    []*event
	arrived   int64
	goneOrder orderCounts // of people deleted or suppressed

	// What was seen of event ids: a fingerprint of who, name and timestamp under
	// each. When there is a cap, the older half is forgotten at once.
	seen, seenBefore map[ulid.ULID]uint64
	seed             maphash.Seed
}

func newWorld() *world {
	w := &world{strangers: map[string]*stranger{}, suppressed: map[string]struct{}{}, names: map[string]string{},
		seen: map[ulid.ULID]uint64{}, seed: maphash.MakeSeed()}
	for i := range w.index {
		w.index[i] = map[string]*person{}
	}
	return w
}

func fold(k identifierKind, v []byte) []byte {
	if k == byEmail {
		return bytes.ToLower(v)
	}
	return v
}

func (w *world) find(id identifier) *person {
	if id.kind == noIdentifier || id.kind >= byAnonymous {
		return nil
	}
	return w.index[id.kind][string(fold(id.kind, id.value))]
}

func identifierKey(id identifier) string {
	return kindNames[id.kind] + ":" + string(fold(id.kind, id.value))
}

func (w *world) isSuppressed(id identifier) bool {
	if len(w.suppressed) == 0 {
		return false
	}
	_, ok := w.suppressed[identifierKey(id)]
	return ok
}

// set gives p an identifier and enters it in the index; empty takes it away.
func (w *world) set(p *person, kind identifierKind, value string) {
	var field *string
	switch kind {
	case byID:
		field = &p.id
	case byEmail:
		field = &p.email
	case byPhone:
		field = &p.phone
	case byCio:
		field = &p.cio
	default:
		return
	}
	if *field != "" {
		delete(w.index[kind], string(fold(kind, []byte(*field))))
	}
	if *field = value; value != "" {
		w.index[kind][string(fold(kind, []byte(value)))] = p
	}
}

func (s *Sandbox) create(id identifier) *person {
	w := s.world
	p := &person{number: len(w.people) + 1, attributes: map[string][]byte{}}
	w.people = append(w.people, p)
	w.alive++
	w.set(p, byCio, fmt.Sprintf("%04x%08x", s.o.EnvironmentID&0xffff, p.number))
	w.set(p, id.kind, string(id.value))
	if id.kind == byEmail {
		p.attributes["email"] = appendQuoted(nil, id.value)
	}
	if id.kind == byID {
		p.attributes["id"] = appendQuoted(nil, id.value)
	}
	return p
}

// remove takes p out. Its events stay in the list of all events.
func (w *world) remove(p *person) {
	for _, k := range []identifierKind{byID, byEmail, byPhone, byCio} {
		w.unset(p, k)
	}
	p.gone = true
	w.alive--
	p.events, p.attributes, p.devices = nil, nil, nil
}

// unset takes p out of an index but leaves its identifier to be read.
func (w *world) unset(p *person, kind identifierKind) {
	value := [...]string{byID: p.id, byEmail: p.email, byPhone: p.phone, byCio: p.cio}[kind]
	if key := string(fold(kind, []byte(value))); w.index[kind][key] == p {
		delete(w.index[kind], key)
	}
}

// apply carries out one checked operation at the time now. It cannot fail: what
// Customer.io drops in silence is dropped and counted. The caller holds s.mu.
func (s *Sandbox) apply(o *operation, now time.Time) {
	s.n.operations[o.action]++
	for _, name := range o.misplaced {
		s.note("unknown_member:" + string(name))
	}
	switch o.action {
	case actAddRelationships, actDeleteRelationships, actObject, actDelivery:
		return // accepted, not modelled
	case actMerge:
		s.merge(o, now)
		return
	case actSuppress:
		s.suppress(o)
		return
	case actUnsuppress:
		delete(s.world.suppressed, identifierKey(o.who))
		return
	}
	if s.world.isSuppressed(o.who) {
		s.note("suppressed_person_ignored")
		return
	}
	p := s.world.find(o.who)
	if p == nil && o.who.kind == byCio {
		s.note("unknown_cio_id_dropped")
		if bytes.HasPrefix(o.who.value, []byte("cio_")) {
			s.note("cio_id_with_prefix")
		}
		return
	}
	switch o.action {
	case actIdentify:
		s.identify(p, o, now)
	case actEvent, actPage, actScreen:
		s.event(p, o, now)
	case actDelete:
		if p == nil {
			s.note("unknown_person_deleted")
			return
		}
		s.world.goneOrder.add(p.order.counts(s.o.OrderFirst))
		s.world.remove(p)
	case actAddDevice:
		if p == nil {
			p = s.create(o.who)
		}
		if p.devices == nil {
			p.devices = map[string][]byte{}
		}
		p.devices[string(o.token)] = bytes.Clone(o.device)
	case actDeleteDevice:
		if p == nil || p.devices[string(o.token)] == nil {
			s.note("unknown_device_deleted")
			return
		}
		delete(p.devices, string(o.token))
	}
}

// identify resolves and updates a person as section "Identify" of the API
// describes; a change of identifiers that is not allowed is answered 200 and only
// noted, as at Customer.io.
func (s *Sandbox) identify(p *person, o *operation, now time.Time) {
	w := s.world
	update, emptyAttributes := false, true
	var newID, newEmail, anonymous []byte
	if o.values != nil {
		for m := walk(o.values); ; {
			name, value, ok := m.member()
			if !ok {
				break
			}
			if isControl(name) {
				update = update || string(name) == "_update" && string(value) == "true"
				continue
			}
			switch string(name) {
			case "id":
				newID = plain(value)
			case "email":
				newEmail = plain(value)
			case "anonymous_id":
				anonymous = plain(value)
			}
			emptyAttributes = false
		}
	}
	if p == nil { // the one addressed is unknown: does an identifier in the body belong to somebody?
		for _, c := range []identifier{{byID, newID}, {byEmail, newEmail}} {
			if c.kind == o.who.kind || len(c.value) == 0 {
				continue
			}
			if p = w.find(c); p == nil {
				continue
			}
			if p.has(o.who.kind) {
				// It already has another identifier of this kind, and that may only be
				// changed by its cio_id: nothing is applied, nobody is created.
				s.n.failedChanges++
				s.note("failed_change:identifier_taken")
				return
			}
			if w.isSuppressed(c) {
				s.note("suppressed_person_ignored")
				return
			}
			w.set(p, o.who.kind, string(o.who.value))
			if o.who.kind != byPhone {
				p.attributes[kindNames[o.who.kind]] = appendQuoted(nil, o.who.value)
			}
			break
		}
	}
	if p == nil {
		if update {
			s.n.failedChanges++
			s.note("failed_change:update_of_unknown_person")
			return
		}
		p = s.create(o.who)
	}
	t := o.timestamp
	if t != 0 && t < p.lastIdentify {
		s.n.stale++
		return
	}
	if t == 0 {
		s.note("identify_without_timestamp")
		t = now.Unix()
	}
	s.n.applied++
	same := t == p.lastIdentify && o.timestamp != 0
	p.lastIdentify = max(p.lastIdentify, t)
	changed := s.setAttributes(p, o, same)
	switch {
	case emptyAttributes:
		s.note("identify_without_attributes")
	case !changed:
		s.n.unchanged++
	}
	if len(anonymous) > 0 {
		s.claim(p, string(anonymous), now)
	}
}

func (p *person) has(kind identifierKind) bool {
	switch kind {
	case byID:
		return p.id != ""
	case byEmail:
		return p.email != ""
	case byPhone:
		return p.phone != ""
	}
	return true
}

// plain is the text of a string or the digits of a number, nil for anything else.
func plain(raw []byte) []byte {
	switch {
	case isString(raw):
		return text(raw)
	case isNumber(raw):
		return raw
	}
	return nil
}

// setAttributes overwrites the attributes sent and leaves the others; it tells
// whether anything changed. sameSecond: an identify with this timestamp was
// applied before, so that Customer.io could not tell which is newer.
func (s *Sandbox) setAttributes(p *person, o *operation, sameSecond bool) (changed bool) {
	if o.values == nil {
		return false
	}
	for m := walk(o.values); ; {
		name, value, ok := m.member()
		if !ok {
			break
		}
		if isControl(name) {
			continue
		}
		old := p.attributes[string(name)]
		switch string(name) {
		case "cio_id", "_created_in_customerio_at":
			s.note("system_attribute_ignored")
			continue
		case "id", "email":
			if !s.setIdentifier(p, o.who.kind, string(name), plain(value)) {
				continue
			}
		}
		if (isNull(value) || string(value) == `""`) && !s.o.KeepEmpty {
			if old != nil {
				delete(p.attributes, string(name))
				changed = true
			}
			continue
		}
		if bytes.Equal(old, value) {
			continue
		}
		if sameSecond && old != nil {
			s.note("attribute_changed_twice_in_a_second")
		}
		p.attributes[string(name)] = bytes.Clone(value)
		changed = true
	}
	if len(p.attributes) > maxAttributes {
		s.note("person_above_300_attributes")
	}
	return changed
}

// setIdentifier carries out an attribute named id or email and tells whether the
// attribute is to be stored. One that is set changes only when the person is
// addressed by cio_id, and never to one that somebody else has.
func (s *Sandbox) setIdentifier(p *person, addressed identifierKind, name string, value []byte) bool {
	kind, old := byID, p.id
	if name == "email" {
		kind, old = byEmail, p.email
	}
	want := identifier{kind, value}
	if bytes.Equal(fold(kind, value), fold(kind, []byte(old))) {
		return true
	}
	failed := func(why string) bool {
		s.n.failedChanges++
		s.note("failed_change:" + why)
		return false
	}
	switch other := s.world.find(want); {
	case len(value) > maxIdentifierBytes:
		return failed("identifier_too_long")
	case kind == byEmail && len(value) > 0 && !looksLikeEmail(value):
		return failed("not_an_email")
	case other != nil && other != p:
		return failed(name + "_belongs_to_another_person")
	case old != "" && addressed != byCio && !(kind == byEmail && s.o.EmailMayChange):
		return failed(name + "_already_set")
	}
	s.world.set(p, kind, string(value))
	return true
}

func (s *Sandbox) merge(o *operation, now time.Time) {
	w := s.world
	a, b := w.find(o.who), w.find(o.secondary)
	if a == nil || b == nil || a == b {
		s.note("merge_without_effect")
		return
	}
	var move []*event
	for _, e := range b.events {
		if e.received.Before(now.Add(-mergeBefore)) {
			continue
		}
		e.person = a
		move = append(move, e)
	}
	attributes := b.attributes
	w.remove(b)
	if s.n.notKept == 0 {
		a.received += int64(len(move))
		a.take(move)
	} else {
		a.received += b.received
		a.order.join(&b.order)
		a.events = byArrival(a.events, move)
	}
	for _, id := range b.anonymous {
		w.strangers[id].person = a
	}
	a.anonymous = append(a.anonymous, b.anonymous...)
	for name, value := range attributes {
		if name == "id" || name == "email" {
			continue
		}
		if _, ok := a.attributes[name]; !ok {
			a.attributes[name] = value
		}
	}
}

func (s *Sandbox) suppress(o *operation) {
	p := s.world.find(o.who)
	s.world.suppressed[identifierKey(o.who)] = struct{}{}
	if p == nil {
		return
	}
	for _, id := range []identifier{{byID, []byte(p.id)}, {byEmail, []byte(p.email)}, {byPhone, []byte(p.phone)}, {byCio, []byte(p.cio)}} {
		if len(id.value) > 0 {
			s.world.suppressed[identifierKey(id)] = struct{}{}
		}
	}
	s.world.goneOrder.add(p.order.counts(s.o.OrderFirst))
	s.world.remove(p)
}
