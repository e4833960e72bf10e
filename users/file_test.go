package users

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// users.db is a cache: without it, the log gives back what it still has, and says so.
func TestMissingFile(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, Options{}).run()
	if w.store.Warning() != nil {
		t.Error("a fresh folder is nothing to warn of:", w.store.Warning())
	}
	story(w)
	moreStory(w)
	w.checkpoint()
	want, tail := w.everything(), w.log.Tail()
	w.stop()
	if err := os.Remove(filepath.Join(dir, "users.db")); err != nil {
		t.Fatal(err)
	}
	w = start(t, dir, Options{})
	defer w.stop()
	if got := w.everything(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	var r *Repair
	if !errors.As(w.store.Warning(), &r) || r.Replayed != tail || r.Lost != 0 || r.SetAside != "" {
		t.Errorf("warning: %+v", w.store.Warning())
	}
	if s := w.store.Stats(); s.Repair == nil || s.Replayed != tail {
		t.Errorf("stats: %+v", s)
	}
}

// A file that cannot be opened is set aside, never deleted.
func TestDamagedFile(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"cut to nothing": func(t *testing.T, path string) { check(t, os.Truncate(path, 0)) },
		"cut short":      func(t *testing.T, path string) { check(t, os.Truncate(path, 5000)) },
		"both meta pages": func(t *testing.T, path string) {
			overwrite(t, path, 0, 2*int64(os.Getpagesize()))
		},
		"not a database": func(t *testing.T, path string) {
			check(t, os.WriteFile(path, []byte(strings.Repeat("what is this? ", 4000)), 0o600))
		},
		"impossible sequences": func(t *testing.T, path string) {
			db, err := queue.OpenDB(path, fileOptions())
			check(t, err)
			check(t, db.Update(func(tx *bolt.Tx) error {
				return tx.Bucket(bucketMeta).Put(keyGood, binary.BigEndian.AppendUint64(nil, 1<<60))
			}))
			check(t, db.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "users.db")
			w := start(t, dir, Options{}).run()
			story(w)
			w.checkpoint()
			want := w.everything()
			w.stop()
			damage(t, path)
			w = start(t, dir, Options{})
			if got := w.everything(); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			var r *Repair
			if !errors.As(w.store.Warning(), &r) || r.Replayed != w.log.Tail() || !exists(r.SetAside) {
				t.Errorf("warning: %v", w.store.Warning())
			}
			w.stop()
			w = start(t, dir, Options{})
			defer w.stop()
			if err := w.store.Warning(); err != nil {
				t.Errorf("said once more at the start after that: %v", err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, from, to int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	junk := make([]byte, to-from)
	for i := range junk {
		junk[i] = byte(i)*7 + 1
	}
	_, err = f.WriteAt(junk, from)
	check(t, errors.Join(err, f.Close()))
}

// A page that is damaged somewhere in the middle shows when it is needed. An event that
// needs it is not stored, the daemon ends, and the next start saves every other page,
// also when the log no longer has what was in them.
func TestDamagedPage(t *testing.T) {
	const people = 600
	o := Options{CacheBytes: 1}
	filled := func(t *testing.T) (dir string) {
		dir = t.TempDir()
		w := start(t, dir, o).run()
		for i := 0; i < people; i += 100 {
			var events []string
			for j := range 100 {
				events = append(events, fmt.Sprintf(`/person%04d - {"n":%d,"pad":%q}`, i+j, i+j, strings.Repeat("x", 200)))
			}
			w.send(events...)
		}
		w.checkpoint()
		w.stop()
		return dir
	}
	damage := func(t *testing.T, dir string) {
		path := filepath.Join(dir, "users.db")
		content, err := os.ReadFile(path)
		check(t, err)
		page := int64(os.Getpagesize())
		for at := page * 2; at < int64(len(content)); at += page {
			p := string(content[at : at+page])
			if strings.Contains(p, "person0300") && strings.Contains(p, `"n":300`) {
				overwrite(t, path, at, at+16)
			}
		}
	}
	repaired := func(t *testing.T, dir string) {
		w := start(t, dir, o).run()
		defer w.stop()
		var r *Repair
		if !errors.As(w.store.Warning(), &r) || r.Saved < people-100 || r.Saved >= people || !exists(r.SetAside) {
			t.Errorf("warning: %v", w.store.Warning())
		}
		if exists(salvageName(filepath.Join(dir, "users.db"))) {
			t.Error("the file set aside still waits to be saved")
		}
		for _, i := range []int{0, 1, 200, 450, people - 1} {
			if got, want := w.know("", fmt.Sprintf("person%04d", i)), fmt.Sprintf(`"n":%d`, i); !strings.Contains(got, want) {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		w.send(`/person0300 i1 {"$add":{"n":1}}`)
	}
	t.Run("an event needs it", func(t *testing.T) {
		dir := filled(t)
		w := start(t, dir, o)
		w.failing = true
		w.run()
		damage(t, dir)
		_, err := w.store.Append(context.Background(), arrival(t, w, `/person0300 - {"$add":{"n":1}}`))
		if !errors.Is(err, queue.ErrDamaged) {
			t.Errorf("answer: %v", err)
		}
		if _, err := w.store.User("app", "person0001"); err == nil {
			t.Error("the store goes on")
		}
		w.stop()
		check(t, os.RemoveAll(filepath.Join(dir, "log")))
		repaired(t, dir)
	})
	t.Run("the start needs it", func(t *testing.T) {
		dir := filled(t)
		damage(t, dir)
		check(t, os.RemoveAll(filepath.Join(dir, "log"))) // so all entries are looked at
		repaired(t, dir)
	})
}

// An entry that is not what was written counts as none; others are not touched. That is counted, also when it stands
// under another key, and so is only not found; and the next start makes it anew, as far as the log reaches.
func TestDamagedEntry(t *testing.T) {
	for name, harm := range map[string]func(b *bolt.Bucket, key, value []byte) error{
		"its value": func(b *bolt.Bucket, key, value []byte) error {
			value[len(value)-3] ^= 1
			return b.Put(key, value)
		},
		"its key, behind": func(b *bolt.Bucket, key, value []byte) error {
			return errors.Join(b.Delete(key), b.Put(appendKey(nil, "app", "anz"), value))
		},
		"its key, before": func(b *bolt.Bucket, key, value []byte) error {
			return errors.Join(b.Delete(key), b.Put(appendKey(nil, "app", "ana"), value))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, t.TempDir(), Options{CacheBytes: 1}).run()
			defer w.stop()
			w.send(`/ann - {"plan":"pro"}`, `/ada - {"plan":"pro"}`, `/bob - {"plan":"pro"}`)
			w.checkpoint()
			w.know("", "bob") // and ann is forgotten
			check(t, w.store.db.Update(func(tx *bolt.Tx) error {
				key := appendKey(nil, "app", "ann")
				return harm(tx.Bucket(bucketUsers), key, bytes.Clone(tx.Bucket(bucketUsers).Get(key)))
			}))
			if got := w.know("", "ann") + ", " + w.know("", "bob"); got != `ann {} 0 insert_ids, bob {"plan":"pro"} 0 insert_ids` {
				t.Error(got)
			}
			if n := w.store.Stats().DamagedKeys; n != 1 {
				t.Errorf("%d damaged entries counted", n)
			}
			after := w.crash(Options{})
			defer after.stop()
			if got := after.know("", "ann"); got != `ann {"plan":"pro"} 0 insert_ids` {
				t.Error("after a start:", got)
			}
			var r *Repair
			if !errors.As(after.store.Warning(), &r) || r.Saved != 2 {
				t.Errorf("warning: %v", after.store.Warning())
			}
		})
	}
}

func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	o := fileOptions()
	o.Format = fileFormat + 1
	db, err := queue.OpenDB(filepath.Join(dir, "users.db"), o)
	check(t, err)
	check(t, db.Close())
	if _, err := tryOpen(t, dir, Options{}); !errors.Is(err, queue.ErrNewerFormat) || !strings.Contains(err.Error(), "users.db") {
		t.Errorf("a file of a newer ampcio: %v", err)
	}
	if !exists(filepath.Join(dir, "users.db")) {
		t.Error("and it was moved")
	}
}

// The log was restored from an older copy, users.db was not. The log gives sequences
// again that users.db has seen: no replay may take a new record for an old one.
func TestRestoredLog(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, Options{}).run()
	w.send(`d0/u0 i0 {"$add":{"n":1}}`)
	older := t.TempDir()
	copyFolder(t, older, filepath.Join(dir, "log"))
	for i := range 5 {
		w.send(fmt.Sprintf(`d0/u0 j%d {"$add":{"n":1}}`, i))
	}
	w.checkpoint()
	w.stop()
	check(t, os.RemoveAll(filepath.Join(dir, "log")))
	copyFolder(t, filepath.Join(dir, "log"), older)

	w = start(t, dir, Options{}).run()
	defer w.stop()
	if got := w.know("", "u0"); got != `u0 {"n":6} 0 insert_ids` {
		t.Error("what was known is not known any more:", got)
	}
	if w.store.Warning() == nil {
		t.Error("no warning")
	}
	if tail, n := w.log.Tail(), w.log.Count("app"); tail != 6 || n != 6 {
		t.Errorf("the log ends with record %d, and has taken %d: what it has lost cannot be counted", tail, n)
	}
	w.send(`d0 k0 {"$add":{"n":1}}`)
	want := w.everything()
	after := w.crash(Options{})
	if got := after.everything(); got != want {
		t.Errorf("after a crash: got\n%swant\n%s", got, want)
	}
	if err := after.store.Warning(); err != nil {
		t.Error(err)
	}
	after.stop()
}

// A users.db of the format before this one is brought up when it is opened, with all that is in it.
func TestFormatOfBefore(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, Options{}).run()
	w.send(`d0/u0 i1 {"a":1}`)
	w.checkpoint()
	w.stop()
	path := filepath.Join(dir, "users.db")
	db, err := queue.OpenDB(path, fileOptions())
	if err != nil {
		t.Fatal(err)
	}
	older := filepath.Join(t.TempDir(), "users.db")
	o := fileOptions()
	o.Format, o.Buckets = 1, []string{string(bucketUsers), string(bucketDevices)}
	before, err := queue.OpenDB(older, o)
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(from *bolt.Tx) error {
		return before.Update(func(to *bolt.Tx) error {
			for _, name := range [][]byte{bucketUsers, bucketDevices} {
				err := from.Bucket(name).ForEach(func(k, v []byte) error {
					st, err := readEntry(kindOf(string(name)), k, v)
					if err != nil {
						return err
					}
					st.asOf = 0 // entries did not say of when they are
					value := appendEntry(nil, &st)
					seal(kindOf(string(name)), k, value)
					return to.Bucket(name).Put(k, value)
				})
				if err != nil {
					return err
				}
			}
			for _, key := range [][]byte{keyGood, keyReach} {
				if err := to.Bucket(bucketMeta).Put(key, from.Bucket(bucketMeta).Get(key)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err := errors.Join(err, db.Close(), before.Close(), os.Rename(older, path)); err != nil {
		t.Fatal(err)
	}
	w = start(t, dir, Options{}).run()
	defer w.stop()
	if err := w.store.Warning(); err != nil {
		t.Fatal(err)
	}
	if n := w.store.Stats().Replayed; n != 0 {
		t.Errorf("%d records replayed", n)
	}
	w.knows("device d0", `u0 {"a":1}`)
	w.hook(happening{-1, `d0/u0 i2 {"a":2}`}) // of when the state is, nobody knows
	w.knows("user u0", `{"a":2}`)
	w.take(false, 1, happening{-5, `d0/u0 i3`})
	w.checkpoint()
	after := w.crash(Options{})
	defer after.stop()
	if n := after.store.Place("app", partOfTests, false); n != 1 {
		t.Errorf("%d lines are taken", n)
	}
}

// How far imports have come outlives a users.db that is damaged; what was seeded may be lost, so it may be seeded again.
func TestPlacesAreSalvaged(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, Options{}).run()
	w.take(false, 1, happening{-5, `d0/u0 i1`}, happening{-4, `d0/u0 i2`})
	w.take(true, 1, happening{-5, `d0/u0 i1 {"a":1}`})
	w.checkpoint()
	w.stop()
	path := filepath.Join(dir, "users.db")
	if err := setAside(path); err != nil {
		t.Fatal(err)
	}
	w = start(t, dir, Options{})
	defer w.stop()
	if w.store.Warning() == nil {
		t.Error("nothing was repaired")
	}
	if n, seeded := w.store.Place("app", partOfTests, false), w.store.Place("app", partOfTests, true); n != 2 || seeded != 0 {
		t.Errorf("%d lines are taken, %d as seeds", n, seeded)
	}
}
