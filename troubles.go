package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"ampcio/admin"
	"ampcio/alerts"
	"ampcio/config"
	"ampcio/logbook"
)

// Kinds of trouble that are told.
const (
	troubleBlocked     = "blocked"
	troubleAge         = "age"
	troubleLate        = "late"
	troubleDisk        = "disk"
	troubleDeadLetters = "dead_letters"
	troubleNoTraffic   = "no_traffic"
	troubleBooks       = "books"
	troubleCheckpoint  = "checkpoint"
	troubleStuck       = "stuck"
	troubleCertificate = "certificate"
)

// What is firing is over only where it is well below its limit, so that a number that
// wavers about it is told once.
const (
	ageOver      = 0.75 // of alerts.age
	diskOver     = 5    // percentage points below alerts.disk
	lateOver     = 1.25 // of alerts.late
	deadQuiet    = time.Hour
	trafficGrace = 10 * time.Minute // senders have to come back after a start
)

// judge says what of a snapshot is told. What is wrong with a sync, and what to do, is
// said by the snapshot; this knows from where on somebody is to be woken.
type judge struct {
	limits config.Alerts
	now    time.Time
	firing func(kind, of string) bool
	stuck  []string             // loops that do not show themselves
	quiet  map[string]time.Time // projects without a request → since when
	found  []alerts.Trouble     // so far
	dark   map[[2]string]bool   // what cannot be told: kind, of
}

func (j *judge) add(t alerts.Trouble) { j.found = append(j.found, t) }

// blind is the sight of somebody who sees nothing but that it is stuck.
func (j *judge) blind() alerts.Sight {
	j.judgeStuck()
	return alerts.Sight{At: j.now, Troubles: j.found, Unclear: func(kind, _ string) bool { return kind != troubleStuck }}
}

func (j *judge) sight(s *admin.Snapshot) alerts.Sight {
	j.dark = map[[2]string]bool{}
	j.judgeStuck()
	j.judgeDisk(s)
	for i := range s.Syncs {
		j.judgeSync(&s.Syncs[i], s)
	}
	for _, project := range sortedKeys(j.quiet) {
		j.judgeTraffic(project, j.quiet[project])
	}
	if c := s.Door.Certificate; c != nil {
		j.judgeCertificate(c)
	}
	return alerts.Sight{At: j.now, Troubles: j.found, Unclear: func(kind, of string) bool { return j.dark[[2]string{kind, of}] }}
}

func (j *judge) judgeStuck() {
	if len(j.stuck) == 0 {
		return
	}
	j.add(alerts.Trouble{Kind: troubleStuck, Level: alerts.Critical,
		What:    fmt.Sprintf("these parts have not moved for more than %d s: %s; the disk may hang", stuckAfter/time.Second, strings.Join(j.stuck, ", ")),
		Do:      "look at the disk (dmesg, df -h), then: systemctl restart ampcio; nothing that was accepted is lost",
		Numbers: map[string]int64{"parts": int64(len(j.stuck))}})
}

// judgeDisk tells of a disk that refuses events, and of one that will before long.
func (j *judge) judgeDisk(s *admin.Snapshot) {
	d := &s.Disk
	capacity := max(min(d.Max, d.Used+d.Free-d.MinFree), 1)
	share := int(100 * float64(d.Used) / float64(capacity))
	numbers := map[string]int64{"used_bytes": d.Used, "max_bytes": d.Max, "free_bytes": d.Free, "min_free_bytes": d.MinFree}
	figures := fmt.Sprintf("%s of storage.max_bytes (%s) are used, and %s are free on its disk (min_free is %s)", size(d.Used), size(d.Max), size(d.Free), size(d.MinFree))
	limit := int(j.limits.Disk)
	if j.firing(troubleDisk, "") {
		limit -= diskOver
	}
	switch {
	case d.Full != "" && !strings.Contains(d.Full, "max_pending_bytes"):
		j.add(alerts.Trouble{Kind: troubleDisk, Level: alerts.Critical, Numbers: numbers, Do: d.Advice,
			What: "new events are refused with 503, and SDKs keep them for a while: " + d.Full + "; " + figures})
	case d.Full != "":
		j.add(alerts.Trouble{Kind: troubleDisk, Level: alerts.Critical, Numbers: numbers, Do: boundAdvice(s),
			What: "new events are refused with 503, and SDKs keep them for a while: " + d.Full})
	case j.limits.Disk > 0 && share >= limit && capacity > 1:
		j.add(alerts.Trouble{Kind: troubleDisk, Level: alerts.Warning, Numbers: numbers, What: figures + "; when it is full new events are refused",
			Do: fmt.Sprintf("free space on the disk of %s (df -h %[1]s), or see which sync waits (ampcio queue-stats), or raise storage.max_bytes and: ampcio reload", d.Dir)})
	}
}

// boundAdvice is what to do about a sync at its max_pending_bytes.
func boundAdvice(s *admin.Snapshot) string {
	for _, y := range s.Syncs {
		if strings.Contains(s.Disk.Full, "sync "+y.Name+",") && y.Advice != "" {
			return y.Advice
		}
	}
	return s.Disk.Advice
}

func (j *judge) judgeSync(y *admin.Sync, s *admin.Snapshot) {
	pending := int64(y.Books.Pending)
	waits := "1 event waits"
	if pending != 1 {
		waits = many(y.Books.Pending) + " events wait"
	}
	numbers := map[string]int64{"pending": pending, "pending_bytes": y.PendingBytes, "dead_letters": int64(y.Kept.Count)}
	if y.OldestAge != nil {
		numbers["oldest_age_s"] = *y.OldestAge
	}
	since := time.Time{}
	if y.Since != nil {
		since = *y.Since
	}
	switch y.Status {
	case admin.StatusChecking, admin.StatusStopped:
		j.dark[[2]string{troubleBlocked, y.Name}] = true
	case admin.StatusBlocked:
		j.add(alerts.Trouble{Kind: troubleBlocked, Of: y.Name, Cause: y.Reason, Level: alerts.Critical, Since: since, Numbers: numbers, Do: y.Advice,
			What: fmt.Sprintf("%s (%s); %s, and nothing is lost", cmp.Or(y.Detail, "delivery is blocked"), y.Reason, waits)})
	}
	// An operator who holds a sync knows that its events wait; that they are about to be late
	// is told all the same.
	held := y.Status == admin.StatusPaused || y.Status == admin.StatusDisabled || y.Status == admin.StatusDryRun || y.Status == admin.StatusOrphaned
	if limit := time.Duration(j.limits.Age); limit > 0 && y.OldestAge != nil && !held {
		if j.firing(troubleAge, y.Name) {
			limit = time.Duration(float64(limit) * ageOver)
		}
		if age := time.Duration(*y.OldestAge) * time.Second; age > limit {
			level := alerts.Warning
			if age > 6*time.Duration(j.limits.Age) {
				level = alerts.Critical
			}
			why := ""
			if y.Detail != "" {
				why = ": " + y.Detail
			}
			j.add(alerts.Trouble{Kind: troubleAge, Of: y.Name, Cause: cmp.Or(y.Reason, y.Status), Level: level, Since: j.now.Add(-age), Numbers: numbers, Do: y.Advice,
				What: fmt.Sprintf("the oldest event waits for %s, %s; the sync is %s%s", logbook.Short(age), waits, y.Status, why)})
		}
	}
	if c := y.NoCheckpoint; c != "" {
		j.add(alerts.Trouble{Kind: troubleCheckpoint, Of: y.Name, Cause: c, Level: alerts.Critical, Numbers: numbers, Do: y.Advice,
			What: "nothing is delivered, since what was delivered cannot be written down: " + c})
	}
	if !y.Books.Balanced && !y.LedgerDamaged {
		numbers := map[string]int64{"difference": y.Books.Difference, "pending": pending}
		j.add(alerts.Trouble{Kind: troubleBooks, Of: y.Name, Level: alerts.Critical, Numbers: numbers,
			What: fmt.Sprintf("the account of all events is out by %d", y.Books.Difference),
			Do:   "make a copy (ampcio backup FILE), look (ampcio audit), and tell us what it says"})
	}
	j.judgeDeadLetters(y, numbers)
}

// judgeDeadLetters tells of a sync whose events were refused for good not long ago: they
// are kept for months, and somebody was told of the old ones.
func (j *judge) judgeDeadLetters(y *admin.Sync, numbers map[string]int64) {
	if j.limits.DeadLetters == 0 || y.Kept.Count < uint64(j.limits.DeadLetters) {
		return
	}
	var newest time.Time
	reasons := slices.Clone(y.Dead)
	slices.SortStableFunc(reasons, func(a, b admin.Reason) int { return timeOr(b.Newest).Compare(timeOr(a.Newest)) })
	var words []string
	for _, r := range reasons {
		at := timeOr(r.Newest)
		if at.After(newest) {
			newest = at
		}
		if j.now.Sub(at) <= deadQuiet && len(words) < 3 {
			words = append(words, fmt.Sprintf("%s (%s so far)", r.Reason, many(r.Count)))
		}
	}
	if newest.IsZero() || j.now.Sub(newest) > deadQuiet {
		return
	}
	j.add(alerts.Trouble{Kind: troubleDeadLetters, Of: y.Name, Cause: reasons[0].Reason, Level: alerts.Warning, Numbers: numbers,
		What: fmt.Sprintf("%s refuses events for good, the last one at %s: %s; %s kept", destinationName(y), newest.UTC().Format("15:04 UTC"), strings.Join(words, ", "), letters(y.Kept.Count)),
		Do:   fmt.Sprintf("see which and why: ampcio dead-letters list --sync %s; mend the cause, then: ampcio dead-letters replay --sync %[1]s --dry-run", y.Name)})
}

func destinationName(y *admin.Sync) string {
	if y.Destination == admin.ToAmplitude {
		return "Amplitude"
	}
	return "Customer.io"
}

func timeOr(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// lastSeen enters when a project was last heard of: by this process, or by one before it.
func (j *judge) lastSeen(desk *alerts.Desk, project, seen string, started time.Time) {
	name := "project " + project
	if at, err := time.Parse(time.RFC3339, seen); err == nil {
		desk.Mark(name, at)
	} else if desk.Marked(name).IsZero() {
		desk.Mark(name, j.now) // it is new, and has its time from now on
	}
	limit := time.Duration(j.limits.NoTraffic)
	if last := desk.Marked(name); limit > 0 && j.now.Sub(last) > limit {
		if j.quiet == nil {
			j.quiet = map[string]time.Time{}
		}
		if !j.firing(troubleNoTraffic, project) && j.now.Sub(started) < min(limit, trafficGrace) {
			return
		}
		j.quiet[project] = last
	}
}

func (j *judge) judgeTraffic(project string, last time.Time) {
	j.add(alerts.Trouble{Kind: troubleNoTraffic, Of: project, Level: alerts.Warning, Since: last,
		Numbers: map[string]int64{"last_request_age_s": seconds(j.now.Sub(last))},
		What:    fmt.Sprintf("no request with a key of project %s for %s", project, logbook.Short(j.now.Sub(last))),
		Do:      "is that usual at this hour? Else: ampcio send-test says whether the door works; then look at the SDKs' server URL, the proxy in front, and what was refused (ampcio queue-stats)"})
}

// judgeCertificate tells of one that SDKs refuse, or will soon.
func (j *judge) judgeCertificate(c *admin.Certificate) {
	level := alerts.Warning
	if c.DaysLeft < 3 {
		level = alerts.Critical
	}
	if c.DaysLeft >= certificateDays && c.Problem == "" {
		return
	}
	what := fmt.Sprintf("the certificate for %s expires on %s, in %d days", strings.Join(c.Names, ", "), c.NotAfter.Format(time.DateOnly), c.DaysLeft)
	if c.DaysLeft < 0 {
		what = fmt.Sprintf("the certificate for %s has expired on %s: SDKs are turned away", strings.Join(c.Names, ", "), c.NotAfter.Format(time.DateOnly))
	}
	if c.Problem != "" {
		what += "; the files on disk cannot be used: " + c.Problem
	}
	j.add(alerts.Trouble{Kind: troubleCertificate, Level: level, What: what, Numbers: map[string]int64{"days_left": int64(c.DaysLeft)},
		Do: "renew it (certbot renew); the new files are taken within a minute"})
}

// certificateDays is how many days before its end a certificate is told of.
const certificateDays = 10

func size(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }

// notesOfAlerts are sentences about alerts that do not get through.
func notesOfAlerts(l alerts.List) (notes []string) {
	if l.Trouble != "" {
		notes = append(notes, fmt.Sprintf("alerts are not posted: %s; %d wait. To see what is wrong: ampcio alerts test", l.Trouble, len(l.Waiting)))
	}
	if l.NotKept != "" {
		notes = append(notes, "what alerts are firing is in memory only: "+l.NotKept)
	}
	return notes
}
