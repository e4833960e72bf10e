package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// webhook is whom alerts are posted to.
type webhook struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	bodies []string // that were taken
	ids    []string
}

func newWebhook(t *testing.T) *webhook {
	h := &webhook{status: 200}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.status == 200 {
			h.bodies = append(h.bodies, string(b))
			h.ids = append(h.ids, r.Header.Get("Idempotency-Key"))
		}
		w.WriteHeader(h.status)
		fmt.Fprintf(w, "hello from %s", r.URL.Path)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *webhook) answers(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

// told are the messages so far, as "event kind of".
func (h *webhook) told(t *testing.T) (all []string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.bodies {
		var m struct {
			Event, Kind, ID string
			Troubles        []struct{ Of string }
		}
		if err := json.Unmarshal([]byte(b), &m); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		all = append(all, strings.TrimSpace(m.Event+" "+m.Kind+" "+m.Troubles[0].Of))
	}
	return all
}

func (h *webhook) tells(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	eventually(t, 15*time.Second, fmt.Sprint("it is told: ", want), func() bool {
		got = h.told(t)
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Fatalf("told: %q, want %q", got, want)
	}
}

// A wrong key is told once, and its end once, over a receiver that is down, kill -9 and
// restarts; a test message comes at any time, and a reload changes who hears.
func TestAlerts(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{}})
	hook, other := newWebhook(t), newWebhook(t)
	write(t, filepath.Join(r.Dir, "hook"), hook.URL+"/a-secret-path\n")
	edit(t, r, "[server]", "[alerts]\nurl_file = \"hook\"\nname = \"vm-1\"\nafter = \"0s\"\nover_after = \"0s\"\n\n[server]")
	if got := run(t, "alerts", "list", "--config", r.ConfigPath); got.code != 0 || !strings.Contains(got.stdout, "nothing is firing") {
		t.Errorf("before the first start: %+v", got)
	}
	tested := func(code int, args ...string) string {
		t.Helper()
		got := run(t, append([]string{"alerts", "test", "--config", r.ConfigPath}, args...)...)
		if got.code != code || strings.Contains(got.stdout+got.stderr, "a-secret-path") {
			t.Errorf("exit %d: %s%s", got.code, got.stdout, got.stderr)
		}
		return got.stdout + got.stderr
	}
	contains(t, tested(0), "by this command, since ampcio is stopped", "answered    200 OK", "hello from [redacted]", "The message was taken")
	key := filepath.Join(r.Dir, "customerio_api_key")
	write(t, key, "wrong-key\n")
	up(t, r)
	accepted(t, r, numbered("anna", 1, 3))
	hook.tells(t, "test test", "firing blocked demo")
	contains(t, hook.bodies[1], `"instance":"vm-1"`, `"level":"critical"`, "[CRITICAL] ampcio on vm-1: delivery is blocked: demo", "nothing is lost", "to do: ", `"pending":3`)
	if strings.Contains(hook.bodies[1], "anna") || hook.ids[1] == "" || !strings.Contains(hook.bodies[1], hook.ids[1]) {
		t.Errorf("id %q: %s", hook.ids[1], hook.bodies[1])
	}

	// Nobody listens, and the daemon is killed: neither the trouble nor its end is forgotten.
	hook.answers(503)
	contains(t, tested(exitUnavailable), "by the daemon that runs", "answered    503 Service Unavailable", "to do       ", "was not taken")
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	contains(t, did(t, r, "alerts", "list"), "ampcio is stopped", "critical  blocked demo, for ", "nothing waits to be posted; the last message was posted ")
	up(t, r)
	eventually(t, 15*time.Second, "it is blocked again", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	down(t, r)
	write(t, key, rehearsal.APIKey+"\n")
	up(t, r)
	eventually(t, 15*time.Second, "the end waits to be told", func() bool {
		return strings.Contains(did(t, r, "alerts", "list"), "over critical: delivery is no longer blocked: demo")
	})
	contains(t, did(t, r, "alerts", "list"), "nothing is firing\n1 message waits to be posted: 503 Service Unavailable; tried again in ")
	eventually(t, 5*time.Second, "queue-stats says so", func() bool {
		return strings.Contains(strings.Join(stats(t, r).Notes, "\n"), "alerts are not posted: 503 Service Unavailable; 1 wait")
	})
	hook.answers(200)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	hook.tells(t, "test test", "firing blocked demo", "over blocked demo")
	drained(t, r)
	var l alertList
	if err := json.Unmarshal([]byte(did(t, r, "alerts", "list", "--json")), &l); err != nil || !l.Configured || l.Source != "daemon" || len(l.Firing) != 0 || len(l.Waiting) != 0 {
		t.Errorf("%+v, %v", l, err)
	}

	// A reload: another address, then a dead letter, then none.
	edit(t, r, "url_file = \"hook\"", fmt.Sprintf("url = %q", other.URL+"/a-secret-path"))
	if report := reloaded(t, r); strings.Join(report.Changed, " ") != "alerts.url alerts.url_file" {
		t.Errorf("%+v", report)
	}
	f, err := sandbox.ParseFaults("refuse_event=Order Completed")
	if err != nil {
		t.Fatal(err)
	}
	r.Sandbox.SetFaults(f)
	accepted(t, r, numbered("berta", 1, 2))
	other.tells(t, "firing dead_letters demo")
	contains(t, other.bodies[0], "dead letters kept", "ampcio dead-letters list --sync demo")
	edit(t, r, fmt.Sprintf("url = %q\n", other.URL+"/a-secret-path"), "")
	reloaded(t, r)
	eventually(t, 5*time.Second, "there are no alerts any more", func() bool {
		return strings.Contains(did(t, r, "alerts", "list"), "there is no address for alerts")
	})
	if got := run(t, "alerts", "test", "--config", r.ConfigPath); got.code != exitData {
		t.Errorf("%+v", got)
	}
	if strings.Contains(logOf(t, r), "a-secret-path") {
		t.Error("the address is in the log")
	}
	if n := len(hook.told(t)); n != 3 {
		t.Errorf("the old address was told %d messages", n)
	}
}
