package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"ampcio/config"
)

// The scripts know no verb: each TAB asks the program itself, so they cannot become stale.
var (
	//go:embed packaging/completion.bash
	bashCompletion string
	//go:embed packaging/completion.zsh
	zshCompletion string
)

// completeFiles is said in place of a word where any file may stand.
const completeFiles = ":files"

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "a script that lets TAB complete verbs, flags and names in bash or zsh",
		UsageText: "ampcio completion bash|zsh",
		Description: "The package has installed both.\n\n" +
			"Examples: source <(ampcio completion bash)\n" +
			"          ampcio completion zsh > ~/.zfunc/_ampcio",
		Action: func(c *cli.Context) error {
			var script string
			switch {
			case c.NArg() == 1 && c.Args().First() == "bash":
				script = bashCompletion
			case c.NArg() == 1 && c.Args().First() == "zsh":
				script = zshCompletion
			default:
				return exit(exitUsage, fmt.Errorf("completion wants bash or zsh: %q", strings.Join(c.Args().Slice(), " ")))
			}
			_, err := io.WriteString(c.App.Writer, script)
			return err
		},
	}
}

// completeCommand is asked by the scripts, with the words behind "ampcio" up to the one
// that is being typed. It says one candidate a line, and what it is behind a tab.
func completeCommand() *cli.Command {
	return &cli.Command{
		Name: "complete", Hidden: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			for _, w := range candidates(c.App.Commands, c.Args().Slice(), configNames) {
				if _, err := fmt.Fprintln(c.App.Writer, w); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// candidates are the words that could stand where the last of words does; names tells
// what a configuration file calls its syncs, or its projects.
func candidates(commands []*cli.Command, words []string, names func(file string, projects bool) []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	typed := words[len(words)-1]
	file := configFlag.Value
	if env := os.Getenv(configFlag.EnvVars[0]); env != "" {
		file = env
	}
	var verb, above *cli.Command
	var valueOf cli.Flag // the flag whose value is being typed
	given := 0           // arguments of verb
	for _, w := range words[:len(words)-1] {
		switch {
		case valueOf != nil:
			if slices.Contains(valueOf.Names(), configFlag.Name) {
				file = w
			}
			valueOf = nil
		case verb != nil && takesValue(verb, w):
			valueOf = flagOf(verb, w)
		case strings.HasPrefix(w, "-"):
		default:
			i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(w) })
			if i < 0 {
				given++
				continue
			}
			above, verb, commands = verb, commands[i], commands[i].Subcommands
		}
	}
	var found []string
	add := func(word, says string) {
		if strings.HasPrefix(word, typed) {
			found = append(found, word+"\t"+says)
		}
	}
	switch {
	case valueOf != nil && slices.Contains(valueOf.Names(), "sync"):
		for _, n := range names(file, false) {
			add(n, "")
		}
	case valueOf != nil && slices.Contains(valueOf.Names(), "project"):
		for _, n := range names(file, true) {
			add(n, "")
		}
	case valueOf != nil:
		if takesFile(valueOf.(cli.DocGenerationFlag).GetUsage()) {
			found = append(found, completeFiles)
		}
	case strings.HasPrefix(typed, "-"):
		if verb == nil {
			add("--help", "show help")
			add("--version", "print the version")
			break
		}
		for _, f := range verb.Flags {
			if v, hides := f.(cli.VisibleFlag); hides && !v.IsVisible() {
				continue
			}
			says := ""
			if d, ok := f.(cli.DocGenerationFlag); ok {
				says = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
			add("--"+f.Names()[0], says)
		}
		add("--help", "show help")
	case len(commands) > 0 && given == 0:
		for _, c := range commands {
			if !c.Hidden {
				add(c.Name, c.Usage)
			}
		}
	case verb == nil:
	case above != nil && above.Name == "sync" && (given == 0 || verb.Name == "status"):
		for _, n := range names(file, false) {
			add(n, "")
		}
	case verb.Name == "man" && given == 0:
		for _, p := range manPages {
			add(strings.TrimSuffix(p.file, filepath.Ext(p.file)), "")
		}
	case verb.Name == "completion" && given == 0:
		add("bash", "")
		add("zsh", "")
	case takesFile(strings.ReplaceAll(verb.UsageText, "--config FILE", "")):
		found = append(found, completeFiles)
	}
	return found
}

// takesFile says whether a usage speaks of a file or folder, in capitals.
func takesFile(usage string) bool {
	return strings.Contains(usage, "FILE") || strings.Contains(usage, "DIR") || strings.Contains(usage, "FOLDER")
}

// configNames are the syncs and relays, or the projects, of a configuration, and the
// ledgers of syncs that are gone from it; nothing where it may not be read.
func configNames(file string, projects bool) []string {
	cfg, err := config.Load(file, config.Environment{NoSecrets: true})
	if err != nil {
		return nil
	}
	names := map[string]bool{}
	for name, p := range cfg.Project {
		switch {
		case projects:
			names[name] = true
		case p.Relay != "" && p.Relay != "off":
			names[relayPrefix+name] = true
		}
	}
	if !projects {
		for _, name := range cfg.Sync.Names() {
			names[name] = true
		}
		ledgers, _ := filepath.Glob(filepath.Join(cfg.Storage.Dir, "sync", "*.db"))
		for _, l := range ledgers {
			names[strings.TrimSuffix(filepath.Base(l), ".db")] = true
		}
	}
	var sorted []string
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted
}
