package queue

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// A record's story is there whatever lies between: other records, a restart, a rename.
func TestHistoryTellsHowARecordEnded(t *testing.T) {
	dir := quickDir(t)
	h, cs := mustOpen(t, options(dir), "p")
	c := cs["p"]
	h.append("a:1", "b:1", "c:1")
	caughtUp(t, h, c)
	for range 3 {
		switch cl := mustClaim(t, c); cl.Lane() {
		case "a":
			cl.Retry(0, "http_503")
			for cl = mustClaim(t, c); cl.Lane() != "a"; cl = mustClaim(t, c) {
				cl.Return()
			}
			cl.Finish([]Outcome{{Ending: Delivered, Tallies: []Tally{{Key: "event/delivered"}, {Key: "user/unchanged"}}}})
		case "b":
			cl.Finish([]Outcome{{Ending: Dead, Reason: "invalid", Results: []byte("[]")}})
		default:
			cl.Finish([]Outcome{{Ending: Filtered, Reason: "not_selected"}})
		}
	}
	must(t, c.Flush())
	if n, err := c.ReplayDead([]uint64{2}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	mustClaim(t, c).Finish(delivered(1))
	want := func(fates []Fate, err error) {
		t.Helper()
		must(t, err)
		for i, story := range []string{"delivered 2 http_503 event/delivered user/unchanged", "dead 1 invalid, delivered 1 ", "filtered 0 not_selected", "not_taken"} {
			got := ""
			for j, e := range fates[i].History {
				if j > 0 {
					got += ", "
				}
				got += fmt.Sprintf("%s %d %s", e.Ending, e.Tries, e.Reason)
				for _, tally := range e.Tallies {
					got += " " + tally.Key
				}
				if age := time.Since(time.UnixMilli(e.At)); age < 0 || age > time.Minute {
					t.Errorf("%v ago", age)
				}
			}
			if fates[i].State == FateNotTaken {
				got = "not_taken"
			} else if fates[i].State != FateEnded {
				t.Errorf("%d: %+v", i, fates[i])
			}
			if got != story {
				t.Errorf("%d: %q, want %q", i+1, got, story)
			}
		}
	}
	records := []Found{{Record: Record{Seq: 1, Project: "app", Lane: "a"}, Ord: 1}, {Record: Record{Seq: 2, Project: "app", Lane: "b"}, Ord: 2},
		{Record: Record{Seq: 3, Project: "app", Lane: "c"}, Ord: 3}, {Record: Record{Seq: 3, Project: "other", Lane: "c"}, Ord: 4}}
	want(c.Fates(records, true))
	h.close(cs)
	want(FatesInFiles(dir, "p", records, true))

	// Half a block at the end, as a crash leaves it, hides nothing that came before or after.
	files := historyFiles(historyFolder(dir, "p"))
	if len(files) != 1 {
		t.Fatalf("%v", files)
	}
	f, err := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(appendHistory(nil, []Ended{{Seq: 1, Ending: Discarded}})[:30])
	must(t, err)
	must(t, f.Close())
	h, cs = mustOpen(t, options(dir), "p")
	want(cs["p"].Fates(records, true))
	h.append("d:1")
	caughtUp(t, h, cs["p"])
	mustClaim(t, cs["p"]).Finish(delivered(1))
	h.close(cs)
	l, err := Open(options(dir))
	must(t, err)
	must(t, RenameLedger(l, "p", "q"))
	must(t, l.Close())
	records = append(records, Found{Record: Record{Seq: 4, Project: "app", Lane: "d"}, Ord: 4})
	fates, err := FatesInFiles(dir, "q", records, true)
	want(fates, err)
	if n := len(fates[4].History); n != 1 {
		t.Errorf("%d things are known of what came after the crash", n)
	}
}

// The history is for people: whatever is wrong with it, deliveries go on.
func TestHistoryNeverStopsDelivery(t *testing.T) {
	dir := quickDir(t)
	folder := historyFolder(dir, "p")
	must(t, os.MkdirAll(filepath.Dir(folder), 0o700))
	must(t, os.WriteFile(folder, []byte("no folder"), 0o600))
	h, cs := mustOpen(t, options(dir), "p")
	h.fill("app", 100, 10)
	drain(t, cs["p"])
	must(t, cs["p"].Flush())
	if fates, err := cs["p"].Fates([]Found{{Record: Record{Seq: 1, Project: "app", Lane: "1"}, Ord: 1}}, true); err != nil || fates[0].State != FateEnded || fates[0].History != nil {
		t.Errorf("%+v %v", fates, err)
	}
	must(t, os.Remove(folder))
	h.fill("app", 10, 10)
	drain(t, cs["p"])
	h.close(cs)
	if fates, err := FatesInFiles(dir, "p", []Found{{Record: Record{Seq: 105, Project: "app", Lane: "1"}, Ord: 105}}, true); err != nil || len(fates[0].History) != 1 {
		t.Errorf("it does not begin again: %+v %v", fates, err)
	}
}

// Any flipped byte of a block is noticed, and blocks around it are read.
func TestHistoryPassesOverDamage(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	now := time.Now
	dir := t.TempDir()
	w := newHistory(dir, now, func() int64 { return historyMost })
	for block := range 3 {
		var list []Ended
		for i := range 1000 {
			list = append(list, Ended{Seq: uint64(block*1000 + i + 1), At: int64(block*1000 + i), Ending: Ending(1 + i%3), Reason: []string{"", "not_selected", "invalid"}[i%3], Tries: i % 2})
		}
		random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		w.add(list)
	}
	w.close()
	path := historyFiles(dir)[0]
	whole, err := os.ReadFile(path)
	must(t, err)
	t.Logf("%.1f bytes a record", float64(len(whole))/3000)
	if each := len(whole) / 3000; each > 4 {
		t.Errorf("%d bytes a record", each)
	}
	third := len(whole) / 3
	for range 200 {
		b := append([]byte(nil), whole...)
		at := third + 200 + random.IntN(third-400) // in the second block's payload
		b[at] ^= 1 << random.IntN(8)
		must(t, os.WriteFile(path, b, 0o600))
		found := readHistory(dir, []uint64{1, 1500, 2500})
		if len(found[1]) != 1 || len(found[1500]) != 0 || len(found[2500]) != 1 || found[2500][0].At != 2499 {
			t.Fatalf("byte %d: %+v", at, found)
		}
	}
}

// It is bounded by the log, whose records it is about, and by bytes.
func TestHistoryGoesWithTheLog(t *testing.T) {
	dir := t.TempDir()
	at := time.UnixMilli(1_800_000_000_000)
	w := newHistory(dir, func() time.Time { return at }, func() int64 { return historyMost })
	for day := range 5 {
		w.add([]Ended{{Seq: uint64(day*10 + 1), Ending: Delivered}, {Seq: uint64(day*10 + 9), Ending: Delivered}})
		at = at.Add(historyFileFor)
	}
	if n := len(historyFiles(dir)); n != 5 {
		t.Fatalf("%d files", n)
	}
	w.close()
	w = newHistory(dir, func() time.Time { return at }, func() int64 { return historyMost })
	w.tidy(20) // the log begins with 20: what is behind 19 is still there
	if n := len(historyFiles(dir)); n != 3 {
		t.Errorf("%d files are left", n)
	}
	for i := range w.files {
		w.files[i].bytes = historyMost / 2
	}
	w.add([]Ended{{Seq: 60, Ending: Delivered}})
	w.close()
	if n := len(historyFiles(dir)); n != 3 {
		t.Errorf("%d files of half of what there may be are left, and the new one", n)
	}
}
