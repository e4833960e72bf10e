package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

// users is how many users there are events of.
const users = 6

// hangs is how long one life may take.
const hangs = 60 * time.Second

func init() {
	child.Register("disk", func(args []string) error {
		var l house.Life
		if _, err := fmt.Sscan(strings.Join(args[3:], " "), &l.Seed, &l.Number, &l.Requests); err != nil {
			return err
		}
		l.Dir, l.Journal, l.Before, l.Users, l.Operator = args[0], args[1], args[2], users, true
		return house.Lead(context.Background(), l)
	})
}

// stage is a storage folder on a lossy disk, from which every point of a case begins.
type stage struct {
	c      *scoreboard.Case
	mount  *lossy.Mount
	image  lossy.Image
	before string // the journal of what led to it
	lives  int
}

// newStage mounts, and leads one life without a fault.
func newStage(ctx context.Context, c *scoreboard.Case) (*stage, error) {
	s := &stage{c: c, before: filepath.Join(c.Memory, "before"), image: lossy.Image{Files: map[string]lossy.Content{}}}
	if err := os.WriteFile(s.before, nil, 0o600); err != nil {
		return nil, err
	}
	var err error
	if s.mount, err = lossy.NewMount(filepath.Join(c.Memory, "lossy")); err != nil {
		return nil, err
	}
	p := s.point()
	if err := p.lead(ctx, 10); err != nil {
		return nil, errors.Join(err, s.mount.Close())
	}
	s.image = p.life.Image(nil, lossy.KeepAll, 1)
	p.life.Cut()
	return s, os.WriteFile(s.before, []byte(p.text()), 0o600)
}

// point is what becomes of the stage when something fails.
type point struct {
	s     *stage
	life  *lossy.Life
	mu    sync.Mutex
	lines []string
	// started, if set, is told of each process that begins a life.
	started func(pid int)
}

func (s *stage) point() *point {
	p := &point{s: s}
	p.life = s.mount.Begin(s.image, lossy.LifeOptions{Strict: s.c.Rand.IntN(2) == 0, OnAck: func(line string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lines = append(p.lines, line)
	}})
	return p
}

// text is the lines of all lives at this point.
func (p *point) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return ""
	}
	return strings.Join(p.lines, "\n") + "\n"
}

// errEnded says that a process ended by an error that it named: as it should when its disk fails.
var errEnded = errors.New("ended by an error")

// lead leads a life on the disk, which has so much to send; nil = it has sent it all, and went home.
func (p *point) lead(ctx context.Context, requests int) error {
	s := p.s
	s.lives++
	before, err := os.ReadFile(s.before)
	if err != nil {
		return err
	}
	known := filepath.Join(s.c.Memory, "known")
	if err := os.WriteFile(known, append(before, p.text()...), 0o600); err != nil {
		return err
	}
	cmd := child.Command("disk", filepath.Join(p.life.Path, "storage"), filepath.Join(p.life.Path, lossy.AckFile), known,
		fmt.Sprint(s.c.Seed), fmt.Sprint(s.lives), fmt.Sprint(requests))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	if p.started != nil {
		p.started(cmd.Process.Pid)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-p.life.Dead():
		// The power went: it must not see what comes then.
		err = errors.Join(errEnded, kill(cmd.Process, ended))
		return err
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), kill(cmd.Process, ended))
	case <-time.After(hangs):
		err = cmd.Process.Signal(syscall.SIGQUIT) // it says where it is
		<-ended
		return errors.Join(fmt.Errorf("it hangs since %s:\n%s", hangs, said.Bytes()), err)
	}
	switch code := cmd.ProcessState.ExitCode(); {
	case err == nil:
		return nil
	case code == 1:
		return fmt.Errorf("%w: %s", errEnded, said.Bytes())
	default:
		return fmt.Errorf("%w: %s", err, said.Bytes())
	}
}

func kill(p *os.Process, ended <-chan error) error {
	err := p.Kill()
	<-ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// judge judges what a loss of power would leave now.
func (p *point) judge(ctx context.Context) error {
	s := p.s
	before, err := os.ReadFile(s.before)
	if err != nil {
		return err
	}
	j := house.NewJournal(s.c.Seed)
	for line := range strings.Lines(string(before) + p.text()) {
		j.Add(strings.TrimSuffix(line, "\n"))
	}
	way, survive := lossy.AnyWay(s.c.Rand)
	dir := filepath.Join(s.c.Memory, "left")
	defer os.RemoveAll(dir)
	if err := p.life.Image(s.c.Rand, way, survive).WriteTo(dir); err != nil {
		return err
	}
	p.life.Cut()
	if err := house.Judge(ctx, house.Settings{Dir: filepath.Join(dir, "storage")}, j, users); err != nil {
		return fmt.Errorf("%v, %.2f: %w", way, survive, err)
	}
	return nil
}

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

// ioErrors lets one kind of operation fail at some n, one after the other, until the work ends without having met it.
func ioErrors(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const most = 25 // points of one case: the next case begins elsewhere
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.mount.Close()) }()
	f := lossy.Fault{Sticky: c.Rand.IntN(2) == 0, Errno: syscall.EIO}
	if c.Rand.IntN(2) == 0 {
		f.Errno = syscall.ENOSPC
	}
	all := 0
	for _, k := range kinds {
		all += k.share
	}
	pick := c.Rand.IntN(all)
	for _, k := range kinds {
		if pick -= k.share; pick < 0 {
			f.Kinds = k.kinds
			break
		}
	}
	// How many there are: a life without the fault.
	p := s.point()
	from := p.life.Count(f.Kinds...)
	if err := p.lead(ctx, 6); err != nil {
		return 0, err
	}
	total := p.life.Count(f.Kinds...) - from
	if err := p.judge(ctx); err != nil {
		return 0, fmt.Errorf("without a fault: %w", err)
	}
	f.N = 1
	if total > most {
		f.N += most * c.Rand.IntN((total+most-1)/most)
	}
	for ; n < min(most, c.Left); f.N++ {
		p := s.point()
		p.life.Inject(&f)
		err := p.lead(ctx, 6)
		fired := p.life.Fired()
		p.life.Inject(nil)
		if err != nil && (fired == 0 || !errors.Is(err, errEnded)) {
			return n, fmt.Errorf("operation %d of %v fails with %v (for ever: %t): %w", f.N, f.Kinds, f.Errno, f.Sticky, err)
		}
		if err := p.judge(ctx); err != nil {
			return n, fmt.Errorf("operation %d of %v fails with %v (for ever: %t): %w", f.N, f.Kinds, f.Errno, f.Sticky, err)
		}
		n++
		if fired == 0 {
			break
		}
	}
	return n, nil
}

// forgetful lets an fsync fail that the kernel then believes to be done, starts again on what can be read, and cuts the
// power soon.
func forgetful(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const most = 25
	s, err := newStage(ctx, c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.mount.Close()) }()
	for ; n < min(most, c.Left); n++ {
		p := s.point()
		f := lossy.Fault{Kinds: []lossy.Kind{lossy.Sync}, N: 1 + c.Rand.IntN(60), Errno: syscall.EIO, Forgets: true}
		p.life.Inject(&f)
		err := p.lead(ctx, 6)
		p.life.Inject(nil)
		cut := 1 + c.Rand.IntN(14)
		if err == nil || errors.Is(err, errEnded) {
			p.life.CutAt(cut)
			err = p.lead(ctx, 6)
		}
		if err == nil || errors.Is(err, errEnded) {
			err = p.judge(ctx)
		}
		if err != nil {
			return n, fmt.Errorf("fsync %d forgets, a start, and a cut in operation %d: %w", f.N, cut, err)
		}
	}
	return n, nil
}
