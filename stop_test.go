package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// closed says whether the daemon takes no more connections.
func closed(r *rehearsal.Rehearsal) bool {
	c, err := net.DialTimeout("tcp", r.Listen, time.Second)
	if err == nil {
		c.Close()
	}
	return err != nil
}

// begin sends a request but for its last byte; the answer comes once finish has sent that.
func begin(t *testing.T, r *rehearsal.Rehearsal, body string) (finish func() answer) {
	t.Helper()
	before := stats(t, r).Door.Requests
	c, err := net.Dial("tcp", r.Listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "POST /2/httpapi HTTP/1.1\r\nHost: ampcio\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)-1])
	eventually(t, 10*time.Second, "the daemon reads the request", func() bool { return stats(t, r).Door.Requests > before })
	return func() answer {
		t.Helper()
		if _, err := c.Write([]byte(body[len(body)-1:])); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("a request that had begun was cut: %v", err)
		}
		defer resp.Body.Close()
		return answer{status: resp.StatusCode, header: resp.Header}
	}
}

// SIGTERM while an SDK is sending and Customer.io is answering: both exchanges end, the
// daemon ends with code 0, and what was under way is neither lost nor done again.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{CheckOverlap: true}})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 1))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Latency: 1500 * time.Millisecond})
	accepted(t, r, numbered("ann-1", 2, 50))
	eventually(t, 10*time.Second, "a request to Customer.io is in flight", func() bool { return r.Sandbox.Report().InFlight > 0 })
	finish := begin(t, r, numbered("bob-2", 1, 50))

	asked := time.Now()
	if err := r.Daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the door is closed", func() bool { return closed(r) })
	if a := finish(); a.status != 200 {
		t.Errorf("the SDK's request was answered %d", a.status)
	}
	err := <-r.Ended
	r.Daemon = nil
	took := time.Since(asked)
	if err != nil {
		t.Errorf("it ended with %v", err)
	}
	if took > answerGrace {
		t.Errorf("it took %s, although all answers had come", took)
	}
	t.Logf("stopped after %s", took)
	if n := r.Sandbox.Report().InFlight; n != 0 {
		t.Errorf("%d requests to Customer.io were left alone", n)
	}
	y := only(t, statsOfFiles(t, r))
	if p, _ := r.Sandbox.Person("id", "ann-1"); p.EventCount != 50 || y.Totals.Delivered != 50 {
		t.Errorf("Customer.io has %d events, the books say %d delivered; want 50", p.EventCount, y.Totals.Delivered)
	}
	if y.Books.Pending != 50 || y.Books.Taken != 100 {
		t.Errorf("books %+v", y.Books)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 50, "bob-2": 50})
	if report := r.Sandbox.Report(); report.Events.Duplicates != 0 || report.Order.Overlaps != 0 {
		t.Errorf("%d events were sent again, %d overlaps", report.Events.Duplicates, report.Order.Overlaps)
	}
	down(t, r)
}

// A second SIGTERM does not wait for anybody. It is as a crash: what is not in the books
// comes again, under the same ids.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 20))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Hang: 1, HangFor: time.Minute})
	accepted(t, r, numbered("ann-1", 21, 40))
	eventually(t, 10*time.Second, "a request hangs at Customer.io", func() bool { return r.Sandbox.Report().InFlight > 0 })
	if err := r.Daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the door is closed", func() bool { return closed(r) })
	select {
	case err := <-r.Ended:
		t.Fatalf("it did not wait for the request: %v", err)
	default:
	}
	again := time.Now()
	if err := r.Daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-r.Ended
	r.Daemon = nil
	if took := time.Since(again); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	var exited *exec.ExitError
	if !errors.As(err, &exited) || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("it ended with %v", err)
	}
	ask(t, "DELETE", r.SandboxURL+"/_sandbox/faults", "") // lets the hanging request go as well
	up(t, r)
	snap := drained(t, r)
	balanced(t, snap)
	if y := only(t, snap); y.Books.Taken != 40 || y.Totals.Delivered != 40 {
		t.Errorf("books %+v %+v", y.Books, y.Totals)
	}
	complete(t, r, map[string]int{"ann-1": 40})
	down(t, r)
}

// A hangup is no reason to stop, not even before the daemon is up, nor one on another's heels.
func TestHangupDoesNotStop(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	for range 10 {
		hangup(t, r)
	}
	said(t, r, 1, "the configuration is reloaded")
	accepted(t, r, numbered("ann-1", 1, 3))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3})
	down(t, r)
}
