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

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
)

func checkConfigCommand() *cli.Command {
	return &cli.Command{
		Name:      "check-config",
		Usage:     "check the configuration; exit 78 and where on error",
		UsageText: "ampcio check-config [--config FILE] [--online] [--pending]",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "online", Usage: "also ask Customer.io, and Amplitude, whether region and credentials of each sync are right"},
			&cli.BoolFlag{Name: "pending", Usage: "also show what the rules make of what is pending, and how that would change"},
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
		return notFilledIn(c, err)
	}
	if _, err := compileRules(cfg); err != nil {
		return err
	}
	out := c.App.Writer
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
			continue
		}
		fmt.Fprintf(out, "sync %s: Customer.io agrees: region %s, workspace %d\n", name, account.Region, account.EnvironmentID)
	}
	errs = append(errs, checkRelays(c, cfg)...)
	if err := errors.Join(errs...); err != nil {
		code := exitConfig
		if e, ok := errors.AsType[*delivery.AccountError](err); ok && !e.Blocked {
			code = exitUnavailable // nobody could be asked: the configuration may be right
		}
		return exit(code, err)
	}
	if c.Bool("pending") {
		if err := checkPending(c, cfg); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s: ok\n", c.String("config"))
	return nil
}

// checkPending prints what the rules make of what is pending: where the daemon runs, by
// the rules in force and by those of the file.
func checkPending(c *cli.Context, cfg *config.Config) error {
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
		p.write(c.App.Writer)
		return nil
	})
	if err == nil && !some {
		fmt.Fprintln(c.App.Writer, "nothing is pending: no sync has a ledger yet")
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
