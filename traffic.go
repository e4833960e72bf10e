package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio/admin"
	"ampcio/mapping"
	"ampcio/recordings"
)

// traffic generates events of many users and remembers what was acknowledged, so
// that it can be compared with what Customer.io has got. The events of a user carry
// a rising "seq", without gaps among those that are to be forwarded.
type traffic struct {
	r       *rehearsal
	users   int
	events  int // to be forwarded
	senders int
	seed    uint64

	acked    []atomic.Int64 // by user: the highest acknowledged seq
	sent     atomic.Int64   // acknowledged events, repeats and dropped ones included
	repeats  atomic.Int64   // events sent again although they were acknowledged
	dropped  atomic.Int64   // acknowledged events that the rules drop
	recorded atomic.Int64   // acknowledged recorded events
}

func newTraffic(r *rehearsal, users, events int, seed uint64) *traffic {
	return &traffic{r: r, users: users, events: events, senders: 8, seed: seed, acked: make([]atomic.Int64, users)}
}

func userName(u int) string { return fmt.Sprintf("demo-user-%05d", u) }

// run sends everything, spread over about the given time, and returns when all of it
// is acknowledged. A user belongs to one sender, so requests of a user never race.
func (t *traffic) run(ctx context.Context, spread time.Duration) error {
	var g errgroup.Group
	for s := range t.senders {
		g.Go(func() error { return t.send(ctx, s, spread) })
	}
	return g.Wait()
}

func (t *traffic) send(ctx context.Context, sender int, spread time.Duration) error {
	rng := rand.New(rand.NewPCG(t.seed, uint64(sender)))
	var mine []int
	for u := sender; u < t.users; u += t.senders {
		mine = append(mine, u)
	}
	left := t.events / t.senders
	if sender < t.events%t.senders {
		left++
	}
	const each = 25 // events of a request
	requests := (left + each - 1) / each
	next := make(map[int]int64, len(mine))
	begin := time.Now()
	for i := range requests {
		body, seqs, dropped := t.request(rng, mine, next, min(each, left))
		left -= min(each, left)
		for again := 0; ; again++ {
			if err := t.r.post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body); err != nil {
				return err
			}
			n := int64(strings.Count(string(body), `"event_type"`))
			t.sent.Add(n)
			if again > 0 {
				t.repeats.Add(n)
			}
			// Now and then a sender did not hear the answer, and sends it all again.
			if again > 0 || rng.IntN(10) > 0 {
				break
			}
		}
		for u, seq := range seqs {
			t.acked[u].Store(seq)
		}
		t.dropped.Add(dropped)
		pause := time.Until(begin.Add(spread * time.Duration(i+1) / time.Duration(requests)))
		select {
		case <-time.After(max(pause, 0)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// planOf is the plan that a user has from the event with this seq on.
func planOf(seq int64) string { return []string{"free", "pro", "team"}[seq/10%3] }

// request builds a request of n events to be forwarded, and some that the rules drop.
// seqs are the highest number of each user in it.
func (t *traffic) request(rng *rand.Rand, users []int, next map[int]int64, n int) (body []byte, seqs map[int]int64, dropped int64) {
	seqs = map[int]int64{}
	var b strings.Builder
	fmt.Fprintf(&b, `{"api_key":%q,"events":[`, recordings.Key)
	now := time.Now().UnixMilli()
	for i := range n {
		u := users[rng.IntN(len(users))]
		next[u]++
		seqs[u] = next[u]
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"event_type":"Order Completed","user_id":%q,"device_id":"device-%05d","insert_id":"%d-%d-%d","time":%d,`+
			`"event_properties":{"seq":%d,"total":%d.5,"currency":"EUR"},"user_properties":{"plan":%q,"email":"u%d@example.com"}}`,
			userName(u), u, t.seed, u, next[u], now, next[u], rng.IntN(100), planOf(next[u]), u)
		if rng.IntN(20) == 0 {
			dropped++
			fmt.Fprintf(&b, `,{"event_type":%q,"user_id":%q,"device_id":"device-%05d","insert_id":"h%d-%d-%d","time":%d}`,
				demoDrop, userName(u), u, t.seed, u, rng.Uint64(), now)
		}
	}
	b.WriteString(`]}`)
	return []byte(b.String()), seqs, dropped
}

// replay sends the recorded requests of real SDKs, byte for byte, and gives the ids
// that Customer.io must then know: those of events with a user, a device and an
// insert_id, by the identity that ampcio publishes.
func (t *traffic) replay(ctx context.Context) (ids map[string]string, err error) {
	ids = map[string]string{}
	for _, rec := range recordings.All() {
		if err := t.r.post(ctx, rec.Path, rec.Header, rec.Body); err != nil {
			return nil, fmt.Errorf("%s: %w", rec.Name, err)
		}
		var body struct {
			Events []json.RawMessage `json:"events"`
		}
		if err := json.Unmarshal(rec.Body, &body); err != nil {
			return nil, fmt.Errorf("%s: %w", rec.Name, err)
		}
		for _, raw := range body.Events {
			e, _ := mapping.ParseEvent(raw)
			t.recorded.Add(1)
			t.sent.Add(1)
			if e.UserID != "" && e.DeviceID != "" && e.InsertID != "" && e.Type != "$identify" && e.Type != "$groupidentify" {
				ids[mapping.ULID(mapping.EventID("app", "device", e.DeviceID, e.InsertID))] = e.Type
			}
		}
	}
	return ids, nil
}

// verdict compares what was acknowledged with what the sandbox has, and with the books.
type verdict struct {
	acknowledged int64 // events to be forwarded
	delivered    int64 // of those, in the sandbox
	lost         int64
	doubled      int64
	outOfOrder   int64
	repeats      int64 // ignored by the sandbox: same id
	books        admin.Snapshot
	problems     []string
}

func (t *traffic) verdict(ids map[string]string, books admin.Snapshot) verdict {
	v := verdict{books: books}
	report := t.r.sandbox.Report()
	seen := map[string]int64{}  // user → events accepted
	known := map[string]int64{} // recorded id → times accepted
	for _, e := range t.r.sandbox.Events(0, int(report.Events.Kept)) {
		if strings.HasPrefix(e.PersonID, "demo-user-") && e.Name == "Order Completed" {
			seen[e.PersonID]++
		}
		if _, ok := ids[e.ID]; ok {
			known[e.ID]++
		}
	}
	count := func(want, got int64) {
		v.acknowledged += want
		v.delivered += min(want, got)
		v.lost += max(want-got, 0)
		v.doubled += max(got-want, 0)
	}
	plans := map[string]string{}
	for _, p := range t.r.sandbox.People() {
		plans[p.ID] = string(p.Attributes["plan"])
	}
	outdated := 0
	for u := range t.users {
		last := t.acked[u].Load()
		count(last, seen[userName(u)])
		if last > 0 && plans[userName(u)] != strconv.Quote(planOf(last)) {
			outdated++
		}
	}
	for id := range ids {
		count(1, known[id])
	}
	v.lost = max(v.lost, report.Order.Missing)
	v.doubled = max(v.doubled, report.Order.Repeated)
	v.outOfOrder = report.Order.OutOfOrder
	v.repeats = report.Events.Duplicates
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			v.problems = append(v.problems, fmt.Sprintf(format, args...))
		}
	}
	expect(v.lost == 0, "%d acknowledged events are not in Customer.io", v.lost)
	expect(v.doubled == 0, "%d events are twice in Customer.io", v.doubled)
	expect(v.outOfOrder == 0, "%d events came out of order: %s", v.outOfOrder, report.Order.First)
	expect(report.Order.Overlaps == 0, "%d times a person was in two requests at once: %s", report.Order.Overlaps, report.Order.FirstOverlap)
	expect(report.Events.Differing == 0, "two events share the id %s", report.Events.FirstDiffering)
	// After a crash some user updates come again that others followed already. Customer.io
	// ignores them as older, and what counts is what people have in the end.
	expect(outdated == 0, "%d users have not in Customer.io what their last event says", outdated)
	expect(len(books.Syncs) == 1, "%d syncs in the books", len(books.Syncs))
	for _, y := range books.Syncs {
		expect(y.Books.Balanced, "the books of sync %s are out by %d", y.Name, y.Books.Difference)
		expect(y.Books.Pending == 0, "%d records are still pending", y.Books.Pending)
		expect(y.Totals.Dead == 0, "%d records were refused for good", y.Totals.Dead)
		expect(y.Totals.Lost == 0, "%d records were lost on disk", y.Totals.Lost)
		var filtered uint64
		for _, r := range y.Filtered {
			if r.Reason == "dropped_by_rule" {
				filtered = r.Count
			}
		}
		expect(filtered == uint64(t.dropped.Load()), "%d events were dropped by the rules, %d should have been", filtered, t.dropped.Load())
		taken := t.sent.Load() - t.repeats.Load()
		expect(y.Books.Taken == uint64(taken), "%d records were taken, %d events were acknowledged", y.Books.Taken, taken)
	}
	return v
}
