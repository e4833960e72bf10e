package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
)

// users is how many users there are events of.
const users = 6

// requests of each of two senders are what a life has time for. It has an operator too, and starts and stops, which is most of
// what its disk sees: with more requests there would be more of the same places for a fault, and not more kinds of them.
const requests = 3

// hangs is how long one life may take.
const hangs = 60 * time.Second

// storage is the folder of a life that ampcio works in.
const storage = "storage"

func init() {
	child.Register("disk", func(args []string) error {
		var l house.Life
		if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
			return err
		}
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
	// hands lead the first life of each point, and the later ones: two lives on one folder are those of two processes.
	hands [2]child.Hands
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
	if err := p.lead(ctx, house.Life{Requests: 8, Operator: true}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.image = p.life.Image(nil, lossy.KeepAll, 1)
	p.life.Cut()
	if err := os.WriteFile(s.before, []byte(p.text()), 0o600); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) close() error {
	for i := range s.hands {
		s.hands[i].Retire()
	}
	return s.mount.Close()
}

// point is what becomes of the stage when something fails.
type point struct {
	s      *stage
	life   *lossy.Life
	works  int
	mu     sync.Mutex
	lines  []string
	taking chan struct{} // closed when the first event was acknowledged
	takes  bool
	// began, if set, is told of each process that is about to work.
	began func(pid int)
}

func (s *stage) point() *point {
	p := &point{s: s, taking: make(chan struct{})}
	p.life = s.mount.Begin(s.image, lossy.LifeOptions{Strict: s.c.Rand.IntN(2) == 0, OnAck: p.note})
	return p
}

// note takes a line of the journal.
func (p *point) note(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	if strings.HasPrefix(line, "acked ") && !p.takes {
		p.takes = true
		close(p.taking)
	}
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

// mayEnd lets pass the errors by which a process ends as it should.
func mayEnd(err error) error {
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// work does a work on the disk, in another process; nil = it has come to its end.
func (p *point) work(ctx context.Context, name string, args ...string) error {
	over, stop := make(chan struct{}), make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-p.life.Dead(): // the power went: the process must not see what comes then
		case <-ctx.Done():
		case <-over:
			return
		}
		close(stop)
	}()
	hands := &p.s.hands[min(p.works, 1)]
	p.works++
	err := hands.Do(stop, hangs, p.began, name, args...)
	select {
	case <-p.life.Dead(): // whatever it has said of it
		hands.Retire()
		return fmt.Errorf("%w: the power went", errEnded)
	default:
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, child.ErrWork):
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}

// lead leads a life on the disk; nil = it has sent all that it should, and went home.
func (p *point) lead(ctx context.Context, l house.Life) error {
	s := p.s
	s.lives++
	before, err := os.ReadFile(s.before)
	if err != nil {
		return err
	}
	l.Before = filepath.Join(s.c.Memory, "known")
	if err := os.WriteFile(l.Before, append(before, p.text()...), 0o600); err != nil {
		return err
	}
	l.Dir, l.Journal = filepath.Join(p.life.Path, storage), filepath.Join(p.life.Path, lossy.AckFile)
	l.Seed, l.Number, l.Users = s.c.Seed, uint64(s.lives), users
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return p.work(ctx, "disk", string(text))
}

// judge judges what a loss of power would leave now: a storage folder at name, that mend, unless it is nil, has seen before
// it is started.
func (p *point) judge(ctx context.Context, name string, mend func(dir string) error) error {
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
	err = p.life.Image(s.c.Rand, way, survive).WriteTo(dir)
	if err != nil {
		return err
	}
	p.life.Cut()
	dir = filepath.Join(dir, name)
	if mend != nil {
		err = mend(dir)
	}
	if err == nil {
		err = house.Judge(ctx, house.Settings{Dir: dir}, j, users)
	}
	if err != nil {
		return fmt.Errorf("%v, %.2f: %w", way, survive, err)
	}
	return nil
}
