package queue

import (
	"context"
	"errors"
	"sort"
)

// Reader reads the log in order. It is for one goroutine; a Log has any number.
type Reader struct {
	l    *Log
	next uint64
}

// Reader gives a reader that starts behind sequence after.
func (l *Log) Reader(after uint64) *Reader { return &Reader{l: l, next: after + 1} }

// Next waits for the next chunk. Its first records may be at or below the position
// that was asked for: the caller passes over them. A gap between one chunk's last
// and the next one's first sequence is what the disk has lost. Errors: ctx's, or
// what made a file unreadable as a whole (but for damage, which is passed over).
func (r *Reader) Next(ctx context.Context) (*Chunk, error) {
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

// Try gives the next chunk, or nil when the reader has caught up.
func (r *Reader) Try() (*Chunk, error) {
	c, _, err := r.look()
	return c, err
}

// look finds the next chunk: in memory when the reader is close to the tail, else
// in the files. When there is none, changed is closed once there may be.
func (r *Reader) look() (*Chunk, <-chan struct{}, error) {
	for {
		l := r.l
		l.mu.Lock()
		if r.next > l.tail {
			defer l.mu.Unlock()
			return nil, l.changed, nil
		}
		if len(l.recent) > 0 && r.next >= l.recent[0].First {
			i := sort.Search(len(l.recent), func(i int) bool { return l.recent[i].Last() >= r.next })
			c := l.recent[i]
			l.mu.Unlock()
			r.next = c.Last() + 1
			return c, nil, nil
		}
		// The file that holds r.next, or the oldest one behind it.
		i := sort.Search(len(l.files), func(i int) bool { return l.files[i].first > r.next })
		i = max(i-1, 0)
		f, last := l.files[i], i == len(l.files)-1
		end := l.tail
		if !last {
			end = l.files[i+1].first - 1
		}
		l.mu.Unlock()
		db, ok, err := f.acquire()
		if !ok {
			continue // deleted meanwhile, and with it what stood before the next file
		}
		var c *Chunk
		damaged := 0
		if err == nil {
			c, damaged, err = chunkAt(db, r.next)
			f.release()
		}
		if errors.Is(err, ErrDamaged) {
			damaged, err = damaged+1, nil
		}
		if damaged > 0 {
			f.markDamaged()
			l.mu.Lock()
			l.damaged += damaged
			l.mu.Unlock()
		}
		switch {
		case err != nil:
			return nil, nil, err
		case c != nil:
			r.next = c.Last() + 1
			return c, nil, nil
		default:
			r.next = end + 1 // nothing more can be read here
		}
	}
}
