package ingest

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

const secret = "a-secret-of-the-webhook"

// exported is an event as Amplitude's webhook destination sends it by default.
const exported = `{"$insert_id":"i-1","amplitude_id":415231237452,"app":312345,"client_event_time":"2026-11-23 11:59:58.612","city":"Berlin","country":"Germany",` +
	`"device_carrier":null,"device_id":"device-1","event_id":187,"event_properties":{"total":12.50},"event_time":"2026-11-23 11:59:58.795","event_type":"Order Placed",` +
	`"groups":{},"ip_address":"203.0.113.9","platform":"iOS","user_id":"user-1","user_properties":{"plan":"pro","email":"ada@example.com"},"version_name":"3.14.1"}`

// hook is a door whose project "app" takes the webhook, and what its log hears.
func hook(m *memory) (*Handler, *bytes.Buffer) {
	o, heard := options(), &bytes.Buffer{}
	o.Log = slog.New(slog.NewTextHandler(heard, nil))
	h := New(o, m)
	h.SetWebhookSecrets(map[string]string{"app": secret, "other": "the-secret-of-another"})
	return h, heard
}

var bearer = []string{"Authorization", "Bearer " + secret, "Content-Type", "application/json", "User-Agent", "Amplitude/Webhook/1.0"}

func TestWebhook(t *testing.T) {
	tests := []struct {
		name, body string
		header     []string
		status     int
		says       string // part of the answer
		stored     int
		logs       string // part of what is logged
	}{
		{name: "an event", body: exported, header: bearer, status: 200, says: `"code":200`, stored: 1},
		{name: "with the other header", body: exported, header: []string{"X-Ampcio-Secret", secret}, status: 200, stored: 1},
		{name: "several events", body: "[" + exported + "," + strings.Replace(exported, "i-1", "i-2", 1) + "]", header: bearer, status: 200, says: `"events_ingested":2`, stored: 2},
		{name: "a user", body: `{"user_id":"user-1","user_properties":{"$set":{"plan":"pro"}}}`, header: bearer, status: 200, stored: 1},
		{name: "ids as short as Amplitude took them", body: `{"event_type":"A","user_id":"7"}`, header: bearer, status: 200, stored: 1},
		{name: "a wrong secret", body: exported, header: []string{"Authorization", "Bearer " + secret + "x"}, status: 401, says: "not that of any project", logs: "invalid_webhook_secret"},
		{name: "no secret", body: exported, status: 401, says: "no secret", logs: "invalid_webhook_secret"},
		{name: "another scheme", body: exported, header: []string{"Authorization", "Basic " + secret}, status: 401, says: "no secret", logs: "invalid_webhook_secret"},
		{name: "no JSON", body: `{"event_type":`, header: bearer, status: 400, says: "Invalid JSON", logs: "invalid_json"},
		{name: "two bodies in one", body: exported + exported, header: bearer, status: 400, says: "Invalid JSON", logs: "invalid_json"},
		{name: "nothing", body: ``, header: bearer, status: 400, says: "Missing request body", logs: "invalid_json"},
		{name: "an empty array", body: `[]`, header: bearer, status: 400, says: "event_type", logs: "no event"},
		{name: "neither an event nor a user", body: `{"amplitude_id":1}`, header: bearer, status: 400, says: "event_type", logs: "event_type is required"},
		{name: "nobody's", body: `{"event_type":"A","user_id":null,"device_id":"unknown"}`, header: bearer, status: 400, says: "user_id", logs: "user_id has no value"},
		{name: "a wrong time", body: strings.Replace(exported, `"2026-11-23 11:59:58.795"`, `"noon"`, 1), header: bearer, status: 400, says: `"events_with_invalid_fields":{"event_time":[0]}`, logs: "event_time must be"},
		{name: "one wrong of two: the other is stored", body: `[{"event_type":"A"},` + exported + `]`, header: bearer, status: 400, says: "1 of 2 are stored", stored: 1, logs: "invalid_events"},
		{name: "too large", body: `{"event_type":"` + strings.Repeat("A", 1<<20) + `"}`, header: bearer, status: 413, logs: "too_large"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			h, heard := hook(store)
			if test.header == nil {
				test.header = []string{"Content-Type", "application/json"}
			}
			status, answer := post(t, h, "/webhook/amplitude", test.body, test.header...)
			if status != test.status || !strings.Contains(answer, test.says) || !json.Valid([]byte(answer)) {
				t.Errorf("%d %s, want %d with %s", status, answer, test.status, test.says)
			}
			if n := len(store.events()); n != test.stored {
				t.Errorf("%d stored, want %d", n, test.stored)
			}
			for _, a := range store.arrivals {
				if a.Source != mapping.SourceWebhook || a.Project != "app" || a.Received != noon.UnixMilli() || a.Uploaded != 0 {
					t.Errorf("arrived as %+v", a)
				}
			}
			if !strings.Contains(heard.String(), test.logs) || test.logs == "" && heard.Len() > 0 {
				t.Errorf("the log heard %q, want %q", heard, test.logs)
			}
			for _, private := range []string{secret, "ada@example.com", "user-1", "Order Placed", "noon"} {
				if strings.Contains(heard.String(), private) || strings.Contains(answer, secret) {
					t.Errorf("%q is in the log or the answer: %s %s", private, heard, answer)
				}
			}
		})
	}
}

func TestWebhookEventIsStoredWithItsSnapshot(t *testing.T) {
	store := &memory{}
	h, _ := hook(store)
	post(t, h, "/webhook/amplitude", exported, bearer...)
	post(t, h, "/webhook/amplitude", exported, bearer...)
	events := store.events()
	if len(events) != 2 {
		t.Fatalf("%d events", len(events))
	}
	e := events[0]
	if !e.Snapshot || string(e.UserProperties) != `{"plan":"pro","email":"ada@example.com"}` || e.InsertID != "i-1" || e.Time != noon.UnixMilli()-1205 {
		t.Errorf("%+v %s", e, e.UserProperties)
	}
	if d := h.Door(); d.Duplicates != 1 || d.Events != 2 || d.LastSeen["app"] != noon {
		t.Errorf("door %+v", d)
	}
}

// Without a secret in the configuration nothing is taken; a change of it holds at once.
func TestWebhookSecretsChange(t *testing.T) {
	store := &memory{}
	h, _ := hook(store)
	h.SetWebhookSecrets(nil)
	if status, answer := post(t, h, "/webhook/amplitude", exported, bearer...); status != 401 || !strings.Contains(answer, "webhook_secret_file") {
		t.Errorf("%d %s", status, answer)
	}
	h.SetWebhookSecrets(map[string]string{"other": secret})
	if status, answer := post(t, h, "/webhook/amplitude", exported, bearer...); status != 200 || store.arrivals[0].Project != "other" {
		t.Errorf("%d %s", status, answer)
	}
	if status, _ := post(t, h, "/webhook/amplitude", exported, "X-Ampcio-Secret", "the-secret-of-another"); status != 401 {
		t.Errorf("a secret of before: %d", status)
	}
	if w := do(t, h, http.MethodGet, "/webhook/amplitude", "", bearer...); w.Code != 400 || !strings.Contains(w.Body.String(), "POST") {
		t.Errorf("GET: %d %s", w.Code, w.Body)
	}
}

// The disk hangs: Amplitude waits for 4 s, so it is answered before, and what the disk then stores after all is there.
func TestWebhookIsAnsweredInTimeBySlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
		h, heard := hook(m)
		began := time.Now()
		answered := make(chan string, 1)
		go func() {
			status, answer := post(t, h, "/webhook/amplitude", exported, bearer...)
			if status != 503 || !strings.Contains(answer, "slow") {
				t.Errorf("%d %s", status, answer)
			}
			answered <- answer
		}()
		<-m.begins // it is with the disk
		<-answered
		if took := time.Since(began); took < 3*time.Second || took >= 4*time.Second {
			t.Errorf("answered after %v", took)
		}
		if !strings.Contains(heard.String(), "slow_disk") {
			t.Errorf("the log heard %q", heard)
		}
		if n := len(m.events()); n != 0 {
			t.Errorf("%d events stored by a disk that hangs", n)
		}
		// memory ends a wait when its context does, as the log does for what it has not taken yet.
		synctest.Wait()
	})
}

// A disk that is done after the answer: the event is stored once, and its repeat is a duplicate.
func TestWebhookRepeatAfterASlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		h, _ := hook(m)
		slow := &hanging{memory: m, release: make(chan struct{})}
		h.appender = slow
		if status, answer := post(t, h, "/webhook/amplitude", exported, bearer...); status != 503 {
			t.Errorf("%d %s", status, answer)
		}
		close(slow.release)
		synctest.Wait()
		if n := len(m.events()); n != 1 {
			t.Fatalf("%d events stored", n)
		}
		if status, answer := post(t, h, "/webhook/amplitude", exported, bearer...); status != 200 || h.Door().Duplicates != 1 {
			t.Errorf("the repeat: %d %s, door %+v", status, answer, h.Door())
		}
	})
}

func TestWebhookRefusedByTheStoreIsRetried(t *testing.T) {
	for _, test := range []struct {
		err  error
		says string
	}{{&queue.FullError{Reason: "full", RetryAfter: time.Minute}, "storage is full"}, {queue.ErrBusy, "too many"}, {queue.ErrClosed, "stopping"}} {
		h, _ := hook(&memory{err: test.err})
		if status, answer := post(t, h, "/webhook/amplitude", exported, bearer...); status != 503 || !strings.Contains(answer, test.says) {
			t.Errorf("%v: %d %s", test.err, status, answer)
		}
	}
}
