package boot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ampcio-faults/scoreboard"
)

const (
	restartsOfStory = 50   // of one machine: its boot and installation cost more than ten of them
	rate            = 1000 // requests a second that are to be acknowledged
	begun           = 1100 // and that begin, as long as there is a sender left: while it restarts they wait
	between         = 300  // requests that are acknowledged from one restart to the next
)

// restarts restarts the service again and again while the requests of two thousand users come at a steady rate, most of them
// with a connection of their own.
func restarts(ctx context.Context, c *scoreboard.Case) (done int, err error) {
	senders := func(m *machine) *load { return newLoad(m, 2000, 1, 1, 0, c.Seed) }
	err = tell(ctx, c, senders, "", func(ctx context.Context, s *story) error {
		s.l.pace = newPace(begun)
		began := time.Now()
		s.l.start(ctx)
		for done < min(restartsOfStory, c.Left) {
			if err := s.l.flowing(ctx, between); err != nil {
				return err
			}
			before, err := s.m.running(ctx)
			if err != nil {
				return err
			}
			if err := s.m.restart(ctx); err != nil {
				return err
			}
			if now, err := s.m.running(ctx); err != nil || now.pid == before.pid {
				return errors.Join(fmt.Errorf("process %d runs after a restart of %d", now.pid, before.pid), err)
			}
			done++
		}
		if err := s.l.flowing(ctx, between); err != nil {
			return err
		}
		reached := float64(s.l.good.Load()) / time.Since(began).Seconds()
		if err := s.l.stop(); err != nil {
			return err
		}
		// How fast a machine is says nothing of ampcio, so it is no violation; but nobody shall take it for more than it was.
		if reached < rate*9/10 {
			s.c.Note("LESS LOAD THAN WANTED: this machine made only %.0f requests a second, not %d: what is shown of restarts is shown for that", reached, rate)
		} else {
			s.c.Note("%.0f requests a second", reached)
		}
		s.l.mu.Lock()
		last := s.l.last
		s.l.mu.Unlock()
		if n := s.l.refused.Load(); n > 0 {
			return fmt.Errorf("%d connections were refused in %d restarts: %s", n, done, last)
		}
		if n := s.l.broken.Load(); n > 0 {
			return fmt.Errorf("%d of %d requests were not acknowledged at the first try: %s", n, s.l.good.Load(), last)
		}
		if err := s.l.verify(ctx, true); err != nil {
			return err
		}
		return s.end(ctx)
	})
	return done, err
}

// restart restarts the service. Now and then the systemd of a container cannot make the service's control group, and ends it
// before there is an ampcio (status 219): then it is started once more, and the socket has stayed open.
func (m *machine) restart(ctx context.Context) error {
	err := m.all(ctx, "systemctl restart ampcio.service")
	if err == nil {
		return nil
	}
	const noControlGroup = "219"
	if out, shown := m.run(ctx, strings.Fields("systemctl show -P ExecMainStatus ampcio.service")...); shown != nil || out != noControlGroup {
		return err
	}
	return m.all(ctx, "systemctl start ampcio.service")
}
