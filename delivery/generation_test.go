package delivery_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/sandbox"
)

// One generation of a sync after the other, under load and amid failures, with other
// rules each time: nothing is lost, nobody is in two requests at a time, and nothing
// comes twice that was answered.
func TestGenerations(t *testing.T) {
	for _, test := range []struct {
		faults string
		repeat bool
	}{
		{"latency=150ms,jitter=100ms", false},
		{"latency=50ms,jitter=50ms,500=0.2,429=0.1,cut_before=0.1", false},
		{`latency=50ms,poison="user-7"`, false},
		{"latency=50ms,cut_after=0.2,truncate=0.1", true},
	} {
		t.Run(test.faults, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				const users, n = 40, 30
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, CheckOverlap: true, Seed: 11, Faults: faults(t, test.faults)})
				var asked atomic.Uint64
				h := open(t, dir, tap(box, func(r *http.Request, _ []byte) {
					if r.Method == http.MethodPost {
						asked.Add(1)
					}
				}), rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 10 })
				for i, events := 0, traffic(users, n); len(events) > 0; i++ {
					h.append(events[:min(len(events), 30)]...)
					events = events[min(len(events), 30):]
					time.Sleep(170 * time.Millisecond)
					began := time.Now()
					h.reload(rules(t, func(s *mapping.Spec) { s.EventProperties = []string{"n", fmt.Sprintf("x%d", i)} }), nil)
					if took := time.Since(began); took > time.Second {
						t.Errorf("a generation took %v to end", took)
					}
				}
				requests := h.sync.Status().Requests
				box.SetFaults(sandbox.Faults{})
				stats := h.drained(10 * time.Minute)
				h.close()
				if b := stats.Books; b.Delivered != users*n || b.Dead != 0 {
					t.Errorf("books %+v", b)
				}
				r := complete(t, box, users, n)
				if r.Order.Overlaps != 0 || r.Events.Duplicates != 0 && !test.repeat {
					t.Errorf("%d overlaps, %d events came again", r.Order.Overlaps, r.Events.Duplicates)
				}
				if s := h.sync.Status(); s.Requests < requests || s.Requests != asked.Load() || s.Operations == 0 {
					t.Errorf("counts of all generations: %+v, and %d requests came", s, asked.Load())
				}
			})
		})
	}
}

// A generation whose requests hang ends within StopGrace, and the next goes on.
func TestGenerationThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "hang=1,hang_for=10h,on=data")})
		defer box.Close()
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.StopGrace = 3 * time.Second })
		h.append(traffic(10, 12)...)
		h.within(time.Minute, "requests are in flight", func() bool { return h.sync.Status().InFlight > 0 })
		synctest.Wait() // they hang: each has met the fault before it is taken away
		box.SetFaults(sandbox.Faults{})
		began := time.Now()
		h.reload(rules(t, nil), nil)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("the reload took %v", took)
		}
		h.drained(time.Second)
		h.close()
		complete(t, box, 10, 12)
	})
}

// However often it is reloaded: wrong keys are shown at most once a minute, and other
// keys at once.
func TestBlockedOverGenerations(t *testing.T) {
	for _, test := range []struct {
		name   string
		faults string
	}{{"wrong key", ""}, {"data unauthorized", "401=1,on=data"}} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, test.faults)})
				var asked, sent atomic.Int64
				h := open(t, dir, tap(box, func(r *http.Request, _ []byte) {
					if r.Method == http.MethodGet {
						asked.Add(1)
					} else {
						sent.Add(1)
					}
				}), rules(t, nil), func(o *delivery.Options) {
					if test.faults == "" {
						o.APIKey = "revoked"
					}
				})
				h.append(traffic(10, 12)...)
				h.within(time.Second, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
				since := h.sync.Status().Since
				// No divisor of a minute: a reload in the very moment of a question may ask once more.
				for range 86 {
					time.Sleep(7 * time.Second)
					h.reload(rules(t, nil), nil)
				}
				time.Sleep(time.Second)
				if n := asked.Load(); n > 10+2 {
					t.Errorf("asked %d times in ten minutes", n)
				}
				if n := sent.Load(); n > 4*12 {
					t.Errorf("%d requests of data in ten minutes", n)
				}
				s := h.sync.Status()
				if d := time.Until(s.NextProbe); s.State != delivery.Blocked || s.Reason != "http_401" || d <= 0 || d > time.Minute {
					t.Errorf("status %+v", s)
				}
				if test.faults == "" && !s.Since.Equal(since) {
					t.Errorf("blocked since %v, says %v", since, s.Since)
				}
				if st := h.stats(); st.Books.Pending != 120 || st.Books.Dead != 0 {
					t.Errorf("books %+v", st.Books)
				}
				box.SetFaults(sandbox.Faults{})
				h.reload(rules(t, nil), func(o *delivery.Options) {
					if o.APIKey = secret; test.faults != "" {
						o.SiteID = "site" // the same keys, which are good again: a person says so
					}
				})
				if test.faults != "" {
					h.sync.RetryNow()
				}
				h.drained(2 * time.Second)
				h.close()
				if r := box.Report(); r.Events.Unique != 120 || r.Events.Duplicates != 0 || r.Order.OutOfOrder+r.Order.Missing != 0 {
					t.Errorf("events %+v, order %+v", r.Events, r.Order)
				}
			})
		})
	}
}
