package delivery

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"ampcio/logbook"
)

// GateState is what a sync's gate is, in one word.
type GateState string

const (
	GateOpen    GateState = "open"
	GateClosed  GateState = "closed"  // the destination fails: one user is tried at a time
	GateOpening GateState = "opening" // it answers again: requests in flight double with each success
)

// closeAfter is how many requests must fail in a row, of more than one user, before
// failures that data could have caused count as the destination's.
const closeAfter = 3

// longAfter is from when on a closed gate is worth a line in the log: Customer.io
// asks for a second's patience more often than anybody wants to read of.
const longAfter = 5 * time.Second

// gate is what the workers pass, behind the door, before they claim. It closes when
// the destination itself fails. Then nothing is claimed but one probe at a time, a
// lane that is alone in its request, by backoff; what it claimed goes back as it
// was, to the end of the queue, so that each probe is another lane. Customer.io's
// next answer about data opens it, without a stampede. One user alone who fails
// never closes it. Safe for concurrent use.
type gate struct {
	o    *Options
	log  *slog.Logger
	base string
	flow func(open bool) // told whether it is open

	mu       sync.Mutex
	changed  chan struct{} // closed, and made anew, when those who wait should look again
	state    GateState
	since    time.Time // of state; of a closed gate, of the first failure that closed it
	era      uint64    // rises when it closes: answers to requests from before are old
	inFlight int       // passes of this era that have not left
	limit    int       // of them, while it is opening
	works    bool      // the newest answer that says something of the destination was a good one
	failures int       // requests in a row that failed
	first    time.Time // of the first of them
	lane     string    // that the only one was about, "" = several
	blamed   int       // lanes that are at fault, since the newest good answer

	// While it is closed.
	reason  string
	patient bool // Customer.io has asked to wait: only a request from after that opens it
	probing bool // a probe is on its way
	probes  int  // that have failed
	next    time.Time
	tried   map[string]bool // lanes whose probes have failed
	logged  reminders
	answers map[string]uint64 // requests that failed since the first of those that closed it, by reason
}

// A pass lets a worker claim, and send what it has claimed.
type pass struct {
	era   uint64
	probe bool // one lane, alone in its request
}

// told is the answer to one request of data, as the gate has to know it.
type told struct {
	pass    pass
	reading reading
	lane    string // that all its operations are of, "" = of several
	suspect bool   // one of the lanes has failed before
	// expected is a failure that was foreseen: something of this request is at fault,
	// and which is being looked for, or known. It says nothing of the destination.
	expected bool
}

// news is what an answer has changed.
type news struct {
	worked bool      // the answer before this one was a good one: the destination works
	blamed bool      // the request's one lane is at fault
	opened bool      // the gate has been opened by it
	since  time.Time // of opened: when the failures began
}

// The most lanes that are remembered as tried, and that are looked at for a good one.
const (
	maxTried   = 4096
	mostChoice = 32
)

func newGate(o *Options, base string) *gate {
	return &gate{o: o, log: o.Log, base: base, flow: func(bool) {}, changed: make(chan struct{}), state: GateOpen, since: o.Now()}
}

// wake lets all who wait look again; with mu held.
func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits until one more may claim. The error is ctx's.
func (g *gate) enter(ctx context.Context) (pass, error) {
	for {
		g.mu.Lock()
		var wait time.Duration // 0 = until something changes
		switch g.state {
		case GateOpen:
		case GateOpening:
			if g.inFlight >= g.limit {
				wait = -1
			}
		case GateClosed:
			if wait = -1; !g.probing {
				wait = max(g.next.Sub(g.o.Now()), 0)
			}
		}
		if wait == 0 {
			p := pass{era: g.era, probe: g.state == GateClosed}
			g.probing = p.probe
			g.inFlight++
			g.mu.Unlock()
			return p, ctx.Err()
		}
		changed := g.changed
		g.mu.Unlock()
		if err := g.wait(ctx, changed, wait); err != nil {
			return pass{}, err
		}
	}
}

// wait returns when something has changed or, if the duration is not negative, it is over.
func (g *gate) wait(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	var over <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-changed:
	case <-over:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// leave gives a pass back.
func (g *gate) leave(p pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.era != g.era {
		return
	}
	g.inFlight--
	if p.probe {
		g.probing = false
	}
	g.wake()
}

// holds tells whether a pass is still good: the gate has not closed since.
func (g *gate) holds(p pass) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return p.era == g.era
}

// isOpen tells whether nothing is wrong, nor was just now.
func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == GateOpen
}

// doubts tells whether one more failure would close the gate.
func (g *gate) doubts() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failures >= closeAfter-1
}

// hasTried tells whether a probe of this lane has failed since the gate closed.
func (g *gate) hasTried(lane string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tried[lane]
}

// probeNow lets the next probe go at once, whatever Customer.io has asked for: a
// person wants to know.
func (g *gate) probeNow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == GateClosed {
		g.next = g.o.Now()
		g.wake()
	}
}

// answered takes the answer to a request of data: a definite one of Customer.io, or
// that there was none.
func (g *gate) answered(t told) news {
	g.mu.Lock()
	defer g.mu.Unlock()
	// What one lane alone has met before tells nothing against the destination when it is
	// that lane's turn again.
	n := news{worked: g.works && (g.failures == 0 || g.lane != "" && g.lane == t.lane)}
	old := t.pass.era != g.era
	r := &t.reading
	if r.verdict == retry {
		if g.answers == nil {
			g.answers = map[string]uint64{}
		}
		g.answers[r.reason]++
	}
	switch {
	case r.verdict != retry && g.state == GateClosed:
		if old && g.patient {
			return n
		}
		n.opened, n.since = true, g.since
		g.open()
	case r.verdict != retry:
		g.works, g.failures, g.blamed = true, 0, 0
		g.answers = nil
		if g.state == GateOpening {
			if g.limit *= 2; g.limit >= g.o.Concurrency {
				g.enterState(GateOpen, g.o.Now())
			}
			g.wake()
		}
	case g.state == GateClosed:
		g.failedWhileClosed(t, old)
	// Who asks to wait is obeyed, but not where all others get through: then it is the data.
	case r.wait > 0 && !(r.ambiguous() && (t.expected || t.suspect && n.worked)), r.blameless() && !old:
		g.count(t)
		g.shut(r)
	case old || t.expected:
	case t.suspect && t.lane != "" && r.ambiguous() && n.worked && g.blamed < closeAfter:
		// Alone it fails again, and all others get through. But not for ever: where
		// everybody has failed before, it may be the destination once more.
		g.blamed++
		n.blamed = true
	default:
		if g.count(t); g.failures >= closeAfter {
			g.shut(r)
		}
	}
	return n
}

// count enters one more failure in a row. One user who fails again and again makes
// no row, however long it lasts.
func (g *gate) count(t told) {
	if g.failures == 0 || t.lane != "" && t.lane == g.lane {
		g.failures, g.first, g.lane = 1, g.o.Now(), t.lane
		return
	}
	g.failures++
	g.lane = ""
}

func (g *gate) failedWhileClosed(t told, old bool) {
	r := &t.reading
	now := g.o.Now()
	switch {
	case !old: // it is the probe
		g.probes++
		g.next = now.Add(g.o.delay(g.probes, r.wait))
		g.reason = r.reason
		if t.lane != "" && len(g.tried) < maxTried {
			g.tried[t.lane] = true
		}
	case r.wait > 0:
		if next := now.Add(r.wait); next.After(g.next) {
			g.next = next
		}
		g.reason = r.reason
	default:
		return
	}
	g.patient = g.patient || r.asksToWait()
	g.remind()
	g.wake()
}

func (g *gate) enterState(s GateState, since time.Time) {
	g.state, g.since = s, since
	g.flow(s != GateClosed)
}

// begin is called when Run begins.
func (g *gate) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flow(g.state != GateClosed)
}

// shut closes the gate, whose failures began at first.
func (g *gate) shut(r *reading) {
	g.enterState(GateClosed, g.first)
	g.era++
	g.inFlight, g.probing, g.probes = 0, false, 0
	g.works, g.blamed = false, 0
	g.reason, g.patient = r.reason, r.asksToWait()
	g.tried = map[string]bool{}
	g.next = g.o.Now().Add(g.o.delay(0, r.wait))
	g.logged = reminders{}
	g.remind()
	g.wake()
}

func (g *gate) open() {
	now := g.o.Now()
	if g.logged.lines > 0 {
		g.log.Info(g.o.service()+" takes data again", "after", logbook.Short(now.Sub(g.since)), "probes", g.probes+1, "failed", g.failed(now))
	}
	g.answers = nil
	g.enterState(GateOpening, now)
	g.limit = 1
	g.works, g.failures, g.blamed = true, 0, 0
	g.tried = nil
	if g.o.Concurrency == 1 {
		g.enterState(GateOpen, now)
	}
	g.wake()
}

// failed sums up the requests that failed: "3 × http_503, 1 × timeout in 41m".
func (g *gate) failed(now time.Time) string {
	var parts []string
	for _, reason := range slices.SortedFunc(maps.Keys(g.answers), func(a, b string) int {
		return cmp.Or(cmp.Compare(g.answers[b], g.answers[a]), cmp.Compare(a, b))
	}) {
		parts = append(parts, fmt.Sprintf("%s × %s", humanize.Comma(int64(g.answers[reason])), reason))
	}
	return strings.Join(parts, ", ") + " in " + logbook.Short(now.Sub(g.since))
}

// remind logs a gate that is closed for long: once, and again more and more seldom.
func (g *gate) remind() {
	now := g.o.Now()
	if g.next.Sub(g.since) < longAfter || !g.logged.due(now) {
		return
	}
	e := g.why()
	g.log.Warn(g.o.service()+" does not take data; one user at a time is tried", "reason", e.Reason, "detail", e.Detail, "do", e.Advice,
		"since", g.since.UTC().Truncate(time.Second), "next_probe", g.next.UTC().Truncate(time.Second), "failed", g.failed(now))
}

// why is what a closed gate tells people.
func (g *gate) why() *AccountError {
	if g.patient {
		return g.o.unreachable(g.reason, g.base+" asks to wait ("+g.reason+")", 0)
	}
	return g.o.unreachable(g.reason, g.base+" does not take data ("+g.reason+")", 0)
}

// show enters the gate into a status.
func (g *gate) show(s *Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Gate, s.GateSince = g.state, g.since
	if g.state != GateClosed || s.State != Delivering {
		if s.State == Delivering && g.since.After(s.Since) {
			s.Since = g.since // before that it was unreachable
		}
		return
	}
	e := g.why()
	s.State, s.Since, s.NextProbe = Unreachable, g.since, g.next
	s.Reason, s.Detail, s.Advice = e.Reason, e.Detail, e.Advice
}

// takeOver goes on where the gate of the generation before has ended.
func (g *gate) takeOver(before *gate) {
	before.mu.Lock()
	defer before.mu.Unlock()
	g.state, g.since, g.limit, g.works = before.state, before.since, before.limit, before.works
	g.failures, g.first, g.lane = before.failures, before.first, before.lane
	g.reason, g.patient, g.probes, g.next, g.tried, g.logged = before.reason, before.patient, before.probes, before.next, before.tried, before.logged
	g.answers = maps.Clone(before.answers)
}
