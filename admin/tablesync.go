package admin

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/text"
)

// sync tells the rest of one sync: why not, and the books.
func (p *printer) sync(y Sync) {
	p.line("")
	p.state(y)
	if y.LedgerDamaged {
		p.line("  books      %s", p.paint(text.FgRed, "UNKNOWN"))
		return
	}
	for i, r := range y.Filtered {
		p.row(heading(i, "not sent"), fmt.Sprintf("%s %s: %s%s", r.Kind, r.Reason, count(r.Count), p.newest(r)))
	}
	for i, r := range y.Dead {
		p.row(heading(i, "refused"), fmt.Sprintf("%s %s: %s%s", r.Kind, r.Reason, count(r.Count), p.newest(r)))
	}
	for i, r := range y.Discarded {
		p.row(heading(i, "given up"), fmt.Sprintf("%s: %s%s", r.Reason, count(r.Count), p.newest(r)))
	}
	t, b := y.Totals, y.Books
	sent := count(t.EventsDelivered) + " events"
	if !y.isRelay() { // which passes everything on as events
		sent += ", " + count(t.UsersDelivered) + " user updates"
	}
	p.row("sent", fmt.Sprintf("%s (first try %s, after retry %s)", sent, count(t.FirstAttempt), count(t.AfterRetry)))
	if y.LastDelivered != nil {
		p.row("last sent", p.ago(*y.LastDelivered)+" ago")
	}
	if l := y.Latency; l != nil {
		p.row("took", fmt.Sprintf("half within %s, 95 %% within %s, 99 %% within %s", short(l.P50), short(l.P95), short(l.P99)))
	}
	if y.LastRewind != nil {
		p.row("rewound", fmt.Sprintf("%s ago; %s records were taken once more so far", p.ago(*y.LastRewind), count(b.Rewound)))
	}
	verdict := p.paint(text.FgGreen, "balanced")
	if !b.Balanced {
		verdict = p.paint(text.FgRed, fmt.Sprintf("OUT BY %d", b.Difference))
	}
	audited := ""
	if at := y.Audit.At; at != nil {
		audited = fmt.Sprintf("; audited %s ago: ", p.ago(*at))
		if y.Audit.Balanced {
			audited += "balanced"
		} else {
			audited += p.paint(text.FgRed, many(uint64(y.Audit.Difference), "DIFFERENCE", "DIFFERENCES"))
		}
	}
	p.line("  books      %s%s", verdict, audited)
	rewound := ""
	if b.Rewound > 0 {
		rewound = " + rewound " + count(b.Rewound)
	}
	sum := fmt.Sprintf("taken %s%s = delivered %s + filtered %s + dead %s + discarded %s + lost %s + pending %s", count(b.Taken), rewound,
		count(t.Delivered), count(t.Filtered), count(t.Dead), count(t.Discarded), count(t.Lost), count(b.Pending))
	for _, row := range wrapPieces(strings.Split(strings.ReplaceAll(sum, " + ", "\x00+ "), "\x00"), p.columns-13) {
		p.line("             %s", row)
	}
}

// state tells how one sync is, why, and what to do.
func (p *printer) state(y Sync) {
	safe := ""
	if (y.Status == StatusBlocked || y.Status == StatusUnreachable) && !y.gaveUp() {
		safe = "; nothing is lost"
	}
	for i, row := range wrap(fmt.Sprintf("%s (project %s): %s%s%s", y.Name, y.Project, p.status(y), p.since(y.Since), safe), p.columns-2) {
		p.line("%s%s", []string{"", "  "}[min(i, 1)], row)
	}
	if y.NoCheckpoint != "" {
		p.line("  %s", p.paint(text.FgRed, "NOTHING IS SENT, since the disk could not remember that it was:"))
		p.long("", y.NoCheckpoint)
	}
	if y.Detail != "" {
		p.long("why", y.Detail)
	}
	if h := y.Health; h.Level != LevelOK && h.Level != "" && (y.Status == StatusOK || h.Word != y.Status && h.Word != "off") && h.Word != "full" && h.Word != "damaged" {
		p.long("health", h.Level+": "+h.Why)
		if !strings.Contains(y.Advice, strings.TrimSuffix(h.ToDo, ": ampcio dead-letters list --sync "+y.Name)) && y.Advice == "" {
			y.Advice = h.ToDo
		}
	}
	if y.Advice == "" {
		y.Advice = "nothing"
	}
	p.long("to do", y.Advice)
	if a := y.Acknowledged; a != nil {
		p.row("known", fmt.Sprintf("to %s since %s, until %s: %s", a.By, a.At.Format("2006-01-02 15:04"), a.Until.Format("2006-01-02 15:04 UTC"), a.Reason))
	}
	if y.NextProbe != nil {
		with := ""
		if y.Gate == "closed" && y.Status == StatusUnreachable {
			with = ", with what one user has; all go on when that gets through"
		}
		p.row("next probe", "in "+age(y.NextProbe)+with)
	}
	if y.PausedSince != nil && y.Status != StatusPaused {
		held := ""
		if y.Status != StatusDisabled && y.Status != StatusDryRun && y.Status != StatusOrphaned && y.Status != StatusStopped { // else they are not
			held = "; new events are accepted and held"
		}
		p.row("paused", "for "+p.ago(*y.PausedSince)+held)
	}
	if pending := y.Books.Pending; !y.LedgerDamaged && (pending > 0 || y.MaxPending > 0) {
		line := count(pending) + " records"
		if y.PendingBytes > 0 {
			line += ", " + size(y.PendingBytes)
		}
		if y.MaxPending > 0 {
			line += fmt.Sprintf(" of max_pending_bytes %s; %s", size(y.MaxPending), y.bound(p.full))
		}
		p.long("pending", line)
		p.ages(y)
	}
	if d := y.DryRun; d != nil {
		p.dryRun(d)
	}
	if a := y.Aside; a.Users > 0 {
		why := ""
		if len(y.Waiting) == 1 {
			why = ": " + y.Waiting[0].Reason
		}
		p.long("aside", fmt.Sprintf("%s, %s records, %s, oldest %s%s; others are not held up",
			plural(a.Users, "user waits alone", "users wait by themselves"), count(a.Records), size(a.Bytes), age(a.OldestAge), why))
	}
	for i, w := range y.Waiting {
		records := ""
		if w.Records != nil {
			records = count(*w.Records) + " records of "
		}
		line := fmt.Sprintf("%s: %s%s", w.Reason, records, plural(w.Users, "user", "users"))
		if w.OldestAge != nil {
			line += ", the oldest for " + age(w.OldestAge)
		}
		if w.NextAttempt != nil {
			line += ", next try in " + age(w.NextAttempt)
		}
		p.row(heading(i, "waiting"), line)
		p.example(w)
	}
	if y.Groups != nil {
		p.groups(y)
	}
	if k := y.Kept; k.Count > 0 {
		long, most := "for ever", "without a bound"
		if k.KeepFor > 0 {
			long = "for " + age(&k.KeepFor)
		}
		if k.MaxBytes > 0 {
			most = "up to " + size(k.MaxBytes)
		}
		oldest := ""
		if k.OldestAge != nil {
			oldest = ", the oldest for " + age(k.OldestAge)
		}
		p.row("dead", fmt.Sprintf("%s kept, %s%s; kept %s, and %s", count(k.Count), size(k.Bytes), oldest, long, most))
	}
}

// ages tells how old what is pending is, and how long it is in time.
func (p *printer) ages(y Sync) {
	var buckets []string // each in one piece
	for _, b := range y.AgeBuckets {
		if b.LE == nil {
			buckets = append(buckets, "older "+count(b.Count))
			continue
		}
		buckets = append(buckets, "<"+age(b.LE)+" "+count(b.Count))
	}
	if y.Books.Pending > 0 && len(buckets) > 0 {
		about := ""
		if y.Approximate {
			about = "about "
		}
		for i := range buckets[:len(buckets)-1] {
			buckets[i] += ","
		}
		buckets[0] = about + buckets[0]
		p.pieces("ages", buckets)
	}
	l := y.Late
	switch {
	case l.Limit == nil || l.OldestLeft == nil || y.isRelay():
	case l.Over > 0:
		p.row("late", fmt.Sprintf("%s than %s: they start no campaigns any more", many(l.Over, "event is older", "events are older"), age(l.Limit)))
	case *l.OldestLeft < *l.Limit/2:
		p.row("late", fmt.Sprintf("in %s the oldest is older than %s, and starts no campaigns any more", age(l.OldestLeft), age(l.Limit)))
	}
}

// example tells what was answered to those who wait for a retry, and who one of them is.
func (p *printer) example(w Waiting) {
	if w.LastAnswer != "" && w.Example != nil {
		x := w.Example
		of := ""
		if x.User != "" {
			of = " of user " + x.User
		}
		p.row("", fmt.Sprintf("answered: %s; e.g. %q%s, %s old", w.LastAnswer, x.Event, of, age(&x.AgeS)))
	} else if w.LastAnswer != "" {
		p.row("", "answered: "+w.LastAnswer)
	}
}

// groups is the table of --by: how much of each, and how old.
func (p *printer) groups(y Sync) {
	g := y.Groups
	heads := []string{strings.ToUpper(g.By), "TOTAL"}
	total := []string{"all", count(y.Books.Pending)}
	for _, b := range y.AgeBuckets {
		head := "older"
		if b.LE != nil {
			head = "<" + age(b.LE)
		}
		heads, total = append(heads, head), append(total, count(b.Count))
	}
	heads, total = append(heads, "OLDEST"), append(total, age(y.OldestAge))
	cells := [][]string{total}
	for _, r := range g.Rows {
		row := []string{clip(r.Key, 30), count(r.Count)}
		for _, b := range r.AgeBuckets {
			row = append(row, count(b.Count))
		}
		cells = append(cells, append(row, age(r.OldestAge)))
	}
	if g.LeftOut > 0 {
		cells = append(cells, append([]string{fmt.Sprintf("%d others", g.LeftOut), count(g.LeftOutCount)}, make([]string, len(heads)-2)...))
	}
	rows := grid(heads, cells, 1)
	if widest(rows)+2 > p.columns { // without the ages
		for i, c := range cells {
			cells[i] = []string{c[0], c[1], c[len(c)-1]}
		}
		rows = grid([]string{heads[0], heads[1], heads[len(heads)-1]}, cells, 1)
	}
	for _, row := range rows {
		p.line("  %s", row)
	}
	if g.Approximate {
		p.long("", "reckoned from a sample")
	}
}

// clip shortens a name of somebody else's.
func clip(s string, n int) string {
	out := []rune(s)
	if len(out) > n {
		out = append(out[:n-1], '…')
	}
	for i, r := range out {
		if !unicode.IsGraphic(r) {
			out[i] = '·'
		}
	}
	return string(out)
}

// dryRun tells what would have been sent, and what not.
func (p *printer) dryRun(d *DryRun) {
	since := ""
	if d.Since != nil {
		since = "for " + p.ago(*d.Since) + ": "
	}
	p.long("dry run", fmt.Sprintf("%s%s would have been sent: %s events, %s user updates, %s", since, plural(int(d.Requests), "request", "requests"),
		count(d.Events), count(d.UserUpdates), size(int64(d.Bytes))))
	if d.Pending > 0 {
		p.long("", count(d.Pending)+" records are still to be looked at")
	}
	if d.Passed > 0 {
		p.long("", count(d.Passed)+" records were deleted before they were looked at")
	}
	p.long("", "written to "+d.File)
	if d.LeftOut > 0 {
		p.long("", count(d.LeftOut)+" requests are counted and not in the file: the disk had no space to spare")
	}
	for i, r := range d.Filtered {
		p.row(heading(i, "would not"), fmt.Sprintf("%s %s: %s%s", r.Kind, r.Reason, count(r.Count), p.newest(r)))
	}
	for i, r := range d.Refused {
		p.row(heading(i, "would die"), fmt.Sprintf("%s %s: %s%s", r.Kind, r.Reason, count(r.Count), p.newest(r)))
	}
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(uint64(n)) + " " + more
}

// long prints a text that may be longer than a line: each of its parts, behind which
// stands a semicolon, begins a new one.
func (p *printer) long(name, s string) {
	for _, part := range strings.SplitAfter(s, "; ") {
		p.row(name, strings.TrimRight(part, " "))
		name = ""
	}
}

// row prints a text that is broken where the line ends.
func (p *printer) row(name, s string) { p.pieces(name, pieces(s)) }

func (p *printer) pieces(name string, pieces []string) {
	for _, row := range wrapPieces(pieces, p.columns-13) {
		p.line("  %-10s %s", name, row)
		name = ""
	}
}

// heading is printed before the first line of a group only.
func heading(i int, s string) string {
	if i > 0 {
		s = ""
	}
	return s
}

func (p *printer) since(t *time.Time) string {
	if t == nil {
		return ""
	}
	return " for " + p.ago(*t)
}

func (p *printer) newest(r Reason) string {
	s := ""
	if r.Newest != nil {
		s = ", newest " + p.ago(*r.Newest) + " ago"
	}
	if r.Example != "" {
		s += fmt.Sprintf(", e.g. %q", r.Example)
	}
	return s
}
