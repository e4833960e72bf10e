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
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"ampcio/config"
)

// Exit codes, as in sysexits.h.
const (
	exitFailed       = 1
	exitUsage        = 64
	exitData         = 65 // what was asked for cannot be, as things are
	exitUnconfigured = 66 // the configuration is the example as it was installed: the unit does not start it again
	exitUnavailable  = 69
	exitCantCreate   = 73
	exitIO           = 74
	exitTemporary    = 75
	exitConfig       = 78
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
	a := app(os.Stdout, os.Stderr)
	err := a.RunContext(ctx, flagsFirst(a.Commands, os.Args))
	if err == nil {
		return
	}
	priority := ""
	if underJournal, _ := journal.StderrIsJournalStream(); underJournal {
		priority = "<3>"
	}
	if !errors.Is(err, errToldAlready) {
		fmt.Fprintf(os.Stderr, "%sampcio: %v\n", priority, err)
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	os.Exit(code)
}

func app(stdout, stderr io.Writer) *cli.App {
	a := &cli.App{
		Name:                      "ampcio",
		Usage:                     "from Amplitude's SDKs, through the disk, to Customer.io",
		Version:                   version().String(),
		Writer:                    stdout,
		ErrWriter:                 stderr,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,                         // events have commas in their names
		ExitErrHandler:            func(*cli.Context, error) {}, // main alone exits
		OnUsageError:              usageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownVerb(c)
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			serveCommand(), demoCommand(), checkConfigCommand(), reloadCommand(), doctorCommand(), queueStatsCommand(), sendTestCommand(), alertsCommand(), syncCommand(), deadLettersCommand(),
			dryRunCommand(), explainCommand(), auditCommand(), traceCommand(), userCommand(), drainCommand(), backupCommand(), restoreCommand(), importCommand(),
			sandboxCommand(), manCommand(), completionCommand(), completeCommand(), packageCommand(), versionCommand(),
		},
	}
	readableHelp()
	prepare("", a.Commands)
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, version()) }
	return a
}

func usageError(c *cli.Context, err error, _ bool) error {
	if given, is := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); is {
		return unknownFlag(c, strings.TrimLeft(given, "-"))
	}
	return exit(exitUsage, fmt.Errorf("%w (see %s --help)", err, c.Command.HelpName))
}

// prepare gives all commands, and those below them, what is the same for each.
func prepare(above string, cs []*cli.Command) {
	for _, c := range cs {
		c.OnUsageError, c.HideHelpCommand = usageError, true
		withExamples(above+c.Name, c)
		for _, f := range c.Flags {
			if b, is := f.(*cli.BoolFlag); is {
				b.DisableDefaultText = true // that it is false is no news
			}
		}
		if len(c.Subcommands) > 0 {
			c.Action = func(c *cli.Context) error {
				if c.Args().Present() {
					return unknownVerb(c)
				}
				return cli.ShowSubcommandHelp(c)
			}
			prepare(above+c.Name+" ", c.Subcommands)
		}
	}
}

// unknownVerb says which verb may have been meant, of the program or of one of its
// commands.
func unknownVerb(c *cli.Context) error {
	var known []string
	for _, k := range c.Command.Subcommands {
		known = append(known, k.Name)
	}
	given := c.Args().First()
	exact, like := elsewhere(c, given)
	for _, near := range []string{exact, nearest(given, known), like} {
		if near != "" {
			return exit(exitUsage, fmt.Errorf("no command %q: did you mean %q?", given, near))
		}
	}
	return exit(exitUsage, fmt.Errorf("no command %q (see %s --help)", given, c.Command.HelpName))
}

// elsewhere are the whole of a command of that name, and of one of nearly that name, that are
// below another command: ampcio sync status, for status.
func elsewhere(c *cli.Context, given string) (exact, like string) {
	for _, k := range c.App.Commands {
		if k.Name == given {
			exact = c.App.Name + " " + given
		}
		for _, below := range k.Subcommands {
			whole := c.App.Name + " " + k.Name + " " + below.Name
			switch {
			case below.Name == given && exact == "":
				exact = whole
			case like == "" && nearest(given, []string{below.Name}) != "":
				like = whole
			}
		}
	}
	return exact, like
}

// unknownFlag says which flag may have been meant.
func unknownFlag(c *cli.Context, given string) error {
	var known []string
	for _, f := range c.Command.Flags {
		known = append(known, f.Names()...)
	}
	hint := ""
	if near := nearest(given, append(known, "help")); near != "" {
		hint = fmt.Sprintf(": did you mean --%s?", near)
	}
	return exit(exitUsage, fmt.Errorf("no flag --%s%s (see %s --help)", given, hint, c.Command.HelpName))
}

// nearest is the known word that was most likely meant; "" when none is close.
func nearest(given string, known []string) string {
	near, best := "", 0.8
	for _, k := range known {
		if s := smetrics.JaroWinkler(given, k, 0.7, 4); s > best {
			near, best = k, s
		}
	}
	return near
}

// flagsFirst puts the flags of a command line before its arguments: people write
// "sync rewind production --since 24h", and the library would take such a flag for one
// more argument.
func flagsFirst(commands []*cli.Command, args []string) []string {
	// What git and go take: help VERB.
	if len(args) > 1 && args[1] == "help" {
		args = append(append(args[:1:1], args[2:]...), "--help")
	}
	var verb *cli.Command
	at := 1
	for ; at < len(args); at++ {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[at]) })
		if i < 0 {
			break
		}
		verb, commands = commands[i], commands[i].Subcommands
	}
	if verb == nil || verb.SkipFlagParsing || len(verb.Subcommands) > 0 {
		return args
	}
	before := args[at:]
	if end := slices.Index(before, "--"); end >= 0 {
		before = before[:end]
	}
	if slices.Contains(before, "-h") || slices.Contains(before, "--help") {
		return append(args[:at:at], "--help") // behind an argument it would be taken for the name of a topic
	}
	var flags, others []string
	for rest := args[at:]; len(rest) > 0; rest = rest[1:] {
		switch word := rest[0]; {
		case word == "--":
			others = append(others, rest[1:]...)
			rest = rest[:1]
		case word == "-" || !strings.HasPrefix(word, "-"):
			others = append(others, word)
		default:
			flags = append(flags, word)
			if !takesValue(verb, word) {
				continue
			}
			if len(rest) == 1 || rest[1] == "--" || flagOf(verb, rest[1]) != nil {
				return append(args[:at:at], word) // its value is missing: the library says so
			}
			rest = rest[1:]
			flags = append(flags, rest[0])
		}
	}
	out := append(args[:at:at], flags...)
	if len(others) > 0 {
		out = append(append(out, "--"), others...)
	}
	return out
}

// takesValue says whether the next word belongs to a flag.
func takesValue(verb *cli.Command, word string) bool {
	f := flagOf(verb, word)
	_, is := f.(*cli.BoolFlag)
	return f != nil && !is
}

// flagOf is the flag of a verb that a word names; nil when it names none.
func flagOf(verb *cli.Command, word string) cli.Flag {
	name := strings.TrimLeft(word, "-")
	for _, f := range verb.Flags {
		if name != word && slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

var configFlag = &cli.StringFlag{
	Name: "config", Usage: "the configuration `FILE`", EnvVars: []string{"AMPCIO_CONFIG"}, Value: "/etc/ampcio/config.toml",
}

// noArguments is of a verb that takes none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return exit(exitUsage, fmt.Errorf("%s takes no arguments: %q", c.Command.Name, strings.Join(c.Args().Slice(), " ")))
	}
	return nil
}

// loadConfig reads the configuration that the command line names, of a verb that takes
// no arguments.
func loadConfig(c *cli.Context, secrets bool) (*config.Config, error) {
	if err := noArguments(c); err != nil {
		return nil, err
	}
	return readConfig(c, secrets)
}

// readConfig reads the configuration that the command line names.
func readConfig(c *cli.Context, secrets bool) (*config.Config, error) {
	cfg, err := config.Load(c.String("config"), config.Environment{Getenv: os.Getenv, NoSecrets: !secrets})
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	return cfg, nil
}
