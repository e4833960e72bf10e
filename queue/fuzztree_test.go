package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// FuzzTree opens bbolt files of which anything may be damaged, with meta pages whose checksum fits: whatever the look at
// the tree lets pass is opened, read and written by bbolt without end or fault, or is an error; and what is salvaged lies
// within the file.
func FuzzTree(f *testing.F) {
	dir := quickDir(f)
	seed := filepath.Join(dir, "seed.db")
	o := DBOptions{Format: 1, Buckets: []string{"a", "b"}}
	db, err := OpenDB(seed, o)
	must(f, err)
	for round := range 3 {
		must(f, db.Update(func(tx *bolt.Tx) error {
			for n := range uint64(150) {
				key := seqKey(n)
				if round == 2 && n%3 == 0 {
					if err := tx.Bucket([]byte("a")).Delete(key); err != nil {
						return err
					}
				} else if err := tx.Bucket([]byte("a")).Put(key, make([]byte, 40)); err != nil {
					return err
				}
			}
			return tx.Bucket([]byte("b")).Put([]byte("large"), make([]byte, 9000))
		}))
	}
	must(f, db.Close())
	sound, err := os.ReadFile(seed)
	must(f, err)
	newest := func() metaPage {
		file, err := os.Open(seed)
		must(f, err)
		defer file.Close()
		m, err := newestMeta(file)
		must(f, err)
		return m
	}()
	sound = sound[:newest.pages*newest.pageSize]
	// What is changed: at some place of the file other bytes stand; sealed says that the meta pages are made whole again.
	f.Add(uint32(0), []byte{}, uint32(0), []byte{}, true)
	f.Add(uint32(8), []byte{1, 0, 200}, uint32(8192+10), []byte{0xff, 0xff}, true)
	f.Add(uint32(4096+16+8), []byte{0, 0, 0, 0}, uint32(4096+16+40), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, true)
	for page := uint32(2); page < uint32(newest.pages); page++ {
		f.Add(page*4096, []byte{byte(page), 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0}, page*4096+12, []byte{1, 0, 0, 0}, false)
	}
	path := filepath.Join(dir, "fuzzed.db")
	f.Fuzz(func(t *testing.T, at uint32, is []byte, at2 uint32, is2 []byte, sealed bool) {
		b := bytes.Clone(sound)
		copy(b[int(at)%len(b):], is)
		copy(b[int(at2)%len(b):], is2)
		if sealed {
			for _, meta := range [][]byte{b[boltPageHeader:], b[newest.pageSize+boltPageHeader:]} {
				sum := fnv.New64a()
				sum.Write(meta[:56])
				binary.NativeEndian.PutUint64(meta[56:], sum.Sum64())
			}
		}
		must(t, os.WriteFile(path, b, 0o600))
		given := 0
		must(t, Salvage(path, func(_ string, k, v []byte) error {
			given += len(k) + len(v)
			return nil
		}))
		if given > 2*len(b) { // an element may say that it has its neighbour's bytes, too: a page is given once
			t.Fatalf("%d bytes are salvaged from %d", given, len(b))
		}
		db, err := OpenDB(path, o)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatal(err)
			}
			return
		}
		err = Guard(func() error {
			return db.Update(func(tx *bolt.Tx) error {
				for _, name := range []string{"a", "b"} {
					b := tx.Bucket([]byte(name))
					if b == nil {
						return ErrDamaged
					}
					if err := b.ForEach(func(k, v []byte) error { return nil }); err != nil {
						return err
					}
					if err := b.Put(seqKey(77), make([]byte, 60)); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err == nil { // else it may be locked for good, and the process ends anyway
			must(t, db.Close())
		}
	})
}

// FuzzHistoryBlocks reads whole files of a history: headers too.
func FuzzHistoryBlocks(f *testing.F) {
	dir := quickDir(f)
	whole := appendHistory(nil, []Ended{{Seq: 5, At: 9, Ending: Delivered, Tries: 1}, {Seq: 7, At: 12, Ending: Dead, Tries: 2, Reason: "http_400"}})
	f.Add(whole)
	f.Add(append(bytes.Clone(whole), whole...))
	f.Add(append(bytes.Clone(whole), historyVersion, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff))
	path := filepath.Join(dir, "0000000000001"+historySuffix)
	f.Fuzz(func(t *testing.T, b []byte) {
		must(t, os.WriteFile(path, b, 0o600))
		blocks := 0
		file, err := os.Open(path)
		must(t, err)
		defer file.Close()
		eachBlock(file, func(least, most uint64, payload func() ([]byte, error)) error {
			blocks++
			_, _ = payload()
			return nil
		})
		if blocks*historyHeader > len(b) {
			t.Fatalf("%d blocks in %d bytes", blocks, len(b))
		}
		for seq, all := range readHistory(dir, []uint64{5, 7, 1 << 60}) {
			for _, e := range all {
				if e.Seq != seq || e.Ending >= endings {
					t.Fatalf("of %d it says %+v", seq, e)
				}
			}
		}
	})
}

// endless is a manifest that never ends.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// A forged backup takes no more memory than a manifest may have.
func TestAManifestHasABound(t *testing.T) {
	bytesOnly(t)
	if _, err := readManifest(endless{}); !errors.Is(err, ErrBadBackup) {
		t.Errorf("%v", err)
	}
}
