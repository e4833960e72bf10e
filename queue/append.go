package queue

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The bound of one transaction, and of the chunks kept in memory for consumers that
// are caught up. A request is never split, so a transaction may be larger by one.
const (
	commitBytes = 2 << 20
	recentBytes = 8 << 20
	// Records carry what is known of their users, so that a small request may resolve to
	// much: the transaction ends behind the request that makes it larger than this.
	resolvedBytes = 8 << 20
	waiting       = 4096 // requests that may wait for the committer
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
// Once handed over, the batch is the committer's, and the answer is that of the disk,
// or of Run's end: whoever gave up sooner would neither know what became of the batch
// nor could use its memory again. Safe for concurrent use; the order of the log is the
// order in which the committer takes the batches.
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
	select {
	case err := <-p.done:
		return err
	case <-l.gone:
	}
	// What the committer took, it answered before it went.
	select {
	case err := <-p.done:
		return err
	default:
		return ErrClosed // still in the channel that nobody reads any more
	}
}

// Run commits what is appended, until ctx ends (then what waits is committed, and
// Run returns nil) or a commit fails. After an error nothing is accepted: the
// process has to end, and the next start looks at what the disk holds.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer l.noMore()
	l.running.Store(true)
	keeper := make(chan struct{})
	keeping, stopKeeping := context.WithCancel(context.Background())
	go func() { defer close(keeper); l.keepHouse(keeping) }()
	defer func() { stopKeeping(); <-keeper }()
	for {
		select {
		case p := <-l.in:
			if err := l.round(p); err != nil {
				return err
			}
		case f := <-l.turns:
			f()
		case <-tick.C:
			if err := l.rotateWhenOld(); err != nil {
				return err
			}
		case <-ctx.Done():
			for {
				select {
				case p := <-l.in:
					if err := l.round(p); err != nil {
						return err
					}
					continue
				default:
				}
				return nil
			}
		}
		if l.o.Beat != nil {
			l.o.Beat()
		}
	}
}

// round takes what waits, up to commitBytes, makes one commit of it, and answers.
func (l *Log) round(first *pending) error {
	taken := []*pending{first}
	size := first.size
	for size < commitBytes {
		select {
		case p := <-l.in:
			taken, size = append(taken, p), size+p.size
			continue
		default:
		}
		break
	}
	answer := func(err error) {
		for _, p := range taken {
			p.done <- err
		}
	}
	// Before anything is resolved: resolving moves the state of users.
	if taken, size = l.withoutOverfull(taken, size); len(taken) == 0 {
		return nil
	}
	limits := l.limits.Load()
	l.disk.maxBytes, l.disk.minFree = limits.MaxBytes, limits.MinFree
	for full := l.disk.full(size); full != nil; full = l.disk.full(size) {
		if !l.dropOldestKept() {
			l.refuse(size)
			answer(full)
			return nil
		}
	}
	l.refused.Store(0)
	for rest := taken; len(rest) > 0; {
		n, err := l.store(rest)
		for _, p := range rest[:n] {
			p.done <- err
		}
		if rest = rest[n:]; err != nil {
			for _, p := range rest {
				p.done <- ErrClosed // not looked at
			}
			return err
		}
	}
	return l.rotateWhenLarge()
}

// withoutOverfull refuses the batches of projects of which a consumer has too much
// pending, and gives the others.
func (l *Log) withoutOverfull(taken []*pending, size int64) ([]*pending, int64) {
	full := l.overfull(size)
	if len(full) == 0 {
		return taken, size
	}
	rest := taken[:0:0]
	for _, p := range taken {
		if why := full[p.batch.Project()]; why != nil {
			l.refuse(size)
			size -= p.size
			p.done <- why
			continue
		}
		rest = append(rest, p)
	}
	return rest, size
}

// refuse notes what there was no room for.
func (l *Log) refuse(size int64) {
	l.refused.Store(size)
	l.refusedAt.Store(l.o.Now().UnixMilli())
}

// store makes one commit of the first batches, as many as resolve to about
// resolvedBytes, and says how many those were.
func (l *Log) store(taken []*pending) (n int, err error) {
	w := newWriter(l.end, l.writeBuf)
	for n < len(taken) && w.bytes < resolvedBytes {
		n++
		if err := taken[n-1].batch.Resolve(&w); err != nil {
			return n, fmt.Errorf("resolve: %w", err)
		}
	}
	chunks := w.finish()
	l.writeBuf = w.buf
	if len(chunks) == 0 {
		return n, nil
	}
	end := logEnd{w.next - 1, w.counts}
	if err := l.commit(chunks, end); err != nil {
		return n, err
	}
	l.publish(chunks, end)
	return n, nil
}

// commit writes chunks in one transaction. When it returns nil they are on stable storage.
func (l *Log) commit(chunks []*Chunk, end logEnd) error {
	f := l.writing
	err := Guard(func() error {
		return f.db.Update(func(tx *bolt.Tx) (err error) {
			l.sealBuf, err = putCommit(tx, chunks, end, l.sealBuf[:0])
			return err
		})
	})
	if cap(l.sealBuf) > 4*commitBytes { // after a very large request
		l.sealBuf = nil
	}
	if errors.Is(err, ErrDamaged) {
		f.breakDown()
	}
	if err != nil {
		return fmt.Errorf("commit to %s: %w", f.path, err)
	}
	return nil
}

// publish lets readers see what has been committed.
func (l *Log) publish(chunks []*Chunk, end logEnd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing.first > l.end.seq { // the file's first commit
		l.openedAt = l.o.Now()
	}
	l.end = end
	for _, c := range chunks {
		l.recent = append(l.recent, c)
		l.kept += int64(len(c.raw))
	}
	drop := 0
	for l.kept > recentBytes && drop < len(l.recent)-1 {
		l.kept -= int64(len(l.recent[drop].raw))
		l.recent[drop] = nil
		drop++
	}
	l.recent = l.recent[drop:]
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) rotateWhenLarge() error {
	l.writing.measure()
	size := l.writing.bytes.Load()
	// A bound that has grown is the next file's.
	most := min(l.limits.Load().RotateBytes, l.mapped)
	if size > most/2 && l.spare == nil {
		l.prepareAhead()
	}
	if size < most {
		return nil
	}
	return l.rotate()
}

func (l *Log) rotateWhenOld() error {
	if l.writing.first > l.end.seq || l.o.Now().Sub(l.openedAt) < l.limits.Load().RotateAfter {
		return nil
	}
	return l.rotate()
}

// rotate begins the next file. Where it cannot be made, as on a full disk, nothing is
// lost: the one that is written goes on, and the next commit tries again.
func (l *Log) rotate() error {
	if err := l.prepare(); err != nil {
		return nil
	}
	return l.startFile(l.end.seq)
}

// Writer takes the records of the batches of one commit. It is the committer's.
type Writer struct {
	next   uint64
	counts map[string]uint64
	open   *Chunk
	buf    []byte // the records of the open chunk; used again for the next
	bytes  int    // of all records so far
	done   []*Chunk
}

// Next is the place that the next record will have.
func (w *Writer) Next() Place {
	if w.open != nil && len(w.buf) >= chunkBytes {
		w.close()
	}
	if w.open == nil {
		w.open = &Chunk{First: w.next, Before: maps.Clone(w.counts)}
		rand.Read(w.open.nonce[:]) // never fails: crypto/rand ends the process instead
	}
	return Place{Seq: w.next, Nonce: w.open.nonce, Index: w.open.Count}
}

// Put adds a record at the place that Next gave; its Seq is ignored, its bytes copied.
func (w *Writer) Put(r Record) {
	w.Next()
	before := len(w.buf)
	w.buf = appendRecord(w.buf, &r)
	w.bytes += len(w.buf) - before
	w.open.Count++
	w.counts[r.Project]++
	w.next++
}

// close ends the open chunk. It gets its own bytes, no more than it needs: readers
// may keep it for long.
func (w *Writer) close() {
	w.open.raw = bytes.Clone(w.buf)
	w.done, w.open, w.buf = append(w.done, w.open), nil, w.buf[:0]
}

// newWriter begins behind end; buf is one that may be used up.
func newWriter(end logEnd, buf []byte) Writer {
	return Writer{next: end.seq + 1, counts: maps.Clone(end.counts), buf: buf[:0]}
}

func (w *Writer) finish() []*Chunk {
	if w.open != nil && w.open.Count > 0 {
		w.close()
	}
	w.open = nil
	return w.done
}
