package ingest

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/mapping"
)

const key = "0123456789abcdef0123456789abcdef"

// noon is when every request of these tests is received.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// memory stores arrivals as an Appender may, failing in both ways: err
// alone fails and stores nothing, err with stores fails and stores all the same.
type memory struct {
	err    error
	stores bool
	// If set, Append sends on the one when it begins, and goes on when it can receive from the other. Two, since of two
	// Appends at once one must not take what the other sends.
	begins, goesOn chan struct{}

	mu       sync.Mutex
	arrivals []mapping.Arrival
	ids      map[string]bool
}

func (m *memory) Append(ctx context.Context, a mapping.Arrival) (duplicates int, err error) {
	if m.begins != nil {
		m.begins <- struct{}{}
		select {
		case <-m.goesOn:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil && !m.stores {
		return 0, m.err
	}
	events := make([]mapping.Event, len(a.Events))
	for i, e := range a.Events {
		e.Raw, e.UserProperties = bytes.Clone(e.Raw), bytes.Clone(e.UserProperties) // they are lent
		events[i] = e
		if m.ids == nil {
			m.ids = map[string]bool{}
		}
		if id := e.DeviceID + "/" + e.UserID + "/" + e.InsertID; e.InsertID != "" {
			if m.ids[id] {
				duplicates++
			}
			m.ids[id] = true
		}
	}
	a.Events = events
	m.arrivals = append(m.arrivals, a)
	return duplicates, m.err
}

// events returns all that is stored.
func (m *memory) events() (all []mapping.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.arrivals {
		all = append(all, a.Events...)
	}
	return all
}

// options of a door with one project, "app", that knows the key, and a quiet log.
func options() Options {
	return Options{
		Projects:    map[string][]string{"app": {"ffffffffffffffffffffffffffffffff", key}, "other": {"second-key"}},
		CORSOrigins: []string{"*"},
		Now:         func() time.Time { return noon },
		Log:         slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// post sends body and returns status and body of the answer.
func post(t testing.TB, h http.Handler, path, body string, header ...string) (int, string) {
	t.Helper()
	w := do(t, h, http.MethodPost, path, body, header...)
	return w.Code, w.Body.String()
}

func do(t testing.TB, h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "192.0.2.7:4711"
	if len(header) == 0 {
		header = []string{"Content-Type", "application/json"}
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// batch is a V2 body with the given events.
func batch(events ...string) string {
	return `{"api_key":"` + key + `","events":[` + strings.Join(events, ",") + `]}`
}

// good is an event without a fault.
const good = `{"event_type":"Order Placed","user_id":"user-1","device_id":"device-1","time":1795432617042,"insert_id":"i-1"}`

// hanging is a disk that hangs until it is released, whatever becomes of who asked: the log is so with what it has taken.
type hanging struct {
	*memory
	release chan struct{}
}

func (h *hanging) Append(ctx context.Context, a mapping.Arrival) (int, error) {
	<-h.release
	return h.memory.Append(ctx, a)
}
