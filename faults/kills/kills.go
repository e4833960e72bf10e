// Package kills ends the daemon with SIGKILL at random moments, while it takes events and delivers them.
package kills

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ampcio-faults/scoreboard"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// Trials are those of this package.
func Trials() []scoreboard.Trial {
	return []scoreboard.Trial{{
		Name: "kill -9", Unit: "kills", Full: 3000, Case: either,
		Fault: "the process is killed at any moment, also while it starts; every acknowledged event arrives once and in order",
	}}
}

// either kills the daemon, or its rooms without doors: one in four cases is of the whole.
func either(ctx context.Context, c *scoreboard.Case) (kills int, err error) {
	if c.Rand.IntN(4) == 0 {
		return live(ctx, c)
	}
	return rooms(ctx, c)
}

// live is one installation that is killed again and again while senders send and Customer.io fails now and then.
func live(ctx context.Context, c *scoreboard.Case) (kills int, err error) {
	const most = 20 // kills of one installation
	faults, err := sandbox.ParseFaults("500=3%,429=1%,cut_after=2%")
	if err != nil {
		return 0, err
	}
	r, err := rehearsal.New(c.Dir, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed, Faults: faults},
		Storage: "min_free = \"16MiB\"\nkeep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    "retry_initial = \"20ms\"\nbatch_operations = 25\nrequests_per_second = 1000\n",
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Kill(), r.Close()) }()
	if err := r.Start(ctx); err != nil {
		return 0, err
	}
	want := min(most, c.Left)
	tr := rehearsal.NewTraffic(r, 50, want*100, c.Seed)
	sent := make(chan error, 1)
	sending, stop := context.WithCancel(ctx)
	defer stop()
	go func() { sent <- tr.Run(sending, time.Duration(want)*100*time.Millisecond) }()
	for ; kills < want; kills++ {
		select {
		case <-time.After(time.Duration(c.Rand.Int64N(int64(60 * time.Millisecond)))):
		case <-ctx.Done():
			return kills, context.Cause(ctx)
		}
		if err := r.Kill(); err != nil {
			return kills, err
		}
		if err := r.Start(ctx); err != nil {
			return kills, err
		}
	}
	if err := <-sent; err != nil {
		return kills, fmt.Errorf("the senders ended with %w", err)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	books, err := r.Drained(ctx)
	if err != nil {
		return kills, err
	}
	v := tr.Verdict(nil, books)
	for _, problem := range v.Problems {
		err = errors.Join(err, errors.New(problem))
	}
	return kills, err
}
