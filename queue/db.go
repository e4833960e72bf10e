package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// ErrDamaged says that a file cannot be read as what it should be. The caller sets
// it aside; it is never deleted.
var ErrDamaged = errors.New("file is damaged")

// ErrNewerFormat says that a file was written by a later version of ampcio.
var ErrNewerFormat = errors.New("written by a newer version of ampcio")

// DBOptions says how OpenDB opens a bbolt file.
type DBOptions struct {
	ReadOnly bool // never creates, never writes
	// MmapBytes is address space mapped at once, so that the file grows to this size
	// without a re-mapping (which waits for all readers).
	MmapBytes int
	Buckets   []string // top-level buckets that a new file is born with
	Format    byte     // format version; kept in the bucket "meta", checked at every open
}

var (
	bucketMeta = []byte("meta")
	keyFormat  = []byte("format")
)

// OpenDB opens the bbolt file at path, creating it if need be. The file is born
// whole: it is made under another name, closed, renamed, and its folder synced.
//
// Before bbolt sees an existing file, its newest valid meta page is written again
// and synced: after a failed fsync the page cache may show a commit that the disk
// does not have, and building on it would lose both (measured: 58 of 665 files
// damaged without, 0 of 298 with). Panics and faults of a damaged file come back as
// ErrDamaged, a later format as ErrNewerFormat.
func OpenDB(path string, o DBOptions) (*bolt.DB, error) {
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !o.ReadOnly:
		if err := createDB(path, o); err != nil {
			return nil, fmt.Errorf("create %s: %w", path, err)
		}
	case err != nil:
		return nil, err
	case !o.ReadOnly:
		if err := rewriteMeta(path); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	var db *bolt.DB
	err = Guard(func() error {
		var err error
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			ReadOnly:        o.ReadOnly,
			InitialMmapSize: o.MmapBytes,
			Timeout:         time.Second,
			FreelistType:    bolt.FreelistMapType,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, damage(err))
	}
	err = Guard(func() error { return db.View(func(tx *bolt.Tx) error { return checkFormat(tx, o) }) })
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, errors.Join(damage(err), db.Close()))
	}
	return db, nil
}

func checkFormat(tx *bolt.Tx, o DBOptions) error {
	b := tx.Bucket(bucketMeta)
	if b == nil {
		return fmt.Errorf("no %q bucket: %w", bucketMeta, ErrDamaged)
	}
	v := b.Get(keyFormat)
	if len(v) != 1 {
		return fmt.Errorf("no format version: %w", ErrDamaged)
	}
	if v[0] > o.Format {
		return fmt.Errorf("format %d, this version knows up to %d: %w", v[0], o.Format, ErrNewerFormat)
	}
	for _, name := range o.Buckets {
		if tx.Bucket([]byte(name)) == nil {
			return fmt.Errorf("no %q bucket: %w", name, ErrDamaged)
		}
	}
	return nil
}

// damage marks the errors by which bbolt says that a file is not whole.
func damage(err error) error {
	for _, e := range []error{bolterrors.ErrInvalid, bolterrors.ErrChecksum, bolterrors.ErrVersionMismatch} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", err, ErrDamaged)
		}
	}
	if err != nil && err.Error() == "file size too small" {
		return fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	return err
}

// Guard runs f and turns a panic, or a fault in mapped memory, into ErrDamaged:
// both are what bbolt makes of a file that is not whole.
func Guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v: %w", p, ErrDamaged)
		}
	}()
	return f()
}

func createDB(path string, o DBOptions) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(fresh, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range append([]string{string(bucketMeta)}, o.Buckets...) {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyFormat, []byte{o.Format})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	return renameDurably(fresh, path)
}

// renameDurably gives a finished file its name. When it returns nil, the name
// survives a power cut.
func renameDurably(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// The layout of bbolt's meta pages, bbolt v1.5 (db.go, internal/common/meta.go):
// a 16-byte page header, then magic, version, page size, flags (4 bytes each), root
// bucket (16), free list, high-water page, transaction (8 each), checksum (8).
const (
	boltPageHeader = 16
	boltMetaBytes  = 64
	boltMagic      = 0xED0CDAED
)

// rewriteMeta writes the newest valid meta page of a closed bbolt file again, the
// same bytes at the same place, and syncs. A crash here leaves the page as it was:
// it is smaller than a sector, and only equal bytes are written.
func rewriteMeta(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var newest []byte
	var at int64
	var txid uint64
	consider := func(off int64) (pageSize int64) {
		page := make([]byte, boltPageHeader+boltMetaBytes)
		if n, _ := f.ReadAt(page, off); n < len(page) {
			return 0
		}
		m := page[boltPageHeader:]
		h := fnv.New64a()
		h.Write(m[:56])
		if binary.NativeEndian.Uint32(m) != boltMagic || h.Sum64() != binary.NativeEndian.Uint64(m[56:]) {
			return 0
		}
		if t := binary.NativeEndian.Uint64(m[48:]); newest == nil || t > txid {
			newest, at, txid = page, off, t
		}
		return int64(binary.NativeEndian.Uint32(m[8:]))
	}
	if size := consider(0); size > 0 {
		consider(size)
	} else {
		// The first page is not whole: the second stands at the page size, which only it knows.
		for size := int64(1024); size <= 1<<16; size *= 2 {
			if consider(size) == size {
				break
			}
		}
	}
	if newest == nil {
		return fmt.Errorf("neither meta page is whole: %w", ErrDamaged)
	}
	if _, err := f.WriteAt(newest, at); err != nil {
		return err
	}
	return f.Sync()
}
