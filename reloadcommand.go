package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"ampcio/config"
	"ampcio/queue"
)

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:      "reload",
		Usage:     "put a changed configuration in force while ampcio runs",
		UsageText: "ampcio reload [--config FILE] [--dry-run] [--yes] [--json]",
		Description: "The daemon reads its configuration file again and puts all of it in force, or nothing: on an error what\n" +
			"was in force stays. Only syncs that have changed are touched, and nothing is lost or reordered. SIGHUP does\n" +
			"the same, never with --yes. It says which keys need a restart.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would change"},
			&cli.BoolFlag{Name: "yes", Usage: "also when most of what is pending would be filtered by the new rules"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			o, err := newOperator(c)
			if err != nil {
				return err
			}
			file, err := filepath.Abs(c.String("config"))
			if err != nil {
				return exit(exitUsage, fmt.Errorf("--config: %w", err))
			}
			body, err := json.Marshal(reloadQuestion{Config: file, Yes: c.Bool("yes"), DryRun: c.Bool("dry-run")})
			if err != nil {
				return err
			}
			// A broken file is for the daemon to refuse, in the same words.
			err = askDaemon(c.Context, o.socket, "reload", body, func(line []byte) error {
				var report reloadReport
				if err := json.Unmarshal(line, &report); err != nil {
					return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
				}
				if !c.Bool("json") {
					if !report.Refused { // else the error says why, and that is all
						report.write(c.App.Writer)
					}
					return nil
				}
				e := json.NewEncoder(c.App.Writer)
				e.SetIndent("", "  ")
				return e.Encode(report)
			})
			switch {
			case !notRunning(err):
			case o.broken != nil:
				return o.broken
			default:
				return nothingToReload(o.cfg)
			}
			return err
		},
	}
}

// nothingToReload is the answer where no daemon can be asked.
func nothingToReload(cfg *config.Config) error {
	if _, _, err := queue.Inspect(cfg.Storage.Dir); errors.Is(err, queue.ErrLocked) {
		return filesError(cfg, err)
	}
	return exit(exitUnavailable, errors.New("ampcio does not run, so there is nothing to reload: it reads the configuration when it starts"))
}

// reloadQuestion asks for a reload.
type reloadQuestion struct {
	Config string `json:"config"` // the file that is meant, absolute
	Yes    bool   `json:"yes"`
	DryRun bool   `json:"dry_run"`
}

func init() { verbs["reload"] = reloadVerb }

// reloadVerb reloads and tells the report; also that of a reload that was refused since it
// would filter most of what is pending, and then the error.
func reloadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var question reloadQuestion
	if err := readInput(in, &question); err != nil {
		return err
	}
	d, running := h.(*daemon)
	if !running {
		return nothingToReload(h.config())
	}
	if err := d.sameConfig(question.Config); err != nil {
		return err
	}
	return d.operate(func() error {
		report, err := reloadReport{}, error(nil)
		if question.DryRun {
			ctx, cancel := d.runs.whileFlowing(ctx)
			defer cancel()
			_, report, err = d.compare(ctx)
			report.DryRun = true
		} else {
			report, err = d.reload(ctx, question.Yes)
		}
		if err != nil && !report.Refused {
			return err
		}
		return errors.Join(tell(out, report), err)
	})
}

const wantsYes = "Without --yes that is refused"

// write prints the report for a person.
func (r *reloadReport) write(w io.Writer) {
	done := "is in force"
	if r.DryRun {
		done = "would be put in force"
	}
	if len(r.Syncs) == 0 && len(r.Changed) == 0 && !r.Certificate {
		fmt.Fprintf(w, "%s: nothing has changed that can change while ampcio runs\n", r.Config)
	} else {
		fmt.Fprintf(w, "%s %s\n", r.Config, done)
	}
	for _, y := range r.Syncs {
		fmt.Fprintf(w, "  sync %s: %s", y.Name, y.Change)
		if len(y.Keys) > 0 {
			fmt.Fprintf(w, " (%s)", strings.Join(y.Keys, ", "))
		}
		fmt.Fprintln(w)
	}
	if len(r.Changed) > 0 {
		fmt.Fprintf(w, "  %s\n", strings.Join(r.Changed, ", "))
	}
	if r.Certificate {
		fmt.Fprintln(w, "  another certificate, of the files that server.tls_cert and tls_key name")
	}
	if len(r.Restart) > 0 {
		fmt.Fprintf(w, "needs a restart, and is as before until then: %s\n", strings.Join(r.Restart, ", "))
	}
	for i := range r.Pending {
		if p := &r.Pending[i]; p.NewlyFiltered > 0 {
			would := "will"
			if r.DryRun {
				would = "would"
			}
			text := p.loss(would)
			if r.DryRun && p.tooMany() {
				text += ". " + wantsYes
			}
			fmt.Fprintln(w, text)
		}
	}
	for _, warning := range r.Warnings {
		fmt.Fprintln(w, "warning:", warning)
	}
}
