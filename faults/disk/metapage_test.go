package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"ampcio-faults/child"
	"ampcio-faults/lossy"
	"ampcio/queue"
)

func init() { child.Register("three updates", threeUpdates) }

// threeUpdates makes three transactions, each until it is done, and says of each that fails what there was to do.
func threeUpdates(args []string) error {
	path, o := filepath.Join(args[0], "a.db"), queue.DBOptions{Buckets: []string{"b"}, MmapBytes: 1 << 20}
	db, err := queue.OpenDB(path, o)
	if err != nil {
		return err
	}
	for i := 0; i < 3; {
		err := queue.Update(db, func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("b")).Put([]byte{byte(i)}, make([]byte, 3000*(i+1)))
		})
		switch {
		case err == nil:
			i++
		case !queue.NoSpace(err):
			return err
		case queue.Unknown(err):
			fmt.Println(i, "open anew")
			if db, err = queue.OpenAnew(db, path, o); err != nil {
				return err
			}
		default:
			fmt.Println(i, "again")
		}
	}
	err = db.View(func(tx *bolt.Tx) error {
		for i := range 3 {
			if got := len(tx.Bucket([]byte("b")).Get([]byte{byte(i)})); got != 3000*(i+1) {
				return fmt.Errorf("value %d has %d bytes", i, got)
			}
		}
		for err := range tx.Check() {
			return err
		}
		return nil
	})
	return errors.Join(err, db.Close())
}

// What finds no space is written again. When that was the meta page nobody knows which of the two states is there: the mapped
// file may show one now, and the other later. So it is opened anew.
func TestAFullDiskAtTheMetaPage(t *testing.T) {
	m, err := lossy.NewMount(filepath.Join(t.TempDir(), "m"))
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	did := map[string][]string{} // by transaction, in the order in which its writes failed
	for n, fired := 1, true; fired; n++ {
		l := m.Begin(lossy.Image{}, lossy.LifeOptions{})
		l.Inject(&lossy.Fault{Kinds: []lossy.Kind{lossy.Write}, N: n, Errno: syscall.ENOSPC})
		out, err := child.Command("three updates", l.Path).CombinedOutput()
		fired = l.Fired() > 0
		if len(out) == 0 && err == nil && fired {
			t.Errorf("write %d failed, and nobody says so", n)
		}
		if i, did1, ok := strings.Cut(strings.TrimSuffix(string(out), "\n"), " "); ok && err == nil {
			did[i] = append(did[i], did1)
		} else if err != nil && len(did) > 0 {
			t.Errorf("write %d: %v: %s", n, err, out)
		}
	}
	for i := range 3 {
		got := did[fmt.Sprint(i)]
		if want := append(slices.Repeat([]string{"again"}, max(len(got)-1, 2)), "open anew"); !slices.Equal(got, want) {
			t.Errorf("transaction %d, by the write that failed: %v, want %v", i, got, want)
		}
	}
}
