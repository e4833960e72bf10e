// Package rehearsal is a whole installation on this machine: a sandbox Customer.io, a daemon in a process of its
// own that can be killed, a storage folder, traffic, and a verdict on what has arrived. The demo shows it, and
// what tests the whole stands on it.
package rehearsal

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

// A Rehearsal is one installation. Its methods are for one goroutine, but for Post and Stats.
type Rehearsal struct {
	Dir        string // everything that is written
	ConfigPath string
	Listen     string // the daemon's addresses
	Admin      string
	Socket     string
	SandboxURL string

	Sandbox     *sandbox.Sandbox
	StopSandbox func() error

	Command func(args ...string) *exec.Cmd // runs ampcio
	LogFile *os.File                       // the daemon's stderr
	Daemon  *exec.Cmd                      // nil = not running
	Ended   chan error                     // what the running daemon's Wait said
}

// Settings are what a rehearsal may choose.
type Settings struct {
	Sandbox sandbox.Options
	Storage string // lines of [storage]
	Sync    string // lines of [sync.demo] and below, beside those that are always there
}

// What the configuration of every rehearsal has.
const (
	SiteID = "demo-site-id"
	APIKey = "demo-track-api-key"
	Sync   = "demo"
	Drop   = "Heartbeat" // an event that the rules of a rehearsal drop
)

// New sets everything up in dir but the daemon, which Start starts.
func New(dir string, command func(args ...string) *exec.Cmd, s Settings) (*Rehearsal, error) {
	r := &Rehearsal{Dir: dir, ConfigPath: filepath.Join(dir, "config.toml"), Socket: filepath.Join(dir, "admin.sock"), Command: command}
	o := s.Sandbox
	o.SiteID, o.APIKey, o.Region, o.OrderAttribute, o.OrderFirst = SiteID, APIKey, "eu", "seq", 1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	customerio := sandbox.New(o)
	r.Sandbox = customerio
	r.SandboxURL = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- sandbox.Serve(ctx, l, customerio) }()
	r.StopSandbox = sync.OnceValue(func() error { cancel(); return <-served })
	if r.Listen, err = FreeAddress(); err == nil {
		r.Admin, err = FreeAddress()
	}
	if err == nil {
		r.LogFile, err = os.Create(filepath.Join(dir, "daemon.log"))
	}
	if err == nil {
		err = r.writeConfig(s)
	}
	if err != nil {
		return nil, errors.Join(err, r.StopSandbox())
	}
	return r, nil
}

// FreeAddress finds a port of the loopback that nobody uses, and that it has not given
// before. It looks below those that systems give to outgoing connections: while the daemon
// is down between two lives, a client's connection could take one of these, and even be
// connected to itself.
func FreeAddress() (string, error) {
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

func (r *Rehearsal) writeConfig(s Settings) error {
	if err := os.WriteFile(filepath.Join(r.Dir, "customerio_api_key"), []byte(APIKey+"\n"), 0o600); err != nil {
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
%[11]s`, r.Listen, r.Admin, r.Socket, filepath.Join(r.Dir, "storage"), s.Storage, recordings.Key,
		Sync, SiteID, r.SandboxURL, Drop, s.Sync)
	return os.WriteFile(r.ConfigPath, []byte(text), 0o600)
}

// Start starts the daemon and waits until it takes events.
func (r *Rehearsal) Start(ctx context.Context) error {
	r.Daemon = r.Command("serve", "--config", r.ConfigPath)
	r.Daemon.Stderr = r.LogFile
	if err := r.Daemon.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	r.Ended = ended
	go func(c *exec.Cmd) { ended <- c.Wait() }(r.Daemon)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			r.Daemon = nil
			return fmt.Errorf("the daemon ended at start: %v\n%s", err, r.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon did not get ready: %w\n%s", ctx.Err(), r.LogTail())
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Admin+"/healthz", nil)
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

// Kill ends the daemon with SIGKILL: it learns nothing of it.
func (r *Rehearsal) Kill() error { return r.End(os.Kill) }

// Stop asks the daemon to go home, and waits.
func (r *Rehearsal) Stop() error { return r.End(os.Interrupt) }

// End sends the daemon a signal and waits for its end. That it ended badly is an error, unless it was killed.
func (r *Rehearsal) End(s os.Signal) error {
	if r.Daemon == nil {
		return nil
	}
	if err := r.Daemon.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := <-r.Ended
	r.Daemon = nil
	if s == os.Kill {
		return nil // it cannot end well
	}
	return err
}

// Close ends everything that the rehearsal started.
func (r *Rehearsal) Close() error {
	return errors.Join(r.Stop(), r.StopSandbox(), r.LogFile.Close())
}

// Stats asks the daemon for its snapshot.
func (r *Rehearsal) Stats(ctx context.Context) (admin.Snapshot, error) {
	return admin.Ask(ctx, r.Socket)
}

// Drained waits until nothing is pending in any sync.
func (r *Rehearsal) Drained(ctx context.Context) (admin.Snapshot, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var snap admin.Snapshot
	for {
		now, err := r.Stats(ctx)
		if err == nil {
			snap = now
		}
		if err == nil && snap.Pending() == 0 {
			return snap, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return snap, fmt.Errorf("the queue did not drain, %d are pending: %w", snap.Pending(), errors.Join(ctx.Err(), err))
		}
	}
}

// LogTail is the last ten lines of the daemon's log.
func (r *Rehearsal) LogTail() string {
	b, _ := os.ReadFile(r.LogFile.Name())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// Post sends a body to the daemon as an SDK does: until it is answered 200, whatever
// comes between. It returns early only when ctx ends, or on an answer that says the
// body itself is wrong.
func (r *Rehearsal) Post(ctx context.Context, path string, header [][2]string, body []byte) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.Listen+path, bytes.NewReader(body))
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
