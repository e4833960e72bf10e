package ingest

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// stores holds what was answered to what was stored: 200 only with events, each whole; all else without any, but for the
// webhook's good ones beside bad ones, and it stops the SDK that hears it.
func stores(t *testing.T, m *memory, status int, answer string, some bool) {
	t.Helper()
	stored := m.events()
	if status == 200 && len(stored) == 0 || status != 200 && len(stored) > 0 && !some {
		t.Fatalf("answered %d %s, and stored %d events", status, answer, len(stored))
	}
	for _, e := range stored {
		if !jsontext.Value(e.Raw).IsValid() {
			t.Fatalf("stored %q, which no strict reader takes", e.Raw)
		}
		if e.UserID == "" && e.DeviceID == "" && e.Type != "$groupidentify" {
			t.Fatalf("stored an event without an ID: %q", e.Raw)
		}
	}
	if status != 200 && strings.HasPrefix(answer, "{") {
		if reason := spins(status, []byte(answer)); reason != "" {
			t.Fatalf("%d %s: %s", status, answer, reason)
		}
	}
}

// formPaths are the endpoints that take a form.
var formPaths = []string{"/identify", "/groupidentify", "/httpapi", "/"}

// FuzzForms sends each of the old endpoints what it takes by each of the ways: a query, a form of a browser, one in parts, JSON.
func FuzzForms(f *testing.F) {
	for at, texts := range [][]string{
		{`{"user_id":"user-1","user_properties":{"$set":{"plan":"pro"}}}`, `[{"user_id":"user-1"},{"device_id":"device-1"}]`, `[]`, `{"user_id":"user-1"`, `"x"`},
		{`{"group_type":"org","group_value":"Acme","group_properties":{"$set":{"plan":"pro"}}}`, `[{"group_type":"org","group_value":7}]`, `{"group_type":{},"group_value":[]}`},
		{good, "[" + good + "," + good + "]", `[7]`},
		{"[" + good + "]", `[{"event_type":"E","user_id":"1","timestamp":1,"uuid":"u"}]`},
	} {
		client, list := "api_key", []string{"identification", "identification", "event", "e"}[at]
		if at == 3 {
			client = "client"
		}
		for _, text := range texts {
			values := url.Values{client: {key}, list: {text}, "options": {`{"min_id_length":1}`}, "upload_time": {"1795432617042"}}.Encode()
			f.Add(at, "application/x-www-form-urlencoded", "", values)
			f.Add(at, "", values, "")
			f.Add(at, "", "", values)
			f.Add(at, "multipart/form-data; boundary=b", "", "--b\r\nContent-Disposition: form-data; name=\""+client+"\"\r\n\r\n"+key+"\r\n--b\r\nContent-Disposition: form-data; name=\""+list+"\"\r\n\r\n"+text+"\r\n--b--\r\n")
			f.Add(at, "application/json", "", `{"`+client+`":"`+key+`","`+list+`":`+text+`}`)
		}
	}
	for _, r := range recordedRequests(f) {
		if r.Path == "/" {
			f.Add(3, asForm, "", r.Body)
		}
	}
	store := &memory{}
	h := New(options(), store)
	f.Fuzz(func(t *testing.T, at int, kind, query, body string) {
		store.arrivals = nil
		method := http.MethodPost
		if body == "" {
			method = http.MethodGet
		}
		r, err := http.NewRequest(method, "http://x"+formPaths[uint(at)%uint(len(formPaths))], strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		status, answer := w.Code, w.Body.String()
		stores(t, store, status, answer, false)
	})
}

// FuzzFormDecoder holds the reader of forms, which works in place, to the standard library's, which refuses a bare
// semicolon: browsers do not.
func FuzzFormDecoder(f *testing.F) {
	for _, form := range []string{"a=b&c=d", "a=%41+%zz", "&&a&=b&a", "%61=%", "e=%5B%7B%22a%22%3A1%7D%5D&client=x", "a=1;b=2", "+%2b=%ff%00"} {
		f.Add([]byte(form))
	}
	f.Fuzz(func(t *testing.T, form []byte) {
		want, err := url.ParseQuery(strings.ReplaceAll(string(form), ";", "%3B"))
		twice := false
		for _, values := range want {
			twice = twice || len(values) > 1
		}
		p := parameters{}
		if ok := p.decode(bytes.Clone(form)); ok != (err == nil && !twice) {
			t.Fatalf("%q: read %v, and the standard library says %v, twice %v", form, ok, err, twice)
		} else if !ok {
			return
		}
		if len(p) != len(want) {
			t.Fatalf("%q: %q, want %q", form, p, want)
		}
		for name, value := range p {
			if want.Get(name) != string(value) {
				t.Fatalf("%q: %s is %q, want %q", form, name, value, want.Get(name))
			}
		}
	})
}

// FuzzWebhook sends what Amplitude's webhook might.
func FuzzWebhook(f *testing.F) {
	for _, body := range []string{exported, "[" + exported + "," + exported + "]", "[" + exported + `,{"event_type":7}]`, `{"user_id":"user-1","user_properties":{"plan":"pro"}}`, `[[]]`, ``} {
		f.Add([]byte(body))
	}
	store := &memory{}
	h, _ := hook(store)
	f.Fuzz(func(t *testing.T, body []byte) {
		store.arrivals = nil
		status, answer := post(t, h, WebhookPath, string(body), bearer...)
		stores(t, store, status, answer, true)
	})
}

// FuzzGzip sends what says that it is packed. What is taken is what the standard library unpacks.
func FuzzGzip(f *testing.F) {
	packed := func(level int, texts ...string) []byte {
		var b bytes.Buffer
		for _, text := range texts {
			z, err := gzip.NewWriterLevel(&b, level)
			if err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(z, text); err != nil {
				f.Fatal(err)
			}
			if err := z.Close(); err != nil {
				f.Fatal(err)
			}
		}
		return b.Bytes()
	}
	for _, r := range recordedRequests(f) {
		if len(r.Body) < 1000 {
			f.Add(packed(gzip.BestSpeed, r.Body))
		}
	}
	f.Add(packed(gzip.NoCompression, batch(good)))
	f.Add(packed(gzip.HuffmanOnly, batch(good)))
	f.Add(packed(gzip.BestSpeed, batch(good)[:30], batch(good)[30:]))
	f.Add([]byte("\x1f\x8b\x08\x1f\x00\x00\x00\x00\x00\x00"))
	store := &memory{}
	h := New(options(), store)
	f.Fuzz(func(t *testing.T, body []byte) {
		store.arrivals = nil
		status, answer := post(t, h, "/2/httpapi", string(body), "Content-Encoding", "gzip")
		stores(t, store, status, answer, false)
		if status != 200 {
			return
		}
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatalf("taken, and the standard library says %v", err)
		}
		plain, err := io.ReadAll(io.LimitReader(z, 32<<20))
		if err != nil || !jsontext.Value(plain).IsValid(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)) {
			t.Fatalf("taken, and the standard library has %v: %.300q", err, plain)
		}
	})
}
