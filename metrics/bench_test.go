package metrics

import (
	"log/slog"
	"net/http/httptest"
	"testing"
)

// BenchmarkScrape is one look of Prometheus at a house of ten syncs, without what it takes
// to gather the Snapshot.
func BenchmarkScrape(b *testing.B) {
	snap, process := full()
	sync := snap.Syncs[0]
	snap.Syncs = nil
	for i := range 10 {
		sync.Name = string(rune('a' + i))
		snap.Syncs = append(snap.Syncs, sync)
		process.Attempts[sync.Name] = process.Attempts["production"]
	}
	h := Handler(source{snap: snap, process: process}, slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
}
