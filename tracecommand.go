package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"ampcio/queue"
)

func traceCommand() *cli.Command {
	return &cli.Command{
		Name: "trace", Usage: "what became of the events of one user, or of one event: received, decided, sent, answered",
		UsageText: "ampcio trace --user U | --device D | --insert-id I | --seq N [--project P] [--sync NAME] [--since TIME] [--limit N] [--json]",
		Description: "Looks through the kept records (storage.keep, keep_bytes), the side place and the dead letters. Nothing is changed, and\n" +
			"deliveries go on. U and D may be the hash that other lists show for them. TIME is how long ago the event came in (24h, 3d),\n" +
			"a date (2026-11-20, in UTC) or 2026-11-20T10:12:03Z. The last lines say for each sync, in a sentence, what became of it all.",
		Flags: []cli.Flag{configFlag,
			&cli.StringFlag{Name: "user", Usage: "the user_id `U`, or its hash"},
			&cli.StringFlag{Name: "device", Usage: "the device_id `D`, or its hash"},
			&cli.StringFlag{Name: "insert-id", Usage: "the insert_id `I` of the event"},
			&cli.Uint64Flag{Name: "seq", Usage: "the record `N` of the log, as in the id of a dead letter (production/N)"},
			&cli.StringFlag{Name: "project", Usage: "in the project `P`; may be left out when there is only one"},
			&cli.StringFlag{Name: "sync", Usage: "only what became of it in the sync `NAME`"},
			&cli.StringFlag{Name: "since", Usage: "only what was received at or after this `TIME`"},
			&cli.IntFlag{Name: "limit", Usage: "the newest `N` records", Value: 50},
			&cli.BoolFlag{Name: "show-ids", Usage: "show user_ids and device_ids instead of hashes"},
			jsonFlag,
		},
		Action: traceAction,
	}
}

func traceAction(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	asked := tracing{Sync: c.String("sync"), Limit: c.Int("limit"), ShowIDs: c.Bool("show-ids"),
		whom: whom{Project: c.String("project"), User: c.String("user"), Device: c.String("device"), InsertID: c.String("insert-id"), Seq: c.Uint64("seq")}}
	given := 0
	for _, is := range []bool{asked.User != "", asked.Device != "", asked.InsertID != "", asked.Seq != 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return exit(exitUsage, errors.New("say whose events, by one of --user, --device, --insert-id and --seq (see ampcio trace --help)"))
	}
	if asked.Limit < 1 || asked.Limit > traceMost {
		return exit(exitUsage, fmt.Errorf("--limit is from 1 to %s", humanize.Comma(traceMost)))
	}
	if c.IsSet("since") {
		since, err := moment(c.String("since"), time.Now())
		if err != nil {
			return exit(exitUsage, fmt.Errorf("--since: %w", err))
		}
		asked.Since = since.UnixMilli()
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	found := false
	err = o.do(c.Context, "trace", asked, func(line []byte) error {
		if c.Bool("json") {
			_, err := c.App.Writer.Write(line)
			found = true
			return err
		}
		var l traceLine
		if err := json.Unmarshal(line, &l); err != nil {
			return err
		}
		if l.Record != nil {
			l.Record.write(c.App.Writer)
		}
		if l.Summary != nil {
			found = true
			l.Summary.write(c.App.Writer, &asked)
		}
		return nil
	})
	if err == nil && !found {
		err = exit(exitUnavailable, errors.New("the daemon has ended in the middle of its answer"))
	}
	return err
}

// write prints a record for a person.
func (t *traced) write(w io.Writer) {
	fmt.Fprintf(w, "%d  received %s", t.Seq, clock(t.Received))
	switch {
	case t.Forgotten:
		fmt.Fprint(w, "  of somebody who was forgotten")
	case t.Time != nil:
		if d := t.Received.Sub(*t.Time); d >= time.Second || d <= -time.Second {
			fmt.Fprintf(w, " (happened %s)", clock(*t.Time))
		}
		fmt.Fprintf(w, "  %s", clipText(t.Event, 60))
		if t.User != "" {
			fmt.Fprintf(w, "  user %s", clipText(t.User, 60))
		}
		if t.Device != "" {
			fmt.Fprintf(w, "  device %s", clipText(t.Device, 60))
		}
	default:
		fmt.Fprint(w, "  its event cannot be read")
	}
	if !t.InLog {
		fmt.Fprint(w, "  (no longer in the log)")
	}
	fmt.Fprintln(w)
	for i := range t.Syncs {
		t.Syncs[i].write(w)
	}
}

// deeperTrace is where a line about a sync goes on that is too long for the terminal.
const deeperTrace = "      "

func (t *tracedFor) write(w io.Writer) {
	for _, e := range t.Earlier {
		before := fmt.Sprintf("%s: before that %s at %s", t.Sync, strings.ReplaceAll(e.State, "_", " "), clock(e.At))
		if e.Reason != "" {
			before += " (" + e.Reason + ")"
		}
		fmt.Fprintf(w, "    %s\n", folded(before, deeperTrace, terminalColumns(w)))
	}
	var says []string
	say := func(format string, args ...any) { says = append(says, fmt.Sprintf(format, args...)) }
	switch t.State {
	case "delivered":
		text := "delivered"
		if t.At != nil {
			text += " at " + clock(*t.At)
		}
		say("%s", text)
		if t.Tries > 1 {
			say("%s try, after %s", humanize.Ordinal(t.Tries), t.Reason)
		}
		say("answered 200")
	case queue.FateDead:
		text := "dead letter"
		if t.At != nil {
			text += " since " + clock(*t.At)
		}
		say("%s: %s", text, t.Reason)
		for _, a := range t.Answers {
			if a.Reason == "" {
				say("%s answered %d", a.Action, a.Status)
				continue
			}
			status := "not sent"
			if a.Status != 0 {
				status = fmt.Sprintf("answered %d", a.Status)
			}
			say("%s %s: %s %s", a.Action, status, clipText(strings.TrimSpace(a.Field+" "+a.Message), 200), a.Reason)
		}
	case queue.FateWaiting:
		say("waits after %s: %s", counted(uint64(t.Tries), "failed try", "failed tries"), t.Reason)
		if t.Behind {
			say("behind an earlier one of its user")
		}
		if t.Next != nil {
			say("next try at %s", clock(*t.Next))
		}
	case "filtered", "discarded":
		text := t.State
		if t.At != nil {
			text += " at " + clock(*t.At)
		}
		say("%s: %s", text, t.Reason)
	default:
		say("%s", t.inShort())
	}
	if t.Aside {
		say("in the side place")
	}
	if t.Paused != nil && t.State != "in_flight" {
		say("the sync is paused since %s", clock(*t.Paused))
	}
	if t.Event != "" {
		say("event %s", strings.Replace(t.Event, "dead/", "refused: ", 1))
	}
	if t.UserSent != "" {
		say("user update %s", strings.Replace(t.UserSent, "dead/", "refused: ", 1))
	}
	switch {
	case t.Now == nil:
	case t.Event == "":
		say("by the rules as they are now: event %s, user update %s", t.Now.Event, t.Now.User)
	default:
		if others := t.othersNow(); others != "" {
			say("%s", others)
		}
	}
	if t.Rule > 0 && (t.Now == nil || t.Now.Event == verdictSent || t.Now.Event == "dropped_by_rule") {
		say("select rule %d", t.Rule)
	}
	fmt.Fprintf(w, "    %s\n", folded(t.Sync+": "+strings.Join(says, "; "), deeperTrace, terminalColumns(w)))
}

func (s *traceSummary) write(w io.Writer, asked *tracing) {
	if s.Shown > 0 {
		fmt.Fprintln(w)
	}
	switch {
	case s.Found == 0:
		fmt.Fprintf(w, "Nothing is kept of that in project %s.", s.Looked)
		if s.Kept != nil {
			fmt.Fprintf(w, " The log has events since %s.", clock(*s.Kept))
		} else {
			fmt.Fprint(w, " The log has no events.")
		}
		fmt.Fprintln(w)
		return
	case uint64(s.Shown) < s.Found:
		fmt.Fprintf(w, "The newest %d of %s. More: --limit, or --since.\n", s.Shown, many(s.Found))
	}
	if s.Forgotten > 0 {
		fmt.Fprintf(w, "%s of somebody who was forgotten: they are erased when their file of the log goes.\n", counted(s.Forgotten, "record is", "records are"))
	}
	for _, y := range s.Syncs {
		fmt.Fprintln(w, folded(y.Summary, "  ", terminalColumns(w)))
	}
}
