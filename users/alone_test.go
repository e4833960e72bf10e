package users

import (
	"path/filepath"
	"testing"
	"time"
)

// Somebody who writes users.db anew just before Run begins takes back nothing that Run
// writes: Run begins behind it.
func TestRunBeginsBehindWhoWritesAlone(t *testing.T) {
	w := start(t, t.TempDir(), Options{CheckpointEvery: time.Millisecond}).run()
	w.send(`phone/anna first {"$set":{"plan":"solo"}}`)
	w.store.interrupt = func(step string) error {
		if step != "rewrite" {
			return nil
		}
		w.runStore()
		w.send(`desk/carl second {"$set":{"plan":"team"}}`)
		for range 50 { // a checkpoint would be written by then
			if w.store.Stats().Checkpoints > 0 {
				t.Error("Run writes into a file whose copy is about to take its place")
				break
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	if done, err := w.store.Rewrite(t.Context()); !done || err != nil {
		t.Fatal(done, err)
	}
	w.send(`tablet/ben third {"$set":{"plan":"none"}}`)
	if err := w.store.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.stop()
	for user, plan := range map[string]string{"anna": "solo", "carl": "team", "ben": "none"} {
		look, err := LookInto(t.Context(), filepath.Join(w.dir, "users.db"), "app", false, user)
		if want := `{"plan":"` + plan + `"}`; err != nil || string(look.Properties) != want {
			t.Errorf("%s has %s, %v; want %s", user, look.Properties, err, want)
		}
	}
}
