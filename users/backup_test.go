package users

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ampcio/queue"
)

// backedUp restores a backup of a world that runs into a new folder.
func backedUp(t *testing.T, w *world, others func(*queue.BackupWriter) error) (dir string) {
	t.Helper()
	var tar bytes.Buffer
	_, err := w.log.Backup(t.Context(), &tar, queue.BackupOptions{
		Version: "test", Now: w.clock.now, Others: others,
		Consumers: func(copy func([]*queue.Consumer) error) error { return copy(nil) },
	})
	check(t, err)
	dir = filepath.Join(t.TempDir(), "restored")
	_, err = queue.Restore(t.Context(), &tar, dir, func(folder string) error { return Check(filepath.Join(folder, "users.db")) })
	check(t, err)
	return dir
}

// Backups while events come and checkpoints are written: what a restored users.db and
// log know is what the log alone tells, and it is not ahead of the log.
func TestBackup(t *testing.T) {
	w := start(t, t.TempDir(), Options{CheckpointEvery: time.Millisecond, CheckpointBytes: 20_000}).run().runStore()
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for s := range 3 {
		senders.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				w.send(fmt.Sprintf(`d%d/u%d i%d-%d {"$add":{"n":1},"$set":{"p%d":%q}}`, n%50, n%40, s, n, n%7, strings.Repeat("x", n%300)),
					fmt.Sprintf(`e%d-%d - {"$add":{"n":1}}`, s, n%60))
			}
		})
	}
	checkpoints := uint64(0)
	for round := range 4 {
		tail := w.log.Tail()
		for deadline := time.Now().Add(20 * time.Second); w.store.Stats().Checkpoints < checkpoints+3 || w.log.Tail() < tail+100; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not go on")
			}
		}
		checkpoints = w.store.Stats().Checkpoints
		marker := fmt.Sprintf(`d0/u0 marker-%d {"$add":{"n":1}}`, round)
		w.send(marker)
		tail = w.log.Tail()
		dir := backedUp(t, w, w.store.Backup)

		alone := t.TempDir()
		copyFolder(t, filepath.Join(alone, "log"), filepath.Join(dir, "log"))
		rebuilt := start(t, alone, Options{})
		want := rebuilt.everything()
		rebuilt.stop()

		back := start(t, dir, Options{}).run()
		if err := back.store.Warning(); err != nil {
			t.Error(err)
		}
		if end, good := back.log.Tail(), back.store.Stats().Good; end < tail || good == 0 || good > end {
			t.Errorf("the backup ends with %d, %d was stored before it; its users.db is good for %d", end, tail, good)
		}
		if got := back.everything(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		// What a sender repeats is still known; what is new is new.
		if n := back.send(marker, `d0/u0 new {"$add":{"n":1}}`); n != 1 {
			t.Errorf("%d duplicates of 2", n)
		}
		back.stop()
	}
	close(stop)
	senders.Wait()
	w.stop()
}

// What is stored and written to users.db until the moment in which it is copied is in the
// log of the backup, too.
func TestABackupOfUsersIsNotAheadOfItsLog(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	w.send(`d0/u0 i0 {"$add":{"n":1}}`)
	dir := backedUp(t, w, func(b *queue.BackupWriter) error {
		w.send(`d0/u0 i1 {"$add":{"n":1}}`)
		w.checkpoint()
		return w.store.Backup(b)
	})
	want := w.everything()
	w.stop()
	back := start(t, dir, Options{})
	defer back.stop()
	if got := back.everything(); got != want || back.store.Warning() != nil || back.log.Tail() != 2 {
		t.Errorf("got\n%swant\n%s%v, the log ends with %d", got, want, back.store.Warning(), back.log.Tail())
	}
}

// A users.db that cannot be written any more is not backed up as if it were whole.
func TestBackupOfABrokenStore(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	w.send(`d0/u0 i0 {"$add":{"n":1}}`)
	gone := errors.New("the disk is gone")
	w.store.interrupt = func(string) error { return gone }
	if err := w.store.checkpointNow(); !errors.Is(err, gone) {
		t.Fatal(err)
	}
	_, err := w.log.Backup(t.Context(), &bytes.Buffer{}, queue.BackupOptions{Now: time.Now, Others: w.store.Backup,
		Consumers: func(copy func([]*queue.Consumer) error) error { return copy(nil) }})
	if !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	w.stop()
}

// The files of a stopped ampcio, with a damaged users.db that is yet to be salvaged.
func TestBackupOfFiles(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, Options{}).run()
	w.send(`d0/u0 i0 {"$add":{"n":1}}`, `d1 i1 {"$add":{"n":2}}`)
	w.checkpoint()
	want := w.everything()
	w.stop()
	for name, prepare := range map[string]func(){
		"whole":                     func() {},
		"damaged while it was used": func() { check(t, setAside(filepath.Join(dir, "users.db"))) },
	} {
		prepare()
		var tar bytes.Buffer
		_, err := queue.BackupFiles(t.Context(), dir, &tar, queue.BackupOptions{Now: time.Now, Others: BackupFiles})
		check(t, err)
		to := filepath.Join(t.TempDir(), "restored")
		_, err = queue.Restore(t.Context(), &tar, to, nil)
		check(t, err)
		check(t, os.RemoveAll(filepath.Join(to, "log"))) // so that only users.db can tell
		w := start(t, to, Options{})
		if got := w.everything(); got != want {
			t.Errorf("%s: got\n%swant\n%s", name, got, want)
		}
		w.stop()
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users.db")
	if err := Check(path); err != nil {
		t.Errorf("one that is missing: %v", err)
	}
	o := fileOptions()
	db, err := queue.OpenDB(path, o)
	check(t, err)
	check(t, db.Close())
	if err := Check(path); err != nil {
		t.Error(err)
	}
	overwrite(t, path, 0, 8192)
	if err := Check(path); err != nil {
		t.Errorf("one that is damaged is made anew: %v", err)
	}
	check(t, os.Remove(path))
	o.Format = fileFormat + 1
	db, err = queue.OpenDB(path, o)
	check(t, err)
	check(t, db.Close())
	if err := Check(path); !errors.Is(err, queue.ErrNewerFormat) {
		t.Errorf("one of a newer ampcio: %v", err)
	}
}
