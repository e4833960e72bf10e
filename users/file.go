package users

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// users.db is a bbolt file with these top-level buckets:
//
//	meta     "format" (queue's); "good" and "reach": sequences, 8 bytes big-endian;
//	         "end": where the log ended when that was written (queue.Log.End), absent in
//	         what versions before it have written;
//	         "sweep": where the next search for expired entries begins
//	users    appendKey → appendEntry
//	devices  the same
//	imports  placeKey → how far a part of an archive has been taken (since format 2)
const fileFormat = 2

// mmapBytes is address space taken at once, not memory: so far the file grows without
// waiting for readers.
const mmapBytes = 1 << 30

var (
	bucketMeta    = []byte("meta")
	bucketUsers   = []byte("users")
	bucketDevices = []byte("devices")
	bucketImports = []byte("imports")
	keyGood       = []byte("good")
	keyReach      = []byte("reach")
	keySweep      = []byte("sweep")
	keyEnd        = []byte("end")
)

func bucketOf(k kind) []byte {
	switch k {
	case user:
		return bucketUsers
	case device:
		return bucketDevices
	}
	return nil
}

// kindOf gives the kind whose entries a bucket holds; 0 = none.
func kindOf(bucket string) kind {
	switch bucket {
	case string(bucketUsers):
		return user
	case string(bucketDevices):
		return device
	}
	return 0
}

func fileOptions() queue.DBOptions {
	return queue.DBOptions{
		MmapBytes: mmapBytes, FirstFit: true, Format: fileFormat,
		Buckets: []string{string(bucketUsers), string(bucketDevices), string(bucketImports)},
		Upgrade: func(*bolt.Tx) error { return nil }, // to 2: a bucket more
		Entry:   checkEntry,
	}
}

// checkEntry looks whether an entry is what was written: a key that has changed would
// else be found by nobody, and missed by nobody.
func checkEntry(bucket string, key, value []byte) error {
	if k := kindOf(bucket); k != 0 && !wholeEntry(k, key, value) {
		return fmt.Errorf("%w: %w", errEntry, queue.ErrDamaged)
	}
	return nil
}

// Repair says that users.db was not whole, not there, or not of one piece with the
// log, and what was done. As an error it is a warning: the store works, but may know
// less than it did.
type Repair struct {
	Path     string // users.db
	Reason   string
	SetAside string // where the damaged file is now; "" = there was none
	Saved    int    // users and devices that could be read from it
	Replayed uint64 // records then taken from the log
	Lost     uint64 // records that the log no longer had
}

func (r *Repair) Error() string {
	text := fmt.Sprintf("%s had to be repaired: %s; ", r.Path, r.Reason)
	if r.SetAside != "" {
		text += fmt.Sprintf("%d users and devices were saved, the damaged file is %s; ", r.Saved, r.SetAside)
	}
	return text + fmt.Sprintf("%d records replayed from the log, %d were no longer in it", r.Replayed, r.Lost)
}

// salvageName is where a damaged users.db waits until what can be read of it is in a
// new one; then it gets a name of its own.
func salvageName(path string) string { return path + ".salvage" }

func setAside(path string) error {
	return rename(path, salvageName(path))
}

// openFile opens users.db, and makes it anew when it is missing or damaged.
func (s *Store) openFile() error {
	path := s.o.Path
	if err := os.Remove(path + rewrittenSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) { // a crash in Rewrite
		return err
	}
	if exists(salvageName(path)) { // damaged while it was in use, or a crash in salvage
		return s.rebuild("a page of it could not be read")
	}
	if !exists(path) && s.log.Tail() > 0 {
		s.repair = &Repair{Path: path, Reason: "it was missing"}
	}
	err := s.openWhole(path)
	if !errors.Is(err, queue.ErrDamaged) {
		return err
	}
	if err := setAside(path); err != nil {
		return fmt.Errorf("set aside %s: %w", path, err)
	}
	return s.rebuild(err.Error())
}

// LookEarly begins the look at users.db that Open makes, before Open is called. It writes nothing.
func LookEarly(path string) *queue.EarlyLook { return queue.LookEarly(path, fileOptions()) }

// openWhole opens a file and reads what it is good for.
func (s *Store) openWhole(path string) error {
	o := fileOptions()
	o.Early = s.o.Early
	db, err := queue.OpenDB(path, o)
	if err != nil {
		return err
	}
	err = queue.Guard(func() error {
		return db.View(func(tx *bolt.Tx) (err error) {
			if s.good, s.reach, s.sweepAt, err = readMeta(tx); err != nil {
				return err
			}
			s.logEnd = bytes.Clone(tx.Bucket(bucketMeta).Get(keyEnd))
			s.places, err = readPlaces(tx)
			return err
		})
	})
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	s.db = db
	return nil
}

func readMeta(tx *bolt.Tx) (good, reach uint64, sweepAt []byte, err error) {
	meta := tx.Bucket(bucketMeta)
	for key, to := range map[string]*uint64{string(keyGood): &good, string(keyReach): &reach} {
		switch v := meta.Get([]byte(key)); len(v) {
		case 0: // never written
		case 8:
			*to = binary.BigEndian.Uint64(v)
		default:
			return 0, 0, nil, fmt.Errorf("%q has %d bytes: %w", key, len(v), queue.ErrDamaged)
		}
	}
	if good > reach {
		return 0, 0, nil, fmt.Errorf("good for %d, but reaches %d: %w", good, reach, queue.ErrDamaged)
	}
	return good, reach, bytes.Clone(meta.Get(keySweep)), nil
}

// rebuild makes a new users.db from what can be read of the one set aside. It is then
// good for nothing, so that the whole log is replayed: what was saved passes over the
// records it has, what was not is made again as far as the log reaches back.
//
// A crash at any point here begins it anew: the file set aside keeps its name until the
// new one has its.
func (s *Store) rebuild(reason string) error {
	path, damaged := s.o.Path, salvageName(s.o.Path)
	fresh := path + ".rebuild"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := queue.OpenDB(fresh, fileOptions())
	if err != nil {
		return err
	}
	saved, err := salvage(db, damaged)
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("save what can be read of %s: %w", damaged, err)
	}
	if err := rename(fresh, path); err != nil {
		return err
	}
	aside := path + ".damaged-" + s.o.Now().UTC().Format("20060102T150405.000")
	if err := rename(damaged, aside); err != nil {
		return err
	}
	s.repair = &Repair{Path: path, Reason: reason, SetAside: aside, Saved: saved}
	return s.openWhole(path)
}

// salvage copies to db every entry of a damaged file that can be reached and is what
// was written.
func salvage(db *bolt.DB, damaged string) (saved int, err error) {
	var reach uint64
	var k kind
	var keys, values, places [][]byte
	put := func() error {
		n, err := putSaved(db, k, keys, values, &reach)
		saved += n
		keys, values = keys[:0], values[:0]
		return err
	}
	err = queue.Salvage(damaged, func(bucket string, key, value []byte) error {
		if bucket == string(bucketImports) {
			places = append(places, bytes.Clone(key), bytes.Clone(value))
			return nil
		}
		of := kindOf(bucket)
		if of == 0 {
			return nil
		}
		if of != k || len(keys) == writeEntries {
			if err := put(); err != nil {
				return err
			}
			k = of
		}
		keys, values = append(keys, key), append(values, value)
		return nil
	})
	if err = errors.Join(err, put()); err != nil {
		return saved, err
	}
	return saved, db.Update(func(tx *bolt.Tx) error {
		for ; len(places) > 0; places = places[2:] {
			if part, _, err := readPlace(places[0], places[1]); err != nil || part.seed {
				continue // what was seeded may be lost: it can be seeded again
			}
			if err := tx.Bucket(bucketImports).Put(places[0], places[1]); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyReach, binary.BigEndian.AppendUint64(nil, reach))
	})
}

// putSaved stores those of the values that are what was written.
func putSaved(db *bolt.DB, k kind, keys, values [][]byte, reach *uint64) (saved int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for i, key := range keys {
			st, err := readEntry(k, key, values[i])
			if err != nil {
				continue
			}
			if err := tx.Bucket(bucketOf(k)).Put(key, values[i]); err != nil {
				return err
			}
			saved++
			*reach = max(*reach, st.seq)
		}
		return nil
	})
	return saved, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fileBytes is how large a file is; 0 when it is not there.
func fileBytes(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// rename gives a file another name in its folder. When it returns nil, the name
// survives a power cut.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
