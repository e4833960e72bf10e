package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
)

// whichFlags say which dead letters are meant; all that are given have to agree.
var whichFlags = []cli.Flag{
	&cli.StringSliceFlag{Name: "sync", Usage: "of the sync `NAME`; more than one may be given"},
	&cli.StringSliceFlag{Name: "reason", Usage: "that died of `REASON`, as list shows it"},
	&cli.StringSliceFlag{Name: "event", Usage: "of the event `NAME`; * is any text"},
	&cli.StringFlag{Name: "user", Usage: "of a user_id or device_id, exactly, or of the hash that list shows for it: `ID`"},
	&cli.StringFlag{Name: "older-than", Usage: "that died before this `TIME`: 3d, 2026-11-20 or 2026-11-20T10:12:03Z"},
	&cli.StringFlag{Name: "newer-than", Usage: "that died at or after this `TIME`"},
}

var (
	showIDsFlag = &cli.BoolFlag{Name: "show-ids", Usage: "user_ids and device_ids as they are, instead of a hash"}
	allFlag     = &cli.BoolFlag{Name: "all", Usage: "all there are; wanted where nothing else says which"}
)

const whichText = "Which ones: ids (SYNC/SEQ), or - for ids on stdin, one a line (other columns are ignored), and the flags; all have to agree.\n"

func deadLettersCommand() *cli.Command {
	with := func(more ...cli.Flag) []cli.Flag {
		return append(append([]cli.Flag{configFlag}, whichFlags...), more...)
	}
	return &cli.Command{
		Name: "dead-letters", Usage: "see, keep, send again or drop what Customer.io, or Amplitude, has refused for good",
		UsageText:   "ampcio dead-letters list|show|export|replay|drop [ID…|-] [FLAGS]",
		Description: "The running daemon is asked; when it is stopped its files are. Flags may stand before or behind ids.",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "one a line, the oldest records first",
				UsageText:   "ampcio dead-letters list [ID…|-] [FLAGS]",
				Description: whichText,
				Flags: with(&cli.IntFlag{Name: "limit", Usage: "show `N`; 0 = all, as with --json", Value: 50}, showIDsFlag,
					&cli.BoolFlag{Name: "json", Usage: "JSON, one object a line"}),
				Action: deadList,
			},
			{
				Name: "show", Usage: "all about one: what was sent, what was answered",
				UsageText:   "ampcio dead-letters show ID [--show-ids] [--json]",
				Description: "Users, properties and the event itself are shown with --show-ids only.",
				Flags:       []cli.Flag{configFlag, showIDsFlag, jsonFlag},
				Action:      deadShow,
			},
			{
				Name: "export", Usage: "whole, as JSON lines, to stdout; users and events in clear",
				UsageText:   "ampcio dead-letters export [ID…|-] [--http-v2] [FLAGS]",
				Description: whichText,
				Flags:       with(&cli.BoolFlag{Name: "http-v2", Usage: "the events alone, as Amplitude's HTTP V2 API takes them"}), Action: deadExport,
			},
			{
				Name: "replay", Usage: "send again what was refused, after the cause was mended",
				UsageText: "ampcio dead-letters replay [ID…|-] [FLAGS] [--dry-run] [--yes]",
				Description: whichText + "They go first in their user's queue, under the same ids, and only what was refused of them; what is refused again is a\n" +
					"dead letter again. It asks when events younger than 72 h are among them, since these may start campaigns.",
				Flags: with(allFlag, dryRunFlag, yesFlag, jsonFlag), Action: deadChange("dead-letters-replay", "replayed"),
			},
			{
				Name: "drop", Usage: "give them up for good; counted as discarded",
				UsageText:   "ampcio dead-letters drop [ID…|-] [FLAGS] [--dry-run] [--yes]",
				Description: whichText,
				Flags:       with(allFlag, dryRunFlag, yesFlag, jsonFlag), Action: deadChange("dead-letters-drop", "dropped"),
			},
		},
	}
}

// whichDead reads from the command line which dead letters are meant.
func whichDead(c *cli.Context) (q deadQuery, err error) {
	q = deadQuery{Syncs: c.StringSlice("sync"), Reasons: c.StringSlice("reason"), Events: c.StringSlice("event"), User: c.String("user"), All: c.Bool("all")}
	now := time.Now()
	for _, f := range []struct {
		name string
		ms   *int64
	}{{"older-than", &q.Until}, {"newer-than", &q.After}} {
		if !c.IsSet(f.name) {
			continue
		}
		t, err := moment(c.String(f.name), now)
		if err != nil {
			return q, exit(exitUsage, fmt.Errorf("--%s: %w", f.name, err))
		}
		*f.ms = t.UnixMilli()
	}
	if !c.Args().Present() {
		return q, nil
	}
	q.IDs = map[string][]uint64{}
	for _, arg := range c.Args().Slice() {
		if arg == "-" {
			if err := idsOnStdin(os.Stdin, q.IDs); err != nil {
				return q, err
			}
			continue
		}
		sync, seq, ok := deadLetterID(arg)
		if !ok {
			return q, exit(exitUsage, fmt.Errorf("%q is no id of a dead letter, such as production/1234", clipText(arg, 40)))
		}
		q.IDs[sync] = append(q.IDs[sync], seq)
	}
	return q, nil
}

// asked reads the configuration and which dead letters are meant.
func asked(c *cli.Context) (*operator, deadQuery, error) {
	q, err := whichDead(c)
	if err != nil {
		return nil, q, err
	}
	o, err := newOperator(c)
	return o, q, err
}

func deadList(c *cli.Context) error {
	o, q, err := asked(c)
	if err != nil {
		return err
	}
	q.ShowIDs = c.Bool("show-ids")
	if !c.Bool("json") || c.IsSet("limit") {
		q.Limit = max(c.Int("limit"), 0)
	}
	out := c.App.Writer
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	rows := 0
	end, err := o.eachDead(c.Context, "dead-letters-list", q, func(line []byte) error {
		if c.Bool("json") {
			_, err := out.Write(line)
			return err
		}
		var l deadLine
		if err := json.Unmarshal(line, &l); err != nil {
			return err
		}
		if rows == 0 {
			fmt.Fprintln(table, "ID\tDIED\tREASON\tEVENT\tUSER\tMESSAGE")
		}
		rows++
		message := l.Message
		if l.Field != "" {
			message = l.Field + ": " + message
		}
		if l.Event == "" {
			l.Event = "(unreadable)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Died.Format("2006-01-02 15:04"), l.Reason, clipText(l.Event, 24), clipText(l.User, 40), clipText(message, 48))
		if rows%500 == 0 {
			return table.Flush()
		}
		return nil
	})
	if err := errors.Join(err, table.Flush()); err != nil {
		return err
	}
	if end.Listed == 0 && !c.Bool("json") {
		fmt.Fprintln(c.App.ErrWriter, "no dead letters"+ofThese(&q))
	}
	if end.More > 0 {
		fmt.Fprintf(c.App.ErrWriter, "%s more (--limit 0 shows all)\n", many(end.More))
	}
	end.notes(c.App.ErrWriter)
	return nil
}

// ofThese ends a sentence about what was found.
func ofThese(q *deadQuery) string {
	if q.All || q.chosen() != nil && q.Until == 0 {
		return ""
	}
	return " that were meant"
}

// eachDead has a reading verb done, and calls each for every line but the last, which
// it returns.
func (o *operator) eachDead(ctx context.Context, verb string, q deadQuery, each func(line []byte) error) (end listEnd, err error) {
	ended := false
	err = o.do(ctx, verb, q, func(line []byte) error {
		if ended = bytes.HasPrefix(line, []byte(`{"listed":`)); ended {
			return json.Unmarshal(line, &end)
		}
		return each(line)
	})
	if err == nil && !ended {
		err = exit(exitUnavailable, errors.New("the daemon has ended in the middle of its answer: this is not all"))
	}
	return end, err
}

// notes tells what could not be shown.
func (e *listEnd) notes(w io.Writer) { notesOn(w, e.Missing, e.Damaged) }

func notesOn(w io.Writer, missing uint64, damaged []string) {
	if missing > 0 {
		fmt.Fprintln(w, noDeadLetters(missing))
	}
	for _, d := range damaged {
		fmt.Fprintf(w, "damaged, and passed over: %s\n", d)
	}
}

func noDeadLetters(ids uint64) string {
	return counted(ids, "id is no dead letter", "ids are no dead letters") + " (any more)"
}

// onlyMissing is the error of ids of which not one is a dead letter.
func (s *deadSum) onlyMissing() error {
	if s.Done > 0 || s.Missing == 0 || len(s.Damaged) > 0 {
		return nil
	}
	return exit(exitData, fmt.Errorf("nothing was changed: %s", noDeadLetters(s.Missing)))
}

func deadShow(c *cli.Context) error {
	if c.NArg() != 1 || c.Args().First() == "-" {
		return exit(exitUsage, errors.New("show wants one id, such as production/1234 (see ampcio dead-letters list)"))
	}
	o, q, err := asked(c)
	if err != nil {
		return err
	}
	q.ShowIDs = c.Bool("show-ids")
	d, err := doOne[wholeDead](c.Context, o, "dead-letters-show", q)
	if err != nil {
		return err
	}
	return shown(c, d, func(w io.Writer) { d.print(w) })
}

// print shows a dead letter to people.
func (d *wholeDead) print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	at := func(t time.Time) string { return t.Format("2006-01-02 15:04:05 UTC") }
	line("id", "%s", d.ID)
	line("project", "%s", d.Project)
	if d.EventType == "" {
		line("event", "(its record cannot be read)")
	} else {
		line("event", "%s", clipText(d.EventType, 100))
	}
	if d.Time != nil {
		line("happened", "%s", at(*d.Time))
	}
	line("received", "%s", at(d.Received))
	line("died", "%s: %s", at(d.Died), d.Reason)
	if isRelay(d.Sync) {
		line("event id", "%s (the insert_id at Amplitude, where the event had none)", d.EventID)
	} else {
		line("event id", "%s (at Customer.io)", d.EventID)
	}
	if d.User != "" {
		line("user", "%s (a hash: see --show-ids)", d.User)
	}
	if d.UserID != "" {
		line("user_id", "%s", clipText(d.UserID, 150))
	}
	if d.DeviceID != "" {
		line("device_id", "%s", clipText(d.DeviceID, 150))
	}
	var results []result
	_ = json.Unmarshal(d.Results, &results) // what is damaged has nothing to show
	for _, r := range results {
		said := "accepted"
		if r.Reason != "" {
			said = "refused, " + r.Reason
		}
		if r.Status != 0 {
			said += fmt.Sprintf(" (%d)", r.Status)
		}
		if r.Field != "" {
			said += ", " + clipText(r.Field, 150)
		}
		if r.Message != "" {
			said += ": " + clipText(r.Message, 500)
		}
		line(r.Action, "%s", said)
	}
	if d.Properties != nil {
		line("properties", "%s", d.Properties)
	}
	if d.Event != nil {
		line("as received", "%s", d.Event)
	}
	if d.Body != nil {
		line("body", "%x", d.Body)
	}
	line("to do", "mend the cause, then: ampcio dead-letters replay %s", d.ID)
}

func deadExport(c *cli.Context) error {
	o, q, err := asked(c)
	if err != nil {
		return err
	}
	q.HTTPV2 = c.Bool("http-v2")
	end, err := o.eachDead(c.Context, "dead-letters-export", q, func(line []byte) error {
		if q.HTTPV2 {
			return writeEvent(c.App.Writer, line)
		}
		_, err := c.App.Writer.Write(line)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "%s exported\n", letters(end.Listed))
	noteUnreadable(c.App.ErrWriter, end.Unreadable)
	end.notes(c.App.ErrWriter)
	return nil
}

// deadChange replays or drops; done is the word for what was.
func deadChange(verb, done string) cli.ActionFunc {
	return func(c *cli.Context) error {
		q, err := whichDead(c)
		if err == nil {
			err = q.chosen()
		}
		if err != nil {
			return err
		}
		o, err := newOperator(c)
		if err != nil {
			return err
		}
		total := uint64(0)
		if c.Bool("dry-run") || !c.Bool("yes") {
			q.DryRun = true
			would, err := o.changeDead(c, verb, done, q, 0)
			if err != nil {
				return err
			}
			if err := would.onlyMissing(); err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return shown(c, would, func(w io.Writer) { would.print(w, "would be "+done) })
			}
			if err := askAboutDead(c, verb, done, &would); err != nil {
				return err
			}
			q.Until, total = would.Until, would.Done // no more than what was shown
		}
		q.DryRun = false
		sum, err := o.changeDead(c, verb, done, q, total)
		if err != nil {
			return err
		}
		if err := sum.onlyMissing(); err != nil {
			return err
		}
		return shown(c, sum, func(w io.Writer) {
			sum.print(w, done)
			if verb == "dead-letters-replay" {
				for _, name := range sortedKeys(sum.Status) {
					if goes := o.goesOn(name, sum.Status[name]); goes != "" {
						fmt.Fprintf(w, "  %s%s\n", name, strings.Replace(goes, ". It is", " is", 1))
					}
				}
			}
		})
	}
}

// askAboutDead asks before what cannot be taken back.
func askAboutDead(c *cli.Context, verb, done string, would *deadSum) error {
	w := c.App.ErrWriter
	switch {
	case would.Done == 0:
		return nil
	case verb == "dead-letters-drop":
		would.print(w, "would be "+done+" for good")
		return confirm(c, fmt.Sprintf("Drop %s?", letters(would.Done)))
	case would.Young > 0:
		would.print(w, "would be "+done)
		return confirm(c, fmt.Sprintf("%s younger than 72 h, and may start campaigns. Replay %s?", counted(would.Young, "of these events is", "of these events are"), letters(would.Done)))
	}
	return nil
}

// changeDead has a changing verb done, tells how far it is, and says where it stood
// when somebody ends it.
func (o *operator) changeDead(c *cli.Context, verb, done string, q deadQuery, total uint64) (sum deadSum, err error) {
	bar := newProgress(c, done, "dead letters", total)
	of := ""
	if total > 0 {
		of = " of " + many(total)
	}
	err = o.do(c.Context, verb, q, func(line []byte) error {
		sum = deadSum{}
		if err := json.Unmarshal(line, &sum); err != nil {
			return err
		}
		if !sum.End {
			bar.set(sum.Done)
		}
		return nil
	})
	bar.end()
	switch {
	case errors.Is(err, errEndedByOperator):
		return sum, exit(exitTemporary, fmt.Errorf("%w: %s%s %s, the others are dead letters as before; the same command goes on with them", errEndedByOperator, many(sum.Done), of, done))
	case err != nil && sum.Done > 0:
		return sum, exit(codeOf(err), fmt.Errorf("%s%s %s, then: %w", many(sum.Done), of, done, err))
	case err == nil && !sum.End:
		err = exit(exitUnavailable, fmt.Errorf("the daemon has ended in the middle of its answer: %s%s %s; the same command goes on", many(sum.Done), of, done))
	}
	return sum, err
}

// print tells what a replay or drop did.
func (s *deadSum) print(w io.Writer, done string) {
	fmt.Fprintf(w, "%s %s\n", letters(s.Done), done)
	for _, b := range s.By {
		fmt.Fprintf(w, "  %s %s: %s\n", b.Sync, b.Reason, many(b.Count))
	}
	notesOn(w, s.Missing, s.Damaged)
}
