package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/sandbox"
)

// rehearsal is a whole installation on this machine: a sandbox Customer.io, a daemon
// in a process of its own that can be killed, and a storage folder. The demo shows
// it; the tests of the whole use it too.
type rehearsal struct {
	dir        string // everything that is written
	configPath string
	listen     string // the daemon's addresses
	admin      string
	socket     string
	sandboxURL string

	sandbox     *sandbox.Sandbox
	stopSandbox func() error

	command func(args ...string) *exec.Cmd // runs ampcio
	logFile *os.File                       // the daemon's stderr
	daemon  *exec.Cmd                      // nil = not running
	ended   chan error                     // what the running daemon's Wait said
}

// rehearsalSettings are what a rehearsal may choose.
type rehearsalSettings struct {
	sandbox sandbox.Options
	storage string // lines of [storage]
	sync    string // lines of [sync.demo] and below, beside those that are always there
}

const (
	demoSiteID = "demo-site-id"
	demoAPIKey = "demo-track-api-key"
	demoSync   = "demo"
	demoDrop   = "Heartbeat" // an event that the rules of a rehearsal drop
)

// newRehearsal sets everything up in dir but the daemon, which start starts.
func newRehearsal(dir string, command func(args ...string) *exec.Cmd, s rehearsalSettings) (*rehearsal, error) {
	r := &rehearsal{dir: dir, configPath: filepath.Join(dir, "config.toml"), socket: filepath.Join(dir, "admin.sock"), command: command}
	o := s.sandbox
	o.SiteID, o.APIKey, o.Region, o.OrderAttribute, o.OrderFirst = demoSiteID, demoAPIKey, "eu", "seq", 1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	customerio := sandbox.New(o)
	r.sandbox = customerio
	r.sandboxURL = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- sandbox.Serve(ctx, l, customerio) }()
	r.stopSandbox = sync.OnceValue(func() error { cancel(); return <-served })
	if r.listen, err = freeAddress(); err == nil {
		r.admin, err = freeAddress()
	}
	if err == nil {
		r.logFile, err = os.Create(filepath.Join(dir, "daemon.log"))
	}
	if err == nil {
		err = r.writeConfig(s)
	}
	if err != nil {
		return nil, errors.Join(err, r.stopSandbox())
	}
	return r, nil
}

// freeAddress finds a port of the loopback that nobody uses, and that it has not given
// before. It looks below those that systems give to outgoing connections: while the daemon
// is down between two lives, a client's connection could take one of these, and even be
// connected to itself.
func freeAddress() (string, error) {
	last := errors.New("no port of the loopback is free")
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			last = err
			continue
		}
		address := l.Addr().String()
		if err := l.Close(); err != nil {
			return "", err
		}
		if _, before := givenAddresses.LoadOrStore(address, true); !before {
			return address, nil
		}
	}
	return "", last
}

// givenAddresses are those that a daemon of this process has been given, which may not
// listen yet, or at the moment.
var givenAddresses sync.Map

func (r *rehearsal) writeConfig(s rehearsalSettings) error {
	if err := os.WriteFile(filepath.Join(r.dir, "customerio_api_key"), []byte(demoAPIKey+"\n"), 0o600); err != nil {
		return err
	}
	text := fmt.Sprintf(`[server]
listen = %q
admin  = %q
socket = %q

[storage]
dir      = %q
%s
[project.app]
amplitude_api_keys = [%q]
relay = "off"

[sync.%s]
region       = "eu"
site_id      = %q
api_key_file = "customerio_api_key"
endpoint     = %q
identifier   = "user_id"

[[sync.%[7]s.select]]
event  = [%[10]q]
action = "drop"

[[sync.%[7]s.select]]
event = ["*"]

[sync.%[7]s.events]
properties = ["seq", "total", "currency"]

[sync.%[7]s.users]
properties = ["plan", "email", "role"]

[sync.%[7]s.delivery]
retry_max = "2s"
%[11]s`, r.listen, r.admin, r.socket, filepath.Join(r.dir, "storage"), s.storage, recordings.Key,
		demoSync, demoSiteID, r.sandboxURL, demoDrop, s.sync)
	return os.WriteFile(r.configPath, []byte(text), 0o600)
}

// start starts the daemon and waits until it takes events.
func (r *rehearsal) start(ctx context.Context) error {
	r.daemon = r.command("serve", "--config", r.configPath)
	r.daemon.Stderr = r.logFile
	if err := r.daemon.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	r.ended = ended
	go func(c *exec.Cmd) { ended <- c.Wait() }(r.daemon)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			r.daemon = nil
			return fmt.Errorf("the daemon ended at start: %v\n%s", err, r.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon did not get ready: %w\n%s", ctx.Err(), r.logTail())
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.admin+"/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue // not listening yet
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// kill ends the daemon with SIGKILL: it learns nothing of it.
func (r *rehearsal) kill() error { return r.end(os.Kill) }

// stop asks the daemon to go home, and waits.
func (r *rehearsal) stop() error { return r.end(os.Interrupt) }

func (r *rehearsal) end(s os.Signal) error {
	if r.daemon == nil {
		return nil
	}
	if err := r.daemon.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := <-r.ended
	r.daemon = nil
	if s == os.Kill {
		return nil // it cannot end well
	}
	return err
}

// close ends everything that the rehearsal started.
func (r *rehearsal) close() error {
	return errors.Join(r.stop(), r.stopSandbox(), r.logFile.Close())
}

func (r *rehearsal) stats(ctx context.Context) (admin.Snapshot, error) {
	return admin.Ask(ctx, r.socket)
}

// drained waits until nothing is pending in any sync.
func (r *rehearsal) drained(ctx context.Context) (admin.Snapshot, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var snap admin.Snapshot
	for {
		now, err := r.stats(ctx)
		if err == nil {
			snap = now
		}
		if err == nil && pending(snap) == 0 {
			return snap, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return snap, fmt.Errorf("the queue did not drain, %d are pending: %w", pending(snap), errors.Join(ctx.Err(), err))
		}
	}
}

func pending(s admin.Snapshot) (n uint64) {
	for _, y := range s.Syncs {
		n += y.Books.Pending
	}
	return n
}

func (r *rehearsal) logTail() string {
	b, _ := os.ReadFile(r.logFile.Name())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// post sends a body to the daemon as an SDK does: until it is answered 200, whatever
// comes between. It returns early only when ctx ends, or on an answer that says the
// body itself is wrong.
func (r *rehearsal) post(ctx context.Context, path string, header [][2]string, body []byte) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.listen+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		for _, h := range header {
			if !strings.EqualFold(h[0], "Host") && !strings.EqualFold(h[0], "Content-Length") && !strings.EqualFold(h[0], "Connection") {
				req.Header.Set(h[0], h[1])
			}
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			answer, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			switch {
			case resp.StatusCode == http.StatusOK:
				return nil
			case resp.StatusCode < 500:
				return fmt.Errorf("the daemon answered %d: %s", resp.StatusCode, answer)
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
