package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/admin"
	"ampcio/config"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "look at everything that an installation needs, and say what to do",
		UsageText: "ampcio doctor [--offline] [--json]",
		Description: "It looks at the configuration and its keys, the unit, the storage folder and its disk, clock, file limits, the listener with\n" +
			"its certificate and proxy, the last requests, every sync, and asks Customer.io and Amplitude whether region and keys are right,\n" +
			"as check-config --online does. It changes nothing; the disk is tried with less than a second of small writes to a file without\n" +
			"a name. It works while ampcio runs and when it is stopped. What only root may see is skipped for others, and said.\n\n" +
			"Exit code: 0 all is well; 1 there are warnings; 78 something is wrong; 64 wrong usage.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "offline", Usage: "ask nobody but the daemon: neither Customer.io nor Amplitude"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			d := &doctor{configFile: c.String("config"), offline: c.Bool("offline"), now: time.Now, getenv: os.Getenv, systemctl: systemctl(), tryDisk: trySyncs}
			d.examine(c.Context)
			if c.Context.Err() != nil {
				return exit(exitTemporary, errors.New("ended by you; nothing was changed"))
			}
			report := d.report()
			if c.Bool("json") {
				if err := tell(c.App.Writer, report); err != nil {
					return err
				}
			} else {
				report.print(c.App.Writer, terminalColumns(c.App.Writer), colored(c.App.Writer))
			}
			return report.code()
		},
	}
}

// Verdicts of a finding.
const (
	fine    = "ok"
	warning = "warning"
	wrong   = "wrong"
	skipped = "skipped" // it could not be looked at
)

// finding is what the doctor has seen of one thing.
type finding struct {
	Check   string         `json:"check"`
	Verdict string         `json:"verdict"`
	Says    string         `json:"says"`
	ToDo    string         `json:"to_do"`
	Exact   map[string]any `json:"exact,omitempty"` // the numbers: bytes, seconds, counts
}

// doctor looks at one installation.
type doctor struct {
	configFile string
	offline    bool
	now        func() time.Time
	getenv     func(string) string
	// systemctl asks systemd; nil = this machine is not run by it.
	systemctl func(ctx context.Context, args ...string) (string, error)
	tryDisk   func(ctx context.Context, dir string) ([]time.Duration, error) // single syncs

	cfg      *config.Config // with mistakes in the file only where storage and socket are
	broken   bool           // the file has mistakes
	keys     *config.Config // with keys; nil = they could not be read
	snap     *admin.Snapshot
	running  bool // a daemon has answered
	pid      int  // of it; 0 = not known
	unit     unitState
	findings []finding
}

func (d *doctor) say(check, verdict, says, todo string) *finding {
	d.findings = append(d.findings, finding{Check: check, Verdict: verdict, Says: says, ToDo: todo})
	return &d.findings[len(d.findings)-1]
}

// examine looks at one thing after the other. None changes anything.
func (d *doctor) examine(ctx context.Context) {
	for _, look := range []func(context.Context){
		d.configuration, d.keyFiles, d.daemon, d.service, d.binary, d.reloaded,
		d.folder, d.diskSpeed, d.space, d.clock, d.fileLimits,
		d.listener, d.requests, d.refusals, d.syncs, d.accounts,
	} {
		if ctx.Err() != nil {
			return
		}
		look(ctx)
	}
}

// doctorReport is all that was found.
type doctorReport struct {
	Schema   int       `json:"schema"`
	At       time.Time `json:"at"`
	Version  string    `json:"version"`
	Verdict  string    `json:"verdict"` // the worst
	Wrong    int       `json:"wrong"`
	Warnings int       `json:"warnings"`
	Skipped  int       `json:"skipped"`
	Findings []finding `json:"findings"`
}

func (d *doctor) report() doctorReport {
	r := doctorReport{Schema: 1, At: d.now().UTC().Truncate(time.Second), Version: version().version, Verdict: fine, Findings: d.findings}
	for _, f := range d.findings {
		switch f.Verdict {
		case wrong:
			r.Wrong++
		case warning:
			r.Warnings++
		case skipped:
			r.Skipped++
		}
	}
	if r.Warnings > 0 {
		r.Verdict = warning
	}
	if r.Wrong > 0 {
		r.Verdict = wrong
	}
	return r
}

func (r *doctorReport) code() error {
	switch r.Verdict {
	case wrong:
		more := ""
		if r.Warnings > 0 {
			more = ", and " + counted(uint64(r.Warnings), "warning", "warnings")
		}
		return exit(exitConfig, fmt.Errorf("%s wrong%s", counted(uint64(r.Wrong), "thing is", "things are"), more))
	case warning:
		return exit(exitFailed, errors.New(counted(uint64(r.Warnings), "warning", "warnings")))
	}
	return nil
}

func (r *doctorReport) print(w io.Writer, columns int, color bool) {
	paint := map[string]text.Colors{wrong: {text.FgRed, text.Bold}, warning: {text.FgYellow}, fine: {text.FgGreen}}
	wide := 0
	for _, f := range r.Findings {
		wide = max(wide, len(f.Check))
	}
	indent := strings.Repeat(" ", 9+wide+2)
	for _, f := range r.Findings {
		verdict := fmt.Sprintf("%-8s", f.Verdict)
		if color {
			verdict = paint[f.Verdict].Sprint(verdict)
		}
		fmt.Fprintf(w, "%s %-*s  %s\n", verdict, wide, f.Check, folded(f.Says, indent, columns))
		if f.ToDo != "" {
			fmt.Fprintf(w, "%sto do: %s\n", indent, folded(f.ToDo, indent+"       ", columns))
		}
	}
	if r.Verdict == fine {
		end := "all is well"
		if r.Skipped > 0 {
			end += ", as far as could be seen"
		}
		fmt.Fprintln(w, end)
	}
}

// folded breaks what is too long for the terminal between words; 0 columns = there is
// none, and a line stays whole. No word is cut: commands can be copied.
func folded(s, indent string, columns int) string {
	s = strings.ReplaceAll(s, "\n", "; ")
	if columns == 0 {
		return s
	}
	room := max(columns-1-len(indent), 20)
	var out strings.Builder
	length := 0
	for i, word := range strings.Fields(s) {
		n := len([]rune(word))
		switch {
		case i == 0:
		case length+1+n > room:
			out.WriteString("\n" + indent)
			length = 0
		default:
			out.WriteString(" ")
			length++
		}
		out.WriteString(word)
		length += n
	}
	return out.String()
}

// terminalColumns is how wide the terminal is that w is; 0 = it is none.
func terminalColumns(w io.Writer) int {
	out, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(out.Fd())) {
		return 0
	}
	if n, _, err := term.GetSize(int(out.Fd())); err == nil && n > 0 {
		return n
	}
	return 80
}

// configuration reads the file, without keys and then with them.
func (d *doctor) configuration(context.Context) {
	const check = "configuration"
	cfg, err := config.Load(d.configFile, config.Environment{Getenv: d.getenv, NoSecrets: true})
	if err == nil {
		_, err = compileRules(cfg)
	}
	if d.cfg, d.broken = cfg, err != nil; d.broken {
		d.cfg = config.WithMistakes(d.configFile)
	}
	say := func(verdict, says, todo string) { d.say(check, verdict, says, todo) }
	switch {
	case errors.Is(err, fs.ErrNotExist):
		say(wrong, fmt.Sprintf("there is no %s", d.configFile), "see what to write: ampcio check-config --config "+d.configFile)
	case errors.Is(err, fs.ErrPermission):
		say(skipped, fmt.Sprintf("you may not read %s", d.configFile), "run this as root (sudo ampcio doctor), or as a member of its group")
	case err != nil:
		first, _, more := strings.Cut(err.Error(), "\n")
		if more {
			first += " …"
		}
		say(wrong, clipText(first, 300), "mend it; see all: ampcio check-config --config "+d.configFile)
	default:
		say(fine, fmt.Sprintf("%s: %s, %s", d.configFile, counted(uint64(len(cfg.Project)), "project", "projects"), counted(uint64(len(cfg.Sync)), "sync", "syncs")), "")
		for _, w := range cfg.Warnings {
			say(warning, w, "")
		}
	}
	st, err := os.Stat(d.configFile)
	if err != nil {
		return
	}
	switch mode := st.Mode().Perm(); {
	case mode&0o002 != 0:
		d.say("config file", wrong, fmt.Sprintf("everybody on this machine can change %s (mode %04o)", d.configFile, mode), "chmod 0640 "+d.configFile)
	case mode&0o020 != 0:
		d.say("config file", warning, fmt.Sprintf("its group can change %s (mode %04o)", d.configFile, mode), "chmod 0640 "+d.configFile)
	default:
		d.say("config file", fine, fmt.Sprintf("mode %04o, changed %s", mode, ago(d.now(), st.ModTime())), "")
	}
	if ahead := st.ModTime().Sub(d.now()); ahead > time.Minute {
		d.say("config file", warning, fmt.Sprintf("%s was changed %s in the future: the clock was set back", d.configFile, forPeople(ahead)), "look at the clock: timedatectl")
	}
}

// keyFiles reads the configuration with its keys.
func (d *doctor) keyFiles(context.Context) {
	const check = "keys"
	if d.broken {
		d.say(check, skipped, "not looked at, since the configuration is not known", "")
		return
	}
	cfg, err := config.Load(d.configFile, config.Environment{Getenv: d.getenv})
	switch {
	case err == nil:
		d.keys = cfg
		open := false
		for _, w := range cfg.Warnings {
			// Those that are told only with the keys are about who can read them.
			if !slices.Contains(d.cfg.Warnings, w) {
				open = true
				d.say(check, warning, w, "")
			}
		}
		if open {
			return
		}
		d.say(check, fine, "every key is there, and no key file is open to others", "")
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		d.say(check, skipped, "you may not read the key files", "run this as root: sudo ampcio doctor")
	default:
		first, _, more := strings.Cut(err.Error(), "\n")
		if more {
			first += " …"
		}
		d.say(check, wrong, clipText(first, 300), "mend it, then: systemctl restart ampcio; see all: ampcio check-config --config "+d.configFile)
	}
}

// daemon asks the daemon, or reads the files of one that is stopped.
func (d *doctor) daemon(ctx context.Context) {
	const check = "daemon"
	socket := socketPath(d.cfg)
	asking, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	snap, err := admin.Ask(asking, socket)
	switch {
	case err == nil:
		d.snap, d.running, d.pid = &snap, true, peerPID(socket)
		up := ""
		if snap.Uptime != nil {
			up = ", up " + forPeople(time.Duration(*snap.Uptime)*time.Second)
		}
		of := ""
		if d.pid != 0 {
			of = fmt.Sprintf(", pid %d", d.pid)
		}
		d.say(check, fine, fmt.Sprintf("it answers at %s: version %s%s%s", socket, snap.Version, of, up), "")
		if mine := version().version; snap.Version != mine {
			d.say("version", warning, fmt.Sprintf("the ampcio that runs is %s, and this one is %s", snap.Version, mine), "systemctl restart ampcio, so that the installed one runs")
		} else {
			d.say("version", fine, version().String(), "")
		}
	case notRunning(err):
		d.say("version", fine, version().String(), "")
		snap, err := filesSnapshot(d.cfg, d.now())
		if err != nil {
			err = filesError(d.cfg, err)
			verdict, todo := wrong, ""
			if errors.Is(err, fs.ErrPermission) {
				verdict = skipped
			}
			if errors.Is(err, fs.ErrNotExist) || codeOf(err) == exitUnavailable && verdict == wrong {
				verdict, todo = warning, "systemctl enable --now ampcio.socket ampcio.service, or: ampcio serve"
			}
			d.say(check, verdict, err.Error(), todo)
			return
		}
		d.snap = &snap
		n := snap.Pending()
		verdict := warning
		if n > 0 {
			verdict = wrong
		}
		d.say(check, verdict, fmt.Sprintf("it is stopped, with %s pending", records(n)), "systemctl start ampcio; why it stopped: journalctl -u ampcio -n 30")
	case errors.Is(err, fs.ErrPermission):
		d.say(check, skipped, permitted(socket, err).Error(), "")
	default:
		d.say(check, wrong, notAnswered(socket, err).Error(), "")
	}
}

// unitState is what systemd says of ampcio.service; the zero value: there is no unit.
type unitState struct {
	there   bool
	mainPID string
	user    string // as whom it runs; "" = root
	socket  string // ActiveState of ampcio.socket; "" = there is none
}

// systemctl asks systemd where it runs this machine.
func systemctl() func(ctx context.Context, args ...string) (string, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	return func(ctx context.Context, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "systemctl", args...).Output()
		return string(out), err
	}
}

// unitProperties reads NAME=VALUE lines.
func unitProperties(text string) map[string]string {
	p := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			p[name] = value
		}
	}
	return p
}

// service asks systemd about the units.
func (d *doctor) service(ctx context.Context) {
	const check = "service"
	if d.systemctl == nil {
		d.say(check, fine, "systemd does not run this machine: ampcio has to be started by something else", "")
		return
	}
	out, err := d.systemctl(ctx, "show", "ampcio.service", "--property=LoadState,ActiveState,SubState,UnitFileState,FragmentPath,NeedDaemonReload,MainPID,NRestarts,User")
	if err != nil {
		d.say(check, skipped, "systemd does not answer: "+clipText(err.Error(), 100), "")
		return
	}
	p := unitProperties(out)
	if p["LoadState"] != "loaded" {
		verdict, says := fine, "there is no unit ampcio.service: ampcio has to be started by something else"
		if p["LoadState"] == "masked" || p["LoadState"] == "error" || p["LoadState"] == "bad-setting" {
			verdict, says = wrong, "ampcio.service is "+p["LoadState"]
		}
		d.say(check, verdict, says, map[string]string{wrong: "systemctl status ampcio.service says why"}[verdict])
		return
	}
	d.unit = unitState{there: true, mainPID: p["MainPID"], user: p["User"]}
	active := p["ActiveState"]
	if p["SubState"] != "" {
		active += " (" + p["SubState"] + ")"
	}
	switch {
	case p["ActiveState"] == "failed" || p["SubState"] == "auto-restart":
		d.say(check, wrong, "ampcio.service is "+active+": it ends as soon as it starts", "journalctl -u ampcio -n 30 says why")
	case p["ActiveState"] != "active":
		d.say(check, warning, "ampcio.service is "+active, "systemctl start ampcio.socket ampcio.service")
	case d.running && d.pid != 0 && p["MainPID"] != fmt.Sprint(d.pid):
		d.say(check, warning, fmt.Sprintf("the ampcio that answers (pid %d) is not that of ampcio.service (pid %s)", d.pid, p["MainPID"]), "is it the same configuration? systemctl cat ampcio.service")
	case !d.running && d.snap != nil:
		d.say(check, wrong, fmt.Sprintf("ampcio.service is %s, but nothing answers at %s", active, socketPath(d.cfg)), "is server.socket the same as when it was started? systemctl restart ampcio")
	default:
		d.say(check, fine, "ampcio.service is "+active+", "+p["UnitFileState"]+restarts(p["NRestarts"]), "")
	}
	if state := p["UnitFileState"]; state != "enabled" && state != "static" && state != "" {
		d.say(check, warning, "ampcio.service is "+state+": it is not started when the machine is", "systemctl enable ampcio.socket ampcio.service")
	}
	if p["NeedDaemonReload"] == "yes" {
		d.say(check, warning, "the unit file was changed, and systemd has not read it", "systemctl daemon-reload, then: systemctl restart ampcio")
	}
	out, err = d.systemctl(ctx, "show", "ampcio.socket", "--property=LoadState,ActiveState,SubState,Listen")
	if s := unitProperties(out); err == nil && s["LoadState"] == "loaded" {
		if d.unit.socket = s["ActiveState"]; d.unit.socket != "active" && p["ActiveState"] == "active" {
			d.say(check, warning, "ampcio.socket is "+s["ActiveState"]+": while ampcio restarts, senders are refused, and some drop their events", "systemctl enable ampcio.socket, then: systemctl restart ampcio.socket ampcio.service")
		}
	}
}

func restarts(n string) string {
	if n == "" || n == "0" {
		return ""
	}
	return ", started again " + n + " times by itself"
}

// binary compares the file that runs with the one that is installed.
func (d *doctor) binary(context.Context) {
	const check = "binary"
	if d.pid == 0 {
		return
	}
	link := fmt.Sprintf("/proc/%d/exe", d.pid)
	runs, err := os.Readlink(link)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			d.say(check, skipped, "only root can see which file runs", "")
		}
		return
	}
	mine, err := os.Executable()
	if err != nil {
		return
	}
	path, replaced := strings.CutSuffix(runs, " (deleted)")
	a, errA := os.Stat(link)
	b, errB := os.Stat(mine)
	switch {
	case replaced:
		d.say(check, warning, path+" was replaced since it was started, and the old one runs on", "systemctl restart ampcio")
	case errA == nil && errB == nil && !os.SameFile(a, b):
		d.say(check, warning, fmt.Sprintf("%s runs, and this is %s", path, mine), "which of the two is meant? systemctl cat ampcio.service; which -a ampcio")
	default:
		d.say(check, fine, path+" is what runs", "")
	}
}

// folder looks at the storage folder: whose it is, and whether a file in it is somebody
// else's, as after a command that root has run.
func (d *doctor) folder(context.Context) {
	const check = "storage folder"
	dir := d.cfg.Storage.Dir
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.say(check, warning, dir+" is not there yet: the first start makes it", "")
		return
	case errors.Is(err, fs.ErrPermission):
		d.say(check, skipped, "you may not look into "+dir, "run this as root: sudo ampcio doctor")
		return
	case err != nil:
		d.say(check, wrong, err.Error(), "storage.dir must be a folder that ampcio can create files in")
		return
	case !st.IsDir():
		d.say(check, wrong, dir+" is no folder", "storage.dir must be a folder that ampcio can create files in")
		return
	}
	owner, _ := ownerOf(st)
	strange, newest := "", time.Time{}
	files := 0
	err = filepath.WalkDir(dir+string(filepath.Separator), func(path string, e fs.DirEntry, err error) error { // also where a link leads to
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a drained file goes while we look
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		files++
		if of, ok := ownerOf(info); ok && of != owner && strange == "" {
			strange = path
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		return nil
	})
	name := ownerName(owner)
	switch {
	case errors.Is(err, fs.ErrPermission):
		who := "root"
		if name != who {
			who = name + " and root"
		}
		d.say(check, skipped, fmt.Sprintf("%s belongs to %s, mode %04o; only %s may look into it", dir, name, st.Mode().Perm(), who), "")
		return
	case err != nil:
		d.say(check, wrong, err.Error(), "look at the disk: dmesg | tail")
	case strange != "":
		d.say(check, wrong, fmt.Sprintf("%s belongs to somebody else than the folder, which is %s's: ampcio cannot use it", strange, name), fmt.Sprintf("systemctl stop ampcio; chown -R %s: %s; systemctl start ampcio", name, dir))
	case d.unit.user != "" && name != d.unit.user:
		d.say(check, wrong, fmt.Sprintf("%s belongs to %s, and the service runs as %s", dir, name, d.unit.user), fmt.Sprintf("systemctl stop ampcio; chown -R %s: %s; systemctl start ampcio", d.unit.user, dir))
	case st.Mode().Perm()&0o007 != 0:
		d.say(check, warning, fmt.Sprintf("everybody on this machine can look into %s (mode %04o): people's data is in it", dir, st.Mode().Perm()), "chmod o= "+dir)
	default:
		d.say(check, fine, fmt.Sprintf("%s belongs to %s, mode %04o, %s", dir, name, st.Mode().Perm(), counted(uint64(max(files-1, 0)), "file", "files")), "")
	}
	if ahead := newest.Sub(d.now()); ahead > time.Minute {
		d.say("clock", warning, fmt.Sprintf("a file in %s was written %s in the future: the clock was set back", dir, forPeople(ahead)), "look at the clock: timedatectl")
	}
}

// ago is how long ago something was, for people.
func ago(now, t time.Time) string {
	if t.After(now) {
		return "just now"
	}
	return forPeople(now.Sub(t)) + " ago"
}
