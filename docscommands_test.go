package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// pages are what a user reads.
func pages(t testing.TB) []string {
	t.Helper()
	guides, err := filepath.Glob("docs/*.md")
	if err != nil || len(guides) == 0 {
		t.Fatal(guides, err)
	}
	return append([]string{"README.md"}, guides...)
}

// shellLines are the lines of a page's shell blocks, a block with a here-document as one, and shown are the commands of
// ampcio ranElsewhere in it: indented, or between backticks.
func shellLines(t testing.TB, page string) (lines, shown []string) {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	block, inShell, inBlock := "", false, false
	for _, line := range strings.Split(string(b), "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			if inShell {
				if strings.Contains(block, "<<END") {
					lines = append(lines, block)
				} else {
					lines = append(lines, commandsOf(block)...)
				}
			}
			inBlock = !inBlock
			inShell, block = inBlock && trimmed == "```sh", ""
		case inShell:
			block += trimmed + "\n"
		case inBlock:
		case strings.HasPrefix(line, "    ") && theirs.MatchString(trimmed):
			shown = append(shown, trimmed)
		default:
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(line, -1) {
				if theirs.MatchString(m[1]) {
					shown = append(shown, m[1])
				}
			}
		}
	}
	return lines, shown
}

var theirs = regexp.MustCompile(`^(sudo )?ampcio \S|\| (sudo )?ampcio `)

// commandsOf cuts a block into its commands; some of them go over several lines.
func commandsOf(block string) (commands []string) {
	var open string
	for _, line := range strings.Split(block, "\n") {
		if open += line; open == "" {
			continue
		}
		// Whole is what a shell would take.
		if exec.Command("bash", "-nc", open).Run() != nil || strings.HasSuffix(open, "|") {
			open += "\n"
			continue
		}
		commands, open = append(commands, open), ""
	}
	if open != "" {
		commands = append(commands, open) // broken; whoever runs it will see
	}
	return commands
}

// withHouse is what stands where a page says NAME, U, TIME and the like, in a house that has it.
var withHouse = strings.NewReplacer(
	"user.email", "user.email", // nothing of that is a placeholder
	" NAME", " production", "OLD NEW", "production other", "--user U", "--user anna-123",
	"--since TIME", "--since 2h", "--since T ", "--since 2h ", "REASON", "http_400", "DIR", "cases", "--config FILE", "", "ID…", "production/9",
	" && sudo systemctl stop ampcio.socket ampcio.service", "", "/backup/", "", "/etc/ampcio/webhook_secret", "webhook_secret", "/tmp/ampcio.tar", "ampcio.tar", "YOUR KEY", recordings.Key, "https://other.example.com", "http://$LISTEN", "https://events.example.com/healthz", "http://$LISTEN/healthz",
	"http://127.0.0.1:8081", "http://$ADMIN", "production/1234", "$DEAD", "/mnt/backup/", "",
)

// endings are commands of the docs that do not end with 0 in this house, and why that is right.
var endings = map[string]int{
	"ampcio sync remove production --yes":                    exitData, // it is in the configuration
	"ampcio sync rename production other":                    exitData, // the configuration knows no other
	"ampcio sync adopt production --yes":                     exitData, // it delivers to the workspace that it knows
	"ampcio dry-run report":                                  exitData, // there was none
	"ampcio dry-run report --by hour --since 24h":            exitData,
	"ampcio dry-run report --by event --since 24h":           exitData,
	"ampcio queue-stats --check --warn-age 5m --crit-age 1h": 1, // a dead letter is kept
	"ampcio doctor": 1, // the same, and what a rehearsal is not
	`ampcio queue-stats --ack-blocked "key ordered, ticket 4711" --sync production --for 8h`: exitData, // it is not blocked
	`ampcio queue-stats --ack-blocked "outage at Customer.io" --for 4h`:                      exitData,
}

// asking are commands that ask somebody; here nobody is there, so they are run with --yes, as a script would.
var asking = regexp.MustCompile(`ampcio (import|send-test|sync (rewind|remove|adopt)|dead-letters (drop|replay)|user forget)\b`)

// mentioned are commands that a sentence names without what they need. They are there.
var mentioned = []string{"ampcio explain", "ampcio import --state", "ampcio sync pause", "ampcio sync adopt", "ampcio sync rename", "ampcio sync remove",
	"ampcio sync resume", "ampcio sync rewind", "ampcio user forget", "ampcio dead-letters replay"}

// sentences begin like commands, and are messages of the log.
var sentences = []string{"ampcio is stuck", "ampcio takes events", "ampcio has stopped; what is pending stays in the queue"}

// ranElsewhere are the commands that are not run here: a file that runs them, or why nobody does.
var ranElsewhere = []struct{ begin, file, why string }{
	{"go run . demo", ".ci/run", ""},
	{"go test ./...", ".ci/run", ""},
	{"ampcio demo", "", "go run . demo is the same"},
	{"ampcio serve", "", "what the house of this test runs"},
	{"ampcio sandbox", "", "run by the block of the first event"},
	{"curl -u 'API_KEY:SECRET_KEY' 'https://amplitude.com", "", "Amplitude's"},
	{"curl -su 'API_KEY:SECRET_KEY' 'https://amplitude.com", "", "Amplitude's"},
	{"ln -s /etc/letsencrypt", "", "certbot's"},
	{"# ", "", "a comment"},
	{"make deb", "", "packaging/check builds the same by packaging/build deb"},
	{"ampcio drain --until-empty --refuse", "", "the house would take nothing for a minute; drain_test.go does it"},
	{"make tarball", "", "packaging/check builds the same by packaging/build all"},
	{"install -", "", "what the package does, and faults/boot"},
	{"CGO_ENABLED=0 go build -trimpath", "packaging/build", ""},
	{"systemd-sysusers", "faults/boot/boot.go", ""},
	{"systemctl daemon-reload", "faults/boot/boot.go", ""},
	{"systemctl disable", "", "systemd's"},
	{"sha256sum --check", "", "packaging/check does, with what it has built"},
	{"tar -xzf ampcio-", "", "as packaging/check does"},
	{"mv /etc/ampcio/config.toml.kept /etc/ampcio/config.toml", "packaging/life-test", ""},
	{"apt remove ampcio", "", "as packaging/life-test does with dpkg"},
	{"apt purge ampcio", "", "as packaging/life-test does with dpkg"},
	{"env AMPCIO_PURGE_QUEUE=yes apt", "packaging/life-test", ""},
	{"rm ", "", "of an installation by hand"},
	{"userdel ampcio", "", "of an installation by hand"},
	{"apt install ./dist/ampcio_*_$(dpkg --print-architecture).deb", "", "as packaging/life-test does with dpkg"},
	{"sudoedit /etc/ampcio/", "", "an editor"},
	{"systemctl start ampcio", "packaging/life-test", ""},
	{"systemctl restart ampcio", "faults/boot/restarts.go", ""},
	{"df -h", "", "not ours"},
	{"ampcio queue-stats --watch", "", "ends by Ctrl-C; TestQueueStats… follow it"},
}

// besides are commands that go with those of ampcio, and are run, too.
var besides = []string{"curl -si http://$LISTEN", "curl -s http://$ADMIN", "split -l", "sh -c 'umask 077; head -c 24 /dev/urandom", "for f in part", "curl http://$LISTEN"}

// Each command of the docs is run: those of ampcio in a house that has a sync called production, and people and
// dead letters as on the pages; the others by what ranElsewhere names.
func TestCommandsInTheDocs(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	amplitude := rehearse(t, rehearsal.Settings{})
	up(t, amplitude)
	r := rehearse(t, rehearsal.Settings{})
	relayTo(t, r, amplitude, "")
	edit(t, r, "retry_max = \"2s\"\n", "retry_max = \"2s\"\nmax_pending_bytes = \"1GiB\"\n")
	renameInConfig(t, r, "production")
	channel := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer channel.Close()
	edit(t, r, "[project.app]", fmt.Sprintf("[alerts]\nurl = %q\n\n[project.app]", channel.URL))
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Never"}})
	up(t, r)
	for _, user := range []string{"anna-123", "u-12345"} {
		accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Order Placed","user_id":%q,"insert_id":%[2]q,"event_properties":{"seq":1,"total":12},"user_properties":{"plan":"pro","email":%q}}]}`,
			recordings.Key, user, strings.TrimSuffix(user, "-123")+"@example.com"))
	}
	drained(t, r)

	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Never","user_id":"u-12345","insert_id":"never"}]}`, recordings.Key))
	drained(t, r)
	dead := regexp.MustCompile(`production/\d+`).FindString(did(t, r, "dead-letters", "list"))

	d := deskIn(t, r.Dir)
	if err := os.Mkdir(filepath.Join(d.dir, "cases"), 0o700); err != nil {
		t.Fatal(err)
	}
	exported(t, filepath.Join(d.dir, "export.zip"), 3, 30, time.Now().Add(-100*time.Hour), rand.New(rand.NewPCG(1, 1)))
	write(t, filepath.Join(d.dir, "cases", "order.in.json"), `{"event_type":"Order Placed","user_id":"anna-123"}`)
	did(t, r, "explain", "--expect", filepath.Join(d.dir, "cases"), "--update")
	// An installation that has not been started, for what needs one.
	other := filepath.Join(r.Dir, "other.toml")
	write(t, other, strings.ReplaceAll(configOf(t, r), filepath.Join(r.Dir, "storage"), filepath.Join(r.Dir, "restored")))

	done := map[string]bool{}
	for _, page := range pages(t) {
		lines, shown := shellLines(t, page)
		for _, line := range append(lines, shown...) {
			bare, _, _ := strings.Cut(withHouse.Replace(line), "  #")
			bare = strings.TrimSpace(strings.TrimPrefix(bare, "sudo "))
			if done[bare] || slices.Contains(sentences, bare) || strings.Contains(line, "…") || strings.Contains(line, "<<END") {
				continue
			}
			done[bare] = true
			if i := slices.IndexFunc(ranElsewhere, func(e struct{ begin, file, why string }) bool { return strings.HasPrefix(bare, e.begin) }); i >= 0 && !strings.Contains(bare, "--help") {
				runElsewhere(t, ranElsewhere[i].file, ranElsewhere[i].begin)
				continue
			}
			if slices.Contains(mentioned, bare) {
				bare += " --help"
			}
			if !theirs.MatchString(bare) && !slices.ContainsFunc(besides, func(begin string) bool { return strings.HasPrefix(bare, begin) }) {
				t.Errorf("%s: who runs %q?", page, line)
				continue
			}
			if asking.MatchString(bare) && !strings.Contains(bare, "--dry-run") {
				bare += " --yes"
			}
			if strings.Contains(bare, "ampcio backup ampcio.tar") {
				os.Remove(filepath.Join(d.dir, "ampcio.tar"))
			}
			config := r.ConfigPath
			if strings.Contains(bare, "--refuse") {
				config = amplitude.ConfigPath // nothing else is asked of that one, and it takes nothing for a minute
			}
			if strings.Contains(bare, "ampcio restore") {
				config = other
				if err := os.RemoveAll(filepath.Join(r.Dir, "restored")); err != nil {
					t.Fatal(err)
				}
			}
			if code, said := d.typed(t, bare, config, "LISTEN="+r.Listen, "ADMIN="+r.Admin, "DEAD="+dead); code != endings[bare] {
				t.Errorf("%s: %q ends with %d, want %d:\n%s", page, bare, code, endings[bare], said)
			}
			if strings.Contains(bare, " pause ") {
				did(t, r, "sync", "resume", strings.Fields(bare)[3])
			}
		}
	}
	if len(done) < 60 {
		t.Errorf("only %d commands were found", len(done))
	}
	down(t, r)
	down(t, amplitude)
}

// runElsewhere says that a file runs a command, where it names one.
func runElsewhere(t testing.TB, file, command string) {
	t.Helper()
	if file == "" {
		return
	}
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(b, []byte(command)) {
		t.Errorf("%s does not run %q (%v)", file, command, err)
	}
}

// The first screen's first event: the block as it is printed, but for the ports, which others may use here.
func TestFirstEventOfTheREADME(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	lines, _ := shellLines(t, "README.md")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "ampcio sandbox") })
	if i < 0 {
		t.Fatal("the README has no such block")
	}
	block := lines[i]
	for _, port := range []string{"8070", "8071", "8090"} {
		address, err := rehearsal.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(block, "127.0.0.1:"+port) {
			t.Errorf("no %s in the block", port)
		}
		block = strings.ReplaceAll(block, "127.0.0.1:"+port, address)
		if port == "8090" {
			block = strings.Replace(block, "ampcio sandbox ", "ampcio sandbox --listen "+address+" ", 1)
		}
	}
	d := deskIn(t, t.TempDir())
	code, said := d.typed(t, "set -e\n"+block, "/nowhere")
	contains(t, said, `"code":200`, "taken 1 = delivered 1", "production: delivered at", `"plan":"pro"`)
	if code != 0 {
		t.Errorf("ends with %d:\n%s", code, said)
	}
}

// desk is where somebody types commands, with ampcio installed, and allowed to do all.
type desk struct{ dir, bin string }

func deskIn(t testing.TB, dir string) desk {
	t.Helper()
	d := desk{filepath.Join(dir, "desk"), filepath.Join(dir, "bin")}
	for _, dir := range []string{d.dir, d.bin} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{"ampcio": fmt.Sprintf("%s=1 exec %s \"$@\"", isAmpcio, self), "sudo": `exec "$@"`} {
		if err := os.WriteFile(filepath.Join(d.bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// typed runs a line of bash, with the configuration and more of the environment, and gives how it ends and what it says.
func (d desk) typed(t testing.TB, line, config string, environment ...string) (code int, said string) {
	t.Helper()
	c := exec.Command("bash", "-c", line)
	c.Dir = d.dir
	for _, v := range ampcio().Env {
		if !strings.HasPrefix(v, isAmpcio+"=") && !strings.HasPrefix(v, "PATH=") {
			c.Env = append(c.Env, v)
		}
	}
	c.Env = append(append(c.Env, "PATH="+d.bin+":"+os.Getenv("PATH"), "AMPCIO_CONFIG="+config), environment...)
	var b bytes.Buffer
	c.Stdout, c.Stderr, c.WaitDelay = &b, &b, time.Second
	late := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer late.Stop()
	err := c.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatalf("%s: %v\n%s", line, err, &b)
	}
	return c.ProcessState.ExitCode(), b.String()
}
