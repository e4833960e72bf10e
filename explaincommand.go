package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name: "explain", Usage: "what becomes of one event, why, and the exact requests; sends nothing",
		UsageText: "ampcio explain [--sync NAME] [--user U] [--new] [--json] [FILE|-]\n" +
			"ampcio explain --seq N [--dead] [--sync NAME] [--json]\n" +
			"ampcio explain --expect DIR [--update] [--sync NAME]",
		Description: "FILE (- is stdin) holds one event as a JSON object, a whole request of Amplitude's HTTP V2 API, or JSON lines of these. It is\n" +
			"explained by the configuration file, as if it came now, with what is known of its user and device by now, and with what this\n" +
			"person was last sent: asked of the ampcio that runs, else of its files; where there are none, as if nobody were known. Nothing\n" +
			"is sent or changed. Of several events each counts for the next.\n\n" +
			"--seq explains what is stored: a record of the log (1234, or 1234-1240), or with --dead a dead letter, as if it were tried again.\n\n" +
			"What it prints shows ids and properties as they are: mind where you paste it.\n\n" +
			"--expect checks a folder of pairs, so that a mapping can be tested like a program. NAME.in.json: an input as above, or\n" +
			"  {\"story\": \"…\", \"events\": [{\"received\": \"2026-11-25T10:00:00Z\", \"note\": \"…\", \"event\": {…}}]}\n" +
			"NAME.out.json: for each event its user_properties_after and, for each sync, verdict, reasons and requests; --update writes\n" +
			"these anew. It needs nothing but the configuration, no storage and no keys. Exit 1 and a difference when one does not agree.",
		Flags: []cli.Flag{configFlag,
			&cli.StringSliceFlag{Name: "sync", Usage: "only this sync `NAME`; may be given several times"},
			&cli.StringFlag{Name: "project", Usage: "the project `NAME` that the event comes to; needed when several could be meant"},
			&cli.StringFlag{Name: "user", Usage: "as if the user with this user_id `U` had sent it"},
			&cli.BoolFlag{Name: "new", Usage: "as if nobody had been seen before, and nothing been sent"},
			&cli.StringFlag{Name: "seq", Usage: "a stored record, by its sequence `N`, N-M, or as SYNC/N of a dead letter"},
			&cli.BoolFlag{Name: "dead", Usage: "with --seq: among the dead letters"},
			&cli.StringFlag{Name: "expect", Usage: "check the pairs of the folder `DIR`"},
			&cli.BoolFlag{Name: "update", Usage: "with --expect: write what comes out as what is expected"},
			jsonFlag}, Action: explain,
	}
}

func explain(c *cli.Context) error {
	given := c.Args().Slice()
	switch {
	case len(given) > 1:
		return exit(exitUsage, fmt.Errorf("explain takes one FILE, and %d are given", len(given)))
	case c.IsSet("expect") && (len(given) > 0 || c.IsSet("seq") || c.IsSet("user") || c.Bool("json")):
		return exit(exitUsage, errors.New("--expect goes with --sync, --project and --update only"))
	case c.IsSet("seq") && (len(given) > 0 || c.IsSet("user")):
		return exit(exitUsage, errors.New("--seq explains what is stored: a FILE, or --user, do not go with it"))
	case c.Bool("dead") && !c.IsSet("seq"):
		return exit(exitUsage, errors.New("--dead goes with --seq N"))
	case c.Bool("update") && !c.IsSet("expect"):
		return exit(exitUsage, errors.New("--update goes with --expect DIR"))
	case !c.IsSet("seq") && !c.IsSet("expect") && len(given) == 0 && isTerminal(os.Stdin):
		return exit(exitUsage, errors.New("explain wants an event: FILE, or - and the event on stdin, or --seq N (see ampcio explain --help)"))
	}
	if c.IsSet("seq") {
		if _, _, _, err := readSequences(c.String("seq")); err != nil {
			return err
		}
	}
	cfg, err := readConfig(c, false)
	if err != nil {
		return err
	}
	g, err := newGeneration(cfg)
	if err != nil {
		return err
	}
	syncs, err := chooseSyncs(cfg, c.StringSlice("sync"))
	if err != nil {
		return err
	}
	if project := c.String("project"); project != "" {
		if _, there := cfg.Project[project]; !there {
			return exit(exitUsage, fmt.Errorf("there is no [project.%s]", project))
		}
		syncs = slices.DeleteFunc(slices.Clone(syncs), func(s string) bool { return cfg.Sync[s].Project != project })
		if len(syncs) == 0 {
			return exit(exitUsage, fmt.Errorf("no sync that is wanted takes events of project %s", project))
		}
	}
	if c.IsSet("expect") {
		return expect(c, g, syncs)
	}
	m := newMemory()
	o := &operator{cfg: cfg, socket: socketPath(cfg), say: c.App.ErrWriter}
	m.askOperator(o, c.IsSet("seq"))
	x := newExplainer(g, syncs, m)
	defer x.close()
	show := func(e explanation) error {
		e.Notes = append(e.Notes, m.notes...)
		m.notes = nil
		return shown(c, e, func(w io.Writer) { e.write(w, colored(w)) })
	}
	if err := m.rulesDiffer(c.Context, cfg, c.String("config"), syncs); err != nil {
		return err
	}
	if c.IsSet("seq") {
		m.fresh = c.Bool("new")
		return explainStored(c, x, show)
	}
	if c.Bool("new") {
		m.look = nil
	}
	text, err := readInputFile(c, given)
	if err != nil {
		return err
	}
	inputs, err := readInputs(text, c.String("user"))
	if err != nil {
		return err
	}
	first := true
	for _, in := range inputs {
		if err := x.input(c.Context, in, time.Now().UnixMilli(), spaced(c, &first, show)); err != nil {
			return err
		}
	}
	return nil
}

// spaced leaves a line between two explanations for people.
func spaced(c *cli.Context, first *bool, show func(explanation) error) func(explanation) error {
	return func(e explanation) error {
		if !*first && !c.Bool("json") {
			fmt.Fprintln(c.App.Writer)
		}
		*first = false
		return show(e)
	}
}

// maxExplainInput bounds what is read; bytes.
const maxExplainInput = 64 << 20

func readInputFile(c *cli.Context, given []string) ([]byte, error) {
	in := io.Reader(os.Stdin)
	if len(given) == 1 && given[0] != "-" {
		f, err := os.Open(given[0])
		if err != nil {
			return nil, exit(exitData, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxExplainInput+1))
	if err != nil {
		return nil, exit(exitData, err)
	}
	if len(text) > maxExplainInput {
		return nil, exit(exitData, fmt.Errorf("the input is larger than %d bytes", maxExplainInput))
	}
	return text, nil
}

// input explains the events of one request.
func (x *explainer) input(ctx context.Context, in input, received int64, show func(explanation) error) error {
	projects := x.projects()
	if in.whole {
		if p := x.projectOf(in.Key); p != "" {
			if !slices.Contains(projects, p) {
				return exit(exitData, fmt.Errorf("the request has an API key of project %s, and no sync that is wanted takes its events", p))
			}
			projects = []string{p}
		}
	}
	if len(projects) > 1 {
		return exit(exitUsage, fmt.Errorf("which project does the event come to? Add --project, one of %v, or --sync", projects))
	}
	for _, e := range in.Events {
		out, err := x.event(ctx, projects[0], e, received, in.Uploaded)
		if err != nil {
			return err
		}
		if err := show(out); err != nil {
			return err
		}
	}
	return nil
}

// explainStored explains records that are kept.
func explainStored(c *cli.Context, x *explainer, show func(explanation) error) error {
	sync, from, to, err := readSequences(c.String("seq"))
	if err != nil {
		return err
	}
	q := look{From: from, To: to}
	if sync != "" || c.Bool("dead") {
		if from != to {
			return exit(exitUsage, errors.New("of dead letters one at a time is explained"))
		}
		if q.Dead = x.syncs; sync != "" {
			if q.Dead, err = chooseSyncs(x.g.cfg, []string{sync}); err != nil {
				return err
			}
			x.syncs = q.Dead
		}
	}
	var records []*keptRecord
	if err := x.memory.ask(c.Context, q, func(f found) {
		if f.Record != nil {
			records = append(records, f.Record)
		}
	}); err != nil {
		return err
	}
	if len(records) == 0 && len(q.Dead) > 0 {
		return exit(exitData, fmt.Errorf("no dead letter has the sequence %d: see ampcio dead-letters list", from))
	}
	if len(records) == 0 {
		return exit(exitData, fmt.Errorf("record %s is not in the log: it was never there, or is no longer kept (storage.keep, keep_bytes)", c.String("seq")))
	}
	first := true
	show = spaced(c, &first, show)
	for _, r := range records {
		out, err := x.record(c.Context, r)
		if err != nil {
			return err
		}
		if err := show(out); err != nil {
			return err
		}
	}
	return nil
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
