package clocks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// Poisoned events are refused for good, and are kept for 90 days.
const poisoned = "Poisoned"

// dated sends events of users whose clocks are wrong, and poisoned ones now and then: those that Customer.io never takes.
type dated struct {
	r    *rehearsal.Rehearsal
	rng  *rand.Rand
	seed uint64
	next int   // the number of the next event
	seqs []int // by user, of the last that was acknowledged

	sent, poison atomic.Int64 // acknowledged; sent are all
}

func newDated(r *rehearsal.Rehearsal, seed uint64) *dated {
	return &dated{r: r, rng: rand.New(rand.NewPCG(seed, 1970)), seed: seed, seqs: make([]int, 10)}
}

func datedUser(u int) string { return fmt.Sprintf("dated-user-%d", u) }

// longAgo and farOff are what a wrong clock may say, in ms, and uploads what a request may say of that clock: then ampcio
// corrects it. Of what is dated before 2001 and cannot be corrected Customer.io takes nothing.
var (
	longAgo = []int64{1, 1000, 86_400_000, 915_148_800_000}
	farOff  = []int64{4_102_444_800_000, 7_258_118_400_000, 9_007_199_254_740_991}
	uploads = []string{"1970-01-01T00:00:00.001Z", "1970-01-01T00:00:01.000Z", "2100-01-01T00:00:00.000Z", "2200-01-01T00:00:00.000Z"}
)

// run sends so many events more.
func (d *dated) run(ctx context.Context, events int, spread time.Duration) error {
	for range events {
		i := d.next
		d.next++
		u := d.rng.IntN(len(d.seqs))
		uploaded, when, corrected := "", "", d.rng.IntN(2) == 0
		if corrected {
			uploaded = fmt.Sprintf(`,"client_upload_time":%q`, uploads[d.rng.IntN(len(uploads))])
		}
		old := false
		switch d.rng.IntN(4) {
		case 0:
			old = true
			when = fmt.Sprintf(`,"time":%d`, longAgo[d.rng.IntN(len(longAgo))])
		case 1:
			when = fmt.Sprintf(`,"time":%d`, farOff[d.rng.IntN(len(farOff))])
		case 2:
			when = fmt.Sprintf(`,"time":%d`, time.Now().UnixMilli())
		}
		name, seq := "Order Completed", d.seqs[u]+1
		properties := fmt.Sprintf(`,"event_properties":{"seq":%d},"user_properties":{"plan":"p%d"}`, seq, seq)
		bad := d.rng.IntN(20) == 0 || old && !corrected
		if bad {
			properties, seq = "", d.seqs[u]
			if !old || corrected {
				name = poisoned
			}
		}
		body := fmt.Appendf(nil, `{"api_key":%q%s,"events":[{"event_type":%q,"user_id":%q,"device_id":"dated-device-%d","insert_id":"dated-%d-%d"%s%s}]}`,
			recordings.Key, uploaded, name, datedUser(u), u, d.seed, i, when, properties)
		if err := d.r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body); err != nil {
			return err
		}
		d.sent.Add(1)
		if d.seqs[u] = seq; bad {
			d.poison.Add(1)
		}
		select {
		case <-time.After(spread / time.Duration(events)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// verdict says what of all this is not at Customer.io, which itself has looked at the order.
func (d *dated) verdict(s *sandbox.Sandbox) (problems []string) {
	seen, plans := map[string]int{}, map[string]string{}
	for _, e := range s.Events(0, int(s.Report().Events.Kept)) {
		if strings.HasPrefix(e.PersonID, "dated-user-") {
			seen[e.PersonID]++
		}
	}
	for _, p := range s.People() {
		plans[p.ID] = string(p.Attributes["plan"])
	}
	for u, last := range d.seqs {
		name := datedUser(u)
		if seen[name] != last {
			problems = append(problems, fmt.Sprintf("%s has sent %d events, Customer.io has %d", name, last, seen[name]))
		}
		if plan := strconv.Quote(fmt.Sprintf("p%d", last)); last > 0 && plans[name] != plan {
			problems = append(problems, fmt.Sprintf("%s has the plan %s, at Customer.io %s", name, plan, plans[name]))
		}
	}
	return problems
}
