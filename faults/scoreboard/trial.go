// Package scoreboard runs trials of faults, as many at a time as there are cores, and keeps the score.
package scoreboard

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"
)

// A Trial is a line of the scoreboard: one kind of fault, tried again and again with other seeds.
type Trial struct {
	Name  string // as on the board, and for -only: "crash images"
	Fault string // what happens and what must hold, as the README's table says it
	Unit  string // what is counted: "images", "kills"
	Full  int    // how many in a full run; a quick run has a tenth

	// Needs name what the machine must have. What it lacks makes the line red.
	Needs []Need
	// With are flags that a replay needs, if this is not all of the trial.
	With string
	// Alone is of a trial of which only one case may run at a time: it has ports, mounts or machines of its own.
	Alone bool
	// PerCase is how many units a case makes where it is left so many: before the first has ended no more cases are begun than
	// are wanted. 0 = one.
	PerCase int
	// Waits is of a trial whose cases mostly wait: for a machine that boots, for seconds to pass. They run beside those that
	// keep the cores busy.
	Waits bool
	// Build, if there is one, makes what all cases share, in a folder: once, before the first, and outside of its limit.
	Build func(ctx context.Context, folder string) error
	// Limit is how long one case may take; a case that takes longer hangs, which is a violation. 0 = two minutes.
	Limit time.Duration
	// Case tries once what its seed says, and gives how many units that was. An error is a violation: a promise that was
	// broken, or a trial that could not be made; neither is ever green. The same seed does the same again.
	Case func(ctx context.Context, c *Case) (n int, err error)
}

func (t *Trial) limit() time.Duration {
	if t.Limit == 0 {
		return 2 * time.Minute
	}
	return t.Limit
}

// Case is what one case of a trial may use.
type Case struct {
	Seed   uint64
	Rand   *rand.Rand // chance of the case: from Seed
	Left   int        // how many units are still wanted: a case that can choose its size does no more
	Dir    string     // an empty folder on a real disk, removed afterwards
	Memory string     // an empty folder in memory (tmpfs), removed afterwards
	Binary string     // the built ampcio
	Built  string     // the folder in which the trial's Build was
	note   func(string)
}

// Note says something about this case that is worth a line of the log: the seed is named there too.
func (c *Case) Note(format string, args ...any) { c.note(fmt.Sprintf(format, args...)) }

// Ampcio is a command that runs the built binary with nothing of this process's environment but PATH, HOME, TMPDIR and the planted bug.
func (c *Case) Ampcio(args ...string) *exec.Cmd {
	cmd := exec.Command(c.Binary, args...)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", PlantedBug} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

// PlantedBug is the variable of the environment that wakes one of the planted bugs, in binaries that have them.
const PlantedBug = "AMPCIO_PLANTED_BUG"

// PlantedSource is the variable that names the overlay with which those binaries were built.
const PlantedSource = "AMPCIO_PLANTED_SOURCE"

// Planted gives the files of the product that have planted bugs, by the path of the file that each stands for; none
// where nothing is planted. Who builds an ampcio of its own builds it of these.
func Planted() (map[string]string, error) {
	path, is := os.LookupEnv(PlantedSource)
	if !is {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var overlay struct{ Replace map[string]string }
	if err := json.Unmarshal(text, &overlay); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return overlay.Replace, nil
}

// Need is something that a machine may lack.
type Need struct {
	Name string
	Has  func() error // nil = it is there
}

// Needs that several trials have.
var (
	Root = Need{"root", func() error {
		if os.Geteuid() != 0 {
			return fmt.Errorf("it must be run by root")
		}
		return nil
	}}
	FUSE = Need{"FUSE", func() error {
		f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}}
)

// Command is the need of a program, and of the Debian package that has it.
func Command(name, debian string) Need {
	return Need{name, func() error {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is not installed (apt-get install %s)", name, debian)
		}
		return nil
	}}
}
