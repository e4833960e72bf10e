// Package child runs parts of a trial in a process of their own: one that is killed, or whose disk goes away under it.
package child

import (
	"fmt"
	"os"
	"os/exec"
)

// variable names the work of a process that is a child; its arguments are those of the command line.
const variable = "AMPCIO_FAULTS_CHILD"

var works = map[string]func(args []string) error{}

// Register names a work. It is called by a package's init.
func Register(name string, work func(args []string) error) { works[name] = work }

// Main does the work of a child and ends the process, in a process that is one. It is the first thing that main, and the
// TestMain of a package with works, does.
func Main() {
	name, is := os.LookupEnv(variable)
	if !is {
		return
	}
	// Not for the children of this one.
	if err := os.Unsetenv(variable); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	work := works[name]
	if work == nil {
		fmt.Fprintf(os.Stderr, "there is no work called %q\n", name)
		os.Exit(2)
	}
	if err := work(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Command is a process of this program that does a work.
func Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), Environment(name))
	return cmd
}

// Environment is the variable that makes a process of this program do a work.
func Environment(name string) string { return variable + "=" + name }
