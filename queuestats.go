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
	"ampcio/config"
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
			cfg, err := loadConfig(c, false)
			if err != nil {
				return err
			}
			return queueStats(c.Context, cfg, c.App.Writer, c.Bool("json"), every)
		},
	}
}

func queueStats(ctx context.Context, cfg *config.Config, w io.Writer, asJSON bool, every time.Duration) error {
	out, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(out.Fd()))
	color := terminal && os.Getenv("NO_COLOR") == ""
	for {
		snap, err := takeSnapshot(ctx, cfg)
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
func takeSnapshot(ctx context.Context, cfg *config.Config) (admin.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	socket := socketPath(cfg)
	snap, askErr := admin.Ask(ctx, socket)
	if askErr == nil {
		return snap, nil
	}
	if !notRunning(askErr) {
		return snap, exit(exitUnavailable, permitted(socket, askErr))
	}
	snap, err := filesSnapshot(cfg, time.Now())
	if err != nil {
		return snap, filesError(cfg, err)
	}
	return snap, nil
}
