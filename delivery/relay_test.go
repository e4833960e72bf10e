package delivery_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
)

// sent is an event as an SDK sent it.
type sent struct {
	user, device string
	raw          string // what its object has behind the ids: `,"event_type":"A"`
	key          string // "" = the project has one only
	source       mapping.Source
	address      string
	time         int64 // of the record; 0 = now
}

type sentEvents struct {
	events []sent
	now    int64
}

func (b *sentEvents) Size() int       { return 1000 * len(b.events) }
func (b *sentEvents) Project() string { return "app" }

func (b *sentEvents) Resolve(w *queue.Writer) error {
	for _, e := range b.events {
		raw := `{"x":1`
		if e.user != "" {
			raw += fmt.Sprintf(`,"user_id":%q`, e.user)
		}
		if e.device != "" {
			raw += fmt.Sprintf(`,"device_id":%q`, e.device)
		}
		place := w.Next()
		r := mapping.Record{UserID: e.user, DeviceID: e.device, Time: e.time, Properties: []byte("{}"), Raw: []byte(raw + e.raw + "}"), Source: e.source, Address: e.address}
		if e.key != "" {
			r.KeyID = mapping.KeyID(e.key)
		}
		if r.Time == 0 {
			r.Time = b.now
		}
		w.Put(queue.Record{Project: "app", Lane: "user/" + e.user + "/" + e.device, Received: b.now, ID: mapping.PlaceID(place.Nonce, place.Index), Body: r.AppendBody(nil)})
	}
	return nil
}

func (h *house) take(events ...sent) {
	h.t.Helper()
	if err := h.log.Append(context.Background(), &sentEvents{events, time.Now().UnixMilli()}); err != nil {
		h.t.Fatal(err)
	}
}

// relay opens a house whose stream is a relay to the model.
func relay(t testing.TB, dir string, m *amplitudeModel, change func(*delivery.Options)) *house {
	return open(t, dir, m, nil, func(o *delivery.Options) {
		o.Name, o.SiteID, o.APIKey, o.Endpoint = "relay.app", "", "", "http://amplitude.test"
		o.Relay = &delivery.Relay{Project: "app", Keys: []string{"key-1"}}
		if change != nil {
			change(o)
		}
	})
}

// numbers of a user's events, in the order in which the model took them.
func numbers(t testing.TB, events []takenEvent) map[string][]int {
	t.Helper()
	of := map[string][]int{}
	for _, e := range events {
		var raw struct{ N int }
		if err := json.Unmarshal([]byte(e.raw), &raw); err != nil {
			t.Fatalf("%s: %v", e.raw, err)
		}
		of[e.user] = append(of[e.user], raw.N)
	}
	return of
}

func upTo(n int) (list []int) {
	for i := range n {
		list = append(list, i+1)
	}
	return list
}

// byTurns is n events each of so many users, one after the other by turns.
func byTurns(users, n int, raw string) (list []sent) {
	for i := range n {
		for u := range users {
			list = append(list, sent{user: fmt.Sprintf("user-%d", u), raw: fmt.Sprintf(`,"event_type":"A","n":%d%s`, i+1, raw)})
		}
	}
	return list
}

func TestRelayedInLargeBatches(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		h := relay(t, dir, m, func(o *delivery.Options) { o.Concurrency = 1 })
		h.take(byTurns(300, 20, "")...)
		h.take(byTurns(4, 10, fmt.Sprintf(`,"pad":%q`, strings.Repeat("x", 100_000)))...)
		stats := h.drained(time.Minute)
		if stats.Books.Delivered != 6040 || stats.Tallies["event/delivered"].N != 6040 || stats.Tallies["record/first_try"].N != 6040 || len(stats.Tallies) != 2 {
			t.Errorf("books %+v, tallies %+v", stats.Books, stats.Tallies)
		}
		h.close()
		largest, most := 0, 0
		for _, r := range m.log() {
			if r.status != 200 && r.events != 1 || r.path != "/2/httpapi" {
				t.Errorf("%+v", r)
			}
			largest, most = max(largest, r.bytes), max(most, r.events)
		}
		if most != 2000 || largest < 800_000 || largest > 950_000 {
			t.Errorf("the largest request had %d events, or %d bytes", most, largest)
		}
		for user, n := range numbers(t, m.all()) {
			want := upTo(20)
			if len(user) == len("user-0") && user < "user-4" {
				want = append(want, upTo(10)...)
			}
			if !slices.Equal(n, want) {
				t.Errorf("%s: %v", user, n)
			}
		}
		if m.twice() > 0 {
			t.Errorf("%d came twice", m.twice())
		}
	})
}

// What Amplitude refuses becomes a dead letter, each for its own reason; all others
// arrive at once, whether it names all that is wrong or only the first.
func TestRefusedByAmplitude(t *testing.T) {
	for _, first := range []bool{false, true} {
		t.Run(fmt.Sprintf("first only %v", first), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				m := newAmplitudeModel()
				m.first, m.silenced, m.quota = first, map[string]bool{"device-silent": true}, map[string]bool{"user-spam": true}
				h := relay(t, dir, m, nil)
				events := byTurns(40, 25, "")
				bad := []struct {
					at     int
					event  sent
					reason string
					field  string
				}{
					{900, sent{user: "user-1", raw: `,"event_type":"A","n":1001,"currency":"EURO"`}, "invalid_field", "currency"},
					{800, sent{user: "user-2", raw: `,"event_type":"A","n":1002,"currency":"EURO"`}, "invalid_field", "currency"},
					{700, sent{user: "user-3", raw: `,"event_type":"A","n":1003,"time":"yesterday"`}, "invalid_field", "time"},
					{600, sent{user: "user-4", raw: `,"event_type":" ","n":1004`}, "missing_field", "event_type"},
					{500, sent{raw: `,"event_type":"A","n":1005`}, "missing_field", "device_id"},
					{400, sent{user: "user-6", device: "device-silent", raw: `,"event_type":"A","n":1006`}, "silenced", ""},
					{300, sent{user: "user-spam", raw: `,"event_type":"A","n":1007`}, "exceeded_daily_quota", "user_id"},
				}
				for _, b := range bad {
					events = slices.Insert(events, b.at, b.event)
				}
				h.take(events...)
				stats := h.drained(20 * time.Second)
				if stats.Books.Delivered != 1000 || stats.Books.Dead != 7 {
					t.Errorf("books %+v", stats.Books)
				}
				letters := h.dead(7)
				for _, b := range bad {
					i := slices.IndexFunc(letters, func(l queue.DeadLetter) bool {
						var r mapping.Record
						return r.DecodeBody(l.Record.Body) == nil && strings.HasSuffix(string(r.Raw), b.event.raw+"}")
					})
					if i < 0 || letters[i].Reason != b.reason || !strings.Contains(string(letters[i].Results), `"field":"`+b.field+`"`) && b.field != "" {
						t.Errorf("%s: %+v", b.event.raw, letters)
						continue
					}
					if !strings.Contains(string(letters[i].Results), `[{"action":"event","status":4`) {
						t.Errorf("results %s", letters[i].Results)
					}
				}
				for user, n := range numbers(t, m.all()) {
					if !slices.Equal(n, upTo(25)) {
						t.Errorf("%s: %v", user, n)
					}
				}
				if s := h.sync.Status(); s.State != delivery.Delivering || s.Gate != delivery.GateOpen || s.FailedRequests != 0 {
					t.Errorf("%+v", s)
				}

				// Tried again when Amplitude has changed its mind, only that is sent.
				m.set(func() { m.silenced, m.quota = nil, nil })
				if _, err := h.consumer.ReplayDead(seqs(letters)); err != nil {
					t.Fatal(err)
				}
				h.within(20*time.Second, "the two are delivered, and the five dead again", func() bool {
					b := h.stats().Books
					return b.Dead == 5 && b.Delivered == 1002
				})
				if m.twice() > 0 {
					t.Errorf("%d came twice", m.twice())
				}
			})
		})
	}
}

func seqs(letters []queue.DeadLetter) (list []uint64) {
	for _, l := range letters {
		list = append(list, l.Record.Seq)
	}
	return list
}

// A user who sends more than Amplitude takes waits, without losing the order; nobody
// else does.
func TestThrottledByAmplitude(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		m.perUser = 900 // 30 a second, over 30 s
		h := relay(t, dir, m, nil)
		var hot []sent
		for i := range 4000 {
			hot = append(hot, sent{user: "hot-user", raw: fmt.Sprintf(`,"event_type":"A","n":%d`, i+1)})
		}
		h.take(hot...)
		h.take(byTurns(50, 10, "")...)
		h.within(5*time.Second, "everybody else is delivered", func() bool { return len(m.of(func(e takenEvent) bool { return e.user != "hot-user" })) == 500 })
		if s := h.sync.Status(); s.State != delivery.Delivering || s.Gate != delivery.GateOpen || s.Rate != 100 {
			t.Errorf("%+v", s)
		}
		h.within(5*time.Second, "the busy user waits", func() bool { return h.stats().Waiting["throttled"].Lanes == 1 })
		h.drained(6 * time.Minute)
		h.close()
		all := numbers(t, m.all())
		if !slices.Equal(all["hot-user"], upTo(4000)) {
			t.Errorf("the busy user's %d events are not in order", len(all["hot-user"]))
		}
		if n := len(m.log()); n > 100 || m.twice() > 0 {
			t.Errorf("%d requests (%v), %d events twice", n, m.statuses, m.twice())
		}
		if len(h.buried) > 0 {
			t.Errorf("%d dead letters", len(h.buried))
		}
	})
}

// Where Amplitude throttles an event in the middle of a user's, those before it arrive, and
// those behind it wait for it.
func TestThrottledInTheMiddle(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		m.instead = func(r *http.Request) (int, map[string]string, string) {
			var request struct{ Events []json.RawMessage }
			body, _ := io.ReadAll(r.Body)
			if err := json.Unmarshal(body, &request); err != nil {
				t.Error(err)
			}
			for i, e := range request.Events {
				if time.Since(start) < 20*time.Second && bytes.Contains(e, []byte(`"user-1"`)) && bytes.Contains(e, []byte(`"n":3`)) {
					return 429, nil, fmt.Sprintf(`{"code":429,"error":"Too many requests for some devices and users","throttled_events":[%d]}`, i)
				}
			}
			return 0, nil, ""
		}
		h := relay(t, dir, m, nil)
		h.take(byTurns(3, 5, "")...)
		time.Sleep(10 * time.Second)
		if all := numbers(t, m.all()); !slices.Equal(all["user-1"], upTo(2)) || len(all["user-0"]) != 5 || len(all["user-2"]) != 5 {
			t.Errorf("while it waits: %v", all)
		}
		h.drained(time.Minute)
		if n := numbers(t, m.all())["user-1"]; !slices.Equal(n, upTo(5)) {
			t.Errorf("%v", n)
		}
	})
}

func TestTooLargeForAmplitude(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		m.maxBody = 50_000 // a proxy before it takes less than Amplitude says
		h := relay(t, dir, m, nil)
		events := byTurns(30, 20, fmt.Sprintf(`,"pad":%q`, strings.Repeat("x", 1000)))
		events = slices.Insert(events, 100, sent{user: "user-large", raw: fmt.Sprintf(`,"event_type":"A","n":1,"pad":%q`, strings.Repeat("x", 60_000))})
		h.take(events...)
		h.take(sent{user: "user-batch", raw: fmt.Sprintf(`,"event_type":"A","n":1,"pad":%q`, strings.Repeat("x", 1_200_000))})
		stats := h.drained(20 * time.Second)
		if stats.Books.Delivered != 601 || stats.Books.Dead != 1 {
			t.Errorf("books %+v", stats.Books)
		}
		if l := h.dead(1); l[0].Reason != "event_too_large" || !strings.Contains(string(l[0].Results), "Payload too large") {
			t.Errorf("%s %s", l[0].Reason, l[0].Results)
		}
		all := numbers(t, m.all())
		if len(all["user-batch"]) != 1 {
			t.Error("an event of more than 1 MB did not go through /batch")
		}
		for u := range 30 {
			if n := all[fmt.Sprintf("user-%d", u)]; !slices.Equal(n, upTo(20)) {
				t.Errorf("user-%d: %v", u, n)
			}
		}
		batches := 0
		for _, r := range m.log() {
			if r.path == "/batch" {
				batches++
			}
		}
		if batches != 1 {
			t.Errorf("%d requests to /batch", batches)
		}
	})
}

// A key that Amplitude does not know loses nothing: it is asked once a minute, and with the
// right key all arrives. Each of several keys has its own events.
func TestKeysOfARelay(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		m := newAmplitudeModel()
		m.keys = []string{"key-1", "key-3"}
		h := relay(t, dir, m, func(o *delivery.Options) { o.Relay.Keys = []string{"key-1", "key-2"} })
		var events []sent
		for i := range 200 {
			events = append(events, sent{user: fmt.Sprintf("user-%d", i%10), key: []string{"key-1", "key-2", ""}[i/10%3], raw: fmt.Sprintf(`,"event_type":"A","n":%d`, i/10+1)})
		}
		h.take(events...)
		time.Sleep(5 * time.Hour)
		s := h.sync.Status()
		if s.State != delivery.Blocked || s.Reason != "invalid_api_key" || !strings.Contains(s.Detail, "one of the API keys of project app") || !strings.Contains(s.Advice, "amplitude_api_keys") {
			t.Errorf("%+v", s)
		}
		if n := len(m.log()); n < 2*300 || n > 2*302 || len(m.all()) != 0 {
			t.Errorf("%d questions in 5 hours, %d events", n, len(m.all()))
		}
		if b := h.stats().Books; b.Pending != 200 {
			t.Errorf("books %+v", b)
		}
		m.set(func() { m.keys = []string{"key-1", "key-2"} })
		h.sync.RetryNow()
		h.drained(10 * time.Second)
		for user, n := range numbers(t, m.all()) {
			if !slices.Equal(n, upTo(20)) {
				t.Errorf("%s: %v", user, n)
			}
		}
		second := len(m.of(func(e takenEvent) bool { return e.key == "key-2" }))
		if second != 70 || len(m.all()) != 200 {
			t.Errorf("%d of %d events under the second key", second, len(m.all()))
		}

		// A key that is revoked while all goes well is the same.
		m.set(func() { m.keys = []string{"key-2"} })
		h.take(sent{user: "user-1", key: "key-1", raw: `,"event_type":"A","n":21`})
		h.within(5*time.Second, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
		h.reload(nil, func(o *delivery.Options) { o.Relay = &delivery.Relay{Project: "app", Keys: []string{"key-2"}} })
		h.drained(10 * time.Second)
		if h.lines.count("key-1") > 0 {
			t.Error("a key is in the log")
		}
	})
}
