package queue

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	bolt "go.etcd.io/bbolt"
)

// A log file is named for the first sequence it may hold. Buckets:
//
//	meta   "format"; "end": the logEnd as of the file's last commit (or of its birth);
//	       "jump": 8 bytes each, the last sequence known before the file and the first
//	       one used in it, where the log went on behind a damaged or restored tail
//	log    for each commit a nested bucket, keyed by its first sequence, which holds the
//	       commit's chunks: bbolt writes a nested bucket once, while large plain values
//	       are moved up to four times by its leaf rules
//
// meta is small, so bbolt keeps it in the root page, which each commit writes anyway.
const (
	logFormat  = 1
	logSuffix  = ".db"
	spareName  = "spare.next" // the file that the next rotation will use
	mmapMargin = 64 << 20
)

var (
	bucketLog = []byte("log")
	keyEnd    = []byte("end")
	keyJump   = []byte("jump")
)

// logFile is one file of the log. The newest is open for writing; older ones are
// opened read-only when a reader comes, and closed when the last one has left.
type logFile struct {
	path  string
	first uint64       // sequence that names the file; a file may be empty
	bytes atomic.Int64 // on disk, as of the last look

	mu      sync.Mutex
	db      *bolt.DB
	file    *os.File // of db, while it is written
	readers int
	kept    int  // readers that keep it open between two looks
	known   bool // its tree was checked
	toWrite bool // and that is, or is to be, what an open for writing asks for: the free list as well
	writing bool
	broken  bool // a commit panicked: bbolt may hold its own locks for ever
	gone    bool // no longer in the log
	damaged bool // holds chunks that could not be read
}

func logOptions(rotateBytes int64) DBOptions {
	return DBOptions{MmapBytes: int(rotateBytes) + mmapMargin, Buckets: []string{string(bucketLog)}, Format: logFormat}
}

func logName(first uint64) string { return fmt.Sprintf("%020d%s", first, logSuffix) }

// listLog gives the log files of a folder, oldest first, closed.
func listLog(dir string) ([]*logFile, error) {
	entries, err := os.ReadDir(dir) // sorted by name, so by sequence
	if err != nil {
		return nil, err
	}
	var files []*logFile
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), logSuffix)
		first, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil || len(digits) != 20 || first == 0 {
			continue
		}
		f := &logFile{path: filepath.Join(dir, e.Name()), first: first}
		f.measure()
		files = append(files, f)
	}
	return files, nil
}

// diskBytes is what a file occupies, holes left out.
func diskBytes(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return int64(st.Blocks) * 512, nil
}

// acquire opens the file for one reader; release lets it go. ok is false when the
// file was deleted. After an error there is nothing to release.
func (f *logFile) acquire() (db *bolt.DB, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return nil, false, nil
	}
	if f.db == nil {
		o := logOptions(0)
		o.ReadOnly, o.MmapBytes, o.strict, o.writable = true, 0, !f.known, f.toWrite
		if f.toWrite {
			o.pages = writtenPages
		}
		if f.db, err = OpenDB(f.path, o); err != nil {
			return nil, true, err
		}
		f.known = true
	}
	f.readers++
	return f.db, true, nil
}

// stillOpen gives the file to a reader that keeps it open, for one more look: release ends
// that. ok is false when the file was deleted meanwhile.
func (f *logFile) stillOpen() (db *bolt.DB, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.db == nil {
		return nil, false
	}
	f.readers++
	return f.db, true
}

// keep keeps the file open for a reader that has acquired it, until letGo, or until the
// file is deleted: a reader that waits for long must not hold its space. The one that is
// written stays open anyway, and must not be held in the writer's way.
func (f *logFile) keep() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writing {
		return false
	}
	f.kept++
	return true
}

func (f *logFile) letGo() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept--
	f.closeIdle()
}

func (f *logFile) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.closeIdle()
}

// closeIdle closes a file that nobody reads or writes. The caller holds f.mu.
func (f *logFile) closeIdle() {
	if f.readers == 0 && (f.kept == 0 || f.gone) && !f.writing && f.db != nil {
		f.db.Close() // all of it is on the disk: there is nothing that could fail to be written
		f.db, f.file = nil, nil
	}
}

// retire ends the writing; readers go on.
func (f *logFile) retire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing = false
	if f.toWrite { // that look did not go far
		f.known, f.toWrite = false, false
	}
	f.closeIdle()
	f.measure()
}

// close ends all use of the file.
func (f *logFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	db, file := f.db, f.file
	f.db, f.file, f.writing = nil, nil, false
	switch {
	case db == nil:
		return nil
	case f.broken:
		abandon(file)
		return nil
	}
	return db.Close()
}

// measure looks at how much of the disk the file occupies.
func (f *logFile) measure() {
	if b, err := diskBytes(f.path); err == nil {
		f.bytes.Store(b)
	}
}

// markDamaged remembers, over restarts too, that something in the file cannot be read.
func (f *logFile) markDamaged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.damaged && !f.gone {
		f.damaged = true
		suspect(f.path)
	}
}

// breakDown says that a commit to the file has panicked, and whether that means that it is damaged.
func (f *logFile) breakDown(damaged bool) {
	f.mu.Lock()
	f.broken = true
	f.mu.Unlock()
	if damaged {
		suspect(f.path)
	}
}

// retract takes the file out of the log: it is deleted, or, when something in it
// could not be read, put aside. Its space comes back when the last reader has left.
func (l *Log) retract(f *logFile) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	defer f.closeIdle()
	cause := suspected(f.path)
	if cause == nil && f.damaged {
		cause = ErrDamaged // the disk would not take the marker
	}
	if cause != nil {
		away, err := putAside(&l.o, f.path, cause, 0)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.setAway = append(l.setAway, away)
		l.mu.Unlock()
		return nil
	}
	return os.Remove(f.path)
}

// storedEnd reads the end of the log as a file knows it; nil when it does not, since a
// crash has interrupted its birth.
func storedEnd(tx *bolt.Tx) (*logEnd, error) {
	stored := tx.Bucket(bucketMeta).Get(keyEnd)
	if stored == nil {
		return nil, nil
	}
	v, err := unseal(keyEnd, stored)
	if err != nil {
		return nil, err
	}
	e, err := readLogEnd(v)
	return &e, err
}

// lastKnown gives the end of the log as the file knows it; nil when it does not.
func (f *logFile) lastKnown() (e *logEnd, err error) {
	db, ok, err := f.acquire()
	if err != nil || !ok {
		return nil, err
	}
	defer f.release()
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) (err error) {
			e, err = storedEnd(tx)
			return err
		})
	})
	if err == nil {
		return e, nil
	}
	last, err := lastChunk(db)
	if err != nil || last == nil {
		return nil, err
	}
	counts, err := last.after()
	return &logEnd{last.Last(), counts}, err
}

// putCommit writes the chunks of a commit and the end of the log behind them. The
// stored values are made in buf; what it gives back must not be used for anything
// else before the transaction has ended.
func putCommit(tx *bolt.Tx, chunks []*Chunk, end logEnd, buf []byte) ([]byte, error) {
	top := tx.Bucket(bucketLog)
	top.FillPercent = 1 // keys only ever rise
	b, err := top.CreateBucket(seqKey(chunks[0].First))
	if err != nil {
		return buf, err
	}
	b.FillPercent = 1
	for _, c := range chunks {
		var value []byte
		buf, value = sealChunk(buf, c)
		if err := b.Put(seqKey(c.First), value); err != nil {
			return buf, err
		}
	}
	return buf, put(tx.Bucket(bucketMeta), keyEnd, end.append(nil))
}
