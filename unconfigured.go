package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ampcio/config"
)

// notFilledIn is the error of a configuration that is not wrong, but not written yet: what
// to write, ready to be pasted. Any other error is as it was.
func notFilledIn(c *cli.Context, err error) error {
	file := c.String("config")
	if path, absErr := filepath.Abs(file); absErr == nil {
		file = path
	}
	there := "is not filled in yet"
	if _, statErr := os.Stat(file); errors.Is(err, fs.ErrNotExist) && errors.Is(statErr, fs.ErrNotExist) {
		there = "is not there yet"
		err = exit(exitConfig, config.Blank(file, config.Environment{Getenv: os.Getenv}))
	}
	missing, only := config.Unfilled(err)
	if !only {
		return err
	}
	sudo := os.Getenv("SUDO_USER") != "" || os.Geteuid() != 0 && unix.Access(filepath.Dir(file), unix.W_OK) != nil
	again := "ampcio check-config --online"
	if file != configFlag.Value {
		again += " --config " + file
	}
	return exit(exitConfig, &unconfigured{err, fmt.Sprintf("%s %s. %s", file, there, toWrite(missing, again, sudo))})
}

// unconfigured says what to write; it wraps what is missing, by its places.
type unconfigured struct {
	error
	text string
}

func (u *unconfigured) Error() string { return u.text }
func (u *unconfigured) Unwrap() error { return u.error }

// toWrite are the lines to write, in the order of the file, and what goes into other files.
// With sudo the commands are for somebody who may not write there: a redirection of their
// own shell would be refused.
func toWrite(missing []config.Missing, again string, sudo bool) string {
	var out strings.Builder
	var lines, files []config.Missing
	for _, m := range missing {
		if m.KeyFile != "" {
			files = append(files, m)
			continue
		}
		lines = append(lines, m)
	}
	table := ""
	for i, m := range lines {
		if i == 0 {
			out.WriteString("Write there:\n")
		}
		if m.Table != table {
			table = m.Table
			out.WriteString("\n")
			if m.Header != "" {
				fmt.Fprintln(&out, m.Header)
			} else {
				fmt.Fprintf(&out, "# under [%s]:\n", m.Table)
			}
		}
		instead := ""
		if m.Line > 0 {
			instead = fmt.Sprintf("   # instead of line %d", m.Line)
		}
		fmt.Fprintf(&out, "# %s\n%s%s\n", m.Where, m.Text, instead)
	}
	files = slices.CompactFunc(files, func(a, b config.Missing) bool { return a.KeyFile == b.KeyFile })
	for i, m := range files {
		what := "Write"
		if len(lines) > 0 || i > 0 {
			what = "\nAnd write"
		}
		path, err := filepath.Abs(m.KeyFile)
		if err != nil {
			path = m.KeyFile
		}
		command := fmt.Sprintf("(umask 077; cat > %s)", path)
		if sudo {
			command = fmt.Sprintf("sudo sh -c 'umask 077; cat > %s'", path)
		}
		fmt.Fprintf(&out, "%s the API key beside that Site ID into a file. Paste it, Enter, Ctrl-D:\n\n# %s\n%s\n", what, m.Where, command)
	}
	if sudo {
		again = "sudo " + again
	}
	fmt.Fprint(&out, "\nThen again: ", again)
	return out.String()
}
