package delivery_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
)

// Whatever answers in Amplitude's place, and whatever fails, every event arrives once and in
// order.
func TestRelayThroughFailures(t *testing.T) {
	tests := []struct {
		name   string
		status int // -1 = the connection is cut
		header map[string]string
		body   string
	}{
		{"unavailable", 503, nil, `{"code":503,"error":"Service Unavailable"}`},
		{"bad gateway, HTML", 502, nil, "<html>502</html>"},
		{"cut", -1, nil, ""},
		{"too many of the project", 429, nil, `{"code":429,"error":"Too many requests"}`},
		{"too many, of nobody", 429, nil, `{"code":429,"error":"Too many requests for some devices and users","throttled_events":[]}`},
		{"too many, when to come back", 429, map[string]string{"Retry-After": "20"}, ""},
		{"a load balancer's 400", 400, nil, "<html><head><title>400 Bad Request</title></head></html>"},
		{"a 200 without code", 200, nil, `{"ok":true}`},
		{"a 200 in plain text", 200, nil, "success"},
		{"nothing", 200, nil, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				m := newAmplitudeModel()
				h := relay(t, dir, m, nil)
				h.take(byTurns(20, 5, "")...)
				h.drained(10 * time.Second)
				m.set(func() {
					m.instead = func(r *http.Request) (int, map[string]string, string) {
						return test.status, test.header, test.body
					}
				})
				more := byTurns(20, 10, "")[100:]
				h.take(more...)
				time.Sleep(10 * time.Minute)
				s := h.sync.Status()
				if s.State != delivery.Unreachable || s.Gate != delivery.GateClosed {
					t.Errorf("%+v", s)
				}
				if text := s.Detail + s.Advice; strings.Contains(text, "Customer.io") || strings.Contains(text, "customer.io") {
					t.Errorf("%s", text)
				}
				if b := h.stats().Books; b.Pending != 100 || b.Dead != 0 {
					t.Errorf("books %+v", b)
				}
				if n := len(m.log()); n > 60 {
					t.Errorf("%d requests in 10 minutes", n)
				}
				m.set(func() { m.instead = nil })
				h.drained(10 * time.Minute)
				for user, n := range numbers(t, m.all()) {
					if !slices.Equal(n, upTo(10)) {
						t.Errorf("%s: %v", user, n)
					}
				}
				if h.lines.count("Amplitude does not take data") == 0 || h.lines.count("Amplitude takes data again") != 1 || h.lines.count("Customer.io") != 0 {
					t.Errorf("the log:\n%s", h.lines.text())
				}
			})
		})
	}
}

// An answer that was lost is no loss, and no double.
func TestAnswerLost(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		var answers atomic.Int64
		h := relay(t, dir, m, nil)
		h.wire.to(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.ServeHTTP(discarded{w}, r)
			if answers.Add(1)%3 == 2 {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"code":200}`)
		}))
		for i := range 20 { // one request after the other
			for u := range 10 {
				h.take(sent{user: fmt.Sprintf("user-%d", u), raw: fmt.Sprintf(`,"event_type":"A","n":%d`, i+1)})
			}
			time.Sleep(10 * time.Millisecond)
		}
		h.drained(5 * time.Minute)
		if m.twice() == 0 {
			t.Error("nothing was sent twice: no answer was lost")
		}
		for user, n := range numbers(t, m.all()) {
			if !slices.Equal(n, upTo(20)) {
				t.Errorf("%s: %v", user, n)
			}
		}
	})
}

type discarded struct{ http.ResponseWriter }

func (discarded) Write(b []byte) (int, error) { return len(b), nil }
func (discarded) WriteHeader(int)             {}

// What is refused without a name is found by halving; a 403 that is about one event is
// told from one about the whole relay.
func TestRefusedWithoutAName(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		body   string
	}{
		{"invalid event JSON", 400, `{"code":400,"error":"Invalid event JSON"}`},
		{"a status that nobody knows", 422, `{"code":422}`},
		{"indexes that are none", 400, `{"code":400,"error":"Invalid field values on some events","events_with_invalid_fields":{"a":[7000,-1]},"silenced_events":"many"}`},
		{"a firewall", 403, `{"code":403,"error":"Forbidden"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				m := newAmplitudeModel()
				h := relay(t, dir, m, nil)
				h.wire.to(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					if bytes.Contains(body, []byte(`"poison"`)) {
						w.WriteHeader(test.status)
						fmt.Fprint(w, test.body)
						return
					}
					r.Body = io.NopCloser(bytes.NewReader(body))
					m.ServeHTTP(w, r)
				}))
				events := byTurns(20, 10, "")
				events = slices.Insert(events, 77, sent{user: "user-3", raw: `,"event_type":"A","n":0,"poison":1`})
				h.take(events...)
				stats := h.drained(30 * time.Second)
				if stats.Books.Delivered != 200 || stats.Books.Dead != 1 {
					t.Errorf("books %+v", stats.Books)
				}
				for user, n := range numbers(t, m.all()) {
					if !slices.Equal(n, upTo(10)) {
						t.Errorf("%s: %v", user, n)
					}
				}
			})
		})
	}
}

// What came by webhook or import is not relayed; $identify and $groupidentify are, in order.
func TestWhatIsRelayed(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		h := relay(t, dir, m, func(o *delivery.Options) { o.Relay.Mark = "via" })
		h.take(
			sent{user: "user-1", raw: `,"event_type":"A","n":1`},
			sent{user: "user-1", raw: `,"event_type":"B","n":2`, source: mapping.SourceWebhook},
			sent{user: "user-1", raw: `,"event_type":"$identify","n":3,"user_properties":{"$set":{"a":1}}`},
			sent{user: "user-1", raw: `,"event_type":"C","n":4`, source: mapping.SourceImport},
			sent{user: "user-1", raw: `,"event_type":"D","n":5`, source: 77},
			sent{user: "user-1", raw: `,"event_type":"E","n":6,"ip":"$remote"`, address: "192.0.2.9"},
			sent{raw: `,"event_type":"$groupidentify","n":7,"groups":{"org":"Acme"}`},
			sent{device: "d", raw: `,"event_type":"F","n":8`}, // shorter than Amplitude takes, and taken
		)
		stats := h.drained(10 * time.Second)
		if c := stats.Tallies["event/filtered/not_from_sdk"]; c.N != 3 || c.Example == "" || stats.Books.Filtered != 3 || stats.Books.Delivered != 5 {
			t.Errorf("books %+v, tallies %+v", stats.Books, stats.Tallies)
		}
		if n := numbers(t, m.of(func(e takenEvent) bool { return e.user != "" })); !slices.Equal(n["user-1"], []int{1, 3, 6}) {
			t.Errorf("%v", n)
		}
		for _, e := range m.all() {
			if strings.Contains(e.raw, `"via":true`) == strings.HasPrefix(e.kind, "$") {
				t.Errorf("%s", e.raw)
			}
			if e.kind == "E" && !strings.Contains(e.raw, `"ip":"192.0.2.9"`) || e.insertID == "" {
				t.Errorf("%s", e.raw)
			}
		}
	})
}

// The time of an event in Amplitude's charts is the one that it would have had without a
// relay, also where the sender's clock is wrong, and also when the relay is late.
func TestTimesOfRelayedEvents(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		m.set(func() {
			m.instead = func(*http.Request) (int, map[string]string, string) { return 503, nil, "" }
		})
		h := relay(t, dir, m, nil)
		now := time.Now()
		at := func(d time.Duration) int64 { return now.Add(d).UnixMilli() }
		happened := func(n int, client time.Duration) string {
			return fmt.Sprintf(`,"event_type":"A","n":%d,"time":%d`, n, at(client))
		}
		h.take(
			sent{user: "user-1", raw: happened(1, -time.Second), time: at(-time.Second)},
			sent{user: "user-1", raw: happened(2, -2*time.Hour), time: at(-2 * time.Second)}, // a clock that is slow
			sent{user: "user-1", raw: happened(3, time.Hour), time: at(-3 * time.Second)},    // a clock that is fast
			sent{user: "user-1", raw: `,"event_type":"A","n":4`, time: at(0)},
			sent{user: "user-1", raw: happened(5, -time.Second), time: at(-time.Second)},
		)
		time.Sleep(time.Hour)
		m.set(func() { m.instead = nil })
		h.drained(10 * time.Minute)
		all := m.all()
		if n := numbers(t, all)["user-1"]; !slices.Equal(n, upTo(5)) {
			t.Fatalf("%v", n)
		}
		for i, want := range []time.Duration{-time.Second, -2 * time.Second, -3 * time.Second, 0, -time.Second} {
			if off := all[i].at.Sub(now.Add(want)).Abs(); off > time.Second {
				t.Errorf("event %d is out by %v", i+1, off)
			}
		}
	})
}

// A stop and a start in the middle of everything.
func TestRelayStopsAndStarts(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		n := 0
		m.instead = func(*http.Request) (int, map[string]string, string) {
			if n++; n%4 == 0 {
				return 503, nil, ""
			}
			return 0, nil, ""
		}
		for part := range 4 {
			h := relay(t, dir, m, nil)
			for i := range 50 {
				h.take(sent{user: fmt.Sprintf("user-%d", i%5), raw: fmt.Sprintf(`,"event_type":"A","n":%d`, part*10+i/5+1)})
				time.Sleep(7 * time.Millisecond)
			}
			if part == 3 {
				h.drained(5 * time.Minute)
			}
			h.close()
		}
		for user, n := range numbers(t, m.all()) {
			if !slices.Equal(n, upTo(40)) {
				t.Errorf("%s: %v", user, n)
			}
		}
	})
}
