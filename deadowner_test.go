package main

import (
	"fmt"
	"testing"

	"ampcio/recordings"
	"ampcio/rehearsal"
)

// What somebody did before the first login on their device goes to them when it is tried again; of a device on which
// several people have logged in it stays, and is nobody's.
func TestDeadLettersOfAnonymousEvents(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "identifier   = \"user_id\"\n", "identifier   = \"user_id\"\nanonymous = \"dead_letter\"\n")
	up(t, r)
	n := 0
	says := func(device, user string) {
		n++
		accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Order Completed","device_id":%q,"user_id":%q,"insert_id":"i%d","event_properties":{"total":%[4]d}}]}`,
			recordings.Key, device, user, n))
	}
	says("device of ann", "")
	says("device of all", "")
	if y := only(t, drained(t, r)); y.Totals.Dead != 2 {
		t.Fatalf("%+v", y.Totals)
	}
	says("device of ann", "ann-1")
	says("device of all", "bob-2")
	says("device of all", "carl-3")
	drained(t, r)
	ids := listed(t, r)
	did(t, r, "dead-letters", "replay", "--all", "--yes")
	if y := only(t, drained(t, r)); y.Totals.Dead != 1 || y.Totals.Delivered != 4 {
		t.Errorf("%+v", y.Totals)
	}
	for user, want := range map[string]int{"ann-1": 2, "bob-2": 1, "carl-3": 1} {
		if p, _ := r.Sandbox.Person("id", user); len(p.Events) != want {
			t.Errorf("%s has %d events, not %d", user, len(p.Events), want)
		}
	}
	if left := listed(t, r); len(left) != 1 || left[0] != ids[1] {
		t.Errorf("%v are left", left)
	}
}
