package sandbox

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
)

// A batch of 500 events of about 500 bytes, without the network.
func BenchmarkBatch500(b *testing.B) {
	for _, kept := range []int{-1, 0} {
		b.Run(map[int]string{-1: "counted", 0: "kept"}[kept], func(b *testing.B) {
			s := New(Options{OrderAttribute: "seq", MaxKeptEvents: kept})
			n := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				var body strings.Builder
				body.WriteString(`{"batch":[`)
				for i := range 500 {
					if i > 0 {
						body.WriteByte(',')
					}
					n++
					var id ulid.ULID
					for j := range 8 {
						id[15-j] = byte(n >> (8 * j))
					}
					fmt.Fprintf(&body, `{"type":"person","action":"event","identifiers":{"id":"user-%d"},"name":"Order Completed","id":"%s","timestamp":1709634030,"attributes":{"seq":%d,"text":"%s","total":10.25}}`,
						n%1000, id, n, strings.Repeat("lorem ", 55))
				}
				body.WriteString(`]}`)
				r := httptest.NewRequest("POST", "/api/v2/batch", strings.NewReader(body.String()))
				r.SetBasicAuth("a", "b")
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				b.StartTimer()
				s.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
