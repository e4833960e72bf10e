package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

// relayTo lets a rehearsal pass its events on to another, which stands in for Amplitude.
func relayTo(t testing.TB, r, amplitude *rehearsal.Rehearsal, more string) {
	t.Helper()
	edit(t, r, `relay = "off"`, fmt.Sprintf("relay = \"eu\"\nrelay_endpoint = \"http://%s\"\n%s", amplitude.Listen, more))
}

// withoutSyncs takes the sync away.
func withoutSyncs(t testing.TB, r *rehearsal.Rehearsal) {
	t.Helper()
	config := configOf(t, r)
	write(t, r.ConfigPath, config[:strings.Index(config, "[sync.")])
}

// stored reads what the log of a rehearsal has, in order; its daemon is stopped.
func stored(t testing.TB, r *rehearsal.Rehearsal) (list []mapping.Record) {
	t.Helper()
	l, err := queue.Open(queue.Options{Dir: r.Dir + "/storage", RotateBytes: 64 << 20, RotateAfter: time.Hour, InFlightBytes: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = l.Records(1, 1<<62, func(q queue.Record) error {
		record := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
		if err := record.DecodeBody(bytes.Clone(q.Body)); err != nil {
			return err
		}
		list = append(list, record)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// relayedAlike says that the stand-in has every event of ours once, in order for each
// user, and byte for byte but for what had to be added. It gives how many are whole.
//
// What names neither user nor device (a group's properties) the stand-in may have more than
// once, when somebody was killed: ampcio remembers insert_ids by device, else by user.
// They are the same bytes, insert_id and all, by which Amplitude itself knows them again.
func relayedAlike(t *testing.T, ours, theirs []mapping.Record, mark string) (whole int) {
	t.Helper()
	byUser := func(records []mapping.Record, body func(*mapping.Record) []byte) map[string][]string {
		users := map[string][]string{}
		for i := range records {
			r := &records[i]
			user := r.UserID + "|" + r.DeviceID
			users[user] = append(users[user], string(body(r)))
		}
		return users
	}
	want := byUser(ours, func(r *mapping.Record) []byte {
		e, err := r.Relay(mark)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(e.Body, r.Raw) {
			whole++
		}
		return e.Body
	})
	got := byUser(theirs, func(r *mapping.Record) []byte { return r.Raw })
	const nobody = "|"
	anew := len(got[nobody])
	got[nobody] = firstOfEach(got[nobody])
	anew -= len(got[nobody])
	for user, events := range want {
		if !slices.Equal(events, got[user]) {
			t.Errorf("%s: the stand-in has %d events of %d, or in another order, or other ones:\n%.3000s", user, len(got[user]), len(events), cmpLines(strings.Join(events, "\n"), strings.Join(got[user], "\n")))
		}
	}
	if _, some := want[nobody]; !some {
		delete(got, nobody)
	}
	if len(got) != len(want) || len(ours) != len(theirs)-anew {
		t.Errorf("the stand-in has %d events of %d users, want %d of %d", len(theirs)-anew, len(got), len(ours), len(want))
	}
	return whole
}

// firstOfEach leaves repeats out.
func firstOfEach(events []string) (list []string) {
	for _, e := range events {
		if !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	return list
}

// A second ampcio stands in for Amplitude. Both are killed while events come in, and it
// refuses for a while: it gets every event once, in order, as it was sent.
func TestRelay(t *testing.T) {
	t.Parallel()
	amplitude := rehearse(t, rehearsal.Settings{})
	up(t, amplitude)
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	relayTo(t, r, amplitude, "")
	up(t, r)
	ctx := within(t, 60*time.Second)

	for _, rec := range recordings.All() {
		if rec.Method == "POST" {
			if err := r.Post(ctx, rec.Path, rec.Header, rec.Body); err != nil {
				t.Fatalf("%s: %v", rec.Name, err)
			}
		}
	}
	accepted(t, r, `{"api_key":"`+recordings.Key+`","options":{"min_id_length":1},"events":[{"event_type":"Short","user_id":"x"},{"event_type":"Here","user_id":"x","ip":"$remote"}]}`)
	accepted(t, r, `{"api_key":"`+recordings.Key+`","events":[{"event_type":"Half","user_id":"unknown","device_id":"device-half"},{"event_type":"$groupidentify","groups":{"org":"Acme"},"group_properties":{"$set":{"n":1}}}]}`)

	const senders, rounds, run = 6, 25, 10
	var sending sync.WaitGroup
	step := make(chan int, senders*rounds)
	for sender := range senders {
		sending.Go(func() {
			for round := range rounds {
				body := numbered(fmt.Sprintf("user-%d-%d", sender, round%5), round/5*run+1, round/5*run+run)
				if round%2 == 0 { // as an SDK does: there is nothing to add then
					body = strings.ReplaceAll(body, `{"event_type"`, fmt.Sprintf(`{"time":%d,"event_type"`, time.Now().UnixMilli()))
				}
				if err := r.Post(ctx, "/2/httpapi", nil, []byte(body)); err != nil {
					t.Error(err)
					return
				}
				step <- round
			}
		})
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	await := func(n int) {
		for range n {
			select {
			case <-step:
			case <-ctx.Done():
				t.Fatal("the senders do not get on")
			}
		}
	}
	await(senders * rounds / 5)
	must(amplitude.Kill())
	await(senders * rounds / 5)
	up(t, amplitude)
	await(senders * rounds / 5)
	must(r.Kill())
	up(t, r)
	edit(t, amplitude, `min_free = "16MiB"`, `min_free = "900000GiB"`) // it refuses with 503 now
	reloaded(t, amplitude)
	accepted(t, r, numbered("user-late", 1, 10))
	eventually(t, 10*time.Second, "the relay has met a 503", func() bool {
		y := syncNamed(t, stats(t, r), "relay.app")
		return y.Status == admin.StatusUnreachable && y.Reason == "http_503" // not the newest answer: another request may have been under way, and be taken
	})
	sending.Wait()
	contains(t, run0(t, "sync", "status", "relay.app", "--config", r.ConfigPath), "unreachable", "asks to wait (http_503)", "status.amplitude.com")
	edit(t, amplitude, `min_free = "900000GiB"`, `min_free = "16MiB"`)
	reloaded(t, amplitude)
	run0(t, "sync", "retry", "relay.app", "--config", r.ConfigPath) // it was asked to wait for longer than a test may

	snap := drained(t, r)
	balanced(t, snap)
	relay, sync := syncNamed(t, snap, "relay.app"), syncNamed(t, snap, rehearsal.Sync)
	if relay.Destination != admin.ToAmplitude || sync.Destination != admin.ToCustomerIO || relay.Totals.Delivered != relay.Totals.Received || relay.Totals.Received != sync.Totals.Received {
		t.Errorf("relay %+v\nsync %+v", relay.Totals, sync.Totals)
	}
	if got := run0(t, "audit", "--config", r.ConfigPath); !strings.Contains(got, "relay.app") {
		t.Errorf("audit: %s", got)
	}
	down(t, r)
	balanced(t, drained(t, amplitude))
	down(t, amplitude)
	ours, theirs := stored(t, r), stored(t, amplitude)
	whole := relayedAlike(t, ours, theirs, "")
	if whole < len(ours)/3 {
		t.Errorf("%d events had nothing to add", whole)
	}
	t.Logf("%d events, %d of them untouched", len(ours), whole)
	for _, record := range theirs {
		var e struct {
			Type string `json:"event_type"`
			IP   string `json:"ip"`
			User string `json:"user_id"`
		}
		if err := json.Unmarshal(record.Raw, &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.IP == "$remote":
			t.Errorf("%s has not the sender's address", record.Raw)
		case e.Type == "Here" && (e.IP != "127.0.0.1" || record.UserID != "x"), e.Type == "Half" && (e.User != "" || record.DeviceID != "device-half"):
			t.Errorf("%s", record.Raw)
		}
	}
}

// run0 runs ampcio to a good end and gives what it has printed.
func run0(t testing.TB, args ...string) string {
	t.Helper()
	got := run(t, args...)
	if got.code != 0 {
		t.Fatalf("ampcio %s: exit %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return got.stdout
}

// A project may have a relay and no sync. All verbs work on the relay, and it is held when
// it is turned off.
func TestRelayAlone(t *testing.T) {
	t.Parallel()
	amplitude := rehearse(t, rehearsal.Settings{})
	up(t, amplitude)
	r := rehearse(t, rehearsal.Settings{})
	whole := configOf(t, r)
	withoutSyncs(t, r)
	relayTo(t, r, amplitude, "relay_mark = \"via ampcio\"\n")
	flag := func(args ...string) []string { return append(args, "--config", r.ConfigPath) }
	contains(t, run0(t, flag("check-config", "--online")...), "relay.app: every event of project app is passed on to http://", "Amplitude answers")
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 10))
	balanced(t, drained(t, r))
	contains(t, run0(t, flag("queue-stats")...), "relay.app")

	contains(t, run0(t, flag("sync", "pause", "relay.app")...), "relay.app is paused")
	accepted(t, r, numbered("ann-1", 11, 20))
	contains(t, run0(t, flag("sync", "status", "relay.app")...), "ampcio sync resume relay.app")
	contains(t, run0(t, flag("check-config", "--pending")...), "relay.app: 10 pending", "sent -> sent")

	alone := configOf(t, r)
	write(t, r.ConfigPath, whole)
	if report := reloaded(t, r); changes(report) != "demo added, relay.app removed" || strings.Join(report.Syncs[1].Keys, " ") != "relay relay_mark relay_endpoint" || len(report.Changed) != 0 {
		t.Errorf("%+v", report)
	}
	contains(t, run0(t, flag("sync", "status", "relay.app")...), "orphaned", "project.app.relay is off", "ampcio sync remove relay.app")
	accepted(t, r, numbered("ann-1", 21, 25)) // the relay does not take these
	write(t, r.ConfigPath, alone)
	if report := reloaded(t, r); changes(report) != "demo removed, relay.app back" {
		t.Errorf("%+v", report)
	}
	run0(t, flag("sync", "remove", rehearsal.Sync, "--yes")...)
	for _, no := range [][]string{{"sync", "rename", "relay.app", "production"}, {"sync", "remove", "relay.app", "--yes"}} {
		if got := run(t, flag(no...)...); got.code == 0 {
			t.Errorf("%v: %s", no, got.stdout)
		}
	}
	run0(t, flag("sync", "resume", "relay.app")...)
	balanced(t, drained(t, r))
	contains(t, run0(t, flag("sync", "rewind", "relay.app", "--since", "1h", "--dry-run")...), "relay.app would take again 20 records", "sent")
	run0(t, flag("sync", "rewind", "relay.app", "--since", "1h", "--yes")...)
	balanced(t, drained(t, r))

	backup := filepath.Join(r.Dir, "backup.tar")
	run0(t, flag("backup", backup)...)
	elsewhere := filepath.Join(r.Dir, "elsewhere.toml")
	write(t, elsewhere, strings.ReplaceAll(strings.Replace(configOf(t, r), r.Dir+"/storage", r.Dir+"/restored", 1), "admin.sock", "elsewhere.sock"))
	run0(t, "restore", backup, "--config", elsewhere)
	contains(t, run0(t, "audit", "--config", elsewhere), "relay.app: balanced")

	// A key that Amplitude does not know keeps everything.
	edit(t, amplitude, `amplitude_api_keys = ["`, `amplitude_api_keys = ["another-`)
	reloaded(t, amplitude)
	accepted(t, r, numbered("ann-1", 26, 30))
	eventually(t, 10*time.Second, "the relay is blocked", func() bool { return syncNamed(t, stats(t, r), "relay.app").Status == admin.StatusBlocked })
	contains(t, run0(t, flag("sync", "status")...), "blocked", "Amplitude does not know the API key of project app", "amplitude_api_keys", "ampcio reload")
	if got := run(t, flag("check-config", "--online")...); got.code != exitConfig || strings.Contains(got.stderr, recordings.Key) {
		t.Errorf("check-config --online: %d %s", got.code, got.stderr)
	}
	edit(t, amplitude, `amplitude_api_keys = ["another-`, `amplitude_api_keys = ["`)
	reloaded(t, amplitude)
	run0(t, flag("sync", "retry", "relay.app")...)
	balanced(t, drained(t, r))
	down(t, r)
	balanced(t, drained(t, amplitude))
	down(t, amplitude)
	ours := slices.DeleteFunc(stored(t, r), func(r mapping.Record) bool { return r.Seq > 20 && r.Seq <= 25 })
	relayedAlike(t, ours, stored(t, amplitude), "") // no sync takes them, so none has the mark
	text, err := os.ReadFile(r.LogFile.Name())
	if err != nil {
		t.Fatal(err)
	}
	log := string(text)
	contains(t, log, "delivery is blocked; events are kept", "Amplitude knows the account")
	for _, no := range []string{recordings.Key, "ann-1"} {
		if strings.Contains(log, no) {
			t.Errorf("%q is in the log:\n%s", no, log)
		}
	}
}
