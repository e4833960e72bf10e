package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ampcio/mapping"
	"ampcio/queue"
)

func TestAnswersAreAmplitudes(t *testing.T) {
	event := func(members string) string { return `{"event_type":"E",` + members + `}` }
	const ids = `"user_id":"user-1"`
	tests := []struct {
		name, path, body string
		status           int
		answer           string
	}{
		{"one event", "/2/httpapi", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"the batch endpoint answers alike", "/batch", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"a server URL without its path", "/", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"a slash too many", "//2/httpapi/", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"a query is none of our business", "/2/httpapi?tenant=7", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"no key", "/2/httpapi", `{"events":[` + good + `]}`, 400,
			`{"code":400,"error":"Request missing required field","missing_field":"api_key"}`},
		{"unknown key", "/2/httpapi", `{"api_key":"nobody's","events":[` + good + `]}`, 400,
			`{"code":400,"error":"Invalid API key: nobody's"}`},
		{"no events", "/2/httpapi", `{"api_key":"` + key + `"}`, 400,
			`{"code":400,"error":"Request missing required field","missing_field":"events"}`},
		{"body cut off", "/2/httpapi", batch(good)[:100], 400,
			`{"code":400,"error":"Invalid JSON request body","missing_field":"events"}`},
		{"no body", "/2/httpapi", "", 400,
			`{"code":400,"error":"Missing request body","missing_field":"events"}`},
		{"every bad event is named, not only the first", "/2/httpapi",
			batch(good, event(ids+`,"time":"2026-11-23"`), good, event(ids+`,"time":"now","user_properties":7`), good, event(ids+`,"time":1.5`)), 400,
			`{"code":400,"error":"Invalid field values on some events","events_with_invalid_fields":{"time":[1,3,5],"user_properties":[3]}}`},
		{"missing fields", "/2/httpapi", batch(good, `{`+ids+`}`, `{`+ids+`,"event_type":"  "}`), 400,
			`{"code":400,"error":"Request missing required field","events_with_missing_fields":{"event_type":[1,2]}}`},
		{"no id at all", "/2/httpapi", batch(`{"event_type":"E"}`, good), 400,
			`{"code":400,"error":"Request missing required field","events_with_missing_fields":{"device_id":[0],"user_id":[0]}}`},
		{"short ids are named in a field that Kotlin and Swift know, too", "/2/httpapi", batch(event(`"user_id":"ab","device_id":"cd"`), event(`"device_id":"1234"`)), 400,
			`{"code":400,"error":"Invalid id length for user_id or device_id","events_with_invalid_fields":{"device_id":[0,1],"user_id":[0]},"events_with_invalid_id_lengths":{"device_id":[0,1],"user_id":[0]}}`},
		{"an id that is none", "/2/httpapi", batch(event(`"user_id":"undefined"`)), 400,
			`{"code":400,"error":"Invalid field values on some events","events_with_invalid_fields":{"user_id":[0]}}`},
		{"an event that is no object", "/2/httpapi", batch(good, `7`, `null`), 400,
			`{"code":400,"error":"Invalid event JSON","events_with_invalid_fields":{"event":[1,2]}}`},
		{"an event with a name twice", "/2/httpapi", batch(event(ids+`,"event_properties":{"a":1,"a":2}`), good), 400,
			`{"code":400,"error":"Invalid field values on some events","events_with_invalid_fields":{"event_properties":[0]}}`},
		{"wrong and missing together", "/2/httpapi", batch(event(ids+`,"time":true`), `{`+ids+`}`), 400,
			`{"code":400,"error":"Request missing required field","events_with_invalid_fields":{"time":[0]},"events_with_missing_fields":{"event_type":[1]}}`},
		{"too many events", "/2/httpapi", batch(strings.Split(strings.Repeat(",{}", 2001)[1:], ",")...), 413,
			`{"code":413,"error":"Payload too large"}`},
		{"too large", "/2/httpapi", batch(event(ids + `,"event_properties":{"a":"` + strings.Repeat("x", 1<<20) + `"}`)), 413,
			`{"code":413,"error":"Payload too large"}`},
		{"a typing error in the path", "/2/httpap", batch(good), 400,
			`{"code":400,"error":"Invalid request path","missing_field":"path"}`},
		{"a URL that lacks the 2", "/httpapi", batch(good), 200,
			`{"code":200,"server_upload_time":1795435200000,"payload_size_bytes":168,"events_ingested":1}`},
		{"and one bad event", "/httpapi", batch(good, `7`), 400,
			`{"code":400,"error":"Invalid event JSON","events_with_invalid_fields":{"event":[1]}}`},
		{"no parameters", "/httpapi", "x", 400,
			`{"code":400,"error":"Request missing required field","missing_field":"api_key"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			status, answer := post(t, New(options(), store), test.path, test.body)
			if status != test.status || answer != test.answer {
				t.Errorf("%s\n got %d %s\nwant %d %s", head(test.body), status, answer, test.status, test.answer)
			}
			if stored := len(store.events()); (status == 200) != (stored > 0) {
				t.Errorf("answered %d and stored %d events", status, stored)
			}
		})
	}
}

func TestBatchTakesMoreThanTheHTTPAPI(t *testing.T) {
	body := batch(`{"event_type":"E","user_id":"user-1","event_properties":{"a":"` + strings.Repeat("x", 2<<20) + `"}}`)
	h := New(options(), &memory{})
	if status, answer := post(t, h, "/2/httpapi", body); status != 413 {
		t.Errorf("2 MiB to /2/httpapi: %d %s, want 413", status, answer)
	}
	if status, answer := post(t, h, "/batch", body); status != 200 {
		t.Errorf("2 MiB to /batch: %d %s, want 200", status, answer)
	}
	many := make([]string, 2000)
	for i := range many {
		many[i] = fmt.Sprintf(`{"event_type":"E","user_id":"user-%d"}`, i)
	}
	if status, answer := post(t, h, "/2/httpapi", batch(many...)); status != 200 {
		t.Errorf("2000 events: %d %s, want 200", status, answer)
	}
}

func TestWhatIsStored(t *testing.T) {
	store := &memory{}
	h := New(options(), store)
	body := `{"options":{"min_id_length":2},"client_upload_time":"2026-11-23T11:16:57.248Z","library":"x","events":[
		{"event_type":"E","user_id":"u1","api_key":"` + key + `","n":9007199254740993},
		{"event_type":"$groupidentify","groups":{"org":"Acme"}}],"api_key":"` + key + `","request_metadata":{"sdk":{}}}`
	if status, answer := post(t, h, "/2/httpapi", body); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	want := []mapping.Arrival{{
		Project: "app", Received: noon.UnixMilli(), Uploaded: 1795432617248, Address: "192.0.2.7", KeyID: mapping.KeyID(key),
		Events: []mapping.Event{
			{Raw: []byte(`{"event_type":"E","user_id":"u1","n":9007199254740993}`), Type: "E", UserID: "u1"},
			{Raw: []byte(`{"event_type":"$groupidentify","groups":{"org":"Acme"}}`), Type: "$groupidentify"},
		},
	}}
	if diff := cmp.Diff(want, store.arrivals); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	for _, e := range store.events() {
		if bytes.Contains(e.Raw, []byte(key)) {
			t.Errorf("the API key is stored: %s", e.Raw)
		}
	}
}

func TestProjectIsTheKeys(t *testing.T) {
	store := &memory{}
	h := New(options(), store)
	for _, k := range []string{"second-key", key} {
		if status, answer := post(t, h, "/2/httpapi", strings.Replace(batch(good), key, k, 1)); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
	}
	if a := store.arrivals; a[0].Project != "other" || a[1].Project != "app" {
		t.Errorf("projects %q and %q", a[0].Project, a[1].Project)
	}
}

func TestUploadTime(t *testing.T) {
	tests := []struct {
		name, value string
		want        int64
	}{
		{"JavaScript, Kotlin, Swift", `"2026-11-23T11:16:57.248Z"`, 1795432617248},
		{"without milliseconds", `"2026-11-23T11:16:57Z"`, 1795432617000},
		{"with an offset", `"2026-11-23T12:16:57.248+01:00"`, 1795432617248},
		{"with an offset in four digits", `"2026-11-23T12:16:57.248+0100"`, 1795432617248},
		{"without a zone", `"2026-11-23T11:16:57.248"`, 1795432617248},
		{"as in an export", `"2026-11-23 11:16:57.248000"`, 1795432617248},
		{"in the digits of another language", `"٢٠٢٦-١١-٢٣T١١:١٦:٥٧.٢٤٨Z"`, 0},
		{"before there were computers", `"1812-01-01T00:00:00Z"`, 0},
		{"a number", `1795432617248`, 0},
		{"null", `null`, 0},
		{"no time", `"soon"`, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			body := strings.TrimSuffix(batch(good), "}") + `,"client_upload_time":` + test.value + `}`
			if status, answer := post(t, New(options(), store), "/2/httpapi", body); status != 200 {
				t.Fatalf("%d %s", status, answer)
			}
			if got := store.arrivals[0].Uploaded; got != test.want {
				t.Errorf("%s: got %d, want %d", test.value, got, test.want)
			}
		})
	}
}

// What cannot be stored is a 503 whatever the cause, and the door says which.
func TestCannotStore(t *testing.T) {
	full := fmt.Errorf("append: %w", &queue.FullError{Reason: "min_free", RetryAfter: 30 * time.Second})
	tests := []struct {
		name   string
		store  *memory
		reason string
		retry  []string // one of
	}{
		{"disk full", &memory{err: full}, "storage_full", []string{"32", "33"}},
		{"too much in flight", &memory{err: fmt.Errorf("append: %w", queue.ErrBusy)}, "busy", []string{"2", "3"}},
		{"stopping", &memory{err: queue.ErrClosed}, "stopping", []string{"2", "3"}},
		{"commit failed, nothing stored", &memory{err: errors.New("write: input/output error")}, "store_error", []string{"2", "3"}},
		{"commit failed, stored all the same", &memory{err: errors.New("fdatasync: input/output error"), stores: true}, "store_error", []string{"2", "3"}},
	}
	for _, test := range tests {
		for _, path := range []string{"/2/httpapi", "/batch", "/identify"} {
			t.Run(test.name+" "+path, func(t *testing.T) {
				body, header := batch(good), []string{"Content-Type", "application/json"}
				if path == "/identify" {
					body, header = "api_key="+key+`&identification={"user_id":"user-1"}`, []string{"Content-Type", "application/x-www-form-urlencoded"}
				}
				h := New(options(), test.store)
				w := do(t, h, "POST", path, body, header...)
				var answer struct {
					Code  int
					Error string
				}
				if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
					t.Fatalf("answer %q: %v", w.Body, err)
				}
				if w.Code != 503 || answer.Code != 503 || answer.Error == "" {
					t.Errorf("answer %d %s, want 503 in both", w.Code, w.Body)
				}
				if got := w.Header().Get("Retry-After"); got != test.retry[0] && got != test.retry[1] {
					t.Errorf("Retry-After %q, want one of %q", got, test.retry)
				}
				door := h.Door()
				if len(door.Refused) != 1 || door.Refused[0].Reason != test.reason || door.Events != 0 {
					t.Errorf("door %+v, want one refusal for %s and no event", door, test.reason)
				}
			})
		}
	}
}

func TestTroubleIsLoggedOnceAndWithoutSecrets(t *testing.T) {
	var log strings.Builder
	o := options()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := New(o, &memory{err: errors.New("disk on fire")})
	for range 50 {
		post(t, h, "/2/httpapi", batch(good))
		post(t, h, "/2/httpapi", `{"api_key":"wrong-key","events":[`+good+`]}`)
	}
	for _, kind := range []string{"events refused, senders will try again", "requests refused, and most senders drop what was in them"} {
		if n := strings.Count(log.String(), kind); n != 1 || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("%d lines of %q, want 1:\n%s", n, kind, &log)
		}
	}
	for _, secret := range []string{key, "wrong-key", "user-1", "Order"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log tells %q:\n%s", secret, &log)
		}
	}
	if !strings.Contains(log.String(), "disk on fire") {
		t.Errorf("the log does not tell the cause:\n%s", &log)
	}
}

func TestDoorCounts(t *testing.T) {
	o := options()
	now := noon
	o.Now = func() time.Time { return now }
	h := New(o, &memory{})
	post(t, h, "/2/httpapi", batch(good, good))
	post(t, h, "/2/httpapi", batch(good))
	now = noon.Add(time.Minute)
	for range 2 {
		post(t, h, "/2/httpapi", `{"api_key":"x","events":[`+good+`]}`)
	}
	post(t, h, "/favicon.ico", "")
	want := DoorStats{
		Requests: 5, Events: 3, Duplicates: 2,
		Refused: []Refusal{
			{Reason: "invalid_api_key", Count: 2, Last: now, Address: "192.0.2.7"},
			{Reason: "wrong_path", Count: 1, Last: now, Address: "192.0.2.7"},
		},
		LastSeen: map[string]time.Time{"app": noon},
		Last:     &Request{At: now, Peer: "192.0.2.7"},
	}
	if diff := cmp.Diff(want, h.Door()); diff != "" {
		t.Errorf("door (-want +got):\n%s", diff)
	}
}

// A Go SDK sends the same events again at once, without end, on any 4xx but 408, 413 and 429
// that names neither a missing field nor the key nor an event. So no method and no path may
// give it one, redirects that turn a POST into a GET included.
func TestNoAnswerMakesTheGoSDKSpin(t *testing.T) {
	h := New(options(), &memory{})
	for _, path := range []string{"/", "/2/httpapi", "/batch", "/identify", "/groupidentify", "/httpapi", "/webhook/amplitude", "/healthz", "/2", "/nowhere"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} {
			for _, body := range []string{"", batch(good), batch(`{}`), "not JSON", "client=x&e=[]"} {
				for _, kind := range []string{"application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"} {
					w := do(t, h, method, path, body, "Content-Type", kind)
					if w.Code == 200 && method == "POST" {
						continue
					}
					if path == "/healthz" && (method == "GET" || method == "HEAD") {
						continue // a load balancer's question
					}
					if (method == "POST" || method == "GET" && strings.HasSuffix(path, "identify")) && formPath[path] &&
						(strings.Contains(kind, "form") || path == "/" && startsOldForm([]byte(body))) && !startsObject([]byte(body)) {
						continue // their own words, to forms only
					}
					if reason := spins(w.Code, w.Body.Bytes()); reason != "" {
						t.Errorf("%s %s %q as %s: %d %s: %s", method, path, head(body), kind, w.Code, w.Body, reason)
					}
				}
			}
		}
	}
}

// formPath are the endpoints that take a form.
var formPath = map[string]bool{"/": true, "/identify": true, "/groupidentify": true, "/httpapi": true}

// spins says why an SDK would misbehave on this answer, "" = it would not.
func spins(status int, body []byte) string {
	var a struct {
		Code    int              `json:"code"`
		Error   string           `json:"error"`
		Missing string           `json:"missing_field"`
		Invalid map[string][]int `json:"events_with_invalid_fields"`
		Absent  map[string][]int `json:"events_with_missing_fields"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return "no JSON"
	}
	if a.Code != status {
		return "code is not the status"
	}
	if status >= 500 || status == 408 || status == 413 || status == 200 {
		return ""
	}
	if status == 401 && a.Missing != "" { // of the webhook; the Go SDK takes it for a 400
		return ""
	}
	if status != 400 {
		return "a status no SDK knows"
	}
	if a.Missing == "" && !strings.HasPrefix(a.Error, "Invalid API key: ") && len(a.Invalid)+len(a.Absent) == 0 {
		return "names nothing"
	}
	return ""
}

func TestCORS(t *testing.T) {
	preflight := []string{"Origin", "https://shop.example", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "content-encoding,content-type,cross-origin-resource-policy,x-mine"}
	t.Run("preflight", func(t *testing.T) {
		for _, path := range []string{"/2/httpapi", "/batch", "/", "/identify", "/groupidentify", "/httpapi"} {
			w := do(t, New(options(), &memory{}), "OPTIONS", path, "", preflight...)
			got := w.Header()
			if w.Code/100 != 2 || got.Get("Access-Control-Allow-Origin") != "*" || got.Get("Access-Control-Allow-Methods") != "POST" ||
				got.Get("Access-Control-Allow-Headers") != preflight[5] || got.Get("Access-Control-Max-Age") == "" {
				t.Errorf("%s: %d %v", path, w.Code, got)
			}
		}
	})
	t.Run("on answers of every kind", func(t *testing.T) {
		full := &memory{err: &queue.FullError{}}
		for name, w := range map[string]int{
			"200": do(t, New(options(), &memory{}), "POST", "/2/httpapi", batch(good), "Origin", "https://a.example").Code,
			"400": do(t, New(options(), &memory{}), "POST", "/2/httpapi", "nonsense", "Origin", "https://a.example").Code,
		} {
			if fmt.Sprint(w) != name {
				t.Errorf("status %d, want %s", w, name)
			}
		}
		for _, test := range []struct {
			path, body string
			store      *memory
		}{{"/2/httpapi", batch(good), &memory{}}, {"/2/httpapi", "nonsense", &memory{}}, {"/nowhere", "", &memory{}},
			{"/2/httpapi", batch(good), full}, {"/httpapi", "", full}, {"/2/httpapi", strings.Repeat(" ", 1<<20+1), full}} {
			w := do(t, New(options(), test.store), "POST", test.path, test.body, "Origin", "https://a.example")
			if got := w.Header().Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("%s: %d with Access-Control-Allow-Origin %q", test.path, w.Code, got)
			}
		}
	})
	t.Run("only for the origins named", func(t *testing.T) {
		o := options()
		o.CORSOrigins = []string{"https://shop.example"}
		h := New(o, &memory{})
		for origin, want := range map[string]string{"https://shop.example": "https://shop.example", "https://evil.example": ""} {
			w := do(t, h, "POST", "/2/httpapi", batch(good), "Origin", origin)
			if got := w.Header().Get("Access-Control-Allow-Origin"); got != want {
				t.Errorf("%s: %q, want %q", origin, got, want)
			}
		}
	})
	t.Run("off", func(t *testing.T) {
		o := options()
		o.CORSOrigins = nil
		w := do(t, New(o, &memory{}), "OPTIONS", "/2/httpapi", "", preflight...)
		if len(w.Header()["Access-Control-Allow-Origin"]) != 0 {
			t.Errorf("%v", w.Header())
		}
	})
}

func TestBeaconAndOtherContentTypes(t *testing.T) {
	for _, kind := range []string{"text/plain;charset=UTF-8", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "", "nonsense/;;"} {
		for _, path := range []string{"/2/httpapi", "/batch", "/"} {
			store := &memory{}
			status, answer := post(t, New(options(), store), path, batch(good), "Content-Type", kind)
			if status != 200 || len(store.events()) != 1 {
				t.Errorf("%s as %q: %d %s", path, kind, status, answer)
			}
		}
	}
}

// A page that is being left closes its connection with the last events still on their way into the log.
func TestSenderHangsUpWhileStoring(t *testing.T) {
	store := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
	h := New(options(), store)
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "POST", "/2/httpapi", strings.NewReader(batch(good)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(&answerless{header: http.Header{}}, r)
	}()
	<-store.begins
	hangUp()
	store.goesOn <- struct{}{}
	<-done
	if len(store.events()) != 1 {
		t.Error("the events of a sender that hung up are not stored")
	}
}

// head is the beginning of a long text.
func head(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
