package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ampcio/admin"
	"ampcio/alerts"
	"ampcio/config"
)

// alertsFile is in the storage folder: which alerts are firing, and what is to be posted.
const alertsFile = "alerts.json"

const (
	// It is looked whether something is wrong four times within alerts.after, but not more
	// often, and not more seldom, than this.
	looksMost, looksLeast = 500 * time.Millisecond, 5 * time.Second
	// lookWithin is how long that may take: a disk that hangs holds up no alert.
	lookWithin = 5 * time.Second
)

// alerting posts alerts while the configuration has an address for them.
type alerting struct {
	follow chan struct{} // the configuration has changed

	mu   sync.Mutex
	desk *alerts.Desk // nil = there is no address
}

func newAlerting() *alerting { return &alerting{follow: make(chan struct{}, 1)} }

// reloaded lets it go by the configuration in force.
func (a *alerting) reloaded() {
	select {
	case a.follow <- struct{}{}:
	default:
	}
}

func (a *alerting) current() *alerts.Desk {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.desk
}

// alertOptions are how alerts are posted, by the configuration.
func alertOptions(cfg *config.Config) alerts.Options {
	a := cfg.Alerts
	name := a.Name
	if name == "" {
		name, _ = os.Hostname() // without one it is "" , which is told so below
	}
	if name == "" {
		name = "a host without a name"
	}
	return alerts.Options{
		Path: filepath.Join(cfg.Storage.Dir, alertsFile), URL: a.URL.Reveal(), Format: a.Format, Instance: name, Version: version().version,
		After: time.Duration(a.After), OverAfter: time.Duration(a.OverAfter), Repeat: time.Duration(a.Repeat),
	}
}

// keepAlerts looks whether something is wrong, and posts that, until ctx ends. Nothing
// of it ends the daemon or holds up events.
func (d *daemon) keepAlerts(ctx context.Context) {
	tick := time.NewTicker(looksLeast)
	defer tick.Stop()
	looks := &looker{d: d}
	var stop func()
	follow := func() {
		cfg := d.config()
		o := alertOptions(cfg)
		o.Log, o.Book = d.log, d.repeats
		tick.Reset(min(max(o.After/4, looksMost), looksLeast))
		desk := d.alerting.current()
		switch {
		case o.URL == "" && desk == nil: // nobody is to be told, of what the last process knew either
			d.forgetAlerts(o.Path)
		case o.URL == "":
			stop()
			d.alerting.set(nil)
			d.forgetAlerts(o.Path)
		case desk == nil:
			desk = alerts.Open(o)
			d.alerting.set(desk)
			running, cancel := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() { defer close(ended); desk.Run(running) }()
			stop = func() { cancel(); <-ended }
		default:
			desk.Set(o)
		}
	}
	follow()
	for {
		select {
		case <-ctx.Done():
			if d.alerting.current() != nil {
				stop()
			}
			looks.end()
			return
		case <-d.alerting.follow:
			follow()
		case <-tick.C:
		}
		if desk := d.alerting.current(); desk != nil {
			desk.Look(looks.look(ctx, desk))
		}
	}
}

func (a *alerting) set(desk *alerts.Desk) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.desk = desk
}

func (d *daemon) forgetAlerts(path string) {
	if err := alerts.Forget(path); err != nil {
		d.log.Warn("the file of alerts was not deleted", "file", path, "error", err)
	}
}

// looker takes snapshots that may hang.
type looker struct {
	d    *daemon
	hung chan seen // of one that has not come yet
}

type seen struct {
	snap admin.Snapshot
	err  error
}

// look is what is wrong now. Where that cannot be seen in time, only that the daemon
// is stuck is told.
func (l *looker) look(ctx context.Context, desk *alerts.Desk) alerts.Sight {
	if l.hung == nil {
		l.hung = make(chan seen, 1)
		go func(to chan seen) {
			var s seen
			s.snap, s.err = l.d.Snapshot(ctx)
			to <- s
		}(l.hung)
	}
	limit := time.NewTimer(lookWithin)
	defer limit.Stop()
	var s *seen
	select {
	case got := <-l.hung:
		if l.hung = nil; got.err == nil {
			s = &got
		}
	case <-limit.C:
	case <-ctx.Done():
	}
	now := time.Now()
	j := judge{limits: l.d.config().Alerts, now: now, firing: desk.Firing, stuck: l.d.pulse.silent(stuckAfter)}
	if s == nil {
		return j.blind()
	}
	for _, project := range l.d.config().Project.Names() {
		j.lastSeen(desk, project, s.snap.Door.LastSeen[project], l.d.started)
	}
	return j.sight(&s.snap)
}

// end waits for a snapshot that is on its way: what it reads is closed next.
func (l *looker) end() {
	if l.hung != nil {
		<-l.hung
	}
}

// alertNotes are sentences for queue-stats about alerts that do not get through.
func (d *daemon) alertNotes() []string {
	desk := d.alerting.current()
	if desk == nil {
		return nil
	}
	return notesOfAlerts(desk.List())
}
