package admin

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Levels of Health, from good to bad.
const (
	LevelOK       = "ok"
	LevelUnknown  = "unknown"
	LevelWarning  = "warning"
	LevelCritical = "critical"
)

// Health is how well something is: a level, a word for what is worst, and one sentence
// that says why, "" when all is well.
type Health struct {
	Level string `json:"level"` // ok | warning | critical | unknown
	Word  string `json:"word"`
	Why   string `json:"why"`
}

// severity orders levels: what is unknown is worse than well, and less urgent than what
// is known to be wrong.
func severity(level string) int {
	switch level {
	case LevelCritical:
		return 3
	case LevelWarning:
		return 2
	case LevelUnknown:
		return 1
	}
	return 0
}

// Worse says whether h is worse than other.
func (h Health) Worse(other Health) bool { return severity(h.Level) > severity(other.Level) }

// Thresholds are from where on something is worth a warning, or is critical. 0 = never.
type Thresholds struct {
	WarnAge, CritAge     time.Duration // of the oldest pending event
	WarnDepth, CritDepth uint64        // pending events
	WarnDead, CritDead   uint64        // dead letters kept
	WarnDisk, CritDisk   float64       // share of the space that may be used
	CritIdle             time.Duration // events wait and could be sent, and none was for so long
	CritLate             time.Duration // age of the oldest pending event: campaigns ignore it soon
	WarnFull             time.Duration // until the disk is full
}

// DefaultThresholds are those by which a Snapshot's Health is judged.
func DefaultThresholds() Thresholds {
	return Thresholds{
		WarnAge: 5 * time.Minute, CritAge: time.Hour, WarnDead: 1, CritDead: 100, WarnDisk: 0.75, CritDisk: 0.9,
		CritIdle: 10 * time.Minute, CritLate: 60 * time.Hour, WarnFull: 4 * time.Hour,
	}
}

// Judge fills in the Health of a Snapshot and of its syncs. It looks at nothing but the
// Snapshot, so the same Snapshot is always judged alike.
func (s *Snapshot) Judge(t Thresholds) {
	s.Health = s.judgeHouse(t) // first of those that are as bad: it concerns all syncs
	for i := range s.Syncs {
		y := &s.Syncs[i]
		y.Health = y.judge(s, t)
		if y.Health.Worse(s.Health) {
			s.Health = y.Health
			s.Health.Why = y.Name + ": " + y.Health.Why
		}
	}
}

// finding is what is wrong, in the order of how much it matters.
type finding struct {
	level, word, why string
}

// worst gives the worst of findings, the first of those that are alike.
func worst(well Health, findings []finding) Health {
	h := well
	for _, f := range findings {
		if found := (Health{f.level, f.word, f.why}); found.Worse(h) {
			h = found
		}
	}
	return h
}

// judgeHouse is of what all syncs share.
func (s *Snapshot) judgeHouse(t Thresholds) Health {
	return worst(Health{LevelOK, "well", ""}, s.houseFindings(t))
}

func (s *Snapshot) houseFindings(t Thresholds) []finding {
	var fs []finding
	add := func(level, word, format string, args ...any) {
		fs = append(fs, finding{level, word, fmt.Sprintf(format, args...)})
	}
	d := s.Disk
	if d.Full != "" {
		add(LevelCritical, "refusing", "new events are refused: %s", d.Full)
	}
	if s.Source == "files" {
		pending, unknown := uint64(0), false
		for _, y := range s.Syncs {
			pending += y.Books.Pending
			unknown = unknown || y.LedgerDamaged
		}
		switch {
		case pending > 0:
			add(LevelCritical, "stopped", "ampcio is stopped: no events are taken, and %s wait", many(pending, "event", "events"))
		case unknown:
			add(LevelCritical, "stopped", "ampcio is stopped: no events are taken, and what waits is unknown")
		default:
			add(LevelWarning, "stopped", "ampcio is stopped: no events are taken; nothing waits")
		}
	}
	if c := s.Door.Certificate; c != nil {
		switch {
		case c.DaysLeft < 0:
			add(LevelCritical, "certificate", "the certificate has expired: SDKs are turned away")
		case c.Problem != "":
			add(LevelWarning, "certificate", "the certificate on disk cannot be used: %s", c.Problem)
		case c.DaysLeft < renewWithin:
			add(LevelWarning, "certificate", "the certificate expires in %d days", c.DaysLeft)
		}
	}
	for _, share := range []struct {
		level string
		from  float64
	}{{LevelCritical, t.CritDisk}, {LevelWarning, t.WarnDisk}} {
		if share.from > 0 && d.Share >= share.from {
			add(share.level, "disk", "%.0f %% of the space is used (from %.0f %%)", d.Share*100, share.from*100)
			break
		}
	}
	if d.FullETA != nil && t.WarnFull > 0 && *d.FullETA < seconds(t.WarnFull) {
		add(LevelWarning, "disk", "new events are refused in %s, if it goes on like this", age(d.FullETA))
	}
	if s.Reload != nil && !s.Reload.OK {
		add(LevelWarning, "reload", "the last reload failed, the configuration before stays in force: %s", s.Reload.Error)
	}
	if d.Damaged > 0 {
		add(LevelWarning, "damaged", "%s of the log could not be read", many(uint64(d.Damaged), "chunk", "chunks"))
	}
	return fs
}

// judge is of one sync.
func (y *Sync) judge(s *Snapshot, t Thresholds) Health { return worst(y.well(), y.findings(s, t)) }

func (y *Sync) findings(s *Snapshot, t Thresholds) []finding {
	var fs []finding
	add := func(level, word, format string, args ...any) {
		fs = append(fs, finding{level, word, fmt.Sprintf(format, args...)})
	}
	if y.LedgerDamaged {
		return []finding{{LevelCritical, "damaged", "its ledger is damaged, so what is pending is unknown"}}
	}
	pending := y.Books.Pending
	// What somebody knows of is worth a warning, and wakes nobody any more.
	outage := LevelCritical
	known := ""
	if a := y.Acknowledged; a != nil && s.At.Before(a.Until) {
		outage = LevelWarning
		left := int64(a.Until.Sub(s.At) / time.Second)
		known = fmt.Sprintf(" (known to %s for another %s: %s)", a.By, age(&left), a.Reason)
	}
	if !y.Books.Balanced || !y.Audit.Balanced {
		add(LevelCritical, "unbalanced", "the books do not balance: %s", y.outBy())
	}
	if y.NoCheckpoint != "" {
		add(LevelCritical, "full", "nothing is sent, since the disk could not remember that it was: %s", y.NoCheckpoint)
	}
	mustDeliver := false
	switch y.Status {
	case StatusBlocked:
		add(outage, "blocked", "%s%s", cmp.Or(y.Detail, y.Reason), known)
		mustDeliver = true
	case StatusUnreachable:
		add(LevelWarning, "unreachable", "%s%s", cmp.Or(y.Detail, y.Reason, "no answer"), known)
		mustDeliver = true
	case StatusPaused:
		add(LevelWarning, "paused", "paused by an operator%s", waits(pending))
	case StatusOrphaned:
		if pending > 0 || y.Depth.Dead > 0 {
			add(LevelWarning, "orphaned", "no longer in the configuration%s", waits(pending))
		}
	case StatusDisabled:
		if pending > 0 {
			add(LevelWarning, "off", "switched off%s", waits(pending))
		}
	case StatusStopped:
		if pending > 0 {
			add(LevelCritical, "stopped", "ampcio is stopped%s", waits(pending))
		} else {
			add(LevelWarning, "stopped", "ampcio is stopped")
		}
	case StatusOK, StatusChecking:
		mustDeliver = true
	}
	if (mustDeliver || y.Status == StatusPaused) && y.Late.OldestLeft != nil && y.Late.Limit != nil && t.CritLate > 0 && !y.isRelay() {
		if old := *y.Late.Limit - *y.Late.OldestLeft; old >= seconds(t.CritLate) {
			add(LevelCritical, "late", "the oldest event waits %s: from %s on it starts no campaigns", age(&old), age(y.Late.Limit))
		}
	}
	if mustDeliver {
		y.judgeQueue(t, outage, known, add, s.At)
	}
	for _, bound := range []struct {
		level string
		from  uint64
	}{{LevelCritical, t.CritDead}, {LevelWarning, t.WarnDead}} {
		if bound.from > 0 && y.Depth.Dead >= bound.from {
			add(bound.level, "refused", "%s", many(y.Depth.Dead, "dead letter is kept", "dead letters are kept"))
			break
		}
	}
	if y.MaxPending > 0 && y.PendingBytes >= y.MaxPending && y.WhenFull == "discard_oldest" {
		add(LevelCritical, "discarding", "more waits than max_pending_bytes: the oldest are discarded")
	} else if y.overfull() && mustDeliver {
		add(LevelWarning, "filling", "%s of max_pending_bytes %s wait", size(y.PendingBytes), size(y.MaxPending))
	}
	return fs
}

// judgeQueue is of what waits and how long, in a sync that is meant to deliver.
func (y *Sync) judgeQueue(t Thresholds, outage, known string, add func(level, word, format string, args ...any), now time.Time) {
	pending := y.Books.Pending
	oldest := int64(0)
	if y.OldestAge != nil {
		oldest = *y.OldestAge
	}
	// While others get through, one user who waits for a retry is not a queue that stands.
	others := y.OldestAge != nil && y.Status == StatusOK && y.Depth.Retry == pending
	if y.Status == StatusOK && y.Depth.Ready > 0 && t.CritIdle > 0 && oldest >= seconds(t.CritIdle) && y.idleSince(now) >= t.CritIdle {
		add(LevelCritical, "stuck", "%s could be sent, and none was for %s", many(y.Depth.Ready, "event", "events"), age(ptrSeconds(y.idleSince(now))))
	}
	for _, bound := range []struct {
		level string
		from  time.Duration
	}{{LevelCritical, t.CritAge}, {LevelWarning, t.WarnAge}} {
		if bound.from <= 0 || y.OldestAge == nil || oldest < seconds(bound.from) {
			continue
		}
		level := bound.level
		if level == LevelCritical {
			level = outage
		}
		switch {
		case others:
			add(LevelWarning, "waiting", "%s, the oldest %s%s; all others are delivered", waiting(y.Depth.Retry), age(y.OldestAge), y.whyWaiting())
		case y.Status == StatusUnreachable:
			add(level, "unreachable", "%s; the oldest event waits %s%s", cmp.Or(y.Detail, y.Reason, "no answer"), age(y.OldestAge), known)
		default:
			add(level, "behind", "the oldest event waits %s (from %s)%s", age(y.OldestAge), age(ptrSeconds(bound.from)), known)
		}
		break
	}
	for _, bound := range []struct {
		level string
		from  uint64
	}{{outage, t.CritDepth}, {LevelWarning, t.WarnDepth}} {
		if bound.from > 0 && pending >= bound.from {
			add(bound.level, "behind", "%s (from %s)%s", waiting(pending), count(bound.from), known)
			break
		}
	}
}

// idleSince is for how long nothing was delivered.
func (y *Sync) idleSince(now time.Time) time.Duration {
	if y.LastDelivered == nil {
		return 1 << 62
	}
	return now.Sub(*y.LastDelivered)
}

func (y *Sync) outBy() string {
	if !y.Books.Balanced {
		return fmt.Sprintf("out by %d", y.Books.Difference)
	}
	return fmt.Sprintf("the last audit found %s", many(uint64(y.Audit.Difference), "difference", "differences"))
}

// whyWaiting names what those who wait are answered, if it is one thing.
func (y *Sync) whyWaiting() string {
	var reasons []string
	for _, w := range y.Waiting {
		reasons = append(reasons, w.Reason)
	}
	if len(reasons) == 0 || len(reasons) > 3 {
		return ""
	}
	return " (" + strings.Join(reasons, ", ") + ")"
}

// well is the Health of a sync of which there is nothing to complain.
func (y *Sync) well() Health {
	word := "well"
	switch y.Status {
	case StatusChecking:
		word = "starting"
	case StatusDisabled:
		word = "off"
	case StatusDryRun:
		word = "dry run"
	case StatusOrphaned:
		word = "orphaned"
	}
	return Health{LevelOK, word, ""}
}

func waiting(n uint64) string { return many(n, "event waits", "events wait") }

// waits is the end of a sentence.
func waits(n uint64) string {
	if n == 0 {
		return ""
	}
	return ", and " + waiting(n)
}

func many(n uint64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + more
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func ptrSeconds(d time.Duration) *int64 { s := seconds(d); return &s }
