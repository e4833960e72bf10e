package queue

import (
	"context"
	"errors"
	"testing"

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

// Chunks come out of memory that others had before, and their readers must not see that.
func TestMemoryOfChunksIsUsedAgain(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()))
	var lent []*Chunk
	r, kept := h.log.Reader(0), h.log.Reader(0)
	for i := range 60 { // far more than is kept in memory
		h.append("a:" + noise(uint64(i), 300<<10))
		c, err := r.Try()
		must(t, err)
		if err := c.Records(func(r Record) error {
			if string(r.Body) != "a:"+noise(uint64(i), 300<<10) {
				t.Errorf("record %d is not what was written", r.Seq)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		c.done()
		if c, err = kept.Try(); err != nil {
			t.Fatal(err)
		}
		lent = append(lent, c) // never done
	}
	for i, c := range lent {
		must(t, c.Records(func(r Record) error {
			if string(r.Body) != "a:"+noise(uint64(i), 300<<10) {
				t.Errorf("record %d has changed under its reader", r.Seq)
			}
			return nil
		}))
	}
	h.close(cs)
}
