package users

import (
	"bytes"
	"cmp"
	"slices"
	"unsafe"

	"github.com/go-json-experiment/json/jsontext"

	"ampcio/mapping"
)

// maxPropertiesBytes bounds what is kept of one user: an event that would make the
// set larger does not change it, and is counted. Amplitude's own limits (1,000
// properties of 1,024 characters) end before. Each event of a user costs time in
// proportion to the set, in the one goroutine that all requests wait for.
const maxPropertiesBytes = 128 << 10

const msPerHour = 60 * 60 * 1000

// hourOf is the hour since 1970 of a time in ms.
func hourOf(ms int64) uint32 {
	return uint32(min(max(ms/msPerHour, 0), 1<<32-1))
}

// step is what one event does to the states of its device and its user, the same
// when it is resolved and when its record is replayed.
type step struct {
	seq  uint64
	hour uint32
	// device and user are the entries that the event moves; nobody when it has none, or,
	// in a replay, when users.db already has what it did to them.
	device, user entry
	login        string // the user_id that the event itself names; "" = none
	at           int64  // ms since 1970 UTC, of what it brings
	dated        bool   // at is when the event happened: it may be older than what is known
	snapshot     bool   // its properties are all that there were
	gained       bool   // its user has taken built-in properties of the device over
}

// takeOver lets the user have the anonymous properties of a device on which nobody
// has logged in before; what the user has already wins. The anonymous state is then gone.
func (s *Store) takeOver(t *step) {
	if t.device == nobody || t.login == "" || s.past(t.device, t) {
		return
	}
	d := s.block(t.device)
	if len(d.user()) > 0 || len(d.properties()) == 0 && len(d.builtins()) == 0 {
		return
	}
	if t.user != nobody {
		if merged, err := mapping.TakeOver(s.block(t.user).properties(), d.properties()); err != nil {
			s.unappliable++
		} else {
			s.setProperties(t.user, t, merged)
		}
		t.gained = s.setBuiltins(t.user, t, mapping.TakeOverBuiltins(s.block(t.user).builtins(), s.block(t.device).builtins()))
	}
	s.touch(t.device)
	s.block(t.device).setProperties(nil)
	s.block(t.device).setU32(40, 0)
	s.mark(t.device, t)
	s.takeOvers++
}

// link makes a device its user's.
func (s *Store) link(t *step) {
	if t.device == nobody || t.login == "" || s.past(t.device, t) {
		return
	}
	if string(s.block(t.device).user()) == t.login {
		if t.dated {
			s.date(t.device, t)
		}
		return
	}
	s.touch(t.device)
	b := s.block(t.device)
	st := b.state()
	st.sole = len(st.user) == 0
	st.user = append(s.loginBuf[:0], t.login...)
	s.loginBuf = st.user
	s.resize(t.device, &st, b.places())
	s.mark(t.device, t)
	s.date(t.device, t)
	s.links++
}

// apply lets an event's operations change the properties of who it belongs to.
func (s *Store) apply(owner entry, t *step, operations []byte) {
	if len(operations) == 0 {
		return
	}
	before := s.block(owner).properties()
	after, err := mapping.ApplyOperations(s.propertyBuf[:0], before, operations)
	if err != nil {
		s.unappliable++
		return
	}
	s.setProperties(owner, t, after)
	// One that has grown is the next event's; but one huge event must not set its size for ever.
	if own := unsafe.SliceData(after) != unsafe.SliceData(before); own && cap(after) > cap(s.propertyBuf) && cap(after) <= 2*maxPropertiesBytes {
		s.propertyBuf = after[:0]
	}
}

// setProperties keeps a copy of after. That may be, or share the memory of, what the
// entry has.
func (s *Store) setProperties(e entry, t *step, after []byte) {
	if string(after) == "{}" {
		after = nil
	}
	before := s.block(e).properties()
	if bytes.Equal(after, before) {
		return
	}
	if len(after) > maxPropertiesBytes && len(after) > len(before) {
		s.oversize++
		return
	}
	s.touch(e)
	b := s.block(e)
	// A set that has become much smaller gives its memory back.
	if needs := b.afterBuiltins() + len(after); needs < len(b)/2 && len(b) > 2*minBlock || !b.setProperties(after) {
		st := b.state()
		st.properties = after
		s.resize(e, &st, b.places())
	}
	s.mark(e, t)
	s.date(e, t)
}

// setBuiltins keeps a copy of after, packed, and says whether that is another value. after is not in the entry's block.
func (s *Store) setBuiltins(e entry, t *step, after []byte) bool {
	if bytes.Equal(after, s.block(e).builtins()) {
		return false
	}
	s.touch(e)
	if b := s.block(e); len(after) == len(b.builtins()) {
		copy(b.builtins(), after)
	} else {
		st := b.state()
		st.builtins = after
		s.resize(e, &st, b.places())
	}
	s.mark(e, t)
	s.date(e, t)
	return true
}

// applyBuiltins lets an event change the built-in properties of who it belongs to, and gives what its record is to say of
// them: all, where they have changed, so that a replay need not read the event; else what the event does not say itself.
func (s *Store) applyBuiltins(owner entry, t *step, ev *mapping.Event) (builtins, beside []byte) {
	k := mapping.ApplyBuiltins(s.builtinBuf[:0], s.block(owner).builtins(), ev)
	s.builtinBuf = k.After[:0]
	if k.Changed {
		s.setBuiltins(owner, t, k.After)
	}
	if k.Changed || t.gained {
		return k.After, nil
	}
	return nil, k.Beside
}

// remember puts an event's id into the memory for duplicates.
func (s *Store) remember(e entry, t *step, id [16]byte) {
	s.touch(e)
	b := s.block(e)
	r := b.recent()
	if places := r.room(); places > b.places() {
		st := b.state()
		s.resize(e, &st, places)
		b = s.block(e)
		r = b.recent()
	}
	r.add(part(id), t.hour)
	b.setRecent(&r)
	s.mark(e, t)
}

// seen keeps an unlinked device with properties from expiring.
func (s *Store) seen(t *step) {
	if t.device == nobody {
		return
	}
	if d := s.block(t.device); len(d.user()) == 0 && len(d.properties())+len(d.builtins()) > 0 && d.seen() < t.hour {
		s.touch(t.device)
		s.mark(t.device, t)
	}
}

// mark notes what changed an entry.
func (s *Store) mark(e entry, t *step) {
	b := s.block(e)
	b.setSeq(t.seq)
	b.setSeen(max(b.seen(), t.hour))
	s.changes++
}

// carryMost bounds what a record carries of a very large set, since every event of the user carries it. It is twice what
// Customer.io takes in one identify.
const carryMost = 64_000

// carried gives of a very large set what the rules name, the smallest values first, as far as carryMost goes. Of what is left
// out there is null: it counts as not set, but nobody takes it for gone.
func (s *Store) carried(project string, properties []byte) []byte {
	type member struct {
		name  string
		value []byte
	}
	var named []member
	mapping.Members(properties, func(name string, value []byte) error {
		if s.o.Carry != nil && s.o.Carry(project, name) {
			named = append(named, member{name, value})
		}
		return nil
	})
	slices.SortStableFunc(named, func(a, b member) int { return cmp.Compare(len(a.value), len(b.value)) })
	out, full := append(s.carryBuf[:0], '{'), false
	for _, m := range named {
		if full = full || len(out)+len(m.name)+len(m.value) > carryMost; full {
			m.value = leftOut
		}
		if len(out)+len(m.name)+len(m.value) > maxPropertiesBytes {
			break
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out, _ = jsontext.AppendQuote(out, m.name) // of a name that was read from JSON
		out = append(append(out, ':'), m.value...)
	}
	s.carryBuf = append(out, '}')
	return s.carryBuf
}

var leftOut = []byte("null")
