package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"ampcio/delivery"
)

func checkConfigCommand() *cli.Command {
	return &cli.Command{
		Name:      "check-config",
		Usage:     "check the configuration; exit 78 and where on error",
		UsageText: "ampcio check-config [--config FILE] [--online]",
		Flags: []cli.Flag{configFlag,
			&cli.BoolFlag{Name: "online", Usage: "also ask Customer.io whether region and credentials of each sync are right"},
			&cli.BoolFlag{Name: "pending", Usage: "not yet: how verdicts on the queue would change", Hidden: true},
		},
		Action: checkConfig,
	}
}

func checkConfig(c *cli.Context) error {
	if c.Bool("pending") {
		return exit(exitUsage, errors.New("check-config --pending: not yet: this version of ampcio does not have it"))
	}
	cfg, err := loadConfig(c, true)
	if err != nil {
		return err
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
		fmt.Fprintf(out, "sync %s: project %s, region %s, site id %s, key from %s\n", name, s.Project, s.Region, s.SiteID, s.APIKeyFrom)
		if !c.Bool("online") {
			continue
		}
		account, err := delivery.CheckAccount(c.Context, accountOptions(s))
		if err != nil {
			errs = append(errs, fmt.Errorf("sync %s: %w", name, err))
			continue
		}
		fmt.Fprintf(out, "sync %s: Customer.io agrees: region %s, workspace %d\n", name, account.Region, account.EnvironmentID)
	}
	if err := errors.Join(errs...); err != nil {
		code := exitConfig
		if e, ok := errors.AsType[*delivery.AccountError](err); ok && !e.Blocked {
			code = exitUnavailable // Customer.io could not be asked: the configuration may be right
		}
		return exit(code, err)
	}
	fmt.Fprintf(out, "%s: ok\n", c.String("config"))
	return nil
}
