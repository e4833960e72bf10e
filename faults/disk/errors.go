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

// kinds are what may fail.
var kinds = []struct {
	kinds []lossy.Kind
	share int // of the cases
}{
	{[]lossy.Kind{lossy.Write}, 5},
	{[]lossy.Kind{lossy.Sync}, 5},
	{[]lossy.Kind{lossy.Truncate}, 1},
	{[]lossy.Kind{lossy.Rename, lossy.Link, lossy.Remove}, 2},
	{[]lossy.Kind{lossy.SyncDir}, 2},
	{[]lossy.Kind{lossy.Create, lossy.Mkdir}, 1},
	{nil, 4},
}

// scene is what is done while operations fail.
type scene struct {
	name  string
	share int // of the cases
	// set, if it is there, makes the stage ready.
	set func(ctx context.Context, s *stage) error
	act func(ctx context.Context, p *point) error
	// look judges what is there then; acted says whether act came to its end.
	look func(ctx context.Context, p *point, acted bool) error
}

var scenes = []scene{
	{name: "a life", share: 12, act: func(ctx context.Context, p *point) error {
		return p.lead(ctx, house.Life{Requests: requests, Operator: true})
	}, look: func(ctx context.Context, p *point, _ bool) error { return p.judge(ctx, storage, nil) }},
	{name: "a sync is renamed", share: 1, act: rename, look: renamed},
	{name: "two syncs become one", share: 1, set: twoSyncs, act: rename, look: renamed},
	{name: "a restore", share: 1, set: backedUp, act: restore, look: restored},
}

// oneOf picks by shares.
func oneOf(pick func(n int) int, shares []int) int {
	all := 0
	for _, s := range shares {
		all += s
	}
	n := pick(all)
	for i, s := range shares {
		if n -= s; n < 0 {
			return i
		}
	}
	panic("shares are positive")
}

// ioErrors lets the n-th operation of one kind fail, once and for good, for n = 1, 2, 3 … until the work ends without having
// met it. Where fewer points are wanted it begins at any n.
func ioErrors(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	var shares []int
	for _, s := range scenes {
		shares = append(shares, s.share)
	}
	shares = append(shares, installedShare)
	which := oneOf(c.Rand.IntN, shares)
	f := lossy.Fault{Errno: []syscall.Errno{syscall.EIO, syscall.ENOSPC}[c.Rand.IntN(2)]}
	shares = nil
	for _, k := range kinds {
		shares = append(shares, k.share)
	}
	f.Kinds = kinds[oneOf(c.Rand.IntN, shares)].kinds
	if which == len(scenes) {
		return installedErrors(ctx, c, f)
	}
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	sc := scenes[which]
	if sc.set != nil {
		if err := sc.set(ctx, s); err != nil {
			return 0, fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	// How many there are: once without the fault.
	p := s.point()
	from := p.life.Count(f.Kinds...)
	if err := sc.act(ctx, p); err != nil {
		return 0, fmt.Errorf("%s, without a fault: %w", sc.name, err)
	}
	total := p.life.Count(f.Kinds...) - from
	if err := sc.look(ctx, p, true); err != nil {
		return 0, fmt.Errorf("%s, without a fault: %w", sc.name, err)
	}
	f.N = firstOf(c, total)
	for untouched := false; !untouched && n < c.Left; f.N++ {
		for _, f.Sticky = range []bool{false, true} {
			fired, err := s.meet(ctx, &sc, f)
			if err != nil {
				return n, fmt.Errorf("%s: operation %d of %v fails with %v (for ever: %t): %w", sc.name, f.N, f.Kinds, f.Errno, f.Sticky, err)
			}
			n++
			untouched = !fired
		}
	}
	return n, nil
}

// firstOf is where the points of a case begin, of which there are two for each operation.
func firstOf(c *scoreboard.Case, total int) int {
	if spare := total - (c.Left+1)/2; spare > 0 {
		return 1 + c.Rand.IntN(spare+1)
	}
	return 1
}

// meet does the scene once with a fault.
func (s *stage) meet(ctx context.Context, sc *scene, f lossy.Fault) (fired bool, err error) {
	p := s.point()
	p.life.Inject(&f)
	err = sc.act(ctx, p)
	fired = p.life.Fired() > 0
	p.life.Inject(nil)
	if err != nil && !fired {
		return fired, fmt.Errorf("without having met it: %w", err)
	}
	acted := err == nil
	if err := mayEnd(err); err != nil {
		return fired, err
	}
	return fired, sc.look(ctx, p, acted)
}
