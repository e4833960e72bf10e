package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// The list of dead letters shows hashes. By one of them its person can be shown and
// forgotten when the log has let go of all that they did.
func TestForgetByTheHashOfADeadLetter(t *testing.T) {
	t.Parallel()
	const anna = "anna@example.com"
	r := rehearse(t, rehearsal.Settings{Storage: "keep = \"0s\"\nrotate_bytes = \"1MiB\"\n"})
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Never"}})
	up(t, r)
	accepted(t, r, one(anna, "Never", "i-1", `{"plan":"pro"}`))
	drained(t, r)
	for n := range 16 {
		accepted(t, r, padded("somebody else", 50*n+1, 50*n+50, noise(n)))
	}
	drained(t, r)
	first := filepath.Join(r.Dir, "storage", "log", "00000000000000000001.db")
	eventually(t, 20*time.Second, "the log has let go of it", func() bool { _, err := os.Stat(first); return err != nil })
	down(t, r) // what was deleted could still be in memory
	up(t, r)
	var d struct{ User string }
	if err := json.Unmarshal([]byte(did(t, r, "dead-letters", "list", "--json")), &d); err != nil || len(d.User) != 10 {
		t.Fatalf("%+v, %v", d, err)
	}
	contains(t, did(t, r, "user", "show", d.User), "  demo: 0 pending, 1 dead letter", fmt.Sprintf("user %s in project app\n", d.User), "plan")
	contains(t, did(t, r, "user", "forget", d.User, "--yes"), "0 pending and 1 dead letter discarded; what was last sent, of 1 identifier\n")
	contains(t, did(t, r, "user", "show", anna), "nothing is known, and nothing is kept")
}
