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

// Health is how well something is: a level, a word for what is worst, one sentence that
// says why, and what to do about it; both are "" when all is well.
type Health struct {
	Level string `json:"level"` // ok | warning | critical | unknown
	Word  string `json:"word"`
	Why   string `json:"why"`
	ToDo  string `json:"to_do"`
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
	s.House = s.judgeHouse(t, nil)
	s.Health = s.House
	if s.Health.Level == LevelWarning && s.Source != "files" {
		s.Health = Health{Level: LevelOK} // what is wrong with a sync is told of first
	}
	for i := range s.Syncs {
		y := &s.Syncs[i]
		y.Health = y.judge(s, t, nil)
		if y.Health.Worse(s.Health) {
			s.Health = y.Health
			s.Health.Why = y.Name + ": " + y.Health.Why
		}
	}
	if s.House.Worse(s.Health) || s.Health.Level == LevelOK {
		s.Health = s.House
	}
}

// findings are what is wrong, the first of those that are as bad the one to be told.
type findings struct {
	worst Health
	each  func(Health) // told of every one; nil = nobody is
}

// add tells of something by a level, a word, what to do, and why.
func (f *findings) add(level, word, todo, why string, args ...any) {
	h := Health{level, word, fmt.Sprintf(why, args...), todo}
	if h.Worse(f.worst) {
		f.worst = h
	}
	if f.each != nil {
		f.each(h)
	}
}

// or is the worst that was found, or, if nothing was, that all is well.
func (f *findings) or(word string) Health {
	if f.worst.Level == "" {
		return Health{Level: LevelOK, Word: word}
	}
	return f.worst
}

// judgeHouse is of what all syncs share.
func (s *Snapshot) judgeHouse(t Thresholds, each func(Health)) Health {
	f := findings{each: each}
	d := s.Disk
	space := "see what fills the disk: df -h " + d.Dir
	if d.Full != "" {
		todo := cmp.Or(d.Advice, space)
		for i := range s.Syncs {
			if y := &s.Syncs[i]; y.refused(d.Full) {
				todo = y.Advice
			}
		}
		f.add(LevelCritical, "refusing", todo, "new events are refused: %s", d.Full)
	}
	if s.Source == "files" {
		s.judgeStopped(&f)
	}
	if c := s.Door.Certificate; c != nil {
		const renew = "renew it: certbot renew"
		switch {
		case c.DaysLeft < 0:
			f.add(LevelCritical, "certificate", renew, "the certificate has expired: SDKs are turned away")
		case c.Problem != "":
			f.add(LevelWarning, "certificate", renew, "the certificate on disk cannot be used: %s", c.Problem)
		case c.DaysLeft < renewWithin:
			f.add(LevelWarning, "certificate", renew, "the certificate expires in %s", many(uint64(c.DaysLeft), "day", "days"))
		}
	}
	for _, share := range []struct {
		level string
		from  float64
	}{{LevelCritical, t.CritDisk}, {LevelWarning, t.WarnDisk}} {
		if share.from > 0 && d.Share >= share.from {
			f.add(share.level, "disk", space+"; or raise storage.max_bytes, then: ampcio reload",
				"%.0f %% of the space for events is used (from %.0f %%)", d.Share*100, share.from*100)
			break
		}
	}
	if d.FullETA != nil && t.WarnFull > 0 && *d.FullETA < seconds(t.WarnFull) && (d.Share >= fillingFrom || *d.FullETA < seconds(fillingSoon)) {
		f.add(LevelWarning, "disk", space, "new events are refused in %s, if it goes on like this", age(d.FullETA))
	}
	if s.Reload != nil && !s.Reload.OK {
		f.add(LevelWarning, "reload", "see what is wrong with the file: ampcio check-config", "the last reload failed, and the configuration before stays in force: %s", s.Reload.Error)
	}
	if d.Damaged > 0 {
		f.add(LevelWarning, "damaged", "see what was lost: ampcio audit", "%s of the log could not be read", many(uint64(d.Damaged), "chunk", "chunks"))
	}
	return f.or("well")
}

// A burst is over before it fills a disk with much room: until so much of it is used, only
// what is full soon is worth a word.
const (
	fillingFrom = 0.5 // share
	fillingSoon = time.Hour
)

func (s *Snapshot) judgeStopped(f *findings) {
	pending, unknown := uint64(0), false
	for _, y := range s.Syncs {
		pending += y.Books.Pending
		unknown = unknown || y.LedgerDamaged
	}
	switch {
	case pending > 0:
		f.add(LevelCritical, "stopped", start, "ampcio is stopped: no events are taken, and %s", waiting(pending))
	case unknown:
		f.add(LevelCritical, "stopped", start, "ampcio is stopped: no events are taken, and what waits is unknown")
	default:
		f.add(LevelWarning, "stopped", start, "ampcio is stopped: no events are taken; nothing waits")
	}
}

const start = "start it: systemctl start ampcio"

// judge is of one sync.
func (y *Sync) judge(s *Snapshot, t Thresholds, each func(Health)) Health {
	f := findings{each: each}
	if y.LedgerDamaged {
		f.add(LevelCritical, "damaged", start, "its ledger is damaged, so what is pending is unknown")
		return f.worst
	}
	pending := y.Books.Pending
	// What somebody knows of is worth a warning, and wakes nobody any more.
	outage, known := LevelCritical, ""
	if a := y.Acknowledged; a != nil && s.At.Before(a.Until) {
		outage = LevelWarning
		left := int64(a.Until.Sub(s.At) / time.Second)
		known = fmt.Sprintf(" (known to %s for another %s: %s)", a.By, age(&left), a.Reason)
	}
	if !y.Books.Balanced || y.Audit.At != nil && !y.Audit.Balanced {
		f.add(LevelCritical, "unbalanced", "see what is wrong: ampcio audit, and tell us what it says", "the books do not balance: %s", y.outBy())
	}
	if y.NoCheckpoint != "" {
		f.add(LevelCritical, "full", "free space: df -h "+s.Disk.Dir, "nothing is sent, since the disk could not remember that it was: %s", y.NoCheckpoint)
	}
	delivers := false
	switch y.Status {
	case StatusBlocked:
		f.add(outage, "blocked", y.Advice, "%s%s", cmp.Or(y.Detail, y.Reason), known)
		delivers = true
	case StatusUnreachable:
		if y.OldestAge == nil || t.CritAge <= 0 || *y.OldestAge < seconds(t.CritAge) { // else it is told of below
			f.add(LevelWarning, "unreachable", y.Advice, "%s%s", y.unreachable(), known)
		}
		delivers = true
	case StatusPaused:
		f.add(LevelWarning, "paused", y.Advice, "paused by an operator%s", waits(pending))
	case StatusOrphaned:
		if pending > 0 || y.Depth.Dead > 0 {
			f.add(LevelWarning, "orphaned", y.Advice, "no longer in the configuration%s", waits(pending))
		}
	case StatusDisabled:
		if pending > 0 {
			f.add(LevelWarning, "off", y.Advice, "switched off%s", waits(pending))
		}
	case StatusStopped:
		if pending > 0 {
			f.add(LevelCritical, "stopped", start, "ampcio is stopped%s", waits(pending))
		} else {
			f.add(LevelWarning, "stopped", start, "ampcio is stopped")
		}
	case StatusOK, StatusChecking:
		delivers = true
	}
	if l := y.Late; !y.catchesUp(t, s.At) && (delivers || y.Status == StatusPaused) && l.OldestLeft != nil && l.Limit != nil && t.CritLate > 0 && !y.isRelay() {
		if old := *l.Limit - *l.OldestLeft; old >= seconds(t.CritLate) {
			f.add(LevelCritical, "late", y.Advice, "the oldest event waits %s: from %s on it starts no campaigns", age(&old), age(l.Limit))
		}
	}
	if delivers {
		y.judgeQueue(&f, t, outage, known, s.At)
	}
	for _, bound := range []struct {
		level string
		from  uint64
	}{{LevelCritical, t.CritDead}, {LevelWarning, t.WarnDead}} {
		if bound.from > 0 && y.Depth.Dead >= bound.from {
			f.add(bound.level, "refused", "see why, then replay or drop: ampcio dead-letters list --sync "+y.Name, "%s", y.deadKept())
			break
		}
	}
	if y.MaxPending > 0 && y.PendingBytes >= y.MaxPending && y.WhenFull == "discard_oldest" {
		f.add(LevelCritical, "discarding", y.Advice, "more waits than max_pending_bytes: the oldest are discarded")
	} else if y.overfull() && delivers {
		f.add(LevelWarning, "filling", y.Advice, "%s of max_pending_bytes %s wait", size(y.PendingBytes), size(y.MaxPending))
	}
	return f.or(y.wellWord())
}

// judgeQueue is of what waits and how long, in a sync that is meant to deliver.
func (y *Sync) judgeQueue(f *findings, t Thresholds, outage, known string, now time.Time) {
	pending, oldest := y.Books.Pending, int64(0)
	if y.OldestAge != nil {
		oldest = *y.OldestAge
	}
	standing := y.RateOut == nil || *y.RateOut == 0 // what is filtered moves on, too
	if idle := y.idleSince(now); y.Status == StatusOK && standing && y.Depth.Ready > 0 && t.CritIdle > 0 && oldest >= seconds(t.CritIdle) && idle >= t.CritIdle {
		long := age(ptrSeconds(idle))
		if y.LastDelivered == nil {
			long = age(y.OldestAge) + " or ever"
		}
		f.add(LevelCritical, "stuck", "see why: journalctl -u ampcio; then: systemctl restart ampcio (nothing is lost)",
			"%s could be sent, and none was for %s", many(y.Depth.Ready, "event", "events"), long)
	}
	// While others get through, who waits for a retry does not make the queue stand.
	others := y.Status == StatusOK && y.Depth.Retry == pending
	for _, bound := range []struct {
		level string
		from  time.Duration
	}{{outage, t.CritAge}, {LevelWarning, t.WarnAge}} {
		if bound.from <= 0 || y.OldestAge == nil || oldest < seconds(bound.from) {
			continue
		}
		switch {
		case others:
			f.add(LevelWarning, "waiting", "nothing, it is tried again by itself; to try at once: ampcio sync retry "+y.Name,
				"%s, the oldest for %s%s; all others are delivered", waiting(y.Depth.Retry), age(y.OldestAge), y.whyWaiting())
		case y.catchesUp(t, now):
			f.add(LevelWarning, "catching up", y.behind(), "the oldest event waits %s, and all are sent in %s", age(y.OldestAge), age(y.DrainETA))
		case y.Status == StatusUnreachable:
			f.add(bound.level, "unreachable", y.Advice, "%s; the oldest event waits %s%s", y.unreachable(), age(y.OldestAge), known)
		default:
			f.add(bound.level, "behind", y.behind(), "the oldest event waits %s (from %s)%s", age(y.OldestAge), age(ptrSeconds(bound.from)), known)
		}
		break
	}
	for _, bound := range []struct {
		level string
		from  uint64
	}{{outage, t.CritDepth}, {LevelWarning, t.WarnDepth}} {
		if bound.from > 0 && pending >= bound.from {
			f.add(bound.level, "behind", y.behind(), "%s (from %s)%s", waiting(pending), count(bound.from), known)
			break
		}
	}
}

// catchesUp says whether what is pending is sent soon, as after an outage; or whatever it
// takes, as long as the oldest are still those that somebody has rewound to.
func (y *Sync) catchesUp(t Thresholds, now time.Time) bool {
	if y.Status != StatusOK || y.DrainETA == nil {
		return false
	}
	rewound := y.LastRewind != nil && y.OldestAge != nil && seconds(now.Sub(*y.LastRewind)) < *y.OldestAge
	return rewound || *y.DrainETA < seconds(t.CritAge)
}

// CatchesUp is that, by the default thresholds.
func (y *Sync) CatchesUp(now time.Time) bool { return y.catchesUp(DefaultThresholds(), now) }

func (y *Sync) unreachable() string { return cmp.Or(y.Detail, y.Reason, "no answer") }

func (y *Sync) deadKept() string {
	s := many(y.Depth.Dead, "dead letter is kept", "dead letters are kept")
	if y.Kept.OldestAge != nil {
		s += ", the oldest for " + age(y.Kept.OldestAge)
	}
	return s
}

// behind is what to do about a queue that is not empty in time.
func (y *Sync) behind() string {
	if y.Status != StatusOK {
		return y.Advice
	}
	if y.DrainETA != nil {
		return fmt.Sprintf("nothing: at this speed all is sent in %s", age(y.DrainETA))
	}
	return "if it grows: raise requests_per_second or concurrency below sync." + y.Name + ".delivery, then: ampcio reload"
}

// idleSince is for how long nothing was delivered, although it could have been.
func (y *Sync) idleSince(now time.Time) time.Duration {
	idle := time.Duration(1 << 62)
	for _, at := range []*time.Time{y.LastDelivered, y.Since} {
		if at != nil {
			idle = min(idle, now.Sub(*at))
		}
	}
	return idle
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

// wellWord is the word for a sync of which there is nothing to complain.
func (y *Sync) wellWord() string {
	switch y.Status {
	case StatusChecking:
		return "starting"
	case StatusDisabled:
		return "off"
	case StatusDryRun:
		return "dry run"
	case StatusOrphaned:
		return "orphaned"
	}
	return "well"
}

// Trouble is that something is not well.
type Trouble struct {
	Of string // a sync, or ampcio as a whole
	Health
}

// AlsoTroubled is what is not well, the worst first, but for what the Snapshot's Health
// tells of, and syncs that are merely stopped as all of it is.
func (s *Snapshot) AlsoTroubled() (list []Trouble) {
	told := false
	for _, y := range byTrouble(s.Syncs) {
		switch {
		case y.Health.Level == LevelOK, y.Health.Word == "stopped" && s.Health.Word == "stopped":
		case !told && s.Health.Why == y.Name+": "+y.Health.Why:
			told = true
		default:
			list = append(list, Trouble{y.Name, y.Health})
		}
	}
	if s.House.Level != LevelOK && s.House != s.Health {
		list = append(list, Trouble{"ampcio", s.House})
	}
	return list
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
