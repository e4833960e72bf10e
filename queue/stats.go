package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ConsumerStats is a consumer's state at one moment. Times are ms since 1970 UTC, 0
// = never or none.
type ConsumerStats struct {
	Name, Project string
	Enabled       bool
	Books         Books
	Ready         uint64 // pending and neither in flight nor waiting for a retry
	InFlight      uint64
	Retry         uint64 // in lanes whose head waits after a failed try
	DeadKept      uint64 // dead letters in the ledger
	Oldest        int64  // when the oldest pending record was received
	NextDue       int64  // the next retry
	Waiting       map[string]Wait
	Tallies       map[string]Count
	LastDelivered int64
	Low, Tail     uint64 // sequences: everything up to Low has ended; the log's last
	LedgerBytes   int64
}

// Wait is what waits for one reason.
type Wait struct {
	Lanes   int
	Records uint64
	NextDue int64
}

// Stats takes a snapshot. It costs a walk over the lanes in the window, whatever the
// backlog.
func (c *Consumer) Stats() (ConsumerStats, error) {
	tail, count := c.log.Tail(), c.log.Count(c.o.Project)
	c.mu.Lock()
	s := c.snapshot()
	count = max(count, c.readCount)
	unread := takenOf(s.spans, count) - takenOf(s.spans, c.readCount)
	for _, r := range c.state.done {
		if first := max(r.first, c.readCount+1); first <= r.last {
			unread -= min(unread, r.last-first+1)
		}
	}
	st := ConsumerStats{
		Name: c.o.Name, Project: c.o.Project, Enabled: c.o.Enabled,
		InFlight: uint64(c.inFlight), DeadKept: c.deadKept,
		Waiting: map[string]Wait{}, Tallies: maps.Clone(c.tallies),
		LastDelivered: c.lastEnded[Delivered], Low: s.low, Tail: tail,
	}
	st.Books = booksOf(&s, count, uint64(c.pending)+unread)
	for key, r := range c.retries {
		l := c.lanes.byKey[key]
		if l == nil {
			continue
		}
		n := uint64(len(l.records))
		st.Retry += n
		st.note(r, n)
	}
	st.Ready = st.Books.Pending - min(st.Books.Pending, st.InFlight+st.Retry)
	if len(c.window) > 0 {
		st.Oldest = c.window[0].e.rec.Received
	}
	read := c.read
	c.mu.Unlock()
	if st.Oldest == 0 && unread > 0 {
		var err error
		if st.Oldest, err = c.log.oldestReceived(read, c.o.Project); err != nil {
			return st, err
		}
	}
	st.LedgerBytes, _ = diskBytes(c.db.Path())
	return st, nil
}

func (st *ConsumerStats) note(r retryState, records uint64) {
	w := st.Waiting[r.reason]
	w.Lanes++
	w.Records += records
	if w.NextDue == 0 || r.due < w.NextDue {
		w.NextDue = r.due
	}
	st.Waiting[r.reason] = w
	if st.NextDue == 0 || r.due < st.NextDue {
		st.NextDue = r.due
	}
}

func booksOf(s *ledgerState, count, pending uint64) Books {
	return Books{
		Taken: takenOf(s.spans, count), Pending: pending,
		Delivered: s.ended[Delivered], Filtered: s.ended[Filtered], Dead: s.ended[Dead],
		Discarded: s.ended[Discarded], Lost: s.ended[Lost],
	}
}

// oldestReceived is when the first record of a project behind a position was received.
func (l *Log) oldestReceived(after uint64, project string) (received int64, err error) {
	r := l.Reader(after)
	for received == 0 {
		c, err := r.Try()
		if err != nil || c == nil {
			return 0, err
		}
		err = c.Records(func(r Record) error {
			if received == 0 && r.Project == project && r.Seq > after {
				received = r.Received
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return received, nil
}

// LogStats is the log's state at one moment.
type LogStats struct {
	Files     int
	Bytes     int64 // on disk
	Used      int64 // of the whole storage folder
	Free      int64 // left on its file system
	Tail      uint64
	Damaged   int // chunks that could not be read, since start
	SetAside  []SetAside
	Full      string // why appends are refused now; "" when they are not
	Kept      int    // files that stay only for later use
	FirstFile uint64
}

// Stats takes a snapshot.
func (l *Log) Stats() LogStats {
	l.mu.Lock()
	st := LogStats{Files: len(l.files), Tail: l.tail, Damaged: l.damaged, SetAside: append([]SetAside(nil), l.setAway...)}
	for _, f := range l.files {
		st.Bytes += f.bytes.Load()
	}
	if len(l.files) > 0 {
		st.FirstFile = l.files[0].first
	}
	l.mu.Unlock()
	st.Used = folderBytes(l.o.Dir)
	st.Free, _ = freeBytes(l.o.Dir)
	look := diskSpace{dir: l.o.Dir, maxBytes: l.o.MaxBytes, minFree: l.o.MinFree}
	if full := look.full(0); full != nil {
		st.Full = full.Reason
	}
	return st
}

// Inspect reads a storage folder that no process uses: ErrLocked when one does. It
// writes nothing.
func Inspect(dir string) (LogStats, []ConsumerStats, error) {
	if err := unlocked(dir); err != nil {
		return LogStats{}, nil, err
	}
	l := &Log{o: Options{Dir: dir, Now: time.Now}, dir: filepath.Join(dir, "log"), counts: map[string]uint64{}, changed: make(chan struct{})}
	defer func() {
		for _, f := range l.files {
			f.mu.Lock()
			f.closeIdle()
			f.mu.Unlock()
		}
	}()
	var err error
	if l.files, err = listLog(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return LogStats{}, nil, err
	}
	for i := len(l.files) - 1; i >= 0; i-- {
		last, err := l.lastOf(l.files[i])
		if err != nil {
			return LogStats{}, nil, err
		}
		if last != nil {
			l.tail = last.Last()
			if l.counts, err = last.after(); err != nil {
				return LogStats{}, nil, err
			}
			break
		}
	}
	names, err := Ledgers(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return LogStats{}, nil, err
	}
	var consumers []ConsumerStats
	for _, name := range names {
		st, err := l.inspectLedger(name)
		if err != nil {
			return LogStats{}, nil, fmt.Errorf("sync %s: %w", name, err)
		}
		consumers = append(consumers, st)
	}
	return l.Stats(), consumers, nil
}

func (l *Log) inspectLedger(name string) (st ConsumerStats, err error) {
	path := ledgerPath(l.o.Dir, name)
	o := ledgerOptions()
	o.ReadOnly, o.MmapBytes = true, 0
	db, err := OpenDB(path, o)
	if err != nil {
		return st, err
	}
	defer db.Close()
	c := &Consumer{log: l, db: db, lanes: newLanes(), retries: map[string]retryState{}, tallies: map[string]Count{}}
	c.o.Name = name
	if err := Guard(func() error { return db.View(func(tx *bolt.Tx) error { return c.load(tx) }) }); err != nil {
		return st, err
	}
	s := &c.state
	c.o.Project, c.read, c.readCount = s.project, s.low, s.lowCount
	c.o.Enabled = len(s.spans) > 0 && s.spans[len(s.spans)-1].to == 0
	if st, err = c.Stats(); err != nil {
		return st, err
	}
	for _, r := range c.retries {
		st.note(r, 1) // at least: the records of the lane are not counted here
	}
	return st, nil
}

// unlocked says whether no process uses the folder.
func unlocked(dir string) error {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(dir)
		return err
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w", dir, ErrLocked)
	}
	return nil
}
