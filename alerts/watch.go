package alerts

import (
	"cmp"
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
)

// rules say how long something must be so before it is told.
type rules struct{ after, overAfter, repeat time.Duration }

const (
	// remembered is how long a trouble that is over still counts when it comes again.
	remembered = 6 * time.Hour
	// calmest is the longest that a trouble which comes and goes must be gone before its end
	// is told: the wait doubles each time, so that it makes a pair of messages an hour at most.
	calmest = time.Hour
	// mostWaiting bounds the messages that wait to be posted. Those behind the first are
	// collapsed into the next one: "12 more".
	mostWaiting = 50
)

// calm is how long a trouble must be gone before its end is told.
func (k *known) calm(r rules) time.Duration {
	d := r.overAfter
	for i := 0; i < k.Times && d < calmest; i++ {
		d *= 2
	}
	return max(min(d, calmest), r.overAfter)
}

// look decides what is told, by what is wrong now; changed says whether there is
// something new that has to survive a restart.
func (s *state) look(sight Sight, r rules) (news []Message, changed bool) {
	at := sight.At.UTC()
	s.setBack(at)
	there := map[string]bool{}
	for i := range sight.Troubles {
		t := &sight.Troubles[i]
		name := key(t.Kind, t.Of)
		there[name] = true
		k := s.Known[name]
		if k == nil {
			k = &known{Kind: t.Kind, Of: t.Of}
			s.Known[name] = k
		}
		k.quiet = t.Known
		if k.gone = (time.Time{}); !k.Firing && k.seen.IsZero() {
			k.seen, k.Since = at, at
		}
		if since := t.Since.UTC(); !t.Since.IsZero() && since.Before(k.Since) {
			k.Since = since
		}
		k.Cause, k.Level, k.What, k.Do, k.Numbers = t.Cause, t.Level, t.What, t.Do, maps.Clone(t.Numbers)
		switch {
		case !k.Firing || rank(k.Level) <= rank(k.Worst):
			k.worse = time.Time{}
		case k.worse.IsZero():
			k.worse = at
		}
	}
	for name, k := range s.Known {
		switch {
		case there[name]:
		case sight.Unclear != nil && sight.Unclear(k.Kind, k.Of):
			k.gone = time.Time{}
		case k.Firing:
			if k.gone.IsZero() {
				k.gone = at
			}
		default:
			if k.seen = (time.Time{}); k.Times == 0 || at.Sub(k.Ended) > remembered {
				changed = changed || k.Times > 0
				delete(s.Known, name)
			}
		}
	}

	here := func(k *known) bool { return there[key(k.Kind, k.Of)] } // what is unclear is not told
	is := func(since time.Time, d time.Duration) bool { return !since.IsZero() && at.Sub(since) >= d }
	// Each step: who is due, and who goes along with one of the same kind and cause.
	for _, step := range []struct {
		event     string
		due, with func(*known) bool
		do        func(*known)
	}{
		{Over, func(k *known) bool { return k.Firing && is(k.gone, k.calm(r)) },
			func(k *known) bool { return k.Firing && is(k.gone, r.after) },
			func(k *known) {
				k.Firing, k.Ended, k.Worst, k.seen = false, at, "", time.Time{}
				k.Times++
			}},
		{Began, func(k *known) bool { return !k.Firing && here(k) && is(k.seen, r.after) },
			func(k *known) bool { return !k.Firing && here(k) },
			func(k *known) {
				if at.Sub(k.Ended) > remembered {
					k.Times = 0
				}
				k.Firing, k.Told, k.Worst = true, at, k.Level
			}},
		{Worse, func(k *known) bool { return k.Firing && here(k) && is(k.worse, r.after) },
			func(k *known) bool { return k.Firing && here(k) && !k.worse.IsZero() },
			func(k *known) { k.Told, k.Worst, k.worse = at, k.Level, time.Time{} }},
		{Still, func(k *known) bool {
			return k.Firing && here(k) && (k.Told.IsZero() || r.repeat > 0 && !k.quiet && at.Sub(k.Told) >= r.repeat)
		},
			func(k *known) bool { return k.Firing && here(k) },
			func(k *known) { k.Told = at }},
	} {
		for _, group := range s.groups(step.due, step.with) {
			m := Message{ID: newID(at), At: at, Event: step.event, Kind: group[0].Kind}
			for _, k := range group {
				t := Told{Of: k.Of, Since: k.Since, Level: k.Level, What: k.What, Do: k.Do, Numbers: maps.Clone(k.Numbers)}
				if step.event == Over {
					until := k.gone
					t.Until, t.Do = &until, ""
				}
				if rank(t.Level) >= rank(m.Level) {
					m.Level = t.Level
				}
				m.Troubles = append(m.Troubles, t)
				step.do(k)
			}
			news = append(news, m)
		}
	}
	for i := range news {
		news[i].Firing = s.firing()
	}
	return news, changed || len(news) > 0
}

// setBack lets nothing be later than now: the clock was set back, by as much as it may be, and what was to last a minute
// would not be told for days. What was to be waited for begins anew.
func (s *state) setBack(now time.Time) {
	for _, k := range s.Known {
		for _, t := range []*time.Time{&k.Since, &k.Told, &k.Ended, &k.seen, &k.worse, &k.gone} {
			if t.After(now) {
				*t = now
			}
		}
	}
	for name, t := range s.Marks {
		if t.After(now) {
			s.Marks[name] = now
		}
	}
	if s.MarksSaved.After(now) {
		s.MarksSaved = now
	}
}

// groups are those who are due, each with all who go along, in a fixed order.
func (s *state) groups(due, with func(*known) bool) (groups [][]*known) {
	all := slices.SortedFunc(maps.Values(s.Known), func(a, b *known) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Of, b.Of))
	})
	for len(all) > 0 {
		end := 1
		for end < len(all) && all[end].Kind == all[0].Kind && all[end].Cause == all[0].Cause {
			end++
		}
		if same := all[:end]; slices.ContainsFunc(same, due) {
			groups = append(groups, slices.DeleteFunc(slices.Clone(same), func(k *known) bool { return !due(k) && !with(k) }))
		}
		all = all[end:]
	}
	return groups
}

func (s *state) firing() []Ref {
	refs := []Ref{}
	for _, f := range s.list().Firing {
		if len(refs) < mostRefs {
			refs = append(refs, Ref{f.Kind, f.Of, f.Level})
		}
	}
	return refs
}

// add puts messages at the end of those that wait. Beyond mostWaiting those behind the
// first, which may be on its way, are collapsed into the one behind them.
func (s *state) add(news []Message) {
	if len(news) > 0 && s.Dropped != nil {
		news[0].Earlier, s.Dropped = s.Dropped, nil
	}
	s.Waiting = append(s.Waiting, news...)
	for len(s.Waiting) > mostWaiting {
		collapse(&s.Waiting[1], &s.Waiting[2])
		s.Waiting = slices.Delete(s.Waiting, 1, 2)
	}
}

// collapse lets m tell that there was one more before it.
func collapse(gone, m *Message) { m.Earlier = gone.dropped(m.Earlier) }

// dropped is what is told of a message that is not posted, and of those before it and,
// if there were such, after it.
func (m *Message) dropped(after *Earlier) *Earlier {
	e := Earlier{From: m.At}
	if m.Earlier != nil {
		e = *m.Earlier
	}
	e.Count, e.To = e.Count+1, m.At
	if after != nil {
		e.Count, e.To = e.Count+after.Count, after.To
	}
	return &e
}

func newID(at time.Time) string {
	return ulid.MustNew(ulid.Timestamp(at), rand.Reader).String()
}
