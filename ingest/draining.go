package ingest

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

var errDraining = errors.New("an operator drains the queue: ampcio drain --refuse")

// refuseDraining is the answer while an operator drains the queue: every sender keeps its events and tries again.
func refuseDraining() *refusal {
	return &refusal{reason: reasonDraining, status: http.StatusServiceUnavailable, cause: errDraining,
		message: "Service Unavailable: no new events are taken while the queue is drained", retryAfter: 5 * time.Second}
}

// Refuse has all events that are sent answered 503 until again is called, which may be more than once. When it returns,
// what is being stored has been: nothing is accepted any more. Each call stands for itself: events are taken again when
// all of them have been taken back. The error is ctx's; then nothing is refused.
func (h *Handler) Refuse(ctx context.Context) (again func(), err error) {
	h.refusing.Add(1)
	again = sync.OnceFunc(func() { h.refusing.Add(-1) })
	// A request looks while it has its share of storing: who has all of it comes after those that have not seen it.
	if err := h.storing.Acquire(ctx, storingMost); err != nil {
		again()
		return nil, err
	}
	h.storing.Release(storingMost)
	return again, nil
}

// Refusing says whether an operator has new events refused.
func (h *Handler) Refusing() bool { return h.refusing.Load() > 0 }
