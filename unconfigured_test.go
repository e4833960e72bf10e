package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	keyLine    = "# Amplitude: Settings > Projects > your project > API Key\namplitude_api_keys = [\"YOUR AMPLITUDE API KEY\"]"
	regionLine = "# \"us\" or \"eu\"; Customer.io: Settings > Account settings\nregion = \"us\""
	siteLine   = "# Customer.io: Settings > Account settings > API credentials > Track API keys\nsite_id = \"YOUR SITE ID\""
	fileLine   = "# Customer.io: Settings > Account settings > API credentials > Track API keys\n(umask 077; cat > FOLDER/customerio_api_key)"
)

// On an installation that nobody has configured, check-config says what to write, and
// nothing else; what it says, written, is a configuration.
func TestCheckConfigSaysWhatToWrite(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	example, err := os.ReadFile("config.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer(`amplitude_api_keys = [""]`, `amplitude_api_keys = ["k"]`, `region       = ""`, `region       = "us"`,
		`site_id      = ""`, `site_id      = "s"`).Replace(string(example))
	for _, test := range []struct {
		name    string
		file    string // "-" = it is not there
		key     string // likewise
		says    []string
		lines   int
		another bool // says something else than what to write
	}{
		{name: "no file", file: "-", key: "-", lines: 20, says: []string{" is not there yet. Write there:\n\n[project.app]\n" + keyLine, "\n\n[sync.production]\n" + regionLine,
			siteLine, "\napi_key_file = \"customerio_api_key\"\n", "\n\n[[sync.production.select]]\n", "\nevent = [\"*\"]\n", fileLine}},
		{name: "an empty file", file: "", key: "-", lines: 20, says: []string{" is not filled in yet. Write there:\n\n[project.app]\n" + keyLine}},
		{name: "the example as it is", file: string(example), key: "", lines: 13, says: []string{" is not filled in yet. Write there:\n\n# under [project.app]:\n" + keyLine + "   # instead of line 5\n",
			"\n# under [sync.production]:\n" + regionLine + "   # instead of line 9\n" + siteLine + "   # instead of line 10\n", fileLine}},
		{name: "only the API key of Amplitude", file: strings.Replace(filled, `["k"]`, `[""]`, 1), key: "secret", lines: 5, says: []string{"# under [project.app]:\n" + keyLine + "   # instead of line 5\n"}},
		{name: "only the region", file: strings.Replace(filled, `= "us"`, `= ""`, 1), key: "secret", lines: 5, says: []string{regionLine + "   # instead of line 9\n"}},
		{name: "only the line of the site", file: strings.Replace(filled, `site_id `, `# site_id `, 1), key: "secret", lines: 5, says: []string{"# under [sync.production]:\n" + siteLine + "\n"}},
		{name: "only the key file, empty", file: filled, key: "", lines: 4, says: []string{" is not filled in yet. Write the API key beside that Site ID into a file.", fileLine}},
		{name: "only the key file, missing", file: filled, key: "-", lines: 4, says: []string{fileLine}},
		{name: "a mistake, too", file: filled + "\n[nonsense]\n", key: "-", another: true, says: []string{"nonsense: unknown", "customerio_api_key: no such file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "config.toml")
			if test.file != "-" {
				write(t, path, test.file)
			}
			if test.key != "-" {
				write(t, filepath.Join(dir, "customerio_api_key"), test.key)
				chmod(t, filepath.Join(dir, "customerio_api_key"), 0o600)
			}
			got := run(t, "check-config", "--config", path)
			if got.code != exitConfig || got.stdout != "" {
				t.Errorf("exit %d, stdout %q", got.code, got.stdout)
			}
			for _, s := range test.says {
				s = strings.ReplaceAll(s, "FOLDER", dir)
				if strings.Count(got.stderr, s) != 1 {
					t.Errorf("%q stands %d times in:\n%s", s, strings.Count(got.stderr, s), got.stderr)
				}
			}
			if test.another {
				return
			}
			text := 0
			for line := range strings.Lines(got.stderr) {
				if strings.TrimSpace(line) != "" {
					text++
				}
			}
			if text != test.lines {
				t.Errorf("%d lines:\n%s", text, got.stderr)
			}
			if !strings.HasSuffix(got.stderr, "\nThen again: ampcio check-config --online --config "+path+"\n") {
				t.Errorf("what to do then is not said:\n%s", got.stderr)
			}
			if test.file != "-" && test.file != "" {
				return
			}
			_, lines, _ := strings.Cut(got.stderr, "Write there:\n")
			lines, _, _ = strings.Cut(lines, "\nAnd write")
			write(t, path, strings.NewReplacer("YOUR AMPLITUDE API KEY", "k", "YOUR SITE ID", "s").Replace(lines))
			write(t, filepath.Join(dir, "customerio_api_key"), "secret")
			chmod(t, filepath.Join(dir, "customerio_api_key"), 0o600)
			if got := run(t, "check-config", "--config", path); got.code != 0 {
				t.Errorf("what was to be written is wrong: %+v", got)
			}
		})
	}
}

// Who needed sudo to look cannot write there by a redirection of their own shell.
func TestWhatToWriteIsWrittenWithSudo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.toml")
	c := ampcio("check-config", "--config", path)
	c.Env = append(c.Env, "SUDO_USER=anna")
	said, _ := c.CombinedOutput()
	for _, line := range []string{
		"\nsudo sh -c 'umask 077; cat > " + filepath.Dir(path) + "/customerio_api_key'\n",
		"\nThen again: sudo ampcio check-config --online --config " + path + "\n",
	} {
		if !strings.Contains(string(said), line) {
			t.Errorf("%q is not in:\n%s", line, said)
		}
	}
}
