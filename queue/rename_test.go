package queue

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
)

// A sync was given another name in the configuration, and the daemon restarted, before
// anybody thought of its queue: the old ledger is an orphan, the new one has begun.
func TestARenamedSyncTakesItsPastAlong(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "old")
	h.append("a:1", "b:1", "c:1", "d:1", "a:2")
	mustClaim(t, cs["old"]).Finish([]Outcome{{Ending: Delivered, SentKey: "id:a", Sent: []byte("old"), Tallies: []Tally{{Key: "event/delivered"}}}, {Ending: Delivered}})
	mustClaim(t, cs["old"]).Finish([]Outcome{{Ending: Dead, Reason: "invalid", SentKey: "id:b", Sent: []byte("old")}})
	mustClaim(t, cs["old"]).Retry(1, "http_500")
	h.close(cs)

	orphan, fresh := consumerOptions("old"), consumerOptions("new")
	orphan.Enabled = false
	h, cs = mustOpenAs(t, o, orphan, fresh)
	h.append("a:3", "c:2", "e:1")
	cl := mustClaim(t, cs["new"])
	cl.Finish([]Outcome{{Ending: Delivered, SentKey: "id:a", Sent: []byte("new"), Tallies: []Tally{{Key: "event/delivered"}}}})
	old, new := mustStats(t, cs["old"]).Books, mustStats(t, cs["new"]).Books
	h.close(cs)

	l, err := Open(o)
	must(t, err)
	before, err := os.ReadFile(ledgerPath(o.Dir, "old"))
	must(t, err)
	must(t, RenameLedger(l, "old", "new"))
	if exists(ledgerPath(o.Dir, "old")) {
		t.Error("the old ledger is still there")
	}
	must(t, l.Close())

	for _, crashed := range []bool{true, false} { // before the old one was deleted; long after
		if crashed {
			must(t, os.WriteFile(ledgerPath(o.Dir, "old"), before, 0o600))
		}
		h, cs = mustOpen(t, o, "new")
		if names, err := Ledgers(o.Dir); err != nil || !slices.Equal(names, []string{"new"}) {
			t.Errorf("ledgers: %v, %v", names, err)
		}
		st := mustStats(t, cs["new"])
		want := Books{Taken: old.Taken + new.Taken, Delivered: old.Delivered + new.Delivered, Dead: 1, Pending: old.Pending + new.Pending}
		if d := cmp.Diff(want, st.Books); d != "" || st.Tallies["event/delivered"].N != 2 || st.DeadKept != 1 {
			t.Errorf("%s%+v", d, st)
		}
		for id, want := range map[string]string{"id:a": "new", "id:b": "old"} {
			if v, err := cs["new"].sent(id); err != nil || string(v) != want {
				t.Errorf("%s was sent %q, %v", id, v, err)
			}
		}
		if !crashed {
			got := drain(t, cs["new"])
			if d := cmp.Diff(map[string][]string{"c": {"c:1", "c:2"}, "d": {"d:1"}, "e": {"e:1"}}, got); d != "" {
				t.Error(d)
			}
		}
		h.close(cs)
	}
}

// A user has waited under the old name, and under the new one has come into the side
// place. What has moved there is newer than what the log still has of the user: after the
// rename it waits until that is read.
func TestARenameKeepsTheOrderOfWhatWasAside(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "old")
	h.append("u:1", "u:2", "v:1")
	h.close(cs)
	off, fresh := consumerOptions("old"), consumerOptions("new")
	off.Enabled = false
	h, cs = mustOpenAs(t, o, off, fresh)
	h.append("u:3", "u:4", "w:1")
	sideplaced(t, h, cs["new"])
	h.close(cs)
	l, err := Open(o)
	must(t, err)
	must(t, RenameLedger(l, "old", "new"))

	// It claims before its reader has read anything.
	c, err := OpenConsumer(l, fresh)
	must(t, err)
	if cl := c.TryClaim(); cl != nil {
		t.Errorf("claimed at once: %s", bodies(cl.Records()))
		cl.Return()
	}
	must(t, errors.Join(c.Close(), l.Close()))
	h, cs = mustOpenAs(t, o, fresh)
	defer h.close(cs)
	want := map[string][]string{"u": {"u:1", "u:2", "u:3", "u:4"}, "v": {"v:1"}, "w": {"w:1"}}
	if d := cmp.Diff(want, drain(t, cs["new"])); d != "" {
		t.Error(d)
	}
}

func TestALedgerWithoutANamesakeIsRenamed(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "old")
	h.append("a:1")
	h.close(cs)
	l, err := Open(o)
	must(t, err)
	must(t, RenameLedger(l, "old", "new"))
	if err := RenameLedger(l, "old", "other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	must(t, l.Close())
	h, cs = mustOpen(t, o, "new")
	defer h.close(cs)
	if got := drain(t, cs["new"]); len(got["a"]) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestLedgersThatCannotBecomeOne(t *testing.T) {
	for name, other := range map[string]struct {
		project   string
		workspace int64
		says      string
	}{
		"they took the same records": {project: "app", says: "took records before this one had taken its last"},
		"of two projects":            {project: "web", says: `of project "app"`},
		"of two workspaces":          {project: "app", workspace: 2, says: "its workspace is 1"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t.TempDir())
			second := consumerOptions("new")
			second.Project = other.project
			h, cs := mustOpenAs(t, o, consumerOptions("old"), second)
			must(t, errors.Join(cs["old"].EnterWorkspace(1, false), cs["new"].EnterWorkspace(other.workspace, false)))
			h.append("a:1")
			h.close(cs)
			l, err := Open(o)
			must(t, err)
			defer l.Close()
			if err := RenameLedger(l, "old", "new"); err == nil || !strings.Contains(err.Error(), other.says) {
				t.Errorf("%v", err)
			}
			left, err := os.ReadDir(filepath.Join(o.Dir, "sync"))
			must(t, err)
			if len(left) != 2 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestARemovedLedgerHoldsNothing(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes = 64 << 10
	h, cs := mustOpen(t, o, "p", "q")
	h.fill("app", 500, 300)
	drain(t, cs["q"])
	h.log.clean()
	if h.log.Stats().Files < 2 {
		t.Fatal("p holds nothing")
	}
	h.close(cs)
	h, cs = mustOpen(t, o, "q")
	defer h.close(cs)
	must(t, RemoveLedger(h.log, "p"))
	eventually(t, "the files go", func() bool { h.log.clean(); return h.log.Stats().Files == 1 })
}

// toFormat1 makes the ledger of p one of before there was a side place.
func toFormat1(t *testing.T, dir string) {
	t.Helper()
	db, err := OpenDB(ledgerPath(dir, "p"), ledgerOptions())
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		s, err := stateOf(tx)
		if err != nil {
			return err
		}
		v := append(s.appendFormat1(nil), byte(s.ended[Dead]))
		return errors.Join(put(tx.Bucket(bucketMeta), keyState, v), put(tx.Bucket(bucketMeta), keyFormat, []byte{1}),
			tx.DeleteBucket(bucketAside), tx.DeleteBucket(bucketAsideLane))
	}))
	must(t, db.Close())
}

// A ledger as it was before there was a side place.
func TestALedgerOfFormat1IsReadAndBroughtUp(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	h.append("a:1", "b:1", "c:1")
	mustClaim(t, cs["p"]).Finish([]Outcome{{Ending: Dead, Reason: "invalid"}})
	mustClaim(t, cs["p"]).Finish(delivered(1))
	h.close(cs)
	toFormat1(t, o.Dir)
	a := audited(t, o.Dir)
	mustBalance(t, a)
	if a.DeadLetters != 1 || a.InLog != 1 {
		t.Errorf("%+v", a)
	}
	_, stopped, err := Inspect(o.Dir)
	must(t, err)
	want := Books{Taken: 3, Delivered: 1, Dead: 1, Pending: 1}
	if stopped[0].Books != want {
		t.Errorf("stopped: %+v", stopped[0].Books)
	}
	h, cs = mustOpen(t, o, "p")
	st := mustStats(t, cs["p"])
	if st.Books != want || st.DeadBytes == 0 {
		t.Errorf("%+v", st)
	}
	if n, err := cs["p"].ReplayDead([]uint64{1}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if got := drain(t, cs["p"]); len(got) != 2 {
		t.Errorf("got %v", got)
	}
	if st := mustStats(t, cs["p"]); st.DeadBytes != 0 {
		t.Errorf("%d bytes of no dead letters", st.DeadBytes)
	}
	h.close(cs)
}

// The reader comes to a lane while its part of the side place is read for a claim: what it
// finds is older than that, and goes first.
func TestTheReaderComesToALaneThatIsBeingClaimed(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "old")
	h.append("u:1", "u:2")
	h.close(cs)
	off, fresh := consumerOptions("old"), consumerOptions("new")
	off.Enabled = false
	h, cs = mustOpenAs(t, o, off, fresh)
	h.append("u:3", "u:4")
	sideplaced(t, h, cs["new"])
	h.close(cs)
	l, err := Open(o)
	must(t, err)
	must(t, RenameLedger(l, "old", "new"))
	c, err := OpenConsumer(l, fresh)
	must(t, err)

	lane := c.lanes.byKey["u"]
	lane.aside.next = 1 // it becomes 0 when the claim has looked at what memory has
	c.using.Lock()      // the claim waits for the file
	claimed := make(chan *Claim)
	go func() { claimed <- c.TryClaim() }()
	eventually(t, "the claim looks at the file", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return lane.aside.next == 0 })
	for r := l.Reader(c.read); ; {
		chunk, err := r.Try()
		must(t, err)
		if chunk == nil {
			break
		}
		must(t, c.take(chunk, c.epoch))
	}
	c.using.Unlock()
	if cl := <-claimed; cl != nil {
		t.Errorf("claimed %s", bodies(cl.Records()))
		cl.Return()
	}
	if got := bodies(claimWithin(t, c, time.Second).Records()); got != "u:1 u:2 u:3 u:4 " {
		t.Errorf("then %s", got)
	}
	must(t, errors.Join(c.Close(), l.Close()))
}
