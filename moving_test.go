package main

import (
	"encoding/json"
	"testing"
	"time"

	"ampcio/rehearsal"
)

// docs/moving.md, step by step, while people go on using the apps. A second ampcio is
// Amplitude and its hosted destination at once: it takes what is relayed and what old
// releases post, and sends it to Customer.io unless it carries the mark. Ours is in a dry
// run beside it, is compared with it, takes over, is killed, and hands back. Customer.io
// has every event once.
func TestMovingInAndOutAgain(t *testing.T) {
	t.Parallel()
	hosted := rehearse(t, rehearsal.Settings{})
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	// Another project: ids of another making, as the hosted destination's are. What both
	// send, Customer.io has twice.
	edit(t, hosted, "[project.app]", "[project.hosted]")
	edit(t, hosted, hosted.SandboxURL, r.SandboxURL)
	edit(t, hosted, `event = ["*"]`, `event = ["*"]
where = [{ path = "event.via_ampcio", op = "is not", value = true }]`)
	relayTo(t, r, hosted, "relay_mark = \"via_ampcio\"\n")
	edit(t, r, "identifier   = \"user_id\"\n", "identifier   = \"user_id\"\ndry_run = true\n")
	edit(t, r, "[sync.demo.events]\n", "[sync.demo.events]\nuser_property_values = \"string\"\n")
	up(t, hosted)
	up(t, r)
	ctx := within(t, 5*time.Minute) // so that nothing hangs for ever; how long the story takes is not judged
	settled := func() {
		t.Helper()
		eventually(t, 30*time.Second, "nothing waits", func() bool {
			a, b := stats(t, r), stats(t, hosted)
			return a.Pending() == 0 && b.Pending() == 0 && stats(t, r).Pending() == 0
		})
	}

	// Side by side: what ours would have sent is what the hosted destination has sent.
	first := gathered(ctx, t, r, 1, crowdOptions{every: 5 * time.Millisecond, events: 10, people: [][]string{people("early", 20)}})
	first.more(1000)
	sent := first.end()
	settled()
	var would dryRunAnswer
	if err := json.Unmarshal([]byte(run(t, "dry-run", "report", "--json", "--config", r.ConfigPath).stdout), &would); err != nil {
		t.Fatal(err)
	}
	if has := r.Sandbox.Report().Events.Accepted; would.Events != uint64(has) || has < 1000 {
		t.Errorf("ours would have sent %d events, the hosted destination has sent %d", would.Events, has)
	}

	// The switch, under load, with old releases of the app that still post to Amplitude.
	old := gathered(ctx, t, hosted, 2, crowdOptions{every: 10 * time.Millisecond, events: 5, people: [][]string{people("old", 10)}})
	apps := gathered(ctx, t, r, 3, crowdOptions{every: 5 * time.Millisecond, events: 10,
		people: [][]string{people("ann", 20), people("bob", 20)}})
	apps.more(1000)
	edit(t, r, "dry_run = true\n", "")
	did(t, r, "reload")
	apps.more(1000)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	apps.more(1000)
	ours := syncNamed(t, stats(t, r), rehearsal.Sync)
	if ours.Totals.Delivered == 0 {
		t.Errorf("ours sends nothing: %+v", ours)
	}

	// And back.
	edit(t, r, "identifier   = \"user_id\"\n", "identifier   = \"user_id\"\nenabled = false\n")
	did(t, r, "reload")
	apps.more(1000)
	for _, c := range []*crowd{old, apps} {
		for person, n := range c.end() {
			sent[person] = n
		}
	}
	// What ours had taken when it was disabled is still its own to send.
	edit(t, r, "enabled = false\n", "")
	did(t, r, "reload")
	settled()

	rep := r.Sandbox.Report()
	total := 0
	for person, n := range sent {
		total += n
		p, _ := r.Sandbox.Person("id", person)
		if p.EventCount != int64(n) {
			t.Errorf("Customer.io has %d events of %s, who sent %d", p.EventCount, person, n)
		}
	}
	if rep.Order.Repeated != 0 || rep.Order.Missing != 0 || rep.Events.Accepted != int64(total) {
		t.Errorf("of %d events Customer.io has %+v, %+v", total, rep.Events, rep.Order)
	}
	byUs, byHosted := syncNamed(t, stats(t, r), rehearsal.Sync).Totals.Delivered, syncNamed(t, stats(t, hosted), rehearsal.Sync).Totals.Delivered
	t.Logf("%d events: %d records sent by ours, %d by the hosted destination", total, byUs, byHosted)
	if byUs < 1000 || byHosted < 3000 {
		t.Error("that shows nothing")
	}
	for _, y := range []*rehearsal.Rehearsal{r, hosted} {
		for _, s := range stats(t, y).Syncs {
			if !s.Books.Balanced || s.Totals.Dead != 0 || s.Totals.Lost != 0 {
				t.Errorf("%s: %+v %+v", s.Name, s.Books, s.Totals)
			}
		}
	}
}
