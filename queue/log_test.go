package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestManyAppendersOneCommit(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir))
	first := newGate("a1")
	answers := make(chan error, 64)
	go func() { answers <- h.log.Append(t.Context(), first) }()
	<-first.reached // the resolver is busy: all that comes now waits for one commit
	var batches []*texts
	for i := range 50 {
		b := batch(fmt.Sprintf("b:%d", i), fmt.Sprintf("c:%d", i))
		batches = append(batches, b)
		go func() { answers <- h.log.Append(t.Context(), b) }()
	}
	eventually(t, "all wait", func() bool { return len(h.log.in) == 50 })
	close(first.open)
	for range 51 {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	h.close(cs)
	if got := commits(t, logPaths(t, dir)[0]); !slices.Equal(got, []uint64{1}) {
		t.Fatalf("commits %v, want one: the gate's, before which all others had come", got)
	}
	seen := map[uint64]bool{}
	for _, b := range batches {
		if b.places[1].Seq != b.places[0].Seq+1 {
			t.Fatalf("a batch was divided: %v", b.places)
		}
		seen[b.places[0].Seq], seen[b.places[1].Seq] = true, true
	}
	for seq := uint64(2); seq <= 101; seq++ {
		if !seen[seq] {
			t.Fatalf("sequence %d is missing", seq)
		}
	}
}

func TestEachIsAnsweredWithItsOwnResult(t *testing.T) {
	o := options(t.TempDir())
	o.InFlightBytes = 1000
	h, cs := mustOpen(t, o)
	first := newGate("a1")
	first.size = 600
	answers := make(chan error, 1)
	go func() { answers <- h.log.Append(t.Context(), first) }()
	<-first.reached
	second := batch("a2")
	second.size = 600
	if err := h.log.Append(t.Context(), second); !errors.Is(err, ErrBusy) {
		t.Fatalf("over the bound: %v", err)
	}
	close(first.open)
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	if err := h.log.Append(t.Context(), second); err != nil {
		t.Fatalf("the bytes were given back, but: %v", err)
	}
	huge := batch("a3")
	huge.size = 5000
	if err := h.log.Append(t.Context(), huge); err != nil {
		t.Fatalf("one larger than the bound, alone: %v", err)
	}
	if n := h.log.inFlight.Load(); n != 0 {
		t.Fatalf("%d bytes in flight when nothing is", n)
	}
	h.close(cs)
}

// The trap of a neighbour: callers that wait for a reply only, while the committer goes.
func TestAppendNeverHangsWhenTheCommitterGoes(t *testing.T) {
	for round := range 40 {
		dir := t.TempDir()
		h, cs := mustOpen(t, options(dir))
		var acked sync.Map
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := 0; ; n++ {
					body := fmt.Sprintf("%d:%d", i, n)
					switch err := h.log.Append(context.Background(), batch(body)); {
					case err == nil:
						acked.Store(body, true)
					case errors.Is(err, ErrClosed):
						return
					default:
						t.Error(err)
						return
					}
				}
			})
		}
		if round%2 == 0 {
			eventually(t, "some are stored", func() bool { return h.log.Tail() > 20 })
		}
		h.close(cs)
		wg.Wait()
		l, err := Open(options(dir))
		if err != nil {
			t.Fatal(err)
		}
		_, texts := readAll(t, l, 0)
		acked.Range(func(body, _ any) bool {
			if !slices.Contains(texts, body.(string)) {
				t.Errorf("round %d: %v was acknowledged and is gone", round, body)
			}
			return true
		})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendEndsWhenTheLogIsClosedWithoutEverRunning(t *testing.T) {
	l, err := Open(options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { answer <- l.Append(context.Background(), batch("a")) }()
	eventually(t, "it waits", func() bool { return len(l.in) == 1 })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestContextOfAppend(t *testing.T) {
	l, err := Open(options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	l.in = make(chan *pending) // nobody takes anything yet
	ctx, stop := context.WithCancel(t.Context())
	answer := make(chan error, 1)
	go func() { answer <- l.Append(ctx, batch("a1")) }()
	stop()
	if err := <-answer; !errors.Is(err, ErrBusy) {
		t.Fatalf("before it was handed over: %v", err)
	}

	run, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(run) }()
	ctx, stop = context.WithCancel(t.Context())
	g := newGate("a2")
	go func() { answer <- l.Append(ctx, g) }()
	<-g.reached
	stop()
	close(g.open)
	if err := <-answer; err != nil {
		t.Fatalf("handed over, so the answer is the disk's: %v", err)
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if l.Tail() != 1 {
		t.Fatalf("tail %d", l.Tail())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAnErrorOfResolveStopsTheLog(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(options(dir))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	g := newGate("a1")
	g.err = errors.New("users.db cannot be read")
	close(g.open)
	if err := l.Append(t.Context(), g); !errors.Is(err, g.err) {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, g.err) {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), batch("a2")); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWaitsIsStoredBeforeRunEnds(t *testing.T) {
	l, err := Open(options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 10)
	for i := range 10 {
		go func() { answers <- l.Append(t.Context(), batch(fmt.Sprintf("a:%d", i))) }()
	}
	eventually(t, "all wait", func() bool { return len(l.in) == 10 })
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	if l.Tail() != 10 {
		t.Fatalf("tail %d", l.Tail())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestABatchOfNoRecordsIsAnsweredAndTakesNoSequence(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()))
	h.append()
	h.append("a1")
	if h.log.Tail() != 1 {
		t.Fatalf("tail %d", h.log.Tail())
	}
	h.close(cs)
}

func TestPlacesNeverNameTwoRecords(t *testing.T) {
	dir := t.TempDir()
	type name struct {
		nonce [16]byte
		index int
	}
	seen := map[name]bool{}
	for range 3 {
		h, cs := mustOpen(t, options(dir))
		for range 3 {
			b := batch()
			for range 3000 {
				b.items = append(b.items, "a:"+noise(1, 200))
			}
			if err := h.log.Append(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			for _, p := range b.places {
				if n := (name{p.Nonce, p.Index}); seen[n] {
					t.Fatalf("%v twice", p)
				} else {
					seen[n] = true
				}
			}
		}
		h.close(cs)
	}
}

func TestOnlyOneProcessHasTheFolder(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir))
	if _, err := Open(options(dir)); !errors.Is(err, ErrLocked) {
		t.Fatalf("second: %v", err)
	}
	if _, _, err := Inspect(dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("inspect: %v", err)
	}
	h.close(cs)
	look, err := lockForLook(dir)
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		l, err := Open(options(dir))
		if err == nil {
			err = l.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("opened under somebody's eyes: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	look.Close()
	if err := <-opened; err != nil {
		t.Fatalf("one who looks is waited for: %v", err)
	}
}
