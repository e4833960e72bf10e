package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
)

// stream is a sync as it runs: its ledger, which takes what comes and keeps it, and the
// delivery of that, unless the sync is disabled or gone from the configuration. Which
// streams there are, and their fields, are guarded by daemon.mu.
type stream struct {
	name     string
	consumer *queue.Consumer
	keeping  *part // the consumer's Run
	delivery *delivery.Sync
	sending  *part          // the delivery's Run; nil when there is none
	before   *delivery.Sync // the last one that has ended: what it knew of Customer.io goes on
	settings *settings      // nil: no sync of the configuration owns the ledger
	book     *dryRunBook    // of a trial that delivers
}

// settings are what a sync does, as plain values: those of two generations can be
// compared.
type settings struct {
	project       string
	enabled       bool
	dryRun        bool // it is in a dry run
	trial         bool // it is the trial of that
	spec          mapping.Spec
	options       delivery.Options // without what belongs to the process
	maxPending    int64            // bytes, 0 = no bound
	discardOldest bool
}

func settingsOf(cfg *config.Config, name string) *settings {
	name, trial := syncOfTrial(name)
	y, ok := cfg.Sync[name]
	if !ok && !trial {
		return relaySettings(cfg, name)
	}
	if !ok || trial && !(y.DryRun && y.Enabled) {
		return nil
	}
	s := &settings{
		project: y.Project, enabled: y.Enabled, dryRun: y.DryRun, trial: trial, spec: ruleSpec(y), options: accountOptions(y),
		maxPending: int64(y.Delivery.MaxPendingBytes), discardOldest: y.Delivery.WhenFull == "discard_oldest",
	}
	if trial {
		s.maxPending = 0 // it makes nothing refused
	}
	return s
}

func (s *settings) equal(o *settings) bool { return reflect.DeepEqual(s, o) }

// delivers says whether there is a delivery by these settings.
func (s *settings) delivers() bool { return s != nil && s.enabled && (s.trial || !s.dryRun) }

// sameDelivery says whether a delivery by s can go on under o.
func (s *settings) sameDelivery(o *settings) bool {
	return s.delivers() == o.delivers() && (!s.delivers() || reflect.DeepEqual(s.spec, o.spec) && reflect.DeepEqual(s.options, o.options))
}

// sameVerdicts says whether s and o decide alike about every record.
func (s *settings) sameVerdicts(o *settings) bool {
	return reflect.DeepEqual(s.spec, o.spec) && s.options.LateAfter == o.options.LateAfter && s.options.LatePolicy == o.options.LatePolicy
}

// config is the configuration in force; what needs a restart is in it as it was at the start.
func (d *daemon) config() *config.Config { return d.inForce.Load().cfg }

// rulesOf are a sync's rules in force, nil when there is no such sync.
func (d *daemon) rulesOf(name string) *mapping.Rules { return d.inForce.Load().rules[name] }

// names lists the ledgers that are open, of syncs in the configuration or not, sorted,
// but for those of trials.
func (d *daemon) names() []string {
	return slices.DeleteFunc(d.allNames(), func(name string) bool { _, trial := syncOfTrial(name); return trial })
}

// consumer is the ledger of that name; nil when none is open.
func (d *daemon) consumer(name string) *queue.Consumer {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.streams[name]; s != nil {
		return s.consumer
	}
	return nil
}

// delivery is what delivers from the ledger of that name; nil when nothing does.
func (d *daemon) delivery(name string) *delivery.Sync {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.streams[name]; s != nil {
		return s.delivery
	}
	return nil
}

func (d *daemon) stream(name string) *stream {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.streams[name]
}

// operate runs what changes which syncs there are, one such operation at a time.
func (d *daemon) operate(f func() error) error {
	d.operating.Lock()
	defer d.operating.Unlock()
	if d.closed {
		return exit(exitTemporary, errors.New("ampcio is stopping: do it again when it runs"))
	}
	defer d.stayBetween(nil)
	return f()
}

// stayBetween lets takenBySync know of the ledger of a sync that is not among the streams, to
// the end of the operation that goes on; nil = that is now.
func (d *daemon) stayBetween(c *queue.Consumer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c == nil {
		d.between = nil
		return
	}
	d.between = append(d.between, c)
}

// whileOpen calls f with a ledger that is not closed meanwhile. A reload that waits for
// requests in flight does not hold it up.
func (d *daemon) whileOpen(name string, f func(*queue.Consumer) error) error {
	d.closing.RLock()
	if c := d.consumer(name); c != nil {
		defer d.closing.RUnlock()
		return f(c)
	}
	d.closing.RUnlock()
	// It may be on its way to another name.
	return d.operate(func() error { return f(d.consumer(name)) })
}

// noMoreOperations waits for the operation that is going on; none begins afterwards.
func (d *daemon) noMoreOperations() {
	d.operating.Lock()
	defer d.operating.Unlock()
	d.closed = true
}

// runs is what the parts of the streams run under.
type runs struct {
	flow    context.Context // of deliveries: ends first
	storage context.Context // of ledgers: ends when every delivery has
	fail    context.CancelCauseFunc
}

// whileFlowing is ctx, ended by a stop of ampcio too.
func (r *runs) whileFlowing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(r.flow, func() { cancel(context.Cause(r.flow)) })
	return ctx, func() { unhook(); cancel(nil) }
}

// part is something that runs until it is told to stop.
type part struct {
	stop  context.CancelFunc
	ended chan struct{}
	err   error // of it, once it has ended
}

// launch starts a part. Its error ends the process.
func (r *runs) launch(ctx context.Context, f func(context.Context) error) *part {
	ctx, stop := context.WithCancel(ctx)
	p := &part{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		defer stop()
		if p.err = exit(exitIO, f(ctx)); p.err != nil {
			r.fail(p.err)
		}
	}()
	return p
}

// end stops a part and waits for it; nil has ended.
func (p *part) end() error {
	if p == nil {
		return nil
	}
	p.stop()
	return p.wait()
}

func (p *part) wait() error {
	if p == nil {
		return nil
	}
	<-p.ended
	return p.err
}

// openStreams opens the ledger of each sync, and those that no sync of the
// configuration owns any more: what they hold is kept until somebody decides.
func (d *daemon) openStreams() error {
	cfg := d.config()
	for _, name := range streamNames(cfg) {
		if err := d.open(name, settingsOf(cfg, name)); err != nil {
			return err
		}
	}
	names, err := queue.Ledgers(cfg.Storage.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if inConfig(cfg, name) {
			continue
		}
		d.log.Warn("this sync is gone from the configuration; what it has not delivered is kept", "sync", name, "why", leftOut(name))
		if err := d.open(name, nil); err != nil {
			return err
		}
	}
	d.openTrials()
	for _, a := range d.records.SetAside() {
		d.log.Error("a damaged log file was set aside; what could be read of it was taken over", "file", a.Path, "records", a.Saved, "reason", a.Reason)
	}
	if earlier := d.earlierDamage(); earlier != "" {
		d.log.Warn("files that were damaged are kept", "what", earlier)
	}
	return nil
}

// open opens a ledger and makes it a stream, which does not run yet.
func (d *daemon) open(name string, set *settings) error {
	c, err := d.openLedger(name, set, set.delivers())
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[name] = &stream{name: name, consumer: c, settings: set}
	return nil
}

// openLedger opens a ledger, or creates it when it is a sync's; on = it takes what comes.
func (d *daemon) openLedger(name string, set *settings, on bool) (*queue.Consumer, error) {
	o := queue.ConsumerOptions{Name: name, Enabled: on, WindowBytes: windowBytes, Now: time.Now, Beat: d.pulse.part("ledger " + name)}
	var err error
	if set != nil && set.trial {
		o.Project = set.project
		c, err := d.openTrial(o)
		if err != nil {
			d.pulse.over("ledger " + name)
		}
		return c, err
	}
	if set != nil {
		o.Project = set.project
	} else if o.Project, err = queue.LedgerProject(d.config().Storage.Dir, name); err != nil {
		d.pulse.over("ledger " + name)
		return nil, err
	}
	c, err := queue.OpenConsumer(d.records, o)
	if err != nil {
		d.pulse.over("ledger " + name)
		return nil, err
	}
	if a := c.SetAside(); a != nil {
		d.log.Error("a damaged ledger was set aside; what could be read of it is sent again, under the same ids",
			"sync", name, "file", a.Path, "entries", a.Saved, "reason", a.Reason)
	}
	if err := c.Unmended(); err != nil {
		d.log.Error("a ledger is damaged, and there is no room to take over what can be read; it goes on as it is", "sync", name,
			"reason", err, "do", "free space on the disk of storage.dir, and start ampcio again")
	}
	bind(c, set, d.config().DeadLetters)
	return c, nil
}

// bind sets what a ledger may hold. One that no sync owns takes nothing, and gives
// nothing up either.
func bind(c *queue.Consumer, set *settings, dead config.DeadLetters) {
	if !set.delivers() { // it takes nothing, and holds what it has
		c.SetBound(0, false)
	} else {
		c.SetBound(set.maxPending, set.discardOldest)
	}
	if set == nil || !set.trial {
		c.SetDeadLetterBounds(time.Duration(dead.Keep), int64(dead.MaxBytes))
	}
}

// startStreams starts all that is open.
func (d *daemon) startStreams() {
	for _, name := range d.allNames() {
		s := d.stream(name)
		d.startLedger(s)
		d.startDelivery(s)
	}
}

func (d *daemon) startLedger(s *stream) {
	run := s.consumer.Run
	if _, trial := syncOfTrial(s.name); trial {
		run = d.tolerant(s.name, run)
	}
	p := d.runs.launch(d.runs.storage, run)
	d.mu.Lock()
	defer d.mu.Unlock()
	s.keeping = p
}

// startDelivery begins to deliver by the settings and rules in force, if they say so.
func (d *daemon) startDelivery(s *stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !s.settings.delivers() {
		return
	}
	beats := "delivery " + s.name
	o := s.settings.options
	o.StopGrace, o.Now, o.Log, o.Beat = deliveryGrace, time.Now, d.log, d.pulse.part(beats)
	o.Current, o.Owner, o.Before, o.Meter = d.propertiesNow, d.ownerNow, s.before, d.meter(s.name)
	if project, isRelay := relayedProject(s.name); isRelay {
		o.Marked = d.takenBySync(project)
	}
	sync, trial := syncOfTrial(s.name)
	if trial {
		s.book = d.openBook(s.name, o.Region)
		o.Transport, o.Log = s.book, discarded
		d.log.Info("a dry run: nothing of this sync is sent to Customer.io", "sync", sync, "file", s.book.path)
	}
	running := delivery.New(s.consumer, d.rulesOf(sync), o)
	s.delivery = running
	deliver := func(ctx context.Context) error {
		defer d.pulse.over(beats)
		if err := running.Run(ctx); err != nil {
			return fmt.Errorf("sync %s: %w", o.Name, err)
		}
		return nil
	}
	if trial {
		deliver = d.tolerant(s.name, deliver)
	}
	s.sending = d.runs.launch(d.runs.flow, deliver)
}

// propertiesNow are the properties of a user, or of a device that is nobody's, as they are
// by now, and the built-in ones, packed; nil when nothing is known of them.
func (d *daemon) propertiesNow(project, userID, deviceID string) (properties, builtins []byte, err error) {
	look, id := d.users.User, userID
	if userID == "" {
		look, id = d.users.Device, deviceID
	}
	known, err := look(project, id)
	if err != nil || !known.Any() || userID == "" && known.UserID != "" {
		return nil, nil, err
	}
	return known.Properties, known.Builtins, nil
}

// ownerNow is the first and only user of a device, "" when there is none: where several people have logged in, users.db
// knows the last of them, and what was anonymous is the first one's.
func (d *daemon) ownerNow(project, deviceID string) (userID string, err error) {
	known, err := d.users.Device(project, deviceID)
	if err != nil || !known.Sole {
		return "", err
	}
	return known.UserID, nil
}

// endDelivery lets requests in flight end, within deliveryGrace.
func (d *daemon) endDelivery(s *stream) error {
	d.mu.RLock()
	sending := s.sending
	d.mu.RUnlock()
	err := sending.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.delivery != nil {
		s.before = s.delivery
	}
	if s.book != nil {
		s.book.close()
	}
	s.delivery, s.sending, s.book = nil, nil, nil
	return err
}

// awaitDeliveries returns when all deliveries have ended: their context has.
func (d *daemon) awaitDeliveries() error {
	return d.await(func(s *stream) *part { return s.sending })
}

// awaitLedgers returns when all ledgers have made their last checkpoint.
func (d *daemon) awaitLedgers() error {
	return d.await(func(s *stream) *part { return s.keeping })
}

func (d *daemon) await(of func(*stream) *part) error {
	d.mu.RLock()
	var parts []*part
	for _, name := range sortedKeys(d.streams) {
		parts = append(parts, of(d.streams[name]))
	}
	d.mu.RUnlock()
	var errs []error
	for _, p := range parts {
		errs = append(errs, p.wait())
	}
	return errors.Join(errs...)
}

// stopSync ends the delivery and the ledger of that name and closes it. What it holds
// stays, and so do the log files that it needs; then it can be renamed, removed, or
// opened again by startSync. The caller operates.
func (d *daemon) stopSync(ctx context.Context, name string) error {
	s := d.stream(name)
	if s == nil {
		return fmt.Errorf("sync %s is not open", name)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.RLock()
	keeping := s.keeping
	d.mu.RUnlock()
	if err := errors.Join(d.endDelivery(s), keeping.end()); err != nil {
		return err
	}
	d.closing.Lock()
	defer d.closing.Unlock()
	if takesForSync(name) {
		d.stayBetween(s.consumer)
	}
	d.mu.Lock()
	delete(d.streams, name)
	d.mu.Unlock()
	d.pulse.over("ledger " + name)
	d.rates.Forget(name) // another ledger may get the name
	d.history.Forget(name)
	return s.consumer.Close()
}

// startSync opens the ledger of that name, of a sync of the configuration or not, and
// starts it. The caller operates.
func (d *daemon) startSync(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.stream(name) != nil {
		return fmt.Errorf("sync %s is open already", name)
	}
	if err := d.open(name, settingsOf(d.config(), name)); err != nil {
		return err
	}
	s := d.stream(name)
	d.startLedger(s)
	d.startDelivery(s)
	return nil
}

// sharedWorkspaces has a sentence for each Customer.io workspace that several syncs
// deliver to.
func (d *daemon) sharedWorkspaces() []string {
	of := map[int64][]string{}
	var order []int64
	for _, name := range d.names() {
		c, running := d.consumer(name), d.delivery(name)
		if c == nil || running == nil {
			continue
		}
		id := running.Status().Account.EnvironmentID
		if id == 0 {
			id = c.Workspace()
		}
		if id == 0 {
			continue
		}
		if of[id] = append(of[id], name); len(of[id]) == 2 {
			order = append(order, id)
		}
	}
	var sentences []string
	for _, id := range order {
		sentences = append(sentences, fmt.Sprintf("syncs %s deliver to the same Customer.io workspace (%d): an event that several of them send arrives there once",
			strings.Join(of[id], " and "), id))
	}
	return sentences
}

// watchWorkspaces warns of workspaces that come to be shared.
func (d *daemon) watchWorkspaces(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	told := map[string]bool{}
	for {
		shared := map[string]bool{}
		for _, sentence := range d.sharedWorkspaces() {
			if shared[sentence] = true; !told[sentence] {
				d.log.Warn("several syncs deliver to one workspace", "what", sentence)
			}
		}
		told = shared
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
