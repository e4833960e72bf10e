package delivery

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"ampcio/logbook"
	"ampcio/mapping"
	"ampcio/queue"
)

// settle ends claims, each for itself.
func (s *Sync) settle(claims ...*taken) {
	all := make([]queue.Settlement, 0, len(claims))
	for _, t := range claims {
		all = append(all, s.settlement(t))
	}
	s.source.Settle(all...)
}

// settlement says how a claim ends: the records before the first that has to wait end now, in
// one step with what their identifiers were sent; that one and all after it go
// back to the head of the lane, with an attempt counted only when Customer.io (or
// the way to it) failed.
func (s *Sync) settlement(t *taken) queue.Settlement {
	t.settled = true
	outcomes := t.memory.outcomeSlab.take(len(t.parts))[:0]
	var stop *operation
	tries := "record/first_try"
	if t.claim.Attempts() > 0 {
		tries = "record/after_retry"
	}
	for i := range t.parts {
		if stop = t.parts[i].waiting(); stop != nil {
			break
		}
		out := s.outcome(t.memory, &t.parts[i], tries)
		t.correct(&t.parts[i], &out)
		outcomes = append(outcomes, out)
	}
	switch {
	case t.atFault:
		s.culprits.convict(t.claim.Lane(), culprit{head: t.atHead, reason: stop.answer.reason})
	case len(outcomes) > 0:
		s.culprits.acquit(t.claim.Lane())
	}
	end := queue.Settlement{Claim: t.claim, Outcomes: outcomes}
	switch {
	case stop == nil:
		s.throttles.passed(t.claim.Lane(), len(t.parts))
	case stop.verdict == retry:
		attempt := t.claim.Attempts()
		if len(outcomes) > 0 {
			attempt = 0 // another record is the head now
		}
		end.Wait, end.Reason = s.o.delay(attempt, stop.answer.wait), stop.answer.reason
	case len(outcomes) == 0:
		end.Return = true
	default:
		t.claim.Trim(len(outcomes))
	}
	return end
}

// correct mends what is to be remembered of an identifier by what of it was refused
// before, in the same claim: a record behind a refused identify was mapped as if that had
// been accepted.
func (t *taken) correct(p *part, out *queue.Outcome) {
	if out.SentKey == "" {
		return
	}
	who := t.person(out.SentKey)
	for _, why := range who.refused {
		out.Sent = mapping.Refused(out.Sent, why.Field)
	}
	for _, o := range p.operations {
		if o.action == "identify" {
			who.refused = o.refused
		}
	}
}

// waiting is the record's first operation without a final verdict, nil when all have one.
func (p *part) waiting() *operation {
	for _, o := range p.operations {
		if o.verdict != delivered && o.verdict != refused {
			return o
		}
	}
	return nil
}

// outcome says how a record ended whose operations all have a final verdict; tries
// is the tally for one that was delivered.
func (s *Sync) outcome(m *memory, p *part, tries string) queue.Outcome {
	if p.unreadable != nil {
		s.buried(p, p.unreadable.Reason)
		return queue.Outcome{
			Ending: queue.Dead, Reason: p.unreadable.Reason,
			Results: results(&operation{action: "read", verdict: refused, refused: []refusal{*p.unreadable}}),
			Tallies: []queue.Tally{{Key: "event/dead/" + p.unreadable.Reason}},
		}
	}
	d := &p.decision
	var out queue.Outcome
	event, user := "event/filtered/", "" // no user: there is an identify, or a relay knows of none
	if d.EventReason != "" {
		event += d.EventReason
	}
	switch d.UserReason {
	case "":
	case "unchanged": // most of them
		user = "user/unchanged"
	default:
		user = "user/" + d.UserReason
	}
	if p.again != nil { // what was delivered the first time has been counted then
		tries = "record/after_retry"
		if !p.again.event {
			event = ""
		}
		if !p.again.identify {
			user = ""
		}
	}
	for _, o := range p.operations {
		tally := "event/delivered"
		if o.action == "identify" {
			tally = "user/delivered"
		}
		if o.verdict == refused {
			reason := o.refused[0].Reason
			tally = strings.TrimSuffix(tally, "delivered") + "dead/" + reason
			if out.Reason == "" {
				out.Reason = reason
			}
		}
		if o.action == "identify" {
			user = tally
			out.SentKey, out.Sent = p.key, d.Sent
			if o.verdict == refused {
				for _, why := range o.refused {
					out.Sent = mapping.Refused(out.Sent, why.Field)
				}
			}
		} else {
			event = tally
		}
	}
	if d.Sent != nil && out.SentKey == "" && d.UserReason != "" { // there is no identify, but something new to remember
		out.SentKey, out.Sent = p.key, d.Sent
	}

	alike := tallied{event: event, user: user}
	if event != "" {
		alike.example = clipExample(d.EventType)
	}
	switch {
	case out.Reason != "":
		out.Ending = queue.Dead
		list := p.operations
		if p.again != nil {
			list = p.again.results(list)
		}
		out.Results = results(list...)
		s.buried(p, out.Reason)
	case len(p.operations) == 0:
		out.Ending = queue.Filtered
		out.Reason = d.EventReason
		if user != "" && d.UserReason != "" && (event == "" || d.EventReason == "identify" || d.EventReason == "group_identify") {
			out.Reason = d.UserReason // there was no event in it that could have been sent
		}
	default:
		out.Ending = queue.Delivered
		alike.tries = tries
	}
	out.Tallies = m.talliesOf(alike)
	if len(d.LeftOut) > 0 {
		own := make([]queue.Tally, 0, len(d.LeftOut)+len(out.Tallies))
		for _, one := range d.LeftOut {
			own = append(own, queue.Tally{Key: "property/filtered/" + one.Reason, Example: clipExample(one.Name)})
		}
		out.Tallies = append(own, out.Tallies...)
	}
	return out
}

type result struct {
	Action  string `json:"action"`
	Status  int    `json:"status,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message,omitempty"`
}

// results is what a dead letter keeps: per operation of the record what was
// answered, as [{"action":"identify","status":207,"reason":"invalid",
// "field":"attributes.plan","message":"…"},{"action":"event","status":200}].
// status is the HTTP status and absent when the operation was never sent; an
// operation with several complaints has one element for each.
func results(operations ...*operation) []byte {
	var list []result
	for _, o := range operations {
		if o.verdict != refused {
			list = append(list, result{Action: o.action, Status: 200})
			continue
		}
		for _, why := range o.refused {
			list = append(list, result{o.action, why.Status, why.Reason, why.Field, why.Message})
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return []byte("[]") // strings and numbers always marshal
	}
	return text
}

// clipExample bounds an event's name as it is kept beside a count.
func clipExample(name string) string {
	if len(name) > 100 {
		return clip(name[:100])
	}
	return name
}

var buried = logbook.Line{Level: slog.LevelWarn, Message: "event refused for good, kept as a dead letter",
	Over: "no more events are refused for good", Quiet: 10 * time.Minute}

// buried logs a dead letter, by its reason; one that is only explained is none.
func (s *Sync) buried(p *part, reason string) {
	if s.repeats == nil {
		return
	}
	s.repeats.Note(buried, reason, 1, "reason", reason, "sequence", p.seq, "do", "see it: ampcio dead-letters list --sync "+s.o.Name)
}
