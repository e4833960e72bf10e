package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A rig is a sandbox behind real HTTP on loopback.
type rig struct {
	*Sandbox
	t      testing.TB
	server *httptest.Server
	client *http.Client
}

func start(t testing.TB, o Options) *rig {
	t.Helper()
	s := New(o)
	server := httptest.NewServer(s)
	// Keep-alives are off so that the client never repeats a request of its own accord.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		s.Close()
		server.Close()
		client.CloseIdleConnections()
	})
	return &rig{s, t, server, client}
}

type reply struct {
	status int
	body   string
	header http.Header
}

// send is one request with the credentials site:key.
func (r *rig) send(method, path, body string) (reply, error) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth("site", "key")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return r.do(req)
}

func (r *rig) do(req *http.Request) (reply, error) {
	resp, err := r.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, string(body), resp.Header}, err
}

// must is send with the status it must get.
func (r *rig) must(status int, method, path, body string) reply {
	r.t.Helper()
	got, err := r.send(method, path, body)
	if err != nil {
		r.t.Fatalf("%s %s %s: %v", method, path, body, err)
	}
	if got.status != status {
		r.t.Fatalf("%s %s %.300s: answered %d %s, want %d", method, path, body, got.status, got.body, status)
	}
	return got
}

// entity sends one v2 operation that must be accepted.
func (r *rig) entity(operation string) {
	r.t.Helper()
	if got := r.must(200, "POST", "/api/v2/entity", operation); got.body != "{}\n" {
		r.t.Fatalf("accepted with body %q, want {}", got.body)
	}
}

// attributes renders a person's attributes but for id and email, sorted by name.
func (r *rig) attributes(kind, value string) string {
	r.t.Helper()
	p, ok := r.Person(kind, value)
	if !ok {
		return "nobody"
	}
	delete(p.Attributes, "id")
	delete(p.Attributes, "email")
	out := string((&Person{Attributes: p.Attributes}).append(nil))
	return strings.TrimSuffix(out[strings.Index(out, `"attributes":`)+len(`"attributes":`):], "}") + "}"
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func wantCounts(t *testing.T, what string, got, want map[string]int64) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %s is %d, want %d (all: %v)", what, k, got[k], v, got)
		}
	}
}

func TestCredentials(t *testing.T) {
	r := start(t, Options{SiteID: "site", APIKey: "k:ey ü", Region: "eu", EnvironmentID: 77})
	for _, c := range []struct {
		name, user, password string
		header               string
		want                 int
	}{
		{"right, with a colon and beyond ASCII in the key", "site", "k:ey ü", "", 200},
		{"wrong key", "site", "key", "", 401},
		{"wrong site", "side", "k:ey ü", "", 401},
		{"empty", "", "", "", 401},
		{"bearer token of the App API", "", "", "Bearer k", 401},
		{"no credentials", "", "", "-", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, path := range []string{"GET /api/v1/accounts/region", "GET /auth", "POST /api/v2/batch", "PUT /api/v1/customers/1", "GET /nowhere"} {
				method, path, _ := strings.Cut(path, " ")
				req, _ := http.NewRequest(method, r.server.URL+path, strings.NewReader(`{"batch":[{"type":"person","action":"identify","identifiers":{"id":"1"}}]}`))
				req.Header.Set("Content-Type", "application/json")
				if req.SetBasicAuth(c.user, c.password); c.header != "" {
					req.Header.Set("Authorization", strings.TrimPrefix(c.header, "-"))
				}
				got, err := r.do(req)
				want := c.want
				if want == 200 && path == "/nowhere" {
					want = 404
				}
				if err != nil || got.status != want {
					t.Errorf("%s %s: %d %s %v, want %d", method, path, got.status, got.body, err, want)
				}
				if want == 401 && strings.HasPrefix(path, "/api/v2") != strings.Contains(got.body, `{"errors":[{`) {
					t.Errorf("%s: 401 says %s", path, got.body)
				}
			}
		})
	}
	if n := r.Report().Invalid["unauthorized"]; n != 25 {
		t.Errorf("%d requests counted as unauthorized, want 25", n)
	}
	if n := r.Report().People; n != 1 {
		t.Errorf("%d people, want the one sent with the right key", n)
	}
}

func TestRegion(t *testing.T) {
	identify := `{"type":"person","action":"identify","identifiers":{"id":"1"}}`
	for _, c := range []struct {
		name         string
		o            Options
		region       string
		entityStatus int
		entityBody   string
	}{
		{"us by default", Options{}, `{"url":"https://track.customer.io","region":"us","environment_id":1}`, 200, `{}`},
		{"eu", Options{Region: "eu", EnvironmentID: 99}, `{"url":"https://track-eu.customer.io","region":"eu","environment_id":99}`, 200, `{}`},
		{"an EU workspace at the US host is redirected", Options{Region: "eu", WrongRegion: "redirect"},
			`{"url":"https://track-eu.customer.io","region":"eu","environment_id":1}`, 301, `{"errors":[{"detail":"wrong datacenter","status":"301"}]}`},
		{"a US workspace at the EU host fails", Options{WrongRegion: "fail"},
			`{"url":"https://track.customer.io","region":"us","environment_id":1}`, 401, `{"errors":[{"reason":"invalid","message":"Unauthorized request"}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, c.o)
			if got := r.must(200, "GET", "/api/v1/accounts/region", ""); strings.TrimSpace(got.body) != c.region {
				t.Errorf("region says %s, want %s", got.body, c.region)
			}
			if got := r.must(c.entityStatus, "POST", "/api/v2/entity", identify); strings.TrimSpace(got.body) != c.entityBody {
				t.Errorf("entity says %s, want %s", got.body, c.entityBody)
			} else if got.header.Get("Location") != "" {
				t.Errorf("redirected to %s: nobody may be led to the real Customer.io", got.header.Get("Location"))
			}
			if n := r.Report().People; (n == 1) != (c.entityStatus == 200) {
				t.Errorf("%d people", n)
			}
		})
	}
}

func TestRequestsAsAWhole(t *testing.T) {
	one := `{"type":"person","action":"identify","identifiers":{"id":"1"}}`
	pad := func(n int) string { // a batch request of n bytes, every operation small enough
		var b strings.Builder
		b.WriteString(`{"batch":[` + one)
		for b.Len() < n-2 {
			b.WriteString("," + strings.Repeat(" ", min(n-2-b.Len()-1-len(one), 30_000)) + one)
			if left := n - 2 - b.Len(); left < len(one)+1 {
				b.WriteString(strings.Repeat(" ", left))
			}
		}
		return b.String() + "]}"
	}
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"unknown path", "POST", "/api/v3/batch", one, 404, `{"meta":{"error":`},
		{"wrong method", "GET", "/api/v2/batch", "", 405, "no such path or method"},
		{"event sent by PUT", "PUT", "/api/v1/customers/1/events", `{"name":"a"}`, 405, "no such path"},
		{"no identifier in the path", "PUT", "/api/v1/customers/", `{}`, 404, ""},
		{"no body", "POST", "/api/v2/batch", "", 400, "invalid JSON"},
		{"cut JSON", "POST", "/api/v2/batch", `{"batch":[`, 400, "invalid JSON"},
		{"two values", "POST", "/api/v2/entity", one + one, 400, "more than one"},
		{"a name twice", "POST", "/api/v2/entity", `{"type":"person","type":"person","action":"identify","identifiers":{"id":"1"}}`, 400, "duplicate"},
		{"invalid UTF-8", "POST", "/api/v2/entity", "{\"type\":\"person\",\"action\":\"identify\",\"identifiers\":{\"id\":\"\xff\"}}", 400, "UTF-8"},
		{"half a surrogate", "POST", "/api/v2/entity", `{"type":"person","action":"identify","identifiers":{"id":"\ud800"}}`, 400, "invalid JSON"},
		{"batch is missing", "POST", "/api/v2/batch", one, 400, `"field":"batch"`},
		{"batch is no array", "POST", "/api/v2/batch", `{"batch":{}}`, 400, "must be an array"},
		{"batch is empty", "POST", "/api/v2/batch", `{"batch":[]}`, 400, "cannot be empty"},
		{"body is an array", "POST", "/api/v2/batch", `[]`, 400, "must be an object"},
		{"white space around", "POST", "/api/v2/batch", " \n{ \"batch\" :\t[ " + one + " ] } \n", 200, "{}"},
		{"500,000 bytes", "POST", "/api/v2/batch", pad(500_000), 200, "{}"},
		{"500,001 bytes", "POST", "/api/v2/batch", pad(500_001), 413, "500000 bytes"},
		{"500,001 bytes on v1", "PUT", "/api/v1/customers/1", `{"a":"` + strings.Repeat("x", 500_001-8) + `"}`, 413, `{"meta":{"error":"request cannot`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{})
			if got := r.must(c.status, c.method, c.path, c.body); !strings.Contains(got.body, c.says) {
				t.Errorf("says %s, want %s", got.body, c.says)
			}
		})
	}
	t.Run("compressed bodies are refused", func(t *testing.T) {
		r := start(t, Options{})
		req, _ := http.NewRequest("POST", r.server.URL+"/api/v2/batch", bytes.NewReader([]byte{0x1f, 0x8b}))
		req.SetBasicAuth("a", "b")
		req.Header.Set("Content-Encoding", "gzip")
		if got, err := r.do(req); err != nil || got.status != 400 || !strings.Contains(got.body, "compressed") {
			t.Errorf("%v %v", got, err)
		}
	})
	t.Run("a body without the JSON content type is noted", func(t *testing.T) {
		r := start(t, Options{})
		req, _ := http.NewRequest("POST", r.server.URL+"/api/v2/entity", strings.NewReader(one))
		req.SetBasicAuth("a", "b")
		if got, err := r.do(req); err != nil || got.status != 200 {
			t.Errorf("%v %v", got, err)
		}
		wantCounts(t, "notes", r.Report().Notes, map[string]int64{"body_without_json_content_type": 1})
	})
}

func TestReportCounts(t *testing.T) {
	r := start(t, Options{})
	op := `{"type":"person","action":"identify","identifiers":{"id":"1"}}`
	bad := `{"type":"person","action":"identify","identifiers":{}}`
	r.must(200, "POST", "/api/v2/batch", `{"batch":[`+op+`,`+op+`,`+op+`]}`)
	r.must(207, "POST", "/api/v2/batch", `{"batch":[`+op+`,`+bad+`]}`)
	r.must(400, "POST", "/api/v2/entity", bad)
	r.must(200, "PUT", "/api/v1/customers/2", `{}`)
	r.must(404, "GET", "/x", "")
	got := r.Report()
	if got.Schema != 1 || got.Requests != 5 || got.MaxOperations != 3 || got.MaxInFlight != 1 || got.InFlight != 0 || got.People != 2 {
		t.Errorf("report %+v", got)
	}
	if want := len(op)*3 + len(`{"batch":[,,]}`); got.MaxBytes != want {
		t.Errorf("largest request %d bytes, want %d", got.MaxBytes, want)
	}
	wantCounts(t, "operations", got.Operations, map[string]int64{"identify": 5})
	wantCounts(t, "invalid", got.Invalid, map[string]int64{"identifiers_missing": 2, "unknown_path": 1})
	wantCounts(t, "batch", got.ByEndpoint["POST /api/v2/batch"], map[string]int64{"200": 1, "207": 1})
	wantCounts(t, "entity", got.ByEndpoint["POST /api/v2/entity"], map[string]int64{"400": 1})
	wantCounts(t, "v1", got.ByEndpoint["PUT /api/v1/customers/{id}"], map[string]int64{"200": 1})
	wantCounts(t, "unknown", got.ByEndpoint["unknown"], map[string]int64{"404": 1})
}

// Everything at once, for the race detector; and no count is lost.
func TestConcurrentUse(t *testing.T) {
	r := start(t, Options{OrderAttribute: "seq", CheckOverlap: true, Faults: Faults{Partial: 0.5, CutAfter: 0.1, Jitter: time.Microsecond}})
	var senders, readers sync.WaitGroup
	done := make(chan struct{})
	for sender := range 4 {
		senders.Go(func() {
			for n := range 50 {
				_, _ = r.send("POST", "/api/v2/batch", fmt.Sprintf(`{"batch":[{"type":"person","action":"identify","identifiers":{"id":"%d"},"attributes":{"n":%d,"anonymous_id":"an-%d"}},
					{"type":"person","action":"event","identifiers":{"id":"%d"},"name":"e","attributes":{"seq":%d}},
					{"type":"person","action":"event","identifiers":{"anonymous_id":"an-%d"},"name":"e"}]}`, sender, n, n, sender, n, n))
			}
		})
	}
	for _, path := range []string{"/_sandbox/report", "/_sandbox/people", "/_sandbox/events?after=10", "/_sandbox/people/1", "/_sandbox/faults"} {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_, _ = r.send("GET", path, "")
					r.SetFaults(Faults{Partial: 0.5, CutAfter: 0.1, Jitter: time.Microsecond})
				}
			}
		})
	}
	senders.Wait()
	close(done)
	readers.Wait()
	got := r.Report()
	sum := got.Invalid["fault_partial"]
	for _, n := range got.Operations {
		sum += n
	}
	if got.Requests != 200 || sum != 600 || got.Order.OutOfOrder != 0 {
		t.Errorf("report %+v", got)
	}
	r.Reset()
	if n := r.Report().People; n != 0 {
		t.Errorf("%d people after a reset", n)
	}
}
