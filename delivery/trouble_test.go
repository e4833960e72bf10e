package delivery_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/sandbox"
)

// Whatever is wrong with keys, region or endpoint: nothing is sent that could be
// refused for it, nothing is lost, Customer.io is asked at most once a minute, and
// once it is mended all arrives by itself.
func TestBlocked(t *testing.T) {
	good := sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1}
	tests := []struct {
		name   string
		spoil  func(*sandbox.Options)
		state  delivery.State
		reason string
		advice string
		data   bool // requests of data do get through to it: one a minute, no more
	}{
		{name: "wrong key", spoil: func(o *sandbox.Options) { o.APIKey = "another" }, state: delivery.Blocked, reason: "http_401", advice: "site_id"},
		{name: "wrong region", spoil: func(o *sandbox.Options) { o.Region = "eu" }, state: delivery.Blocked, reason: "wrong_region", advice: `region = "eu"`},
		{name: "redirected", spoil: func(o *sandbox.Options) {
			o.Faults = sandbox.Faults{Redirect: 1, RedirectTo: "https://track-eu.customer.io"}
		}, state: delivery.Blocked, reason: "wrong_region", advice: `region = "eu"`},
		{name: "data redirected", spoil: func(o *sandbox.Options) { o.WrongRegion = "redirect" }, state: delivery.Blocked, reason: "wrong_region", advice: `region = "eu"`, data: true},
		{name: "data unauthorized", spoil: func(o *sandbox.Options) { o.WrongRegion = "fail" }, state: delivery.Blocked, reason: "http_401", advice: "site_id", data: true},
		{name: "no such endpoint", spoil: func(o *sandbox.Options) { o.Faults.Status = map[int]float64{404: 1} }, state: delivery.Blocked, reason: "wrong_endpoint", advice: "endpoint"},
		{name: "no such endpoint for data", spoil: func(o *sandbox.Options) { o.Faults = sandbox.Faults{Status: map[int]float64{405: 1}, On: "data"} }, state: delivery.Blocked, reason: "wrong_endpoint", advice: "endpoint", data: true},
		{name: "forbidden", spoil: func(o *sandbox.Options) { o.Faults.Status = map[int]float64{403: 1} }, state: delivery.Blocked, reason: "http_403", advice: "site_id"},
	}
	for _, test := range fewUnderRace(tests, 4) {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				bad := good
				test.spoil(&bad)
				wrong, right := sandbox.New(bad), sandbox.New(good)
				var asked, sent atomic.Int64
				h := open(t, dir, tap(wrong, func(r *http.Request, _ []byte) {
					if r.Method == http.MethodGet {
						asked.Add(1)
					} else {
						sent.Add(1)
					}
				}), rules(t, nil), nil)
				events := traffic(10, 12)
				h.append(events[:100]...)
				hours := 5
				if test.name == "wrong key" && !(underRace && testing.Short()) {
					hours = 60 // a weekend; under the race detector each minute's probe is like the one before
				}
				time.Sleep(time.Duration(hours) * time.Hour)
				h.append(events[100:]...)
				time.Sleep(30 * time.Second)

				s := h.sync.Status()
				if s.State != test.state || s.Reason != test.reason || !strings.Contains(s.Advice, test.advice) {
					t.Errorf("status %+v", s)
				}
				if d := time.Until(s.NextProbe); d <= 0 || d > time.Minute {
					t.Errorf("next probe in %v", d)
				}
				if n := int(asked.Load()); n < hours*60 || n > hours*60+3 {
					t.Errorf("the region endpoint was asked %d times in %d hours", n, hours)
				}
				if n := int(sent.Load()); !test.data && n > 0 || n > hours*60*4+10 {
					t.Errorf("%d requests of data", n)
				}
				if b := h.stats().Books; b.Pending != 120 || b.Taken != 120 {
					t.Errorf("books: %+v", b)
				}
				if n := h.lines.count("level=ERROR"); n == 0 || n > hours*60+2 {
					t.Errorf("%d error lines in %d hours", n, hours)
				}

				h.wire.to(right)
				h.drained(2 * time.Minute)
				if s := h.sync.Status(); s.State != delivery.Delivering || s.Reason != "" || !s.NextProbe.IsZero() {
					t.Errorf("status after it was mended: %+v", s)
				}
				h.close()
				complete(t, right, 10, 12)
				if r := wrong.Report(); r.Events.Received != 0 {
					t.Errorf("the wrong one took %d events", r.Events.Received)
				}
			})
		})
	}
}

// Keys that stop working in the middle block the sync: what is in hand goes back
// and no attempt is counted against it.
func TestRevokedKey(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		h := open(t, dir, box, rules(t, nil), nil)
		events := traffic(10, 12)
		h.append(events[:60]...)
		h.drained(time.Minute)
		for _, code := range []string{"401=1", "403=1"} {
			box.SetFaults(faults(t, code))
			h.append(events[60:90]...)
			events = append(events[:60:60], events[90:]...)
			h.within(time.Minute, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
			time.Sleep(time.Hour)
			if s := h.stats(); s.Books.Dead != 0 || s.Retry != 0 || s.Books.Pending != 30 {
				t.Errorf("%s: stats %+v", code, s)
			}
			box.SetFaults(sandbox.Faults{})
			h.drained(2 * time.Minute)
		}
		stats := h.stats()
		h.close()
		complete(t, box, 10, 12)
		if n := stats.Tallies["record/first_try"].N; n != 120 {
			t.Errorf("%d of 120 at the first try: %v", n, stats.Tallies)
		}
	})
}

// A region endpoint that does not answer, or not as Customer.io, keeps the sync
// from sending, and is asked by backoff.
func TestUnconfirmed(t *testing.T) {
	for _, test := range []struct{ faults, reason string }{
		{"503=1", "http_503"}, {"garbage=1", "bad_answer"}, {"cut_before=1", "connection_cut"},
		{"hang=1,hang_for=1h", "timeout"}, {"429=1,retry_after=3s", "http_429"}, {"outage=0s+100h:cut", "connection_cut"},
	} {
		t.Run(test.faults, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, test.faults+",on=region"), OrderAttribute: "n", OrderFirst: 1})
				h := open(t, dir, box, rules(t, nil), nil)
				h.append(traffic(4, 3)...)
				time.Sleep(2 * time.Hour)
				s := h.sync.Status()
				if s.State != delivery.Unreachable || s.Reason != test.reason || s.Failures < 2*60/5 || s.Failures > 1000 {
					t.Errorf("status %+v", s)
				}
				if r := box.Report(); r.Events.Received > 0 || r.Requests > 1000 {
					t.Errorf("%d events, %d requests", r.Events.Received, r.Requests)
				}
				box.SetFaults(sandbox.Faults{})
				h.drained(6 * time.Minute)
				h.close()
				complete(t, box, 4, 3)
			})
		})
	}
}

// A destination that fails shows as unreachable, with the reason, and as
// delivering again when it is over.
func TestUnreachable(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		h := open(t, dir, box, rules(t, nil), nil)
		h.within(time.Second, "the account is known", func() bool { return h.sync.Status().State == delivery.Delivering })
		if a := h.sync.Status().Account; a != (delivery.Account{Region: "us", EnvironmentID: 1, URL: "https://track.customer.io"}) {
			t.Errorf("account %+v", a)
		}
		box.SetFaults(faults(t, "outage=4h"))
		h.append(traffic(30, 3)...)
		began := time.Now()
		h.within(2*time.Minute, "it is unreachable", func() bool { return h.sync.Status().State == delivery.Unreachable })
		time.Sleep(3 * time.Hour)
		s := h.sync.Status()
		if s.State != delivery.Unreachable || s.Reason != "http_503" || s.Advice == "" || s.LastAnswer != "http_503" || s.Since.Sub(began) > time.Second {
			t.Errorf("status %+v, began %v", s, began)
		}
		if n := h.lines.count("level=WARN"); n > 4*60 {
			t.Errorf("%d lines in four hours", n)
		}
		h.drained(2 * time.Hour)
		if s := h.sync.Status(); s.State != delivery.Delivering || s.Failures != 0 || s.LastSuccess.IsZero() {
			t.Errorf("status %+v", s)
		}
		h.close()
		complete(t, box, 30, 3)
	})
}

// One user whose requests fail waits alone: the others are done long before, and
// it follows in order when its trouble is over.
func TestOneUserFails(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		const users, n = 30, 12
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "refuse_id=user-7,refuse_how=500")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 10 })
		h.append(traffic(users, n)...)
		h.within(5*time.Minute, "the others are done", func() bool { return h.stats().Books.Pending == n })
		time.Sleep(3 * time.Hour)
		late := event{user: "user-3", n: n + 1, properties: `{"plan":"p4"}`}
		h.append(late)
		h.within(time.Second, "a later event of another user has arrived", func() bool { return h.stats().Books.Pending == n })
		if s := h.stats(); s.Retry != n || s.Waiting["http_500"].Lanes != 1 {
			t.Errorf("stats %+v", s)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(6 * time.Minute)
		h.close()
		p, _ := box.Person("id", "user-3")
		if p.EventCount != n+1 {
			t.Errorf("user-3 has %d events", p.EventCount)
		}
		r := box.Report()
		if r.Events.Unique != users*n+1 || r.Order.OutOfOrder+r.Order.Missing != 0 {
			t.Errorf("events %+v order %+v", r.Events, r.Order)
		}
	})
}

// How often a lane has failed survives a restart: it is not tried at once.
func TestRestartKeepsBackoff(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "500=1,on=data")})
		h := open(t, dir, box, rules(t, nil), nil)
		h.append(traffic(1, 3)...)
		time.Sleep(time.Hour)
		before := box.Report().ByEndpoint["POST /api/v2/batch"]["500"]
		for range 5 {
			h.close()
			h = open(t, dir, box, rules(t, nil), nil)
			time.Sleep(time.Minute)
		}
		if tries := box.Report().ByEndpoint["POST /api/v2/batch"]["500"] - before; tries > 5 {
			t.Errorf("%d tries in five minutes with five restarts", tries)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(6 * time.Minute)
		h.close()
		complete(t, box, 1, 3)
	})
}

// 429 slows the sync down to half and half again; then the rate comes back.
func TestPace(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "429=1,on=data,retry_after=1s")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.RequestsPerSecond = 64 })
		h.append(traffic(50, 1)...)
		time.Sleep(30 * time.Second)
		slow := h.sync.Status().Rate
		if slow > 16 {
			t.Errorf("rate %v after half a minute of 429", slow)
		}
		box.SetFaults(sandbox.Faults{})
		h.within(time.Minute, "it is tried again", func() bool { return h.sync.Status().Gate != delivery.GateClosed })
		for i := range 60 {
			h.append(event{user: "steady", n: i + 1})
			time.Sleep(time.Second)
		}
		if r := h.sync.Status().Rate; r != 64 {
			t.Errorf("rate %v a minute later", r)
		}
		h.drained(10 * time.Minute)
	})
}

// The configured rate holds over time, whatever the number of workers.
func TestRequestsPerSecond(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.RequestsPerSecond, o.BatchOperations = 2, 1 })
		began := time.Now()
		h.append(traffic(20, 3)...) // 60 events, 40 identifies
		h.drained(time.Hour)
		if took := time.Since(began); took < 45*time.Second || took > 52*time.Second {
			t.Errorf("100 requests at 2 a second took %v", took)
		}
	})
}

// One event into an idle daemon leaves at once.
func TestLoneEvent(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
		h := open(t, dir, box, rules(t, nil), nil)
		for i := range 100 {
			time.Sleep(time.Minute + time.Duration(i)*37*time.Millisecond)
			appended := time.Now()
			h.append(event{user: "ann", n: i + 1})
			h.within(time.Second, "the event has arrived", func() bool { return len(box.Events(int64(i), 0)) == 1 })
			if waited := box.Events(int64(i), 0)[0].Received.Sub(appended); waited > 50*time.Millisecond {
				t.Fatalf("event %d waited %v", i, waited)
			}
		}
	})
}

// The watchdog is fed when there is nothing to do, when Customer.io is down, when
// requests hang, and when keys are wrong.
func TestBeat(t *testing.T) {
	for _, spec := range []string{"", "outage=0s+24h:hang", "503=1,on=data", "hang=1,on=data,hang_for=10h", "401=1"} {
		t.Run(spec, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, spec)})
				var last, longest atomic.Int64
				last.Store(time.Now().UnixNano())
				h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) {
					o.Beat = func() {
						now := time.Now().UnixNano()
						longest.Store(max(longest.Load(), now-last.Swap(now)))
					}
				})
				h.append(traffic(10, 3)...)
				time.Sleep(20 * time.Minute)
				if d := time.Duration(max(longest.Load(), time.Now().UnixNano()-last.Load())); d > 5*time.Second {
					t.Errorf("%v without a beat", d)
				}
			})
		})
	}
}

// Records that map to nothing end without a request, and do not wait for one.
func TestFiltered(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "500=1,on=data")})
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) {
			s.Select = []mapping.SelectSpec{{Event: []string{"Order"}, Action: "send"}}
			s.SendUsers = false
		}), nil)
		var events []event
		for i := range 3000 {
			events = append(events, event{user: "ann", n: i, name: "Viewed"})
		}
		h.append(events...)
		h.append(event{user: "", name: "Order"}, event{user: "bob", name: "Order"})
		h.within(time.Minute, "all but bob's order have ended", func() bool { return h.stats().Books.Pending == 1 })
		stats := h.stats()
		if n := stats.Tallies["event/filtered/not_selected"]; n.N != 3000 || n.Example != "Viewed" {
			t.Errorf("not_selected %+v: %v", n, stats.Tallies)
		}
		if stats.Books.Filtered != 3001 {
			t.Errorf("books %+v, tallies %v", stats.Books, stats.Tallies)
		}
	})
}

// damaged appends a record that this version cannot read.
type damaged struct{}

func (damaged) Size() int       { return 100 }
func (damaged) Project() string { return "app" }
func (damaged) Resolve(w *queue.Writer) error {
	w.Put(queue.Record{Project: "app", Lane: "user/ann", Body: []byte{99, 1, 2, 3}})
	return nil
}

// A record that cannot be read is kept as a dead letter and holds nobody up.
func TestUnreadableRecord(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		h := open(t, dir, box, rules(t, nil), nil)
		h.append(event{user: "ann", n: 1})
		if err := h.log.Append(context.Background(), damaged{}); err != nil {
			t.Fatal(err)
		}
		h.append(event{user: "ann", n: 2})
		stats := h.drained(time.Minute)
		if b := stats.Books; b.Dead != 1 || b.Delivered != 2 || stats.Tallies["event/dead/unreadable_record"].N != 1 {
			t.Errorf("books %+v, tallies %v", b, stats.Tallies)
		}
	})
}

func TestCheckAccount(t *testing.T) {
	for _, test := range []struct{ faults, reason string }{
		{"", ""}, {"401=1", "http_401"}, {"301=1", "wrong_region"}, {"404=1", "wrong_endpoint"}, {"503=1", "http_503"}, {"garbage=1", "bad_answer"},
	} {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, EnvironmentID: 4711, Faults: faults(t, test.faults)})
		account, err := delivery.CheckAccount(context.Background(), delivery.Options{
			SiteID: "site", APIKey: secret, Region: "us", Endpoint: "http://sandbox.test", Transport: newWire(box),
		})
		reason := ""
		if e, ok := errors.AsType[*delivery.AccountError](err); ok {
			reason = e.Reason
		}
		if reason != test.reason || (err == nil) != (account.EnvironmentID == 4711) {
			t.Errorf("%s: %+v, %v", test.faults, account, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the key is in the error: %v", test.faults, err)
		}
	}
}
