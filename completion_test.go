package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A house with two syncs, a relay and the ledger of a sync that is gone.
func completionHouse(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sync"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sync", "old.db"), "")
	file := filepath.Join(dir, "config.toml")
	write(t, file, `[project.app]
amplitude_api_keys = ["0123456789abcdef0123456789abcdef"]
relay = "us"
[storage]
dir = "`+dir+`"
[sync.production]
region = "us"
site_id = "site"
api_key_file = "customerio_api_key"
identifier = "user_id"
delivery.max_pending_bytes = "1GiB"
[[sync.production.select]]
event = ["*"]
[sync.staging]
region = "us"
site_id = "other"
api_key_file = "customerio_api_key"
identifier = "user_id"
delivery.max_pending_bytes = "1GiB"
[[sync.staging.select]]
event = ["*"]
`)
	return file
}

var completions = []struct {
	name  string
	typed string   // CONFIG is the house's; what is behind the last space is being typed
	want  []string // all of them; nil = what is in some, and not what is in never
	some  []string
	never []string
}{
	{name: "verbs", typed: "", some: []string{"serve", "queue-stats", "man"}, never: []string{"complete", "package"}},
	{name: "a verb", typed: "queue-", want: []string{"queue-stats"}},
	{name: "subverbs", typed: "sync re", want: []string{"resume", "retry", "rewind", "rename", "remove"}},
	{name: "flags", typed: "queue-stats --wat", want: []string{"--watch"}},
	{name: "flags of a subverb", typed: "sync rewind --s", want: []string{"--since"}},
	{name: "global flags", typed: "--v", want: []string{"--version"}},
	{name: "names of syncs", typed: "sync pause --config CONFIG ", want: []string{"old", "production", "relay.app", "staging"}},
	{name: "a name", typed: "sync pause --config CONFIG pro", want: []string{"production"}},
	{name: "one name is enough", typed: "sync pause --config CONFIG production ", want: []string{}},
	{name: "several names", typed: "sync status --config CONFIG production s", want: []string{"staging"}},
	{name: "the value of --sync", typed: "dead-letters list --config CONFIG --sync p", want: []string{"production"}},
	{name: "projects", typed: "import --config CONFIG --project ", want: []string{"app"}},
	{name: "a value of one's own", typed: "sync rewind production --since ", want: []string{}},
	{name: "a file", typed: "serve --config ", want: []string{completeFiles}},
	{name: "a file as an argument", typed: "explain ", want: []string{completeFiles}},
	{name: "no file as an argument", typed: "queue-stats ", want: []string{}},
	{name: "pages", typed: "man ampcio-", want: []string{"ampcio-queue-stats"}},
	{name: "shells", typed: "completion ", want: []string{"bash", "zsh"}},
	{name: "a configuration that is not there", typed: "sync pause --config /nowhere ", want: []string{}},
	{name: "nonsense", typed: "bogus ", want: []string{}},
}

func TestCompletion(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	config := completionHouse(t)
	for _, test := range completions {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			words := strings.Split(strings.ReplaceAll(test.typed, "CONFIG", config), " ")
			got := run(t, append([]string{"complete"}, words...)...)
			if got.code != 0 || got.stderr != "" {
				t.Fatalf("exit %d: %s", got.code, got.stderr)
			}
			var found []string
			for line := range strings.Lines(got.stdout) {
				word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
				found = append(found, word)
			}
			if test.want != nil && !slices.Equal(found, test.want) {
				t.Errorf("got %q, want %q", found, test.want)
			}
			for _, w := range test.some {
				if !slices.Contains(found, w) {
					t.Errorf("%s is missing in %q", w, found)
				}
			}
			for _, w := range test.never {
				if slices.Contains(found, w) {
					t.Errorf("%s is in %q", w, found)
				}
			}
		})
	}
}

// TAB in shells that people have: interactive, at a terminal of their own, with the
// completion that is installed. zsh drives both, since it has pseudo terminals built in.
func TestCompletionInShells(t *testing.T) {
	wordsOnly(t)
	if testing.Short() {
		t.Skip("what the shells are told is tested above")
	}
	t.Parallel()
	zsh, err := exec.LookPath("zsh")
	if err != nil {
		t.Skip("zsh is not installed")
	}
	config := completionHouse(t)
	dir := t.TempDir()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ampcio"), "#!/bin/sh\nexport "+isAmpcio+"=1\nexec "+self+" \"$@\"\n")
	if err := os.Chmod(filepath.Join(dir, "ampcio"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "_ampcio"), zshCompletion)
	write(t, filepath.Join(dir, "ampcio.bash"), bashCompletion)
	write(t, filepath.Join(dir, "some file.json"), "{}")
	typed := [][2]string{
		{"ampcio queue-\t", "ampcio queue-stats"},
		{"ampcio queue-stats --wat\t", "ampcio queue-stats --watch"},
		{"ampcio sync pause prod\t", "ampcio sync pause production"},
		{"ampcio sync pause relay.\t", "ampcio sync pause relay.app"},
		{"ampcio explain some\t", `ampcio explain some\ file.json`},
		{"ampcio sync rewind --unt\t", "ampcio sync rewind --untaken"},
		{"ampcio dead-letters l\t--js\t", "ampcio dead-letters list --json"},
		{"ampcio sync pause nobody\t", "ampcio sync pause nobody"},
	}
	for shell, begin := range map[string][2]string{
		"zsh":  {"zsh -f -i", "fpath=($PWD $fpath); autoload -U compinit; compinit -u -D"},
		"bash": {"bash --norc --noprofile -i", ". ./ampcio.bash"},
	} {
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed", shell)
			continue
		}
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			// A terminal shows much: the line as it is after TAB is made an argument of echo, by going to its
			// beginning and its end. What is waited for is no part of what is typed.
			script := "zmodload zsh/zpty\nzpty sh " + shellQuote(begin[0]) + "\n" +
				"zpty -w sh " + shellQuote(begin[1]+"; echo $((6 * 7))BEGIN") + "\nzpty -r -m sh line '*42BEGIN*'\n"
			for _, test := range typed {
				script += "zpty -w -n sh " + shellQuote(test[0]+"\x01echo 'LINE[\x05]' $((6 * 7))END\r") + "\nzpty -r -m sh line '*42END*' && print -r -- \"$line\"\n"
			}
			c := exec.Command("timeout", "60", zsh, "-f", "-c", script+"zpty -d sh\n")
			c.Dir = dir
			c.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "AMPCIO_CONFIG="+config, "TERM=dumb", "HOME="+dir, "HISTFILE=/dev/null")
			out, err := c.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %q", err, out)
			}
			parts := strings.Split(string(out), "42END")
			for i, test := range typed {
				last := ""
				if i < len(parts) {
					last = parts[i][strings.LastIndex(parts[i], "LINE[")+1:]
				}
				// The space behind a whole word may have gone when more was typed.
				if got, _, _ := strings.Cut(last, "]"); strings.TrimRight(got, " ") != "INE["+test[1] {
					t.Errorf("%q gives %q, want %q", test[0], last, test[1])
				}
			}
		})
	}
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
