package users

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each line of sent is one request of one event. Of each record it is told whose it is, and whether that is the first and
// only user of the device (sole), and became it with this event (links).
func TestSoleUserOfADevice(t *testing.T) {
	for _, c := range []struct {
		name       string
		sent, want []string
	}{
		{"nobody", []string{`d1`, `d1`}, []string{``, ``}},
		{"a login, and what follows", []string{`d1`, `d1/ann`, `d1`, `d1/ann`}, []string{``, `ann sole links`, `ann sole`, `ann sole`}},
		{"a user without a device", []string{`/ann`}, []string{`ann`}},
		{"a second user is not it, and then nobody is", []string{`d1/ann`, `d1/bob`, `d1`, `d1/ann`}, []string{`ann sole links`, `bob`, `bob`, `ann`}},
		{"of each of several devices", []string{`d1/ann`, `d2`, `d2/ann`, `d1`, `d2`}, []string{`ann sole links`, ``, `ann sole links`, `ann sole`, `ann sole`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{}).run()
			defer w.stop()
			tell := func() (out []string) {
				for _, r := range w.records() {
					line := r.UserID
					if r.Sole {
						line += " sole"
					}
					if r.Links {
						line += " links"
					}
					out = append(out, line)
				}
				return out
			}
			w.send(c.sent...)
			if diff := cmp.Diff(c.want, tell()); diff != "" {
				t.Error(diff)
			}
			// The same is known after a crash that leaves users.db to be rebuilt, and after one that finds it written.
			for _, written := range []bool{false, true} {
				if written {
					w.checkpoint()
				}
				after := w.crash(Options{}).run()
				after.send(`d1`)
				was := w.records()
				w.send(`d1`)
				now, again := w.records()[len(was):], after.records()[len(was):]
				if got, want := fmt.Sprint(again[0].UserID, again[0].Sole, again[0].Links), fmt.Sprint(now[0].UserID, now[0].Sole, now[0].Links); got != want {
					t.Errorf("after a crash %s, without one %s", got, want)
				}
				after.stop()
			}
		})
	}
}
