package delivery

import (
	"context"
	"net/http"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// origin is which record an operation came from.
type origin struct {
	seq      uint64
	received int64  // ms since 1970 UTC
	user     string // its user_id, else its device_id
}

// Base is the address of the API that these options lead to, without a slash at the end.
func (o Options) Base() string { return newClient(o).shown }

// Origin is what a Transport may know of an operation beside its bytes.
type Origin struct {
	Action   string
	Sequence uint64 // of the record
	Received time.Time
	User     string // the record's user_id, else its device_id
	Body     []byte // must not be changed
}

type originsKey struct{}

func withOrigins(ctx context.Context, operations []*operation) context.Context {
	return context.WithValue(ctx, originsKey{}, operations)
}

// Origins lists, in their order, the operations of a request that a Sync hands to its
// Transport, by the context of the request; none for a request without any. They are good until RoundTrip returns.
func Origins(ctx context.Context) []Origin {
	operations, _ := ctx.Value(originsKey{}).([]*operation)
	list := make([]Origin, len(operations))
	for i, o := range operations {
		list[i] = Origin{o.action, o.origin.seq, time.UnixMilli(o.origin.received), o.origin.user, o.body}
	}
	return list
}

// Plan is what a Sync would make of one record, if it stood alone.
type Plan struct {
	Decision   mapping.Decision
	Key        string // of the identifier, "" when there is none
	Operations []PlannedOperation
	Requests   []PlannedRequest // in their order
	// Unreadable is why the record would end as a dead letter, whole; "" when it can be read.
	Unreadable, UnreadableDetail string

	verdict, reason string
	sent            []byte
}

// Verdict says how the record would end, if all that is sent were accepted: sent,
// filtered or dead, and why, by the same code as its outcome.
func (p *Plan) Verdict() (verdict, reason string) { return p.verdict, p.reason }

// Sent is what the identifier will have been sent then; nil = as before.
func (p *Plan) Sent() []byte { return p.sent }

// PlannedOperation is an operation, or why it would be refused without being sent.
type PlannedOperation struct {
	Action        string
	Body          []byte
	Refused       string // the reason of the dead letter; "" = it is sent
	RefusedDetail string
}

// PlannedRequest is a request as it goes to Customer.io, but for the credentials.
type PlannedRequest struct {
	Method, Path string
	Body         []byte
}

// alone is what was sent before to identifiers that nobody else holds.
type alone func(key string) ([]byte, error)

func (f alone) sentTo(key string) (sent []byte, held bool, err error) {
	sent, err = f(key)
	return sent, err == nil, err
}

// Explain makes of a record what a Sync with these rules and options would, by the same
// code, and sends nothing. earlier gives what an identifier was sent before. replayed is
// of a dead letter that is tried again: what was answered the last time, else nil.
func Explain(rules *mapping.Rules, o Options, q *queue.Record, replayed []byte, earlier func(key string) ([]byte, error)) (out Plan, err error) {
	s := &Sync{o: o.withDefaults(), rules: rules}
	var repeat *again
	if replayed != nil {
		repeat = readResults(replayed)
	}
	p, _, err := s.plan(new(memory), q, repeat, alone(earlier))
	if err != nil {
		return Plan{}, err
	}
	out = Plan{Decision: p.decision, Key: p.key}
	defer func() {
		for _, op := range p.operations {
			if op.verdict == unsent {
				op.verdict = delivered
			}
		}
		end := s.outcome(new(memory), &p, "")
		out.verdict, out.reason, out.sent = end.Ending.String(), end.Reason, end.Sent
		if end.Ending == queue.Delivered {
			out.verdict = "sent"
		}
	}()
	if p.unreadable != nil {
		out.Unreadable, out.UnreadableDetail = p.unreadable.Reason, p.unreadable.Message
		return out, nil
	}
	var sending []*operation
	for i, op := range p.operations {
		planned := PlannedOperation{Action: op.action, Body: p.decision.Operations[i].Body}
		if op.verdict == refused {
			planned.Refused, planned.RefusedDetail = op.refused[0].Reason, op.refused[0].Message
		} else {
			sending = append(sending, op)
		}
		out.Operations = append(out.Operations, planned)
	}
	for len(sending) > 0 {
		now, then := together(sending)
		for _, one := range s.requests(now) {
			path, body := request(one)
			out.Requests = append(out.Requests, PlannedRequest{http.MethodPost, path, body.whole()})
		}
		sending = then
	}
	return out, nil
}

// requests divides operations as exchange does that are too many for one request.
func (s *Sync) requests(operations []*operation) [][]*operation {
	switch {
	case len(operations) == 0:
		return nil
	case len(operations) <= s.o.BatchOperations:
		return [][]*operation{operations}
	}
	middle := len(operations) / 2
	return append(s.requests(operations[:middle]), s.requests(operations[middle:])...)
}
