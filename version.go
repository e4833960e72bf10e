package main

import (
	"fmt"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// build says which ampcio this is, as the Go toolchain recorded it.
type build struct{ version, commit, time, golang string }

func version() build {
	b := build{version: "(devel)"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.golang = info.GoVersion
	if info.Main.Version != "" {
		b.version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value[:min(12, len(s.Value))]
		case "vcs.time":
			b.time = s.Value
		}
	}
	return b
}

func (b build) String() string {
	s := "ampcio " + b.version
	if b.commit != "" {
		s += " commit " + b.commit + " of " + b.time
	}
	return s + " built with " + b.golang
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print version, commit and toolchain", UsageText: "ampcio version [--json]",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "one JSON object"}},
		Action: func(c *cli.Context) error {
			if c.Bool("json") {
				v := version()
				return tell(c.App.Writer, struct {
					Version string `json:"version"`
					Commit  string `json:"commit"`
					Time    string `json:"time"`
					Go      string `json:"go"`
				}{v.version, v.commit, v.time, v.golang})
			}
			_, err := fmt.Fprintln(c.App.Writer, version())
			return err
		},
	}
}
