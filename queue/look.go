package queue

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// OpenToRead opens the log of a folder that no process uses, for looks at it: ErrLocked
// when one does. Nothing is written; a daemon that starts meanwhile waits for it, but not
// for long. Of the log only Reader, Search, Tail and what tells of those who are forgotten
// may be used. close is to be called at the end.
func OpenToRead(dir string) (l *Log, close func() error, err error) {
	lock, err := lockForLook(dir)
	if err != nil {
		return nil, nil, err
	}
	l = newLog(Options{Dir: dir})
	close = func() error {
		var errs []error
		for _, f := range l.files {
			errs = append(errs, f.close())
		}
		if lock != nil {
			errs = append(errs, lock.Close())
		}
		return errors.Join(errs...)
	}
	if l.files, err = listLog(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.Join(err, close())
	}
	ts, err := tombstonesIn(dir)
	if err != nil {
		return nil, nil, errors.Join(err, close())
	}
	l.forgotten.Store(ts)
	l.end = l.storedEnd(len(l.files))
	return l, close, nil
}

// Search is a look through all records of a project that the log has.
type Search struct {
	Project string
	Seq     uint64 // only this record; 0 = all
	Since   int64  // of receipt, ms since 1970 UTC
	// Match is asked of each record, by several goroutines at once; it must not keep or
	// change what it is given.
	Match   func(lane, body []byte) bool
	Workers int // at least 1
}

// Found is a record that was looked for.
type Found struct {
	Record
	Ord uint64 // its number among the records of its project
}

// searchParts is into how many parts the log is cut for each worker: they take unlike long.
const searchParts = 8

// Search calls f, one call at a time, for each record that matches; not in their order.
// Records share the chunk's memory; those of who is forgotten come without lane and body.
// It reads chunk by chunk, holds nothing up, and keeps no more than a chunk for each
// worker in memory; no file that it needs is deleted meanwhile.
func (l *Log) Search(ctx context.Context, s Search, f func(Found) error) error {
	l.mu.Lock()
	none := len(l.files) == 0
	tail := l.end.seq
	l.mu.Unlock()
	if none {
		return nil
	}
	defer l.holdFor("a search", 0)()
	for _, f := range l.list() { // else each chunk would open its file anew
		if _, ok, err := f.acquire(); ok && err == nil {
			defer f.release()
		} // else whoever reads there meets what is wrong with it
	}
	first := l.beforeFiles()
	if s.Seq != 0 {
		first, tail = max(first, s.Seq-1), min(tail, s.Seq)
	}
	var mu sync.Mutex
	workers, ctx := errgroup.WithContext(ctx)
	workers.SetLimit(max(s.Workers, 1))
	parts := uint64(max(s.Workers, 1)) * searchParts
	step := max((tail-min(first, tail))/parts+1, 1)
	for from := first; from < tail; from += step {
		to := min(from+step, tail)
		workers.Go(func() error {
			r := l.Reader(from)
			for ctx.Err() == nil {
				chunk, err := r.Try()
				if err != nil || chunk == nil || chunk.First > to {
					return err
				}
				err = chunk.search(&s, from, to, func(found Found) error {
					if l.Forgotten(found.Project, found.Lane, found.Seq) {
						found.Lane, found.Body, found.ID, found.Forgotten = "", nil, [16]byte{}, true
					}
					mu.Lock()
					defer mu.Unlock()
					return f(found)
				})
				if err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return workers.Wait()
}

// search finds the matches in a chunk behind from, up to and with to. It makes a Record
// only of what matches.
func (c *Chunk) search(s *Search, from, to uint64, f func(Found) error) error {
	d := decoder{b: c.raw}
	ord := c.Before[s.Project]
	for i := range c.Count {
		seq := c.First + uint64(i)
		project := d.bytes()
		lane := d.bytes()
		received := d.varint()
		id := d.take(16)
		body := d.bytes()
		if d.err != nil {
			return fmt.Errorf("record %d: %w", seq, d.err)
		}
		if string(project) != s.Project {
			continue
		}
		ord++
		if seq <= from || received < s.Since || !s.Match(lane, body) {
			continue
		}
		if seq > to {
			return nil
		}
		found := Found{Record: Record{Seq: seq, Project: s.Project, Lane: string(lane), Received: received, Body: body}, Ord: ord}
		copy(found.ID[:], id)
		if err := f(found); err != nil {
			return err
		}
	}
	return nil
}

// The states of a record in one consumer.
const (
	FateNotTaken = "not_taken" // the sync was off, or not there yet, when it came
	FatePending  = "pending"
	FateWaiting  = "waiting" // a try has failed; the next is due at Due
	FateDead     = "dead_letter"
	FateEnded    = "ended"
)

// Fate is what has become of a record in one consumer.
type Fate struct {
	State    string
	Aside    bool   // it waits in the side place
	Behind   bool   // of FateWaiting: it waits behind another record of its user
	Failed   int    // of FateWaiting: how many tries have failed …
	Reason   string // … why the last one did …
	Due      int64  // … and when the next is due, ms since 1970 UTC
	InFlight bool   // it is on its way to Customer.io now
	Dead     *DeadLetter
	Paused   int64   // since when the sync is paused, ms since 1970 UTC; 0 = it is not
	History  []Ended // as far as that is known, in order
}

// Fates tells what has become of records, in their order, as of one moment. Those that are
// not in the log any more have the number 0.
func (c *Consumer) Fates(records []Found, history bool) ([]Fate, error) {
	if err := c.Flush(); err != nil && !NoSpace(err) {
		return nil, err
	}
	var fates []Fate
	err := c.view(func(tx *bolt.Tx) (err error) {
		fates, err = fatesOf(tx, records)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sync %s: look up records: %w", c.o.Name, err)
	}
	c.mu.Lock()
	for i, r := range records {
		l := c.lanes.byKey[r.Lane]
		if l == nil || !l.claimed || fates[i].State != FatePending && fates[i].State != FateWaiting {
			continue
		}
		fates[i].InFlight = slices.ContainsFunc(l.records[:min(l.taken, len(l.records))], func(e *entry) bool { return e != nil && e.rec.Seq == r.Seq })
	}
	c.mu.Unlock()
	if history {
		addHistory(c.log.o.Dir, c.o.Name, records, fates)
	}
	return fates, nil
}

// FatesInFiles does the same of a consumer that no process has open (else ErrLocked).
func FatesInFiles(storage, name string, records []Found, history bool) (fates []Fate, err error) {
	err = viewLedger(storage, name, func(tx *bolt.Tx) error {
		fates, err = fatesOf(tx, records)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sync %s: look up records: %w", name, err)
	}
	if history {
		addHistory(storage, name, records, fates)
	}
	return fates, nil
}

func fatesOf(tx *bolt.Tx, records []Found) ([]Fate, error) {
	s, err := stateOf(tx)
	if err != nil {
		return nil, err
	}
	fates := make([]Fate, len(records))
	heads := map[string]uint64{} // by lane: the first of these that waits
	for i := range records {
		r, f := &records[i], &fates[i]
		f.Paused = s.paused
		if v := tx.Bucket(bucketDead).Get(seqKey(r.Seq)); v != nil {
			f.State = FateDead
			if d, err := openDeadLetter(seqKey(r.Seq), v); err == nil {
				f.Dead = &d
			}
			continue
		}
		if b := tx.Bucket(bucketAside); b != nil && b.Get(asideKey(laneKeyOf(r.Lane), r.Seq)) != nil {
			f.Aside = true
		}
		switch {
		case f.Aside:
		case r.Ord == 0:
			f.State = FateEnded
			continue
		case r.Project != s.project || !takes(s.spans, r.Ord):
			f.State = FateNotTaken
			continue
		case r.Ord <= s.lowCount || inRuns(s.done, r.Ord):
			f.State = FateEnded
			continue
		}
		f.State = FatePending
		head, known := heads[r.Lane]
		if !known {
			heads[r.Lane], head = r.Seq, r.Seq
		}
		k := retryKey(r.Lane)
		v, err := unseal(k, tx.Bucket(bucketRetry).Get(k))
		if err != nil {
			continue
		}
		if lane, retry, err := readRetryState(v); err == nil && lane == r.Lane && retry.attempts > 0 {
			f.State, f.Failed, f.Reason, f.Due, f.Behind = FateWaiting, retry.attempts, retry.reason, retry.due, head != r.Seq
		}
	}
	return fates, nil
}

func addHistory(storage, name string, records []Found, fates []Fate) {
	seqs := make([]uint64, len(records))
	for i := range records {
		seqs[i] = records[i].Seq
	}
	slices.Sort(seqs)
	known := readHistory(historyFolder(storage, name), seqs)
	for i := range records {
		fates[i].History = known[records[i].Seq]
	}
}

// Project is whose records it takes.
func (c *Consumer) Project() string { return c.o.Project }

// Sent is what an identifier was last sent, by the ledger's memory; nil = nothing is known.
func (c *Consumer) Sent(identifier string) ([]byte, error) { return c.sent(identifier) }

// SentInFiles does the same of a consumer that no process has open.
func SentInFiles(storage, name, identifier string) (v []byte, err error) {
	k := []byte(identifier)
	if len(k) == 0 || len(k) > bolt.MaxKeySize {
		return nil, nil
	}
	err = viewLedger(storage, name, func(tx *bolt.Tx) error {
		if whole, err := unseal(k, tx.Bucket(bucketSent).Get(k)); err == nil {
			v = bytes.Clone(whole)
		}
		return nil
	})
	return v, err
}

// HeldOf are what a consumer holds of some lanes.
type HeldOf struct {
	Aside []Record // in the side place
	Dead  []DeadLetter
}

// Held finds what a consumer's ledger holds whole of some lanes: it is there however long
// ago the log has let go of it. match is asked of each dead letter.
func (c *Consumer) Held(ctx context.Context, lanes []string, match func(*DeadLetter) bool) (h HeldOf, err error) {
	if err := c.Flush(); err != nil && !NoSpace(err) {
		return h, err
	}
	err = c.view(func(tx *bolt.Tx) error {
		h.Aside = asideOf(tx, lanes, c.log.forgotten.Load())
		return nil
	})
	if err != nil {
		return h, fmt.Errorf("sync %s: read the side place: %w", c.o.Name, err)
	}
	err = c.DeadLetters(collectDead(ctx, lanes, match, &h))
	return h, sorted(&h, err)
}

// HeldInFiles does the same of a consumer that no process has open.
func HeldInFiles(ctx context.Context, storage, name string, lanes []string, match func(*DeadLetter) bool) (h HeldOf, err error) {
	ts, err := tombstonesIn(storage)
	if err != nil {
		return h, err
	}
	err = viewLedger(storage, name, func(tx *bolt.Tx) error {
		h.Aside = asideOf(tx, lanes, ts)
		return nil
	})
	if err == nil {
		err = DeadLetters(storage, name, collectDead(ctx, lanes, match, &h))
	}
	return h, sorted(&h, err)
}

func asideOf(tx *bolt.Tx, lanes []string, ts *tombstones) (list []Record) {
	b := tx.Bucket(bucketAside)
	if b == nil {
		return nil
	}
	for _, lane := range lanes {
		key := laneKeyOf(lane)
		cur := b.Cursor()
		for k, v := cur.Seek(key[:]); len(k) == 24 && bytes.HasPrefix(k, key[:]); k, v = cur.Next() {
			if e, err := openAside(k, v); err == nil && e.rec.Lane == lane && !ts.cover(e.rec.Project, lane, e.rec.Seq) {
				list = append(list, e.rec)
			}
		}
	}
	return list
}

func collectDead(ctx context.Context, lanes []string, match func(*DeadLetter) bool, h *HeldOf) func(DeadLetter) error {
	return func(d DeadLetter) error {
		if slices.Contains(lanes, d.Record.Lane) || match != nil && match(&d) {
			h.Dead = append(h.Dead, d)
		}
		return ctx.Err()
	}
}

// sorted lets what is damaged be passed over: who lists dead letters tells of it.
func sorted(h *HeldOf, err error) error {
	slices.SortFunc(h.Aside, func(a, b Record) int { return cmp.Compare(a.Seq, b.Seq) })
	if errors.Is(err, ErrDamaged) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
