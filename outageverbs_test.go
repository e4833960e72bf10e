package main

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// patient lets a failed request wait so long that only an operator can end it within a test.
const patient = "retry_initial = \"2m\"\nretry_max = \"5m\"\n"

// With the gate closed only one is tried at a time, and that seldom; who knows that
// Customer.io is back says so.
func TestVerbRetryEndsAWait(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "retry_max = \"2s\"\n", patient)
	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return statusOf(t, r, "demo").Status == admin.StatusOK })
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	for _, user := range []string{"ann-1", "bob-2", "eve-3", "dan-4", "fay-5"} {
		accepted(t, r, numbered(user, 1, 3))
	}
	eventually(t, 20*time.Second, "the gate is closed", func() bool { return only(t, stats(t, r)).Status == admin.StatusUnreachable })
	y := only(t, stats(t, r))
	if y.Gate != "closed" || y.NextProbe == nil || *y.NextProbe < 30 || y.GateSince == nil {
		t.Errorf("%+v", y)
	}
	contains(t, run(t, "queue-stats", "--config", r.ConfigPath).stdout, "demo (project app): unreachable for ", "; nothing is lost\n", "to try at once: ampcio sync retry demo\n",
		", with what one user has; all go on when that gets through\n")
	r.Sandbox.SetFaults(sandbox.Faults{})
	contains(t, did(t, r, "sync", "retry", "demo"), "demo is tried now; it was unreachable (http_503), 15 pending. What came of it: ampcio sync status demo\n")
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3, "bob-2": 3, "eve-3": 3, "dan-4": 3, "fay-5": 3})
	down(t, r)
}

// Keys that are suddenly those of another workspace: nothing goes there before somebody
// has said that it shall.
func TestVerbAdopt(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 2))
	drained(t, r)
	refuses(t, r, exitData, []string{"sync demo is delivering, and not blocked because of another workspace: there is nothing to adopt"}, "sync", "adopt", "demo", "--yes")
	did(t, r, "sync", "pause", "demo")
	accepted(t, r, numbered("ann-1", 3, 5))
	down(t, r)
	refuses(t, r, exitUnavailable, []string{"ampcio is stopped, and only a running one asks Customer.io which workspace it is"}, "sync", "adopt", "demo", "--yes")
	did(t, r, "sync", "resume", "demo")
	r.Sandbox.SetEnvironmentID(305)
	up(t, r)
	eventually(t, 10*time.Second, "it is blocked", func() bool { return statusOf(t, r, "demo").Status == admin.StatusBlocked })
	y := statusOf(t, r, "demo")
	if y.Reason != otherWorkspace || y.OtherWorkspace == nil || *y.OtherWorkspace != (admin.OtherWorkspace{From: 1, To: 305}) || y.Books.Pending != 3 {
		t.Errorf("%+v", y)
	}
	contains(t, y.Advice, "ampcio sync adopt demo")
	would := "demo has delivered to workspace 1, and its keys are now those of workspace 305: 3 pending would go there\n"
	if said := did(t, r, "sync", "adopt", "demo", "--dry-run"); said != would {
		t.Errorf("%q", said)
	}
	refuses(t, r, exitUsage, []string{would, "Deliver to workspace 305 from now on: nothing was changed, since there is no terminal"}, "sync", "adopt", "demo")
	contains(t, did(t, r, "sync", "adopt", "demo", "--yes"), "demo delivers to workspace 305 now; ")
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 5})
	if y := statusOf(t, r, "demo"); y.Workspace != 305 || y.Status != admin.StatusOK || y.OtherWorkspace != nil {
		t.Errorf("%+v", y)
	}
	down(t, r)
}

// daemonIn says whether the daemon is in a function.
func daemonIn(t testing.TB, r *rehearsal.Rehearsal, function string) bool {
	t.Helper()
	client := admin.Client(r.Socket)
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://admin/debug/pprof/goroutine?debug=2")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return err == nil && bytes.Contains(b, []byte(function))
}

// A reload waits for requests in flight. Who wants to hold a sync meanwhile need not.
func TestVerbPauseWhileAReloadWaits(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return statusOf(t, r, "demo").Status == admin.StatusOK })
	r.Sandbox.SetFaults(sandbox.Faults{Hang: 1})
	accepted(t, r, numbered("ann-1", 1, 3))
	eventually(t, 10*time.Second, "a request is in flight", func() bool { return only(t, stats(t, r)).Depth.InFlight == 3 })
	edit(t, r, `event = ["*"]`, `event = ["Order*"]`)
	reload := ampcio("reload", "--config", r.ConfigPath)
	if err := reload.Start(); err != nil {
		t.Fatal(err)
	}
	waits := func() bool { return daemonIn(t, r, "endDelivery") }
	eventually(t, time.Minute, "the reload waits", waits) // a command may be slow to start
	contains(t, did(t, r, "sync", "pause", "demo"), "demo is paused; ")
	contains(t, did(t, r, "sync", "resume", "demo"), "demo is resumed; ")
	contains(t, did(t, r, "sync", "pause", "demo"), "demo is paused; ")
	if !waits() {
		t.Error("the reload has ended first")
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	reload.Wait() // it cannot end well
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	if y := statusOf(t, r, "demo"); y.PausedSince == nil {
		t.Errorf("%+v", y)
	}
	did(t, r, "sync", "resume", "demo")
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3})
	down(t, r)
}

// A rewind waits for requests in flight. Who will not wait for it ends it at the daemon
// too, and nothing has changed.
func TestVerbEndedByItsOperator(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 2))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Hang: 1})
	accepted(t, r, numbered("ann-1", 3, 5))
	eventually(t, 10*time.Second, "a request is in flight", func() bool { return only(t, stats(t, r)).Depth.InFlight == 3 })
	rewind := ampcio("sync", "rewind", "demo", "--since", "1h", "--yes", "--config", r.ConfigPath)
	var said bytes.Buffer
	rewind.Stderr = &said
	if err := rewind.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { rewind.Process.Kill() })
	defer late.Stop()
	waits := func() bool { return daemonIn(t, r, "rewindVerb") }
	eventually(t, 10*time.Second, "the daemon rewinds", waits)
	if err := rewind.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rewind.Wait()
	if code := rewind.ProcessState.ExitCode(); code != exitTemporary || said.String() != "ampcio: ended by you: nothing is half done; the same command goes on\n" {
		t.Errorf("exit %d: %s", code, &said)
	}
	eventually(t, 10*time.Second, "the daemon does no more", func() bool { return !waits() })
	if b := only(t, stats(t, r)).Books; b.Rewound != 0 || !b.Balanced {
		t.Errorf("%+v", b)
	}
	contains(t, logOf(t, r), `msg="asked for by an operator, and not done to the end" verb=sync-rewind`)

	// A stop of ampcio ends it too, and says so.
	said.Reset()
	rewind = ampcio("sync", "rewind", "demo", "--since", "1h", "--yes", "--config", r.ConfigPath)
	rewind.Stderr = &said
	if err := rewind.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the daemon rewinds", waits)
	if err := r.Daemon.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rewind.Wait()
	if code := rewind.ProcessState.ExitCode(); code != exitTemporary || said.String() != "ampcio: ampcio is stopping: do it again when it runs\n" {
		t.Errorf("exit %d: %s", code, &said)
	}
	if err := <-r.Ended; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	r.Daemon = nil
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 5})
	down(t, r)
}
