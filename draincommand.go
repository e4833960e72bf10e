package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

func drainCommand() *cli.Command {
	return &cli.Command{
		Name: "drain", Usage: "wait until everything pending is delivered, before a machine is moved or taken away",
		UsageText: "ampcio drain [--until-empty] [--timeout D] [--refuse] [--sync NAME]… [--json]",
		Description: "Without --until-empty it only says whether the queue is empty, of a stopped ampcio from its files.\n\n" +
			"Events are taken and delivered meanwhile: first let the senders go to the new machine, then drain the old one. Where they\n" +
			"cannot be moved first, --refuse has new events answered 503 with Retry-After, so that SDKs keep them and try again\n" +
			"(browsers only while the page is open). When the queue is empty they are refused for one more minute: stop ampcio then.\n" +
			"At a timeout, after Ctrl-C, and after that minute events are taken as before.\n\n" +
			"A sync that is blocked, paused or disabled is named at once; the others are waited for. Dead letters count as delivered,\n" +
			"and stay: ampcio dead-letters export. What is known of users goes along in a backup (ampcio backup, ampcio restore).\n\n" +
			"Exit code: 0 empty; 75 not empty.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "until-empty", Usage: "wait until nothing is pending"},
			&cli.DurationFlag{Name: "timeout", Usage: "wait no longer than this `DURATION`, such as 10m"},
			&cli.BoolFlag{Name: "refuse", Usage: "take no new events meanwhile, and for a minute after"},
			&cli.StringSliceFlag{Name: "sync", Usage: "only what this sync `NAME` has pending; may be given several times"},
			jsonFlag},
		Action: drainAction,
	}
}

func drainAction(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	asked := draining{Syncs: c.StringSlice("sync"), Wait: c.Bool("until-empty"), Refuse: c.Bool("refuse"), Timeout: c.Duration("timeout").Milliseconds()}
	switch {
	case asked.Refuse && !asked.Wait:
		return exit(exitUsage, errors.New("--refuse wants --until-empty: without it nothing is waited for"))
	case c.IsSet("timeout") && !asked.Wait:
		return exit(exitUsage, errors.New("--timeout wants --until-empty: without it nothing is waited for"))
	case c.IsSet("timeout") && asked.Timeout <= 0:
		return exit(exitUsage, fmt.Errorf("--timeout %s: must be more than 0, such as 10m", c.Duration("timeout")))
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	bar := progressOn(c.App.ErrWriter, time.Now)
	var last drainReport
	named := map[string]bool{}
	err = o.do(c.Context, "drain", asked, func(line []byte) error {
		last = drainReport{}
		if err := json.Unmarshal(line, &last); err != nil {
			return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
		}
		if c.Bool("json") {
			_, err := c.App.Writer.Write(line)
			return err
		}
		if last.State != drainWaiting {
			return nil
		}
		for _, s := range last.Syncs {
			if s.Stuck && !named[s.Sync] {
				bar.note(c.App.ErrWriter, s.stuck(terminalColumns(c.App.ErrWriter)))
			}
			named[s.Sync] = s.Stuck
		}
		bar.tell(last.line)
		return nil
	})
	bar.end()
	if errors.Is(err, errEndedByOperator) {
		taken, with := "", ""
		if last.State != "" { // else it was ended before the first look
			with = ", with " + records(last.Pending) + " pending"
		}
		if asked.Refuse {
			taken = ", and takes events as before"
		}
		return exit(exitTemporary, fmt.Errorf("ended by you%s: nothing is lost, ampcio goes on delivering%s. To wait again: the same command", with, taken))
	}
	if err != nil {
		return err
	}
	if !c.Bool("json") {
		last.print(c.App.Writer, asked.Wait)
	}
	return last.code()
}

// line is the progress of a drain.
func (d *drainReport) line() string {
	var parts []string
	for _, s := range d.Syncs {
		if s.Pending == 0 || s.Stuck {
			continue
		}
		part := fmt.Sprintf("%s %s pending", s.Sync, many(s.Pending))
		if s.Oldest != nil {
			part += ", oldest " + forPeople(time.Duration(*s.Oldest)*time.Second)
		}
		switch {
		case s.Status != "delivering":
			part += ", " + s.Status
		case s.ETA != nil:
			part += ", about " + forPeople(time.Duration(*s.ETA)*time.Second) + " left"
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("%s waited: %s", forPeople(time.Duration(d.Took)*time.Second), strings.Join(parts, "; "))
}

// stuck says why a sync does not deliver, and what to do, on a terminal of so many columns.
func (s *drainSync) stuck(columns int) string {
	text := fmt.Sprintf("%s is %s: %s pending, not waited for", s.Sync, s.Status, records(s.Pending))
	if s.Why != "" {
		text += " (" + s.Why + ")"
	}
	text = folded(text, "  ", columns)
	if s.Advice != "" {
		text += s.toDo(columns)
	}
	return text
}

func (s *drainSync) toDo(columns int) string {
	return "\n  to do: " + folded(s.Advice, "         ", columns)
}

// print tells what came of it.
func (d *drainReport) print(w io.Writer, waited bool) {
	for _, s := range d.Syncs {
		switch {
		case s.Stuck:
			fmt.Fprintln(w, s.stuck(terminalColumns(w)))
		case s.Pending > 0:
			text := fmt.Sprintf("%s is %s: %s pending", s.Sync, s.Status, records(s.Pending))
			if s.Oldest != nil {
				text += ", the oldest for " + forPeople(time.Duration(*s.Oldest)*time.Second)
			}
			if s.Status != "delivering" && s.Advice != "" {
				text += s.toDo(terminalColumns(w))
			}
			fmt.Fprintln(w, text)
		}
	}
	if d.State == drainEmpty {
		after := ""
		if waited && d.Took > 0 {
			after = " after " + forPeople(time.Duration(d.Took)*time.Second)
		}
		of := "nothing is pending"
		if d.Source == "files" {
			of = "ampcio is stopped, and nothing is pending in its files"
		}
		fmt.Fprintf(w, "empty%s: %s\n", after, of)
	}
	if d.Dead > 0 {
		is := "are"
		if d.Dead == 1 {
			is = "is"
		}
		fmt.Fprintf(w, "%s %s kept here: ampcio dead-letters list, or export\n", letters(d.Dead), is)
	}
	if d.Taken > 0 {
		fmt.Fprintf(w, "%s came in meanwhile: are all senders at the new machine? To take none: --refuse\n", events(d.Taken))
	}
	if d.Until != nil {
		fmt.Fprintf(w, "new events are refused until %s: systemctl stop ampcio.socket ampcio.service\n", d.Until.Format("15:04:05 UTC"))
	}
}
