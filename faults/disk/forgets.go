package disk

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"ampcio-faults/house"
	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

// fsyncsOfACase begin with one stage.
const fsyncsOfACase = 25

// forgetful lets an fsync fail that the kernel then believes to be done, starts again on what can be read, and cuts the
// power soon.
//
// What was forgotten hurts when the next commit of that file builds on it: that one overwrites pages which are free by what
// can be read, and are in use by what the disk has. So the power goes in most cases among the next operations on that very
// file, wherever they are among those of the others.
func forgetful(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	life := house.Life{Requests: requests, Operator: true}
	// How many there are: a life without the fault.
	p := s.point()
	from := p.life.Count(lossy.Sync)
	if err := p.lead(ctx, life); err != nil {
		return 0, fmt.Errorf("without a fault: %w", err)
	}
	total := p.life.Count(lossy.Sync) - from
	for ; n < min(fsyncsOfACase, c.Left); n++ {
		p := s.point()
		f := lossy.Fault{Kinds: []lossy.Kind{lossy.Sync}, N: 1 + c.Rand.IntN(total), Errno: syscall.EIO, Forgets: true}
		p.life.Inject(&f)
		err := mayEnd(p.lead(ctx, life))
		cut := 1 + c.Rand.IntN(14)
		if file, fired := p.life.Failed(); fired && c.Rand.IntN(4) > 0 {
			p.life.CutAtFile(file, cut)
		} else {
			p.life.CutAt(cut)
		}
		p.life.Inject(nil)
		if err == nil {
			err = mayEnd(p.lead(ctx, life))
		}
		if err == nil {
			err = p.judge(ctx, storage, nil)
		}
		if err != nil {
			return n, fmt.Errorf("fsync %d forgets, a start, and a cut in operation %d: %w", f.N, cut, err)
		}
	}
	return n, nil
}
