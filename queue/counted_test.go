package queue

import "testing"

// What a crash could take back is not counted yet, and nothing that is counted ever goes
// down: not when a dead letter is dropped, and not over a restart.
func TestCountedNeverGoesDown(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	is := func(moment string, want Counted) {
		t.Helper()
		got := c.Counted()
		if tallied := got.Tallies["event/dead/invalid"].N; tallied != want.Buried {
			t.Errorf("%s: %d in the tallies, want %d", moment, tallied, want.Buried)
		}
		got.Tallies = nil
		if got.Delivered != want.Delivered || got.Discarded != want.Discarded || got.Buried != want.Buried || got.Filtered+got.Lost+got.Rewound != 0 {
			t.Errorf("%s: %+v, want %+v", moment, got, want)
		}
	}
	h.append("a:1", "b:1")
	c.writing.Lock() // no checkpoint is made meanwhile
	mustClaim(t, c).Finish([]Outcome{{Ending: Dead, Reason: "invalid", Tallies: []Tally{{Key: "event/dead/invalid"}}}})
	mustClaim(t, c).Finish(delivered(1))
	is("before a checkpoint", Counted{})
	c.writing.Unlock()
	must(t, c.Flush())
	is("after it", Counted{Delivered: 1, Buried: 1})
	if n, err := c.DropDead([]uint64{1}); n != 1 || err != nil {
		t.Fatalf("%d dropped (%v)", n, err)
	}
	is("when it is dropped", Counted{Delivered: 1, Buried: 1, Discarded: 1})
	h.close(cs)

	h, cs = mustOpen(t, o, "p")
	defer func() { h.close(cs) }()
	c = cs["p"]
	is("after a restart", Counted{Delivered: 1, Buried: 1, Discarded: 1})
}
