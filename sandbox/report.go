package sandbox

import (
	"time"
)

const (
	maxNotes    = 1000 // distinct notes counted
	maxFaultLog = 200  // fault decisions listed
)

// counters are what the report is made of. They belong to Sandbox.mu.
type counters struct {
	answers     map[answerKey]int64
	bytes       int64
	first, last time.Time // of requests
	inFlight    int64
	maxInFlight int64
	maxOps      int
	maxBytes    int

	operations [actions]int64
	invalid    map[string]int64
	notes      map[string]int64
	faults     map[string]int64
	faultLog   []FaultDecision

	events, unique, duplicates, differing, anonymous, merged, notKept int64
	withoutOrder, forgottenIDs                                        int64
	applied, stale, unchanged, failedChanges                          int64
	overlaps                                                          int64
	firstOutOfOrder, firstDiffering, firstInvalid, firstOverlap       string
}

type answerKey struct {
	route   route
	outcome string
}

// begin counts a request in and gives it its number, from 1.
func (s *Sandbox) begin(rt route, dots bool) uint64 {
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n.first.IsZero() {
		s.n.first = now
	}
	s.n.inFlight++
	s.n.maxInFlight = max(s.n.maxInFlight, s.n.inFlight)
	if dots {
		s.note("dot_segments_in_path")
	}
	return s.requests.Add(1)
}

func (s *Sandbox) end(rt route, outcome string, people []string) {
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range people {
		if s.busy[key]--; s.busy[key] <= 0 {
			delete(s.busy, key)
		}
	}
	s.n.inFlight--
	s.n.last = now
	if s.n.answers == nil {
		s.n.answers = map[answerKey]int64{}
	}
	s.n.answers[answerKey{rt, outcome}]++
}

func (s *Sandbox) decide(p *plan, number uint64, rt route, path string, body []byte) decision {
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.bytes += int64(len(body))
	s.n.maxBytes = max(s.n.maxBytes, len(body))
	d := p.decide(s.o.Seed, number, rt, now, &s.limit)
	p.spoil(&d, path, body)
	if d.kind != "" {
		if s.n.faults == nil {
			s.n.faults = map[string]int64{}
		}
		s.n.faults[d.name()]++
		if len(s.n.faultLog) < maxFaultLog {
			s.n.faultLog = append(s.n.faultLog, FaultDecision{number, d.name(), routeNames[rt]})
		}
	}
	return d
}

// note counts something a careful client would not do, or that Customer.io drops
// while answering 200. The caller holds s.mu.
func (s *Sandbox) note(what string) {
	if s.n.notes == nil {
		s.n.notes = map[string]int64{}
	}
	if _, known := s.n.notes[what]; known || len(s.n.notes) < maxNotes {
		s.n.notes[what]++
	}
}

func (s *Sandbox) lockedNote(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(what)
}

func (s *Sandbox) countProblem(p *problem) {
	if s.n.invalid == nil {
		s.n.invalid = map[string]int64{}
	}
	s.n.invalid[p.rule]++
	if p.rule == "fault_refuse" || p.rule == "fault_partial" {
		return
	}
	if s.n.firstInvalid == "" {
		s.n.firstInvalid = p.rule + ": " + p.field + ": " + p.message
	}
}

// Report is what happened since the start or the last reset. Its JSON names are
// stable; later versions may add some.
type Report struct {
	Schema        int                         `json:"schema"` // 1
	Seconds       float64                     `json:"seconds_first_to_last"`
	Requests      int64                       `json:"requests"`
	ByEndpoint    map[string]map[string]int64 `json:"requests_by_endpoint"` // endpoint → status, "cut", "truncated", or "gone" (the client broke off)
	RequestBytes  int64                       `json:"request_bytes"`
	InFlight      int64                       `json:"requests_in_flight"`
	MaxInFlight   int64                       `json:"max_requests_in_flight"`
	MaxOperations int                         `json:"max_operations_a_request"`
	MaxBytes      int                         `json:"max_bytes_a_request"` // 500001 = larger than allowed

	Operations map[string]int64 `json:"operations"` // accepted ones by action; repeated events included
	Events     EventReport      `json:"events"`
	Identifies IdentifyReport   `json:"identifies"`
	People     int64            `json:"people"`
	Order      OrderReport      `json:"order"`

	Invalid      map[string]int64 `json:"invalid"` // operations and requests refused, by rule; fault_… are those of Faults
	FirstInvalid string           `json:"first_invalid"`
	Notes        map[string]int64 `json:"notes"`

	Faults         string           `json:"faults"` // in force now, as ParseFaults reads them
	FaultsInjected map[string]int64 `json:"faults_injected"`
	FaultLog       []FaultDecision  `json:"fault_log"` // the first 200
	Seed           uint64           `json:"seed"`
}

// EventReport counts events, pages and screens.
type EventReport struct {
	Received       int64  `json:"received"`
	Accepted       int64  `json:"accepted"`         // first seen, or without an id that can tell
	Unique         int64  `json:"unique_events"`    // accepted with a ULID
	Duplicates     int64  `json:"duplicate_events"` // repeats of a ULID, ignored
	Differing      int64  `json:"duplicate_events_differing"`
	FirstDiffering string `json:"first_differing_id"` // a ULID that came again with another person, name or time: two events share it
	Anonymous      int64  `json:"anonymous_events"`
	Merged         int64  `json:"anonymous_events_merged"`
	Kept           int64  `json:"kept"`
	NotKept        int64  `json:"not_kept"` // counted only, above MaxKeptEvents
	ForgottenIDs   int64  `json:"forgotten_ids"`
}

// IdentifyReport counts identifies that were valid.
type IdentifyReport struct {
	Applied       int64 `json:"applied"`
	Unchanged     int64 `json:"applied_without_change"`
	Stale         int64 `json:"stale"` // older than the person's last: dropped in silence
	FailedChanges int64 `json:"failed_attribute_changes"`
}

// OrderReport says what the order attribute shows, per person by first arrival.
type OrderReport struct {
	Attribute  string `json:"attribute"` // "" = not checked
	Checked    int64  `json:"checked_events"`
	OutOfOrder int64  `json:"out_of_order_events"`
	Repeated   int64  `json:"repeated_numbers"` // the same number under two event ids
	Missing    int64  `json:"missing_events"`   // numbers never seen, below the person's highest
	Without    int64  `json:"events_without_attribute"`
	First      string `json:"first_out_of_order"`

	Overlaps     int64  `json:"overlapping_requests"` // operations on a person in another unanswered request; when checked
	FirstOverlap string `json:"first_overlap"`
}

// FaultDecision is a fault that a request met.
type FaultDecision struct {
	Request  uint64 `json:"request"` // its number, from 1
	Fault    string `json:"fault"`
	Endpoint string `json:"endpoint"`
}

// Report sums up. It walks all people, which takes about 10 ms for 100,000.
func (s *Sandbox) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, w := &s.n, s.world
	r := Report{Schema: 1, ByEndpoint: map[string]map[string]int64{}, RequestBytes: n.bytes, InFlight: n.inFlight,
		MaxInFlight: n.maxInFlight, MaxOperations: n.maxOps, MaxBytes: n.maxBytes, Operations: map[string]int64{},
		People: int64(w.alive), Invalid: clone(n.invalid), FirstInvalid: n.firstInvalid, Notes: clone(n.notes),
		Faults: s.plan.Load().String(), FaultsInjected: clone(n.faults), FaultLog: append([]FaultDecision{}, n.faultLog...), Seed: s.o.Seed}
	for k, v := range n.answers {
		by := r.ByEndpoint[routeNames[k.route]]
		if by == nil {
			by = map[string]int64{}
			r.ByEndpoint[routeNames[k.route]] = by
		}
		by[k.outcome] += v
		r.Requests += v
	}
	if n.last.After(n.first) {
		r.Seconds = n.last.Sub(n.first).Seconds()
	}
	for a, v := range n.operations {
		if v > 0 {
			r.Operations[actionNames[a]] = v
		}
	}
	r.Events = EventReport{Received: n.events, Accepted: n.events - n.duplicates, Unique: n.unique, Duplicates: n.duplicates,
		Differing: n.differing, FirstDiffering: n.firstDiffering, Anonymous: n.anonymous, Merged: n.merged,
		Kept: int64(len(w.events)), NotKept: n.notKept, ForgottenIDs: n.forgottenIDs}
	r.Identifies = IdentifyReport{Applied: n.applied, Unchanged: n.unchanged, Stale: n.stale, FailedChanges: n.failedChanges}
	sum := w.goneOrder
	for _, p := range w.people {
		if !p.gone {
			sum.add(p.order.counts(s.o.OrderFirst))
		}
	}
	for _, st := range w.strangers {
		sum.add(st.order.counts(s.o.OrderFirst))
	}
	r.Order = OrderReport{Attribute: s.o.OrderAttribute, Checked: sum.given, OutOfOrder: sum.outOfOrder, Repeated: sum.repeated,
		Missing: sum.missing, Without: n.withoutOrder, First: n.firstOutOfOrder, Overlaps: n.overlaps, FirstOverlap: n.firstOverlap}
	return r
}

func clone(m map[string]int64) map[string]int64 {
	out := make(map[string]int64, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}
