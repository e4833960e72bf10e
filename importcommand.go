package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/time/rate"

	"ampcio/archive"
	"ampcio/config"
	"ampcio/mapping"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "take archives of Amplitude's Export API: their events, or what they say of users",
		UsageText: "ampcio import [--state] FILE…|FOLDER|- [--project P] [--rate N] [--dry-run] [--strict] [--yes] [--json]",
		Description: "FILE is a zip as Amplitude's Export API gives it, one of its .json.gz, or JSON lines; a FOLDER is looked through; - is stdin,\n" +
			"which is copied to $TMPDIR first. The running daemon takes the lines; when it is stopped, this command does.\n\n" +
			"With --state nothing is delivered: ampcio learns the properties of users and whose a device is. Do that first, so that\n" +
			"nobody looks anonymous on the first day. Without it the events are delivered by the rules of each sync, like any other,\n" +
			"and change nothing that is known of anybody.\n\n" +
			"Archives are looked through first: what is said then is what would happen. Lines that cannot be taken are named and left\n" +
			"out. After an interruption of any kind the same command goes on where it was; what has been taken is not taken again.\n" +
			"Hours come in their order, the lines of an hour in that of their event_time. New events always have precedence.\n\n" +
			"Exit code: 0 all lines are taken; 65 all but the bad ones (with --strict: nothing is); 75 interrupted, do it again.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "state", Usage: "take what the lines say of users, and deliver nothing"},
			&cli.StringFlag{Name: "project", Usage: "the project `P` whose archive it is; may be left out when there is only one"},
			&cli.StringFlag{Name: "rate", Usage: "take at most `N` lines a second"},
			&cli.BoolFlag{Name: "strict", Usage: "take nothing when a line is bad"},
			dryRunFlag, yesFlag, jsonFlag},
		Action: func(c *cli.Context) error {
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			i, err := newImporter(c)
			if err != nil {
				return err
			}
			return errors.Join(i.run(), i.set.Close())
		},
	}
}

// importer takes archives.
type importer struct {
	c       *cli.Context
	ctx     context.Context
	o       *operator
	project string
	state   bool
	limit   *rate.Limiter // nil = none
	set     *archive.Set
	survey  *importSurvey
	say     io.Writer // stderr
	bar     *progress

	stored, duplicates uint64
	before             uint64 // lines that an earlier import has taken
	again              bool   // the parts are gone through once more: what was taken before is counted already
}

func newImporter(c *cli.Context) (*importer, error) {
	i := &importer{c: c, ctx: c.Context, state: c.Bool("state"), say: c.App.ErrWriter}
	paths := c.Args().Slice()
	stdin := slices.Contains(paths, "-")
	switch {
	case len(paths) == 0:
		return nil, exit(exitUsage, errors.New("import wants archives: files, folders, or - for stdin (see ampcio import --help)"))
	case stdin && len(paths) > 1:
		return nil, exit(exitUsage, errors.New("- is stdin, and cannot be read beside files: give them in one command each"))
	}
	if text := c.String("rate"); text != "" {
		n, err := strconv.ParseFloat(strings.TrimSuffix(text, "/s"), 64)
		if err != nil || n <= 0 || n > 1e9 {
			return nil, exit(exitUsage, fmt.Errorf("--rate: %q is no number of lines a second, such as 500", text))
		}
		i.limit = rate.NewLimiter(rate.Limit(n), max(1, min(chunkLines, int(n))))
	}
	var err error
	if i.o, err = newOperator(c); err != nil {
		return nil, err
	}
	if i.o.broken != nil {
		return nil, i.o.broken
	}
	if i.project, err = importProject(i.o.cfg, c.String("project")); err != nil {
		return nil, err
	}
	if stdin {
		i.set, err = archive.Spool(os.Stdin)
	} else {
		i.set, err = archive.Open(paths)
	}
	if err != nil {
		return nil, exit(exitUsage, err)
	}
	return i, nil
}

func importProject(cfg *config.Config, name string) (string, error) {
	names := cfg.Project.Names()
	switch {
	case name == "" && len(names) == 1:
		return names[0], nil
	case name == "":
		return "", exit(exitUsage, fmt.Errorf("there is more than one project: say which with --project %s", strings.Join(names, "|")))
	case !slices.Contains(names, name):
		return "", exit(exitUsage, fmt.Errorf("there is no [project.%s]; the projects are %s", name, strings.Join(names, ", ")))
	}
	return name, nil
}

// mostNamed is how many bad lines are named.
const mostNamed = 20

func (i *importer) run() error {
	i.bar = newProgress(i.c, "looking", "lines", 0)
	named := 0
	var err error
	i.survey, err = lookThrough(i.set, lateAfters(i.o.cfg, i.project), time.Now(), func(n uint64) error {
		i.bar.add(n)
		return i.ctx.Err()
	}, func(at, why string) {
		if named++; named <= mostNamed {
			i.bar.note(i.say, fmt.Sprintf("%s: %s", at, clipText(why, 160)))
		}
	})
	i.bar.end()
	switch {
	case err != nil && i.ctx.Err() != nil:
		return exit(exitTemporary, errors.New("ended by you; nothing was taken"))
	case err != nil:
		return exit(exitData, fmt.Errorf("%w; nothing was taken", err))
	}
	if named > mostNamed {
		fmt.Fprintf(i.say, "and %s more\n", many(uint64(named-mostNamed)))
	}
	for _, name := range i.set.Ignored {
		fmt.Fprintf(i.say, "%s is left out: it is empty, or has not the name of an archive (.zip, .json, .gz)\n", name)
	}
	i.survey.judgeLate(i.o.cfg, i.project)
	if i.c.Bool("dry-run") {
		if err := shown(i.c, i.survey, func(w io.Writer) { i.survey.print(w, i.project, i.state) }); err != nil {
			return err
		}
		return i.badLines("")
	}
	i.survey.print(i.say, i.project, i.state)
	switch {
	case i.survey.Bad > 0 && i.c.Bool("strict"):
		return i.badLines("nothing was taken: ")
	case i.survey.Events == 0:
		return exit(exitData, errors.New("nothing was taken: there is no event in it"))
	}
	if !i.c.Bool("yes") {
		what := "Deliver these events by the rules of their syncs?"
		if i.state {
			what = "Take over what these lines say of users?"
		}
		if err := confirm(i.c, what); err != nil {
			return err
		}
	}
	if err := i.take(); err != nil {
		return err
	}
	if err := i.tellEnd(); err != nil {
		return err
	}
	return i.badLines("")
}

func (i *importer) badLines(before string) error {
	if i.survey.Bad == 0 {
		return nil
	}
	return exit(exitData, fmt.Errorf("%s%s cannot be taken", before, counted(i.survey.Bad, "line", "lines")))
}

// take has all lines taken, whatever becomes of the daemon meanwhile.
func (i *importer) take() error {
	s := &importSession{o: i.o}
	i.bar = newProgress(i.c, "taken", "lines", i.survey.Lines)
	var gone time.Time // since when the daemon has been away
	for {
		err := i.takeAll(s, func() { gone = time.Time{} })
		if errors.Is(err, errGone) {
			if gone.IsZero() {
				gone = time.Now()
				i.bar.note(i.say, "the daemon has gone; waiting until it is back")
			}
			if time.Since(gone) < comeBack && sleep(i.ctx, 300*time.Millisecond) == nil {
				continue
			}
			if i.ctx.Err() == nil {
				err = exit(exitTemporary, fmt.Errorf("%w; when it runs again, the same command goes on", err))
			}
		}
		i.bar.end()
		if i.ctx.Err() != nil {
			err = exit(exitTemporary, fmt.Errorf("ended by you: %s of %s lines are taken, and safe; the same command goes on from here", many(i.bar.done), many(i.survey.Lines)))
		}
		i.o.stopped = s.files != nil
		return errors.Join(err, s.close())
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// errStartOver means that less has been taken than was thought.
var errStartOver = errors.New("start over")

// takeAll goes through the parts, and passes over what has been taken.
func (i *importer) takeAll(s *importSession, alive func()) error {
	for {
		i.bar.restart()
		err := i.takeParts(s, alive)
		i.again = true
		if errors.Is(err, errStartOver) {
			continue
		}
		if err != nil {
			return err
		}
		if i.state {
			if _, err := i.patiently(s, importing{Project: i.project, State: true, Flush: true}); err != nil {
				return err
			}
		}
		_, err = s.call(i.ctx, importing{Project: i.project, State: i.state, Done: i.survey.Lines})
		return err
	}
}

func (i *importer) takeParts(s *importSession, alive func()) error {
	parts := slices.Clone(i.survey.parts)
	if i.state { // what is newest is to come first
		slices.Reverse(parts)
	}
	for _, p := range parts {
		of := importing{Project: i.project, Part: hex.EncodeToString(p.digest[:]), State: i.state}
		place, err := i.patiently(s, of)
		if err != nil {
			return err
		}
		alive()
		if from := min(place.Place, p.lines); from > 0 {
			if !i.again {
				i.before += from
			}
			i.bar.add(from)
		}
		if place.Place >= p.lines {
			continue
		}
		if err := i.takePart(s, p, of, place.Place, alive); err != nil {
			return err
		}
	}
	return nil
}

// A chunk is what is taken at a time: bytes of lines, and how many.
const (
	chunkBytes = 1 << 20
	chunkLines = 1000
)

func (i *importer) takePart(s *importSession, p surveyedPart, of importing, place uint64, alive func()) error {
	next, size := of, 0
	most := chunkLines
	if i.limit != nil {
		most = i.limit.Burst()
	}
	send := func() error {
		if len(next.Lines) == 0 {
			return nil
		}
		if i.limit != nil {
			if err := i.limit.WaitN(i.ctx, len(next.Lines)); err != nil {
				return err
			}
		}
		out, err := i.patiently(s, next)
		if err != nil {
			return err
		}
		alive()
		if out.Gap {
			return errStartOver
		}
		i.stored, i.duplicates = i.stored+uint64(out.Stored), i.duplicates+uint64(out.Duplicates)
		i.bar.add(uint64(len(next.Lines)))
		next, size = of, 0
		return nil
	}
	err := p.part.Lines(i.state, mapping.ExportTimeOf, func(l *archive.Line) error {
		if err := i.ctx.Err(); err != nil || l.Number <= place {
			return err
		}
		if len(next.Lines) == 0 {
			next.From = l.Number
		}
		next.Lines = append(next.Lines, l.Text)
		if size += len(l.Text); size >= chunkBytes || len(next.Lines) >= most {
			return send()
		}
		return nil
	})
	if err == nil {
		err = send()
	}
	return err
}

// patiently has one request answered, and waits as long as there is no room.
func (i *importer) patiently(s *importSession, in importing) (imported, error) {
	for told := false; ; told = true {
		out, err := s.call(i.ctx, in)
		if err != nil || out.Wait == "" {
			return out, err
		}
		if s.files != nil {
			return out, exit(exitTemporary, fmt.Errorf("%s. Start ampcio, so that it delivers what is pending; then the same command goes on", out.Wait))
		}
		if !told {
			i.bar.note(i.say, "waiting: "+out.Wait)
		}
		if err := sleep(i.ctx, time.Second); err != nil {
			return out, err
		}
	}
}

// importEnd is what came of an import.
type importEnd struct {
	Project    string `json:"project"`
	State      bool   `json:"state"`
	Lines      uint64 `json:"lines"`
	Stored     uint64 `json:"stored"`
	Duplicates uint64 `json:"duplicates"`
	Before     uint64 `json:"before"`
	Bad        uint64 `json:"bad_lines"`
}

func (i *importer) tellEnd() error {
	end := importEnd{i.project, i.state, i.survey.Lines, i.stored, i.duplicates, i.before, i.survey.Bad}
	return shown(i.c, end, func(w io.Writer) {
		if i.state {
			fmt.Fprintf(w, "%s taken; %s told something new of a user or a device. Nothing is delivered: it goes out with the users' next events.\n",
				counted(end.Lines, "line", "lines"), many(end.Stored))
		} else {
			fmt.Fprintf(w, "%s taken: %s stored%s", counted(end.Lines, "line", "lines"), events(end.Stored), i.o.deliveredWhen())
			if end.Duplicates > 0 {
				fmt.Fprintf(w, ", %s had come from an SDK or the webhook", many(end.Duplicates))
			}
			fmt.Fprintln(w)
		}
		if end.Before > 0 {
			fmt.Fprintf(w, "%s had been taken before.\n", counted(end.Before, "line", "lines"))
		}
	})
}

// deliveredWhen ends the sentence about what is stored.
func (o *operator) deliveredWhen() string {
	if o.stopped {
		return "; they are delivered after the next start (systemctl start ampcio)"
	}
	return ""
}
