package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"ampcio/admin"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// full is a house in which there is something of everything.
func full() (admin.Snapshot, Process) {
	snap := admin.Snapshot{
		Schema: admin.Schema, Source: "daemon", At: noon, Version: "v1.2.3", Uptime: ptr(int64(3600)),
		Versions: admin.Versions{Version: "v1.2.3", Commit: "0123456789ab", Go: "go1.26.8"}, Health: admin.Health{Level: admin.LevelCritical},
		Reload: &admin.Reload{At: noon, OK: true},
		Syncs: []admin.Sync{
			{
				Name: "production", Project: "app", Destination: admin.ToCustomerIO, Status: admin.StatusBlocked, Reason: "http_401", Gate: "open",
				PausedSince: ptr(noon), Depth: admin.Depth{Retry: 32, Held: 18_052, InFlight: 4, Dead: 7},
				OldestAge: ptr(int64(2472)),
				Health:    admin.Health{Level: admin.LevelCritical}, Late: admin.Late{Limit: ptr(int64(259_200)), OldestLeft: ptr(int64(256_728))},
				Audit:          admin.Audit{At: ptr(noon), Balanced: true},
				LatencyBuckets: []admin.LatencyBucket{{LE: ptr(0.1), Count: 30}, {LE: ptr(1.0), Count: 39}, {Count: 40}}, LatencySum: 12.5,
				PendingBytes: 9_000_000, MaxPending: 1 << 30,
				Waiting:   []admin.Waiting{{Reason: "http_503", Users: 12, Records: ptr(uint64(30))}},
				Aside:     admin.Aside{Users: 2, Records: 5, Bytes: 4096},
				Filtered:  []admin.Reason{{Kind: "event", Reason: "not_selected", Count: 902, Example: "Page Viewed"}, {Kind: "user", Reason: "unchanged", Count: 12}},
				Dead:      []admin.Reason{{Kind: "event", Reason: "invalid", Count: 9}},
				Discarded: []admin.Reason{{Kind: "record", Reason: "dead_letter_dropped", Count: 2}},
				Kept:      admin.DeadLetters{Count: 7, Bytes: 7000},
				DryRun:    &admin.DryRun{Requests: 3, Events: 40, Pending: 2},
				Totals: admin.Totals{Received: 1_904_331, Delivered: 1_885_338, FirstAttempt: 1_885_000, AfterRetry: 338, Filtered: 902, Dead: 7, Buried: 9,
					Discarded: 2, EventsDelivered: 1_885_000, UsersDelivered: 40_000},
				Books:         admin.Books{Taken: 1_904_331, Rewound: 3, Pending: 18_088, Balanced: false, Difference: -3},
				LastDelivered: ptr(noon.Add(-41 * time.Minute)), LedgerBytes: 65_536,
			},
			{Name: "relay.app", Project: "app", Destination: admin.ToAmplitude, Status: admin.StatusOK, Gate: "opening", Books: admin.Books{Balanced: true}},
		},
		Door: admin.Door{Requests: 20_000, Events: 1_904_341, Duplicates: 10, LastSeen: map[string]string{"app": "2026-11-23T11:59:30Z"},
			Refused:     []admin.Refused{{Reason: "invalid_api_key", Count: 3}},
			Certificate: &admin.Certificate{NotAfter: noon.Add(90 * 24 * time.Hour)}},
		Disk: admin.Disk{Used: 212 << 20, Max: 20 << 30, Free: 900 << 20, MinFree: 1 << 30, LogFiles: 3, LogBytes: 200 << 20, Full: "…", Damaged: 2, Share: 0.97, FullETA: ptr(int64(600))},
	}
	return snap, Process{
		Started:  noon.Add(-time.Hour),
		Attempts: map[string]map[string]uint64{"production": {"2xx": 40, "5xx": 2}},
		Users:    Users{Cached: 12, Bytes: 65_536, Partial: 1, Oversize: 2, Unappliable: 3},
	}
}

// source is a daemon that always knows the same.
type source struct {
	snap    admin.Snapshot
	process Process
	err     error
}

func (s source) Measure(context.Context) (admin.Snapshot, Process, error) {
	return s.snap, s.process, s.err
}

func collectorOf(snap admin.Snapshot, process *Process) *collector {
	return &collector{look: func() (admin.Snapshot, *Process, error) { return snap, process, nil }, words: map[string]map[string]bool{}}
}

func gather(t *testing.T, c prometheus.Collector) []*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry() // it compares what is collected with what is described
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	found, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestNamesAsTheEcosystemDoes(t *testing.T) {
	snap, process := full()
	problems, err := testutil.CollectAndLint(collectorOf(snap, &process))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A house in which there is something of everything shows every family, so that no test
// that looks at it misses one.
func TestEveryFamilyIsTold(t *testing.T) {
	snap, process := full()
	var told []string
	for _, f := range gather(t, collectorOf(snap, &process)) {
		told = append(told, f.GetName())
	}
	for _, f := range Families() {
		if !slices.Contains(told, f.Name) {
			t.Errorf("%s is not told", f.Name)
		}
	}
}

func TestTextOfAStoppedHouse(t *testing.T) {
	snap, _ := full()
	snap.Source, snap.Door.Certificate, snap.Reload = "files", nil, nil
	for i := range snap.Syncs {
		y := &snap.Syncs[i]
		y.Status, y.Gate, y.Reason, y.LatencyBuckets = admin.StatusStopped, "", "", nil
	}
	snap.Syncs[1] = admin.Sync{Name: "broken", Project: "app", Destination: admin.ToCustomerIO, Status: admin.StatusStopped, LedgerDamaged: true}
	var b bytes.Buffer
	if err := Write(&b, snap); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "stopped.prom")
	got := b.String()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("-want +got (go test ./metrics -update writes it anew)\n%s", d)
	}
	for _, line := range strings.Split(got, "\n") {
		if strings.Contains(line, `sync="broken"`) && !strings.HasPrefix(line, "ampcio_sync_") && !strings.HasPrefix(line, "ampcio_ledger_damaged") {
			t.Errorf("of a ledger that cannot be read: %s", line)
		}
	}
}

// A destination that invents reasons makes neither endless series, nor a counter that goes
// down.
func TestReasonsAreBoundedAndNeverGoDown(t *testing.T) {
	snap := admin.Snapshot{Syncs: []admin.Sync{{Name: "production", Destination: admin.ToCustomerIO, Status: admin.StatusOK}}}
	c := collectorOf(snap, nil)
	c.look = func() (admin.Snapshot, *Process, error) { return snap, nil, nil }
	before := map[string]float64{}
	for round := range 200 {
		// A new reason each time, and the newest is the most frequent: another order each time.
		y := &snap.Syncs[0]
		y.Dead = append(slices.Clone(y.Dead), admin.Reason{Kind: "event", Reason: fmt.Sprintf("invented_%d", round), Count: uint64(1000 * (round + 1))})
		for i := range y.Dead {
			y.Dead[i].Count++
		}
		now, sum := map[string]float64{}, 0.0
		for _, f := range gather(t, c) {
			if f.GetName() != operations.Name {
				continue
			}
			for _, m := range f.Metric {
				if labels := fmt.Sprint(m.Label); strings.Contains(labels, "dead") {
					now[labels] = m.Counter.GetValue()
					sum += m.Counter.GetValue()
				}
			}
		}
		for labels, was := range before {
			if now[labels] < was {
				t.Fatalf("round %d: %s went from %v to %v", round, labels, was, now[labels])
			}
		}
		want := 0.0
		for _, r := range y.Dead {
			want += float64(r.Count)
		}
		if sum != want {
			t.Fatalf("round %d: all reasons together %v, want %v", round, sum, want)
		}
		before = now
	}
	if len(before) != MostReasons+1 {
		t.Errorf("%d series, want %d", len(before), MostReasons+1)
	}
}

func TestHandler(t *testing.T) {
	snap, process := full()
	w := httptest.NewRecorder()
	Handler(source{snap: snap, process: process}, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	for _, want := range []string{
		`ampcio_build_info{commit="0123456789ab",goversion="go1.26.8",version="v1.2.3"} 1`,
		`ampcio_sync_blocked{destination="customerio",reason="http_401",sync="production"} 1`,
		`ampcio_sync_blocked{destination="amplitude",reason="",sync="relay.app"} 0`,
		`ampcio_events_total{destination="customerio",outcome="dead",sync="production"} 9`,
		`ampcio_delivery_latency_seconds_bucket{destination="customerio",sync="production",le="+Inf"} 40`,
		"\nprocess_resident_memory_bytes ", "\ngo_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if w.Code != 200 || strings.Contains(text, "Page Viewed") {
		t.Errorf("%d, or an event's name is told", w.Code)
	}

	w = httptest.NewRecorder()
	Handler(source{err: errors.New("the ledger is gone")}, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 500 {
		t.Errorf("of a house that cannot be read: %d, want 500, so that up is 0", w.Code)
	}
}
