package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Options of a Log. Sizes are bytes.
type Options struct {
	Dir         string        // the storage folder; the log lives in log/, ledgers in sync/
	MaxBytes    int64         // appends are refused when the folder occupies this much; 0 = no cap
	MinFree     int64         // and when the file system has less than this left
	Keep        time.Duration // files stay this long after every holder has released them …
	KeepBytes   int64         // … within this much
	RotateBytes int64         // a file that has grown to this is followed by the next
	RotateAfter time.Duration // as is one whose first record was received this long ago
	// InFlightBytes bounds what Append holds in memory; beyond it, ErrBusy.
	InFlightBytes int64
	Now           func() time.Time
	// Beat, if set, is called whenever resolver and committer have shown that they are alive: after
	// each commit, and about once a second when there is nothing to commit.
	Beat func()
}

// ErrBusy means that too many bytes wait to be committed; nothing was stored.
var ErrBusy = errors.New("too many bytes wait to be stored")

// ErrClosed means that the log takes nothing more; nothing was stored.
var ErrClosed = errors.New("the log takes nothing more: ampcio is stopping")

// ErrLocked means that another process uses the storage folder, or a file of it.
var ErrLocked = errors.New("another ampcio uses this storage folder")

// FullError says that nothing was stored since the disk must not be filled further.
type FullError struct {
	Reason     string // for people: which bound, and by how much
	Sync       string // whose max_pending_bytes it is; "" = a bound of the whole storage
	RetryAfter time.Duration
}

func (e *FullError) Error() string {
	if e.Sync != "" {
		return fmt.Sprintf("storage is full: %s; raise sync.%s.delivery.max_pending_bytes, then: ampcio reload", e.Reason, e.Sync)
	}
	return "storage is full: " + e.Reason
}

// Log is the append-only record of everything that was accepted, in files of the
// folder log. Its door is Append, Reader and Release; all three are safe for
// concurrent use. One process at a time holds a storage folder.
type Log struct {
	o         Options
	dir       string
	lock      *os.File
	in        chan *pending
	waits     atomic.Int64  // bytes of what is in it
	plenty    chan struct{} // that these are plentyBytes
	inFlight  atomic.Int64
	refused   atomic.Int64  // bytes of the last commit, when there was no space for it; else 0
	refusedAt atomic.Int64  // when that was, ms since 1970 UTC
	gone      chan struct{} // closed when nothing is committed any more
	goneOnce  sync.Once

	running   atomic.Bool                // Run has begun
	turns     chan func()                // what the resolver is to do between two commits
	forgotten atomic.Pointer[tombstones] // nil = nobody
	burying   sync.Mutex                 // held by who replaces them, and their file
	backups   sync.RWMutex               // held for reading while a backup is made

	limits atomic.Pointer[Options] // o, with the bounds that are in force
	disk   diskSpace               // the resolver's

	mu       sync.Mutex
	files    []*logFile // oldest first; the last one is written
	end      logEnd     // as of the last commit
	recent   []*Chunk   // the newest chunks, oldest first, up to recentBytes
	kept     int64      // bytes of memory in recent
	changed  chan struct{}
	holders  map[string]uint64
	bounds   map[string]logBound // by holder
	holdings uint64              // how many were made for a while
	setAway  []SetAside
	damaged  map[uint64]bool // chunks (or positions) that could not be read, since start

	marksMu sync.Mutex
	marks   []*mark // of some chunks, by sequence: for looks at how old records are

	// Owned by the committer, and by the resolver while that has nothing to do; before Run, by
	// who opened the log.
	writing  *logFile
	mapped   int64      // the size up to which writing is never mapped anew, which would wait for readers
	openedAt time.Time  // when the first record of the file that is written was received
	spare    chan error // answers when the next file has been prepared; nil = not asked for
	// Used again by the next commit: for a chunk's records (the resolver's), and the values.
	writeBuf, sealBuf []byte
}

// logEnd says where the log ends: its last sequence, and how many records of each
// project it has taken up to there. Every commit writes it, beside its chunks, into
// its file: so the end is known without reading any, and a damaged last chunk is
// missed by exactly as many records as it had.
type logEnd struct {
	seq    uint64            // 0 = there is no record yet
	counts map[string]uint64 // replaced, never changed, once the log is open
}

func (e *logEnd) append(b []byte) []byte {
	b = binary.AppendUvarint(b, e.seq)
	return appendTallies(b, e.counts)
}

func readLogEnd(v []byte) (e logEnd, err error) {
	d := decoder{b: v}
	e.seq = d.uvarint()
	e.counts = d.tallies()
	return e, d.err
}

// reach moves the end forward to what another memory knows of it.
func (e *logEnd) reach(seq uint64, counts map[string]uint64) {
	e.seq = max(e.seq, seq)
	for p, n := range counts {
		if n > e.counts[p] { // a project without records is none that the log would know
			e.counts[p] = n
		}
	}
}

// Open opens the log in o.Dir, creating the folder when there is none, and takes
// the folder's lock (ErrLocked when another process has it). It opens the newest
// file only: how long it takes does not depend on what is queued.
//
// A newest file that is damaged is set aside, and what can be read of it is taken
// over: SetAside tells. What is lost of it is counted by the consumers, as they pass
// the gap. Sequences that any ledger has seen are never used again. A file of a newer
// format is ErrNewerFormat; then nothing was changed.
func Open(o Options) (*Log, error) {
	l := newLog(o)
	if err := makeFolders(o.Dir, l.dir, filepath.Join(o.Dir, "sync")); err != nil {
		return nil, fmt.Errorf("storage folder: %w", err)
	}
	var err error
	if l.lock, err = lockFolder(o.Dir); err != nil {
		return nil, err
	}
	l.disk = diskSpace{dir: o.Dir, maxBytes: o.MaxBytes, minFree: o.MinFree, usedFor: walkFor}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.keepReserve()
	return l, nil
}

func newLog(o Options) *Log {
	l := &Log{
		o: o, dir: filepath.Join(o.Dir, "log"),
		in: make(chan *pending, waiting), plenty: make(chan struct{}, 1), gone: make(chan struct{}), end: logEnd{counts: map[string]uint64{}},
		turns: make(chan func()), changed: make(chan struct{}), holders: map[string]uint64{}, bounds: map[string]logBound{}, damaged: map[uint64]bool{},
	}
	l.limits.Store(&o)
	return l
}

// SetLimits changes the bounds: MaxBytes, MinFree, Keep, KeepBytes, RotateBytes and
// RotateAfter of o; the rest of it is ignored. Safe for concurrent use.
func (l *Log) SetLimits(o Options) {
	in := l.o
	in.MaxBytes, in.MinFree, in.Keep, in.KeepBytes = o.MaxBytes, o.MinFree, o.Keep, o.KeepBytes
	in.RotateBytes, in.RotateAfter = o.RotateBytes, o.RotateAfter
	l.limits.Store(&in)
}

// makeFolders creates what is missing. When it returns nil, the names survive a
// power cut: a folder that is gone takes every synced file in it along.
func makeFolders(storage string, below ...string) error {
	for _, d := range append([]string{storage}, below...) {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// Its parent may be closed to us; then it was not we who made the folder.
	if err := syncDir(filepath.Dir(storage)); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return syncDir(storage)
}

func (l *Log) open() error {
	whole, err := newestFormat(l.dir)
	if err != nil {
		return err
	}
	ledgers, err := peekLedgers(l.o.Dir)
	if err != nil { // one of a newer format, above all
		return err
	}
	named, err := tidy(l.dir, filepath.Join(l.o.Dir, "sync"))
	if err != nil {
		return fmt.Errorf("tidy the storage folder: %w", err)
	}
	if named { // a ledger may be there that was not
		if ledgers, err = peekLedgers(l.o.Dir); err != nil {
			return err
		}
	}
	if err := dropAbsorbed(l.o.Dir, ledgers); err != nil {
		return fmt.Errorf("tidy the storage folder: %w", err)
	}
	known, counts := seenBy(ledgers) // who has taken another in knows at least as much
	if err := l.openTombstones(); err != nil {
		return err
	}
	if ts := l.forgotten.Load(); ts != nil {
		known = max(known, ts.most) // or a new record would be taken for one that is forgotten
	}
	if l.files, err = listLog(l.dir); err != nil {
		return fmt.Errorf("list log: %w", err)
	}
	if n := len(l.files); n > 0 && whole != nil {
		now, err := os.Stat(l.files[n-1].path)
		l.files[n-1].known = err == nil && os.SameFile(now, whole)
		l.files[n-1].toWrite = l.files[n-1].known
	}
	l.end = l.storedEnd(len(l.files))
	if len(l.files) > 0 {
		if err := l.openNewest(); err != nil {
			return err
		}
	}
	from := l.end.seq
	l.end.reach(known, counts)
	if l.writing == nil || l.end.seq > from {
		// Nothing yet, or a ledger is ahead of a damaged or restored log: sequences it
		// knows are never used again, or it would take new events for old ones.
		return l.startFile(from)
	}
	return nil
}

// newestFormat looks whether a later version has written the newest file, before
// anything in the folder is touched. Whatever else is wrong shows later. A file that it
// has found whole it gives back: that need not be looked at again.
func newestFormat(dir string) (whole os.FileInfo, err error) {
	files, err := listLog(dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	newest := files[len(files)-1]
	newest.toWrite = true
	if _, _, err = newest.acquire(); errors.Is(err, ErrDamaged) { // its format may be readable all the same
		newest.toWrite = false
		if _, _, err = newest.acquire(); err == nil {
			newest.release()
			return nil, nil
		}
	}
	if errors.Is(err, ErrNewerFormat) {
		return nil, err
	} else if err != nil {
		return nil, nil
	}
	newest.release()
	return os.Stat(newest.path)
}

// storedEnd gives the end of the log as the newest of the first n files that can
// tell knows it. Those that are damaged are passed over: who reads them counts it.
func (l *Log) storedEnd(n int) logEnd {
	e := logEnd{counts: map[string]uint64{}}
	for i := n - 1; i >= 0; i-- {
		if found, err := l.files[i].lastKnown(); err == nil && found != nil {
			e = *found
			break
		}
	}
	if n > 0 {
		e.seq = max(e.seq, l.files[n-1].first-1) // the name alone says so much
	}
	return e
}

// openNewest opens the newest file for writing, after a trial; l.end is known.
func (l *Log) openNewest() error {
	f := l.files[len(l.files)-1]
	if cause := suspected(f.path); cause != nil {
		return l.salvageNewest(cause)
	}
	o := logOptions(l.limits.Load().RotateBytes)
	o.looked, o.pages = f.toWrite, writtenPages
	db, file, err := openDB(f.path, o)
	if err == nil {
		if err = tryWriting(db, l.end); err != nil {
			abandon(file)
		}
	}
	switch {
	case errors.Is(err, ErrDamaged):
		return l.salvageNewest(err)
	case err != nil:
		return fmt.Errorf("open %s: %w", f.path, err)
	}
	l.write(f, db, file)
	return nil
}

// tryWriting makes a commit like any other, but for the record in it. A file whose
// free list or outer pages are damaged shows it now, while it can be replaced, and
// not in the first commit of each start.
func tryWriting(db *bolt.DB, end logEnd) error {
	return Update(db, func(tx *bolt.Tx) error {
		top := tx.Bucket(bucketLog)
		if k, _ := top.Cursor().Last(); k != nil && (len(k) != 8 || binary.BigEndian.Uint64(k) > end.seq) {
			return fmt.Errorf("it has records behind its end %d: %w", end.seq, ErrDamaged)
		}
		name := seqKey(end.seq + 1)
		b, err := top.CreateBucket(name)
		if err != nil {
			return err
		}
		if err := b.Put(name, name); err != nil {
			return err
		}
		if err := top.DeleteBucket(name); err != nil {
			return err
		}
		return put(tx.Bucket(bucketMeta), keyEnd, end.append(nil))
	})
}

// write makes a file the one that is written.
func (l *Log) write(f *logFile, db *bolt.DB, file *os.File) {
	f.mu.Lock()
	f.db, f.file, f.writing = db, file, true
	f.mu.Unlock()
	l.writing, l.openedAt, l.mapped = f, l.o.Now(), l.limits.Load().RotateBytes
	if c, _, err := chunkAt(db, f.first); err == nil && c != nil {
		c.Records(func(r Record) error {
			l.openedAt = minTime(l.openedAt, time.UnixMilli(r.Received))
			return errStop
		})
	}
}

// errStop ends a walk early.
var errStop = errors.New("stop")

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// startFile begins the file for the sequences behind l.end. from is the last
// sequence known before a jump, or l.end.seq when there is none.
func (l *Log) startFile(from uint64) error {
	if !exists(filepath.Join(l.dir, spareName)) {
		if err := l.prepare(); err != nil {
			return err
		}
	}
	path := filepath.Join(l.dir, logName(l.end.seq+1))
	if err := renameDurably(filepath.Join(l.dir, spareName), path); err != nil {
		return fmt.Errorf("rotate to %s: %w", path, err)
	}
	db, file, err := openDB(path, logOptions(l.limits.Load().RotateBytes))
	if err != nil {
		return err
	}
	err = Update(db, func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if from != l.end.seq {
			if err := put(meta, keyJump, binary.BigEndian.AppendUint64(seqKey(from), l.end.seq+1)); err != nil {
				return err
			}
		}
		return put(meta, keyEnd, l.end.append(nil))
	})
	if err != nil {
		abandon(file)
		return fmt.Errorf("begin %s: %w", path, err)
	}
	old := l.writing
	f := &logFile{path: path, first: l.end.seq + 1}
	l.write(f, db, file)
	l.mu.Lock()
	l.files = append(l.files, f)
	l.mu.Unlock()
	if old != nil {
		old.retire()
	}
	return nil
}

// prepare makes sure that the spare file is there. After an error nothing has
// changed, and it may be tried again.
func (l *Log) prepare() error {
	if l.spare == nil {
		l.prepareAhead()
	}
	err := <-l.spare
	l.spare = nil
	if err != nil {
		return fmt.Errorf("prepare the next log file: %w", err)
	}
	return nil
}

// prepareAhead begins to make the spare file, so that a rotation does not wait for it.
func (l *Log) prepareAhead() {
	spare := make(chan error, 1)
	l.spare = spare
	go func() { spare <- createDB(filepath.Join(l.dir, spareName), logOptions(0)) }()
}

// Refusing says that the last append was refused for lack of space: whoever holds
// files of the log should let go of what it can.
func (l *Log) Refusing() bool { return l.refused.Load() > 0 }

// Tail is the last sequence on stable storage; 0 when there is none.
func (l *Log) Tail() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end.seq
}

// Count is how many records of a project the log has ever taken.
func (l *Log) Count(project string) uint64 {
	_, n := l.endOf(project)
	return n
}

// endOf gives the tail and a project's records up to there, as of one moment.
func (l *Log) endOf(project string) (tail, count uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end.seq, l.end.counts[project]
}

// oldest gives the position before the oldest record that can be read, and how many
// records of a project the log took before it.
func (l *Log) oldest(project string) (after, count uint64, err error) {
	c, err := l.Reader(0).Try()
	if err != nil || c == nil {
		tail, count := l.endOf(project)
		return tail, count, err
	}
	return c.First - 1, c.Before[project], nil
}

// SetAside lists the damaged log files that were put out of the way since start.
func (l *Log) SetAside() []SetAside {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]SetAside(nil), l.setAway...)
}

// Close closes the files and gives up the folder. Run has returned or was never
// called, and every Reader is done.
func (l *Log) Close() error {
	l.noMore()
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if l.spare != nil {
		<-l.spare // whether it could be made matters no more
		l.spare = nil
	}
	for _, f := range l.files {
		errs = append(errs, f.close())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

// Gone is closed when nothing is committed any more: Tail stays what it is then.
func (l *Log) Gone() <-chan struct{} { return l.gone }

// noMore says that nothing is committed any more.
func (l *Log) noMore() { l.goneOnce.Do(func() { close(l.gone) }) }
