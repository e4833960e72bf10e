package rehearsal

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

// Traffic generates events of many users and remembers what was acknowledged, so
// that it can be compared with what Customer.io has got. The events of a user carry
// a rising "seq", without gaps among those that are to be forwarded.
type Traffic struct {
	r       *Rehearsal
	Users   int
	events  int // to be forwarded
	senders int
	seed    uint64
	// Allow, if set, gives an element for each request that may be sent; closed, all may.
	Allow <-chan struct{}

	Acked    []atomic.Int64 // by user: the highest acknowledged seq
	Sent     atomic.Int64   // acknowledged events, repeats and dropped ones included
	Repeats  atomic.Int64   // events sent again although they were acknowledged
	Dropped  atomic.Int64   // acknowledged events that the rules drop
	Recorded atomic.Int64   // acknowledged recorded events
}

// NewTraffic is traffic of so many users, with so many events to be forwarded.
func NewTraffic(r *Rehearsal, users, events int, seed uint64) *Traffic {
	return &Traffic{r: r, Users: users, events: events, senders: 8, seed: seed, Acked: make([]atomic.Int64, users)}
}

// UserName is the user_id of a user.
func UserName(u int) string { return fmt.Sprintf("demo-user-%05d", u) }

// Run sends everything, spread over about the given time, and returns when all of it
// is acknowledged. A user belongs to one sender, so requests of a user never race.
func (t *Traffic) Run(ctx context.Context, spread time.Duration) error {
	var g errgroup.Group
	for s := range t.senders {
		g.Go(func() error { return t.send(ctx, s, spread) })
	}
	return g.Wait()
}

func (t *Traffic) send(ctx context.Context, sender int, spread time.Duration) error {
	rng := rand.New(rand.NewPCG(t.seed, uint64(sender)))
	var mine []int
	for u := sender; u < t.Users; u += t.senders {
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
		if t.Allow != nil {
			select {
			case <-t.Allow:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		body, seqs, dropped := t.request(rng, mine, next, min(each, left))
		left -= min(each, left)
		for again := 0; ; again++ {
			if err := t.r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body); err != nil {
				return err
			}
			n := int64(strings.Count(string(body), `"event_type"`))
			t.Sent.Add(n)
			if again > 0 {
				t.Repeats.Add(n)
			}
			// Now and then a sender did not hear the answer, and sends it all again.
			if again > 0 || rng.IntN(10) > 0 {
				break
			}
		}
		for u, seq := range seqs {
			t.Acked[u].Store(seq)
		}
		t.Dropped.Add(dropped)
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
func (t *Traffic) request(rng *rand.Rand, users []int, next map[int]int64, n int) (body []byte, seqs map[int]int64, dropped int64) {
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
			UserName(u), u, t.seed, u, next[u], now, next[u], rng.IntN(100), planOf(next[u]), u)
		if rng.IntN(20) == 0 {
			dropped++
			fmt.Fprintf(&b, `,{"event_type":%q,"user_id":%q,"device_id":"device-%05d","insert_id":"h%d-%d-%d","time":%d}`,
				Drop, UserName(u), u, t.seed, u, rng.Uint64(), now)
		}
	}
	b.WriteString(`]}`)
	return []byte(b.String()), seqs, dropped
}

// Replay sends the recorded requests of real SDKs, byte for byte, and gives the ids
// that Customer.io must then know: those of events with a user, a device and an
// insert_id, by the identity that ampcio publishes.
func (t *Traffic) Replay(ctx context.Context) (ids map[string]string, err error) {
	ids = map[string]string{}
	for _, rec := range recordings.All() {
		if err := t.r.Post(ctx, rec.Path, rec.Header, rec.Body); err != nil {
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
			t.Recorded.Add(1)
			t.Sent.Add(1)
			if e.UserID != "" && e.DeviceID != "" && e.InsertID != "" && e.Type != "$identify" && e.Type != "$groupidentify" {
				ids[mapping.ULID(mapping.EventID("app", "device", e.DeviceID, e.InsertID))] = e.Type
			}
		}
	}
	return ids, nil
}

// Verdict compares what was acknowledged with what the sandbox has, and with the books.
type Verdict struct {
	Acknowledged int64 // events to be forwarded
	Delivered    int64 // of those, in the sandbox
	Lost         int64
	Doubled      int64
	OutOfOrder   int64
	Repeats      int64 // ignored by the sandbox: same id
	Books        admin.Snapshot
	Problems     []string
}

func (t *Traffic) Verdict(ids map[string]string, books admin.Snapshot) Verdict {
	v := Verdict{Books: books}
	report := t.r.Sandbox.Report()
	seen := map[string]int64{}  // user → events accepted
	known := map[string]int64{} // recorded id → times accepted
	for _, e := range t.r.Sandbox.Events(0, int(report.Events.Kept)) {
		if strings.HasPrefix(e.PersonID, "demo-user-") && e.Name == "Order Completed" {
			seen[e.PersonID]++
		}
		if _, ok := ids[e.ID]; ok {
			known[e.ID]++
		}
	}
	count := func(want, got int64) {
		v.Acknowledged += want
		v.Delivered += min(want, got)
		v.Lost += max(want-got, 0)
		v.Doubled += max(got-want, 0)
	}
	plans := map[string]string{}
	for _, p := range t.r.Sandbox.People() {
		plans[p.ID] = string(p.Attributes["plan"])
	}
	outdated := 0
	for u := range t.Users {
		last := t.Acked[u].Load()
		count(last, seen[UserName(u)])
		if last > 0 && plans[UserName(u)] != strconv.Quote(planOf(last)) {
			outdated++
		}
	}
	for id := range ids {
		count(1, known[id])
	}
	v.Lost = max(v.Lost, report.Order.Missing)
	v.Doubled = max(v.Doubled, report.Order.Repeated)
	v.OutOfOrder = report.Order.OutOfOrder
	v.Repeats = report.Events.Duplicates
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
		}
	}
	expect(v.Lost == 0, "%d acknowledged events are not in Customer.io", v.Lost)
	expect(v.Doubled == 0, "%d events are twice in Customer.io", v.Doubled)
	expect(v.OutOfOrder == 0, "%d events came out of order: %s", v.OutOfOrder, report.Order.First)
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
		expect(filtered == uint64(t.Dropped.Load()), "%d events were dropped by the rules, %d should have been", filtered, t.Dropped.Load())
		taken := t.Sent.Load() - t.Repeats.Load()
		expect(y.Books.Taken == uint64(taken), "%d records were taken, %d events were acknowledged", y.Books.Taken, taken)
	}
	return v
}
