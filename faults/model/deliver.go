package model

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// claim is a run of a lane that is in somebody's hands.
type claim struct {
	*queue.Claim
	lane    string
	planned []planned
}

// planned is a record, and what is to be sent of it.
type planned struct {
	r          *record
	key        string
	decision   mapping.Decision
	again      bool       // it is a dead letter that is tried again
	user       properties // what Customer.io is to have of the user afterwards
	operations []mapping.Operation
}

// take claims all lanes that are due, keeps those that are wanted and gives back the others. What a claim has must be
// exactly what the lane has to begin with.
func (h *history) take(l *ledger, wanted func(lane string) bool) (kept []*claim) {
	h.quiet()
	var others []*queue.Claim
	next := func() *queue.Claim {
		if q := h.consumer(l).TryClaim(); q != nil || len(kept)+len(others) > 0 {
			return q
		}
		// Who waits for a claim makes a window that is full of what cannot be claimed give way.
		ctx, stop := context.WithTimeout(h.ctx, time.Millisecond)
		defer stop()
		q, _ := h.consumer(l).Claim(ctx)
		return q
	}
	for q := next(); q != nil; q = next() {
		if l.paused {
			h.fail("sync %s is paused, and a claim is given", l.name)
		}
		lane := q.Lane()
		if slices.ContainsFunc(append(l.claims, kept...), func(cl *claim) bool { return cl.lane == lane }) {
			h.fail("sync %s: lane %q is claimed twice", l.name, lane)
		}
		var due []*record
		for _, r := range h.of(l.project) {
			if r.lane == lane && l.pending(r) && !r.forgotten {
				due = append(due, r)
			}
		}
		for i, got := range q.Records() {
			if i >= len(due) || due[i].seq != got.Seq {
				h.fail("sync %s: a claim of lane %q has records %v, but what is pending there is %v", l.name, lane, sequences(q.Records()), numbers(due))
			}
			h.check(l, &got)
		}
		if !wanted(lane) {
			others = append(others, q)
			continue
		}
		kept = append(kept, &claim{Claim: q, lane: lane})
	}
	for _, q := range others {
		q.Return()
	}
	l.claims = append(l.claims, kept...)
	if len(kept)+len(others) > 0 {
		h.say("sync %s gives %d lanes, %d are kept", l.name, len(kept)+len(others), len(kept))
	}
	return kept
}

func sequences(list []queue.Record) (seqs []uint64) {
	for _, q := range list {
		seqs = append(seqs, q.Seq)
	}
	return seqs
}

func numbers(list []*record) (seqs []uint64) {
	for _, r := range list {
		seqs = append(seqs, r.seq)
	}
	return seqs
}

// result is what a dead letter keeps of each operation, as delivery writes it.
type result struct {
	Action string `json:"action"`
	Status int    `json:"status,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// plan maps a claim as delivery does: a second identify of a person waits for the next request.
func (h *history) plan(l *ledger, cl *claim) {
	rules := ruleSets[l.rules].compiled
	var sent []byte
	identified := false
	cl.planned = nil
	for i, q := range cl.Records() {
		r, m := h.check(l, &q)
		p := planned{r: r, user: r.properties}
		now := m
		results, again := cl.Replay(i)
		if p.again = again; again && r.user != "" {
			k, err := h.store.User(r.project, r.user)
			h.must(err, "look at the user of a dead letter")
			now.Properties, p.user = k.Properties, h.people[r.project].users[r.user]
		}
		id, reason := rules.Identifier(&now)
		if (reason == "") != (r.user != "") {
			h.fail("record %d of user %q has identifier %v: %s", r.seq, r.user, id, reason)
		}
		if reason != "" {
			p.decision = rules.NoIdentifier(&m, reason)
		} else {
			p.key = id.Key()
			if !cl.Hold(p.key) {
				h.fail("sync %s: %s is held by another claim, and nobody else's", l.name, p.key)
			}
			var err error
			if sent == nil {
				sent, err = cl.Sent(p.key)
				h.must(err, "look up what was sent")
			}
			if !again {
				p.decision, err = rules.Map(&m, id, sent)
				h.must(err, "map a record")
			} else {
				p.decision = h.planAgain(rules, &m, &now, id, sent, results)
			}
		}
		p.operations = p.decision.Operations
		events := 0
		identifies := false
		for _, o := range p.operations {
			if o.Action == "identify" {
				identifies = true
			} else {
				events++
			}
		}
		if wanted := l.sends(r); wanted != (events == 1) && !(again && events == 0) {
			h.fail("sync %s: record %d of user %q and type %s gives %d events; rules: %s", l.name, r.seq, r.user, r.kind, events, ruleSets[l.rules].name)
		}
		if identifies && identified {
			cl.Trim(i)
			break
		}
		identified = identified || identifies
		if p.decision.Sent != nil {
			sent = p.decision.Sent
		}
		cl.planned = append(cl.planned, p)
	}
}

// planAgain maps a dead letter: only what was refused, and the user as it is now.
func (h *history) planAgain(rules *mapping.Rules, was, now *mapping.Record, id mapping.Identifier, sent, results []byte) mapping.Decision {
	identify, err := rules.Map(now, id, mapping.Unrefused(sent))
	h.must(err, "map a dead letter")
	event, err := rules.Map(was, id, sent)
	h.must(err, "map a dead letter")
	refused := map[string]bool{}
	var list []result
	h.must(json.Unmarshal(results, &list), "read what was answered")
	for _, r := range list {
		refused[r.Action] = refused[r.Action] || r.Reason != ""
	}
	d := mapping.Decision{EventReason: event.EventReason, UserReason: "unchanged"}
	for _, o := range identify.Operations {
		if o.Action == "identify" && refused["identify"] {
			d.Operations, d.Sent, d.UserReason = append(d.Operations, o), identify.Sent, ""
		}
	}
	for _, o := range event.Operations {
		if o.Action != "identify" && refused["event"] {
			d.Operations = append(d.Operations, o)
		}
	}
	return d
}

// send lets a record's operations arrive. refuse is the one that is not accepted: 0 = none, else counted from 1.
func (h *history) send(l *ledger, p *planned, refuse int) {
	for i, o := range p.operations {
		l.to.take(p.r, o.Body, i+1 == refuse)
	}
	identifies := ruleSets[l.rules].users && p.r.user != "" && (!p.again || p.decision.UserReason == "")
	// What was told and is told again from before it, since the ledger does not know, is right only in the end.
	if identifies && refuse == 0 && !l.to.loose[p.r.user] {
		if err := l.to.same(p.r.user, p.user); err != nil {
			h.fail("after record %d: %v", p.r.seq, err)
		}
	}
}

// outcome is how a record ends, and enters it in the model.
func (h *history) outcome(l *ledger, p *planned, refuse int) queue.Outcome {
	var out queue.Outcome
	var list []result
	for i, o := range p.operations {
		res := result{Action: o.Action, Status: 200}
		if i+1 == refuse {
			res = result{o.Action, 400, "invalid"}
		}
		if o.Action == "identify" {
			out.SentKey, out.Sent = p.key, p.decision.Sent
			if i+1 == refuse {
				out.Sent = mapping.Refused(out.Sent, "")
			}
		}
		list = append(list, res)
	}
	switch {
	case len(p.operations) == 0:
		out.Ending, out.Reason = queue.Filtered, p.decision.EventReason
	case refuse > 0 && refuse <= len(p.operations):
		var err error
		if out.Results, err = json.Marshal(list); err != nil {
			panic(err)
		}
		out.Ending, out.Reason = queue.Dead, "invalid"
	default:
		out.Ending = queue.Delivered
	}
	out.Results = bytes.Clone(out.Results)
	out.Tallies = []queue.Tally{{Key: "record/" + out.Ending.String()}}
	l.state(p.r).ending = out.Ending
	return out
}

// ways are what may become of a request.
var ways = []string{"accepted", "accepted", "partly", "one refused", "one refused", "one refused", "answer lost", "refused", "given back", "answered but not recorded", "trimmed"}

// settle ends a claim in one of the ways, and it is open no more, but for what was answered and not recorded.
func (h *history) settle(l *ledger, cl *claim, way string, a, b int) {
	h.plan(l, cl)
	wait := []time.Duration{0, 100 * time.Millisecond, 2 * time.Second}[b%3]
	n := len(cl.planned)
	if n == 0 {
		h.fail("sync %s: lane %q gives a claim of nothing", l.name, cl.lane)
	}
	h.say("sync %s, %s: records %v %s (%d, %d)", l.name, cl.lane, sequences(cl.Records()), way, a, b)
	end := func(n int, refuse func(i int) int) (out []queue.Outcome) {
		for i := range cl.planned[:n] {
			p := &cl.planned[i]
			h.send(l, p, refuse(i))
			out = append(out, h.outcome(l, p, refuse(i)))
		}
		return out
	}
	none := func(int) int { return 0 }
	lost := func() {
		for i := range cl.planned {
			h.send(l, &cl.planned[i], 0)
			l.to.loose[cl.planned[i].r.user] = true
		}
	}
	switch way {
	case "accepted":
		cl.Finish(end(n, none))
	case "partly":
		cl.Settle(end(a%n, none), wait, "http_500")
	case "one refused":
		at := a % n
		cl.Finish(end(n, func(i int) int {
			if i != at {
				return 0
			}
			return 1 + b%max(1, len(cl.planned[i].operations))
		}))
	case "answer lost":
		lost()
		cl.Retry(wait, "timeout")
	case "refused":
		cl.Retry(wait, "refused")
	case "given back":
		cl.Return()
	case "answered but not recorded":
		lost()
		return
	case "trimmed":
		n = 1 + a%n
		cl.Trim(n)
		cl.Finish(end(n, none))
	}
	l.entered()
	l.claims = slices.DeleteFunc(l.claims, func(other *claim) bool { return other == cl })
}

// returnAll gives back what is claimed.
func (h *history) returnAll(l *ledger) {
	for _, cl := range l.claims {
		cl.Return()
	}
	l.claims = nil
}

// deliver delivers all that is due, to a Customer.io that works.
func (h *history) deliver(l *ledger) {
	for {
		claims := h.take(l, func(string) bool { return true })
		if len(claims) == 0 {
			return
		}
		for _, cl := range claims {
			h.settle(l, cl, "accepted", 0, 0)
		}
	}
}

// stumble lets one lane fail again and again while the others are delivered: it moves to the side place.
func (h *history) stumble(l *ledger, which int) {
	h.returnAll(l)
	for range 6 {
		claims := h.take(l, func(string) bool { return true })
		if len(claims) == 0 {
			return
		}
		slices.SortFunc(claims, func(a, b *claim) int { return strings.Compare(a.lane, b.lane) })
		bad := claims[which%len(claims)]
		h.settle(l, bad, "refused", 0, 0)
		for _, cl := range claims {
			if cl != bad {
				h.settle(l, cl, "accepted", 0, 0)
			}
		}
	}
}

// holdFailing lets more events come while all lanes are claimed, the one among them that fails again and again: nobody else
// may get any of it.
func (h *history) holdFailing(s step) {
	l := h.ledger(s.a)
	h.stumble(l, s.b)
	h.take(l, func(string) bool { return true })
	project := 0 // of which ingest makes the second one
	if l.project == h.projects[0] {
		project = 1
	}
	h.ingest(step{a: project, b: 2, c: s.c, d: s.d})
	h.take(l, func(string) bool { return true })
}

// partEnds lets the first of some records of a lane end, while the others have to wait: these come next, in their order.
func (h *history) partEnds(s step) {
	l := h.ledger(s.a)
	h.returnAll(l)
	user := userIDs[s.b%len(userIDs)]
	var events []*event
	for range 4 {
		h.events++
		events = append(events, &event{user: user, kind: "a", n: h.events})
	}
	h.arrive(l.project, events...)
	for _, cl := range h.take(l, func(lane string) bool { return lane == users.LaneOfUser(user) }) {
		h.settle(l, cl, "partly", 1, 0)
	}
	h.take(l, func(string) bool { return true })
}
