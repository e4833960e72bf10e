package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

// The tests of the whole run the real program, as processes that can be killed: the
// test binary is ampcio when this variable is set.
const isAmpcio = "TEST_BINARY_IS_AMPCIO"

func TestMain(m *testing.M) {
	if os.Getenv(isAmpcio) != "" {
		main()
		os.Exit(0)
	}
	// Most of these tests wait for processes, for disks and for pauses to pass: twice as many at a time as
	// there are cores, unless -parallel says otherwise.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// ampcio is a command that runs the program, with nothing of this process's environment
// that could change what it does.
func ampcio(args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "AMPCIO_"), strings.HasPrefix(name, "LISTEN_"):
		case name == "NOTIFY_SOCKET", name == "COLUMNS", name == "NO_COLOR", name == "WATCHDOG_USEC", name == "CREDENTIALS_DIRECTORY", name == "JOURNAL_STREAM", name == "SUDO_USER":
		default:
			c.Env = append(c.Env, v)
		}
	}
	// The race detector would let each process sleep for a second before it ends.
	c.Env = append(c.Env, isAmpcio+"=1", "GORACE=atexit_sleep_ms=0")
	return c
}

// ran is how a command ended.
type ran struct {
	code           int
	stdout, stderr string
	worked         time.Duration // of a processor
}

// run runs ampcio to its end, which must come by itself.
func run(t testing.TB, args ...string) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := ampcio(args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer late.Stop()
	err := c.Wait()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		t.Fatal(err)
	}
	if strings.Contains(stderr.String(), "DATA RACE") || strings.Contains(stderr.String(), "goroutine ") {
		t.Errorf("ampcio %s:\n%s", strings.Join(args, " "), &stderr)
	}
	return ran{code: c.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(), worked: c.ProcessState.UserTime() + c.ProcessState.SystemTime()}
}

// raceElsewhere is of a test whose parts other tests have as well, or which runs by itself under the race detector, where it
// takes minutes: a short run leaves it out.
func raceElsewhere(t testing.TB) {
	t.Helper()
	if underRace && testing.Short() {
		t.Skip("long under the race detector")
	}
}

// wordsOnly is of a test about what is said, and not about what happens at once: a short run under the race detector,
// in which each of its many processes takes several times as long, leaves it out.
func wordsOnly(t testing.TB) {
	t.Helper()
	if underRace && testing.Short() {
		t.Skip("about words")
	}
}

// fewUnderRace is of a table whose rows differ in their stories, and not in what happens at once: the whole table runs
// without the race detector, and a short run under it, in which a row takes several times as long, has the first row and
// each nth after it.
func fewUnderRace[T any](rows []T, nth int) []T {
	if !underRace || !testing.Short() {
		return rows
	}
	var few []T
	for i := 0; i < len(rows); i += nth {
		few = append(few, rows[i])
	}
	return few
}

// rehearse sets up a sandbox and an installation whose daemon is not yet started.
// At the end of the test it is taken down, and its log looked through.
func rehearse(t testing.TB, s rehearsal.Settings) *rehearsal.Rehearsal {
	t.Helper()
	dir, err := os.MkdirTemp("", "ampcio-") // short: a unix socket's path has little room
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Storage, "min_free") {
		s.Storage += "min_free = \"16MiB\"\n"
	}
	r, err := rehearsal.New(dir, ampcio, s)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	t.Cleanup(func() {
		if r.Daemon != nil && t.Failed() {
			r.End(syscall.SIGQUIT) // it may be what failed: its goroutines are of interest
		}
		if err := r.Close(); err != nil {
			t.Errorf("at the end: %v", err)
		}
		log, err := os.ReadFile(r.LogFile.Name())
		if err != nil {
			t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic", "goroutine "} {
			if !t.Failed() && bytes.Contains(log, []byte(bad)) {
				t.Errorf("%q in the daemon's log", bad)
			}
		}
		if t.Failed() {
			t.Logf("the daemon's log ends so:\n%s", log[max(0, len(log)-64_000):])
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// up starts the daemon.
func up(t testing.TB, r *rehearsal.Rehearsal) {
	t.Helper()
	if err := r.Start(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// down stops it; it must end well.
func down(t testing.TB, r *rehearsal.Rehearsal) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Fatalf("the daemon ended with %v", err)
	}
}

// within is a context that ends after d, and with the test.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until something holds.
func eventually(t testing.TB, d time.Duration, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ctx := within(t, d)
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// edit changes the configuration; old must stand in it once.
func edit(t testing.TB, r *rehearsal.Rehearsal, old, new string) {
	t.Helper()
	b, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), old); n != 1 {
		t.Fatalf("%q stands %d times in the configuration:\n%s", old, n, b)
	}
	write(t, r.ConfigPath, strings.Replace(string(b), old, new, 1))
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// drained waits until nothing is pending and gives the books.
func drained(t testing.TB, r *rehearsal.Rehearsal) admin.Snapshot {
	t.Helper()
	snap, err := r.Drained(within(t, 30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func stats(t testing.TB, r *rehearsal.Rehearsal) admin.Snapshot {
	t.Helper()
	snap, err := r.Stats(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// only is the one sync of a rehearsal.
func only(t testing.TB, snap admin.Snapshot) admin.Sync {
	t.Helper()
	if len(snap.Syncs) != 1 {
		t.Fatalf("%d syncs", len(snap.Syncs))
	}
	return snap.Syncs[0]
}

// answer is what an HTTP request got.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t testing.TB, method, url, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t, 20*time.Second), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// send posts a body to /2/httpapi, once.
func send(t testing.TB, r *rehearsal.Rehearsal, body string) answer {
	t.Helper()
	return ask(t, "POST", "http://"+r.Listen+"/2/httpapi", body)
}

// numbered is a request of one user's events with seq first to last.
func numbered(user string, first, last int) string {
	return padded(user, first, last, func() string { return "" })
}

// padded carries some text more in each event.
func padded(user string, first, last int, padding func() string) string {
	var events []string
	for seq := first; seq <= last; seq++ {
		events = append(events, fmt.Sprintf(`{"event_type":"Order Completed","user_id":%q,"device_id":"device of %[1]s","insert_id":"%[1]s-%d",`+
			`"event_properties":{"seq":%[2]d,"padding":%[3]s},"user_properties":{"plan":"pro"}}`, user, seq, whole(padding())))
	}
	return fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, recordings.Key, strings.Join(events, ","))
}

// whole is text as JSON of which nothing is cut: a list of texts where one would be too long.
func whole(text string) string {
	const enough = 1000 // of 1,024
	if len(text) <= enough {
		return strconv.Quote(text)
	}
	var parts []string
	for part := range slices.Chunk([]byte(text), enough) {
		parts = append(parts, strconv.Quote(string(part)))
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// accepted sends and insists on a 200.
func accepted(t testing.TB, r *rehearsal.Rehearsal, body string) {
	t.Helper()
	if a := send(t, r, body); a.status != 200 {
		t.Fatalf("answered %d %s", a.status, a.body)
	}
}

// complete says that the sandbox has each user's events 1 to n, once and in order.
func complete(t testing.TB, r *rehearsal.Rehearsal, n map[string]int) {
	t.Helper()
	report := r.Sandbox.Report()
	if o := report.Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Missing != 0 {
		t.Errorf("order: %+v", o)
	}
	total := 0
	for user, n := range n {
		total += n
		p, _ := r.Sandbox.Person("id", user)
		if p.EventCount != int64(n) {
			t.Errorf("Customer.io has %d events of %s, want %d", p.EventCount, user, n)
		}
	}
	if report.Events.Accepted != int64(total) {
		t.Errorf("Customer.io has %d events, want %d", report.Events.Accepted, total)
	}
}

// balanced says that books are in order, nothing waits, and nothing was refused or lost.
func balanced(t testing.TB, snap admin.Snapshot) {
	t.Helper()
	for _, y := range snap.Syncs {
		if !y.Books.Balanced || y.Books.Difference != 0 || y.Books.Pending != 0 || y.Totals.Dead != 0 || y.Totals.Lost != 0 || y.Totals.Discarded != 0 {
			t.Errorf("sync %s: books %+v, totals %+v", y.Name, y.Books, y.Totals)
		}
	}
}

// contains says that text has each of the parts.
// Text for people may be broken into lines anywhere between two words.
func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	flat := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, p := range parts {
		if !strings.Contains(text, p) && !strings.Contains(flat(text), flat(p)) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// golden compares text with a file of testdata, or writes it with -update.
func golden(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmpLines(string(want), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
