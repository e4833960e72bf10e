package machine

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSeesWhatThisProcessUses(t *testing.T) {
	me := os.Getpid()
	before, busy := CPU(me), Busy()
	memory := Anonymous(me)
	peak := Watch(me)
	space := make([]byte, 64<<20)
	for CPU(me) < before+0.05 {
		for i := range space {
			space[i]++
		}
	}
	for peak.most.Load() < memory+60<<20 { // until Watch has looked; the test's own time bounds it
		time.Sleep(time.Millisecond)
	}
	if most := peak.Stop(); most > memory+500<<20 {
		t.Errorf("%d bytes at most, %d before, and 64 MiB more are used", most, memory)
	}
	if Busy()-busy < 0.03 {
		t.Errorf("all cores were busy for %v s", Busy()-busy)
	}
	if space[0] == 0 || Descriptors(me) < 3 {
		t.Error(Descriptors(me), "descriptors")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Flush(dir); err != nil {
		t.Fatal(err)
	}
	if n, files := Used(dir); n < 1<<20 || n > 1<<20+64<<10 || files != 1 {
		t.Errorf("%d bytes in %d files", n, files)
	}
}
