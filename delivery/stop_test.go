package delivery_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/sandbox"
)

// Requests in flight when the sync is stopped finish, and their answers count:
// after a restart nothing is sent a second time.
func TestStopWhileInFlight(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "latency=5s")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 10 })
		h.append(traffic(10, 12)...)
		h.within(time.Minute, "requests are in flight", func() bool { return h.sync.Status().InFlight == 4 })
		time.Sleep(time.Second)
		began := time.Now()
		h.close()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopping took %v", took)
		}
		if s := h.sync.Status(); s.State != delivery.Stopped || s.InFlight != 0 {
			t.Errorf("status %+v", s)
		}
		sofar := box.Report()
		if n := sofar.ByEndpoint["POST /api/v2/batch"]["200"]; n != 4 {
			t.Errorf("%d requests were answered of the 4 in flight", n)
		}
		box.SetFaults(sandbox.Faults{})
		h = open(t, dir, box, rules(t, nil), nil)
		stats := h.drained(time.Minute)
		h.close()
		if r := complete(t, box, 10, 12); r.Events.Duplicates != 0 || stats.Books.Delivered != 120 {
			t.Errorf("%d events came again, books %+v", r.Events.Duplicates, stats.Books)
		}
	})
}

// Requests that do not finish within StopGrace are given up; their records are
// where they were, with no attempt counted.
func TestStopGrace(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "hang=1,hang_for=10h,on=data")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.StopGrace = 3 * time.Second })
		h.append(traffic(10, 12)...)
		h.within(time.Minute, "requests are in flight", func() bool { return h.sync.Status().InFlight > 0 })
		began := time.Now()
		h.close()
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("stopping took %v", took)
		}
		box.SetFaults(sandbox.Faults{})
		h = open(t, dir, box, rules(t, nil), nil)
		stats := h.drained(time.Minute)
		h.close()
		complete(t, box, 10, 12)
		if n := stats.Tallies["record/first_try"].N; n != 120 {
			t.Errorf("%d of 120 at the first try: %v", n, stats.Tallies)
		}
	})
}

// A stop between the parts of a request that was refused as a whole: what was
// accepted ends, the rest goes back without an attempt.
func TestStopBetweenHalves(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "refuse_event=Bad,refuse_how=400,latency=1s")})
		users := func(s *mapping.Spec) { s.SendUsers = false }
		h := open(t, dir, box, rules(t, users), func(o *delivery.Options) { o.Concurrency = 1 })
		var events []event
		for i := range 8 {
			events = append(events, event{user: "ann", n: i + 1})
		}
		events[7].name = "Bad"
		h.append(events...)
		h.within(time.Minute, "the whole was refused", func() bool { return h.sync.Status().Requests == 1 })
		h.close()
		h = open(t, dir, box, rules(t, users), nil)
		if b := h.stats().Books; b.Delivered != 4 || b.Pending != 4 {
			t.Errorf("books after the stop %+v", b)
		}
		stats := h.drained(time.Minute)
		if stats.Books.Dead != 1 || stats.Tallies["record/first_try"].N != 7 || box.Report().Events.Duplicates != 0 {
			t.Errorf("books %+v, tallies %v, %d came again", stats.Books, stats.Tallies, box.Report().Events.Duplicates)
		}
	})
}

// Whatever it waits for, a stop ends it at once.
func TestStopWhileWaiting(t *testing.T) {
	for _, spec := range []string{"", "503=1", "503=1,on=data", "401=1", "401=1,on=data", "hang=1,on=region"} {
		t.Run(spec, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, spec)})
				h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.RequestsPerSecond = 0.01 })
				h.append(traffic(10, 2)...)
				time.Sleep(10 * time.Second)
				began := time.Now()
				h.close()
				if took := time.Since(began); took > 0 {
					t.Errorf("stopping took %v", took)
				}
			})
		})
	}
}

// The same over real sockets: connections that are cut, refused, silent.
func TestOverTheNetwork(t *testing.T) {
	const users, n = 30, 20
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close() // until it is opened again, connections are refused

	quick := func(o *delivery.Options) {
		o.Endpoint, o.Transport = "http://"+address, nil
		o.Timeout, o.RetryInitial, o.RetryMax = 300*time.Millisecond, 5*time.Millisecond, 100*time.Millisecond
		o.BatchOperations, o.RequestsPerSecond = 20, 10_000
	}
	h := open(t, t.TempDir(), http.NotFoundHandler(), rules(t, nil), quick)
	h.append(traffic(users, n)...)
	poll := func(what string, holds func() bool) {
		t.Helper()
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for range 20_000 {
			if holds() {
				return
			}
			<-ticker.C
		}
		t.Fatalf("never: %s; status %+v, stats %+v", what, h.sync.Status(), h.stats())
	}
	poll("connections are refused", func() bool { return h.sync.Status().Reason == "refused" })

	if listener, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Seed: 5,
		Faults: faults(t, "500=0.05,cut_before=0.05,cut_after=0.05,truncate=0.05,hang=0.02,hang_for=1m,garbage_applied=0.05,latency=2ms")})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- sandbox.Serve(ctx, listener, box) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	poll("all has ended", func() bool { return h.stats().Books.Pending == 0 })
	stats := h.stats()
	h.close()
	complete(t, box, users, n)
	if stats.Books.Delivered != users*n {
		t.Errorf("books %+v", stats.Books)
	}
}
