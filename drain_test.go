package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// A machine is moved: first a look, then the wait, with new events refused until it may be stopped.
func TestDrainForAMove(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	did(t, r, "sync", "pause", "demo")
	for _, user := range []string{"bob-2", "eve-3", "dan-4", "fay-5", "ann-1"} {
		accepted(t, r, numbered(user, 1, 1))
	}
	refuses(t, r, exitUsage, []string{`no sync "demmo": did you mean "demo"?`}, "drain", "--sync", "demmo")
	refuses(t, r, exitUsage, []string{"--refuse wants --until-empty"}, "drain", "--refuse")

	// What is paused is not waited for, and said.
	started := time.Now()
	got := verbOf(t, r, "drain", "--until-empty", "--timeout", "1m")
	if got.code != exitTemporary || time.Since(started) > 20*time.Second {
		t.Errorf("a paused sync: %+v", got)
	}
	contains(t, got.stdout, "demo is paused: 5 records pending, not waited for", "to do: ampcio sync resume demo")
	contains(t, got.stderr, "not empty: 5 records pending")

	// What Customer.io does not take is waited for, until the time is over.
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	did(t, r, "sync", "resume", "demo")
	eventually(t, 10*time.Second, "unreachable", func() bool { return statusOf(t, r, "demo").Status == admin.StatusUnreachable })
	got = verbOf(t, r, "drain", "--until-empty", "--timeout", "500ms")
	if got.code != exitTemporary || strings.Contains(got.stdout, "not waited for") {
		t.Errorf("unreachable: %+v", got)
	}
	contains(t, got.stdout, "demo is unreachable: 5 records pending", "to try at once: ampcio sync retry demo")
	contains(t, got.stderr, "not empty after ", "s: 5 records pending") // how long after depends on the machine
	accepted(t, r, numbered("ann-1", 2, 2))                             // nothing was asked to be refused

	// The senders hear 503 until it is empty and a while after.
	c := ampcio("drain", "--until-empty", "--refuse", "--json", "--config", r.ConfigPath)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	looks := bufio.NewScanner(out)
	if !looks.Scan() {
		t.Fatal("it tells nothing")
	}
	var look drainReport
	if err := json.Unmarshal(looks.Bytes(), &look); err != nil || look.State != drainWaiting || !look.Refusing || look.Pending != 6 {
		t.Errorf("%v: %s", err, looks.Bytes())
	}
	if a := send(t, r, numbered("ann-1", 3, 3)); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("while it drains: %+v", a)
	}
	if a := ask(t, "GET", "http://"+r.Admin+"/readyz", ""); a.status != 503 {
		t.Errorf("readyz: %+v", a)
	}
	contains(t, strings.Join(stats(t, r).Notes, "\n"), "new events are refused (503)")
	r.Sandbox.SetFaults(sandbox.Faults{})
	for looks.Scan() {
		look = drainReport{}
		if err := json.Unmarshal(looks.Bytes(), &look); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Wait(); err != nil || look.State != drainEmpty || look.Pending != 0 || look.Until == nil {
		t.Errorf("%v: %+v", err, look)
	}
	if a := send(t, r, numbered("ann-1", 3, 3)); a.status != 503 {
		t.Errorf("it is empty, and not stopped yet: %+v", a)
	}
	down(t, r)
	contains(t, did(t, r, "drain", "--until-empty"), "empty: ampcio is stopped, and nothing is pending in its files\n")
	up(t, r)
	accepted(t, r, numbered("ann-1", 3, 3)) // a restart takes events
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3, "bob-2": 1, "eve-3": 1, "dan-4": 1, "fay-5": 1})
	contains(t, did(t, r, "drain"), "empty: nothing is pending\n")
	down(t, r)
}

// Whoever ends a drain leaves a daemon that takes events and delivers.
func TestDrainEndedByItsOperator(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	accepted(t, r, numbered("ann-1", 1, 5))
	c := ampcio("drain", "--until-empty", "--refuse", "--config", r.ConfigPath)
	var said strings.Builder
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "refusal", func() bool { return send(t, r, numbered("bob-1", 1, 1)).status == 503 })
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitTemporary {
		t.Errorf("exit %d", code)
	}
	contains(t, said.String(), "ended by you", ": nothing is lost, ampcio goes on delivering, and takes events as before. To wait again: the same command")
	eventually(t, 10*time.Second, "events taken again", func() bool { return send(t, r, numbered("bob-1", 1, 1)).status == 200 })
	down(t, r)
	got := verbOf(t, r, "drain")
	if got.code != exitTemporary {
		t.Errorf("stopped, and not empty: %+v", got)
	}
	contains(t, got.stdout, "demo is stopped: ", " pending, not waited for", "to do: start ampcio (systemctl start ampcio)")
	contains(t, got.stderr, "not empty: ")
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	balanced(t, drained(t, r))
	down(t, r)
}
