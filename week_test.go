package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// week is an installation to which everything happens that can, and its operator, who has
// the command line and nothing else.
type week struct {
	*rehearsal.Rehearsal
	t     *testing.T
	rng   *rand.Rand
	crowd *crowd
	day   int64 // events
	lives int   // of the daemon
	bad   int   // events that Customer.io never takes
}

// eventsADay is how long the days of the week are: given by AMPCIO_TEST_WEEK, else as
// short as shows everything once.
func eventsADay(t *testing.T) int64 {
	const name = "AMPCIO_TEST_WEEK"
	given := os.Getenv(name)
	if given == "" {
		return 100
	}
	n, err := strconv.ParseInt(given, 10, 64)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want how many events a day has", name, given)
	}
	return n
}

// poorUser is who fails all week.
const poorUser = "poor-000-"

// look asks queue-stats, with the daemon running or not: the books balance, and nothing
// has come twice or out of order.
func (w *week) look() admin.Sync {
	w.t.Helper()
	got := run(w.t, "queue-stats", "--config", w.ConfigPath, "--json")
	var snap admin.Snapshot
	if err := json.Unmarshal([]byte(got.stdout), &snap); err != nil || got.code != 0 || got.stderr != "" {
		w.t.Fatalf("queue-stats: exit %d, %s, %v", got.code, got.stderr, err)
	}
	y := only(w.t, snap)
	if !y.Books.Balanced || y.Totals.Lost != 0 || y.Totals.Discarded != 0 {
		w.t.Fatalf("books %+v, totals %+v", y.Books, y.Totals)
	}
	if o := w.Sandbox.Report().Order; o.OutOfOrder != 0 || o.Repeated != 0 {
		w.t.Fatalf("order %+v", o)
	}
	return y
}

// live lets some days pass, with events of everybody coming in and now and then a kill.
func (w *week) live(days float64) {
	w.t.Helper()
	for left := int64(days * float64(w.day)); left > 0; {
		step := min(left, 1+w.rng.Int64N(w.day/2+1))
		left -= step
		w.crowd.more(step)
		if w.rng.IntN(12) == 0 {
			w.killed()
		}
		w.look()
	}
}

// killed has the daemon killed, in whatever it is doing, and started again.
func (w *week) killed() {
	w.t.Helper()
	if err := w.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.look() // of what it has left
	up(w.t, w.Rehearsal)
	w.lives++
}

// says waits until queue-stats tells a person all of this at once.
func (w *week) says(texts ...string) {
	w.t.Helper()
	said, missing := "", ""
	defer func() {
		if missing != "" {
			w.t.Logf("%q is not in:\n%s", missing, said)
		}
	}()
	eventually(w.t, 20*time.Second, "queue-stats says what it should", func() bool {
		said, missing = run(w.t, "queue-stats", "--config", w.ConfigPath).stdout, ""
		for _, text := range texts {
			if !strings.Contains(said, text) {
				missing = text
			}
		}
		return missing == ""
	})
}

// caughtUp waits until everything that was acknowledged by now is at Customer.io, but for
// the one user who waits aside. Events go on coming.
func (w *week) caughtUp() {
	w.t.Helper()
	sent := w.crowd.soFar()
	delete(sent, poorUser)
	defer func() {
		if len(sent) > 0 {
			w.t.Logf("Customer.io does not have all of %v: %+v\n%s", sent, w.Sandbox.Report().Order, run(w.t, "queue-stats", "--config", w.ConfigPath).stdout)
			for person := range sent {
				p, _ := w.Sandbox.Person("id", person)
				w.t.Logf("%s has %d of %d", person, p.EventCount, sent[person])
			}
		}
	}()
	eventually(w.t, 60*time.Second, "all but one user's events are delivered", func() bool {
		for person, n := range sent {
			if p, _ := w.Sandbox.Person("id", person); p.EventCount >= int64(n) {
				delete(sent, person)
			}
		}
		return len(sent) == 0
	})
}

// refusedForGood sends an event that Customer.io will not take.
func (w *week) refusedForGood() {
	w.t.Helper()
	event := strings.Replace(eventOf(fmt.Sprintf("bad-%03d-", w.bad), 1, ""), "Order Completed", "Bad", 1)
	if !w.crowd.post(fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, recordings.Key, event)) {
		w.t.FailNow()
	}
	w.bad++
}

// notSelected counts the events that no rule has selected.
func notSelected(y admin.Sync) uint64 {
	for _, f := range y.Filtered {
		if f.Kind == "event" && f.Reason == "not_selected" {
			return f.Count
		}
	}
	return 0
}

func (w *week) faults(spec string) {
	w.t.Helper()
	f, err := sandbox.ParseFaults(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Sandbox.SetFaults(f)
}

// A week in which everything goes wrong that can, as TestAWeek of delivery tells it, with
// the real program, which is killed now and then, and an operator who types commands. At
// every step the books balance. In the end each event that was answered 200 has been
// delivered once and in order.
func TestAWeekInMinutes(t *testing.T) {
	if os.Getenv("AMPCIO_TEST_WEEK") == "" {
		raceElsewhere(t) // .ci/run has it as a step of its own
	}
	t.Parallel()
	seed := seed(t)
	began := time.Now()
	w := &week{t: t, rng: rand.New(rand.NewPCG(seed, 0)), day: eventsADay(t), lives: 1}
	w.Rehearsal = rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed, MaxKeptEvents: -1}, Storage: "rotate_bytes = \"1MiB\"\n",
		Sync: "retry_initial = \"50ms\"\nrequests_per_second = 1000\n"})
	const (
		usual = "500=3%,cut_after=5%,refuse_event=Bad"
		poor  = ",poison=" + poorUser + ",poison_how=500"
	)
	w.faults(usual + poor) // everything about one user fails until Sunday
	up(t, w.Rehearsal)
	w.crowd = gathered(within(t, 170*time.Second), t, w.Rehearsal, seed, crowdOptions{every: 25 * time.Millisecond, events: 8, padding: 300,
		people: [][]string{people("ann", 20), people("bob", 20), people("eve", 20), append(people("dan", 3), poorUser)}})
	chapter := func(name string) {
		t.Logf("%6.1f s, %d events, %d lives: %s", time.Since(began).Seconds(), w.crowd.acked.Load(), w.lives, name)
	}

	chapter("Monday: an outage")
	w.live(1)
	w.refusedForGood()
	w.faults("503=100%")
	w.says("unreachable for ", "; nothing is lost\n", "does not take data (http_503)", "to try at once: ampcio sync retry demo")
	w.live(1)
	if y := w.look(); y.Depth.Held == 0 || y.Totals.Dead > 1 {
		t.Errorf("in an outage: %+v, %+v", y.Depth, y.Totals)
	}
	w.faults(usual + poor)
	w.refusedForGood()
	w.caughtUp()
	w.says("  aside      1 user waits alone, ", ": delivering", "http_500", "others are not held up\n", "see what was refused: ampcio dead-letters list --sync demo", "event invalid: 2, ")

	chapter("Tuesday: the key is revoked")
	w.faults("401=100%")
	w.says("blocked for ", "; nothing is lost\n", "Customer.io does not accept the Site ID and API key", "  to do      check site_id and the Track API key")
	before := w.look()
	w.live(.5)
	key := filepath.Join(w.Dir, "customerio_api_key")
	write(t, key, "not-the-new-one-either\n")
	hangup(t, w.Rehearsal)
	w.live(.5)
	w.faults(usual + poor) // the new key is good
	w.live(.5)
	if y := w.look(); y.Status != admin.StatusBlocked || y.Totals.Dead != before.Totals.Dead || y.Totals.Filtered != before.Totals.Filtered || y.Totals.Delivered != before.Totals.Delivered {
		t.Errorf("a wrong key: %s, %+v, before %+v", y.Status, y.Totals, before.Totals)
	}
	write(t, key, rehearsal.APIKey+"\n")
	hangup(t, w.Rehearsal)
	w.caughtUp()

	chapter("Thursday: a wrong rule")
	w.live(1)
	w.refusedForGood()
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	w.caughtUp() // of what came before, nothing is pending when the wrong rule comes
	w.faults("503=100%")
	w.says("unreachable for ")
	w.crowd.more(50)
	right := configOf(t, w.Rehearsal)
	edit(t, w.Rehearsal, `event = ["*"]`, `event = ["Oder *"]`)
	refuses(t, w.Rehearsal, exitData, []string{" that are to be sent would be filtered", "not_selected", "ampcio reload --yes"}, "reload")
	did(t, w.Rehearsal, "reload", "--yes")
	w.faults(usual + poor)
	w.live(1)
	w.says("event not_selected: ", ": delivering")
	did(t, w.Rehearsal, "sync", "pause", "demo")
	write(t, w.ConfigPath, right)
	did(t, w.Rehearsal, "reload")
	w.live(.5)
	w.killed()
	filtered := notSelected(w.look())
	contains(t, did(t, w.Rehearsal, "sync", "rewind", "demo", "--since", since, "--dry-run"), "demo would take again ", "event sent: ")
	contains(t, did(t, w.Rehearsal, "sync", "rewind", "demo", "--since", since, "--yes"), "demo is rewound: ", " records are taken again")
	w.live(.5)
	paused := w.look()
	if paused.Status != admin.StatusPaused || paused.Books.Rewound < filtered || filtered < uint64(w.day/2) || paused.Books.Pending < paused.Books.Rewound {
		t.Errorf("%s, %d filtered by the wrong rule, %+v", paused.Status, filtered, paused.Books)
	}
	w.says(" records were taken once more so far", "paused for ", "  to do      ampcio sync resume demo")
	did(t, w.Rehearsal, "sync", "resume", "demo")
	w.caughtUp()
	if n := notSelected(w.look()); n != filtered {
		t.Errorf("%d events are filtered after the rewind, %d before", n, filtered)
	}

	chapter("Saturday: the disk is full")
	w.live(1)
	w.refusedForGood()
	edit(t, w.Rehearsal, "[project.app]", "max_bytes = \"1MiB\"\n[project.app]")
	did(t, w.Rehearsal, "reload")
	w.crowd.moreRefused(5)
	w.says("NEW EVENTS ARE REFUSED: ", "used of storage.max_bytes 1.0 MiB", "raise storage.max_bytes, then: ampcio reload", "storage_full: ")
	w.caughtUp() // what was accepted is delivered all the same
	w.killed()
	w.crowd.moreRefused(5) // though what is only kept may have made room for a while
	w.look()
	write(t, w.ConfigPath, right)
	did(t, w.Rehearsal, "reload")
	w.live(1)

	chapter("Sunday: all is mended")
	w.caughtUp()
	if y := w.look(); y.Aside.Users != 1 || y.Kept.Count != uint64(w.bad) {
		t.Errorf("%+v, %+v", y.Aside, y.Kept)
	}
	w.faults("500=3%,cut_after=5%")
	eventually(t, 30*time.Second, "nobody waits aside", func() bool { return only(t, stats(t, w.Rehearsal)).Aside.Users == 0 })
	chapter("nobody waits aside")
	contains(t, did(t, w.Rehearsal, "dead-letters", "list"), "Bad")
	contains(t, did(t, w.Rehearsal, "dead-letters", "replay", "--event", "Bad", "--yes"), fmt.Sprintf("%d dead letters replayed\n", w.bad))
	w.live(.5)
	sent := w.crowd.end()
	snap := drained(t, w.Rehearsal)
	chapter("the week is over")

	balanced(t, snap)
	total := uint64(0)
	for i := range w.bad {
		sent[fmt.Sprintf("bad-%03d-", i)] = 1
	}
	for _, n := range sent {
		total += uint64(n)
	}
	complete(t, w.Rehearsal, sent)
	y := only(t, snap)
	if y.Books.Taken != total || y.Totals.Delivered+y.Totals.Filtered != total+y.Books.Rewound || y.Status != admin.StatusOK {
		t.Errorf("%d events were acknowledged; %s, books %+v, totals %+v", total, y.Status, y.Books, y.Totals)
	}
	report := w.Sandbox.Report()
	t.Logf("%d requests to Customer.io, faults met %v, %d repeats ignored, books %+v", report.Requests, report.FaultsInjected, report.Events.Duplicates, y.Books)
	for _, fault := range []string{"500", "503", "401", "cut_after", "poison"} {
		if report.FaultsInjected[fault] == 0 {
			t.Errorf("the sandbox has never met a client with %s: this tests less than it says", fault)
		}
	}
	if report.Invalid["fault_refuse"] < int64(w.bad) || len(report.Invalid) > 2 {
		t.Errorf("Customer.io refused %v: %s", report.Invalid, report.FirstInvalid)
	}
	down(t, w.Rehearsal)
	sameBooks(t, snap, statsOfFiles(t, w.Rehearsal))
}
