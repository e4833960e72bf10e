package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/urfave/cli/v2"

	"ampcio/sandbox"
)

func sandboxCommand() *cli.Command {
	flags := []cli.Flag{&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` to listen on", Value: "127.0.0.1:8090"}}
	for _, f := range sandbox.Flags() {
		if f.Bool {
			flags = append(flags, &cli.BoolFlag{Name: f.Name, Usage: f.Usage})
		} else {
			flags = append(flags, &cli.StringFlag{Name: f.Name, Usage: f.Usage})
		}
	}
	return &cli.Command{
		Name:  "sandbox",
		Usage: "run a local Customer.io for rehearsals; it prints its report when it is stopped",
		Flags: flags,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return exit(exitUsage, fmt.Errorf("sandbox takes no arguments: %q", c.Args().First()))
			}
			var o sandbox.Options
			for _, f := range sandbox.Flags() {
				if !c.IsSet(f.Name) {
					continue
				}
				value := c.String(f.Name)
				if f.Bool {
					value = fmt.Sprint(c.Bool(f.Name))
				}
				if err := f.Set(&o, value); err != nil {
					return exit(exitUsage, fmt.Errorf("--%s: %w", f.Name, err))
				}
			}
			l, err := net.Listen("tcp", c.String("listen"))
			if err != nil {
				return exit(exitUnavailable, err)
			}
			s := sandbox.New(o)
			fmt.Fprintf(c.App.ErrWriter, "sandbox Customer.io on http://%s (report: /_sandbox/report, people: /_sandbox/people)\n", l.Addr())
			err = sandbox.Serve(c.Context, l, s)
			report, encodeErr := json.MarshalIndent(s.Report(), "", "  ")
			fmt.Fprintf(c.App.Writer, "%s\n", report)
			return errors.Join(err, encodeErr)
		},
	}
}
