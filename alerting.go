package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"ampcio/admin"
	"ampcio/alerts"
	"ampcio/config"
	"ampcio/logbook"
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

// alerting decides what is wrong, and posts that where the configuration has an address.
type alerting struct {
	follow chan struct{}               // the configuration has changed
	desk   atomic.Pointer[alerts.Desk] // nil = not begun yet
}

func newAlerting() *alerting { return &alerting{follow: make(chan struct{}, 1)} }

// reloaded lets it go by the configuration in force.
func (a *alerting) reloaded() {
	select {
	case a.follow <- struct{}{}:
	default:
	}
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
	options := func() alerts.Options {
		o := alertOptions(d.config())
		o.Log, o.Book, o.Heard = d.log, d.repeats, d.logTrouble
		return o
	}
	desk := alerts.Open(options())
	d.alerting.desk.Store(desk)
	ended := make(chan struct{})
	go func() { defer close(ended); desk.Run(ctx) }()
	tick := time.NewTicker(looksEvery(d.config()))
	defer tick.Stop()
	looks := &looker{d: d}
	for {
		select {
		case <-ctx.Done():
			<-ended
			looks.end()
			return
		case <-d.alerting.follow:
			desk.Set(options())
			tick.Reset(looksEvery(d.config()))
		case <-tick.C:
		}
		desk.Look(looks.look(ctx, desk))
	}
}

func looksEvery(cfg *config.Config) time.Duration {
	return min(max(time.Duration(cfg.Alerts.After)/4, looksMost), looksLeast)
}

// loggedElsewhere are the kinds of trouble of which those who meet it have lines of their
// own, at once.
var loggedElsewhere = map[string]bool{"blocked": true, "dead_letters": true}

// logTrouble logs what was decided: also where nobody is posted to.
func (d *daemon) logTrouble(m alerts.Message) {
	if loggedElsewhere[m.Kind] {
		return
	}
	level := slog.LevelWarn
	switch {
	case m.Event == alerts.Over:
		level = slog.LevelInfo
	case m.Level == alerts.Critical:
		level = slog.LevelError
	}
	for _, t := range m.Troubles {
		var attrs []any
		switch {
		case t.Of == "":
		case m.Kind == troubleNoTraffic:
			attrs = append(attrs, "project", t.Of)
		default:
			attrs = append(attrs, "sync", t.Of)
		}
		attrs = append(attrs, "what", t.What)
		if t.Until != nil {
			attrs = append(attrs, "lasted", logbook.Short(t.Until.Sub(t.Since)))
		} else {
			attrs = append(attrs, "for", logbook.Short(m.At.Sub(t.Since)), "do", t.Do)
		}
		d.log.Log(context.Background(), level, m.Title(), attrs...)
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
	desk := d.alerting.desk.Load()
	if desk == nil {
		return nil
	}
	return notesOfAlerts(desk.List())
}
