package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"html"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// askPage asks as a browser does that has come to localhost.
func askPage(t *testing.T, s Source, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	mux := Handler(s)
	AddPage(mux, s, &History{})
	r := httptest.NewRequest("GET", "http://localhost:8081"+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Guard(mux).ServeHTTP(w, r)
	return w
}

func TestPageHeaders(t *testing.T) {
	w := askPage(t, shown{snap: night()}, "/")
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8",
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Access-Control-Allow-Origin": "",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
	// Those that others could read too are guarded alike.
	for _, path := range []string{"/stats", "/history", "/healthz", "/page/page.js"} {
		w := askPage(t, shown{snap: night()}, path)
		if w.Code != 200 || w.Header().Get("Cross-Origin-Resource-Policy") != "same-origin" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
}

func TestPageEndpoints(t *testing.T) {
	for _, c := range []struct {
		path   string
		source shown
		status int
		kind   string
		says   string
	}{
		{"/", shown{snapErr: errors.New("the ledger is gone <b>")}, 500, "text/plain; charset=utf-8", "the ledger is gone <b>\n"},
		{"/index.html", shown{}, 404, "", ""},
		{"/page/", shown{}, 404, "", ""},
		{"/page/page.html", shown{}, 404, "", ""},
		{"/page/../server.go", shown{}, 307, "", ""}, // to /server.go, which is not there
		{"/page/page.css", shown{}, 200, "text/css; charset=utf-8", "/* The status page"},
		{"/page/critical.svg", shown{}, 200, "image/svg+xml; charset=utf-8", "<svg"},
		{"/history", shown{}, 200, "application/json", `{"schema":1,"span_s":3600,"step_s":10,`},
		{"/history?span=24h", shown{}, 200, "application/json", `{"schema":1,"span_s":86400,"step_s":120,`},
		{"/history?span=1y", shown{}, 400, "text/plain; charset=utf-8", "span is one of 15m, 1h, 6h and 24h\n"},
	} {
		w := askPage(t, c.source, c.path)
		if w.Code != c.status || !strings.HasPrefix(w.Body.String(), c.says) || c.kind != "" && w.Header().Get("Content-Type") != c.kind {
			t.Errorf("%s: %d %s %.80q", c.path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
	first := askPage(t, shown{}, "/page/uplot.js")
	again := askPage(t, shown{}, "/page/uplot.js", "If-None-Match", first.Header().Get("ETag"))
	if first.Code != 200 || again.Code != 304 || again.Body.Len() != 0 {
		t.Errorf("%d, then %d with %d bytes", first.Code, again.Code, again.Body.Len())
	}
}

// What is of others is exactly what they have published.
func TestUPlotIsAsPublished(t *testing.T) {
	for name, sum := range map[string]string{
		"uplot.js":      "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
		"uplot.css":     "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
		"uplot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
	} {
		b, err := fs.ReadFile(pageFiles, "page/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s is not that of uPlot 1.6.32", name)
		}
	}
	readme, err := fs.ReadFile(pageFiles, "page/uplot.txt")
	if err != nil || !strings.Contains(string(readme), "1.6.32") {
		t.Errorf("%v %s", err, readme)
	}
}

// The policy forbids what stands in the page itself; and the script makes text, not markup.
func TestPageHasNothingInline(t *testing.T) {
	template, err := fs.ReadFile(pageFiles, "page/page.html")
	if err != nil {
		t.Fatal(err)
	}
	if bad := regexp.MustCompile(`(?i)\sstyle\s*=|<style|\son[a-z]+\s*=|<script(?:>|[^>]*[^"]>)|javascript:|https?://`).Find(template); bad != nil {
		t.Errorf("the template has %q", bad)
	}
	script, err := fs.ReadFile(pageFiles, "page/page.js")
	if err != nil {
		t.Fatal(err)
	}
	if bad := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|importNode|adoptNode|cloneNode|https?://`).Find(script); bad != nil {
		t.Errorf("the script has %q", bad)
	}
}

// pageOf is the page of a snapshot.
func pageOf(t *testing.T, snap Snapshot) string {
	t.Helper()
	snap.Judge(DefaultThresholds())
	var b bytes.Buffer
	if err := writePage(&b, snap); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var (
	tags  = regexp.MustCompile(`<[^>]*>`)
	space = regexp.MustCompile(`\s+`)
)

// read is what somebody reads of a page.
func read(page string) string {
	return space.ReplaceAllString(html.UnescapeString(tags.ReplaceAllString(page, "")), " ")
}

// checkPage looks for what a page must say of a snapshot, in every situation.
func checkPage(t *testing.T, snap Snapshot) {
	t.Helper()
	snap.Judge(DefaultThresholds())
	page := pageOf(t, snap)
	text := read(page)
	says := func(what string) {
		t.Helper()
		if what = space.ReplaceAllString(what, " "); !strings.Contains(text, what) {
			t.Errorf("the page does not say %q", what)
		}
	}
	if !strings.Contains(page, `<main id="main" data-level="`+snap.Health.Level+`">`) {
		t.Errorf("the page is not %s", snap.Health.Level)
	}
	for step := range strings.SplitSeq(snap.Health.ToDo, "; ") {
		says(step)
	}
	for _, y := range snap.Syncs {
		says(y.Name + " " + y.Health.Word)
		says(sentence(y.Health.Why))
		for step := range strings.SplitSeq(cmp.Or(y.Health.ToDo, y.Advice), "; ") {
			says(step)
		}
		for _, w := range y.Waiting {
			says(w.Reason)
		}
	}
	if snap.Disk.Full != "" {
		says("New events are refused: " + snap.Disk.Full)
	}
	if snap.House == snap.Health {
		says(sentence(snap.House.Why))
	} else {
		says(snap.House.Why)
	}
	for _, n := range snap.Notes {
		says(sentence(n))
	}
	if strings.Contains(text, "%!") || strings.Contains(text, "<nil>") || strings.Contains(page, "ZgotmplZ") {
		t.Errorf("something cannot be written: %s", text)
	}
}

func TestPageOfTheNight(t *testing.T) {
	snap := night()
	snap.Syncs[0].Audit.Balanced = true
	snap.Advise()
	checkPage(t, snap)
	text := read(pageOf(t, snap))
	for _, want := range []string{
		"New events are refused.", "What to do", "free space on the disk of /var/lib/ampcio (df -h /var/lib/ampcio)", "2 syncs need a look, too",
		"Customer.io answered 401", "then: systemctl restart ampcio",
		"In 23.1 /s", "Waiting 19,084 and 7 dead letters", "To a full disk full events are refused", "First try 1,885,000 99.98 %", "After a retry 338 0.02 %",
		"http_503 30 12 – in 18 s", "invalid event 7 2 d 1 h ago “Order \"Paid\"”", "3 × invalid_api_key, last 2 m ago from 10.0.0.3",
		"The books balance: 1,904,331 taken", "The books are out by 1:", "as of the start; not reloaded since", "ampcio v1.2.3",
	} {
		if squeezed := strings.NewReplacer("\u202f", "", " ", "").Replace; !strings.Contains(squeezed(text), squeezed(want)) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
}

// What waits for a sync that is gone from the configuration has no late line; it waits.
func TestPageOfAnOrphan(t *testing.T) {
	snap := well()
	y := &snap.Syncs[0]
	y.Status, y.Books.Pending, y.Books.Taken, y.Depth.Held, y.Late = StatusOrphaned, 200, y.Books.Taken+200-y.Books.Pending, 200, Late{}
	text := read(pageOf(t, snap))
	if strings.Contains(text, "nothing waits") || !strings.Contains(text, "not counted") {
		t.Error(text)
	}
}

// One of something is written as one.
func TestPageOfOneOfEach(t *testing.T) {
	snap := well()
	snap.Door.Events, snap.Door.Requests, snap.Door.Duplicates, snap.Disk.Damaged = 1, 1, 1, 1
	for days, want := range map[int]string{-3: "Certificateexpired 2026", 0: "for 0 more days, until", 1: "for 1 more day, until", 2: "for 2 more days, until"} {
		snap.Door.Certificate = &Certificate{DaysLeft: days, NotAfter: noon}
		text := read(pageOf(t, snap))
		for _, want := range []string{want, "1 event in 1 request since the start; 1 known already", "1 part of the log could not be read"} {
			if !strings.Contains(text, want) {
				t.Errorf("it does not say %q:\n%s", want, text)
			}
		}
	}
}

// As many as there may be: those in trouble first, and only they at length.
func TestPageOfManySyncs(t *testing.T) {
	snap := well()
	for _, name := range []string{"a", "b", "c"} {
		y := snap.Syncs[0]
		y.Name = name
		snap.Syncs = append(snap.Syncs, y)
	}
	snap.Syncs[2].Status, snap.Syncs[2].Detail = StatusBlocked, "no key"
	page := pageOf(t, snap)
	opened := regexp.MustCompile(`<details class="sync" id="sync-([^"]*)"[^>]*?(open)?>`).FindAllStringSubmatch(page, -1)
	got := ""
	for _, o := range opened {
		got += o[1] + " " + o[2] + ","
	}
	if got != "b open,production ,a ,c ," {
		t.Errorf("%s", got)
	}
	none := pageOf(t, Snapshot{Schema: Schema, At: noon, Audit: Audit{Balanced: true}})
	if !strings.Contains(read(none), "Ready, and nowhere to deliver.") {
		t.Error("without a sync it does not say so")
	}
}

// Whatever stands in a snapshot, the page has the elements that it would have anyway.
func TestPageOfHostileNames(t *testing.T) {
	snap := night()
	snap.Syncs[0].Waiting[0].Example = &Example{Event: "Order", User: "77aa"}
	snap.Reload = &Reload{At: noon, Error: "line 3"}
	snap.Door.LastSeen = map[string]string{"app": noon.Format(time.RFC3339)}
	snap.Door.Certificate = &Certificate{NotAfter: noon, Problem: "no pair"}
	snap.Versions = Versions{"v1", "abc", "go1.26"}
	snap.Advise()
	names := regexp.MustCompile(`<(/?[a-zA-Z0-9]+)`)
	shape := func(page string) (shape []string) {
		for _, m := range names.FindAllStringSubmatch(page, -1) {
			shape = append(shape, m[1])
		}
		return shape
	}
	snap.Judge(DefaultThresholds())
	var calm bytes.Buffer
	if err := writePage(&calm, snap); err != nil {
		t.Fatal(err)
	}
	for _, hostile := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</title></main><h1>owned`, `--><svg/onload=alert(1)>`,
		`{{.Version}}`, `javascript:alert(1)`, "\x00\u202e\ufeff", "`${alert(1)}`", `</details></section><iframe src=//evil>`, `<!--`, `]]>`,
	} {
		bad := snap
		poison(reflect.ValueOf(&bad).Elem(), hostile)
		var b bytes.Buffer
		if err := writePage(&b, bad); err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(shape(calm.String()), shape(b.String())); d != "" {
			t.Errorf("%q: -without +with\n%s", hostile, d)
		}
		if n := strings.Count(b.String(), hostile); strings.ContainsAny(hostile, "<>") && n > 0 {
			t.Errorf("%q stands in the page as it is", hostile)
		}
	}
}

// poison puts text behind every text of a snapshot but levels and states, which choose
// what is shown.
func poison(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return
		}
		fresh := reflect.New(v.Type().Elem())
		fresh.Elem().Set(v.Elem())
		poison(fresh.Elem(), text)
		v.Set(fresh)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			switch v.Type().Field(i).Name {
			case "Status", "Level", "Destination", "Source", "WhenFull", "Advice", "LastSeen":
			default:
				poison(v.Field(i), text)
			}
		}
	case reflect.Slice:
		fresh := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(fresh, v)
		for i := range fresh.Len() {
			poison(fresh.Index(i), text)
		}
		v.Set(fresh)
	case reflect.String:
		if v.String() != "" {
			v.SetString(v.String() + text)
		}
	}
}

func TestTodoList(t *testing.T) {
	for advice, want := range map[string][][]phrase{
		"":                                     nil,
		"mend it, then: ampcio reload; or not": {{{"mend it, then: ", false}, {"ampcio reload", true}}, {{"or not", false}}},
		"free space (df -h /var/lib/ampcio): it goes on":     {{{"free space (", false}, {"df -h /var/lib/ampcio", true}, {"): it goes on", false}}},
		`set region = "eu" there, then: ampcio sync retry p`: {{{"set ", false}, {`region = "eu"`, true}, {" there, then: ", false}, {"ampcio sync retry p", true}}},
		"ampcio sync resume p":                               {{{"ampcio sync resume p", true}}},
	} {
		if d := gocmp.Diff(want, todoList(advice)); d != "" {
			t.Errorf("%q: -want +got\n%s", advice, d)
		}
	}
}

func TestShares(t *testing.T) {
	for _, c := range []struct {
		part, whole uint64
		want        string
	}{{0, 0, "–"}, {0, 9, "0 %"}, {9, 9, "100 %"}, {1, 3, "33.33 %"}, {1, 1_000_000, "< 0.01 %"}, {999_999, 1_000_000, "> 99.99 %"}} {
		if got := share(c.part, c.whole); got != c.want {
			t.Errorf("%d of %d: %s, want %s", c.part, c.whole, got, c.want)
		}
	}
}

// A page of somebody else cannot get at what the loopback shows by giving it a name.
func TestGuardAgainstOtherNames(t *testing.T) {
	over := func(address string) context.Context {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return context.WithValue(t.Context(), http.LocalAddrContextKey, a)
	}
	for _, c := range []struct {
		local, host string
		want        int
	}{
		{"127.0.0.1:8081", "127.0.0.1:8081", 200}, {"127.0.0.1:8081", "localhost:9000", 200}, {"127.0.0.1:8081", "LOCALHOST", 200},
		{"127.0.0.1:8081", "localhost.:8081", 200}, {"127.0.0.1:8081", "ampcio.localhost", 200}, {"[::1]:8081", "[::1]:8081", 200}, {"[::1]:8081", "[::1]", 200},
		{"127.0.0.1:8081", "10.0.0.3:8081", 200}, {"127.0.0.1:8081", "", 200},
		{"127.0.0.1:8081", "evil.example:8081", 421}, {"127.0.0.1:8081", "evil.example", 421}, {"127.0.0.1:8081", "localhost.evil.example", 421},
		{"127.0.0.1:8081", "127.0.0.1.evil.example", 421}, {"127.0.0.1:8081", "notlocalhost", 421}, {"[::1]:8081", "evil.example:8081", 421},
		{"127.0.0.1:8081", "evil.example:8081:8081", 421}, {"127.0.0.1:8081", "[evil.example]", 421},
		// Whoever lets it listen on the network has given it a name.
		{"10.0.0.3:8081", "vm-3.internal:8081", 200},
	} {
		r := httptest.NewRequest("GET", "/stats", nil).WithContext(over(c.local))
		r.Host = c.host
		w := httptest.NewRecorder()
		Guard(Handler(shown{snap: night()})).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%q over %s: %d, want %d", c.host, c.local, w.Code, c.want)
		}
		if w.Code == 421 && (!strings.Contains(w.Body.String(), "localhost") || strings.Contains(w.Body.String(), "production")) {
			t.Errorf("%q: %s", c.host, w.Body)
		}
	}
}

// The figures of the page's charts can be read by others as well.
func TestHistoryEndpointIsJSON(t *testing.T) {
	var p Past
	if err := json.Unmarshal(askPage(t, shown{}, "/history?span=15m").Body.Bytes(), &struct {
		*Past
		All struct{ In []*float64 } `json:"all"`
	}{Past: &p}); err != nil || p.Span != 900 || p.Step != 10 {
		t.Errorf("%v %+v", err, p)
	}
}
