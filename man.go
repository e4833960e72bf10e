package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// configExample is config.toml.example: what a package installs, and of what
// ampcio.toml(5) is made.
//
//go:embed config.toml.example
var configExample string

// manPages are made of the program itself, of its verbs, flags and keys, whenever one is
// asked for: nothing of that can become stale.
var manPages = []struct {
	file string // as man keeps it
	page func(*cli.App) string
}{
	{"ampcio.8", manAmpcio},
	{"ampcio.toml.5", manConfig},
	{"ampcio-queue-stats.8", manQueueStats},
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "the manual: ampcio, ampcio.toml or ampcio-queue-stats",
		UsageText: "ampcio man [PAGE]",
		Description: "At a terminal it is shown by man(1), where there is one. Elsewhere the source of the page is printed, for a folder of man pages;\n" +
			"the package has installed them already.\n\n" +
			"Examples: ampcio man\n" +
			"          ampcio man ampcio.toml\n" +
			"          ampcio man ampcio.8 > /usr/local/share/man/man8/ampcio.8",
		Action: man,
	}
}

func man(c *cli.Context) error {
	if c.NArg() > 1 {
		return exit(exitUsage, fmt.Errorf("man wants one page: %q", c.Args().Slice()))
	}
	name := c.Args().First()
	if name == "" {
		name = "ampcio"
	}
	var known []string
	for _, p := range manPages {
		short := p.file[:strings.LastIndexByte(p.file, '.')]
		if known = append(known, short); name == p.file || name == short {
			return showPage(c, p.page(c.App))
		}
	}
	return exit(exitUsage, fmt.Errorf("no page %q: there are %s", name, strings.Join(known, ", ")))
}

// showPage has a page shown at a terminal, and prints it elsewhere.
func showPage(c *cli.Context, page string) error {
	out, isFile := c.App.Writer.(*os.File)
	viewer, err := exec.LookPath("man")
	if err != nil || !isFile || !term.IsTerminal(int(out.Fd())) {
		_, err := io.WriteString(c.App.Writer, page)
		return err
	}
	show := exec.Command(viewer, "-l", "-")
	show.Stdin, show.Stdout, show.Stderr = strings.NewReader(page), out, os.Stderr
	if err := show.Run(); err != nil {
		return fmt.Errorf("%s -l -: %w: ampcio man | less shows the source", viewer, err)
	}
	return nil
}

// manVerb writes one verb, and those below it.
func manVerb(r *roff, c *cli.Command, name string) {
	if c.Hidden {
		return
	}
	r.part(name)
	r.text(sentence(c.Usage))
	if c.UsageText != "" {
		manUsage(r, c, name)
	}
	if c.Description != "" {
		r.text(c.Description)
	}
	manFlags(r, c.Flags)
	for _, sub := range c.Subcommands {
		manVerb(r, sub, name+" "+sub.Name)
	}
}

func manUsage(r *roff, c *cli.Command, name string) {
	usage := c.UsageText
	if usage == "" {
		usage = name
	}
	r.asIs(strings.Split(usage, "\n"))
}

// placeholder is what a flag's usage calls its value.
var placeholder = regexp.MustCompile("`([^`]+)`")

func manFlags(r *roff, flags []cli.Flag) {
	for _, f := range flags {
		d, shows := f.(cli.DocGenerationFlag)
		if v, hides := f.(cli.VisibleFlag); !shows || hides && !v.IsVisible() || f == configFlag {
			continue
		}
		words := ""
		for i, n := range f.Names() {
			if i > 0 {
				words += ", "
			}
			words += "-"
			if len(n) > 1 {
				words += "-"
			}
			words += n
		}
		usage := d.GetUsage()
		if d.TakesValue() {
			value := "VALUE"
			if m := placeholder.FindStringSubmatch(usage); m != nil {
				value = m[1]
			}
			words += " " + value
			if text := d.GetDefaultText(); text != "" && text != "0s" && text != "0" {
				usage += " (default: " + text + ")"
			}
		}
		for _, e := range d.GetEnvVars() {
			usage += " [$" + e + "]"
		}
		r.item(words, strings.ReplaceAll(usage, "`", ""))
	}
}

// sentence makes one of a usage line.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// exampleKey is a key of config.toml.example, exampleTable a table.
var (
	exampleTable = regexp.MustCompile(`^(?:# )?(\[\[?[a-z_.]+\]\]?)(?:\s+# (.*))?$`)
	exampleKey   = regexp.MustCompile(`^(?:# )?([a-z_]+) *= *(.+?)(?:\s{2,}# (.*))?$`)
	exampleValue = regexp.MustCompile(`^\d: `)
)

// configKey is one key of the configuration, as the example shows it.
type configKey struct{ table, name, value, says string }

// configTable is a table of it.
type configTable struct {
	name, says string
	keys       []configKey
}

// configTables reads them from the example, in which a table can come twice.
func configTables(example string) []*configTable {
	var tables []*configTable
	var at *configTable
	for line := range strings.Lines(example) {
		line = strings.TrimRight(line, "\n")
		if m := exampleTable.FindStringSubmatch(line); m != nil {
			at = nil
			for _, t := range tables {
				if t.name == m[1] {
					at = t
				}
			}
			if at == nil {
				at = &configTable{name: m[1]}
				tables = append(tables, at)
			}
			if at.says == "" {
				at.says = exampleValue.ReplaceAllString(m[2], "")
			}
		} else if m := exampleKey.FindStringSubmatch(line); m != nil && at != nil {
			at.keys = append(at.keys, configKey{at.name, m[1], m[2], exampleValue.ReplaceAllString(m[3], "")})
		}
	}
	return tables
}
