package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// Every request with anything of one user in it hangs, of whom more waits than a sync reads
// ahead. The two hundred others are delivered as if nothing were the matter, the log's files
// go, queue-stats says who waits; and when it is over, that user's events come in order.
func TestOneUserFailsTheOthersDoNotNotice(t *testing.T) {
	raceElsewhere(t) // delivery has these hangs in virtual time
	t.Parallel()
	const (
		poor    = "poor-000-"
		timeout = 3 * time.Second // of a request to Customer.io
		each    = 50              // events of a request of the poor
		most    = 100             // requests
	)
	seed := seed(t)
	r := rehearse(t, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: seed, MaxKeptEvents: -1, Faults: sandbox.Faults{Poison: []string{poor}, PoisonHow: "hang", HangFor: time.Hour}},
		Storage: "keep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    fmt.Sprintf("retry_initial = \"100ms\"\nrequests_per_second = 1000\ntimeout = %q\n", timeout),
	})
	storage := filepath.Join(r.Dir, "storage")
	up(t, r)
	c := gathered(within(t, 120*time.Second), t, r, seed, crowdOptions{every: 40 * time.Millisecond, events: 10,
		people: [][]string{people("ann", 70), people("bob", 70), people("eve", 60)}})
	c.more(500)
	first := len(logFiles(t, storage))
	text := noise(int(seed % 1000))
	for i := range most {
		var events []string
		for seq := i*each + 1; seq <= (i+1)*each; seq++ {
			events = append(events, eventOf(poor, seq, text()))
		}
		accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, recordings.Key, strings.Join(events, ",")))
	}
	began := time.Now()
	says := func() (said string) {
		t.Helper()
		who := fmt.Sprintf("  aside      1 user waits alone, %s records, ", many(most*each))
		why := fmt.Sprintf("timeout: %s records of 1 user", many(most*each)) // not while a try is in flight
		eventually(t, 60*time.Second, "queue-stats says who waits, and why", func() bool {
			said = run(t, "queue-stats", "--config", r.ConfigPath).stdout
			return strings.Contains(said, who) && strings.Contains(said, why)
		})
		contains(t, said, "(project app): delivering for ", "  to do      nothing for who waits aside: it is tried again by itself;", "to try at once: ampcio sync retry demo",
			"others are not held up\n", "balanced")
		return said
	}
	said := says()
	t.Logf("after %s:\n%s", time.Since(began).Round(time.Millisecond), said)
	if y := only(t, stats(t, r)); y.Aside.Bytes <= windowBytes {
		t.Errorf("only %d bytes wait: this tests less than it says", y.Aside.Bytes)
	}

	// Nobody waits for a request that hangs: what comes now arrives in less than its timeout. A machine that is busy
	// with other things delays a round now and then; who waited for the request would wait in each.
	arriveSoon := func(rounds int) {
		t.Helper()
		var took []time.Duration
		for range rounds {
			c.more(100)
			now, began := c.soFar(), time.Now()
			eventually(t, 60*time.Second, "what the others have sent by now is delivered", func() bool {
				for person, n := range now {
					if p, _ := r.Sandbox.Person("id", person); p.EventCount >= int64(n) {
						delete(now, person)
					}
				}
				return len(now) == 0
			})
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		if middle := took[rounds/2]; middle > timeout-500*time.Millisecond {
			t.Errorf("what others send arrives after %s, and a request that hangs takes %s", middle, timeout)
		}
	}
	arriveSoon(10)
	eventually(t, 20*time.Second, "the log's files are gone", func() bool { return len(logFiles(t, storage)) <= 2 })
	if n := r.Sandbox.Report().FaultsInjected["poison"]; n == 0 || first > 2 {
		t.Errorf("%d requests have hung, %d files at first", n, first)
	}
	if p, ok := r.Sandbox.Person("id", poor); ok {
		t.Errorf("Customer.io knows %+v", p)
	}

	// After a crash the user has to be found again, which may cost others a timeout or two.
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	says()
	c.more(1000)
	eventually(t, 60*time.Second, "the one user is tried alone again", func() bool {
		y := only(t, stats(t, r))
		return y.Books.Pending-y.Aside.Records < 200 && y.Aside.Records == most*each
	})
	arriveSoon(5)

	if a := ask(t, "DELETE", r.SandboxURL+"/_sandbox/faults", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	contains(t, did(t, r, "sync", "retry", "demo"), "demo is tried now; it was delivering")
	sent := c.end()
	sent[poor] = most * each
	balanced(t, drained(t, r))
	complete(t, r, sent)
	down(t, r)
}
