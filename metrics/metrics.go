// Package metrics says in the words of Prometheus what a Snapshot says. What it calls a
// counter never goes down while the process lives.
//
// Labels are names from the configuration (sync, project), words of our own (state,
// outcome, …), and reasons, of which a sync has at most [MostReasons] of a kind: never
// what a sender chose.
package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"ampcio/admin"
)

// Source is what a running daemon knows.
type Source interface {
	// Measure reads the state as it is. No count in it is less than it was the last time.
	// Safe for concurrent use.
	Measure(ctx context.Context) (admin.Snapshot, Process, error)
}

// Process is what is known while ampcio runs, and is not in its Snapshot.
type Process struct {
	Started  time.Time
	Attempts map[string]map[string]uint64 // requests with data by sync and class of the answer
	Users    Users
}

// Users is what is known of the users' store.
type Users struct {
	Cached                         int
	Bytes                          int64
	Partial, Oversize, Unappliable uint64
}

// Write writes a Snapshot in the text format: of a house that is stopped, or that was
// asked. What only the process knows is not in it, nor is anything about the process.
func Write(w io.Writer, snap admin.Snapshot) error {
	registry := prometheus.NewRegistry()
	c := &collector{words: map[string]map[string]bool{}}
	c.look = func() (admin.Snapshot, *Process, error) { return snap, nil, nil }
	if err := registry.Register(c); err != nil {
		return err
	}
	found, err := registry.Gather()
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	encode := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range found {
		if err := encode.Encode(f); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	return nil
}

// scrapesMost is how many may ask at one time; others hear 503.
const scrapesMost = 4

// Handler answers GET /metrics: all of s, and what Go and the system say of the process.
func Handler(s Source, log *slog.Logger) http.Handler {
	registry := prometheus.NewRegistry()
	c := &collector{words: map[string]map[string]bool{}}
	c.look = func() (admin.Snapshot, *Process, error) {
		snap, process, err := s.Measure(context.Background())
		return snap, &process, err
	}
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesMost, ErrorLog: logged{log}})
}

// logged is what promhttp logs to.
type logged struct{ log *slog.Logger }

func (l logged) Println(v ...any) {
	l.log.Error("metrics could not be told", "error", fmt.Sprint(v...))
}

// collector makes series of what it sees when it is asked.
type collector struct {
	look func() (admin.Snapshot, *Process, error) // no Process: it does not run

	mu    sync.Mutex
	words map[string]map[string]bool // by sync and kind: the reasons that have a series of their own
}

func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, f := range families {
		to <- f.desc
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	snap, process, err := c.look()
	if err != nil {
		to <- prometheus.NewInvalidMetric(buildInfo.desc, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := teller{to: to, c: c}
	t.house(&snap, process)
	for i := range snap.Syncs {
		t.sync(&snap.Syncs[i], snap.At, process)
	}
}
