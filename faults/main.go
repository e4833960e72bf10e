// Command faults tries ampcio's promise: no loss, no doubles, in order. See README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ampcio-faults/bitrot"
	"ampcio-faults/boot"
	"ampcio-faults/child"
	"ampcio-faults/clocks"
	"ampcio-faults/destination"
	"ampcio-faults/disk"
	"ampcio-faults/kills"
	"ampcio-faults/model"
	"ampcio-faults/planted"
	"ampcio-faults/power"
	"ampcio-faults/scoreboard"
	"ampcio-faults/senders"
)

// Exit codes: 1 = a promise was broken, or not everything was done; 3 = nothing was broken, but the machine lacks
// what some trials need; 64 = wrong use.
const (
	exitViolation = 1
	exitLacks     = 3
	exitUsage     = 64
)

const usage = `faults/run quick|full|soak [-only NAME,…] [-seed N]   try everything: a tenth, all, or until Ctrl-C
faults/run replay [-left N] NAME SEED                  one case again, as a violation names it
faults/run list                                        the trials

-part 0.03 tries that part of everything; -only takes parts of names; -bugs hunts the planted bugs of these names, and does nothing else; -first ends at the first violation, -workers N tries N cases at a time (as many as cores, and as many of those that mostly wait);
-json FILE also writes the scoreboard there.
`

// trials are all lines of the scoreboard, from the disk to the whole.
func trials() []scoreboard.Trial {
	return slices.Concat(power.Trials(), disk.Trials(), bitrot.Trials(), kills.Trials(), destination.Trials(), senders.Trials(), clocks.Trials(), boot.Trials(),
		model.Trials(), planted.Trials())
}

func main() {
	scoreboard.Main(trials)
	child.Main() // does not return in a process that a trial has started for a part of its work
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	flags := flag.NewFlagSet("faults/run", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	only := flags.String("only", "", "")
	seed := flags.Uint64("seed", rand.Uint64()>>1, "")
	asJSON := flags.String("json", "", "")
	first := flags.Bool("first", false, "")
	workers := flags.Int("workers", 0, "")
	left := flags.Int("left", 0, "")
	given := flags.Float64("part", 0, "")
	units := flags.Int("units", 0, "") // of each trial, instead of a part of all: for planted bugs
	hunted := flags.String("bugs", "", "")
	binary := flags.String("binary", "", "") // an ampcio that is already built: for planted bugs
	verb := args[0]
	if err := flags.Parse(args[1:]); err != nil {
		return exitUsage
	}
	parts := map[string]float64{"quick": 0.1, "full": 1, "soak": 0, "replay": 1}
	if *hunted != "" {
		var err error
		if *only, err = planted.Choose(*hunted); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return exitUsage
		}
		parts["quick"] = 1 // who names them wants them all
	}
	all := trials()
	if *only != "" {
		all = slices.DeleteFunc(all, func(t scoreboard.Trial) bool {
			return !slices.ContainsFunc(strings.Split(*only, ","), func(part string) bool { return strings.Contains(t.Name, part) })
		})
		if len(all) == 0 {
			fmt.Fprintf(os.Stderr, "no trial has %q in its name; faults/run list shows them\n", *only)
			return exitUsage
		}
	}
	part, known := parts[verb]
	if *given > 0 && part > 0 {
		part = *given
	}
	switch {
	case verb == "list":
		for _, t := range all {
			fmt.Printf("%-28s %9d %-14s %s\n", t.Name, t.Full, t.Unit, t.Fault)
		}
		return 0
	case !known, verb == "replay" && flags.NArg() != 2, verb != "replay" && flags.NArg() > 0:
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	for i := range all {
		if *units > 0 {
			all[i].Full = min(all[i].Full, *units)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *binary == "" {
		folder, err := os.MkdirTemp("", "faults-binary-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return exitViolation
		}
		defer os.RemoveAll(folder)
		*binary = filepath.Join(folder, "ampcio")
		build := exec.CommandContext(ctx, "go", "build", "-C", "..", "-ldflags", "-s -w", "-o", *binary, ".") // nobody debugs it: half the time of a link
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build ampcio: %v\n%s", err, out)
			return exitViolation
		}
	}
	board := scoreboard.Board{Trials: all, Seed: *seed, Part: part, Binary: *binary, Out: os.Stdout, First: *first, Workers: *workers, Tell: time.Minute, Apart: true}
	if verb == "replay" {
		s, err := strconv.ParseUint(flags.Arg(1), 10, 64)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%q is no seed\n", flags.Arg(1))
			return exitUsage
		}
		n, err := board.Replay(ctx, flags.Arg(0), s, *left)
		if err != nil {
			fmt.Println(err)
			return exitViolation
		}
		fmt.Printf("%d tried, nothing broken\n", n)
		return 0
	}
	began := time.Now()
	fmt.Printf("seed %d\n", *seed)
	lines := board.Run(ctx)
	fmt.Printf("%.0f s\n", time.Since(began).Seconds())
	if *asJSON != "" {
		if err := writeBoard(*asJSON, *seed, lines); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return exitViolation
		}
	}
	code := 0
	for _, l := range lines {
		switch {
		case l.Green():
		case l.Lacks != "":
			code = max(code, exitLacks)
		case len(l.Violations) > 0 || part > 0:
			return exitViolation
		}
	}
	return code
}

func writeBoard(path string, seed uint64, lines []*scoreboard.Line) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := scoreboard.WriteJSON(f, seed, lines); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}
