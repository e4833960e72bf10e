package queue

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// sideplaced moves all that waits to the side place, and into the file.
func sideplaced(t *testing.T, h *house, c *Consumer) {
	t.Helper()
	caughtUp(t, h, c)
	c.mu.Lock()
	for _, l := range c.lanes.byKey {
		if l.aside == nil && len(l.records) > 0 {
			c.moveAside(l)
		}
	}
	c.mu.Unlock()
	must(t, c.Flush())
}

// checkpointing makes checkpoints, and what else is to be done, one after the other until
// it is stopped.
func checkpointing(t *testing.T, c *Consumer, also func()) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			also()
			if err := c.Flush(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() { cancel(); work.Wait() }
}

// A sync of project web has too much pending. Events of web are refused; those of app,
// whose sync has all it wants, are not: one project's trouble is not another's.
func TestABoundRefusesItsOwnProjectOnly(t *testing.T) {
	ours, web := consumerOptions("ours"), consumerOptions("web")
	web.Project = "web"
	h, cs := mustOpenAs(t, options(t.TempDir()), ours, web)
	defer h.close(cs)
	h.fill("web", 1000, 400)
	cs["web"].SetBound(300<<10, false)
	cs["web"].MayRefuse(true)
	for _, b := range []*texts{{project: "web", items: []string{"a:1"}}, batch("a:1")} {
		if err := h.log.Append(t.Context(), b); isFull(err) != (b.project == "web") {
			t.Errorf("events of %s: %v", b.project, err)
		}
	}
	if h.log.Stats().Full == "" {
		t.Error("it does not say that it refuses some")
	}
	if t.Failed() {
		return
	}
	// Both at once, as they come under load: one commit, of which a part is refused.
	g := newGate("a:2")
	answers := map[string]chan error{"app": make(chan error, 1), "web": make(chan error, 1)}
	first := make(chan error, 1)
	go func() { first <- h.log.Append(context.Background(), g) }()
	<-g.reached
	for project, answer := range answers {
		go func() {
			answer <- h.log.Append(context.Background(), &texts{project: project, items: []string{"a:3"}})
		}()
	}
	close(g.open)
	must(t, <-first)
	if app, web := <-answers["app"], <-answers["web"]; app != nil || !isFull(web) {
		t.Errorf("together: app %v, web %v", app, web)
	}
	if got := drain(t, cs["ours"]); !slices.Equal(got["a"], []string{"a:1", "a:2", "a:3"}) {
		t.Errorf("got %v", got)
	}
}

// A rewind takes far more again than may be pending. The log has that anyhow: it must
// neither refuse what is new for it, nor give up what was just taken again. What comes
// after the rewind is bounded as ever.
func TestARewindIsNotBounded(t *testing.T) {
	for name, discard := range map[string]bool{"new ones are refused": false, "the oldest are given up": true} {
		t.Run(name, func(t *testing.T) {
			o := options(t.TempDir())
			o.RotateBytes, o.Keep, o.KeepBytes = 64<<10, time.Hour, 1<<30
			h, cs := mustOpen(t, o, "p")
			defer func() { h.close(cs) }()
			c := cs["p"]
			c.SetBound(150<<10, discard)
			c.MayRefuse(true)
			for range 4 { // never more than the bound
				h.fill("app", 200, 400)
				drain(t, c)
				must(t, c.keepHouse())
			}
			re, err := c.Rewind(t.Context(), 0, true, false)
			if err != nil || re.Records != 800 {
				t.Fatalf("%+v, %v", re, err)
			}
			must(t, c.keepHouse())
			if err := h.log.Append(t.Context(), batch("z:new")); err != nil {
				t.Errorf("after a rewind: %v", err)
			}
			h.close(cs)
			h, cs = mustOpen(t, o, "p") // the bound comes with each start
			c = cs["p"]
			c.SetBound(150<<10, discard)
			c.MayRefuse(true)
			must(t, c.keepHouse())
			if st := mustStats(t, c); st.Books.Discarded != 0 || st.Books.Pending != 801 {
				t.Errorf("after a start: %+v", st.Books)
			}
			h.append("z:newer")
			// The sync stands still, and more than the bound comes.
			must(t, c.Pause())
			h.fill("app", 600, 400)
			must(t, c.Resume())
			must(t, c.keepHouse())
			err = h.log.Append(t.Context(), batch("z:newest"))
			if full, given := isFull(err), mustStats(t, c).Books.Discarded > 0; full == discard || given != discard {
				t.Errorf("far beyond the bound: %v, given up: %t", err, given)
			}
		})
	}
}

// The oldest are given up in the moment in which a claim is being made of a lane of the
// side place: its records have been read, or are about to be. They are the claim's.
func TestTheOldestAreGivenUpWhileAClaimIsMade(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 4<<20)
	defer closeAll()
	h.append("F:1", "F:2", "F:3", "G:1", "G:2")
	sideplaced(t, h, c)
	c.operating.Lock() // nobody else keeps house meanwhile
	defer c.operating.Unlock()
	c.mu.Lock()
	l, _ := c.claimLane()
	c.mu.Unlock()
	want := l.aside.count
	c.SetBound(1, true)
	must(t, c.discardOldest())
	if st := mustStats(t, c); st.Books.Discarded != 5-want || st.Books.Pending != want {
		t.Errorf("of the lane that is being claimed: %+v", st.Books)
	}
	c.mu.Lock()
	cl := c.claim(l)
	c.mu.Unlock()
	if cl == nil || uint64(len(cl.Records())) != want {
		t.Fatal("what the claim had read is gone")
	}
	cl.Finish(delivered(len(cl.Records())))
	if st := mustStats(t, c); st.Books.Delivered != want || st.Aside != (Aside{}) {
		t.Errorf("%+v", st)
	}
}

// The oldest are given up while others of the side place are delivered, and a checkpoint
// takes these out of the file: none ends twice.
func TestTheOldestAreGivenUpWhileOthersEnd(t *testing.T) {
	h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 8<<20)
	defer closeAll()
	for round := range 6 {
		h.fill("app", 3000, 400)
		sideplaced(t, h, c)
		stop := checkpointing(t, c, func() {
			if cl := c.TryClaim(); cl != nil {
				cl.Trim(5)
				cl.Finish(delivered(len(cl.Records())))
			}
		})
		before := mustStats(t, c).Books.Delivered
		eventually(t, "deliveries go on", func() bool { return mustStats(t, c).Books.Delivered > before })
		c.operating.Lock()
		c.SetBound(200<<10, true)
		err := c.discardOldest()
		c.SetBound(0, false)
		c.operating.Unlock()
		stop()
		must(t, err)
		must(t, c.Flush())
		a, err := c.Audit(t.Context())
		must(t, err)
		mustBalance(t, a)
		if st := mustStats(t, c); st.Books.Discarded == 0 || t.Failed() {
			t.Fatalf("round %d: %+v", round, st.Books)
		}
		drain(t, c)
	}
}

// Dead letters expire, or are dropped, while checkpoints take them out of the file: none
// is given up twice.
func TestDeadLettersAreGivenUpOnce(t *testing.T) {
	buried := func(t *testing.T, h *house, c *Consumer, n int) (seqs []uint64) {
		h.fill("app", n, 4<<20/n) // much: a look at them takes its time
		for range n {
			seqs = append(seqs, h.log.Tail()-uint64(len(seqs)))
		}
		for left := n; left > 0; {
			cl := mustClaim(t, c)
			left -= len(cl.Records())
			out := make([]Outcome, len(cl.Records()))
			for i := range out {
				out[i] = Outcome{Ending: Dead, Reason: "invalid"}
			}
			cl.Finish(out)
		}
		must(t, c.Flush())
		return seqs
	}
	for name, way := range map[string]struct {
		n      int
		giveUp func(c *Consumer, seqs []uint64) error
	}{
		"expired": {deadLook + 100, func(c *Consumer, _ []uint64) error {
			c.operating.Lock()
			defer c.operating.Unlock()
			c.SetDeadLetterBounds(0, 1)
			defer c.SetDeadLetterBounds(0, 0)
			left := true
			for i := 0; left && i < 2000; i++ { // until a checkpoint has taken them out of the file
				if err := c.expireDead(); err != nil {
					return err
				}
				err := c.view(func(tx *bolt.Tx) error {
					k, _ := tx.Bucket(bucketDead).Cursor().First()
					left = k != nil
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		}},
		"dropped": {40, func(c *Consumer, seqs []uint64) error {
			var each []uint64
			for _, seq := range seqs {
				each = append(each, slices.Repeat([]uint64{seq}, 20)...) // as a script may ask
			}
			dropped, err := c.DropDead(each)
			if err == nil && dropped != len(seqs) {
				err = fmt.Errorf("%d of %d dropped", dropped, len(seqs))
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h, c, closeAll := flowingConsumer(t, options(t.TempDir()), 8<<20)
			defer closeAll()
			for range 4 {
				seqs := buried(t, h, c, way.n)
				stop := checkpointing(t, c, func() {})
				err := way.giveUp(c, seqs)
				stop()
				if err != nil {
					t.Error(err)
				}
				must(t, c.Flush())
				a, err := c.Audit(t.Context())
				must(t, err)
				mustBalance(t, a)
				if st := mustStats(t, c); st.Books.Dead != st.DeadKept || st.DeadBytes < 0 {
					t.Errorf("%+v", st)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}
