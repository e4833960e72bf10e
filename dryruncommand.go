package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
)

func dryRunCommand() *cli.Command {
	return &cli.Command{
		Name: "dry-run", Usage: "what a sync with dry_run = true would have sent",
		UsageText: "ampcio dry-run report [--sync NAME] [--by hour,event] [--since TIME] [--json]",
		Subcommands: []*cli.Command{{
			Name: "report", Usage: "count what would have been sent, by hour of receipt and event",
			UsageText: "ampcio dry-run report [--sync NAME] [--by hour,event] [--since TIME] [--json]",
			Description: "To be held against what Amplitude's own destination delivers (GET /api/2/event-streaming/delivery-metrics-summary,\n" +
				"eventsDelivered for time_period=CUSTOM with start and end of an hour). Hours are UTC. Counts are kept for 15 days, and after the\n" +
				"dry run has ended; the requests themselves are in dry-run/NAME.jsonl of storage.dir, one a line, for example:\n" +
				"  jq -r '.operations[] | select(.action!=\"identify\") | [.received[:13], .name] | @tsv' NAME.jsonl | sort | uniq -c",
			Flags: []cli.Flag{configFlag,
				&cli.StringSliceFlag{Name: "sync", Usage: "only of this sync `NAME`; may be given several times"},
				&cli.StringFlag{Name: "by", Value: "hour,event", Usage: "`WHAT` a line stands for: hour, event, or both"},
				&cli.StringFlag{Name: "since", Usage: "only what was received in the hour of this `TIME` (24h, 2026-11-20, 2026-11-20T10:12:03Z) and later"},
				jsonFlag}, Action: dryRunReport,
		}},
	}
}

// dryRunQuestion asks for reports.
type dryRunQuestion struct {
	Syncs []string `json:"syncs,omitempty"` // none = all
	Hour  bool     `json:"by_hour"`
	Event bool     `json:"by_event"`
	Since int64    `json:"since_ms,omitempty"`
}

// dryRunAnswer is the report on one sync.
type dryRunAnswer struct {
	Sync        string      `json:"sync"`
	DryRun      bool        `json:"dry_run"` // false: it has ended
	Since       time.Time   `json:"since"`
	Newest      *time.Time  `json:"newest"` // when the last request would have been sent
	Requests    uint64      `json:"requests"`
	Bytes       uint64      `json:"bytes"`
	Events      uint64      `json:"events"`
	UserUpdates uint64      `json:"user_updates"`
	LeftOut     uint64      `json:"lines_left_out"`
	File        string      `json:"file"`
	Rows        []dryRunRow `json:"rows"`
}

func init() {
	verbs["dry-run-report"] = dryRunReportVerb
	readsOnly["dry-run-report"] = true
}

func dryRunReportVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked dryRunQuestion
	if err := readInput(in, &asked); err != nil {
		return err
	}
	cfg := h.config()
	names := cfg.Sync.Names()
	for _, name := range asked.Syncs {
		if !slices.Contains(names, name) {
			return noSuchSync(name, names)
		}
	}
	for _, name := range names {
		if len(asked.Syncs) > 0 && !slices.Contains(asked.Syncs, name) {
			continue
		}
		var counts *dryRunCounts
		if d, running := h.(*daemon); running && d.book(trialOf(name)) != nil {
			shown := d.book(trialOf(name)).shown()
			counts = &shown
		} else {
			var err error
			if counts, err = readDryRunCounts(cfg.Storage.Dir, name); err != nil {
				return exit(exitIO, err)
			}
		}
		if counts == nil {
			continue
		}
		a := dryRunAnswer{
			Sync: name, DryRun: settingsOf(cfg, trialOf(name)) != nil, Since: counts.Since, Requests: counts.Requests, Bytes: counts.Bytes,
			Events: counts.Events, UserUpdates: counts.Users, LeftOut: counts.LeftOut, File: dryRunPath(cfg.Storage.Dir, name, 0),
			Rows: counts.rows(asked.Hour, asked.Event, time.UnixMilli(asked.Since)),
		}
		if !counts.Newest.IsZero() {
			a.Newest = &counts.Newest
		}
		if err := tell(out, a); err != nil {
			return err
		}
	}
	return nil
}

func dryRunReport(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	q := dryRunQuestion{Syncs: c.StringSlice("sync")}
	for _, by := range strings.Split(c.String("by"), ",") {
		switch strings.TrimSpace(by) {
		case "hour":
			q.Hour = true
		case "event":
			q.Event = true
		default:
			return exit(exitUsage, fmt.Errorf("--by: %q is not known: use hour, event, or hour,event", by))
		}
	}
	if s := c.String("since"); s != "" {
		since, err := moment(s, time.Now())
		if err != nil {
			return exit(exitUsage, fmt.Errorf("--since: %w", err))
		}
		q.Since = since.UnixMilli()
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	some := false
	err = o.do(c.Context, "dry-run-report", q, func(line []byte) error {
		var a dryRunAnswer
		if err := json.Unmarshal(line, &a); err != nil {
			return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
		}
		if some && !c.Bool("json") {
			fmt.Fprintln(c.App.Writer)
		}
		some = true
		return shown(c, a, a.print)
	})
	if err == nil && !some {
		return exit(exitData, errors.New("there was no dry run yet: set dry_run = true under [sync.NAME], then: ampcio reload"))
	}
	return err
}

func (a dryRunAnswer) print(w io.Writer) {
	is := "in a dry run"
	if !a.DryRun {
		is = "its dry run has ended"
	}
	fmt.Fprintf(w, "%s: %s since %s; would have been sent: %s, %s and %s, %s\n", a.Sync, is, a.Since.Format("2006-01-02 15:04:05 UTC"),
		counted(a.Requests, "request", "requests"), events(a.Events), counted(a.UserUpdates, "user update", "user updates"), humanize.IBytes(a.Bytes))
	fmt.Fprintf(w, "requests: %s", a.File)
	if a.LeftOut > 0 {
		fmt.Fprintf(w, " (%s left out: no space to spare)", many(a.LeftOut))
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range a.Rows {
		cells := []string{}
		if r.Hour != "" {
			cells = append(cells, strings.TrimSuffix(strings.Replace(r.Hour, "T", " ", 1), ":00Z"))
		}
		what := r.Action
		switch {
		case r.Action == "identify":
			what = "user updates"
		case r.Name == "" && r.Action == "event":
			what = "events"
		case r.Action == "event":
			what = r.Name
		case r.Name != "":
			what = r.Action + " " + r.Name
		}
		fmt.Fprintln(t, strings.Join(append(cells, fmt.Sprintf("%11s", many(r.Count)), what), "\t"))
	}
	_ = t.Flush() // as with every line here, nobody can be told
}
