package boot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// installed: what install has looked at; the senders' first events show that it takes and delivers them.
func installed(ctx context.Context, s *story) error {
	for _, unit := range []string{"ampcio.socket", "ampcio.service"} {
		if said, err := s.m.run(ctx, "systemctl", "is-enabled", unit); err != nil || said != "enabled" {
			return errors.Join(fmt.Errorf("%s is %s", unit, said), err)
		}
	}
	return soon(ctx, "a status line in systemctl status", func() (bool, error) {
		said, err := s.m.run(ctx, "systemctl", "show", "--value", "--property=StatusText", "ampcio.service")
		return strings.Contains(said, "production: "), errors.Join(err, fmt.Errorf("it is %q", said))
	})
}

// edit changes the configuration, and gives what undoes it.
func (s *story) edit(ctx context.Context, change func(string) string) (undo func() error, err error) {
	const name = "/etc/ampcio/config.toml"
	before, err := os.ReadFile(s.m.path(name))
	if err != nil {
		return nil, err
	}
	after := change(string(before))
	if after == string(before) {
		return nil, errors.New("the configuration stays as it is")
	}
	return func() error { return s.m.write(ctx, name, "0640", "ampcio", string(before)) }, s.m.write(ctx, name, "0640", "ampcio", after)
}

func broken(text string) string { return text + "bogus = 1\n" }

// reload: another configuration is in force, in the same process; by systemctl or by a signal.
func reload(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	_, err = s.edit(ctx, func(text string) string {
		if strings.Contains(text, `retry_max = "1s"`) {
			return strings.Replace(text, `retry_max = "1s"`, `retry_max = "2s"`, 1)
		}
		return strings.Replace(text, `retry_max = "2s"`, `retry_max = "1s"`, 1)
	})
	if err != nil {
		return err
	}
	j := s.m.journal()
	how := []string{"systemctl reload ampcio.service", "systemctl kill --kill-who=main --signal=HUP ampcio.service"}[s.c.Rand.IntN(2)]
	if err := s.m.all(ctx, how); err != nil {
		return err
	}
	if err := j.says(ctx, "the configuration is reloaded"); err != nil {
		return err
	}
	return s.m.same(before)
}

// brokenReload: the daemon keeps the configuration that it has, and says what is wrong with the other one.
func brokenReload(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	undo, err := s.edit(ctx, broken)
	if err != nil {
		return err
	}
	j := s.m.journal()
	if s.c.Rand.IntN(2) == 0 {
		if _, err := s.m.run(ctx, "systemctl", "reload", "ampcio.service"); err == nil {
			return errors.New("systemctl has reloaded a broken configuration")
		}
	} else if err := s.m.all(ctx, "systemctl kill --kill-who=main --signal=HUP ampcio.service"); err != nil {
		return err
	}
	if err := j.says(ctx, "bogus"); err != nil {
		return err
	}
	if err := s.l.flowing(ctx, 10); err != nil {
		return err
	}
	return errors.Join(s.m.same(before), undo())
}

// brokenRestart: it does not start, says why, connections wait, and it goes on by itself when that is mended.
func brokenRestart(ctx context.Context, s *story) error {
	undo, err := s.edit(ctx, broken)
	if err != nil {
		return err
	}
	// Beyond any start limit that systemd has by itself.
	return s.failing(ctx, "bogus", 8, undo)
}

// credentialLost: the same without the file of the key.
func credentialLost(ctx context.Context, s *story) error {
	const file = "/etc/ampcio/customerio_api_key"
	if err := s.m.all(ctx, "mv "+file+" /root/key"); err != nil {
		return err
	}
	return s.failing(ctx, "api_key", 1, func() error { return s.m.all(ctx, "mv /root/key "+file) })
}

// failing restarts a service that cannot start now, and mends it.
func (s *story) failing(ctx context.Context, says string, starts int, mend func() error) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	j := s.m.journal()
	if _, err := s.m.run(ctx, "systemctl", "restart", "ampcio.service"); err == nil {
		return errors.New("it has started")
	}
	if err := j.says(ctx, says); err != nil {
		return err
	}
	// It is tried again, however often.
	err = soon(ctx, fmt.Sprintf("%d starts", starts), func() (bool, error) {
		now, err := s.m.state(ctx)
		return now.starts >= starts, errors.Join(err, fmt.Errorf("it was started %d times, and is %s (%s)", now.starts, now.active, now.result))
	})
	if err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl is-active --quiet ampcio.socket"); err != nil {
		return fmt.Errorf("the socket is closed: %w", err)
	}
	if err := mend(); err != nil {
		return err
	}
	return s.m.back(ctx, before)
}

// hang: a process that does nothing any more is ended by the watchdog, and another one begins.
func hang(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	j := s.m.journal()
	if err := s.m.all(ctx, "systemctl kill --kill-who=main --signal=STOP ampcio.service"); err != nil {
		return err
	}
	if err := j.says(ctx, "Watchdog timeout"); err != nil {
		return err
	}
	return s.m.back(ctx, before)
}

// stuckDisk: the disk takes no write. Nothing is acknowledged that it has not taken, the watchdog ends the process, and when
// the disk goes on, so does the service.
func stuckDisk(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	j := s.m.journal()
	if _, err := s.m.order(ctx, "freeze", "frozen"); err != nil {
		return err
	}
	// Seconds after the freeze everything has been answered that was on the disk before it.
	if err := j.says(ctx, "Watchdog timeout"); err != nil {
		return err
	}
	acknowledged := s.l.acknowledged()
	// The process cannot die while the kernel holds it in a write; systemd does not wait for that for ever.
	if err := j.says(ctx, "SIGKILL"); err != nil {
		return err
	}
	if n := s.l.acknowledged() - acknowledged; n > 0 {
		return fmt.Errorf("%d events were acknowledged while the disk took no write", n)
	}
	if _, err := s.m.order(ctx, "thaw", "thawed"); err != nil {
		return err
	}
	return s.m.back(ctx, before)
}

// customerioDead: what is outside is no reason to end the process, however long it takes.
func customerioDead(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	how := []string{"503", "cut", "hang"}[s.c.Rand.IntN(3)]
	if err := s.weather("outage=1h:" + how); err != nil {
		return err
	}
	defer s.calm()
	select {
	case <-time.After(watchdog * 5 / 4):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.m.same(before); err != nil {
		return fmt.Errorf("without Customer.io (%s) for more than the watchdog's time: %w", how, err)
	}
	return s.l.flowing(ctx, 10)
}

// kill: the process is gone at once, in the middle of everything.
func kill(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl kill --kill-who=main --signal=KILL ampcio.service"); err != nil {
		return err
	}
	if err := s.m.back(ctx, before); err != nil {
		return err
	}
	// Not only since somebody connects.
	now, err := s.m.running(ctx)
	if err == nil && now.starts <= before.starts {
		err = fmt.Errorf("systemd has not started it again by itself: %d times before, %d now", before.starts, now.starts)
	}
	return err
}

// killLoop: so often, that systemd by itself would give up.
func killLoop(ctx context.Context, s *story) error {
	for range 8 {
		if err := kill(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// noMemory: the process gets no more memory, and dies of it where it happens to want some.
func noMemory(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	if err := s.m.all(ctx, "prlimit --as=1000000 --pid "+strconv.Itoa(before.pid)); err != nil {
		return err
	}
	large := `{"api_key":"` + amplitudeKey + `","events":[` + strings.Repeat(" ", 900_000)
	err = soon(ctx, "the process to want memory", func() (bool, error) {
		// What is no JSON to its end leaves no event.
		client := *s.l.clients[0]
		client.Timeout = 5 * time.Second
		resp, err := client.Post("http://"+publicAddress+"/2/httpapi", "application/json", strings.NewReader(large))
		if err == nil {
			_ = resp.Body.Close()
		}
		return s.m.serving() != before.serving, err
	})
	if err != nil {
		return err
	}
	return s.m.back(ctx, before)
}

// powerOff: everything stops at once, also systemd; after the next boot the service is there by itself.
func powerOff(ctx context.Context, s *story) error {
	if err := s.m.cut(ctx); err != nil {
		return err
	}
	return s.again(ctx)
}

// reboot: the machine is shut down as it should be, under load.
func reboot(ctx context.Context, s *story) error {
	if err := s.m.halt(ctx); err != nil {
		return err
	}
	return s.again(ctx)
}

func (s *story) again(ctx context.Context) error {
	if err := s.m.boot(ctx); err != nil {
		return err
	}
	return s.m.back(ctx, state{})
}

// replace puts another program in the place of ampcio, as packages do.
func (s *story) replace(ctx context.Context, program []byte) error {
	const name = "/usr/bin/ampcio"
	if err := os.WriteFile(s.m.path(name+".new"), program, 0o755); err != nil {
		return err
	}
	return os.Rename(s.m.path(name+".new"), s.m.path(name))
}

// upgrade: the program is replaced under load; the new one runs afterwards.
func upgrade(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(s.c.Binary)
	if err != nil {
		return err
	}
	program = fmt.Appendf(program, "another version, of seed %d\n", s.c.Seed)
	if err := s.replace(ctx, program); err != nil {
		return err
	}
	if err := s.l.flowing(ctx, 10); err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl "+[]string{"restart", "try-restart"}[s.c.Rand.IntN(2)]+" ampcio.service"); err != nil {
		return err
	}
	now, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	if now.pid == before.pid {
		return errors.New("the old process still runs")
	}
	runs, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", now.serving))
	if err != nil {
		return err
	}
	if sha256.Sum256(runs) != sha256.Sum256(program) {
		return errors.New("what runs is not the new program")
	}
	return nil
}

// brokenUpgrade: the new program does not even start; connections wait for one that does.
func brokenUpgrade(ctx context.Context, s *story) error {
	program, err := os.ReadFile(s.c.Binary)
	if err != nil {
		return err
	}
	if err := s.replace(ctx, program[:1+s.c.Rand.IntN(len(program)/2)]); err != nil {
		return err
	}
	return s.failing(ctx, "Failed with result", 2, func() error { return s.replace(ctx, program) })
}

// stop: it goes home in order, within the unit's time; the next connection has it started again.
func stop(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	j := s.m.journal()
	if s.c.Rand.IntN(10) == 0 {
		// With a Customer.io that does not answer it takes as long as it ever does.
		if err := s.weather("hang=1,hang_for=10m"); err != nil {
			return err
		}
		defer s.calm()
		if err := s.l.flowing(ctx, 10); err != nil {
			return err
		}
	}
	if err := s.m.all(ctx, "systemctl stop ampcio.service"); err != nil {
		return err
	}
	if err := j.says(ctx, "what is pending stays in the queue"); err != nil {
		return err
	}
	if err := j.says(ctx, "ampcio.service: Deactivated successfully"); err != nil {
		return err
	}
	return s.m.back(ctx, before)
}

// journalKilled: who writes the log away is killed. The service notices nothing, and is heard again.
func journalKilled(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl kill --kill-who=main --signal=KILL systemd-journald.service"); err != nil {
		return err
	}
	if err := s.l.flowing(ctx, 10); err != nil {
		return err
	}
	if err := reload(ctx, s); err != nil {
		return err
	}
	return s.m.same(before)
}

// reexec: systemd itself is replaced, as its own upgrade does; it still has the service, its socket and its watchdog.
func reexec(ctx context.Context, s *story) error {
	before, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl daemon-reexec"); err != nil {
		return err
	}
	if err := s.l.flowing(ctx, 10); err != nil {
		return err
	}
	return s.m.same(before)
}
