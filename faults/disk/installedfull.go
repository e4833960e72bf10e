package disk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
	"ampcio/admin"
	"ampcio/sandbox"
)

// place is a disk on which an installation has its storage.
type place struct {
	storage string
	fill    func(free int64) error // leaves so many bytes free
	empty   func() error           // ends that
	undo    func() error
}

const (
	placeBytes = 64 << 20
	freeBytes  = 6 << 20 // that min_free asks for
)

var places = []struct {
	name string
	make func(c *scoreboard.Case) (place, error)
}{
	{"a lossy disk", func(c *scoreboard.Case) (p place, err error) {
		m, err := lossy.NewMount(filepath.Join(c.Memory, "lossy"))
		if err != nil {
			return p, err
		}
		l := m.Begin(lossy.Image{Folders: []string{storage}}, lossy.LifeOptions{})
		return place{filepath.Join(l.Path, storage), func(free int64) error { l.Fill(free); return nil },
			func() error { l.SetCapacity(0); return nil }, m.Close}, nil
	}},
	{"tmpfs", func(c *scoreboard.Case) (p place, err error) {
		at := filepath.Join(c.Memory, "tmpfs")
		if err := errors.Join(os.Mkdir(at, 0o700), unix.Mount("none", at, "tmpfs", 0, fmt.Sprintf("size=%d", placeBytes))); err != nil {
			return p, err
		}
		return mounted(at, func() error { return unix.Unmount(at, 0) })
	}},
	{"ext4", func(c *scoreboard.Case) (p place, err error) {
		at, disk := filepath.Join(c.Memory, "ext4"), filepath.Join(c.Memory, "ext4.image")
		if err := errors.Join(os.Mkdir(at, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, placeBytes)); err != nil {
			return p, err
		}
		if err := tool("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", disk); err != nil {
			return p, err
		}
		if err := tool("mount", "-t", "ext4", "-o", "loop", disk, at); err != nil {
			return p, err
		}
		return mounted(at, func() error { return tool("umount", at) })
	}},
}

// mounted is a mounted disk that a file fills up.
func mounted(at string, undo func() error) (place, error) {
	filler := filepath.Join(at, "filler")
	p := place{filepath.Join(at, storage), func(free int64) error { return fillDisk(filler, free) }, func() error { return os.RemoveAll(filler) }, undo}
	if err := os.Mkdir(p.storage, 0o700); err != nil {
		return p, errors.Join(err, undo())
	}
	return p, nil
}

// limits are those that an installation may come to.
var limits = []struct {
	name, storage string
	free          int64 // bytes that a filler file leaves; < 0 = the installation fills its own disk
}{
	{"max_bytes", "max_bytes = \"4MiB\"\nmin_free = \"0\"\n", -1},
	{"min_free", fmt.Sprintf("min_free = \"%d\"\n", freeBytes), freeBytes - 2<<20},
	{"the last byte", "min_free = \"0\"\n", 0},
}

// installedFull lets the disk of an installation fill up and empty again: new events are answered 503, with the time to come
// again; what was accepted goes on to Customer.io; and when there is room the same process takes events again.
func installedFull(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const most = 4
	limit := limits[c.Rand.IntN(len(limits))]
	on := places
	if limit.free < 0 {
		on = places[1:] // of a file of the lossy disk the kernel remembers for an hour how many blocks it had, and max_bytes counts these
	}
	pl := on[c.Rand.IntN(len(on))]
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s, at %s: %w", limit.name, pl.name, err)
		}
	}()
	disk, err := pl.make(c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, disk.undo()) }()
	in, err := install(ctx, c, most+1, limit.storage)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.end()) }()
	if err := errors.Join(in.on(disk.storage), in.Start(ctx)); err != nil {
		return 0, err
	}
	for ; n < min(most, c.Left); n++ {
		err := in.fillsUp(ctx, disk, limit.free)
		// min_free asks for what the log may need until it looks again. Without it a commit may find no byte left: the daemon
		// ends then, and says why, and the next start goes on.
		var end endedError
		if limit.free == 0 && errors.As(err, &end) {
			if err = in.ended(end.error, unix.ENOSPC); err == nil {
				in.Sandbox.SetFaults(sandbox.Faults{})
				err = errors.Join(disk.empty(), in.Start(ctx))
			}
			if err == nil {
				err = in.taken(ctx)
			}
		}
		if err != nil {
			return n, fmt.Errorf("shortage %d: %w\n%s", n+1, err, in.LogTail())
		}
	}
	return n, in.judge(ctx)
}

// fillsUp is one shortage, through which the daemon lives.
func (in *installation) fillsUp(ctx context.Context, on place, free int64) error {
	in.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}, On: "data"}) // so that something waits
	in.more()
	if err := in.taken(ctx); err != nil {
		return err
	}
	if free >= 0 {
		if err := on.fill(free); err != nil {
			return err
		}
	}
	var header http.Header
	err := in.until(ctx, "new events are refused", func() (bool, error) {
		status, h, err := in.sendFiller(ctx, 20, 4000)
		header = h
		return status == http.StatusServiceUnavailable, err
	})
	if err != nil {
		return err
	}
	if s, err := strconv.Atoi(header.Get("Retry-After")); err != nil || s < 1 || s > 120 {
		return fmt.Errorf("a full disk is answered with Retry-After %q", header.Get("Retry-After"))
	}
	var waits admin.Snapshot
	err = in.until(ctx, "it is counted what waits", func() (_ bool, err error) {
		waits, err = in.Stats(ctx)
		return true, err
	})
	if err != nil {
		return err
	}
	if waits.Pending() == 0 {
		return errors.New("nothing waits: this shows nothing")
	}
	in.Sandbox.SetFaults(sandbox.Faults{})
	// What was accepted goes on: all of it, though the disk is as full as before.
	err = in.until(ctx, "deliveries go on", func() (bool, error) {
		now, err := in.Stats(ctx)
		return err == nil && now.Pending() < waits.Pending(), err
	})
	if err == nil && free >= 0 {
		err = on.empty()
	}
	if err != nil {
		return err
	}
	return in.taken(ctx)
}

// taken waits until an event is taken: what was full may still be so for a moment, by the last look at it.
func (in *installation) taken(ctx context.Context) error {
	return in.until(ctx, "events are taken", func() (bool, error) {
		status, _, err := in.sendFiller(ctx, 1, 10)
		return status == http.StatusOK, err
	})
}

// endedError is how the daemon ended by itself.
type endedError struct{ error }

// until asks again until the answer is yes, the daemon has ended, or the case has.
func (in *installation) until(ctx context.Context, what string, f func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		yes, err := f()
		switch {
		case err == nil && yes:
			return nil
		case err != nil: // as where the daemon has just ended
			select {
			case end := <-in.Ended:
				in.Daemon = nil
				return fmt.Errorf("before %s: %w", what, endedError{end})
			case <-time.After(5 * time.Second): // it lives
				return err
			}
		}
		select {
		case end := <-in.Ended:
			in.Daemon = nil
			return fmt.Errorf("before %s: %w", what, endedError{end})
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w, before %s", context.Cause(ctx), what)
		}
	}
}

// fillDisk writes a file until so much is left free.
func fillDisk(path string, free int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for size := len(block); ; {
		var st unix.Statfs_t
		if err = unix.Statfs(path, &st); err != nil {
			break
		}
		left := int64(st.Bavail)*st.Bsize - free
		if left <= 0 {
			break
		}
		if _, err = f.Write(block[:min(int64(size), left)]); errors.Is(err, unix.ENOSPC) {
			if err = nil; size <= 512 {
				break
			}
			size /= 2
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}
