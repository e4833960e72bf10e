package scoreboard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ran runs trials with small folders, and gives their lines and what was printed.
func ran(t *testing.T, b *Board) ([]*Line, string) {
	t.Helper()
	var out bytes.Buffer
	b.Out, b.Disk, b.Memory = &out, t.TempDir(), t.TempDir()
	lines := b.Run(t.Context())
	for _, folder := range []string{b.Disk, b.Memory} {
		if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	return lines, out.String()
}

// counts is a case that counts so many units.
func counts(n int) func(context.Context, *Case) (int, error) {
	return func(context.Context, *Case) (int, error) { return n, nil }
}

func TestWhatIsGreen(t *testing.T) {
	broken := errors.New("an event is lost")
	for _, test := range []struct {
		name  string
		trial Trial
		says  string
		green bool
	}{
		{"all done", Trial{Case: counts(3)}, "green", true},
		{"more done than wanted", Trial{Case: counts(100)}, "green", true},
		{"a violation", Trial{Case: func(context.Context, *Case) (int, error) { return 5, broken }}, "RED, 1 violations", false},
		{"violations end a trial", Trial{Case: func(context.Context, *Case) (int, error) { return 1, broken }}, "RED, 3 violations", false},
		{"a panic", Trial{Case: func(context.Context, *Case) (int, error) { panic("index out of range") }}, "RED, 1 violations", false},
		{"nothing tried", Trial{Case: counts(0)}, "RED, 1 violations", false},
		{"the machine lacks something", Trial{Case: counts(10), Needs: []Need{{"a moon", func() error { return errors.New("there is none") }}}},
			"RED, not tried: a moon: there is none", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.trial.Name, test.trial.Unit, test.trial.Full = "x", "tries", 50
			lines, out := ran(t, &Board{Trials: []Trial{test.trial}, Part: 0.1, Workers: 1})
			if lines[0].Green() != test.green || !strings.Contains(out, test.says+"\n") && test.name != "a panic" {
				t.Errorf("green: %v; printed:\n%s", lines[0].Green(), out)
			}
		})
	}
}

// A context that ends makes nothing green, and is no violation: a case that was cut off may have been about to fail, so it counts for nothing.
func TestEndedBeforeItsTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	b := Board{Part: 1, Workers: 2, Out: &bytes.Buffer{}, Disk: t.TempDir(), Memory: t.TempDir(), Trials: []Trial{{Name: "x", Full: 1000,
		Case: func(ctx context.Context, c *Case) (int, error) {
			cancel()
			<-ctx.Done()
			return 1000, context.Cause(ctx)
		}}}}
	l := b.Run(ctx)[0]
	if l.Green() || len(l.Violations) > 0 || l.Done > 0 {
		t.Errorf("%+v", l)
	}
}

// The case that a violation names is the same again, and only that one.
func TestAViolationReplays(t *testing.T) {
	odd := errors.New("odd")
	trial := Trial{Name: "x y", Full: 1000, Case: func(_ context.Context, c *Case) (int, error) {
		if c.Rand.IntN(10) == 0 {
			return 1, odd
		}
		return 1, nil
	}}
	lines, out := ran(t, &Board{Trials: []Trial{trial}, Seed: 7, Part: 1})
	if len(lines[0].Violations) < violationsEnough {
		t.Fatal(out)
	}
	_, rest, _ := strings.Cut(lines[0].Violations[0], "faults/run replay -left ")
	var seed uint64
	var left int
	if _, err := fmt.Sscanf(rest, `%d "x y" %d`, &left, &seed); err != nil {
		t.Fatal(err, lines[0].Violations[0])
	}
	b := Board{Trials: []Trial{trial}, Out: &bytes.Buffer{}, Disk: t.TempDir(), Memory: t.TempDir()}
	if n, err := b.Replay(t.Context(), "x y", seed, left); n != 1 || !errors.Is(err, odd) {
		t.Errorf("%d %v", n, err)
	}
	if _, err := b.Replay(t.Context(), "y", seed, 0); err == nil || errors.Is(err, odd) {
		t.Errorf("%v", err)
	}
}

// No more cases are begun than are wanted, also before it is known how much one makes.
func TestNoMoreThanWanted(t *testing.T) {
	var cases atomic.Int64
	lines, _ := ran(t, &Board{Part: 1, Workers: 4, Trials: []Trial{{Name: "x", Full: 10, PerCase: 5, Case: func(_ context.Context, c *Case) (int, error) {
		cases.Add(1)
		time.Sleep(10 * time.Millisecond) // the others' time to come
		return min(5, c.Left), nil
	}}}})
	if lines[0].Done != 10 || cases.Load() != 2 {
		t.Errorf("%d cases, %+v", cases.Load(), lines[0])
	}
}

// Of what has as much left in time, that of which only one case may run at a time comes first: else it would go on when all
// others have ended.
func TestWhatIsAloneBeginsFirst(t *testing.T) {
	for _, tried := range []bool{false, true} {
		b := &Board{Part: 1, cores: 2}
		for i := range 3 {
			l := &Line{Trial: fmt.Sprint(i), Wanted: 10, trial: &Trial{Alone: i == 1}}
			if tried {
				l.Done, l.dealt, l.Seconds = 1, 1, 5
			}
			b.lines = append(b.lines, l)
		}
		if l := b.next(); l.Trial != "1" {
			t.Errorf("%s begins (tried before: %t)", l.Trial, tried)
		}
		b.lines[1].running = 1
		if l := b.next(); l.Trial != "0" {
			t.Errorf("%s is next (tried before: %t)", l.Trial, tried)
		}
	}
}

// One seed makes the same cases, whatever else runs; another one makes others.
func TestSeeds(t *testing.T) {
	seeds := func(seed uint64, others int) []uint64 {
		var mu sync.Mutex
		var got []uint64
		trials := []Trial{{Name: "x", Full: 20, Case: func(_ context.Context, c *Case) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, c.Seed)
			return 1, nil
		}}}
		for i := range others {
			trials = append(trials, Trial{Name: fmt.Sprint(i), Full: 5, Case: counts(1)})
		}
		ran(t, &Board{Trials: trials, Seed: seed, Part: 1, Workers: 3})
		slices.Sort(got)
		return got
	}
	a := seeds(1, 0)
	if len(a) != 20 || !slices.Equal(a, seeds(1, 7)) {
		t.Error("other cases under the same seed")
	}
	if slices.Equal(a, seeds(2, 0)) {
		t.Error("the same cases under another seed")
	}
}

// A trial that has a machine of its own is never there twice; others are.
func TestAlone(t *testing.T) {
	var now, most, both atomic.Int64
	meet := func(most *atomic.Int64) func(context.Context, *Case) (int, error) {
		return func(context.Context, *Case) (int, error) {
			n := now.Add(1)
			defer now.Add(-1)
			if n > most.Load() {
				most.Store(n)
			}
			time.Sleep(time.Millisecond) // the others' time to come
			return 1, nil
		}
	}
	ran(t, &Board{Trials: []Trial{{Name: "x", Full: 20, Alone: true, Case: meet(&most)}}, Part: 1, Workers: 4})
	ran(t, &Board{Trials: []Trial{{Name: "x", Full: 100, Case: meet(&both)}}, Part: 1, Workers: 4})
	if most.Load() != 1 || both.Load() < 2 {
		t.Errorf("%d at a time alone, %d otherwise", most.Load(), both.Load())
	}
}

// What is left to do is dealt out by time, and a case hears how much is wanted.
func TestLeft(t *testing.T) {
	var asked []int
	lines, _ := ran(t, &Board{Part: 1, Workers: 1, Trials: []Trial{{Name: "x", Full: 25, Case: func(_ context.Context, c *Case) (int, error) {
		asked = append(asked, c.Left)
		return min(10, c.Left), nil
	}}}})
	if !slices.Equal(asked, []int{25, 15, 5}) || lines[0].Done != 25 || lines[0].Cases != 3 {
		t.Errorf("asked for %v, %+v", asked, lines[0])
	}
}

// Beside what computes runs what waits, and neither takes the other's places while both have something left.
func TestWhatWaitsRunsBeside(t *testing.T) {
	cores := runtime.GOMAXPROCS(0)
	var computing, waiting atomic.Int64
	both := make(chan struct{}) // closed when all places are taken as they should be
	var once sync.Once
	meet := func(mine *atomic.Int64) func(context.Context, *Case) (int, error) {
		return func(ctx context.Context, c *Case) (int, error) {
			mine.Add(1)
			if computing.Load() == int64(cores) && waiting.Load() == int64(cores) {
				once.Do(func() { close(both) })
			}
			select {
			case <-both:
				return 1, nil
			case <-ctx.Done():
				return 0, fmt.Errorf("%d compute and %d wait on %d cores", computing.Load(), waiting.Load(), cores)
			}
		}
	}
	lines, out := ran(t, &Board{Part: 1, Trials: []Trial{
		{Name: "computes", Full: 5 * cores, Limit: time.Minute, Case: meet(&computing)},
		{Name: "waits", Full: 5 * cores, Limit: time.Minute, Waits: true, Case: meet(&waiting)},
	}})
	if !lines[0].Green() || !lines[1].Green() {
		t.Error(out)
	}
}

// What cases share is built once, before the first, and what cannot be built is red.
func TestBuiltOnce(t *testing.T) {
	var built atomic.Int64
	build := func(_ context.Context, folder string) error {
		built.Add(1)
		return os.WriteFile(filepath.Join(folder, "program"), []byte("x"), 0o600)
	}
	uses := func(_ context.Context, c *Case) (int, error) {
		_, err := os.ReadFile(filepath.Join(c.Built, "program"))
		return 1, err
	}
	trial := Trial{Name: "x", Full: 20, Build: build, Case: uses}
	lines, out := ran(t, &Board{Part: 1, Workers: 4, Trials: []Trial{trial}})
	if !lines[0].Green() || built.Load() != 1 {
		t.Errorf("built %d times: %s", built.Load(), out)
	}
	b := Board{Trials: []Trial{trial}, Out: &bytes.Buffer{}, Disk: t.TempDir(), Memory: t.TempDir()}
	if n, err := b.Replay(t.Context(), "x", 1, 0); n != 1 || err != nil {
		t.Errorf("replayed: %d %v", n, err)
	}
	trial.Build = func(context.Context, string) error { return errors.New("no compiler") }
	if lines, _ = ran(t, &Board{Part: 1, Trials: []Trial{trial}}); lines[0].Green() || !strings.Contains(lines[0].Violations[0], "no compiler") {
		t.Errorf("%+v", lines[0])
	}
}
