package boot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ampcio-faults/scoreboard"
)

// A fault is something that happens to the machine while senders send.
type fault struct {
	name string
	// What senders may notice of it.
	notice notice
	try    func(ctx context.Context, s *story) error
}

type notice int

const (
	nothing notice = iota // each request is acknowledged at the first try
	cut                   // who is being served is cut off; who connects waits
	away                  // the whole machine is away
)

// deck has every fault as often as a case has it.
var deck = []fault{
	{"installation", nothing, installed},
	{"credential", nothing, credential},
	{"sandbox of the service", nothing, confined},
	{"reload", nothing, reload},
	{"reload", nothing, reload},
	{"reload of a broken configuration", nothing, brokenReload},
	{"restart with a broken configuration", nothing, brokenRestart},
	{"credential lost", nothing, credentialLost},
	{"hang", cut, hang},
	{"stuck disk", cut, stuckDisk},
	{"Customer.io dead", nothing, customerioDead},
	{"kill -9", cut, kill},
	{"kill -9", cut, kill},
	{"kill -9 in a loop", cut, killLoop},
	{"no memory", cut, noMemory},
	{"power off", away, powerOff},
	{"power off", away, powerOff},
	{"reboot", away, reboot},
	{"upgrade", nothing, upgrade},
	{"broken upgrade", nothing, brokenUpgrade},
	{"stop", nothing, stop},
	{"journal killed", nothing, journalKilled},
	{"systemd executed anew", nothing, reexec},
}

// machines is how many share a deck and suffer at the same time: most of what happens to one is waiting, for a watchdog or a
// restart.
const machines = 2

// faults deals what is in the deck, but for the installation in an order that the seed says, to some machines. There it
// happens one after the other, under load.
func faults(ctx context.Context, c *scoreboard.Case) (done int, err error) {
	hands := deal(c.Rand, min(len(deck), c.Left))
	var all sync.WaitGroup
	ns, errs := make([]int, len(hands)), make([]error, len(hands))
	for i, hand := range hands {
		mine := *c
		mine.Seed = c.Rand.Uint64()
		mine.Rand = rand.New(rand.NewPCG(mine.Seed, 0))
		all.Go(func() { ns[i], errs[i] = endure(ctx, &mine, hand) })
	}
	all.Wait()
	for i, n := range ns {
		if done += n; errs[i] != nil {
			errs[i] = fmt.Errorf("machine %d of %d: %w", i+1, len(hands), errs[i])
		}
	}
	return done, errors.Join(errs...)
}

// deal gives n faults of the deck to machines: the installation is the first of the first.
func deal(chance *rand.Rand, n int) (hands [][]fault) {
	order := slices.Concat([]int{-1}, chance.Perm(len(deck)-1))[:n]
	hands = make([][]fault, min(machines, n))
	for i, place := range order {
		hands[i%machines] = append(hands[i%machines], deck[place+1])
	}
	return hands
}

// endure has faults happen to one machine.
func endure(ctx context.Context, c *scoreboard.Case, hand []fault) (done int, err error) {
	flaws := fmt.Sprintf("500=%d%%,429=1%%,cut_after=%d%%,retry_after=1s", c.Rand.IntN(3), c.Rand.IntN(3))
	senders := func(m *machine) *load { return newLoad(m, 6, 4, 4, 80*time.Millisecond, c.Seed) }
	err = tell(ctx, c, senders, flaws, func(ctx context.Context, s *story) error {
		for _, f := range hand {
			if err := s.suffer(ctx, f); err != nil {
				return fmt.Errorf("%s, fault %d of this machine: %w", f.name, done+1, err)
			}
			done++
		}
		return s.end(ctx)
	})
	return done, err
}

// suffer has one fault happen under load, and looks whether everything is as it should be.
func (s *story) suffer(ctx context.Context, f fault) error {
	refused, broken := s.l.refused.Load(), s.l.broken.Load()
	s.l.start(ctx)
	err := s.l.flowing(ctx, 10)
	if err == nil {
		err = f.try(ctx, s)
	}
	if err == nil {
		err = s.l.flowing(ctx, 10)
	}
	if err != nil {
		return err
	}
	if err := s.l.stop(); err != nil {
		return err
	}
	s.l.mu.Lock()
	last := s.l.last
	s.l.mu.Unlock()
	if n := s.l.refused.Load() - refused; n > 0 && f.notice != away {
		return fmt.Errorf("%d connections were refused: %s", n, last)
	}
	if n := s.l.broken.Load() - broken; n > 0 && f.notice == nothing {
		return fmt.Errorf("%d requests were not acknowledged at the first try: %s", n, last)
	}
	return s.l.verify(ctx, f.notice != nothing)
}

// end stops the service for good, and looks at the files that it leaves.
func (s *story) end(ctx context.Context) error {
	if err := s.m.all(ctx, "systemctl stop ampcio.socket ampcio.service"); err != nil {
		return err
	}
	now, err := s.m.state(ctx)
	if err != nil {
		return err
	}
	if now.result != "success" || now.pid != 0 {
		return fmt.Errorf("after a stop the service is %s, %s", now.active, now.result)
	}
	if _, err := s.m.run(ctx, "ampcio", "audit"); err != nil {
		return fmt.Errorf("the books do not balance: %w", err)
	}
	return nil
}
