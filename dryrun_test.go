package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

const (
	demoKeys   = "site_id      = \"" + rehearsal.SiteID + "\"\napi_key_file = \"customerio_api_key\"\n"
	dryRunLive = "[sync.demo]\n"
	dryRunOn   = "[sync.demo]\ndry_run = true\n"
)

// dryRunSeen is what the files of a dry run have: each operation once, by record and
// action, as a crash may have some of them written twice.
type dryRunSeen struct {
	lines  []dryRunLine
	events map[string]int // ULIDs by how often they are there
	users  map[uint64]int // identifies by the sequence of the record
	seqs   []uint64       // of events, in the order of the file
}

func readDryRun(t testing.TB, r *rehearsal.Rehearsal) dryRunSeen {
	t.Helper()
	seen := dryRunSeen{events: map[string]int{}, users: map[uint64]int{}}
	f, err := os.Open(filepath.Join(r.Dir, "storage", "dry-run", "demo.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct {
			dryRunLine
			Body json.RawMessage `json:"body"`
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("%v in %s", err, s.Bytes())
		}
		var body struct{ Batch []json.RawMessage }
		if err := json.Unmarshal(line.Body, &body); err != nil || len(body.Batch) != line.Count || len(line.Operations) != line.Count || len(line.Body) != line.Bytes {
			t.Fatalf("%v, %d operations of %d bytes in %s", err, len(body.Batch), len(line.Body), s.Bytes())
		}
		for i, o := range line.Operations {
			if len(body.Batch[i]) != o.Bytes || !strings.Contains(string(body.Batch[i]), `"action":"`+o.Action+`"`) || o.Sequence == 0 || len(o.User) != 10 || o.Received.IsZero() {
				t.Errorf("%+v stands for %s", o, body.Batch[i])
			}
			if o.Action == "identify" {
				seen.users[o.Sequence]++
				continue
			}
			seen.events[o.ID]++
			seen.seqs = append(seen.seqs, o.Sequence)
		}
		seen.lines = append(seen.lines, line.dryRunLine)
	}
	return seen
}

// A team tries ampcio beside what it has, without any key of Customer.io; looks at what
// would be sent; and then lets it send, from where the trial has begun.
func TestDryRunBeforeTheMove(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, demoKeys, "dry_run = true\n")
	contains(t, did(t, r, "check-config", "--online"), "dry_run: nothing is sent to Customer.io", "no key yet, since it is a dry run", "Customer.io was not asked")
	refuses(t, r, exitUnavailable, []string{"has never run"}, "dry-run", "report")
	up(t, r)
	refuses(t, r, exitUsage, []string{`no sync "dmo": did you mean "demo"?`}, "dry-run", "report", "--sync", "dmo")
	users := []string{"annabel", "bertram", "carlotta"}
	for _, user := range users {
		accepted(t, r, numbered(user, 1, 5))
	}
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":%q,"user_id":"annabel","device_id":"device of annabel"}]}`, recordings.Key, rehearsal.Drop))
	shows := func(events uint64) *admin.DryRun {
		t.Helper()
		var y admin.Sync
		eventually(t, 10*time.Second, fmt.Sprintf("%d events are shown", events), func() bool {
			y = only(t, stats(t, r))
			return y.DryRun != nil && y.DryRun.Events >= events && y.DryRun.Pending == 0
		})
		if y.Status != admin.StatusDryRun || y.Books.Taken != 0 || !y.Books.Balanced || y.Totals.EventsDelivered != 0 {
			t.Errorf("%+v", y)
		}
		return y.DryRun
	}
	d := shows(15)
	if d.Events != 15 || d.UserUpdates != 3 || d.Requests == 0 || d.LeftOut != 0 || d.Passed != 0 ||
		!slices.ContainsFunc(d.Filtered, func(f admin.Reason) bool { return f.Kind == "event" && f.Reason == "dropped_by_rule" && f.Count == 1 }) {
		t.Errorf("%+v", d)
	}
	contains(t, did(t, r, "queue-stats"), "demo (project app): dry_run", "15 events, 3 user updates", "             event dropped_by_rule: 1", "dry-run/demo.jsonl")
	hour := time.Now().UTC().Format("2006-01-02 15")
	if text := did(t, r, "dry-run", "report"); strings.Contains(text, hour) { // else the hour has just changed
		contains(t, text, "demo: in a dry run since ", "15 events and 3 user updates", hour+":00           15  Order Completed", hour+":00            3  user updates")
	}
	contains(t, did(t, r, "dry-run", "report", "--by", "hour", "--json", "--since", "1h"), `"action":"event","count":15}`)
	contains(t, did(t, r, "trace", "--seq", "1"), "not taken, since the sync was off, in a dry run, or not there yet; by the rules as they are now: event sent")

	// A crash and a restart: it goes on where it was.
	eventually(t, 10*time.Second, "the counts are written down", func() bool {
		c, err := readDryRunCounts(filepath.Join(r.Dir, "storage"), "demo")
		return err == nil && c != nil && c.Events == 15
	})
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	for _, user := range users {
		accepted(t, r, numbered(user, 6, 8))
	}
	var seen dryRunSeen
	eventually(t, 10*time.Second, "all is written", func() bool {
		seen = readDryRun(t, r)
		return len(seen.events) == 24
	})
	if len(seen.users) != 3 {
		t.Errorf("user updates of records %v", seen.users)
	}
	for _, name := range []string{"demo.jsonl", "demo.counts.json", "demo.dry.run.db"} {
		if st, err := os.Stat(filepath.Join(r.Dir, "storage", "dry-run", name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if n := r.Sandbox.Report().Requests; n != 0 {
		t.Errorf("Customer.io was sent %d requests", n)
	}
	shows(24)
	down(t, r)
	if y := only(t, statsOfFiles(t, r)); y.Status != admin.StatusStopped || y.DryRun == nil || y.DryRun.Events < 24 {
		t.Errorf("stopped: %+v", y)
	}
	contains(t, did(t, r, "dry-run", "report", "--by", "event"), "demo: in a dry run since ", "Order Completed")

	// It is let go, from the beginning of the trial.
	did(t, r, "sync", "pause", "demo")
	refuses(t, r, exitData, []string{"in a dry run"}, "sync", "rewind", "demo", "--since", "1h", "--untaken", "--yes")
	edit(t, r, "dry_run = true\n", demoKeys)
	up(t, r)
	for _, user := range users {
		accepted(t, r, numbered(user, 9, 10))
	}
	contains(t, did(t, r, "sync", "rewind", "demo", "--since", "1h", "--untaken", "--dry-run"), "demo would take again 0 records", "and take for the first time: 25 records", "event sent: 30")
	contains(t, did(t, r, "sync", "rewind", "demo", "--since", "1h", "--untaken", "--yes"), "and 25 for the first time")
	did(t, r, "sync", "resume", "demo")
	snap := drained(t, r)
	balanced(t, snap)
	complete(t, r, map[string]int{"annabel": 10, "bertram": 10, "carlotta": 10})
	if only(t, snap).DryRun != nil {
		t.Errorf("still in a dry run: %+v", only(t, snap).DryRun)
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "storage", "dry-run", "demo.dry.run.db")); !os.IsNotExist(err) {
		t.Errorf("the trial's ledger: %v", err)
	}
	contains(t, did(t, r, "dry-run", "report"), "demo: its dry run has ended")
	did(t, r, "audit")
	down(t, r)
}

// A sync goes into dry runs and out of them while events come. Nothing is sent in one of
// them, nothing twice, and each user's in order; what was passed over can be had later.
func TestDryRunReloadedUnderLoad(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	s := sending(t, r, 3)
	s.more(t)
	for range 2 {
		edit(t, r, dryRunLive, dryRunOn)
		if got := changes(reloaded(t, r)); got != "demo in a dry run" {
			t.Errorf("reloaded: %s", got)
		}
		before := r.Sandbox.Report().Requests
		s.more(t)
		eventually(t, 10*time.Second, "the dry run counts", func() bool { d := only(t, stats(t, r)).DryRun; return d != nil && d.Events > 30 })
		if n := r.Sandbox.Report().Requests; n != before {
			t.Errorf("%d requests were sent in a dry run", n-before)
		}
		edit(t, r, dryRunOn, dryRunLive)
		if got := changes(reloaded(t, r)); got != "demo out of its dry run" {
			t.Errorf("reloaded: %s", got)
		}
		s.more(t)
		eventually(t, 10*time.Second, "it sends again", func() bool { return r.Sandbox.Report().Requests > before })
	}
	n := s.end()
	balanced(t, drained(t, r))
	if o := r.Sandbox.Report().Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Missing == 0 {
		t.Errorf("order: %+v", o)
	}
	did(t, r, "sync", "rewind", "demo", "--since", "1h", "--untaken", "--yes")
	balanced(t, drained(t, r))
	for user, n := range n {
		if p, _ := r.Sandbox.Person("id", user); p.EventCount != int64(n) {
			t.Errorf("Customer.io has %d events of %s, want %d", p.EventCount, user, n)
		}
	}
	did(t, r, "audit")

	// One that has something pending holds it in a dry run, and goes on with it.
	did(t, r, "sync", "pause", "demo")
	accepted(t, r, numbered("dorothea", 1, 3))
	edit(t, r, dryRunLive, dryRunOn)
	reloaded(t, r)
	did(t, r, "sync", "resume", "demo")
	if y := only(t, stats(t, r)); y.Books.Pending != 3 || y.Depth.Held != 3 || y.DryRun == nil || y.DryRun.Events != 0 {
		t.Errorf("with something pending: %+v", y)
	}
	edit(t, r, dryRunOn, dryRunLive)
	reloaded(t, r)
	balanced(t, drained(t, r))
	if p, _ := r.Sandbox.Person("id", "dorothea"); p.EventCount != 3 {
		t.Errorf("Customer.io has %d events of dorothea", p.EventCount)
	}
	down(t, r)
}

// A dry run that cannot begin, and one whose ledger was damaged, stop nothing.
func TestDryRunThatCannotBegin(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, dryRunLive, dryRunOn)
	storage := filepath.Join(r.Dir, "storage")
	if err := os.Mkdir(storage, 0o700); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(storage, "dry-run")
	write(t, folder, "in the way")
	up(t, r)
	accepted(t, r, numbered("annabel", 1, 2))
	contains(t, did(t, r, "queue-stats"), "the dry run of sync demo could not begin", "demo (project app): dry_run")
	edit(t, r, dryRunOn, dryRunLive)
	reloaded(t, r)
	accepted(t, r, numbered("annabel", 3, 4))
	balanced(t, drained(t, r))
	edit(t, r, dryRunLive, dryRunOn)
	if got := verbOf(t, r, "reload"); got.code != exitCantCreate {
		t.Errorf("%+v", got)
	}
	accepted(t, r, numbered("annabel", 5, 6)) // what was in force stays
	balanced(t, drained(t, r))
	if p, _ := r.Sandbox.Person("id", "annabel"); p.EventCount != 4 {
		t.Errorf("Customer.io has %d events", p.EventCount)
	}
	down(t, r)

	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "demo.dry.db"), strings.Repeat("damaged ", 5000))
	write(t, filepath.Join(folder, "demo.counts.json"), `{"schema":`)
	up(t, r)
	accepted(t, r, numbered("annabel", 7, 8))
	eventually(t, 10*time.Second, "it begins anew", func() bool { d := only(t, stats(t, r)).DryRun; return d != nil && d.Events == 2 })
	down(t, r)
}
