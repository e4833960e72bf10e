package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/config"
)

// The exit codes of a check, as monitoring systems know them.
const (
	checkOK       = 0
	checkWarning  = 1
	checkCritical = 2
	checkUnknown  = 3
)

func checkCode(level string) int {
	switch level {
	case admin.LevelOK:
		return checkOK
	case admin.LevelWarning:
		return checkWarning
	case admin.LevelCritical:
		return checkCritical
	}
	return checkUnknown
}

// errToldAlready is of a process that ends with an exit code and nothing more to say.
var errToldAlready = errors.New("it was told on stdout")

// ended ends the process with a code; 0 is no error.
func ended(code int) error {
	if code == 0 {
		return nil
	}
	return exit(code, errToldAlready)
}

// told writes a line, and ends the process with a code.
func told(w io.Writer, line string, code int) error {
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	return ended(code)
}

// A threshold of the command line: what is shown as its default, and where it belongs.
type threshold struct {
	name, usage, standard string
	set                   func(t *admin.Thresholds, value string) error
}

func anAge(to func(*admin.Thresholds) *time.Duration) func(*admin.Thresholds, string) error {
	return func(t *admin.Thresholds, value string) error {
		var d config.Duration
		if err := d.UnmarshalText([]byte(value)); err != nil && value != "0" {
			return fmt.Errorf(`%q is no duration, such as 5m, 2h or 3d`, value)
		}
		*to(t) = time.Duration(d)
		return nil
	}
}

func aCount(to func(*admin.Thresholds) *uint64) func(*admin.Thresholds, string) error {
	return func(t *admin.Thresholds, value string) error {
		n, err := strconv.ParseUint(strings.ReplaceAll(value, "_", ""), 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no number", value)
		}
		*to(t) = n
		return nil
	}
}

func aShare(to func(*admin.Thresholds) *float64) func(*admin.Thresholds, string) error {
	return func(t *admin.Thresholds, value string) error {
		n, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
		if err != nil || n < 0 || n > 100 {
			return fmt.Errorf("%q is no share, such as 75%%", value)
		}
		*to(t) = n / 100
		return nil
	}
}

var thresholds = []threshold{
	{"warn-age", "warn when the oldest pending event waits for `AGE`", "5m", anAge(func(t *admin.Thresholds) *time.Duration { return &t.WarnAge })},
	{"crit-age", "it is critical from `AGE` on", "1h", anAge(func(t *admin.Thresholds) *time.Duration { return &t.CritAge })},
	{"warn-depth", "warn when `N` events are pending", "never", aCount(func(t *admin.Thresholds) *uint64 { return &t.WarnDepth })},
	{"crit-depth", "it is critical from `N` on", "never", aCount(func(t *admin.Thresholds) *uint64 { return &t.CritDepth })},
	{"warn-dead", "warn when `N` dead letters are kept", "1", aCount(func(t *admin.Thresholds) *uint64 { return &t.WarnDead })},
	{"crit-dead", "it is critical from `N` on", "100", aCount(func(t *admin.Thresholds) *uint64 { return &t.CritDead })},
	{"warn-disk", "warn when `SHARE` of the space for events is used", "75%", aShare(func(t *admin.Thresholds) *float64 { return &t.WarnDisk })},
	{"crit-disk", "it is critical from `SHARE` on", "90%", aShare(func(t *admin.Thresholds) *float64 { return &t.CritDisk })},
	{"crit-idle", "critical when events could be sent, and none was for `DURATION`", "10m", anAge(func(t *admin.Thresholds) *time.Duration { return &t.CritIdle })},
	{"crit-late", "critical when the oldest pending event is of `AGE`: from late_after on it starts no campaigns", "60h", anAge(func(t *admin.Thresholds) *time.Duration { return &t.CritLate })},
	{"warn-full", "warn when the disk is full within `DURATION`, and is half full or will be full within an hour", "4h", anAge(func(t *admin.Thresholds) *time.Duration { return &t.WarnFull })},
}

func thresholdFlags() (flags []cli.Flag) {
	for _, t := range thresholds {
		flags = append(flags, &cli.StringFlag{Name: t.name, Usage: t.usage, DefaultText: t.standard})
	}
	return flags
}

func thresholdsOf(c *cli.Context) (admin.Thresholds, error) {
	set := admin.DefaultThresholds()
	for _, t := range thresholds {
		if !c.IsSet(t.name) {
			continue
		}
		if err := t.set(&set, c.String(t.name)); err != nil {
			return set, exit(exitUsage, fmt.Errorf("--%s: %w", t.name, err))
		}
	}
	for _, pair := range []struct {
		what       string
		warn, crit float64
	}{
		{"age", set.WarnAge.Seconds(), set.CritAge.Seconds()}, {"depth", float64(set.WarnDepth), float64(set.CritDepth)},
		{"dead", float64(set.WarnDead), float64(set.CritDead)}, {"disk", set.WarnDisk, set.CritDisk},
	} {
		if pair.warn > pair.crit && pair.crit > 0 {
			return set, exit(exitUsage, fmt.Errorf("--warn-%s is above --crit-%[1]s: nothing would ever be a warning; set both, or --crit-%[1]s 0", pair.what))
		}
	}
	return set, nil
}

// writeCheck writes a line for a monitoring system, with perfdata, and below it a line
// for each thing that is not well.
func writeCheck(w io.Writer, s admin.Snapshot, t admin.Thresholds) error {
	pending, summary := uint64(0), ""
	for _, y := range s.Syncs {
		pending += y.Books.Pending
	}
	if summary = s.Health.Why; s.Health.Level == admin.LevelOK {
		summary = fmt.Sprintf("%s, %d waiting", counted(uint64(len(s.Syncs)), "sync", "syncs"), pending)
	}
	var b strings.Builder
	// The bar begins perfdata, wherever it stands.
	clean := func(text string) string { return strings.NewReplacer("|", "/", "\n", " ").Replace(text) }
	fmt.Fprintf(&b, "QUEUE %s - %s |%s\n", strings.ToUpper(cmp.Or(s.Health.Level, admin.LevelUnknown)), clean(summary), perfdata(s, t))
	if s.Health.ToDo != "" {
		fmt.Fprintf(&b, "to do: %s\n", clean(s.Health.ToDo))
	}
	for _, t := range s.AlsoTroubled() {
		fmt.Fprintf(&b, "%s %s: %s; to do: %s\n", strings.ToUpper(t.Level), t.Of, clean(t.Why), clean(cmp.Or(t.ToDo, "nothing")))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// perfdata are the numbers that a monitoring system draws: label=value;warn;crit;min.
func perfdata(s admin.Snapshot, t admin.Thresholds) string {
	var b strings.Builder
	bound := func(v float64) string {
		if v == 0 {
			return ""
		}
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	add := func(label string, value any, unit string, warn, crit float64) {
		fmt.Fprintf(&b, " '%s'=%v%s;%s;%s;0;", label, value, unit, bound(warn), bound(crit))
	}
	for _, y := range s.Syncs {
		if y.LedgerDamaged {
			continue
		}
		oldest := int64(0)
		if y.OldestAge != nil {
			oldest = *y.OldestAge
		}
		add(y.Name+" oldest", oldest, "s", t.WarnAge.Seconds(), t.CritAge.Seconds())
		add(y.Name+" depth", y.Books.Pending, "", float64(t.WarnDepth), float64(t.CritDepth))
		add(y.Name+" dead", y.Depth.Dead, "", float64(t.WarnDead), float64(t.CritDead))
		add(y.Name+" delivered", y.Totals.Delivered, "c", 0, 0)
	}
	add("disk", strconv.FormatFloat(s.Disk.Share*100, 'f', 1, 64), "%", t.WarnDisk*100, t.CritDisk*100)
	return b.String()
}

// ackBlocked has it entered that somebody knows.
func ackBlocked(c *cli.Context) error {
	for _, name := range []string{"check", "watch", "trouble", "by", "top", "buckets", "show-ids", "format"} {
		if c.IsSet(name) {
			return exit(exitUsage, fmt.Errorf("--%s does not go with --ack-blocked", name))
		}
	}
	for _, t := range thresholds {
		if c.IsSet(t.name) {
			return exit(exitUsage, fmt.Errorf("--%s does not go with --ack-blocked", t.name))
		}
	}
	var long config.Duration
	if err := long.UnmarshalText([]byte(c.String("for"))); err != nil {
		return exit(exitUsage, fmt.Errorf("--for %q is no duration, such as 8h or 3d", c.String("for")))
	}
	o, err := statsOperator(c)
	if err != nil {
		return err
	}
	in := acknowledging{Syncs: slices.Compact(slices.Sorted(slices.Values(c.StringSlice("sync")))), Reason: c.String("ack-blocked"),
		By: cmp.Or(c.String("who"), whoAsks()), For: seconds(time.Duration(long)), DryRun: c.Bool("dry-run")}
	return o.do(c.Context, "ack-blocked", in, func(line []byte) error {
		if c.Bool("json") {
			_, err := c.App.Writer.Write(line)
			return err
		}
		return printAck(c.App.Writer, line)
	})
}
