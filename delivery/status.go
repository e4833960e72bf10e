package delivery

import (
	"time"
)

// State is what a sync is doing, in one word.
type State string

const (
	Checking    State = "checking"    // region and credentials were not yet confirmed since the start
	Delivering  State = "delivering"  // or ready to
	Unreachable State = "unreachable" // Customer.io does not answer, or with errors: not to the question for the region, or the gate is closed; goes on by itself
	Blocked     State = "blocked"     // keys, region, endpoint or workspace are wrong: a person must mend it
	Stopped     State = "stopped"     // Run has ended, or not begun
)

// Status is a sync's state at one moment. Times are zero when there was none.
type Status struct {
	Sync      string    `json:"sync"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"` // one word: http_401, wrong_region, timeout …
	Detail    string    `json:"detail,omitempty"` // what was seen, for a person
	Advice    string    `json:"advice,omitempty"` // what to do, one sentence
	Since     time.Time `json:"since"`            // of State
	NextProbe time.Time `json:"next_probe"`       // when the region endpoint is asked next or, with the gate closed, the next user is tried

	Gate           GateState      `json:"gate"`
	GateSince      time.Time      `json:"gate_since"`               // of a closed gate: since the first failure
	OtherWorkspace OtherWorkspace `json:"other_workspace,omitzero"` // of Blocked by other_workspace

	Failures     int       `json:"failures"`       // requests that failed in a row, up to now
	LastSuccess  time.Time `json:"last_success"`   // Customer.io accepted at least one operation
	LastAnswer   string    `json:"last_answer"`    // to the newest request: ok, http_503, timeout …
	LastAnswerAt time.Time `json:"last_answer_at"` // when that came

	Account  Account `json:"account"`             // as last confirmed
	Rate     float64 `json:"requests_per_second"` // allowed at the moment: halves on 429 and recovers
	InFlight int     `json:"in_flight"`           // requests

	// Since the start of the process.
	Requests       uint64 `json:"requests"`
	FailedRequests uint64 `json:"failed_requests"`
	Operations     uint64 `json:"operations"` // accepted
}

// OtherWorkspace is the workspace that the pending events were accepted for, and the
// one that the keys lead to: Customer.io's environment ids.
type OtherWorkspace struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Status tells what the sync is doing. Safe for concurrent use, also before and
// after Run.
func (s *Sync) Status() Status {
	s.door.mu.Lock()
	status := s.door.status
	s.door.mu.Unlock()
	s.gate.show(&status)
	status.Rate = s.pace.allowed()
	status.InFlight = int(s.inFlight.Load())
	return status
}
