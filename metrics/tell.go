package metrics

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ampcio/admin"
)

// MostReasons is how many reasons of one kind a sync, or the door, has a series for. What
// comes beyond is counted together, as [OtherReasons].
const (
	MostReasons  = 40
	OtherReasons = "other"
)

// teller makes the series of one look.
type teller struct {
	to chan<- prometheus.Metric
	c  *collector
}

func (t *teller) gauge(f *Family, value float64, labels ...string) {
	t.to <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, value, labels...)
}

func (t *teller) count(f *Family, value uint64, labels ...string) {
	t.to <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, float64(value), labels...)
}

// oneOf has a series for each word, 1 for the one that is so.
func (t *teller) oneOf(f *Family, words []string, is string, labels ...string) {
	for _, w := range words {
		t.gauge(f, truth(w == is), append(slices.Clone(labels), w)...)
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

// house tells what is not of a sync.
func (t *teller) house(s *admin.Snapshot, process *Process) {
	t.gauge(buildInfo, 1, s.Versions.Version, s.Versions.Commit, s.Versions.Go)
	t.gauge(running, truth(s.Source == "daemon"))
	t.oneOf(houseIs, levels, s.Health.Level)
	if r := s.Reload; s.Source == "daemon" {
		t.gauge(reloadOK, truth(r == nil || r.OK))
		if r != nil {
			t.gauge(reloadAt, seconds(r.At))
		}
	}
	d := &s.Door
	t.count(doorRequests, d.Requests)
	t.count(doorEvents, d.Events)
	t.count(doorDuplicates, d.Duplicates)
	refused := make([]told, 0, len(d.Refused))
	for _, r := range d.Refused {
		refused = append(refused, told{r.Reason, r.Count})
	}
	for _, r := range t.bounded("door", refused) {
		t.count(doorRefused, r.count, r.reason)
	}
	for project, at := range d.LastSeen {
		if at, err := time.Parse(time.RFC3339, at); err == nil {
			t.gauge(doorLast, seconds(at), project)
		}
	}
	if c := d.Certificate; c != nil {
		t.gauge(certEnd, seconds(c.NotAfter))
		t.gauge(certProblem, truth(c.Problem != ""))
	}
	t.gauge(storageUsed, float64(s.Disk.Used))
	t.gauge(storageMax, float64(s.Disk.Max))
	t.gauge(storageFree, float64(s.Disk.Free))
	t.gauge(storageMinFree, float64(s.Disk.MinFree))
	t.gauge(storageRatio, s.Disk.Share)
	if s.Disk.FullETA != nil {
		t.gauge(storageETA, float64(*s.Disk.FullETA))
	}
	t.gauge(storageFull, truth(s.Disk.Full != ""))
	t.gauge(storageDamaged, float64(s.Disk.Damaged))
	t.gauge(logFiles, float64(s.Disk.LogFiles))
	t.gauge(logBytes, float64(s.Disk.LogBytes))
	if process == nil {
		return
	}
	t.gauge(startedAt, seconds(process.Started))
	u := &process.Users
	t.gauge(usersCached, float64(u.Cached))
	t.gauge(usersBytes, float64(u.Bytes))
	t.count(usersPartial, u.Partial)
	t.count(usersOversize, u.Oversize)
	t.count(usersUnappliable, u.Unappliable)
}

var (
	statuses = []string{admin.StatusOK, admin.StatusChecking, admin.StatusUnreachable, admin.StatusBlocked, admin.StatusPaused,
		admin.StatusDisabled, admin.StatusDryRun, admin.StatusOrphaned, admin.StatusStopped}
	levels = []string{admin.LevelOK, admin.LevelWarning, admin.LevelCritical, admin.LevelUnknown}
	gates  = []string{"open", "closed", "opening"}
)

// sync tells how one sync is, and what it has done.
func (t *teller) sync(y *admin.Sync, at time.Time, process *Process) {
	is := []string{y.Name, y.Destination}
	with := func(more ...string) []string { return append(slices.Clone(is), more...) }
	t.gauge(syncInfo, 1, with(y.Project)...)
	t.oneOf(syncStatus, statuses, y.Status, is...)
	t.oneOf(syncHealth, levels, y.Health.Level, is...)
	t.gauge(ledgerDamaged, truth(y.LedgerDamaged), is...)
	if y.LedgerDamaged {
		return // all counts are unknown, whatever they say
	}
	if blocked := y.Status == admin.StatusBlocked; blocked {
		t.gauge(syncBlocked, 1, with(t.word(y.Name+"/blocked", cmp.Or(y.Reason, "unknown")))...)
	} else {
		t.gauge(syncBlocked, 0, with("")...)
	}
	t.gauge(syncPaused, truth(y.PausedSince != nil), is...)
	t.gauge(syncKnown, truth(y.Acknowledged != nil && at.Before(y.Acknowledged.Until)), is...)
	if y.Gate != "" {
		t.oneOf(syncGate, gates, y.Gate, is...)
	}
	if y.LastDelivered != nil {
		t.gauge(lastSuccess, seconds(*y.LastDelivered), is...)
	}

	t.gauge(queueDepth, float64(y.Depth.Ready), with("ready")...)
	t.gauge(queueDepth, float64(y.Depth.InFlight), with("inflight")...)
	t.gauge(queueDepth, float64(y.Depth.Retry), with("retry")...)
	t.gauge(queueDepth, float64(y.Depth.Held), with("held")...)
	switch {
	case y.OldestAge != nil:
		t.gauge(queueOldest, float64(*y.OldestAge), is...)
	case y.Books.Pending == 0:
		t.gauge(queueOldest, 0, is...)
	}
	if l := y.Late; l.Limit != nil {
		t.gauge(lateLimit, float64(*l.Limit), is...)
		t.gauge(lateRecords, float64(l.Over), is...)
		switch {
		case l.OldestLeft != nil:
			t.gauge(lateLeft, float64(*l.OldestLeft), is...)
		case y.Books.Pending == 0:
			t.gauge(lateLeft, float64(*l.Limit), is...)
		}
	}
	t.gauge(queueBytes, float64(y.PendingBytes), is...)
	if y.MaxPending > 0 {
		t.gauge(queueMax, float64(y.MaxPending), is...)
	}
	waiting := make([]told, 0, len(y.Waiting))
	for _, w := range y.Waiting {
		waiting = append(waiting, told{w.Reason, uint64(w.Users)})
	}
	for _, w := range t.bounded(y.Name+"/waiting", waiting) {
		t.gauge(queueWaiting, float64(w.count), with(w.reason)...)
	}
	t.gauge(asideUsers, float64(y.Aside.Users), is...)
	t.gauge(asideRecords, float64(y.Aside.Records), is...)
	t.gauge(asideBytes, float64(y.Aside.Bytes), is...)
	t.gauge(deadLetters, float64(y.Kept.Count), is...)
	t.gauge(deadBytes, float64(y.Kept.Bytes), is...)
	t.gauge(auditDifference, float64(y.Books.Difference), is...)
	if a := y.Audit; a.At != nil {
		t.gauge(auditAt, seconds(*a.At), is...)
		t.gauge(auditLast, float64(a.Difference), is...)
	}
	t.gauge(ledgerBytes, float64(y.LedgerBytes), is...)
	t.gauge(ledgerStuck, truth(y.NoCheckpoint != ""), is...)
	if r := y.DryRun; r != nil {
		t.gauge(dryRunRequests, float64(r.Requests), is...)
		t.gauge(dryRunEvents, float64(r.Events), is...)
		t.gauge(dryRunPending, float64(r.Pending), is...)
	}

	t.done(y, is)
	if n := len(y.LatencyBuckets); n > 0 {
		within := map[float64]uint64{}
		for _, b := range y.LatencyBuckets[:n-1] {
			if b.LE != nil {
				within[*b.LE] = b.Count
			}
		}
		t.to <- prometheus.MustNewConstHistogram(latency.desc, y.LatencyBuckets[n-1].Count, y.LatencySum, within, is...)
	}
	if process == nil {
		return
	}
	for class, n := range process.Attempts[y.Name] {
		t.count(attempts, n, with(class)...)
	}
}

// done tells what the ledger has counted.
func (t *teller) done(y *admin.Sync, is []string) {
	with := func(more ...string) []string { return append(slices.Clone(is), more...) }
	n := &y.Totals
	t.count(received, n.Received, is...)
	t.count(rewound, y.Books.Rewound, is...)
	t.count(ended, n.Delivered, with("delivered")...)
	t.count(ended, n.Filtered, with("filtered")...)
	t.count(ended, n.Buried, with("dead")...)
	t.count(ended, n.Discarded, with("discarded")...)
	t.count(ended, n.Lost, with("lost")...)
	t.count(delivered, n.FirstAttempt, with("first")...)
	t.count(delivered, n.AfterRetry, with("retry")...)
	why := []told{{reason: "max_pending_bytes"}} // always there: an alert asks whether it grows
	for _, r := range y.Discarded {
		if r.Reason == why[0].reason {
			why[0].count = r.Count
			continue
		}
		why = append(why, told{r.Reason, r.Count})
	}
	for _, r := range t.bounded(y.Name+"/discarded", why) {
		t.count(discarded, r.count, with(r.reason)...)
	}
	t.count(operations, n.EventsDelivered, with("event", "delivered", "")...)
	t.count(operations, n.UsersDelivered, with("user", "delivered", "")...)
	for _, kind := range []string{"event", "user"} {
		for _, o := range []struct {
			outcome string
			reasons []admin.Reason
		}{{"filtered", y.Filtered}, {"dead", y.Dead}} {
			why = nil
			for _, r := range o.reasons {
				if r.Kind == kind {
					why = append(why, told{r.Reason, r.Count})
				}
			}
			for _, r := range t.bounded(y.Name+"/"+kind+"/"+o.outcome, why) {
				t.count(operations, r.count, with(kind, o.outcome, r.reason)...)
			}
		}
	}
}

// told is a count by reason.
type told struct {
	reason string
	count  uint64
}

// bounded makes at most MostReasons of the counts of a kind, and one for the others. Who
// has had a series keeps it: else a count would go down.
func (t *teller) bounded(kind string, counts []told) []told {
	slices.SortStableFunc(counts, func(a, b told) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.reason, b.reason))
	})
	var list []told
	var others *told
	for _, c := range counts {
		if w := t.word(kind, c.reason); w != OtherReasons {
			list = append(list, c)
			continue
		}
		if others == nil {
			others = &told{reason: OtherReasons}
		}
		others.count += c.count
	}
	if others != nil {
		list = append(list, *others)
	}
	return list
}

// word is the reason as a label of that kind.
func (t *teller) word(kind, reason string) string {
	known := t.c.words[kind]
	if known == nil {
		known = map[string]bool{}
		t.c.words[kind] = known
	}
	if !known[reason] {
		if len(known) >= MostReasons || reason == OtherReasons {
			return OtherReasons
		}
		known[reason] = true
	}
	return reason
}
