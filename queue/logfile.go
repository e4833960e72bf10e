package queue

import (
	"encoding/binary"
	"errors"
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

// A log file is named for the first sequence it may hold. In the bucket "log" each
// commit has a nested bucket, keyed by its first sequence, which holds the commit's
// chunks: bbolt writes a nested bucket once, while large plain values are moved up
// to four times by its leaf rules.
const (
	logFormat  = 1
	logSuffix  = ".db"
	sparePath  = "spare.next" // the file that the next rotation will use
	mmapMargin = 64 << 20
)

var (
	bucketLog = []byte("log")
	// keyJump holds, 8 bytes each, the last sequence known before the file and the
	// first one used in it, where the log went on behind a damaged or restored tail.
	keyJump = []byte("jump")
)

// logFile is one file of the log. The newest is open for writing; older ones are
// opened read-only when a reader comes, and closed when the last one has left.
type logFile struct {
	path  string
	first uint64       // sequence that names the file; a file may be empty
	bytes atomic.Int64 // on disk, as of the last look

	mu      sync.Mutex
	db      *bolt.DB
	readers int
	gone    bool // no longer in the log
	damaged bool // holds chunks that could not be read
	writing bool
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
		if !ok || err != nil || len(digits) != 20 {
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
	return st.Blocks * 512, nil
}

// acquire opens the file for one reader; release lets it go. ok is false when the
// file was deleted.
func (f *logFile) acquire() (db *bolt.DB, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return nil, false, nil
	}
	if f.db == nil {
		o := logOptions(0)
		o.ReadOnly, o.MmapBytes = true, 0
		if f.db, err = OpenDB(f.path, o); err != nil {
			return nil, true, err
		}
	}
	f.readers++
	return f.db, true, nil
}

func (f *logFile) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.closeIdle()
}

// closeIdle closes a file that nobody reads or writes. The caller holds f.mu.
func (f *logFile) closeIdle() {
	if f.readers == 0 && !f.writing && f.db != nil {
		f.db.Close() // read-only: there is nothing that could fail to be written
		f.db = nil
	}
}

// retire ends the writing; readers go on.
func (f *logFile) retire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing = false
	f.closeIdle()
	f.measure()
}

// measure looks at how much of the disk the file occupies.
func (f *logFile) measure() {
	if b, err := diskBytes(f.path); err == nil {
		f.bytes.Store(b)
	}
}

// remove takes the file out of the log: it is deleted, or, when something in it
// could not be read, put aside. Its space comes back when the last reader has left.
func (f *logFile) remove(damagedDir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	defer f.closeIdle()
	if !f.damaged {
		return os.Remove(f.path)
	}
	if err := os.MkdirAll(damagedDir, 0o700); err != nil {
		return err
	}
	return renameDurably(f.path, filepath.Join(damagedDir, filepath.Base(f.path)))
}

func (f *logFile) markDamaged() {
	f.mu.Lock()
	f.damaged = true
	f.mu.Unlock()
}

// chunkAt finds in an open file the chunk that holds seq, or the first one behind
// it; nil when there is none. Damaged chunks are passed over and counted.
func chunkAt(db *bolt.DB, seq uint64) (c *Chunk, damaged int, err error) {
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			commits := tx.Bucket(bucketLog).Cursor()
			for k, _ := seekReaching(commits, seq); k != nil; k, _ = commits.Next() {
				var bad int
				if c, bad, err = chunkIn(tx.Bucket(bucketLog).Bucket(k), seq); err != nil {
					return err
				}
				damaged += bad
				if c != nil {
					return nil
				}
			}
			return nil
		})
	})
	return c, damaged, err
}

// seekReaching puts the cursor on the last key at or before seq, which may reach
// over it, else on the first key.
func seekReaching(c *bolt.Cursor, seq uint64) (k, v []byte) {
	k, v = c.Seek(seqKey(seq))
	switch {
	case k == nil:
		return c.Last()
	case len(k) == 8 && binary.BigEndian.Uint64(k) == seq:
		return k, v
	}
	if k, v = c.Prev(); k == nil {
		return c.First()
	}
	return k, v
}

// chunkIn finds in one commit the first whole chunk whose last record is at or
// behind seq.
func chunkIn(commit *bolt.Bucket, seq uint64) (*Chunk, int, error) {
	if commit == nil {
		return nil, 1, nil
	}
	damaged := 0
	cur := commit.Cursor()
	for k, v := seekReaching(cur, seq); k != nil; k, v = cur.Next() {
		if len(k) != 8 {
			damaged++
			continue
		}
		c, err := openChunk(binary.BigEndian.Uint64(k), v)
		switch {
		case errors.Is(err, ErrNewerFormat):
			return nil, damaged, err
		case err != nil:
			damaged++
		case c.Last() >= seq:
			return c, damaged, nil
		}
	}
	return nil, damaged, nil
}

// lastChunk gives the last whole chunk of an open file, nil when it has none.
func lastChunk(db *bolt.DB) (c *Chunk, err error) {
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			commits := tx.Bucket(bucketLog).Cursor()
			for k, _ := commits.Last(); k != nil; k, _ = commits.Prev() {
				commit := tx.Bucket(bucketLog).Bucket(k)
				if commit == nil {
					continue
				}
				chunks := commit.Cursor()
				for k, v := chunks.Last(); k != nil; k, v = chunks.Prev() {
					if len(k) != 8 {
						continue
					}
					c, err = openChunk(binary.BigEndian.Uint64(k), v)
					if err == nil || errors.Is(err, ErrNewerFormat) {
						return err
					}
				}
			}
			c = nil
			return nil
		})
	})
	return c, err
}
