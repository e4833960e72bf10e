package sandbox

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Person is one profile as the sandbox has it.
type Person struct {
	CioID        string            `json:"cio_id"`
	ID           string            `json:"id,omitempty"`
	Email        string            `json:"email,omitempty"`
	Phone        string            `json:"phone,omitempty"`
	Attributes   map[string][]byte `json:"-"` // raw JSON values by name
	LastIdentify int64             `json:"-"` // unix seconds, 0 = never identified
	EventCount   int64             `json:"-"` // accepted events, kept or not
	Devices      []string          `json:"-"` // tokens, sorted
	Events       []Event           `json:"-"` // those kept, by arrival
}

// Event is one accepted event.
type Event struct {
	Number      int64  // of arrival, from 1
	CioID       string // of the person it belongs to now, "" when anonymous
	PersonID    string
	Email       string
	AnonymousID string // "" for an identified event
	Action      string // event, page or screen
	Name        string
	ID          string    // as sent
	Timestamp   int64     // unix seconds, 0 = absent
	Received    time.Time // UTC
	Attributes  []byte    // raw object, nil when absent
}

func (p *person) export(events bool) Person {
	out := Person{CioID: p.cio, ID: p.id, Email: p.email, Phone: p.phone, Attributes: maps.Clone(p.attributes),
		LastIdentify: p.lastIdentify, EventCount: p.received, Devices: slices.Sorted(maps.Keys(p.devices))}
	if events {
		for _, e := range p.events {
			out.Events = append(out.Events, e.export())
		}
	}
	return out
}

func (e *event) export() Event {
	out := Event{Number: e.number, AnonymousID: e.anonymous, Action: actionNames[e.action], Name: e.name, ID: e.id,
		Timestamp: e.timestamp, Received: e.received.UTC(), Attributes: e.values}
	if e.person != nil {
		out.CioID, out.PersonID, out.Email = e.person.cio, e.person.id, e.person.email
	}
	return out
}

// Person finds one person; kind is id, email, phone or cio_id. Its events are
// included. Safe for concurrent use, like all of Sandbox.
func (s *Sandbox) Person(kind, value string) (Person, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := byID; k < byAnonymous; k++ {
		if kindNames[k] != kind {
			continue
		}
		if p := s.world.find(identifier{k, []byte(value)}); p != nil {
			return p.export(true), true
		}
	}
	return Person{}, false
}

// People lists everybody in order of creation, without their events.
func (s *Sandbox) People() []Person {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Person, 0, s.world.alive)
	for _, p := range s.world.people {
		if !p.gone {
			out = append(out, p.export(false))
		}
	}
	return out
}

// Events lists at most limit accepted events with a number above after, in order
// of arrival; limit 0 means all.
func (s *Sandbox) Events(after int64, limit int) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.world.events
	from, _ := slices.BinarySearchFunc(all, after+1, func(e *event, n int64) int { return cmp.Compare(e.number, n) })
	all = all[from:]
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	out := make([]Event, len(all))
	for i, e := range all {
		out[i] = e.export()
	}
	return out
}
