package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// smallDisk mounts a disk of so many MiB for a rehearsal's storage folder, and gives where;
// the test is skipped where that is not possible.
func smallDisk(t *testing.T, r *rehearsal.Rehearsal, mib int) (disk string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	disk = filepath.Join(r.Dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("this root may not mount: %v", err)
	}
	t.Cleanup(func() {
		if r.Daemon != nil {
			r.Kill()
		}
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("umount: %v", err)
		}
	})
	edit(t, r, filepath.Join(r.Dir, "storage"), filepath.Join(disk, "storage"))
	return disk
}

// hog is a program that shares the disk with ampcio, and has no manners.
type hog struct {
	t    *testing.T
	path string
}

// takes all that is free at this moment, to the last byte.
func (h *hog) takes() {
	h.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(h.path), &st); err != nil {
		h.t.Fatal(err)
	}
	f, err := os.OpenFile(h.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, st.Bsize)
	for range st.Bavail {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return // ampcio was faster
		} else if err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *hog) gives() {
	h.t.Helper()
	if err := os.Remove(h.path); err != nil {
		h.t.Fatal(err)
	}
}

// systemd starts the daemon again when it has ended by itself, which it may with the code
// of a disk that failed, and no other.
type systemd struct {
	t     *testing.T
	r     *rehearsal.Rehearsal
	ends  int // of the daemon's own
	vain  int // starts that failed
	lives int
}

// looks after the daemon, and says whether it runs.
func (s *systemd) looks() bool {
	s.t.Helper()
	if s.r.Daemon != nil {
		select {
		case err := <-s.r.Ended:
			s.r.Daemon = nil
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != exitIO {
				s.t.Fatalf("the daemon ended with %v\n%s", err, s.r.LogTail())
			}
			s.ends++
		default:
			return true
		}
	}
	s.lives++
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if s.r.Start(ctx) != nil {
		s.vain++
	}
	return s.r.Daemon != nil
}

// eventually waits until something holds, with the daemon running.
func (s *systemd) eventually(what string, holds func() bool) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, what, func() bool { return s.looks() && holds() })
}

// A small disk that fills up while Customer.io is down, and that another program fills to
// the last byte again and again, while senders send and the daemon is killed. What cannot be
// stored is answered 503; what was accepted is delivered, in order; what is only kept makes
// room first; and when there is space again, all goes on by itself.
func TestADiskThatFillsUp(t *testing.T) {
	t.Parallel()
	for _, test := range fewUnderRace([]struct {
		name, storage string
		why           string // events are refused when it fills up by itself
		enough        int    // files of 1 MiB that make more room than must stay free
	}{
		{"max_bytes", "max_bytes = \"16MiB\"\nmin_free = \"2MiB\"\n", "used of storage.max_bytes 16 MiB", 6},
		{"min_free", "min_free = \"6MiB\"\n", "free on the disk of storage.dir, storage.min_free is 6.0 MiB", 12},
		{"to the last byte", "min_free = \"0\"\n", "free on the disk of storage.dir, storage.min_free is 0 B", 6},
	}, 3) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			seed := seed(t)
			rng := rand.New(rand.NewPCG(seed, 0))
			began := time.Now()
			down503 := sandbox.Faults{Status: map[int]float64{503: 1}}
			r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed, MaxKeptEvents: -1, Faults: down503},
				Storage: test.storage + "rotate_bytes = \"1MiB\"\n", Sync: "requests_per_second = 1000\n"})
			disk := smallDisk(t, r, 48)
			h := &hog{t, filepath.Join(disk, "of another program")}
			s := &systemd{t: t, r: r}
			s.looks()
			c := gathered(within(t, 170*time.Second), t, r, seed, crowdOptions{every: 10 * time.Millisecond, events: 8, padding: 4000,
				people: [][]string{people("ann", 10), people("bob", 10), people("eve", 10), people("dan", 10)}})
			chapter := func(name string) {
				t.Logf("%5.1f s, %d events, %d requests refused, %d lives, %d of them in vain, %d ended by themselves: %s",
					time.Since(began).Seconds(), c.acked.Load(), c.refused.Load(), s.lives, s.vain, s.ends, name)
			}
			more := func(events int64) {
				t.Helper()
				to := c.acked.Load() + events
				s.eventually(fmt.Sprintf("%d more events are accepted", events), func() bool { return c.acked.Load() >= to })
			}
			moreRefused := func(requests int64) {
				t.Helper()
				to := c.refused.Load() + requests
				s.eventually(fmt.Sprintf("%d more requests are refused", requests), func() bool { return c.refused.Load() >= to })
			}
			killed := func() {
				t.Helper()
				if r.Daemon != nil {
					if err := r.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}

			chapter("Customer.io is down, and the disk fills up")
			moreRefused(20)
			chapter("full")
			refusing(t, r, test.why)
			killed()
			moreRefused(20)
			refusing(t, r, test.why)

			chapter("Customer.io is back")
			r.Sandbox.SetFaults(sandbox.Faults{})
			more(1000)
			if s.ends != 0 || s.vain != 0 {
				t.Errorf("it ended %d times, and %d starts failed", s.ends, s.vain)
			}

			chapter("another program takes what is free: what is only kept makes room first")
			s.eventually("there are kept files", func() bool {
				return len(logFiles(t, filepath.Join(disk, "storage"))) > test.enough && stats(t, r).Pending() < 500
			})
			oldest := logFiles(t, filepath.Join(disk, "storage"))[0]
			h.takes()
			more(500)
			if logFiles(t, filepath.Join(disk, "storage"))[0] == oldest {
				t.Error("the oldest kept file is still there: this tests less than it says")
			}
			h.gives()

			for round := range 6 {
				away := rng.IntN(2) == 0
				if away {
					r.Sandbox.SetFaults(down503)
				}
				more(rng.Int64N(1000))
				chapter(fmt.Sprintf("another program takes all (Customer.io is away: %t)", away))
				refused := c.refused.Load() + 1 + rng.Int64N(5)
				eventually(t, 60*time.Second, "requests are refused, or nobody is there", func() bool {
					h.takes()
					return !s.looks() || c.refused.Load() >= refused
				})
				if round%2 == 0 {
					killed()
					s.looks() // or tries to: there may be no room for a start
				}
				h.gives()
				r.Sandbox.SetFaults(sandbox.Faults{})
				more(100 + rng.Int64N(400))
			}

			chapter("there is space for good")
			lives := s.lives
			more(200)
			sent := c.end()
			snap := drained(t, r)
			chapter("all is delivered")
			balanced(t, snap)
			complete(t, r, sent)
			if s.lives != lives {
				t.Errorf("%d lives, then %d", lives, s.lives)
			}
			// As soon as it is durable that all is delivered, its files would make room.
			eventually(t, 10*time.Second, "it says that it takes events", func() bool { return stats(t, r).Disk.Full == "" })
			down(t, r)
			sameBooks(t, snap, statsOfFiles(t, r))
		})
	}
}
