package disk

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"ampcio-faults/child"
	"ampcio-faults/scoreboard"
)

func TestMain(m *testing.M) {
	child.Main()
	os.Exit(m.Run())
}

// All that is wanted is tried from the first operation on; where less is, any operation may be the first, also the last.
func TestPointsBeginAnywhereAndReachTheLast(t *testing.T) {
	begins := func(left, total int) map[int]bool {
		seen := map[int]bool{}
		for seed := range uint64(500) {
			seen[firstOf(&scoreboard.Case{Left: left, Rand: rand.New(rand.NewPCG(seed, 1))}, total)] = true
		}
		return seen
	}
	if got := begins(3000, 100); len(got) != 1 || !got[1] {
		t.Errorf("with enough points it begins at %v", got)
	}
	if got := begins(20, 30); len(got) != 21 || !got[1] || !got[21] {
		t.Errorf("10 operations of 30 begin at %v", got)
	}
}

func TestSharesAreKept(t *testing.T) {
	got := map[int]int{}
	for n := range 10 {
		got[oneOf(func(all int) int {
			if all != 10 {
				t.Fatalf("of %d", all)
			}
			return n
		}, []int{7, 1, 2})]++
	}
	if got[0] != 7 || got[1] != 1 || got[2] != 2 {
		t.Errorf("%v", got)
	}
}

// Senders that wait take what is given at once: there must not be more of it for that.
func TestAPointHasItsRequestsAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &installation{allow: make(chan struct{}, requestsOfAPoint)}
		var sent atomic.Int64
		for range 2 * requestsOfAPoint {
			go func() {
				for range in.allow {
					sent.Add(1)
				}
			}()
		}
		for point := range int64(3) {
			synctest.Wait()
			in.more()
			synctest.Wait()
			if want := (point + 1) * requestsOfAPoint; sent.Load() != want {
				t.Fatalf("at point %d %d requests have been sent, not %d", point+1, sent.Load(), want)
			}
		}
		close(in.allow)
	})
}

func TestADiskIsFilledUpToWhatShallBeLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	at := t.TempDir()
	if err := unix.Mount("none", at, "tmpfs", 0, "size=8388608"); err != nil {
		t.Skipf("this root may not mount: %v", err) // as in many containers; the trials then are red on the board
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, free := range []int64{2 << 20, 0} {
		if err := fillDisk(filepath.Join(at, "filler"), free); err != nil {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			t.Fatal(err)
		}
		if left := int64(st.Bavail) * st.Bsize; left > free || left < free-64<<10 {
			t.Errorf("%d bytes are free, %d should be", left, free)
		}
	}
}
