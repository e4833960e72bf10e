package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// noise makes text of 2,000 bytes that does not compress.
func noise(seed int) func() string {
	rng := rand.New(rand.NewPCG(1, uint64(seed)))
	return func() string {
		b := make([]byte, 2000)
		for i := range b {
			if b[i] = byte('!' + rng.IntN(90)); b[i] == '"' || b[i] == '\\' {
				b[i] = 'x'
			}
		}
		return string(b)
	}
}

// fill sends until events are refused, for longer than what is used is only estimated,
// and gives how many were accepted. Refusals must tell the sender to come back.
func fill(t *testing.T, r *rehearsal.Rehearsal, user string) (last int) {
	t.Helper()
	for last < 50_000 {
		body := padded(user, last+1, last+50, noise(last))
		var since time.Time
		full := false
		eventually(t, 10*time.Second, "the events are taken, or the disk is full", func() bool {
			a := send(t, r, body)
			if a.status == 200 {
				last += 50
				return true
			}
			after, err := strconv.Atoi(a.header.Get("Retry-After"))
			if a.status != 503 || err != nil || after < 1 || after > 120 || !strings.Contains(a.body, `"code":503`) {
				t.Fatalf("answered %d, Retry-After %q, %s", a.status, a.header.Get("Retry-After"), a.body)
			}
			if since.IsZero() {
				since = time.Now()
			}
			full = time.Since(since) > 800*time.Millisecond
			return full
		})
		if full {
			return last
		}
	}
	t.Fatalf("%d events were accepted, and the disk is not full", last)
	return 0
}

// spaceComesBack says that the folder takes events again, without a restart, once the
// queue has drained; and that all that was accepted has arrived.
func spaceComesBack(t *testing.T, r *rehearsal.Rehearsal, user string, last int) {
	t.Helper()
	r.Sandbox.SetFaults(sandbox.Faults{})
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{user: last})
	// What was refused comes again, as SDKs do it.
	next := padded(user, last+1, last+50, noise(last))
	eventually(t, 20*time.Second, "events are taken again", func() bool { return send(t, r, next).status == 200 })
	if a := ask(t, "GET", "http://"+r.Admin+"/readyz", ""); a.status != 200 {
		t.Errorf("/readyz: %d %s", a.status, a.body)
	}
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{user: last + 50})
	if full := stats(t, r).Disk.Full; full != "" {
		t.Errorf("still full: %s", full)
	}
}

// refusing says that everybody who looks is told that the disk is full, and why.
func refusing(t *testing.T, r *rehearsal.Rehearsal, why string) {
	t.Helper()
	var table string
	var ready answer
	// Not at once for good: what a checkpoint frees of the log, or leaves of the reserve, may be enough for a small batch.
	eventually(t, 30*time.Second, "new events are refused", func() bool {
		table = run(t, "queue-stats", "--config", r.ConfigPath).stdout
		ready = ask(t, "GET", "http://"+r.Admin+"/readyz", "")
		return ready.status == 503 && strings.Contains(table, "NEW EVENTS ARE REFUSED: ")
	})
	contains(t, table, why, "storage_full: ", "from 127.0.0.1")
	contains(t, ready.body, "storage is full: ", why)
	if a := ask(t, "GET", "http://"+r.Admin+"/healthz", ""); a.status != 200 {
		t.Errorf("/healthz: %d %s", a.status, a.body)
	}
}

func TestStorageAtItsCap(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Storage: "max_bytes = \"4MiB\"\nrotate_bytes = \"1MiB\"\n"})
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}, On: "data"})
	up(t, r)
	last := fill(t, r, "ann-1")
	refusing(t, r, "used of storage.max_bytes 4.0 MiB")
	if used := stats(t, r).Disk.Used; used > 6<<20 {
		t.Errorf("%d bytes used under a cap of 4 MiB", used)
	}
	log, err := os.ReadFile(r.LogFile.Name())
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(log), "events refused, senders will try again", "storage_full", "used of storage.max_bytes")

	// Full or not: a crash loses nothing, and the start after it needs no room.
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	if a := send(t, r, padded("ann-1", last+1, last+50, noise(last))); a.status != 503 {
		t.Errorf("after a crash it answers %d %s", a.status, a.body)
	}
	spaceComesBack(t, r, "ann-1", last)
	down(t, r)
}

func TestLessFreeThanAskedFor(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Storage: "min_free = \"4000TiB\"\n"})
	up(t, r)
	a := send(t, r, numbered("ann-1", 1, 5))
	if a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "storage is full") {
		t.Errorf("answered %d, Retry-After %q, %s", a.status, a.header.Get("Retry-After"), a.body)
	}
	refusing(t, r, "free on the disk of storage.dir, storage.min_free is 3.9 PiB")
	down(t, r)
	edit(t, r, "4000TiB", "16MiB")
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 5})
	down(t, r)
}

// A disk that is full in truth, with and without a reserve set aside by min_free.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root on Linux")
	}
	for _, test := range []struct{ name, minFree, why string }{
		{"with a reserve", "4MiB", "storage.min_free is 4.0 MiB"},
		{"to the last byte", "0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{Storage: fmt.Sprintf("min_free = %q\nrotate_bytes = \"1MiB\"\n", test.minFree)})
			storage := filepath.Join(r.Dir, "storage")
			if err := os.Mkdir(storage, 0o700); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", storage).CombinedOutput(); err != nil {
				t.Skipf("this root may not mount: %s", out)
			}
			t.Cleanup(func() {
				if r.Daemon != nil {
					r.Kill()
				}
				if out, err := exec.Command("umount", storage).CombinedOutput(); err != nil {
					t.Errorf("umount: %v %s", err, out)
				}
			})
			r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}, On: "data"})
			up(t, r)
			last := fill(t, r, "ann-1")
			t.Logf("%d events fit", last)
			if test.why != "" {
				refusing(t, r, test.why)
				spaceComesBack(t, r, "ann-1", last)
				down(t, r)
				return
			}
			// Nothing has failed but what was refused: the queue still drains. (Where a write
			// does fail, the daemon ends, and its next start goes on.)
			select {
			case err := <-r.Ended:
				t.Logf("it ended with %v", err)
				r.Daemon = nil
				up(t, r)
			default:
			}
			r.Sandbox.SetFaults(sandbox.Faults{})
			balanced(t, drained(t, r))
			report := r.Sandbox.Report()
			if report.Order.OutOfOrder+report.Order.Repeated+report.Order.Missing != 0 || report.Events.Accepted < int64(last) {
				t.Errorf("%d events of %d: %+v", report.Events.Accepted, last, report.Order)
			}
			down(t, r)
		})
	}
}
