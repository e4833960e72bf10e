package e2e

import (
	"bytes"
	"context"
	"encoding/json"
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
	"testing"
	"time"
)

// house is a whole installation: the real binary as a daemon, and as a sandbox Customer.io
// for each sync.
type house struct {
	t       *testing.T
	dir     string
	listen  string // of the daemon
	page    string // URL of the status page
	config  string
	syncs   []houseSync
	daemon  *process
	sandbox map[string]*process // by sync
	control map[string]string   // by sync: URL of its sandbox
}

type houseSync struct {
	name   string
	fault  string // of its sandbox
	key    string // "" = the right one
	events string // those that it takes; "" = "*"
	limits string // lines of its [delivery]
}

const (
	apiKey   = "0123456789abcdef0123456789abcdef"
	trackKey = "right-key"
)

// process is a program that the test started and that it ends.
type process struct {
	cmd  *exec.Cmd
	said *bytes.Buffer
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), said: &bytes.Buffer{}}
	p.cmd.Stderr = p.said
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t, os.Interrupt) })
	return p
}

// end sends a signal and waits. What has ended already stays so.
func (p *process) end(t *testing.T, s os.Signal) {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Signal(s)
	late := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil && s != os.Kill {
		t.Errorf("%s: %v\n%s", strings.Join(p.cmd.Args, " "), err, p.said)
	}
}

// given are the ports that freeAddress has given: whoever got one may not listen yet.
var given sync.Map

func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			continue
		}
		l.Close()
		if _, before := given.LoadOrStore(l.Addr().String(), true); !before {
			return l.Addr().String()
		}
	}
	t.Fatal("no port of the loopback is free")
	return ""
}

// newHouse starts an installation and waits until it answers.
func newHouse(t *testing.T, syncs ...houseSync) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), listen: freeAddress(t), syncs: syncs, sandbox: map[string]*process{}, control: map[string]string{}}
	admin := freeAddress(t)
	h.page = "http://" + admin + "/"
	h.config = filepath.Join(h.dir, "config.toml")
	var c strings.Builder
	fmt.Fprintf(&c, "[server]\nlisten = %q\nadmin = %q\nsocket = %q\n[storage]\ndir = %q\nmin_free = \"16MiB\"\n[project.app]\namplitude_api_keys = [%q]\nrelay = \"off\"\n",
		h.listen, admin, filepath.Join(h.dir, "admin.sock"), filepath.Join(h.dir, "storage"), apiKey)
	for i, y := range syncs {
		address := freeAddress(t)
		h.control[y.name] = "http://" + address
		args := []string{"sandbox", "--listen", address, "--site-id", "site", "--api-key", trackKey, "--region", "eu", "--environment-id", fmt.Sprint(131_207 + i)}
		if y.fault != "" {
			args = append(args, "--fault", y.fault)
		}
		h.sandbox[y.name] = start(t, args...)
		key := y.key
		if key == "" {
			key = trackKey
		}
		if err := os.WriteFile(filepath.Join(h.dir, y.name+".key"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		events := y.events
		if events == "" {
			events = "*"
		}
		fmt.Fprintf(&c, `
[sync.%[1]s]
region = "eu"
site_id = "site"
api_key_file = %[2]q
endpoint = %[3]q
identifier = "user_id"
[sync.%[1]s.users]
properties = ["plan"]
[[sync.%[1]s.select]]
event = ["Debug*", "<b>*"]
action = "drop"
[[sync.%[1]s.select]]
event = [%[4]q]
[sync.%[1]s.events]
properties = ["*"]
[sync.%[1]s.delivery]
retry_initial = "200ms"
retry_max = "1s"
max_pending_bytes = "200MiB"
%[5]s`, y.name, y.name+".key", h.control[y.name], events, y.limits)
	}
	if err := os.WriteFile(h.config, []byte(c.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, y := range syncs {
		h.answers(h.control[y.name] + "/_sandbox/report")
	}
	h.open()
	return h
}

// open starts the daemon.
func (h *house) open() {
	h.t.Helper()
	h.daemon = start(h.t, "serve", "--config", h.config)
	h.answers(h.page + "healthz")
}

func (h *house) answers(url string) {
	h.t.Helper()
	eventually(h.t, "an answer of "+url, func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// event is one that a sender sends.
type event struct {
	Type   string         `json:"event_type"`
	User   string         `json:"user_id"`
	Insert string         `json:"insert_id"`
	Props  map[string]any `json:"event_properties,omitempty"`
}

func (h *house) send(events ...event) {
	h.t.Helper()
	for i := range events {
		if events[i].Insert == "" {
			events[i].Insert = fmt.Sprint(rand.Uint64())
		}
	}
	body, err := json.Marshal(map[string]any{"api_key": apiKey, "events": events})
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.Post("http://"+h.listen+"/2/httpapi", "application/json", bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if said, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		h.t.Fatalf("%d %s", resp.StatusCode, said)
	}
}

// sendMany sends n events of an online shop, of many users.
func (h *house) sendMany(n int) {
	h.t.Helper()
	for n > 0 {
		var batch []event
		for range min(n, 200) {
			batch = append(batch, shopEvent())
		}
		h.send(batch...)
		n -= len(batch)
	}
}

var shop = []string{"Product Viewed", "Product Viewed", "Product Viewed", "Product Added", "Cart Viewed", "Checkout Started", "Order Completed", "Signed Up"}

func shopEvent() event {
	return event{Type: shop[rand.IntN(len(shop))], User: fmt.Sprintf("user-%05d", rand.IntN(5_000)), Props: map[string]any{"total": rand.IntN(20_000)}}
}

// fault changes what goes wrong at the sandbox of a sync.
func (h *house) fault(sync, query string) {
	h.t.Helper()
	resp, err := http.Post(h.control[sync]+"/_sandbox/faults?"+query, "", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if said, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		h.t.Fatalf("%d %s", resp.StatusCode, said)
	}
}

// eventually waits until something holds, and fails when it does not within 15 s.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		case <-tick.C:
		}
	}
}
