package admin

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Look is how something is written for people.
type Look struct {
	Columns int  // how wide a line may be; 0 = 80
	Color   bool // where it shows what is wrong
	Trouble bool // leave out what is well
}

// WriteTable writes a snapshot for people. Its first two lines say whether all is well
// and, if not, what to do. The Snapshot has been judged.
func WriteTable(w io.Writer, s Snapshot, l Look) error {
	p := newPrinter(w, s, l)
	p.verdict(s)
	p.line("%s  %s  ampcio %s%s", p.source(s.Source), s.At.Format("2006-01-02 15:04:05 UTC"), s.Version, p.uptime(s.Uptime))
	for _, n := range s.Notes {
		for i, row := range wrap(n, p.columns-6) {
			p.line("%s %s", p.paint(text.FgYellow, []string{"note:", "     "}[min(i, 1)]), row)
		}
	}
	syncs := byTrouble(s.Syncs)
	if len(syncs) > 0 {
		p.overview(syncs)
	}
	for _, y := range syncs {
		p.sync(y)
	}
	if !l.Trouble {
		p.door(s)
	}
	if d := s.Disk; !l.Trouble || d.Full != "" || d.Damaged > 0 || s.Health.Word == "disk" {
		p.disk(d)
	}
	if s.Reload != nil && (!l.Trouble || !s.Reload.OK) {
		p.reload(*s.Reload)
	}
	return p.err
}

// WriteStates writes for people how the syncs are, without the rest of a snapshot.
func WriteStates(w io.Writer, s Snapshot, l Look) error {
	p := newPrinter(w, s, l)
	if s.Source == "files" {
		p.line("%s", p.source(s.Source))
	}
	for _, y := range s.Syncs {
		p.state(y)
	}
	return p.err
}

// byTrouble are syncs, the worst first; those that are as bad as they were.
func byTrouble(syncs []Sync) []Sync {
	syncs = slices.Clone(syncs)
	slices.SortStableFunc(syncs, func(a, b Sync) int { return cmp.Compare(severity(b.Health.Level), severity(a.Health.Level)) })
	return syncs
}

type printer struct {
	w       io.Writer
	now     time.Time
	columns int
	color   bool
	full    string // why new events are refused now
	err     error
}

func newPrinter(w io.Writer, s Snapshot, l Look) *printer {
	columns := l.Columns
	if columns <= 0 {
		columns = 80
	}
	return &printer{w: w, now: s.At, columns: max(columns, 30), color: l.Color, full: s.Disk.Full}
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

// verdict is what somebody reads at night, on a phone.
func (p *printer) verdict(s Snapshot) {
	h := s.Health
	word, rest := "ALL IS WELL", glance(s)
	if h.Level != LevelOK {
		word, rest = strings.ToUpper(h.Level), h.Why
	}
	// One line, so that what to do is the second; all of it is told below.
	rows := wrap(word+": "+rest, p.columns)
	if len(rows) > 1 {
		rows = wrap(word+": "+rest, p.columns-2)
		rows[0] = strings.TrimRight(rows[0], ",;:(") + " …"
	}
	p.line("%s%s", p.paint(levelColor(h.Level), word), rows[0][len(word):])
	todo := h.ToDo
	if todo == "" {
		todo = "nothing"
	}
	for i, row := range wrap(todo, p.columns-7) {
		p.line("%s %s", []string{"to do:", "      "}[min(i, 1)], row)
	}
	var others []string
	for _, t := range s.AlsoTroubled() {
		others = append(others, t.Of+" ("+t.Word+")")
	}
	if len(others) > 0 {
		for i, row := range wrap(strings.Join(others, ", "), p.columns-7) {
			p.line("%s %s", []string{"also: ", "      "}[min(i, 1)], row)
		}
	}
}

// glance says of what is well how much of it there is.
func glance(s Snapshot) string {
	var pending uint64
	var oldest *int64
	var in, out float64
	known := false
	for _, y := range s.Syncs {
		pending += y.Books.Pending
		if y.OldestAge != nil && (oldest == nil || *y.OldestAge > *oldest) {
			oldest = y.OldestAge
		}
		if y.RateIn != nil && y.RateOut != nil {
			in, out, known = in+*y.RateIn, out+*y.RateOut, true
		}
	}
	text := many(uint64(len(s.Syncs)), "sync", "syncs") + ", "
	if pending == 0 {
		text += "nothing waits"
	} else {
		text += waiting(pending)
		if oldest != nil {
			text += ", the oldest for " + age(oldest)
		}
	}
	if known {
		text += fmt.Sprintf("; %s/s in, %s/s out", rate(&in), rate(&out))
	}
	return text
}

func levelColor(level string) text.Color {
	switch level {
	case LevelOK:
		return text.FgGreen
	case LevelCritical:
		return text.FgRed
	}
	return text.FgYellow
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

// column is one of the overview.
type column struct {
	head string
	cell func(p *printer, y Sync) string
}

var columnsOf = map[string]column{
	"SYNC":     {"SYNC", func(_ *printer, y Sync) string { return y.Name }},
	"STATUS":   {"STATUS", func(p *printer, y Sync) string { return p.status(y) }},
	"PENDING":  {"PENDING", func(_ *printer, y Sync) string { d := y.Depth; return count(d.Ready + d.InFlight + d.Retry + d.Held) }},
	"READY":    {"READY", func(_ *printer, y Sync) string { return count(y.Depth.Ready) }},
	"INFLIGHT": {"INFLIGHT", func(_ *printer, y Sync) string { return count(y.Depth.InFlight) }},
	"RETRY":    {"RETRY", func(_ *printer, y Sync) string { return count(y.Depth.Retry) }},
	"HELD":     {"HELD", func(_ *printer, y Sync) string { return count(y.Depth.Held) }},
	"DEAD":     {"DEAD", func(_ *printer, y Sync) string { return count(y.Depth.Dead) }},
	"OLDEST":   {"OLDEST", func(_ *printer, y Sync) string { return age(y.OldestAge) }},
	"NEXT TRY": {"NEXT TRY", func(_ *printer, y Sync) string { return age(y.NextAttempt) }},
	"IN/s":     {"IN/s", func(_ *printer, y Sync) string { return rate(y.RateIn) }},
	"OUT/s":    {"OUT/s", func(_ *printer, y Sync) string { return rate(y.RateOut) }},
	"DRAIN":    {"DRAIN", func(_ *printer, y Sync) string { return age(y.DrainETA) }},
	"P95":      {"P95", func(_ *printer, y Sync) string { return p95(y.Latency) }},
	"LATE":     {"LATE", func(_ *printer, y Sync) string { return y.Late.left() }},
}

// overviews are the columns from the widest to the narrowest terminal.
var overviews = [][]string{
	{"SYNC", "STATUS", "PENDING", "READY", "INFLIGHT", "RETRY", "HELD", "DEAD", "OLDEST", "NEXT TRY", "IN/s", "OUT/s", "P95", "DRAIN", "LATE"},
	{"SYNC", "STATUS", "PENDING", "RETRY", "HELD", "DEAD", "OLDEST", "IN/s", "OUT/s", "DRAIN"},
	{"SYNC", "STATUS", "PENDING", "DEAD", "OLDEST", "IN/s", "OUT/s"},
	{"SYNC", "STATUS", "PENDING", "OLDEST"},
	{"SYNC", "PENDING", "OLDEST"},
}

// overview is one row a sync: what a glance needs, in as many columns as there is room for.
func (p *printer) overview(syncs []Sync) {
	var rows []string
	for _, names := range overviews {
		var cells [][]string
		var heads []string
		for _, name := range names {
			heads = append(heads, columnsOf[name].head)
		}
		for _, y := range syncs {
			var row []string
			for i, name := range names {
				cell := "-"
				if !y.LedgerDamaged || i < 2 {
					cell = columnsOf[name].cell(p, y)
				} else if name != "IN/s" && name != "OUT/s" && name != "DRAIN" && name != "P95" {
					cell = "?"
				}
				row = append(row, cell)
			}
			cells = append(cells, row)
		}
		left := 2
		if names[1] != "STATUS" {
			left = 1
		}
		if rows = grid(heads, cells, left); widest(rows) <= p.columns {
			break
		}
	}
	for _, row := range rows {
		p.line("%s", row)
	}
}

// grid renders a table; all but the first columns are numbers.
func grid(heads []string, cells [][]string, left int) (rows []string) {
	t := table.NewWriter()
	t.SetStyle(table.StyleDefault)
	style := t.Style()
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft = ""
	style.Format.Header = text.FormatDefault
	row := func(cells []string) (r table.Row) {
		for _, c := range cells {
			r = append(r, c)
		}
		return r
	}
	t.AppendHeader(row(heads))
	for _, c := range cells {
		t.AppendRow(row(c))
	}
	var right []table.ColumnConfig
	for i := left + 1; i <= len(heads); i++ {
		right = append(right, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	for line := range strings.Lines(t.Render()) {
		rows = append(rows, strings.TrimRight(line, " \n"))
	}
	return rows
}

func widest(rows []string) (n int) {
	for _, row := range rows {
		n = max(n, text.StringWidthWithoutEscSequences(row))
	}
	return n
}

func p95(l *Latency) string {
	if l == nil {
		return "-"
	}
	return short(l.P95)
}

// short is a time in seconds for people.
func short(s float64) string {
	switch {
	case s >= 60:
		whole := int64(s)
		return age(&whole)
	case s >= 10:
		return fmt.Sprintf("%.0fs", s)
	case s >= 1:
		return fmt.Sprintf("%.1fs", s)
	}
	return fmt.Sprintf("%.0fms", s*1000)
}

// left says how long the oldest event has until it is late.
func (l Late) left() string {
	switch {
	case l.Limit == nil || l.OldestLeft == nil:
		return "-"
	case *l.OldestLeft < 0:
		return "LATE"
	}
	return age(l.OldestLeft) + " left"
}

func (p *printer) status(y Sync) string {
	switch y.Status {
	case StatusBlocked, StatusStopped, StatusUnreachable:
		return p.paint(text.FgRed, y.Status)
	case StatusOK:
		return p.paint(levelColor(y.Health.Level), y.Status)
	}
	return p.paint(text.FgYellow, y.Status)
}

func (p *printer) door(s Snapshot) {
	d := s.Door
	p.line("")
	p.section("door", fmt.Sprintf("%s in %s, %s", many(d.Events, "event", "events"), many(d.Requests, "request", "requests"), many(d.Duplicates, "duplicate", "duplicates")))
	for i, r := range d.Refused {
		last := ""
		if r.Last != nil {
			last = fmt.Sprintf(", last %s ago from %s", p.ago(*r.Last), r.LastAddress)
		}
		p.row(heading(i, "refused"), fmt.Sprintf("%s: %s%s", r.Reason, count(r.Count), last))
	}
	taken := uint64(0)
	for _, y := range s.Syncs {
		taken += y.Books.Taken
	}
	if d.Events == 0 && taken == 0 {
		if socket, is := strings.CutPrefix(d.URL, "unix:"); is {
			p.long("to do", "no events have come. ampcio listens at the socket "+socket+": give an SDK the URL of the proxy in front of it, with /2/httpapi")
			return
		}
		p.long("to do", "no events have come. Give an SDK this server URL:")
		p.line("             %s", d.URL)
	}
}

func (p *printer) disk(d Disk) {
	most := ""
	if d.Max > 0 {
		most = " of " + size(d.Max)
	}
	full := ""
	if d.FullETA != nil {
		full = "; full in " + age(d.FullETA) + ", if it goes on like this"
	}
	p.section("disk", fmt.Sprintf("%s used%s, %s free; log %s in %s%s", size(d.Used), most, size(d.Free), size(d.LogBytes), plural(d.LogFiles, "file", "files"), full))
	if d.Full != "" {
		p.long("", p.paint(text.FgRed, "NEW EVENTS ARE REFUSED:")+" "+d.Full)
		p.long("to do", d.Advice)
	}
	if d.Damaged > 0 {
		p.long("", p.paint(text.FgRed, many(uint64(d.Damaged), "chunk", "chunks")+" of the log could not be read"))
	}
}

func (p *printer) reload(r Reload) {
	if r.OK {
		p.section("reload", p.ago(r.At)+" ago")
		return
	}
	p.section("reload", p.paint(text.FgRed, "FAILED")+" "+p.ago(r.At)+" ago; the configuration before stays in force: "+r.Error)
}

// section is a row of what concerns all syncs.
func (p *printer) section(name, s string) {
	for _, row := range wrap(s, p.columns-13) {
		p.line("%-12s %s", name, row)
		name = ""
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
