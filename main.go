// Ampcio takes events and user updates in Amplitude's API, keeps them on disk, and
// streams them to Customer.io in order for each user.
//
// This file is the command line; every verb has a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"ampcio/config"
)

// Exit codes, as in sysexits.h.
const (
	exitFailed      = 1
	exitUsage       = 64
	exitUnavailable = 69
	exitCantCreate  = 73
	exitIO          = 74
	exitTemporary   = 75
	exitConfig      = 78
)

// exitError is an error that knows the exit code of the process.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan os.Signal, 1)
	signal.Notify(first, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-first
		signal.Stop(first) // the second signal ends the process at once: before anybody can see that the first was heard
		cancel()
	}()
	err := app(os.Stdout, os.Stderr).RunContext(ctx, os.Args)
	if err == nil {
		return
	}
	priority := ""
	if underJournal, _ := journal.StderrIsJournalStream(); underJournal {
		priority = "<3>"
	}
	fmt.Fprintf(os.Stderr, "%sampcio: %v\n", priority, err)
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	os.Exit(code)
}

func app(stdout, stderr io.Writer) *cli.App {
	a := &cli.App{
		Name:            "ampcio",
		Usage:           "from Amplitude's SDKs, through the disk, to Customer.io",
		Version:         version().String(),
		Writer:          stdout,
		ErrWriter:       stderr,
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {}, // main alone exits
		OnUsageError:    usageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownVerb(c)
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			serveCommand(), demoCommand(), checkConfigCommand(), reloadCommand(), queueStatsCommand(), sandboxCommand(), versionCommand(),
		},
	}
	for _, c := range a.Commands {
		c.OnUsageError = usageError
	}
	a.Commands = append(a.Commands, laterCommands()...)
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, version()) }
	return a
}

func usageError(c *cli.Context, err error, _ bool) error {
	return exit(exitUsage, fmt.Errorf("%w (see %s --help)", err, c.Command.HelpName))
}

func unknownVerb(c *cli.Context) error {
	given, near, best := c.Args().First(), "", 0.8
	for _, known := range c.App.Commands {
		if s := smetrics.JaroWinkler(given, known.Name, 0.7, 4); s > best {
			near, best = known.Name, s
		}
	}
	if near != "" {
		return exit(exitUsage, fmt.Errorf("no command %q: did you mean %q?", given, near))
	}
	return exit(exitUsage, fmt.Errorf("no command %q (see ampcio --help)", given))
}

// laterCommands are the verbs of the design that this version does not have.
func laterCommands() []*cli.Command {
	var cs []*cli.Command
	for _, name := range []string{"explain", "dead-letters", "sync", "send-test", "trace", "audit", "import", "user",
		"backup", "restore", "drain", "doctor"} {
		cs = append(cs, &cli.Command{
			Name: name, Hidden: true, SkipFlagParsing: true,
			Action: func(*cli.Context) error {
				return exit(exitUsage, fmt.Errorf("%s: not yet: this version of ampcio does not have it", name))
			},
		})
	}
	return cs
}

var configFlag = &cli.StringFlag{
	Name: "config", Usage: "the configuration `FILE`", EnvVars: []string{"AMPCIO_CONFIG"}, Value: "/etc/ampcio/config.toml",
}

// loadConfig reads the configuration that the command line names.
func loadConfig(c *cli.Context, secrets bool) (*config.Config, error) {
	if c.Args().Present() {
		return nil, exit(exitUsage, fmt.Errorf("%s takes no arguments: %q", c.Command.Name, strings.Join(c.Args().Slice(), " ")))
	}
	cfg, err := config.Load(c.String("config"), config.Environment{Getenv: os.Getenv, NoSecrets: !secrets})
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	return cfg, nil
}
