package disk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ampcio-faults/scoreboard"
)

// full lets the disk fill up and empty again at random moments, become read-only, or the process run out of descriptors.
// A process may end by that, and say why; when there is room again the next start goes on, and all that was acknowledged
// is there.
func full(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const most = 10
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.mount.Close()) }()
	for ; n < min(most, c.Left); n++ {
		p := s.point()
		what, begin, end := p.shortage()
		stop := make(chan struct{})
		over := make(chan struct{})
		begun := make(chan int, 1)
		p.started = func(pid int) { begun <- pid }
		waits := []time.Duration{time.Duration(c.Rand.IntN(60)) * time.Millisecond, time.Duration(1+c.Rand.IntN(40)) * time.Millisecond}
		go func() {
			defer close(over)
			var pid int
			select {
			case pid = <-begun:
			case <-stop:
				return
			}
			for i := 0; ; i++ {
				select {
				case <-time.After(waits[i%2]):
				case <-stop:
					end()
					return
				}
				if i%2 == 0 {
					begin(pid)
				} else {
					end()
				}
			}
		}()
		err := p.lead(ctx, 10)
		close(stop)
		<-over
		p.started = nil
		if err == nil || errors.Is(err, errEnded) {
			err = p.lead(ctx, 3)
		}
		if err == nil {
			err = p.judge(ctx)
		}
		if err != nil {
			return n, fmt.Errorf("%s: %w", what, err)
		}
	}
	return n, nil
}

// shortage is what the process has too little of for some time.
func (p *point) shortage() (what string, begin func(pid int), end func()) {
	r := p.s.c.Rand
	switch r.IntN(4) {
	case 0:
		return "read-only", func(int) { p.life.ReadOnly(true) }, func() { p.life.ReadOnly(false) }
	case 1:
		most := uint64(8 + r.IntN(14)) // of descriptors; a running house has some 20
		return "descriptors", func(pid int) {
			// A process that has just ended cannot be limited, and need not be.
			_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: 1 << 16}, nil)
		}, func() {}
	default:
		return "full", func(int) { p.life.SetCapacity(1) }, func() { p.life.SetCapacity(0) }
	}
}
