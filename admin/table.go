package admin

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// WriteTable writes a snapshot for people, in lines of about 80 columns. Colour is used only when color is set.
func WriteTable(w io.Writer, s Snapshot, color bool) error {
	p := printer{w: w, now: s.At, color: color, full: s.Disk.Full}
	p.line("%s  %s  ampcio %s%s", p.source(s.Source), s.At.Format("2006-01-02 15:04:05 UTC"), s.Version, p.uptime(s.Uptime))
	for _, n := range s.Notes {
		for i, row := range wrap(n, columns-6) {
			p.line("%s %s", p.paint(text.FgYellow, []string{"note:", "     "}[min(i, 1)]), row)
		}
	}
	p.overview(s.Syncs)
	for _, y := range s.Syncs {
		p.sync(y)
	}
	p.door(s)
	p.disk(s.Disk)
	return p.err
}

// WriteStates writes for people how the syncs are, without the rest of a snapshot.
func WriteStates(w io.Writer, s Snapshot, color bool) error {
	p := printer{w: w, now: s.At, color: color, full: s.Disk.Full}
	if s.Source == "files" {
		p.line("%s", p.source(s.Source))
	}
	for _, y := range s.Syncs {
		p.state(y)
	}
	return p.err
}

type printer struct {
	w     io.Writer
	now   time.Time
	color bool
	full  string // why new events are refused now
	err   error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) paint(c text.Color, s string) string {
	if !p.color {
		return s
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}

func (p *printer) source(s string) string {
	if s == "files" {
		return p.paint(text.FgRed, "ampcio is stopped: read from its files")
	}
	return "source: " + s
}

func (p *printer) uptime(s *int64) string {
	if s == nil {
		return ""
	}
	return "  up " + age(s)
}

// overview is one row a sync: what a glance needs.
func (p *printer) overview(syncs []Sync) {
	t := table.NewWriter()
	t.SetStyle(table.StyleDefault)
	style := t.Style()
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft = ""
	style.Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"SYNC", "STATUS", "PENDING", "RETRY", "HELD", "DEAD", "OLDEST", "IN/s", "OUT/s", "DRAIN"})
	for _, y := range syncs {
		d := y.Depth
		if y.LedgerDamaged {
			t.AppendRow(table.Row{y.Name, p.status(y.Status), "?", "?", "?", "?", "?", "-", "-", "-"})
			continue
		}
		t.AppendRow(table.Row{y.Name, p.status(y.Status), count(d.Ready + d.InFlight + d.Retry + d.Held), count(d.Retry), count(d.Held),
			count(d.Dead), age(y.OldestAge), rate(y.RateIn), rate(y.RateOut), age(y.DrainETA)})
	}
	var right []table.ColumnConfig
	for i := 3; i <= 10; i++ {
		right = append(right, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	for row := range strings.Lines(t.Render()) {
		p.line("%s", strings.TrimRight(row, " \n"))
	}
}

func (p *printer) status(s string) string {
	switch s {
	case StatusOK:
		return p.paint(text.FgGreen, s)
	case StatusBlocked, StatusStopped, StatusUnreachable:
		return p.paint(text.FgRed, s)
	}
	return p.paint(text.FgYellow, s)
}

// sync tells the rest of one sync: why not, and the books.
func (p *printer) sync(y Sync) {
	p.line("")
	p.state(y)
	if y.LedgerDamaged {
		p.line("  books      %s", p.paint(text.FgRed, "UNKNOWN"))
		return
	}
	for i, r := range y.Filtered {
		p.line("%s %s %s: %s%s", heading(i, "not sent"), r.Kind, r.Reason, count(r.Count), p.newest(r))
	}
	for i, r := range y.Dead {
		p.line("%s %s %s: %s%s", heading(i, "refused"), r.Kind, r.Reason, count(r.Count), p.newest(r))
	}
	for i, r := range y.Discarded {
		p.line("%s %s: %s%s", heading(i, "given up"), r.Reason, count(r.Count), p.newest(r))
	}
	t, b := y.Totals, y.Books
	sent := count(t.EventsDelivered) + " events"
	if !y.isRelay() { // which passes everything on as events
		sent += ", " + count(t.UsersDelivered) + " user updates"
	}
	p.line("  sent       %s (first try %s, after retry %s)", sent, count(t.FirstAttempt), count(t.AfterRetry))
	if y.LastDelivered != nil {
		p.line("  last sent  %s ago", p.ago(*y.LastDelivered))
	}
	if y.LastRewind != nil {
		p.line("  rewound    %s ago; %s records were taken once more so far", p.ago(*y.LastRewind), count(b.Rewound))
	}
	verdict := p.paint(text.FgGreen, "balanced")
	if !b.Balanced {
		verdict = p.paint(text.FgRed, fmt.Sprintf("OUT BY %d", b.Difference))
	}
	p.line("  books      %s", verdict)
	rewound := ""
	if b.Rewound > 0 {
		rewound = " + rewound " + count(b.Rewound)
	}
	p.line("             taken %s%s = delivered %s + filtered %s + dead %s", count(b.Taken), rewound, count(t.Delivered), count(t.Filtered), count(t.Dead))
	p.line("             + discarded %s + lost %s + pending %s", count(t.Discarded), count(t.Lost), count(b.Pending))
}

// state tells how one sync is, why, and what to do.
func (p *printer) state(y Sync) {
	safe := ""
	if (y.Status == StatusBlocked || y.Status == StatusUnreachable) && !y.gaveUp() {
		safe = "; nothing is lost"
	}
	p.line("%s (project %s): %s%s%s", y.Name, y.Project, p.status(y.Status), p.since(y.Since), safe)
	if y.NoCheckpoint != "" {
		p.line("  %s", p.paint(text.FgRed, "NOTHING IS SENT, since the disk could not remember that it was:"))
		p.long("", y.NoCheckpoint)
	}
	if y.Detail != "" {
		p.long("why", y.Detail)
	}
	if y.Advice == "" {
		y.Advice = "nothing"
	}
	p.long("to do", y.Advice)
	if y.NextProbe != nil {
		with := ""
		if y.Gate == "closed" && y.Status == StatusUnreachable {
			with = ", with what one user has; all go on when that gets through"
		}
		p.line("  next probe in %s%s", age(y.NextProbe), with)
	}
	if y.PausedSince != nil && y.Status != StatusPaused {
		held := ""
		if y.Status != StatusDisabled && y.Status != StatusDryRun && y.Status != StatusOrphaned && y.Status != StatusStopped { // else they are not
			held = "; new events are accepted and held"
		}
		p.line("  paused     for %s%s", p.ago(*y.PausedSince), held)
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
		p.line("%s %s: %s%s, next try in %s", heading(i, "waiting"), w.Reason, records, plural(w.Users, "user", "users"), age(w.NextAttempt))
	}
	if k := y.Kept; k.Count > 0 {
		long, most := "for ever", "without a bound"
		if k.KeepFor > 0 {
			long = "for " + age(&k.KeepFor)
		}
		if k.MaxBytes > 0 {
			most = "up to " + size(k.MaxBytes)
		}
		p.line("  dead       %s kept, %s; %s, and %s", count(k.Count), size(k.Bytes), long, most)
	}
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
		p.line("%s %s %s: %s%s", heading(i, "would not"), r.Kind, r.Reason, count(r.Count), p.newest(r))
	}
	for i, r := range d.Refused {
		p.line("%s %s %s: %s%s", heading(i, "would die"), r.Kind, r.Reason, count(r.Count), p.newest(r))
	}
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(uint64(n)) + " " + more
}

// columns is how wide a line may be before it is broken.
const columns = 80

// long prints a text that may be longer than a line: each of its parts, behind which
// stands a semicolon, begins a new one.
func (p *printer) long(name, s string) {
	for _, part := range strings.SplitAfter(s, "; ") {
		for _, row := range wrap(strings.TrimRight(part, " "), columns-13) {
			p.line("  %-10s %s", name, row)
			name = ""
		}
	}
}

// wrap breaks a text into rows. Commands and keys with their values stay in one piece,
// to be copied, even where that makes a row longer.
func wrap(s string, width int) (rows []string) {
	row := ""
	for _, piece := range pieces(s) {
		if row != "" && len([]rune(row))+1+len([]rune(piece)) > width {
			rows = append(rows, row)
			row = ""
		}
		if row != "" {
			row += " "
		}
		row += piece
	}
	return append(rows, row)
}

// pieces are the words of a text, or several where a command or a key begins: a command
// goes on to the next punctuation.
func pieces(s string) (out []string) {
	words := strings.Fields(s)
	for len(words) > 0 {
		n := 1
		switch strings.TrimLeft(words[0], "(") {
		case "ampcio", "systemctl", "df":
			for n < len(words) && strings.IndexByte(",;:.)", words[n-1][len(words[n-1])-1]) < 0 {
				n++
			}
		default:
			if len(words) > 2 && words[1] == "=" {
				n = 3
			}
		}
		out = append(out, strings.Join(words[:n], " "))
		words = words[n:]
	}
	return out
}

// heading is printed before the first line of a group only.
func heading(i int, s string) string {
	if i > 0 {
		s = ""
	}
	return fmt.Sprintf("  %-10s", s)
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

func (p *printer) door(s Snapshot) {
	d := s.Door
	p.line("")
	p.line("door         %s events in %s requests, %s duplicates", count(d.Events), count(d.Requests), count(d.Duplicates))
	for i, r := range d.Refused {
		last := ""
		if r.Last != nil {
			last = fmt.Sprintf(", last %s ago from %s", p.ago(*r.Last), r.LastAddress)
		}
		p.line("%s %s: %s%s", heading(i, "refused"), r.Reason, count(r.Count), last)
	}
	taken := uint64(0)
	for _, y := range s.Syncs {
		taken += y.Books.Taken
	}
	if d.Events == 0 && taken == 0 {
		p.line("  no events have come. Give an SDK this server URL:")
		p.line("             %s", d.URL)
	}
}

func (p *printer) disk(d Disk) {
	p.line("disk         %s used of %s, %s free; log %s in %d files", size(d.Used), size(d.Max), size(d.Free), size(d.LogBytes), d.LogFiles)
	if d.Full != "" {
		p.line("  %s %s", p.paint(text.FgRed, "NEW EVENTS ARE REFUSED:"), d.Full)
		p.long("to do", d.Advice)
	}
	if d.Damaged > 0 {
		p.line("  %s", p.paint(text.FgRed, fmt.Sprintf("%d chunks of the log could not be read", d.Damaged)))
	}
}

func (p *printer) ago(t time.Time) string {
	s := int64(max(p.now.Sub(t), 0) / time.Second)
	return age(&s)
}

func count(n uint64) string { return humanize.Comma(int64(n)) }

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func rate(r *float64) string {
	if r == nil {
		return "-"
	}
	return humanize.CommafWithDigits(*r, 1)
}

// age is a number of seconds in its two largest units.
func age(s *int64) string {
	if s == nil {
		return "-"
	}
	units := []struct {
		name    string
		seconds int64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}
	for i, u := range units {
		if *s < u.seconds {
			continue
		}
		out := fmt.Sprintf("%d%s", *s/u.seconds, u.name)
		if i+1 < len(units) {
			if rest := *s % u.seconds / units[i+1].seconds; rest > 0 {
				out += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return out
	}
	return "0s"
}
