package delivery

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A worker that the ledger does not let go of stops the watchdog's food, and its
// return brings it back.
func TestBeatOfAStuckLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var beats atomic.Int64
		s := &Sync{o: Options{Beat: func() { beats.Add(1) }}.withDefaults(), ledger: make([]atomic.Int64, 2), counter: make(chan struct{}, 2)}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); s.beat(ctx) }()
		defer func() { stop(); <-done }()

		release, released := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(released)
			s.inLedger(&s.ledger[1], func() { <-release })
		}()
		time.Sleep(stuckAfter - time.Second)
		if beats.Load() < 5 {
			t.Errorf("%d beats before it counts as stuck", beats.Load())
		}
		time.Sleep(2 * beatEvery)
		before := beats.Load()
		time.Sleep(10 * time.Minute)
		if n := beats.Load() - before; n != 0 {
			t.Errorf("%d beats while the ledger is stuck", n)
		}
		close(release)
		<-released
		time.Sleep(2 * beatEvery)
		if beats.Load() == before {
			t.Error("no beat after the ledger has let go")
		}
	})
}
