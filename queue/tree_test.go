package queue

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// What bbolt writes passes the look at its tree, whatever was put and deleted: a file
// that did not would be set aside though it is whole.
func TestTheTreeOfASoundFileIsSound(t *testing.T) {
	path := filepath.Join(quickDir(t), "sound.db")
	o := DBOptions{Format: 1, Buckets: []string{"a", "b"}}
	random := rand.New(rand.NewPCG(1, 9))
	key := func(n int) []byte {
		k := binary.BigEndian.AppendUint64(nil, uint64(n*2654435761)%1e9)
		return append(k, make([]byte, n%40)...)
	}
	most, deepest := int64(0), 0
	for round := range 60 {
		db, err := OpenDB(path, o) // which looks, too
		must(t, err)
		for range 5 {
			must(t, db.Update(func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte{"ab"[random.IntN(2)]})
				if random.IntN(4) == 0 {
					var err error
					if b, err = b.CreateBucketIfNotExists(fmt.Appendf(nil, "nested %d", random.IntN(5))); err != nil {
						return err
					}
				}
				from, n := random.IntN(3000), random.IntN(400)
				for i := range n {
					k := key(from + i)
					if random.IntN(3) == 0 || round%7 == 6 { // now and then most of it goes
						if err := b.Delete(k); err != nil {
							return err
						}
						continue
					}
					size := random.IntN(60)
					if random.IntN(50) == 0 {
						size = random.IntN(20_000)
					}
					if err := b.Put(k, make([]byte, size)); err != nil {
						return err
					}
				}
				return nil
			}))
			f, err := os.Open(path)
			must(t, err)
			m, err := newestMeta(f)
			must(t, err)
			most = max(most, m.pages)
			if err := checkTree(f, m, true, DBOptions{}); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			must(t, f.Close())
			must(t, db.View(func(tx *bolt.Tx) error {
				deepest = max(deepest, tx.Bucket([]byte("a")).Stats().Depth)
				return nil
			}))
		}
		must(t, db.Close())
	}
	if most < 100 || deepest < 3 {
		t.Errorf("%d pages, %d levels: that shows little", most, deepest)
	}
}

// What bbolt would not survive for long is seen at the open.
func TestATreeThatIsNotSound(t *testing.T) {
	from := filepath.Join(quickDir(t), "sound.db")
	o := DBOptions{Format: 1, Buckets: []string{"a"}}
	db, err := OpenDB(from, o)
	must(t, err)
	for round := range 4 {
		must(t, db.Update(func(tx *bolt.Tx) error {
			for n := range 600 {
				if round == 3 && n%2 == 0 {
					tx.Bucket([]byte("a")).Delete(seqKey(uint64(n)))
				} else if err := tx.Bucket([]byte("a")).Put(seqKey(uint64(n)), make([]byte, 50)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	must(t, db.Close())
	f, err := os.Open(from)
	must(t, err)
	defer f.Close()
	m, err := newestMeta(f)
	must(t, err)
	tree := newTree(f, m)
	_, es, _, err := tree.page(m.root)
	must(t, err)
	var root uint64
	for _, e := range es {
		k, v, err := tree.read(m.root, e)
		must(t, err)
		if string(k) == "a" {
			root, _, _ = bucket(v)
		}
	}
	branch, below, _, err := tree.page(root)
	must(t, err)
	if !branch || len(below) < 3 {
		t.Fatalf("branch %t, %d elements", branch, len(below))
	}
	leaf := below[1].child
	_, entries, _, err := tree.page(leaf)
	must(t, err)
	free, err := tree.freelist()
	must(t, err)
	if len(free) < 3 {
		t.Fatalf("%d free pages", len(free))
	}
	page := func(id uint64) int { return int(id) * int(m.pageSize) }
	// named has the free list name a page in use, in order.
	named := func(b []byte, id uint64) {
		i := min(slices.IndexFunc(append(free, id+1), func(f uint64) bool { return f > id }), len(free)-1)
		binary.NativeEndian.PutUint64(b[page(m.freelist)+boltPageHeader+8*i:], id)
	}
	for _, tt := range []struct {
		name string
		harm func(b []byte)
	}{
		{"a free list that names a page in use", func(b []byte) { named(b, leaf) }},
		{"a free list that names a page in use, of a tree of which a part is looked at", func(b []byte) { named(b, root) }},
		{"the first key of a leaf", func(b []byte) { b[page(leaf)+int(entries[0].at)+6] ^= 1 }},
		{"a key in the middle of a leaf", func(b []byte) { b[page(leaf)+int(entries[3].at)] ^= 0x40 }},
		{"the key by which a leaf is known", func(b []byte) { b[page(root)+int(below[1].at)+7] ^= 1 }},
		{"a leaf without its last element", func(b []byte) { b[page(leaf)+10]-- }},
		{"a leaf without elements", func(b []byte) { b[page(leaf)+10], b[page(leaf)+11] = 0, 0 }},
		{"an element that points at another's key", func(b []byte) { b[page(leaf)+boltPageHeader+16*3+4] ^= 4 }},
		{"a bucket without elements", func(b []byte) { b[page(root)+8], b[page(root)+10], b[page(root)+11] = pageLeaf, 0, 0 }},
		{"a bucket of which all is zero but its page's number and kind", func(b []byte) {
			b[page(root)+8] = pageLeaf
			clear(b[page(root)+10 : page(root+1)])
		}},
		{"a free page that is named twice", func(b []byte) {
			at := page(m.freelist) + boltPageHeader
			binary.NativeEndian.PutUint64(b[at+8:], free[0])
		}},
		{"a free list that names itself", func(b []byte) {
			at := page(m.freelist) + boltPageHeader
			binary.NativeEndian.PutUint64(b[at:], m.freelist)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "harmed.db")
			must(t, copySparse(from, to))
			edit(t, to, func(b []byte) []byte { tt.harm(b); return b })
			o := o
			if strings.HasSuffix(tt.name, "a part is looked at") {
				o.pages = 4
			}
			if db, err := OpenDB(to, o); err == nil {
				db.Close()
				t.Error("it was opened")
			}
		})
	}
}

// Of a level of which only some will be seen, those are kept that were written last, and one that says that there are more.
func TestThePlacesThatAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := newest{most: rapid.IntRange(1, 5).Draw(t, "most"), upwards: rapid.Bool().Draw(t, "upwards")}
		ids := rapid.SliceOfDistinct(rapid.Uint64Range(2, 200), func(id uint64) uint64 { return id }).Draw(t, "ids")
		for _, id := range ids {
			if n.wants(id) {
				n.add(place{id: id})
			}
		}
		slices.Sort(ids)
		if !n.upwards {
			slices.Reverse(ids)
		}
		level := n.inOrder()
		if len(level) <= n.most && len(level) != len(ids) {
			t.Fatalf("%d of %d places are left, and none says so", len(level), len(ids))
		}
		for i := range min(len(ids), n.most+1) {
			if level[i].id != ids[i] {
				t.Fatalf("place %d is page %d, not %d", i, level[i].id, ids[i])
			}
		}
	})
}

// However few pages may be looked at, and wherever in the tree that ends: what was not seen is not called whole, and what is
// above the end is checked. Large values stand in a bucket that is not as deep as its neighbour.
func TestALookThatEndsAnywhere(t *testing.T) {
	path := filepath.Join(quickDir(t), "deep.db")
	db, err := OpenDB(path, DBOptions{Format: 1, Buckets: []string{"deep", "large"}})
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error { // first, so that of their level these pages are looked at last
		for n := range 40 {
			must(t, tx.Bucket([]byte("large")).Put(seqKey(uint64(n)), make([]byte, 9_000)))
		}
		return nil
	}))
	must(t, db.Update(func(tx *bolt.Tx) error {
		for n := range 600 {
			must(t, tx.Bucket([]byte("deep")).Put(fmt.Appendf(nil, "%0400d", n), nil))
		}
		return nil
	}))
	must(t, db.Close())
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	m, err := newestMeta(f)
	must(t, err)
	look := func(most int) (whole bool, entries int) {
		tree := newTree(f, m)
		tree.most, tree.entry = most, func(string, []byte, []byte) error { entries++; return nil }
		whole, err := tree.check()
		must(t, err)
		return whole, entries
	}
	before, enough := 0, 0
	for most := 1; enough == 0; most++ {
		whole, entries := look(most)
		if entries < before {
			t.Fatalf("%d pages show %d entries, one less %d", most, entries, before)
		}
		if before = entries; whole {
			enough = most
		} else if most > 10_000 {
			t.Fatal("it is never whole")
		}
	}
	if _, entries := look(enough); entries != 640+1 { // and the format's
		t.Errorf("%d entries, with %d pages", entries, enough)
	}
}
