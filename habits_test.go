package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// eachVerb calls f with every command that a person can give, and with its name in full.
func eachVerb(cs []*cli.Command, above string, f func(path string, c *cli.Command)) {
	for _, c := range cs {
		if c.Hidden {
			continue
		}
		f(above+c.Name, c)
		eachVerb(c.Subcommands, above+c.Name+" ", f)
	}
}

// shownExamples are the command lines under a verb's examples.
func shownExamples(c *cli.Command) (lines []string) {
	_, below, _ := strings.Cut(c.Description, exampleTitle+"\n")
	for line := range strings.Lines(below) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// Every verb's help shows two or three command lines that are right: each verb and flag in
// them exists, and one of them at least is of that verb.
func TestHelpHasExamplesThatParse(t *testing.T) {
	known := map[string]bool{}
	eachVerb(app(io.Discard, io.Discard).Commands, "", func(path string, c *cli.Command) {
		known[path] = true
		lines := shownExamples(c)
		if len(lines) < 2 || len(lines) > 6 {
			t.Errorf("%s --help has %d examples", path, len(lines))
		}
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line+" ", "ampcio "+path+" ") }) {
			t.Errorf("%s --help has no example of itself", path)
		}
		for _, line := range lines {
			calls := 0
			for _, words := range commandsIn(line) {
				if at := slices.Index(words, "ampcio"); at == 0 || at == 1 && words[0] == "sudo" {
					calls++
					if err := parses(words[at:]); err != nil {
						t.Errorf("%s --help: %s: %v", path, line, err)
					}
				}
			}
			if calls == 0 {
				t.Errorf("%s --help: %s: no ampcio in it", path, line)
			}
		}
	})
	for path := range examples {
		if !known[path] {
			t.Errorf("examples of %q, which is no verb", path)
		}
	}
	if err := parses([]string{"ampcio", "drain", "--until-full"}); err == nil {
		t.Error("a flag that does not exist parses")
	}
	if err := parses([]string{"ampcio", "sync", "stop", "production"}); err == nil {
		t.Error("a verb that does not exist parses")
	}
}

// commandsIn are the words of each command of a line of a shell, as far as examples need it.
func commandsIn(line string) (commands [][]string) {
	var words []string
	word, quote, some := "", rune(0), false
	end := func() {
		if some {
			words = append(words, word)
		}
		word, some = "", false
	}
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, some = r, true
		case r == ' ':
			end()
		case strings.ContainsRune("|&<>();", r):
			end()
			if words != nil {
				commands = append(commands, words)
			}
			words = nil
		default:
			word, some = word+string(r), true
		}
	}
	return append(commands, words)
}

// parses says whether the command line would reach its verb.
func parses(args []string) error {
	a := app(io.Discard, io.Discard)
	reached := ""
	eachVerb(a.Commands, "", func(path string, c *cli.Command) {
		if len(c.Subcommands) == 0 {
			c.Action = func(*cli.Context) error { reached = path; return nil }
		}
	})
	if err := a.Run(flagsFirst(a.Commands, args)); err != nil {
		return err
	}
	if reached == "" {
		return exit(exitUsage, io.ErrUnexpectedEOF)
	}
	return nil
}

// What is printed can be had as JSON.
func TestEveryVerbHasJSON(t *testing.T) {
	without := map[string]string{
		"serve":               "its log is JSON with log.format",
		"sync export":         "it writes JSON lines anyway",
		"dead-letters export": "it writes JSON lines anyway",
		"sandbox":             "its report is JSON anyway",
		"man":                 "a page for man",
		"completion":          "a script for a shell",
	}
	eachVerb(app(io.Discard, io.Discard).Commands, "", func(path string, c *cli.Command) {
		if len(c.Subcommands) > 0 {
			return
		}
		has := flagOf(c, "--json") != nil
		name, _, _ := strings.Cut(path, " ")
		if has == (without[path] != "" || without[name] != "") {
			t.Errorf("%s: --json %t, but it %s", path, has, without[path])
		}
	})
}

// A mistyped verb or flag is answered with what was meant, at every level.
func TestDidYouMean(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"drian":                            `no command "drian": did you mean "drain"?`,
		"status":                           `no command "status": did you mean "ampcio sync status"?`,
		"replay":                           `no command "replay": did you mean "ampcio dead-letters replay"?`,
		"sync statsu":                      `no command "statsu": did you mean "status"?`,
		"sync drain":                       `no command "drain": did you mean "ampcio drain"?`,
		"drain --untill-empty":             "no flag --untill-empty: did you mean --until-empty? (see ampcio drain --help)",
		"sync rewind production --sinc 3h": "no flag --sinc: did you mean --since? (see ampcio sync rewind --help)",
		"dead-letters list --resaon x":     "no flag --resaon: did you mean --reason? (see ampcio dead-letters list --help)",
		"queue-stats --frobnicate":         "no flag --frobnicate (see ampcio queue-stats --help)",
		"frobnicate":                       `no command "frobnicate" (see ampcio --help)`,
	} {
		got := run(t, strings.Fields(line)...)
		if got.code != exitUsage || got.stdout != "" || got.stderr != "ampcio: "+want+"\n" {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// What was filtered is told as done when it was done.
func TestReloadSpeaksOfWhatItDid(t *testing.T) {
	report := reloadReport{Config: "c.toml", Changed: []string{"storage.keep"}, Pending: []pendingVerdicts{{Sync: "demo", Pending: 9, NewlyFiltered: 5, ToBeSent: 8}}}
	var out bytes.Buffer
	report.write(&out)
	contains(t, out.String(), "c.toml is in force\n", "5 of 8 that are to be sent will be filtered\n")
	report.DryRun = true
	out.Reset()
	report.write(&out)
	contains(t, out.String(), "c.toml would be put in force\n", "5 of 8 that are to be sent would be filtered\n")
}

// Where there is no terminal progress is a plain line now and then, ever later; on one a
// single line that fits; with --json nothing.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	clock := func() time.Time { return now }
	p := progressOn(&out, clock)
	p.what, p.noun, p.total = "taken", "lines", 4000
	for range 4000 {
		p.add(1)
		now = now.Add(50 * time.Millisecond)
	}
	p.note(&out, "a word beside it")
	p.end()
	want := []string{"taken: 101 of 4,000 lines (2 %), about 3m13s left", "taken: 301 of 4,000 lines (7 %), about 3m4s left", "taken: 701 of 4,000 lines (17 %), about 2m44s left",
		"taken: 1,501 of 4,000 lines (37 %), about 2m4s left", "taken: 2,701 of 4,000 lines (67 %), about 1m4s left", "taken: 3,901 of 4,000 lines (97 %), about 4s left", "a word beside it"}
	if got := strings.Split(strings.TrimSpace(out.String()), "\n"); !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	for _, columns := range []int{20, 80, 160} {
		out.Reset()
		p = progressOn(&out, clock)
		p.what, p.total, p.columns, p.next = "copied", 1000, func() int { return columns }, now
		for range 10 {
			p.add(100)
			now = now.Add(time.Second)
		}
		p.end()
		drawn := strings.Split(out.String(), "\r\x1b[K")
		if len(drawn) != 12 || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%d columns: %d lines drawn: %q", columns, len(drawn), out.String())
		}
		for _, line := range drawn {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n >= columns {
				t.Errorf("%d columns: %d characters in %q", columns, n, line)
			}
		}
		if has := strings.Contains(out.String(), "█"); has != (columns >= 80) {
			t.Errorf("%d columns: a bar %t", columns, has)
		}
	}

	out.Reset()
	p = progressOn(&out, clock)
	p.w = nil
	p.next = now
	p.add(7)
	p.end()
	if out.Len() > 0 {
		t.Errorf("silent, and yet %q", out.String())
	}
}

// "help VERB" is what many type first.
func TestHelpIsAVerbToo(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"", "drain", "sync pause"} {
		words := strings.Fields(verb)
		want, got := run(t, append(words, "--help")...), run(t, append([]string{"help"}, words...)...)
		if got.stdout != want.stdout || got.stderr != want.stderr || got.code != 0 || want.code != 0 || got.stdout == "" {
			t.Errorf("help %s: exit %d, %q, %q", verb, got.code, got.stdout, got.stderr)
		}
	}
	if got := run(t, "help", "drian"); got.code != exitUsage || !strings.Contains(got.stderr, `did you mean "drain"?`) {
		t.Errorf("help of a mistyped verb: %+v", got)
	}
}
