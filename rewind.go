package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// rewinding is what a rewind is asked.
type rewinding struct {
	Sync   string `json:"sync"`
	Since  int64  `json:"since_ms"` // of receipt, ms since 1970 UTC
	Partly bool   `json:"partly,omitempty"`
	// Untaken: what the sync has not taken, since it was disabled or in a dry run, is
	// taken too.
	Untaken bool `json:"take_untaken,omitempty"`
	DryRun  bool `json:"dry_run,omitempty"`
}

// rewound is what it did, or would do.
type rewound struct {
	rewinding
	Records     uint64          `json:"records"`      // taken again
	DeadLetters uint64          `json:"dead_letters"` // of these were dead letters
	NewlyTaken  uint64          `json:"newly_taken"`  // with Untaken: taken for the first time
	Pending     uint64          `json:"pending"`      // of that time were pending anyway
	From        *time.Time      `json:"from"`         // receipt of the first that is taken again
	Young       uint64          `json:"young"`        // dry run: happened less than 72 h ago, and would be sent as events
	Verdicts    []verdictChange `json:"verdicts"`     // dry run: what the rules make of them now
	Status      string          `json:"status"`       // of the sync
}

// rewindLook is what a dry run tells while it looks at what would be taken again.
type rewindLook struct {
	Looked uint64 `json:"looked_at"`
	Of     uint64 `json:"of"`
}

const lookToldEvery = 500 * time.Millisecond

// campaignAge is how old an event may be and still start campaigns: Customer.io's rule.
const campaignAge = 72 * time.Hour

// claimsEnd is how long a rewind waits for requests in flight.
const claimsEnd = time.Minute

func rewindVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked rewinding
	if err := readInput(in, &asked); err != nil {
		return err
	}
	if asked.DryRun {
		return rewind(ctx, h, asked, out)
	}
	return h.operate(func() error { return rewind(ctx, h, asked, out) })
}

func rewind(ctx context.Context, h house, asked rewinding, out io.Writer) error {
	c, rules := h.consumer(asked.Sync), h.rulesOf(asked.Sync)
	switch {
	case c == nil:
		return unknownSync(h, asked.Sync)
	case !inConfig(h.config(), asked.Sync):
		return exit(exitData, fmt.Errorf("sync %s is not in the configuration: there are no rules by which its events could be sent again", asked.Sync))
	}
	waiting, cancel := context.WithTimeout(ctx, claimsEnd)
	defer cancel()
	again := c.Rewind
	if asked.Untaken {
		if set := settingsOf(h.config(), asked.Sync); !set.delivers() {
			return exit(exitData, fmt.Errorf("sync %s takes nothing now, since it is disabled or in a dry run: change that first, and reload", asked.Sync))
		}
		again = c.TakeSince
	}
	done, err := again(waiting, asked.Since, asked.Partly, asked.DryRun)
	r := rewound{rewinding: asked, Records: done.Records, NewlyTaken: done.Untaken, DeadLetters: done.DeadLetters, Pending: done.Pending, Verdicts: []verdictChange{}}
	if done.From != 0 {
		r.From = timeOf(done.From)
	}
	switch {
	case errors.Is(err, queue.ErrNotKept):
		return exit(exitData, notKept(h, done.From))
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return exit(exitTemporary, fmt.Errorf("requests to %s did not end within %s, nothing was changed: try again, or pause the sync first (ampcio sync pause %s)", service(asked.Sync), claimsEnd, asked.Sync))
	case err != nil:
		return exit(exitIO, err)
	}
	if asked.DryRun {
		if err := r.judge(ctx, c, standardOf(h.config(), asked.Sync, rules), out); err != nil {
			return err
		}
	}
	s, err := stateOf(h, asked.Sync)
	if err != nil {
		return err
	}
	r.Status = s.Status
	return tell(out, r)
}

func notKept(h house, from int64) error {
	keep := fmt.Sprintf("(storage.keep = %q, within keep_bytes = %q)", h.config().Storage.Keep, h.config().Storage.KeepBytes)
	if from == 0 {
		return fmt.Errorf("there is nothing to take again: the log has no events any more %s", keep)
	}
	return fmt.Errorf("events of that time are kept since %s only %s. To take what there is: --partly",
		time.UnixMilli(from).UTC().Format("2006-01-02 15:04:05 UTC"), keep)
}

// judge counts what the rules make of what would be taken again. Whether a user's
// properties differ from what was last sent is seen when they are sent, not here.
func (r *rewound) judge(ctx context.Context, c *queue.Consumer, rules *standard, out io.Writer) error {
	counts := map[verdictChange]*verdictChange{}
	count := func(kind, after, example string) {
		key := verdictChange{Kind: kind, After: after}
		if counts[key] == nil {
			counts[key] = &verdictChange{Kind: kind, After: after, Example: example}
		}
		counts[key].Records++
	}
	now := time.Now()
	look, told := rewindLook{Of: r.Records + r.NewlyTaken + r.Pending}, now
	err := c.RecordsSince(ctx, r.Since, r.Untaken, func(q queue.Record) error {
		if look.Looked++; look.Looked%1024 == 0 && time.Since(told) > lookToldEvery {
			told = time.Now()
			if err := tell(out, look); err != nil {
				return err
			}
		}
		j := rules.judge(&q, now)
		count("event", j.event, j.name)
		if j.user != "" {
			count("user", j.user, j.name)
		}
		if isRelay(r.Sync) {
			return nil // nothing there starts campaigns
		}
		var m mapping.Record
		if j.event == verdictSent && m.DecodeBody(q.Body) == nil && now.Sub(time.UnixMilli(m.Time)) < campaignAge {
			r.Young++
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, v := range counts {
		r.Verdicts = append(r.Verdicts, *v)
	}
	slices.SortFunc(r.Verdicts, func(a, b verdictChange) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(b.Records, a.Records), cmp.Compare(a.After, b.After))
	})
	return nil
}
