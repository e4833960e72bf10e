package users

import "ampcio/mapping"

// Some sources bring what a user had when an event happened: a snapshot. It comes late, or twice, or behind a newer one,
// so a state knows of when it is, and an older snapshot does not change it. What an SDK sends changes the state when it
// arrives, whatever its event's time.

// asOf says of when a state is: in ms since 1970 UTC, doubled; odd when a snapshot has been the whole of it, so that
// what it lacks the user does not have. 0 = unknown.
type asOf uint64

func (a asOf) ms() int64   { return int64(a >> 1) }
func (a asOf) whole() bool { return a&1 == 1 }

// date notes that a state is now of the step's time. It never goes back.
func (s *Store) date(e entry, t *step) {
	b := s.block(e)
	was := b.asOf()
	now := asOf(max(was.ms(), t.at)) << 1
	if was.whole() || t.snapshot {
		now |= 1
	}
	if now != was {
		s.touch(e)
		s.block(e).setAsOf(now)
		s.mark(e, t)
	}
}

// past says whether something newer than the step has made the state of an entry. Only what says itself when it
// happened is judged.
func (s *Store) past(e entry, t *step) bool {
	return t.dated && e != nobody && t.at < s.block(e).asOf().ms()
}

// stepTime is the time of the state that an event brings, and whether that is the event's own.
func stepTime(source mapping.Source, happened, received int64) (at int64, dated bool) {
	if source == mapping.SourceWebhook {
		return happened, true
	}
	return received, false
}

// become lets a snapshot be the state of who the event belongs to.
func (s *Store) become(owner entry, t *step, snapshot []byte) {
	if len(snapshot) > maxPropertiesBytes && len(snapshot) > len(s.block(owner).properties()) {
		s.oversize++
		return
	}
	s.setProperties(owner, t, snapshot)
	s.date(owner, t)
}
