package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// statsOfFiles is what queue-stats says while the daemon is stopped.
func statsOfFiles(t testing.TB, r *rehearsal.Rehearsal) admin.Snapshot {
	t.Helper()
	got := run(t, "queue-stats", "--config", r.ConfigPath, "--json")
	var snap admin.Snapshot
	if err := json.Unmarshal([]byte(got.stdout), &snap); err != nil || got.code != 0 || got.stderr != "" {
		t.Fatalf("queue-stats: exit %d, %s, %v\n%s", got.code, got.stderr, err, got.stdout)
	}
	if snap.Source != "files" {
		t.Errorf("the source is %s", snap.Source)
	}
	return snap
}

// sameBooks compares all that does not depend on whether the daemon runs.
func sameBooks(t testing.TB, running, stopped admin.Snapshot) {
	t.Helper()
	a, b := only(t, running), only(t, stopped)
	type books struct {
		Books          admin.Books
		Totals         admin.Totals
		Filtered, Dead []admin.Reason
		DeadKept       uint64
	}
	if diff := cmp.Diff(books{a.Books, a.Totals, a.Filtered, a.Dead, a.Depth.Dead}, books{b.Books, b.Totals, b.Filtered, b.Dead, b.Depth.Dead}); diff != "" {
		t.Errorf("-running +stopped:\n%s", diff)
	}
	if diff := cmp.Diff(running.Door, stopped.Door); diff != "" {
		t.Errorf("the door: -running +stopped:\n%s", diff)
	}
}

// changing is what differs from run to run in the table.
var changing = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`), "DATE TIME UTC"},
	{regexp.MustCompile(`  ampcio \S+`), "  ampcio VERSION"},
	{regexp.MustCompile(`  up \w+`), "  up TIME"},
	{regexp.MustCompile(`, the\s+oldest\s+for\s+\w+`), ""},
	{regexp.MustCompile(`;\s+[\d.]+/s\s+in,\s+[\d.]+/s\s+out`), ""}, // known from the second look of the daemon on
	{regexp.MustCompile(`of\s+user\s+[0-9a-f]{10},\s+\w+\s+old`), "of user HASH, TIME old"},
	{regexp.MustCompile(`  took .*`), "  took TIMES"},
	{regexp.MustCompile(`\b\w+ ago`), "TIME ago"},
	{regexp.MustCompile(`: (\w+) for \w+\n`), ": $1 for TIME\n"},
	{regexp.MustCompile(`in \d\w*\n`), "in TIME\n"},
	{regexp.MustCompile(`(?m)^SYNC .*$`), "SYNC STATUS PENDING RETRY HELD DEAD OLDEST IN/s OUT/s DRAIN"},
	{regexp.MustCompile(`(?m)^(demo) +(\w+) +(\S+) +(\S+) +(\S+) +(\S+) .*$`), "$1 $2 $3 $4 $5 $6 TIME, RATES"},
	{regexp.MustCompile(`[\d.]+ [KMGTP]?i?B\b`), "SIZE"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "127.0.0.1:PORT"},
}

func steady(table string) string {
	for _, c := range changing {
		table = c.pattern.ReplaceAllString(table, c.instead)
	}
	return table
}

var lasting = regexp.MustCompile(`for \d\w*`)

// steadyJSON puts "…" for values that differ from run to run.
func steadyJSON(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	differ := map[string]bool{}
	for _, name := range strings.Fields("at version uptime_s since oldest_age_s next_attempt_s next_probe_s rate_in rate_out drain_eta_s newest last_delivered " +
		"ledger_bytes pending_bytes gate_since last last_seen dir used_bytes free_bytes log_bytes url " +
		"newest_age_s oldest_left_s latency_s latency_buckets latency_sum_s used_share age_s user versions") {
		differ[name] = true
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				if text, is := value.(string); is && name == "why" {
					v[name] = lasting.ReplaceAllString(text, "for TIME")
				} else if differ[name] {
					v[name] = "…"
				} else {
					walk(value)
				}
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(v)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// One installation in which everything has happened that queue-stats can tell of.
func TestQueueStats(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	stopped := run(t, "queue-stats", "--config", r.ConfigPath)
	if stopped.code != exitUnavailable {
		t.Errorf("before the first start: exit %d", stopped.code)
	}
	contains(t, stopped.stderr, "has never run with storage.dir", "start it with ampcio serve")

	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return only(t, stats(t, r)).Status == admin.StatusOK })
	golden(t, "queue-stats/no-traffic.txt", steady(run(t, "queue-stats", "--config", r.ConfigPath).stdout))

	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Too Much"}})
	accepted(t, r, numbered("ann-1", 1, 4))
	event := func(members string) string {
		return fmt.Sprintf(`{"api_key":%q,"events":[{%s}]}`, recordings.Key, members)
	}
	accepted(t, r, event(`"event_type":"Heartbeat","user_id":"ann-1","insert_id":"h1"`))
	accepted(t, r, event(`"event_type":"Heartbeat","user_id":"bob-2","insert_id":"h2"`))
	accepted(t, r, event(`"event_type":"Too Much","user_id":"bob-2","insert_id":"t1"`))
	accepted(t, r, event(`"event_type":"$identify","user_id":"bob-2","insert_id":"i1","user_properties":{"$set":{"plan":"free"}}`))
	accepted(t, r, event(`"event_type":"Anonymous","device_id":"nobody-yet","insert_id":"a1"`))
	accepted(t, r, event(`"event_type":"$groupidentify","insert_id":"g1","groups":{"org":"Acme"},"group_properties":{"$set":{"seats":5}}`))
	accepted(t, r, numbered("ann-1", 3, 4)) // known already
	stranger := strings.Replace(numbered("ann-1", 1, 1), recordings.Key, "another", 1)
	for _, wrong := range []string{stranger, event(`"user_id":"bob-2"`), "no JSON", stranger, stranger} {
		if a := send(t, r, wrong); a.status != 400 {
			t.Errorf("%s was answered %d", wrong, a.status)
		}
	}
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{500: 1}})
	accepted(t, r, numbered("ann-1", 5, 10))
	eventually(t, 10*time.Second, "six events wait for a retry", func() bool { return only(t, stats(t, r)).Depth.Retry == 6 })
	eventually(t, 10*time.Second, "the dead letter is a second old", func() bool { return strings.Contains(eventualJSON(t, r), "the oldest for") })

	golden(t, "queue-stats/running.txt", steady(eventualTable(t, r)))
	golden(t, "queue-stats/running.json", steadyJSON(t, eventualJSON(t, r)))
	snap := stats(t, r)
	for _, f := range only(t, snap).Filtered {
		if f.Kind == "event" && (f.Newest == nil || time.Since(*f.Newest) > time.Minute || f.Example == "") {
			t.Errorf("%+v has no newest or example", f)
		}
	}

	// Stopped and killed it says the same, of the files; and asking changes nothing.
	down(t, r)
	snap.Syncs[0].Depth.Retry, snap.Syncs[0].Depth.InFlight = 0, 0
	before := listing(t, r.Dir)
	sameBooks(t, snap, statsOfFiles(t, r))
	golden(t, "queue-stats/stopped.txt", steady(run(t, "queue-stats", "--config", r.ConfigPath).stdout))
	golden(t, "queue-stats/stopped.json", steadyJSON(t, run(t, "queue-stats", "--config", r.ConfigPath, "--json").stdout))
	if after := listing(t, r.Dir); after != before {
		t.Errorf("queue-stats has changed files:\n%s\n%s", before, after)
	}

	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	snap = drained(t, r)
	if y := only(t, snap); !y.Books.Balanced || y.Totals.Dead != 1 {
		t.Errorf("%+v %+v", y.Books, y.Totals)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if y := only(t, statsOfFiles(t, r)); !y.Books.Balanced || y.Books.Taken != only(t, snap).Books.Taken {
		t.Errorf("after a kill: %+v", y.Books)
	}
}

// eventualTable takes the table at a moment in which nothing is in flight.
func eventualTable(t *testing.T, r *rehearsal.Rehearsal) (table string) {
	t.Helper()
	eventually(t, 10*time.Second, "all wait", func() bool {
		table = run(t, "queue-stats", "--config", r.ConfigPath).stdout
		return strings.Contains(table, "6 records of 1 user,")
	})
	return table
}

func eventualJSON(t *testing.T, r *rehearsal.Rehearsal) (text string) {
	t.Helper()
	eventually(t, 10*time.Second, "all wait", func() bool {
		text = run(t, "queue-stats", "--config", r.ConfigPath, "--json").stdout
		var snap admin.Snapshot
		return json.Unmarshal([]byte(text), &snap) == nil && only(t, snap).Depth.Retry == 6
	})
	return text
}

func TestWatchingTheQueue(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	c := ampcio("queue-stats", "--config", r.ConfigPath, "--json", "--watch", "100ms")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { c.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	seen, follows := 0, false
	for lines.Scan() {
		var snap admin.Snapshot
		if err := json.Unmarshal(lines.Bytes(), &snap); err != nil || snap.Schema != 1 {
			t.Errorf("%v in %s", err, lines.Text())
		}
		delivered := only(t, snap).Totals.Delivered
		switch seen++; {
		case seen == 2:
			accepted(t, r, numbered("ann-1", 1, 3))
			drained(t, r)
		case delivered == 3 && !follows: // lines that waited in the pipe are older
			follows = true
			if err := c.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}
	}
	if err := c.Wait(); err != nil || !follows {
		t.Errorf("%d lines, one tells of what was delivered: %t, ended with %v", seen, follows, err)
	}
	down(t, r)
}

// What is to be seen where: the listener shows, the socket also looks inside.
func TestAdminEndpoints(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	info, err := os.Stat(r.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode(); mode.Perm() != 0o660 || mode.Type() != os.ModeSocket {
		t.Errorf("the admin socket is %s", mode)
	}
	overSocket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	}}}
	defer overSocket.CloseIdleConnections()
	tests := []struct {
		method, path           string
		overListener, onSocket int
		says                   string
	}{
		{"GET", "/healthz", 200, 200, "ok\n"},
		{"GET", "/readyz", 200, 200, "ready\n"},
		{"GET", "/stats", 200, 200, `{"schema":1,"source":"daemon",`},
		{"POST", "/stats", 405, 405, ""},
		{"GET", "/debug/pprof/", 404, 200, "goroutine"},
		{"GET", "/debug/pprof/heap?debug=1", 404, 200, "heap profile"},
		{"GET", "/2/httpapi", 404, 404, ""},
		{"GET", "/../debug/pprof/", 404, 200, ""},
	}
	for _, test := range tests {
		for _, over := range []struct {
			client *http.Client
			host   string
			want   int
		}{{http.DefaultClient, r.Admin, test.overListener}, {overSocket, "admin", test.onSocket}} {
			req, err := http.NewRequestWithContext(within(t, 10*time.Second), test.method, "http://"+over.host+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := over.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != over.want || over.want == 200 && !strings.Contains(string(body), test.says) {
				t.Errorf("%s %s at %s: %d (want %d) %.200s, %v", test.method, test.path, over.host, resp.StatusCode, over.want, body, err)
			}
		}
	}
	// None of it is at the public door.
	for _, path := range []string{"/stats", "/readyz", "/debug/pprof/"} {
		if a := ask(t, "GET", "http://"+r.Listen+path, ""); a.status != 400 {
			t.Errorf("%s at the public door: %d %.200s", path, a.status, a.body)
		}
	}
	down(t, r)
	if _, err := os.Stat(r.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}
