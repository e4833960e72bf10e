package clocks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ampcio-faults/clocks/jumping"
	"ampcio-faults/scoreboard"
	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

const day = 24 * time.Hour

// A story is one installation whose clock is set again and again.
type story struct {
	c       *scoreboard.Case
	r       *rehearsal.Rehearsal
	clock   *clock
	alerts  *alertBox
	dated   *dated
	traffic *rehearsal.Traffic
	// near: the clock is never further than three days from the right time, so that nothing at all may be forgotten:
	// neither an insert_id (7 days), nor a file of the log (here 10 days), nor a dead letter (90 days).
	near bool
}

// jumpsOfStory is up to how many times the clock of one installation is set.
const jumpsOfStory = 50

// jumps is one installation and up to so many jumps under traffic, one of them while an alert is due.
func jumps(ctx context.Context, c *scoreboard.Case) (done int, err error) {
	want := min(jumpsOfStory, c.Left)
	s, err := newStory(c, want)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.r.Kill(), s.r.Close(), s.alerts.close(), s.clock.file.Close()) }()
	if err := s.r.Start(ctx); err != nil {
		return 0, err
	}
	const each = 150 * time.Millisecond
	sending, stop := context.WithCancel(ctx)
	var senders sync.WaitGroup
	defer senders.Wait()
	defer stop()
	var sent, datedSent error
	senders.Go(func() { sent = s.traffic.Run(sending, time.Duration(want)*each) })
	senders.Go(func() { datedSent = s.dated.run(sending, want*6, time.Duration(want)*each) })

	alertAt := c.Rand.IntN(want)
	for ; done < want; done++ {
		if done == alertAt {
			if err := s.alert(ctx); err != nil {
				return done, err
			}
		}
		if err := s.jump(ctx, s.next()); err != nil {
			return done, err
		}
		if err := pause(ctx, 20*time.Millisecond, 200*time.Millisecond, c.Rand); err != nil {
			return done, err
		}
	}
	senders.Wait()
	if err := errors.Join(sent, datedSent); err != nil {
		return done, fmt.Errorf("the senders ended with %w", err)
	}
	if err := s.back(ctx); err != nil {
		return done, err
	}
	if err := s.verdict(ctx); err != nil {
		return done, fmt.Errorf("%w\n\tthe clock stayed near: %t", err, s.near)
	}
	return done, nil
}

func newStory(c *scoreboard.Case, want int) (s *story, err error) {
	s = &story{c: c, near: c.Rand.IntN(2) == 0}
	clockFile := filepath.Join(c.Dir, "clock")
	if s.clock, err = newClock(clockFile); err != nil {
		return nil, err
	}
	if s.alerts, err = newAlertBox(); err != nil {
		return nil, err
	}
	command := func(args ...string) *exec.Cmd {
		cmd := c.Ampcio(args...)
		cmd.Path = filepath.Join(c.Built, program)
		cmd.Env = append(cmd.Env, jumping.Env+"="+clockFile)
		return cmd
	}
	keep := "72h"
	if s.near {
		keep = "240h"
	}
	s.r, err = rehearsal.New(c.Dir, command, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed, Faults: usual()},
		Storage: fmt.Sprintf("min_free = \"16MiB\"\nkeep = %q\nrotate_bytes = \"1MiB\"\n", keep),
		Sync: fmt.Sprintf("retry_initial = \"20ms\"\nrequests_per_second = 1000\nbatch_operations = 25\n\n"+
			"[alerts]\nurl = %q\nformat = \"json\"\nafter = \"1s\"\nover_after = \"1s\"\n", s.alerts.url),
	})
	if err != nil {
		return nil, errors.Join(err, s.alerts.close())
	}
	s.traffic = rehearsal.NewTraffic(s.r, 40, want*60, c.Seed)
	s.dated = newDated(s.r, c.Seed)
	return s, nil
}

// usual faults make some wait for retries now and then, one user all the time, and refuse some events for good.
func usual() sandbox.Faults {
	return sandbox.Faults{Status: map[int]float64{500: 0.05, 429: 0.01}, RetryAfter: time.Second, CutAfter: 0.03, RefuseEvent: []string{poisoned},
		Poison: []string{rehearsal.UserName(3)}}
}

// next is by how much the clock is set now.
func (s *story) next() time.Duration {
	within := 3 * day
	if !s.near {
		within = []time.Duration{time.Second, time.Hour, day, 30 * day, 400 * day, 3000 * day}[s.c.Rand.IntN(6)]
	}
	to := time.Duration(s.c.Rand.Int64N(int64(2*within))) - within
	return (to - s.clock.ahead).Truncate(time.Second)
}

// jump sets the clock, in the middle of everything or between two lives.
func (s *story) jump(ctx context.Context, by time.Duration) error {
	var end, start error
	how := s.c.Rand.IntN(6)
	switch how {
	case 0:
		end = s.r.Kill()
	case 1:
		end = s.r.Stop()
	}
	set := s.clock.set(by)
	if how <= 1 {
		start = s.r.Start(ctx)
	}
	return errors.Join(end, set, start)
}

// alert blocks the sync, and looks whether that is told although the clock is set back meanwhile, and then that it is over.
func (s *story) alert(ctx context.Context) error {
	back := func() error {
		if err := pause(ctx, 0, 1200*time.Millisecond, s.c.Rand); err != nil {
			return err
		}
		if s.near {
			return s.jump(ctx, -s.clock.ahead-3*day+time.Duration(s.c.Rand.IntN(10))*time.Second)
		}
		return s.jump(ctx, -time.Duration(1+s.c.Rand.Int64N(int64(30*day))).Truncate(time.Second)-time.Second)
	}
	s.r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{http.StatusUnauthorized: 1}})
	if err := s.status(ctx, admin.StatusBlocked); err != nil {
		return err
	}
	if s.near {
		if err := s.clock.set(2*day - s.clock.ahead); err != nil {
			return err
		}
	}
	if err := errors.Join(back(), s.alerts.wait(ctx, "firing")); err != nil {
		return err
	}
	s.r.Sandbox.SetFaults(usual())
	if s.near {
		if err := s.clock.set(2*day - s.clock.ahead); err != nil {
			return err
		}
	}
	_ = s.r.Command("sync", "retry", rehearsal.Sync, "--config", s.r.ConfigPath).Run() // else it asks again within a minute
	if err := s.status(ctx, "delivering"); err != nil {
		return err
	}
	return errors.Join(back(), s.alerts.wait(ctx, "over"))
}

// back sets the clock back for the last time, while somebody waits for his next try: who waited by the wall clock would wait for hours
// now. Of a jump in the middle of everything little can be said: the next one may be forward, and a start, or the end of an outage,
// lets all try at once who wait.
func (s *story) back(ctx context.Context) error {
	s.r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{poisoned}, Poison: usual().Poison})
	if s.near {
		if err := s.clock.set(2*day - s.clock.ahead); err != nil {
			return err
		}
	}
	if err := s.dated.run(ctx, 5, 0); err != nil { // what Customer.io answers of these ends the outage, if there is one
		return err
	}
	for range 3 { // he may be tried while the clock is set: one of them he meets waiting
		if err := s.until(ctx, "all is delivered but what is poisoned, which waits", func(y *admin.Sync) bool {
			waits := uint64(0)
			for _, w := range y.Waiting {
				if w.Records != nil {
					waits += *w.Records
				}
			}
			return y.Gate != "" && y.Gate != "closed" && y.Books.Pending == waits
		}); err != nil {
			return err
		}
		if err := s.clock.set(-time.Hour - time.Duration(s.c.Rand.Int64N(int64(day))).Truncate(time.Second)); err != nil {
			return err
		}
	}
	return nil
}

// status waits until the sync is in a state.
func (s *story) status(ctx context.Context, want string) error {
	return s.until(ctx, "the sync is "+want, func(y *admin.Sync) bool { return y.Status == want })
}

func (s *story) until(ctx context.Context, what string, holds func(*admin.Sync) bool) error {
	for {
		snap, err := s.r.Stats(ctx)
		if err == nil && holds(&snap.Syncs[0]) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("never: %s: %w; %+v\n%s", what, errors.Join(context.Cause(ctx), err), snap.Syncs, s.r.LogTail())
		}
	}
}

func (s *story) verdict(ctx context.Context) error {
	s.r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{poisoned}})
	soon, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("all is well for a minute, and nothing waits longer than 2 s"))
	defer cancel()
	books, err := s.r.Drained(soon)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.r.LogTail())
	}
	if err := s.audit(); err != nil {
		return err
	}
	y := &books.Syncs[0]
	gone := uint64(0)
	for _, d := range y.Discarded {
		if d.Reason != "dead_letter_expired" {
			return fmt.Errorf("%d records were discarded: %s", d.Count, d.Reason)
		}
		gone += d.Count
	}
	poison, t := uint64(s.dated.poison.Load()), s.traffic
	first := filepath.Join(s.r.Dir, "storage", "log", fmt.Sprintf("%020d.db", 1))
	_, kept := os.Stat(first)
	switch {
	case s.near && (y.Totals.Dead != poison || gone != 0):
		return fmt.Errorf("%d poisoned events were acknowledged: %d are dead, %d expired within six days", poison, y.Totals.Dead, gone)
	case y.Totals.Dead+gone < poison:
		return fmt.Errorf("%d poisoned events were acknowledged: %d are dead, %d expired", poison, y.Totals.Dead, gone)
	case s.near && kept != nil:
		return fmt.Errorf("the log is kept for ten days, and within six: %w", kept)
	}
	t.Sent.Add(s.dated.sent.Load())
	if !s.near {
		// What is repeated more than a week later, by this clock, is taken once more; Customer.io knows its id.
		again := int64(y.Books.Taken) - (t.Sent.Load() - t.Repeats.Load())
		if again < 0 || again > t.Sent.Load()/2 {
			return fmt.Errorf("%d records were taken, %d events were acknowledged", y.Books.Taken, t.Sent.Load())
		}
		t.Repeats.Add(-again)
		for _, r := range y.Filtered {
			if extra := int64(r.Count) - t.Dropped.Load(); r.Reason == "dropped_by_rule" && extra > 0 && extra <= again {
				t.Dropped.Add(extra)
			}
		}
	}
	dead := y.Totals.Dead
	y.Totals.Dead = 0 // they have been looked at; the verdict on the others knows nothing of them
	problems := append(t.Verdict(nil, books).Problems, s.dated.verdict(s.r.Sandbox)...)
	for _, problem := range problems {
		if !s.near && strings.HasPrefix(problem, "two events share the id") {
			continue // what was taken once more has the time of then, if its own could not be
		}
		err = errors.Join(err, errors.New(problem))
	}
	if err != nil {
		return err
	}

	// A hundred days later all that was kept for a time has gone, and is counted.
	if err := s.clock.set(100*day + 3000*day - s.clock.ahead); err != nil {
		return err
	}
	if err := s.until(ctx, "dead letters are older than 90 days and go", func(y *admin.Sync) bool {
		now := uint64(0)
		for _, d := range y.Discarded {
			now += d.Count
		}
		return y.Totals.Dead == 0 && now == gone+dead && y.Books.Balanced
	}); err != nil {
		return err
	}
	for {
		files, err := filepath.Glob(filepath.Join(s.r.Dir, "storage", "log", "*.db"))
		if err != nil {
			return err
		}
		if len(files) <= 2 {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d files of the log are older than they are kept: %w", len(files), context.Cause(ctx))
		}
	}
	return s.audit()
}

// audit proves the books from the files.
func (s *story) audit() error {
	if out, err := s.r.Command("audit", "--config", s.r.ConfigPath).CombinedOutput(); err != nil {
		return fmt.Errorf("ampcio audit: %v\n%s", err, out)
	}
	return nil
}

// pause lets a random time pass.
func pause(ctx context.Context, from, to time.Duration, rng *rand.Rand) error {
	select {
	case <-time.After(from + time.Duration(rng.Int64N(int64(to-from)))):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
