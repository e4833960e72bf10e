package queue

import (
	"context"
	"errors"
	"sort"

	bolt "go.etcd.io/bbolt"
)

// Reader reads the log in order. It is for one goroutine; a Log has any number.
type Reader struct {
	l    *Log
	next uint64
	gap  bool // something before next was passed over, and no chunk has told of it yet

	keeps bool     // the file that it reads stays open from one chunk to the next: then Close it
	kept  *logFile // that one; nil = none
}

// Close lets go of the file that a reader which keeps it open reads. It may be read on.
func (r *Reader) Close() {
	if r.kept != nil {
		r.kept.letGo()
		r.kept = nil
	}
}

// acquire is the file's, but for the one that is kept.
func (r *Reader) acquire(f *logFile) (db *bolt.DB, ok bool, err error) {
	if r.kept == f {
		if db, ok = f.stillOpen(); ok {
			return db, true, nil
		}
	}
	r.Close()
	db, ok, err = f.acquire()
	if ok && err == nil && r.keeps && f.keep() {
		r.kept = f
	}
	return db, ok, err
}

// Reader gives a reader that starts behind sequence after. It keeps no file from
// being deleted: Hold does. Of files that are gone it passes over what they had.
func (l *Log) Reader(after uint64) *Reader { return &Reader{l: l, next: after + 1} }

// OpenReader gives a Reader for who reads chunk after chunk: the file that it reads stays open
// from one to the next. Close it.
func (l *Log) OpenReader(after uint64) *Reader { return &Reader{l: l, next: after + 1, keeps: true} }

// Next waits for the next chunk. Its first records may be at or below the position
// that was asked for: the caller passes over them. A gap between one chunk's last
// and the next one's first sequence is what the disk has lost, or what was deleted.
// Errors: ctx's, or what made a file unreadable as a whole (but for damage, which is
// passed over).
func (r *Reader) Next(ctx context.Context) (*Chunk, error) {
	for {
		c, err := r.step(ctx)
		if err != nil || c.Count > 0 {
			return c, err
		}
	}
}

// Try gives the next chunk, or nil when the reader has caught up. Errors are as Next's.
func (r *Reader) Try() (*Chunk, error) {
	for {
		c, _, err := r.look()
		if err != nil || c == nil || c.Count > 0 {
			return c, err
		}
	}
}

// step is Next, but it also tells of a gap that reaches to the end of the log, by a
// chunk of no records: its First is the next sequence that there will be.
func (r *Reader) step(ctx context.Context) (*Chunk, error) {
	for {
		c, changed, err := r.look()
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// look finds the next chunk: in memory when the reader is close to the tail, else in
// the files. When nothing is left there but a gap, it gives a chunk of no records.
// When the reader has caught up, changed is closed once there may be more.
func (r *Reader) look() (c *Chunk, changed <-chan struct{}, err error) {
	l := r.l
	for {
		l.mu.Lock()
		if r.next > l.end.seq {
			end, changed := l.end, l.changed
			l.mu.Unlock()
			if r.gap {
				r.gap = false
				return &Chunk{First: end.seq + 1, Before: end.counts}, nil, nil
			}
			r.Close()
			return nil, changed, nil
		}
		if len(l.recent) > 0 && r.next >= l.recent[0].First {
			i := sort.Search(len(l.recent), func(i int) bool { return l.recent[i].Last() >= r.next })
			c := l.recent[i].lend()
			l.mu.Unlock()
			r.Close()
			r.next, r.gap = c.Last()+1, false
			return l.marked(c), nil, nil
		}
		// The file that holds r.next, or the oldest one behind it.
		i := sort.Search(len(l.files), func(i int) bool { return l.files[i].first > r.next })
		i = max(i-1, 0)
		f, end := l.files[i], l.end.seq
		if i < len(l.files)-1 {
			end = l.files[i+1].first - 1
		}
		l.mu.Unlock()

		c, ok, err := r.lookIn(f, end)
		switch {
		case err != nil:
			return nil, nil, err
		case !ok: // deleted meanwhile: what stood there is gone for readers
		case c == nil:
			r.next, r.gap = end+1, true // nothing more can be read here
		default:
			r.next, r.gap = c.Last()+1, false
			return l.marked(c), nil, nil
		}
	}
}

// lookIn finds the next chunk in one file that ends with sequence end; nil when there
// is none. ok is false when the file was deleted.
func (r *Reader) lookIn(f *logFile, end uint64) (c *Chunk, ok bool, err error) {
	db, ok, err := r.acquire(f)
	if ok && errors.Is(err, ErrDamaged) && r.l.lock != nil {
		if err := r.l.salvageOlder(f, err); err != nil {
			return nil, true, err
		}
		r.l.noteDamage(f.first)
		db, ok, err = r.acquire(f)
	}
	if !ok {
		return nil, false, nil
	}
	damaged := 1 // the file as a whole
	if err == nil {
		c, damaged, err = chunkBehind(db, r.next, end)
		f.release()
	}
	if errors.Is(err, ErrDamaged) {
		err = nil
	} else if err != nil {
		return nil, true, err
	}
	if damaged > 0 && r.l.lock != nil { // who only inspects writes nothing
		f.markDamaged()
		r.l.noteDamage(r.next)
	}
	return c, true, nil
}

// noteDamage counts a place that cannot be read, once.
func (l *Log) noteDamage(at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.damaged[at] = true
}
