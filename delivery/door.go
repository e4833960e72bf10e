package delivery

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// What is still wrong is in the log again after remindFirst, and then each time after
// twice as long, up to remindMost.
const (
	remindFirst = 10 * time.Minute
	remindMost  = 4 * time.Hour
)

// reminders says when something that lasts is worth another line.
type reminders struct {
	last  time.Time
	lines int // so far
}

// due says whether a line is due, and counts it.
func (r *reminders) due(now time.Time) bool {
	distance := remindFirst
	for i := 1; i < r.lines && distance < remindMost; i++ {
		distance *= 2
	}
	if r.lines > 0 && now.Sub(r.last) < min(distance, remindMost) {
		return false
	}
	r.last = now
	r.lines++
	return true
}

// door is what the workers pass before they claim: open once the region endpoint
// has agreed, closed by an answer that says that keys, region or endpoint are
// wrong. Every request's answer passes here as well, so it is also what keeps
// Status and what logs: when something changes, and more and more seldom for as long
// as it lasts. Behind it stands the gate, which minds failures of the destination
// itself. Safe for concurrent use.
type door struct {
	service   string // that it leads to
	now       func() time.Time
	log       *slog.Logger
	mayRefuse func(bool) // told whether a full queue may refuse new events: not where nobody empties it
	flow      func(open bool)

	mu       sync.Mutex
	isOpen   bool
	open     chan struct{} // closed while the door is open
	shut     chan struct{} // closed while the door is shut
	openedAt time.Time
	status   Status // all but Rate, InFlight and what the gate adds
	logged   reminders
	why      *AccountError // of Blocked
	left     *left         // how the generation before ended, if it was blocked, by the same account; then how this one did
}

// left is a block that outlives a generation.
type left struct {
	why       *AccountError
	since     time.Time
	nextProbe time.Time
}

func newDoor(o *Options) *door {
	d := &door{service: o.service(), now: o.Now, log: o.Log, mayRefuse: func(bool) {}, flow: func(bool) {}, open: make(chan struct{}), shut: make(chan struct{})}
	close(d.shut)
	d.status = Status{Sync: o.Name, State: Stopped, Since: o.Now()}
	return d
}

// takeOver goes on with the counts of the generation before; and where the account
// is the same, with a block of it.
func (d *door) takeOver(before *door, same bool) {
	before.mu.Lock()
	defer before.mu.Unlock()
	s, b := &d.status, &before.status
	s.LastSuccess, s.LastAnswer, s.LastAnswerAt = b.LastSuccess, b.LastAnswer, b.LastAnswerAt
	s.Requests, s.FailedRequests, s.Operations = b.Requests, b.FailedRequests, b.Operations
	if same {
		s.Failures, s.Account = b.Failures, b.Account
		d.left = before.left
	}
}

// enter changes the state, with mu held, and says whether that is worth a line.
func (d *door) enter(state State, reason, detail, advice string) (news bool) {
	s := &d.status
	news = s.State != state || s.Reason != reason
	if s.State != state {
		s.State, s.Since = state, d.now()
	}
	s.Reason, s.Detail, s.Advice = reason, detail, advice
	s.OtherWorkspace = OtherWorkspace{}
	d.mayRefuse(state == Delivering || state == Unreachable)
	if news {
		d.logged = reminders{}
	}
	return d.logged.due(d.now())
}

func (d *door) close() {
	if d.isOpen {
		d.isOpen = false
		d.open = make(chan struct{})
		close(d.shut)
		d.flow(false)
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
	d.left = nil
	if d.status.State == Blocked {
		d.left = &left{d.why, d.status.Since, d.status.NextProbe}
	}
	d.enter(Stopped, "", "", "")
	d.status.NextProbe = time.Time{}
}

// resume blocks the sync as the generation before was, and says when to ask next;
// zero = at once.
func (d *door) resume() (next time.Time) {
	d.mu.Lock()
	l := d.left
	d.mu.Unlock()
	if l == nil {
		return time.Time{}
	}
	d.block(l.why, d.now())
	d.mu.Lock()
	d.status.Since = l.since
	d.mu.Unlock()
	return l.nextProbe
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

// untilShut is closed when the door is shut.
func (d *door) untilShut() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shut
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
	if d.isOpen {
		return
	}
	d.isOpen = true
	d.openedAt = d.now()
	d.shut = make(chan struct{})
	close(d.open)
	d.flow(true)
	before, since := d.status.State, d.status.Since
	d.status.Account = account
	d.status.Failures = 0
	d.status.NextProbe = time.Time{}
	d.enter(Delivering, "", "", "")
	told := []any{"region", account.Region}
	if account.EnvironmentID != 0 {
		told = append(told, "environment_id", account.EnvironmentID)
	}
	if before == Checking {
		d.log.Info(d.service+" knows the account, delivering", told...)
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
	d.why = e
	news := d.enter(Blocked, e.Reason, e.Detail, e.Advice)
	d.status.OtherWorkspace = e.other
	if news {
		d.log.Error("delivery is blocked; events are kept", "reason", e.Reason, "detail", e.Detail, "do", e.Advice, "since", d.status.Since.UTC().Truncate(time.Second))
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
		d.log.Warn(d.service+" does not confirm the account; events are kept", "reason", e.Reason, "detail", e.Detail, "do", "nothing: it is asked again by itself; if it lasts: ampcio check-config --online", "tries", d.status.Failures)
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
		s.Failures = 0
		return
	}
	s.FailedRequests++
	s.Failures++
}
