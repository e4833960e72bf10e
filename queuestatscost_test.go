//go:build linux && !race

// Memory and time mean nothing under the race detector, and /proc is Linux's.

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// madeEvents is a batch of records as ingest would store them, for a backlog that is made
// faster than it could be sent.
type madeEvents struct {
	first, n int
	received int64
}

func (b madeEvents) Size() int       { return b.n * 200 }
func (b madeEvents) Project() string { return "app" }

func (b madeEvents) Resolve(w *queue.Writer) error {
	var body []byte
	for i := b.first; i < b.first+b.n; i++ {
		user := fmt.Sprintf("person-%06d", i%100_000)
		r := mapping.Record{UserID: user, Time: b.received, Source: mapping.SourceHTTP, Address: "127.0.0.1", Properties: []byte("{}"),
			Raw: fmt.Appendf(nil, `{"event_type":"Order %d","user_id":%q,"insert_id":"i%d","event_properties":{"total":12.5}}`, i%12, user, i)}
		body = r.AppendBody(body[:0])
		w.Put(queue.Record{Project: "app", Lane: "u" + user, Received: b.received, ID: [16]byte{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}, Body: body})
	}
	return nil
}

// backlog stores n events, as they would have come evenly over the last ten hours.
func backlog(t *testing.T, storage string, n int) {
	t.Helper()
	o := queue.Options{Dir: storage, RotateBytes: 64 << 20, RotateAfter: 24 * time.Hour, InFlightBytes: 256 << 20, Now: time.Now}
	if err := os.MkdirAll(storage, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := queue.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := queue.OpenConsumer(l, queue.ConsumerOptions{Name: rehearsal.Sync, Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	each := max(n/250, 500)
	for first := 0; first < n; first += each {
		age := time.Duration(float64(10*time.Hour) * float64(n-first) / float64(n))
		if err := l.Append(ctx, madeEvents{first, min(each, n-first), time.Now().Add(-age).UnixMilli()}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// With very many events queued, queue-stats answers at once and is small, while ampcio
// runs and when it is stopped; and a look a second costs the daemon next to nothing.
// Here there are some hundred thousand; how many does not matter, as this shows:
//
//	AMPCIO_TEST_QUEUED=5000000 go test -count=1 -v -run StatsOfABacklog .
func TestStatsOfABacklog(t *testing.T) {
	wordsOnly(t)
	if testing.Short() {
		t.Skip("it measures")
	}
	const (
		answersWithin = 200 * time.Millisecond
		groupsWithin  = 500 * time.Millisecond // with some thousand records opened and put together
		memoryLimit   = 50 << 20
		lookLimit     = 10 * time.Millisecond // of CPU: 1 % of a core in a loop of a second, where 2 % may be
	)
	n := 150_000
	if text := os.Getenv("AMPCIO_TEST_QUEUED"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Faults: sandbox.Faults{Outages: []sandbox.Outage{{Length: time.Hour}}}}})
	began := time.Now()
	backlog(t, filepath.Join(r.Dir, "storage"), n)
	t.Logf("%d events are stored after %s", n, time.Since(began).Round(time.Millisecond))

	look := func(when string, limit time.Duration, args ...string) {
		t.Helper()
		best, worked := time.Hour, time.Hour
		for range 3 {
			c := ampcio(append([]string{"queue-stats", "--config", r.ConfigPath}, args...)...)
			var out bytes.Buffer
			c.Stdout = &out
			began := time.Now()
			if err := c.Run(); err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			best = min(best, time.Since(began))
			worked = min(worked, c.ProcessState.UserTime()+c.ProcessState.SystemTime())
		}
		memory := peakOfWatching(t, r, args...)
		t.Logf("%s, queue-stats %s: %s, %s of CPU, %d MiB", when, strings.Join(args, " "), best.Round(time.Millisecond), worked.Round(time.Millisecond), memory>>20)
		if worked > limit { // the rest is waiting for its turn, on a machine that does other things too
			t.Errorf("%s: it takes %s", when, worked)
		}
		if memory > memoryLimit {
			t.Errorf("%s: it takes %d MiB", when, memory>>20)
		}
	}
	check := func(snap admin.Snapshot) {
		t.Helper()
		y := only(t, snap)
		sum, twoHours := uint64(0), uint64(0)
		for _, b := range y.AgeBuckets {
			if sum += b.Count; b.LE != nil && *b.LE <= 7200 {
				twoHours += b.Count
			}
		}
		if y.Books.Pending != uint64(n) || sum != uint64(n) || !y.Approximate {
			t.Errorf("%d are pending, the ages say %d", y.Books.Pending, sum)
		}
		if share := float64(twoHours) / float64(n); share < 0.15 || share > 0.25 { // a fifth
			t.Errorf("%.2f are younger than two hours", share)
		}
	}
	look("stopped", answersWithin)
	look("stopped", groupsWithin, "--by", "event")
	look("stopped", groupsWithin, "--by", "user", "--json")
	check(statsOfFiles(t, r))

	if err := r.Start(within(t, 5*time.Minute)); err != nil { // users.db is made anew from all of it
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it has tried", func() bool { return only(t, stats(t, r)).Status == admin.StatusUnreachable })
	look("running", answersWithin)
	look("running", groupsWithin, "--by", "event")
	check(stats(t, r))
	before, looks := cpuOf(t, r), 50
	for range looks {
		stats(t, r)
	}
	each := (cpuOf(t, r) - before) / time.Duration(looks)
	t.Logf("a look takes the daemon %s of CPU", each)
	if each > lookLimit {
		t.Errorf("a look takes the daemon %s of CPU", each)
	}
	down(t, r)
}

// peakOfWatching is the most memory that a process has had that was asked, file pages
// included. (What wait tells of a child counts that of the process it was forked from.)
func peakOfWatching(t *testing.T, r *rehearsal.Rehearsal, args ...string) int64 {
	t.Helper()
	c := ampcio(append([]string{"queue-stats", "--config", r.ConfigPath, "--format", "jsonl", "--watch", "100ms"}, slices.DeleteFunc(args, func(a string) bool { return a == "--json" })...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { c.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewReader(out)
	for range 3 {
		if _, err := lines.ReadBytes('\n'); err != nil {
			t.Fatal(err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c.Process.Signal(os.Interrupt)
	io.Copy(io.Discard, lines)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	return kb << 10
}

// cpuOf is the time that the daemon has used.
func cpuOf(t *testing.T, r *rehearsal.Rehearsal) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.Daemon.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the state on
	sum := 0
	for _, i := range []int{11, 12} {
		ticks, err := strconv.Atoi(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		sum += ticks
	}
	return time.Duration(sum) * 10 * time.Millisecond
}
