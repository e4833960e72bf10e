package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/admin"
)

func syncCommand() *cli.Command {
	return &cli.Command{
		Name: "sync", Usage: "see, hold, mend and redo what goes to Customer.io",
		UsageText: "ampcio sync status|pause|resume|retry|rewind|export|rename|remove|adopt NAME",
		Description: "The running daemon does it; when it is stopped, this command does, and the next start goes on from there.\n" +
			"Flags may stand before or behind the names. What relays a project to Amplitude is called relay.PROJECT.",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "what each sync is doing, why, and what to do about it",
				UsageText:   "ampcio sync status [NAME…] [--json]",
				Description: "Example: ampcio sync status production",
				Flags:       []cli.Flag{configFlag, jsonFlag}, Action: syncStatus,
			},
			{
				Name: "pause", Usage: "accept new events, but deliver nothing, until it is resumed",
				UsageText: "ampcio sync pause NAME [--json]",
				Description: "What is in flight to Customer.io may still arrive. A pause lasts over restarts, and never makes new events refused\n" +
					"but at storage.max_bytes. Doing it twice changes nothing.\n\nExample: ampcio sync pause production",
				Flags: []cli.Flag{configFlag, jsonFlag}, Action: holdAction("sync-pause"),
			},
			{
				Name: "resume", Usage: "deliver again, in order, what a paused sync has held",
				UsageText:   "ampcio sync resume NAME [--json]",
				Description: "Example: ampcio sync resume production",
				Flags:       []cli.Flag{configFlag, jsonFlag}, Action: holdAction("sync-resume"),
			},
			{
				Name: "retry", Usage: "try now what waits, instead of when it is due",
				UsageText: "ampcio sync retry NAME [--json]",
				Description: "Asks Customer.io, or Amplitude, at once whether key and region are right, and sends what waits for a retry; requests_per_second holds.\n\n" +
					"Example: ampcio sync retry production",
				Flags: []cli.Flag{configFlag, jsonFlag}, Action: syncRetry,
			},
			{
				Name: "rewind", Usage: "take again what was received since a time, by the rules as they are now",
				UsageText: "ampcio sync rewind NAME --since TIME [--untaken] [--dry-run] [--yes] [--partly] [--json]",
				Description: "For a rule that was wrong: mend it, apply it (ampcio reload), and rewind. Everything goes out again under the same ids:\n" +
					"Customer.io ignores the events that it has, and takes those that it has not. TIME is how long ago (24h, 3d), a date\n" +
					"(2026-11-20, its beginning in UTC) or 2026-11-20T10:12:03Z, and of when the events came in.\n" +
					"What was pending when the wrong rule came was judged by it as well: go back to before the oldest of that came in.\n" +
					"How far back one can go is storage.keep and keep_bytes.\n" +
					"With --untaken also what it has not taken, since it was disabled or in a dry run: to begin at a given time,\n" +
					"pause it, reload without dry_run, rewind, and resume; so everything goes out in order.\n\n" +
					"Examples: ampcio sync rewind production --since 24h --dry-run\n" +
					"          ampcio sync rewind production --since 2026-11-20\n" +
					"          ampcio sync rewind production --since 2026-11-20T10:12:03Z --untaken",
				Flags: []cli.Flag{configFlag,
					&cli.StringFlag{Name: "since", Usage: "take again what was received at or after this `TIME`"},
					&cli.BoolFlag{Name: "untaken", Usage: "also what came in while it was disabled or in a dry run"},
					&cli.BoolFlag{Name: "partly", Usage: "when the log does not reach back so far, take what there is"},
					dryRunFlag, yesFlag, jsonFlag}, Action: syncRewind,
			},
			{
				Name: "export", Usage: "what is pending, as one event a line, to stdout; users and events in clear",
				UsageText: "ampcio sync export NAME",
				Description: "Each line is what Amplitude's HTTP V2 API, and so ampcio, takes among its events, with insert_id and time. Those of one user\n" +
					"are in their order. It changes nothing.\n\nExample: ampcio sync export production > pending.jsonl",
				Flags: []cli.Flag{configFlag}, Action: syncExport,
			},
			{
				Name: "rename", Usage: "give a sync's queue and memory another name",
				UsageText: "ampcio sync rename OLD NEW [--dry-run] [--json]",
				Description: "For a sync that was renamed in the configuration: its pending events, dead letters, books and what people were last sent\n" +
					"go with it. Where NEW has taken events already, both become one, in order.\n\nExample: ampcio sync rename production prod",
				Flags: []cli.Flag{configFlag, dryRunFlag, jsonFlag}, Action: syncRename,
			},
			{
				Name: "remove", Usage: "give up a sync that is gone from the configuration, with all that it holds",
				UsageText: "ampcio sync remove NAME [--dry-run] [--yes] [--json]",
				Description: "Its pending events are never delivered, its dead letters are gone (ampcio dead-letters export keeps them).\n\n" +
					"Example: ampcio sync remove production --dry-run",
				Flags: []cli.Flag{configFlag, dryRunFlag, yesFlag, jsonFlag}, Action: syncRemove,
			},
			{
				Name: "adopt", Usage: "go on in another Customer.io workspace than before",
				UsageText: "ampcio sync adopt NAME [--dry-run] [--yes] [--json]",
				Description: "For a sync that is blocked since its keys are now those of another workspace: what is pending is delivered to the\n" +
					"new one, and what people were last sent is forgotten, so that each is sent whole.\n\nExample: ampcio sync adopt production",
				Flags: []cli.Flag{configFlag, dryRunFlag, yesFlag, jsonFlag}, Action: syncAdopt,
			},
		},
	}
}

// named reads the configuration and the names that a verb wants, as many as there are
// words in want.
func named(c *cli.Context, want ...string) (*operator, []string, error) {
	args := c.Args().Slice()
	if len(args) != len(want) {
		text := ""
		for _, w := range want {
			text += " " + w
		}
		return nil, nil, exit(exitUsage, fmt.Errorf("%s wants%s (see ampcio %[1]s --help)", strings.TrimPrefix(c.Command.HelpName, "ampcio "), text))
	}
	o, err := newOperator(c)
	return o, args, err
}

// doOne has a verb done that answers with one line.
func doOne[T any](ctx context.Context, o *operator, verb string, in any) (answer T, err error) {
	told := 0
	err = o.do(ctx, verb, in, func(line []byte) error {
		told++
		return json.Unmarshal(line, &answer)
	})
	if err == nil && told != 1 {
		err = exit(exitUnavailable, errors.New("the daemon has ended in the middle of its answer: look again before you repeat this"))
	}
	return answer, err
}

// shown prints an answer: as JSON, or by text.
func shown(c *cli.Context, answer any, text func(w io.Writer)) error {
	if c.Bool("json") {
		return tell(c.App.Writer, answer)
	}
	text(c.App.Writer)
	return nil
}

func syncStatus(c *cli.Context) error {
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	snap, err := o.takeSnapshot(c.Context, &statsQuestion{})
	if err != nil {
		return err
	}
	if wanted := c.Args().Slice(); len(wanted) > 0 {
		var names []string
		for _, y := range snap.Syncs {
			names = append(names, y.Name)
		}
		for _, w := range wanted {
			if !slices.Contains(names, w) {
				return noSuchSync(w, names)
			}
		}
		snap.Syncs = slices.DeleteFunc(snap.Syncs, func(y admin.Sync) bool { return !slices.Contains(wanted, y.Name) })
	}
	if c.Bool("json") {
		return tell(c.App.Writer, struct {
			Schema int          `json:"schema"`
			Source string       `json:"source"`
			At     time.Time    `json:"at"`
			Syncs  []admin.Sync `json:"syncs"`
		}{snap.Schema, snap.Source, snap.At, snap.Syncs})
	}
	return admin.WriteStates(c.App.Writer, snap, admin.Look{Columns: columnsOf(c.App.Writer), Color: colored(c.App.Writer)})
}

// colored says whether w is a terminal that may be written to in colour.
func colored(w io.Writer) bool {
	out, isFile := w.(*os.File)
	return isFile && term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == ""
}

func holdAction(verb string) cli.ActionFunc {
	return func(c *cli.Context) error {
		o, args, err := named(c, "NAME")
		if err != nil {
			return err
		}
		s, err := doOne[syncState](c.Context, o, verb, oneSync{Sync: args[0]})
		if err != nil {
			return err
		}
		return shown(c, s, func(w io.Writer) {
			already := ""
			if !s.Changed {
				already = " already"
			}
			if verb == "sync-pause" {
				held := "new events are accepted and held"
				if s.DryRun {
					held = "new events are not taken, since it is in a dry run, which goes on"
				} else if !s.Takes {
					held = "new events are not taken, since it is disabled or not in the configuration"
				}
				fmt.Fprintf(w, "%s is paused%s; %s; %s pending. Resume: ampcio sync resume %[1]s\n", s.Sync, already, held, many(s.Pending))
				if s.Status == admin.StatusBlocked {
					fmt.Fprintf(w, "it is blocked, too (%s): see ampcio sync status %s\n", s.Reason, s.Sync)
				}
				return
			}
			if s.Changed {
				fmt.Fprintf(w, "%s is resumed; %s pending%s\n", s.Sync, many(s.Pending), o.goesOn(s.Sync, s.Status))
			} else {
				fmt.Fprintf(w, "%s was not paused; %s pending%s\n", s.Sync, many(s.Pending), o.goesOn(s.Sync, s.Status))
			}
		})
	}
}

// goesOn says what becomes of a sync's pending events, in half a sentence.
func (o *operator) goesOn(name, status string) string {
	switch {
	case o.stopped && status == admin.StatusPaused:
		return fmt.Sprintf(". It is paused, and ampcio is stopped: ampcio sync resume %s, and start it (systemctl start ampcio)", name)
	case o.stopped:
		return ". ampcio is stopped: delivered after the next start (systemctl start ampcio)"
	case status == admin.StatusOK, status == admin.StatusChecking, status == admin.StatusStopped: // it is just being started
		return ""
	case status == admin.StatusPaused:
		return fmt.Sprintf(". It is paused: ampcio sync resume %s", name)
	}
	return fmt.Sprintf(". It is %s: see ampcio sync status %s", status, name)
}

func syncRetry(c *cli.Context) error {
	o, args, err := named(c, "NAME")
	if err != nil {
		return err
	}
	s, err := doOne[syncState](c.Context, o, "sync-retry", oneSync{Sync: args[0]})
	if err != nil {
		return err
	}
	return shown(c, s, func(w io.Writer) {
		was := s.Status
		if s.Reason != "" {
			was += " (" + s.Reason + ")"
		}
		fmt.Fprintf(w, "%s is tried now; it was %s, %s pending. What came of it: ampcio sync status %[1]s\n", s.Sync, was, many(s.Pending))
	})
}

func syncRewind(c *cli.Context) error {
	o, args, err := named(c, "NAME")
	if err != nil {
		return err
	}
	if c.String("since") == "" {
		return exit(exitUsage, errors.New("rewind wants --since TIME: how long ago (24h), a date (2026-11-20) or 2026-11-20T10:12:03Z"))
	}
	since, err := moment(c.String("since"), time.Now())
	if err != nil {
		return exit(exitUsage, fmt.Errorf("--since: %w", err))
	}
	in := rewinding{Sync: args[0], Since: since.UnixMilli(), Partly: c.Bool("partly"), Untaken: c.Bool("untaken"), DryRun: true}
	if c.Bool("dry-run") || !c.Bool("yes") {
		r, err := doOne[rewound](c.Context, o, "sync-rewind", in)
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			return shown(c, r, func(w io.Writer) { r.print(w) })
		}
		r.print(c.App.ErrWriter)
		if r.Records+r.NewlyTaken == 0 {
			return errNothingToRewind
		}
		if isRelay(in.Sync) {
			fmt.Fprintln(c.App.ErrWriter, "Amplitude ignores the events whose insert_id it has seen within 7 days, and takes the others.")
		} else {
			fmt.Fprintln(c.App.ErrWriter, "Customer.io ignores the events whose ids it has seen, and takes the others.")
			if y := o.cfg.Sync[in.Sync]; r.NewlyTaken > 0 && o.cfg.Project[y.Project].RelayMark != "" {
				fmt.Fprintf(c.App.ErrWriter, "%s was taken by no sync, so the relay has not marked what it passed on: what Amplitude's hosted sync has sent of it, Customer.io then has twice.\n", events(r.NewlyTaken))
			}
		}
		if r.Young > 0 {
			fmt.Fprintf(c.App.ErrWriter, "%s are less than 72 h old: those that it takes may start campaigns.\n", events(r.Young))
		}
		if err := confirm(c, fmt.Sprintf("Rewind %s to %s?", in.Sync, since.UTC().Format("2006-01-02 15:04:05 UTC"))); err != nil {
			return err
		}
	}
	in.DryRun = false
	r, err := doOne[rewound](c.Context, o, "sync-rewind", in)
	if err != nil {
		return err
	}
	if r.Records+r.NewlyTaken == 0 {
		return errNothingToRewind
	}
	return shown(c, r, func(w io.Writer) {
		fmt.Fprintf(w, "%s is rewound: %s are taken again", r.Sync, records(r.Records))
		if r.DeadLetters > 0 {
			fmt.Fprintf(w, ", %s of them had been dead letters", many(r.DeadLetters))
		}
		if r.NewlyTaken > 0 {
			fmt.Fprintf(w, ", and %s for the first time", many(r.NewlyTaken))
		}
		fmt.Fprintf(w, "%s\n", o.goesOn(r.Sync, r.Status))
	})
}

var errNothingToRewind = exit(exitData, errors.New("nothing was changed: there is nothing to take again"))

// print tells what a rewind would do.
func (r *rewound) print(w io.Writer) {
	fmt.Fprintf(w, "%s would take again %s", r.Sync, records(r.Records))
	if r.From != nil {
		fmt.Fprintf(w, ", received from %s on", r.From.Format("2006-01-02 15:04:05 UTC"))
	}
	fmt.Fprintln(w)
	if r.NewlyTaken > 0 {
		fmt.Fprintf(w, "  and take for the first time: %s\n", records(r.NewlyTaken))
	}
	if r.DeadLetters > 0 {
		fmt.Fprintf(w, "  of them dead letters now: %s\n", many(r.DeadLetters))
	}
	if r.Pending > 0 {
		fmt.Fprintf(w, "  pending anyway: %s more\n", many(r.Pending))
	}
	if len(r.Verdicts) > 0 {
		fmt.Fprintln(w, "by the rules as they are now:")
	}
	for _, v := range r.Verdicts {
		what := v.After
		if v.Kind == "user" && v.After == verdictSent {
			what = "sent if anything is new"
		}
		fmt.Fprintf(w, "  %-5s %s: %s, e.g. %q\n", v.Kind, what, many(uint64(v.Records)), clipText(v.Example, 60))
	}
}

func syncRename(c *cli.Context) error {
	o, args, err := named(c, "OLD", "NEW")
	if err != nil {
		return err
	}
	r, err := doOne[renamed](c.Context, o, "sync-rename", renaming{Old: args[0], New: args[1], DryRun: c.Bool("dry-run")})
	if err != nil {
		return err
	}
	return shown(c, r, func(w io.Writer) {
		is, begins := "is now", "begins"
		if r.DryRun {
			is, begins = "would be", "would begin"
		}
		fmt.Fprintf(w, "%s %s %s, with %s pending and %s", r.Old, is, r.New, many(r.Pending), letters(r.DeadLetters))
		if r.Joined {
			fmt.Fprintf(w, ", together with what %s had", r.New)
		}
		if r.Afresh {
			fmt.Fprintf(w, "; %s %s anew with the next event, since it is in the configuration", r.Old, begins)
		}
		if !r.DryRun {
			fmt.Fprint(w, o.goesOn(r.New, r.Status))
		}
		fmt.Fprintln(w)
	})
}

func syncRemove(c *cli.Context) error {
	return askedFirst(c, "sync-remove", question[syncState]{
		would: func(s syncState) string {
			return fmt.Sprintf("%s would be given up for good: %s pending and %s", s.Sync, many(s.Pending), letters(s.DeadLetters))
		},
		ask: func(s syncState) string { return fmt.Sprintf("Remove %s?", s.Sync) },
		did: func(_ *operator, s syncState) string {
			return fmt.Sprintf("%s is removed; given up: %s pending and %s", s.Sync, many(s.Pending), letters(s.DeadLetters))
		},
	})
}

func syncAdopt(c *cli.Context) error {
	return askedFirst(c, "sync-adopt", question[adoption]{
		would: func(a adoption) string {
			return fmt.Sprintf("%s has delivered to workspace %d, and its keys are now those of workspace %d: %s pending would go there",
				a.Sync, a.From, a.To, many(a.Pending))
		},
		ask: func(a adoption) string { return fmt.Sprintf("Deliver to workspace %d from now on?", a.To) },
		did: func(o *operator, a adoption) string {
			return fmt.Sprintf("%s delivers to workspace %d now; %s pending%s", a.Sync, a.To, many(a.Pending), o.goesOn(a.Sync, a.Status))
		},
	})
}

// question is what a person is told of a verb, from what it answers.
type question[T any] struct {
	would, ask func(T) string
	did        func(*operator, T) string
}

// askedFirst does what cannot be taken back to one sync: it says what would happen, and
// goes on when that is meant.
func askedFirst[T any](c *cli.Context, verb string, q question[T]) error {
	o, args, err := named(c, "NAME")
	if err != nil {
		return err
	}
	in := oneSync{Sync: args[0], DryRun: true}
	if c.Bool("dry-run") || !c.Bool("yes") {
		t, err := doOne[T](c.Context, o, verb, in)
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			return shown(c, t, func(w io.Writer) { fmt.Fprintln(w, q.would(t)) })
		}
		fmt.Fprintln(c.App.ErrWriter, q.would(t))
		if err := confirm(c, q.ask(t)); err != nil {
			return err
		}
	}
	in.DryRun = false
	t, err := doOne[T](c.Context, o, verb, in)
	if err != nil {
		return err
	}
	return shown(c, t, func(w io.Writer) { fmt.Fprintln(w, q.did(o, t)) })
}

func many(n uint64) string { return humanize.Comma(int64(n)) }

func counted(n uint64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return many(n) + " " + more
}

func records(n uint64) string { return counted(n, "record", "records") }
func events(n uint64) string  { return counted(n, "event", "events") }
func letters(n uint64) string { return counted(n, "dead letter", "dead letters") }
