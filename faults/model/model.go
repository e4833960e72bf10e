// Package model lives through random histories twice: once with the product's own log, users, ledgers, mapping and
// delivery on files in memory, once with a small model of what is promised. After each step both must say the same.
//
// A history is a list of steps, drawn from one seed; steps that have nothing to do do nothing. So a history that
// breaks the promise is shortened by leaving steps out, and told step by step. The product's own delivery, which takes part,
// has chance of its own in how long it waits; what it breaks may take a replay or two to show again.
package model

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ampcio-faults/scoreboard"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "model", Unit: "histories", Full: 100_000, Case: some, PerCase: perCase, Limit: 10 * time.Minute,
		Fault: "any order of events, deliveries, failures, crashes, pauses, new rules, rewinds and forgetting; after each step books, order, once-only and state are the model's",
	}}
}

// A case is some houses, one after another, and each has some histories that are lived through side by side: to open an
// installation's files anew for each history, or to start a process for each house, would be most of the work.
const (
	perCase  = 600 // histories, at most
	perHouse = 15
)

func some(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	// In a bubble nearly always one goroutine runs, and wakes another: to wake a second processor for it costs more than it
	// does there. Some cases have all of them, so that what runs side by side does so in earnest.
	if c.Seed%8 > 0 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	defer debug.SetGCPercent(debug.SetGCPercent(200)) // the heap is small
	for want := max(1, min(perCase, c.Left)); n < want && err == nil; {
		side := drawSome(c.Rand.Uint64(), min(perHouse, want-n))
		hunted := os.Getenv(scoreboard.PlantedBug) != "" // nobody reads the story of a bug that was planted
		if err = live(ctx, c.Memory, side, nil); err != nil && ctx.Err() == nil && !hunted {
			err = shorter(ctx, c.Memory, side, err)
		}
		n += len(side.histories)
	}
	return n, err
}

// strands are the histories that are lived through side by side, and what befalls their house meanwhile.
type strands struct {
	house     []step
	histories [][]step
}

func drawSome(seed uint64, n int) (s strands) {
	rng := rand.New(rand.NewPCG(seed, 0))
	s.house = draw(rng, oftenInTheHouse, houseworkOfAHouse[rng.IntN(len(houseworkOfAHouse))])
	for range n {
		s.histories = append(s.histories, draw(rng, often, 6+min(rng.IntN(19), rng.IntN(19))))
	}
	return s
}

// houseworkOfAHouse is how much befalls a house: mostly little, and each length as often as it stands here.
var houseworkOfAHouse = []int{3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 7}

// step is one thing that happens. What its numbers mean is the affair of what is done: each is reduced to what there is.
type step struct {
	do         string
	a, b, c, d int
}

// draw draws a history of so many steps. It is done here and not by rapid, whose tables of all of Unicode each process of
// these trials would make at its start, at a quarter of what a start costs.
func draw(rng *rand.Rand, of []string, steps int) []step {
	list := make([]step, steps)
	for i := range list {
		list[i] = step{of[rng.IntN(len(of))], rng.IntN(1000), rng.IntN(1000), rng.IntN(1000), rng.IntN(1000)}
	}
	return list
}

// often is what is done, each as many times as it has weight; by a history, and to its house.
var often, oftenInTheHouse []string

// violation is a broken promise, as it travels up through a history.
type violation struct{ error }

// live lives through histories in a house of their own in memory, in virtual time. tell, if set, hears what happens.
func live(ctx context.Context, memory string, side strands, tell func(string)) (err error) {
	dir, err := os.MkdirTemp(memory, "histories-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A bubble takes a testing.T, and wants no more of it than its name: nothing here fails it.
	synctest.Test(new(testing.T), func(*testing.T) {
		h := &house{root: dir, tell: tell}
		defer func() {
			if p := recover(); p != nil { // a violation, however deep; any other is one of the product
				v, ok := p.(violation)
				if !ok {
					v = violation{fmt.Errorf("panic: %v\n%s", p, stack())}
				}
				err = fmt.Errorf("%s, step %d, %s: %w", h.whose(), h.at, h.doing, v.error)
			}
			err = errors.Join(err, h.close())
		}()
		h.build()
		for range side.histories {
			h.begin()
		}
		for _, t := range side.turns() {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
				return
			}
			h.turn(t)
		}
		for _, y := range h.histories {
			y.curtain()
		}
	})
	return err
}

// turn is one step of one strand.
type turn struct {
	who int // history, from 1; 0 = the house
	at  int // step, from 1
	step
}

// turns are the steps of all strands in the order in which they are done: the histories take turns, and what befalls the
// house comes anywhere between.
func (s strands) turns() (list []turn) {
	for at := 0; ; at++ {
		before := len(list)
		for i, steps := range s.histories {
			if at < len(steps) {
				list = append(list, turn{i + 1, at + 1, steps[at]})
			}
		}
		if len(list) == before {
			break
		}
	}
	for i, t := range s.house {
		list = slices.Insert(list, t.a*(len(list)+1)/1000, turn{0, i + 1, t})
	}
	return list
}

// without is the strands without some steps of one, or without all of one.
func (s strands) without(strand, from, to int) strands {
	fewer := strands{house: s.house, histories: slices.Clone(s.histories)}
	at := &fewer.house
	if strand > 0 {
		at = &fewer.histories[strand-1]
	}
	*at = slices.Delete(slices.Clone(*at), from, to)
	return fewer
}

// shorter leaves out what is not needed to break the promise, for a while, and tells the rest.
func shorter(ctx context.Context, memory string, side strands, err error) error {
	tries := 0
	broken := func(some strands) bool {
		if tries++; tries > 300 || ctx.Err() != nil {
			return false
		}
		again := live(ctx, memory, some, nil)
		if again != nil {
			side, err = some, again
		}
		return again != nil
	}
	for i := range side.histories { // most often one history is enough, with or without what befell the house
		if broken(strands{histories: side.histories[i : i+1]}) || broken(strands{house: side.house, histories: side.histories[i : i+1]}) {
			break
		}
	}
	for i := 0; i < len(side.histories) && len(side.histories) > 1; {
		if !broken(strands{house: side.house, histories: slices.Delete(slices.Clone(side.histories), i, i+1)}) {
			i++
		}
	}
	for i := range len(side.histories) + 1 {
		steps := func() int {
			if i == 0 {
				return len(side.house)
			}
			return len(side.histories[i-1])
		}
		for size := (steps() + 1) / 2; size > 0; size /= 2 {
			for at := 0; at+size <= steps(); {
				if !broken(side.without(i, at, at+size)) {
					at += size
				}
			}
		}
	}
	var told strings.Builder
	if again := live(ctx, memory, side, func(line string) { told.WriteString("\n\t" + line) }); again == nil {
		told.WriteString("\n\t(told again, it breaks nothing: something in it is left to chance)")
	}
	return fmt.Errorf("%w\n\tthe histories:%s", err, told.String())
}
