package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
)

func checkConfigCommand() *cli.Command {
	return &cli.Command{
		Name:        "check-config",
		Usage:       "check the configuration; exit 78 and where on error",
		UsageText:   "ampcio check-config [--config FILE] [--online] [--pending] [--json]",
		Description: "Of an installation that nobody has configured yet it says what to write, ready to be pasted.",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "online", Usage: "also ask Customer.io, and Amplitude, whether region and credentials of each sync are right"},
			&cli.BoolFlag{Name: "pending", Usage: "also show what the rules make of what is pending, and how that would change"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object"},
		},
		Action: checkConfig,
	}
}

func checkConfig(c *cli.Context) error {
	// What is pending can be looked at by somebody who may not read the keys.
	secrets := c.Bool("online") || !c.Bool("pending")
	if err := noArguments(c); err != nil {
		return err
	}
	cfg, err := readConfig(c, secrets)
	if err != nil {
		return checkFailed(c, notFilledIn(c, err))
	}
	if _, err := compileRules(cfg); err != nil {
		return checkFailed(c, err)
	}
	report := checkReport{Config: c.String("config"), Warnings: append([]string{}, cfg.Warnings...), Errors: []checkError{}, Missing: []checkMissing{},
		Syncs: []checkedSync{}, Pending: []pendingVerdicts{}}
	out := c.App.Writer
	if c.Bool("json") {
		out = io.Discard
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	var errs []error
	for _, name := range cfg.Sync.Names() {
		s := cfg.Sync[name]
		key := "key from " + s.APIKeyFrom
		keyless := s.DryRun && (s.SiteID == "" || s.APIKey.IsZero())
		switch {
		case !secrets:
			key = "key not looked at"
		case keyless:
			key = "no key yet, since it is a dry run"
		}
		fmt.Fprintf(out, "sync %s: project %s, region %s, site id %s, %s\n", name, s.Project, s.Region, cmp.Or(s.SiteID, "not given yet"), key)
		report.Syncs = append(report.Syncs, checkedSync{Sync: name, Project: s.Project, Destination: admin.ToCustomerIO, Region: s.Region, SiteID: s.SiteID, KeyFrom: s.APIKeyFrom})
		y := &report.Syncs[len(report.Syncs)-1]
		if !c.Bool("online") {
			continue
		}
		if keyless {
			fmt.Fprintf(out, "sync %s: Customer.io was not asked, since there is no Site ID or API key yet\n", name)
			continue
		}
		account, err := delivery.CheckAccount(c.Context, accountOptions(s))
		if err != nil {
			errs = append(errs, fmt.Errorf("sync %s: %w", name, err))
			y.Agrees, y.Error = new(bool), err.Error()
			continue
		}
		y.Agrees, y.Workspace = new(true), account.EnvironmentID
		fmt.Fprintf(out, "sync %s: Customer.io agrees: region %s, workspace %d\n", name, account.Region, account.EnvironmentID)
	}
	errs = append(errs, checkRelays(c, cfg, out, &report)...)
	if err := errors.Join(errs...); err != nil {
		code := exitConfig
		if e, ok := errors.AsType[*delivery.AccountError](err); ok && !e.Blocked {
			code = exitUnavailable // nobody could be asked: the configuration may be right
		}
		if c.Bool("json") {
			report.fail(err)
			return errors.Join(exit(code, err), tell(c.App.Writer, report))
		}
		return exit(code, err)
	}
	if c.Bool("pending") {
		if err := checkPending(c, cfg, out, &report); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s: ok\n", c.String("config"))
	if report.OK = true; c.Bool("json") {
		return tell(c.App.Writer, report)
	}
	return nil
}

// checkReport is what check-config tells a machine.
type checkReport struct {
	OK       bool              `json:"ok"`
	Config   string            `json:"config"`
	Errors   []checkError      `json:"errors"`
	Missing  []checkMissing    `json:"missing"` // what is still to be written; nothing of it is wrong
	Warnings []string          `json:"warnings"`
	Syncs    []checkedSync     `json:"syncs"`   // and relays
	Pending  []pendingVerdicts `json:"pending"` // with --pending
}

type checkError struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
}

type checkMissing struct {
	Table string `json:"table,omitempty"`
	Text  string `json:"text,omitempty"` // the line to write
	Line  int    `json:"instead_of_line,omitempty"`
	File  string `json:"key_file,omitempty"` // instead: the file that the API key is to be written into
	Where string `json:"where"`              // its value is found
}

type checkedSync struct {
	Sync        string `json:"sync"`
	Project     string `json:"project"`
	Destination string `json:"destination"`
	Region      string `json:"region"`
	SiteID      string `json:"site_id,omitempty"`
	KeyFrom     string `json:"key_from,omitempty"`
	Agrees      *bool  `json:"agrees"` // of the service; null = it was not asked
	Workspace   int64  `json:"workspace,omitempty"`
	Error       string `json:"error,omitempty"`
}

// fail notes every mistake for itself.
func (r *checkReport) fail(err error) {
	missing, _ := config.Unfilled(err)
	for _, m := range missing {
		r.Missing = append(r.Missing, checkMissing{m.Table, m.Text, m.Line, m.KeyFile, m.Where})
	}
	var walk func(error)
	walk = func(err error) {
		if e, is := err.(*config.Error); is {
			r.Errors = append(r.Errors, checkError{e.File, e.Line, e.Path, e.Message})
		} else if several, is := err.(interface{ Unwrap() []error }); is {
			for _, e := range several.Unwrap() {
				walk(e)
			}
		} else if inner := errors.Unwrap(err); inner != nil && inConfigErrors(inner) {
			walk(inner)
		} else {
			r.Errors = append(r.Errors, checkError{Message: err.Error()})
		}
	}
	walk(err)
}

// inConfigErrors says whether there are errors with a place of their own below.
func inConfigErrors(err error) bool {
	_, is := errors.AsType[*config.Error](err)
	if several, many := err.(interface{ Unwrap() []error }); many {
		return is || len(several.Unwrap()) > 1
	}
	return is
}

// checkFailed tells a machine, too, what is wrong with the file.
func checkFailed(c *cli.Context, err error) error {
	if !c.Bool("json") {
		return err
	}
	r := checkReport{Config: c.String("config"), Errors: []checkError{}, Missing: []checkMissing{}, Warnings: []string{}, Syncs: []checkedSync{}, Pending: []pendingVerdicts{}}
	r.fail(err)
	return errors.Join(err, tell(c.App.Writer, r))
}

// checkPending prints what the rules make of what is pending: where the daemon runs, by
// the rules in force and by those of the file.
func checkPending(c *cli.Context, cfg *config.Config, w io.Writer, report *checkReport) error {
	file, err := filepath.Abs(c.String("config"))
	if err != nil {
		return exit(exitUsage, fmt.Errorf("--config: %w", err))
	}
	some := false
	o := operator{cfg: cfg, socket: socketPath(cfg), say: c.App.ErrWriter}
	err = o.do(c.Context, "check-pending", pendingQuestion{Config: file}, func(line []byte) error {
		var p pendingVerdicts
		if err := json.Unmarshal(line, &p); err != nil {
			return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
		}
		some = true
		p.write(w)
		report.Pending = append(report.Pending, p)
		return nil
	})
	if err == nil && !some {
		fmt.Fprintln(w, "nothing is pending: no sync has a ledger yet")
	}
	return err
}

// pendingQuestion asks for verdicts on what is pending.
type pendingQuestion struct {
	Config string `json:"config"` // the file that is meant, absolute
}

func init() { verbs["check-pending"] = checkPendingVerb }

// checkPendingVerb tells the verdicts on what is pending, a line for each sync that is
// in the configuration and has a ledger. It changes nothing.
func checkPendingVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var question pendingQuestion
	if err := readInput(in, &question); err != nil {
		return err
	}
	cfg, rulesOf := h.config(), h.rulesOf
	d, running := h.(*daemon)
	if running {
		if err := d.sameConfig(question.Config); err != nil {
			return err
		}
		g, err := d.read()
		if err != nil {
			return err
		}
		cfg, rulesOf = g.cfg, func(name string) *mapping.Rules { return g.rules[name] }
	}
	names := slices.DeleteFunc(h.names(), func(name string) bool { return !inConfig(cfg, name) })
	for _, name := range names {
		c := h.consumer(name)
		if c == nil {
			continue // it has just been closed
		}
		var before *standard
		if running && inConfig(h.config(), name) {
			before = standardOf(h.config(), name, h.rulesOf(name))
		}
		found, err := survey(ctx, c, surveyFor/time.Duration(len(names)), before, standardOf(cfg, name, rulesOf(name)))
		if err != nil {
			return exit(exitIO, err)
		}
		if err := tell(out, found); err != nil {
			return err
		}
	}
	return nil
}
