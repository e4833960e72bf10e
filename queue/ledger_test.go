package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func TestDeadLettersAreKeptWhole(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	var items []string
	for i := range 40 {
		items = append(items, fmt.Sprintf("a:%02d%s", i, noise(uint64(i), 60<<10)))
	}
	h.append(items...)
	for n := 0; n < 40; {
		cl := mustClaim(t, cs["p"])
		out := delivered(len(cl.Records()))
		for i := range out {
			out[i] = Outcome{Ending: Dead, Reason: "too_long", Results: []byte(`[{"status":400,"of":"` + string(cl.Records()[i].Body[:4]) + `"}]`)}
		}
		n += len(out)
		cl.Finish(out)
	}
	st := mustStats(t, cs["p"])
	if st.Books.Dead != 40 || st.DeadKept != 40 {
		t.Fatalf("%+v", st)
	}
	check := func(list func(func(DeadLetter) error) error) {
		t.Helper()
		var n int
		must(t, list(func(d DeadLetter) error {
			if string(d.Record.Body) != items[n] || d.Record.Seq != uint64(n+1) || d.Record.Lane != "a" || d.Record.Project != "app" ||
				d.Reason != "too_long" || !strings.Contains(string(d.Results), items[n][:4]) || d.At == 0 {
				t.Errorf("letter %d: %s, %+v", n, d.Results, d.Record.Seq)
			}
			n++
			return nil
		}))
		if n != 40 {
			t.Errorf("%d letters", n)
		}
	}
	eventually(t, "the checkpoint", func() bool {
		n := 0
		cs["p"].DeadLetters(func(DeadLetter) error { n++; return nil })
		return n == 40
	})
	check(cs["p"].DeadLetters)
	enough := errors.New("enough")
	if err := cs["p"].DeadLetters(func(DeadLetter) error { return enough }); err != enough {
		t.Fatal(err)
	}
	h.close(cs)
	check(func(f func(DeadLetter) error) error { return DeadLetters(dir, "p", f) })
	if err := DeadLetters(dir, "nobody", nil); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	// One that is damaged does not hide the others.
	db, err := OpenDB(ledgerPath(dir, "p"), ledgerOptions())
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketDead).Put(seqKey(7), []byte("spoilt")) }))
	must(t, db.Close())
	n := 0
	if err := DeadLetters(dir, "p", func(DeadLetter) error { n++; return nil }); !errors.Is(err, ErrDamaged) || n != 39 {
		t.Fatal(n, err)
	}
	as, err := AuditFiles(t.Context(), dir)
	must(t, err)
	if len(as) != 1 || as[0].Balanced() || !slices.ContainsFunc(as[0].Notes, func(n string) bool { return strings.Contains(n, "the next start") }) {
		t.Errorf("an audit says %+v", as)
	}
	// The next start goes on without it, and counts it.
	h, cs = mustOpen(t, options(dir), "p")
	if st := mustStats(t, cs["p"]); st.Books.Dead != 39 || st.DeadKept != 39 || st.Books.Lost != 1 || st.Books.Difference() != 0 {
		t.Errorf("after a restart: %+v", st)
	}
	if away := cs["p"].SetAside(); away == nil || !exists(away.Path) {
		t.Errorf("set aside: %+v", away)
	}
	must(t, cs["p"].Flush())
	a, err := cs["p"].Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	h.close(cs)
}

func TestTalliesAndTimesSurviveRestarts(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	h.append("a1", "b1", "c1")
	for range 3 {
		mustClaim(t, cs["p"]).Finish([]Outcome{{Ending: Filtered, Reason: "not_selected", Tallies: []Tally{{"event/filtered/not_selected", "Page Viewed"}, {"user/delivered", ""}}}})
	}
	before := mustStats(t, cs["p"])
	h.close(cs)
	h, cs = mustOpen(t, options(dir), "p")
	after := mustStats(t, cs["p"])
	if got := after.Tallies["event/filtered/not_selected"]; got.N != 3 || got.Example != "Page Viewed" || got != before.Tallies["event/filtered/not_selected"] {
		t.Fatalf("%+v", after.Tallies)
	}
	h.append("d1")
	mustClaim(t, cs["p"]).Finish(delivered(1))
	last := mustStats(t, cs["p"]).LastDelivered
	h.close(cs)
	h, cs = mustOpen(t, options(dir), "p")
	if st := mustStats(t, cs["p"]); st.LastDelivered != last || last == 0 {
		t.Fatalf("%+v", st)
	}
	h.close(cs)
}

// What an identifier was sent is seen by the next claim at once, whether it waits for
// a checkpoint, is in the running one, or on the disk; and after restarts.
func TestWhatWasSentIsSeenThroughCheckpoints(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(options(dir))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	rounds := 300
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := c.checkpoint(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := range rounds {
		w := newWriter(logEnd{seq: uint64(i), counts: map[string]uint64{"app": uint64(i)}}, nil)
		must(t, batch("a1").Resolve(&w))
		must(t, c.take(w.finish()[0], 0))
		cl := c.TryClaim()
		cl.Hold("id:a")
		v, err := cl.Sent("id:a")
		must(t, err)
		if want := fmt.Sprint(i - 1); i > 0 && string(v) != want {
			t.Fatalf("round %d: %q, want %q", i, v, want)
		}
		out := Outcome{Ending: Delivered, SentKey: "id:a", Sent: []byte(fmt.Sprint(i))}
		if i%10 == 9 { // nothing was sent: what was sent before stands
			cl.Finish([]Outcome{{Ending: Filtered, SentKey: "id:a"}})
			c.mu.Lock()
			c.sentNew["id:a"] = []byte(fmt.Sprint(i))
			c.changed = true
			c.mu.Unlock()
			continue
		}
		cl.Finish([]Outcome{out})
	}
	close(stop)
	wg.Wait()
	must(t, c.checkpoint())
	must(t, c.Close())
	l.end.seq = 0 // the records were none of the log's
	must(t, l.Close())
	db, err := OpenDB(ledgerPath(dir, "p"), ledgerOptions())
	must(t, err)
	c = &Consumer{db: db}
	if v, err := c.sent("id:a"); err != nil || string(v) != fmt.Sprint(rounds-1) {
		t.Fatal(string(v), err)
	}
	must(t, db.Close())
}

// The log is released only up to what the ledger on the disk says.
func TestReleaseFollowsTheDisk(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir), "p")
	c := cs["p"]
	check := func() {
		t.Helper()
		h.log.mu.Lock()
		released := h.log.holders[c.holder()]
		h.log.mu.Unlock()
		var s ledgerState
		must(t, c.db.View(func(tx *bolt.Tx) (err error) { s, err = stateOf(tx); return err }))
		if released > s.low {
			t.Fatalf("released up to %d, durable up to %d", released, s.low)
		}
	}
	done := make(chan struct{})
	go func() { h.fill("app", 3000, 100); close(done) }()
	for n := 0; n < 3000; {
		cl := mustClaim(t, c)
		n += len(cl.Records())
		cl.Finish(delivered(len(cl.Records())))
		check()
	}
	<-done
	h.close(cs)
	check2, err := peekLedger(dir, "p")
	must(t, err)
	if check2.low != 3000 || len(check2.done) != 0 {
		t.Fatalf("%+v", check2)
	}
}

func TestEnabledAndDisabled(t *testing.T) {
	dir := t.TempDir()
	open := func(enabled bool) (*house, *Consumer, map[string]*Consumer) {
		t.Helper()
		co := consumerOptions("p")
		co.Enabled = enabled
		h, cs := mustOpenAs(t, options(dir), co)
		return h, cs["p"], cs
	}
	fill := func(h *house, text string) {
		t.Helper()
		// Records of another project stand in between.
		must(t, h.log.Append(t.Context(), &texts{project: "web", items: []string{"w1", "w2"}}))
		h.append("a:"+text+"1", "a:"+text+"2")
	}
	h, c, cs := open(false) // on an empty log: it takes nothing
	fill(h, "never")
	if st := mustStats(t, c); st.Books.Taken != 0 || st.Enabled {
		t.Fatalf("%+v", st)
	}
	h.close(cs)
	h, c, cs = open(true) // from the tail
	fill(h, "first")
	mustClaim(t, c).Return()
	h.close(cs)
	h, c, cs = open(false) // holds what it has
	fill(h, "off")
	eventually(t, "it reads on", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.read == h.log.Tail() })
	if st := mustStats(t, c); st.Books.Pending != 2 || st.Books.Taken != 2 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
	h, _, cs = open(false)
	fill(h, "still off")
	h.close(cs)
	h, c, cs = open(true)
	fill(h, "second")
	got := strings.Join(drain(t, c)["a"], " ")
	if want := "a:first1 a:first2 a:second1 a:second2"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	if st := mustStats(t, c); st.Books.Taken != 4 || st.Low != h.log.Tail() {
		t.Fatalf("%+v", st)
	}
	h.close(cs)
	_, off, err := Inspect(dir)
	must(t, err)
	if off[0].Books.Taken != 4 || off[0].Books.Difference() != 0 {
		t.Fatalf("%+v", off[0].Books)
	}
}

// Toggles on an empty log leave nothing open that should be closed.
func TestToggledOnAnEmptyLog(t *testing.T) {
	dir := t.TempDir()
	for _, enabled := range []bool{true, false, true, true, false} {
		co := consumerOptions("p")
		co.Enabled = enabled
		h, cs := mustOpenAs(t, options(dir), co)
		h.close(cs)
	}
	co := consumerOptions("p")
	co.Enabled = false
	h, cs := mustOpenAs(t, options(dir), co)
	h.append("a1")
	if st := mustStats(t, cs["p"]); st.Books.Taken != 0 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
}

func TestTwoConsumersTwoProjects(t *testing.T) {
	dir := t.TempDir()
	other := consumerOptions("web")
	other.Project = "web"
	h, cs := mustOpenAs(t, small(dir), consumerOptions("one"), consumerOptions("two"), other)
	for i := range 30 {
		h.fill("app", 20, 50)
		must(t, h.log.Append(t.Context(), &texts{project: "web", items: []string{fmt.Sprintf("w:%d", i)}}))
	}
	for name, want := range map[string]uint64{"one": 600, "web": 30} {
		drain(t, cs[name])
		if st := mustStats(t, cs[name]); st.Books.Delivered != want || st.Books.Taken != want {
			t.Errorf("%s: %+v", name, st.Books)
		}
	}
	if st := mustStats(t, cs["two"]); st.Books.Pending != 600 {
		t.Errorf("two: %+v", st.Books)
	}
	h.close(cs)
	two := consumerOptions("two")
	two.Project = "web"
	l, err := Open(options(dir))
	must(t, err)
	if _, err := OpenConsumer(l, two); err == nil || !strings.Contains(err.Error(), "belongs to project") {
		t.Fatal(err)
	}
	must(t, l.Close())
}

// A ledger that no sync owns any more keeps the files it needs, and takes nothing.
func TestAnOrphanedLedger(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir), "gone")
	cs["gone"].mu.Lock() // it does not read
	h.fill("app", 2000, 200)
	cs["gone"].mu.Unlock()
	h.close(cs)
	files := len(logPaths(t, dir))
	project, err := LedgerProject(dir, "gone")
	must(t, err)
	if project != "app" {
		t.Fatalf("project %q", project)
	}
	orphan := consumerOptions("gone")
	orphan.Project, orphan.Enabled = project, false
	h, cs = mustOpenAs(t, small(dir), orphan)
	h.fill("app", 2000, 200)
	h.log.clean()
	if n := len(logPaths(t, dir)); n < files {
		t.Fatalf("%d of %d files are left", n, files)
	}
	if st := mustStats(t, cs["gone"]); st.Books.Pending != 2000 || st.Enabled {
		t.Fatalf("%+v", st)
	}
	drain(t, cs["gone"])
	eventually(t, "nothing is held any more", func() bool { h.log.clean(); return len(logPaths(t, dir)) == 1 })
	h.close(cs)
}

func TestADamagedLedgerGoesOn(t *testing.T) {
	prepare := func(t *testing.T) string {
		dir := t.TempDir()
		h, cs := mustOpen(t, options(dir), "p")
		h.append("a1", "a2", "b1", "b2", "c1")
		for range 2 {
			cl := mustClaim(t, cs["p"])
			cl.Hold("id:" + cl.Lane())
			out := outcomes(Delivered, Dead)[:len(cl.Records())]
			out[0].SentKey, out[0].Sent = "id:"+cl.Lane(), []byte("sent")
			cl.Finish(out)
		}
		h.close(cs)
		return dir
	}
	t.Run("its state can be read", func(t *testing.T) {
		dir := prepare(t)
		suspect(ledgerPath(dir, "p"))
		h, cs := mustOpen(t, options(dir), "p")
		away := cs["p"].SetAside()
		if away == nil || away.Saved < 3 || !exists(away.Path) {
			t.Fatalf("%+v", away)
		}
		st := mustStats(t, cs["p"])
		if st.Books.Taken != 5 || st.Books.Delivered+st.Books.Dead < 2 || st.DeadKept != st.Books.Dead {
			t.Fatalf("%+v", st)
		}
		if v, err := cs["p"].sent("id:a"); err != nil || string(v) != "sent" {
			t.Fatal(string(v), err)
		}
		drain(t, cs["p"])
		h.close(cs)
		h, cs = mustOpen(t, options(dir), "p")
		if cs["p"].SetAside() != nil {
			t.Fatal("it was set aside again")
		}
		h.close(cs)
	})
	t.Run("its free list is gone", func(t *testing.T) {
		dir := prepare(t)
		path := ledgerPath(dir, "p")
		b, err := os.ReadFile(path)
		must(t, err)
		newest := metaAt(t, path, 0)
		if other := metaAt(t, path, 1); other.txid > newest.txid {
			newest = other
		}
		list := b[int64(newest.freelist)*newest.pageSize:][:newest.pageSize]
		copy(list, bytes.Repeat([]byte{7}, len(list)))
		write(t, path, string(b))
		if _, off, err := Inspect(dir); err != nil || off[0].Project != "" {
			t.Fatalf("what a start will set aside is said to be whole: %+v, %v", off, err)
		}
		if project, err := LedgerProject(dir, "p"); project != "app" || err != nil {
			t.Fatalf("what can be read of it is not: %q, %v", project, err)
		}
		h, cs := mustOpen(t, options(dir), "p")
		if cs["p"].SetAside() == nil {
			t.Fatal("not set aside")
		}
		drain(t, cs["p"])
		h.close(cs)
	})
	t.Run("its state is gone", func(t *testing.T) {
		dir := prepare(t)
		write(t, ledgerPath(dir, "p"), "not a database")
		if project, err := LedgerProject(dir, "p"); project != "" || err != nil {
			t.Fatal(project, err)
		}
		if _, off, err := Inspect(dir); err != nil || off[0].Name != "p" {
			t.Fatal(off, err)
		}
		h, cs := mustOpen(t, options(dir), "p")
		if away := cs["p"].SetAside(); away == nil || !strings.Contains(away.Reason, "damaged") {
			t.Fatalf("%+v", away)
		}
		// All that the log still has is sent again, under the same ids.
		if got := drain(t, cs["p"]); len(got["a"]) != 2 || len(got["c"]) != 1 {
			t.Fatal(got)
		}
		h.close(cs)
		if away := entries(t, filepath.Join(dir, damagedFolder)); len(away) != 1 {
			t.Fatal(away)
		}
	})
}

// Books balance at every moment that anybody looks, while all of it runs.
func TestBooksBalanceUnderLoad(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir), "p")
	c := cs["p"]
	const total = 6000
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := w; ; n++ {
				cl, err := c.Claim(ctx)
				if err != nil {
					return
				}
				out := delivered(len(cl.Records()))
				for i := range out {
					out[i].Ending = Ending(1 + (n+i)%3)
				}
				switch n % 4 {
				case 0:
					cl.Return()
				case 1:
					cl.Settle(out[:len(out)/2], 0, "again")
				default:
					cl.Finish(out)
				}
			}
		})
	}
	looked := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			st := mustStats(t, c)
			if st.Books.Pending != st.Ready+st.InFlight+st.Retry {
				t.Errorf("%+v", st)
			}
			looked++
		}
	})
	h.fill("app", total, 50)
	eventually(t, "all have ended", func() bool { return mustStats(t, c).Books.Pending == 0 })
	stop()
	wg.Wait()
	st := mustStats(t, c)
	if st.Books.Taken != total || looked < 10 {
		t.Fatalf("%+v, looked %d times", st.Books, looked)
	}
	h.close(cs)
	_, off, err := Inspect(dir)
	must(t, err)
	if off[0].Books != st.Books {
		t.Fatalf("stopped %+v, running %+v", off[0].Books, st.Books)
	}
}
