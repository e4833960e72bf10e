package delivery

import (
	"encoding/json"
	"fmt"
	"slices"

	"ampcio/mapping"
)

// again is a dead letter that is tried again: what of it Customer.io has refused,
// and what it has accepted and is not sent once more.
type again struct {
	identify, event bool         // to be tried
	delivered       []*operation // they keep their result
}

// readResults reads what results has written. What cannot be read is tried whole:
// the ids are the same, so nothing is doubled by that.
func readResults(stored []byte) *again {
	var list []result
	_ = json.Unmarshal(stored, &list) // else it is empty
	a := &again{}
	for _, r := range list {
		switch {
		case r.Reason == "" && r.Status == 200:
			a.delivered = append(a.delivered, &operation{action: r.Action, verdict: delivered})
		case r.Action == "identify":
			a.identify = true
		case r.Action == "read":
			a.identify, a.event = true, true
		default:
			a.event = true
		}
	}
	if !a.identify && !a.event {
		a.identify, a.event = true, true
		a.delivered = nil
	}
	return a
}

// results adds what was delivered the first time to what is answered now, in the order of sending.
func (a *again) results(now []*operation) []*operation {
	var list []*operation
	for _, o := range a.delivered {
		if o.action == "identify" {
			list = append(list, o)
		}
	}
	list = append(list, now...)
	for _, o := range a.delivered {
		if o.action != "identify" {
			list = append(list, o)
		}
	}
	return list
}

// current is the record with what is known of its user now; of an anonymous one, of whoever has logged in since.
func (s *Sync) current(r mapping.Record) (mapping.Record, error) {
	if r.UserID == "" && r.DeviceID != "" && s.o.Owner != nil {
		owner, err := s.o.Owner(r.Project, r.DeviceID)
		if err != nil {
			return r, fmt.Errorf("read whose the device of a dead letter is: %w", err)
		}
		r.UserID = owner
	}
	if s.o.Current == nil {
		return r, nil
	}
	properties, builtins, err := s.o.Current(r.Project, r.UserID, r.DeviceID)
	if err != nil {
		return r, fmt.Errorf("read what is known of the user of a dead letter: %w", err)
	}
	if properties != nil { // nil = nothing is known any more
		r.Properties, r.Partial = properties, false
	}
	if builtins != nil { // and beside these nothing counts that the event said then
		r.Builtins, r.Beside = builtins, nil
	}
	return r, nil
}

// keep leaves of a decision what is to be tried again.
func (a *again) keep(d *mapping.Decision) {
	if !a.event {
		d.Operations = slices.DeleteFunc(d.Operations, func(o mapping.Operation) bool { return o.Action != "identify" })
	}
}

// decide maps what is to be tried again: the event as it was, the identify by what is
// known of the user now, values that were refused among them.
func (a *again) decide(rules *mapping.Rules, was, now *mapping.Record, id mapping.Identifier, sent []byte) (d mapping.Decision, err error) {
	if a.identify {
		if d, err = rules.Map(now, id, mapping.Unrefused(sent)); err != nil {
			return d, err
		}
	}
	event, err := rules.Map(was, id, sent)
	if err != nil {
		return d, err
	}
	updates := d.Operations
	if d.Operations = nil; d.UserReason != "" {
		d.Sent = nil // what was refused was only not looked at here
	}
	for _, o := range updates {
		if o.Action == "identify" {
			d.Operations = append(d.Operations, o)
		}
	}
	d.EventType, d.EventReason = event.EventType, event.EventReason
	for _, o := range event.Operations {
		if a.event && o.Action != "identify" {
			d.Operations = append(d.Operations, o)
		}
	}
	return d, nil
}
