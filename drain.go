package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"ampcio/admin"
)

func init() {
	verbs["drain"] = drainVerb
	readsOnly["drain"] = true
}

// draining is what a drain is asked.
type draining struct {
	Syncs   []string `json:"syncs"`                // none = all there are
	Wait    bool     `json:"wait,omitempty"`       // until nothing is pending
	Refuse  bool     `json:"refuse,omitempty"`     // and take no new events meanwhile
	Timeout int64    `json:"timeout_ms,omitempty"` // 0 = as long as it takes
}

// How a look at what is left has ended, or has not.
const (
	drainWaiting = "waiting"
	drainEmpty   = "empty"
	drainStuck   = "stuck"   // what is left does not go by itself
	drainTimeout = "timeout" // the time is over
	drainLeft    = "left"    // nobody wanted to wait
)

// drainReport is how far a drain is, or what came of it.
type drainReport struct {
	State    string      `json:"state"`
	Source   string      `json:"source"` // daemon | files
	Took     int64       `json:"took_s"`
	Pending  uint64      `json:"pending"`
	Dead     uint64      `json:"dead_letters"` // kept, of these syncs
	Taken    uint64      `json:"taken"`        // events that came in meanwhile
	Refusing bool        `json:"refusing"`     // new events
	Until    *time.Time  `json:"refusing_until"`
	Syncs    []drainSync `json:"syncs"`
}

type drainSync struct {
	Sync    string   `json:"sync"`
	Status  string   `json:"status"` // as in queue-stats
	Pending uint64   `json:"pending"`
	Dead    uint64   `json:"dead_letters"`
	Oldest  *int64   `json:"oldest_age_s"`
	RateOut *float64 `json:"rate_out"`
	ETA     *int64   `json:"drain_eta_s"`
	Stuck   bool     `json:"stuck"` // it has something pending, and does not go on by itself
	Why     string   `json:"why"`
	Advice  string   `json:"to_do"`
}

// refuseOn is how long new events are still refused when the queue is empty, so that
// ampcio can be stopped without one that comes in between. It ends by itself: nobody who
// forgets to stop it is left with a daemon that takes nothing.
const refuseOn = time.Minute

// A drain looks often in its first second, and then each second. It tells each time.
const (
	looksFirst = 200 * time.Millisecond
	looksThen  = time.Second
)

// drainVerb tells what is left, again and again if it is to wait. It changes nothing that
// lasts: when the operator goes, events are taken as before.
func drainVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked draining
	if err := readInput(in, &asked); err != nil {
		return err
	}
	names := h.names()
	for _, name := range asked.Syncs {
		if !slices.Contains(names, name) {
			return unknownSync(h, name)
		}
	}
	d, running := h.(*daemon)
	if !running {
		snap, err := filesSnapshot(h.config(), time.Now())
		if err != nil {
			return err
		}
		return tell(out, asked.look(snap))
	}
	again := func() {}
	if asked.Refuse {
		var err error
		if again, err = d.door.Refuse(ctx); err != nil {
			return err
		}
		d.log.Warn("new events are refused (503) on an operator's word: ampcio drain --refuse")
	}
	empty := false
	defer func() {
		if !empty {
			again()
			if asked.Refuse {
				d.log.Info("new events are taken again")
			}
		}
	}()
	began, before := time.Now(), d.door.Door().Events
	tick := time.NewTicker(looksFirst)
	defer tick.Stop()
	for {
		snap, err := d.Snapshot(ctx)
		if err != nil {
			return exit(exitIO, err)
		}
		left := asked.look(snap)
		took := time.Since(began)
		if took > looksThen {
			tick.Reset(looksThen)
		}
		left.Took, left.Taken, left.Refusing = seconds(took), snap.Door.Events-before, asked.Refuse
		switch {
		case left.State == drainEmpty && asked.Refuse:
			until := time.Now().Add(refuseOn).UTC().Truncate(time.Second)
			left.Until, empty = &until, true
			time.AfterFunc(refuseOn, func() { again(); d.log.Info("new events are taken again") })
		case left.State == drainWaiting && asked.Timeout > 0 && took >= time.Duration(asked.Timeout)*time.Millisecond:
			left.State = drainTimeout
		}
		if left.State != drainWaiting {
			left.Refusing = empty
		}
		if err := tell(out, left); err != nil || left.State != drainWaiting {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look judges a snapshot.
func (q *draining) look(snap admin.Snapshot) drainReport {
	d := drainReport{Source: snap.Source, Syncs: []drainSync{}}
	goes := false
	for i := range snap.Syncs {
		y := &snap.Syncs[i]
		if len(q.Syncs) > 0 && !slices.Contains(q.Syncs, y.Name) {
			continue
		}
		s := drainSync{Sync: y.Name, Status: y.Status, Pending: y.Books.Pending, Dead: y.Depth.Dead,
			Oldest: y.OldestAge, RateOut: y.RateOut, ETA: y.DrainETA, Why: y.Detail, Advice: y.Advice}
		if s.Pending > 0 || y.LedgerDamaged {
			s.Stuck = !slices.Contains([]string{admin.StatusOK, admin.StatusChecking, admin.StatusUnreachable}, y.Status)
			goes = goes || !s.Stuck
		}
		if y.Status == admin.StatusOK && s.Pending == 0 {
			s.Advice = "" // what is to do about dead letters is said of all
		}
		if y.LedgerDamaged {
			d.Pending++ // unknown, and so not empty
		}
		d.Pending, d.Dead = d.Pending+s.Pending, d.Dead+s.Dead
		d.Syncs = append(d.Syncs, s)
	}
	switch {
	case d.Pending == 0:
		d.State = drainEmpty
	case !q.Wait:
		d.State = drainLeft
	case goes:
		d.State = drainWaiting
	default:
		d.State = drainStuck
	}
	return d
}

// code is the exit code of what came of a drain.
func (d *drainReport) code() error {
	switch d.State {
	case drainEmpty:
		return nil
	case drainStuck:
		return exit(exitTemporary, fmt.Errorf("not empty: %s pending, and nothing of it goes by itself", records(d.Pending)))
	case drainTimeout:
		return exit(exitTemporary, fmt.Errorf("not empty after %s: %s pending", forPeople(time.Duration(d.Took)*time.Second), records(d.Pending)))
	case drainLeft:
		return exit(exitTemporary, fmt.Errorf("not empty: %s pending", records(d.Pending)))
	}
	return exit(exitUnavailable, errors.New("the daemon has ended in the middle of its answer: look again"))
}
