package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/queue"
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
	if !errors.Is(askErr, fs.ErrNotExist) && !errors.Is(askErr, syscall.ECONNREFUSED) && !errors.Is(askErr, syscall.ENOTDIR) {
		if errors.Is(askErr, fs.ErrPermission) {
			askErr = fmt.Errorf("%w: you need to be in the group of the socket %s, or root", askErr, socket)
		}
		return snap, exit(exitUnavailable, askErr)
	}
	snap, err := filesSnapshot(cfg, time.Now())
	switch {
	case err == nil:
		return snap, nil
	case errors.Is(err, queue.ErrLocked):
		return snap, exit(exitUnavailable, fmt.Errorf("ampcio runs, but its admin socket %s does not answer: is server.socket the same as when it was started?", socket))
	case errors.Is(err, fs.ErrNotExist):
		return snap, exit(exitUnavailable, fmt.Errorf("ampcio is not running and has never run with storage.dir %s: start it with ampcio serve", cfg.Storage.Dir))
	case errors.Is(err, syscall.ENOTDIR):
		return snap, exit(exitUnavailable, fmt.Errorf("%w: storage.dir %s must be the folder that ampcio serve writes to", err, cfg.Storage.Dir))
	case errors.Is(err, fs.ErrPermission):
		return snap, exit(exitUnavailable, fmt.Errorf("ampcio is not running, and its files cannot be read: %w: try as root or as the user that runs ampcio", err))
	}
	return snap, exit(exitIO, err)
}
