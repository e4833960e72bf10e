package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// copyFolder copies the regular files of a folder as they are at this moment, as cp -r
// or a snapshot of the disk does. Holes become zeros.
func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case !e.Type().IsRegular():
			return nil
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The machine is lost, and the queue comes back from a copy, in each way that the README
// names. Whatever was acknowledged before the copy was made is in Customer.io once, in
// order, and so is what comes afterwards, although its sequences are used again.
func TestRestoredFromACopy(t *testing.T) {
	t.Parallel()
	for _, tt := range fewUnderRace([]struct {
		name string
		// copy makes the copy while senders are at work; what it returns makes a storage
		// folder of it, when the first one is lost.
		copy func(t *testing.T, r *rehearsal.Rehearsal) (restore func(to string))
	}{
		{"a backup of the running daemon", func(t *testing.T, r *rehearsal.Rehearsal) func(string) {
			file := filepath.Join(r.Dir, "backup.tar")
			if got := run(t, "backup", "--config", r.ConfigPath, file); got.code != 0 || !strings.Contains(got.stdout, "demo: ") {
				t.Fatalf("%+v", got)
			}
			return func(string) {
				got := run(t, "restore", "--config", r.ConfigPath, file)
				if got.code != 0 {
					t.Fatalf("%+v", got)
				}
				contains(t, got.stdout, "is as it was on", "demo: ", "under the same ids")
			}
		}},
		{"a backup of the running daemon, as a stream", func(t *testing.T, r *rehearsal.Rehearsal) func(string) {
			got := run(t, "backup", "--config", r.ConfigPath, "-")
			if got.code != 0 || len(got.stdout) == 0 {
				t.Fatalf("%d %s", got.code, got.stderr)
			}
			return func(string) {
				c := ampcio("restore", "--config", r.ConfigPath, "-")
				c.Stdin = strings.NewReader(got.stdout)
				if out, err := c.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		}},
		{"a backup of the files of a stopped daemon", func(t *testing.T, r *rehearsal.Rehearsal) func(string) {
			down(t, r)
			file := filepath.Join(r.Dir, "backup.tar")
			if got := run(t, "backup", "--config", r.ConfigPath, file); got.code != 0 {
				t.Fatalf("%+v", got)
			}
			up(t, r)
			return func(string) {
				if got := run(t, "restore", "--config", r.ConfigPath, file); got.code != 0 {
					t.Fatalf("%+v", got)
				}
			}
		}},
		{"a plain copy of the folder of a stopped daemon", func(t *testing.T, r *rehearsal.Rehearsal) func(string) {
			down(t, r)
			copied := filepath.Join(r.Dir, "copy")
			copyFolder(t, filepath.Join(r.Dir, "storage"), copied)
			up(t, r)
			return func(to string) { moveFolder(t, copied, to) }
		}},
		{"a snapshot of the machine", func(t *testing.T, r *rehearsal.Rehearsal) func(string) {
			signalled(t, r, syscall.SIGSTOP)
			copied := filepath.Join(r.Dir, "copy")
			copyFolder(t, filepath.Join(r.Dir, "storage"), copied)
			signalled(t, r, syscall.SIGCONT)
			return func(to string) { moveFolder(t, copied, to) }
		}},
	}, 3) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const users, events = 60, 4000
			seed := seed(t)
			r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed}, Storage: "rotate_bytes = \"1MiB\"\n",
				Sync: "batch_operations = 25\nrequests_per_second = 40\n"})
			up(t, r)
			tr := rehearsal.NewTraffic(r, users, events, seed)
			ctx := within(t, 90*time.Second)
			sent := make(chan error, 1)
			go func() { sent <- tr.Run(ctx, 2*time.Second) }()
			eventually(t, 30*time.Second, "half of it is acknowledged", func() bool { return tr.Sent.Load() > events/2 })
			before := make([]int64, users)
			for u := range before {
				before[u] = tr.Acked[u].Load()
			}
			restore := tt.copy(t, r)
			if err := <-sent; err != nil {
				t.Fatalf("the senders ended with %v", err)
			}
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			// Another machine: nothing of the first one's storage is there.
			to := filepath.Join(r.Dir, "restored")
			edit(t, r, fmt.Sprintf("%q", filepath.Join(r.Dir, "storage")), fmt.Sprintf("%q", to))
			if err := os.RemoveAll(filepath.Join(r.Dir, "storage")); err != nil {
				t.Fatal(err)
			}
			restore(to)
			audited(t, r)
			edit(t, r, "requests_per_second = 40\n", "requests_per_second = 1000\n")
			up(t, r)
			for u := range users {
				accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"After Restore","user_id":%q,"device_id":"device-%05d","insert_id":"after-%d"}]}`,
					recordings.Key, rehearsal.UserName(u), u, u))
			}
			snap := drained(t, r)
			balanced(t, snap)
			audited(t, r)
			down(t, r)
			audited(t, r)

			report := r.Sandbox.Report()
			if o := report.Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Missing != 0 || o.Overlaps != 0 {
				t.Errorf("order: %+v", o)
			}
			if report.Events.Differing != 0 {
				t.Errorf("a new event was given the id of an old one: %s", report.Events.FirstDiffering)
			}
			after := map[string]int{}
			for _, e := range r.Sandbox.Events(0, int(report.Events.Kept)) {
				if e.Name == "After Restore" {
					after[e.PersonID]++
				}
			}
			delivered := int64(0)
			for u := range users {
				p, _ := r.Sandbox.Person("id", rehearsal.UserName(u))
				if p.EventCount < before[u]+1 {
					t.Errorf("Customer.io has %d events of %s; %d were acknowledged before the copy, and one after it", p.EventCount-1, rehearsal.UserName(u), before[u])
				}
				if after[rehearsal.UserName(u)] != 1 {
					t.Errorf("the event after the restore came %d times for %s", after[rehearsal.UserName(u)], rehearsal.UserName(u))
				}
				delivered += p.EventCount
			}
			t.Logf("%d events delivered, %d repeats ignored", delivered, report.Events.Duplicates)
		})
	}
}

// audited runs an audit, which must find nothing.
func audited(t testing.TB, r *rehearsal.Rehearsal) {
	t.Helper()
	if got := run(t, "audit", "--config", r.ConfigPath); got.code != 0 || !strings.HasPrefix(got.stdout, "demo: balanced\n") || strings.Contains(got.stdout, "note") {
		t.Errorf("audit: %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}

func moveFolder(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func signalled(t testing.TB, r *rehearsal.Rehearsal, s os.Signal) {
	t.Helper()
	if err := r.Daemon.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// What can be wrong with a backup or a restore: each time an exit code, a text that says
// what to do, and nothing that has changed.
func TestMistakesWithBackups(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	file := filepath.Join(r.Dir, "backup.tar")
	try := func(code int, says string, args ...string) {
		t.Helper()
		got := run(t, append(args, "--config", r.ConfigPath)...)
		if got.code != code || !strings.Contains(got.stderr, says) {
			t.Errorf("%s: %d\n%s%s\nwant %d and %q", strings.Join(args, " "), got.code, got.stdout, got.stderr, code, says)
		}
	}
	try(exitUnavailable, "has never run with storage.dir", "backup", file)
	try(exitUnavailable, "has never run with storage.dir", "audit")
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 20))
	drained(t, r)
	try(exitUsage, "backup takes one argument", "backup")
	try(exitCantCreate, "no such file or directory", "backup", filepath.Join(r.Dir, "no", "such", "folder.tar"))
	try(0, "", "backup", file)
	try(exitCantCreate, "is there already: give another name, or --force", "backup", file)
	try(0, "", "backup", file, "--force")
	try(exitUsage, `no sync "demos"`, "audit", "--sync", "demos")
	try(exitCantCreate, "is not empty, and nothing in it was changed: stop ampcio, move the folder away", "restore", file)
	down(t, r)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	edit(t, r, fmt.Sprintf("%q", filepath.Join(r.Dir, "storage")), fmt.Sprintf("%q", filepath.Join(r.Dir, "other")))
	spoilt := filepath.Join(r.Dir, "spoilt.tar")
	write(t, spoilt, string(whole[:len(whole)/2]))
	try(exitData, "cut off", "restore", spoilt)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	write(t, spoilt, string(flipped))
	try(exitData, "nothing was written", "restore", spoilt)
	write(t, spoilt, "no backup at all"+strings.Repeat(" ", 1000))
	try(exitData, "this is no backup of ampcio", "restore", spoilt)
	try(exitUsage, "no such file", "restore", filepath.Join(r.Dir, "nowhere.tar"))
	try(exitUsage, "restore takes one argument", "restore", file, file)
	for _, name := range []string{"other", "other.restoring"} {
		if _, err := os.Lstat(filepath.Join(r.Dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was written", name)
		}
	}
	try(0, "", "restore", file)
	audited(t, r)
}

// An audit of books that do not balance: exit code 2, and the difference in words, for
// people and for machines.
func TestAuditThatFindsADifference(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	if err := r.StopSandbox(); err != nil { // all stays pending
		t.Fatal(err)
	}
	up(t, r)
	for i := range 5 {
		accepted(t, r, numbered("ann-1", 10*i+1, 10*i+10))
	}
	audited(t, r)
	down(t, r)
	audited(t, r)
	paths, err := filepath.Glob(filepath.Join(r.Dir, "storage", "log", "*.db"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	db, err := bolt.Open(paths[0], 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		commits := tx.Bucket([]byte("log"))
		commits.Cursor().First()
		second, _ := commits.Cursor().Seek([]byte{0, 0, 0, 0, 0, 0, 0, 2})
		return commits.DeleteBucket(bytes.Clone(second))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	got := run(t, "audit", "--config", r.ConfigPath)
	if got.code != exitUnbalanced {
		t.Errorf("exit code %d", got.code)
	}
	contains(t, got.stdout, "demo: DOES NOT BALANCE\n", "difference: 10 records between 10 and 21 are neither ended nor in the log\n", "40 pending in the log")
	contains(t, got.stderr, "the books of demo do not balance")

	got = run(t, "audit", "--config", r.ConfigPath, "--json", "--sync", "demo")
	var answer struct {
		Source string
		Syncs  []struct {
			Name        string
			Balanced    bool
			Missing     uint64
			Differences []string
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.code != exitUnbalanced {
		t.Fatal(got.code, err, got.stdout)
	}
	if answer.Source != "files" || len(answer.Syncs) != 1 || answer.Syncs[0].Balanced || answer.Syncs[0].Missing != 10 || len(answer.Syncs[0].Differences) != 1 {
		t.Errorf("%+v", answer)
	}
	// A ledger of which nothing can be read is no difference, but an error.
	ledger := filepath.Join(r.Dir, "storage", "sync", "demo.db")
	moveFolder(t, ledger, ledger+".kept")
	write(t, ledger, strings.Repeat("no ledger ", 2000))
	got = run(t, "audit", "--config", r.ConfigPath)
	if got.code != exitIO || !strings.Contains(got.stderr, "the next start of ampcio sets the ledger aside") {
		t.Errorf("%+v", got)
	}
	moveFolder(t, ledger+".kept", ledger)
	// The daemon counts them as lost, and then the books balance again.
	up(t, r)
	eventually(t, 20*time.Second, "the gap was passed", func() bool { return only(t, stats(t, r)).Totals.Lost == 10 })
	audited(t, r)
}
