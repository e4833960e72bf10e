package queue

import (
	"errors"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
)

// bbolt gives nothing back to the disk: a ledger whose side place or dead letters were
// large keeps its size. So it is written anew when most of it is free.
const (
	compactFree  = 16 << 20  // bytes that must be free, and more than half of the file
	compactMost  = 512 << 20 // what is copied at most: checkpoints wait for it
	compactAgain = 10 * time.Minute
)

// compact writes the ledger anew when that gives much back to the disk. Checkpoints
// wait for it; looks do not. A crash leaves the ledger as it was, or the new one.
func (c *Consumer) compact() error {
	if time.Now().Before(c.compactAfter) {
		return nil
	}
	_, err := c.compactIf(func(free, live int64) bool { return free >= compactFree && free >= live })
	return err
}

// compactIf writes the ledger anew if that is worth it by what is free in it and what is
// not, and says whether it did.
func (c *Consumer) compactIf(worth func(free, live int64) bool) (done bool, err error) {
	if !c.looking.TryLock() {
		return false, nil // an audit: whoever waited for it would hold up checkpoints
	}
	defer c.looking.Unlock()
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.torn != nil {
		return false, c.torn
	}
	free := int64(c.db.Stats().FreePageN) * int64(c.db.Info().PageSize)
	st, err := c.file.Stat()
	if err != nil {
		return false, fmt.Errorf("sync %s: %w", c.o.Name, err)
	}
	if live := st.Size() - free; live > compactMost || !worth(free, live) {
		return false, nil
	}
	path := c.path()
	fresh := path + newSuffix
	err = Guard(func() error { return compactTo(fresh, c.db) })
	if err != nil {
		os.Remove(fresh)
		c.compactAfter = time.Now().Add(compactAgain)
		if NoSpace(err) {
			return false, nil
		}
		if errors.Is(err, ErrDamaged) {
			suspect(path) // the next start looks; until then it goes on as it is
			return false, nil
		}
		return false, fmt.Errorf("sync %s: compact the ledger: %w", c.o.Name, err)
	}
	c.using.Lock()
	defer c.using.Unlock()
	if err := c.db.Close(); err != nil {
		return false, fmt.Errorf("sync %s: close the ledger: %w", c.o.Name, err)
	}
	if err := renameDurably(fresh, path); err != nil {
		return false, fmt.Errorf("sync %s: %w", c.o.Name, err)
	}
	db, file, err := openDB(path, ledgerOptions())
	if err != nil {
		return false, fmt.Errorf("sync %s: %w", c.o.Name, err) // whoever still asks the closed one hears that it is closed
	}
	c.db, c.file, c.unknown = db, file, nil
	return true, nil
}

func compactTo(path string, from *bolt.DB) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	to, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	err = bolt.Compact(to, from, 1<<20)
	if err == nil {
		if err = to.Sync(); err != nil {
			err = &os.PathError{Op: "fsync", Path: path, Err: err} // of a file that nobody needs yet: NoSpace is that
		}
	}
	return errors.Join(err, to.Close())
}
