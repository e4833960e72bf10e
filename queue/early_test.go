package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// A look that has begun early is believed of the very file, as it is when that is opened, and of nothing else.
func TestAnEarlyLookIsBelievedOfThatFileOnly(t *testing.T) {
	o := DBOptions{Buckets: []string{"a"}, Format: 1}
	fill := func(t *testing.T, path, value string) {
		t.Helper()
		db, err := OpenDB(path, o)
		must(t, err)
		must(t, db.Update(func(tx *bolt.Tx) error {
			for i := range 2000 {
				if err := tx.Bucket([]byte("a")).Put(seqKey(uint64(i)), []byte(value)); err != nil {
					return err
				}
			}
			return nil
		}))
		must(t, db.Close())
	}
	// spoil has the bucket's outer page say that it is another: bbolt looks at it when somebody asks for a key.
	spoil := func(t *testing.T, path string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		m, err := newestMeta(f)
		must(t, err)
		tree := newTree(f, m)
		_, err = tree.each(m.root, func(k, v []byte) error {
			page, _, err := bucket(v)
			must(t, err)
			if string(k) == "a" {
				_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, page+1), int64(page)*m.pageSize)
			}
			return err
		})
		must(t, err)
	}
	for _, tt := range []struct {
		name          string
		before, after func(t *testing.T, path string) // of the look
		want          error
	}{
		{"whole, and still so", foundWhole, nothing, nil},
		{"damaged before", func(t *testing.T, path string) { fill(t, path, "x"); spoil(t, path) }, nothing, ErrDamaged},
		{"written and damaged since", func(t *testing.T, path string) {
			for range 3 { // it has room then, and keeps its size
				fill(t, path, "x")
			}
		}, func(t *testing.T, path string) { fill(t, path, "y"); spoil(t, path) }, ErrDamaged},
		{"another file since, which is damaged", func(t *testing.T, path string) { fill(t, path, "x") }, func(t *testing.T, path string) {
			copied, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path+".other", copied, 0o600))
			spoil(t, path+".other")
			must(t, os.Rename(path+".other", path))
		}, ErrDamaged},
		{"damaged, and mended since", func(t *testing.T, path string) { fill(t, path, "x"); spoil(t, path) }, func(t *testing.T, path string) {
			must(t, os.Remove(path))
			fill(t, path, "y")
		}, nil},
		{"not there", nothing, nothing, nil},
		{"no database", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("nothing of the kind"), 0o600)) }, nothing, ErrDamaged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.db")
			tt.before(t, path)
			early := LookEarly(path, o)
			<-early.done
			tt.after(t, path)
			with := o
			with.Early = early
			db, err := OpenDB(path, with)
			if !errors.Is(err, tt.want) {
				t.Fatalf("it is opened with %v", err)
			}
			if err == nil {
				must(t, db.Close())
			}
		})
	}
}

func nothing(*testing.T, string) {}

// foundWhole makes a file that an early look finds whole, and sees to it that it has found so: else each open would look again.
func foundWhole(t *testing.T, path string) {
	t.Helper()
	o := DBOptions{Buckets: []string{"a"}, Format: 1}
	db, err := OpenDB(path, o)
	must(t, err)
	must(t, db.Close())
	early := LookEarly(path, o)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	m, err := newestMeta(f)
	must(t, err)
	if !early.found(st, m) {
		t.Error("a whole file is not found whole")
	}
	if _, err := os.Stat(path + newSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A file that is written all over does not grow by its own free list, for which bbolt needs pages that stand together.
func TestAFileDoesNotGrowByItsFreeList(t *testing.T) {
	bytesOnly(t)
	const entries = 200_000
	path := filepath.Join(quickDir(t), "f.db")
	db, err := OpenDB(path, DBOptions{Buckets: []string{"a"}, Format: 1, FirstFit: true, MmapBytes: 1 << 30})
	must(t, err)
	defer db.Close()
	db.NoSync = true // how much is written does not depend on it
	random := rand.New(rand.NewPCG(1, 2))
	value := bytes.Repeat([]byte{7}, 150)
	write := func(from, apart, n int) {
		must(t, db.Update(func(tx *bolt.Tx) error {
			for i := range n {
				if err := tx.Bucket([]byte("a")).Put(fmt.Appendf(nil, "user-%09d", (from+i*apart)%entries), value); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for from := 0; from < entries; from += 2000 {
		write(from, 1, 2000)
	}
	var free int
	for round := range 600 {
		write(random.IntN(entries), 1+random.IntN(40), 200+random.IntN(1800))
		st := db.Stats()
		if now := st.FreePageN + st.PendingPageN; round == 300 {
			free = now
		} else if round > 300 && now > free*11/10 {
			t.Fatalf("round %d: %d pages are free, after 300 rounds %d were", round, now, free)
		}
	}
}
