// Package model lives through random histories twice: once with the product's own log, users, ledgers, mapping and
// delivery on files in memory, once with a small model of what is promised. After each step both must say the same.
//
// A history is a list of steps, drawn by rapid from one seed; steps that have nothing to do do nothing. So a history that
// breaks the promise is shortened by leaving steps out, and told step by step.
package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "model", Unit: "histories", Full: 100_000, Case: some,
		Fault: "any order of events, deliveries, failures, crashes, pauses, new rules, rewinds and forgetting; after each step books, order, once-only and state are the model's",
	}}
}

// perCase is how many histories one case has, at most. They are lived through one after another in one installation,
// each with projects, users and syncs of its own: to open its files anew for each would be most of the work.
const perCase = 50

func some(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	var all [][]step
	for range max(1, min(perCase, c.Left)) {
		all = append(all, draw(c.Rand.Uint64()))
	}
	n, err = live(ctx, c.Memory, all, nil)
	if err != nil && ctx.Err() == nil {
		err = shorter(ctx, c.Memory, all[:n+1], err)
	}
	return n, err
}

// step is one thing that happens. What its numbers mean is the affair of what is done: each is reduced to what there is.
type step struct {
	do         string
	a, b, c, d int
}

// draw draws a history.
func draw(seed uint64) []step { return histories.Example(int(seed >> 1)) }

var histories = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
	return step{drawnDoing.Draw(t, "do"), number.Draw(t, "a"), number.Draw(t, "b"), number.Draw(t, "c"), number.Draw(t, "d")}
}), 6, 24)

var (
	number     = rapid.Map(rapid.IntRange(0, 999), func(n int) int { return n * 619 % 1000 })
	drawnDoing = rapid.Custom(func(t *rapid.T) string {
		// rapid prefers small numbers: two of them are spread over all that may be done.
		n := uint32(rapid.IntRange(0, 255).Draw(t, "high"))<<8 | uint32(rapid.IntRange(0, 255).Draw(t, "low"))
		return often[n*2654435761>>9%uint32(len(often))]
	})
)

// often is what is done, each as many times as it has weight.
var often []string

// violation is a broken promise, as it travels up through a history.
type violation struct{ error }

// live lives through histories in an installation of their own in memory, in virtual time, and says how many ended well.
// tell, if set, hears what happens.
func live(ctx context.Context, memory string, all [][]step, tell func(string)) (n int, err error) {
	dir, err := os.MkdirTemp(memory, "histories-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// A bubble takes a testing.T, and wants no more of it than its name: nothing here fails it.
	synctest.Test(new(testing.T), func(*testing.T) {
		h := &history{root: dir, tell: tell}
		defer func() {
			if p := recover(); p != nil { // a violation, however deep; any other is one of the product
				v, ok := p.(violation)
				if !ok {
					v = violation{fmt.Errorf("panic: %v\n%s", p, stack())}
				}
				err = fmt.Errorf("step %d, %s: %w", h.at, h.doing, v.error)
			}
			err = errors.Join(err, h.close())
		}()
		h.build()
		for _, steps := range all {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
				return
			}
			h.begin()
			for i, s := range steps {
				h.step(i+1, s)
			}
			h.curtain(len(steps) + 1)
			n++
		}
	})
	return n, err
}

// shorter leaves out what is not needed to break the promise, for a while, and tells the rest.
func shorter(ctx context.Context, memory string, all [][]step, err error) error {
	tries := 0
	broken := func(some [][]step) bool {
		if tries++; tries > 300 || ctx.Err() != nil {
			return false
		}
		_, again := live(ctx, memory, some, nil)
		if again != nil {
			all, err = some, again
		}
		return again != nil
	}
	broken(all[len(all)-1:]) // the histories before it rarely matter
	for i := 0; i < len(all)-1; {
		if !broken(slices.Delete(slices.Clone(all), i, i+1)) {
			i++
		}
	}
	for i := range all {
		for size := (len(all[i]) + 1) / 2; size > 0; size /= 2 {
			for at := 0; at+size <= len(all[i]); {
				fewer := slices.Clone(all)
				fewer[i] = slices.Delete(slices.Clone(all[i]), at, at+size)
				if !broken(fewer) {
					at += size
				}
			}
		}
	}
	var told strings.Builder
	if _, again := live(ctx, memory, all, func(line string) { told.WriteString("\n\t" + line) }); again == nil {
		told.WriteString("\n\t(told again, it breaks nothing: something in it is left to chance)")
	}
	return fmt.Errorf("%w\n\tthe history:%s", err, told.String())
}

// copyFolder copies what a crash leaves: every file.
func copyFolder(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = copyFolder(dst, src)
		} else {
			err = copyFile(dst, src)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file without the holes in it: ledgers are 16 MiB long, and nearly all of that is a hole.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	in, out := int(src.Fd()), int(dst.Fd())
	size, err := unix.Seek(in, 0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(out, size); err != nil {
		return err
	}
	b := make([]byte, 32<<10)
	for at := int64(0); at < size; {
		if at, err = unix.Seek(in, at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		} else if err != nil {
			return err
		}
		end, err := unix.Seek(in, at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at < end {
			n, err := unix.Pread(in, b[:min(int64(len(b)), end-at)], at)
			if err != nil || n == 0 {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			if _, err := unix.Pwrite(out, b[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
	}
	return nil
}
