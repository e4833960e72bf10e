package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
)

// Events that come alone, into a daemon with nothing to do, leave at once: nobody sleeps
// through the only knock there is. Not parallel: it is about time.
func TestOneEventIntoAnIdleDaemon(t *testing.T) {
	r := rehearse(t, rehearsal.Settings{Sync: "requests_per_second = 1000\n"})
	up(t, r)
	const times = 300
	var took []time.Duration
	for i := range times {
		user := fmt.Sprintf("idle-%d", i%7)
		sent := time.Now()
		accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Knock","user_id":%q,"insert_id":"%d"}]}`, recordings.Key, user, i))
		answered := time.Since(sent)
		eventually(t, 10*time.Second, fmt.Sprintf("event %d is at Customer.io", i), func() bool { return len(r.Sandbox.Events(int64(i), 1)) == 1 })
		took = append(took, time.Since(sent))
		if d := time.Since(sent); d > time.Second {
			t.Errorf("event %d took %s, %s of it to be stored", i, d, answered)
		}
	}
	slices.Sort(took)
	t.Logf("median %s, 99 %% within %s, at most %s", took[times/2], took[times*99/100], took[times-1])
	if median := took[times/2]; median > 100*time.Millisecond {
		t.Errorf("half of the events took more than %s: something waits for a clock", median)
	}
	balanced(t, drained(t, r))
	if n := r.Sandbox.Report().Events.Accepted; n != times {
		t.Errorf("Customer.io has %d events of %d", n, times)
	}
	down(t, r)
}
