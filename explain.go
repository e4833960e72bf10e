package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/users"
)

// explanation tells what becomes of one event, and why. It is what --json prints, one
// object a line; members may be added under the same number.
type explanation struct {
	Schema    int             `json:"schema"`
	From      string          `json:"from"` // input | log | dead_letter
	Sequence  uint64          `json:"sequence,omitempty"`
	Project   string          `json:"project"`
	Event     string          `json:"event"` // its event_type
	InsertID  string          `json:"insert_id,omitempty"`
	ULID      string          `json:"ulid"`
	StandIn   bool            `json:"ulid_is_a_stand_in"` // without an insert_id the id is made when the event is stored
	Duplicate bool            `json:"duplicate"`          // it would not be stored again
	Forgotten bool            `json:"forgotten"`          // its person was: nothing more is said of it
	Received  time.Time       `json:"received"`
	Time      time.Time       `json:"time"` // the event's, by our clock
	UserID    string          `json:"user_id"`
	DeviceID  string          `json:"device_id"`
	Lane      string          `json:"lane"`                   // those of one lane are sent in order
	Before    json.RawMessage `json:"user_properties_before"` // null = not known any more
	After     json.RawMessage `json:"user_properties_after"`
	Partial   bool            `json:"partial"` // of a very large set: only what rules name
	Notes     []string        `json:"notes"`
	Syncs     []syncWhy       `json:"syncs"`
}

// syncWhy is what one sync makes of it.
type syncWhy struct {
	Sync       string        `json:"sync"`
	State      string        `json:"state,omitempty"` // disabled | dry_run; "" = it sends
	Verdict    string        `json:"verdict"`         // sent | filtered | dead
	Reason     string        `json:"reason,omitempty"`
	NoEvent    string        `json:"no_event_because,omitempty"`
	NoIdentify string        `json:"no_identify_because,omitempty"`
	Identifier identifierWhy `json:"identifier"`
	LastSent   string        `json:"last_sent"` // what is known of that: something | never | "" = nothing was asked
	Rules      []ruleWhy     `json:"rules"`
	Properties []propertyWhy `json:"event_properties"`
	Attributes []propertyWhy `json:"attributes"`
	Operations []operationIs `json:"operations"`
	Requests   []requestIs   `json:"requests"`
}

type identifierWhy struct {
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value"`          // null = absent
	Kind  string          `json:"kind,omitempty"` // id | email | cio_id; "" = there is none
	As    string          `json:"as,omitempty"`   // as it is sent
	Why   string          `json:"why,omitempty"`  // there is none
}

type ruleWhy struct {
	Rule    int        `json:"rule"` // from 1, in the order of the file
	Event   []string   `json:"event"`
	Action  string     `json:"action"`
	Named   bool       `json:"event_matches"`
	Where   []whereWhy `json:"where"`
	Decides bool       `json:"decides"`
}

type whereWhy struct {
	Path    string          `json:"path"`
	Op      string          `json:"op"`
	Value   any             `json:"value,omitempty"`
	Found   json.RawMessage `json:"found"` // null = absent
	Matches bool            `json:"matches"`
}

type propertyWhy struct {
	Of   string `json:"of"` // event | user | field
	Name string `json:"name,omitempty"`
	As   string `json:"as,omitempty"`
	Why  string `json:"why"`
}

type operationIs struct {
	Action  string          `json:"action"`
	Bytes   int             `json:"bytes"`
	Body    json.RawMessage `json:"body"`
	Refused string          `json:"refused,omitempty"` // without being sent
	Detail  string          `json:"detail,omitempty"`
}

type requestIs struct {
	Method string          `json:"method"`
	URL    string          `json:"url"`
	Bytes  int             `json:"bytes"`
	Body   json.RawMessage `json:"body"`
}

const explainSchema = 1

// explainer explains events, one after the other: what one of them changes counts for the
// next. close it.
type explainer struct {
	g      *generation
	syncs  []string // that are wanted
	memory *memory
	now    func() time.Time // at which is delivered

	rehearsals map[string]*users.Rehearsal
	told       map[string]bool // users and devices that the rehearsals know of
}

func newExplainer(g *generation, syncs []string, m *memory) *explainer {
	return &explainer{g: g, syncs: syncs, memory: m, now: time.Now, rehearsals: map[string]*users.Rehearsal{}, told: map[string]bool{}}
}

func (x *explainer) close() {
	for _, r := range x.rehearsals {
		r.Close()
	}
}

// projects are those of the syncs that are wanted.
func (x *explainer) projects() (names []string) {
	for _, sync := range x.syncs {
		if p := x.g.cfg.Sync[sync].Project; !slices.Contains(names, p) {
			names = append(names, p)
		}
	}
	return names
}

// projectOf is the project that an API key belongs to; "" when nobody knows.
func (x *explainer) projectOf(key string) string {
	for _, name := range x.g.cfg.Project.Names() {
		if slices.Contains(x.g.cfg.Project[name].AmplitudeAPIKeys, key) {
			return name
		}
	}
	return ""
}

// rehearsal is that of a project.
func (x *explainer) rehearsal(project string) *users.Rehearsal {
	r := x.rehearsals[project]
	if r == nil {
		r = users.NewRehearsal(users.Options{Carry: x.g.carries, Now: x.now})
		x.rehearsals[project] = r
	}
	return r
}

// tell lets the rehearsal know what is known of whom an event names.
func (x *explainer) tell(ctx context.Context, project string, e *mapping.Event, received int64) error {
	r := x.rehearsal(project)
	knows := func(q look) (more []string, err error) {
		var own error
		err = x.memory.ask(ctx, q, func(f found) {
			switch {
			case own != nil:
			case f.User != nil && string(f.User.Properties) != "null":
				own = r.KnowUser(project, f.User.ID, f.User.Properties, f.User.Builtins, received)
			case f.Device != nil && string(f.Device.Properties) != "null":
				if own = r.KnowDevice(project, f.Device.ID, f.Device.UserID, f.Device.Sole, f.Device.Properties, f.Device.Builtins, received); f.Device.UserID != "" {
					more = append(more, f.Device.UserID)
				}
			}
		})
		return more, errors.Join(err, own)
	}
	var q look
	once := func(kind, id string) bool {
		key := project + "\x00" + kind + "\x00" + id
		first := id != "" && !x.told[key]
		x.told[key] = true
		return first
	}
	if once("user", e.UserID) {
		q.Users = append(q.Users, someone{project, e.UserID})
	}
	if once("device", e.DeviceID) {
		q.Devices = append(q.Devices, someone{project, e.DeviceID})
	}
	if len(q.Users)+len(q.Devices) == 0 {
		return nil
	}
	linked, err := knows(q)
	for _, id := range linked {
		if err == nil && once("user", id) {
			_, err = knows(look{Users: []someone{{project, id}}})
		}
	}
	return err
}

// before are the properties of whom an event belongs to, before it.
func (x *explainer) before(project string, e *mapping.Event) (json.RawMessage, error) {
	r := x.rehearsal(project)
	ask, id := r.User, e.UserID
	if id == "" {
		ask, id = r.Device, e.DeviceID
	}
	if id == "" {
		return json.RawMessage("{}"), nil
	}
	k, err := ask(project, id)
	return k.Properties, err
}

// event explains an event that comes now, as it would be stored.
func (x *explainer) event(ctx context.Context, project string, e mapping.Event, received, uploaded int64) (explanation, error) {
	if err := x.tell(ctx, project, &e, received); err != nil {
		return explanation{}, err
	}
	before, err := x.before(project, &e)
	if err != nil {
		return explanation{}, err
	}
	records, err := x.rehearsal(project).Take(mapping.Arrival{Project: project, Received: received, Uploaded: uploaded, Source: mapping.SourceHTTP, Events: []mapping.Event{e}})
	if err != nil {
		return explanation{}, err
	}
	if len(records) == 0 {
		return explanation{Schema: explainSchema, From: "input", Project: project, Event: e.Type, InsertID: e.InsertID, Duplicate: true, Received: timeMS(received),
			UserID: e.UserID, DeviceID: e.DeviceID, Before: before, After: before, Notes: []string{"an event with this insert_id has come before: it is not stored again"}, Syncs: []syncWhy{}}, nil
	}
	out, err := x.record(ctx, &keptRecord{Record: records[0]})
	out.From, out.Sequence, out.Before = "input", 0, before
	out.StandIn = e.InsertID == "" || e.UserID == "" && e.DeviceID == ""
	out.Notes = droppedIDs(&e)
	return out, err
}

// droppedIDs tells of ids that Amplitude does not take for ones.
func droppedIDs(e *mapping.Event) []string {
	notes := []string{}
	_ = mapping.Members(e.Raw, func(name string, value []byte) error {
		taken := e.UserID
		switch name {
		case "device_id":
			taken = e.DeviceID
		case "user_id":
		default:
			return nil
		}
		if v := string(value); taken == "" && v != "null" && v != `""` {
			notes = append(notes, fmt.Sprintf("%s %s is none, by Amplitude's rules: too short (options.min_id_length, 5), too long, or a word for nobody", name, v))
		}
		return nil
	})
	return notes
}

// record explains a record that is stored, or a dead letter as if it were tried again.
func (x *explainer) record(ctx context.Context, k *keptRecord) (explanation, error) {
	q := &k.Record
	m := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	out := explanation{Schema: explainSchema, From: "log", Sequence: q.Seq, Project: q.Project, ULID: mapping.ULID(q.ID), Received: timeMS(q.Received), Notes: []string{}, Syncs: []syncWhy{}}
	if q.Forgotten {
		out.ULID, out.Forgotten = "", true
		out.Notes = append(out.Notes, "it is of somebody who was forgotten (ampcio user forget): nothing is sent of it any more, and it is erased when its file of the log goes")
		return out, nil
	}
	if k.Seq != 0 && k.Sync == "" && !x.memory.fresh {
		out.Notes = append(out.Notes, "as if it were sent now: after what this person has been sent since (--new: as if nothing had been)")
	}
	if k.Sync != "" {
		out.From = "dead_letter"
		out.Notes = append(out.Notes, fmt.Sprintf("a dead letter of sync %s (%s): this is what would be sent if it were tried again now", k.Sync, k.Reason))
	}
	if err := m.DecodeBody(q.Body); err != nil {
		out.Notes = append(out.Notes, "the record cannot be read: "+err.Error())
		return out, nil
	}
	e, _ := mapping.ParseEvent(m.Raw) // it was one when it was taken
	out.Event, out.InsertID, out.Time, out.UserID, out.DeviceID = e.Type, e.InsertID, timeMS(m.Time), m.UserID, m.DeviceID
	out.After, out.Partial, out.Lane = m.Properties, m.Partial, "of nobody"
	switch {
	case m.UserID != "":
		out.Lane = "user " + m.UserID
	case m.DeviceID != "":
		out.Lane = "device " + m.DeviceID
	}
	for _, sync := range x.syncs {
		if x.g.cfg.Sync[sync].Project != q.Project || k.Sync != "" && sync != k.Sync {
			continue
		}
		why, err := x.sync(ctx, sync, k, &m)
		if err != nil {
			return out, fmt.Errorf("sync %s: %w", sync, err)
		}
		out.Syncs = append(out.Syncs, why)
	}
	return out, nil
}

// sync explains what one sync makes of a record. What it sends, counts as sent from then on.
func (x *explainer) sync(ctx context.Context, name string, k *keptRecord, m *mapping.Record) (syncWhy, error) {
	y, rules := x.g.cfg.Sync[name], x.g.rules[name]
	o := accountOptions(y)
	o.Now, o.Current, o.Owner = x.now, x.memory.currentOf(ctx), x.memory.ownerOf(ctx)
	w := syncWhy{Sync: name, Identifier: identifierWhy{Path: y.Identifier}, Operations: []operationIs{}, Requests: []requestIs{}}
	switch {
	case !y.Enabled:
		w.State = "disabled"
	case y.DryRun:
		w.State = "dry_run"
	}
	var replayed []byte
	if k.Sync != "" {
		replayed = append([]byte{}, k.Results...)
	}
	var earlier []byte
	plan, err := delivery.Explain(rules, o, &k.Record, replayed, func(key string) (sent []byte, err error) {
		earlier, err = x.memory.lastSent(ctx, name, key)
		return earlier, err
	})
	if err != nil {
		return w, err
	}
	if err := x.reasons(&w, &y, rules, m, plan.Key, earlier); err != nil && plan.Unreadable == "" {
		return w, err
	}
	base := o.Base()
	for _, op := range plan.Operations {
		w.Operations = append(w.Operations, operationIs{op.Action, len(op.Body), op.Body, op.Refused, op.RefusedDetail})
	}
	for _, r := range plan.Requests {
		w.Requests = append(w.Requests, requestIs{r.Method, base + r.Path, len(r.Body), r.Body})
	}
	d := plan.Decision
	w.NoEvent, w.NoIdentify = d.EventReason, d.UserReason
	w.Verdict, w.Reason = plan.Verdict()
	if plan.Unreadable != "" {
		w.NoEvent, w.NoIdentify = plan.Unreadable, plan.Unreadable
	}
	if sent := plan.Sent(); sent != nil {
		x.memory.remember(name, plan.Key, sent)
	}
	return w, nil
}

// reasons adds why a sync decides as it does.
func (x *explainer) reasons(w *syncWhy, y *config.Sync, rules *mapping.Rules, m *mapping.Record, key string, earlier []byte) error {
	id, none := rules.Identifier(m)
	w.Identifier.Kind, w.Identifier.As, w.Identifier.Why = id.Kind, id.Value, none
	if key != "" {
		if w.LastSent = "never"; earlier != nil {
			w.LastSent = "something"
		}
	}
	why, err := rules.Explain(m, earlier)
	w.Identifier.Value = rawOr(why.Identifier, "null")
	w.Rules, w.Properties, w.Attributes = []ruleWhy{}, properties(why.EventProperties), properties(why.Attributes)
	for i, r := range why.Rules {
		s := y.Select[i]
		rule := ruleWhy{Rule: i + 1, Event: s.Event, Action: s.Action, Named: r.Event, Where: []whereWhy{}, Decides: r.Decides}
		for j, line := range r.Where {
			rule.Where = append(rule.Where, whereWhy{s.Where[j].Path, s.Where[j].Op, s.Where[j].Value, rawOr(line.Found, "null"), line.Matches})
		}
		w.Rules = append(w.Rules, rule)
	}
	return err
}

func properties(list []mapping.PropertyWhy) []propertyWhy {
	out := []propertyWhy{}
	for _, p := range list {
		out = append(out, propertyWhy(p))
	}
	return out
}

func timeMS(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
