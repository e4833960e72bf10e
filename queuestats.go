package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/admin"
)

func queueStatsCommand() *cli.Command {
	return &cli.Command{
		Name:      "queue-stats",
		Usage:     "what is queued, why it waits, what was not sent, and whether the books balance",
		UsageText: "ampcio queue-stats [--config FILE] [--json] [--watch 2s]",
		Description: "Asks the running daemon through its admin socket; reads the files when it is stopped.\n" +
			"Reading disturbs nothing.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "json", Usage: "one JSON object; with --watch one a line"},
			&cli.DurationFlag{Name: "watch", Usage: "show it again every `DURATION`, such as 2s, until Ctrl-C"},
		},
		Action: func(c *cli.Context) error {
			every := c.Duration("watch")
			if c.IsSet("watch") && every < 100*time.Millisecond {
				return exit(exitUsage, fmt.Errorf("--watch %s: must be at least 100ms", every))
			}
			if err := noArguments(c); err != nil {
				return err
			}
			o, err := newOperator(c)
			if err != nil {
				return err
			}
			return o.queueStats(c.Context, c.App.Writer, c.Bool("json"), every)
		},
	}
}

func (o *operator) queueStats(ctx context.Context, w io.Writer, asJSON bool, every time.Duration) error {
	out, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(out.Fd()))
	color := terminal && os.Getenv("NO_COLOR") == ""
	for {
		snap, err := o.takeSnapshot(ctx)
		if err != nil {
			return err
		}
		switch {
		case asJSON && every > 0:
			err = json.NewEncoder(w).Encode(snap)
		case asJSON:
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			err = e.Encode(snap)
		default:
			if every > 0 && terminal {
				fmt.Fprint(w, "\x1b[H\x1b[2J")
			}
			err = admin.WriteTable(w, snap, color)
		}
		if err != nil || every == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// takeSnapshot asks the daemon, or reads the files when there is none.
func (o *operator) takeSnapshot(ctx context.Context) (admin.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	snap, err := admin.Ask(ctx, o.socket)
	if err == nil {
		o.warn()
		return snap, nil
	}
	if !notRunning(err) {
		return snap, exit(exitUnavailable, notAnswered(o.socket, err))
	}
	if o.broken != nil {
		return snap, o.broken
	}
	if snap, err = filesSnapshot(o.cfg, time.Now()); err != nil {
		return snap, filesError(o.cfg, err)
	}
	return snap, nil
}
