package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/config"
	"ampcio/queue"
	"ampcio/recordings"
	"ampcio/rehearsal"
)

// What a sync takes is marked, also while a reload is about to start it, and while a
// rename has it closed. Then an event may be relayed at any moment.
func TestMarkedInTheMiddleOfAnOperation(t *testing.T) {
	d := &daemon{log: discarded, pulse: newPulse(), streams: map[string]*stream{}}
	d.inForce.Store(&generation{cfg: &config.Config{}})
	var err error
	if d.records, err = queue.Open(queue.Options{Dir: t.TempDir(), RotateBytes: 64 << 20, RotateAfter: time.Hour, InFlightBytes: 1 << 20, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	defer d.records.Close()
	marked := func(want bool, when string) {
		t.Helper()
		if got := d.takenBySync("app")(1); got != want {
			t.Errorf("%s: marked %v, want %v", when, got, want)
		}
	}
	set := &settings{project: "app", enabled: true}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	c := &change{streams: []*streamChange{{name: "added", to: set, created: true}}}
	must(d.operate(func() error {
		must(d.prepare(c))
		marked(false, "a sync that takes nothing yet")
		must(c.streams[0].consumer().SetEnabled(true))
		marked(true, "a sync that has begun to take events, and is not started yet")
		return nil
	}))
	must(c.streams[0].opened.Close())
	marked(false, "a reload that came to nothing")

	must(d.open("added", set))
	marked(true, "a sync that runs")
	must(d.operate(func() error {
		must(d.stopSync(context.Background(), "added"))
		marked(true, "a sync that is being renamed")
		must(queue.RenameLedger(d.records, "added", "renamed"))
		return d.open("renamed", set)
	}))
	marked(true, "a sync that was renamed")
	if err := d.streams["renamed"].consumer.SetEnabled(false); err != nil {
		t.Fatal(err)
	}
	marked(false, "a sync that has taken nothing and is disabled")
	must(d.streams["renamed"].consumer.Close())
}

// The ledger of a sync is what the mark is known by: it cannot be removed while Amplitude
// has not got all that the sync has taken.
func TestASyncIsRemovedOnceItsEventsAreRelayed(t *testing.T) {
	t.Parallel()
	amplitude := rehearse(t, rehearsal.Settings{}) // down, for now
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	relayTo(t, r, amplitude, "relay_mark = \"via_ampcio\"\n")
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 10))
	eventually(t, 10*time.Second, "Customer.io has them", func() bool { return syncNamed(t, stats(t, r), rehearsal.Sync).Totals.Delivered == 10 })
	withoutSyncs(t, r)
	reloaded(t, r)
	accepted(t, r, numbered("ann-1", 11, 15)) // of no sync
	write(t, filepath.Join(r.Dir, "line.json"), exportLine("bob-1", 1, time.Now(), "{}"))
	run0(t, "import", "--yes", "--config", r.ConfigPath, filepath.Join(r.Dir, "line.json"))
	if got := run0(t, "sync", "export", "relay.app", "--config", r.ConfigPath); strings.Count(got, "\n") != 15 {
		t.Errorf("exported to be taken to Amplitude:\n%s", got) // without what came from there
	}
	for _, how := range []string{"--dry-run", "--yes", "--yes"} {
		if got := run(t, "sync", "remove", rehearsal.Sync, how, "--config", r.ConfigPath); got.code != exitData {
			t.Errorf("%s: exit %d %s", how, got.code, got.stdout)
		} else {
			contains(t, got.stderr, "relay.app has not passed on yet all that demo has taken", "ampcio reload")
		}
		if r.Daemon != nil {
			down(t, r)
		}
	}
	up(t, r)
	up(t, amplitude)
	run0(t, "sync", "retry", "relay.app", "--config", r.ConfigPath)
	drained(t, r)
	run0(t, "sync", "remove", rehearsal.Sync, "--yes", "--config", r.ConfigPath)
	down(t, r)
	drained(t, amplitude)
	down(t, amplitude)
	marked := 0
	for _, record := range stored(t, amplitude) {
		if strings.Contains(string(record.Raw), `"via_ampcio":true`) {
			marked++
		}
	}
	if marked != 10 {
		t.Errorf("%d events are marked, the sync has taken 10", marked)
	}
}

// An event that came without an insert_id gets one when it is relayed. By that it is the
// same event when an archive, or the webhook, brings it back: Customer.io has it once.
func TestWhatWasRelayedComesBackAsTheSameEvent(t *testing.T) {
	t.Parallel()
	amplitude := rehearse(t, rehearsal.Settings{})
	up(t, amplitude)
	r := rehearse(t, rehearsal.Settings{Sync: bounded})
	write(t, filepath.Join(r.Dir, "secret"), "a-secret-of-this-test")
	relayTo(t, r, amplitude, "relay_mark = \"via\"\nwebhook_secret_file = \"secret\"\n")
	if err := os.Chmod(filepath.Join(r.Dir, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	accepted(t, r, `{"api_key":"`+recordings.Key+`","events":[{"event_type":"Order Completed","user_id":"ann-1","device_id":"device of ann-1","event_properties":{"seq":1}}]}`)
	drained(t, r)
	down(t, amplitude)
	var relayed struct {
		InsertID string `json:"insert_id"`
	}
	if err := json.Unmarshal(stored(t, amplitude)[0].Raw, &relayed); err != nil || relayed.InsertID == "" {
		t.Fatal(err, relayed)
	}
	line := strings.Replace(exportLine("ann-1", 1, time.Now(), "{}"), `"$insert_id":"ann-1-1"`, `"$insert_id":"`+relayed.InsertID+`"`, 1)
	write(t, filepath.Join(r.Dir, "line.json"), line)
	contains(t, run0(t, "import", "--yes", "--config", r.ConfigPath, filepath.Join(r.Dir, "line.json")), "1 event stored")
	if err := r.Post(within(t, 5*time.Second), "/webhook/amplitude", [][2]string{{"X-Ampcio-Secret", "a-secret-of-this-test"}}, []byte(line)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "Customer.io has been sent it three times", func() bool {
		return syncNamed(t, stats(t, r), rehearsal.Sync).Totals.Delivered == 3
	})
	if p, _ := r.Sandbox.Person("id", "ann-1"); p.EventCount != 1 {
		t.Errorf("Customer.io has %d events of 1", p.EventCount)
	}
	down(t, r)
}
