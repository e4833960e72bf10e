package queue

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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
	RotateAfter time.Duration
	// InFlightBytes bounds what Append holds in memory; beyond it, ErrBusy.
	InFlightBytes int64
	Now           func() time.Time
	// Beat, if set, is called whenever the committer has shown that it is alive: after
	// each commit, and about once a second when there is nothing to commit.
	Beat func()
}

// ErrBusy means that too many bytes wait to be committed; nothing was stored.
var ErrBusy = errors.New("too many bytes wait to be stored")

// ErrClosed means that the log takes nothing more; nothing was stored.
var ErrClosed = errors.New("the log takes nothing more: ampcio is stopping")

// ErrLocked means that another process uses the storage folder.
var ErrLocked = errors.New("another ampcio uses this storage folder")

// FullError says that nothing was stored since the disk must not be filled further.
type FullError struct {
	Reason     string // for people: which bound, and by how much
	RetryAfter time.Duration
}

func (e *FullError) Error() string { return "storage is full: " + e.Reason }

// The bound of one transaction, and of the chunks kept in memory for consumers that
// are caught up. A request is never split, so a transaction may be larger by one.
const (
	commitBytes = 2 << 20
	recentBytes = 16 << 20
	waiting     = 4096 // requests that may wait for the committer
)

// Log is the append-only record of everything that was accepted, in files of the
// folder log. Its door is Append, Reader and Release; all three are safe for
// concurrent use. One process at a time holds a storage folder.
type Log struct {
	o        Options
	dir      string
	lock     *os.File
	in       chan *pending
	inFlight atomic.Int64
	gone     chan struct{} // closed when the committer has returned

	disk diskSpace

	mu      sync.Mutex
	files   []*logFile // oldest first; the last one is written
	tail    uint64     // last sequence on disk; 0 = none yet
	counts  map[string]uint64
	recent  []*Chunk // the newest chunks, oldest first, up to recentBytes
	kept    int64    // raw bytes in recent
	changed chan struct{}
	holders map[string]uint64
	closed  bool
	setAway []SetAside
	damaged int // chunks that could not be read, since start

	// Owned by the committer.
	writing   *logFile
	openedAt  time.Time
	spare     chan error // answers when the next file has been prepared; nil = not asked for
	encodeBuf []byte
}

// SetAside tells of a damaged file that was put out of the way; nothing is deleted.
type SetAside struct {
	Path   string // where it is now
	Reason string
	Saved  int // records that could be read and were taken over
}

type pending struct {
	batch Batch
	size  int64
	done  chan error
}

// Open opens the log in o.Dir, creating the folder when there is none, and takes
// the folder's lock (ErrLocked when another process has it). It opens the newest
// file only: how long it takes does not depend on what is queued. A newest file
// that is damaged is set aside, and what can be read of it is taken over.
func Open(o Options) (*Log, error) {
	l := &Log{
		o: o, dir: filepath.Join(o.Dir, "log"),
		in: make(chan *pending, waiting), gone: make(chan struct{}),
		counts: map[string]uint64{}, changed: make(chan struct{}), holders: map[string]uint64{},
	}
	for _, d := range []string{o.Dir, l.dir, filepath.Join(o.Dir, "sync")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("storage folder: %w", err)
		}
	}
	var err error
	if l.lock, err = lockFolder(o.Dir); err != nil {
		return nil, err
	}
	l.disk = diskSpace{dir: o.Dir, maxBytes: o.MaxBytes, minFree: o.MinFree}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.lock.Close())
	}
	return l, nil
}

func (l *Log) open() error {
	if err := os.Remove(filepath.Join(l.dir, sparePath)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var err error
	if l.files, err = listLog(l.dir); err != nil {
		return fmt.Errorf("list log: %w", err)
	}
	known, counts, err := ledgersKnow(filepath.Join(l.o.Dir, "sync"))
	if err != nil {
		return err
	}
	if n := len(l.files); n > 0 {
		if err := l.openNewest(l.files[n-1]); err != nil {
			return err
		}
	}
	jumpedFrom := l.tail
	for p, c := range counts {
		l.counts[p] = max(l.counts[p], c)
	}
	l.tail = max(l.tail, known)
	if l.writing == nil || l.tail > jumpedFrom {
		// Nothing yet, or a ledger is ahead of a damaged or restored log: sequences it
		// knows are never used again, or it would take new events for old ones.
		return l.startFile(jumpedFrom)
	}
	return nil
}

// openNewest opens the newest file for writing and learns from it where the log ends.
func (l *Log) openNewest(f *logFile) error {
	db, err := OpenDB(f.path, logOptions(l.o.RotateBytes))
	var last *Chunk
	if err == nil {
		last, err = lastChunk(db)
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}
	if errors.Is(err, ErrDamaged) {
		return l.salvage(f, err)
	}
	if err != nil {
		return err
	}
	f.db, f.writing = db, true
	l.writing, l.openedAt = f, l.o.Now()
	if last == nil { // fresh from a rotation: the end stands in the file before
		l.tail = f.first - 1
		for i := len(l.files) - 2; i >= 0 && last == nil; i-- {
			if last, err = l.lastOf(l.files[i]); err != nil {
				return err
			}
		}
		if last != nil {
			l.counts, err = last.after()
		}
		return err
	}
	l.tail = last.Last()
	l.counts, err = last.after()
	return err
}

func (l *Log) lastOf(f *logFile) (*Chunk, error) {
	db, ok, err := f.acquire()
	if errors.Is(err, ErrDamaged) || !ok {
		return nil, nil // found again, and counted, by whoever reads it
	}
	if err != nil {
		return nil, err
	}
	defer f.release()
	return lastChunk(db)
}

// salvage sets a damaged newest file aside and writes what can be read of it to a
// new file of the same name.
func (l *Log) salvage(f *logFile, cause error) error {
	told, err := l.putAside(f.path, cause)
	if err != nil {
		return err
	}
	l.files = l.files[:len(l.files)-1]
	if i := len(l.files) - 1; i >= 0 {
		last, err := l.lastOf(l.files[i])
		if err != nil {
			return err
		}
		if last != nil {
			l.tail = last.Last()
			if l.counts, err = last.after(); err != nil {
				return err
			}
		}
	}
	l.tail = max(l.tail, f.first-1)
	if err := l.startFile(l.tail); err != nil {
		return err
	}
	old := &logFile{path: told.Path, first: f.first}
	if db, ok, err := old.acquire(); err == nil && ok {
		for seq := f.first; ; {
			c, _, err := chunkAt(db, seq)
			if err != nil || c == nil {
				break
			}
			if err := l.commit([]*Chunk{c}); err != nil {
				return err
			}
			told.Saved += c.Count
			l.tail = c.Last()
			if l.counts, err = c.after(); err != nil {
				break
			}
			seq = l.tail + 1
		}
		old.release()
	}
	l.setAway = append(l.setAway, *told)
	return nil
}

// putAside moves a damaged file into the folder for such files, where nothing
// touches it any more.
func (l *Log) putAside(path string, cause error) (*SetAside, error) {
	stamp := l.o.Now().UTC().Format("20060102T150405.000")
	aside := filepath.Join(l.o.Dir, "damaged", filepath.Base(path)+"-"+stamp)
	if err := os.MkdirAll(filepath.Dir(aside), 0o700); err != nil {
		return nil, fmt.Errorf("set aside %s: %w", path, err)
	}
	if err := errors.Join(renameDurably(path, aside), syncDir(filepath.Dir(path))); err != nil {
		return nil, fmt.Errorf("set aside %s: %w", path, err)
	}
	return &SetAside{Path: aside, Reason: cause.Error()}, nil
}

// oldest gives the position before the oldest record that can be read, and how many
// records of a project the log took before it.
func (l *Log) oldest(project string) (after, count uint64, err error) {
	c, err := l.Reader(0).Try()
	if err != nil || c == nil {
		return l.Tail(), l.Count(project), err
	}
	return c.First - 1, c.Before[project], nil
}

// Seen makes sure that sequences up to seq are never used again, for a holder that
// knows more than a log that was damaged, or restored from an older copy. It is
// called before Run.
func (l *Log) Seen(seq uint64) error {
	if seq <= l.tail {
		return nil
	}
	from := l.tail
	l.tail = seq
	return l.startFile(from)
}

// startFile begins the file for the sequences behind l.tail. from is the last
// sequence known before a jump, or l.tail when there is none.
func (l *Log) startFile(from uint64) error {
	path := filepath.Join(l.dir, logName(l.tail+1))
	if l.spare != nil {
		err := <-l.spare
		l.spare = nil
		if err != nil {
			return fmt.Errorf("prepare log file: %w", err)
		}
		if err := renameDurably(filepath.Join(l.dir, sparePath), path); err != nil {
			return fmt.Errorf("rotate to %s: %w", path, err)
		}
	}
	db, err := OpenDB(path, logOptions(l.o.RotateBytes))
	if err != nil {
		return err
	}
	if from != l.tail {
		err := db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketMeta).Put(keyJump, binary.BigEndian.AppendUint64(seqKey(from), l.tail+1))
		})
		if err != nil {
			return errors.Join(fmt.Errorf("note a jump in %s: %w", path, err), db.Close())
		}
	}
	old := l.writing
	f := &logFile{path: path, first: l.tail + 1, db: db, writing: true}
	l.writing, l.openedAt = f, l.o.Now()
	l.mu.Lock()
	// A fresh file of the same first sequence takes the place of an empty one.
	if n := len(l.files); n > 0 && l.files[n-1].first == f.first {
		l.files = l.files[:n-1]
	}
	l.files = append(l.files, f)
	l.mu.Unlock()
	if old != nil {
		old.retire()
	}
	return nil
}

// Append stores a batch. nil means that all its records are on stable storage, in
// one transaction (or that it resolved to none). *FullError, ErrBusy and ErrClosed
// mean that nothing was stored. After any other error, ctx's included, the records
// may be there or not: all of them or none. Safe for concurrent use; the order of
// the log is the order in which the committer takes the batches.
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
		select {
		case err := <-p.done:
			return err
		default:
			return ErrClosed // still in the channel that nobody reads any more
		}
	}
}

// Run commits what is appended, until ctx ends (then what waits is committed, and
// Run returns nil) or a commit fails. After an error nothing is accepted: the
// process has to end, and the next start looks at what the disk holds.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer close(l.gone)
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
		case <-tick.C:
			if l.o.Now().Sub(l.openedAt) >= l.o.RotateAfter && l.writing.first <= l.Tail() {
				if err := l.startFile(l.tail); err != nil {
					return err
				}
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
	if full := l.disk.full(size); full != nil {
		l.pressure()
		if full = l.disk.full(size); full != nil {
			answer(full)
			return nil
		}
	}
	w := Writer{next: l.tail + 1, counts: maps.Clone(l.counts)}
	for _, p := range taken {
		if err := p.batch.Resolve(&w); err != nil {
			err = fmt.Errorf("resolve: %w", err)
			answer(err)
			return err
		}
	}
	chunks := w.finish()
	if len(chunks) == 0 {
		answer(nil)
		return nil
	}
	if err := l.commit(chunks); err != nil {
		answer(err)
		return err
	}
	l.publish(chunks, &w)
	answer(nil)
	return l.rotateWhenDue()
}

// commit writes chunks in one transaction. When it returns nil they are on stable storage.
func (l *Log) commit(chunks []*Chunk) error {
	err := l.writing.db.Update(func(tx *bolt.Tx) error {
		top := tx.Bucket(bucketLog)
		top.FillPercent = 1 // keys only ever rise
		b, err := top.CreateBucket(seqKey(chunks[0].First))
		if err != nil {
			return err
		}
		b.FillPercent = 1
		for _, c := range chunks {
			if err := b.Put(seqKey(c.First), sealChunk(c)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit to %s: %w", l.writing.path, err)
	}
	return nil
}

// publish lets readers see what has been committed.
func (l *Log) publish(chunks []*Chunk, w *Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = chunks[len(chunks)-1].Last()
	l.counts = w.counts
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

func (l *Log) rotateWhenDue() error {
	l.writing.measure()
	size := l.writing.bytes.Load()
	if size > l.o.RotateBytes/2 && l.spare == nil {
		spare := make(chan error, 1)
		l.spare = spare
		go func() { spare <- createDB(filepath.Join(l.dir, sparePath), logOptions(0)) }()
	}
	if size < l.o.RotateBytes {
		return nil
	}
	return l.startFile(l.tail)
}

// Tail is the last sequence on stable storage; 0 when there is none.
func (l *Log) Tail() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail
}

// Count is how many records of a project the log has ever taken.
func (l *Log) Count(project string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[project]
}

// SetAside lists the damaged files that were put out of the way since start.
func (l *Log) SetAside() []SetAside {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]SetAside(nil), l.setAway...)
}

// Close closes the files and gives up the folder. Run has returned, and every
// Reader is done.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	if l.spare != nil {
		errs = append(errs, <-l.spare)
	}
	for _, f := range l.files {
		f.mu.Lock()
		if f.db != nil {
			errs = append(errs, f.db.Close())
			f.db = nil
		}
		f.mu.Unlock()
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

// Writer takes the records of the batches of one commit. It is the committer's.
type Writer struct {
	next   uint64
	counts map[string]uint64
	open   *Chunk
	done   []*Chunk
}

// Next is the place that the next record will have.
func (w *Writer) Next() Place {
	if w.open != nil && len(w.open.raw) >= chunkBytes {
		w.done, w.open = append(w.done, w.open), nil
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
	w.open.raw = appendRecord(w.open.raw, &r)
	w.open.Count++
	w.counts[r.Project]++
	w.next++
}

func (w *Writer) finish() []*Chunk {
	if w.open != nil && w.open.Count > 0 {
		w.done = append(w.done, w.open)
	}
	w.open = nil
	return w.done
}
