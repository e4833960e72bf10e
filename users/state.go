package users

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"ampcio/mapping"
)

// maxPropertiesBytes bounds what is kept of one user: an event that would make the
// set larger does not change it, and is counted. Amplitude's own limits (1,000
// properties of 1,024 characters) end before. Each event of a user costs time in
// proportion to the set, in the one goroutine that all requests wait for.
const maxPropertiesBytes = 1 << 20

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
	// device and user are the entries that the event moves; nil when it has none, or,
	// in a replay, when users.db already has what it did to them.
	device, user *entry
	login        string // the user_id that the event itself names; "" = none
}

// takeOver lets the user have the anonymous properties of a device on which nobody
// has logged in before; what the user has already wins. The anonymous state is then gone.
func (s *Store) takeOver(t *step) {
	d, u := t.device, t.user
	if d == nil || t.login == "" || d.user != "" || d.properties == nil {
		return
	}
	if u != nil {
		if merged, err := mapping.TakeOver(u.properties, d.properties); err != nil {
			s.unappliable++
		} else {
			s.setProperties(u, t, merged)
		}
	}
	s.touch(d)
	d.properties = nil
	s.mark(d, t)
	s.takeOvers++
}

// link makes a device its user's.
func (s *Store) link(t *step) {
	if d := t.device; d != nil && t.login != "" && d.user != t.login {
		s.touch(d)
		d.user = strings.Clone(t.login)
		s.mark(d, t)
		s.links++
	}
}

// apply lets an event's operations change the properties of who it belongs to.
func (s *Store) apply(owner *entry, t *step, operations []byte) {
	if len(operations) == 0 {
		return
	}
	after, err := mapping.ApplyOperations(owner.properties, operations)
	if err != nil {
		s.unappliable++
		return
	}
	s.setProperties(owner, t, after)
}

// setProperties keeps after, which nobody changes from here on.
func (s *Store) setProperties(e *entry, t *step, after []byte) {
	if string(after) == "{}" {
		after = nil
	}
	if bytes.Equal(after, e.properties) {
		return
	}
	if len(after) > maxPropertiesBytes && len(after) > len(e.properties) {
		s.oversize++
		return
	}
	s.touch(e)
	e.properties = after
	s.mark(e, t)
}

// remember puts an event's id into the memory for duplicates.
func (s *Store) remember(e *entry, t *step, id [16]byte) {
	s.touch(e)
	if e.recent == nil {
		e.recent = new(recent)
	}
	e.recent.add(part(id), t.hour)
	s.mark(e, t)
}

// seen keeps an unlinked device with properties from expiring.
func (s *Store) seen(t *step) {
	if d := t.device; d != nil && d.user == "" && d.properties != nil && d.seen < t.hour {
		s.touch(d)
		s.mark(d, t)
	}
}

// mark notes what changed an entry, and what it costs now.
func (s *Store) mark(e *entry, t *step) {
	e.seq = t.seq
	e.seen = max(e.seen, t.hour)
	s.account(e)
}

// carried gives of a very large set what the rules name.
func (s *Store) carried(project string, properties []byte) []byte {
	out := append(s.carryBuf[:0], '{')
	mapping.Members(properties, func(name string, value []byte) error {
		if s.o.Carry == nil || !s.o.Carry(project, name) {
			return nil
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out, _ = jsontext.AppendQuote(out, name) // of a name that was read from JSON
		out = append(append(out, ':'), value...)
		return nil
	})
	s.carryBuf = append(out, '}')
	return s.carryBuf
}
