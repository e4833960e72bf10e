package days_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
)

type queueDeadLetter = queue.DeadLetter

// wire carries requests to a handler without sockets, so that time may be virtual. A handler that aborts cuts the
// connection, as in net/http.
type wire struct {
	handler http.Handler
	broken  atomic.Pointer[error] // what every request meets instead, when set
	dead    atomic.Bool           // of a process that has crashed: nothing gets out of it
	late    atomic.Bool           // requests are processed, and answered when nobody waits any more
	running sync.WaitGroup
}

func newWire(h http.Handler) *wire { return &wire{handler: h} }

// cut makes every request fail with err from now on; nil mends it.
func (w *wire) cut(err error) {
	w.broken.Store(nil)
	if err != nil {
		w.broken.Store(&err)
	}
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.dead.Load() {
		return nil, io.EOF
	}
	if err := w.broken.Load(); err != nil {
		return nil, *err
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	inner := r.Clone(r.Context())
	inner.Body = io.NopCloser(bytes.NewReader(body))
	recorder := httptest.NewRecorder()
	done := make(chan bool, 1)
	w.running.Go(func() {
		whole := false
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler { // that is how the sandbox cuts a connection
				panic(p)
			}
			if w.late.Load() {
				<-r.Context().Done()
			}
			done <- whole
		}()
		w.handler.ServeHTTP(recorder, inner)
		whole = true
	})
	select {
	case whole := <-done:
		switch {
		case r.Context().Err() != nil:
			return nil, r.Context().Err()
		case !whole && recorder.Body.Len() == 0:
			return nil, io.EOF
		}
		response := recorder.Result()
		if !whole {
			response.Body = io.NopCloser(io.MultiReader(recorder.Body, half{}))
		}
		response.Request = r
		return response, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

type half struct{}

func (half) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// event is one event of a user, who has a plan after it.
type event struct {
	user, name, plan string
	n                int
}

func planOf(n int) string { return fmt.Sprintf("p%d", n/3%5) }

// records appends events to the log as ingest would.
type records struct {
	events []event
	now    int64
}

func (b *records) Size() int       { return 1000 * len(b.events) }
func (b *records) Project() string { return "app" }

func (b *records) Resolve(w *queue.Writer) error {
	for _, e := range b.events {
		properties := `{"n":` + fmt.Sprint(e.n) + `}`
		if e.name == "Bad" {
			properties = `{}`
		}
		raw := fmt.Sprintf(`{"user_id":%q,"event_type":%q,"event_properties":%s}`, e.user, e.name, properties)
		place := w.Next()
		r := mapping.Record{UserID: e.user, Time: b.now, Properties: fmt.Appendf(nil, `{"plan":%q}`, e.plan), Raw: []byte(raw)}
		w.Put(queue.Record{Project: "app", Lane: "user/" + e.user, Received: b.now, ID: mapping.PlaceID(place.Nonce, place.Index), Body: r.AppendBody(nil)})
	}
	return nil
}

// house is a log, one consumer of it and the sync that delivers it, running.
type house struct {
	t        testing.TB
	ctx      context.Context // of all but the sync
	stop     context.CancelFunc
	rules    *mapping.Rules
	log      *queue.Log
	consumer *queue.Consumer
	o        delivery.Options
	sync     *delivery.Sync
	stopSync context.CancelFunc
	stopped  chan error // of the sync
	wire     *wire
	parts    sync.WaitGroup
}

func open(t testing.TB, dir string, w *wire) *house {
	h := &house{t: t, wire: w, stopped: make(chan error, 1)}
	var err error
	if h.rules, err = mapping.Compile(mapping.Spec{
		Identifier: "user_id", IdentifierKind: "auto", Select: []mapping.SelectSpec{{Event: []string{"*"}, Action: "send"}},
		SendEvents: true, EventProperties: []string{"*"}, PageViews: "event", UserPropertyValues: "json",
		SendUsers: true, UserProperties: []string{"plan"}, OnUnset: "clear",
	}); err != nil {
		t.Fatal(err)
	}
	if h.log, err = queue.Open(queue.Options{Dir: dir, RotateBytes: 64 << 20, RotateAfter: 12 * time.Hour, InFlightBytes: 64 << 20, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	if h.consumer, err = queue.OpenConsumer(h.log, queue.ConsumerOptions{Name: "production", Project: "app", Enabled: true, WindowBytes: 32 << 20, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	h.o = delivery.Options{Name: "production", SiteID: "site", APIKey: "key", Region: "us", Endpoint: "http://sandbox.test", Transport: w}
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.parts.Go(func() { h.check(h.log.Run(h.ctx)) })
	h.parts.Go(func() { h.check(h.consumer.Run(h.ctx)) })
	h.deliver()
	return h
}

// deliver starts a generation of the sync.
func (h *house) deliver() {
	s := delivery.New(h.consumer, h.rules, h.o)
	ctx, stop := context.WithCancel(h.ctx)
	h.sync, h.stopSync = s, stop
	go func() { h.stopped <- s.Run(ctx) }()
}

// reload ends the generation of the sync and starts another.
func (h *house) reload() {
	h.stopSync()
	h.check(<-h.stopped)
	h.o.Before = h.sync
	h.deliver()
}

func (h *house) check(err error) {
	if err != nil {
		h.t.Error(err)
	}
}

// close stops everything in the daemon's order.
func (h *house) close() {
	h.stopSync()
	h.check(<-h.stopped)
	h.stop()
	h.parts.Wait()
	h.check(h.consumer.Close())
	h.check(h.log.Close())
	h.wire.running.Wait()
}

func (h *house) append(events []event) {
	if len(events) == 0 {
		return
	}
	if err := h.log.Append(context.Background(), &records{events, time.Now().UnixMilli()}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) stats() queue.ConsumerStats {
	s, err := h.consumer.Stats()
	if err != nil {
		h.t.Fatal(err)
	}
	if d := s.Books.Difference(); d != 0 {
		h.t.Fatalf("books are out by %d: %+v", d, s.Books)
	}
	return s
}

// within waits in virtual time until the condition holds.
func (h *house) within(limit time.Duration, what string, holds func() bool) {
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(limit / 500) {
		if time.Now().After(deadline) {
			h.t.Fatalf("not within %v: %s\nstatus %+v\nbooks %+v", limit, what, h.sync.Status(), h.stats().Books)
		}
	}
}
