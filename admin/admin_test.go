package admin

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// night is what somebody sees who is woken: one sync is blocked, one is well.
func night() Snapshot {
	return Snapshot{
		Schema: Schema, Source: "daemon", At: noon, Version: "v1.2.3", Uptime: ptr(int64(6*86400 + 4*3600)),
		Notes: []string{"a damaged log file is kept at /var/lib/ampcio/damaged/1.db (3 of its records were taken over)"},
		Syncs: []Sync{
			{
				Name: "production", Project: "app", Status: StatusBlocked, Reason: "http_401",
				Detail: "Customer.io answered 401", Advice: "put the right Track API key into the key file",
				Since: ptr(noon.Add(-41 * time.Minute)), NextProbe: ptr(int64(18)),
				Depth:     Depth{Retry: 32, Held: 18_052, Dead: 7},
				OldestAge: ptr(int64(41*60 + 12)), NextAttempt: ptr(int64(18)), RateIn: ptr(22.14), RateOut: ptr(0.0),
				Waiting: []Waiting{
					{Reason: "http_503", Users: 12, Records: ptr(uint64(30)), NextAttempt: ptr(int64(18))},
					{Reason: "timeout", Users: 1},
				},
				Filtered: []Reason{
					{Kind: "event", Reason: "not_selected", Count: 902, Newest: ptr(noon.Add(-3 * time.Second)), Example: "Page Viewed"},
					{Kind: "user", Reason: "no_identifier", Count: 1},
				},
				Dead:          []Reason{{Kind: "event", Reason: "invalid", Count: 7, Newest: ptr(noon.Add(-49 * time.Hour)), Example: "Order \"Paid\""}},
				Totals:        Totals{Received: 1_904_331, Delivered: 1_885_338, FirstAttempt: 1_885_000, AfterRetry: 338, Filtered: 902, Dead: 7, EventsDelivered: 1_885_000, UsersDelivered: 40_000},
				Books:         Books{Taken: 1_904_331, Pending: 18_084, Balanced: true},
				LastDelivered: ptr(noon.Add(-41 * time.Minute)), LastAnswer: "http_401",
			},
			{
				Name: "staging", Project: "app", Status: StatusOK, RateIn: ptr(1.0), RateOut: ptr(12.0), DrainETA: ptr(int64(90)),
				Depth: Depth{Ready: 990, InFlight: 10}, OldestAge: ptr(int64(0)),
				Books: Books{Taken: 1001, Pending: 1000, Balanced: false, Difference: 1},
			},
		},
		Door: Door{URL: "http://127.0.0.1:8080/2/httpapi", Requests: 20_000, Events: 1_904_341, Duplicates: 10,
			Refused: []Refused{{Reason: "invalid_api_key", Count: 3, Last: ptr(noon.Add(-2 * time.Minute)), LastAddress: "10.0.0.3"}}},
		Disk: Disk{Dir: "/var/lib/ampcio", Used: 212 << 20, Max: 20 << 30, Free: 900 << 20, MinFree: 1 << 30, LogFiles: 3, LogBytes: 200 << 20,
			Full: "900 MiB free on the disk of storage.dir, storage.min_free is 1.0 GiB", Damaged: 2},
	}
}

func TestTable(t *testing.T) {
	fresh := Snapshot{Schema: Schema, Source: "files", At: noon, Version: "(devel)",
		Syncs: []Sync{{Name: "production", Project: "app", Status: StatusStopped, Books: Books{Balanced: true}}},
		Door:  Door{URL: "http://127.0.0.1:8080/2/httpapi"}, Disk: Disk{Max: 20 << 30, Free: 50 << 30, LogFiles: 1}}
	for name, snap := range map[string]Snapshot{"night": night(), "fresh": fresh, "outage": outage()} {
		t.Run(name, func(t *testing.T) {
			snap.Advise()
			snap.Judge(DefaultThresholds())
			for _, columns := range []int{50, 80, 160} {
				goldenTable(t, name, snap, columns)
			}
		})
	}
}

func TestTableInColourSaysTheSame(t *testing.T) {
	var plain, colour bytes.Buffer
	if err := errors.Join(WriteTable(&plain, night(), Look{}), WriteTable(&colour, night(), Look{Color: true})); err != nil {
		t.Fatal(err)
	}
	stripped := colour.String()
	for _, code := range []string{"\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"} {
		if !strings.Contains(stripped, code) {
			t.Errorf("no %q", code)
		}
		stripped = strings.ReplaceAll(stripped, code, "")
	}
	if d := cmp.Diff(plain.String(), stripped); d != "" {
		t.Errorf("-plain +colour\n%s", d)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestTableReportsAWriterThatFails(t *testing.T) {
	broken := errors.New("pipe is gone")
	if err := WriteTable(failingWriter{broken}, night(), Look{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestAges(t *testing.T) {
	for seconds, want := range map[int64]string{0: "0s", 59: "59s", 60: "1m", 61: "1m1s", 3600: "1h", 3661: "1h1m", 86400*3 + 3600*4: "3d4h"} {
		if got := age(&seconds); got != want {
			t.Errorf("%d s: %s, want %s", seconds, got, want)
		}
	}
}

func TestRatesAreThoseOfTheLastMinute(t *testing.T) {
	var r Rates
	if in, out := r.Of("p"); in != nil || out != nil {
		t.Error("rates of nothing")
	}
	for i := range 100 { // 10 a second in, at first nothing and then 20 a second out
		at := noon.Add(time.Duration(i) * 2 * time.Second)
		out := uint64(0)
		if i >= 69 {
			out = uint64(i-69) * 40
		}
		r.Note("p", at, uint64(i)*20, out)
	}
	in, out := r.Of("p")
	if in == nil || *in != 10 || out == nil || *out != 20 {
		t.Errorf("in %v out %v", in, out)
	}
	if n := len(r.points["p"]); n > 32 {
		t.Errorf("%d points are kept", n)
	}
	r.Forget("p")
	if in, out := r.Of("p"); in != nil || out != nil {
		t.Error("rates of what is forgotten")
	}
}

// shown is a source that is told what to say.
type shown struct {
	snap     Snapshot
	snapErr  error
	readyErr error
}

func (s shown) Snapshot(context.Context) (Snapshot, error) { return s.snap, s.snapErr }
func (s shown) Ready() error                               { return s.readyErr }

func TestEndpoints(t *testing.T) {
	well := shown{snap: night()}
	for _, c := range []struct {
		name, method, path string
		source             shown
		socket             bool
		status             int
		body               string
	}{
		{"alive", "GET", "/healthz", shown{readyErr: errors.New("full")}, false, 200, "ok\n"},
		{"ready", "GET", "/readyz", well, false, 200, "ready\n"},
		{"not ready says why", "GET", "/readyz", shown{readyErr: errors.New("storage is full: 1 GiB")}, false, 503, "storage is full: 1 GiB\n"},
		{"stats", "GET", "/stats", well, false, 200, `{"schema":1,"source":"daemon",`},
		{"stats that cannot be read", "GET", "/stats", shown{snapErr: errors.New("ledger is gone")}, false, 500, "ledger is gone\n"},
		{"nothing can be posted", "POST", "/stats", well, false, 405, ""},
		{"no profiles for the network", "GET", "/debug/pprof/", well, false, 404, ""},
		{"profiles on the socket", "GET", "/debug/pprof/", well, true, 200, "<html>"},
		{"stats on the socket", "GET", "/stats", well, true, 200, `{"schema":1,`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Handler(c.source)
			if c.socket {
				h = SocketHandler(c.source)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
			if w.Code != c.status || !strings.HasPrefix(w.Body.String(), c.body) {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body.String(), c.status, c.body)
			}
		})
	}
}

func TestAskThroughTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	if _, err := Ask(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	// What a killed process leaves behind.
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()

	l, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, SocketHandler(shown{snap: night()})) }()
	got, err := Ask(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(night(), got); d != "" {
		t.Errorf("-asked +answered\n%s", d)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// From its first moment the socket is nobody else's, even of a service that was started with an umask of 0: who connects
// before the mode is set stays connected. The umask is the process's, so this runs alone.
func TestTheSocketIsNeverOpenToAll(t *testing.T) {
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := listenAlone(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("just opened it has the mode %v, %v", st.Mode(), err)
	}
	if now := syscall.Umask(0); now != 0 {
		t.Errorf("the umask has become %#o", now)
	}
}

// What a handler has begun it can end: whoever waits for Serve may then close what the
// handler used.
func TestServeReturnsBehindItsHandlers(t *testing.T) {
	for range 10 { // a Serve that does not wait may still come second
		path := filepath.Join(t.TempDir(), "admin.sock")
		l, err := ListenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		begun, end, ended := make(chan struct{}), make(chan struct{}), false
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				<-r.Context().Done()
				<-end
				ended = true
			}))
		}()
		client := Client(path)
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			defer client.CloseIdleConnections()
			if resp, err := client.Get("http://admin/"); err == nil {
				resp.Body.Close()
			}
		}()
		<-begun
		stop()
		<-asked // its connection is cut
		select {
		case err := <-served:
			close(end)
			t.Fatalf("Serve has returned before its handler: %v", err)
		default:
		}
		close(end)
		if err := <-served; err != nil || !ended {
			t.Errorf("%v, ended %t", err, ended)
		}
	}
}

func TestAskRefusesAnotherSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"schema":2}`) }))
	}()
	if _, err := Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("got %v", err)
	}
	stop()
	<-done
}

// Two installations of one machine share a runtime folder by default; and a path may
// be mistyped. Neither somebody's socket nor somebody's file is taken away.
func TestListenSocketTakesNothingAway(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := ListenSocket(file); err == nil {
		l.Close()
		t.Error("took the place of a file")
	} else if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	path := filepath.Join(dir, "admin.sock")
	first, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if l, err := ListenSocket(path); err == nil {
		l.Close()
		t.Error("took the place of a socket that answers")
	}
}
