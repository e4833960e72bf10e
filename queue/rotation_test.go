package queue

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
)

// small are options under which files are rotated every few hundred records.
func small(dir string) Options {
	o := options(dir)
	o.RotateBytes = 192 << 10
	return o
}

func count(from, to uint64) (seqs []uint64) {
	for s := from; s <= to; s++ {
		seqs = append(seqs, s)
	}
	return seqs
}

func TestFilesRotateAndTheirSpaceComesBack(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir), "p")
	h.fill("app", 3000, 300)
	paths := logPaths(t, dir)
	if len(paths) < 4 {
		t.Fatalf("%d files", len(paths))
	}
	if seqs, _ := readAll(t, h.log, 0); !slices.Equal(seqs, count(1, 3000)) {
		t.Fatalf("read %d records", len(seqs))
	}
	for _, p := range paths[1 : len(paths)-1] {
		var first uint64
		fmt.Sscanf(filepath.Base(p), "%d", &first)
		if filepath.Base(p) != fmt.Sprintf("%020d.db", first) || commits(t, p)[0] != first {
			t.Fatalf("%s begins with %d", p, commits(t, p)[0])
		}
	}
	before := folderBytes(dir)
	h.log.clean()
	if len(logPaths(t, dir)) != len(paths) {
		t.Fatal("files went that the consumer has not released")
	}
	for lane, texts := range drain(t, cs["p"]) {
		if !slices.IsSortedFunc(texts, strings.Compare) {
			t.Fatalf("lane %s is not in order", lane)
		}
	}
	eventually(t, "the drained files go", func() bool { h.log.clean(); return len(logPaths(t, dir)) == 1 })
	if after := folderBytes(dir); after > before/3 {
		t.Fatalf("%d bytes of %d are still occupied", after, before)
	}
	h.append("a1")
	h.close(cs)
	h, cs = mustOpen(t, small(dir), "p")
	h.append("a2")
	if h.log.Tail() != 3002 {
		t.Fatalf("tail %d", h.log.Tail())
	}
	if st := mustStats(t, cs["p"]); st.Books.Taken != 3002 || st.Books.Delivered != 3000 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
}

func TestABatchIsNeverDividedOverFiles(t *testing.T) {
	dir := t.TempDir()
	o := small(dir)
	o.Keep, o.KeepBytes = time.Hour, 1<<30 // nobody needs them: they would go while they are counted
	h, cs := mustOpen(t, o)
	for i := range 20 {
		b := batch()
		for n := range 700 {
			b.items = append(b.items, fmt.Sprintf("%d:%s", i, noise(uint64(n), 700)))
		}
		if err := h.log.Append(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	h.close(cs)
	paths := logPaths(t, dir)
	for i, p := range paths {
		for _, first := range commits(t, p) {
			if (first-1)%700 != 0 {
				t.Fatalf("file %d has a commit that begins within a batch: %d", i, first)
			}
		}
	}
	if len(paths) < 10 {
		t.Fatalf("%d files", len(paths))
	}
}

func TestRotationByAge(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := options(dir)
		h, cs := mustOpen(t, o)
		h.log.Hold("p", 0)
		time.Sleep(48 * time.Hour)
		if n := len(logPaths(t, dir)); n != 1 {
			t.Fatalf("%d files of no records", n)
		}
		b := batch("a1")
		if err := h.log.Append(t.Context(), stamped{b}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Hour)
		h.close(cs)
		h, cs = mustOpen(t, o)
		h.log.Hold("p", 0)
		// A restart each day must not keep a file young for ever.
		time.Sleep(8 * time.Hour)
		if n := len(logPaths(t, dir)); n != 1 {
			t.Fatalf("%d files after 23 h", n)
		}
		time.Sleep(2 * time.Hour)
		if n := len(logPaths(t, dir)); n != 2 {
			t.Fatalf("%d files after 25 h", n)
		}
		h.close(cs)
	})
}

// stamped is a batch whose records were received now.
type stamped struct{ *texts }

func (s stamped) Resolve(w *Writer) error {
	for _, t := range s.items {
		w.Put(Record{Project: s.project, Lane: laneOf(t), Received: time.Now().UnixMilli(), Body: []byte(t)})
	}
	return nil
}

// What a crash leaves at each step of a rotation.
func TestCrashesOfRotation(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crash func(t *testing.T, dir string)
	}{
		{"while the spare is made", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "log", spareName+newSuffix), "half a file")
		}},
		{"before the rename", func(t *testing.T, dir string) {
			must(t, createDB(filepath.Join(dir, "log", spareName), logOptions(0)))
		}},
		{"behind the rename", func(t *testing.T, dir string) {
			must(t, createDB(filepath.Join(dir, "log", logName(201)), logOptions(0)))
		}},
		{"while a ledger is made", func(t *testing.T, dir string) {
			write(t, ledgerPath(dir, "q")+newSuffix, "half a ledger")
		}},
		{"behind a ledger's rename", func(t *testing.T, dir string) {
			must(t, createDB(ledgerPath(dir, "q"), ledgerOptions()))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			h, cs := mustOpen(t, options(dir), "p")
			h.fill("app", 200, 0)
			h.close(cs)
			tt.crash(t, dir)
			h, cs = mustOpen(t, options(dir), "p", "q")
			h.append("a1")
			if h.log.Tail() != 201 {
				t.Fatalf("tail %d", h.log.Tail())
			}
			if st := mustStats(t, cs["q"]); st.Books.Taken != 1 {
				t.Fatalf("q: %+v", st.Books)
			}
			drain(t, cs["p"])
			if st := mustStats(t, cs["p"]); st.Books.Delivered != 201 || st.Books.Taken != 201 {
				t.Fatalf("p: %+v", st.Books)
			}
			h.close(cs)
			for _, d := range []string{"log", "sync"} {
				for _, e := range entries(t, filepath.Join(dir, d)) {
					if strings.HasSuffix(e, newSuffix) || e == spareName {
						t.Errorf("%s/%s is left over", d, e)
					}
				}
			}
		})
	}
}

func entries(t testing.TB, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestARotationThatCannotBeMadeLosesNothing(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir))
	// Something stands where the next file would be made.
	block := filepath.Join(dir, "log", spareName+newSuffix)
	must(t, os.MkdirAll(filepath.Join(block, "x"), 0o700))
	h.fill("app", 2000, 300)
	if n := len(logPaths(t, dir)); n != 1 {
		t.Fatalf("%d files", n)
	}
	must(t, os.Rename(block, filepath.Join(dir, "elsewhere")))
	h.fill("app", 200, 300)
	if n := len(logPaths(t, dir)); n < 2 {
		t.Fatal("it does not try again")
	}
	if seqs, _ := readAll(t, h.log, 0); len(seqs) != 2200 {
		t.Fatalf("%d records", len(seqs))
	}
	h.close(cs)
}

func TestFilesStayUntilEveryHolderHasReleasedThem(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir))
	h.log.Hold("users", 0)
	h.log.Hold("sync/p", 0)
	h.fill("app", 3000, 300)
	firsts := []uint64{}
	for _, f := range h.log.files {
		firsts = append(firsts, f.first)
	}
	left := func() int { h.log.clean(); return len(logPaths(t, dir)) }
	n := len(firsts)
	h.log.Release("users", 3000)
	if left() != n {
		t.Fatal("the other still needs them")
	}
	h.log.Release("sync/p", firsts[1]-2)
	if left() != n {
		t.Fatal("one record of the first file is still needed")
	}
	h.log.Release("sync/p", firsts[1]-1)
	if left() != n-1 {
		t.Fatalf("%d of %d files after the first was released", left(), n)
	}
	h.log.Release("sync/p", 5) // a mark never goes back
	h.log.Release("nobody", 9)
	h.log.Release("sync/p", firsts[3]+1)
	if left() != n-3 {
		t.Fatalf("%d of %d files after three were released", left(), n)
	}
	h.log.Forget("sync/p")
	if left() != 1 {
		t.Fatal("the one that is written stays, and no other")
	}
	h.close(cs)
}

func TestAReaderOfADeletedFileGoesOnBehindIt(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir))
	h.fill("app", 3000, 300)
	h.close(cs)
	h, cs = mustOpen(t, small(dir)) // so that nothing is read from memory
	r := h.log.Reader(0)
	if c, err := r.Try(); err != nil || c.First != 1 {
		t.Fatal(c, err)
	}
	db, _, err := h.log.files[0].acquire()
	must(t, err)
	second := h.log.files[1].first
	h.log.mu.Lock()
	h.log.drop(1)
	if c, _, err := chunkAt(db, 5); err != nil || c == nil {
		t.Fatalf("who reads a file that goes reads on: %v", err)
	}
	c, err := r.Try()
	if err != nil || c.First != second {
		t.Fatalf("%+v, %v; want the chunk at %d", c, err, second)
	}
	h.log.mu.Lock()
	h.log.drop(len(h.log.files) - 2) // the newest may be empty
	if seqs, _ := readAll(t, h.log, c.Last()); len(seqs) == 0 || seqs[len(seqs)-1] != 3000 {
		t.Fatalf("%v", seqs)
	}
	h.close(cs)
}

// Readers, rotation and deletion at once: nobody misses a record that he still holds.
func TestReadersRaceWithRotationAndDeletion(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, small(dir))
	const total = 6000
	h.log.Hold("r0", 0)
	h.log.Hold("r1", 0)
	read := make(chan error, 3)
	for i := range 2 {
		go func() {
			r, next := h.log.Reader(0), uint64(1)
			for next <= total {
				c, err := r.Next(t.Context())
				if err != nil {
					read <- err
					return
				}
				if c.First != next {
					read <- fmt.Errorf("reader %d: chunk at %d, want %d", i, c.First, next)
					return
				}
				next = c.Last() + 1
				h.log.Release(fmt.Sprintf("r%d", i), c.Last())
			}
			read <- nil
		}()
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			h.log.clean()
		}
		read <- nil
	}()
	h.fill("app", total, 300)
	for range 2 {
		must(t, <-read)
	}
	stop()
	must(t, <-read)
	h.close(cs)
}

func TestKeptFiles(t *testing.T) {
	for _, tt := range []struct {
		name      string
		keep      time.Duration
		keepBytes int64
		after     time.Duration
		want      func(kept, all int) bool
	}{
		{"nothing is kept", 0, 0, 0, func(kept, all int) bool { return kept == 0 }},
		{"all are kept", time.Hour, 1 << 30, 0, func(kept, all int) bool { return kept == all }},
		{"until they are old", time.Hour, 1 << 30, 2 * time.Hour, func(kept, all int) bool { return kept == 0 }},
		{"within the bytes, the newest", time.Hour, 450 << 10, 0, func(kept, all int) bool { return kept == 2 }},
		{"a clock that jumped back keeps them", time.Hour, 1 << 30, -48 * time.Hour, func(kept, all int) bool { return kept == all }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			o := small(dir)
			o.Keep, o.KeepBytes = tt.keep, tt.keepBytes
			o.Now = func() time.Time { return time.Now().Add(tt.after) }
			h, cs := mustOpen(t, o)
			h.fill("app", 3000, 300)
			all := len(h.log.files) - 1
			h.log.clean()
			if kept := len(logPaths(t, dir)) - 1; !tt.want(kept, all) {
				t.Fatalf("%d of %d kept", kept, all)
			}
			h.close(cs)
		})
	}
}

func TestKeptFilesGoFirstWhenSpaceIsNeeded(t *testing.T) {
	dir := t.TempDir()
	o := small(dir)
	o.Keep, o.KeepBytes, o.MaxBytes = time.Hour, 1<<30, 1<<20
	h, cs := mustOpen(t, o, "p")
	h.log.disk.usedFor = 0
	full := false
	for i := 0; !full && i < 100; i++ {
		err := h.log.Append(t.Context(), batch("a:"+noise(uint64(i), 40<<10)))
		if full = isFull(err); err != nil && !full {
			t.Fatal(err)
		}
	}
	if !full {
		t.Fatal("1 MiB takes any number of bytes")
	}
	if st := h.log.Stats(); st.Full == "" || st.Used > 3<<19 || st.Kept != 0 {
		t.Fatalf("%+v", st)
	}
	taken := mustStats(t, cs["p"]).Books.Taken
	drain(t, cs["p"])
	// It recovers by itself: the files that were kept go one by one, no more than needed.
	for i := range 20 {
		eventually(t, "it takes more", func() bool {
			err := h.log.Append(t.Context(), batch("a:"+noise(uint64(i), 40<<10)))
			if err != nil && !isFull(err) {
				t.Fatal(err)
			}
			return err == nil
		})
		drain(t, cs["p"])
	}
	if st := h.log.Stats(); st.Kept == 0 {
		t.Fatal("all kept files went at once")
	}
	if st := mustStats(t, cs["p"]); st.Books.Delivered != taken+20 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
}

func TestMinFree(t *testing.T) {
	o := options(t.TempDir())
	o.MinFree = 1 << 60
	h, cs := mustOpen(t, o)
	err := h.log.Append(t.Context(), batch("a"))
	if !isFull(err) || !strings.Contains(err.Error(), "min_free") {
		t.Fatal(err)
	}
	h.close(cs)
}

func TestStartOpensOnlyTheNewestFile(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.RotateBytes = 40 << 10 // each commit fills a file
	h, cs := mustOpen(t, o, "p")
	cs["p"].mu.Lock() // it sleeps
	h.fill("app", 30000, 0)
	cs["p"].mu.Unlock()
	h.close(cs)
	if n := len(logPaths(t, dir)); n < 100 {
		t.Fatalf("%d files", n)
	}
	fds := len(entries(t, "/proc/self/fd"))
	l, err := Open(o)
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	if n := len(entries(t, "/proc/self/fd")) - fds; n > 4 {
		t.Errorf("%d files are open: the lock, the newest and the ledger are enough", n)
	}
	if l.Tail() != 30000 || l.Count("app") != 30000 {
		t.Errorf("tail %d, count %d", l.Tail(), l.Count("app"))
	}
	must(t, c.Close())
	must(t, l.Close())
}

// A reload raises rotate_bytes while somebody, such as a slow disk's backup, looks at the
// newest file. That file was mapped for the old bound: to grow beyond it waits for whoever
// looks, and so would every event. The new bound is the next file's.
func TestAHigherRotateBytesIsTheNextFiles(t *testing.T) {
	o := options(t.TempDir())
	o.RotateBytes = 256 << 10
	h, cs := mustOpen(t, o, "p") // which keeps the files
	defer h.close(cs)
	more := o
	more.RotateBytes = 64 << 20
	h.log.SetLimits(more)
	h.append("a:1")
	f := h.log.list()[0]
	db, ok, err := f.acquire()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() { ended <- db.View(func(*bolt.Tx) error { close(begun); <-end; return nil }) }()
	<-begun
	stored := make(chan error, 1)
	go func() {
		for i := range 16 {
			if err := h.log.Append(context.Background(), batch("a:"+noise(uint64(i), 2<<20))); err != nil {
				stored <- err
				return
			}
		}
		stored <- nil
	}()
	select {
	case err := <-stored:
		must(t, err)
		stored <- nil
	case <-time.After(10 * time.Second):
		t.Error("events wait for somebody who only looks")
	}
	close(end)
	must(t, <-ended)
	f.release()
	must(t, <-stored)
	h.append()
	if n := len(logPaths(t, o.Dir)); n != 2 {
		t.Errorf("%d files of 32 MiB", n)
	}
}
