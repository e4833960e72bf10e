package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"ampcio/admin"
	"ampcio/alerts"
	"ampcio/config"
	"ampcio/logbook"
)

// What is told beside what the snapshot itself finds wrong (admin.Findings).
const (
	troubleStuck       = "stuck"
	troubleLate        = "late"
	troubleDeadLetters = "dead_letters"
	troubleNoTraffic   = "no_traffic"
)

// kinds are what is told of findings, by their word. What is not here wakes nobody: that
// a sync is paused, or was unreachable for some minutes.
var kinds = map[string]string{
	"refusing": "disk", "disk": "disk", "certificate": "certificate", "damaged": "damaged",
	"unbalanced": "books", "full": "checkpoint", "blocked": "blocked", "stuck": "stuck",
	"behind": "age", "unreachable": "age", "waiting": "age", "discarding": "discarding",
}

// What is firing is over only where it is well below its limit, so that a number that
// wavers about it is told once.
const (
	ageOver      = 0.75 // of alerts.age
	diskOver     = 0.05 // below alerts.disk
	lateOver     = 1.25 // of alerts.late
	deadQuiet    = time.Hour
	trafficGrace = 10 * time.Minute // senders have to come back after a start

	ageCritical = 6 // times alerts.age
	lateShare   = 6 // the part of late_after that alerts.late is at most
)

// judge says what of a snapshot is told. What is wrong with a sync, and what to do, is
// said by the snapshot; this knows from where on somebody is to be woken.
type judge struct {
	limits config.Alerts
	now    time.Time
	firing func(kind, of string) bool
	stuck  []string             // loops that do not show themselves
	quiet  map[string]time.Time // projects without a request → since when
	found  map[string]alerts.Trouble
}

func (j *judge) add(t alerts.Trouble) {
	if j.found == nil {
		j.found = map[string]alerts.Trouble{}
	}
	name := t.Kind + " " + t.Of
	if before, is := j.found[name]; is && before.Level == alerts.Critical && t.Level != alerts.Critical {
		return
	}
	j.found[name] = t
}

func (j *judge) troubles() []alerts.Trouble {
	var all []alerts.Trouble
	for _, name := range sortedKeys(j.found) {
		all = append(all, j.found[name])
	}
	return all
}

// blind is the sight of somebody who sees nothing but that it is stuck.
func (j *judge) blind() alerts.Sight {
	j.judgeStuck()
	return alerts.Sight{At: j.now, Troubles: j.troubles(), Unclear: func(kind, of string) bool { return kind != troubleStuck || of != "" }}
}

func (j *judge) sight(s *admin.Snapshot) alerts.Sight {
	j.judgeStuck()
	// What is firing goes on by limits that are harder to get below.
	begun := map[[2]string]bool{}
	for _, f := range s.Findings(j.thresholds(false)) {
		begun[[2]string{kindOf(s, f), f.Of}] = true
	}
	for _, f := range s.Findings(j.thresholds(true)) {
		if kind := kindOf(s, f); kind != "" && (begun[[2]string{kind, f.Of}] || j.firing(kind, f.Of)) {
			j.add(j.trouble(kind, f, s))
		}
	}
	// Whether it would still be blocked cannot be told of one that starts, or that somebody
	// holds or has renamed, while its events wait.
	held := map[string]bool{}
	for i := range s.Syncs {
		y := &s.Syncs[i]
		j.judgeDeadLetters(y)
		j.judgeLate(y)
		j.judgeOrphan(y)
		held[y.Name] = y.Status == admin.StatusChecking || y.Books.Pending > 0 && (y.Status == admin.StatusPaused || y.Status == admin.StatusOrphaned)
	}
	for _, project := range sortedKeys(j.quiet) {
		j.judgeTraffic(project, j.quiet[project])
	}
	return alerts.Sight{At: j.now, Troubles: j.troubles(), Unclear: func(kind, of string) bool { return kind == "blocked" && held[of] }}
}

// thresholds are the limits of the configuration; lenient are those of what is firing.
func (j *judge) thresholds(lenient bool) admin.Thresholds {
	a := j.limits
	t := admin.DefaultThresholds()
	t.WarnDepth, t.CritDepth, t.WarnDead, t.CritDead, t.CritDisk, t.CritLate = 0, 0, 0, 0, 0, 0
	t.WarnAge, t.CritAge = time.Duration(a.Age), ageCritical*time.Duration(a.Age)
	t.WarnDisk = float64(a.Disk) / 100
	if a.Disk == 0 {
		t.WarnFull = 0
	}
	if lenient {
		t.WarnAge = time.Duration(ageOver * float64(a.Age))
		t.WarnDisk = max(t.WarnDisk-diskOver, 0)
		t.WarnFull = t.WarnFull * 3 / 2
	}
	return t
}

// kindOf is what a finding is told as; "" = it is not.
func kindOf(s *admin.Snapshot, f admin.Finding) string {
	kind := kinds[f.Word]
	switch y := syncIn(s, f.Of); {
	case f.Word == "unreachable" && !strings.Contains(f.Why, "the oldest event waits"):
		return "" // for a short time
	case kind == "age" && y != nil && y.Status == admin.StatusBlocked:
		return "" // that it is blocked is told
	}
	return kind
}

func syncIn(s *admin.Snapshot, name string) *admin.Sync {
	for i := range s.Syncs {
		if s.Syncs[i].Name == name {
			return &s.Syncs[i]
		}
	}
	return nil
}

// trouble is a finding as it is told.
func (j *judge) trouble(kind string, f admin.Finding, s *admin.Snapshot) alerts.Trouble {
	t := alerts.Trouble{Kind: kind, Of: f.Of, Level: alerts.Warning, What: f.Why}
	if f.Level == admin.LevelCritical {
		t.Level = alerts.Critical
	}
	y := syncIn(s, f.Of)
	if y == nil {
		j.houseTrouble(&t, f, s)
		return t
	}
	t.Numbers = numbersOf(y)
	t.Do, t.Cause = cmp.Or(f.ToDo, y.Advice), y.Reason
	t.Known = y.Acknowledged != nil && j.now.Before(y.Acknowledged.Until)
	waits := waitsOf(y)
	switch kind {
	case "blocked":
		t.Since = timeOr(y.Since)
		why, known, _ := strings.Cut(f.Why, " (known to ")
		if t.What = why + " (" + y.Reason + ")"; known != "" {
			t.What = why + " (" + y.Reason + "; known to " + known
		}
		t.What += "; " + waits + ", and nothing is lost"
	case "age":
		if y.OldestAge != nil {
			t.Since = j.now.Add(-time.Duration(*y.OldestAge) * time.Second)
		}
		t.What = fmt.Sprintf("%s; %s, and nothing is lost", limitInWords.ReplaceAllString(f.Why, ""), waits)
	case "checkpoint":
		t.Cause = y.NoCheckpoint
	case "books":
		t.Cause, t.Numbers["difference"] = "", y.Books.Difference
		t.Do = "make a copy (ampcio backup FILE), look (ampcio audit), and tell us what it says"
	case "stuck":
		t.Do = "see what it says: journalctl -u ampcio; then: systemctl restart ampcio; nothing that was accepted is lost"
	}
	return t
}

// houseTrouble completes a trouble of what all syncs share.
func (j *judge) houseTrouble(t *alerts.Trouble, f admin.Finding, s *admin.Snapshot) {
	switch t.Kind {
	case "disk":
		d := &s.Disk
		t.Numbers = map[string]int64{"used_bytes": d.Used, "max_bytes": d.Max, "free_bytes": d.Free, "min_free_bytes": d.MinFree}
		figures := fmt.Sprintf("%s of storage.max_bytes %s are used, and %s are free on the disk (min_free %s)", size(d.Used), size(d.Max), size(d.Free), size(d.MinFree))
		if d.FullETA != nil && d.Full == "" {
			t.Numbers["full_eta_s"] = *d.FullETA
		}
		switch {
		case f.Word == "refusing" && strings.Contains(d.Full, "max_pending_bytes"):
			t.What += "; SDKs keep them for a while, and try again"
			t.Do = d.Advice
			for i := range s.Syncs {
				if y := &s.Syncs[i]; strings.Contains(d.Full, "sync "+y.Name+",") && y.Advice != "" {
					t.Do = y.Advice
				}
			}
		case f.Word == "refusing":
			t.What += "; SDKs keep them for a while, and try again"
			t.Do = d.Advice
		default:
			t.What = limitInWords.ReplaceAllString(t.What, "") + "; " + figures + "; when it is full new events are refused"
			t.Do = fmt.Sprintf("see what waits (ampcio queue-stats); free space on the disk of %s (df -h %[1]s), or raise storage.max_bytes, then: ampcio reload", d.Dir)
		}
	case "certificate":
		t.Do = "renew it (certbot renew); the new files are taken within a minute"
		if c := s.Door.Certificate; c != nil {
			t.Numbers = map[string]int64{"days_left": int64(c.DaysLeft)}
		}
	case "damaged":
		t.Do = "see what was lost (ampcio audit), and whether the disk is dying (dmesg, smartctl); what could be read goes on"
	}
}

// limitInWords is the limit in a finding's sentence: of what is firing it is not the one
// of the configuration.
var limitInWords = regexp.MustCompile(` \(from [^)]*\)`)

func numbersOf(y *admin.Sync) map[string]int64 {
	n := map[string]int64{"pending": int64(y.Books.Pending), "pending_bytes": y.PendingBytes, "dead_letters": int64(y.Kept.Count)}
	if y.OldestAge != nil {
		n["oldest_age_s"] = *y.OldestAge
	}
	if y.Late.OldestLeft != nil {
		n["late_in_s"] = *y.Late.OldestLeft
	}
	return n
}

func waitsOf(y *admin.Sync) string {
	if y.Books.Pending == 1 {
		return "1 event waits"
	}
	return many(y.Books.Pending) + " events wait"
}

// judgeOrphan tells of events that wait for a sync which is gone from the configuration,
// as by a slip when it was renamed: nothing else would, and they wait for ever.
func (j *judge) judgeOrphan(y *admin.Sync) {
	limit := time.Duration(j.limits.Age)
	if limit == 0 || y.Status != admin.StatusOrphaned || y.Books.Pending == 0 || y.OldestAge == nil {
		return
	}
	old := time.Duration(*y.OldestAge) * time.Second
	if old < limit && !(j.firing("age", y.Name) && old >= time.Duration(ageOver*float64(limit))) {
		return
	}
	level := alerts.Warning
	if old >= ageCritical*limit {
		level = alerts.Critical
	}
	j.add(alerts.Trouble{Kind: "age", Of: y.Name, Cause: y.Status, Level: level, Since: j.now.Add(-old), Do: y.Advice, Numbers: numbersOf(y),
		What: fmt.Sprintf("[sync.%s] is gone from the configuration; the oldest event waits %s; %s, and nothing is lost", y.Name, logbook.Short(old), waitsOf(y))})
}

func (j *judge) judgeStuck() {
	if len(j.stuck) == 0 {
		return
	}
	j.add(alerts.Trouble{Kind: troubleStuck, Level: alerts.Critical, Numbers: map[string]int64{"parts": int64(len(j.stuck))},
		What: fmt.Sprintf("these parts have not moved for more than %d s: %s; the disk may hang", stuckAfter/time.Second, strings.Join(j.stuck, ", ")),
		Do:   "look at the disk (dmesg, df -h), then: systemctl restart ampcio; nothing that was accepted is lost"})
}

// judgeLate tells of events that will be late before long: it is counted from the other
// end than their age, since each sync has its own late_after. Of a sync that somebody
// holds it is told, too: that is easily forgotten.
func (j *judge) judgeLate(y *admin.Sync) {
	if j.limits.Late == 0 || y.Late.Limit == nil || y.Late.OldestLeft == nil || y.Destination == admin.ToAmplitude ||
		y.Status == admin.StatusDisabled || y.Status == admin.StatusDryRun || y.Status == admin.StatusOrphaned || y.CatchesUp(j.now) {
		return
	}
	after, left := time.Duration(*y.Late.Limit)*time.Second, time.Duration(*y.Late.OldestLeft)*time.Second
	limit := min(time.Duration(j.limits.Late), after/lateShare)
	if j.firing(troubleLate, y.Name) {
		limit = time.Duration(lateOver * float64(limit))
	}
	if left > limit {
		return
	}
	what := fmt.Sprintf("the oldest event that waits is late in %s: from %s on it starts no campaigns in Customer.io", logbook.Short(left), logbook.Short(after))
	if left <= 0 {
		what = fmt.Sprintf("%s that wait are older than %s, and start no campaigns in Customer.io any more", events(max(y.Late.Over, 1)), logbook.Short(after))
	}
	j.add(alerts.Trouble{Kind: troubleLate, Of: y.Name, Cause: cmp.Or(y.Reason, y.Status), Level: alerts.Critical, What: what, Do: y.Advice, Numbers: numbersOf(y)})
}

// judgeDeadLetters tells of a sync whose events were refused for good not long ago: they
// are kept for months, and somebody was told of the old ones.
func (j *judge) judgeDeadLetters(y *admin.Sync) {
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
	j.add(alerts.Trouble{Kind: troubleDeadLetters, Of: y.Name, Cause: reasons[0].Reason, Level: alerts.Warning, Numbers: numbersOf(y),
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
	// A time that is still to come is of a clock that has been set back since: it would be believed again at each look,
	// and the project would never be quiet before that time has come.
	if at, err := time.Parse(time.RFC3339, seen); err == nil && !at.After(j.now) {
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
