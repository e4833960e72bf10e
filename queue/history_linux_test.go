package queue

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A disk that is full costs a history what comes meanwhile, and no more: what is written
// is read, and it goes on in the same file, however often it is tried.
func TestAHistoryOnAFullDisk(t *testing.T) {
	bytesOnly(t)
	disk := smallDisk(t, "size=256k")
	for _, begun := range []bool{true, false} {
		dir := filepath.Join(disk, "p.history")
		h := newHistory(dir, time.Now, func() int64 { return 1 << 30 })
		if begun {
			h.add([]Ended{{Seq: 1, At: 1, Ending: Delivered, Tries: 1}})
		} else {
			must(t, os.MkdirAll(dir, 0o700))
		}
		rest := filepath.Join(disk, "rest")
		if err := os.WriteFile(rest, make([]byte, 1<<20), 0o600); err == nil {
			t.Fatal("the disk is not full")
		}
		var many []Ended
		for i := range 20_000 {
			many = append(many, Ended{Seq: uint64(i + 2), At: int64(i * i), Ending: Delivered, Tries: i})
		}
		for range 100 {
			h.add(many)
		}
		must(t, os.Remove(rest))
		h.add([]Ended{{Seq: 50_000, At: 2, Ending: Delivered, Tries: 1}})
		h.close()
		if files := historyFiles(dir); len(files) != 1 {
			t.Errorf("begun %t: %d files", begun, len(files))
		}
		if found := readHistory(dir, []uint64{1, 50_000}); len(found[50_000]) != 1 || begun && len(found[1]) != 1 {
			t.Errorf("begun %t: %v", begun, found)
		}
		must(t, os.RemoveAll(dir))
	}
}
