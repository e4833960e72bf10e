package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/ingest"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"

	"ampcio-bench/load"
)

// path is a way that events take. op takes it once, for so many events.
type path struct {
	name   string
	events int
	// house paths have goroutines and clocks in them. Their allocations are counted in virtual time, where nobody is late: so
	// batches and checkpoints are the same ones on every machine.
	house bool
	begin func(tb testing.TB) (op func())
}

// people is how many users the events are of. Each has come before it is measured.
const people = 1000

func paths() []path {
	var all []path
	for _, n := range []int{1, 10, 100, 1000} {
		all = append(all, path{fmt.Sprintf("request of %d", n), n, false, func(tb testing.TB) func() {
			return posts(tb, nowhere{}, n)
		}})
	}
	return append(all,
		path{"event parsed", 1, false, func(tb testing.TB) func() {
			raw := firstEvent()
			return func() {
				if _, problems := mapping.ParseEvent(raw); problems != nil {
					tb.Fatal(problems)
				}
			}
		}},
		path{"properties changed", 1, false, func(tb testing.TB) func() {
			return func() {
				if _, err := mapping.ApplyOperations(nil, []byte(`{"plan":"free","role":"admin","logins":41}`), []byte(`{"$set":{"plan":"pro"},"$add":{"logins":1}}`)); err != nil {
					tb.Fatal(err)
				}
			}
		}},
		path{"record written", 1, false, func(tb testing.TB) func() {
			record, space := firstRecord(), []byte(nil)
			return func() { space = record.AppendBody(space[:0]) }
		}},
		path{"record read", 1, false, func(tb testing.TB) func() {
			record := firstRecord()
			body := record.AppendBody(nil)
			var r mapping.Record
			return func() {
				if err := r.DecodeBody(body); err != nil {
					tb.Fatal(err)
				}
			}
		}},
		path{"operations, user changed", 1, false, func(tb testing.TB) func() { return maps(tb, false) }},
		path{"operations, user unchanged", 1, false, func(tb testing.TB) func() { return maps(tb, true) }},
		path{"event id", 1, false, func(tb testing.TB) func() {
			return func() { mapping.EventID("app", "device", "dev-000000001", "000000000000000000000001") }
		}},
		path{"request of 100, stored", 100, true, func(tb testing.TB) func() { return posts(tb, newHouse(tb).users, 100) }},
		path{"stored, read, claimed, settled", 100, true, func(tb testing.TB) func() {
			h := newHouse(tb)
			store := posts(tb, h.users, 100)
			return func() {
				store()
				for left := 100; left > 0; {
					c, err := h.ledger.Claim(tb.Context())
					if err != nil {
						tb.Fatal(err)
					}
					outcomes := make([]queue.Outcome, len(c.Records()))
					for i := range outcomes {
						outcomes[i] = queue.Outcome{Ending: queue.Delivered}
					}
					left -= len(outcomes)
					c.Finish(outcomes)
				}
			}
		}},
		path{"stored, mapped, delivered, settled", 400, true, func(tb testing.TB) func() {
			h := newHouse(tb)
			store, took := posts(tb, h.users, 400), h.deliver(tb)
			return func() {
				store()
				for left := 400; left > 0; {
					select {
					case n := <-took:
						left -= n
					case <-time.After(time.Minute):
						tb.Fatalf("%d events were not delivered in a minute", left)
					}
				}
			}
		}})
}

// nowhere stores nothing and is content.
type nowhere struct{}

func (nowhere) Append(context.Context, mapping.Arrival) (int, error) { return 0, nil }

// answerless is a ResponseWriter that costs nothing.
type answerless struct {
	header http.Header
	status int
	said   []byte
}

func (a *answerless) Header() http.Header    { return a.header }
func (a *answerless) WriteHeader(status int) { a.status = status }
func (a *answerless) Write(p []byte) (int, error) {
	a.said = append(a.said[:0], p...)
	return len(p), nil
}

// posts gives requests of n events to the door, and everybody has come.
func posts(tb testing.TB, to ingest.Appender, n int) func() {
	door := ingest.New(ingest.Options{Projects: map[string][]string{"app": {load.Key}}, Log: slog.New(slog.DiscardHandler)}, to)
	request := load.NewRequest(n)
	reader := bytes.NewReader(nil)
	r := httptest.NewRequest(http.MethodPost, "/batch", nil)
	r.Header.Set("Content-Type", "application/json")
	r.Body = io.NopCloser(reader)
	w := &answerless{header: http.Header{}, said: make([]byte, 0, 4096)}
	return func() {
		body := request.Next(people)
		reader.Reset(body)
		r.ContentLength = int64(len(body))
		clear(w.header)
		w.status = 0
		door.ServeHTTP(w, r)
		if w.status != 0 && w.status != http.StatusOK {
			tb.Fatalf("%d %s", w.status, w.said)
		}
	}
}

func firstEvent() []byte {
	_, rest, _ := strings.Cut(string(load.NewRequest(1).Next(people)), `"events":[`)
	return []byte(strings.TrimSuffix(rest, "]}"))
}

func firstRecord() mapping.Record {
	return mapping.Record{ID: mapping.EventID("app", "device", "dev-000000001", "1"), Received: 1795432948999, UserID: "user-000000001", DeviceID: "dev-000000001",
		Time: 1795432948281, Address: "203.0.113.9", Properties: []byte(`{"plan":"pro","logins":42,"email":"ada@example.com"}`), Raw: firstEvent()}
}

func rules(tb testing.TB) *mapping.Rules {
	r, err := mapping.Compile(mapping.Spec{Identifier: "user_id", SendEvents: true, SendUsers: true, Select: []mapping.SelectSpec{{Event: []string{"*"}}},
		EventProperties: []string{"*"}, UserProperties: []string{"*"}})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func maps(tb testing.TB, unchanged bool) func() {
	r, record := rules(tb), firstRecord()
	id, reason := r.Identifier(&record)
	first, err := r.Map(&record, id, nil)
	if reason != "" || err != nil || len(first.Operations) != 2 {
		tb.Fatal(reason, err, first)
	}
	var sent []byte
	if unchanged {
		sent = first.Sent
	}
	return func() { _, _ = r.Map(&record, id, sent) } // it was right before
}

// house is log, users and ledger as the daemon has them.
type house struct {
	log    *queue.Log
	users  *users.Store
	ledger *queue.Consumer
	run    func(func(context.Context) error)
}

func newHouse(tb testing.TB) *house {
	dir := tb.TempDir()
	h := &house{}
	var err error
	if h.log, err = queue.Open(queue.Options{Dir: dir, RotateBytes: 1 << 30, RotateAfter: time.Hour, InFlightBytes: 64 << 20, Now: time.Now}); err != nil {
		tb.Fatal(err)
	}
	if h.ledger, err = queue.OpenConsumer(h.log, queue.ConsumerOptions{Name: "s", Project: "app", Enabled: true, WindowBytes: 8 << 20, Now: time.Now}); err != nil {
		tb.Fatal(err)
	}
	if h.users, err = users.Open(tb.Context(), h.log, users.Options{Path: filepath.Join(dir, "users.db"), CheckpointEvery: time.Hour, CacheBytes: 64 << 20}); err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	h.run = func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				tb.Error(err)
			}
		})
	}
	tb.Cleanup(func() {
		stop()
		wg.Wait()
		if err := errors.Join(h.users.Close(), h.ledger.Close(), h.log.Close()); err != nil {
			tb.Error(err)
		}
	})
	h.ledger.Flowing(true)
	h.run(h.ledger.Run)
	h.run(h.log.Run)
	h.run(h.users.Run)
	return h
}

// accepts is a Customer.io that takes everything at once, and says how many events came.
type accepts struct {
	took chan int
	mu   sync.Mutex
	body bytes.Buffer
}

func (a *accepts) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := func(text string) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: r}, nil
	}
	if r.Method == http.MethodGet {
		return answer(`{"url":"https://track.customer.io","region":"us","environment_id":1}`)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.body.Reset()
	if _, err := a.body.ReadFrom(r.Body); err != nil {
		return nil, err
	}
	a.took <- bytes.Count(a.body.Bytes(), []byte(`"action":"event"`))
	return answer("{}")
}

// deliver begins. In a test it may send once a second, so what is stored at one moment goes in one request.
func (h *house) deliver(tb testing.TB) <-chan int {
	requests := 1.0
	if _, inRealTime := tb.(*testing.B); inRealTime {
		requests = 10_000
	}
	a := &accepts{took: make(chan int, 1000)}
	s := delivery.New(h.ledger, rules(tb), delivery.Options{Name: "s", SiteID: "site", APIKey: "key", Region: "us", Endpoint: "http://sink.test", Transport: a,
		Concurrency: 1, RequestsPerSecond: requests, BatchOperations: 10_000, Log: slog.New(slog.DiscardHandler)})
	h.run(s.Run)
	return a.took
}

// BenchmarkPaths: what each way costs, with its allocations.
func BenchmarkPaths(b *testing.B) {
	for _, p := range paths() {
		b.Run(p.name, func(b *testing.B) {
			op := p.begin(b)
			for range people/p.events + 1 {
				op()
			}
			b.ReportAllocs()
			for b.Loop() {
				op()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(p.events), "ns/event")
		})
	}
}
