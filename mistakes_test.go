package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// queued is an installation that is stopped with events of two users in its queue.
func queued(t *testing.T, s rehearsal.Settings) *rehearsal.Rehearsal {
	t.Helper()
	r := rehearse(t, s)
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 15))
	accepted(t, r, numbered("bob-2", 1, 15))
	accepted(t, r, numbered("ann-1", 16, 20))
	down(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{})
	return r
}

// rightAgain starts what was queued, now that it is set right: all of it arrives.
func rightAgain(t *testing.T, r *rehearsal.Rehearsal) {
	t.Helper()
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 20, "bob-2": 15})
	down(t, r)
}

// Whatever is wrong with the configuration: the daemon does not start, says where the
// mistake is and what to do, and touches nothing. check-config says the same, or what to write.
func TestMistakesInTheConfiguration(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := queued(t, rehearsal.Settings{})
	good, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	lineOf := func(text, part string) string {
		before, _, found := strings.Cut(text, part)
		if !found {
			t.Fatalf("no %q in:\n%s", part, text)
		}
		return fmt.Sprintf("%s:%d: ", r.ConfigPath, 1+strings.Count(before, "\n"))
	}
	tests := []struct {
		name, old, new string
		at             string // what the line that is named begins with; "" = none is
		says           []string
		unfilled       string // nothing wrong, but still to be written: check-config says what
	}{
		{name: "broken TOML", old: `region       = "eu"`, new: `region       = eu`, at: "region ",
			says: []string{"broken TOML", "text needs quotes", "\n    region       = eu\n                   ^"}},
		{name: "a table twice", old: "[sync.demo.users]", new: "[sync.demo.events]\n[sync.demo.users]", at: "[sync.demo.events]\n[sync.demo.users]",
			says: []string{"only once"}},
		{name: "unknown key", old: "retry_max =", new: "retry_maximum =", at: "retry_maximum", says: []string{"sync.demo.delivery.retry_maximum", `did you mean "sync.demo.delivery.retry_max"?`}},
		{name: "unknown table", old: "[sync.demo.users]", new: "[sync.demo.user]", at: "[sync.demo.user]", says: []string{"sync.demo.user", `did you mean "sync.demo.users"?`}},
		{name: "a word that a key does not know", old: `identifier   = "user_id"`, new: "identifier = \"user_id\"\nanonymous = \"drop\"", at: "anonymous", says: []string{"sync.demo.anonymous", `"filter"`, `"dead_letter"`}},
		{name: "no word about Amplitude", old: `relay = "off"`, new: ``, says: []string{"project.app.relay", "one server URL", `"us"`, `"eu"`, `"off"`}},
		{name: "a region that does not exist", old: `region       = "eu"`, new: `region = "europe"`, at: "region", says: []string{"sync.demo.region", `"us" or "eu"`}},
		{name: "no region", old: `region       = "eu"`, new: ``, says: []string{"sync.demo.region", "required", `"us" or "eu"`}, unfilled: "# under [sync.demo]:\n"},
		{name: "an identifier that is no path", old: `identifier   = "user_id"`, new: `identifier = "email"`, at: "identifier",
			says: []string{"sync.demo.identifier", `did you mean "user.email"?`}},
		{name: "an operator that does not exist", old: `event = ["*"]`, new: "event = [\"*\"]\nwhere = [{ path = \"event.total\", op = \"=>\", value = 1 }]", at: "where",
			says: []string{"sync.demo.select[1].where[0].op", `">="`}},
		{name: "rules that send nothing", old: `event = ["*"]`, new: "event = [\"*\"]\naction = \"drop\"", at: "[[sync.demo.select]]\nevent = [\"*\"]", says: []string{"sync.demo.select", `action = "send"`}},
		{name: "an API key file that is missing", old: `"customerio_api_key"`, new: `"customerio_key"`, at: "api_key_file",
			says: []string{"sync.demo.api_key_file", filepath.Join(r.Dir, "customerio_key")}, unfilled: filepath.Join(r.Dir, "customerio_key") + ")"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			write(t, r.ConfigPath, string(good))
			edit(t, r, test.old, test.new)
			text, err := os.ReadFile(r.ConfigPath)
			if err != nil {
				t.Fatal(err)
			}
			before := listing(t, r.Dir)
			got := run(t, "serve", "--config", r.ConfigPath)
			if got.code != exitConfig {
				t.Errorf("exit %d, want %d", got.code, exitConfig)
			}
			if test.at != "" {
				contains(t, got.stderr, lineOf(string(text), test.at))
			}
			contains(t, got.stderr, test.says...)
			if strings.Contains(got.stderr, rehearsal.APIKey) {
				t.Error("the message shows the API key")
			}
			if after := listing(t, r.Dir); after != before {
				t.Errorf("a daemon that did not start has changed files:\nbefore\n%s\nafter\n%s", before, after)
			}
			if check := run(t, "check-config", "--config", r.ConfigPath); check.code != got.code || test.unfilled == "" && check.stderr != got.stderr || !strings.Contains(check.stderr, test.unfilled) {
				t.Errorf("check-config says otherwise: exit %d\n%s", check.code, check.stderr)
			}
		})
	}
	write(t, r.ConfigPath, string(good))
	if check := run(t, "check-config", "--config", r.ConfigPath, "--online"); check.code != 0 || !strings.Contains(check.stdout, "Customer.io agrees: region eu") {
		t.Errorf("check-config --online: %+v", check)
	}
	rightAgain(t, r)
}

// listing is the names, sizes and times of all files below dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCommandLine(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "config.toml")
	tests := []struct {
		name   string
		args   []string
		code   int
		stdout []string
		stderr []string
	}{
		{"no verb", nil, 0, []string{"serve", "demo", "check-config", "queue-stats", "sandbox", "version"}, nil},
		{"version", []string{"version"}, 0, []string{"ampcio ", "go1."}, nil},
		{"--version", []string{"--version"}, 0, []string{"ampcio "}, nil},
		{"a slip of the finger", []string{"queue-stat"}, exitUsage, nil, []string{`no command "queue-stat": did you mean "queue-stats"?`}},
		{"unknown verb", []string{"frobnicate"}, exitUsage, nil, []string{`no command "frobnicate"`, "--help"}},
		{"unknown flag", []string{"serve", "--port", "80"}, exitUsage, nil, []string{"port", "ampcio serve --help"}},
		{"an argument too many", []string{"queue-stats", "now"}, exitUsage, nil, []string{`queue-stats takes no arguments: "now"`}},
		{"a watch too fast", []string{"queue-stats", "--config", "config.toml.example", "--watch", "1ms"}, exitUsage, nil, []string{"at least 100ms"}},
		{"no configuration", []string{"serve", "--config", missing}, exitConfig, nil, []string{missing, "no such file", "config.toml.example", "--config"}},
		{"a folder for a configuration", []string{"serve", "--config", t.TempDir()}, exitConfig, nil, []string{"is a folder"}},
		{"the example as it is", []string{"check-config", "--config", "config.toml.example"}, exitConfig, nil, []string{"config.toml.example is not filled in yet", "# instead of line 5\n",
			"region = ", "site_id = "}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := run(t, test.args...)
			if got.code != test.code {
				t.Errorf("exit %d, want %d", got.code, test.code)
			}
			contains(t, got.stdout, test.stdout...)
			contains(t, got.stderr, test.stderr...)
			if test.code != 0 && (got.stdout != "" || !strings.HasPrefix(got.stderr, "ampcio: ")) {
				t.Errorf("stdout %q, stderr %q", got.stdout, got.stderr)
			}
		})
	}
}

func TestSecondDaemonOnTheSameFolder(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	pid := r.Daemon.Process.Pid
	got := run(t, "serve", "--config", r.ConfigPath)
	if got.code != exitTemporary {
		t.Errorf("exit %d, want %d", got.code, exitTemporary)
	}
	contains(t, got.stderr, "ampcio: "+filepath.Join(r.Dir, "storage"), fmt.Sprintf("in use by process %d", pid), "stop it first, or give this one another storage.dir")
	// The first one has not noticed: its doors and its admin socket are its own.
	accepted(t, r, numbered("ann-1", 6, 10))
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 10})
	down(t, r)
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	r := queued(t, rehearsal.Settings{})
	for _, test := range []struct{ key, address string }{{"server.listen", r.Listen}, {"server.admin", r.Admin}} {
		l, err := net.Listen("tcp", test.address)
		if err != nil {
			t.Fatal(err)
		}
		got := run(t, "serve", "--config", r.ConfigPath)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got.code != exitUnavailable {
			t.Errorf("%s: exit %d, want %d", test.key, got.code, exitUnavailable)
		}
		contains(t, got.stderr, "ampcio: "+test.key, test.address, "another program listens there; stop it, or change "+test.key)
	}
	rightAgain(t, r)
}

func TestStorageFolderThatCannotBeUsed(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := queued(t, rehearsal.Settings{})
	storage, aside := filepath.Join(r.Dir, "storage"), filepath.Join(r.Dir, "aside")
	refused := func(t *testing.T, parts ...string) {
		t.Helper()
		got := run(t, "serve", "--config", r.ConfigPath)
		if got.code != exitCantCreate {
			t.Errorf("exit %d, want %d", got.code, exitCantCreate)
		}
		contains(t, got.stderr, append(parts, storage)...)
	}
	t.Run("a file in its place", func(t *testing.T) {
		if err := os.Rename(storage, aside); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := errors.Join(os.Remove(storage), os.Rename(aside, storage)); err != nil {
				t.Fatal(err)
			}
		}()
		write(t, storage, "not a folder")
		refused(t, "not a directory", "storage.dir")
		stats := run(t, "queue-stats", "--config", r.ConfigPath)
		if stats.code != exitUnavailable {
			t.Errorf("queue-stats: exit %d", stats.code)
		}
		contains(t, stats.stderr, "not a directory", "storage.dir "+storage+" must be the folder")
	})
	t.Run("no permission", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root may read every folder")
		}
		if err := os.Chmod(storage, 0); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(storage, 0o700)
		refused(t, "permission denied", fmt.Sprintf("must belong to the user that runs ampcio (uid %d)", os.Getuid()))
		stats := run(t, "queue-stats", "--config", r.ConfigPath)
		if stats.code != exitUnavailable {
			t.Errorf("queue-stats: exit %d", stats.code)
		}
		contains(t, stats.stderr, "permission denied", "try as root or as the user that runs ampcio")
	})
	t.Run("a file system for reading only", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("/proc is Linux's")
		}
		edit(t, r, fmt.Sprintf("dir      = %q", storage), `dir = "/proc/ampcio"`)
		defer edit(t, r, `dir = "/proc/ampcio"`, fmt.Sprintf("dir      = %q", storage))
		got := run(t, "serve", "--config", r.ConfigPath)
		if got.code != exitCantCreate {
			t.Errorf("exit %d, want %d", got.code, exitCantCreate)
		}
		contains(t, got.stderr, "/proc/ampcio", "storage.dir")
	})
	rightAgain(t, r)
}
