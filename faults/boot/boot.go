// Package boot runs the units of contrib/systemd under a real systemd, in containers that are booted for it, and breaks what
// surrounds the daemon there: systemd, the journal, the disk, the power, its own program and configuration.
package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"ampcio-faults/scoreboard"
	"ampcio/sandbox"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	needs := []scoreboard.Need{scoreboard.Root, scoreboard.Command("systemd-nspawn", "systemd-container"), scoreboard.Command("nsenter", "util-linux"),
		scoreboard.Command("fsfreeze", "util-linux"), scoreboard.Command("prlimit", "util-linux"), scoreboard.Command("mkfs.ext4", "e2fsprogs")}
	return []scoreboard.Trial{{
		Name: "systemd faults", Unit: "faults", Full: 10 * len(deck), PerCase: len(deck), Case: faults, Needs: needs, Alone: true, Waits: true, Limit: 10 * time.Minute,
		Fault: "a real systemd in a container: stuck disk, hang, kill -9, no memory, power off, broken upgrade, broken configuration, lost credential, " +
			"while events come; the service comes back by itself, nobody is refused, its sandbox holds; every acknowledged event arrives once and in order",
	}, {
		Name: "socket restarts", Unit: "restarts", Full: 100, PerCase: restartsOfStory, Case: restarts, Needs: needs, Alone: true, Waits: true, Limit: 25 * time.Minute, // of fifty restarts
		Fault: "the service is restarted under 1,000 requests a second, with ampcio.socket; no connection is refused, every request is acknowledged at the first try",
	}}
}

const (
	amplitudeKey = "0123456789abcdef"
	trackKey     = "a-secret-track-key"
)

// configuration is what an operator of this machine fills in.
const configuration = `[project.app]
amplitude_api_keys = ["` + amplitudeKey + `"]
relay = "off"

[sync.production]
region       = "us"
site_id      = "site"
api_key_file = "customerio_api_key"
endpoint     = "http://` + customerioAddress + `"

[[sync.production.select]]
event = ["*"]

[sync.production.events]
properties = ["n"]

[sync.production.users]
properties = ["plan"]

[sync.production.delivery]
retry_initial = "50ms"
retry_max = "1s"
requests_per_second = 1000

[storage]
min_free = "1MiB"
`

// A story is one machine, and what happens to it.
type story struct {
	c     *scoreboard.Case
	m     *machine
	l     *load
	usual sandbox.Faults // of Customer.io
}

// weather changes the faults of Customer.io; calm makes them the usual ones again, and lets go who hangs there.
func (s *story) weather(spec string) error {
	f, err := sandbox.ParseFaults(spec)
	if err == nil {
		s.m.customerio.SetFaults(f)
	}
	return err
}

func (s *story) calm() {
	s.m.customerio.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, "/_sandbox/faults", nil))
	s.m.customerio.SetFaults(s.usual)
}

// tell sets a machine up, installs ampcio in it as the README says, and tells a story there; the senders stand still when it
// begins and when it ends.
func tell(ctx context.Context, c *scoreboard.Case, l func(m *machine) *load, flaws string, what func(ctx context.Context, s *story) error) (err error) {
	usual, err := sandbox.ParseFaults(flaws)
	if err != nil {
		return err
	}
	m, err := newMachine(ctx, sandbox.New(sandbox.Options{SiteID: "site", APIKey: trackKey, Seed: c.Seed, Faults: usual,
		OrderAttribute: "n", OrderFirst: 1, CheckOverlap: true, MaxKeptEvents: -1}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	// Senders wait for ever for a service that does not come back: what ends badly ends them.
	telling, end := context.WithCancel(ctx)
	s := &story{c, m, l(m), usual}
	defer func() {
		if err != nil && ctx.Err() == nil && m.leader != 0 {
			said, _ := m.run(ctx, "journalctl", "--no-pager", "--lines=40", "--unit=ampcio.service", "--unit=ampcio.socket")
			err = fmt.Errorf("%w\n%s", err, said)
		}
		end()
		_ = s.l.stop() // what it says of a machine that goes is nothing new
	}()
	if err := m.boot(ctx); err != nil {
		return err
	}
	if err := s.install(telling); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return what(telling, s)
}

// install does what the README says, and looks at what has become of it.
func (s *story) install(ctx context.Context) error {
	m := s.m
	for _, f := range []struct{ from, to, mode string }{
		{s.c.Binary, "/usr/bin/ampcio", "0755"},
		{"../contrib/systemd/ampcio.service", "/etc/systemd/system/ampcio.service", "0644"},
		{"../contrib/systemd/ampcio.socket", "/etc/systemd/system/ampcio.socket", "0644"},
		{"../contrib/systemd/ampcio.sysusers", "/etc/sysusers.d/ampcio.conf", "0644"},
	} {
		b, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		if err := m.write(ctx, f.to, f.mode, "root", string(b)); err != nil {
			return err
		}
	}
	if err := m.all(ctx, "systemd-sysusers", "systemctl daemon-reload"); err != nil {
		return err
	}
	if err := m.write(ctx, "/etc/ampcio/config.toml", "0640", "ampcio", configuration); err != nil {
		return err
	}
	if err := m.write(ctx, "/etc/ampcio/customerio_api_key", "0600", "root", trackKey); err != nil {
		return err
	}
	if err := s.hurry(ctx); err != nil {
		return err
	}
	// It returns when the daemon has said that it is ready.
	if err := m.all(ctx, "systemctl enable --quiet --now ampcio.socket ampcio.service"); err != nil {
		return err
	}
	if _, err := m.running(ctx); err != nil {
		return err
	}
	for _, look := range []struct{ want, format, file string }{
		{"ampcio:ampcio 700", "%U:%G %a", "/var/lib/ampcio"},
		{"ampcio:ampcio 750", "%U:%G %a", "/run/ampcio"},
		{"ampcio:ampcio 660", "%U:%G %a", "/run/ampcio/admin.sock"},
		{"root:ampcio 640", "%U:%G %a", "/etc/ampcio/config.toml"},
	} {
		got, err := m.run(ctx, "stat", "-c", look.format, look.file)
		if err != nil {
			return err
		}
		if got != look.want {
			return fmt.Errorf("%s is %s, not %s", look.file, got, look.want)
		}
	}
	foreign, err := m.run(ctx, "find", "/var/lib/ampcio", "!", "-user", "ampcio", "!", "-name", "lost+found")
	if err != nil || foreign != "" {
		return errors.Join(fmt.Errorf("files that are not the service's: %s", foreign), err)
	}
	return nil
}

// watchdog is what hurry makes of the unit's WatchdogSec. Loops beat every two seconds, and half of it is silence.
const watchdog = 6 * time.Second

// hurry shortens the unit's waits, so that a trial need not wait for them; a wait that the unit does not have stays away.
func (s *story) hurry(ctx context.Context) error {
	unit, err := os.ReadFile(s.m.path("/etc/systemd/system/ampcio.service"))
	if err != nil {
		return err
	}
	text := "[Service]\nTimeoutAbortSec=1\n"
	if bytes.Contains(unit, []byte("\nWatchdogSec=")) {
		text += fmt.Sprintf("WatchdogSec=%d\n", int(watchdog.Seconds()))
	}
	if bytes.Contains(unit, []byte("\nRestartSec=")) {
		text += "RestartSec=100ms\n"
		// A twentieth, and so is the time in which systemd counts how often connections start the service.
		socket := "[Socket]\nTriggerLimitIntervalSec=1s\n"
		if err := s.m.write(ctx, "/etc/systemd/system/ampcio.socket.d/hurry.conf", "0644", "root", socket); err != nil {
			return err
		}
	}
	if !bytes.Contains(unit, []byte("\nStartLimitIntervalSec=")) {
		// systemd counts the starts of ten seconds by itself; a machine that is busy has fewer in these.
		text = "[Unit]\nStartLimitIntervalSec=1h\n" + text
	}
	if bug, awake := os.LookupEnv(scoreboard.PlantedBug); awake {
		text += fmt.Sprintf("Environment=%s=%s\n", scoreboard.PlantedBug, bug)
	}
	if err := s.m.write(ctx, "/etc/systemd/system/ampcio.service.d/hurry.conf", "0644", "root", text); err != nil {
		return err
	}
	return s.m.all(ctx, "systemctl daemon-reload")
}
