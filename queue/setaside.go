package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// A damaged file is never deleted. It is put aside, into the folder damaged, and what
// can be read of it takes its name:
//
//  1. what can be read is written to NAME.salvage, and synced;
//  2. NAME goes to the folder damaged;
//  3. NAME.salvage becomes NAME.
//
// A crash before 2 leaves a salvage that is not finished beside NAME: it is removed,
// and all is done again. A crash behind 2 leaves it without NAME: it is finished, and
// step 3 is done at the next start. NAME.suspect marks a file in which damage was
// met while it was in use: it is salvaged at the next start, or put aside instead of
// being deleted.
const (
	newSuffix     = ".new" // of a file that is being made: OpenDB
	salvageSuffix = ".salvage"
	suspectSuffix = ".suspect"
	damagedFolder = "damaged"
)

// SetAside tells of a damaged file that was put out of the way; nothing is deleted.
type SetAside struct {
	Path   string // where it is now
	Reason string
	Saved  int // records (of a ledger: entries) that could be read and were taken over
}

// tidy finishes what a crash has interrupted, and removes what it has left half made.
func tidy(folders ...string) error {
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				if err := tidyFile(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func tidyFile(path string) error {
	if strings.HasSuffix(path, newSuffix) || filepath.Base(path) == spareName {
		return os.Remove(path)
	}
	if base, ok := strings.CutSuffix(path, suspectSuffix); ok && !exists(base) {
		return os.Remove(path)
	}
	base, ok := strings.CutSuffix(path, salvageSuffix)
	switch {
	case !ok:
		return nil
	case exists(base):
		return os.Remove(path)
	}
	// Its marker, if there is one, was meant for what stood here before.
	if err := os.Remove(base + suspectSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return renameDurably(path, base)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// suspect marks a file in which damage was met. It does what it can: where the disk
// takes nothing more, the damage is met again.
func suspect(path string) {
	if f, err := os.OpenFile(path+suspectSuffix, os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
		syncDir(filepath.Dir(path))
	}
}

// suspected says why a file must not be used as it is; nil when nothing is known.
func suspected(path string) error {
	if exists(path + suspectSuffix) {
		return fmt.Errorf("damage was met in it: %w", ErrDamaged)
	}
	return nil
}

// putAside moves a damaged file into the folder for such files, where nothing
// touches it any more, and gives its name to what was salvaged of it, if anything.
func putAside(o *Options, path string, cause error, saved int) (SetAside, error) {
	away := SetAside{Reason: cause.Error(), Saved: saved}
	dir := filepath.Join(o.Dir, damagedFolder)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return away, fmt.Errorf("set aside %s: %w", path, err)
	}
	stamped := filepath.Join(dir, filepath.Base(path)+"-"+o.Now().UTC().Format("20060102T150405"))
	away.Path = stamped
	for n := 2; exists(away.Path); n++ {
		away.Path = fmt.Sprintf("%s-%d", stamped, n)
	}
	if err := errors.Join(renameDurably(path, away.Path), syncDir(filepath.Dir(path)), syncDir(o.Dir)); err != nil {
		return away, fmt.Errorf("set aside %s: %w", path, err)
	}
	for _, leftover := range []string{path + suspectSuffix, path + salvageSuffix} {
		if exists(leftover) {
			if err := tidyFile(leftover); err != nil {
				return away, fmt.Errorf("set aside %s: %w", path, err)
			}
		}
	}
	return away, nil
}

// salvageNewest puts the damaged newest file aside and goes on in one that holds what
// can be read of it. The sequences that its damaged chunks had stay unused.
func (l *Log) salvageNewest(cause error) error {
	f := l.files[len(l.files)-1]
	saved, err := l.saveChunks(f)
	if err != nil {
		return fmt.Errorf("salvage %s: %w", f.path, err)
	}
	away, err := putAside(&l.o, f.path, cause, saved)
	if err != nil {
		return err
	}
	fresh := &logFile{path: f.path, first: f.first}
	l.files[len(l.files)-1] = fresh
	l.setAway = append(l.setAway, away)
	db, file, err := openDB(fresh.path, logOptions(l.o.RotateBytes))
	if err != nil {
		return err
	}
	l.write(fresh, db, file)
	return nil
}

// saveChunks writes what can be read of a damaged log file into a new one beside it,
// and moves l.end to the end of the log as it now stands.
func (l *Log) saveChunks(f *logFile) (saved int, err error) {
	path := f.path + salvageSuffix
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	from, ok, err := f.acquire()
	if err == nil && ok {
		defer f.release()
	} else if !errors.Is(err, ErrDamaged) {
		return 0, err
	}
	to, err := OpenDB(path, logOptions(l.o.RotateBytes))
	if err != nil {
		return 0, err
	}
	to.NoSync = true // synced once, at the end: a crash before that does all of it again
	end := logEnd{l.end.seq, maps.Clone(l.end.counts)}
	for next := f.first; from != nil; {
		c, _, err := chunkBehind(from, next, end.seq)
		if err != nil {
			return 0, errors.Join(err, to.Close())
		}
		if c == nil {
			break
		}
		after, err := c.after()
		if err != nil {
			return 0, errors.Join(err, to.Close())
		}
		end.reach(c.Last(), after)
		if err := to.Update(func(tx *bolt.Tx) error { return putCommit(tx, []*Chunk{c}, end) }); err != nil {
			return 0, errors.Join(err, to.Close())
		}
		saved += c.Count
		next = c.Last() + 1
	}
	err = to.Update(func(tx *bolt.Tx) error { return put(tx.Bucket(bucketMeta), keyEnd, end.append(nil)) })
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		return 0, err
	}
	l.end = end
	return saved, nil
}

// salvageLedger puts a damaged ledger aside; one with all entries that can be read
// takes its place. A ledger whose state cannot be read goes on without one.
func salvageLedger(o *Options, path string, cause error) (*SetAside, error) {
	saved, err := saveEntries(path)
	if err != nil {
		return nil, fmt.Errorf("salvage %s: %w", path, err)
	}
	away, err := putAside(o, path, cause, saved)
	return &away, err
}

func saveEntries(path string) (saved int, err error) {
	fresh := path + salvageSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	o := ledgerOptions()
	o.ReadOnly, o.MmapBytes = true, 0
	from, err := OpenDB(path, o)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return 0, err
	}
	if err == nil {
		defer from.Close()
	}
	to, err := OpenDB(fresh, ledgerOptions())
	if err != nil {
		return 0, err
	}
	to.NoSync = true // synced once, at the end: a crash before that does all of it again
	for _, name := range append([]string{string(bucketMeta)}, ledgerOptions().Buckets...) {
		n, err := saveBucket(from, to, []byte(name))
		if err != nil {
			return 0, errors.Join(err, to.Close())
		}
		saved += n
	}
	return saved, errors.Join(to.Sync(), to.Close())
}

// saveBucket copies the entries of a bucket whose checksums are right. A page that
// cannot be read hides those on it; a walk from either end finds the others.
func saveBucket(from, to *bolt.DB, bucket []byte) (saved int, err error) {
	if from == nil {
		return 0, nil
	}
	forward := saver{to: to, bucket: bucket}
	err = forward.walk(from, (*bolt.Cursor).First, (*bolt.Cursor).Next)
	backward := saver{to: to, bucket: bucket, until: forward.last}
	if errors.Is(err, ErrDamaged) {
		err = backward.walk(from, (*bolt.Cursor).Last, (*bolt.Cursor).Prev)
	}
	if errors.Is(err, ErrDamaged) {
		err = nil
	}
	err = errors.Join(err, forward.flush(), backward.flush())
	return forward.saved + backward.saved, err
}

// saver copies whole entries into a bucket, some at a time.
type saver struct {
	to     *bolt.DB
	bucket []byte
	until  []byte // where to stop
	last   []byte // the last key seen
	keys   [][]byte
	values [][]byte
	bytes  int
	saved  int
}

func (s *saver) walk(from *bolt.DB, first, next func(*bolt.Cursor) (k, v []byte)) error {
	return Guard(func() error {
		return from.View(func(tx *bolt.Tx) error {
			cur := tx.Bucket(s.bucket).Cursor()
			for k, v := first(cur); k != nil && (s.until == nil || !bytes.Equal(k, s.until)); k, v = next(cur) {
				s.last = append(s.last[:0], k...)
				if err := s.take(k, v); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (s *saver) take(k, v []byte) error {
	if _, err := unseal(k, v); err != nil {
		return nil
	}
	s.keys, s.values = append(s.keys, bytes.Clone(k)), append(s.values, bytes.Clone(v))
	s.saved++
	if s.bytes += len(k) + len(v); s.bytes < 1<<20 {
		return nil
	}
	return s.flush()
}

func (s *saver) flush() error {
	err := s.to.Update(func(tx *bolt.Tx) error {
		for i, k := range s.keys {
			if err := tx.Bucket(s.bucket).Put(k, s.values[i]); err != nil {
				return err
			}
		}
		return nil
	})
	s.keys, s.values, s.bytes = nil, nil, 0
	return err
}
