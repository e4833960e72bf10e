package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"os"

	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/ingest"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// checked runs a check: its exit code, its first line without perfdata, and the rest.
func checked(t testing.TB, r *rehearsal.Rehearsal, args ...string) (code int, first, all string) {
	t.Helper()
	got := run(t, append([]string{"queue-stats", "--config", r.ConfigPath, "--check"}, args...)...)
	if got.stderr != "" {
		t.Errorf("a check says on stderr: %s", got.stderr)
	}
	first, _, _ = strings.Cut(got.stdout, "\n")
	if code != checkUnknown && got.code < checkUnknown && !perfLine.MatchString(first) {
		t.Errorf("no perfdata: %s", first)
	}
	first, _, _ = strings.Cut(first, " |")
	return got.code, first, got.stdout
}

// perfLine is 'label'=value[unit];[warn];[crit];min; for each number.
var perfLine = regexp.MustCompile(`^QUEUE (OK|WARNING|CRITICAL) - [^|]+ \|( '[a-z0-9 ._-]+'=[0-9.]+(s|c|%|B)?;[0-9.]*;[0-9.]*;0;)+$`)

// One installation through what a monitoring system may find: what it says, how it exits,
// and that its JSON is as the schema says.
func TestQueueStatsCheck(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "retry_max = \"2s\"\n", "retry_initial = \"100ms\"\nretry_max = \"1s\"\n")
	// says takes a situation: the exit code, what the first line says, and what else.
	says := func(situation string, code int, first string, rest ...string) {
		t.Helper()
		gotCode, gotFirst, all := checked(t, r)
		if gotCode != code || !strings.Contains(gotFirst, first) {
			t.Errorf("%s: exit %d, %s", situation, gotCode, all)
		}
		contains(t, all, rest...)
		if code != checkUnknown {
			got := run(t, "queue-stats", "--config", r.ConfigPath, "--json")
			if got.code != 0 || got.stderr != "" {
				t.Errorf("%s: --json exits with %d: %s", situation, got.code, got.stderr)
			}
			asTheSchemaSays(t, situation, got.stdout)
		}
	}
	says("absent", checkUnknown, "QUEUE UNKNOWN - ampcio is not running and has never run with storage.dir")

	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return only(t, stats(t, r)).Status == admin.StatusOK })
	says("well", checkOK, "QUEUE OK - 1 sync, 0 waiting")

	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Too Much"}})
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Too Much","user_id":"ann-1","insert_id":"t1"}]}`, recordings.Key))
	drained(t, r)
	says("a dead letter", checkWarning, "QUEUE WARNING - demo: 1 dead letter is kept", "to do: see why, then replay or drop: ampcio dead-letters list --sync demo")
	for args, want := range map[string]int{"--warn-dead=0": checkOK, "--warn-dead=2": checkOK, "--crit-dead=1": checkCritical, "--warn-dead=1": checkWarning} {
		if code, first, _ := checked(t, r, args); code != want {
			t.Errorf("%s: exit %d, want %d: %s", args, code, want, first)
		}
	}
	if got := run(t, "dead-letters", "drop", "--all", "--yes", "--config", r.ConfigPath); got.code != 0 {
		t.Fatal(got.stderr)
	}

	// Customer.io does not know the key any more.
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{401: 1}})
	accepted(t, r, numbered("bob-2", 1, 5))
	eventually(t, 10*time.Second, "it is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	says("blocked", checkCritical, "QUEUE CRITICAL - demo: Customer.io does not accept the Site ID and API key", "to do: check site_id", "systemctl restart ampcio")
	if code, _, all := checked(t, r, "--sync", "nobody"); code != checkUnknown || !strings.Contains(all, `no sync "nobody"`) {
		t.Errorf("another sync: exit %d, %s", code, all)
	}
	head := strings.SplitN(run(t, "queue-stats", "--config", r.ConfigPath).stdout, "\n", 3)
	if !strings.HasPrefix(head[0], "CRITICAL: demo: Customer.io does not accept") || !strings.HasPrefix(head[1], "to do: check site_id and the Track API key") {
		t.Errorf("the first two lines say:\n%s\n%s", head[0], head[1])
	}

	ack := func(args ...string) ran {
		t.Helper()
		return run(t, append([]string{"queue-stats", "--config", r.ConfigPath, "--ack-blocked"}, args...)...)
	}
	contains(t, ack("a new key comes on Monday", "--who", "ann", "--dry-run").stdout, "demo is blocked, and that would be known to ann until ")
	says("not acknowledged by a dry run", checkCritical, "")
	contains(t, ack("a new key comes on Monday", "--who", "ann", "--for", "3d").stdout, "demo is blocked, and that is known to ann until ", ": a new key comes on Monday\n")
	says("acknowledged", checkWarning, "(known to ann for another ", ": a new key comes on Monday)")
	if err := r.Kill(); err != nil { // what was said is durable
		t.Fatal(err)
	}
	says("stopped", checkCritical, "QUEUE CRITICAL - ampcio is stopped: no events are taken, and 5 events wait", "to do: start it: systemctl start ampcio")
	locked(t, r, says)
	up(t, r)
	eventually(t, 10*time.Second, "it is blocked again", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	says("acknowledged, and killed", checkWarning, "known to ann")
	if got := ack("", "--for", "0s"); got.stdout != "demo: nobody knows of it any more\n" {
		t.Errorf("taken back: %+v", got)
	}
	says("taken back", checkCritical, "does not accept the Site ID and API key")
	ack("again", "--sync", "demo")
	r.Sandbox.SetFaults(sandbox.Faults{})
	did(t, r, "sync", "retry", "demo")
	drained(t, r)
	eventually(t, 10*time.Second, "it is forgotten that somebody knew", func() bool { return only(t, stats(t, r)).Acknowledged == nil })
	says("well again", checkOK, "QUEUE OK")
	if got := ack("too early"); got.code != exitData || !strings.Contains(got.stderr, "no sync is blocked or unreachable") {
		t.Errorf("of what is well: %+v", got)
	}
	down(t, r)
	says("stopped, and empty", checkWarning, "ampcio is stopped: no events are taken; nothing waits")

	ledger := filepath.Join(r.Dir, "storage", "sync", "demo.db")
	if err := os.WriteFile(ledger, bytes.Repeat([]byte("no ledger "), 4000), 0o600); err != nil {
		t.Fatal(err)
	}
	says("corrupt", checkCritical, "ampcio is stopped: no events are taken, and what waits is unknown", "CRITICAL demo: its ledger is damaged")
}

// locked holds the storage folder, as another program may.
func locked(t *testing.T, r *rehearsal.Rehearsal, says func(string, int, string, ...string)) {
	t.Helper()
	path := filepath.Join(r.Dir, "storage", "lock")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, nil, 0o600) // whoever locks it need not say who that is
	}
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	holder := ""
	if runtime.GOOS == "linux" {
		if _, err := os.Stat("/proc/locks"); err == nil {
			holder = fmt.Sprintf(" (%d, ", os.Getpid())
		}
	}
	says("locked", checkUnknown, "QUEUE UNKNOWN - another process"+holder)
	got := run(t, "queue-stats", "--config", r.ConfigPath, "--json")
	if got.code != exitTemporary || got.stdout != "" || !strings.Contains(got.stderr, "uses "+filepath.Join(r.Dir, "storage")) {
		t.Errorf("locked: exit %d, %s%s", got.code, got.stdout, got.stderr)
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What waits is put together in several ways, the same while it runs and when it is
// stopped; and nobody's id is printed who was not asked for.
func TestQueueStatsBy(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "retry_max = \"2s\"\n", patient)
	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return only(t, stats(t, r)).Status == admin.StatusOK })
	did(t, r, "sync", "pause", "demo")
	accepted(t, r, numbered("ann-1", 1, 5))
	accepted(t, r, numbered("bob-2", 1, 3))
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Signed Up","user_id":"eve-3","insert_id":"s1"}]}`, recordings.Key))
	eventually(t, 10*time.Second, "all are read", func() bool { return only(t, stats(t, r)).Depth.Held == 9 })

	groups := func(args ...string) (*admin.Groups, string) {
		t.Helper()
		got := run(t, append([]string{"queue-stats", "--config", r.ConfigPath, "--json"}, args...)...)
		var snap admin.Snapshot
		if err := json.Unmarshal([]byte(got.stdout), &snap); err != nil || got.code != 0 {
			t.Fatalf("%v: exit %d %s %v", args, got.code, got.stderr, err)
		}
		asTheSchemaSays(t, strings.Join(args, " "), got.stdout)
		g := only(t, snap).Groups
		if g == nil || g.Approximate {
			t.Fatalf("%v: %+v", args, g)
		}
		for _, row := range g.Rows {
			sum := uint64(0)
			for _, b := range row.AgeBuckets {
				sum += b.Count
			}
			if sum != row.Count || row.OldestAge == nil {
				t.Errorf("%v: %+v", args, row)
			}
		}
		return g, got.stdout
	}
	for _, state := range []string{"running", "stopped"} {
		byEvent, _ := groups("--by", "event")
		byUser, text := groups("--by", "user", "--top", "1")
		inClear, _ := groups("--by", "user", "--show-ids")
		byStatus, _ := groups("--by", "status", "--buckets", "10s,3d")
		byReason, _ := groups("--by", "reason")
		for _, test := range []struct {
			what string
			g    *admin.Groups
			want string
			left int
		}{
			{"event", byEvent, "Order Completed 8, Signed Up 1", 0}, {"user in clear", inClear, "ann-1 5, bob-2 3, eve-3 1", 0},
			{"status", byStatus, "held 9", 0}, {"reason", byReason, map[string]string{"running": "paused 9", "stopped": "stopped 9"}[state], 0},
		} {
			var rows []string
			for _, row := range test.g.Rows {
				rows = append(rows, fmt.Sprintf("%s %d", row.Key, row.Count))
			}
			if got := strings.Join(rows, ", "); got != test.want || test.g.LeftOut != test.left {
				t.Errorf("%s, by %s: %s", state, test.what, got)
			}
		}
		if len(byUser.Rows) != 1 || byUser.Rows[0].Count != 5 || byUser.LeftOut != 2 || byUser.LeftOutCount != 4 || strings.Contains(text, "ann-1") {
			t.Errorf("%s, by user: %+v", state, byUser)
		}
		if n := len(byStatus.Rows[0].AgeBuckets); n != 3 {
			t.Errorf("%s: %d buckets of two ages", state, n)
		}
		table := run(t, "queue-stats", "--config", r.ConfigPath, "--by", "user")
		if strings.Contains(table.stdout, "ann-1") || !strings.Contains(table.stdout, byUser.Rows[0].Key) {
			t.Errorf("%s: the table says\n%s", state, table.stdout)
		}
		if state == "running" {
			down(t, r)
		}
	}
}

// A line is as wide as the terminal, or as COLUMNS says.
func TestQueueStatsIsAsWideAsTheTerminal(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	drained(t, r)
	for _, columns := range []int{40, 50, 80, 160} {
		c := ampcio("queue-stats", "--config", r.ConfigPath)
		c.Env = append(c.Env, fmt.Sprintf("COLUMNS=%d", columns))
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		wide := strings.Contains(string(out), "INFLIGHT")
		if wide != (columns >= 160) {
			t.Errorf("%d columns: all of the overview: %t", columns, wide)
		}
		for line := range strings.Lines(string(out)) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > columns && !strings.HasPrefix(line, "source: ") {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
	down(t, r)
}

// Wrong words on the command line are told with what was meant.
func TestQueueStatsUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"--format", "jason"}, "did you mean json?"},
		{[]string{"--format", "text", "--json"}, "say one of them"},
		{[]string{"--by", "events"}, "did you mean event?"},
		{[]string{"--top", "3"}, "go with --by"},
		{[]string{"--by", "user", "--top", "0"}, "must be from 1"},
		{[]string{"--buckets", "1m,soon"}, `"soon" is no age`},
		{[]string{"--buckets", "1m,60s"}, "no age twice"},
		{[]string{"--warn-age", "2h"}, "--warn-age is above --crit-age"},
		{[]string{"--warn-disk", "110%"}, "is no share"},
		{[]string{"--crit-depth", "many"}, "is no number"},
		{[]string{"--watch", "1s", "--check"}, "a check ends"},
		{[]string{"--for", "3h"}, "goes with --ack-blocked"},
		{[]string{"--ack-blocked", "x", "--check"}, "does not go with --ack-blocked"},
		{[]string{"--ack-blocked", "x", "--for", "soon"}, "is no duration"},
	} {
		got := run(t, append([]string{"queue-stats"}, test.args...)...)
		if got.code != exitUsage || !strings.Contains(got.stderr, test.says) || got.stdout != "" {
			t.Errorf("%v: exit %d, %s%s", test.args, got.code, got.stdout, got.stderr)
		}
	}
	if got := run(t, "queue-stats", "--socket", "/nowhere/admin.sock", "--check"); got.code != checkUnknown || !strings.Contains(got.stdout, "no ampcio answers at /nowhere/admin.sock") {
		t.Errorf("no daemon at a socket: %+v", got)
	}
}

// still is a source that always says the same.
type still struct{ snap admin.Snapshot }

func (s still) Snapshot(context.Context) (admin.Snapshot, error) { return s.snap, nil }
func (s still) Ready() error                                     { return nil }

// Who watches for days leaves nothing behind, neither here nor in the daemon.
func TestWatchingLeavesNoGrowth(t *testing.T) {
	folder, err := os.MkdirTemp("", "ampcio-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	socket := filepath.Join(folder, "admin.sock")
	l, err := admin.ListenSocket(socket)
	if err != nil {
		t.Fatal(err)
	}
	var snap admin.Snapshot
	text, err := os.ReadFile("testdata/queue-stats/running.json")
	if err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(text, &snap) // but for what the file hides
	snap.Schema = admin.Schema
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- admin.Serve(ctx, l, admin.Handler(still{snap})) }()

	const each = 300
	seen := make(chan struct{})
	watching, end := context.WithCancel(ctx)
	watched := make(chan error, 1)
	o := &operator{socket: socket, onlyAsk: true, say: os.Stderr}
	go func() {
		watched <- o.queueStats(watching, countedLines(seen), &statsRequest{format: formatJSONL, every: time.Millisecond, thresholds: admin.DefaultThresholds()})
	}()
	measure := func() (heap, goroutines int) {
		for range each {
			<-seen
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc), runtime.NumGoroutine()
	}
	measure() // what is set up once
	heap, goroutines := measure()
	laterHeap, laterGoroutines := measure()
	if laterHeap > heap+300<<10 || laterGoroutines > goroutines+8 { // a kilobyte a look would be seen
		t.Errorf("after %d looks: %d bytes and %d goroutines, after as many more: %d and %d", each, heap, goroutines, laterHeap, laterGoroutines)
	}
	end()
	for running := true; running; {
		select {
		case <-seen:
		case err := <-watched:
			if running = false; err != nil {
				t.Error(err)
			}
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// countedLines says of each line that it was written.
type countedLines chan struct{}

func (c countedLines) Write(b []byte) (int, error) {
	c <- struct{}{}
	return len(b), nil
}

// What an SDK is told to send to: nobody can send to the path of a socket.
func TestTheDoorsURL(t *testing.T) {
	for _, test := range []struct {
		address   string
		encrypted bool
		want      string
	}{
		{"127.0.0.1:8080", false, "http://127.0.0.1:8080/2/httpapi"}, {"[::]:443", true, "https://HOST:443/2/httpapi"},
		{"/run/ampcio/public.sock", false, "unix:/run/ampcio/public.sock"}, {"@ampcio", true, "unix:@ampcio"},
	} {
		if d := doorOf(test.address, test.encrypted, ingest.DoorStats{}); d.URL != test.want {
			t.Errorf("%s: %s", test.address, d.URL)
		}
	}
}
