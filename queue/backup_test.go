package queue

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func backupOptions(cs map[string]*Consumer) BackupOptions {
	return BackupOptions{Version: "test", Now: time.Now, Consumers: func(copy func([]*Consumer) error) error {
		var all []*Consumer
		for _, name := range sortedKeys(cs) {
			all = append(all, cs[name])
		}
		return copy(all)
	}}
}

// restored restores a backup into a new folder.
func restored(t testing.TB, backup []byte) (dir string, m Manifest) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "restored")
	m, err := Restore(t.Context(), bytes.NewReader(backup), dir, nil)
	must(t, err)
	return dir, m
}

// A backup is made while events come and go, and again and again. Each is restored: what
// was acknowledged before it began is there, and has ended or is delivered in order.
func TestBackupUnderLoad(t *testing.T) {
	o := small(t.TempDir())
	h, cs := mustOpen(t, o, "p", "q")
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var mu sync.Mutex
	acked, ended := 0, map[string]bool{} // acked: the number of the last; ended: by p
	work.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			h.append(fmt.Sprintf("%d:%08d%s", n%8, n, noise(uint64(n), 400)))
			mu.Lock()
			acked = n
			mu.Unlock()
		}
	})
	for w := range 2 {
		work.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(w)))
			for {
				cl, err := cs["p"].Claim(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				for _, r := range cl.Records() {
					ended[string(r.Body[:10])] = true // at some time, perhaps
				}
				mu.Unlock()
				settleSomehow(cl, random)
			}
		})
	}
	rounds := 6
	if testing.Short() || raceEnabled {
		rounds = 3
	}
	last := 0
	for round := range rounds {
		var before int
		eventually(t, "it has gone on", func() bool {
			mu.Lock()
			defer mu.Unlock()
			before = acked
			return before > last+200
		})
		last = before
		var b bytes.Buffer
		_, err := h.log.Backup(t.Context(), &b, backupOptions(cs))
		must(t, err)

		dir, m := restored(t, b.Bytes())
		if len(m.Syncs) != 2 || m.Tail < uint64(before) || m.Version != "test" || m.Syncs[0].Pending == 0 || m.Syncs[1].Low != 0 || m.Syncs[1].Pending != m.Tail {
			t.Errorf("%d acknowledged, manifest %+v", before, m)
		}
		audits, err := AuditFiles(t.Context(), dir)
		must(t, err)
		for i, a := range audits {
			mustBalance(t, a)
			if a.Books.Pending != m.Syncs[i].Pending || a.Books.Lost != 0 {
				t.Errorf("%+v, manifest %+v", a, m.Syncs[i])
			}
		}
		o := o
		o.Dir = dir
		back, bcs := mustOpen(t, o, "p", "q")
		b2 := batch("9:new")
		must(t, back.log.Append(t.Context(), b2))
		if b2.places[0].Seq != m.Tail+1 {
			t.Errorf("the first new record has sequence %d behind %d", b2.places[0].Seq, m.Tail)
		}
		for name, c := range bcs {
			got := drain(t, c)
			if !slices.Equal(got["9"], []string{"9:new"}) {
				t.Errorf("%s: the new record came as %q", name, got["9"])
			}
			found := map[string]bool{}
			for lane, texts := range got {
				if !slices.IsSortedFunc(texts, strings.Compare) || len(slices.Compact(slices.Clone(texts))) != len(texts) {
					t.Errorf("%s: lane %s is out of order, or has one twice", name, lane)
				}
				for _, text := range texts {
					found[text[:min(10, len(text))]] = true
				}
			}
			mu.Lock()
			for n := 1; n <= before; n++ {
				text := fmt.Sprintf("%d:%08d", n%8, n)
				if !found[text] && !(name == "p" && ended[text]) {
					t.Errorf("round %d, %s: %s was acknowledged before the backup, and is gone", round, name, text)
				}
			}
			mu.Unlock()
			mustStats(t, c)
			a, err := c.Audit(t.Context())
			must(t, err)
			mustBalance(t, a)
		}
		back.close(bcs)
		if t.Failed() {
			break
		}
	}
	stop()
	work.Wait()
	if held := h.holders(); len(held) != 2 {
		t.Errorf("a backup still holds the log: %v", held)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "backup-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	h.close(cs)
}

// slowly takes nothing before the test lets it.
type slowly struct {
	bytes.Buffer
	reached, open chan struct{}
	once          sync.Once
}

func (s *slowly) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.reached); <-s.open })
	return s.Buffer.Write(b)
}

// Whoever takes a backup slowly holds nothing up: no transaction stays open on a ledger,
// and the log keeps what is still to be copied, and only that.
func TestABackupThatIsTakenSlowly(t *testing.T) {
	o := small(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	h.fill("app", 3000, 300)
	files := logPaths(t, o.Dir)
	w := &slowly{reached: make(chan struct{}), open: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		_, err := h.log.Backup(context.Background(), w, backupOptions(cs))
		done <- err
	}()
	<-w.reached
	if n := cs["p"].db.Stats().OpenTxN; n != 0 {
		t.Errorf("%d transactions are open on the ledger", n)
	}
	drain(t, cs["p"])
	must(t, cs["p"].Flush())
	h.log.clean()
	if now := logPaths(t, o.Dir); !slices.Equal(now, files) {
		t.Errorf("files went that are still to be copied: %d of %d are left", len(now), len(files))
	}
	h.append("9:later")
	close(w.open)
	must(t, <-done)
	eventually(t, "the drained files go", func() bool { h.log.clean(); return len(logPaths(t, o.Dir)) == 1 })
	h.close(cs)

	dir, m := restored(t, w.Bytes())
	o.Dir = dir
	back, bcs := mustOpen(t, o, "p")
	n := 0
	for _, texts := range drain(t, bcs["p"]) {
		n += len(texts)
	}
	if n != 3000 && n != 3001 || uint64(n) != m.Tail {
		t.Errorf("%d delivered, the backup ends with %d", n, m.Tail)
	}
	back.close(bcs)
}

// A backup of a stopped storage is the same; so is a plain copy of its folder.
func TestBackupOfFiles(t *testing.T) {
	dir := t.TempDir()
	lived(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "hash.key"), []byte("secret"), 0o600))
	suspect(logPaths(t, dir)[0])
	var b bytes.Buffer
	o := BackupOptions{Version: "test", Now: time.Now, Others: func(b *BackupWriter) error {
		return errors.Join(b.AddFile("hash.key"), b.AddFile("door.json"))
	}}
	_, err := BackupFiles(t.Context(), dir, &b, o)
	must(t, err)
	to, m := restored(t, b.Bytes())
	want := audited(t, dir)
	a := audited(t, to)
	mustBalance(t, a)
	if a.Books != want.Books || a.Low != want.Low || a.Tail != want.Tail {
		t.Errorf("restored %+v, it was %+v", a, want)
	}
	if m.Tail != want.Tail || len(m.Syncs) != 1 || m.Syncs[0] != (ManifestSync{Name: "p", Project: "app", Low: want.Low, Pending: want.Books.Pending}) {
		t.Errorf("%+v", m)
	}
	if key, err := os.ReadFile(filepath.Join(to, "hash.key")); err != nil || string(key) != "secret" {
		t.Error(err)
	}
	if suspected(logPaths(t, to)[0]) == nil {
		t.Error("it is forgotten that damage was met in a file")
	}
	h, cs := mustOpen(t, small(dir), "p")
	if _, err := BackupFiles(t.Context(), dir, io.Discard, o); !errors.Is(err, ErrLocked) {
		t.Errorf("files that are in use: %v", err)
	}
	h.close(cs)
}

// Whatever is wrong with a backup: a clear error, and nothing is written.
func TestBackupsThatAreNotWhole(t *testing.T) {
	from := t.TempDir()
	lived(t, from)
	var buf bytes.Buffer
	_, err := BackupFiles(t.Context(), from, &buf, BackupOptions{Version: "test", Now: time.Now})
	must(t, err)
	whole := buf.Bytes()
	root := quickDir(t)
	refused := func(t *testing.T, backup []byte, is error, says string) {
		t.Helper()
		dir := filepath.Join(root, "storage")
		_, err := Restore(t.Context(), bytes.NewReader(backup), dir, nil)
		if !errors.Is(err, is) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
		if left := entries(t, root); len(left) != 0 {
			t.Fatalf("written: %v", left)
		}
	}
	t.Run("cut off", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 1))
		end := len(bytes.TrimRight(whole, "\x00")) // of the manifest
		for _, n := range append([]int{0, 1, 511, 512, 513, end - 1, end - 100}, random.Perm(end)[:20]...) {
			refused(t, whole[:n], ErrBadBackup, "cut off")
		}
	})
	t.Run("one bit flipped", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		harmless := 0
		for range 60 {
			bit := random.IntN(8 * len(whole))
			spoilt := bytes.Clone(whole)
			spoilt[bit/8] ^= 1 << (bit % 8)
			dir := filepath.Join(root, "storage")
			if _, err := Restore(t.Context(), bytes.NewReader(spoilt), dir, nil); err == nil {
				harmless++ // in what only fills a block up
				must(t, os.RemoveAll(dir))
				continue
			}
			refused(t, spoilt, ErrBadBackup, "")
		}
		if harmless > 10 {
			t.Errorf("%d of 60 flips have passed", harmless)
		}
	})
	t.Run("every bit of the manifest", func(t *testing.T) {
		at := bytes.LastIndex(whole, []byte(`{"format":1`))
		step := 7
		if testing.Short() || raceEnabled {
			step = 111
		}
		for bit := 8 * at; bit < 8*(at+bytes.IndexByte(whole[at:], 0)); bit += step {
			spoilt := bytes.Clone(whole)
			spoilt[bit/8] ^= 1 << (bit % 8)
			refused(t, spoilt, ErrBadBackup, "its manifest is damaged")
		}
	})
	t.Run("of a newer format", func(t *testing.T) {
		refused(t, rewritten(t, whole, func(w *BackupWriter) { w.manifest.Format = 2 }), ErrNewerFormat, "the backup is of format 2, this version knows up to 1")
	})
	t.Run("with a ledger of a newer format", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "newer")
		copyTree(t, from, dir)
		newer := byte(ledgerFormat + 1)
		editLedger(t, dir, func(tx *bolt.Tx) { must(t, put(tx.Bucket(bucketMeta), keyFormat, []byte{newer})) })
		var b bytes.Buffer
		_, err := BackupFiles(t.Context(), dir, &b, BackupOptions{Version: "test", Now: time.Now})
		must(t, err)
		refused(t, b.Bytes(), ErrNewerFormat, fmt.Sprintf("format %d", newer))
	})
	t.Run("a file that is missing", func(t *testing.T) {
		refused(t, rewritten(t, whole, func(w *BackupWriter) {
			w.manifest.Files = append(w.manifest.Files, ManifestFile{Name: "users.db"})
		}), ErrBadBackup, "users.db is missing")
	})
	t.Run("a file that is not in the manifest", func(t *testing.T) {
		refused(t, rewritten(t, whole, func(w *BackupWriter) { w.manifest.Files = w.manifest.Files[:1] }), ErrBadBackup, "knows nothing")
	})
	t.Run("a name that leads elsewhere", func(t *testing.T) {
		for _, name := range []string{"../evil", "/etc/passwd", "log/../../evil", "sync/../users.db", "log", ".ssh"} {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 4}))
			w.Write([]byte("evil"))
			must(t, w.Close())
			if name == "log" {
				continue // it is told when it cannot be created
			}
			refused(t, b.Bytes(), ErrBadBackup, "which a backup of ampcio never does")
		}
	})
	t.Run("no tar", func(t *testing.T) {
		refused(t, []byte(strings.Repeat("this is no tar ", 100)), ErrBadBackup, "this is no backup of ampcio")
	})
	t.Run("what the caller finds", func(t *testing.T) {
		found := errors.New("found")
		_, err := Restore(t.Context(), bytes.NewReader(whole), filepath.Join(root, "storage"), func(folder string) error {
			if len(logPaths(t, folder)) == 0 {
				t.Error("nothing is there to be looked at")
			}
			return found
		})
		if !errors.Is(err, found) || len(entries(t, root)) != 0 {
			t.Error(err, entries(t, root))
		}
	})
}

// rewritten makes the same backup with a manifest that was changed.
func rewritten(t testing.TB, backup []byte, change func(*BackupWriter)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := newBackupWriter(t.Context(), &b, "", 0, BackupOptions{Now: time.Now})
	for r := tar.NewReader(bytes.NewReader(backup)); ; {
		h, err := r.Next()
		must(t, err)
		if h.Name == manifestName {
			break
		}
		must(t, w.addFrom(h.Name, h.Size, func(to io.Writer) error { _, err := io.Copy(to, r); return err }))
	}
	change(w)
	_, err := w.close()
	must(t, err)
	return b.Bytes()
}

func TestWhereABackupIsRestoredTo(t *testing.T) {
	from := t.TempDir()
	lived(t, from)
	var b bytes.Buffer
	_, err := BackupFiles(t.Context(), from, &b, BackupOptions{Version: "test", Now: time.Now})
	must(t, err)
	restore := func(dir string) error {
		_, err := Restore(t.Context(), bytes.NewReader(b.Bytes()), dir, nil)
		return err
	}
	root := t.TempDir()
	t.Run("an empty folder", func(t *testing.T) {
		dir := filepath.Join(root, "empty")
		must(t, os.Mkdir(dir, 0o750))
		must(t, restore(dir+"/"))
		mustBalance(t, audited(t, dir))
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Error(st.Mode(), err)
		}
	})
	t.Run("one that is not empty", func(t *testing.T) {
		dir := filepath.Join(root, "used")
		must(t, os.Mkdir(dir, 0o700))
		write(t, filepath.Join(dir, "precious"), "yes")
		if err := restore(dir); !errors.Is(err, ErrNotEmpty) {
			t.Error(err)
		}
		if got := entries(t, dir); !slices.Equal(got, []string{"precious"}) {
			t.Error(got)
		}
	})
	t.Run("where a crash has left half of one", func(t *testing.T) {
		dir := filepath.Join(root, "again")
		must(t, os.MkdirAll(dir+restoring, 0o700))
		write(t, filepath.Join(dir+restoring, "half"), "a file")
		must(t, restore(dir))
		if exists(filepath.Join(dir, "half")) || exists(dir+restoring) {
			t.Error("what a crash has left is in it")
		}
	})
	t.Run("a folder that cannot be", func(t *testing.T) {
		if err := restore(filepath.Join(root, "no", "such", "parent")); err != nil {
			t.Error(err) // it is made, as serve does
		}
		write(t, filepath.Join(root, "file"), "")
		if err := restore(filepath.Join(root, "file")); err == nil {
			t.Error("a file was taken for a folder")
		}
	})
}

func TestABackupIsATarThatPeopleCanRead(t *testing.T) {
	dir := t.TempDir()
	lived(t, dir)
	var b bytes.Buffer
	_, err := BackupFiles(t.Context(), dir, &b, BackupOptions{Version: "test", Now: func() time.Time { return time.UnixMilli(1_700_000_000_999) }})
	must(t, err)
	var names []string
	var last []byte
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if h.Mode != 0o600 || h.Uname != "" || h.Uid != 0 || h.Size > 1<<20 {
			t.Errorf("%+v", h)
		}
		names = append(names, h.Name)
		last, err = io.ReadAll(r)
		must(t, err)
	}
	if names[0] != "sync/p.db" || names[len(names)-1] != "manifest.json" || !slices.IsSorted(names[1:len(names)-1]) {
		t.Error(names)
	}
	var m Manifest
	must(t, json.NewDecoder(bytes.NewReader(last)).Decode(&m))
	if m.Format != 1 || m.Time.Format(time.RFC3339) != "2023-11-14T22:13:20Z" || len(m.Files) != len(names)-1 || m.Tail != 996 {
		t.Errorf("%+v", m)
	}
}

// A backup never takes the space that has to stay free, and one that is given up leaves
// nothing.
func TestABackupWithoutRoomOrReader(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p")
	h.fill("app", 500, 300)
	full := o
	full.MinFree = 1 << 60
	h.log.SetLimits(full)
	_, err := h.log.Backup(t.Context(), io.Discard, backupOptions(cs))
	if !isFull(err) || !strings.Contains(err.Error(), "a copy of p.db") || !strings.Contains(err.Error(), "make room, or stop ampcio first") {
		t.Errorf("without room: %v", err)
	}
	h.log.SetLimits(o)
	gone := errors.New("the reader is gone")
	if _, err := h.log.Backup(t.Context(), failing{gone}, backupOptions(cs)); !errors.Is(err, gone) {
		t.Errorf("without a reader: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := h.log.Backup(ctx, io.Discard, backupOptions(cs)); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if held := h.holders(); len(held) != 1 {
		t.Errorf("it still holds the log: %v", held)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "backup-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	drain(t, cs["p"])
	h.close(cs)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// asked is a context that tells when somebody asks whether it has ended.
type asked struct {
	context.Context
	tell func()
}

func (a asked) Err() error { a.tell(); return a.Context.Err() }

// The copy of a large ledger lasts. Meanwhile it is not written anew: that would wait for
// the copy, and every checkpoint, and every delivery, for that.
func TestALedgerIsNotWrittenAnewWhileItIsCopied(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	c := cs["p"]
	h.append("a:1")
	caughtUp(t, h, c)
	looks := 0
	ctx := asked{t.Context(), func() {
		if c.db.Stats().OpenTxN == 0 {
			return
		}
		looks++
		if c.looking.TryLock() { // as compact does
			c.looking.Unlock()
			t.Error("it could be written anew")
		}
	}}
	_, err := h.log.Backup(ctx, io.Discard, backupOptions(cs))
	must(t, err)
	if looks == 0 {
		t.Error("nobody has looked while it was copied")
	}
	if !c.looking.TryLock() {
		t.Fatal("it can never be written anew after that")
	}
	c.looking.Unlock()
}

// A backup begins while somebody removes a sync, and waits for that. The ledger that has
// gone meanwhile is not missed.
func TestALedgerThatGoesBeforeABackup(t *testing.T) {
	o := options(t.TempDir())
	h, cs := mustOpen(t, o, "p", "q")
	h.close(cs)
	h, cs = mustOpen(t, o, "p")
	defer h.close(cs)
	var b bytes.Buffer
	m, err := h.log.Backup(t.Context(), &b, BackupOptions{Version: "test", Now: time.Now, Consumers: func(copy func([]*Consumer) error) error {
		if err := RemoveLedger(h.log, "q"); err != nil { // by who held the lock that this waits for
			return err
		}
		return copy([]*Consumer{cs["p"]})
	}})
	must(t, err)
	if len(m.Syncs) != 1 || m.Syncs[0].Name != "p" {
		t.Errorf("%+v", m.Syncs)
	}
	restored(t, b.Bytes())
}
