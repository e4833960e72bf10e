package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"ampcio/queue"
)

// exitUnbalanced is the exit code of an audit that has found a difference.
const exitUnbalanced = 2

func init() {
	verbs["audit"] = auditVerb
	readsOnly["audit"] = true
}

func auditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", Usage: "prove the books from the disk: what is pending is counted by reading it",
		UsageText: "ampcio audit [--sync NAME] [--json]",
		Description: "Asks the running daemon; reads the files when it is stopped. Nothing is changed, deliveries go on. It reads every\n" +
			"ledger, and the log from the oldest pending record on: a million records take a second or two.\n" +
			"Exit code 0: everything balances. 2: something does not, and each difference is told.",
		Flags: []cli.Flag{configFlag,
			&cli.StringFlag{Name: "sync", Usage: "only the sync `NAME`"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			o, err := newOperator(c)
			if err != nil {
				return err
			}
			var all []queue.Audit
			err = o.do(c.Context, "audit", auditing{c.String("sync")}, func(line []byte) error {
				var a queue.Audit
				if err := json.Unmarshal(line, &a); err != nil {
					return err
				}
				all = append(all, a)
				if c.Bool("json") {
					return nil
				}
				return printAudit(c.App.Writer, &a)
			})
			if c.Bool("json") {
				err = errors.Join(writeAudits(c.App.Writer, all, o.stopped), err)
			} else if err == nil && len(all) == 0 {
				fmt.Fprintln(c.App.Writer, "There is no ledger yet, and nothing to audit.")
			}
			if err != nil {
				return err
			}
			return unbalanced(all)
		},
	}
}

// auditing is what an audit is asked.
type auditing struct {
	Sync string `json:"sync,omitempty"` // "" = all
}

// auditVerb tells of each ledger when its audit has ended.
func auditVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked auditing
	if err := readInput(in, &asked); err != nil {
		return err
	}
	names := h.names()
	if asked.Sync != "" {
		if !slices.Contains(names, asked.Sync) {
			return unknownSync(h, asked.Sync)
		}
		names = []string{asked.Sync}
	}
	if !h.running() {
		all, err := queue.AuditFiles(ctx, h.config().Storage.Dir, names...)
		for _, a := range all {
			err = errors.Join(tell(out, a), err)
		}
		return exit(exitIO, err)
	}
	var errs []error
	for _, name := range names {
		c := h.consumer(name)
		if c == nil {
			continue // removed meanwhile
		}
		a, err := c.Audit(ctx)
		if err == nil {
			err = tell(out, a)
			if d, is := h.(*daemon); is {
				d.lastLooks.audited(time.Now(), &a)
			}
		}
		errs = append(errs, err)
	}
	return exit(exitIO, errors.Join(errs...))
}

func writeAudits(w io.Writer, all []queue.Audit, stopped bool) error {
	type balanced struct {
		queue.Audit
		Balanced bool `json:"balanced"`
	}
	answer := struct {
		Source string     `json:"source"` // daemon | files
		Syncs  []balanced `json:"syncs"`
	}{"daemon", []balanced{}}
	if stopped {
		answer.Source = "files"
	}
	for _, a := range all {
		answer.Syncs = append(answer.Syncs, balanced{a, a.Balanced()})
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(answer)
}

func printAudit(w io.Writer, a *queue.Audit) error {
	n := func(v uint64) string { return humanize.Comma(int64(v)) }
	verdict := "balanced"
	if !a.Balanced() {
		verdict = "DOES NOT BALANCE"
	}
	b := a.Books
	_, err := fmt.Fprintf(w, "%s: %s\n  taken %s + rewound %s = delivered %s + filtered %s + dead %s + discarded %s + lost %s + pending %s\n"+
		"  by reading: %s pending in the log, %s in the side place, %s\n",
		a.Name, verdict, n(b.Taken), n(b.Rewound), n(b.Delivered), n(b.Filtered), n(b.Dead), n(b.Discarded), n(b.Lost), n(b.Pending),
		n(a.InLog), n(a.Aside), deadLettersRead(a))
	for _, d := range a.Differences {
		if err == nil {
			_, err = fmt.Fprintf(w, "  difference: %s\n", d)
		}
	}
	for _, note := range a.Notes {
		if err == nil {
			_, err = fmt.Fprintf(w, "  note: %s\n", note)
		}
	}
	return err
}

func deadLettersRead(a *queue.Audit) string {
	if a.DeadLetters == 1 {
		return "1 dead letter"
	}
	return humanize.Comma(int64(a.DeadLetters)) + " dead letters"
}

// unbalanced says which books do not balance; nil when all do.
func unbalanced(all []queue.Audit) error {
	var names []string
	for _, a := range all {
		if !a.Balanced() {
			names = append(names, a.Name)
		}
	}
	if names == nil {
		return nil
	}
	return exit(exitUnbalanced, fmt.Errorf("the books of %s do not balance: make a copy of it all (ampcio backup FILE), and tell us", strings.Join(names, ", ")))
}
