package delivery

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// maxBatchRecords bounds the records that one batch looks at. Where most are
// filtered, the operations found so far must not wait for the search to end.
const maxBatchRecords = 4096

// batch is what one worker has in hand: claims on some lanes, their records, and
// the operations that these map to, which will be one request (more when parts of
// it are refused). Used by one goroutine.
type batch struct {
	memory     *memory
	pass       pass
	ledger     *atomic.Int64
	taken      []*taken
	operations []*operation // those to be sent, in lane order
	bytes      int          // of the request that they make, less the wrapper
	records    int
	full       bool
	paid       bool // a turn of the pace was taken for the first request
	suspect    bool // it met a 403 that is about what is in it
	err        error

	alone bool         // it is of a culprit
	next  *queue.Claim // of a culprit that was met on the way: the next batch

	bisecting bool // who is at fault is being looked for
	expected  bool // the next request may fail for what is in it
	failed    int  // requests of it

	later      bool // if the next request has to be searched, that is done later
	unsearched bool // it has to
}

// taken is a claim and what became of its records.
type taken struct {
	memory  *memory // of its batch
	claim   *queue.Claim
	parts   []part
	first   person             // the first identifier, which is the only one as a rule; the claim holds them all
	others  map[string]*person // by identifier key
	who     *person            // of the record that was looked at last
	stopped bool               // one operation must wait: none after it may be sent in this batch
	settled bool

	failedBefore bool // its first record has
	atFault      bool // it made a request fail, alone, while the destination worked
	atHead       bool // of atFault: it is known which record does
}

// person is an identifier in a claim.
type person struct {
	key        string
	sent       []byte    // what it will have been sent after the parts so far
	identified bool      // there is an identify among them
	refused    []refusal // of that identify
}

// part is a record and its operations.
type part struct {
	seq        uint64
	key        string // of the identifier, "" when there is none
	decision   mapping.Decision
	operations []*operation // including those refused before sending
	unreadable *refusal     // the record could not be read or mapped
	again      *again       // it is a dead letter that is tried again
	behind     string       // a lane that has to be empty before; "" = none
}

// operation is one element of a request.
type operation struct {
	of      *taken
	origin  origin
	relayed *relayed // of a relay's, else nil
	action  string
	body    []byte
	path    string // where it goes alone; "" = into a batch
	verdict verdict
	refused []refusal // of refused
	answer  *reading  // of retry and forbidden
}

// room is where the operation's body may stand.
func (o *operation) room() *mapping.Room {
	if o.of == nil {
		return nil
	}
	return o.of.memory.room
}

// fill adds claims to the batch until it is full or no lane is due; first may be
// nil. There is no waiting for more: what is there leaves now. Claims of which
// nothing has to be sent are settled on the way. A probe, and a culprit, is one
// claim and no more. After an error of the ledger (b.err) nothing more is added, and
// the batch must not be sent.
func (s *Sync) fill(b *batch, first *queue.Claim) {
	claim := first
	if claim == nil && !b.full {
		claim = s.source.TryClaim()
	}
	looked := false // for somebody who is not known to be at fault
	for claim != nil {
		known, alone := s.culprits.of(claim.Lane())
		if alone = alone && !b.pass.probe; alone {
			if len(b.taken) > 0 {
				b.next, b.full = claim, true
				return
			}
			// After an outage everybody else comes first. Nobody waits longer for that than others take: what made
			// somebody known may have been the outage.
			if !looked && !s.gate.isOpen() {
				looked = true
				claim = s.choose(claim, s.innocent)
				continue
			}
			if !s.seat(claim) {
				claim.Return() // it comes back as soon as there is a seat
				claim = s.source.TryClaim()
				continue
			}
			if known.head {
				claim.Trim(1)
			}
		}
		t := s.add(b, claim)
		sends := t != nil && t.sends()
		if t != nil {
			b.records += len(t.parts)
			b.full = b.full || b.records >= maxBatchRecords || len(b.operations) >= s.o.BatchOperations
			if sends {
				b.taken = append(b.taken, t)
			} else {
				s.settle(t)
			}
		}
		if alone && sends {
			b.alone, b.full = true, true
		}
		b.full = b.full || b.pass.probe && sends
		if b.full || b.err != nil {
			return
		}
		claim = s.source.TryClaim()
	}
}

// add maps the records of a claim, as many as fit; the rest goes back to the head
// of its lane, or all of it, and then add returns nil.
func (s *Sync) add(b *batch, claim *queue.Claim) *taken {
	t := b.memory.takenSlab.one()
	*t = taken{memory: b.memory, claim: claim, failedBefore: claim.Attempts() > 0}
	if most := s.throttles.most(claim.Lane()); most < len(claim.Records()) {
		claim.Trim(most)
	}
	records := claim.Records()
	t.parts = b.memory.partSlab.take(min(len(records), 64))[:0]
	for i := range records {
		p, fits := s.part(b, t, i)
		if !fits {
			if i == 0 {
				claim.Return()
				return nil
			}
			claim.Trim(i)
			break
		}
		t.parts = append(t.parts, p)
	}
	return t
}

// part maps one record and enters its operations into the batch. It does not fit
// when it is too much for this request; when another claim holds its identifier;
// or when it would be the second identify of a person in this batch: Customer.io
// orders them by whole seconds, so those of one request could not be told apart.
func (s *Sync) part(b *batch, t *taken, i int) (p part, fits bool) {
	var repeat *again
	if results, ok := t.claim.Replay(i); ok {
		repeat = readResults(results)
	}
	written := b.memory.room.Len()
	defer func() {
		if !fits {
			b.memory.room.Cut(written)
		}
	}()
	t.who = nil
	p, held, err := s.to.plan(b.memory, &t.claim.Records()[i], repeat, t)
	who := t.who
	switch {
	case err != nil:
		b.err = err
		return p, false
	case !held:
		return p, false
	case p.unreadable != nil:
		return p, true
	case p.behind != "" && t.claim.Waits(p.behind):
		return p, false
	}
	bytes, sending, identifies := 0, 0, false
	for _, op := range p.operations {
		op.of = t
		identifies = identifies || op.action == "identify"
		if op.verdict == unsent {
			sending++
			bytes += len(op.body) + 1
		}
	}
	if identifies && who.identified {
		return p, false
	}
	// A record is never divided over two batches, so the first one always fits,
	// even where batch_operations is 1 and it has two: then send halves it.
	if n := len(b.operations); n > 0 && sending > 0 && !s.to.fits(n+sending, b.bytes+bytes) {
		b.full = true
		return p, false
	}
	if who != nil {
		who.identified = who.identified || identifies
		if p.decision.Sent != nil {
			who.sent = p.decision.Sent
		}
	}
	for _, op := range p.operations {
		if op.verdict == unsent {
			b.operations = append(b.operations, op)
		}
	}
	b.bytes += bytes
	return p, true
}

// earlier knows what identifiers were sent before, and says where that is not to be had now (held).
type earlier interface {
	sentTo(key string) (sent []byte, held bool, err error)
}

// sentTo implements earlier.
func (t *taken) sentTo(key string) (sent []byte, held bool, err error) {
	if t.who = t.person(key); t.who == nil {
		sent, held, err := t.claim.HoldSent(key, t.memory.ahead)
		if err != nil || !held {
			return nil, false, err
		}
		t.who = t.meet(key, sent)
	}
	return t.who.sent, true, nil
}

// person is the one of an identifier that the claim holds; nil = it does not yet.
func (t *taken) person(key string) *person {
	if t.first.key == key {
		return &t.first
	}
	return t.others[key]
}

func (t *taken) meet(key string, sent []byte) *person {
	if t.first.key == "" {
		t.first = person{key: key, sent: sent}
		return &t.first
	}
	if t.others == nil {
		t.others = map[string]*person{}
	}
	t.others[key] = &person{key: key, sent: sent}
	return t.others[key]
}

// keyOf is the key of a record's identifier as plan will find it, as a rule: "" where there is none.
func (s *Sync) keyOf(q *queue.Record) string {
	r := mapping.Record{Project: q.Project}
	if r.DecodeBody(q.Body) != nil {
		return ""
	}
	id, reason := s.rules.Identifier(&r)
	if reason != "" {
		return ""
	}
	return id.Key()
}

// plan maps one record to its operations: the one place that makes them. before gives
// what an identifier was sent before, or says that it is not to be had now (held); an
// error is the ledger's.
func (s *Sync) plan(m *memory, q *queue.Record, repeat *again, before earlier) (p part, held bool, err error) {
	p.seq, p.again = q.Seq, repeat
	r := &m.record
	*r = mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if err := r.DecodeBody(q.Body); err != nil {
		p.unreadable = &refusal{Reason: "unreadable_record", Message: clip(err.Error())}
		return p, true, nil
	}
	if s.rules.Waits(r) {
		p.behind = mapping.LaneOfDevice(r.DeviceID)
	}
	now := r
	if p.again != nil {
		current, err := s.current(*r)
		if err != nil {
			return p, false, err
		}
		now = &current
	}
	id, reason := s.rules.Identifier(now)
	if reason != "" && p.again != nil {
		id, reason = s.rules.Identifier(r)
	}
	if reason != "" {
		p.decision = s.rules.NoIdentifier(r, reason)
		if err = p.decision.Damaged; p.again != nil {
			p.again.keep(&p.decision)
		}
	} else {
		p.key = id.Key()
		sent, held, failed := before.sentTo(p.key)
		if failed != nil || !held {
			return p, false, failed
		}
		switch {
		case p.again != nil:
			p.decision, err = p.again.decide(s.rules, r, now, id, sent)
		case m.room != nil:
			p.decision, err = s.rules.MapInto(m.room, r, id, sent)
		default:
			p.decision, err = s.rules.Map(r, id, sent)
		}
	}
	if err != nil {
		p.unreadable = &refusal{Reason: "not_mappable", Message: clip(err.Error())}
		return p, true, nil
	}
	late := p.again == nil && s.late(r)
	if late && s.o.LatePolicy == LateFilter {
		withoutEvent(&p.decision)
	}
	n := len(p.decision.Operations)
	ops := m.operationSlab.take(n)
	p.operations = m.listSlab.take(n)
	for i := range p.decision.Operations {
		o := &p.decision.Operations[i]
		op := &ops[i]
		*op = operation{action: o.Action, body: o.Body, path: o.Path(), origin: origin{r.Seq, r.Received, cmp.Or(r.UserID, r.DeviceID)}}
		p.operations[i] = op
		if why := s.unsendable(o, late); why != nil {
			op.verdict, op.refused, op.body = refused, []refusal{*why}, nil
		}
	}
	if m.room != nil {
		p.decision.Operations = nil // the next record's
	}
	return p, true, nil
}

// unsendable is why an operation is refused without being sent; nil when it is not.
func (s *Sync) unsendable(o *mapping.Operation, late bool) *refusal {
	if late && o.Action != "identify" {
		return &refusal{Reason: reasonLate, Message: fmt.Sprintf("older than %v when it was to be delivered", s.o.LateAfter)}
	}
	if reason, detail := o.Refused(); reason != "" {
		return &refusal{Reason: reason, Message: detail}
	}
	return nil
}

// What is done with an event that is older than Options.LateAfter when it is to be
// delivered: it could not start campaigns any more.
const (
	LateDeliver    = "deliver"     // the same as with any other
	LateFilter     = "filter"      // it is not sent
	LateDeadLetter = "dead_letter" // it is refused without being sent, and kept
)

const reasonLate = "late"

// late tells whether an event is too old, and that matters. The user's update is
// never late.
func (s *Sync) late(r *mapping.Record) bool {
	return s.o.LateAfter > 0 && s.o.LatePolicy != LateDeliver && s.o.LatePolicy != "" &&
		s.o.Now().Sub(time.UnixMilli(r.Time)) > s.o.LateAfter
}

// withoutEvent takes the event out of a decision, if there is one: it is late.
func withoutEvent(d *mapping.Decision) {
	if d.EventReason != "" {
		return
	}
	d.EventReason = reasonLate
	d.Operations = slices.DeleteFunc(d.Operations, func(o mapping.Operation) bool { return o.Action != "identify" })
}

// sends tells whether any operation of the claim has to be sent.
func (t *taken) sends() bool {
	for i := range t.parts {
		for _, o := range t.parts[i].operations {
			if o.verdict == unsent {
				return true
			}
		}
	}
	return false
}
