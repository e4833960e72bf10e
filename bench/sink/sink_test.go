package sink

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"ampcio-bench/load"
)

func operation(user, seq int) string {
	return fmt.Sprintf(`{"type":"person","action":"event","identifiers":{"id":"user-%09d"},"name":"N","id":"%d-%d","attributes":{"seq":%d,"sent":1795432617042123,"text":"%s"}}`, user, user, seq, load.Base+seq, strings.Repeat("lorem ", 50))
}

// Everything that it is to see, it sees.
func TestNothingPassesUnseen(t *testing.T) {
	for _, c := range []struct {
		name    string
		batches [][]string
		want    Report
	}{
		{"all is well", [][]string{{operation(1, 1), operation(2, 1)}, {operation(1, 2), operation(257, 1)}}, Report{Events: 4}},
		{"one is missing", [][]string{{operation(1, 1), operation(1, 3)}}, Report{Events: 2, Missing: 1}},
		{"one comes late", [][]string{{operation(1, 1), operation(1, 3)}, {operation(1, 2)}}, Report{Events: 3, Disorders: 1}},
		{"one comes twice", [][]string{{operation(1, 1), operation(1, 2)}, {operation(1, 1)}}, Report{Events: 2, Doubles: 1}},
		{"a late one comes twice", [][]string{{operation(1, 2)}, {operation(1, 1)}, {operation(1, 1)}}, Report{Events: 2, Disorders: 1, Doubles: 1}},
		{"no operation", [][]string{{`{"type":"person"}`}}, Report{Refused: 1}},
		{"no JSON", [][]string{{`{`}}, Report{Refused: 1}},
		{"an update", [][]string{{`{"type":"person","action":"identify","identifiers":{"id":"user-000000001"},"attributes":{}}`}}, Report{Updates: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			for _, b := range c.batches {
				r := httptest.NewRequest("POST", "/api/v2/batch", strings.NewReader(`{"batch":[`+strings.Join(b, ",")+`]}`))
				r.SetBasicAuth("site", "key")
				w := httptest.NewRecorder()
				s.Handler().ServeHTTP(w, r)
				if (w.Code == 200) != (c.want.Refused == 0) {
					t.Error(w.Code, w.Body)
				}
			}
			got := s.Report()["site"]
			if got.Events != c.want.Events || got.Missing != c.want.Missing || got.Doubles != c.want.Doubles || got.Disorders != c.want.Disorders ||
				got.Refused != c.want.Refused || got.Updates != c.want.Updates {
				t.Errorf("%+v", got)
			}
			if (got.Wrong() == nil) != (c.want.Missing+c.want.Doubles+c.want.Disorders+c.want.Refused == 0) {
				t.Error(got.Wrong())
			}
		})
	}
}

// BenchmarkBatch500 is the sandbox's benchmark of the same name, for comparison.
func BenchmarkBatch500(b *testing.B) {
	s, seq := New(), 0
	handler := s.Handler()
	for b.Loop() {
		b.StopTimer()
		var operations []string
		for range 500 {
			operations = append(operations, operation(seq%1000, seq/1000+1))
			seq++
		}
		r := httptest.NewRequest("POST", "/api/v2/batch", strings.NewReader(`{"batch":[`+strings.Join(operations, ",")+`]}`))
		b.StartTimer()
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	if err := s.Report()[""].Wrong(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/operation")
}
