package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/queue"
)

func init() {
	verbs["queue-look"] = lookVerb
	readsOnly["queue-look"] = true
}

// statsQuestion is what queue-stats wants to know beside what everybody is told.
type statsQuestion struct {
	Ages    []int64 `json:"ages_s,omitempty"` // rising; none = ageBuckets
	By      string  `json:"by,omitempty"`     // reason | event | status | user; "" = no groups
	Top     int     `json:"top,omitempty"`    // groups
	ShowIDs bool    `json:"show_ids,omitempty"`
}

// plain says that it is what everybody is told.
func (q *statsQuestion) plain() bool { return len(q.Ages) == 0 && q.By == "" }

func (q *statsQuestion) ages() []time.Duration {
	if len(q.Ages) == 0 {
		return ageBuckets
	}
	ages := make([]time.Duration, len(q.Ages))
	for i, s := range q.Ages {
		ages[i] = time.Duration(s) * time.Second
	}
	return ages
}

var groupings = []string{"reason", "event", "status", "user"}

// lookVerb answers with one snapshot.
func lookVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	var q statsQuestion
	if err := readInput(in, &q); err != nil {
		return err
	}
	if !slices.IsSorted(q.Ages) || q.By != "" && !slices.Contains(groupings, q.By) {
		return exit(exitUsage, errors.New("what is asked for is no question about the queue"))
	}
	snap, err := snapshotFor(h, &q)
	if err != nil {
		return err
	}
	return tell(out, snap)
}

func snapshotFor(h house, q *statsQuestion) (admin.Snapshot, error) {
	d, running := h.(*daemon)
	if !running {
		return filesSnapshotFor(h.config(), time.Now(), q)
	}
	snap, err := d.snapshot(q.ages())
	if err != nil || q.By == "" {
		return snap, exit(exitIO, err)
	}
	g := grouping{q, snap.At, lazyHash(func() (userHash, error) { return openUserHash(d.config().Storage.Dir) })}
	for i := range snap.Syncs {
		y := &snap.Syncs[i]
		c := d.consumer(y.Name)
		if c == nil {
			continue // it has just been closed
		}
		if err := g.add(y, c.Sample); err != nil {
			return snap, exit(exitIO, err)
		}
	}
	return snap, nil
}

// filesSnapshotFor is filesSnapshot of an installation that is stopped.
func filesSnapshotFor(cfg *config.Config, now time.Time, q *statsQuestion) (admin.Snapshot, error) {
	if q.plain() {
		return filesSnapshot(cfg, now)
	}
	snap, err := filesSnapshotOf(cfg, now, q.ages())
	if err != nil || q.By == "" {
		return snap, err
	}
	g := grouping{q, snap.At, lazyHash(func() (userHash, error) { return storedUserHash(cfg.Storage.Dir) })}
	for i := range snap.Syncs {
		y := &snap.Syncs[i]
		if y.LedgerDamaged {
			continue
		}
		err := g.add(y, func(most int, f func(queue.Sampled)) (bool, error) {
			return queue.SampleFiles(cfg.Storage.Dir, y.Name, most, f)
		})
		if err != nil {
			return snap, err
		}
	}
	return snap, nil
}

// grouping puts together what is pending.
type grouping struct {
	*statsQuestion
	now  time.Time
	hash func() userHash
}

// sampleSize is how many records are looked at. Some shares of them are opened: that
// takes microseconds each.
const sampleSize = 2000

// part of what is pending, before it is scaled to what is known to be there.
type groupPart struct {
	weight float64
	oldest int64
	ages   []float64
}

func (g *grouping) add(y *admin.Sync, sample func(int, func(queue.Sampled)) (bool, error)) error {
	ages := g.ages()
	detail := queue.Detail{Now: g.now, Bounds: ages}
	parts := map[string]*groupPart{}
	whole := map[string]float64{} // by state: what was looked at stands for so much
	type item struct {
		queue.Sampled
		key string
	}
	var items []item
	all, err := sample(sampleSize, func(s queue.Sampled) {
		state := s.State
		if state == queue.StateReady && y.Depth.Held > 0 {
			state = "held"
		}
		s.State = state
		whole[state] += s.Weight
		items = append(items, item{s, g.keyOf(y, &s)})
	})
	if err != nil {
		return err
	}
	known := map[string]uint64{queue.StateReady: y.Depth.Ready, queue.StateInFlight: y.Depth.InFlight, queue.StateRetry: y.Depth.Retry, "held": y.Depth.Held}
	sampled := 0.0
	for _, w := range whole {
		sampled += w
	}
	for _, it := range items {
		p := parts[it.key]
		if p == nil {
			p = &groupPart{ages: make([]float64, len(ages)+1)}
			parts[it.key] = p
		}
		// The counts are exact, and a moment older than the sample. Of one that is stopped
		// they do not say what waits for a retry.
		w := it.Weight * float64(known[it.State]) / whole[it.State]
		if y.Depth.Retry == 0 && whole[queue.StateRetry] > 0 {
			w = it.Weight * float64(y.Books.Pending) / sampled
		}
		p.weight += w
		p.ages[detail.Class(it.Received)] += w
		if p.oldest == 0 || it.Received < p.oldest {
			p.oldest = it.Received
		}
	}
	y.Groups = g.rows(parts, all)
	return nil
}

// rows makes groups of what was put together, the largest first.
func (g *grouping) rows(parts map[string]*groupPart, all bool) *admin.Groups {
	groups := &admin.Groups{By: g.By, Rows: []admin.Group{}, Approximate: !all}
	bounds := g.ages()
	for _, key := range sortedKeys(parts) {
		p := parts[key]
		row := admin.Group{Key: key, Count: uint64(math.Round(p.weight)), OldestAge: ageOf(p.oldest, g.now)}
		counts := make([]uint64, len(p.ages))
		for i, w := range p.ages {
			counts[i] = uint64(math.Round(w))
		}
		row.AgeBuckets = bucketsOf(counts, bounds, bounds)
		if row.Count > 0 {
			groups.Rows = append(groups.Rows, row)
		}
	}
	slices.SortStableFunc(groups.Rows, func(a, b admin.Group) int { return cmp.Compare(b.Count, a.Count) })
	if g.Top > 0 && len(groups.Rows) > g.Top {
		for _, row := range groups.Rows[g.Top:] {
			groups.LeftOut++
			groups.LeftOutCount += row.Count
		}
		groups.Rows = groups.Rows[:g.Top]
	}
	return groups
}

// keyOf is the group that a record belongs to.
func (g *grouping) keyOf(y *admin.Sync, s *queue.Sampled) string {
	switch g.By {
	case "status":
		return s.State
	case "reason":
		switch {
		case s.State == queue.StateRetry && s.Behind:
			return "behind_same_user"
		case s.State == queue.StateRetry:
			return s.Reason
		case s.State == "held":
			return cmp.Or(y.Reason, y.Status)
		}
		return s.State
	}
	if s.Forgotten || s.Body == nil {
		return "unknown"
	}
	l := openDeadLetter(y.Name, queue.DeadLetter{Record: s.Record})
	if g.By == "event" {
		return clipText(l.event, 100)
	}
	if g.ShowIDs {
		return l.user()
	}
	if key := g.hash(); key != nil {
		return key.of(l.user())
	}
	return "unknown"
}
