package queue

import (
	"bytes"
	"encoding/binary"
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

// tidy finishes what a crash has interrupted, and removes what it has left half made. named
// says whether a file has got its name by that.
func tidy(folders ...string) (named bool, err error) {
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return named, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				one, err := tidyFile(filepath.Join(dir, e.Name()))
				if named = named || one; err != nil {
					return named, err
				}
			}
		}
	}
	return named, nil
}

func tidyFile(path string) (named bool, err error) {
	if strings.HasSuffix(path, newSuffix) || filepath.Base(path) == spareName {
		return false, os.Remove(path)
	}
	if base, ok := strings.CutSuffix(path, suspectSuffix); ok && !exists(base) {
		return false, os.Remove(path)
	}
	base, ok := strings.CutSuffix(path, salvageSuffix)
	switch {
	case !ok:
		return false, nil
	case exists(base):
		return false, os.Remove(path)
	}
	// Its marker, if there is one, was meant for what stood here before.
	if err := os.Remove(base + suspectSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, renameDurably(path, base)
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
			if _, err := tidyFile(leftover); err != nil {
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
	end := logEnd{l.end.seq, maps.Clone(l.end.counts)}
	saved, err := saveChunks(&l.o, f.path, &end)
	if err != nil {
		return fmt.Errorf("salvage %s: %w", f.path, err)
	}
	away, err := putAside(&l.o, f.path, cause, saved)
	if err != nil {
		return err
	}
	fresh := &logFile{path: f.path, first: f.first}
	l.files[len(l.files)-1], l.end = fresh, end
	l.setAway = append(l.setAway, away)
	db, file, err := openDB(fresh.path, logOptions(l.limits.Load().RotateBytes))
	if err != nil {
		return err
	}
	l.write(fresh, db, file)
	return nil
}

// saveChunks writes what can be read of a damaged log file into a new one beside it.
// end is that of the log before it, or as the file itself knows it; it is moved to
// where the log ends with what was saved.
func saveChunks(o *Options, path string, end *logEnd) (saved int, err error) {
	to, err := startSalvage(path, logOptions(o.RotateBytes))
	if err != nil {
		return 0, err
	}
	last := uint64(0)
	err = salvage(path, func(t *tree, bucket string, _, commit []byte) error {
		if bucket != string(bucketLog) {
			return nil
		}
		var chunks []*Chunk
		_, err := t.inBucket(commit, func(k, v []byte) error {
			if len(k) != 8 {
				return nil
			}
			c, err := openChunk(binary.BigEndian.Uint64(k), v)
			if errors.Is(err, ErrNewerFormat) {
				return err
			}
			if err == nil && c.First > last { // keys only ever rise
				chunks, last = append(chunks, c), c.Last()
			}
			return nil
		})
		if err != nil || len(chunks) == 0 {
			return err
		}
		for _, c := range chunks {
			after, err := c.after()
			if err != nil {
				return err
			}
			end.reach(c.Last(), after)
			saved += c.Count
		}
		return to.Update(func(tx *bolt.Tx) error {
			_, err := putCommit(tx, chunks, *end, nil)
			return err
		})
	})
	if err == nil {
		err = to.Update(func(tx *bolt.Tx) error { return put(tx.Bucket(bucketMeta), keyEnd, end.append(nil)) })
	}
	return saved, errors.Join(err, to.Sync(), to.Close())
}

// startSalvage makes the file that is to take the place of a damaged one. It is synced
// once, at the end: a crash before that does all of it again.
func startSalvage(path string, o DBOptions) (*bolt.DB, error) {
	fresh := path + salvageSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	db, err := OpenDB(fresh, o)
	if err == nil {
		db.NoSync = true
	}
	return db, err
}

// salvageOlder does the same for an older file, when a reader finds it damaged so that
// bbolt must not touch it.
func (l *Log) salvageOlder(f *logFile, cause error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.writing || f.known || f.readers > 0 {
		return nil // another reader was first
	}
	end := logEnd{counts: map[string]uint64{}}
	saved, err := saveChunks(&l.o, f.path, &end)
	if err != nil {
		return fmt.Errorf("salvage %s: %w", f.path, err)
	}
	away, err := putAside(&l.o, f.path, cause, saved)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.setAway = append(l.setAway, away)
	l.mu.Unlock()
	return nil
}

// saveLedger makes a ledger with all entries of a damaged one that can be read, to take its place. A ledger whose
// state cannot be read goes on without one. After an error nothing is left of it: it may have filled the disk.
func saveLedger(path string) (saved int, err error) {
	saved, err = saveEntries(path)
	if err == nil {
		return saved, nil
	}
	if gone := os.Remove(path + salvageSuffix); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		return 0, errors.Join(err, gone)
	}
	return 0, fmt.Errorf("salvage %s: %w", path, err)
}

// saveEntries copies the entries whose checksums are right.
func saveEntries(path string) (saved int, err error) {
	to, err := startSalvage(path, ledgerOptions())
	if err != nil {
		return 0, err
	}
	s := saver{to: to}
	format := byte(ledgerFormat)
	err = salvage(path, func(_ *tree, bucket string, k, v []byte) error {
		whole, err := unseal(k, v)
		if err != nil {
			return nil
		}
		if bucket == string(bucketMeta) {
			switch {
			case bytes.Equal(k, keyFormat) && len(whole) == 1: // it stands before the state
				format = whole[0]
				return nil // the new one has its own
			case !bytes.Equal(k, keyState):
				return nil
			}
			state, err := readLedgerState(whole, format)
			if err != nil {
				return nil
			}
			v = seal(k, state.append(nil))
		}
		return s.take(bucket, k, v)
	})
	err = errors.Join(err, s.flush())
	if err == nil {
		if err = to.Sync(); err != nil {
			err = &os.PathError{Op: "fsync", Path: path + salvageSuffix, Err: err} // of a file that nobody needs yet: NoSpace is that
		}
	}
	return s.saved, errors.Join(err, to.Close())
}

// saver writes entries, some at a time.
type saver struct {
	to      *bolt.DB
	entries []savedEntry
	bytes   int
	saved   int
}

type savedEntry struct {
	bucket string
	k, v   []byte
}

func (s *saver) take(bucket string, k, v []byte) error {
	s.entries = append(s.entries, savedEntry{bucket, bytes.Clone(k), bytes.Clone(v)})
	s.saved++
	if s.bytes += len(k) + len(v); s.bytes < 1<<20 {
		return nil
	}
	return s.flush()
}

func (s *saver) flush() error {
	err := s.to.Update(func(tx *bolt.Tx) error {
		for _, e := range s.entries {
			b := tx.Bucket([]byte(e.bucket))
			if b == nil || len(e.k) == 0 || len(e.k) > bolt.MaxKeySize {
				continue // its name or key is not one of ours
			}
			if err := b.Put(e.k, e.v); err != nil {
				return err
			}
		}
		return nil
	})
	s.entries, s.bytes = nil, 0
	return err
}
