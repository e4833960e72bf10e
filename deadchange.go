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

	"ampcio/queue"
)

// deadPortion is how many dead letters are replayed or dropped in one step: what a
// step has done is durable, so an operator may go at any time.
const deadPortion = 500

// deadSum is what is told of a replay or drop: after each portion how far it is, and
// at the end, or in a dry run, all of it.
type deadSum struct {
	Done    uint64            `json:"done"`
	End     bool              `json:"end"`
	By      []deadCount       `json:"by,omitempty"`
	Young   uint64            `json:"young"`             // happened less than 72 h ago
	Missing uint64            `json:"missing"`           // ids that are no dead letters
	Until   int64             `json:"until_ms"`          // when it was looked, ms since 1970 UTC
	Damaged []string          `json:"damaged,omitempty"` // what cannot be read, of each sync
	Status  map[string]string `json:"status,omitempty"`  // of the syncs
}

type deadCount struct {
	Sync   string `json:"sync"`
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

func replayDeadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	return changeDead(ctx, h, in, out, (*queue.Consumer).ReplayDead)
}

func dropDeadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	return changeDead(ctx, h, in, out, (*queue.Consumer).DropDead)
}

// changeDead ends dead letters, or takes them up again, in portions.
func changeDead(ctx context.Context, h house, in json.RawMessage, out io.Writer, change func(*queue.Consumer, []uint64) (int, error)) error {
	var q deadQuery
	if err := readInput(in, &q); err != nil {
		return err
	}
	if err := q.chosen(); err != nil {
		return err
	}
	now := time.Now()
	if q.Until == 0 {
		q.Until = now.UnixMilli() // one that dies of its replay is not taken up once more
	}
	sum := deadSum{Until: q.Until, Status: map[string]string{}}
	counts := map[deadCount]uint64{}
	var name string
	var seqs []uint64
	step := func() error {
		if len(seqs) == 0 {
			return nil
		}
		n := len(seqs)
		if !q.DryRun {
			err := h.operate(func() (err error) {
				c := h.consumer(name)
				if c == nil {
					return unknownSync(h, name)
				}
				n, err = change(c, seqs)
				return exit(exitIO, err)
			})
			if errors.Is(err, queue.ErrDamaged) { // damaged since it was looked at; the others are done
				sum.Damaged, err = append(sum.Damaged, fmt.Sprintf("sync %s: %v", name, err)), nil
			}
			if err != nil {
				return err
			}
		}
		seqs = seqs[:0]
		sum.Done += uint64(n)
		if q.DryRun {
			return nil
		}
		return tell(out, deadSum{Done: sum.Done, Until: sum.Until})
	}
	s, err := seek(ctx, h, &q, func(d *deadLetter) error {
		if d.sync != name || len(seqs) == deadPortion {
			if err := step(); err != nil {
				return err
			}
			name = d.sync
		}
		seqs = append(seqs, d.Record.Seq)
		counts[deadCount{Sync: d.sync, Reason: d.Reason}]++
		if d.young(now) {
			sum.Young++
		}
		return nil
	})
	if err == nil {
		err = step()
	}
	if err != nil {
		return err
	}
	for c, n := range counts {
		c.Count = n
		sum.By = append(sum.By, c)
		if state, err := stateOf(h, c.Sync); err == nil {
			sum.Status[c.Sync] = state.Status
		}
	}
	slices.SortFunc(sum.By, func(a, b deadCount) int {
		return cmp.Or(cmp.Compare(a.Sync, b.Sync), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	sum.End, sum.Missing, sum.Damaged = true, s.missing(), append(sum.Damaged, s.damaged...)
	return tell(out, sum)
}
