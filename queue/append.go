package queue

import "context"

const (
	waiting = 4096 // requests that may wait for the resolver
	// What waits is resolved while the disk still writes the commit before, as soon as it is
	// so many bytes: less is not worth to be woken for.
	plentyBytes = 128 << 10
)

// pending is a batch that waits for its commit.
type pending struct {
	batch Batch
	size  int64
	done  chan error // takes one answer without waiting
}

// Append stores a batch. nil means that all its records are on stable storage, in
// one transaction (or that it resolved to none). *FullError, ErrBusy and ErrClosed
// mean that nothing was stored. After any other error the records may be there or
// not: all of them or none; then nothing more is accepted.
//
// ctx bounds the wait for a place in the queue only (ErrBusy when it ends first).
// Once handed over, the batch is the resolver's, and the answer is that of the disk,
// or of Run's end: whoever gave up sooner would neither know what became of the batch
// nor could use its memory again. Safe for concurrent use; the order of the log is the
// order in which the resolver takes the batches.
func (l *Log) Append(ctx context.Context, b Batch) error {
	p := &pending{batch: b, size: int64(b.Size()), done: make(chan error, 1)}
	if n := l.inFlight.Add(p.size); n > l.o.InFlightBytes && n > p.size {
		l.inFlight.Add(-p.size)
		return ErrBusy
	}
	defer l.inFlight.Add(-p.size)
	select {
	case <-l.gone:
		return ErrClosed
	default:
	}
	select {
	case l.in <- p:
	case <-l.gone:
		return ErrClosed
	case <-ctx.Done():
		return ErrBusy // it was never handed over
	}
	if l.waits.Add(p.size) >= plentyBytes {
		select {
		case l.plenty <- struct{}{}:
		default: // it is known already
		}
	}
	select {
	case err := <-p.done:
		return err
	case <-l.gone:
	}
	// What was taken, was answered before that.
	select {
	case err := <-p.done:
		return err
	default:
		return ErrClosed // still in the channel that nobody reads any more
	}
}
