package scoreboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// Board is a run of trials.
type Board struct {
	Trials  []Trial
	Seed    uint64        // of the whole run: every case's seed comes from it
	Part    float64       // of each trial's Full: 1 is a full run, 0.1 a quick one; 0 = until ctx ends
	Workers int           // cases at a time; 0 = as many as cores, and as many of those that mostly wait
	First   bool          // the run ends at the first violation
	Tell    time.Duration // how often it says how far it is; 0 = never
	Disk    string        // where cases find a real disk; "" = TMPDIR
	Memory  string        // where cases find tmpfs; "" = /dev/shm
	Binary  string
	Apart   bool // each case is a process of its own: what main wants, which calls Main
	Out     io.Writer

	mu     sync.Mutex
	cores  int
	folder string // of what is built
	end    context.CancelFunc
	lines  []*Line
}

// Line is the score of one trial.
type Line struct {
	Trial      string   `json:"trial"`
	Unit       string   `json:"unit"`
	Wanted     int      `json:"wanted"` // 0 = no end
	Done       int      `json:"done"`
	Cases      int      `json:"cases"`
	Seconds    float64  `json:"seconds"` // of all its cases together
	CPU        float64  `json:"cpu"`     // seconds, of cases that are processes of their own
	Lacks      string   `json:"lacks,omitempty"`
	Violations []string `json:"violations"` // with the seeds that show them again

	trial   *Trial
	seeds   *rand.Rand
	dealt   int // done, and what the running cases were expected to do
	running int
	ended   bool
	build   *sync.Once
	built   string // what the trial's Build has made
	unbuilt error
}

// Green says that everything was done and nothing was broken.
func (l *Line) Green() bool {
	return l.Lacks == "" && len(l.Violations) == 0 && l.Done >= l.Wanted && l.Done > 0
}

// violationsEnough end a trial: it is red anyway, and each may take as long as a case may.
const violationsEnough = 3

// Run runs all trials until each has what is wanted of it, or for ever, and prints the board. It returns the lines; a
// context that ends ends the running cases too, and is no violation.
func (b *Board) Run(ctx context.Context) []*Line {
	b.cores = runtime.GOMAXPROCS(0)
	if b.Workers == 0 {
		b.Workers = 2 * b.cores
	}
	var err error
	if b.folder, err = os.MkdirTemp(b.Disk, "faults-built-"); err != nil {
		for i := range b.Trials {
			b.lines = append(b.lines, &Line{Trial: b.Trials[i].Name, Unit: b.Trials[i].Unit, Wanted: 1, Violations: []string{err.Error()}})
		}
		b.print()
		return b.lines
	}
	defer os.RemoveAll(b.folder)
	for i := range b.Trials {
		t := &b.Trials[i]
		l := &Line{Trial: t.Name, Unit: t.Unit, trial: t, seeds: rand.New(rand.NewPCG(b.Seed, hash(t.Name))), Violations: []string{}, build: new(sync.Once)}
		l.Wanted = int(float64(t.Full)*b.Part + 0.999)
		for _, n := range t.Needs {
			if err := n.Has(); err != nil {
				l.Lacks, l.ended = fmt.Sprintf("%s: %v", n.Name, err), true
				break
			}
		}
		b.lines = append(b.lines, l)
	}
	ctx, b.end = context.WithCancel(ctx)
	defer b.end()
	if b.Tell > 0 {
		telling, quiet := context.WithCancel(ctx)
		defer quiet()
		go b.tell(telling)
	}
	var workers sync.WaitGroup
	changed := sync.NewCond(&b.mu)
	stop := context.AfterFunc(ctx, func() { b.mu.Lock(); changed.Broadcast(); b.mu.Unlock() })
	defer stop()
	for range b.Workers {
		workers.Go(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			for ctx.Err() == nil {
				l := b.next()
				if l == nil {
					if !b.busy() {
						changed.Broadcast()
						return
					}
					changed.Wait()
					continue
				}
				b.try(ctx, l)
				changed.Broadcast()
			}
		})
	}
	workers.Wait()
	b.print()
	return b.lines
}

// busy says whether a case is running, whose end may leave more to do.
func (b *Board) busy() bool {
	return slices.ContainsFunc(b.lines, func(l *Line) bool { return l.running > 0 })
}

// next is what to try now. What computes takes as many cases as there are cores, what waits has the other places; where
// one of both has nothing left, the other has its places too.
func (b *Board) next() *Line {
	computing := 0
	for _, l := range b.lines {
		if !l.trial.Waits {
			computing += l.running
		}
	}
	waits := computing >= b.cores
	if l := b.longest(func(t *Trial) bool { return t.Waits == waits }); l != nil {
		return l
	}
	return b.longest(func(*Trial) bool { return true })
}

// longest is the trial with the most still to do, in time as far as that is known, so that all end together; first those
// that have not been tried yet. Where only one case may run at a time, what is left takes as many times as long as it would on
// all cores: such trials begin first, and are no tail. Without an end it is the one that has had the least time.
func (b *Board) longest(of func(*Trial) bool) (best *Line) {
	var most float64
	for _, l := range b.lines {
		if l.ended || !of(l.trial) || l.trial.Alone && l.running > 0 || b.Part > 0 && l.dealt >= l.Wanted {
			continue
		}
		left := 1e12 / float64(l.running+1)
		if l.Done > 0 {
			left = float64(l.Wanted-l.dealt) * l.Seconds / float64(l.Done)
			if b.Part == 0 {
				left = 1e9 / (1 + l.Seconds)
			}
		}
		if l.trial.Alone {
			left *= float64(b.cores)
		}
		if best == nil || left > most {
			best, most = l, left
		}
	}
	return best
}

// try runs one case. The lock is held when it is called and when it returns, and not while the case runs.
func (b *Board) try(ctx context.Context, l *Line) {
	seed := l.seeds.Uint64()
	left := l.Wanted - l.dealt
	if b.Part == 0 {
		left = l.trial.Full
	}
	expected := max(1, min(l.trial.PerCase, left))
	if l.Cases > 0 {
		expected = max(1, l.Done/l.Cases)
	}
	l.dealt += expected
	l.running++
	b.mu.Unlock()
	b.prepare(ctx, l)
	began := time.Now()
	n, cpu, err := b.once(ctx, l, seed, left)
	took := time.Since(began)
	b.mu.Lock()
	l.running--
	if err != nil && ctx.Err() != nil {
		n = 0 // it was cut off: nobody knows what was wrong, so nothing of it was tried
	}
	l.dealt += n - expected
	l.Done += n
	l.Cases++
	l.Seconds += took.Seconds()
	l.CPU += cpu.Seconds()
	if err != nil && ctx.Err() == nil {
		v := fmt.Sprintf("%v\n\tagain: faults/run replay -left %d %s%q %d", err, left, strings.TrimLeft(l.trial.With+" ", " "), l.Trial, seed)
		l.Violations = append(l.Violations, v)
		fmt.Fprintf(b.Out, "VIOLATION in %s: %s\n", l.Trial, v)
		if b.Part > 0 && len(l.Violations) >= violationsEnough {
			l.ended = true
		}
		if b.First {
			b.end()
		}
	} else if n == 0 && err == nil {
		// A trial that tries nothing would go on for ever, or be taken for a good one.
		l.Violations, l.ended = append(l.Violations, fmt.Sprintf("a case tried nothing; seed %d", seed)), true
	}
}

// Replay runs one case of one trial again. It is told that so many units are left to do, as the first time; 0 = as many as in a full run.
func (b *Board) Replay(ctx context.Context, name string, seed uint64, left int) (n int, err error) {
	i := slices.IndexFunc(b.Trials, func(t Trial) bool { return t.Name == name })
	if i < 0 {
		return 0, fmt.Errorf("there is no trial %q; faults/run list shows them", name)
	}
	if left == 0 {
		left = b.Trials[i].Full
	}
	if b.folder, err = os.MkdirTemp(b.Disk, "faults-built-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.folder)) }()
	l := &Line{trial: &b.Trials[i], build: new(sync.Once)}
	b.prepare(ctx, l)
	n, _, err = b.once(ctx, l, seed, left)
	return n, err
}

// prepare has built what all cases of a trial share, before its first: how long a compiler takes says nothing of a case.
func (b *Board) prepare(ctx context.Context, l *Line) {
	l.build.Do(func() {
		if l.trial.Build == nil {
			return
		}
		if l.built, l.unbuilt = os.MkdirTemp(b.folder, "of-"); l.unbuilt == nil {
			l.unbuilt = l.trial.Build(ctx, l.built)
		}
	})
}

// once makes the folders of a case, and lets it live.
func (b *Board) once(ctx context.Context, l *Line, seed uint64, left int) (n int, cpu time.Duration, err error) {
	if l.unbuilt != nil {
		return 0, 0, l.unbuilt
	}
	t := l.trial
	memory := b.Memory
	if memory == "" {
		memory = "/dev/shm"
	}
	j := Job{Trial: t.Name, Seed: seed, Left: left, Binary: b.Binary, Built: l.built}
	if j.Dir, err = os.MkdirTemp(b.Disk, "faults-"); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(j.Dir)) }()
	if j.Memory, err = os.MkdirTemp(memory, "faults-"); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(j.Memory)) }()
	if b.Apart {
		return j.apart(ctx, t.limit(), b.Out)
	}
	n, err = j.here(ctx, t, b.Out)
	return n, 0, err
}

// hash is FNV-1a, so that each trial has chances of its own under one seed.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range []byte(s) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// tell says now and then how far the run is, and what runs.
func (b *Board) tell(ctx context.Context) {
	began := time.Now()
	tick := time.NewTicker(b.Tell)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		line := fmt.Sprintf("%5.0f s", time.Since(began).Seconds())
		for _, l := range b.lines {
			if l.Done < l.Wanted || l.running > 0 || b.Part == 0 {
				line += fmt.Sprintf("  %s %s", l.Trial, humanize.Comma(int64(l.Done)))
			}
			if l.running > 0 {
				line += "…"
			}
		}
		fmt.Fprintln(b.Out, line)
		b.mu.Unlock()
	}
}

// print shows the board as a table: at most 100 columns.
func (b *Board) print() {
	fmt.Fprintf(b.Out, "\n%-28s %12s %12s  %-14s %7s %7s  %s\n", "trial", "done", "wanted", "unit", "seconds", "CPU", "")
	units := map[string]int{}
	for _, l := range b.lines {
		verdict := "green"
		switch {
		case l.Lacks != "":
			verdict = "RED, not tried: " + l.Lacks
		case len(l.Violations) > 0:
			verdict = fmt.Sprintf("RED, %d violations", len(l.Violations))
		case !l.Green():
			verdict = "RED, not all was done"
		}
		wanted := humanize.Comma(int64(l.Wanted))
		if l.Wanted == 0 {
			wanted = "-"
		}
		fmt.Fprintf(b.Out, "%-28s %12s %12s  %-14s %7.0f %7.0f  %s\n", l.Trial, humanize.Comma(int64(l.Done)), wanted, l.Unit, l.Seconds, l.CPU, verdict)
		units[l.Unit] += l.Done
	}
	var all []string
	for _, u := range slices.Sorted(maps.Keys(units)) {
		all = append(all, humanize.Comma(int64(units[u]))+" "+u)
	}
	fmt.Fprintf(b.Out, "\n%s; seed %d\n", strings.Join(all, ", "), b.Seed)
}

// WriteJSON writes the board for machines.
func WriteJSON(w io.Writer, seed uint64, lines []*Line) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Seed  uint64  `json:"seed"`
		Lines []*Line `json:"lines"`
	}{seed, lines})
}
