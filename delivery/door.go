package delivery

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Requests that fail in a row, of whichever users: so many, over so long, and the
// destination rather than a request is to blame.
const (
	unreachableFailures = 3
	unreachableAfter    = 5 * time.Second
)

const remindEvery = 10 * time.Minute // in the log, of what is still wrong

// door is what the workers pass before they claim: open once the region endpoint
// has agreed, closed by an answer that says that keys, region or endpoint are
// wrong. Every request's answer passes here as well, so it is also what keeps
// Status and what logs: when something changes, and every ten minutes for as long
// as it lasts. Safe for concurrent use.
//
// The destination-wide gate (failures of the destination itself, one probe at a
// time) is the second thing that can stand between wait and the workers; answered
// sees all that it would need to know.
type door struct {
	now  func() time.Time
	log  *slog.Logger
	base string

	mu       sync.Mutex
	isOpen   bool
	open     chan struct{} // closed while the door is open
	shut     chan struct{} // closed while the door is shut
	openedAt time.Time
	status   Status // all but Rate and InFlight
	logged   time.Time
	failing  time.Time // of the first of status.Failures
}

func newDoor(o *Options, base string) *door {
	d := &door{now: o.Now, log: o.Log, base: base, open: make(chan struct{}), shut: make(chan struct{})}
	close(d.shut)
	d.status = Status{Sync: o.Name, State: Stopped, Since: o.Now()}
	return d
}

// enter changes the state, with mu held, and says whether that is worth a line.
func (d *door) enter(state State, reason, detail, advice string) (news bool) {
	s := &d.status
	news = s.State != state || s.Reason != reason
	if s.State != state {
		s.State, s.Since = state, d.now()
	}
	s.Reason, s.Detail, s.Advice = reason, detail, advice
	if now := d.now(); news || now.Sub(d.logged) >= remindEvery {
		d.logged = now
		return true
	}
	return false
}

func (d *door) close() {
	if d.isOpen {
		d.isOpen = false
		d.open = make(chan struct{})
		close(d.shut)
	}
}

// begin and end bracket Run.
func (d *door) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.enter(Checking, "", "", "")
}

func (d *door) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.close()
	d.enter(Stopped, "", "", "")
	d.status.NextProbe = time.Time{}
}

// wait returns when the door is open, or with an error when ctx has ended.
func (d *door) wait(ctx context.Context) error {
	d.mu.Lock()
	open := d.open
	d.mu.Unlock()
	select {
	case <-open:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitShut returns true when the door is shut, false when ctx ended first.
func (d *door) waitShut(ctx context.Context) bool {
	d.mu.Lock()
	shut := d.shut
	d.mu.Unlock()
	select {
	case <-shut:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (d *door) passable() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isOpen
}

func (d *door) blocked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status.State == Blocked
}

// probeAt notes when the region endpoint is asked next; zero = not while all is well.
func (d *door) probeAt(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.NextProbe = t
}

// agree opens the door: the region endpoint knows the account.
func (d *door) agree(account Account) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isOpen {
		d.isOpen = true
		d.openedAt = d.now()
		d.shut = make(chan struct{})
		close(d.open)
	}
	before, since := d.status.State, d.status.Since
	d.status.Account = account
	d.status.Failures = 0
	d.status.NextProbe = time.Time{}
	d.enter(Delivering, "", "", "")
	told := []any{"region", account.Region, "environment_id", account.EnvironmentID}
	if before == Checking {
		d.log.Info("Customer.io knows the account, delivering", told...)
	} else {
		d.log.Info("delivering again", append(told, "after", d.now().Sub(since).Round(time.Second))...)
	}
}

// block shuts the door. began is when the request was sent that showed the
// trouble: one from before the door was last opened tells nothing about now.
func (d *door) block(e *AccountError, began time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isOpen && began.Before(d.openedAt) {
		return
	}
	d.close()
	if d.enter(Blocked, e.Reason, e.Detail, e.Advice) {
		d.log.Error("delivery is blocked; events are kept", "reason", e.Reason, "detail", e.Detail, "do", e.Advice)
	}
}

// noAnswer notes that the region endpoint could not be asked. What blocked the
// sync before is still what blocks it.
func (d *door) noAnswer(e *AccountError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.status.State == Blocked {
		return
	}
	d.status.Failures++
	if d.enter(Unreachable, e.Reason, e.Detail, e.Advice) {
		d.log.Warn("Customer.io does not confirm the account; events are kept", "reason", e.Reason, "detail", e.Detail, "tries", d.status.Failures)
	}
}

// answered notes the answer to a request of data: accepted operations, or why not.
func (d *door) answered(r reading, accepted int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.status
	s.Requests++
	s.Operations += uint64(accepted)
	s.LastAnswerAt = d.now()
	s.LastAnswer = r.reason
	if r.verdict == delivered {
		s.LastAnswer = "ok"
	}
	if accepted > 0 {
		s.LastSuccess = s.LastAnswerAt
	}
	if r.verdict != retry {
		if d.isOpen && s.State == Unreachable {
			failures, since := s.Failures, s.Since
			d.enter(Delivering, "", "", "")
			d.log.Info("Customer.io answers again", "failed", failures, "after", d.now().Sub(since).Round(time.Second))
		}
		s.Failures = 0
		return
	}
	s.FailedRequests++
	if s.Failures++; s.Failures == 1 {
		d.failing = s.LastAnswerAt
	}
	if d.isOpen && s.Failures >= unreachableFailures && d.now().Sub(d.failing) >= unreachableAfter {
		e := unreachable(r.reason, d.base+" does not take data ("+r.reason+")", 0)
		news := d.enter(Unreachable, e.Reason, e.Detail, e.Advice)
		s.Since = d.failing
		if news {
			d.log.Warn("Customer.io does not take data; it is tried again", "reason", r.reason, "failed", s.Failures)
		}
	}
}
