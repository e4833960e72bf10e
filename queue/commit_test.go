package queue

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	bolt "go.etcd.io/bbolt"
)

// slowDisk is a log whose commits wait for the test.
type slowDisk struct {
	*Log
	t       *testing.T
	held    *bolt.Tx
	done    chan error
	stop    context.CancelFunc
	answers map[string]chan error
}

func newSlowDisk(t *testing.T) *slowDisk {
	l, err := Open(options(t.TempDir()))
	must(t, err)
	d := &slowDisk{Log: l, t: t, done: make(chan error, 1), answers: map[string]chan error{}}
	d.held, err = l.writing.db.Begin(true) // bbolt has one writer at a time
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	d.stop = stop
	go func() { d.done <- l.Run(ctx) }()
	return d
}

// resolved appends items and returns when they are resolved, which they are while the disk
// is busy. The first are a commit of their own.
func (d *slowDisk) resolved(name string, items ...string) {
	g := newGate(items...)
	if g.size = plentyBytes; len(d.answers) == 0 {
		g.size = commitBytes
	}
	close(g.open)
	answer := make(chan error, 1)
	d.answers[name] = answer
	go func() { answer <- d.Append(context.Background(), g) }()
	<-g.reached
}

func (d *slowDisk) unanswered(names ...string) {
	d.t.Helper()
	for _, name := range names {
		select {
		case err := <-d.answers[name]:
			d.t.Fatalf("%s: answered (%v) before the disk", name, err)
		default:
		}
	}
}

func (d *slowDisk) answered(name string, want error) {
	d.t.Helper()
	if err := <-d.answers[name]; !errors.Is(err, want) {
		d.t.Errorf("%s: %v, want %v", name, err, want)
	}
}

func (d *slowDisk) close() {
	d.stop()
	must(d.t, <-d.done)
	must(d.t, d.Close())
}

// A repeated event becomes no record. It may repeat one that is not on the disk yet: to say that it is stored would be a lie.
func TestWhatRepeatsIsAnsweredBehindWhatItRepeats(t *testing.T) {
	d := newSlowDisk(t)
	d.resolved("first", "a:1")
	d.resolved("repeats it") // no records
	d.resolved("behind both", "a:2")
	d.unanswered("first", "repeats it", "behind both")
	must(t, d.held.Rollback())
	for _, name := range []string{"first", "repeats it", "behind both"} {
		d.answered(name, nil)
	}
	d.close()
}

func TestWhatIsResolvedBehindACommitThatFails(t *testing.T) {
	d := newSlowDisk(t)
	d.writing.db.MaxSize = 64 << 10 // what does not fit fails, and is not stored
	d.resolved("first", "a:"+noise(1, 200<<10))
	d.resolved("repeats it")
	d.resolved("behind both", "a:2")
	var turn error
	turned := make(chan struct{})
	go func() {
		defer close(turned)
		turn = d.inTurn(context.Background(), func() error { return errors.New("it had its turn behind what is not stored") })
	}()
	d.unanswered("first", "repeats it", "behind both")
	must(t, d.held.Rollback())
	err := <-d.done
	if err == nil {
		t.Fatal("Run has ended without an error")
	}
	d.answered("first", err)
	d.answered("repeats it", ErrClosed)
	d.answered("behind both", ErrClosed)
	if <-turned; !errors.Is(turn, ErrClosed) {
		t.Errorf("who waits for a turn: %v", turn)
	}
	dir := d.o.Dir
	must(t, d.Close())
	h, cs := mustOpen(t, options(dir))
	if seqs, texts := readAll(t, h.log, 0); len(seqs) > 0 {
		t.Errorf("stored: %d %q", seqs, texts)
	}
	h.close(cs)
}

// What has a turn sees all of what was resolved, or nothing of it.
func TestATurnComesBehindWhatIsResolved(t *testing.T) {
	d := newSlowDisk(t)
	d.resolved("first", "a:1")
	d.resolved("second", "a:2", "a:3")
	tail := make(chan uint64, 1)
	go func() {
		tail <- 0
		d.inTurn(context.Background(), func() error { tail <- d.Tail(); return nil })
	}()
	<-tail
	must(t, d.held.Rollback())
	if n := <-tail; n != 3 {
		t.Errorf("it came behind record %d of 3", n)
	}
	d.close()
}

// When Run ends what waits is stored, also behind what there is no room for.
func TestWhatIsRefusedEndsNoStop(t *testing.T) {
	for range 10 { // select takes by chance
		l, err := Open(options(t.TempDir()))
		must(t, err)
		l.setBound("a holder", logBound{name: "full", project: "app", most: 1})
		refused, stored := make(chan error, 2), make(chan error, 1)
		for n := range 2 {
			b := batch("a:1")
			b.size = commitBytes
			go func() { refused <- l.Append(context.Background(), b) }()
			eventually(t, "it waits", func() bool { return len(l.in) == n+1 })
		}
		other := batch("b:1")
		other.project = "another"
		go func() { stored <- l.Append(context.Background(), other) }()
		eventually(t, "all wait", func() bool { return len(l.in) == 3 })
		ctx, stop := context.WithCancel(t.Context())
		stop()
		must(t, l.Run(ctx))
		for range 2 {
			if err := <-refused; !isFull(err) {
				t.Errorf("whose sync has too much pending: %v", err)
			}
		}
		must(t, <-stored)
		must(t, l.Close())
	}
}

// What is under way counts as pending.
func TestBoundOfWhatIsUnderWay(t *testing.T) {
	d := newSlowDisk(t)
	d.setBound("a holder", logBound{name: "p", project: "app", most: commitBytes + 2*plentyBytes})
	d.resolved("first", "a:1")
	d.resolved("second", "a:2")
	third := newGate("a:3")
	third.size = 2 * plentyBytes
	close(third.open)
	answer := make(chan error, 1)
	go func() { answer <- d.Append(context.Background(), third) }()
	select {
	case err := <-answer:
		if !isFull(err) {
			t.Errorf("beyond max_pending_bytes, before the disk has any of it: %v", err)
		}
	case <-third.reached:
		t.Error("what is beyond max_pending_bytes was taken, since the disk has nothing of it yet")
	}
	must(t, d.held.Rollback())
	d.answered("first", nil)
	d.answered("second", nil)
	d.close()
}

// A disk that is stuck has nobody say that all is well.
func TestNoBeatOfAStuckDisk(t *testing.T) {
	var beats atomic.Int64
	o := options(t.TempDir())
	o.Beat = func() { beats.Add(1) }
	l, err := Open(o)
	must(t, err)
	held, err := l.writing.db.Begin(true)
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	eventually(t, "it beats when there is nothing to do", func() bool { return beats.Load() > 0 })
	g := newGate("a:1")
	g.size = commitBytes
	close(g.open)
	answer := make(chan error, 1)
	go func() { answer <- l.Append(context.Background(), g) }()
	<-g.reached
	before := beats.Load()
	time.Sleep(2500 * time.Millisecond)    // two ticks of a real clock, in which nothing is to happen
	if n := beats.Load() - before; n > 1 { // one may have been due as the batch came
		t.Errorf("%d beats while the disk is stuck", n)
	}
	must(t, held.Rollback())
	must(t, <-answer)
	eventually(t, "it beats again", func() bool { return beats.Load() > before+1 })
	stop()
	must(t, <-done)
	must(t, l.Close())
}

// Chunks come out of memory that others had before, and their readers must not see that.
func TestMemoryOfChunksIsUsedAgain(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()))
	text := func(i int) string { return "a:" + noise(uint64(i), 300<<10) }
	check := func(c *Chunk, i int) {
		t.Helper()
		must(t, c.Records(func(r Record) error {
			if string(r.Body) != text(i) {
				t.Errorf("record %d is not what was written", r.Seq)
			}
			return nil
		}))
	}
	r := h.log.Reader(0)
	met, again := map[*byte]bool{}, 0
	lent := map[int]*Chunk{}
	for i := range 100 { // far more than is kept in memory
		h.append(text(i))
		c, err := r.Try()
		must(t, err)
		check(c, i)
		if at := unsafe.SliceData(c.raw); met[at] {
			again++
		} else {
			met[at] = true
		}
		if i%3 == 0 {
			kept, err := h.log.Reader(uint64(i)).Try()
			must(t, err)
			lent[i] = kept // never done
		}
		c.done()
	}
	if again == 0 {
		t.Error("no memory was used again: that shows nothing")
	}
	for i, c := range lent {
		check(c, i)
	}
	h.close(cs)
}

// Everything at once, for -race above all: what is read, claimed and looked at is what was written, whatever
// goes on in the two halves of a commit.
func TestBothHalvesUnderLoad(t *testing.T) {
	o := options(quickDir(t))
	o.RotateBytes, o.RotateAfter = 3<<20, time.Second
	h, cs := mustOpen(t, o, "p")
	c := cs["p"]
	sum := func(b []byte) uint32 { return crc32.ChecksumIEEE(b) }
	var written sync.Map
	right := func(r Record) bool {
		_, ok := written.Load(sum(r.Body))
		return ok
	}
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Second) // of real work
	defer stop()
	var wg sync.WaitGroup
	var acked atomic.Int64
	filler := noise(1, 1<<20)
	for w := range 6 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for n := 0; ctx.Err() == nil; n++ {
				size := 100 + random.IntN(60<<10)
				if random.IntN(20) == 0 {
					size *= 10
				}
				b := batch(fmt.Sprintf("l%d%d:%d ", w, random.IntN(5), n) + filler[:size])
				b.size = size
				written.Store(sum([]byte(b.items[0])), true)
				if err := h.log.Append(context.Background(), b); err != nil {
					t.Error(err)
					return
				}
				acked.Add(1)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			h.log.records(1, 1<<60, func(r Record) error {
				if !right(r) {
					t.Errorf("a look: record %d is not what was written", r.Seq)
				}
				return ctx.Err()
			})
			h.log.Stats()
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			before := h.log.Tail()
			err := h.log.inTurn(ctx, func() error {
				if tail := h.log.Tail(); tail < before {
					t.Errorf("the tail went back from %d to %d", before, tail)
				}
				return nil
			})
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for {
				cl, err := c.Claim(ctx)
				if err != nil {
					return
				}
				var ends []Settlement
				for ; cl != nil && len(ends) < settleTogether+10; cl = c.TryClaim() {
					for _, r := range cl.Records() {
						if !right(r) {
							t.Errorf("a claim: record %d is not what was written", r.Seq)
						}
					}
					ends = append(ends, Settlement{Claim: cl, Outcomes: delivered(len(cl.Records()))})
				}
				if cl != nil {
					cl.Return()
				}
				c.Settle(ends...)
			}
		})
	}
	wg.Wait()
	if st := mustStats(t, c); st.Books.Delivered == 0 || st.Books.Delivered+st.Books.Pending != uint64(acked.Load()) {
		t.Errorf("%d were acknowledged: %+v", acked.Load(), st.Books)
	}
	h.close(cs)
}
