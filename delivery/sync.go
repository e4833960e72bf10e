// Package delivery brings the records of a sync's queue to Customer.io, and those of a
// relay's to Amplitude, in order for each person, and enters in the ledger what became of
// each: nothing counts as delivered, or as refused, but what the service itself has
// answered; and as refused what is known beforehand, too large or too late.
//
// The two differ behind one small seam (destination.go): Amplitude's side of it is
// amplitude.go, and its answers are read in amplitudeverdict.go. What is said of
// Customer.io elsewhere holds for both.
//
// One batch: a worker claims lanes until a request is full (batch.go), sends it
// (send.go, client.go), reads the answer operation by operation (verdict.go) and
// settles each claim (settle.go). Dead letters that are tried again are mapped anew
// (replay.go). pace.go and backoff.go say when the next request may leave.
//
// Three things can be wrong, and each holds up only those whom it concerns. Keys,
// region, endpoint (account.go) or workspace (workspace.go): the door (door.go) is shut
// until a person has mended it. The destination itself: the gate (gate.go) is closed,
// and one user at a time is tried. What one user sends: it is found among the others,
// who are delivered, and waits alone (bisect.go).
//
// A Sync is one generation of rules and settings; what it knew of the destination goes
// over to the next (Options.Before).
package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio/logbook"
	"ampcio/mapping"
	"ampcio/queue"
)

// Options are one sync's settings. Zero values of the numbers and durations take
// the defaults in brackets.
type Options struct {
	Name     string // of the sync
	SiteID   string
	APIKey   string `json:"-"` // secret: never in an error, a log line or Status
	Region   string // us | eu
	Endpoint string // another base URL; "" = the service's own for the region
	// Relay, when set, sends events to Amplitude instead of Customer.io: without rules, Site
	// ID and API key.
	Relay *Relay

	Concurrency       int           // requests in flight [4]
	RequestsPerSecond float64       // [100]
	BatchOperations   int           // operations in a request, at most [500; a relay 2000]
	Timeout           time.Duration // of one request [30 s]
	RetryInitial      time.Duration // [500 ms]
	RetryMax          time.Duration // [5 min]
	StopGrace         time.Duration // how long requests in flight may take after ctx ended [20 s]
	UserAgent         string        // [ampcio]

	LateAfter  time.Duration // events older than that, by their own time, are late; 0 = none is
	LatePolicy string        // what is done with them: deliver (also ""), filter or dead_letter
	// Current gives the properties of a user as they are now, one JSON object, and the built-in
	// ones, packed (mapping), for dead letters that are tried again; nil when nothing is known
	// of the user, and of a device without a user_id also when others than its Owner may be meant. Without it they are taken from the record. An error ends Run.
	Current func(project, userID, deviceID string) (properties, builtins []byte, err error) `json:"-"`
	// Owner gives the user_id of the first and only user of a device, "" when there is none: to them belongs, for dead letters
	// that are tried again, what the device did before anybody had logged in there. Without it that is nobody's.
	Owner func(project, deviceID string) (userID string, err error) `json:"-"`
	// Marked says by its sequence whether a relayed record gets Relay.Mark; nil = all do. It
	// must say the same each time it is asked.
	Marked func(seq uint64) bool `json:"-"`
	// Before is the generation of this sync that has ended: what it knew of the
	// destination is gone on with, so that a reload neither asks wrong keys too often nor
	// sends into an outage at full speed. nil = there was none in this process.
	Before *Sync `json:"-"`

	Meter     *Meter `json:"-"` // counts what is done; nil = nobody asks
	Now       func() time.Time
	Log       *slog.Logger
	Beat      func()            // called every few seconds unless the ledger is stuck; nil = nobody listens
	Transport http.RoundTripper // nil = the network
}

// String keeps the key out of whatever prints the options.
func (o Options) String() string { return "delivery of " + o.Name }

func (o Options) withDefaults() Options {
	o.Concurrency = orElse(o.Concurrency, 4)
	o.RequestsPerSecond = orElse(o.RequestsPerSecond, 100)
	if o.Relay != nil {
		o.BatchOperations = orElse(o.BatchOperations, maxRelayEvents)
	}
	o.BatchOperations = orElse(o.BatchOperations, 500)
	o.Timeout = orElse(o.Timeout, 30*time.Second)
	o.RetryInitial = orElse(o.RetryInitial, 500*time.Millisecond)
	o.RetryMax = orElse(o.RetryMax, 5*time.Minute)
	o.StopGrace = orElse(o.StopGrace, 20*time.Second)
	if o.UserAgent == "" {
		o.UserAgent = "ampcio"
	}
	if o.Meter == nil {
		o.Meter = new(Meter)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func orElse[T int | float64 | time.Duration](value, other T) T {
	if value <= 0 {
		return other
	}
	return value
}

// Sync delivers the records of one queue consumer by one generation of rules.
type Sync struct {
	o      Options
	source *queue.Consumer
	rules  *mapping.Rules // nil for a relay
	to     destination
	client *client
	door   *door
	gate   *gate
	flow   flow
	pace   *pace
	desk   desk

	culprits  culprits
	throttles throttles
	questions chan question

	ended    chan struct{}   // closed when Run has
	cut      context.Context // of requests: ends StopGrace after Run's ctx
	inFlight atomic.Int64
	ledger   []atomic.Int64             // per worker: since when it is in the ledger's hands (Unix ns), 0 = it is not
	counter  chan struct{}              // how many may be: see inLedger
	ahead    func(*queue.Record) string // the identifier that a record will be asked for, "" = none; nil = nobody asks

	repeats *logbook.Book // of dead letters
}

// New prepares a sync; nothing is sent or claimed before Run. A relay has no rules: nil.
func New(source *queue.Consumer, rules *mapping.Rules, o Options) *Sync {
	o = o.withDefaults()
	o.Log = o.Log.With("sync", o.Name)
	s := &Sync{o: o, source: source, rules: rules, client: newClient(o), pace: newPace(&o)}
	s.to = s.newDestination()
	s.door = newDoor(&s.o)
	s.desk.turn = make(chan struct{}, 1)
	s.desk.turn <- struct{}{}
	s.ledger = make([]atomic.Int64, o.Concurrency)
	s.counter = make(chan struct{}, runtime.GOMAXPROCS(0))
	s.repeats = logbook.New(s.o.Log, s.o.Now)
	if rules != nil {
		s.ahead = s.keyOf
	}
	s.door.mayRefuse = source.MayRefuse
	s.gate = newGate(&s.o, s.client.shown)
	s.flow.tell = source.Flowing
	s.door.flow, s.gate.flow = s.flow.door, s.flow.gate
	s.culprits.lanes = map[string]culprit{}
	s.questions = make(chan question, 1)
	s.ended = make(chan struct{})
	if before := o.Before; before != nil {
		s.takeOver(before)
		s.o.Before = nil // its own may not be kept for ever
	}
	return s
}

// flow tells the consumer whether what it gives out is delivered: both the door and the
// gate are open.
type flow struct {
	mu             sync.Mutex
	tell           func(bool)
	isDoor, isGate bool
}

func (f *flow) door(open bool) { f.set(&f.isDoor, open) }
func (f *flow) gate(open bool) { f.set(&f.isGate, open) }

func (f *flow) set(which *bool, open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *which != open {
		*which = open
		f.tell(f.isDoor && f.isGate)
	}
}

// takeOver goes on with what the generation before has counted and, where the
// account and its address are the same, with what it knew of them.
func (s *Sync) takeOver(before *Sync) {
	same := before.client.sameAccount(s.client) && before.o.Region == s.o.Region
	s.door.takeOver(before.door, same)
	if same {
		s.gate.takeOver(before.gate)
		s.culprits.takeOver(&before.culprits)
		s.throttles.takeOver(&before.throttles)
		s.pace.takeOver(before.pace)
	}
}

// Run delivers until ctx ends: then nothing more is claimed, requests in flight
// may finish within StopGrace, and what did not finish stays in the queue as it
// was. It returns when all its goroutines have, so the consumer must keep running
// until then. An error is of the ledger: it could not be read. Run may be called
// once.
func (s *Sync) Run(ctx context.Context) error {
	cut, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	s.cut = cut
	defer s.client.close()
	defer s.repeats.Close()
	s.door.begin()
	s.gate.begin()
	defer close(s.ended)
	defer s.door.end()

	// The attendants outlive the workers: the watchdog is fed until the last has ended.
	beating, still := context.WithCancel(cut)
	var attendants sync.WaitGroup
	defer attendants.Wait()
	defer still()
	attendants.Go(func() { s.beat(beating) })

	workers, ctx := errgroup.WithContext(ctx)
	attendants.Go(func() {
		select {
		case <-ctx.Done():
		case <-beating.Done():
			return
		}
		grace := time.NewTimer(s.o.StopGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
			hangUp()
		case <-beating.Done():
		}
	})
	workers.Go(func() error { s.watch(ctx); return nil })
	for i := range s.o.Concurrency {
		workers.Go(func() error { return s.work(ctx, &s.ledger[i]) })
	}
	return workers.Wait()
}

// work is one worker: it has at most one batch in hand.
func (s *Sync) work(ctx context.Context, ledger *atomic.Int64) error {
	for s.door.wait(ctx) == nil {
		p, err := s.gate.enter(ctx)
		if err != nil {
			return nil // it is ctx's
		}
		claim, err := s.claim(ctx, p)
		if err != nil {
			return nil // likewise
		}
		for claim != nil && err == nil {
			claim, err = s.deliver(ctx, p, claim, ledger)
		}
		s.gate.leave(p)
		if err != nil {
			return fmt.Errorf("deliver %s: %w", s.o.Name, err)
		}
	}
	return nil
}

// claim waits for something to be due. A probe is, as far as there is one, a lane
// that was not tried since the gate closed, and not one that failed before it did.
func (s *Sync) claim(ctx context.Context, p pass) (*queue.Claim, error) {
	claim, err := s.source.Claim(ctx)
	if err != nil || !p.probe {
		return claim, err
	}
	return s.choose(claim, func(lane string) bool { return s.innocent(lane) && !s.gate.hasTried(lane) }), nil
}

// choose gives the first claim of a lane that is a good one, of those that are due, or
// the one it was given when there is none. The others go to the end of the queue.
func (s *Sync) choose(first *queue.Claim, good func(lane string) bool) *queue.Claim {
	claim := first
	var others []*queue.Claim
	for !good(claim.Lane()) {
		others = append(others, claim)
		if claim = s.source.TryClaim(); claim == nil || len(others) == mostChoice {
			if claim != nil {
				others = append(others, claim)
			}
			claim, others = first, others[1:]
			break
		}
	}
	for _, other := range others {
		other.Return()
	}
	return claim
}

func (s *Sync) innocent(lane string) bool {
	_, known := s.culprits.of(lane)
	return !known
}

// deliver makes a batch that begins with the claim, sends it, and ends all its
// claims but the one it gives back: that is the next batch. An error is of the ledger.
func (s *Sync) deliver(ctx context.Context, p pass, first *queue.Claim, ledger *atomic.Int64) (next *queue.Claim, err error) {
	if ctx.Err() != nil || !s.mayGoOn(p) {
		first.Return()
		return nil, nil
	}
	b := s.newBatch(p, ledger)
	defer b.end()
	s.inLedger(ledger, func() { s.fill(b, first) })
	if len(b.taken) == 0 {
		return nil, b.err
	}
	if b.err == nil && s.pace.wait(ctx) == nil {
		b.paid = true
		// Waiting for the turn may have taken time: more may be due by now.
		s.inLedger(ledger, func() { s.fill(b, nil) })
		if b.err == nil {
			s.send(ctx, b)
		}
	}
	s.inLedger(ledger, func() {
		s.settle(slices.DeleteFunc(b.taken, func(t *taken) bool { return t.settled })...)
	})
	if b.err != nil && b.next != nil {
		b.next.Return()
		b.next = nil
	}
	return b.next, b.err
}

// inLedger calls f, which fills or settles a batch: mostly work for a processor, and under one lock
// for much of it. So there are no more at a time than there are processors. All workers at
// once would wait for that lock for so long that Go hands it from one to the next, each of
// whom has to be woken first, and the processors are idle meanwhile; and they would share
// what is ready in small batches. What it reads of files, of people not heard of for long and of
// who waits aside, is read by as many at a time, which a disk takes well.
func (s *Sync) inLedger(since *atomic.Int64, f func()) {
	s.counter <- struct{}{}
	defer func() { <-s.counter }()
	since.Store(s.o.Now().UnixNano())
	defer since.Store(0)
	f()
}

// A worker that is in the ledger's hands for longer than stuckAfter counts as
// stuck; filling and settling a batch take milliseconds.
const (
	beatEvery  = 2 * time.Second
	stuckAfter = 20 * time.Second
)

// beat feeds the watchdog. Neither an idle queue nor a Customer.io that does not
// answer stops it; a ledger that does not let go of a worker does. (That its
// checkpoints reach the disk is what the consumer's own Beat tells.)
func (s *Sync) beat(ctx context.Context) {
	if s.o.Beat == nil {
		return
	}
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		oldest := s.o.Now().Add(-stuckAfter).UnixNano()
		stuck := false
		for i := range s.ledger {
			since := s.ledger[i].Load()
			stuck = stuck || since != 0 && since < oldest
		}
		if !stuck {
			s.o.Beat()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// RetryNow tries all that waits at once: the region endpoint is asked if the door is
// shut, the gate lets its next probe go, and every lane is due. The rate limit holds.
// It does not wait for what comes of it.
func (s *Sync) RetryNow() {
	select {
	case s.questions <- question{}:
	default: // somebody has asked already
	}
	s.gate.probeNow()
	s.source.Hasten(time.Time{})
}
