package power

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

const (
	ext4Bytes    = 24 << 20
	cutsOfAnExt4 = 12
	diskFile     = "disk"
)

// ext4 is a story on a real ext4, whose disk is a file of the lossy mount: the kernel's journal is between what ampcio syncs
// and what the disk has.
func ext4(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	m, err := lossy.NewMount(filepath.Join(c.Dir, "m"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	im, err := formatted(ctx, c)
	if err != nil {
		return 0, err
	}
	story := newBook(c.Seed)
	p := plan{Seed: c.Seed, From: [writers]int{1: 1}}
	for want := min(cutsOfAnExt4, c.Left); n < want; n++ {
		var lines []string
		l := m.Begin(im, lossy.LifeOptions{OnAck: func(line string) { lines = append(lines, line) }})
		l.CutAt(1 + c.Rand.IntN(300))
		at := filepath.Join(c.Dir, "ext4")
		p.Life, p.Dir, p.Chance, p.Events = l.Path, filepath.Join(at, storage), c.Rand.Uint64(), 24
		if err := lifeOnExt4(ctx, l, p, at); err != nil {
			return n, fmt.Errorf("cut %d: %w", n, err)
		}
		for _, line := range lines {
			if err := story.note(line); err != nil {
				return n, err
			}
		}
		way, survive := lossy.AnyWay(c.Rand)
		im = l.Image(c.Rand, way, survive)
		again, err := verifyExt4(ctx, c, story, im)
		if err != nil {
			return n, fmt.Errorf("cut %d, %v, chance %v: %w", n, way, survive, err)
		}
		p.goOn(story, again)
	}
	return n, nil
}

// formatted is a disk with an empty ext4 on it.
func formatted(ctx context.Context, c *scoreboard.Case) (lossy.Image, error) {
	root, dir := filepath.Join(c.Memory, "root"), filepath.Join(c.Memory, "formatted")
	disk := filepath.Join(dir, diskFile)
	first := lossy.Image{Folders: []string{storage}, Files: map[string]lossy.Content{storage + "/reserve": {}}}
	if err := errors.Join(first.WriteTo(root), os.Mkdir(dir, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, ext4Bytes)); err != nil {
		return lossy.Image{}, err
	}
	block := []string{"1024", "4096"}[c.Rand.IntN(2)]
	if err := tool(ctx, "mkfs.ext4", "-q", "-F", "-b", block, "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, disk); err != nil {
		return lossy.Image{}, err
	}
	return lossy.ReadImage(dir)
}

// lifeOnExt4 mounts the disk of a life and lets a child work there until the cut, or to its end. When it returns, nothing
// is mounted and no device attached.
func lifeOnExt4(ctx context.Context, l *lossy.Life, p plan, at string) (err error) {
	undo, err := mountExt4(ctx, filepath.Join(l.Path, diskFile), at)
	defer func() {
		l.Cut() // what is still written when it is unmounted comes too late
		err = errors.Join(err, undo())
	}()
	if err == nil {
		err = recordLife(ctx, l, p)
	}
	select {
	case <-l.Dead(): // so early that it could not be mounted, or the child could not be run
		return ctx.Err()
	default:
		return err
	}
}

// verifyExt4 attaches what a cut has left, lets the kernel replay its journal, and looks at what ampcio finds there.
func verifyExt4(ctx context.Context, c *scoreboard.Case, b *book, im lossy.Image) (again [][]int, err error) {
	dir := filepath.Join(c.Memory, "image")
	defer os.RemoveAll(dir)
	if err := im.WriteTo(dir); err != nil {
		return nil, err
	}
	at, copied := filepath.Join(c.Memory, "mounted"), filepath.Join(dir, "copied")
	undo, err := mountExt4(ctx, filepath.Join(dir, diskFile), at)
	var found lossy.Image
	if err == nil {
		found, err = lossy.ReadImage(filepath.Join(at, storage))
	}
	if err := errors.Join(err, undo()); err != nil {
		return nil, err
	}
	for _, p := range slices.Sorted(maps.Keys(found.Files)) {
		if damaged(p) {
			return nil, fmt.Errorf("damage was met: there is %s", p)
		}
	}
	if err := found.WriteTo(copied); err != nil {
		return nil, err
	}
	s, err := start(ctx, copied, b, true)
	if err != nil {
		return nil, err
	}
	stored, err := b.judge(s)
	if err != nil {
		return nil, err
	}
	return b.settle(s, stored), nil
}

// mountExt4 attaches a file to a loop device and mounts it. undo takes away what was done, also after an error.
func mountExt4(ctx context.Context, file, at string) (undo func() error, err error) {
	device := ""
	mounted := false
	undo = func() error {
		// Not by ctx: what has ended is taken away too.
		end, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		var errs []error
		if mounted {
			if err := tool(end, "umount", at); err != nil {
				errs = append(errs, err, tool(end, "umount", "-l", at))
			}
		}
		if device != "" {
			errs = append(errs, tool(end, "losetup", "-d", device), detached(end, device))
		}
		return errors.Join(errs...)
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return undo, err
	}
	for try := 1; ; try++ { // another may have taken the device that was free
		out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", file).CombinedOutput()
		if err == nil {
			device = strings.TrimSpace(string(out))
			break
		}
		if try == 5 || ctx.Err() != nil {
			return undo, fmt.Errorf("losetup: %w: %s", err, out)
		}
	}
	if err := tool(ctx, "mount", "-t", "ext4", device, at); err != nil {
		return undo, err
	}
	mounted = true
	return undo, nil
}

// detached waits until a loop device has let go of its file.
func detached(ctx context.Context, device string) error {
	backing := filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file")
	for {
		if _, err := os.Stat(backing); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still attached: %w", device, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
