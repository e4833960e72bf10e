package users

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"ampcio/queue"
)

// sealed is a whole stored value.
func sealed(k kind, key []byte, s *state) []byte {
	value := appendEntry(nil, s)
	seal(k, key, value)
	return value
}

// remember adds to a ring that has its own memory and grows as an entry's does.
func remember(r *recent, id uint64, hour uint32) {
	if room := r.room(); room > len(r.tags) {
		grown := recent{tags: make([]byte, room), cells: make([]byte, room*recentCell), n: r.n}
		r.copyTo(grown.tags, grown.cells)
		*r = grown
	}
	r.add(id, hour)
}

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom([]kind{user, device}).Draw(t, "kind")
		s := state{seq: rapid.Uint64().Draw(t, "seq"), seen: rapid.Uint32().Draw(t, "seen")}
		s.user = []byte(rapid.String().Draw(t, "user"))
		if p := rapid.SliceOf(rapid.Byte()).Draw(t, "properties"); len(p) > 0 {
			s.properties = p
		}
		s.sole = rapid.Bool().Draw(t, "sole")
		if p := rapid.SliceOf(rapid.Byte()).Draw(t, "built-ins"); len(p) > 0 {
			s.builtins = p
		}
		if n := rapid.IntRange(0, 400).Draw(t, "insert_ids"); n > 0 {
			for i := range n {
				remember(&s.recent, uint64(i+1), uint32(i))
			}
		}
		project, id := rapid.String().Draw(t, "project"), rapid.String().Draw(t, "id")
		key := appendKey(nil, project, id)
		if p, i, ok := splitKey(key); ok && (p != project || i != id) {
			t.Fatalf("key of %q %q reads as %q %q", project, id, p, i)
		}
		// By way of memory, where a block is used again with whatever was in it.
		places := ringPlaces(s.recent.n)
		b := block(bytes.Repeat([]byte{0xa5}, blockBytes([]byte("key"), &s, places)+rapid.IntRange(0, 20).Draw(t, "left")))
		b.fill(7, []byte("key"), &s, places)
		inMemory := b.state()
		value := sealed(k, key, &inMemory)
		got, err := readEntry(k, key, value)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.recent.append(nil), s.recent.append(nil)) {
			t.Fatal("insert_ids differ")
		}
		got.recent, s.recent = recent{}, recent{}
		if diff := cmp.Diff(s, got, cmp.AllowUnexported(state{}, recent{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		// Any one byte that changes, in the value, its key or its kind, is found.
		at := rapid.IntRange(0, len(value)-1).Draw(t, "flip")
		bad := bytes.Clone(value)
		bad[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := readEntry(k, key, bad); err == nil {
			t.Fatalf("byte %d was changed", at)
		}
		if _, err := readEntry(k, append([]byte{0}, key...), value); err == nil {
			t.Fatal("another key's value was taken")
		}
		if _, err := readEntry(k^user^device, key, value); err == nil {
			t.Fatal("a user's value was taken for a device")
		}
	})
}

// Keys of different entries never meet, also where a hash stands for the id.
func TestKeysAreApart(t *testing.T) {
	long := strings.Repeat("x", longID+1)
	seen := map[string]string{}
	for _, project := range []string{"", "a", "ab", "app"} {
		for _, id := range []string{"", "a", "b", "ab", "bid", "id", "pid", long, long + "y", string(appendKey(nil, "", long)[1:])} {
			key := string(appendKey(nil, project, id))
			if other, ok := seen[key]; ok {
				t.Errorf("%q %q has the key of %s", project, id, other)
			}
			seen[key] = project + " " + id
		}
	}
}

// FuzzReadEntry: whatever a damaged disk gives back is an error or an entry, and never a panic.
func FuzzReadEntry(f *testing.F) {
	var r recent
	remember(&r, 7, 9)
	f.Add([]byte("\x06appann"), sealed(user, []byte("\x06appann"), &state{seq: 1, seen: 2, properties: []byte(`{"a":1}`), builtins: []byte{1, 1, '7'}}), false)
	f.Add([]byte("\x06appd1"), sealed(device, []byte("\x06appd1"), &state{seq: 1, user: []byte("ann"), recent: r}), false)
	f.Add([]byte(""), []byte{entryVersion, 0, 0, 0, 0, 1, 1, tagRecent, 10}, true)
	f.Fuzz(func(t *testing.T, key, value []byte, sum bool) {
		splitKey(key)
		if sum && len(value) >= entryHeader { // past the checksum, as a bug of ours would be
			value = bytes.Clone(value)
			value[0] = entryVersion
			seal(user, key, value)
		}
		s, err := readEntry(user, key, value)
		if err != nil {
			return
		}
		if s.recent.n > recentMax {
			t.Fatalf("%d insert_ids", s.recent.n)
		}
		if again, err := readEntry(user, key, sealed(user, key, &s)); err != nil || again.seq != s.seq {
			t.Fatalf("written again it is %+v, %v", again, err)
		}
	})
}

// FuzzReadMeta opens a users.db whose small values and places of imports may be anything: they are damaged, or can be
// worked with.
func FuzzReadMeta(f *testing.F) {
	key := placeKey(archivePart{project: "app", seed: true, part: [16]byte{1, 2}})
	f.Add(binary.BigEndian.AppendUint64(nil, 7), binary.BigEndian.AppendUint64(nil, 9), []byte("sweep"), key, placeValue(key, 77), false)
	f.Add([]byte{1}, []byte{}, []byte{}, []byte{}, []byte{}, true)
	f.Add(binary.BigEndian.AppendUint64(nil, 9), binary.BigEndian.AppendUint64(nil, 7), []byte{}, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, make([]byte, 12), true)
	db, err := queue.OpenDB(filepath.Join(f.TempDir(), "users.db"), fileOptions())
	if err != nil {
		f.Fatal(err)
	}
	db.NoSync = true // many small transactions: it is what can be read that is tried
	f.Cleanup(func() { db.Close() })
	f.Fuzz(func(t *testing.T, good, reach, sweep, key, value []byte, sum bool) {
		if len(key) == 0 || len(key) > bolt.MaxKeySize {
			key = []byte{0}
		}
		if sum && len(value) >= 12 { // past the checksum, as a bug of ours would be
			value = placeValue(key, binary.BigEndian.Uint64(value))
		}
		err := db.Update(func(tx *bolt.Tx) error {
			meta, imports := tx.Bucket(bucketMeta), tx.Bucket(bucketImports)
			if err := errors.Join(meta.Put(keyGood, good), meta.Put(keyReach, reach), meta.Put(keySweep, sweep), imports.Put(key, value)); err != nil {
				return err
			}
			low, high, at, err := readMeta(tx)
			switch {
			case err != nil && !errors.Is(err, queue.ErrDamaged):
				t.Fatal(err)
			case err == nil && (low > high || !bytes.Equal(at, sweep)):
				t.Fatalf("good for %d of %d, to be swept from %q", low, high, at)
			}
			places, err := readPlaces(tx)
			if err != nil || len(places) > 1 {
				t.Fatalf("%v, %v", places, err)
			}
			for p, n := range places {
				if again, m, err := readPlace(placeKey(p), placeValue(placeKey(p), n)); err != nil || again != p || m != n {
					t.Fatalf("%+v at %d, again %+v at %d: %v", p, n, again, m, err)
				}
			}
			return errUndone
		})
		if !errors.Is(err, errUndone) {
			t.Fatal(err)
		}
	})
}

var errUndone = errors.New("undone")
