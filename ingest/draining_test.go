package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// When Refuse has returned nothing is stored any more: what was being stored has been, and what came meanwhile was refused.
func TestRefuseComesBetweenTwoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
		h := New(options(), m)
		var all sync.WaitGroup
		before := 0
		all.Go(func() { before, _ = post(t, h, "/2/httpapi", keyed(key, good)) })
		<-m.begins // it is being stored
		var again func()
		refused := false
		all.Go(func() {
			var err error
			again, err = h.Refuse(t.Context())
			refused = err == nil
		})
		synctest.Wait()
		if refused {
			t.Error("it did not wait for the request that is being stored")
		}
		m.goesOn <- struct{}{}
		all.Wait()
		if before != 200 || !refused || !h.Refusing() {
			t.Errorf("answered %d, refused %t", before, refused)
		}
		if code, _ := post(t, h, "/2/httpapi", keyed(key, good)); code != 503 || len(m.arrivals) != 1 {
			t.Errorf("afterwards: answered %d, %d arrivals", code, len(m.arrivals))
		}
		if r := h.Door().Refused; len(r) != 1 || r[0].Reason != reasonDraining {
			t.Errorf("the door: %+v", r)
		}
		// Two refuse: events are taken when both have taken it back, and twice is once.
		other, err := h.Refuse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again()
		again()
		if !h.Refusing() {
			t.Error("the other still refuses")
		}
		other()
		all.Go(func() { <-m.begins; m.goesOn <- struct{}{} })
		if code, _ := post(t, h, "/2/httpapi", keyed(key, good)); code != 200 {
			t.Errorf("taken again: answered %d", code)
		}
		all.Wait()

		// Who gives up while a request hangs leaves nothing behind.
		all.Go(func() { post(t, h, "/2/httpapi", keyed(key, good)) })
		<-m.begins
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Refuse(ctx); !errors.Is(err, context.DeadlineExceeded) || h.Refusing() {
			t.Errorf("%v, refusing %t", err, h.Refusing())
		}
		m.goesOn <- struct{}{}
		all.Wait()
	})
}
