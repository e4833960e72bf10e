package mapping

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

// Identifier returns the person a record is about, by the values after the event; or an empty Identifier and why there
// is none: "no_identifier", "identifier_not_text" or "identifier_blank". One that is longer than Customer.io takes is
// one; what Map makes of it is refused.
func (r *Rules) Identifier(record *Record) (Identifier, string) {
	switch r.identifier.kind {
	case pathUser: // the usual ones, without reading the whole event
		if own := valueOf(member(record.Properties, r.identifier.name)); own.isSet() || !ofUser[string(r.identifier.name)] {
			return newIdentifier(own, r.identifierKind)
		}
	case pathBuiltin:
		switch string(r.identifier.name) {
		case "user_id":
			return fieldIdentifier(record.UserID, r.identifierKind)
		case "device_id":
			return fieldIdentifier(record.DeviceID, r.identifierKind)
		}
	}
	var v view
	_ = v.open(record) // of a damaged record, what could be read; Map reports it
	return newIdentifier(v.at(r.identifier), r.identifierKind)
}

// Decision is what Customer.io is to be told of one record, and why not more. The reasons:
//
//	events_off  identify  group_identify  not_selected  dropped_by_rule      no event
//	users_off  unchanged  skip_user_properties_sync                          no identify
//	no_identifier  identifier_not_text  identifier_blank                 neither
type Decision struct {
	Operations  []Operation // at most one identify, then at most one event, page or screen
	EventReason string      // why there is no event; "" when there is one
	UserReason  string      // why there is no identify; "" when there is one
	EventType   string      // as it was received, for examples
	Sent        []byte      // what this identifier will have been sent once the identify, if there is one, is delivered; nil = as before
	Damaged     error       // of NoIdentifier: the stored bytes are, and nothing can be said of the event; Map returns it
	LeftOut     []LeftOut   // attributes that are not sent, and have not been told of before
}

// Map decides about one record. earlier is the Sent of an earlier decision for the same Identifier.Key, as it was or
// after Refused; nil = never. An error means that the stored bytes are damaged.
func (r *Rules) Map(record *Record, id Identifier, earlier []byte) (Decision, error) {
	s := scratches.Get().(*scratch)
	defer s.release()
	s.own.Cut(0)
	d, err := r.decide(s, &s.own, record, id, earlier)
	for i := range d.Operations {
		d.Operations[i].Body = bytes.Clone(d.Operations[i].Body)
	}
	d.Operations = slices.Clone(d.Operations)
	return d, err
}

// MapInto is Map, but the operations' bodies are written into the room, and the list of them is good until its next use. What
// is not in d.Operations is not in the room either.
func (r *Rules) MapInto(room *Room, record *Record, id Identifier, earlier []byte) (d Decision, err error) {
	s := scratches.Get().(*scratch)
	defer s.release()
	before := room.Len()
	if d, err = r.decide(s, room, record, id, earlier); err != nil {
		room.Cut(before)
	}
	return d, err
}

func (r *Rules) decide(s *scratch, room *Room, record *Record, id Identifier, earlier []byte) (Decision, error) {
	v := &s.view
	s.room = room
	if err := v.open(record); err != nil {
		return Decision{}, fmt.Errorf("read the stored event: %w", err)
	}
	d := Decision{EventType: r.types.of(v.event)}
	operations := &room.operations
	n := 0
	identify, sent, reason, err := r.users.decide(s, id, earlier)
	if err != nil {
		return Decision{}, fmt.Errorf("read the stored user properties: %w", err)
	}
	if d.UserReason, d.Sent = reason, sent; reason == "" {
		operations[n] = identify
		n++
	}
	d.LeftOut = s.leftOut
	rule, reason := r.selected(v)
	if d.EventReason = reason; reason == "" {
		if operations[n], err = r.events.operation(s, id, rule, false); err != nil {
			return Decision{}, fmt.Errorf("read the stored event: %w", err)
		}
		n++
	}
	if n > 0 {
		refuseIdentifier(operations[:n], id)
		d.Operations = operations[:n]
	}
	return d, nil
}

// NoIdentifier is the decision about a record without an identifier; reason is Identifier's. An event that would not
// have been sent anyhow keeps its own reason. By anonymous = "send" the others are sent as the device's, for as long as
// whoever is to be known of it can only be its first user: of one on which several people have logged in Customer.io
// would count them to the wrong one.
func (r *Rules) NoIdentifier(record *Record, reason string) Decision {
	s := scratches.Get().(*scratch)
	defer s.release()
	s.own.Cut(0)
	v := &s.view
	s.room = &s.own
	err := v.open(record)
	d := Decision{EventReason: reason, UserReason: reason, EventType: r.types.of(v.event)}
	if !r.users.send {
		d.UserReason = reasonUsersOff
	}
	rule, why := r.selected(v)
	if rule == nil {
		d.EventReason = why
		return d
	}
	var op Operation
	switch {
	case err != nil:
	case r.anonymous == "dead_letter" && reason != reasonNotText:
		op = Operation{Action: "event"}
		op.refuse(reasonNoIdentifier, "nobody is known of it, and anonymous is \"dead_letter\"")
	case r.sendsAs(record, reason):
		device := Identifier{kindAnonymous, record.DeviceID}
		op, err = r.events.operation(s, device, rule, !r.anonymousByV2)
		op.Body = bytes.Clone(op.Body)
	default:
		return d
	}
	if err != nil {
		d.Damaged = fmt.Errorf("read the stored event: %w", err)
		return d
	}
	d.EventReason, d.Operations = "", []Operation{op}
	if r.anonymous == "send" {
		refuseIdentifier(d.Operations, Identifier{kindAnonymous, record.DeviceID})
	}
	return d
}

// sendsAs says whether an event without an identifier, for this reason, is sent as its device's.
func (r *Rules) sendsAs(record *Record, reason string) bool {
	return r.anonymous == "send" && reason != reasonNotText && record.DeviceID != "" && (record.UserID == "" || record.Sole)
}

// Waits says whether a record must not be sent before everything of its device (LaneOfDevice) that came before anybody
// had logged in there: its identify ties the device's anonymous events to its person.
func (r *Rules) Waits(record *Record) bool { return record.Links && r.anonymous == "send" }

// Names reports whether any rule reads the user property of this name: it is what a record of a very large set carries.
// Globs read every name they match.
func (r *Rules) Names(name string) bool {
	n := []byte(name)
	if r.identifier.kind == pathUser && string(r.identifier.name) == name {
		return true
	}
	for _, rule := range r.selects {
		for _, c := range rule.where {
			if c.path.kind == pathUser && string(c.path.name) == name {
				return true
			}
		}
	}
	return r.events.user.mentions(n) || r.users.chooser.mentions(n)
}

// selected returns the rule by which the event is sent, or why it is not.
func (r *Rules) selected(v *view) (*selectRule, string) {
	if !r.events.send {
		return nil, reasonEventsOff
	}
	switch string(v.event) {
	case "$identify":
		return nil, reasonIdentify
	case "$groupidentify":
		return nil, reasonGroupIdentify
	}
	other := otherName(v.event)
	for i := range r.selects {
		rule := &r.selects[i]
		if !matchesAny(rule.events, v.event) && (other == "" || !matchesAny(rule.events, []byte(other))) {
			continue
		}
		if slices.ContainsFunc(rule.where, func(c condition) bool { return !c.matches(v) }) {
			continue
		}
		if rule.drop {
			return nil, reasonDropped
		}
		return rule, ""
	}
	return nil, reasonNotSelected
}

// scratch is the memory that one call of Map needs, kept for the next.
type scratch struct {
	view          view
	before, after sent
	names         nameSet
	attributes    []byte
	room          *Room     // of this call
	own           Room      // for who brings none
	leftOut       []LeftOut // handed out: not kept
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) release() {
	if cap(s.own.bytes) > 256<<10 || cap(s.attributes) > 256<<10 || cap(s.after.attributes) > 4096 {
		return // one huge record must not set the pool's size
	}
	s.view.release()
	s.leftOut, s.room, s.own.operations = nil, nil, [2]Operation{}
	s.before.reset()
	s.after.reset()
	s.names.reset()
	scratches.Put(s)
}
