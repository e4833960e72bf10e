package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
)

// A mistake in the file holds up nobody who asks the daemon, which goes by what it has
// read. Where none runs, the mistake is all there is to say.
func TestVerbsWithMistakesInTheConfiguration(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	good, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	backup := 0
	for _, mistake := range []struct{ name, old, new, says string }{
		{"an unknown key", "retry_max =", "retry_maximum =", `did you mean "sync.demo.delivery.retry_max"?`},
		{"broken TOML", `region       = "eu"`, "region = eu", "broken TOML"},
		{"broken TOML above the socket", "listen = ", "listen == ", "broken TOML"},
	} {
		t.Run(mistake.name, func(t *testing.T) {
			write(t, r.ConfigPath, string(good))
			edit(t, r, mistake.old, mistake.new)
			backup++
			for _, args := range [][]string{
				{"queue-stats"}, {"sync", "status"}, {"sync", "pause", "demo"}, {"sync", "resume", "demo"}, {"dead-letters", "list"}, {"audit"},
				{"backup", filepath.Join(r.Dir, fmt.Sprintf("%d.tar", backup))},
			} {
				got := verbOf(t, r, args...)
				if got.code != 0 || strings.Count(got.stderr, mistake.says) != 1 {
					t.Errorf("%v: exit %d, %s", args, got.code, got.stderr)
				}
				contains(t, got.stderr, "warning: "+r.ConfigPath+":", "asked was the ampcio that runs, at "+r.Socket)
			}
			got := verbOf(t, r, "reload")
			if got.code != exitConfig || strings.Count(got.stderr, mistake.says) != 1 || strings.Contains(got.stderr, "warning") {
				t.Errorf("reload: exit %d, %s", got.code, got.stderr)
			}
		})
	}
	down(t, r)
	for _, args := range [][]string{{"queue-stats"}, {"sync", "status"}, {"sync", "pause", "demo"}, {"audit"}, {"reload"}, {"backup", filepath.Join(r.Dir, "no.tar")}} {
		got := verbOf(t, r, args...)
		if got.code != exitConfig || strings.Count(got.stderr, "broken TOML") != 1 || strings.Contains(got.stderr, "warning") {
			t.Errorf("stopped: %v: exit %d, %s", args, got.code, got.stderr)
		}
	}
	if got := run(t, "queue-stats", "--config", filepath.Join(r.Dir, "none.toml")); got.code != exitConfig {
		t.Errorf("without a file: %+v", got)
	}
}

// A daemon that does not go on is told from one that is not there.
func TestVerbsOfADaemonThatHangs(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	if err := r.Daemon.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, args := range [][]string{{"queue-stats"}, {"sync", "status"}, {"audit"}} {
		all.Go(func() {
			got := verbOf(t, r, args...)
			want := "ampcio: the daemon does not answer within 10 s: journalctl -u ampcio, then systemctl restart ampcio (nothing that was accepted is lost)\n"
			if got.code != exitUnavailable || got.stderr != want {
				t.Errorf("%v: exit %d, %s", args, got.code, got.stderr)
			}
		})
	}
	all.Wait()
	if err := r.Daemon.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it answers again", func() bool { return statusOf(t, r, "demo").Status == admin.StatusOK })
	down(t, r)
}

// Damage that a verb meets while ampcio is stopped is told by it, and by every start
// after that.
func TestVerbsTellOfDamage(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	drained(t, r)
	down(t, r)
	storage := filepath.Join(r.Dir, "storage")
	spoilt(t, filepath.Join(storage, "sync", "demo.db"), 0, 100)
	logs, _ := filepath.Glob(filepath.Join(storage, "log", "*.db"))
	spoilt(t, logs[len(logs)-1], 40, 70)
	got := verbOf(t, r, "sync", "pause", "demo")
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	contains(t, got.stderr, "the ledger of sync demo was damaged and is kept at "+storage+"/damaged/demo.db-", "a damaged log file is kept at "+storage+"/damaged/0")
	kept, err := os.ReadDir(filepath.Join(storage, "damaged"))
	if err != nil || len(kept) != 2 {
		t.Fatalf("%v, %v", kept, err)
	}
	want := fmt.Sprintf("2 damaged files, set aside earlier, are kept in %s/damaged, the newest is ", storage)
	stopped := strings.Join(strings.Fields(did(t, r, "queue-stats")), " ")
	contains(t, stopped, want)
	up(t, r)
	contains(t, strings.Join(stats(t, r).Notes, "\n"), want)
	if n := strings.Count(logOf(t, r), want); n != 1 {
		t.Errorf("logged %d times", n)
	}
	down(t, r)
}

// Who looks at what is pending need not be somebody who may read the key.
func TestCheckPendingWithoutTheKey(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	down(t, r)
	if err := os.Remove(filepath.Join(r.Dir, "customerio_api_key")); err != nil {
		t.Fatal(err)
	}
	contains(t, did(t, r, "check-config", "--pending"), "key not looked at\n", "sync demo: 0 pending", ": ok\n")
	for _, args := range [][]string{{"check-config"}, {"check-config", "--pending", "--online"}} {
		if got := verbOf(t, r, args...); got.code != exitConfig {
			t.Errorf("%v: %+v", args, got)
		}
	}
}
