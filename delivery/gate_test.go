package delivery_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/sandbox"
)

// crowd is one event each of some users.
func crowd(users int) []event {
	events := make([]event, users)
	for i := range events {
		events[i] = event{user: fmt.Sprintf("user-%d", i), n: 1, properties: `{"plan":"p0"}`}
	}
	return events
}

// In an outage one user at a time is tried, a different one each time, more and more
// seldom. When it is over all is delivered at once, in full requests, at first one
// in flight, then two, then four.
func TestOutage(t *testing.T) {
	const users, hours = 1000, 6
	tests := []struct {
		name   string
		begin  func(h *house, box *sandbox.Sandbox)
		reason string
		within int           // requests it takes until the gate is closed
		slow   time.Duration // how long a failure takes
	}{
		{name: "503", reason: "http_503", within: 6, begin: func(h *house, box *sandbox.Sandbox) { box.SetFaults(faults(t, "outage=6h,latency=100ms")) }},
		{name: "cut", reason: "connection_cut", within: 6, begin: func(h *house, box *sandbox.Sandbox) { box.SetFaults(faults(t, "outage=6h:cut,latency=100ms")) }},
		{name: "silence", reason: "timeout", within: 6, slow: 30 * time.Second, begin: func(h *house, box *sandbox.Sandbox) { box.SetFaults(faults(t, "outage=6h:hang,latency=100ms")) }},
		{name: "429", reason: "http_429", within: 6, begin: func(h *house, box *sandbox.Sandbox) {
			box.SetFaults(faults(t, "429=1,retry_after=never,on=data,latency=100ms"))
		}},
		{name: "refused", reason: "refused", begin: func(h *house, box *sandbox.Sandbox) {
			h.wire.cut(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
		}},
		{name: "dns", reason: "dns", begin: func(h *house, box *sandbox.Sandbox) {
			h.wire.cut(&net.DNSError{Err: "server misbehaving", IsTemporary: true})
		}},
	}
	for _, test := range fewUnderRace(tests, 2) {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "latency=100ms")})
				defer box.Close()
				seen := &watcher{t: t, inner: box}
				h := open(t, dir, seen, rules(t, nil), nil)
				h.append(crowd(10)...)
				h.drained(time.Minute)
				test.begin(h, box)
				began := time.Now()
				h.append(crowd(users)[10:]...)
				h.within(2*time.Minute, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				if n := len(seen.requests(began)); n > test.within {
					t.Errorf("%d requests until the gate was closed", n)
				}
				// What was in flight then has ended some time later.
				time.Sleep(test.slow + time.Second)
				closed := time.Now()

				time.Sleep(time.Until(began.Add(hours*time.Hour - time.Second)))
				s := h.sync.Status()
				if s.State != delivery.Unreachable || s.Reason != test.reason || s.Gate != delivery.GateClosed || s.Advice == "" || s.Detail == "" {
					t.Errorf("status %+v", s)
				}
				if d := s.Since.Sub(began); d < 0 || d > test.slow+time.Second {
					t.Errorf("closed since %v after the outage began", d)
				}
				if d := time.Until(s.NextProbe); d > 5*time.Minute || d < -test.slow {
					t.Errorf("next probe in %v", d)
				}
				if n := h.lines.count("level=WARN"); n < 1 || n > hours*6+2 {
					t.Errorf("%d lines in %d hours", n, hours)
				}
				probes := seen.requests(closed)
				tried := map[string]int{}
				for i, p := range probes {
					if len(p.people) != 1 || p.inFlight != 1 {
						t.Fatalf("probe %d is of %d users, %d in flight", i, len(p.people), p.inFlight)
					}
					if tried[p.people[0]]++; tried[p.people[0]] > 1 {
						t.Errorf("%s was tried twice within %d probes", p.people[0], i)
					}
					if i > 8 {
						if gap := p.at.Sub(probes[i-1].at); gap < 100*time.Second || gap > 5*time.Minute+test.slow+time.Second {
							t.Errorf("%v between probes %d and %d", gap, i-1, i)
						}
					}
				}
				if test.within > 0 && (len(probes) < hours*3600/300 || len(probes) > hours*3600/100+10) {
					t.Errorf("%d probes in %d hours", len(probes), hours)
				}
				if s := h.stats(); s.Books.Pending != users-10 || s.Books.Dead != 0 || s.Aside.Lanes != 0 {
					t.Errorf("stats %+v", s)
				}

				box.SetFaults(faults(t, "latency=100ms"))
				h.wire.cut(nil)
				over := time.Now()
				h.within(5*time.Minute+test.slow+time.Second, "the gate opens", func() bool { return h.sync.Status().Gate != delivery.GateClosed })
				opened := time.Now()
				h.drained(10 * time.Second)
				if took := time.Since(opened); took > 5*time.Second {
					t.Errorf("%d users took %v after the gate was opened", users, took)
				}
				after := seen.requests(over)
				if n := len(after); n > 1980/500+6 {
					t.Errorf("%d requests for what was left", n)
				}
				for i, r := range after {
					if most := max(1, i); r.inFlight > min(most, 4) {
						t.Errorf("request %d after the outage was one of %d in flight", i, r.inFlight)
					}
				}
				if s := h.sync.Status(); s.State != delivery.Delivering || !s.NextProbe.IsZero() || s.Reason != "" || s.Since.Before(opened.Add(-time.Minute)) {
					t.Errorf("status after the outage %+v", s)
				}
				h.close()
				r := box.Report()
				if r.Events.Unique != users || r.Events.Duplicates != 0 || r.Order.OutOfOrder+r.Order.Missing != 0 {
					t.Errorf("events %+v, order %+v", r.Events, r.Order)
				}
			})
		})
	}
}

// Retry-After closes the gate at once, and nothing is sent before it is over: not by
// any worker, nor by a new generation. A person may try all the same.
func TestRetryAfter(t *testing.T) {
	for _, spec := range []string{"429=1,retry_after=20m", "503=1,retry_after=20m"} {
		t.Run(spec, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, spec+",on=data,latency=1s")})
				seen := &watcher{t: t, inner: box}
				h := open(t, dir, seen, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 20 })
				h.append(crowd(100)...)
				h.within(10*time.Second, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				time.Sleep(2 * time.Second)
				if n := len(seen.requests(start)); n > 4 {
					t.Errorf("%d requests", n)
				}
				began := time.Now()
				s := h.sync.Status()
				if d := s.NextProbe.Sub(began); s.State != delivery.Unreachable || d < 19*time.Minute || d > 20*time.Minute {
					t.Errorf("next probe in %v: %+v", d, s)
				}
				time.Sleep(5 * time.Minute)
				h.append(event{user: "another", n: 1})
				h.reload(rules(t, nil), nil)
				time.Sleep(5 * time.Minute)
				if n := len(seen.requests(began)); n != 0 {
					t.Errorf("%d requests within Retry-After", n)
				}
				if now := h.sync.Status(); now.Rate > s.Rate || !now.NextProbe.Equal(s.NextProbe) || now.State != delivery.Unreachable {
					t.Errorf("status of the next generation %+v, before %+v", now, s)
				}
				h.sync.RetryNow()
				time.Sleep(2 * time.Second)
				if r := seen.requests(began); len(r) != 1 || len(r[0].people) != 1 {
					t.Errorf("by hand: %+v", r)
				}
				if d := time.Until(h.sync.Status().NextProbe); d < 19*time.Minute {
					t.Errorf("next probe after that one in %v", d)
				}
				box.SetFaults(sandbox.Faults{})
				h.sync.RetryNow()
				h.drained(2 * time.Second)
				h.close()
				if r := box.Report(); r.Events.Unique != 101 || r.Order.OutOfOrder != 0 {
					t.Errorf("events %+v, order %+v", r.Events, r.Order)
				}
			})
		})
	}
}

// What no data can have caused, and a wish to wait, closes the gate at the first
// failure, of whomever. Those who are tried meanwhile do not count as failed.
func TestClosedAtOnce(t *testing.T) {
	for _, test := range []struct {
		faults string
		err    error
		least  time.Duration // until the first probe
	}{
		{err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}},
		{err: &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}},
		{err: &net.DNSError{Err: "no such host", IsNotFound: true}},
		{err: tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}},
		{faults: "503=1,retry_after=20m", least: 20 * time.Minute},
		{faults: "429=1,retry_after=20m", least: 20 * time.Minute},
	} {
		t.Run(fmt.Sprint(test.faults, test.err), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
				h := open(t, dir, box, rules(t, nil), nil)
				h.within(time.Second, "the account is known", func() bool { return h.sync.Status().State == delivery.Delivering })
				if box.SetFaults(faults(t, test.faults)); test.err != nil {
					h.wire.cut(test.err)
				}
				h.append(event{user: "user-0", n: 1})
				h.within(time.Second, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				s := h.sync.Status()
				if d := time.Until(s.NextProbe); s.FailedRequests != 1 || d < test.least-time.Second {
					t.Errorf("%d failed, next probe in %v", s.FailedRequests, d)
				}
				h.append(crowd(50)[1:]...)
				time.Sleep(3 * time.Hour)
				box.SetFaults(sandbox.Faults{})
				h.wire.cut(nil)
				stats := h.drained(21 * time.Minute)
				if n := stats.Tallies["record/after_retry"].N; n != 1 {
					t.Errorf("%d of one had failed: %v", n, stats.Tallies)
				}
			})
		})
	}
}

// One user alone who fails never closes the gate, even where nobody ever got through.
func TestLoneUser(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "500=1,on=data")})
		h := open(t, dir, box, rules(t, nil), nil)
		h.append(traffic(1, 10)...)
		for range 24 * 6 {
			time.Sleep(10 * time.Minute)
			if s := h.sync.Status(); s.Gate != delivery.GateOpen || s.State != delivery.Delivering {
				t.Fatalf("status %+v", s)
			}
		}
		if n := h.sync.Status().FailedRequests; n < 24*3600/300 || n > 24*3600/100+20 {
			t.Errorf("%d tries in a day", n)
		}
	})
}

// While the gate is closed, whoever was not tried yet is the next probe, and does not
// wait until all those have had their turn who were.
func TestFreshUserIsTriedNext(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, `poison="bad-`)})
		seen := &watcher{t: t, inner: box}
		h := open(t, dir, seen, rules(t, nil), nil)
		for i := range 8 {
			h.append(event{user: fmt.Sprintf("bad-%d", i), n: 1})
		}
		time.Sleep(time.Hour) // each has been tried
		if s := h.sync.Status(); s.Gate != delivery.GateClosed {
			t.Fatalf("status %+v", s)
		}
		appended := time.Now()
		h.append(event{user: "good", n: 1})
		h.within(6*time.Minute, "it is delivered", func() bool { return h.stats().Books.Delivered == 1 })
		if r := seen.requests(appended); r[0].people[0] != "good" {
			t.Errorf("the next probe was %v", r[0].people)
		}
		// Those who fail are tried on, although nobody else is there to open the gate wide.
		time.Sleep(time.Hour)
		opened := time.Now()
		time.Sleep(time.Hour)
		if n := len(seen.requests(opened)); n < 12 || n > 8*40 {
			t.Errorf("%d tries in an hour", n)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(6 * time.Minute)
	})
}

// Users who failed because of the outage do not wait for their own next try when it
// is over.
func TestNobodyWaitsAfterTheOutage(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "503=1,on=data")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.RetryInitial, o.RetryMax = 10*time.Minute, time.Hour })
		h.append(crowd(4)...)
		h.within(2*time.Hour, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
		// Each of them waits for 20 minutes at least now, and the gate for 15 at most.
		box.SetFaults(sandbox.Faults{})
		h.append(event{user: "another", n: 1})
		h.within(15*time.Minute, "one gets through", func() bool { return h.stats().Books.Delivered > 0 })
		h.drained(time.Second)
	})
}

// An answer to a request that was under way when Customer.io asked to wait does not
// open the gate; when it only failed, it does.
func TestLateSuccess(t *testing.T) {
	for _, test := range []struct {
		name, how string
		opens     bool
	}{
		{"asked to wait", "429=1,retry_after=10m", false},
		{"refused", "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "latency=10s")})
				h := open(t, dir, box, rules(t, nil), nil)
				h.append(event{user: "slow", n: 1})
				h.within(20*time.Second, "a request is under way", func() bool { return h.sync.Status().InFlight == 1 })
				if test.how == "" {
					h.wire.cut(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
				} else {
					box.SetFaults(faults(t, test.how))
				}
				h.append(event{user: "next", n: 1})
				h.within(time.Second, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				h.within(11*time.Second, "the slow one has arrived", func() bool { return h.stats().Books.Delivered == 1 })
				time.Sleep(50 * time.Millisecond)
				// Where it was opened, the next request has closed it again.
				if s := h.sync.Status(); (time.Since(s.GateSince) < time.Second) != test.opens {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

// Users who fail for days never close the gate, nor does anybody wait for them.
func TestFailingUsersAlone(t *testing.T) {
	for _, failing := range []int{1, 3} {
		t.Run(fmt.Sprint(failing), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				spec := "latency=50ms"
				for i := range failing {
					spec += fmt.Sprintf(`,poison="bad-%d"`, i)
				}
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, spec)})
				h := open(t, dir, box, rules(t, nil), nil)
				h.append(crowd(20)...)
				for i := range failing {
					h.append(event{user: fmt.Sprintf("bad-%d", i), n: 1})
				}
				h.within(time.Minute, "the others are done", func() bool { return h.stats().Books.Pending == uint64(failing) })
				if failing == 1 {
					// It is alone with its user: nobody else has anything.
					for range 24 {
						time.Sleep(time.Hour)
						if s := h.sync.Status(); s.Gate != delivery.GateOpen || s.State != delivery.Delivering {
							t.Fatalf("status %+v", s)
						}
					}
				}
				for i := range 60 { // one good event every six minutes
					at := time.Now()
					h.append(event{user: fmt.Sprintf("later-%d", i), n: 1})
					h.within(time.Second, "it has arrived", func() bool { return h.stats().Books.Pending == uint64(failing) })
					if took := time.Since(at); took > 500*time.Millisecond {
						t.Errorf("good event %d took %v", i, took)
					}
					time.Sleep(6 * time.Minute)
				}
				if s := h.sync.Status(); s.Gate != delivery.GateOpen {
					t.Errorf("status %+v", s)
				}
				if a := h.stats().Aside; a.Lanes != failing {
					t.Errorf("in the side place: %+v", a)
				}
				box.SetFaults(sandbox.Faults{})
				h.drained(6 * time.Minute)
			})
		})
	}
}

// One user's data makes Customer.io answer 503 and ask to wait a minute, every time. The
// gate obeys while it cannot know better; from then on nobody else waits for that user.
func TestOneUserWhoMakesItAskToWait(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "latency=50ms")})
		var tries atomic.Int64
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if r.Body = io.NopCloser(bytes.NewReader(body)); bytes.Contains(body, []byte(`"bad"`)) {
				tries.Add(1)
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			box.ServeHTTP(w, r)
		})
		h := open(t, dir, handler, rules(t, nil), nil)
		h.append(append(crowd(20), event{user: "bad", n: 1})...)
		h.within(10*time.Minute, "the others are done", func() bool { return h.stats().Books.Pending == 1 })
		time.Sleep(20 * time.Minute) // alone with nobody else it is tried on
		before := tries.Load()
		for i := range 60 { // one good event every 30 seconds
			at := time.Now()
			h.append(event{user: fmt.Sprintf("later-%d", i), n: 1})
			limit := time.Second
			if i == 0 {
				limit = 10 * time.Minute // it may be what opens the gate
			}
			h.within(limit, "it has arrived", func() bool { return h.stats().Books.Pending == 1 })
			time.Sleep(30*time.Second - time.Since(at)%(30*time.Second))
		}
		if tries.Load() == before {
			t.Error("the one who fails is not tried any more")
		}
		if s := h.sync.Status(); s.Gate != delivery.GateOpen {
			t.Errorf("status %+v", s)
		}
	})
}
