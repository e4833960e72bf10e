package ingest

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"ampcio/recordings"
)

// recorded is a request of a real SDK.
type recorded struct {
	Name   string      `json:"name"`
	SDK    string      `json:"sdk"`
	Method string      `json:"method"`
	Path   string      `json:"path"`
	Header [][2]string `json:"header"`
	Body   string      `json:"body"`
}

// recordedRequests returns the recordings package's requests and those in testdata: what the SDKs sent
// to servers that answered errors, and what is not to be answered 200 yet.
func recordedRequests(t testing.TB) (all []recorded) {
	t.Helper()
	for _, r := range recordings.All() {
		all = append(all, recorded{r.Name, r.SDK, r.Method, r.Path, r.Header, string(r.Body)})
	}
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("testdata: %v, %v", names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var some []recorded
		if err := json.Unmarshal(text, &some); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, some...)
	}
	return all
}

func replay(t *testing.T, h *Handler, r recorded) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequest(r.Method, r.Path, strings.NewReader(r.Body))
	for _, header := range r.Header {
		if name := strings.ToLower(header[0]); name != "host" && name != "content-length" {
			request.Header.Add(header[0], header[1])
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request)
	return w
}

func TestRecordedRequestsGetTheAnswerTheirSDKNeeds(t *testing.T) {
	for _, r := range recordedRequests(t) {
		t.Run(r.Name, func(t *testing.T) {
			store := &memory{}
			w := replay(t, New(options(), store), r)
			switch r.Name {
			case "go-track-without-ids-200":
				// Amplitude's documentation wants an ID; the SDK drops the event named and goes on.
				want := `{"code":400,"error":"Request missing required field","events_with_missing_fields":{"device_id":[0],"user_id":[0]}}`
				if w.Code != 400 || w.Body.String() != want || len(store.events()) != 0 {
					t.Errorf("%d %s, want 400 %s", w.Code, w.Body, want)
				}
				return
			case "node-400-events_with_invalid_fields", "node-400-events_with_invalid_id_lengths":
				// The middle one of three events is bad in truth: the SDK drops it and sends the others again.
				if w.Code != 400 || !strings.Contains(w.Body.String(), `":[1]}`) || strings.Contains(w.Body.String(), "missing") {
					t.Errorf("%d %s, want 400 naming event 1", w.Code, w.Body)
				}
				return
			case "legacy-js-200": // the next test's
				return
			}
			var sent struct{ Events []json.RawMessage }
			if err := json.Unmarshal([]byte(r.Body), &sent); err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Code     int   `json:"code"`
				Ingested int   `json:"events_ingested"`
				Bytes    int   `json:"payload_size_bytes"`
				Time     int64 `json:"server_upload_time"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			if w.Code != 200 || answer.Code != 200 || answer.Ingested != len(sent.Events) || answer.Bytes != len(r.Body) || answer.Time != noon.UnixMilli() {
				t.Errorf("%d %s for %d events in %d bytes", w.Code, w.Body, len(sent.Events), len(r.Body))
			}
			stored := store.events()
			if len(stored) != len(sent.Events) {
				t.Fatalf("%d events stored of %d", len(stored), len(sent.Events))
			}
			for i, e := range stored {
				if !bytes.Equal(e.Raw, sent.Events[i]) {
					t.Errorf("event %d\n got %s\nsent %s", i, e.Raw, sent.Events[i])
				}
				if e.InsertID == "" {
					t.Errorf("event %d has no insert_id", i)
				}
			}
		})
	}
}

func TestRecordedRequestsCompressed(t *testing.T) {
	for _, r := range recordings.All() {
		store := &memory{}
		body := compress(t, r.Body)
		status, answer := post(t, New(options(), store), r.Path, body, "Content-Type", "application/json", "Content-Encoding", "gzip")
		var got struct {
			Bytes int `json:"payload_size_bytes"`
		}
		if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || len(store.events()) == 0 || got.Bytes != len(body) {
			t.Errorf("%s: %d %s (%v), want 200 and %d bytes", r.Name, status, answer, err, len(body))
		}
	}
}

func compress(t testing.TB, body []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBodyEncodings(t *testing.T) {
	whole := compress(t, []byte(batch(good)))
	two := compress(t, []byte(batch(good)[:60])) + compress(t, []byte(batch(good)[60:]))
	bomb := compress(t, bytes.Repeat([]byte(" "), 24<<20))
	bombs := strings.Repeat(compress(t, bytes.Repeat([]byte(" "), 64<<10)), 400) // 25 MiB in many members
	tests := []struct {
		name, encoding, body string
		status               int
	}{
		{"gzip", "gzip", whole, 200},
		{"x-gzip", "X-GZIP", whole, 200},
		{"identity", "identity", batch(good), 200},
		{"in two members", "gzip", two, 200},
		{"cut off", "gzip", whole[:len(whole)-5], 400},
		{"cut off in its header", "gzip", whole[:5], 400},
		{"a wrong checksum", "gzip", whole[:len(whole)-8] + "12345678", 400},
		{"something after it", "gzip", whole + "x", 400},
		{"not gzip", "gzip", batch(good), 400},
		{"nothing", "gzip", "", 400},
		{"compressed twice", "gzip, gzip", compress(t, []byte(whole)), 400},
		{"brotli", "br", "\x8b\x03\x80", 400},
		{"a bomb", "gzip", bomb, 413},
		{"a bomb of many members", "gzip", bombs, 413},
		{"too large as it comes", "gzip", compress(t, noise(2<<20)), 413},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			h := New(options(), store)
			status, answer := post(t, h, "/2/httpapi", test.body, "Content-Type", "application/json", "Content-Encoding", test.encoding)
			if status != test.status || (status == 200) != (len(store.events()) == 1) {
				t.Errorf("%d %s, %d events stored; want %d", status, answer, len(store.events()), test.status)
			}
			if reason := spins(status, []byte(answer)); reason != "" {
				t.Errorf("%d %s: %s", status, answer, reason)
			}
			if !h.inFlight.TryAcquire(h.limits.inFlight) {
				t.Error("bytes in flight were not given back")
			}
		})
	}
}

// noise is n bytes that do not shrink.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}
