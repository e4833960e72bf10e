package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/ingest"
	"ampcio/logbook"
	"ampcio/queue"
)

// Snapshot implements admin.Source.
func (d *daemon) Snapshot(context.Context) (admin.Snapshot, error) {
	return d.snapshot(ageBuckets)
}

// snapshot is Snapshot, with what is pending counted by the given ages.
func (d *daemon) snapshot(ages []time.Duration) (admin.Snapshot, error) {
	now := time.Now()
	snap := newSnapshot(d.config(), "daemon", now)
	detail := queue.Detail{Now: now, Bounds: boundsOf(d.config(), ages), Examples: true}
	hash := lazyHash(func() (userHash, error) { return openUserHash(d.config().Storage.Dir) })
	uptime := seconds(now.Sub(d.started))
	snap.Uptime = &uptime
	st := d.records.Stats()
	snap.Disk = disk(d.config(), st)
	snap.Notes = notes(st)
	for _, name := range d.names() {
		c := d.consumer(name)
		if c == nil {
			continue // it has just been closed
		}
		stats, err := c.Look(detail)
		if err != nil {
			return snap, err
		}
		y := syncOf(stats, d.config(), now)
		addDetail(&y, stats, detail, ages, d.config(), hash)
		addLatency(&y, stats)
		d.lastLooks.addAudit(&y)
		if a := c.SetAside(); a != nil {
			snap.Notes = append(snap.Notes, fmt.Sprintf("the ledger of sync %s was damaged and is kept at %s", name, a.Path))
		}
		y.Status = idle(d.config(), name)
		if y.DryRun, err = d.dryRunOf(name, now); err != nil {
			return snap, err
		}
		if y.Status == admin.StatusDryRun && y.DryRun == nil {
			snap.Notes = append(snap.Notes, fmt.Sprintf("the dry run of sync %s could not begin, or has stopped: the log says why; a restart begins it again", name))
		}
		if s := d.delivery(name); s != nil {
			applyStatus(&y, s.Status(), now)
		}
		hold(&y)
		y.RateIn, y.RateOut = d.rates.Of(name)
		y.DrainETA = drain(y)
		snap.Syncs = append(snap.Syncs, y)
	}
	if earlier := d.earlierDamage(); earlier != "" {
		snap.Notes = append(snap.Notes, earlier)
	}
	if w := d.users.Warning(); w != nil {
		snap.Notes = append(snap.Notes, w.Error())
	}
	known := d.users.Stats()
	if known.Waits != "" {
		snap.Notes = append(snap.Notes, "users.db is not written at the moment, which loses nothing: "+known.Waits)
	}
	for _, n := range []struct {
		count uint64
		what  string
	}{
		{known.Partial, "events of users with very many properties carry only those that the rules name"},
		{known.Oversize, "property updates were not applied: the user has too many or too large properties"},
		{known.Unappliable, "property updates could not be applied to what was stored"},
		{known.DamagedKeys, "entries of users.db were damaged and count as none"},
	} {
		if n.count > 0 {
			snap.Notes = append(snap.Notes, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	snap.Notes = append(snap.Notes, d.sharedWorkspaces()...)
	if d.door.Refusing() {
		snap.Notes = append(snap.Notes, "new events are refused (503) while an operator drains the queue: ampcio drain --refuse")
	}
	snap.Notes = append(snap.Notes, d.alertNotes()...)
	snap.Door = doorOf(d.address, d.certificate != nil, d.door.Door())
	snap.Door.Certificate = d.certificate.show(now)
	snap.Disk.FullETA = d.filling.ETA(snap.Disk)
	snap.Reload = d.lastLooks.lastReload()
	if err := acknowledge(d.config().Storage.Dir, &snap); err != nil {
		snap.Notes = append(snap.Notes, err.Error())
	}
	finish(&snap)
	return snap, nil
}

// Ready implements admin.Source.
func (d *daemon) Ready() error {
	if silent := d.pulse.silent(stuckAfter); len(silent) > 0 {
		return errors.New("stuck: " + strings.Join(silent, ", "))
	}
	if d.door.Refusing() {
		return errors.New("new events are refused: ampcio drain --refuse")
	}
	if st := d.records.Stats(); st.Full != "" {
		return errors.New("storage is full: " + st.Full)
	}
	return nil
}

// filesSnapshot reads the state of a stopped installation. queue.ErrLocked means
// that it is not stopped.
func filesSnapshot(cfg *config.Config, now time.Time) (admin.Snapshot, error) {
	return filesSnapshotOf(cfg, now, ageBuckets)
}

// filesSnapshotOf is filesSnapshot, with what is pending counted by the given ages.
func filesSnapshotOf(cfg *config.Config, now time.Time, ages []time.Duration) (admin.Snapshot, error) {
	snap := newSnapshot(cfg, "files", now)
	detail := queue.Detail{Now: now, Bounds: boundsOf(cfg, ages), Examples: true}
	st, consumers, err := queue.InspectDetail(cfg.Storage.Dir, detail)
	if err != nil {
		return snap, err
	}
	snap.Disk = disk(cfg, st)
	snap.Disk.Full = "" // nobody is there to refuse
	snap.Notes = notes(st)
	hash := lazyHash(func() (userHash, error) { return storedUserHash(cfg.Storage.Dir) })
	for _, stats := range consumers {
		y := syncOf(stats, cfg, now)
		addDetail(&y, stats, detail, ages, cfg, hash)
		y.Status = admin.StatusStopped
		if _, isSync := cfg.Sync[stats.Name]; isSync {
			if y.DryRun, err = storedDryRun(cfg, stats.Name); err != nil {
				return snap, err
			}
		}
		set := settingsOf(cfg, stats.Name)
		switch {
		case set == nil:
			y.Status = admin.StatusOrphaned
			set = &settings{}
		case set.discardOldest:
			y.MaxPending, y.WhenFull = set.maxPending, "discard_oldest"
		default:
			y.MaxPending, y.WhenFull = set.maxPending, "refuse"
		}
		if stats.Project == "" {
			y.Project, y.Books.Balanced, y.LedgerDamaged = set.project, false, true
			snap.Notes = append(snap.Notes, fmt.Sprintf("the ledger of sync %s is damaged: what is pending is unknown until ampcio is started, which sets it aside and goes on", stats.Name))
		}
		hold(&y)
		snap.Syncs = append(snap.Syncs, y)
	}
	if kept := damagedNote(cfg.Storage.Dir, nil); kept != "" {
		snap.Notes = append(snap.Notes, kept)
	}
	door, err := readDoorBook(cfg.Storage.Dir)
	if err != nil {
		return snap, err
	}
	snap.Door = doorOf(cfg.Server.Listen, cfg.Server.TLSCert != "", door)
	if err := acknowledge(cfg.Storage.Dir, &snap); err != nil {
		snap.Notes = append(snap.Notes, err.Error())
	}
	finish(&snap)
	return snap, nil
}

func newSnapshot(cfg *config.Config, source string, now time.Time) admin.Snapshot {
	v := version()
	return admin.Snapshot{Schema: admin.Schema, Source: source, At: now.UTC().Truncate(time.Second), Version: v.version,
		Versions: admin.Versions{Version: v.version, Commit: v.commit, Go: v.golang},
		Syncs:    []admin.Sync{}, Notes: []string{}}
}

// idle is the status of a sync that does not deliver because of the configuration.
func idle(cfg *config.Config, name string) string {
	if y := cfg.Sync[name]; y.Enabled && y.DryRun {
		return admin.StatusDryRun
	}
	if inConfig(cfg, name) {
		return admin.StatusDisabled
	}
	return admin.StatusOrphaned
}

func notes(st queue.LogStats) []string {
	ns := []string{}
	for _, a := range st.SetAside {
		ns = append(ns, fmt.Sprintf("a damaged log file is kept at %s (%d of its records were taken over)", a.Path, a.Saved))
	}
	return ns
}

func disk(cfg *config.Config, st queue.LogStats) admin.Disk {
	d := admin.Disk{
		Dir: cfg.Storage.Dir, Used: st.Used, Max: int64(cfg.Storage.MaxBytes), Free: st.Free, MinFree: int64(cfg.Storage.MinFree),
		Kept: st.KeptBytes, LogFiles: st.Files, LogBytes: st.Bytes, Full: st.Full, Damaged: st.Damaged,
	}
	d.SetShare()
	return d
}

func destinationOf(stream string) string {
	if isRelay(stream) {
		return admin.ToAmplitude
	}
	return admin.ToCustomerIO
}

// syncOf is what the ledger knows of a sync.
func syncOf(st queue.ConsumerStats, cfg *config.Config, now time.Time) admin.Sync {
	b := st.Books
	whenFull := "refuse"
	if st.DiscardsOldest {
		whenFull = "discard_oldest"
	}
	y := admin.Sync{
		Name: st.Name, Project: st.Project, Destination: destinationOf(st.Name),
		Depth:     admin.Depth{Ready: st.Ready, InFlight: st.InFlight, Retry: st.Retry, Dead: st.DeadKept},
		OldestAge: ageOf(st.Oldest, now), NextAttempt: waitUntil(st.NextDue, now),
		Workspace: st.Workspace, NoCheckpoint: st.Full,
		PendingBytes: st.PendingBytes, MaxPending: st.MaxPending, WhenFull: whenFull,
		Waiting: []admin.Waiting{}, Filtered: []admin.Reason{}, Dead: []admin.Reason{}, Discarded: []admin.Reason{},
		Aside: admin.Aside{Users: st.Aside.Lanes, Records: st.Aside.Records, Bytes: st.Aside.Bytes, OldestAge: ageOf(st.Aside.Oldest, now)},
		Kept: admin.DeadLetters{Count: st.DeadKept, Bytes: st.DeadBytes,
			KeepFor: seconds(time.Duration(cfg.DeadLetters.Keep)), MaxBytes: int64(cfg.DeadLetters.MaxBytes)},
		Totals: admin.Totals{
			Received: b.Taken, Delivered: b.Delivered, Filtered: b.Filtered, Dead: b.Dead, Discarded: b.Discarded, Lost: b.Lost,
			FirstAttempt: st.Tallies["record/first_try"].N, AfterRetry: st.Tallies["record/after_retry"].N,
			Buried: st.Tallies["record/buried"].N, EventsDelivered: st.Tallies["event/delivered"].N, UsersDelivered: st.Tallies["user/delivered"].N,
		},
		Books:       admin.Books{Taken: b.Taken, Rewound: b.Rewound, Pending: b.Pending, Balanced: b.Difference() == 0, Difference: b.Difference()},
		LedgerBytes: st.LedgerBytes,
	}
	for _, at := range []struct {
		ms int64
		to **time.Time
	}{{st.LastDelivered, &y.LastDelivered}, {st.LastRewind, &y.LastRewind}, {st.PausedSince, &y.PausedSince}} {
		if at.ms != 0 {
			*at.to = timeOf(at.ms)
		}
	}
	for _, reason := range sortedKeys(st.Waiting) {
		w := st.Waiting[reason]
		y.Waiting = append(y.Waiting, admin.Waiting{Reason: reason, Users: w.Lanes, Records: recordsOf(w), NextAttempt: waitUntil(w.NextDue, now),
			OldestAge: ageOf(w.Oldest, now), LastAnswer: answerOf(reason)})
	}
	for _, key := range sortedKeys(st.Tallies) {
		kind, rest, _ := strings.Cut(key, "/")
		verdict, reason, reasoned := strings.Cut(rest, "/")
		if kind == "user" && !reasoned && verdict != "delivered" {
			verdict, reason = "filtered", verdict // the tally has the reason alone
		}
		c := st.Tallies[key]
		r := admin.Reason{Kind: kind, Reason: reason, Count: c.N, Newest: timeOf(c.Newest), Example: c.Example}
		switch verdict {
		case "filtered":
			y.Filtered = append(y.Filtered, r)
		case "dead":
			y.Dead = append(y.Dead, r)
		case "discarded":
			y.Discarded = append(y.Discarded, r)
		}
	}
	for _, rs := range [][]admin.Reason{y.Filtered, y.Dead, y.Discarded} {
		slices.SortStableFunc(rs, func(a, b admin.Reason) int { return cmp.Compare(b.Count, a.Count) })
	}
	return y
}

// recordsOf is how many records wait; null when only the users are known, as when
// ampcio is stopped.
func recordsOf(w queue.Wait) *uint64 {
	if w.Records == 0 {
		return nil
	}
	return &w.Records
}

// applyStatus adds what the delivery of a sync says of itself. Of a sync that is paused
// nothing else matters, but that it would not go on because it is blocked.
func applyStatus(y *admin.Sync, s delivery.Status, now time.Time) {
	y.Gate, y.LastAnswer = string(s.Gate), s.LastAnswer
	y.GateSince = secondOf(s.GateSince)
	if y.PausedSince != nil && s.State != delivery.Blocked {
		y.Status, y.Since = admin.StatusPaused, y.PausedSince
		return
	}
	y.Status, y.Since = string(s.State), secondOf(s.Since)
	y.Reason, y.Detail, y.Advice = s.Reason, s.Detail, s.Advice
	if !s.NextProbe.IsZero() {
		y.NextProbe = waitUntil(s.NextProbe.UnixMilli(), now)
	}
	if s.OtherWorkspace.To != 0 {
		y.OtherWorkspace = &admin.OtherWorkspace{From: s.OtherWorkspace.From, To: s.OtherWorkspace.To}
	}
}

func secondOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

// hold counts what is ready as held while the sync cannot deliver.
func hold(y *admin.Sync) {
	if y.Status != admin.StatusOK {
		y.Depth.Held, y.Depth.Ready = y.Depth.Ready, 0
	}
}

// drain is how long what is pending takes at the speed of the last minute.
func drain(y admin.Sync) *int64 {
	if y.Status != admin.StatusOK || y.RateIn == nil || y.RateOut == nil || *y.RateOut <= *y.RateIn || y.Books.Pending == 0 {
		return nil
	}
	s := int64(math.Ceil(float64(y.Books.Pending) / (*y.RateOut - *y.RateIn)))
	return &s
}

// doorOf is the door's state; the URL is that of the address that is listened on, with
// the word HOST where that is every address of the machine.
func doorOf(address string, encrypted bool, s ingest.DoorStats) admin.Door {
	if host, port, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			address = net.JoinHostPort("HOST", port)
		}
	}
	scheme := "http://"
	if encrypted {
		scheme = "https://"
	}
	url := scheme + address + "/2/httpapi"
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") { // a unix socket that systemd has passed
		url = "unix:" + address
	}
	door := admin.Door{URL: url, Requests: s.Requests, Events: s.Events, Duplicates: s.Duplicates,
		LastSeen: map[string]string{}, Refused: []admin.Refused{}}
	if l := s.Last; l != nil {
		door.Last = &admin.DoorRequest{At: l.At.UTC().Truncate(time.Second), Peer: l.Peer, Proxied: l.Proxied, Trusted: l.Trusted}
	}
	for project, at := range s.LastSeen {
		door.LastSeen[project] = at.UTC().Format(time.RFC3339)
	}
	for _, r := range s.Refused {
		last := r.Last
		door.Refused = append(door.Refused, admin.Refused{Reason: r.Reason, Count: r.Count, Last: &last, LastAddress: r.Address})
	}
	return door
}

// keepRates notes the totals of each sync every few seconds.
func (d *daemon) keepRates(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	given := givenUp{}
	d.loadHistory()
	defer d.saveHistory()
	saved := time.Now()
	for {
		levels := map[string]admin.Level{}
		for _, name := range d.names() {
			c := d.consumer(name)
			if c == nil {
				continue
			}
			if st, err := c.Stats(); err == nil {
				now := time.Now()
				level := progressOf(st.Books)
				level.Oldest = ageOf(st.Oldest, now)
				d.rates.Note(name, now, level.In, level.Out)
				levels[name] = level
				n := given.since(name, st.Tallies["record/discarded/max_pending_bytes"].N)
				d.repeats.For("sync", name).Note(oldestGivenUp, "max_pending_bytes", n, "do", "let it deliver (ampcio sync status "+name+"), or raise max_pending_bytes, then: ampcio reload")
			}
		}
		d.history.Note(time.Now(), levels)
		if time.Since(saved) >= saveHistoryEvery {
			saved = time.Now()
			d.saveHistory()
		}
		d.endAcknowledged(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// progressOf is what has come in and what has ended by now: also of what a rewind took once
// more, or it would look as if less had ended than before it.
func progressOf(b queue.Books) admin.Level {
	return admin.Level{In: b.Taken, Out: b.Taken + b.Rewound - b.Pending, Pending: b.Pending}
}

// givenUp remembers of each sync how many events that were given up are told of.
type givenUp map[string]uint64

// since is how many of count are to be told of now. What there was when a sync is first
// seen was told of by another process.
func (g givenUp) since(name string, count uint64) uint64 {
	before, known := g[name]
	g[name] = count
	if !known || count < before {
		return 0
	}
	return count - before
}

var oldestGivenUp = logbook.Line{Level: slog.LevelWarn, Message: "the oldest events were given up, since more waits than max_pending_bytes",
	Over: "no more events are given up", Quiet: 10 * time.Minute}

// The door's book is what queue-stats tells of the door when ampcio is stopped. It
// is for people: it is written every few seconds, and a crash may lose the newest.
const doorBook = "door.json"

func (d *daemon) keepDoorBook(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.writeDoorBook()
		case <-ctx.Done():
			d.writeDoorBook()
			return
		}
	}
}

func (d *daemon) writeDoorBook() {
	path := filepath.Join(d.config().Storage.Dir, doorBook)
	b, err := json.Marshal(d.door.Door())
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		d.log.Debug("the door's book was not written", "error", err)
	}
}

// readDoorBook reads the door's book; without one, as after a first start that was
// killed, nothing is known.
func readDoorBook(dir string) (s ingest.DoorStats, err error) {
	b, err := os.ReadFile(filepath.Join(dir, doorBook))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return ingest.DoorStats{}, nil // torn by a crash: as if there were none
	}
	return s, nil
}

func timeOf(ms int64) *time.Time {
	t := time.UnixMilli(ms).UTC().Truncate(time.Second)
	return &t
}

func ageOf(ms int64, now time.Time) *int64 {
	if ms == 0 {
		return nil
	}
	s := max(seconds(now.Sub(time.UnixMilli(ms))), 0)
	return &s
}

func waitUntil(ms int64, now time.Time) *int64 {
	if ms == 0 {
		return nil
	}
	s := max(seconds(time.UnixMilli(ms).Sub(now)), 0)
	return &s
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
