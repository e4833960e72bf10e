package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

// askedAdmin gets from the admin listener, under a name of the host.
func askedAdmin(t testing.TB, r *rehearsal.Rehearsal, path, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// knownPoints is how many points of the last quarter of an hour the charts have, and what
// most is of what waited.
func knownPoints(t testing.TB, r *rehearsal.Rehearsal) (points int, most float64) {
	t.Helper()
	code, body := askedAdmin(t, r, "/history?span=15m", "")
	var past struct {
		Syncs []struct {
			Name    string
			Pending []*float64
		}
	}
	if err := json.Unmarshal([]byte(body), &past); err != nil || code != 200 {
		t.Fatalf("%d %v %s", code, err, body)
	}
	if len(past.Syncs) == 0 {
		return 0, 0 // it has just begun
	}
	for _, p := range past.Syncs[0].Pending {
		if p != nil {
			points++
			most = max(most, *p)
		}
	}
	return points, most
}

// The page tells what queue-stats tells, to whoever comes by an address or as localhost;
// and its charts know of the time before a restart.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	r.Sandbox.SetFaults(faraway())
	if code, body := askedAdmin(t, r, "/", ""); code != 200 || !strings.Contains(body, `<details class="sync" id="sync-demo"`) {
		t.Errorf("%d %s", code, body)
	}
	for host, want := range map[string]int{"localhost:8081": 200, "attacker.example": 421} {
		for _, path := range []string{"/", "/stats", "/history", "/healthz"} {
			if code, body := askedAdmin(t, r, path, host); code != want {
				t.Errorf("%s as %s: %d %.200s", path, host, code, body)
			}
		}
	}
	pause := run(t, "sync", "pause", "demo", "--config", r.ConfigPath)
	if pause.code != 0 {
		t.Fatal(pause)
	}
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Signed Up","user_id":"user-1"},{"event_type":"Signed Up","user_id":"user-2"}]}`, recordings.Key))
	eventually(t, 10*time.Second, "the charts know what waits", func() bool { _, most := knownPoints(t, r); return most == 2 })
	if _, body := askedAdmin(t, r, "/", ""); !strings.Contains(body, "is paused.") || strings.Contains(body, "user-1") {
		t.Errorf("%s", body)
	}
	down(t, r)
	file := filepath.Join(r.Dir, "storage", historyFile)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 || st.Size() > 20_000 {
		t.Errorf("%v %v", st, err)
	}
	up(t, r)
	eventually(t, 10*time.Second, "the charts know the time before", func() bool { points, most := knownPoints(t, r); return points > 0 && most == 2 })
	down(t, r)

	// A file that cannot be read costs the charts and nothing else.
	if err := os.WriteFile(file, []byte("ampcio history 9\nsomething"), 0o600); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	if code, _ := askedAdmin(t, r, "/readyz", ""); code != 200 {
		t.Errorf("%d", code)
	}
	down(t, r)
	var h admin.History
	if err := h.Load(file, time.Now()); err != nil {
		t.Errorf("the file was not made anew: %v", err)
	}
}

// A disk that is full gets no charts.
func TestFullDiskKeepsNoCharts(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Storage: "min_free = \"1000TiB\"\n"})
	up(t, r)
	if code, body := askedAdmin(t, r, "/", ""); code != 200 || !strings.Contains(body, "New events are refused.") {
		t.Errorf("%d %s", code, body)
	}
	down(t, r)
	if _, err := os.Stat(filepath.Join(r.Dir, "storage", historyFile)); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
}
