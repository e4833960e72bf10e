package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// verbOf runs a verb on a rehearsal's installation.
func verbOf(t testing.TB, r *rehearsal.Rehearsal, args ...string) ran {
	t.Helper()
	return run(t, append(args, "--config", r.ConfigPath)...)
}

// did insists that a verb ends well, and gives what it said.
func did(t testing.TB, r *rehearsal.Rehearsal, args ...string) string {
	t.Helper()
	got := verbOf(t, r, args...)
	if got.code != 0 {
		t.Fatalf("%s: exit %d: %s%s", strings.Join(args, " "), got.code, got.stdout, got.stderr)
	}
	return got.stdout + got.stderr
}

// refuses insists that a verb ends with a code and says why.
func refuses(t testing.TB, r *rehearsal.Rehearsal, code int, says []string, args ...string) {
	t.Helper()
	got := verbOf(t, r, args...)
	if got.code != code || got.stdout != "" {
		t.Errorf("%s: exit %d, want %d: %q", strings.Join(args, " "), got.code, code, got.stdout)
	}
	contains(t, got.stderr, says...)
}

func statusOf(t testing.TB, r *rehearsal.Rehearsal, name string) admin.Sync {
	t.Helper()
	var answer struct{ Syncs []admin.Sync }
	if err := json.Unmarshal([]byte(did(t, r, "sync", "status", name, "--json")), &answer); err != nil || len(answer.Syncs) != 1 {
		t.Fatalf("%v: %+v", err, answer)
	}
	return answer.Syncs[0]
}

// A pause holds over everything but a resume; both can be said twice, and to a daemon
// that is stopped.
func TestVerbPauseHolds(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	drained(t, r)
	said := did(t, r, "sync", "pause", "demo")
	if want := "demo is paused; new events are accepted and held; 0 pending. Resume: ampcio sync resume demo\n"; said != want {
		t.Errorf("%q, want %q", said, want)
	}
	accepted(t, r, numbered("ann-1", 6, 10))
	contains(t, did(t, r, "sync", "pause", "demo"), "demo is paused already", "5 pending")
	y := statusOf(t, r, "demo")
	if y.Status != admin.StatusPaused || y.PausedSince == nil || y.Depth.Held != 5 || y.Advice != "ampcio sync resume demo" {
		t.Errorf("%+v", y)
	}
	contains(t, did(t, r, "sync", "status"), "demo (project app): paused for ", "  to do      ampcio sync resume demo\n", "  pending    5 records")
	contains(t, run(t, "queue-stats", "--config", r.ConfigPath).stdout, "paused", "  to do      ampcio sync resume demo\n")
	refuses(t, r, exitData, []string{"sync demo is paused. Resume: ampcio sync resume demo"}, "sync", "retry", "demo")

	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	y = statusOf(t, r, "demo")
	if y.Status != admin.StatusStopped || y.PausedSince == nil {
		t.Errorf("killed: %+v", y)
	}
	contains(t, y.Advice, "systemctl start ampcio", "it is paused, too: ampcio sync resume demo")
	up(t, r)
	accepted(t, r, numbered("ann-1", 11, 15))
	if y := statusOf(t, r, "demo"); y.Status != admin.StatusPaused || y.Books.Pending != 10 {
		t.Errorf("after the restart: %+v", y)
	}
	down(t, r)
	contains(t, did(t, r, "sync", "resume", "demo"), "demo is resumed; 10 pending. ampcio is stopped: delivered after the next start (systemctl start ampcio)\n")
	contains(t, did(t, r, "sync", "resume", "demo"), "demo was not paused; 10 pending")
	contains(t, did(t, r, "sync", "pause", "demo"), "demo is paused; ")
	up(t, r)
	if y := statusOf(t, r, "demo"); y.Status != admin.StatusPaused {
		t.Errorf("paused while stopped: %+v", y)
	}
	contains(t, did(t, r, "sync", "resume", "demo"), "demo is resumed; 10 pending\n")
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 15})
	down(t, r)
	contains(t, logOf(t, r), `msg="done on an operator's word" verb=sync-pause sync=demo changed=true pending=0 dead_letters=0`,
		`verb=sync-pause sync=demo changed=false pending=5 dead_letters=0`)
}

// The journal has what was done to which sync, and nothing of who has only looked.
func TestVerbsInTheJournal(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	drained(t, r)
	for _, args := range [][]string{{"queue-stats"}, {"sync", "status"}, {"audit"}, {"dead-letters", "list"}, {"check-config", "--pending"}, {"reload", "--dry-run"},
		{"sync", "rewind", "demo", "--since", "1h", "--dry-run"}} {
		did(t, r, args...)
	}
	if log := logOf(t, r); strings.Contains(log, "an operator") {
		t.Errorf("looking is in the log:\n%s", log)
	}
	did(t, r, "sync", "rewind", "demo", "--since", "1h", "--yes")
	contains(t, logOf(t, r), `msg="done on an operator's word" verb=sync-rewind sync=demo records=5`)
	edit(t, r, `region       = "eu"`, `region       = "nowhere"`)
	if got := verbOf(t, r, "reload"); got.code != exitConfig {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(logOf(t, r), "sync.demo.region"); n != 1 {
		t.Errorf("a refused reload is logged %d times", n)
	}
	drained(t, r)
	down(t, r)
}

// A sync that is disabled, or gone from the configuration, takes no events: nobody who
// pauses it is told that these are held.
func TestVerbPauseOfASyncThatTakesNothing(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	edit(t, r, "[sync.demo]\n", "[sync.demo]\nenabled = false\n")
	did(t, r, "reload")
	said := did(t, r, "sync", "pause", "demo") + did(t, r, "sync", "status")
	contains(t, said, "demo is paused; new events are not taken, since it is disabled or not in the configuration; 0 pending", "(project app): disabled\n", "  paused     for ")
	renameInConfig(t, r, "main")
	did(t, r, "reload")
	said += did(t, r, "sync", "pause", "demo") + did(t, r, "sync", "status", "demo")
	contains(t, said, "demo is paused already; new events are not taken", "(project app): orphaned\n")
	if strings.Contains(said, "accepted and held") {
		t.Error(said)
	}
	down(t, r)
}

func logOf(t testing.TB, r *rehearsal.Rehearsal) string {
	t.Helper()
	b, err := os.ReadFile(r.LogFile.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Names that there are not are answered with those that there are; the same running
// and stopped.
func TestVerbsOfAnUnknownSync(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	tests := [][]string{
		{"sync", "status", "dmo"}, {"sync", "pause", "dmo"}, {"sync", "resume", "dmo"}, {"sync", "retry", "dmo"},
		{"sync", "rewind", "dmo", "--since", "1h"}, {"sync", "rewind", "--since=1h", "dmo", "--yes"}, {"sync", "rename", "dmo", "new"},
		{"sync", "remove", "dmo"}, {"sync", "remove", "--yes", "dmo"}, {"sync", "adopt", "dmo"},
		{"dead-letters", "list", "--sync", "dmo"}, {"dead-letters", "show", "dmo/1"}, {"dead-letters", "export", "--sync", "dmo"},
		{"dead-letters", "replay", "dmo/1"}, {"dead-letters", "drop", "--sync", "dmo", "--yes"},
	}
	for _, args := range tests {
		refuses(t, r, exitUnavailable, []string{"has never run with storage.dir", "start it with ampcio serve"}, args...)
	}
	up(t, r)
	for _, args := range tests {
		refuses(t, r, exitUsage, []string{`ampcio: no sync "dmo": did you mean "demo"? There are: demo`}, args...)
	}
	refuses(t, r, exitUsage, []string{`no sync "production". There are: demo`}, "sync", "pause", "production")
	down(t, r)
	for _, args := range tests {
		refuses(t, r, exitUsage, []string{`ampcio: no sync "dmo": did you mean "demo"? There are: demo`}, args...)
	}
}

func TestVerbsSayWhatTheyWant(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	tests := []struct {
		args []string
		says string
	}{
		{[]string{"sync", "pase", "demo"}, `no command "pase": did you mean "pause"?`},
		{[]string{"sync", "frobnicate"}, `no command "frobnicate" (see ampcio sync --help)`},
		{[]string{"dead-letters", "reply"}, `no command "reply": did you mean "replay"?`},
		{[]string{"sync", "pause"}, "ampcio: sync pause wants NAME (see ampcio sync pause --help)"},
		{[]string{"sync", "pause", "demo", "other"}, "ampcio: sync pause wants NAME (see ampcio sync pause --help)"},
		{[]string{"sync", "rename", "demo"}, "ampcio: sync rename wants OLD NEW"},
		{[]string{"sync", "rewind", "demo"}, "rewind wants --since TIME"},
		{[]string{"sync", "rewind", "demo", "--since"}, "flag needs an argument: -since"},
		{[]string{"sync", "rewind", "demo", "--since", ""}, "rewind wants --since TIME"},
		{[]string{"sync", "rewind", "demo", "--since", "yesterday"}, `--since: "yesterday" is no time: write how long ago`},
		{[]string{"sync", "rewind", "demo", "--since", "2999-01-01"}, "--since: 2999-01-01 is in the future"},
		{[]string{"sync", "pause", "demo", "--yse"}, "ampcio sync pause --help"},
		{[]string{"dead-letters", "show"}, "show wants one id, such as production/1234"},
		{[]string{"dead-letters", "list", "1234"}, `"1234" is no id of a dead letter, such as production/1234`},
		{[]string{"dead-letters", "list", "--older-than", "soon"}, `--older-than: "soon" is no time`},
		{[]string{"dead-letters", "replay"}, "say which dead letters: by ids, by --sync"},
		{[]string{"dead-letters", "drop", "--yes"}, "say which dead letters: by ids, by --sync"},
	}
	for _, test := range tests {
		refuses(t, r, exitUsage, []string{"ampcio: ", test.says}, test.args...)
	}
	for _, args := range [][]string{{"sync"}, {"dead-letters"}, {"sync", "rewind", "--help"}, {"sync", "rewind", "demo", "-h"},
		{"sync", "pause", "production", "--help"}, {"dead-letters", "list", "production/1", "--limit", "3", "-h"}, {"queue-stats", "--help"}} {
		if got := run(t, args...); got.code != 0 || !strings.Contains(got.stdout, "USAGE") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestVerbRetry(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	write(t, filepath.Join(r.Dir, "customerio_api_key"), "not-the-key\n")
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	eventually(t, 10*time.Second, "the sync is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	contains(t, did(t, r, "sync", "retry", "demo"), "demo is tried now; it was blocked (http_401), 5 pending", "ampcio sync status demo")
	down(t, r)
	refuses(t, r, exitUnavailable, []string{"ampcio is stopped: the next start tries at once (systemctl start ampcio)"}, "sync", "retry", "demo")
}

// A wrong rule, mended: what it left out goes out after all, under the same ids, and
// nothing else arrives twice.
func TestVerbRewindAfterAWrongRule(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	accepted(t, r, strings.ReplaceAll(numbered("bob-2", 1, 4), "Order Completed", rehearsal.Drop))
	if y := only(t, drained(t, r)); y.Totals.Filtered != 3 || y.Totals.Delivered != 6 { // one drop carries a user update
		t.Fatalf("%+v", y.Totals)
	}
	edit(t, r, fmt.Sprintf("event  = [%q]\naction = \"drop\"", rehearsal.Drop), "event  = [\"Something else\"]\naction = \"drop\"")
	did(t, r, "reload")

	would := did(t, r, "sync", "rewind", "demo", "--since", "1h", "--dry-run")
	contains(t, would, "demo would take again 9 records, received from ", "by the rules as they are now:\n", `  event sent: 9, e.g. "Order Completed"`, "  user  sent if anything is new: 9")
	if y := statusOf(t, r, "demo"); y.Books.Rewound != 0 || y.Books.Pending != 0 {
		t.Errorf("the dry run did something: %+v", y.Books)
	}
	got := verbOf(t, r, "sync", "rewind", "demo", "--since", "1h")
	if got.code != exitUsage || got.stdout != "" {
		t.Errorf("without --yes and without a terminal: exit %d, %q", got.code, got.stdout)
	}
	contains(t, got.stderr, "would take again 9 records", "Customer.io ignores the events whose ids it has seen", "9 events are less than 72 h old: those that it takes may start campaigns",
		"Rewind demo to ", "nothing was changed, since there is no terminal to ask at: add --yes if you mean it")

	for _, yes := range []string{"--json", "--yes"} {
		got := verbOf(t, r, "sync", "rewind", "demo", "--since", "0s", yes)
		if got.code != exitData || got.stdout != "" || !strings.HasSuffix(got.stderr, "ampcio: nothing was changed: there is nothing to take again\n") {
			t.Errorf("nothing to take, %s: %+v", yes, got)
		}
	}
	contains(t, did(t, r, "sync", "rewind", "--yes", "demo", "--since", "1h"), "demo is rewound: 9 records are taken again\n")
	snap := drained(t, r)
	balanced(t, snap)
	complete(t, r, map[string]int{"ann-1": 5, "bob-2": 4})
	y := only(t, snap)
	if y.Books.Taken != 9 || y.Books.Rewound != 9 || y.Totals.Delivered != 15 || y.Totals.Filtered != 3 || y.LastRewind == nil {
		t.Errorf("books %+v, totals %+v", y.Books, y.Totals)
	}
	contains(t, run(t, "queue-stats", "--config", r.ConfigPath).stdout, "taken 9 + rewound 9 = delivered 15 + filtered 3", "  rewound    ")

	// Stopped it does the same, and says what it waits for.
	down(t, r)
	contains(t, did(t, r, "sync", "rewind", "demo", "--since", "2020-01-01", "--yes"), "demo is rewound: 9 records are taken again. ampcio is stopped: delivered after the next start")
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 5, "bob-2": 4})
	down(t, r)
}

// Behind what the log still has nothing can be taken again, unless what there is will do.
func TestVerbRewindFurtherThanTheLogReaches(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Storage: "keep = \"1s\"\nrotate_bytes = \"1MiB\"\n"})
	up(t, r)
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func() string {
		b := make([]byte, 20_000)
		for i := range b {
			b[i] = byte('a' + rng.IntN(26))
		}
		return string(b)
	}
	for i := range 15 {
		accepted(t, r, padded("ann-1", 10*i+1, 10*i+10, noise))
	}
	drained(t, r)
	names := func() []fs.DirEntry {
		es, err := os.ReadDir(filepath.Join(r.Dir, "storage", "log"))
		if err != nil {
			t.Fatal(err)
		}
		return es
	}
	oldest := names()[0].Name()
	eventually(t, 20*time.Second, "all old files are deleted", func() bool { return names()[0].Name() != oldest && len(names()) == 1 })
	down(t, r) // what was deleted could still be in memory
	up(t, r)
	refuses(t, r, exitData, []string{"there is nothing to take again: the log has no events any more", `storage.keep = "1s"`}, "sync", "rewind", "demo", "--since", "1h", "--yes")
	accepted(t, r, numbered("bob-2", 1, 2))
	drained(t, r)
	refuses(t, r, exitData, []string{"events of that time are kept", `storage.keep = "1s"`, "To take what there is: --partly"}, "sync", "rewind", "demo", "--since", "1h", "--yes")
	contains(t, did(t, r, "sync", "rewind", "demo", "--since", "1h", "--partly", "--dry-run"), "demo would take again 2 records, received from ")
	down(t, r)
}

// rename edits the configuration so that the sync has another name.
func renameInConfig(t testing.TB, r *rehearsal.Rehearsal, to string) {
	t.Helper()
	b, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "[sync."+rehearsal.Sync, "[sync."+to)
	write(t, r.ConfigPath, strings.ReplaceAll(text, "[[sync."+rehearsal.Sync, "[[sync."+to))
}

// A sync that was renamed in the configuration is an orphan and a newcomer, until the
// one is given the name of the other: then everything goes on in order.
func TestVerbRename(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped %t", stopped), func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			up(t, r)
			accepted(t, r, numbered("ann-1", 1, 5))
			drained(t, r)
			did(t, r, "sync", "pause", "demo")
			accepted(t, r, numbered("ann-1", 6, 10))
			refuses(t, r, exitData, []string{"demo is in the configuration and main is not", "change [sync.demo] to [sync.main]"}, "sync", "rename", "demo", "main")
			refuses(t, r, exitData, []string{"sync demo is in the configuration: take [sync.demo] out of it"}, "sync", "remove", "demo", "--yes")
			renameInConfig(t, r, "main")
			did(t, r, "reload")
			accepted(t, r, numbered("bob-2", 1, 3))
			eventually(t, 10*time.Second, "the new one has delivered", func() bool { return statusOf(t, r, "main").Totals.Delivered == 3 })
			old := statusOf(t, r, "demo")
			if old.Status != admin.StatusOrphaned || old.Books.Pending != 5 {
				t.Errorf("%+v", old)
			}
			contains(t, old.Advice, "put [sync.demo] back, then: ampcio reload; or hand it on: ampcio sync rename demo NEW; or give it up: ampcio sync remove demo")
			if stopped {
				down(t, r)
			}
			for _, wrong := range []struct {
				to, says string
				code     int
			}{{"demo", "the two names are the same", exitUsage}, {"New Name", `"New Name" cannot be the name of a sync`, exitUsage}} {
				refuses(t, r, wrong.code, []string{wrong.says}, "sync", "rename", "demo", wrong.to)
			}
			contains(t, did(t, r, "sync", "rename", "demo", "main", "--dry-run"), "demo would be main, with 5 pending and 0 dead letters, together with what main had\n")
			// The old one was paused, and so is what has become of both.
			contains(t, did(t, r, "sync", "rename", "demo", "main"), "demo is now main, with 5 pending and 0 dead letters, together with what main had. It is paused", "ampcio sync resume main")
			if stopped {
				up(t, r)
			}
			did(t, r, "sync", "resume", "main")
			refuses(t, r, exitUsage, []string{`no sync "demo"`, "main"}, "sync", "status", "demo")
			balanced(t, drained(t, r))
			complete(t, r, map[string]int{"ann-1": 10, "bob-2": 3})
			if y := statusOf(t, r, "main"); y.Totals.Delivered != 13 || y.Books.Taken != 13 {
				t.Errorf("%+v %+v", y.Books, y.Totals)
			}
			down(t, r)
		})
	}
}

// What is removed is given up, and not before somebody has said yes.
func TestVerbRemove(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped %t", stopped), func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Too Much"}})
			up(t, r)
			accepted(t, r, strings.ReplaceAll(numbered("ann-1", 1, 2), "Order Completed", "Too Much"))
			drained(t, r)
			did(t, r, "sync", "pause", "demo")
			accepted(t, r, numbered("ann-1", 3, 7))
			renameInConfig(t, r, "main")
			did(t, r, "reload")
			if stopped {
				down(t, r)
			}
			would := "demo would be given up for good: 5 pending and 2 dead letters\n"
			if said := did(t, r, "sync", "remove", "demo", "--dry-run"); said != would {
				t.Errorf("%q", said)
			}
			refuses(t, r, exitUsage, []string{would, "Remove demo: nothing was changed, since there is no terminal to ask at: add --yes if you mean it"}, "sync", "remove", "demo")
			if y := statusOf(t, r, "demo"); y.Books.Pending != 5 {
				t.Errorf("%+v", y.Books)
			}
			contains(t, did(t, r, "sync", "remove", "demo", "--yes"), "demo is removed; given up: 5 pending and 2 dead letters\n")
			refuses(t, r, exitUsage, []string{`no sync "demo"`}, "sync", "remove", "demo", "--yes")
			if stopped {
				up(t, r)
			}
			accepted(t, r, numbered("bob-2", 1, 3))
			snap := drained(t, r)
			if y := only(t, snap); y.Name != "main" || !y.Books.Balanced {
				t.Errorf("%+v", y)
			}
			down(t, r)
			if _, err := os.Stat(filepath.Join(r.Dir, "storage", "sync", "demo.db")); !os.IsNotExist(err) {
				t.Errorf("its ledger is still there: %v", err)
			}
		})
	}
}

// Where a verb cannot be done it says who can, and nothing happens.
func TestVerbsThatCannotReachTheDaemon(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	t.Run("another socket", func(t *testing.T) {
		edit(t, r, fmt.Sprintf("socket = %q", r.Socket), fmt.Sprintf("socket = %q", filepath.Join(r.Dir, "other.sock")))
		defer edit(t, r, fmt.Sprintf("socket = %q", filepath.Join(r.Dir, "other.sock")), fmt.Sprintf("socket = %q", r.Socket))
		for _, args := range [][]string{{"sync", "pause", "demo"}, {"dead-letters", "list"}, {"dead-letters", "drop", "--all", "--yes"}} {
			refuses(t, r, exitTemporary, []string{fmt.Sprintf("another process (%d) uses %s/storage: an ampcio that is starting, or another command; try again in a moment.", r.Daemon.Process.Pid, r.Dir),
				"is server.socket the same as when it was started? It is " + r.Dir + "/other.sock"}, args...)
		}
	})
	t.Run("not in the group", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can be somebody else")
		}
		binary, err := os.ReadFile(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		mine := filepath.Join(r.Dir, "ampcio")
		if err := os.WriteFile(mine, binary, 0o755); err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]fs.FileMode{r.Dir: 0o755, r.ConfigPath: 0o644} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		c := ampcio("sync", "pause", "demo", "--config", r.ConfigPath)
		c.Path = mine
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := c.CombinedOutput()
		if err == nil || c.ProcessState.ExitCode() != exitUnavailable {
			t.Errorf("%v", err)
		}
		contains(t, string(out), "permission denied", "you need to be in the group of the socket "+r.Socket+", which is root", "or root")
	})
	if y := statusOf(t, r, "demo"); y.Status == admin.StatusPaused {
		t.Error("it is paused all the same")
	}
	down(t, r)
}

// Root, too, leaves no file in the storage folder that the service could not open.
func TestVerbsOfRootBelongToTheService(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	r := queued(t, rehearsal.Settings{})
	storage := filepath.Join(r.Dir, "storage")
	const nobody = 65534
	each := func(f func(path string, st *syscall.Stat_t)) {
		err := filepath.WalkDir(storage, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err == nil {
				f(path, info.Sys().(*syscall.Stat_t))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	each(func(path string, _ *syscall.Stat_t) {
		if err := os.Lchown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	})
	// The way to the folder is open to everybody, as /var/lib is.
	if err := os.Chmod(r.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	did(t, r, "sync", "pause", "demo")
	did(t, r, "dead-letters", "list")
	did(t, r, "sync", "resume", "demo")
	made := false
	each(func(path string, st *syscall.Stat_t) {
		made = made || filepath.Base(path) == hashKeyFile
		if st.Uid != nobody || st.Gid != nobody {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
	})
	if !made {
		t.Error("nothing was made: this test shows nothing")
	}
	rightAgain(t, r)
}

// What changes something is on the socket alone, and what is asked there is looked at.
func TestVerbsAreOnTheSocketOnly(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	for name := range verbs {
		if a := ask(t, "POST", "http://"+r.Admin+"/do/"+name, "{}"); a.status != 404 && a.status != 405 {
			t.Errorf("%s at the listener: %d %s", name, a.status, a.body)
		}
	}
	overSocket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	}}}
	defer overSocket.CloseIdleConnections()
	tests := []struct {
		method, verb, body string
		status             int
		says               string
	}{
		{"POST", "sync-pause", `{"sync":"demo"}`, 200, `{"sync":"demo","status":"paused","changed":true,`},
		{"GET", "sync-pause", "", 405, ""},
		{"POST", "sync-pause", `{"sync":"dmo"}`, 200, `{"error":"no sync \"dmo\": did you mean \"demo\"? There are: demo","code":64}`},
		{"POST", "sync-pause", `{"name":"demo"}`, 200, `{"error":"read what is asked for: json: unknown field \"name\"","code":64}`},
		{"POST", "sync-pause", `no JSON`, 200, `{"error":"read what is asked for: `},
		{"POST", "dead-letters-drop", `{}`, 200, `{"error":"say which dead letters: `},
		{"POST", "sync-explode", `{}`, 404, `{"error":"the ampcio that runs is (devel) and has no \"sync-explode\": restart it with this version","code":69}`},
	}
	for _, test := range tests {
		req, err := http.NewRequestWithContext(within(t, 10*time.Second), test.method, "http://admin/do/"+test.verb, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := overSocket.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || !strings.HasPrefix(string(body), test.says) || test.says != "" && !bytes.HasSuffix(body, []byte("\n")) {
			t.Errorf("%s %s %s: %d (want %d) %s, %v", test.method, test.verb, test.body, resp.StatusCode, test.status, body, err)
		}
	}
	down(t, r)
}
