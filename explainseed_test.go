package main

import (
	"path/filepath"
	"testing"
	"time"

	"ampcio/rehearsal"
)

// On the first day nothing is known but what an import has told: of that explain knows,
// too, and so do user show and forget, while the daemon runs and when it is stopped.
func TestExplainKnowsWhoWasSeeded(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	lines, event := filepath.Join(r.Dir, "seed.json"), filepath.Join(r.Dir, "event.json")
	write(t, lines, exportLine("anna-17", 1, time.Now().Add(-48*time.Hour), `{"plan":"pro"}`)+"\n")
	write(t, event, `{"event_type":"Order Completed","device_id":"device of anna-17","insert_id":"i-1","event_properties":{"total":3}}`)
	did(t, r, "import", "--state", "--yes", lines)
	known := func() {
		t.Helper()
		contains(t, did(t, r, "explain", event), "user anna-17", `before     {"plan":"pro"}`, `"attributes":{"plan":"pro"}`)
		contains(t, did(t, r, "user", "show", "anna-17", "--show-ids"), `"pro"`, "1 linked device device of anna-17")
	}
	known()
	down(t, r)
	known()
	contains(t, did(t, r, "user", "forget", "anna-17", "--yes"), "1 property, 1 linked device")
	contains(t, did(t, r, "user", "show", "anna-17"), "nothing is known, and nothing is kept")

	// Who is seeded after that is known again.
	write(t, lines, exportLine("anna-17", 2, time.Now().Add(-47*time.Hour), `{"plan":"pro"}`)+"\n")
	did(t, r, "import", "--state", "--yes", lines)
	known()
	up(t, r)
	known()
	accepted(t, r, one("bert-17", "Order Completed", "i-2", `{}`))
	did(t, r, "user", "forget", "anna-17", "--yes")
	write(t, lines, exportLine("anna-17", 3, time.Now().Add(-46*time.Hour), `{"plan":"pro"}`)+"\n")
	did(t, r, "import", "--state", "--yes", lines)
	known()
	down(t, r)
	known()
}
