package queue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// lived makes a storage that has been through much: two projects, several files, a span
// that ended, deliveries, a rewind, dead letters, some of them replayed or dropped, lanes
// that wait, lanes in the side place, and runs that have ended above the low-water mark.
func lived(t testing.TB, dir string) {
	t.Helper()
	o := small(dir)
	h, cs := mustOpen(t, o, "p")
	h.fill("app", 300, 300)
	h.fill("web", 50, 300)
	finish(t, cs["p"], 100)
	h.close(cs)
	off := consumerOptions("p")
	off.Enabled = false
	h, cs = mustOpenAs(t, o, off)
	h.fill("app", 100, 300) // not taken
	h.close(cs)
	h, cs = mustOpen(t, o, "p")
	c := cs["p"]
	h.fill("app", 500, 300)
	caughtUp(t, h, c)
	waiting := mustClaim(t, c)
	finish(t, c, 100)
	waiting.Retry(time.Hour, "http_503")
	back, err := c.Rewind(t.Context(), 20_000, true, false)
	must(t, err)
	if back.Records == 0 || back.DeadLetters == 0 || back.Pending == 0 {
		t.Fatalf("%+v", back)
	}
	caughtUp(t, h, c)
	finish(t, c, 200)
	fail(t, c, "3", "5")
	must(t, c.Flush())
	var dead []uint64
	must(t, c.DeadLetters(func(d DeadLetter) error { dead = append(dead, d.Record.Seq); return nil }))
	if n, err := c.ReplayDead(dead[4:7]); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := c.DropDead(dead[:2]); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	h.fill("web", 30, 300)
	h.fill("app", 16, 300) // some of them go to the side place at once
	caughtUp(t, h, c)
	h.close(cs)
}

// fail lets lanes fail until they are in the side place, while others get through.
func fail(t testing.TB, c *Consumer, lanes ...string) {
	t.Helper()
	c.Flowing(true)
	for mustStats(t, c).Aside.Lanes < len(lanes) {
		cl := mustClaim(t, c)
		if slices.Contains(lanes, cl.Lane()) {
			cl.Retry(0, "http_500")
			continue
		}
		cl.Trim(1)
		cl.Finish(delivered(1))
	}
}

// finish ends n records or more, in every way.
func finish(t testing.TB, c *Consumer, n int) {
	t.Helper()
	for i := 0; n > 0; i++ {
		cl := mustClaim(t, c)
		cl.Trim(20)
		out := delivered(len(cl.Records()))
		n -= len(out)
		for j := range out {
			switch (i + j) % 7 {
			case 0:
				out[j] = Outcome{Ending: Dead, Reason: "refused", Results: []byte(`[{"status":400}]`)}
			case 1:
				out[j].Ending = Filtered
			case 2:
				id := "id:" + cl.Lane()
				cl.Hold(id)
				out[j].SentKey, out[j].Sent, out[j].Tallies = id, []byte("sent"), []Tally{{"event/delivered", "Signed Up"}}
			}
		}
		cl.Finish(out)
	}
}

// audited is the audit of consumer p of a storage that nobody uses.
func audited(t testing.TB, dir string) Audit {
	t.Helper()
	all, err := AuditFiles(t.Context(), dir)
	must(t, err)
	if len(all) != 1 || all[0].Name != "p" {
		t.Fatalf("%+v", all)
	}
	return all[0]
}

func mustBalance(t testing.TB, a Audit) {
	t.Helper()
	if !a.Balanced() || a.Books.Difference() != 0 || a.Counted != a.Books.Pending {
		t.Fatalf("a difference where there is none: %s\n%+v", strings.Join(a.Differences, "\n"), a)
	}
}

func TestAuditOfAnUntouchedStorage(t *testing.T) {
	dir := quickDir(t)
	lived(t, dir)
	before := readFolder(t, dir)
	a := audited(t, dir)
	mustBalance(t, a)
	_, off, err := Inspect(dir)
	must(t, err)
	if a.Books != off[0].Books || a.Low != off[0].Low || a.Tail != off[0].Tail {
		t.Errorf("audit %+v, queue-stats %+v", a, off[0])
	}
	b := a.Books
	if b.Taken != 816 || b.Rewound == 0 || b.Delivered == 0 || b.Filtered == 0 || b.Dead == 0 || b.Discarded != 2 ||
		a.DeadLetters != b.Dead || a.InLog == 0 || a.Aside == 0 || a.InLog+a.Aside != b.Pending || len(a.Notes) != 0 {
		t.Errorf("%+v", a)
	}
	if after := readFolder(t, dir); !maps.Equal(before, after) {
		t.Error("an audit of files has changed them")
	}
	// The same while it runs.
	h, cs := mustOpen(t, small(dir), "p")
	running, err := cs["p"].Audit(t.Context())
	must(t, err)
	mustBalance(t, running)
	if running.Books != b {
		t.Errorf("running %+v, stopped %+v", running.Books, b)
	}
	if _, err := AuditFiles(t.Context(), dir); err == nil {
		t.Error("files that are in use were audited as if they were not")
	}
	h.close(cs)
}

// readFolder gives a checksum of all that is in a folder's files, by name.
func readFolder(t testing.TB, dir string) map[string]uint32 {
	t.Helper()
	all := map[string]uint32{}
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			all[path] = crc32.Checksum(b, castagnoli)
		}
		return err
	}))
	return all
}

// editLedger changes the ledger of p offline.
func editLedger(t testing.TB, dir string, f func(tx *bolt.Tx)) {
	t.Helper()
	db, err := OpenDB(ledgerPath(dir, "p"), ledgerOptions())
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error { f(tx); return nil }))
	must(t, db.Close())
}

func editState(t testing.TB, dir string, f func(s *ledgerState)) {
	t.Helper()
	editLedger(t, dir, func(tx *bolt.Tx) {
		s, err := stateOf(tx)
		must(t, err)
		f(&s)
		must(t, put(tx.Bucket(bucketMeta), keyState, s.append(nil)))
	})
}

// flipFirst lets a bit of the first value of each bucket flip.
func flipFirst(t testing.TB, tx *bolt.Tx, buckets ...[]byte) {
	t.Helper()
	for _, b := range buckets {
		k, v := tx.Bucket(b).Cursor().First()
		k, v = bytes.Clone(k), bytes.Clone(v)
		v[len(v)/2] ^= 4
		must(t, tx.Bucket(b).Put(k, v))
	}
}

// editChunk changes a chunk of the log; nil = it is deleted.
func editChunk(t testing.TB, dir string, seq uint64, f func(c *Chunk) *Chunk) {
	t.Helper()
	paths := logPaths(t, dir)
	path := paths[0]
	for _, p := range paths {
		if filepath.Base(p) <= logName(seq) {
			path = p
		}
	}
	db, err := OpenDB(path, logOptions(0))
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		name, _ := seekReaching(tx.Bucket(bucketLog).Cursor(), seq)
		commit := tx.Bucket(bucketLog).Bucket(bytes.Clone(name))
		k, v := seekReaching(commit.Cursor(), seq)
		k = bytes.Clone(k)
		c, err := openChunk(binary.BigEndian.Uint64(k), v)
		must(t, err)
		if c = f(c); c == nil {
			return commit.Delete(k)
		}
		_, v = sealChunk(nil, c)
		return commit.Put(k, v)
	}))
	must(t, db.Close())
}

// pendingIn gives a record that is pending in the log by the ledger of p.
func pendingIn(t testing.TB, dir string) (found Record) {
	t.Helper()
	s, err := peekLedger(dir, "p")
	must(t, err)
	l := newLog(options(dir))
	l.files, err = listLog(l.dir)
	must(t, err)
	l.end = l.storedEnd(len(l.files))
	r := l.Reader(s.low)
	n := s.lowCount
	for found.Seq == 0 {
		c, err := r.Try()
		must(t, err)
		if c == nil {
			t.Fatal("nothing is pending")
		}
		c.Records(func(r Record) error {
			if r.Project != s.project || r.Seq <= s.low {
				return nil
			}
			if n++; found.Seq == 0 && takes(s.spans, n) && !inRuns(s.done, n) {
				found = r
			}
			return nil
		})
	}
	for _, f := range l.files {
		f.close()
	}
	return found
}

// whole are the books of the storage that imbalances are planted into.
var whole Books

// made is what the text says of the other side of the books, when it is out by some.
func made(by int64, surplus string) string {
	return fmt.Sprintf("make %s: %s", comma(uint64(int64(whole.Taken+whole.Rewound)+by)), surplus)
}

// asideIn gives the first record of the side place.
func asideIn(t testing.TB, dir string) (e *entry) {
	t.Helper()
	editLedger(t, dir, func(tx *bolt.Tx) {
		k, v := tx.Bucket(bucketAside).Cursor().First()
		var err error
		e, err = openAside(k, v)
		must(t, err)
	})
	return e
}

func summaryOf(t testing.TB, tx *bolt.Tx, lane string) asideLane {
	t.Helper()
	v, err := unseal(retryKey(lane), tx.Bucket(bucketAsideLane).Get(retryKey(lane)))
	must(t, err)
	_, a, err := readAsideLane(v)
	must(t, err)
	return a
}

// changeSummary changes the summary of a lane.
func changeSummary(t *testing.T, dir string, change func(a *asideLane), says string) []string {
	t.Helper()
	e := asideIn(t, dir)
	editLedger(t, dir, func(tx *bolt.Tx) {
		a := summaryOf(t, tx, e.rec.Lane)
		change(&a)
		must(t, put(tx.Bucket(bucketAsideLane), retryKey(e.rec.Lane), a.append(nil, e.rec.Lane)))
	})
	return []string{says}
}

// Imbalances planted into the files of a storage: each is found, and the text names it.
func TestAuditFindsPlantedImbalances(t *testing.T) {
	bytesOnly(t)
	from := quickDir(t)
	lived(t, from)
	untouched := audited(t, from)
	mustBalance(t, untouched)
	whole = untouched.Books
	for _, tt := range planted {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(quickDir(t), "planted")
			copyTree(t, from, dir)
			want := tt.plant(t, dir)
			a := audited(t, dir)
			if a.Balanced() {
				t.Fatal("it was not found")
			}
			text := strings.Join(a.Differences, "\n")
			t.Log(text)
			for _, w := range want {
				if !strings.Contains(text, w) {
					t.Errorf("nothing says %q", w)
				}
			}
			if n := len(want); len(a.Differences) > n+2 {
				t.Errorf("%d differences of one imbalance", len(a.Differences))
			}
		})
	}
}

var planted = []struct {
	name  string
	plant func(t *testing.T, dir string) (says []string)
}{
	{"a count that is too high", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.ended[Delivered] += 3 })
		return []string{fmt.Sprintf("taken %s + rewound %s, but", comma(whole.Taken), comma(whole.Rewound)), made(+3, "3 too many")}
	}},
	{"a count that is too low", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.ended[Filtered]-- })
		return []string{made(-1, "1 missing")}
	}},
	{"a dead letter that was removed", func(t *testing.T, dir string) []string {
		var n int
		editLedger(t, dir, func(tx *bolt.Tx) {
			n = tx.Bucket(bucketDead).Stats().KeyN
			k, _ := tx.Bucket(bucketDead).Cursor().First()
			must(t, tx.Bucket(bucketDead).Delete(bytes.Clone(k)))
		})
		return []string{fmt.Sprintf("the ledger counts %d dead letters, %d can be read: 1 missing", n, n-1)}
	}},
	{"a dead letter that is pending too", func(t *testing.T, dir string) []string {
		r := pendingIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			d := DeadLetter{Record: r, At: 1, Reason: "refused"}
			must(t, put(tx.Bucket(bucketDead), seqKey(r.Seq), d.append(nil)))
		})
		return []string{fmt.Sprintf("1 record is pending in the log and a dead letter, the first is %s", comma(r.Seq)), "1 too many"}
	}},
	{"a run that was cut", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) {
			for i := range s.done {
				if s.done[i].len() > 3 {
					s.done[i].last -= 2
					return
				}
			}
			t.Fatal("no run is long enough")
		})
		return []string{made(+2, "2 too many"), "by its low-water mark and the runs above it"}
	}},
	{"runs that overlap", func(t *testing.T, dir string) []string {
		var r run
		editState(t, dir, func(s *ledgerState) {
			r = s.done[1]
			r.first = s.done[0].last
			s.done[1] = r
		})
		return []string{"the run " + r.String() + " of what has ended overlaps the one before", "1 missing"}
	}},
	{"a run below the low-water mark", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.done = append([]run{{s.lowCount, s.lowCount}}, s.done...) })
		return []string{"begins below it"}
	}},
	{"a run beyond the end of the log", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.done = append(s.done, run{s.seenCount + 5, s.seenCount + 6}) })
		return []string{"goes beyond the 916 records there are"}
	}},
	{"a run of records that are not taken", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) {
			i := slices.IndexFunc(s.done, func(r run) bool { return r.first > 351 })
			s.done = slices.Insert(s.done, i, run{350, 351})
		})
		return []string{"the run 350–351 of what has ended is of records that the sync does not take"}
	}},
	{"a low-water mark that was moved", func(t *testing.T, dir string) []string {
		var seq uint64
		editState(t, dir, func(s *ledgerState) { s.low += 7; seq = s.low })
		return []string{"the low-water mark at " + comma(seq) + " says that the log has"}
	}},
	{"a low-water mark that was moved together with its number", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) {
			s.low, s.lowCount = s.low+1, s.lowCount+1
		})
		return []string{made(-1, "1 missing"), "by its low-water mark and the runs above it"}
	}},
	{"a chunk of the log that was removed", func(t *testing.T, dir string) []string {
		r := pendingIn(t, dir)
		var c *Chunk
		editChunk(t, dir, r.Seq, func(found *Chunk) *Chunk { c = found; return nil })
		return []string{fmt.Sprintf("between %s and %s are neither ended nor in the log", comma(max(c.First, r.Seq)-1), comma(c.Last()+1))}
	}},
	{"tallies of the log that were changed", func(t *testing.T, dir string) []string {
		r := pendingIn(t, dir)
		var c *Chunk
		editChunk(t, dir, r.Seq+200, func(found *Chunk) *Chunk { c = found; c.Before["app"] += 5; return c })
		return []string{fmt.Sprintf("the log's tallies at the chunk at %s say %s of project app; its records make %s", comma(c.First), records(c.Before["app"]), comma(c.Before["app"]-5))}
	}},
	{"an end of the log that was changed", func(t *testing.T, dir string) []string {
		paths := logPaths(t, dir)
		path := paths[len(paths)-1]
		db, err := OpenDB(path, logOptions(0))
		must(t, err)
		must(t, db.Update(func(tx *bolt.Tx) error {
			v, err := unseal(keyEnd, tx.Bucket(bucketMeta).Get(keyEnd))
			must(t, err)
			end, err := readLogEnd(v)
			must(t, err)
			end.counts["app"] += 2
			return put(tx.Bucket(bucketMeta), keyEnd, end.append(nil))
		}))
		must(t, db.Close())
		return []string{"tallies at the end of " + filepath.Base(path) + " say 918 records of project app; its records make 916", "2 missing"}
	}},
	{"the count of a span that was changed", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.spans[0].toCount -= 4 })
		return []string{"the end of a span at 350 says that the log has 296 records up to there; the log's tallies say 300", "4 too many"}
	}},
	{"spans that overlap", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.spans[1].from, s.spans[1].fromCount = 340, 300 })
		return []string{"the span from 340 overlaps the one before, which ends with 350"}
	}},
	{"a value of which one bit has flipped", func(t *testing.T, dir string) []string {
		editLedger(t, dir, func(tx *bolt.Tx) {
			flipFirst(t, tx, bucketSent, bucketRetry, bucketTally)
		})
		return []string{`in the bucket "sent" the checksum of 1 value is wrong`, `in the bucket "retry"`, `in the bucket "tally"`}
	}},
	{"a dead letter of which one bit has flipped", func(t *testing.T, dir string) []string {
		var seq uint64
		editLedger(t, dir, func(tx *bolt.Tx) {
			k, v := tx.Bucket(bucketDead).Cursor().First()
			k, v = bytes.Clone(k), bytes.Clone(v)
			v[len(v)/2] ^= 4
			seq = seqOf(k)
			must(t, tx.Bucket(bucketDead).Put(k, v))
		})
		return []string{`in the bucket "dead" the checksum of 1 value is wrong, the first is that of record ` + comma(seq), "1 missing"}
	}},
	{"a record that was removed from the side place", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		var a asideLane
		editLedger(t, dir, func(tx *bolt.Tx) {
			must(t, tx.Bucket(bucketAside).Delete(asideKey(laneKeyOf(e.rec.Lane), e.rec.Seq)))
			a = summaryOf(t, tx, e.rec.Lane)
		})
		return []string{fmt.Sprintf("in the side place has by its summary %s of %s bytes; %s of %s bytes can be read", records(a.count),
			comma(uint64(a.bytes)), comma(a.count-1), comma(uint64(a.bytes-e.bytes()))), made(-1, "1 missing")}
	}},
	{"all records of a lane that were removed from the side place", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		var a asideLane
		editLedger(t, dir, func(tx *bolt.Tx) {
			a = summaryOf(t, tx, e.rec.Lane)
			key := retryKey(e.rec.Lane)
			cur := tx.Bucket(bucketAside).Cursor()
			for k, _ := cur.Seek(key); bytes.HasPrefix(k, key); k, _ = cur.Seek(key) {
				must(t, cur.Delete())
			}
		})
		return []string{fmt.Sprintf("the side place should have %s of 1 lane of which it has none", records(a.count)), made(-int64(a.count), comma(a.count)+" missing")}
	}},
	{"a record of the side place under the key of another lane", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			b := tx.Bucket(bucketAside)
			must(t, b.Delete(asideKey(laneKeyOf(e.rec.Lane), e.rec.Seq)))
			other, _ := b.Cursor().Last() // the first is e's
			must(t, put(b, asideKey(laneKey(other[:16]), e.rec.Seq), appendAside(nil, e)))
		})
		return []string{"in the side place 1 record is under the key of another lane, the first is record " + comma(e.rec.Seq), "has by its summary"}
	}},
	{"a record that is in the side place twice", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			b := tx.Bucket(bucketAside)
			other, _ := b.Cursor().Last()
			must(t, put(b, asideKey(laneKey(other[:16]), e.rec.Seq), appendAside(nil, e)))
		})
		return []string{"1 record is in the side place twice, the first is " + comma(e.rec.Seq), "under the key of another lane", "1 too many"}
	}},
	{"a record that is pending in the log and in the side place", func(t *testing.T, dir string) []string {
		r := pendingIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			e := &entry{rec: r}
			must(t, put(tx.Bucket(bucketAside), asideKey(laneKeyOf(r.Lane), r.Seq), appendAside(nil, e)))
			must(t, put(tx.Bucket(bucketAsideLane), retryKey(r.Lane), (&asideLane{count: 1, bytes: e.bytes(), oldest: r.Received}).append(nil, r.Lane)))
		})
		return []string{"1 record is pending in the log and in the side place, the first is " + comma(r.Seq), made(+1, "1 too many")}
	}},
	{"a record of the side place that is a dead letter", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			d := DeadLetter{Record: e.rec, At: 1, Reason: "refused"}
			must(t, put(tx.Bucket(bucketDead), seqKey(e.rec.Seq), d.append(nil)))
		})
		editState(t, dir, func(s *ledgerState) { s.ended[Dead]++; s.ended[Delivered]-- }) // the counts know nothing of it
		return []string{"1 record is in the side place and a dead letter, the first is " + comma(e.rec.Seq), "bytes"}
	}},
	{"a wrong count in the summary of a lane", func(t *testing.T, dir string) []string {
		return changeSummary(t, dir, func(a *asideLane) { a.count++ }, "has by its summary")
	}},
	{"wrong bytes in the summary of a lane", func(t *testing.T, dir string) []string {
		return changeSummary(t, dir, func(a *asideLane) { a.bytes -= 7 }, "has by its summary")
	}},
	{"a wrong age in the summary of a lane", func(t *testing.T, dir string) []string {
		return changeSummary(t, dir, func(a *asideLane) { a.oldest += 1_000_000_000 }, "has by its summary none that was received before 1970-01-12")
	}},
	{"a lane of the side place without a summary", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) { must(t, tx.Bucket(bucketAsideLane).Delete(retryKey(e.rec.Lane))) })
		return []string{"in the side place has no summary"}
	}},
	{"a record of the side place of which one bit has flipped", func(t *testing.T, dir string) []string {
		e := asideIn(t, dir)
		editLedger(t, dir, func(tx *bolt.Tx) {
			k := asideKey(laneKeyOf(e.rec.Lane), e.rec.Seq)
			v := bytes.Clone(tx.Bucket(bucketAside).Get(k))
			v[len(v)/2] ^= 4
			must(t, tx.Bucket(bucketAside).Put(k, v))
		})
		return []string{`in the bucket "aside" the checksum of 1 value is wrong, the first is that of record ` + comma(e.rec.Seq), made(-1, "1 missing")}
	}},
	{"a rewind that was not counted", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.rewound -= 50 })
		return []string{"50 too many"}
	}},
	{"a retry under the key of another lane", func(t *testing.T, dir string) []string {
		editLedger(t, dir, func(tx *bolt.Tx) {
			must(t, put(tx.Bucket(bucketRetry), retryKey("one lane"), retryState{attempts: 1}.append(nil, "another")))
		})
		return []string{`in the bucket "retry" 1 value cannot be what was written`}
	}},
	{"what the ledger has seen is below its mark", func(t *testing.T, dir string) []string {
		editState(t, dir, func(s *ledgerState) { s.seen = s.low - 1 })
		return []string{"is ahead of what the ledger has seen of the log", "what the ledger has seen at", `in the bucket "dead"`, `in the bucket "aside"`, "missing"}
	}},
}

// A log that was restored from an older copy is told as such, and is no difference by
// itself; a chunk that is lost is one, until the consumer has counted it.
func TestAuditOfALogThatIsBehindItsLedger(t *testing.T) {
	dir, older := t.TempDir(), filepath.Join(t.TempDir(), "older")
	o := small(dir)
	h, cs := mustOpen(t, o, "p")
	h.fill("app", 300, 300)
	finish(t, cs["p"], 50)
	h.close(cs)
	copyTree(t, dir, older)
	h, cs = mustOpen(t, o, "p")
	h.fill("app", 500, 300)
	finish(t, cs["p"], 100)
	h.close(cs)
	must(t, os.RemoveAll(filepath.Join(dir, "log")))
	copyTree(t, filepath.Join(older, "log"), filepath.Join(dir, "log"))

	a := audited(t, dir)
	mustBalance(t, a)
	if notes := strings.Join(a.Notes, "\n"); !strings.Contains(notes, "the log ends with 300, the ledgers have seen it up to 800: it was restored from an older copy") || a.Missing == 0 {
		t.Fatalf("%+v", a)
	}
	missing := a.Missing
	h, cs = mustOpen(t, o, "p")
	caughtUp(t, h, cs["p"])
	h.append("a:new")
	finish(t, cs["p"], 10)
	a, err := cs["p"].Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	if a.Books.Lost != missing || a.Books.Taken != 801 || a.Missing != 0 {
		t.Fatalf("%+v, %d were missing", a, missing)
	}
	h.close(cs)
}

func TestAuditOfDamageThatWasCounted(t *testing.T) {
	dir := t.TempDir()
	o := small(dir)
	backlog(t, o, 1300, 300)
	path := logPaths(t, dir)[1]
	firsts := commits(t, path)
	spoil(t, path, firsts[1], firsts[1])
	a := audited(t, dir)
	want := fmt.Sprintf("100 records between %s and %s are neither ended nor in the log", comma(firsts[1]-1), comma(firsts[1]+100))
	if len(a.Differences) != 1 || a.Differences[0] != want || len(a.Notes) == 0 || a.Missing != 100 {
		t.Fatalf("%+v", a)
	}
	h, cs := mustOpen(t, o, "p")
	caughtUp(t, h, cs["p"])
	a, err := cs["p"].Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	if a.Books.Lost != 100 || a.Books.Pending != 1200 {
		t.Fatalf("%+v", a)
	}
	h.close(cs)
	mustBalance(t, audited(t, dir))
}

// Ledgers of which each has been through something, and that became one.
func TestAuditOfJoinedLedgers(t *testing.T) {
	dir := t.TempDir()
	lived(t, dir)
	o := small(dir)
	off := consumerOptions("p")
	off.Enabled = false
	later := consumerOptions("later")
	h, cs := mustOpenAs(t, o, off, later)
	h.fill("app", 400, 300)
	finish(t, cs["later"], 100)
	fail(t, cs["later"], "2", "5") // 5 is in the side place of both
	finish(t, cs["later"], 20)
	h.close(cs)
	before, err := AuditFiles(t.Context(), dir)
	must(t, err)
	l, err := Open(o)
	must(t, err)
	must(t, RenameLedger(l, "p", "later"))
	must(t, l.Close())
	all, err := AuditFiles(t.Context(), dir)
	must(t, err)
	if len(all) != 1 || len(before) != 2 {
		t.Fatalf("%d ledgers, there were %d", len(all), len(before))
	}
	a, sum := all[0], before[0].Books
	mustBalance(t, a)
	other := before[1].Books
	sum.Taken += other.Taken
	sum.Delivered += other.Delivered
	sum.Filtered += other.Filtered
	sum.Dead += other.Dead
	sum.Discarded += other.Discarded
	sum.Rewound += other.Rewound
	sum.Pending += other.Pending
	if a.Books != sum || a.Aside != before[0].Aside+before[1].Aside {
		t.Errorf("%+v\nbefore %+v", a.Books, sum)
	}
}
