package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"ampcio/queue"
)

// forget is what a verb does, up to and without the end: the tombstone stays unfinished.
func (w *world) forget(lanes ...string) queue.Tombstone {
	w.t.Helper()
	ts, err := w.log.ForgetLanes(context.Background(), "app", queue.Forgetting{Lanes: lanes}, func(uint64) error { return w.store.Forget("app", lanes) })
	if err != nil {
		w.t.Fatal(err)
	}
	return ts
}

func (w *world) propertiesOf(userID string) string {
	w.t.Helper()
	known, err := w.store.User("app", userID)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(known.Properties)
}

func (w *world) linked(deviceID string) string {
	w.t.Helper()
	known, err := w.store.Device("app", deviceID)
	if err != nil {
		w.t.Fatal(err)
	}
	return known.UserID
}

// livesOf are three people: anna on two devices, one of which was ben's before, and a
// tablet that is ben's by now; carl is nobody's business.
func livesOf(w *world) {
	w.send("phone 1 {\"$set\":{\"anonymous\":1}}", "phone/annaa 2 {\"$set\":{\"plan\":\"pro\"}}", "tablet/annaa 3", "tablet/bennn 4 {\"$set\":{\"plan\":\"team\"}}",
		"laptop/bennn 5", "laptop/annaa 6 {\"$set\":{\"email\":\"anna@example.com\"}}", "watch/carll 7 {\"$set\":{\"plan\":\"solo\"}}")
}

func forgottenAnna(t testing.TB, w *world) {
	t.Helper()
	if got := w.propertiesOf("annaa"); got != "{}" {
		t.Errorf("anna has %s", got)
	}
	for device, want := range map[string]string{"phone": "", "laptop": "", "tablet": "bennn", "watch": "carll"} {
		if got := w.linked(device); got != want {
			t.Errorf("%s is %q's, want %q", device, got, want)
		}
	}
	if got := w.propertiesOf("bennn"); got != `{"plan":"team"}` {
		t.Errorf("ben has %s", got)
	}
	if got := w.propertiesOf("carll"); got != `{"plan":"solo"}` {
		t.Errorf("carl has %s", got)
	}
}

var annasLanes = []string{LaneOfUser("annaa"), LaneOfDevice("laptop"), LaneOfDevice("phone")}

func TestForgetIsOfOnePersonAndAllTheirDevices(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run().runStore()
	defer w.stop()
	livesOf(w)
	for _, stored := range []bool{false, true} { // in memory, and in the file
		devices, err := w.store.Devices(t.Context(), "app", "annaa")
		if err != nil || !slices.Equal(devices, []string{"laptop", "phone"}) {
			t.Fatalf("stored: %t: %v %v", stored, devices, err)
		}
		if err := w.store.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.send("laptop 9") // whose came to her after somebody looked: see the lanes below
	w.forget(LaneOfUser("annaa"), LaneOfDevice("phone"))
	forgottenAnna(t, w)
	if n := w.send("phone 2"); n != 0 { // what was remembered to know repeats is forgotten, too
		t.Error("an insert_id of before is still known")
	}
	if n := w.send("tablet/bennn 4"); n != 1 {
		t.Error("ben's are not")
	}
	if all := w.records(); all[len(all)-1].UserID != "" {
		t.Errorf("the phone is %q's", all[len(all)-1].UserID)
	}
	// Somebody new, who has nothing of the one before.
	w.send("phone/annaa 8 {\"$set\":{\"new\":true}}")
	if got := w.propertiesOf("annaa"); got != `{"new":true}` {
		t.Errorf("the new one has %s", got)
	}
}

// A crash at any moment behind the tombstone: the next start forgets, and what has come
// since is whole, whether it was written or not.
func TestForgetSurvivesACrash(t *testing.T) {
	for _, before := range []bool{false, true} { // users.db has the person
		for _, after := range []bool{false, true} { // it has written that they are gone
			for _, comes := range []bool{false, true} { // somebody new has come
				t.Run(fmt.Sprintf("stored %t, flushed %t, somebody new %t", before, after, comes), func(t *testing.T) {
					w := start(t, t.TempDir(), Options{}).run()
					livesOf(w)
					if before {
						w.checkpoint()
					}
					w.forget(annasLanes...)
					if comes {
						w.send("phone/annaa 9 {\"$set\":{\"new\":true}}")
					}
					if after {
						w.checkpoint()
					}
					crashed := w.crash(Options{})
					w.stop()
					if comes {
						if got := crashed.propertiesOf("annaa"); got != `{"new":true}` {
							t.Errorf("the new one has %s", got)
						}
						if got := crashed.linked("phone"); got != "annaa" {
							t.Errorf("the phone is %q's", got)
						}
					} else {
						forgottenAnna(t, crashed)
					}
					crashed.stop()
					// A users.db that is lost is made anew from the log, without them.
					if err := os.Remove(filepath.Join(crashed.dir, "users.db")); err != nil {
						t.Fatal(err)
					}
					again := start(t, crashed.dir, Options{})
					if comes {
						if got := again.propertiesOf("annaa"); got != `{"new":true}` {
							t.Errorf("made anew, the new one has %s", got)
						}
					} else {
						forgottenAnna(t, again)
					}
					again.stop()
				})
			}
		}
	}
}

// A checkpoint that was on its way when somebody was forgotten writes them once more; a
// crash at any of its steps leaves nothing of them.
func TestForgetInTheMiddleOfACheckpoint(t *testing.T) {
	for stop := range 4 {
		w := start(t, t.TempDir(), Options{}).run()
		w.failing = true
		livesOf(w)
		crash := errors.New("crash")
		steps := 0
		w.store.perWrite = 2
		w.store.interrupt = func(string) error {
			if steps == 0 {
				w.forget(annasLanes...)
			}
			if steps++; steps > stop {
				return crash
			}
			return nil
		}
		if err := w.store.checkpointNow(); !errors.Is(err, crash) {
			t.Fatalf("after %d steps: %v", stop, err)
		}
		crashed := w.crash(Options{})
		w.stop()
		forgottenAnna(t, crashed)
		crashed.stop()
	}
}

// Written anew, users.db has no byte of who was forgotten, while events are taken.
func TestRewriteLeavesNoByte(t *testing.T) {
	for _, running := range []bool{false, true} {
		w := start(t, t.TempDir(), Options{}).run()
		took := make(chan struct{})
		w.store.interrupt = func(step string) error {
			if step == "rewrite" {
				<-took // events are taken while the new file is there, and the old one in use
			}
			return nil
		}
		if running {
			w.runStore()
		}
		livesOf(w)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(w.store.Flush(t.Context()))
		has := func() bool {
			b, err := os.ReadFile(filepath.Join(w.dir, "users.db"))
			must(err)
			return bytes.Contains(b, []byte("annaa")) || bytes.Contains(b, []byte("anna@example.com"))
		}
		if !has() {
			t.Fatal("users.db never had them")
		}
		w.forget(annasLanes...)
		must(w.store.Flush(t.Context()))
		stop := make(chan struct{})
		var senders sync.WaitGroup
		senders.Go(func() {
			for n := 0; ; n++ {
				w.send(fmt.Sprintf("desk/carll many-%d", n))
				select {
				case <-stop:
					return
				case took <- struct{}{}:
				default:
				}
			}
		})
		done, err := w.store.Rewrite(t.Context())
		if !done || err != nil {
			t.Errorf("%t %v", done, err)
		}
		close(stop)
		senders.Wait()
		if has() {
			t.Error("they are still in it")
		}
		w.send("desk/carll last {\"$set\":{\"last\":1}}")
		must(w.store.Flush(t.Context()))
		w.stop()
		look, err := LookInto(t.Context(), filepath.Join(w.dir, "users.db"), "app", false, "carll")
		if err != nil || string(look.Properties) != `{"plan":"solo","last":1}` || !slices.Equal(look.Devices, []string{"desk", "watch"}) {
			t.Errorf("carl has %s on %v, %v", look.Properties, look.Devices, err)
		}
	}
}
