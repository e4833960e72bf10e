package delivery

import (
	"context"
	"slices"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// destination is all that the engine (order per user, gate, bisection, ledger) does not
// know of the service that it delivers to: what is sent of a record, how operations make a
// request, and what the answers mean.
type destination interface {
	// plan maps one record to its operations; Sync.plan says how.
	plan(m *memory, q *queue.Record, repeat *again, before earlier) (p part, held bool, err error)
	// fits tells whether so many operations, with so many bytes and as many commas, may be
	// one request.
	fits(operations, bytes int) bool
	// together divides operations, of which there is one at least, into those that may go in
	// the next request and the others. Each lane keeps its order over both.
	together(operations []*operation) (now, then []*operation)
	// post sends operations of one request, in their order; none = a question that changes
	// nothing and is answered like data.
	post(ctx context.Context, operations []*operation) answer
	// read says what the answer to a request of these operations means; none = to the question.
	read(operations []*operation, a answer, now time.Time) reading
	// ask asks whether the account is good, once.
	ask(ctx context.Context) (Account, *AccountError)
	// blockedBy says what an answer to data means that only a person can mend.
	blockedBy(r reading, a answer) *AccountError
}

// Relay makes a Sync one that passes events on to Amplitude, as they are.
type Relay struct {
	Project string   // its name, for people
	Keys    []string // the project's API keys; an event goes under the one that it came with, else the first
	Mark    string   // event property that is added to relayed events (Options.Marked), true; "" = none
}

// service is the name of where it goes to, for people.
func (o *Options) service() string {
	if o.Relay != nil {
		return "Amplitude"
	}
	return "Customer.io"
}

func (s *Sync) newDestination() destination {
	if s.o.Relay != nil {
		return newAmplitude(s)
	}
	return customerIO{s}
}

// customerIO is Customer.io's Track API.
type customerIO struct{ s *Sync }

func (c customerIO) plan(m *memory, q *queue.Record, repeat *again, before earlier) (part, bool, error) {
	return c.s.plan(m, q, repeat, before)
}

func (c customerIO) fits(operations, bytes int) bool {
	return operations <= c.s.o.BatchOperations && len(batchOpen)+bytes-1+len(batchClose) <= maxRequestBytes
}

func (c customerIO) together(operations []*operation) (now, then []*operation) {
	return together(operations)
}

// together divides operations: one that does not go into a batch goes alone. From each
// lane it takes what may go now, up to the first that may not.
func together(operations []*operation) (now, then []*operation) {
	if operations[0].path != "" {
		return operations[:1], operations[1:]
	}
	if !slices.ContainsFunc(operations, func(o *operation) bool { return o.path != "" }) {
		return operations, nil
	}
	var held *taken // lanes are contiguous
	for _, o := range operations {
		if held == nil || o.of != held {
			if held = nil; o.path != "" {
				held = o.of
			}
		}
		if held != nil {
			then = append(then, o)
		} else {
			now = append(now, o)
		}
	}
	return now, then
}

func (c customerIO) post(ctx context.Context, operations []*operation) answer {
	return c.s.client.send(ctx, operations)
}

func (c customerIO) read(operations []*operation, a answer, now time.Time) reading {
	r := read(max(len(operations), 1), a, now)
	if len(operations) == 1 && mapping.NamesPerson(operations[0].path) {
		return readOfPerson(r, a)
	}
	return r
}

func (c customerIO) ask(ctx context.Context) (Account, *AccountError) {
	return judgeAccount(c.s.client.region(ctx), &c.s.o, c.s.client.shown)
}

func (c customerIO) blockedBy(r reading, a answer) *AccountError {
	return blockedBy(r.reason, a.location, &c.s.o, c.s.client.shown)
}
