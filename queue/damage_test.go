package queue

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// settled delivers and waits until nothing is pending; every text that comes must be
// one that was stored, in its lane's order. It gives how many were lost.
func settled(t *testing.T, c *Consumer, stored map[string]bool) (lost uint64) {
	t.Helper()
	for lane, texts := range drain(t, c) {
		if !slices.IsSortedFunc(texts, strings.Compare) || len(slices.Compact(slices.Clone(texts))) != len(texts) {
			t.Errorf("lane %s is out of order, or has one twice", lane)
		}
		for _, text := range texts {
			if !stored[text] {
				t.Errorf("%.20q was never stored", text)
			}
		}
	}
	st := mustStats(t, c)
	if st.Books.Taken != uint64(len(stored)) {
		t.Errorf("taken %d of %d", st.Books.Taken, len(stored))
	}
	return st.Books.Lost
}

// backlog makes a storage of n records that consumer p has yet to deliver.
func backlog(t testing.TB, o Options, n, pad int) (stored map[string]bool) {
	t.Helper()
	h, cs := mustOpen(t, o, "p")
	h.fill("app", n, pad)
	_, texts := readAll(t, h.log, 0)
	h.close(cs)
	stored = map[string]bool{}
	for _, text := range texts {
		stored[text] = true
	}
	return stored
}

// flipped copies a storage and flips one bit of a file in it.
func flipped(t testing.TB, from, to, path string, bit int) {
	t.Helper()
	must(t, os.RemoveAll(to))
	copyTree(t, from, to)
	f, err := os.OpenFile(filepath.Join(to, path), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], int64(bit/8))
	must(t, err)
	b[0] ^= 1 << (bit % 8)
	_, err = f.WriteAt(b[:], int64(bit/8))
	must(t, err)
}

// Bits that flip anywhere in a log file, the newest or an older one: the log always
// opens, serves nothing that was not stored, counts exactly what it cannot serve, and
// takes new records.
func TestFlippedBitsInLogFiles(t *testing.T) {
	bytesOnly(t)
	from := quickDir(t)
	o := small(from)
	o.RotateBytes = 80 << 10
	stored := backlog(t, o, 900, 150)
	paths := logPaths(t, from)
	if len(paths) < 2 {
		t.Fatalf("%d files", len(paths))
	}
	// A free page may stay as it is: nothing is lost then. But often something is.
	rounds, losses := 100, 0
	if testing.Short() || raceEnabled {
		rounds = 20
	}
	random := rand.New(rand.NewPCG(1, 2))
	to := filepath.Join(quickDir(t), "flipped")
	for range rounds {
		path, err := filepath.Rel(from, paths[random.IntN(len(paths))])
		must(t, err)
		st, err := os.Stat(filepath.Join(from, path))
		must(t, err)
		size := min(int(st.Size()), 120<<10) // behind that it is empty
		if random.IntN(2) == 0 {
			size = 8 * 4096 // meta, free list and tree
		}
		bit := random.IntN(8 * size)
		flipped(t, from, to, path, bit)
		o.Dir = to
		h, cs := mustOpen(t, o, "p")
		h.append("9:99999999")
		all := map[string]bool{"9:99999999": true}
		for text := range stored {
			all[text] = true
		}
		// A lost commit at the very end is known to the ledger, so it counts.
		if lost := settled(t, cs["p"], all); lost > 0 {
			losses++
		}
		h.close(cs)
		if t.Failed() {
			t.Fatalf("bit %d of %s", bit, path)
		}
	}
	if losses == 0 {
		t.Error("no flip had any effect: the test shows nothing")
	}
}

// The checksum covers key and value: no flip of a chunk's value passes.
func TestNoFlippedBitOfAChunkPasses(t *testing.T) {
	w := newWriter(logEnd{seq: 41, counts: map[string]uint64{"app": 20, "web": 21}}, nil)
	must(t, batch("a:"+noise(1, 300), "b:"+noise(2, 300), "a:"+noise(3, 300)).Resolve(&w))
	c := w.finish()[0]
	_, v := sealChunk(nil, c)
	if got, err := openChunk(42, v); err != nil || !bytes.Equal(got.raw, c.raw) || got.Before["web"] != 21 || got.nonce != c.nonce {
		t.Fatal(got, err)
	}
	for bit := range 8 * len(v) {
		v[bit/8] ^= 1 << (bit % 8)
		if _, err := openChunk(42, v); err == nil {
			t.Fatalf("bit %d passes", bit)
		}
		v[bit/8] ^= 1 << (bit % 8)
	}
	for bit := range 64 {
		if _, err := openChunk(42^1<<bit, v); err == nil {
			t.Fatalf("bit %d of the key passes", bit)
		}
	}
}

// spoil flips a bit in the stored value of the chunk that begins with first.
func spoil(t testing.TB, path string, commit, first uint64) {
	t.Helper()
	db, err := OpenDB(path, logOptions(0))
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketLog).Bucket(seqKey(commit))
		v := bytes.Clone(b.Get(seqKey(first)))
		v[len(v)-3] ^= 8
		return b.Put(seqKey(first), v)
	}))
	must(t, db.Close())
}

func TestDamagedChunks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		commit func(firsts []uint64) int // which one is spoilt
		newest bool
	}{
		{"in the middle of an older file", func(f []uint64) int { return len(f) / 2 }, false},
		{"the first of an older file", func(f []uint64) int { return 0 }, false},
		{"the last of an older file", func(f []uint64) int { return len(f) - 1 }, false},
		{"in the middle of the newest file", func(f []uint64) int { return len(f) / 2 }, true},
		{"the very last", func(f []uint64) int { return len(f) - 1 }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			o := small(dir)
			stored := backlog(t, o, 1300, 300)
			paths := logPaths(t, dir)
			path := paths[0]
			if tt.newest {
				path = paths[len(paths)-1]
			}
			firsts := commits(t, path)
			if len(firsts) == 0 {
				t.Fatal("the newest file is empty")
			}
			spoil(t, path, firsts[tt.commit(firsts)], firsts[tt.commit(firsts)])

			h, cs := mustOpen(t, o, "p")
			// Nothing new arrives, and the books still end at nothing pending.
			if lost := settled(t, cs["p"], stored); lost != 100 {
				t.Errorf("lost %d, want the 100 of one commit", lost)
			}
			if h.log.Tail() != 1300 || h.log.Stats().Damaged == 0 {
				t.Errorf("%+v", h.log.Stats())
			}
			h.close(cs)
			// Once: not again after a restart, nor when more arrives.
			h, cs = mustOpen(t, o, "p")
			h.append("9:99999999")
			drain(t, cs["p"])
			if st := mustStats(t, cs["p"]); st.Books.Lost != 100 || st.Books.Delivered != 1201 {
				t.Errorf("%+v", st.Books)
			}
			// The damaged file is not deleted with the others.
			eventually(t, "the older files go", func() bool { h.log.clean(); return len(logPaths(t, dir)) == 1 })
			h.close(cs)
			if away := entries(t, filepath.Join(dir, damagedFolder)); len(away) != 1 {
				t.Errorf("put aside: %v", away)
			}
		})
	}
}

// A page of the tree that cannot be read hides what hangs on it, and nothing else.
func TestADamagedPageOfTheTree(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	for range 500 { // small commits stand in the leaves of the tree itself
		h.fill("app", 1, 0)
	}
	_, texts := readAll(t, h.log, 0)
	h.close(cs)
	stored := map[string]bool{}
	for _, text := range texts {
		stored[text] = true
	}
	path := logPaths(t, dir)[0]
	var leaf int
	edit(t, path, func(b []byte) []byte {
		at := bytes.Index(b, []byte("00000250")) // some compressed record in the middle
		if at < 0 {
			t.Fatal("record 250 is not found")
		}
		leaf = at / 4096 * 4096
		clear(b[leaf : leaf+16])
		return b
	})
	h, cs = mustOpen(t, options(dir), "p")
	lost := settled(t, cs["p"], stored)
	if lost == 0 || lost > 60 {
		t.Errorf("lost %d: want those of one page", lost)
	}
	h.close(cs)
}

// Both the end of the log and the ledger that has seen it: a ledger that is ahead never
// takes new records for old ones.
func TestALogThatIsOlderThanItsLedger(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, dir, older string)
	}{
		{"its newest file was deleted", func(t *testing.T, dir, _ string) {
			paths := logPaths(t, dir)
			must(t, os.Remove(paths[len(paths)-1]))
		}},
		{"it was restored from an older copy", func(t *testing.T, dir, older string) {
			must(t, os.RemoveAll(filepath.Join(dir, "log")))
			copyTree(t, filepath.Join(older, "log"), filepath.Join(dir, "log"))
		}},
		{"it is gone", func(t *testing.T, dir, _ string) {
			must(t, os.RemoveAll(filepath.Join(dir, "log")))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, older := t.TempDir(), filepath.Join(t.TempDir(), "older")
			o := small(dir)
			h, cs := mustOpen(t, o, "p", "behind")
			h.fill("app", 250, 300)
			cl := mustClaim(t, cs["p"]) // stays pending: the low-water mark does not move past it
			h.close(cs)
			cl.Return()
			copyTree(t, dir, older)
			h, cs = mustOpen(t, o, "p", "behind")
			h.fill("app", 1000, 300)
			caughtUp(t, h, cs["p"])
			for range 3 {
				cl := mustClaim(t, cs["p"])
				cl.Finish(delivered(len(cl.Records())))
			}
			before := mustStats(t, cs["p"]).Books
			h.close(cs)
			tt.harm(t, dir, older)

			h, cs = mustOpen(t, o, "p", "behind")
			if h.log.Tail() != 1250 || h.log.Count("app") != 1250 {
				t.Fatalf("tail %d, count %d: sequences would be used again", h.log.Tail(), h.log.Count("app"))
			}
			h.close(cs) // a crash before anything new changes nothing
			h, cs = mustOpen(t, o, "p", "behind")
			b := batch("a:new1", "a:new2")
			must(t, h.log.Append(t.Context(), b))
			if b.places[0].Seq != 1251 {
				t.Errorf("sequence %d", b.places[0].Seq)
			}
			var fresh int
			for _, texts := range drain(t, cs["p"]) {
				for _, text := range texts {
					if strings.HasPrefix(text, "a:new") {
						fresh++
					}
				}
			}
			st := mustStats(t, cs["p"])
			if fresh != 2 || st.Books.Taken != 1252 || st.Books.Lost == 0 || st.Books.Delivered < before.Delivered+2 {
				t.Errorf("%d new, %+v; before the damage %+v", fresh, st.Books, before)
			}
			drain(t, cs["behind"])
			if other := mustStats(t, cs["behind"]); other.Books.Taken != 1252 || other.Books.Lost == 0 {
				t.Errorf("behind: %+v", other.Books)
			}
			h.close(cs)
			_, off, err := Inspect(dir)
			must(t, err)
			if off[1].Books != st.Books {
				t.Errorf("stopped %+v, running %+v", off[1].Books, st.Books)
			}
		})
	}
}

func TestSeenIsNeverUsedAgain(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir))
	h.fill("app", 10, 0)
	h.close(cs)
	for range 2 { // the second time the newest file is empty
		l, err := Open(options(dir))
		must(t, err)
		must(t, l.Seen(7))
		must(t, l.Seen(30))
		if l.Tail() != 30 {
			t.Fatalf("tail %d", l.Tail())
		}
		must(t, l.Close())
	}
	h, cs = mustOpen(t, options(dir))
	h.append("a1")
	if seqs, _ := readAll(t, h.log, 0); !slices.Equal(seqs, append(count(1, 10), 31)) {
		t.Fatal(seqs)
	}
	h.close(cs)
}

// A salvage that a crash interrupts is done again, without loss.
func TestASalvageIsRepeatable(t *testing.T) {
	broken := func(t *testing.T) (dir string, o Options, stored map[string]bool) {
		dir = t.TempDir()
		o = small(dir)
		stored = backlog(t, o, 450, 300)
		path := newestWithRecords(t, dir)
		edit(t, path, func(b []byte) []byte { // the free list: bbolt cannot open it for writing
			m := metaAt(t, path, 0)
			if other := metaAt(t, path, 1); other.txid > m.txid {
				m = other
			}
			b[int(m.bytes[boltPageHeader+32])*4096+8] = 0x55
			return b
		})
		return dir, o, stored
	}
	check := func(t *testing.T, o Options, stored map[string]bool) {
		t.Helper()
		h, cs := mustOpen(t, o, "p")
		if lost := settled(t, cs["p"], stored); lost != 0 {
			t.Errorf("lost %d", lost)
		}
		if away := entries(t, filepath.Join(o.Dir, damagedFolder)); len(away) == 0 {
			t.Error("nothing was put aside")
		}
		h.append("9:99999999")
		h.close(cs)
	}
	t.Run("not interrupted", func(t *testing.T) {
		dir, o, stored := broken(t)
		l, err := Open(o)
		must(t, err)
		if away := l.SetAside(); len(away) != 1 || away[0].Saved == 0 || !exists(away[0].Path) || away[0].Reason == "" {
			t.Fatalf("%+v", away)
		}
		must(t, l.Close())
		_ = dir
		check(t, o, stored)
	})
	t.Run("while it was written", func(t *testing.T) {
		dir, o, stored := broken(t)
		write(t, newestWithRecords(t, dir)+salvageSuffix, "half a salvage")
		check(t, o, stored)
	})
	t.Run("when the damaged file was out of the way", func(t *testing.T) {
		dir, o, stored := broken(t)
		path := newestWithRecords(t, dir)
		end := logEnd{counts: map[string]uint64{}}
		_, err := saveChunks(&o, path, &end)
		must(t, err)
		must(t, os.MkdirAll(filepath.Join(dir, damagedFolder), 0o700))
		must(t, os.Rename(path, filepath.Join(dir, damagedFolder, "x")))
		suspect(path)
		check(t, o, stored)
		if exists(path + suspectSuffix) {
			t.Error("the marker of the damaged file is taken for one of the salvaged")
		}
	})
}

// newestWithRecords is the newest log file; empty ones behind it are removed.
func newestWithRecords(t testing.TB, dir string) string {
	t.Helper()
	paths := logPaths(t, dir)
	for i := len(paths) - 1; ; i-- {
		o := logOptions(0)
		o.ReadOnly, o.MmapBytes = true, 0
		db, err := OpenDB(paths[i], o)
		must(t, err)
		c, err := chunkFirst(db)
		must(t, db.Close())
		must(t, err)
		if c != nil {
			return paths[i]
		}
		must(t, os.Remove(paths[i]))
	}
}

func chunkFirst(db *bolt.DB) (*Chunk, error) {
	c, _, err := chunkAt(db, 1)
	return c, err
}

// Whatever bit of a ledger flips: it opens, or is set aside and goes on.
func TestFlippedBitsInALedger(t *testing.T) {
	bytesOnly(t)
	from := t.TempDir()
	h, cs := mustOpen(t, options(from), "p")
	h.fill("app", 400, 0)
	for range 4 {
		cl := mustClaim(t, cs["p"])
		out := delivered(len(cl.Records()))
		for i := range out {
			if i%3 == 0 {
				out[i] = Outcome{Ending: Dead, Reason: "refused", Results: []byte(`[{"status":400}]`), Tallies: []Tally{{"event/dead/refused", "Signed Up"}}}
			} else {
				out[i].SentKey, out[i].Sent = "id:"+cl.Lane(), []byte("sent")
				cl.Hold("id:" + cl.Lane())
			}
		}
		cl.Finish(out)
	}
	h.close(cs)
	rounds := 300
	if testing.Short() || raceEnabled {
		rounds = 30
	}
	// Where what the ledger needs most stands, and anywhere.
	var targets []int
	file, err := os.ReadFile(ledgerPath(from, "p"))
	must(t, err)
	for at := 0; at < len(file); at += 4096 {
		for _, what := range []string{"state", "dead", "id:3", "event/dead"} {
			if bytes.Contains(file[at:at+4096], []byte(what)) {
				targets = append(targets, at)
			}
		}
	}
	to := filepath.Join(quickDir(t), "flipped")
	path, err := filepath.Rel(from, ledgerPath(from, "p"))
	must(t, err)
	size := int(metaAt(t, ledgerPath(from, "p"), 0).pages) * 4096
	random := rand.New(rand.NewPCG(3, 4))
	away := 0
	for range rounds {
		bit := random.IntN(8 * size)
		if random.IntN(3) > 0 {
			bit = 8*targets[random.IntN(len(targets))] + random.IntN(8*600)
		}
		flipped(t, from, to, path, bit)
		for run := range 3 { // damage met in the first run is mended by the next
			o := options(to)
			l, err := Open(o)
			must(t, err)
			c, err := OpenConsumer(l, consumerOptions("p"))
			if err != nil {
				t.Fatalf("bit %d, run %d: %v", bit, run, err)
			}
			if c.SetAside() != nil {
				away++
			}
			chunk, err := l.Reader(0).Try()
			must(t, err)
			must(t, c.take(chunk, 0))
			failed := false
			for cl := c.TryClaim(); cl != nil && !failed; cl = c.TryClaim() {
				out := delivered(len(cl.Records()))
				for i := range out {
					out[i].SentKey, out[i].Sent = "id:"+cl.Lane(), []byte("sent later")
				}
				out[0].Ending = Dead
				cl.Finish(out)
				if err := c.checkpoint(); err != nil {
					failed = true // an exit, and the next start
					if run == 2 {
						t.Fatalf("bit %d: it never mends: %v", bit, err)
					}
				}
			}
			must(t, c.Close())
			must(t, l.Close())
			if !failed {
				break
			}
		}
		DeadLetters(to, "p", func(d DeadLetter) error {
			if !strings.HasPrefix(string(d.Record.Body), d.Record.Lane+":") {
				t.Errorf("a changed dead letter: %+v", d)
			}
			return nil
		})
	}
	if away == 0 {
		t.Error("no flip had any effect: the test shows nothing")
	}
}
