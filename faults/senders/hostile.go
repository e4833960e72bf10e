package senders

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio-faults/scoreboard"
	"ampcio/rehearsal"
)

// attack is one way of being hostile. It goes on until it has done what it wants, or until held ends: those that hold
// something, connections or memory, hold it until the well-behaved have been served.
type attack struct {
	name string
	do   func(ctx context.Context, a *attacker) error
}

var attacks = []attack{
	{"slow headers", slowHeaders}, {"slow bodies", slowBodies}, {"aborted uploads", abortedUploads}, {"gzip bombs", gzipBombs},
	{"10,000 levels", deepJSON}, {"one connection for all", oneConnection}, {"idle connections", idleConnections}, {"retry storm", retryStorm},
	{"Expect: 100-continue", expectations}, {"pipelining", pipelining}, {"large headers", largeHeaders}, {"connect and leave", connectAndLeave},
	{"one byte a chunk", tinyChunks}, {"answers that nobody reads", deaf},
}

// attacker is what an attack may use. Its chance is its own.
type attacker struct {
	*rand.Rand
	in   *installation
	held context.Context // ends when the well-behaved have been served
	name string          // of its user and in its insert_ids: nobody else's

	sent   atomic.Int64 // events answered 200 that are records of their own
	served atomic.Int64 // events answered 200, repeats too
}

// attacksAtOnce are made on one daemon.
const attacksAtOnce = 7

// hostile is one daemon, several attacks on it at one time, and senders who mean well: while all that can be held is
// held, they are served.
func hostile(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const (
		users      = 40
		events     = 1500
		mostMemory = 450 << 20
	)
	in, err := install(ctx, c, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	held, letGo := context.WithCancel(ctx)
	defer letGo()
	var fight errgroup.Group
	var attackers []*attacker
	var names []string
	for i, k := range c.Rand.Perm(len(attacks))[:max(1, min(attacksAtOnce, c.Left))] {
		a := &attacker{Rand: rand.New(rand.NewPCG(c.Seed, uint64(i))), in: in, held: held, name: fmt.Sprintf("hostile-%d", k)}
		attackers, names = append(attackers, a), append(names, attacks[k].name)
		fight.Go(func() error {
			if err := attacks[k].do(ctx, a); err != nil {
				return fmt.Errorf("%s: %w", attacks[k].name, err)
			}
			return nil
		})
	}
	traffic := rehearsal.NewTraffic(in.Rehearsal, users, events, c.Seed)
	served := traffic.Run(ctx, 2*time.Second)
	letGo()
	err = errors.Join(served, fight.Wait())
	if err != nil {
		return len(attackers), fmt.Errorf("%s: %w", strings.Join(names, ", "), err)
	}
	if err := in.afterwards(ctx, traffic, attackers, mostMemory); err != nil {
		return len(attackers), fmt.Errorf("%s: %w", strings.Join(names, ", "), err)
	}
	return len(attackers), nil
}

// afterwards holds what was answered to what there is.
func (in *installation) afterwards(ctx context.Context, traffic *rehearsal.Traffic, attackers []*attacker, mostMemory int64) error {
	books, err := in.Drained(ctx)
	if err != nil {
		return err
	}
	var problems []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	in.checkProcess(mostMemory, expect)
	expect(len(books.Syncs) == 1, "%d syncs", len(books.Syncs))
	got := map[string]int64{}
	for _, e := range in.Sandbox.Events(0, 0) {
		got[e.PersonID]++
	}
	var theirs, repeats int64
	for _, a := range attackers {
		theirs += a.sent.Load()
		repeats += a.served.Load() - a.sent.Load()
		expect(got[a.name] == a.sent.Load(), "%d events of %s are in Customer.io, %d were answered 200", got[a.name], a.name, a.sent.Load())
	}
	expect(books.Door.Duplicates == uint64(repeats+traffic.Repeats.Load()), "%d duplicates at the door, %d were sent", books.Door.Duplicates, repeats+traffic.Repeats.Load())
	if len(books.Syncs) == 1 {
		books.Syncs[0].Books.Taken -= uint64(theirs) // the rest is of the well-behaved
		for _, p := range traffic.Verdict(nil, books).Problems {
			problems = append(problems, errors.New(p))
		}
	}
	return errors.Join(append(problems, in.audited(ctx))...)
}
