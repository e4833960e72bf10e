package power

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"

	"ampcio-faults/lossy"
	"ampcio/queue"
)

// verifier looks at images of one story. A start of everything costs some milliseconds, and most images differ from others
// only in which pieces of one transaction are there. So each file of each image is opened as the start opens it, written
// to, and read to its last byte; and of the images whose files all read the same, key by key, the first is started. What
// a start finds is judged again for every image, by what was acknowledged when it was taken.
type verifier struct {
	dir    string // in memory
	book   *book
	seed   maphash.Seed
	files  map[uint64]uint64 // what a file reads like, by its bytes
	starts map[uint64]*seen  // what a start finds, by what the files read like
	images map[uint64]bool   // that were looked at, by their bytes
	hashes map[string]hashed // of files that have not changed since the last image
	judged map[judgement]map[int]bool
	began  int
	deep   int
}

func newVerifier(dir string, b *book) *verifier {
	return &verifier{dir: dir, book: b, seed: maphash.MakeSeed(), files: map[uint64]uint64{}, starts: map[uint64]*seen{}, images: map[uint64]bool{},
		hashes: map[string]hashed{}, judged: map[judgement]map[int]bool{}}
}

// hashed is the hash of a slice that is never changed.
type hashed struct {
	of  []byte
	sum uint64
}

// judgement is of what was found, by what was known.
type judgement struct {
	of    *seen
	lines int
}

// hash gives the hash of a file's bytes. Images share those of files of which all is synced.
func (v *verifier) hash(path string, c lossy.Content) uint64 {
	last := v.hashes[path]
	if len(c.Data) == 0 || len(c.Data) != len(last.of) || &c.Data[0] != &last.of[0] {
		last = hashed{c.Data, maphash.Bytes(v.seed, c.Data)}
		v.hashes[path] = last
	}
	return last.sum ^ uint64(c.Size)
}

// deepEvery is how many starts go by until one also delivers everything.
const deepEvery = 8

// verify looks at an image; fresh says that it is none that was looked at before.
func (v *verifier) verify(ctx context.Context, im lossy.Image) (fresh bool, s *seen, stored map[int]bool, err error) {
	var bytes, reads maphash.Hash
	bytes.SetSeed(v.seed)
	reads.SetSeed(v.seed)
	for _, p := range slices.Sorted(maps.Keys(im.Files)) {
		if damaged(p) {
			return true, nil, nil, fmt.Errorf("damage was met: there is %s", p)
		}
		c := im.Files[p]
		h := v.hash(p, c)
		add(&bytes, p, h)
		if passing(p) {
			continue
		}
		like, known := v.files[h]
		if !known {
			if like, err = v.readFile(p, c); err != nil {
				return true, nil, nil, fmt.Errorf("%s: %w", p, err)
			}
			v.files[h] = like
		}
		add(&reads, p, like)
	}
	key := bytes.Sum64()
	fresh = !v.images[key]
	v.images[key] = true
	if s = v.starts[reads.Sum64()]; s == nil {
		if s, err = v.start(ctx, im); err != nil {
			return fresh, nil, nil, err
		}
		v.starts[reads.Sum64()] = s
	}
	is := judgement{s, v.book.lines}
	if stored, before := v.judged[is]; before {
		return fresh, s, stored, nil
	}
	if stored, err = v.book.judge(s); err == nil {
		v.judged[is] = stored
	}
	return fresh, s, stored, err
}

// damaged says that a file is there since ampcio has met damage.
func damaged(path string) bool {
	return strings.Contains(path, "damaged") || strings.Contains(path, "suspect") || strings.Contains(path, "salvage")
}

func add(h *maphash.Hash, path string, of uint64) {
	h.WriteString(path)
	maphash.WriteComparable(h, of)
}

// passing files are not there any more after a start, or nothing depends on what is in them.
func passing(path string) bool {
	base := filepath.Base(path)
	return strings.HasSuffix(base, ".new") || strings.HasSuffix(base, ".rewritten") || strings.HasSuffix(base, ".hist") ||
		base == "spare.next" || base == "lock" || base == "reserve"
}

// readFile opens a file, writes to it, and reads all of it.
func (v *verifier) readFile(path string, c lossy.Content) (like uint64, err error) {
	if filepath.Ext(path) != ".db" {
		return maphash.Bytes(v.seed, c.Data), nil
	}
	at := filepath.Join(v.dir, "file.db") // a new inode each time: a file that bbolt panicked on may stay locked
	im := lossy.Image{Files: map[string]lossy.Content{"file.db": c}}
	if err := im.WriteTo(v.dir); err != nil {
		return 0, err
	}
	defer os.Remove(at)
	db, err := queue.OpenDB(at, queue.DBOptions{Format: 255})
	if err != nil {
		return 0, err
	}
	err = queue.Guard(func() error {
		scratch := []byte("scratch")
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucket(scratch)
			if err != nil {
				return err
			}
			if err := b.Put(scratch, bytes.Repeat(scratch, 1000)); err != nil {
				return err
			}
			return tx.DeleteBucket(scratch)
		})
		if err != nil {
			return err
		}
		var h maphash.Hash
		h.SetSeed(v.seed)
		err = db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error { h.Write(name); return digest(&h, b) })
		})
		like = h.Sum64()
		return err
	})
	if err != nil {
		return 0, err // db may be locked for good
	}
	return like, db.Close()
}

// digest reads a bucket, and those in it.
func digest(h *maphash.Hash, b *bolt.Bucket) error {
	return b.ForEach(func(k, value []byte) error {
		maphash.WriteComparable(h, len(k))
		h.Write(k)
		if value == nil {
			return digest(h, b.Bucket(k))
		}
		maphash.WriteComparable(h, len(value))
		h.Write(value)
		return nil
	})
}

// start starts everything on an image.
func (v *verifier) start(ctx context.Context, im lossy.Image) (*seen, error) {
	v.began++
	dir := filepath.Join(v.dir, fmt.Sprintf("image%d", v.began))
	defer os.RemoveAll(dir)
	if err := im.WriteTo(dir); err != nil {
		return nil, err
	}
	deep := v.began%deepEvery == 0
	if deep {
		v.deep++
	}
	return start(ctx, filepath.Join(dir, storage), v.book, deep)
}
