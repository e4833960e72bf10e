package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
)

// asInstalled gives a mistake in a configuration an exit code of its own where the file
// is still the example, so that systemd does not start an installation again and again
// that nobody has configured. A file with a mistake that somebody has made is tried every
// 2 s, so that it works as soon as it is mended.
func asInstalled(file string, err error) error {
	text, readErr := os.ReadFile(file)
	if readErr != nil || string(text) != configExample && string(text) != packagedConfig() {
		return err
	}
	return exit(exitUnconfigured, fmt.Errorf(`ampcio is not configured yet: %s is as it was installed.
%w
Fill in these values, look them over (ampcio check-config --online), and start it again`, file, err))
}

// packagedConfig is the configuration that a package installs: what a person fills in, and
// no more, so that it stays the same over versions. dpkg asks at every upgrade that brings
// another one, and fails where nobody is there to answer.
func packagedConfig() string {
	fillIn, _, _ := strings.Cut(configExample, "# ---- ")
	return fillIn + "# That is all you need. Every other key, with its default: man ampcio.toml, or\n" +
		"# /usr/share/doc/ampcio/examples/config.toml\n"
}

// packageCommand is what the scripts of the Debian package ask, at moments when only the
// program knows the answer.
func packageCommand() *cli.Command {
	return &cli.Command{
		Name: "package", Hidden: true, Usage: "for the scripts of the package",
		Subcommands: []*cli.Command{
			{
				// Keys are not looked at: only the service may have them.
				Name: "check", Usage: "exit 0 when this version takes the configuration, 66 when it is the example",
				Flags: []cli.Flag{configFlag},
				Action: func(c *cli.Context) error {
					cfg, err := loadConfig(c, false)
					if err == nil {
						_, err = compileRules(cfg)
					}
					if err != nil {
						return asInstalled(c.String("config"), err)
					}
					return nil
				},
			},
			{
				Name: "config", Usage: "the configuration as it is installed",
				Action: func(c *cli.Context) error {
					_, err := io.WriteString(c.App.Writer, packagedConfig())
					return err
				},
			},
			{
				Name: "left", Usage: "what a removal of the storage folder would lose",
				Flags: []cli.Flag{configFlag}, Action: packageLeft,
			},
		},
	}
}

// packageLeft prints the storage folder, what is pending there and how many dead letters
// are kept. It fails where that cannot be known.
func packageLeft(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	o, err := newOperator(c)
	if err != nil {
		return err
	}
	var snap admin.Snapshot
	_, err = os.Stat(o.cfg.Storage.Dir)
	if never := errors.Is(err, fs.ErrNotExist) && o.broken == nil; !never {
		if snap, err = o.takeSnapshot(c.Context, &statsQuestion{}); err != nil {
			return err
		}
	}
	pending, dead := uint64(0), uint64(0)
	for _, s := range snap.Syncs {
		if s.LedgerDamaged {
			return exit(exitIO, fmt.Errorf("the ledger of sync %s is damaged: what is pending is unknown", s.Name))
		}
		pending += s.Depth.Ready + s.Depth.InFlight + s.Depth.Retry + s.Depth.Held
		dead += s.Kept.Count
	}
	_, err = fmt.Fprintf(c.App.Writer, "storage %s\npending %d\ndead %d\n", o.cfg.Storage.Dir, pending, dead)
	return err
}
