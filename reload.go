package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/queue"
)

// A reload puts another configuration in force while ampcio runs. First everything that
// can fail is done and can be taken back: the file is read, its rules are compiled and
// tried on what is pending, the ledgers of new syncs are created. Then, between two
// requests to be stored, it is switched: so every event is of the old configuration or
// of the new one, for all syncs alike. Last, what goes on at its own pace follows: limits,
// and the deliveries of those syncs that have changed.

// switchWithin bounds how long requests may wait for a switch.
const switchWithin = 5 * time.Second

// reloadReport tells what a reload has changed, or would change.
type reloadReport struct {
	Config   string            `json:"config"` // the file
	DryRun   bool              `json:"dry_run"`
	Refused  bool              `json:"refused"`       // nothing was changed, since it wants --yes
	Syncs    []syncReport      `json:"syncs"`         // those that differ
	Changed  []string          `json:"changed"`       // other keys that differ
	Restart  []string          `json:"needs_restart"` // keys that differ and stay as they were until ampcio is started again
	Pending  []pendingVerdicts `json:"pending"`       // of syncs whose rules differ
	Warnings []string          `json:"warnings"`
}

// syncReport is what a reload does to one sync.
type syncReport struct {
	Name   string   `json:"name"`
	Change string   `json:"change"` // added | back (it was orphaned) | removed (it is orphaned) | enabled | disabled | in a dry run | out of its dry run | changed
	Keys   []string `json:"keys"`   // that differ, below sync.NAME
}

// change is a reload that has been worked out.
type change struct {
	to      *generation
	streams []*streamChange
}

// streamChange is what a reload does to one stream.
type streamChange struct {
	name     string
	now      *stream // nil: no ledger is open
	from, to *settings

	opened  *queue.Consumer // in place of now
	created bool            // there was no ledger
}

// consumer is the ledger, once prepare has seen to it that there is one.
func (s *streamChange) consumer() *queue.Consumer {
	if s.now != nil {
		return s.now.consumer
	}
	return s.opened
}

// toggles says whether the ledger begins or ceases to take what comes.
func (s *streamChange) toggles() bool {
	on := s.from.delivers()
	if s.now == nil && !s.created {
		on = s.to.delivers() // it was opened so
	}
	return on != s.to.delivers()
}

func (s *streamChange) word() string {
	switch {
	case s.from == nil && s.created:
		return "added"
	case s.from == nil:
		return "back"
	case s.to == nil:
		return "removed"
	case s.from.enabled != s.to.enabled && s.to.enabled:
		return "enabled"
	case s.from.enabled != s.to.enabled:
		return "disabled"
	case s.from.dryRun != s.to.dryRun && s.to.dryRun:
		return "in a dry run"
	case s.from.dryRun != s.to.dryRun:
		return "out of its dry run"
	}
	return "changed"
}

// reload puts the configuration file in force as it is now. On an error what was in
// force stays; so it does when most of what is pending would newly be filtered, unless
// forced. The caller operates.
func (d *daemon) reload(ctx context.Context, force bool) (reloadReport, error) {
	ctx, cancel := d.runs.whileFlowing(ctx)
	defer cancel()
	d.reloading()
	defer func() {
		if ctx.Err() == nil { // else systemd has been told of a stop, and this would take it back
			d.ready(ctx)
		}
	}()
	report, err := d.replace(ctx, force)
	d.lastLooks.reloaded(time.Now(), err)
	if err != nil {
		d.log.Error("the configuration was not reloaded; the one in force stays", "file", d.configFile, "error", err)
		return report, err
	}
	var syncs []string
	for _, y := range report.Syncs {
		syncs = append(syncs, y.Name+" "+y.Change)
	}
	d.log.Info("the configuration is reloaded", "file", d.configFile, "syncs", strings.Join(syncs, ", "), "changed", strings.Join(report.Changed, ", "))
	if len(report.Restart) > 0 {
		d.log.Warn("these keys have changed and stay as they were until ampcio is restarted", "keys", strings.Join(report.Restart, ", "))
	}
	for _, w := range report.Warnings {
		d.log.Warn(w)
	}
	return report, nil
}

func (d *daemon) replace(ctx context.Context, force bool) (reloadReport, error) {
	c, report, err := d.compare(ctx)
	if err != nil {
		return report, err
	}
	for i := range report.Pending {
		if p := &report.Pending[i]; p.tooMany() && !force {
			report.Refused = true
			return report, exit(exitData, fmt.Errorf("%s. If that is meant: ampcio reload --yes", p.loss()))
		}
	}
	if err := d.prepare(c); err != nil {
		return report, err
	}
	if err := d.switchTo(ctx, c); err != nil {
		return report, errors.Join(err, d.takeBack(c))
	}
	report.Warnings = append(report.Warnings, d.keysOfTheStart()...)
	return report, d.follow(c)
}

// read reads the configuration file and compiles its rules.
func (d *daemon) read() (*generation, error) {
	cfg, err := config.Load(d.configFile, config.Environment{Getenv: os.Getenv})
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	return newGeneration(cfg)
}

// sameConfig makes sure that somebody who asks for something about a configuration file
// means the one that the daemon reads.
func (d *daemon) sameConfig(file string) error {
	if file == d.configFile {
		return nil
	}
	theirs, err := os.Stat(file)
	ours, ourErr := os.Stat(d.configFile)
	if err == nil && ourErr == nil && os.SameFile(theirs, ours) {
		return nil
	}
	return exit(exitUsage, fmt.Errorf("the ampcio that runs was started with %s, and --config says %s: name the same file", d.configFile, file))
}

// compare reads the file and works out what would change. Nothing has changed when it
// returns.
func (d *daemon) compare(ctx context.Context) (*change, reloadReport, error) {
	report := reloadReport{Config: d.configFile, Syncs: []syncReport{}, Changed: []string{}, Restart: []string{}, Pending: []pendingVerdicts{}, Warnings: []string{}}
	to, err := d.read()
	if err != nil {
		return nil, report, err
	}
	cfg := to.cfg
	report.Warnings = append(report.Warnings, cfg.Warnings...)
	report.Changed = config.Changes(d.config(), cfg)
	d.keepUntilRestart(cfg, &report)
	c := &change{to: to}
	if c.streams, err = d.streamChanges(cfg); err != nil {
		return nil, report, err
	}
	for _, s := range c.streams {
		if _, trial := syncOfTrial(s.name); trial {
			continue // that is told of its sync
		}
		prefix := "sync." + s.name + "."
		if project, isRelay := relayedProject(s.name); isRelay {
			prefix = "project." + project + ".relay" // its keys all begin so
		}
		y := syncReport{Name: s.name, Change: s.word(), Keys: []string{}}
		report.Changed = slices.DeleteFunc(report.Changed, func(path string) bool {
			key, below := strings.CutPrefix(path, prefix)
			if below && isRelay(s.name) {
				key = "relay" + key
			}
			if below {
				y.Keys = append(y.Keys, key)
			}
			return below || path+"." == prefix
		})
		report.Syncs = append(report.Syncs, y)
	}
	report.Pending, err = d.surveyChanges(ctx, c)
	return c, report, err
}

// keepUntilRestart takes what cannot change at run time over from the configuration in
// force, and reports it.
func (d *daemon) keepUntilRestart(cfg *config.Config, report *reloadReport) {
	old := d.config()
	cfg.Server.Listen, cfg.Server.Admin, cfg.Server.Socket = old.Server.Listen, old.Server.Admin, old.Server.Socket
	cfg.Storage.Dir, cfg.Log.Format = old.Storage.Dir, old.Log.Format
	if (cfg.Server.TLSCert == "") != (old.Server.TLSCert == "") { // other files are taken, but not another protocol
		cfg.Server.TLSCert, cfg.Server.TLSKey = old.Server.TLSCert, old.Server.TLSKey
	}
	changed := report.Changed
	report.Changed = config.Changes(old, cfg)
	for _, path := range changed {
		if slices.Contains(report.Changed, path) {
			continue
		}
		if path == "server.listen" && d.passed {
			continue // the socket unit has the address; this one counts for nothing
		}
		report.Restart = append(report.Restart, path)
	}
	if report.Changed == nil {
		report.Changed = []string{}
	}
}

// streamChanges are the streams that differ, in order of their names.
func (d *daemon) streamChanges(cfg *config.Config) ([]*streamChange, error) {
	ledgers, err := queue.Ledgers(cfg.Storage.Dir)
	if err != nil {
		return nil, exit(exitIO, err)
	}
	names := slices.Concat(d.allNames(), streamNames(cfg), trialNames(cfg))
	slices.Sort(names)
	var changes []*streamChange
	for _, name := range slices.Compact(names) {
		s := &streamChange{name: name, now: d.stream(name), to: settingsOf(cfg, name), created: !slices.Contains(ledgers, name)}
		if s.now != nil {
			s.from = s.now.settings
		}
		if s.now != nil && s.from.equal(s.to) {
			continue
		}
		if _, trial := syncOfTrial(name); trial {
			s.created = s.now == nil // each dry run begins anew
			changes = append(changes, s)
			continue
		}
		if s.now != nil && s.to != nil {
			stats, err := s.now.consumer.Stats()
			if err != nil {
				return nil, exit(exitIO, err)
			}
			if stats.Project != s.to.project {
				path := "sync." + name + ".project"
				return nil, exit(exitConfig, fmt.Errorf("%s%s: its ledger belongs to project %q, the configuration says %q: give the sync another name, or its old project back",
					cfg.Locate(path), path, stats.Project, s.to.project))
			}
		}
		changes = append(changes, s)
	}
	return changes, nil
}

// surveyChanges tries the rules on what is pending in the syncs whose rules differ.
func (d *daemon) surveyChanges(ctx context.Context, c *change) ([]pendingVerdicts, error) {
	var differ []*streamChange
	for _, s := range c.streams {
		if s.now != nil && s.from != nil && s.to != nil && !s.to.trial && !s.from.sameVerdicts(s.to) {
			differ = append(differ, s)
		}
	}
	found := []pendingVerdicts{}
	for _, s := range differ {
		before := standardOf(d.config(), s.name, d.rulesOf(s.name))
		after := standardOf(c.to.cfg, s.name, c.to.rules[s.name])
		p, err := survey(ctx, s.now.consumer, surveyFor/time.Duration(len(differ)), before, after)
		if err != nil {
			return found, exit(exitIO, err)
		}
		found = append(found, p)
	}
	return found, nil
}

// prepare opens the ledgers of syncs that are new, those that did not exist without
// taking anything yet. After an error there is nothing new.
func (d *daemon) prepare(c *change) error {
	for _, s := range c.streams {
		if s.now != nil {
			continue
		}
		if s.to != nil && s.to.trial {
			d.beginTrial(s.name)
		}
		var err error
		if s.opened, err = d.openLedger(s.name, s.to, s.to.delivers() && !s.created); err != nil {
			return errors.Join(storageError(c.to.cfg.Storage.Dir, err), d.takeBack(c))
		}
		if takesForSync(s.name) {
			d.stayBetween(s.opened)
		}
	}
	return nil
}

// takeBack undoes prepare.
func (d *daemon) takeBack(c *change) error {
	var errs []error
	for _, s := range c.streams {
		if s.opened == nil {
			continue
		}
		err := s.opened.Close()
		switch _, trial := syncOfTrial(s.name); {
		case err == nil && trial:
			d.removeTrial(s.name)
		case err == nil && s.created:
			err = queue.RemoveLedger(d.records, s.name)
		}
		errs = append(errs, err)
		s.opened = nil
		d.pulse.over("ledger " + s.name)
	}
	return errors.Join(errs...)
}

// switchTo puts the generation in force between two requests: which API keys are known,
// and from where on which sync takes what comes. After an error nothing has changed,
// unless the error says so.
func (d *daemon) switchTo(ctx context.Context, c *change) error {
	ctx, cancel := context.WithTimeout(ctx, switchWithin)
	defer cancel()
	err := d.door.Change(ctx, apiKeys(c.to.cfg), c.to.cfg.Server.CORSOrigins, func() error {
		for i, s := range c.streams {
			if !s.toggles() {
				continue
			}
			err := s.consumer().SetEnabled(s.to.delivers())
			if _, trial := syncOfTrial(s.name); err != nil && !trial { // which is so now, and needs not be so after a crash
				errs := []error{fmt.Errorf("sync %s: %w", s.name, err)}
				for _, done := range c.streams[:i+1] {
					if !done.toggles() {
						continue
					}
					// Nothing was stored since, so this leaves no gap.
					if err := done.consumer().SetEnabled(!done.to.delivers()); err != nil {
						errs = append(errs, fmt.Errorf("sync %s may take new events or not, whatever the configuration says, until ampcio is restarted: %w", done.name, err))
					}
				}
				return errors.Join(errs...)
			}
		}
		d.door.SetWebhookSecrets(webhookSecrets(c.to.cfg))
		d.door.Trust(c.to.cfg.Server.TrustedProxies)
		d.inForce.Store(c.to)
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return exit(exitTemporary, err)
	}
	return exit(exitIO, err)
}

// follow lets everything else go by the generation in force. Deliveries that stay the
// same are not touched; the others end what is in flight first, all at once.
func (d *daemon) follow(c *change) error {
	cfg := d.config()
	d.level.Set(levelOf(cfg.Log))
	d.records.SetLimits(logLimits(cfg.Storage))
	d.certificate.follow(cfg.Server.TLSCert, cfg.Server.TLSKey)
	to := map[*stream]*settings{}
	for _, s := range c.streams {
		if s.now == nil {
			s.now = &stream{name: s.name, consumer: s.opened}
			d.mu.Lock()
			d.streams[s.name] = s.now
			d.mu.Unlock()
			d.startLedger(s.now)
		}
		to[s.now] = s.to
	}
	for _, name := range d.allNames() {
		s := d.stream(name)
		set, changes := to[s]
		if !changes {
			set = s.settings
		}
		bind(s.consumer, set, cfg.DeadLetters)
	}
	var deliveries errgroup.Group
	for _, s := range c.streams {
		deliveries.Go(func() error {
			same := s.from.sameDelivery(s.to)
			if !same {
				if err := d.endDelivery(s.now); err != nil {
					return err
				}
			}
			d.mu.Lock()
			s.now.settings = s.to
			d.mu.Unlock()
			if !same {
				d.startDelivery(s.now)
			}
			return nil
		})
	}
	err := deliveries.Wait()
	for _, s := range c.streams {
		if _, trial := syncOfTrial(s.name); trial && s.to == nil {
			d.endTrial(s.name)
		}
	}
	return err
}

// keysOfTheStart explains why a sync that is blocked still is: its key came to the process
// when that was started, and a reload cannot see another.
func (d *daemon) keysOfTheStart() []string {
	folder := os.Getenv("CREDENTIALS_DIRECTORY")
	var warnings []string
	for _, name := range d.config().Sync.Names() {
		running := d.delivery(name)
		if running == nil || running.Status().State != delivery.Blocked {
			continue
		}
		switch from := d.config().Sync[name].APIKeyFrom; {
		case folder != "" && strings.HasPrefix(from, folder+"/"):
			warnings = append(warnings, fmt.Sprintf("sync %s is blocked, and its API key is a credential that systemd handed over at the start: a new one needs systemctl restart ampcio", name))
		case strings.HasPrefix(from, "environment variable "):
			warnings = append(warnings, fmt.Sprintf("sync %s is blocked, and its API key comes from the %s, which is as it was at the start: a new one needs a restart", name, from))
		}
	}
	return warnings
}

// reloadOnHangup reloads on SIGHUP until ctx ends. Several that come meanwhile are one.
func (d *daemon) reloadOnHangup(ctx context.Context, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			// reload itself logs what comes of it.
			_ = d.operate(func() error { _, err := d.reload(ctx, false); return err })
		}
	}
}
