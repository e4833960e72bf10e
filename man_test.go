package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// plain undoes what roffText does, so that a page can be searched.
func plain(page string) string {
	page = strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(ga`, "`", `\(ti`, "~", `\(ha`, "^", `\fB`, "", `\fR`, "", `\&`, "", `\(dq`, `"`, `\e`, `\`).Replace(page)
	return regexp.MustCompile(`\\\[u([0-9A-F]{4})\]`).ReplaceAllStringFunc(page, func(s string) string {
		n, _ := strconv.ParseUint(s[3:7], 16, 32)
		return string(rune(n))
	})
}

func page(t *testing.T, file string) string {
	t.Helper()
	got := run(t, "man", file)
	if got.code != 0 {
		t.Fatalf("man %s: exit %d: %s", file, got.code, got.stderr)
	}
	return plain(got.stdout)
}

// constants are those of a file whose names begin so, with their values as written.
func constants(t *testing.T, glob, prefix string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files (%v)", glob, err)
	}
	found := map[string]string{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, is := n.(*ast.ValueSpec)
			if is && len(v.Values) == 1 && strings.HasPrefix(v.Names[0].Name, prefix) {
				if lit, is := v.Values[0].(*ast.BasicLit); is {
					found[v.Names[0].Name] = lit.Value
				}
			}
			return true
		})
	}
	if len(found) == 0 {
		t.Fatalf("%s: no constant begins with %s", glob, prefix)
	}
	return found
}

// What the pages say by hand names every exit code and every status that there is; the
// rest is made of the program.
func TestManPagesAreWhole(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	main := page(t, "ampcio")
	for name, value := range constants(t, "*.go", "exit") {
		if !strings.Contains(main, "\n.TP\n"+value+"\n") {
			t.Errorf("ampcio(8) does not explain exit code %s, %s: add it to exitCodes", value, name)
		}
	}
	stats := page(t, "ampcio-queue-stats.8")
	for name, value := range constants(t, "admin/snapshot.go", "Status") {
		if word, _ := strconv.Unquote(value); !strings.Contains(stats, "\n.TP\n"+word+"\n") {
			t.Errorf("ampcio-queue-stats(8) does not explain the status %q, %s: add it to statuses", word, name)
		}
	}
	var verbs func(cs []*cli.Command, above string)
	verbs = func(cs []*cli.Command, above string) {
		for _, c := range cs {
			shown := strings.Contains(main, "\n.SS \""+above+c.Name+"\"\n")
			if shown == c.Hidden {
				t.Errorf("%s%s: hidden %v, in ampcio(8) %v", above, c.Name, c.Hidden, shown)
			}
			if !c.Hidden {
				verbs(c.Subcommands, above+c.Name+" ")
			}
		}
	}
	verbs(app(nil, nil).Commands, "ampcio ")

	config := page(t, "ampcio.toml")
	keys := 0
	for line := range strings.Lines(configExample) {
		key, value, is := strings.Cut(strings.TrimPrefix(strings.TrimRight(line, "\n"), "# "), " = ")
		key = strings.TrimRight(key, " ")
		if !is || strings.ContainsAny(key, " .:;,") {
			continue
		}
		keys++
		value, says, _ := strings.Cut(value, "  # ")
		if says = regexp.MustCompile(`^\d: `).ReplaceAllString(says, ""); len(says) > 2 {
			says = says[1:] // the first letter becomes a capital
		}
		if entry := "\n.TP\n" + key + " = " + strings.TrimRight(value, " ") + "\n"; !strings.Contains(config, entry) || !strings.Contains(config, says) {
			t.Errorf("ampcio.toml(5) does not show this line of the example: %s", line)
		}
	}
	if keys < 50 {
		t.Errorf("only %d keys were found in the example", keys)
	}
}

// mandoc and groff find nothing wrong with the pages; what is hidden is not shown.
func TestManPagesAreClean(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	for _, p := range manPages {
		t.Run(p.file, func(t *testing.T) {
			t.Parallel()
			source := run(t, "man", p.file).stdout
			for _, tool := range [][]string{{"mandoc", "-T", "lint", "-W", "warning"}, {"man", "--warnings", "-l", "-"}} {
				if _, err := exec.LookPath(tool[0]); err != nil {
					t.Logf("%s is not installed", tool[0])
					continue
				}
				c := exec.Command(tool[0], tool[1:]...)
				c.Stdin = strings.NewReader(source)
				c.Env = append(c.Environ(), "MANWIDTH=80", "LC_ALL=C.UTF-8")
				var complaints strings.Builder
				c.Stderr = &complaints
				out, err := c.Output()
				if tool[0] == "mandoc" {
					complaints.Write(out)
				} else if err != nil || len(out) < 1000 {
					t.Errorf("%v: %v, %d bytes", tool, err, len(out))
				}
				// A development build knows no date.
				lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(complaints.String()), "\n"), func(l string) bool {
					return l == "" || strings.Contains(l, `missing date, using "": TH`)
				})
				if len(lines) > 0 {
					t.Errorf("%s: %s", tool[0], strings.Join(lines, "\n"))
				}
			}
		})
	}
	for args, says := range map[string]string{"ampcio.conf": "there are ampcio, ampcio.toml, ampcio-queue-stats", "ampcio ampcio": "wants one page"} {
		got := run(t, append([]string{"man"}, strings.Fields(args)...)...)
		if got.code != exitUsage || !strings.Contains(got.stderr, says) {
			t.Errorf("man %s: exit %d, %s", args, got.code, got.stderr)
		}
	}
}

// Prose flows, examples and what is indented keep their lines, and nothing that is
// written becomes a command.
func TestRoff(t *testing.T) {
	r := &roff{}
	r.text("One line\nand another.\n\nIt shows:\n  .git\n    'a'\n\nExample: a -b\n         c")
	want := ".PP\nOne line\nand another.\n.PP\nIt shows:\n.PP\n.nf\n\\&.git\n  \\(aqa\\(aq\n.fi\n.PP\n.nf\nExample: a \\-b\n         c\n.fi\n"
	if got := r.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := roffQuoted(`a "b" \c …`); got != `a \(dqb\(dq \ec \[u2026]` {
		t.Error(got)
	}
}
