package delivery_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire carries requests to a handler without sockets, so that time may be virtual.
// A handler that aborts cuts the connection, as in net/http. The handler can be
// exchanged while requests come in.
type wire struct {
	handler atomic.Pointer[http.Handler]
	broken  atomic.Pointer[error] // what every request meets instead, when set
	running sync.WaitGroup
}

func newWire(h http.Handler) *wire {
	w := &wire{}
	w.to(h)
	return w
}

func (w *wire) to(h http.Handler) { w.handler.Store(&h) }

// cut makes every request fail with err from now on; nil mends it.
func (w *wire) cut(err error) {
	if err == nil {
		w.broken.Store(nil)
		return
	}
	w.broken.Store(&err)
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
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
	handler := *w.handler.Load()
	done := make(chan bool, 1)
	w.running.Go(func() {
		whole := false
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
			done <- whole
		}()
		handler.ServeHTTP(recorder, inner)
		whole = true
	})
	select {
	case whole := <-done:
		if !whole && recorder.Body.Len() == 0 {
			return nil, io.EOF
		}
		response := recorder.Result()
		if !whole {
			response.Body = io.NopCloser(io.MultiReader(recorder.Body, broken{}))
		}
		response.Request = r
		return response, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// tap calls seen, one at a time, with each request and its body before inner gets it.
func tap(inner http.Handler, seen func(*http.Request, []byte)) http.Handler {
	var mu sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		mu.Lock()
		seen(r, body)
		mu.Unlock()
		inner.ServeHTTP(w, r)
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// event is one Amplitude event as a test writes it.
type event struct {
	user       string
	name       string // "" = Order
	n          int    // event property n, by which the sandbox checks the order
	properties string // user properties after it, "" = {}
	more       string // further event properties: `,"x":1`
	age        time.Duration
}

// records appends events to the log as ingest would.
type records struct {
	project string
	events  []event
	now     int64
}

func (b *records) Size() int { return 1000 * len(b.events) }

func (b *records) Project() string { return b.project }

func (b *records) Resolve(w *queue.Writer) error {
	for _, e := range b.events {
		if e.name == "" {
			e.name = "Order"
		}
		if e.properties == "" {
			e.properties = "{}"
		}
		raw := fmt.Sprintf(`{"user_id":%q,"event_type":%q,"event_properties":{"n":%d%s}}`, e.user, e.name, e.n, e.more)
		place := w.Next()
		r := mapping.Record{UserID: e.user, Time: b.now - e.age.Milliseconds(), Properties: []byte(e.properties), Raw: []byte(raw)}
		w.Put(queue.Record{
			Project: b.project, Lane: "user/" + e.user, Received: b.now,
			ID: mapping.PlaceID(place.Nonce, place.Index), Body: r.AppendBody(nil),
		})
	}
	return nil
}

// house is a log, one consumer of it and the sync that delivers it, running.
type house struct {
	t        testing.TB
	ctx      context.Context // of all but the sync
	o        delivery.Options
	log      *queue.Log
	consumer *queue.Consumer
	sync     *delivery.Sync
	wire     *wire
	stopSync context.CancelFunc
	stopped  chan error // of the sync
	stop     context.CancelFunc
	parts    sync.WaitGroup
	lines    *lines
	closed   bool
	buried   []queue.DeadLetter // in the end
}

func rules(t testing.TB, change func(*mapping.Spec)) *mapping.Rules {
	t.Helper()
	spec := mapping.Spec{
		Identifier: "user_id", IdentifierKind: "auto",
		Select:     []mapping.SelectSpec{{Event: []string{"*"}, Action: "send"}},
		SendEvents: true, EventProperties: []string{"*"}, PageViews: "event", UserPropertyValues: "json",
		SendUsers: true, UserProperties: []string{"plan"}, OnUnset: "clear",
	}
	if change != nil {
		change(&spec)
	}
	r, err := mapping.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const secret = "0123-very-secret-4567"

// open starts a house on a storage folder. dir is made outside of the bubble.
func open(t testing.TB, dir string, handler http.Handler, r *mapping.Rules, change func(*delivery.Options)) *house {
	t.Helper()
	return openOn(t, queue.Options{
		Dir: dir, RotateBytes: 64 << 20, RotateAfter: 24 * time.Hour, InFlightBytes: 64 << 20, Now: time.Now,
	}, handler, r, change)
}

func openOn(t testing.TB, storage queue.Options, handler http.Handler, r *mapping.Rules, change func(*delivery.Options)) *house {
	t.Helper()
	h := &house{t: t, wire: newWire(handler), stopped: make(chan error, 1), lines: &lines{}}
	var err error
	if h.log, err = queue.Open(storage); err != nil {
		t.Fatal(err)
	}
	h.consumer, err = queue.OpenConsumer(h.log, queue.ConsumerOptions{
		Name: "production", Project: "app", Enabled: true, WindowBytes: 32 << 20, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := delivery.Options{
		Name: "production", SiteID: "site", APIKey: secret, Region: "us", Endpoint: "http://sandbox.test",
		Transport: h.wire, Log: slog.New(slog.NewTextHandler(h.lines, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	h.o = o
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.parts.Go(func() { h.check(h.log.Run(h.ctx)) })
	h.parts.Go(func() { h.check(h.consumer.Run(h.ctx)) })
	h.deliver(r)
	t.Cleanup(h.close)
	return h
}

// deliver starts a generation of the sync.
func (h *house) deliver(r *mapping.Rules) {
	s := delivery.New(h.consumer, r, h.o)
	ctx, stop := context.WithCancel(h.ctx)
	h.sync, h.stopSync = s, stop
	go func() { h.stopped <- s.Run(ctx) }()
}

// reload ends the generation of the sync and starts another.
func (h *house) reload(r *mapping.Rules, change func(*delivery.Options)) {
	h.t.Helper()
	h.stopSync()
	h.check(<-h.stopped)
	h.o.Before = h.sync
	if change != nil {
		change(&h.o)
	}
	h.deliver(r)
}

func (h *house) check(err error) {
	if err != nil {
		h.t.Error(err)
	}
}

// close stops everything in the daemon's order, once.
func (h *house) close() {
	h.t.Helper()
	if h.closed {
		return
	}
	h.closed = true
	h.stopSync()
	h.check(<-h.stopped)
	h.stop()
	h.parts.Wait()
	h.buried = h.letters()
	h.check(h.consumer.Close())
	h.check(h.log.Close())
	h.wire.running.Wait()
	if text := h.lines.text(); strings.Contains(text, secret) {
		h.t.Errorf("the API key is in the log:\n%s", text)
	}
}

func (h *house) append(events ...event) {
	h.t.Helper()
	if err := h.log.Append(context.Background(), &records{"app", events, time.Now().UnixMilli()}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) stats() queue.ConsumerStats {
	h.t.Helper()
	s, err := h.consumer.Stats()
	if err != nil {
		h.t.Fatal(err)
	}
	if d := s.Books.Difference(); d != 0 {
		h.t.Errorf("books are out by %d: %+v", d, s.Books)
	}
	return s
}

// dead waits for so many dead letters in the ledger.
func (h *house) dead(n int) (list []queue.DeadLetter) {
	h.t.Helper()
	h.within(10*time.Second, fmt.Sprintf("%d dead letters are written", n), func() bool {
		list = h.letters()
		return len(list) == n
	})
	return list
}

func (h *house) letters() (list []queue.DeadLetter) {
	h.t.Helper()
	h.check(h.consumer.DeadLetters(func(d queue.DeadLetter) error {
		list = append(list, d)
		return nil
	}))
	return list
}

// within waits in virtual time until the condition holds.
func (h *house) within(limit time.Duration, what string, holds func() bool) {
	h.t.Helper()
	step := min(max(limit/500, 20*time.Millisecond), time.Second)
	for deadline := time.Now().Add(limit); !holds(); {
		if time.Now().After(deadline) {
			h.t.Fatalf("not within %v: %s\nstatus %+v\nstats %+v\nlog:\n%s", limit, what, h.sync.Status(), h.stats(), h.lines.text())
		}
		time.Sleep(step)
	}
}

// drained waits in virtual time until nothing is pending.
func (h *house) drained(limit time.Duration) queue.ConsumerStats {
	h.t.Helper()
	h.within(limit, "the queue is empty", func() bool { return h.stats().Books.Pending == 0 })
	return h.stats()
}

// lines collects what was logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) count(part string) int { return strings.Count(l.text(), part) }

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// bubble runs a test in virtual time with a storage folder of its own.
func bubble(t *testing.T, f func(t *testing.T, dir string)) {
	t.Helper()
	dir := quickDir(t)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(start)) // the clock of a bubble begins in 2000, too early for Customer.io
		f(t, dir)
	})
}

// quickDir is in memory where there is a place for that: hours and days of virtual time commit hundreds of times and
// ask nothing of a real disk, for which nobody's clock would wait.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "delivery")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fewUnderRace is of a table whose rows differ in what the destination answers, and not in what happens at once: the whole
// table runs without the race detector, and a short run under it has the first row and each nth after it.
func fewUnderRace[T any](rows []T, nth int) []T {
	if !underRace || !testing.Short() {
		return rows
	}
	var few []T
	for i := 0; i < len(rows); i += nth {
		few = append(few, rows[i])
	}
	return few
}

func faults(t testing.TB, spec string) sandbox.Faults {
	t.Helper()
	f, err := sandbox.ParseFaults(spec)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// watched is one request of data as the sandbox's side saw it.
type watched struct {
	at         time.Time
	operations int
	people     []string // in the order of their first operations
	inFlight   int      // requests of data, this one included, when it began
	status     int      // 0 = not answered
}

// watcher notes every request of data to inner.
type watcher struct {
	t        testing.TB
	inner    http.Handler
	mu       sync.Mutex
	seen     []*watched
	inFlight int
}

func (w *watcher) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.inner.ServeHTTP(rw, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	operations := operationsOf(w.t, body)
	one := &watched{at: time.Now(), operations: len(operations)}
	for _, raw := range operations {
		var o struct{ Identifiers struct{ ID string } }
		if err := json.Unmarshal(raw, &o); err != nil {
			w.t.Error(err)
		}
		if !slices.Contains(one.people, o.Identifiers.ID) {
			one.people = append(one.people, o.Identifiers.ID)
		}
	}
	w.mu.Lock()
	w.inFlight++
	one.inFlight = w.inFlight
	w.seen = append(w.seen, one)
	w.mu.Unlock()
	answered := &statusWriter{ResponseWriter: rw}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.inFlight--
		one.status = answered.status
	}()
	w.inner.ServeHTTP(answered, r)
}

// requests are those since a time, and what is known of them now.
func (w *watcher) requests(since time.Time) (list []watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.seen {
		if !one.at.Before(since) {
			list = append(list, *one)
		}
	}
	return list
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}
