package model

import (
	"encoding/json"
	"fmt"
	"strings"

	"ampcio/mapping"
	"ampcio/queue"
)

// destination is what a Customer.io knows, and what it may be told: never an event under two ids, or two under one, and
// of nobody something before what came before it.
type destination struct {
	h       *history
	l       *ledger
	ids     map[string]string         // by ULID: which event
	events  map[string]string         // by event: its ULID
	arrived map[uint64]bool           // records of which something has come, accepted or refused
	people  map[string]map[string]int // attributes
	loose   map[string]bool           // users of whom it may have been told something that the ledger does not know of
	unsure  map[string]bool           // users of whom something was refused, or may never be corrected
	updated map[string]bool           // users of whom the product's own delivery has told something, since the ledger was last asked

	// What it has said, and the product has heard.
	accepted, refused map[uint64]bool // events, by record
	refusedUsers      map[string]bool // of whom an identify was refused
}

func newDestination(h *history, l *ledger) *destination {
	return &destination{h: h, l: l, ids: map[string]string{}, events: map[string]string{}, arrived: map[uint64]bool{},
		people: map[string]map[string]int{}, loose: map[string]bool{}, unsure: map[string]bool{}, updated: map[string]bool{},
		accepted: map[uint64]bool{}, refused: map[uint64]bool{}, refusedUsers: map[string]bool{}}
}

// operation is what the model reads of one.
type operation struct {
	Action      string
	Identifiers struct{ ID string }
	Name, ID    string
	Attributes  map[string]any
}

// take is an operation that has come, for a record; refuse says that it is not accepted.
func (d *destination) take(r *record, body []byte, refuse bool) {
	var o operation
	if err := json.Unmarshal(body, &o); err != nil {
		d.h.fail("an operation cannot be read: %v: %s", err, body)
	}
	if o.Identifiers.ID != r.user {
		d.h.fail("record %d is of user %q, and is sent as of %q: %s", r.seq, r.user, o.Identifiers.ID, body)
	}
	if !d.arrived[r.seq] {
		d.arrived[r.seq] = true
		for _, earlier := range d.h.of(r.project) {
			if earlier.seq >= r.seq {
				break
			}
			if earlier.lane == r.lane && d.l.pending(earlier) && !d.arrived[earlier.seq] && !earlier.forgotten && d.l.sends(earlier) {
				d.h.fail("sync %s: record %d of %s arrives before record %d", d.l.name, r.seq, r.lane, earlier.seq)
			}
		}
	}
	if o.Action != "identify" {
		if n, ok := o.Attributes["n"].(float64); o.Action != "event" || o.Name != r.kind || !ok || int(n) != r.n {
			d.h.fail("sync %s: record %d is event %q with n %d, and is sent as %s", d.l.name, r.seq, r.kind, r.n, body)
		}
		if known, ok := d.events[r.event]; ok && known != o.ID {
			d.h.fail("sync %s: event %s is sent as %s and as %s: once more", d.l.name, r.event, known, o.ID)
		}
		if event, ok := d.ids[o.ID]; ok && event != r.event {
			d.h.fail("sync %s: events %s and %s have one id, %s: one is lost", d.l.name, event, r.event, o.ID)
		}
		d.ids[o.ID], d.events[r.event] = r.event, o.ID
		return
	}
	d.identify(&o, refuse)
}

// identify is what it is told of a user.
func (d *destination) identify(o *operation, refuse bool) {
	user := o.Identifiers.ID
	if refuse {
		d.unsure[user] = true
		return
	}
	if d.people[user] == nil {
		d.people[user] = map[string]int{}
	}
	for name, value := range o.Attributes {
		switch v := value.(type) {
		case float64:
			d.people[user][name] = int(v)
		case nil, string:
			delete(d.people[user], name) // it was unset
		default:
			d.h.fail("sync %s: attribute %s of %s is %v", d.l.name, name, user, value)
		}
	}
}

// sends says whether something may be sent of a record, by the rules of now: one of which only a user update could be,
// and need not, is none.
func (l *ledger) sends(r *record) bool { return r.user != "" && !ruleSets[l.rules].drops(r.kind) }

// same compares what Customer.io has of a user with what it should have, as far as the rules name it.
func (d *destination) same(user string, want properties) error {
	if d.unsure[user] {
		return nil
	}
	for _, name := range ruleSets[d.l.rules].properties {
		value, has := want[name]
		got, is := d.people[user][name]
		if has != is || value != got {
			return fmt.Errorf("sync %s: %s of user %s is %s at Customer.io, not %s", d.l.name, name, user, shown(got, is), shown(value, has))
		}
	}
	return nil
}

func shown(value int, is bool) string {
	if !is {
		return "not there"
	}
	return fmt.Sprint(value)
}

// ruleSet is one configuration of rules, and what the model needs of it.
type ruleSet struct {
	name       string
	dropped    string // an event type that is not sent
	users      bool
	properties []string
	compiled   *mapping.Rules
}

func (r *ruleSet) drops(kind string) bool { return kind == r.dropped }

var ruleSets = func() []*ruleSet {
	all := []*ruleSet{
		{name: "all is sent", users: true, properties: names},
		{name: "events of type c are not sent", dropped: "c", users: true, properties: names},
		{name: "users are not sent", properties: names},
		{name: "one property is sent", users: true, properties: names[:1]},
	}
	for _, r := range all {
		spec := mapping.Spec{Identifier: "user_id", SendEvents: true, EventProperties: []string{"*"}, SendUsers: r.users, UserProperties: r.properties}
		if r.dropped != "" {
			spec.Select = append(spec.Select, mapping.SelectSpec{Event: []string{r.dropped}, Action: "drop"})
		}
		spec.Select = append(spec.Select, mapping.SelectSpec{Event: []string{"*"}, Action: "send"})
		var err error
		if r.compiled, err = mapping.Compile(spec); err != nil {
			panic(err)
		}
	}
	return all
}()

// names are the user properties that there are.
var names = []string{"plan", "seats", "spent"}

// check reads what a claim gives of a record, and compares.
func (h *history) check(l *ledger, q *queue.Record) (*record, mapping.Record) {
	r := h.bySeq[q.Seq]
	if r == nil || r.project != l.project || q.Lane != r.lane {
		h.fail("sync %s: a claim of lane %q has record %d, which the log did not take as such", l.name, q.Lane, q.Seq)
	}
	m := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if err := m.DecodeBody(q.Body); err != nil {
		h.fail("record %d cannot be read: %v", q.Seq, err)
	}
	if m.UserID != r.user || m.DeviceID != r.device || q.Received != r.received || !strings.Contains(string(m.Raw), fmt.Sprintf(`"n":%d}`, r.n)) {
		h.fail("record %d is of user %q, device %q, event %d; it reads as user %q, device %q, %s", r.seq, r.user, r.device, r.n, m.UserID, m.DeviceID, m.Raw)
	}
	h.sameProperties(fmt.Sprintf("the user of record %d, after it", r.seq), r.properties, m.Properties)
	return r, m
}

func (h *history) sameProperties(what string, want properties, stored []byte) {
	got := properties{}
	if err := json.Unmarshal(stored, &got); err != nil {
		h.fail("%s has properties %s: %v", what, stored, err)
	}
	for name := range got {
		if v, has := want[name]; !has || v != got[name] {
			h.fail("%s has %s, not %v", what, stored, want)
		}
	}
	if len(got) != len(want) {
		h.fail("%s has %s, not %v", what, stored, want)
	}
}
