package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// one is a request of one event.
func one(user, event, insertID, properties string) string {
	return fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":%q,"user_id":%q,"device_id":"phone of %[3]s","insert_id":%[4]q,"user_properties":%[5]s}]}`,
		recordings.Key, event, user, insertID, properties)
}

// tracedBy runs a trace and reads what it says.
func tracedBy(t testing.TB, r *rehearsal.Rehearsal, args ...string) (all []traced, sum traceSummary) {
	t.Helper()
	for line := range strings.Lines(did(t, r, append([]string{"trace", "--json", "--show-ids"}, args...)...)) {
		var l traceLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Record != nil {
			all = append(all, *l.Record)
		} else {
			sum = *l.Summary
		}
	}
	return all, sum
}

func in(t testing.TB, of traced) tracedFor {
	t.Helper()
	if len(of.Syncs) != 1 || of.Syncs[0].Sync != "demo" {
		t.Fatalf("%+v", of)
	}
	return of.Syncs[0]
}

// Why did Anna get no mail? One event of hers was delivered, one is dropped by a rule, one
// got through at a later try, one was refused for good, and one waits.
func TestTraceTellsAnEventsStory(t *testing.T) {
	t.Parallel()
	const anna = "anna@example.com"
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{}})
	edit(t, r, `retry_max = "2s"`, "retry_initial = \"200ms\"\nretry_max = \"400ms\"")
	edit(t, r, `select]]
event = ["*"]`, `select]]
event = ["Order*", "Sent *"]`)
	up(t, r)
	accepted(t, r, one(anna, "Order 1", "i-1", `{"plan":"pro"}`))
	accepted(t, r, one(anna, rehearsal.Drop, "i-2", `{}`))
	accepted(t, r, one(anna, "Looked", "i-3", `{"plan":"team"}`))
	accepted(t, r, one("benny", "Order 1", "i-1", `{}`))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Poison: []string{"Order 4"}, PoisonHow: "503"})
	accepted(t, r, one(anna, "Order 4", "i-4", `{}`))
	eventually(t, 10*time.Second, "two tries have failed", func() bool {
		all, _ := tracedBy(t, r, "--insert-id", "i-4")
		return len(all) == 1 && in(t, all[0]).Tries >= 2
	})
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Order 5"}})
	accepted(t, r, one(anna, "Order 5", "i-5", `{}`))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Poison: []string{anna}, PoisonHow: "503"})
	accepted(t, r, one(anna, "Order 6", "i-6", `{}`))
	accepted(t, r, one(anna, "Order 7", "i-7", `{}`))
	eventually(t, 10*time.Second, "a try has failed", func() bool {
		all, _ := tracedBy(t, r, "--insert-id", "i-6")
		return len(all) == 1 && in(t, all[0]).State == "waiting"
	})

	look := func() {
		t.Helper()
		all, sum := tracedBy(t, r, "--user", anna)
		if len(all) != 7 || sum.Found != 7 || sum.Shown != 7 || sum.Kept == nil || all[0].User != anna || all[0].Device != "phone of "+anna {
			t.Fatalf("%+v\n%+v", all, sum)
		}
		for i, want := range []tracedFor{
			{State: "delivered", Event: "delivered", UserSent: "delivered", Tries: 1, Rule: 2},
			{State: "filtered", Event: "dropped_by_rule", UserSent: "unchanged", Reason: "dropped_by_rule", Rule: 1},
			{State: "delivered", Event: "not_selected", UserSent: "delivered", Tries: 1},
			{State: "delivered", Event: "delivered", UserSent: "unchanged", Tries: in(t, all[3]).Tries, Reason: "http_503", Rule: 2},
			{State: "dead_letter", Event: "dead/invalid", UserSent: "unchanged", Tries: 1, Reason: "invalid", Rule: 2},
			{State: "waiting", Tries: in(t, all[5]).Tries, Reason: "http_503", Rule: 2},
			{State: "waiting", Tries: in(t, all[5]).Tries, Reason: "http_503", Rule: 2, Behind: true},
		} {
			got := in(t, all[i])
			if ended := want.State != "waiting"; (got.At != nil) != ended || got.Now == nil || (got.Next != nil) == ended {
				if got.State != "in_flight" {
					t.Errorf("%d: %+v", i, got)
				}
			}
			if want.State == "dead_letter" && (len(got.Answers) != 1 || got.Answers[0].Action != "event" || got.Answers[0].Status != 207) {
				t.Errorf("%+v", got.Answers)
			}
			if got.State == "in_flight" {
				got.State, got.Tries, got.Reason = want.State, want.Tries, want.Reason
			}
			got.Sync, got.At, got.Next, got.Now, got.Answers, got.Aside = "", nil, nil, nil, nil, false
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("%s: %+v, want %+v", all[i].Event, got, want)
			}
		}
		if tries := in(t, all[3]).Tries; tries < 3 {
			t.Errorf("%d tries", tries)
		}
		if len(sum.Syncs) != 1 {
			t.Fatalf("%+v", sum)
		}
		contains(t, sum.Syncs[0].Summary, "demo: of 7 records, 2 delivered, the last at 20", "1 filtered (dropped_by_rule)",
			"1 delivered as a user update only (event: not_selected)", "1 refused for good, and kept as a dead letter (invalid; ampcio dead-letters list)")
	}
	look()
	down(t, r)
	look()

	text := did(t, r, "trace", "--user", anna)
	if strings.Contains(text, anna) {
		t.Errorf("her id is shown:\n%s", text)
	}
	contains(t, text, "Order 4  user ", " try, after http_503", "dead letter since ", "event answered 207: ", "waits after ", "behind an earlier one of its user", "next try at ")
	if os.Getenv("AMPCIO_TEST_SHOW") != "" {
		t.Log("\n" + text)
	}
	// The hash that lists show finds her, too.
	_, rest, _ := strings.Cut(text, "user ")
	hash, _, _ := strings.Cut(rest, " ")
	if all, _ := tracedBy(t, r, "--user", hash); len(all) != 7 {
		t.Errorf("by the hash %q: %d records", hash, len(all))
	}
	if all, _ := tracedBy(t, r, "--device", "phone of "+anna, "--limit", "2"); len(all) != 2 || all[1].Event != "Order 7" {
		t.Errorf("%+v", all)
	}
	if all, _ := tracedBy(t, r, "--seq", "5"); len(all) != 1 || all[0].Event != "Order 4" {
		t.Errorf("%+v", all)
	}
	contains(t, did(t, r, "trace", "--user", "nobody"), "Nothing is kept of that in project app. The log has events since 20")
	refuses(t, r, exitUsage, []string{"say whose events"}, "trace")

	// The rules of now say otherwise; without a history only they do.
	edit(t, r, `"Order*", `, "")
	contains(t, did(t, r, "trace", "--insert-id", "i-1"), "event delivered", "by the rules as they are now it would be filtered (not_selected)")
	if err := os.RemoveAll(filepath.Join(r.Dir, "storage", "sync", "demo.history")); err != nil {
		t.Fatal(err)
	}
	contains(t, did(t, r, "trace", "--insert-id", "i-1"), "ended; when and how is not known any more; by the rules as they are now: event not_selected, user update sent")
	r.Sandbox.SetFaults(sandbox.Faults{})
}

// A person is forgotten everywhere at once, and nothing brings them back: no rewind, no
// restart, no crash. After the promised time the disk has no byte of them.
func TestForgetAPerson(t *testing.T) {
	t.Parallel()
	const anna = "anna@example.com"
	r := rehearse(t, rehearsal.Settings{Storage: "keep = \"1h\"\nrotate_after = \"24h\"\n"})
	edit(t, r, `retry_max = "2s"`, "retry_initial = \"1m\"\nretry_max = \"1m\"")
	up(t, r)
	accepted(t, r, one(anna, "Order 1", "i-1", `{"plan":"pro","email":"anna@example.com"}`))
	accepted(t, r, one("benny", "Order 1", "i-1", `{"plan":"team"}`))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Order 2"}})
	accepted(t, r, one(anna, "Order 2", "i-2", `{}`))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{Poison: []string{anna}, PoisonHow: "503"})
	accepted(t, r, one(anna, "Order 3", "i-3", `{}`))
	eventually(t, 10*time.Second, "a try has failed", func() bool { return only(t, stats(t, r)).Depth.Retry == 1 })

	contains(t, did(t, r, "user", "show", anna, "--show-ids"), "user anna@example.com in project app", "plan ", `"pro"`, "1 linked device phone of anna@example.com",
		"3 records in the log", "demo: 1 pending, 1 dead letter", "waits after 1 failed try: http_503", "email:anna@example.com last identified at ", " with email, plan")
	if text := did(t, r, "user", "show", anna); strings.Contains(text, anna) || strings.Contains(text, "pro\n") {
		t.Errorf("shows who it is about:\n%s", text)
	}
	would := did(t, r, "user", "forget", anna, "--dry-run")
	contains(t, would, " would be forgotten: 2 properties, 1 linked device, 3 records in the log.", "demo: 1 pending and 1 dead letter would be discarded; what was last sent, of 1 identifier\n")
	refuses(t, r, exitUsage, []string{"Forget this person: nothing was changed, since there is no terminal"}, "user", "forget", anna)
	if got := did(t, r, "user", "forget", anna, "--dry-run"); got != would {
		t.Errorf("a dry run has changed something:\n%s", got)
	}
	contains(t, did(t, r, "user", "forget", anna, "--yes"), " is forgotten: 2 properties, 1 linked device, 3 records", "demo: 1 pending and 1 dead letter discarded; what was last sent, of 1 identifier\n")
	contains(t, did(t, r, "user", "show", anna), "somebody of this id was forgotten at ", "nothing is known, and nothing is kept")
	all, sum := tracedBy(t, r, "--user", anna)
	if len(all) != 3 || sum.Forgotten != 3 || !all[0].Forgotten || all[0].Event != "" || all[0].User != "" || in(t, all[2]).Reason != "forgotten" {
		t.Errorf("%+v\n%+v", all, sum)
	}
	forgotten := func() {
		t.Helper()
		y := only(t, stats(t, r))
		if !y.Books.Balanced || y.Books.Pending != 0 || y.Totals.Dead != 0 {
			t.Errorf("%+v", y.Books)
		}
		contains(t, did(t, r, "audit"), "demo: balanced")
	}
	forgotten()

	// She comes again, as somebody new: nothing of before is sent.
	r.Sandbox.SetFaults(sandbox.Faults{})
	before, _ := r.Sandbox.Person("id", anna)
	did(t, r, "sync", "rewind", "demo", "--since", "1h", "--yes", "--partly")
	drained(t, r)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	did(t, r, "sync", "rewind", "demo", "--since", "1h", "--yes", "--partly")
	drained(t, r)
	if after, _ := r.Sandbox.Person("id", anna); after.EventCount != before.EventCount {
		t.Errorf("%d events of hers, %d before", after.EventCount, before.EventCount)
	}
	forgotten()
	down(t, r)
	contains(t, did(t, r, "audit"), "demo: balanced")
	contains(t, did(t, r, "user", "show", anna), "nothing is known, and nothing is kept")
	// Only now may files go: on a slow machine they would be gone before they were to be taken again.
	edit(t, r, "keep = \"1h\"\nrotate_after = \"24h\"", "keep = \"1s\"\nrotate_after = \"2s\"")
	up(t, r)
	eventually(t, 20*time.Second, "the log's file is full", func() bool {
		accepted(t, r, one("benny", "Order 1", fmt.Sprint(time.Now().UnixNano()), `{}`))
		files, err := os.ReadDir(filepath.Join(r.Dir, "storage", "log"))
		return err == nil && len(files) >= 2
	})
	down(t, r) // with a checkpoint of users.db, which may else wait for half a minute
	up(t, r)

	// The log's file goes when it is replaced and no longer kept.
	eventually(t, 20*time.Second, "no byte is left", func() bool {
		accepted(t, r, one("benny", "Order 1", fmt.Sprint(time.Now().UnixNano()), `{}`))
		return len(filesWith(t, filepath.Join(r.Dir, "storage"), anna)) == 0
	})
	eventually(t, 20*time.Second, "the tombstone goes, too", func() bool {
		b, err := os.ReadFile(filepath.Join(r.Dir, "storage", "forgotten.jsonl"))
		return err == nil && len(b) == 0
	})
	down(t, r)
	if files := filesWith(t, filepath.Join(r.Dir, "storage"), anna); len(files) > 0 {
		t.Errorf("she is still in %v", files)
	}
	// Stopped, the command does it itself.
	contains(t, did(t, r, "user", "forget", "benny", "--yes"), " is forgotten: 1 property, 1 linked device, ")
	contains(t, did(t, r, "user", "show", "benny"), "nothing is known, and nothing is kept")
	for _, name := range filesWith(t, filepath.Join(r.Dir, "storage"), "phone of benny") {
		if filepath.Base(filepath.Dir(name)) != "log" {
			t.Errorf("he is still in %s", name)
		}
	}
	up(t, r)
	accepted(t, r, one("benny", "Order 9", "i-1", `{}`)) // an insert_id of before
	drained(t, r)
	if y := only(t, stats(t, r)); !y.Books.Balanced || y.Status != admin.StatusOK {
		t.Errorf("%+v", y)
	}
	down(t, r)
}

// A daemon that is killed while it forgets somebody, and waits for what is in flight, goes
// on with that when it starts again.
func TestForgetGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	const anna = "anna@example.com"
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	eventually(t, 10*time.Second, "it delivers", func() bool { return statusOf(t, r, "demo").Status == admin.StatusOK })
	r.Sandbox.SetFaults(sandbox.Faults{Hang: 1})
	accepted(t, r, one(anna, "Order 1", "i-1", `{"email":"anna@example.com"}`))
	eventually(t, 10*time.Second, "a request is in flight", func() bool { return only(t, stats(t, r)).Depth.InFlight == 1 })
	if all, _ := tracedBy(t, r, "--user", anna); in(t, all[0]).State != "in_flight" {
		t.Errorf("%+v", all)
	}
	forget := ampcio("user", "forget", anna, "--yes", "--config", r.ConfigPath)
	if err := forget.Start(); err != nil {
		t.Fatal(err)
	}
	tombstones := filepath.Join(r.Dir, "storage", "forgotten.jsonl")
	eventually(t, 10*time.Second, "the tombstone is written", func() bool {
		b, _ := os.ReadFile(tombstones)
		return strings.Contains(string(b), `"unfinished":true`)
	})
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	forget.Wait() // it cannot end well
	contains(t, did(t, r, "user", "show", anna), "somebody of this id was forgotten at ")
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	drained(t, r)
	if b, err := os.ReadFile(tombstones); err != nil || strings.Contains(string(b), "unfinished") {
		t.Errorf("%s %v", b, err)
	}
	if p, _ := r.Sandbox.Person("id", anna); p.EventCount != 0 {
		t.Errorf("Customer.io has %d events", p.EventCount)
	}
	contains(t, r.LogTail(), "forgot who was half forgotten at the last stop")
	contains(t, did(t, r, "audit"), "demo: balanced", "discarded 1 ")
	contains(t, did(t, r, "user", "show", anna), "nothing is known, and nothing is kept")
	down(t, r)
}

// filesWith lists the files below a folder in which a text stands.
func filesWith(t testing.TB, dir, text string) (names []string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), text) {
				names = append(names, path)
			}
		}
		return nil
	})
	return names
}
