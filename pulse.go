package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/dustin/go-humanize"

	"ampcio/admin"
)

// pulse knows when each loop that commits or delivers last showed that it is alive.
// A stuck disk stops some of them; a dead Customer.io stops none.
type pulse struct {
	mu    sync.Mutex
	beats map[string]*time.Time
}

func newPulse() *pulse { return &pulse{beats: map[string]*time.Time{}} }

// part registers a loop and gives what it calls.
func (p *pulse) part(name string) func() {
	at := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats[name] = &at
	return func() {
		p.mu.Lock()
		at = time.Now()
		p.mu.Unlock()
	}
}

// over takes a loop off the list that has ended and was meant to: nobody waits for it.
func (p *pulse) over(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.beats, name)
}

// silent lists the loops that have not shown themselves for d.
func (p *pulse) silent(d time.Duration) (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, at := range p.beats {
		if time.Since(*at) > d {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// stuckAfter is how long a loop may be silent before /readyz says no. It is far
// above a slow disk's commit.
const stuckAfter = 15 * time.Second

// ready tells systemd that the daemon takes events.
func (d *daemon) ready(ctx context.Context) {
	notifySystemd(sd.SdNotifyReady + "\nSTATUS=" + d.statusLine(ctx))
}

// reloading tells systemd that the configuration is read again; ready ends it.
func (d *daemon) reloading() {
	notifySystemd(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

// stopping tells systemd to wait for the way home.
func (d *daemon) stopping() {
	notifySystemd(sd.SdNotifyStopping + fmt.Sprintf("\nEXTEND_TIMEOUT_USEC=%d", (deliveryGrace+answerGrace).Microseconds()))
}

// notifySystemd does nothing where there is no systemd; nobody would hear of an error.
func notifySystemd(state string) { sd.SdNotify(false, state) }

// notify feeds systemd's watchdog while every loop is alive, and its status line.
func (d *daemon) notify(ctx context.Context) {
	every := 5 * time.Second
	limit, err := sd.SdWatchdogEnabled(false)
	watched := err == nil && limit > 0
	if watched {
		every = min(every, limit/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if watched {
			silent := d.pulse.silent(limit / 2)
			if len(silent) == 0 {
				notifySystemd(sd.SdNotifyWatchdog)
			} else if !told {
				told = true
				d.log.Error("stuck: the watchdog is no longer fed", "parts", strings.Join(silent, ", "))
			}
		}
		notifySystemd("STATUS=" + d.statusLine(ctx))
	}
}

// statusLine answers the first question in systemctl status.
func (d *daemon) statusLine(ctx context.Context) string {
	snap, err := d.Snapshot(ctx)
	if err != nil {
		return err.Error()
	}
	var parts []string
	for _, y := range snap.Syncs {
		status := y.Status
		if status == admin.StatusStopped {
			status = "starting" // this daemon runs: a sync that does not has not begun yet
		}
		part := fmt.Sprintf("%s: %s, %s waiting", y.Name, status, humanize.Comma(int64(y.Books.Pending)))
		if y.OldestAge != nil {
			part += fmt.Sprintf(", oldest %s", time.Duration(*y.OldestAge)*time.Second)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
