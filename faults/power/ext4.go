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
	"time"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

const (
	ext4Bytes    = 12 << 20
	cutsOfAnExt4 = 20
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
	im, err := formatted(c)
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
		for way == lossy.Torn || way == lossy.Sectors {
			way, survive = lossy.AnyWay(c.Rand) // half a superblock can't be mounted: ext4 asks of a disk that blocks are whole
		}
		next := l.Image(c.Rand, way, survive)
		l.Done()
		im = im.Instead(next)
		again, err := verifyExt4(ctx, c, story, im)
		if err != nil {
			return n, fmt.Errorf("cut %d, %v, chance %v: %w", n, way, survive, err)
		}
		p.goOn(story, again)
	}
	return n, nil
}

// formatted is a disk with an empty ext4 on it.
func formatted(c *scoreboard.Case) (lossy.Image, error) {
	root, dir := filepath.Join(c.Memory, "root"), filepath.Join(c.Memory, "formatted")
	disk := filepath.Join(dir, diskFile)
	first := lossy.Image{Folders: []string{storage}, Files: map[string]lossy.Content{storage + "/reserve": {}}}
	if err := errors.Join(first.WriteTo(root), os.Mkdir(dir, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, ext4Bytes)); err != nil {
		return lossy.Image{}, err
	}
	block := []string{"1024", "4096"}[c.Rand.IntN(2)]
	if err := tool("mkfs.ext4", "-q", "-F", "-b", block, "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, disk); err != nil {
		return lossy.Image{}, err
	}
	return lossy.ReadImage(dir)
}

// lifeOnExt4 mounts the disk of a life and lets a child work there until the cut, or to its end. When it returns, nothing
// is mounted and no device attached.
func lifeOnExt4(ctx context.Context, l *lossy.Life, p plan, at string) (err error) {
	undo, err := mountExt4(filepath.Join(l.Path, diskFile), at)
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
	disk, at, copied := filepath.Join(c.Memory, diskFile), filepath.Join(c.Memory, "mounted"), filepath.Join(c.Memory, "copied")
	defer os.RemoveAll(copied)
	if err := overwrite(disk, im.Files[diskFile]); err != nil {
		return nil, err
	}
	undo, err := mountExt4(disk, at)
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

// overwrite makes a file what it should be, at the place where the last one was: a file that is made anew has to be given memory for
// all of it again.
func overwrite(path string, c lossy.Content) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(c.Data, 0); err != nil {
		return err
	}
	// Not the last file's end: what is behind the data are zeros.
	if err := errors.Join(f.Truncate(int64(len(c.Data))), f.Truncate(c.Size)); err != nil {
		return err
	}
	return f.Close()
}

// mountExt4 mounts the ext4 that a file has. undo takes it away again, and with it the loop device.
func mountExt4(file, at string) (undo func() error, err error) {
	undo = func() error { return nil }
	if err := os.MkdirAll(at, 0o700); err != nil {
		return undo, err
	}
	// Not by the case's context: a mount that is killed half way leaves a device.
	if err := tool("mount", "-t", "ext4", "-o", "loop", file, at); err != nil {
		return undo, err
	}
	return func() error {
		err := tool("umount", at)
		if err != nil {
			err = errors.Join(err, tool("umount", "-l", at))
		}
		return err
	}, nil
}

// tool runs a program, for half a minute at most.
func tool(name string, args ...string) error {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
