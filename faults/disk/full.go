package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ampcio-faults/house"
	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

// shortagesOfACase begin with one stage; an installation has fewer.
const shortagesOfACase = 10

// full lets something run short: the disk under the product's rooms, in one case of three under the built program.
func full(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	if c.Rand.IntN(3) == 0 {
		return installedFull(ctx, c)
	}
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for ; n < min(shortagesOfACase, c.Left); n++ {
		p := s.point()
		if c.Rand.IntN(4) == 0 {
			if err := p.livesThrough(ctx); err != nil {
				return n, fmt.Errorf("one process lives through full disks: %w", err)
			}
			continue
		}
		if err := p.runsShort(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}

// reserve is the file that a log gives up when its disk is full.
var reserve = sync.OnceValue(func() lossy.Content { return lossy.Content{Data: make([]byte, 4<<20), Size: 4 << 20} })

// comeAndGo lets a shortage begin and end, at moments of chance, until over is called, which leaves none.
func (p *point) comeAndGo(begin func(pid int), end func()) (over func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	begun := make(chan int, 1)
	p.began = func(pid int) { begun <- pid }
	r := p.s.c.Rand
	waits := []time.Duration{time.Duration(r.IntN(60)) * time.Millisecond, time.Duration(1+r.IntN(40)) * time.Millisecond}
	go func() {
		defer close(ended)
		defer end()
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
				return
			}
			if i%2 == 0 {
				begin(pid)
			} else {
				end()
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
		p.began = nil
	}
}

// runsShort lets the disk fill up and empty again at random moments, become read-only, or the process run out of
// descriptors. A process may end by that, and say why; when there is room again the next start goes on, and all that was
// acknowledged is there.
func (p *point) runsShort(ctx context.Context) error {
	what, begin, end := p.shortage()
	over := p.comeAndGo(begin, end)
	err := p.lead(ctx, house.Life{Requests: 10, Operator: true})
	over()
	for i := range p.s.hands { // its limits stay what they are
		p.s.hands[i].Retire()
	}
	if err = mayEnd(err); err == nil {
		err = p.lead(ctx, house.Life{Requests: 3, Operator: true})
	}
	if err == nil {
		err = p.judge(ctx, storage, nil)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
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

// livesThrough lets the ledger and users.db find no space, at moments of chance, under one process that must not end by it:
// what their checkpoints could not write they write later. (The log asks for space before it writes: where it finds none
// all the same, the process ends, as by other errors.) It must go on within the life, which ends when all is sent.
func (p *point) livesThrough(ctx context.Context) error {
	full := lossy.Fault{Kinds: []lossy.Kind{lossy.Write}, N: 1, Sticky: true, Errno: unix.ENOSPC}
	for _, path := range []string{storage + "/users.db", storage + "/sync/" + house.Sync + ".db"} {
		id, ok := p.life.Node(path)
		if !ok {
			return fmt.Errorf("there is no %s", path)
		}
		full.Nodes = append(full.Nodes, id)
	}
	met := 0
	over := p.comeAndGo(func(int) {
		select {
		case <-p.taking: // a start that finds no space may end by it
			p.life.Inject(&full)
		default:
		}
	}, func() {
		met += p.life.Fired()
		p.life.Inject(nil)
	})
	err := p.lead(ctx, house.Life{Requests: 30, Patient: true})
	over()
	if err == nil {
		err = p.judge(ctx, storage, nil)
	}
	if err != nil {
		return fmt.Errorf("after %d writes that found no space: %w", met, err)
	}
	return nil
}
