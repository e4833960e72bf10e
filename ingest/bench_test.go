package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ampcio/mapping"
)

// nowhere stores nothing and is always content.
type nowhere struct{}

func (nowhere) Append(context.Context, mapping.Arrival) (int, error) { return 0, nil }

// answerless is a ResponseWriter that costs nothing.
type answerless struct {
	header http.Header
	status int
}

func (a *answerless) Header() http.Header         { return a.header }
func (a *answerless) WriteHeader(status int)      { a.status = status }
func (a *answerless) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRequest100 is a request of 100 events of 700 bytes, from the HTTP request to the
// appender's door and back. ns/event is what one event costs.
func BenchmarkRequest100(b *testing.B) {
	events := make([]string, 100)
	for i := range events {
		e := fmt.Sprintf(`{"event_type":"Order Placed","user_id":"user-%06d","device_id":"device-%06d","time":%d,"insert_id":"5fc17f5b-6831-42ee-b71e-%012d","session_id":1795432950081,"platform":"Web","language":"en-US","ip":"$remote","app_version":"1.2.3","os_name":"Chrome","library":"amplitude-ts/2.45.0","event_properties":{"total":19.99,"currency":"EUR","items":[{"sku":"A-1","n":2},{"sku":"B-2","n":1}],"path":"/a/long/path/%d","note":"`, i, i, 1795432617042+i, i, i)
		end := `"},"user_properties":{"$set":{"plan":"pro"},"$add":{"orders":1}}}`
		events[i] = e + strings.Repeat("x", 700-len(e)-len(end)) + end
	}
	body := []byte(batch(events...))
	h := New(options(), nowhere{})
	reader := bytes.NewReader(body)
	r := httptest.NewRequest(http.MethodPost, "/2/httpapi", reader)
	r.Header.Set("Content-Type", "application/json")
	r.Body = io.NopCloser(reader)
	w := &answerless{header: http.Header{}}

	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		reader.Reset(body)
		clear(w.header)
		h.ServeHTTP(w, r)
		if w.status != http.StatusOK {
			b.Fatalf("status %d", w.status)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}
