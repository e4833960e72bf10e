package delivery_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"ampcio/delivery"
)

// BenchmarkDeliver is the whole way from the log through mapping and batches to
// an endpoint that accepts at once, and into the ledger; one op is one event,
// storing it included.
func BenchmarkDeliver(b *testing.B) {
	accept := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"url":"","region":"us","environment_id":1}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "{}\n")
	})
	for _, users := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("users=%d", users), func(b *testing.B) {
			h := open(b, b.TempDir(), accept, rules(b, nil), func(o *delivery.Options) { o.RequestsPerSecond = 100_000 })
			for sent := 0; sent < b.N; {
				events := make([]event, min(1000, b.N-sent))
				for i := range events {
					events[i] = event{user: fmt.Sprintf("user-%d", (sent+i)%users), n: sent + i, properties: `{"plan":"pro"}`, more: `,"total":12.5,"currency":"EUR"`}
				}
				h.append(events...)
				sent += len(events)
			}
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			for h.stats().Books.Pending > 0 {
				<-ticker.C
			}
			b.ReportMetric(float64(h.sync.Status().Requests), "requests")
			h.close()
		})
	}
}
