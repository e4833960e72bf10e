package power

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

// imagesOfAnOperation bounds how many images are made of the moment behind one operation.
const imagesOfAnOperation = 24

// livesOfAStory are led one after the other, each from an image that a cut of the one before has left.
const livesOfAStory = 3

// images records what ampcio's packages do to a disk, and looks at what a loss of power at any moment would have left.
func images(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(300)) // the heap is small, and what is looked at soon forgotten
	m, err := lossy.NewMount(filepath.Join(c.Dir, "m"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	story := newBook(c.Seed)
	p := plan{Seed: c.Seed, From: [writers]int{1: 1}}
	im := lossy.Image{Folders: []string{storage}, Files: map[string]lossy.Content{storage + "/reserve": {}}} // which is 4 MiB else
	for life := range livesOfAStory {
		strict := c.Rand.IntN(2) == 0
		l := m.Begin(im, lossy.LifeOptions{Strict: strict, Record: true})
		p.Life, p.Dir, p.Chance, p.Events = l.Path, filepath.Join(l.Path, storage), c.Rand.Uint64(), 24
		if err := recordLife(ctx, l, p); err != nil {
			return n, fmt.Errorf("life %d: %w", life, err)
		}
		l.Cut()
		w := walk{verifier: newVerifier(c.Memory, story), c: c, disk: lossy.NewDisk(strict), left: c.Left - n}
		w.disk.From(im)
		log := l.Log()
		// The next life begins somewhere in this one, often near its end: what a short life leaves has been seen.
		end := len(log) - int(float64(len(log))*c.Rand.Float64()*c.Rand.Float64())
		next, again, err := w.through(ctx, log[:end])
		n += w.n
		if err != nil {
			return n, fmt.Errorf("life %d: %w", life, err)
		}
		if n >= c.Left {
			break
		}
		im = next
		p.goOn(story, again)
	}
	return n, nil
}

// walk goes through a log.
type walk struct {
	*verifier
	c    *scoreboard.Case
	disk *lossy.Disk
	n    int // images
	left int
}

// through goes through a log to its end, and gives the image of which the next life is made, with what has to be sent again.
func (w *walk) through(ctx context.Context, log []lossy.Op) (next lossy.Image, again [][]int, err error) {
	for i, o := range log {
		if o.Kind == lossy.Ack {
			if err := w.book.note(string(o.Data)); err != nil {
				return next, nil, err
			}
			continue
		}
		w.disk.Apply(o)
		for range min(imagesOfAnOperation, 1+3*w.disk.Unsynced()) {
			if w.n >= w.left {
				return next, nil, ctx.Err()
			}
			way, survive := lossy.AnyWay(w.c.Rand)
			im := w.disk.Image(w.c.Rand, way, survive)
			fresh, _, _, err := w.verify(ctx, im)
			if err != nil {
				return next, nil, w.explain(err, im, way, survive, i, o)
			}
			if fresh {
				w.n++
			}
		}
		if err := ctx.Err(); err != nil {
			return next, nil, err
		}
	}
	way, survive := lossy.AnyWay(w.c.Rand)
	next = w.disk.Image(w.c.Rand, way, survive)
	_, s, stored, err := w.verify(ctx, next)
	if err != nil {
		return next, nil, w.explain(err, next, way, survive, len(log), lossy.Op{})
	}
	return next, w.book.settle(s, stored), nil
}

// explain keeps an image that is wrong, and says how it came about.
func (w *walk) explain(cause error, im lossy.Image, way lossy.Way, survive float64, i int, o lossy.Op) error {
	kept, err := os.MkdirTemp("", "faults-image-")
	if err == nil {
		err = im.WriteTo(kept)
	}
	return errors.Join(fmt.Errorf("image behind operation %d (%v), %v, chance %v, strict %v: %w\nit is kept in %s", i, o, way, survive, w.disk.Strict, cause, kept), err)
}
