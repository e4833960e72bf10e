package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// twoSyncs is an installation with the syncs demo and second, each with a sandbox of its own.
func twoSyncs(t *testing.T) (r, other *rehearsal.Rehearsal) {
	t.Helper()
	other = rehearse(t, rehearsal.Settings{})
	r = rehearse(t, rehearsal.Settings{Sync: bounded})
	edit(t, r, bounded, bounded+secondSync("second", other)+"retry_max = \"1s\"\n")
	return r, other
}

// The life of a sync, by a reload and by a restart: disabled and enabled again, removed
// and put back, and under another name. What it has taken is never lost, what came while
// it did not take is not taken later, and the sync beside it notices nothing.
func TestLifecycleOfASync(t *testing.T) {
	t.Parallel()
	for _, how := range []struct {
		name  string
		apply func(t *testing.T, r *rehearsal.Rehearsal)
	}{
		{"by a reload", func(t *testing.T, r *rehearsal.Rehearsal) { reloaded(t, r) }},
		{"by a restart", func(t *testing.T, r *rehearsal.Rehearsal) { down(t, r); up(t, r) }},
		{"by a reload, and a crash", func(t *testing.T, r *rehearsal.Rehearsal) {
			reloaded(t, r)
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			up(t, r)
		}},
	} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			r, other := twoSyncs(t)
			table := secondSync("second", other) + "retry_max = \"1s\"\n"
			sent := 0
			ten := func() {
				t.Helper()
				accepted(t, r, numbered("ann-1", sent+1, sent+10))
				sent += 10
				eventually(t, 20*time.Second, "demo has delivered all", func() bool {
					y := syncNamed(t, stats(t, r), "demo")
					return y.Totals.Delivered == uint64(sent) && y.Books.Pending == 0
				})
			}
			// is waits until a sync is as it should be.
			is := func(name, status string, taken, pending uint64) {
				t.Helper()
				var y admin.Sync
				eventually(t, 20*time.Second, fmt.Sprintf("%s is %s, has taken %d, and %d are pending", name, status, taken, pending), func() bool {
					for _, y = range stats(t, r).Syncs {
						if y.Name == name {
							break
						}
					}
					return y.Status == status && y.Books.Taken == taken && y.Books.Pending == pending
				})
				if !y.Books.Balanced {
					t.Errorf("%s: %+v", name, y.Books)
				}
			}
			outage := func(on bool) {
				f := sandbox.Faults{}
				if on {
					f.Status = map[int]float64{503: 1}
				}
				other.Sandbox.SetFaults(f)
			}

			up(t, r)
			ten()
			is("second", admin.StatusOK, 10, 0)
			outage(true)
			ten()
			edit(t, r, "[sync.second]\n", "[sync.second]\nenabled = false\n")
			how.apply(t, r)
			ten()
			is("second", admin.StatusDisabled, 20, 10)
			outage(false)
			edit(t, r, "[sync.second]\nenabled = false\n", "[sync.second]\n")
			how.apply(t, r)
			ten()
			is("second", admin.StatusOK, 30, 0)
			outage(true)
			ten()
			edit(t, r, table, "")
			how.apply(t, r)
			ten()
			is("second", admin.StatusOrphaned, 40, 10)
			outage(false)
			write(t, r.ConfigPath, configOf(t, r)+table)
			how.apply(t, r)
			ten()
			is("second", admin.StatusOK, 50, 0)
			write(t, r.ConfigPath, strings.ReplaceAll(configOf(t, r), "sync.second", "sync.third"))
			how.apply(t, r)
			ten()
			is("second", admin.StatusOrphaned, 50, 0)
			is("third", admin.StatusOK, 10, 0)
			down(t, r)
			complete(t, r, map[string]int{"ann-1": sent})
			if report := other.Sandbox.Report(); report.Order.OutOfOrder != 0 || report.Order.Repeated != 0 || report.Events.Accepted != 60 {
				t.Errorf("the second sync's Customer.io has %d events, order %+v", report.Events.Accepted, report.Order)
			}
		})
	}
}

// Another name in the configuration while events come without a pause: the old name has
// taken all up to one moment, the new one all behind it, so the two can become one.
func TestLifecycleRenamedUnderLoad(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	up(t, r)
	load := sending(t, r, 4)
	load.more(t)
	names := []string{"demo"}
	for i := range 5 {
		last, next := names[i], fmt.Sprintf("name-%d", i)
		write(t, r.ConfigPath, strings.ReplaceAll(configOf(t, r), "sync."+last, "sync."+next))
		if got := changes(reloaded(t, r)); got != last+" removed, "+next+" added" {
			t.Errorf("it has changed %q", got)
		}
		names = append(names, next)
		load.more(t)
	}
	sent, sum := load.end(), 0
	for _, n := range sent {
		sum += n
	}
	taken := uint64(0)
	for i, name := range names {
		y := syncNamed(t, stats(t, r), name)
		if taken += y.Books.Taken; y.Books.Taken == 0 || y.Books.Taken != y.Books.Pending || (y.Status == admin.StatusOrphaned) != (i < 5) {
			t.Errorf("%s is %s, %+v", name, y.Status, y.Books)
		}
	}
	if taken != uint64(sum) {
		t.Errorf("%d were acknowledged, the names have taken %d together", sum, taken)
	}
	// All of them become the one that the configuration has, newest first, some while the
	// daemon runs and some while it does not.
	for i := len(names) - 2; i >= 0; i-- {
		if i == 1 {
			down(t, r)
		}
		if got := run(t, "sync", "rename", names[i], names[5], "--config", r.ConfigPath); got.code != 0 {
			t.Fatalf("rename %s: exit %d %s", names[i], got.code, got.stderr)
		}
		if i == 1 {
			up(t, r)
		}
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	snap := drained(t, r)
	balanced(t, snap)
	if y := only(t, snap); y.Name != names[5] || y.Books.Taken != uint64(sum) || y.Totals.Delivered != uint64(sum) {
		t.Errorf("%d were acknowledged; %s: %+v", sum, y.Name, y.Books)
	}
	complete(t, r, sent)
	down(t, r)
}

// Another project's key, from one request to the next.
func TestLifecycleOfAProject(t *testing.T) {
	t.Parallel()
	r, other := twoSyncs(t)
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	shop := strings.Replace(numbered("ann-1", 1, 5), `"api_key":"`, `"api_key":"shop-`, 1)
	if a := send(t, r, shop); a.status != 400 {
		t.Errorf("an unknown key is answered %d", a.status)
	}
	third := rehearse(t, rehearsal.Settings{})
	before := configOf(t, r)
	edit(t, r, "[sync.demo]\n", "[project.shop]\nrelay = \"off\"\namplitude_api_keys = [\"shop-"+recordings.Key+"\"]\n[sync.demo]\nproject = \"app\"\n")
	edit(t, r, "[sync.second]\n", "[sync.second]\nproject = \"app\"\n")
	write(t, r.ConfigPath, configOf(t, r)+strings.Replace(secondSync("third", third), "[sync.third]\n", "[sync.third]\nproject = \"shop\"\n", 1))
	report := reloaded(t, r)
	if changes(report) != "third added" || strings.Join(report.Changed, " ") != "project.shop" {
		t.Errorf("%+v", report)
	}
	accepted(t, r, shop)
	accepted(t, r, numbered("ann-1", 6, 10))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 10})
	complete(t, other, map[string]int{"ann-1": 10})
	complete(t, third, map[string]int{"ann-1": 5})
	// Gone again: its key is unknown, its sync holds what it has.
	write(t, r.ConfigPath, before)
	if report := reloaded(t, r); changes(report) != "third removed" || strings.Join(report.Changed, " ") != "project.shop" {
		t.Errorf("%+v", report)
	}
	if a := send(t, r, shop); a.status != 400 {
		t.Errorf("the key of a project that is gone is answered %d", a.status)
	}
	down(t, r)
}

// Two syncs that turn out to deliver to one workspace: it is said, in the log and to who asks.
func TestLifecycleOfASharedWorkspace(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	edit(t, r, bounded, bounded+secondSync("second", r))
	check := run(t, "check-config", "--config", r.ConfigPath)
	contains(t, check.stdout, "warning: ", "sync demo sends to the same workspace")
	up(t, r)
	const sentence = "syncs demo and second deliver to the same Customer.io workspace"
	said(t, r, 1, sentence)
	eventually(t, 10*time.Second, "the snapshot tells it", func() bool { return strings.Contains(strings.Join(stats(t, r).Notes, "\n"), sentence) })
	accepted(t, r, numbered("ann-1", 1, 10))
	snap := drained(t, r)
	balanced(t, snap)
	if y := syncNamed(t, snap, "second"); y.Totals.Delivered != 10 {
		t.Errorf("%+v", y.Totals)
	}
	if report := r.Sandbox.Report(); report.Events.Accepted != 10 {
		t.Errorf("Customer.io has %d events", report.Events.Accepted)
	}
	edit(t, r, "[sync.second]\n", "[sync.second]\nenabled = false\n")
	reloaded(t, r)
	eventually(t, 10*time.Second, "nothing is shared any more", func() bool { return !strings.Contains(strings.Join(stats(t, r).Notes, "\n"), sentence) })
	if n := countInLog(t, r, sentence); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	down(t, r)
}

// systemd hears of a reload, also of one that fails: RELOADING with the time, then READY.
func TestReloadTellsSystemd(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	path := filepath.Join(r.Dir, "notify")
	heard, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	plain := r.Command
	r.Command = func(args ...string) *exec.Cmd {
		c := plain(args...)
		c.Env = append(c.Env, "NOTIFY_SOCKET="+path)
		return c
	}
	up(t, r)
	hear := func(first string) string {
		t.Helper()
		message := make([]byte, 4096)
		for {
			if err := heard.SetReadDeadline(deadline(within(t, 10*time.Second))); err != nil {
				t.Fatal(err)
			}
			n, err := heard.Read(message)
			if err != nil {
				t.Fatalf("waiting for %s: %v", first, err)
			}
			if m := string(message[:n]); strings.HasPrefix(m, first) {
				return m
			} else if !strings.HasPrefix(m, "STATUS=") {
				t.Fatalf("waiting for %s it says %q", first, m)
			}
		}
	}
	if said := hear("READY=1"); strings.Contains(said, "stopped") {
		t.Errorf("that it is stopped, of a daemon that starts: %q", said)
	}
	good := configOf(t, r)
	for _, text := range []string{good, "nonsense", good} {
		write(t, r.ConfigPath, text)
		hangup(t, r)
		contains(t, hear("RELOADING=1"), "\nMONOTONIC_USEC=")
		contains(t, hear("READY=1"), "\nSTATUS=demo: ")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.Stop() }()
	hear("STOPPING=1")
	if err := <-stopped; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

func deadline(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at
}

var givenUpLine = regexp.MustCompile(`msg="the oldest events were given up, since more waits than max_pending_bytes" sync=demo do=".* count=[1-9]`)

// What waits for a sync is bounded. Where Customer.io does not answer, new events are
// refused at the bound, which loses nothing; where a person has to do something first,
// or has said so, they are not.
func TestLifecycleOfASyncThatIsFull(t *testing.T) {
	t.Parallel()
	const mib = "max_pending_bytes = \"1MiB\"\n"
	unreachable := func(t *testing.T, r *rehearsal.Rehearsal) {
		r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	}
	tests := []struct {
		name    string
		sync    string
		trouble func(t *testing.T, r *rehearsal.Rehearsal) // before the start
		then    func(t *testing.T, r *rehearsal.Rehearsal) // once the sync is as status says
		status  string
		refuses bool
		mend    func(t *testing.T, r *rehearsal.Rehearsal)
	}{
		{name: "unreachable", sync: mib, trouble: unreachable, status: admin.StatusUnreachable, refuses: true,
			mend: func(t *testing.T, r *rehearsal.Rehearsal) { r.Sandbox.SetFaults(sandbox.Faults{}) }},
		{name: "unreachable, and the oldest are given up", sync: mib + "when_full = \"discard_oldest\"\n", trouble: unreachable, status: admin.StatusUnreachable,
			mend: func(t *testing.T, r *rehearsal.Rehearsal) { r.Sandbox.SetFaults(sandbox.Faults{}) }},
		{name: "blocked", sync: mib, status: admin.StatusBlocked,
			trouble: func(t *testing.T, r *rehearsal.Rehearsal) {
				write(t, filepath.Join(r.Dir, "customerio_api_key"), "revoked\n")
			},
			mend: func(t *testing.T, r *rehearsal.Rehearsal) {
				write(t, filepath.Join(r.Dir, "customerio_api_key"), rehearsal.APIKey+"\n")
				reloaded(t, r)
			}},
		{name: "unreachable, with a bound that is raised by a reload", sync: mib, trouble: unreachable, status: admin.StatusUnreachable,
			then: func(t *testing.T, r *rehearsal.Rehearsal) {
				edit(t, r, mib, "max_pending_bytes = \"1GiB\"\n")
				if report := reloaded(t, r); changes(report) != "demo changed" || strings.Join(report.Syncs[0].Keys, " ") != "delivery.max_pending_bytes" {
					t.Errorf("%+v", report)
				}
			},
			mend: func(t *testing.T, r *rehearsal.Rehearsal) { r.Sandbox.SetFaults(sandbox.Faults{}) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{Sync: "requests_per_second = 1000\n" + test.sync})
			test.trouble(t, r)
			up(t, r)
			accepted(t, r, numbered("ann-1", 1, 1))
			eventually(t, 20*time.Second, "the sync is "+test.status, func() bool { return only(t, stats(t, r)).Status == test.status })
			if test.then != nil {
				test.then(t, r)
			}
			last, refused := 1, 0
			for i := range 40 { // 4 MB
				a := send(t, r, padded("ann-1", last+1, last+50, noise(i)))
				if a.status == 200 {
					last += 50
					continue
				}
				contains(t, a.body, "storage is full")
				if refused++; a.status != 503 || a.header.Get("Retry-After") == "" {
					t.Fatalf("answered %d %s", a.status, a.body)
				}
			}
			if (refused > 0) != test.refuses {
				t.Errorf("%d of 40 requests were refused", refused)
			}
			discards := strings.Contains(test.sync, "discard_oldest")
			if discards {
				eventually(t, 20*time.Second, "the oldest are given up", func() bool { return only(t, stats(t, r)).Totals.Discarded > 0 })
				eventually(t, 20*time.Second, "the journal says so", func() bool {
					return givenUpLine.MatchString(logOf(t, r))
				})
				if said := did(t, r, "sync", "status"); strings.Contains(said, "nothing is lost") {
					t.Errorf("nothing is lost?\n%s", said)
				}
			}
			test.mend(t, r)
			y := only(t, drained(t, r))
			if !y.Books.Balanced || y.Books.Taken != uint64(last) || y.Totals.Dead != 0 || y.Totals.Lost != 0 {
				t.Errorf("%+v, %+v", y.Books, y.Totals)
			}
			if discards != (y.Totals.Discarded > 0) {
				t.Errorf("%d were discarded", y.Totals.Discarded)
			}
			if !discards {
				complete(t, r, map[string]int{"ann-1": last})
			}
			eventually(t, 20*time.Second, "all is well again", func() bool { return send(t, r, numbered("bob-2", 1, 3)).status == 200 })
			drained(t, r)
			down(t, r)
		})
	}
}
