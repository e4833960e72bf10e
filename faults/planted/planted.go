// Package planted holds bugs that the other trials must find: a check that cannot fail is worth nothing.
package planted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ampcio-faults/scoreboard"
)

const trialName = "planted bugs"

// variable names the bugs that are hunted, where not all are: the process of a case must know them too.
const variable = "AMPCIO_FAULTS_BUGS"

// Choose lets only these bugs be hunted, whose names stand behind each other with commas between, and gives the name of the trial.
func Choose(names string) (trial string, err error) {
	for name := range strings.SplitSeq(names, ",") {
		if !slices.ContainsFunc(bugs, func(b bug) bool { return b.name == name }) {
			var all []string
			for _, b := range bugs {
				all = append(all, b.name)
			}
			slices.Sort(all)
			return "", fmt.Errorf("no bug %q is planted; there are %s", name, strings.Join(all, ", "))
		}
	}
	return trialName, os.Setenv(variable, names)
}

// chosen are the bugs that are hunted.
func chosen() []bug {
	names, some := os.LookupEnv(variable)
	if !some {
		return slices.Clone(bugs)
	}
	return slices.DeleteFunc(slices.Clone(bugs), func(b bug) bool { return !slices.Contains(strings.Split(names, ","), b.name) })
}

// with is what a replay must be told of what was chosen.
func with() string {
	if names, some := os.LookupEnv(variable); some {
		return "-bugs " + names
	}
	return ""
}

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: trialName, Unit: "bugs", Full: len(chosen()), With: with(), PerCase: len(bugs), Alone: true, Limit: time.Hour, Case: hunts,
		Fault: "a mistake is made in the source; the trial that is there for it sees it, and sees nothing while the mistake sleeps",
	}}
}

// hunts builds the product and the trials with all bugs in them, and wakes one after the other: as many as are wanted, by
// chance which.
func hunts(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	h := hunt{folder: c.Dir}
	if h.ampcio, h.faults, h.overlay, err = build(ctx, "..", c.Dir, bugs); err != nil {
		return 0, err
	}
	some := chosen()
	c.Rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	some = some[:min(len(some), c.Left)]
	tried := map[string]int{} // trials, and how many units the longest of their hunts took
	var order []string
	for _, b := range some {
		seed := c.Rand.Uint64() >> 1
		if b.seed > 0 {
			seed = b.seed
		}
		l, problem := h.wake(ctx, &b, seed)
		switch {
		case ctx.Err() != nil:
			return n, context.Cause(ctx)
		case problem != nil:
			err = errors.Join(err, fmt.Errorf("planted bug %s (%s): %w", b.name, b.what, problem))
		default:
			c.Note("%s is found by %q after %d %s: %s", b.name, b.trial, l.Done, l.Unit, firstLine(l.Violations[0]))
		}
		n++
		if !slices.Contains(order, b.trial) {
			order = append(order, b.trial)
		}
		tried[b.trial] = max(tried[b.trial], l.Done)
	}
	// What finds bugs where none is awake has found nothing.
	for _, trial := range order {
		if problem := h.asleep(ctx, trial, tried[trial], c.Rand.Uint64()>>1); problem != nil {
			err = errors.Join(err, fmt.Errorf("%q with all planted bugs asleep: %w", trial, problem))
		}
	}
	return n, err
}

// fewest units of a run in which nothing may be found.
const fewest = 10

// enough is what each bug of a trial is found in, several times over: units of the trial. A bug that is not is a hole, and is told as one in
// minutes and not hours.
var enough = map[string]int{
	"crash images": 50_000, "power cuts": 300, "ext4 cuts": 100, "I/O errors": 3000, "forgetful fsync": 750, "disk full": 100, "bit flips": 5000,
	"kill -9": 600, "destination": 500, "backlog": 60_000, "malformed requests": 50_000, "hostile senders": 35, "clocks": 100,
	"systemd faults": 46, "socket restarts": 40, "model": 5000,
}

// hunt runs the trials that have the bugs in them, in processes of their own.
type hunt struct{ folder, ampcio, faults, overlay string }

// wake runs a bug's trial, on one core, up to the first violation. There being none in what should be enough is an error.
func (h *hunt) wake(ctx context.Context, b *bug, seed uint64) (scoreboard.Line, error) {
	board := filepath.Join(h.folder, "board.json")
	if err := os.RemoveAll(board); err != nil {
		return scoreboard.Line{}, err
	}
	out, err := h.run(ctx, b.name, "full", "-units", strconv.Itoa(enough[b.trial]), "-only", b.trial, "-first", "-workers", "1",
		"-seed", strconv.FormatUint(seed, 10), "-binary", h.ampcio, "-json", board)
	again := fmt.Sprintf("\n\twith faults/run full -units %d -only %q -seed %d", enough[b.trial], b.trial, seed)
	text, unread := os.ReadFile(board)
	if unread != nil {
		return scoreboard.Line{}, fmt.Errorf("%q kept no score: %w\n%s%s", b.trial, err, out, again)
	}
	var score struct{ Lines []scoreboard.Line }
	if err := json.Unmarshal(text, &score); err != nil {
		return scoreboard.Line{}, fmt.Errorf("the score of %q: %w", b.trial, err)
	}
	done := 0
	for _, l := range score.Lines {
		if l.Lacks != "" {
			return l, fmt.Errorf("%q cannot be tried: %s", l.Trial, l.Lacks)
		}
		if len(l.Violations) > 0 {
			return l, nil
		}
		done += l.Done
	}
	return scoreboard.Line{}, fmt.Errorf("%q has not found it after %d%s", b.trial, done, again)
}

// asleep runs one case of a trial while no bug is awake, of as many units as found one, if a case can have so many.
func (h *hunt) asleep(ctx context.Context, trial string, units int, seed uint64) error {
	out, err := h.run(ctx, "", "replay", "-binary", h.ampcio, "-left", strconv.Itoa(max(units, fewest)), trial, strconv.FormatUint(seed, 10))
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// run is one process. Asked to end, it cleans up behind its cases.
func (h *hunt) run(ctx context.Context, bug string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, h.faults, args...)
	c.Env = append(os.Environ(), scoreboard.PlantedBug+"="+bug, scoreboard.PlantedSource+"="+h.overlay)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = time.Minute
	return c.CombinedOutput()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "") + "…"
	}
	return line
}
