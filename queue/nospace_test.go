package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// After a failed fsync bbolt would overwrite what the durable state needs, so nothing is tried again.
func TestOnlyAWriteThatFoundNoSpaceIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"a write":               {&os.PathError{Op: "write", Path: "x.db", Err: syscall.ENOSPC}, true},
		"a quota":               {fmt.Errorf("checkpoint: %w", &os.PathError{Op: "write", Path: "x.db", Err: syscall.EDQUOT}), true},
		"a rename":              {&os.LinkError{Op: "rename", Old: "a", New: "b", Err: syscall.ENOSPC}, true},
		"a file that is bound":  {bolterrors.ErrMaxSizeReached, true},
		"a transaction's fsync": {fmt.Errorf("checkpoint: %w", syscall.ENOSPC), false},
		"a write and an error":  {&os.PathError{Op: "write", Path: "x.db", Err: syscall.EIO}, false},
		"a meta page":           {fmt.Errorf("%w: %w", errMetaPage, &os.PathError{Op: "write", Path: "x.db", Err: syscall.ENOSPC}), true},
		"another error":         {errors.New("no space left on device"), false},
	} {
		if got := NoSpace(c.err); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// Update tells by bbolt's own figures that all was written but the meta page: it has to be so that it writes each page that
// it has spilled, the free list, and then that one.
func TestBboltWritesTheMetaPageBehindWhatItSpilled(t *testing.T) {
	db, err := OpenDB(filepath.Join(t.TempDir(), "a.db"), DBOptions{Buckets: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := rand.New(rand.NewPCG(7, 7))
	for n := range 300 {
		var stats func() bolt.TxStats
		err := Update(db, func(tx *bolt.Tx) error {
			stats = tx.Stats
			for range r.IntN(200) {
				name := []byte{"ab"[r.IntN(2)]}
				b, key := tx.Bucket(name), fmt.Appendf(nil, "%d", r.IntN(2000))
				switch r.IntN(4) {
				case 0:
					if err := b.Delete(key); err != nil {
						return err
					}
				case 1:
					inner, err := b.CreateBucketIfNotExists(fmt.Appendf(nil, "bucket %s", key))
					if err != nil {
						return err
					}
					if err := inner.Put(key, make([]byte, r.IntN(5000))); err != nil {
						return err
					}
				default:
					if err := b.Put(key, make([]byte, r.IntN(1<<r.IntN(16)+1))); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if s := stats(); s.GetWrite() != s.GetSpill()+2 {
			t.Fatalf("transaction %d: %d writes, %d pages spilled", n, s.GetWrite(), s.GetSpill())
		}
	}
}
