package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/queue"
)

// A sync in a dry run has two ledgers. Its own is as if it were disabled: it takes nothing
// and holds what it has, and knows nothing of the dry run. The trial, of the sync's name and
// trialSuffix, takes what comes from the moment the dry run begins, and has a delivery like
// any other, but for its Transport, which writes down instead of sending. The trial has its
// own memory of what was last sent, so that it decides about user updates as it would if it
// sent. It outlives restarts, ends with the dry run, and begins anew with the next: nothing
// depends on it, and no trouble of it stops anything else.
const trialSuffix = ".dry.run" // no sync's name has a dot, and that of a relay has one

func trialOf(sync string) string { return sync + trialSuffix }

// syncOfTrial is the sync that a ledger is the trial of.
func syncOfTrial(name string) (sync string, trial bool) { return strings.CutSuffix(name, trialSuffix) }

// dryRunFolder is where the trials' ledgers, their requests and counts are.
func dryRunFolder(storage string) string { return filepath.Join(storage, queue.TrialsFolder) }

// trialNames are the trials that a configuration has, sorted.
func trialNames(cfg *config.Config) (names []string) {
	for _, name := range cfg.Sync.Names() {
		if trial := trialOf(name); settingsOf(cfg, trial) != nil {
			names = append(names, trial)
		}
	}
	return names
}

// allNames are names, and the trials.
func (d *daemon) allNames() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sortedKeys(d.streams)
}

// openTrials goes on with the trials of the configuration, and removes all others.
func (d *daemon) openTrials() {
	cfg := d.config()
	wanted := trialNames(cfg)
	there, err := queue.Trials(cfg.Storage.Dir)
	if err != nil {
		d.log.Warn("old dry runs were not looked for", "error", err)
	}
	for _, name := range there {
		if !slices.Contains(wanted, name) {
			d.removeTrial(name)
		}
	}
	d.forgetOldDryRuns()
	for _, name := range wanted {
		err := d.open(name, settingsOf(cfg, name))
		if errors.Is(err, queue.ErrDamaged) {
			d.removeTrial(name)
			err = d.open(name, settingsOf(cfg, name))
		}
		if err != nil {
			d.log.Error("there is no dry run, until ampcio is started again; everything else goes on", "sync", strings.TrimSuffix(name, trialSuffix), "error", err)
		}
	}
}

// openTrial opens the ledger of a trial, or creates it. It is not on its own account that
// it is on.
func (d *daemon) openTrial(o queue.ConsumerOptions) (*queue.Consumer, error) {
	if err := os.MkdirAll(dryRunFolder(d.config().Storage.Dir), 0o700); err != nil {
		return nil, err
	}
	o.Trial = true
	c, err := queue.OpenConsumer(d.records, o)
	if err != nil {
		return nil, err
	}
	st, err := c.Stats()
	if err == nil && st.Low > d.records.Tail() { // the log is an older one, and knows nothing of what this has seen
		d.log.Warn("the dry run begins anew, since the log is older than its ledger", "sync", strings.TrimSuffix(o.Name, trialSuffix))
		if err := c.Close(); err != nil {
			return nil, err
		}
		d.removeTrial(o.Name)
		c, err = queue.OpenConsumer(d.records, o)
	}
	if err != nil {
		return nil, err
	}
	c.SetDeadLetterBounds(time.Hour, 1<<20) // they are counted, and nobody will replay them
	return c, nil
}

func (d *daemon) removeTrial(name string) {
	if err := queue.RemoveTrial(d.config().Storage.Dir, name); err != nil {
		d.log.Warn("the ledger of a dry run that has ended was not removed", "sync", strings.TrimSuffix(name, trialSuffix), "error", err)
	}
}

// beginTrial lets a dry run begin anew.
func (d *daemon) beginTrial(name string) {
	d.removeTrial(name)
	sync, _ := syncOfTrial(name)
	counts := dryRunCountsPath(dryRunPath(d.config().Storage.Dir, sync, 0))
	if err := os.Remove(counts); err != nil && !os.IsNotExist(err) {
		d.log.Warn("the counts of the dry run before go on", "sync", sync, "error", err)
	}
}

// endTrial ends a dry run whose delivery has ended.
func (d *daemon) endTrial(name string) {
	if err := d.stopSync(context.Background(), name); err != nil {
		d.log.Warn("a dry run did not end well", "error", err)
	}
	d.removeTrial(name)
}

// openBook makes what stands in for Customer.io in a trial's delivery.
func (d *daemon) openBook(trial, region string) *dryRunBook {
	dir := d.config().Storage.Dir
	sync, _ := syncOfTrial(trial)
	counts, err := readDryRunCounts(dir, sync)
	if err != nil {
		d.log.Warn("the counts of the dry run begin anew", "sync", sync, "error", err)
	}
	if counts == nil {
		counts = newDryRunCounts(sync, time.Now())
	}
	hash, err := openUserHash(dir)
	if err != nil {
		d.log.Warn("the dry run does without the hashes that stand for users", "sync", sync, "error", err)
	}
	b := &dryRunBook{
		path: dryRunPath(dir, sync, 0), region: region, hash: hash, now: time.Now, log: d.log, fileBytes: dryRunFileBytes, counts: counts,
		spare: freeBeyond(dir, func() int64 { return int64(d.config().Storage.MinFree) + dryRunSpare }),
	}
	b.save()
	return b
}

// tolerant lets nothing else end when a part of a trial fails.
func (d *daemon) tolerant(trial string, f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := f(ctx); err != nil {
			d.pulse.over("ledger " + trial) // nobody waits for it
			if b := d.book(trial); b != nil {
				b.close()
				d.mu.Lock()
				d.streams[trial].book = nil
				d.mu.Unlock()
			}
			sync, _ := syncOfTrial(trial)
			d.log.Error("the dry run has stopped, until ampcio is started again; everything else goes on", "sync", sync, "error", err)
		}
		return nil
	}
}

// keepDryRuns saves the counts of dry runs every second, and at the end.
func (d *daemon) keepDryRuns(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	prune := time.NewTicker(time.Hour)
	defer prune.Stop()
	for {
		select {
		case <-tick.C:
			for _, name := range d.allNames() {
				if b := d.book(name); b != nil {
					b.save()
				}
			}
		case <-prune.C:
			d.forgetOldDryRuns()
		case <-ctx.Done():
			return
		}
	}
}

// book is what is written down by a trial; nil when it is none, or does not run.
func (d *daemon) book(name string) *dryRunBook {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.streams[name]; s != nil {
		return s.book
	}
	return nil
}

// forgetOldDryRuns deletes what dry runs have written that nobody has added to for
// dryRunKeep: it holds what users did.
func (d *daemon) forgetOldDryRuns() {
	dir := dryRunFolder(d.config().Storage.Dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // there was none yet
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), ".jsonl") || time.Since(info.ModTime()) < dryRunKeep {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			d.log.Warn("an old file of a dry run was not deleted", "error", err)
		}
	}
}

// discarded is the log of a trial's delivery: it would speak of what Customer.io does.
var discarded = slog.New(slog.DiscardHandler)

// dryRunOf tells of the dry run that a sync is in; nil when it is in none.
func (d *daemon) dryRunOf(name string, now time.Time) (*admin.DryRun, error) {
	c, b := d.consumer(trialOf(name)), d.book(trialOf(name))
	if c == nil || b == nil {
		return nil, nil
	}
	stats, err := c.Stats()
	if err != nil {
		return nil, err
	}
	out := shownDryRun(b.shown(), b.path)
	trial := syncOf(stats, d.config(), now)
	out.Pending, out.Passed = trial.Books.Pending, trial.Totals.Lost
	out.Filtered, out.Refused = trial.Filtered, trial.Dead
	return out, nil
}

// storedDryRun tells, of an ampcio that is stopped, of the dry run that a sync is in by
// the configuration.
func storedDryRun(cfg *config.Config, name string) (*admin.DryRun, error) {
	if settingsOf(cfg, trialOf(name)) == nil {
		return nil, nil
	}
	counts, err := readDryRunCounts(cfg.Storage.Dir, name)
	if counts == nil || err != nil {
		return nil, err
	}
	return shownDryRun(*counts, dryRunPath(cfg.Storage.Dir, name, 0)), nil
}

func shownDryRun(c dryRunCounts, path string) *admin.DryRun {
	return &admin.DryRun{Since: secondOf(c.Since), File: path, Requests: c.Requests, Bytes: c.Bytes, Events: c.Events, UserUpdates: c.Users,
		LeftOut: c.LeftOut, Filtered: []admin.Reason{}, Refused: []admin.Reason{}}
}
