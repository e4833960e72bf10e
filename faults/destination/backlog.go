package destination

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio-faults/scoreboard"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// What a backlog is made of.
const (
	backlogUsers   = 10_000
	backlogSenders = 4
	backlogEach    = 1000 // events of a request
	backlogKills   = 8    // while it is drained
)

// backlog stores what is left to do while Customer.io is down, with a crash in the middle, and drains it with more of them.
func backlog(ctx context.Context, c *scoreboard.Case) (events int, err error) {
	const round = backlogSenders * backlogEach
	want := (c.Left + round - 1) / round * round // all in one: a rest would be too small to be killed in
	down := sandbox.Faults{Outages: []sandbox.Outage{{Length: time.Hour}}}
	r, err := rehearsal.New(c.Dir, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Faults: down, MaxKeptEvents: -1, Seed: c.Seed},
		Storage: "min_free = \"16MiB\"\nkeep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    "retry_initial = \"20ms\"\nrequests_per_second = 1000\n",
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Kill(), r.Close()) }()
	if err := r.Start(ctx); err != nil {
		return 0, err
	}
	again := func() error { return errors.Join(r.Kill(), r.Start(ctx)) }

	// The senders repeat what was not answered, as SDKs do, so a crash costs nothing here.
	var senders errgroup.Group
	posting, stop := context.WithCancel(ctx)
	defer stop()
	half := make(chan struct{})
	halfway := sync.OnceFunc(func() { close(half) })
	for s := range backlogSenders {
		senders.Go(func() error {
			for n := s * backlogEach; n < want; n += backlogSenders * backlogEach {
				if s == 0 && n+backlogSenders*backlogEach >= want/2 {
					halfway()
				}
				if err := r.Post(posting, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, backlogRequest(c.Seed, n)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	select {
	case <-half:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if err := again(); err != nil {
		return 0, err
	}
	if err := senders.Wait(); err != nil {
		return 0, fmt.Errorf("the senders ended with %w", err)
	}
	// Each second the daemon looks for files of the log that nobody needs. There are none, so nothing shows that it has looked; what
	// is missing afterwards shows that it has deleted one.
	select {
	case <-time.After(1500 * time.Millisecond):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	snap, err := r.Stats(ctx)
	if err != nil {
		return 0, err
	}
	if b := snap.Syncs[0].Books; b.Pending != uint64(want) || !b.Balanced {
		return 0, fmt.Errorf("%d events were acknowledged in an outage; the books say %+v", want, b)
	}

	// It is drained; a kill comes whenever another part of it has arrived, and a little later.
	r.Sandbox.SetFaults(sandbox.Faults{CutAfter: 0.02, Status: map[int]float64{500: 0.02}})
	for i := range backlogKills {
		if err := arrived(ctx, r, int64(want*(i+1)/(backlogKills+1))); err != nil {
			return 0, err
		}
		pause := time.Duration(c.Rand.Int64N(int64(30 * time.Millisecond)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		if err := again(); err != nil {
			return 0, err
		}
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	books, err := r.Drained(ctx)
	if err != nil {
		return 0, err
	}
	if err := audit(c, r); err != nil {
		return 0, err
	}
	rep, b := r.Sandbox.Report(), books.Syncs[0].Books
	if o := rep.Order; rep.Events.Unique != int64(want) || rep.Events.Accepted != int64(want) || rep.Events.Differing != 0 || o.OutOfOrder != 0 || o.Missing != 0 || o.Repeated != 0 {
		return 0, fmt.Errorf("%d events were acknowledged; the sandbox has %+v, %+v", want, rep.Events, o)
	}
	if b.Taken != uint64(want) || !b.Balanced || b.Pending != 0 || books.Syncs[0].Totals.Dead != 0 || books.Syncs[0].Totals.Lost != 0 {
		return 0, fmt.Errorf("%d events were acknowledged; the books say %+v, %+v", want, b, books.Syncs[0].Totals)
	}
	return want, nil
}

// arrived waits until the sandbox has so many events. That nothing is pending any more while it has fewer is an error.
func arrived(ctx context.Context, r *rehearsal.Rehearsal, n int64) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 1; r.Sandbox.Report().Events.Unique < n; i++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d events have not arrived: %w; %+v", n, context.Cause(ctx), r.Sandbox.Report().Events)
		}
		if i%100 > 0 {
			continue
		}
		snap, err := r.Stats(ctx)
		if err != nil {
			return err
		}
		if b := snap.Syncs[0].Books; b.Pending == 0 && r.Sandbox.Report().Events.Unique < n {
			return fmt.Errorf("%d events have not arrived, and nothing is pending any more: %+v; the books say %+v", n, r.Sandbox.Report().Events, b)
		}
	}
	return nil
}

// audit runs ampcio audit: the books are proved from the files.
func audit(c *scoreboard.Case, r *rehearsal.Rehearsal) error {
	if out, err := c.Ampcio("audit", "--config", r.ConfigPath).CombinedOutput(); err != nil {
		return fmt.Errorf("ampcio audit: %v\n%s", err, out)
	}
	return nil
}

// backlogRequest has the events from the first on. Users take turns within a sender's requests, so that a user's seq
// rises without gaps.
func backlogRequest(seed uint64, first int) []byte {
	sender, round := first/backlogEach%backlogSenders, first/backlogEach/backlogSenders
	const own = backlogUsers / backlogSenders
	var b strings.Builder
	fmt.Fprintf(&b, `{"api_key":%q,"events":[`, recordings.Key)
	for i := range backlogEach {
		turn := round*backlogEach + i
		u := turn%own*backlogSenders + sender
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"event_type":"Order Completed","user_id":"person-%06d","device_id":"device-%06d","insert_id":"%d-%d","time":1795432617045,`+
			`"event_properties":{"seq":%d,"total":12.5,"currency":"EUR"}}`, u, u, seed, first+i, turn/own+1)
	}
	b.WriteString("]}")
	return []byte(b.String())
}
