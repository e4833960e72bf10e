package queue

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// standing is a consumer whose parts are called by the test: nothing runs beside it.
func standing(t *testing.T, dir string, items ...string) (*Log, *Consumer, func()) {
	t.Helper()
	h, _ := mustOpen(t, options(dir))
	c, err := OpenConsumer(h.log, ConsumerOptions{Name: "p", Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if len(items) > 0 {
		h.append(items...)
	}
	r := h.log.Reader(c.read)
	for {
		chunk, err := r.Try()
		if err != nil {
			t.Fatal(err)
		}
		if chunk == nil {
			break
		}
		if err := c.take(chunk, 0); err != nil {
			t.Fatal(err)
		}
	}
	return h.log, c, func() { h.close(map[string]*Consumer{"p": c}) }
}

// What a checkpoint has put into the side place is put off when its meta page finds no space, and may be there all the same.
// Where there is no room to put it there again it is pending in the log, and in no other place.
func TestWhatMayBeInTheSidePlaceIsThereOnce(t *testing.T) {
	dir := t.TempDir()
	_, c, end := standing(t, dir, "a1", "a2", "b1")
	c.mu.Lock()
	for _, l := range c.lanes.byKey {
		c.moveAside(l)
	}
	ch := c.takeChanges(true)
	c.mu.Unlock()
	if len(ch.fresh) != 3 {
		t.Fatalf("%d records go to the side place", len(ch.fresh))
	}
	must(t, Update(c.db, ch.write))
	c.unknown = fmt.Errorf("%w: %w", errMetaPage, &os.PathError{Op: "write", Err: syscall.ENOSPC})
	c.putOff(c.unknown, ch)

	limits := *c.log.limits.Load()
	limits.MinFree = 1 << 60
	c.log.limits.Store(&limits)
	was := c.db
	c.looking.RLock()
	if err := c.Flush(); !errors.Is(err, errLookedAt) || !NoSpace(err) || c.giveReserve(err) || c.TryClaim() != nil {
		t.Errorf("while an audit looks at it: %v", err)
	}
	c.looking.RUnlock()
	must(t, c.checkpoint())
	if c.db == was || c.unknown != nil {
		t.Error("the file was not opened anew")
	}
	must(t, c.eachAside(t.Context(), func(e *entry) error {
		t.Errorf("record %d is in the side place", e.rec.Seq)
		return nil
	}))
	end()

	_, c, end = standing(t, dir)
	defer end()
	if got := drain(t, c); !maps.EqualFunc(got, map[string][]string{"a": {"a1", "a2"}, "b": {"b1"}}, slices.Equal) {
		t.Errorf("%v", got)
	}
}

// A checkpoint that finds no space loses nothing: what it should have written is
// written by the next one, and until then nothing more is claimed, since what cannot
// be remembered as delivered would only be sent again.
func TestACheckpointWithoutSpaceIsMadeUpFor(t *testing.T) {
	dir := t.TempDir()
	_, c, end := standing(t, dir, "a1", "b1", "c1")
	cl := mustClaim(t, c)
	cl.Hold("id:1")
	cl.Finish([]Outcome{{Ending: Delivered, SentKey: "id:1", Sent: make([]byte, 300_000)}})
	cl = mustClaim(t, c)
	cl.Finish([]Outcome{{Ending: Dead, Reason: "http_400", Tallies: []Tally{{Key: "event/dead/http_400"}}}})
	c.db.MaxSize = 1
	if err := c.checkpoint(); !NoSpace(err) {
		t.Fatalf("checkpoint: %v", err)
	}
	if cl := c.TryClaim(); cl != nil {
		t.Errorf("%s was claimed", cl.Lane())
	}
	if v, err := c.sent("id:1"); err != nil || len(v) != 300_000 {
		t.Errorf("what was sent is forgotten: %d bytes, %v", len(v), err)
	}
	c.db.MaxSize = 0
	if err := c.checkpoint(); err != nil {
		t.Fatal(err)
	}
	if cl := c.TryClaim(); cl == nil {
		t.Error("nothing is claimed although there is space again")
	} else {
		cl.Return()
	}
	end()

	_, c, end = standing(t, dir)
	defer end()
	st, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := Books{Taken: 3, Delivered: 1, Dead: 1, Pending: 1}
	if st.Books != want || st.DeadKept != 1 || st.Tallies["event/dead/http_400"].N != 1 {
		t.Errorf("%+v, %d dead letters, %v", st.Books, st.DeadKept, st.Tallies)
	}
	letters := 0
	if err := c.DeadLetters(func(l DeadLetter) error { letters++; return nil }); err != nil || letters != 1 {
		t.Errorf("%d dead letters reached the disk, %v", letters, err)
	}
	if v, err := c.sent("id:1"); err != nil || len(v) != 300_000 {
		t.Errorf("what was sent did not reach the disk: %d bytes, %v", len(v), err)
	}
}

func TestTheReserveIsGivenUpOnceAndComesBack(t *testing.T) {
	dir := t.TempDir()
	l, _, end := standing(t, dir)
	defer end()
	path := filepath.Join(dir, reserveName)
	if st, err := os.Stat(path); err != nil || st.Size() != reserveBytes {
		t.Fatalf("%v, %v", st, err)
	}
	if !l.GiveReserve() || l.GiveReserve() {
		t.Error("it can be given up once")
	}
	l.keepReserve()
	if !exists(path) {
		t.Error("it did not come back")
	}
}

// Of many lanes that need one identifier one is woken at a time: each of the others
// would be claimed, mapped and put back for nothing.
func TestAFreeIdentifierWakesOneLane(t *testing.T) {
	_, c, end := standing(t, t.TempDir(), "a1", "b1", "c1", "d1")
	defer end()
	first := mustClaim(t, c)
	first.Hold("shared")
	for range 3 {
		cl := c.TryClaim()
		if cl.Hold("shared") {
			t.Fatal("two claims hold one identifier")
		}
		cl.Return()
	}
	if cl := c.TryClaim(); cl != nil {
		t.Fatalf("%s was claimed before the identifier was free", cl.Lane())
	}
	first.Finish(delivered(1))
	second := c.TryClaim()
	if cl := c.TryClaim(); second == nil || cl != nil {
		t.Fatalf("woken: %v and %v", second, cl)
	}
	// It turns out that it does not need it: then it is the next one's turn.
	second.Finish(delivered(1))
	third := c.TryClaim()
	if third == nil || !third.Hold("shared") {
		t.Fatal("the turn was not passed on")
	}
	third.Finish(delivered(1))
	fourth := c.TryClaim()
	if fourth == nil || !fourth.Hold("shared") {
		t.Fatal("the last one still waits")
	}
	fourth.Finish(delivered(1))
}
