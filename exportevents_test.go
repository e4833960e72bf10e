package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// What waits and what is dead can be taken elsewhere: each line is an event that another
// ampcio takes, and twice is once.
func TestLeavingWithWhatIsLeft(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Never"}})
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Never","user_id":"ann-1","event_properties":{"seq":1}}]}`, recordings.Key))
	drained(t, r)
	did(t, r, "sync", "pause", "demo")
	accepted(t, r, numbered("bob-1", 1, 30))
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"client_upload_time":%q,"events":[{"event_type":"Skewed","user_id":"eve-1","time":%d}]}`, recordings.Key,
		time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:04:05.000Z"), time.Now().Add(-time.Hour).UnixMilli()))

	var taken []string
	for _, running := range []bool{true, false} {
		if !running {
			down(t, r)
		}
		pending := verbOf(t, r, "sync", "export", "demo")
		if pending.code != 0 || pending.stderr != "31 events exported\n" {
			t.Fatalf("%+v", pending)
		}
		dead := verbOf(t, r, "dead-letters", "export", "--http-v2")
		if dead.code != 0 || dead.stderr != "1 dead letter exported\n" {
			t.Fatalf("%+v", dead)
		}
		taken = strings.Split(strings.TrimSpace(pending.stdout+dead.stdout), "\n")
		if len(taken) != 32 {
			t.Fatalf("%d lines:\n%s", len(taken), pending.stdout)
		}
	}
	refuses(t, r, exitUsage, []string{"sync export wants NAME"}, "sync", "export")
	refuses(t, r, exitUsage, []string{"nobody"}, "sync", "export", "nobody")

	other := rehearse(t, rehearsal.Settings{})
	up(t, other)
	for range 2 {
		accepted(t, other, fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, recordings.Key, strings.Join(taken, ",")))
	}
	drained(t, other)
	complete(t, other, map[string]int{"bob-1": 30, "ann-1": 1, "eve-1": 1})
	for _, e := range other.Sandbox.Events(0, 100) {
		if at := time.Unix(e.Timestamp, 0); e.Name == "Skewed" && time.Since(at) > 10*time.Minute {
			t.Errorf("an event of a sender whose clock is an hour late happened at %v", at)
		}
	}
}
