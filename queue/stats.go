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
	Newest        int64  // when the newest was; only of Look
	// Ages counts what is pending by the bounds that Look was given, and in one more what
	// is older; Approximate says that some of it, and Newest, are reckoned.
	Ages          []uint64
	Approximate   bool
	Latencies     Latencies
	OldestDead    int64 // when the first of the dead letters, by sequence, died; only of Look
	NextDue       int64 // the next retry
	Waiting       map[string]Wait
	Tallies       map[string]Count
	LastDelivered int64
	Low, Tail     uint64 // sequences: everything up to Low has ended; the log's last
	LedgerBytes   int64

	PausedSince  int64 // 0 = it is not paused
	Workspace    int64 // of Customer.io, 0 = not known yet
	Aside        Aside // the side place
	PendingBytes int64 // of what is pending, on disk and about: its share of the log, and the side place
	MaxPending   int64 // its bound, 0 = none …
	// … and what happens beyond it: the oldest are given up, or else new ones refused.
	DiscardsOldest bool
	LastRewind     int64
	DeadBytes      int64
	Full           string // why nothing is claimed: the disk takes no checkpoint; "" = it does
}

// Wait is what waits for one reason.
type Wait struct {
	Lanes   int
	Records uint64
	NextDue int64
	Oldest  int64   // when the first that waits of the user who waits longest was received; 0 = not known
	Example *Record // that one, where Look was asked for it and it is at hand; it must not be changed

	example string // the lane of it
}

// Stats takes a snapshot. It costs a walk over the lanes that have failed, whatever
// the backlog.
func (c *Consumer) Stats() (ConsumerStats, error) { return c.Look(Detail{}) }

// Look is Stats with more detail. It costs a walk over what was read ahead, too, and a
// few short looks at files: milliseconds, whatever the backlog.
func (c *Consumer) Look(d Detail) (ConsumerStats, error) {
	st, err := c.look(d)
	if err == nil && d.Examples {
		err = c.asideExamples(&st, c.view)
	}
	if err == nil && d.wanted() && st.DeadKept > 0 {
		st.OldestDead, err = c.oldestDead()
	}
	return st, err
}

func (c *Consumer) look(d Detail) (ConsumerStats, error) {
	tail, count := c.log.endOf(c.o.Project)
	c.mu.Lock()
	s := c.snapshot()
	count = max(count, c.readCount) // the reader may have gone on since
	unread := c.unread(count)
	st := ConsumerStats{
		Name: c.o.Name, Project: c.o.Project, Enabled: c.o.Enabled,
		InFlight: uint64(c.inFlight), DeadKept: s.ended[Dead], DeadBytes: s.deadBytes,
		Waiting: map[string]Wait{}, Tallies: maps.Clone(c.tallies),
		LastDelivered: s.newest[Delivered], Low: s.low, Tail: max(tail, c.read),
		Aside: c.side.stats(), MaxPending: c.bound.most, DiscardsOldest: c.bound.discard,
		PausedSince: s.paused, Workspace: s.workspace, LastRewind: s.lastRewind, Full: c.full,
	}
	st.Books = booksOf(&s, count, uint64(c.pending)+c.side.records+unread)
	st.PendingBytes = c.pendingBytes()
	for key, r := range c.retries {
		l := c.lanes.byKey[key]
		parked := l != nil && l.parked != "" && !l.claimed // it is due, and waits for its turn
		if parked {
			r.due = max(r.due, c.o.Now().UnixMilli())
		}
		if parked || l != nil && l.heap >= 0 {
			n := l.waiting()
			st.Retry += n
			st.note(r, n, l, d.Examples)
		}
	}
	st.Ready = st.Books.Pending - min(st.Books.Pending, st.InFlight+st.Retry)
	if len(c.window) > 0 {
		st.Oldest = c.window[0].e.rec.Received
	}
	if side := st.Aside.Oldest; side != 0 && (st.Oldest == 0 || side < st.Oldest) {
		st.Oldest = side
	}
	if d.wanted() {
		st.Ages = make([]uint64, len(d.Bounds)+1)
		c.addInMemory(&st, &d)
	}
	st.Latencies = c.latencies.stats(c.o.Now().UnixMilli())
	read, from := c.read, c.readCount
	c.mu.Unlock()
	if d.wanted() && unread > 0 {
		if err := c.addUnread(&st, &d, &s, read, from, count); err != nil {
			return st, err
		}
	}
	if st.Oldest == 0 && unread > 0 { // what is aside was taken before what is unread
		var err error
		if st.Oldest, err = c.oldestUnread(&s, read, from); err != nil {
			return st, err
		}
	}
	st.LedgerBytes, _ = diskBytes(c.path())
	return st, nil
}

// oldestUnread is when the first record was received that is pending and stands
// behind a position; before is how many the project has up to there.
func (c *Consumer) oldestUnread(s *ledgerState, after, before uint64) (received int64, err error) {
	r := c.log.Reader(after)
	for {
		chunk, err := r.Try()
		if err != nil || chunk == nil {
			return 0, err
		}
		if chunk.First > after {
			before = max(before, chunk.Before[s.project])
		}
		err = chunk.Records(func(r Record) error {
			if r.Project != s.project || r.Seq <= after {
				return nil
			}
			if before++; takes(s.spans, before) && !inRuns(s.done, before) {
				received = r.Received
				return errStop
			}
			return nil
		})
		if err != nil {
			return received, nil
		}
	}
}

// note counts a lane that waits. l is nil when only its failed tries are known.
func (st *ConsumerStats) note(r retryState, records uint64, l *lane, examples bool) {
	w := st.Waiting[r.reason]
	w.Lanes++
	if oldest := l.oldest(); oldest != 0 && (w.Oldest == 0 || oldest < w.Oldest) {
		w.Oldest = oldest
		if w.Example = nil; examples {
			w.example = l.key
			if len(l.records) > 0 && !l.records[0].rec.Forgotten {
				rec := l.records[0].rec
				w.Example = &rec
			}
		}
	}
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
		Taken: takenOf(s.spans, count), Rewound: s.rewound, Pending: pending,
		Delivered: s.ended[Delivered], Filtered: s.ended[Filtered], Dead: s.ended[Dead],
		Discarded: s.ended[Discarded], Lost: s.ended[Lost],
	}
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
	Full      string // why appends are refused now, those of the size last refused too; "" when they are not
	Kept      int    // files that stay only for later use: they go first when space is needed
	KeptBytes int64  // theirs, on disk
	FirstFile uint64
}

// refusedFor is how long the size of a commit that was refused says what is refused now.
const refusedFor = 30 * time.Second

// Stats takes a snapshot. It walks over the storage folder: milliseconds.
func (l *Log) Stats() LogStats {
	kept := int64(0) // what a commit would make room of
	l.mu.Lock()
	st := LogStats{Files: len(l.files), Tail: l.end.seq, Damaged: len(l.damaged), SetAside: append([]SetAside(nil), l.setAway...)}
	for _, f := range l.files {
		st.Bytes += f.bytes.Load()
	}
	if len(l.files) > 0 {
		st.FirstFile = l.files[0].first
		st.Kept = l.released()
		for _, f := range l.files[:st.Kept] {
			kept += f.bytes.Load()
		}
	}
	l.mu.Unlock()
	st.KeptBytes = kept
	st.Used = folderBytes(l.o.Dir)
	st.Free, _ = freeBytes(l.o.Dir)
	limits := l.limits.Load()
	look := diskSpace{dir: l.o.Dir, maxBytes: limits.MaxBytes, minFree: limits.MinFree, spare: kept}
	size := l.refused.Load()
	if l.o.Now().UnixMilli()-l.refusedAt.Load() > refusedFor.Milliseconds() {
		size = 0 // nobody has tried since: judge by what little comes next
	}
	for _, full := range l.overfull(size) {
		st.Full = full.Reason
	}
	if full := look.full(size, 0); full != nil {
		st.Full = full.Reason
	}
	return st
}

// Inspect reads a storage folder that no process uses: ErrLocked when one does. It
// writes nothing; a daemon that starts meanwhile waits for it. What stands in for a
// damaged ledger are stats of its name alone, of project "".
func Inspect(dir string) (LogStats, []ConsumerStats, error) { return InspectDetail(dir, Detail{}) }

// InspectDetail is Inspect with more detail.
func InspectDetail(dir string, d Detail) (LogStats, []ConsumerStats, error) {
	lock, err := lockForLook(dir)
	if err != nil {
		return LogStats{}, nil, err
	}
	defer lock.Close() // nil is harmless
	l := newLog(Options{Dir: dir, Now: time.Now})
	if l.files, err = listLog(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return LogStats{}, nil, err
	}
	defer func() {
		for _, f := range l.files {
			f.close()
		}
	}()
	l.end = l.storedEnd(len(l.files))
	names, err := Ledgers(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return LogStats{}, nil, err
	}
	if len(names) > 0 {
		known, counts, err := ledgersKnow(dir)
		if err != nil {
			return LogStats{}, nil, err
		}
		l.end.reach(known, counts)
	}
	var consumers []ConsumerStats
	for _, name := range names {
		st, err := l.inspectLedger(name, d)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return LogStats{}, nil, fmt.Errorf("sync %s: %w", name, err)
		}
		consumers = append(consumers, st)
	}
	return l.Stats(), consumers, nil
}

func (l *Log) inspectLedger(name string, d Detail) (ConsumerStats, error) {
	c := newConsumer(l, ConsumerOptions{Name: name, Now: l.o.Now})
	if err := viewLedgerAsStart(l.o.Dir, name, c.load); err != nil {
		return ConsumerStats{Name: name, Waiting: map[string]Wait{}, Tallies: map[string]Count{}}, err
	}
	s := &c.state
	c.o.Project, c.read, c.readCount = s.project, s.low, s.lowCount
	c.o.Enabled = len(s.spans) > 0 && s.spans[len(s.spans)-1].to == 0
	st, err := c.look(d)
	if err != nil {
		return st, err
	}
	st.Waiting, st.Retry = map[string]Wait{}, 0 // those at hand are not all
	for key, r := range c.retries {
		l := c.lanes.byKey[key]
		st.note(r, 0, l, d.Examples) // its records are not counted: that would mean to read them
	}
	view := func(f func(*bolt.Tx) error) error { return viewLedger(l.o.Dir, name, f) }
	if d.Examples {
		err = c.asideExamples(&st, view)
	}
	if err == nil && d.wanted() && st.DeadKept > 0 {
		err = view(func(tx *bolt.Tx) error {
			st.OldestDead = firstDead(tx, func(uint64) bool { return false })
			return nil
		})
	}
	if errors.Is(err, ErrDamaged) {
		err = nil // the rest is as good as it was
	}
	return st, err
}

// lockForLook makes sure that no process changes the folder until the lock is closed;
// nil when there never was one.
func lockForLook(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(dir)
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if err := lockFile(f, unix.LOCK_SH, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), f.Close())
	}
	return f, nil
}
