package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"ampcio/admin"
	"ampcio/delivery"
	"ampcio/queue"
)

// oneSync is the input of the verbs that need no more than a name.
type oneSync struct {
	Sync   string `json:"sync"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// syncState is what a verb tells of a sync after it has done its part.
type syncState struct {
	Sync        string `json:"sync"`
	Status      string `json:"status"` // as in queue-stats; stopped = no daemon runs
	Reason      string `json:"reason,omitempty"`
	Changed     bool   `json:"changed"` // false = it was so already, or a dry run
	DryRun      bool   `json:"in_a_dry_run,omitempty"`
	Takes       bool   `json:"takes"` // new events, when ampcio runs: it is in the configuration, and enabled
	Pending     uint64 `json:"pending"`
	DeadLetters uint64 `json:"dead_letters"`
}

// stateOf reads the state of a sync that has a ledger.
func stateOf(h house, name string) (syncState, error) {
	s := syncState{Sync: name, Status: admin.StatusStopped}
	c := h.consumer(name)
	if c == nil {
		return s, unknownSync(h, name)
	}
	st, err := c.Stats()
	if err != nil {
		return s, exit(exitIO, err)
	}
	s.Pending, s.DeadLetters = st.Books.Pending, st.DeadKept
	set := settingsOf(h.config(), name)
	s.Takes, s.DryRun = set.delivers(), set != nil && set.enabled && set.dryRun
	switch d := h.delivery(name); {
	case d != nil:
		status := d.Status()
		s.Status, s.Reason = string(status.State), status.Reason
	case set == nil:
		s.Status = admin.StatusOrphaned
	case h.running() && s.DryRun:
		s.Status = admin.StatusDryRun
	case h.running():
		s.Status = admin.StatusDisabled
	}
	if st.PausedSince != 0 && s.Status != admin.StatusBlocked {
		s.Status = admin.StatusPaused
	}
	return s, nil
}

// unknownSync is the error about a name that no ledger has.
func unknownSync(h house, name string) error {
	names := h.names()
	if inConfig(h.config(), name) && !slices.Contains(names, name) {
		return exit(exitUnavailable, fmt.Errorf("sync %s is in the configuration, but no ampcio has run with it yet: start it, or: ampcio reload", name))
	}
	return noSuchSync(name, names)
}

func noSuchSync(name string, names []string) error {
	guess := ""
	if near := nearest(name, names); near != "" {
		guess = fmt.Sprintf(": did you mean %q?", near)
	}
	there := "There is none yet"
	if len(names) > 0 {
		there = "There are: " + strings.Join(names, ", ")
	}
	if guess == "" {
		there = ". " + there
	} else {
		there = " " + there
	}
	return exit(exitUsage, fmt.Errorf("no sync %q%s%s", name, guess, there))
}

func pauseVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	return setPause(h, in, out, true)
}

func resumeVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	return setPause(h, in, out, false)
}

// setPause pauses a sync or ends that; doing it twice changes nothing.
func setPause(h house, in json.RawMessage, out io.Writer, pause bool) error {
	var asked oneSync
	if err := readInput(in, &asked); err != nil {
		return err
	}
	return h.whileOpen(asked.Sync, func(c *queue.Consumer) error {
		if c == nil {
			return unknownSync(h, asked.Sync)
		}
		before, err := c.Stats()
		if err != nil {
			return exit(exitIO, err)
		}
		changed := (before.PausedSince != 0) != pause
		if changed && pause {
			err = c.Pause()
		} else if changed {
			err = c.Resume()
		}
		if errors.Is(err, syscall.ENOSPC) {
			return exit(exitIO, fmt.Errorf("it is so from now on, but the disk is full, and until there is space a restart would forget it: %w", err))
		}
		if err != nil {
			return exit(exitIO, err)
		}
		s, err := stateOf(h, asked.Sync)
		if err != nil {
			return err
		}
		s.Changed = changed
		if !pause {
			s.Pending = before.Books.Pending // it may be less already
		}
		return tell(out, s)
	})
}

// readSync reads which sync was asked for; it has a ledger.
func readSync(h house, in json.RawMessage) (asked oneSync, err error) {
	if err := readInput(in, &asked); err != nil {
		return asked, err
	}
	if !slices.Contains(h.names(), asked.Sync) {
		return asked, unknownSync(h, asked.Sync)
	}
	return asked, nil
}

func retryVerb(_ context.Context, h house, in json.RawMessage, out io.Writer) error {
	asked, err := readSync(h, in)
	if err != nil {
		return err
	}
	if !h.running() {
		return exit(exitUnavailable, errors.New("ampcio is stopped: the next start tries at once (systemctl start ampcio)"))
	}
	s, err := stateOf(h, asked.Sync)
	if err != nil {
		return err
	}
	d := h.delivery(asked.Sync)
	switch {
	case s.Status == admin.StatusPaused:
		return exit(exitData, fmt.Errorf("sync %s is paused. Resume: ampcio sync resume %[1]s", asked.Sync))
	case d == nil:
		return exit(exitData, fmt.Errorf("sync %s is %s: it does not deliver. See: ampcio sync status %[1]s", asked.Sync, s.Status))
	}
	d.RetryNow()
	s.Changed = true
	return tell(out, s)
}

func adoptVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	asked, err := readSync(h, in)
	if err != nil {
		return err
	}
	if !h.running() {
		return exit(exitUnavailable, errors.New("ampcio is stopped, and only a running one asks Customer.io which workspace it is: start it first (systemctl start ampcio)"))
	}
	return h.operate(func() error {
		s, err := stateOf(h, asked.Sync)
		if err != nil {
			return err
		}
		d := h.delivery(asked.Sync)
		if d == nil || s.Reason != otherWorkspace {
			return exit(exitData, fmt.Errorf("sync %s is %s, and not blocked because of another workspace: there is nothing to adopt", asked.Sync, s.Status))
		}
		a := adoption{syncState: s}
		a.From, a.To = workspacesOf(d.Status())
		if !asked.DryRun {
			if err := d.Adopt(ctx); err != nil {
				return exit(exitUnavailable, err)
			}
			if a.syncState, err = stateOf(h, asked.Sync); err != nil {
				return err
			}
			a.Changed = true
		}
		return tell(out, a)
	})
}

// otherWorkspace is the reason of a sync that is blocked because its keys are now those
// of another workspace.
const otherWorkspace = "other_workspace"

// adoption is what adopting another workspace did, or would do.
type adoption struct {
	syncState
	From int64 `json:"from"` // Customer.io's environment_id
	To   int64 `json:"to"`
}

func workspacesOf(s delivery.Status) (from, to int64) {
	return s.OtherWorkspace.From, s.OtherWorkspace.To
}

// renaming is what a rename is asked, and then what it did, or would do.
type renaming struct {
	Old    string `json:"old"`
	New    string `json:"new"`
	DryRun bool   `json:"dry_run,omitempty"`
}

type renamed struct {
	renaming
	Pending     uint64 `json:"pending"` // of the old one
	DeadLetters uint64 `json:"dead_letters"`
	Joined      bool   `json:"joined"` // the new name had a ledger already: it is one with it now
	Afresh      bool   `json:"afresh"` // the old name is in the configuration: it begins anew
	Status      string `json:"status"` // of the new one; "" in a dry run
}

var syncName = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

func renameVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked renaming
	if err := readInput(in, &asked); err != nil {
		return err
	}
	return h.operate(func() error {
		r, err := mayRename(h, asked)
		if err != nil {
			return err
		}
		if asked.DryRun {
			return tell(out, r)
		}
		if err := rename(ctx, h, r); err != nil {
			return err
		}
		s, err := stateOf(h, asked.New)
		if err != nil {
			return err
		}
		r.Status = s.Status
		return tell(out, r)
	})
}

// mayRename looks whether a ledger may get another name.
func mayRename(h house, asked renaming) (r renamed, err error) {
	r.renaming = asked
	old, err := stateOf(h, asked.Old)
	if err != nil {
		return r, err
	}
	r.Pending, r.DeadLetters = old.Pending, old.DeadLetters
	r.Joined = slices.Contains(h.names(), asked.New)
	syncs := h.config().Sync
	to, newConfigured := syncs[asked.New]
	_, r.Afresh = syncs[asked.Old]
	st, err := h.consumer(asked.Old).Stats()
	if err != nil {
		return r, exit(exitIO, err)
	}
	switch {
	case isRelay(asked.Old) || isRelay(asked.New):
		return r, exit(exitUsage, errors.New("a relay goes by the name of its project and cannot be renamed"))
	case asked.Old == asked.New:
		return r, exit(exitUsage, errors.New("the two names are the same"))
	case !syncName.MatchString(asked.New):
		return r, exit(exitUsage, fmt.Errorf("%q cannot be the name of a sync: 1 to 32 of a-z, 0-9, - and _", asked.New))
	case r.Afresh && !newConfigured:
		return r, exit(exitData, fmt.Errorf("%s is in the configuration and %s is not: change [sync.%[1]s] to [sync.%[2]s] there, then: ampcio reload, then this again", asked.Old, asked.New))
	case newConfigured && to.Project != st.Project:
		return r, exit(exitData, fmt.Errorf("%s holds events of project %s, and [sync.%s] in the configuration is of project %s: they do not go together",
			asked.Old, st.Project, asked.New, to.Project))
	}
	return r, nil
}

// rename stops both, moves the ledger, and starts what there is then.
func rename(ctx context.Context, h house, r renamed) error {
	stop, start := []string{r.Old}, []string{r.New}
	if r.Joined {
		stop = append(stop, r.New)
	}
	if r.Afresh {
		start = append(start, r.Old)
	}
	var stopped []string
	restart := func(names []string) (err error) {
		for _, name := range names {
			// Whoever asked may have gone: what was stopped is started all the same.
			err = errors.Join(err, h.startSync(context.WithoutCancel(ctx), name))
		}
		return err
	}
	for _, name := range stop {
		if err := h.stopSync(ctx, name); err != nil {
			return exit(exitIO, errors.Join(fmt.Errorf("stop sync %s: %w", name, err), restart(stopped)))
		}
		stopped = append(stopped, name)
	}
	if err := queue.RenameLedger(h.recordLog(), r.Old, r.New); err != nil {
		return exit(exitData, errors.Join(err, restart(stopped)))
	}
	return exit(exitIO, restart(start))
}

func removeVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked oneSync
	if err := readInput(in, &asked); err != nil {
		return err
	}
	name := asked.Sync
	return h.operate(func() error {
		s, err := stateOf(h, name)
		if err != nil {
			return err
		}
		if project, isRelay := relayedProject(name); isRelay && inConfig(h.config(), name) {
			return exit(exitData, fmt.Errorf("%s is in the configuration: set relay = \"off\" under [project.%s], then: ampcio reload, then this again. To hold it for a while: ampcio sync pause %[1]s", name, project))
		}
		if inConfig(h.config(), name) {
			return exit(exitData, fmt.Errorf("sync %s is in the configuration: take [sync.%[1]s] out of it, then: ampcio reload, then this again. To hold it for a while: ampcio sync pause %[1]s", name))
		}
		if err := relayedFirst(ctx, h, name); err != nil {
			return err
		}
		if asked.DryRun {
			return tell(out, s)
		}
		if err := h.stopSync(ctx, name); err != nil {
			return exit(exitIO, err)
		}
		if err := queue.RemoveLedger(h.recordLog(), name); err != nil {
			return exit(exitIO, errors.Join(err, h.startSync(context.WithoutCancel(ctx), name)))
		}
		if err := removeDryRun(h.config().Storage.Dir, name); err != nil {
			return exit(exitIO, fmt.Errorf("sync %s is removed, but not what its dry run has written: %w", name, err))
		}
		s.Changed = true
		return tell(out, s)
	})
}
