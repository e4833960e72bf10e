package delivery_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/sandbox"
)

// What Customer.io refuses becomes a dead letter, alone: not the other records of
// its request, not the later ones of its user, and in no case out of order.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		faults string
		dead   string // reason
		user   bool   // it is the user update that is refused, not the event
	}{
		{name: "207", faults: "refuse_event=Bad", dead: "invalid"},
		{name: "400 for the whole request", faults: "refuse_event=Bad,refuse_how=400", dead: "http_400"},
		{name: "422 for the whole request", faults: "refuse_event=Bad,refuse_how=422", dead: "http_422"},
		{name: "413", faults: "refuse_event=Bad,refuse_how=413", dead: "operation_too_large"},
		{name: "403 while the keys are good", faults: "refuse_event=Bad,refuse_how=403", dead: "http_403"},
		{name: "identify, 207", faults: "refuse_attribute=bad", dead: "invalid", user: true},
		{name: "identify, 400", faults: "refuse_attribute=bad,refuse_how=400", dead: "http_400", user: true},
		{name: "identify, 403", faults: "refuse_attribute=bad,refuse_how=403", dead: "http_403", user: true},
		{name: "400 amid failures", faults: "refuse_event=Bad,refuse_how=400,500=0.1,cut_after=0.1", dead: "http_400"},
		{name: "403 amid failures", faults: "refuse_event=Bad,refuse_how=403,500=0.1,cut_after=0.1,on=data", dead: "http_403"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", Faults: faults(t, test.faults), Seed: 3})
				defer box.Close()
				h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.UserProperties = []string{"plan", "bad"} }), nil)
				const users, n = 30, 10
				var events []event
				bad := 0
				for i := range n {
					for u := range users {
						e := event{user: fmt.Sprintf("user-%d", u), n: i + 1, properties: fmt.Sprintf(`{"plan":"p%d"}`, i/4)}
						if u%10 == 3 && i%3 == 1 {
							e.name = "Bad"
							if bad++; test.user {
								e.name, e.properties = "Order", fmt.Sprintf(`{"plan":"p%d","bad":%d}`, i/4, i)
							}
						}
						events = append(events, e)
					}
				}
				h.append(events...)
				stats := h.drained(time.Hour)
				h.close()
				if b := stats.Books; int(b.Dead) != bad || int(b.Delivered) != users*n-bad {
					t.Errorf("want %d dead, books: %+v", bad, b)
				}
				key, example, arrived := "event/dead/"+test.dead, "Bad", users*n-bad
				if test.user {
					key, example, arrived = "user/dead/"+test.dead, "", users*n // its event arrives all the same
				}
				if got := stats.Tallies[key]; int(got.N) != bad || got.Example != example {
					t.Errorf("%s: %+v, want %d; all: %v", key, got, bad, stats.Tallies)
				}
				r := box.Report()
				if int(r.Events.Unique) != arrived || r.Order.OutOfOrder != 0 || r.Identifies.Stale != 0 {
					t.Errorf("sandbox: %+v %+v %+v", r.Events, r.Order, r.Identifies)
				}
				for u := range users {
					p, _ := box.Person("id", fmt.Sprintf("user-%d", u))
					if got := string(p.Attributes["plan"]); got != `"p2"` {
						t.Errorf("user-%d: plan %s", u, got)
					}
				}
			})
		})
	}
}

// A 403 for all data, while the region endpoint says that the keys are good, is
// not about this data: nothing is buried, and all arrives when it is over.
func TestForbiddenForEverybody(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "403=1,on=data")})
		h := open(t, dir, box, rules(t, nil), nil)
		h.append(traffic(10, 12)...)
		time.Sleep(2 * time.Hour)
		if b := h.stats().Books; b.Dead != 0 || b.Delivered != 0 {
			t.Errorf("books: %+v", b)
		}
		box.SetFaults(sandbox.Faults{})
		h.drained(10 * time.Minute)
		h.close()
		complete(t, box, 10, 12)
	})
}

// A firewall that let nothing through has just been mended: the one event that met it last, before everything else was
// let through, is sent once more, and not buried.
func TestForbiddenUntilJustNow(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		met := 0
		firewall := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				if met++; met == 1 {
					http.Error(w, "<h1>Forbidden</h1>", http.StatusForbidden)
					return
				}
			}
			box.ServeHTTP(w, r)
		})
		h := open(t, dir, firewall, rules(t, func(s *mapping.Spec) { s.SendUsers = false }), func(o *delivery.Options) { o.Concurrency = 1 })
		h.append(event{user: "ann", n: 1})
		if b := h.drained(time.Minute).Books; b.Delivered != 1 || b.Dead != 0 || box.Report().Events.Unique != 1 {
			t.Errorf("books %+v, sandbox %+v", b, box.Report().Events)
		}
	})
}

// A refused attribute does not stop the event, is not sent again until it
// changes, and does not keep the other attributes from arriving.
func TestRefusedAttribute(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "refuse_attribute=note")})
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.UserProperties = []string{"plan", "note"} }), nil)
		long := strings.Repeat("x", 120)
		h.append(
			event{user: "ann", n: 1, properties: `{"plan":"pro","note":"` + long + `"}`},
			event{user: "ann", n: 2, properties: `{"plan":"pro","note":"` + long + `"}`},
			event{user: "ann", n: 3, properties: `{"plan":"pro","note":"` + long + `"}`},
		)
		h.drained(time.Minute)
		// The next record brings what was in the refused identify, but for the note.
		h.append(event{user: "ann", n: 4, properties: `{"plan":"pro","note":"` + long + `"}`})
		h.drained(time.Minute)
		if p, _ := box.Person("id", "ann"); string(p.Attributes["plan"]) != `"pro"` || p.Attributes["note"] != nil {
			t.Errorf("ann has plan %s, note %s after the note was refused", p.Attributes["plan"], p.Attributes["note"])
		}
		box.SetFaults(sandbox.Faults{})
		h.append(event{user: "ann", n: 5, properties: `{"plan":"pro","note":"short"}`})
		stats := h.drained(time.Minute)
		h.close()
		if b := stats.Books; b.Dead != 1 || b.Delivered != 4 {
			t.Errorf("books: %+v, tallies %v", b, stats.Tallies)
		}
		if n := stats.Tallies["event/delivered"].N; n != 5 {
			t.Errorf("%d events delivered of 5: %v", n, stats.Tallies)
		}
		if n := stats.Tallies["user/dead/invalid"].N; n != 1 {
			t.Errorf("user/dead/invalid %d, want 1: %v", n, stats.Tallies)
		}
		p, _ := box.Person("id", "ann")
		if plan, note := string(p.Attributes["plan"]), string(p.Attributes["note"]); plan != `"pro"` || note != `"short"` || p.EventCount != 5 {
			t.Errorf("ann has plan %s, note %s, %d events", plan, note, p.EventCount)
		}
	})
}

// What was refused stays refused where a later record of the same request has nothing to send but something to remember, a
// property that is beyond a limit: what was in the identify is not taken for delivered.
func TestRefusedAttributeBeforeOneThatIsLeftOut(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "refuse_attribute=note")})
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.UserProperties = []string{"plan", "note", "big"} }), nil)
		with := `{"plan":"pro","note":"x","big":"` + strings.Repeat("x", 2000) + `"}`
		h.append(event{user: "ann", n: 1, properties: `{"plan":"pro","note":"x"}`}, event{user: "ann", n: 2, properties: with})
		h.drained(time.Minute)
		h.append(event{user: "ann", n: 3, properties: with})
		stats := h.drained(time.Minute)
		h.close()
		if b := stats.Books; b.Dead != 1 || b.Delivered != 2 || stats.Tallies["property/filtered/attribute_value_too_long"].N != 1 {
			t.Errorf("books: %+v, tallies %v", b, stats.Tallies)
		}
		if p, _ := box.Person("id", "ann"); string(p.Attributes["plan"]) != `"pro"` || p.Attributes["note"] != nil || p.EventCount != 3 {
			t.Errorf("ann has plan %s, note %s, %d events", p.Attributes["plan"], p.Attributes["note"], p.EventCount)
		}
	})
}

// An event that v2 would refuse for its size goes by v1, and one byte less does not; a
// request is filled to the last byte and not beyond.
func TestLimits(t *testing.T) {
	padded := func(user string, n, bytes int) event {
		return event{user: user, n: n, more: `,"p":"` + strings.Repeat("x", bytes) + `"`}
	}
	var largest, requests int
	var operations []int
	record := func(r *http.Request, body []byte) {
		if r.Method != http.MethodPost {
			return
		}
		requests++
		largest = max(largest, len(body))
		for _, o := range operationsOf(t, body) {
			operations = append(operations, len(o))
		}
	}
	run := func(t *testing.T, dir string, events ...event) (dead uint64) {
		t.Helper()
		largest, requests, operations = 0, 0, nil
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n"})
		h := open(t, dir, tap(box, record), rules(t, func(s *mapping.Spec) { s.SendUsers = false }), nil)
		h.append(events...)
		stats := h.drained(time.Minute)
		h.close()
		r := box.Report()
		delete(r.Notes, "person_created_by_event") // users.send is off
		if r.FirstInvalid != "" || len(r.Notes) > 0 || r.Order.OutOfOrder > 0 {
			t.Errorf("sandbox: %s %v %+v", r.FirstInvalid, r.Notes, r.Order)
		}
		if int(r.Events.Unique) != len(events)-int(stats.Books.Dead) {
			t.Errorf("%d of %d events have arrived", r.Events.Unique, len(events))
		}
		return stats.Books.Dead
	}
	var bare int
	bubble(t, func(t *testing.T, dir string) {
		run(t, dir, padded("u0", 10, 0))
		bare = operations[0]
	})
	const operation, request = 32_000, 500_000

	t.Run("operation", func(t *testing.T) {
		bubble(t, func(t *testing.T, dir string) {
			dead := run(t, dir, padded("u1", 10, operation-bare), padded("u2", 10, operation-bare+1), padded("u2", 11, 0))
			if dead != 0 || len(operations) != 2 || max(operations[0], operations[1]) != operation {
				t.Errorf("%d dead, sent %v", dead, operations)
			}
		})
	})
	for _, over := range []int{0, 1} {
		t.Run(fmt.Sprintf("request of %d bytes", request+over), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				// 15 of the largest and one that fills up; the wrapper has 12 bytes.
				var events []event
				for i := range 15 {
					events = append(events, padded("u1", 10+i, operation-bare))
				}
				rest := request - 12 - 15*(operation+1)
				events = append(events, padded("u1", 25, rest-bare+over))
				dead := run(t, dir, events...)
				want, wantLargest := 1, request
				if over > 0 {
					want, wantLargest = 2, request-rest-1
				}
				if dead != 0 || requests != want || largest != wantLargest {
					t.Errorf("%d dead, %d requests, the largest %d bytes; want %d, %d bytes", dead, requests, largest, want, wantLargest)
				}
			})
		})
	}
}

func operationsOf(t testing.TB, body []byte) []json.RawMessage {
	t.Helper()
	var request struct{ Batch []json.RawMessage }
	if err := json.Unmarshal(body, &request); err != nil {
		t.Errorf("body of %d bytes: %v", len(body), err)
	}
	return request.Batch
}

// With batch_operations = 1 a record's identify and event are two requests, one
// after the other.
func TestOneOperationARequest(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "500=0.2,cut_after=0.1")})
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 1 })
		h.append(traffic(5, 12)...)
		h.drained(time.Hour)
		h.close()
		r := complete(t, box, 5, 12)
		if r.MaxOperations != 1 {
			t.Errorf("up to %d operations in a request", r.MaxOperations)
		}
	})
}

// Identifies of one person are ordered by whole seconds, so a batch has at most
// one; the next batch has the next.
func TestSecondIdentifyStartsTheNextBatch(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		var batches []string
		h := open(t, dir, tap(box, func(r *http.Request, body []byte) {
			if r.Method == http.MethodPost {
				text := ""
				for _, o := range operationsOf(t, body) {
					var op struct{ Action string }
					_ = json.Unmarshal(o, &op)
					text += op.Action + " "
				}
				batches = append(batches, text)
			}
		}), rules(t, nil), nil)
		h.append(
			event{user: "ann", n: 1, properties: `{"plan":"a"}`}, event{user: "ann", n: 2, properties: `{"plan":"a"}`},
			event{user: "ann", n: 3, properties: `{"plan":"b"}`}, event{user: "ann", n: 4, properties: `{"plan":"b"}`},
			event{user: "ann", n: 5, properties: `{}`},
		)
		h.drained(time.Minute)
		h.close()
		want := "identify event event |identify event event |identify event "
		if got := strings.Join(batches, "|"); got != want {
			t.Errorf("batches %q, want %q", got, want)
		}
		p, _ := box.Person("id", "ann")
		if v, there := p.Attributes["plan"]; there && string(v) != `""` {
			t.Errorf("plan %s after it was unset", v)
		}
	})
}

// Two Amplitude users with one email are one person to Customer.io: never at the
// same time in two requests, nor both in one, and what was sent is remembered once.
func TestTwoUsersOneIdentifier(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "latency=200ms,500=0.1")})
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Identifier = "user.email" }), nil)
		slow := &exclusive{t: t, inner: box, held: map[string]bool{}}
		h.wire.to(slow)
		var events []event
		for i := range 20 {
			for u := range 6 {
				mail := fmt.Sprintf("Shared-%d@example.com", u/2)
				if u%2 == 1 {
					mail = strings.ToLower(mail)
				}
				events = append(events, event{user: fmt.Sprintf("u%d", u), n: i + 1, properties: fmt.Sprintf(`{"email":%q,"plan":"p%d"}`, mail, i/7)})
			}
		}
		h.append(events...)
		stats := h.drained(time.Hour)
		h.close()
		if stats.Books.Delivered != 120 || box.Report().Events.Unique != 120 || box.Report().People != 3 {
			t.Errorf("books %+v, sandbox %+v", stats.Books, box.Report().Events)
		}
		// Each lane in its own order.
		last := map[string]int{}
		for _, e := range box.Events(0, 0) {
			var p struct{ N int }
			_ = json.Unmarshal(e.Attributes, &p)
			if p.N == 20 {
				last[e.Email]++
			}
		}
		if len(last) != 3 {
			t.Errorf("last events by person: %v", last)
		}
	})
}

// exclusive fails the test when one identifier is in two requests at a time.
type exclusive struct {
	t     testing.TB
	inner http.Handler
	mu    sync.Mutex
	held  map[string]bool
}

func (x *exclusive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		people := map[string]bool{}
		for _, raw := range operationsOf(x.t, body) {
			var o struct{ Identifiers struct{ Email string } }
			_ = json.Unmarshal(raw, &o)
			people[strings.ToLower(o.Identifiers.Email)] = true
		}
		x.mu.Lock()
		for p := range people {
			if x.held[p] {
				x.t.Errorf("%s is in two requests at a time", p)
			}
			x.held[p] = true
		}
		x.mu.Unlock()
		defer func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			for p := range people {
				delete(x.held, p)
			}
		}()
	}
	x.inner.ServeHTTP(w, r)
}

// When single operations got a 403 and then it turns out that everything does,
// the one in the middle of a lane waits, and what is behind it was not sent.
func TestForbiddenInTheMiddle(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1})
		var over atomic.Bool // the firewall's rule has been taken away
		empty := 0
		firewall := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			refuse := bytes.Contains(body, []byte(`"Bad"`))
			if r.Method == http.MethodPost && len(operationsOf(t, body)) == 0 {
				empty++
				refuse = empty > 1 // by the second look nothing comes through any more
			}
			if refuse && !over.Load() {
				http.Error(w, "<h1>Forbidden</h1>", http.StatusForbidden)
				return
			}
			box.ServeHTTP(w, r)
		})
		h := open(t, dir, firewall, rules(t, func(s *mapping.Spec) { s.SendUsers = false }), func(o *delivery.Options) { o.Concurrency = 1 })
		h.append(event{user: "ann", n: 1}, event{user: "ann", n: 2, name: "Bad"}, event{user: "ann", n: 3}, event{user: "ann", n: 4})
		time.Sleep(time.Minute)
		if b := h.stats().Books; b.Delivered != 1 || b.Dead != 0 || box.Report().Events.Unique != 1 {
			t.Errorf("books %+v, sandbox %+v", b, box.Report().Events)
		}
		over.Store(true)
		h.drained(10 * time.Minute)
		h.close()
		if r := box.Report(); r.Events.Unique != 4 || r.Order.OutOfOrder != 0 {
			t.Errorf("events %+v, order %+v", r.Events, r.Order)
		}
	})
}
