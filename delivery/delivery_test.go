package delivery_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/sandbox"
)

// traffic is n events for each of some users, interleaved; each event's property
// n rises by one per user, and every third changes the user's plan.
func traffic(users, n int) []event {
	rng := rand.New(rand.NewPCG(1, 2))
	next := make([]int, users)
	var events []event
	for range users * n {
		u := rng.IntN(users)
		for next[u] == n {
			u = (u + 1) % users
		}
		next[u]++
		events = append(events, event{
			user: fmt.Sprintf("user-%d", u), n: next[u],
			properties: fmt.Sprintf(`{"plan":"p%d","age":%d}`, next[u]/3, u),
		})
	}
	return events
}

// complete fails unless the sandbox has every event of the traffic once and in
// order, and everybody's last plan.
func complete(t *testing.T, box *sandbox.Sandbox, users, n int) sandbox.Report {
	t.Helper()
	r := box.Report()
	if r.Events.Unique != int64(users*n) || r.Order.Checked != int64(users*n) {
		t.Errorf("%d unique events of %d", r.Events.Unique, users*n)
	}
	if r.Order.OutOfOrder+r.Order.Missing+r.Order.Repeated+r.Events.Differing != 0 {
		t.Errorf("order: %+v events: %+v", r.Order, r.Events)
	}
	// All was received within a second, so many identifies have the same time.
	delete(r.Notes, "attribute_changed_twice_in_a_second")
	if r.Identifies.Stale != 0 || r.FirstInvalid != "" || len(r.Notes) > 0 {
		t.Errorf("identifies: %+v first invalid: %q notes: %v", r.Identifies, r.FirstInvalid, r.Notes)
	}
	for i := range users {
		p, _ := box.Person("id", fmt.Sprintf("user-%d", i))
		if got, want := string(p.Attributes["plan"]), fmt.Sprintf(`"p%d"`, n/3); got != want {
			t.Errorf("user-%d: plan %s, want %s", i, got, want)
		}
	}
	return r
}

// Whatever Customer.io and the way to it do, every event arrives once and in the
// order of its person, and nobody is given up.
func TestFaults(t *testing.T) {
	const users, n = 40, 25
	tests := []struct {
		name   string
		faults string
		within time.Duration
		repeat bool // the sandbox may see events again
		smooth bool // no request of data fails
	}{
		{name: "none", faults: "", within: 10 * time.Second, smooth: true},
		{name: "500", faults: "500=0.2", within: 5 * time.Minute},
		{name: "429 with Retry-After", faults: "429=0.2,retry_after=3s", within: 10 * time.Minute},
		{name: "too many requests", faults: "rate_limit=5,retry_after=1s", within: 10 * time.Minute},
		{name: "408", faults: "408=0.2", within: 5 * time.Minute},
		{name: "524", faults: "524=0.2", within: 5 * time.Minute},
		{name: "cut before processing", faults: "cut_before=0.2", within: 5 * time.Minute},
		{name: "cut after processing", faults: "cut_after=0.2", within: 5 * time.Minute, repeat: true},
		{name: "half an answer", faults: "truncate=0.2", within: 5 * time.Minute, repeat: true},
		{name: "silence", faults: "hang=0.1,hang_for=90s", within: time.Hour},
		{name: "hotel network", faults: "garbage=0.2", within: 5 * time.Minute},
		{name: "hotel network after processing", faults: "garbage_applied=0.2", within: 5 * time.Minute, repeat: true},
		{name: "outage of ten minutes", faults: "outage=0s+10m,on=data", within: 20 * time.Minute},
		{name: "outage, cut", faults: "outage=0s+2m:cut,on=data", within: 10 * time.Minute},
		{name: "outage, silent", faults: "outage=0s+2m:hang,on=data", within: 10 * time.Minute},
		{name: "outage before the account is checked", faults: "outage=0s+2m:cut", within: 10 * time.Minute, smooth: true},
		{name: "everything", faults: "500=0.05,429=0.05,cut_before=0.03,cut_after=0.03,truncate=0.03,garbage_applied=0.03,hang=0.02,outage=5s+20s:cut,latency=50ms,jitter=50ms",
			within: time.Hour, repeat: true},
	}
	for _, test := range fewUnderRace(tests, 4) {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Seed: 7, Faults: faults(t, test.faults)})
				defer box.Close()
				h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 20 })
				for events := traffic(users, n); len(events) > 0; events = events[min(len(events), 50):] {
					h.append(events[:min(len(events), 50)]...)
				}
				stats := h.drained(test.within)
				h.close()
				if stats.Books.Delivered != users*n || stats.Books.Dead+stats.Books.Filtered != 0 {
					t.Errorf("books: %+v", stats.Books)
				}
				r := complete(t, box, users, n)
				if r.Events.Duplicates > 0 && !test.repeat {
					t.Errorf("%d events came again", r.Events.Duplicates)
				}
				first, after := stats.Tallies["record/first_try"].N, stats.Tallies["record/after_retry"].N
				if first+after != users*n || test.smooth != (after == 0) {
					t.Errorf("delivered at first try %d, after retry %d", first, after)
				}
			})
		})
	}
}
