package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/metrics"
)

// The formats of queue-stats.
const (
	formatText       = "text"
	formatJSON       = "json"
	formatJSONL      = "jsonl"
	formatPrometheus = "prometheus"
	formatNagios     = "nagios"
)

var formats = []string{formatText, formatJSON, formatJSONL, formatPrometheus, formatNagios}

func queueStatsCommand() *cli.Command {
	return &cli.Command{
		Name:  "queue-stats",
		Usage: "is all well, what is queued and for how long, why it waits, what was not sent, do the books balance",
		UsageText: "ampcio queue-stats [--sync NAME]… [--by reason|event|status|user] [--trouble] [--watch 2s]\n" +
			"   ampcio queue-stats --check [--warn-age 5m] [--crit-age 1h] …\n" +
			"   ampcio queue-stats --ack-blocked REASON [--sync NAME]… [--for 24h]",
		Description: "Asks the running daemon through its admin socket; reads the files when it is stopped. Reading disturbs nothing.\n" +
			"The first two lines say whether all is well and, if not, what to do.\n\n" +
			"With --check it is a check for a monitoring system, and the exit code is 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN;\n" +
			"without, it is 0 when something could be told. A threshold of 0 never warns.\n\n" +
			"With --ack-blocked somebody knows of it: until the sync delivers again, or --for is over, a blocked or unreachable\n" +
			"sync is a WARNING and no CRITICAL any more. --for 0s takes that back.\n\n" +
			"Examples: ampcio queue-stats --trouble\n" +
			"          ampcio queue-stats --by event --sync production\n" +
			"          ampcio queue-stats --watch 2s\n" +
			"          ampcio queue-stats --check --crit-age 2h --warn-dead 10\n" +
			"          ampcio queue-stats --ack-blocked \"new key comes on Monday\" --sync production --for 3d\n" +
			"          ampcio queue-stats --json | jq '.syncs[] | {name, health, oldest_age_s}'",
		Flags: append([]cli.Flag{configFlag,
			&cli.StringFlag{Name: "socket", Usage: "ask the daemon at the admin `SOCKET`, whatever the configuration says"},
			&cli.StringSliceFlag{Name: "sync", Usage: "only the sync `NAME`; may be given several times"},
			&cli.StringFlag{Name: "by", Usage: "how much waits, and how long, by reason, event, status or user (`WHAT`)"},
			&cli.IntFlag{Name: "top", Usage: "show the `N` largest of them", Value: 10},
			&cli.BoolFlag{Name: "show-ids", Usage: "with --by user: users in clear, not as a hash"},
			&cli.StringFlag{Name: "buckets", Usage: "the `AGES` by which what waits is counted", DefaultText: "1m,5m,30m,2h,12h,72h"},
			&cli.BoolFlag{Name: "trouble", Usage: "only what is not well"},
			&cli.StringFlag{Name: "format", Usage: "`FORMAT`: " + strings.Join(formats, ", "), DefaultText: "text, and nagios with --check"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object; with --watch one a line"},
			&cli.DurationFlag{Name: "watch", Usage: "show it again every `DURATION`, such as 2s, until Ctrl-C"},
			&cli.StringFlag{Name: "ack-blocked", Usage: "somebody knows that it does not deliver, for this `REASON`"},
			&cli.StringFlag{Name: "for", Usage: "how long that is known (`DURATION`)", Value: "24h"},
			&cli.StringFlag{Name: "who", Usage: "`NAME` of who knows", DefaultText: "who is logged in"},
			dryRunFlag, &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "nothing is asked anyway"},
			&cli.BoolFlag{Name: "check", Usage: "exit 0, 1, 2 or 3 as it is well, and say why in one line"},
		}, thresholdFlags()...),
		Action: queueStats,
	}
}

// lookBytes is from where on memory is given back sooner: a look at the files reads many
// chunks one after the other, and is done on machines that have little to spare.
const lookBytes = 20 << 20

// statsRequest is what the command line asks for.
type statsRequest struct {
	statsQuestion
	syncs      []string
	format     string
	every      time.Duration // 0 = once
	trouble    bool
	check      bool
	thresholds admin.Thresholds
}

func queueStats(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if c.IsSet("ack-blocked") {
		return ackBlocked(c)
	}
	for _, name := range []string{"for", "who", "dry-run", "yes"} {
		if c.IsSet(name) {
			return exit(exitUsage, fmt.Errorf("--%s goes with --ack-blocked", name))
		}
	}
	r, err := statsRequestOf(c)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(lookBytes)
	o, err := statsOperator(c)
	if err != nil && r.check {
		return told(c.App.Writer, "QUEUE UNKNOWN - "+err.Error(), checkUnknown)
	}
	if err != nil {
		return err
	}
	return o.queueStats(c.Context, c.App.Writer, r)
}

// statsOperator is newOperator; with --socket no configuration is needed.
func statsOperator(c *cli.Context) (*operator, error) {
	socket := c.String("socket")
	if socket == "" {
		return newOperator(c)
	}
	return &operator{cfg: config.WithMistakes(c.String("config")), socket: socket, onlyAsk: true, say: c.App.ErrWriter}, nil
}

func statsRequestOf(c *cli.Context) (*statsRequest, error) {
	usage := func(format string, args ...any) (*statsRequest, error) {
		return nil, exit(exitUsage, fmt.Errorf(format, args...))
	}
	r := &statsRequest{syncs: c.StringSlice("sync"), trouble: c.Bool("trouble"), check: c.Bool("check"), every: c.Duration("watch")}
	if c.IsSet("watch") && r.every < 100*time.Millisecond {
		return usage("--watch %s: must be at least 100ms", r.every)
	}
	r.format = c.String("format")
	switch {
	case r.format != "" && !slices.Contains(formats, r.format):
		if near := nearest(r.format, formats); near != "" {
			return usage("--format %s: did you mean %s?", r.format, near)
		}
		return usage("--format %s: it is one of %s", r.format, strings.Join(formats, ", "))
	case c.Bool("json") && r.format != "" && r.format != formatJSON:
		return usage("--json and --format %s: say one of them", r.format)
	case c.Bool("json"):
		r.format = formatJSON
	case r.format == "" && r.check:
		r.format = formatNagios
	case r.format == "":
		r.format = formatText
	}
	r.check = r.check || r.format == formatNagios
	if r.every > 0 && r.format == formatJSON {
		r.format = formatJSONL
	}
	if r.every > 0 && r.check {
		return usage("--watch and --check: a check ends")
	}
	r.By, r.Top, r.ShowIDs = c.String("by"), c.Int("top"), c.Bool("show-ids")
	if r.By != "" && !slices.Contains(groupings, r.By) {
		if near := nearest(r.By, groupings); near != "" {
			return usage("--by %s: did you mean %s?", r.By, near)
		}
		return usage("--by %s: it is one of %s", r.By, strings.Join(groupings, ", "))
	}
	if r.Top < 1 || r.Top > 10_000 {
		return usage("--top %d: must be from 1 to 10000", r.Top)
	}
	if r.By == "" && (c.IsSet("top") || c.IsSet("show-ids")) {
		return usage("--top and --show-ids go with --by")
	}
	var err error
	if r.Ages, err = agesOf(c.String("buckets")); err != nil {
		return usage("--buckets: %w", err)
	}
	if r.thresholds, err = thresholdsOf(c); err != nil {
		return nil, err
	}
	return r, nil
}

// agesOf reads ages such as 1m,5m,2h, in seconds.
func agesOf(s string) (ages []int64, err error) {
	if s == "" {
		return nil, nil
	}
	for word := range strings.SplitSeq(s, ",") {
		var d config.Duration
		if err := d.UnmarshalText([]byte(strings.TrimSpace(word))); err != nil || time.Duration(d) < time.Second {
			return nil, fmt.Errorf("%q is no age: write them as 1m,5m,2h,3d", word)
		}
		ages = append(ages, seconds(time.Duration(d)))
	}
	if slices.Sort(ages); len(slices.Compact(ages)) < len(ages) || len(ages) > 20 {
		return nil, errors.New("no age twice, and no more than 20")
	}
	return ages, nil
}

func (o *operator) queueStats(ctx context.Context, w io.Writer, r *statsRequest) error {
	out, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(out.Fd()))
	for {
		snap, err := o.takeSnapshot(ctx, &r.statsQuestion)
		if err == nil {
			err = r.choose(&snap)
		}
		if r.every > 0 && terminal && r.format == formatText {
			fmt.Fprint(w, "\x1b[H\x1b[2J")
			if err != nil && ctx.Err() == nil { // it is being restarted, perhaps
				_, err = fmt.Fprintf(w, "UNKNOWN: %v\n", err)
			} else if err == nil {
				err = r.write(w, snap)
			}
		} else if err == nil {
			err = r.write(w, snap)
		} else if r.check {
			err = told(w, "QUEUE UNKNOWN - "+firstLine(err.Error()), checkUnknown)
		}
		if ctx.Err() != nil && r.every > 0 {
			return nil
		}
		if err != nil || r.every == 0 {
			return err
		}
		again := time.NewTimer(r.every)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
		}
	}
}

// choose leaves in a snapshot what was asked for, and judges it.
func (r *statsRequest) choose(snap *admin.Snapshot) error {
	for _, name := range r.syncs {
		if !slices.ContainsFunc(snap.Syncs, func(y admin.Sync) bool { return y.Name == name }) {
			var names []string
			for _, y := range snap.Syncs {
				names = append(names, y.Name)
			}
			return noSuchSync(name, names)
		}
	}
	if len(r.syncs) > 0 {
		snap.Syncs = slices.DeleteFunc(snap.Syncs, func(y admin.Sync) bool { return !slices.Contains(r.syncs, y.Name) })
	}
	snap.Judge(r.thresholds)
	if r.trouble {
		snap.Syncs = slices.DeleteFunc(snap.Syncs, func(y admin.Sync) bool { return y.Health.Level == admin.LevelOK })
	}
	return nil
}

// write prints a snapshot. With --check the error says how the process ends.
func (r *statsRequest) write(w io.Writer, snap admin.Snapshot) error {
	var err error
	switch r.format {
	case formatJSONL:
		err = json.NewEncoder(w).Encode(snap)
	case formatJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		err = e.Encode(snap)
	case formatPrometheus:
		err = metrics.Write(w, snap)
	case formatNagios:
		err = writeCheck(w, snap, r.thresholds)
	default:
		err = admin.WriteTable(w, snap, admin.Look{Columns: columnsOf(w), Color: colored(w), Trouble: r.trouble})
	}
	if err != nil || !r.check {
		return err
	}
	return ended(checkCode(snap.Health.Level))
}

// columnsOf is how wide a line may be: what COLUMNS says, else the terminal, else 80.
func columnsOf(w io.Writer) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if f, isFile := w.(*os.File); isFile {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return 80
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// takeSnapshot asks the daemon, or reads the files when there is none.
func (o *operator) takeSnapshot(ctx context.Context, q *statsQuestion) (snap admin.Snapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if q.plain() {
		snap, err = admin.Ask(ctx, o.socket)
	} else {
		var body []byte
		if body, err = json.Marshal(q); err != nil {
			return snap, err
		}
		err = askDaemon(ctx, o.socket, "queue-look", body, func(line []byte) error { return json.Unmarshal(line, &snap) })
	}
	if err == nil {
		o.warn()
		return snap, nil
	}
	if _, known := errors.AsType[*exitError](err); known {
		return snap, err
	}
	if !notRunning(err) {
		return snap, exit(exitUnavailable, notAnswered(o.socket, err))
	}
	if o.onlyAsk {
		return snap, exit(exitUnavailable, fmt.Errorf("no ampcio answers at %s: it is stopped, or its admin socket is another one; without --socket its files are read", o.socket))
	}
	if o.broken != nil {
		return snap, o.broken
	}
	if snap, err = filesSnapshotFor(o.cfg, time.Now(), q); err != nil {
		return snap, filesError(o.cfg, err)
	}
	return snap, nil
}
