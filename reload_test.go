package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

func hangup(t testing.TB, r *rehearsal.Rehearsal) {
	t.Helper()
	if err := r.Daemon.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// said waits until the daemon's log has a text so many times, at least.
func said(t testing.TB, r *rehearsal.Rehearsal, times int, text string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("the log says %d times: %s", times, text), func() bool {
		return countInLog(t, r, text) >= times
	})
}

func countInLog(t testing.TB, r *rehearsal.Rehearsal, text string) int {
	t.Helper()
	log, err := os.ReadFile(r.LogFile.Name())
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(log, []byte(text))
}

// reloaded has the configuration reloaded, which must go well.
func reloaded(t testing.TB, r *rehearsal.Rehearsal, flags ...string) reloadReport {
	t.Helper()
	got := run(t, append([]string{"reload", "--config", r.ConfigPath, "--json"}, flags...)...)
	var report reloadReport
	if got.code != 0 {
		t.Fatalf("reload: exit %d: %s", got.code, got.stderr)
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("reload: %v in:\n%s", err, got.stdout)
	}
	return report
}

// changes are what a report says of the syncs.
func changes(report reloadReport) string {
	var all []string
	for _, y := range report.Syncs {
		all = append(all, y.Name+" "+y.Change)
	}
	return strings.Join(all, ", ")
}

// syncNamed is one of several syncs.
func syncNamed(t testing.TB, snap admin.Snapshot, name string) admin.Sync {
	t.Helper()
	for _, y := range snap.Syncs {
		if y.Name == name {
			return y
		}
	}
	t.Fatalf("there is no sync %s", name)
	return admin.Sync{}
}

func configOf(t testing.TB, r *rehearsal.Rehearsal) string {
	t.Helper()
	b, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// secondSync is a sync of everything to another sandbox.
func secondSync(name string, other *rehearsal.Rehearsal) string {
	return fmt.Sprintf(`
[sync.%s]
region       = "eu"
site_id      = %q
api_key      = %q
endpoint     = %q

[[sync.%[1]s.select]]
event = ["*"]

[sync.%[1]s.events]
properties = ["seq"]

[sync.%[1]s.delivery]
max_pending_bytes = "1GiB"
`, name, rehearsal.SiteID, rehearsal.APIKey, other.SandboxURL)
}

const bounded = "max_pending_bytes = \"1GiB\"\n"

// incessant are senders that send without a pause, each the events of a user of its own,
// until they are ended. Every request must be answered 200 at the first try.
type incessant struct {
	stop    atomic.Bool
	senders sync.WaitGroup
	last    []int // acknowledged, by sender
	sent    atomic.Int64
}

func sending(t *testing.T, r *rehearsal.Rehearsal, senders int) *incessant {
	s := &incessant{last: make([]int, senders)}
	for i := range senders {
		s.senders.Go(func() {
			for !s.stop.Load() {
				body := numbered(incessantUser(i), s.last[i]+1, s.last[i]+3)
				resp, err := http.Post("http://"+r.Listen+"/2/httpapi", "application/json", strings.NewReader(body))
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("a request was answered %d", resp.StatusCode)
					return
				}
				s.last[i] += 3
				s.sent.Add(3)
			}
		})
	}
	return s
}

func incessantUser(i int) string { return fmt.Sprintf("user-%d-of-many", i) }

// end ends the senders and gives what they have sent, by user.
func (s *incessant) end() map[string]int {
	s.stop.Store(true)
	s.senders.Wait()
	n := map[string]int{}
	for i, last := range s.last {
		n[incessantUser(i)] = last
	}
	return n
}

// more waits until more has been acknowledged.
func (s *incessant) more(t *testing.T) {
	t.Helper()
	from := s.sent.Load()
	eventually(t, 20*time.Second, "more events are acknowledged", func() bool { return s.sent.Load() > from+30 })
}

// Senders that never rest, while rules, keys, limits and syncs change again and again:
// each request is answered 200 at once, and each event arrives once and in order.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	other := rehearse(t, rehearsal.Settings{})
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{CheckOverlap: true}, Sync: "requests_per_second = 1000\n" + bounded})
	up(t, r)
	base := configOf(t, r)
	key := filepath.Join(r.Dir, "customerio_api_key")
	steps := []struct {
		config string
		key    string // "" = the right one
		want   string
	}{
		{config: strings.Replace(base, `properties = ["seq", "total", "currency"]`, `properties = ["seq"]`, 1), want: "demo changed"},
		{config: strings.Replace(base, `retry_max = "2s"`, "retry_max = \"2s\"\nconcurrency = 8", 1), want: "demo changed"},
		{config: base, key: "not-the-key", want: "demo changed"},
		{config: base, want: "demo changed"},
		{config: base + secondSync("second", other), want: "second added"},
		{config: strings.Replace(base, "[project.app]", "keep = \"1h\"\n[project.app]", 1) + secondSync("second", other), want: ""},
		{config: strings.Replace(base, "amplitude_api_keys = [", `amplitude_api_keys = ["another-key", `, 1), want: "second removed"},
		{config: base + secondSync("second", other), want: "second back"},
		{config: base, want: "second removed"},
		{config: base, want: ""},
	}
	load := sending(t, r, 4)
	hangups := 0
	for round := range 2 {
		for i, step := range steps {
			if round > 0 && step.want == "second added" {
				step.want = "second back"
			}
			if step.key == "" {
				step.key = rehearsal.APIKey
			}
			write(t, key, step.key+"\n")
			write(t, r.ConfigPath, step.config)
			if i%3 == 2 {
				done := countInLog(t, r, "the configuration is reloaded")
				hangup(t, r)
				said(t, r, done+1, "the configuration is reloaded")
				hangups++
			} else if got := changes(reloaded(t, r)); got != step.want {
				t.Errorf("reload %d has changed %q, want %q", i, got, step.want)
			}
			load.more(t)
		}
	}
	sent := load.end()
	// What the second sync had not delivered when it was removed is held until it is back.
	write(t, r.ConfigPath, base+secondSync("second", other))
	if got := changes(reloaded(t, r)); got != "second back" {
		t.Errorf("at the end %q", got)
	}
	snap := drained(t, r)
	balanced(t, snap)
	complete(t, r, sent)
	total := 0
	for _, n := range sent {
		total += n
	}
	if y := syncNamed(t, snap, "demo"); y.Totals.Delivered != uint64(total) || y.Totals.Filtered != 0 {
		t.Errorf("%d sent, totals %+v", total, y.Totals)
	}
	if report := r.Sandbox.Report(); report.Order.Overlaps != 0 {
		t.Errorf("%d times a user was in two requests at once", report.Order.Overlaps)
	}
	// What the second sync has taken in its two lives arrived as well, once and in order.
	second, report := syncNamed(t, snap, "second"), other.Sandbox.Report()
	if second.Books.Taken == 0 || second.Books.Taken >= uint64(total) || second.Totals.Delivered != second.Books.Taken ||
		report.Events.Accepted != int64(second.Books.Taken) || report.Order.OutOfOrder != 0 || report.Order.Repeated != 0 {
		t.Errorf("the second sync: %+v, Customer.io has %d, order %+v", second.Books, report.Events.Accepted, report.Order)
	}
	t.Logf("%d events through %d reloads, %d of them by a signal, the second sync has taken %d", total, 2*len(steps), hangups, second.Books.Taken)
	down(t, r)
	sums := map[string]uint64{}
	for _, y := range statsOfFiles(t, r).Syncs {
		sums[y.Name] = y.Totals.Delivered
	}
	if sums["demo"] != uint64(total) || sums["second"] != second.Books.Taken {
		t.Errorf("the files say %v", sums)
	}
}

// A stop in the middle of a reload: the requests to Customer.io that it waits for end,
// the daemon ends well, and nothing is sent twice.
func TestStopDuringAReload(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{CheckOverlap: true}})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 1))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Latency: 5 * time.Second})
	accepted(t, r, numbered("ann-1", 2, 50))
	eventually(t, 10*time.Second, "a request to Customer.io is in flight", func() bool { return r.Sandbox.Report().InFlight > 0 })
	edit(t, r, `retry_max = "2s"`, `retry_max = "3s"`)
	edit(t, r, "amplitude_api_keys = [", `amplitude_api_keys = ["another-key", `)
	asked := ampcio("reload", "--config", r.ConfigPath)
	if err := asked.Start(); err != nil {
		t.Fatal(err)
	}
	another := strings.Replace(numbered("bob-2", 1, 1), recordings.Key, "another-key", 1)
	eventually(t, 10*time.Second, "the new key is known", func() bool { return send(t, r, another).status == 200 })
	if r.Sandbox.Report().InFlight == 0 {
		t.Error("the reload has nothing to wait for: this tests less than it says")
	}
	down(t, r)
	_ = asked.Wait() // it may have had its answer, or been cut off
	if n := r.Sandbox.Report().InFlight; n != 0 {
		t.Errorf("%d requests to Customer.io were left alone", n)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 50, "bob-2": 1})
	if report := r.Sandbox.Report(); report.Events.Duplicates != 0 || report.Order.Overlaps != 0 {
		t.Errorf("%d events were sent again, %d overlaps", report.Events.Duplicates, report.Order.Overlaps)
	}
	down(t, r)
}

// A configuration with a mistake is not put in force, by whom it may be asked; what was
// in force stays, and the mistake is named with its line.
func TestReloadWithAMistakeKeepsTheOld(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	good := configOf(t, r)
	for _, test := range []struct {
		name, old, new string
		says           []string
	}{
		{"broken TOML", `region       = "eu"`, `region       = eu`, []string{"broken TOML", "text needs quotes"}},
		{"rules that cannot be compiled", `identifier   = "user_id"`, `identifier = "email"`, []string{"sync.demo.identifier", `did you mean "user.email"?`}},
		{"a key file that is gone", `"customerio_api_key"`, `"customerio_key"`, []string{"sync.demo.api_key_file", "customerio_key"}},
		{"another project", "[project.app]", "[project.other]", []string{"sync.demo.project", `its ledger belongs to project "app"`, "give the sync another name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			write(t, r.ConfigPath, good)
			edit(t, r, test.old, test.new)
			before := countInLog(t, r, "the configuration was not reloaded")
			got := run(t, "reload", "--config", r.ConfigPath)
			if got.code != exitConfig || got.stdout != "" {
				t.Errorf("exit %d, stdout %q", got.code, got.stdout)
			}
			contains(t, got.stderr, append(test.says, r.ConfigPath+":")...)
			asked := countInLog(t, r, "the configuration was not reloaded")
			hangup(t, r)
			said(t, r, asked+1, "the configuration was not reloaded; the one in force stays")
			t.Logf("%d lines in the log before, %d after the verb", before, asked)
		})
	}
	accepted(t, r, numbered("ann-1", 1, 10))
	drained(t, r)
	write(t, r.ConfigPath, good)
	if report := reloaded(t, r); len(report.Syncs) != 0 || len(report.Changed) != 0 || len(report.Restart) != 0 {
		t.Errorf("nothing was put in force, yet there is something to take back: %+v", report)
	}
	accepted(t, r, numbered("ann-1", 11, 20))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 20})
	down(t, r)
}

// A revoked key is mended by a signal: nothing is lost, all comes in order.
func TestReloadWithTheRightKeyDrains(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	key := filepath.Join(r.Dir, "customerio_api_key")
	write(t, key, "revoked\n")
	up(t, r)
	for i := range 10 {
		accepted(t, r, numbered("ann-1", 10*i+1, 10*i+10))
		accepted(t, r, numbered("bob-2", 10*i+1, 10*i+10))
	}
	eventually(t, 10*time.Second, "the sync is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	write(t, key, rehearsal.APIKey+"\n")
	hangup(t, r)
	snap := drained(t, r)
	balanced(t, snap)
	complete(t, r, map[string]int{"ann-1": 100, "bob-2": 100})
	if y := only(t, snap); y.Status != admin.StatusOK || y.Totals.Delivered != 200 {
		t.Errorf("%s, %+v", y.Status, y.Totals)
	}
	if log := countInLog(t, r, rehearsal.APIKey); log != 0 {
		t.Error("the log shows the API key")
	}
	down(t, r)
}

// A key that came with the start of the process cannot be mended by a reload, which says so.
func TestReloadCannotSeeANewCredential(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	credentials := filepath.Join(r.Dir, "credentials")
	if err := os.Mkdir(credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(credentials, "customerio_api_key"), "revoked\n")
	plain := r.Command
	r.Command = func(args ...string) *exec.Cmd {
		c := plain(args...)
		c.Env = append(c.Env, "CREDENTIALS_DIRECTORY="+credentials)
		return c
	}
	up(t, r)
	eventually(t, 10*time.Second, "the sync is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	contains(t, strings.Join(reloaded(t, r).Warnings, "\n"), "sync demo is blocked, and its API key is a credential that systemd handed over at the start", "systemctl restart ampcio")
	down(t, r)
}

// What cannot change while it runs stays, and is named; all else of the same file counts.
func TestReloadSaysWhatNeedsARestart(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	elsewhere, err := rehearsal.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	edit(t, r, fmt.Sprintf("listen = %q", r.Listen), fmt.Sprintf("listen = %q", elsewhere))
	edit(t, r, "[project.app]", "keep = \"1h\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n[project.app]")
	text := run(t, "reload", "--config", r.ConfigPath, "--dry-run")
	contains(t, text.stdout, r.ConfigPath+" would be put in force\n  storage.keep, log.level\n", "needs a restart, and is as before until then: server.listen, log.format\n")
	report := reloaded(t, r)
	if strings.Join(report.Restart, " ") != "server.listen log.format" || strings.Join(report.Changed, " ") != "storage.keep log.level" || len(report.Syncs) != 0 {
		t.Errorf("%+v", report)
	}
	said(t, r, 1, "these keys have changed and stay as they were until ampcio is restarted")
	// Again: it is still said, and only that is left.
	if report := reloaded(t, r); strings.Join(report.Restart, " ") != "server.listen log.format" || len(report.Changed) != 0 {
		t.Errorf("%+v", report)
	}
	accepted(t, r, numbered("ann-1", 1, 3))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3})
	down(t, r)
}

// Rules that would filter most of what waits are not put in force unless that is meant.
func TestReloadThatWouldFilterMostOfWhatIsPending(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, old, new string
		why            string
	}{
		{"a select that matches nothing", `event = ["*"]`, `event = ["Oder *"]`, `30 not_selected, such as "Order Completed"`},
		{"an identifier that nobody has", `identifier   = "user_id"`, `identifier = "user.emial"`, `30 no_identifier, such as "Order Completed"`},
		{"late events", `retry_max = "2s"`, "retry_max = \"2s\"\nlate_after = \"1m\"\nlate_policy = \"filter\"", `30 late, such as "Order Completed"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
			up(t, r)
			accepted(t, r, hourOld(numbered("ann-1", 1, 15)))
			accepted(t, r, hourOld(numbered("bob-2", 1, 15)))
			accepted(t, r, numbered("bob-2", 16, 20)) // of now
			good := configOf(t, r)
			edit(t, r, test.old, test.new)
			dry := run(t, "reload", "--config", r.ConfigPath, "--dry-run")
			if dry.code != 0 {
				t.Errorf("--dry-run: exit %d %s", dry.code, dry.stderr)
			}
			contains(t, dry.stdout, "Without --yes that is refused")
			contains(t, did(t, r, "check-config", "--pending"), "  ampcio reload: ", " of 35 that are to be sent would be filtered. Without --yes that is refused\n")
			got := run(t, "reload", "--config", r.ConfigPath)
			if got.code != exitData || got.stdout != "" {
				t.Errorf("exit %d, want %d: %s", got.code, exitData, got.stdout)
			}
			asJSON := run(t, "reload", "--config", r.ConfigPath, "--json")
			var refused reloadReport
			if err := json.Unmarshal([]byte(asJSON.stdout), &refused); err != nil || asJSON.code != exitData || !refused.Refused || len(refused.Pending) != 1 {
				t.Errorf("%v: %+v", err, asJSON)
			}
			contains(t, dry.stdout+got.stderr, "sync demo has 35 pending (all looked at): ", " of 35 that are to be sent would be filtered", "ampcio reload --yes")
			if test.name == "late events" {
				contains(t, got.stderr, test.why)
			} else {
				contains(t, got.stderr, strings.Replace(test.why, "30", "35", 1))
			}
			hangup(t, r)
			said(t, r, 3, "the configuration was not reloaded; the one in force stays")
			if y := only(t, stats(t, r)); y.Books.Pending != 35 || y.Totals.Filtered != 0 {
				t.Errorf("%+v", y.Books)
			}
			// The old rules are those that count, until the new ones are meant.
			write(t, r.ConfigPath, good)
			reloaded(t, r)
			edit(t, r, test.old, test.new)
			report := reloaded(t, r, "--yes")
			if changes(report) != "demo changed" || len(report.Pending) != 1 || report.Pending[0].ToBeSent != 35 || report.Pending[0].NewlyFiltered < 30 {
				t.Errorf("%+v", report)
			}
			r.Sandbox.SetFaults(sandbox.Faults{})
			snap := drained(t, r)
			balanced(t, snap)
			events := uint64(0)
			for _, f := range only(t, snap).Filtered {
				if f.Kind == "event" {
					events += f.Count
				}
			}
			if want := uint64(report.Pending[0].NewlyFiltered); events != want {
				t.Errorf("%d events were filtered, %d foretold: %+v", events, want, only(t, snap).Filtered)
			}
			down(t, r)
		})
	}
}

// hourOld gives the events of a body a time that is an hour ago.
func hourOld(body string) string {
	return strings.ReplaceAll(body, `{"event_type"`, fmt.Sprintf(`{"time":%d,"event_type"`, time.Now().Add(-time.Hour).UnixMilli()))
}

// check-config --pending says the same of a queue, running and stopped, and changes nothing.
func TestCheckConfigPending(t *testing.T) {
	t.Parallel()
	r := queued(t, rehearsal.Settings{})
	stopped := run(t, "check-config", "--config", r.ConfigPath, "--pending")
	if stopped.code != 0 {
		t.Fatalf("exit %d %s", stopped.code, stopped.stderr)
	}
	contains(t, stopped.stdout, "sync demo: 35 pending, all looked at\n", `sent                                              35   such as "Order Completed"`)
	edit(t, r, `event = ["*"]`, "event = [\"*\"]\nwhere = [{ path = \"event.seq\", op = \">\", value = 5 }]")
	contains(t, run(t, "check-config", "--config", r.ConfigPath, "--pending").stdout, "not_selected                                      10   such as", "sent                                              25   such as")
	edit(t, r, "\nwhere = [{ path = \"event.seq\", op = \">\", value = 5 }]", "")

	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	up(t, r)
	edit(t, r, `event = ["*"]`, "event = [\"*\"]\nwhere = [{ path = \"event.seq\", op = \">\", value = 5 }]")
	running := run(t, "check-config", "--config", r.ConfigPath, "--pending")
	if running.code != 0 {
		t.Fatalf("exit %d %s", running.code, running.stderr)
	}
	contains(t, running.stdout, "sync demo: 35 pending, all looked at\n", "sent -> sent                                      25   such as", "sent -> not_selected                              10   such as")

	copied := filepath.Join(r.Dir, "copy.toml")
	write(t, copied, configOf(t, r))
	for _, verb := range [][]string{{"check-config", "--pending"}, {"reload"}} {
		elsewhere := run(t, append(verb, "--config", copied)...)
		if elsewhere.code != exitUsage {
			t.Errorf("%v: exit %d, want %d", verb, elsewhere.code, exitUsage)
		}
		contains(t, elsewhere.stderr, "was started with "+r.ConfigPath+", and --config says "+copied)
	}
	if y := only(t, stats(t, r)); y.Books.Pending != 35 {
		t.Errorf("%+v", y.Books)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 20, "bob-2": 15})
	down(t, r)
	if got := run(t, "reload", "--config", r.ConfigPath); got.code != exitUnavailable || !strings.Contains(got.stderr, "ampcio does not run, so there is nothing to reload") {
		t.Errorf("a reload of what is stopped: %+v", got)
	}
}

// A reload that cannot be done in one part is not done in any.
func TestReloadThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	other := rehearse(t, rehearsal.Settings{})
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	up(t, r)
	good := configOf(t, r)
	inTheWay := filepath.Join(r.Dir, "storage", "sync", "zebra.db")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, r.ConfigPath, strings.Replace(good, `event  = ["Heartbeat"]`, `event = ["Heartbeat", "Order *"]`, 1)+secondSync("second", other)+secondSync("zebra", other))
	got := run(t, "reload", "--config", r.ConfigPath)
	if got.code != exitIO {
		t.Errorf("exit %d, want %d", got.code, exitIO)
	}
	contains(t, got.stderr, "zebra")
	accepted(t, r, numbered("ann-1", 1, 10))
	snap := drained(t, r)
	balanced(t, snap)
	if only(t, snap).Totals.Delivered != 10 {
		t.Errorf("the new rules are in force: %+v", only(t, snap).Totals)
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "storage", "sync", "second.db")); err == nil {
		t.Error("the ledger of a sync that is not in force has stayed")
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if got := changes(reloaded(t, r)); got != "demo changed, second added, zebra added" {
		t.Errorf("it has changed %q", got)
	}
	down(t, r)
}
