package delivery_test

import (
	"bytes"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/sandbox"
)

// One user whose data breaks the whole request is found in a full batch by halving,
// and then waits alone; it has requests of its own from then on.
func TestPoison(t *testing.T) {
	const users = 256
	for _, how := range []string{"500", "503", "cut", "garbage", "hang"} {
		for _, place := range fewUnderRace([]int{0, 77, users - 1}, 3) {
			t.Run(fmt.Sprintf("%s, user %d", how, place), func(t *testing.T) {
				bubble(t, func(t *testing.T, dir string) {
					spec := fmt.Sprintf(`poison="user-%d",poison_how=%s`, place, how)
					box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, spec)})
					defer box.Close()
					seen := &watcher{t: t, inner: box}
					// At one request a second all who have failed are due again by the next one.
					h := open(t, dir, seen, rules(t, func(s *mapping.Spec) { s.SendUsers = false }), func(o *delivery.Options) {
						o.Concurrency, o.RequestsPerSecond, o.Timeout = 1, 1, 5*time.Second
					})
					h.append(crowd(users)...)
					// The others do not wait until it is found.
					h.within(time.Minute, "the other half is done with", func() bool {
						n := h.stats().Books.Delivered
						return n >= users/2 && n < users-8
					})
					h.within(3*time.Minute, "all others are delivered", func() bool { return h.stats().Books.Pending == 1 })
					n := len(seen.requests(start))
					// Three whole ones close the gate, one or two probes open it, the next whole one is halved.
					if most := 3 + 2 + 1 + 2*bits.Len(users-1) + 2; n > most {
						t.Errorf("%d requests for %d users, at most %d are wanted", n, users, most)
					}
					h.within(time.Minute, "the one waits", func() bool { return h.stats().Waiting[reasonOf(how)].Lanes == 1 })
					// Each further try is one request and holds up nobody.
					time.Sleep(time.Minute)
					settled := time.Now()
					h.append(event{user: "good", n: 1})
					h.append(event{user: fmt.Sprintf("user-%d", place), n: 2})
					for i := range 60 {
						time.Sleep(time.Minute)
						h.append(event{user: fmt.Sprintf("steady-%d", i), n: 1})
					}
					for _, r := range seen.requests(settled) {
						if r.status == 200 {
							continue
						}
						if len(r.people) != 1 || r.operations != 1 {
							t.Errorf("a request of %d operations and %d users failed", r.operations, len(r.people))
						}
					}
					if g := h.sync.Status().Gate; g != delivery.GateOpen {
						t.Errorf("the gate is %s", g)
					}
					box.SetFaults(sandbox.Faults{})
					h.drained(6 * time.Minute)
					h.close()
					if r := box.Report(); r.Order.OutOfOrder != 0 || r.Events.Duplicates != 0 || r.Events.Unique != users+1+1+60 {
						t.Errorf("events %+v, order %+v", r.Events, r.Order)
					}
				})
			})
		}
	}
}

func reasonOf(how string) string {
	switch how {
	case "cut":
		return "connection_cut"
	case "garbage":
		return "bad_answer"
	case "hang":
		return "timeout"
	}
	return "http_" + how
}

// The record at fault is found within its user's own run too: what stands before it
// is delivered, and what stands behind it follows when it gets through.
func TestPoisonWithinOneUser(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, `poison="bad":true,latency=50ms`)})
		h := open(t, dir, box, rules(t, nil), nil)
		for i := range 100 {
			e := event{user: "ann", n: i + 1}
			if i == 60 {
				e.more = `,"bad":true`
			}
			h.append(e, event{user: fmt.Sprintf("user-%d", i), n: 1})
		}
		h.within(time.Minute, "all others, and all before the bad one, are delivered", func() bool { return h.stats().Books.Pending == 40 })
		time.Sleep(time.Hour)
		if b := h.stats().Books; b.Delivered != 160 || b.Dead != 0 {
			t.Errorf("books %+v", b)
		}
		requests := h.sync.Status().Requests
		time.Sleep(time.Hour)
		if n := h.sync.Status().Requests - requests; n > 3600/100+2 {
			t.Errorf("%d requests in an hour for one that fails", n)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(6 * time.Minute)
		h.close()
		if r := box.Report(); r.Order.OutOfOrder+r.Order.Missing != 0 || r.Events.Unique != 200 || r.Events.Duplicates != 0 {
			t.Errorf("order %+v, events %+v", r.Order, r.Events)
		}
	})
}

// A destination that dies while a culprit is looked for ends the search: it does not
// send two requests for every user.
func TestDyingDuringBisection(t *testing.T) {
	const users = 256
	for _, after := range []int{0, 1, 3, 6} { // requests of the search that are still answered
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, `poison="user-77"`)})
				var dead atomic.Bool
				searching, left := false, after
				dying := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // one request at a time
					if r.Method == http.MethodPost {
						body, _ := io.ReadAll(r.Body)
						r.Body = io.NopCloser(bytes.NewReader(body))
						n := len(operationsOf(t, body))
						if searching = searching || n > users/3 && n < users*2/3; searching { // the first half
							left--
							dead.Store(dead.Load() || left < 0)
						}
					}
					if dead.Load() {
						w.WriteHeader(http.StatusBadGateway)
						return
					}
					box.ServeHTTP(w, r)
				})
				seen := &watcher{t: t, inner: dying}
				h := open(t, dir, seen, rules(t, func(s *mapping.Spec) { s.SendUsers = false }), func(o *delivery.Options) {
					o.Concurrency, o.RequestsPerSecond = 1, 1
				})
				h.append(crowd(users)...)
				h.within(5*time.Minute, "the destination has died", dead.Load)
				died := time.Now()
				h.within(time.Minute, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				if n := len(seen.requests(died)); n > bits.Len(users-1)+5 {
					t.Errorf("%d requests until the gate was closed", n)
				}
				closed := time.Now()
				time.Sleep(time.Hour)
				for i, r := range seen.requests(closed.Add(time.Second)) {
					if len(r.people) != 1 {
						t.Errorf("probe %d is of %d users", i, len(r.people))
					}
				}
				h.wire.to(box)
				h.within(10*time.Minute, "all others are delivered", func() bool { return h.stats().Books.Pending == 1 })
				box.SetFaults(sandbox.Faults{})
				h.drained(6 * time.Minute)
				h.close()
				if r := box.Report(); r.Events.Unique != users || r.Events.Duplicates != 0 || r.Order.OutOfOrder+r.Order.Missing != 0 {
					t.Errorf("events %+v, order %+v", r.Events, r.Order)
				}
			})
		})
	}
}

// A user whose requests get no answer takes a worker from the others, now and then,
// and nothing else: once it is known, everybody's events arrive at once.
func TestHangingUser(t *testing.T) {
	for _, hanging := range []int{1, 8} { // twice as many as there are workers
		t.Run(fmt.Sprint(hanging), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1,
					Faults: faults(t, `poison="hangs-,poison_how=hang,hang_for=24h,latency=20ms`)})
				defer box.Close()
				h := open(t, dir, box, rules(t, nil), nil)
				var events []event
				for i := range hanging {
					for n := range 10 {
						events = append(events, event{user: fmt.Sprintf("hangs-%d", i), n: n + 1})
					}
				}
				h.append(append(crowd(200), events...)...)
				waiting := uint64(len(events))
				h.within(time.Hour, "all others are delivered", func() bool { return h.stats().Books.Pending == waiting })
				for n := range 60 { // others get through until each that hangs is known, or it would be the destination that fails
					h.append(event{user: "meanwhile", n: n + 1})
					time.Sleep(time.Minute) // virtual: an hour of good traffic
				}
				for i := range 600 { // one every three seconds
					h.append(event{user: fmt.Sprintf("good-%d", i%50), n: i/50 + 1})
					appended := time.Now()
					h.within(time.Second, fmt.Sprintf("good event %d is delivered", i), func() bool { return h.stats().Books.Pending == waiting })
					time.Sleep(3*time.Second - time.Since(appended))
				}
				if s := h.sync.Status(); s.State != delivery.Delivering || s.Gate != delivery.GateOpen {
					t.Errorf("status %+v", s)
				}
				box.SetFaults(sandbox.Faults{})
				h.drained(10 * time.Minute)
				h.close()
				if r := box.Report(); r.Order.OutOfOrder+r.Order.Missing != 0 || r.Events.Unique != int64(200+len(events)+60+600) {
					t.Errorf("order %+v, events %+v", r.Order, r.Events)
				}
			})
		})
	}
}

// Where many are at fault each is found, some in this search and some in the next,
// and everybody else is delivered. Others get through meanwhile, or it would be the destination that fails: the last good one
// among 64 who fail would wait until a probe happens to be of it.
func TestManyCulprits(t *testing.T) {
	const users = 256
	for _, culprits := range []int{2, 5, 20, 64} {
		for _, how := range []string{"500", "hang"} {
			t.Run(fmt.Sprint(culprits, " ", how), func(t *testing.T) {
				bubble(t, func(t *testing.T, dir string) {
					box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, `poison="bad-,latency=20ms,hang_for=24h,poison_how=`+how)})
					defer box.Close()
					h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.SendUsers = false }), func(o *delivery.Options) { o.Timeout = 5 * time.Second })
					events := crowd(users)
					for i := range culprits {
						events[i*users/culprits].user = fmt.Sprintf("bad-%d", i)
					}
					h.append(events...)
					limit := 8 * time.Minute
					if how == "hang" {
						limit = time.Hour
					}
					meanwhile := 0
					h.within(limit, "all others are delivered", func() bool {
						if h.stats().Books.Pending == uint64(culprits) {
							return true
						}
						meanwhile++
						h.append(event{user: fmt.Sprint("meanwhile-", meanwhile%10), n: meanwhile/10 + 1})
						return false
					})
					if n := h.sync.Status().Requests; n > uint64(100+12*culprits+meanwhile) {
						t.Errorf("%d requests, and %d others meanwhile", n, meanwhile)
					}
					box.SetFaults(sandbox.Faults{})
					h.drained(6 * time.Minute)
				})
			})
		}
	}
}

// Who is known to be at fault waits until everybody else has had a turn after an
// outage, and is tried on even when there is nobody else.
func TestCulpritAfterAnOutage(t *testing.T) {
	for _, place := range []int{0, 1} { // in the queue, among two others
		t.Run(fmt.Sprint(place), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, `poison="bad"`)})
				seen := &watcher{t: t, inner: box}
				h := open(t, dir, seen, rules(t, nil), func(o *delivery.Options) { o.Concurrency = 2 })
				h.append(append(crowd(20), event{user: "bad", n: 1})...)
				h.within(time.Minute, "the others are done", func() bool { return h.stats().Books.Pending == 1 })
				time.Sleep(time.Hour) // by now it is known
				box.SetFaults(faults(t, "429=1,retry_after=20m,on=data"))
				h.within(6*time.Minute, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
				box.SetFaults(faults(t, `poison="bad",latency=20ms`))
				closed := time.Now()
				time.Sleep(15 * time.Minute)
				for i := range 2 {
					if i == place {
						h.consumer.Hasten(time.Time{})
					}
					h.append(event{user: fmt.Sprintf("good-%d", i), n: 1})
					time.Sleep(time.Second)
				}
				h.within(6*time.Minute, "the good ones are delivered", func() bool { return h.stats().Books.Pending == 1 })
				for i, r := range seen.requests(closed)[:2] {
					if want := fmt.Sprintf("good-%d", i); r.people[0] != want {
						t.Errorf("request %d was %s's, want %s", i, r.people[0], want)
					}
				}
				opened := time.Now()
				time.Sleep(time.Hour)
				if n := len(seen.requests(opened)); n < 12 || n > 40 {
					t.Errorf("%d tries in an hour", n)
				}
				if g := h.sync.Status().Gate; g == delivery.GateClosed {
					t.Errorf("the gate is %s", g)
				}
				box.SetFaults(sandbox.Faults{})
				h.drained(6 * time.Minute)
			})
		})
	}
}

// One user alone fails when an outage begins, and gets the blame, before others fail too. When
// it is over that user is delivered with all others, after no wait of its own, wherever it
// stands among them.
func TestWhoGotTheBlameForAnOutageDoesNotWaitBehindIt(t *testing.T) {
	for others := 3; others < 12; others++ {
		bubble(t, func(t *testing.T, dir string) {
			box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
			h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations, o.Concurrency = 2, 32 })
			h.append(event{user: "good", n: 1})
			h.drained(time.Second)
			box.SetFaults(faults(t, "503=100%"))
			h.append(event{user: "lone", n: 1})
			time.Sleep(15 * time.Minute) // by now the next try would be five minutes later
			if g := h.sync.Status().Gate; g != delivery.GateOpen {
				t.Fatalf("one user's failures make the gate %s", g)
			}
			h.append(crowd(others)...)
			h.within(6*time.Minute, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
			time.Sleep(time.Hour)
			box.SetFaults(faults(t, "latency=20ms"))
			h.within(6*time.Minute, "the gate is open", func() bool { return h.sync.Status().Gate != delivery.GateClosed })
			h.drained(2 * time.Second)
		})
	}
}

// More users are known to be at fault than may be tried at once. Who has to wait for that
// has not failed again: once all is mended, and somebody says so, all are delivered.
func TestCulpritsWaitForTheirTurnOnly(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, `poison="bad-`)})
		seen := &watcher{t: t, inner: box}
		h := open(t, dir, seen, rules(t, nil), nil)
		events := crowd(40)
		for i := range 12 {
			events = append(events, event{user: fmt.Sprintf("bad-%d", i), n: 1})
		}
		h.append(events...)
		h.within(time.Minute, "the others are done", func() bool { return h.stats().Books.Pending == 12 })
		for n := 2; n < 62; n++ { // others get through meanwhile, or it would be the destination that fails
			h.append(event{user: "good", n: n})
			time.Sleep(time.Minute)
		}
		if g := h.sync.Status().Gate; g != delivery.GateOpen {
			t.Fatalf("the gate is %s", g)
		}
		box.SetFaults(faults(t, `poison="bad-,latency=1s`))
		begun := time.Now()
		h.sync.RetryNow()
		time.Sleep(2500 * time.Millisecond)
		if st := h.stats(); st.Retry+st.InFlight != 12 || st.Ready != 0 {
			t.Errorf("who waits for a turn still waits for a try: %+v", st)
		}
		time.Sleep(time.Hour)
		if n := len(seen.requests(begun)); n < 12*12 || n > 12*30 {
			t.Errorf("%d tries of 12 users in an hour", n)
		}
		box.SetFaults(faults(t, "latency=1s"))
		h.sync.RetryNow()
		h.drained(12 * time.Second)
	})
}

// Where everybody has failed before and the destination fails once more, it is not
// one user after the other who gets the blame.
func TestBlameHasAnEnd(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) {
			o.Concurrency, o.RetryInitial, o.RetryMax = 1, 10*time.Minute, time.Hour
		})
		h.append(event{user: "good", n: 1})
		h.drained(time.Second)
		box.SetFaults(faults(t, "502=1,on=data"))
		h.append(crowd(50)...)
		h.within(time.Second, "all have failed together", func() bool { return h.stats().Retry == 50 })
		box.SetFaults(sandbox.Faults{})
		h.append(event{user: "good", n: 2})
		h.within(time.Second, "the destination works", func() bool { return h.stats().Books.Delivered == 2 })
		box.SetFaults(faults(t, "502=1,on=data"))
		h.within(20*time.Minute, "the gate is closed", func() bool { return h.sync.Status().Gate == delivery.GateClosed })
		if n := h.sync.Status().FailedRequests; n > 1+3+3 {
			t.Errorf("%d requests failed before it was", n)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(30 * time.Minute)
	})
}
