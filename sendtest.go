package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/mapping"
	"ampcio/queue"
)

// The daemon's part of send-test: it says how a test event would be judged and where it
// is to be sent, and tells what becomes of it in each sync. Sending it is left to the
// command, which comes in by the front door like any SDK.

func init() { verbs["send-test"] = sendTestVerb }

// testOrder is what send-test is asked.
type testOrder struct {
	Project        string          `json:"project,omitempty"` // may be left out when there is only one
	Sync           string          `json:"sync,omitempty"`    // only this one is looked at
	Event          string          `json:"event,omitempty"`
	User           string          `json:"user"`
	Properties     json.RawMessage `json:"properties,omitempty"`
	UserProperties json.RawMessage `json:"user_properties,omitempty"`
	InsertID       string          `json:"insert_id"`
	DryRun         bool            `json:"dry_run,omitempty"`
}

// testTold is one line of the answer: the plan first, then steps.
type testTold struct {
	Plan *testPlan `json:"plan,omitempty"`
	Step *testStep `json:"step,omitempty"`
}

// testPlan is the event and what is expected of it.
type testPlan struct {
	Config         string             `json:"config"` // the file that the daemon reads
	Project        string             `json:"project"`
	Listeners      []testListener     `json:"listeners"`
	Systemd        bool               `json:"systemd"` // the listeners are passed by systemd
	Certificate    *admin.Certificate `json:"certificate"`
	TrustedProxies []string           `json:"trusted_proxies"`
	Full           string             `json:"full"`  // why the event would be refused; "" = it would not
	Relay          string             `json:"relay"` // the event goes to Amplitude as well: us | eu; "" = it does not
	Event          string             `json:"event"`
	User           string             `json:"user"`
	InsertID       string             `json:"insert_id"`
	EventID        string             `json:"event_id"` // by which Customer.io knows it
	Body           json.RawMessage    `json:"body"`     // of the request
	Syncs          []testSync         `json:"syncs"`
}

// testListener is where the event may be sent.
type testListener struct {
	Network string `json:"network"` // tcp | unix
	Address string `json:"address"`
	URL     string `json:"url"`
}

// testSync is what one sync is doing, and would do with the event.
type testSync struct {
	Sync     string    `json:"sync"`
	Endpoint string    `json:"endpoint"`
	State    testState `json:"state"`

	Event      string   `json:"event"`      // sent, or why not
	User       string   `json:"user"`       // sent (if anything is new), or why not
	Rule       string   `json:"rule"`       // that decides about the event, with file and line; "" = none
	Identifier string   `json:"identifier"` // kind:value; "" = there is none
	Why        []string `json:"why"`        // of an event that is not sent: sentences, with what to change
}

// testState is whether a sync delivers.
type testState struct {
	Status string   `json:"status"` // as in queue-stats; dry_run = it is one
	Reason string   `json:"reason,omitempty"`
	Detail string   `json:"detail,omitempty"`
	Advice string   `json:"advice,omitempty"`
	Hints  []string `json:"hints,omitempty"` // of a key that is refused: what it may be instead
}

// testStep is something that has become of the event in a sync.
type testStep struct {
	Sync   string          `json:"sync"`
	At     time.Time       `json:"at"`
	What   string          `json:"what"` // as queue's steps; state = the sync is so now
	Seq    uint64          `json:"sequence,omitempty"`
	Reason string          `json:"reason,omitempty"`
	WaitMS int64           `json:"wait_ms,omitempty"`
	Ending string          `json:"ending,omitempty"` // of what has ended
	Event  string          `json:"event,omitempty"`  // delivered, filtered/REASON or dead/REASON
	User   string          `json:"user,omitempty"`   // likewise
	Answer json.RawMessage `json:"answer,omitempty"` // of a dead letter: what Customer.io said
	State  *testState      `json:"state,omitempty"`
}

const dryRunStatus = "dry_run"

// hopeless says that somebody has to do something before the sync delivers.
func (s testState) hopeless() bool {
	switch s.Status {
	case admin.StatusPaused, admin.StatusBlocked, admin.StatusDisabled, admin.StatusOrphaned, dryRunStatus:
		return true
	}
	return false
}

func sendTestVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var order testOrder
	if err := readInput(in, &order); err != nil {
		return err
	}
	d, running := h.(*daemon)
	if !running {
		return exit(exitUnavailable, errors.New("ampcio does not run"))
	}
	plan, err := d.planTest(&order)
	if err != nil || order.DryRun {
		if err == nil {
			err = tell(out, testTold{Plan: plan})
		}
		return err
	}
	steps := make(chan testStep, 64)
	open := map[string]testState{}
	for _, y := range plan.Syncs {
		c := d.consumer(y.Sync)
		if c == nil {
			continue // it has just been renamed
		}
		open[y.Sync] = y.State
		stop := c.Follow(mapping.EventID(plan.Project, "user", order.User, order.InsertID), func(s queue.Step) {
			select {
			case steps <- stepOf(y.Sync, s):
			default: // nobody listens any more
			}
		})
		defer stop()
	}
	if err := tell(out, testTold{Plan: plan}); err != nil {
		return err
	}
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for len(open) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case s := <-steps:
			if s.What == queue.StepEnded {
				delete(open, s.Sync)
			}
			if tell(out, testTold{Step: &s}) != nil {
				return nil // whoever asked has heard enough
			}
		case <-look.C:
			for name, before := range open {
				now, err := d.testState(name)
				if err != nil {
					return err
				}
				if now.Status == before.Status && now.Reason == before.Reason {
					continue
				}
				open[name] = now
				if tell(out, testTold{Step: &testStep{Sync: name, At: time.Now(), What: "state", State: &now}}) != nil {
					return nil
				}
			}
		}
	}
	return nil
}

func stepOf(sync string, s queue.Step) testStep {
	t := testStep{Sync: sync, At: time.Now(), What: s.Kind, Seq: s.Seq, Reason: s.Reason, WaitMS: s.Wait.Milliseconds()}
	if s.Kind != queue.StepEnded {
		return t
	}
	t.Ending, t.Reason, t.Answer = s.Outcome.Ending.String(), s.Outcome.Reason, s.Outcome.Results
	for _, tally := range s.Outcome.Tallies {
		kind, verdict, _ := strings.Cut(tally.Key, "/")
		switch kind {
		case "event":
			t.Event = verdict
		case "user":
			t.User = verdict
			if verdict != "delivered" && !strings.HasPrefix(verdict, "dead/") {
				t.User = "filtered/" + verdict // the tally has the reason alone
			}
		}
	}
	return t
}

// planTest works out the event and what is expected of it. It fills in what the order
// leaves open.
func (d *daemon) planTest(order *testOrder) (*testPlan, error) {
	cfg := d.config()
	project, err := testProject(cfg, order)
	if err != nil {
		return nil, err
	}
	p := &testPlan{Config: d.configFile, Project: project, Systemd: d.passed, User: order.User, InsertID: order.InsertID,
		Certificate: d.certificate.show(time.Now()), TrustedProxies: []string{}, Full: d.records.Stats().Full, Listeners: d.testListeners()}
	for _, proxy := range cfg.Server.TrustedProxies {
		p.TrustedProxies = append(p.TrustedProxies, proxy.String())
	}
	if relay := cfg.Project[project].Relay; relay != "" && relay != "off" {
		p.Relay = relay
	}
	var names []string
	for _, name := range cfg.Sync.Names() {
		if cfg.Sync[name].Project == project && (order.Sync == "" || order.Sync == name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, exit(exitData, fmt.Errorf("project %s has no sync: there is nothing that would send the event to Customer.io", project))
	}
	keys := cfg.Project[project].AmplitudeAPIKeys
	if len(keys) == 0 { // its events come by the webhook alone, whose secret is no command's business
		return nil, exit(exitData, fmt.Errorf("project %s has no amplitude_api_keys, so no SDK could send it a test event. Its webhook is tried from Amplitude: let an event happen there, then: ampcio trace --user U", project))
	}
	model := cfg.Sync[names[0]] // whose rules give the event's name, and what its user needs
	for _, name := range names {
		if y := cfg.Sync[name]; y.Enabled {
			model = y
			break
		}
	}
	if p.Event = order.Event; p.Event == "" {
		p.Event = testEventName(model)
	}
	event, err := testEvent(order, p.Event, model)
	if err != nil {
		return nil, err
	}
	p.Body, err = json.Marshal(map[string]any{
		"api_key": keys[0], "events": []json.RawMessage{event}, "options": map[string]any{"min_id_length": 1},
	})
	if err != nil {
		return nil, err
	}
	record, err := d.testRecord(project, event)
	if err != nil {
		return nil, err
	}
	record.ID = mapping.EventID(project, "user", order.User, order.InsertID)
	p.EventID = mapping.ULID(record.ID)
	for _, name := range names {
		y, err := d.expect(name, record)
		if err != nil {
			return nil, err
		}
		p.Syncs = append(p.Syncs, y)
	}
	return p, nil
}

func testProject(cfg *config.Config, order *testOrder) (string, error) {
	names := cfg.Project.Names()
	if y, known := cfg.Sync[order.Sync]; order.Sync != "" {
		switch {
		case !known:
			return "", noSuchSync(order.Sync, cfg.Sync.Names())
		case order.Project != "" && order.Project != y.Project:
			return "", exit(exitUsage, fmt.Errorf("sync %s takes the events of project %s, not of %s", order.Sync, y.Project, order.Project))
		}
		return y.Project, nil
	}
	switch {
	case slices.Contains(names, order.Project):
		return order.Project, nil
	case order.Project != "":
		return "", exit(exitUsage, fmt.Errorf("there is no project %q. There are: %s", order.Project, strings.Join(names, ", ")))
	case len(names) > 1:
		return "", exit(exitUsage, fmt.Errorf("there is more than one project: add --project, one of %s", strings.Join(names, ", ")))
	}
	return names[0], nil
}

// testListeners are where the public listener can be reached from this machine.
func (d *daemon) testListeners() (all []testListener) {
	scheme := "http://"
	if d.certificate != nil {
		scheme = "https://"
	}
	for _, a := range d.addresses {
		l := testListener{Network: a.Network(), Address: a.String()}
		if tcp, is := a.(*net.TCPAddr); is && (tcp.IP == nil || tcp.IP.IsUnspecified()) {
			l.Address = net.JoinHostPort("localhost", fmt.Sprint(tcp.Port))
		}
		host := l.Address
		if l.Network == "unix" {
			host = "localhost"
		}
		l.URL = scheme + host + "/2/httpapi"
		all = append(all, l)
	}
	return all
}

// testEventName is a name that the rules of a sync send: that of the first rule, if it
// can be, of one without conditions.
func testEventName(y config.Sync) string {
	found := ""
	for _, r := range y.Select {
		if r.Action == "drop" || found != "" && len(r.Where) > 0 {
			continue
		}
		for _, name := range r.Event {
			if !strings.Contains(name, "*") {
				return name
			}
			found = cmp.Or(found, strings.TrimSpace(strings.ReplaceAll(name, "*", "ampcio send-test")))
		}
		if len(r.Where) == 0 && found != "" {
			break
		}
	}
	return cmp.Or(found, "ampcio send-test")
}

// testEvent is the event as an SDK would send it. Where the sync knows people by a user
// property, it gets one.
func testEvent(order *testOrder, name string, y config.Sync) (json.RawMessage, error) {
	properties := map[string]json.RawMessage{"ampcio_send_test": json.RawMessage("true")}
	user := map[string]json.RawMessage{}
	if property, is := strings.CutPrefix(y.Identifier, "user."); is {
		identifier := order.User
		if y.IdentifierKind == "email" || strings.Contains(strings.ToLower(property), "mail") {
			identifier += "@example.com"
		}
		user[property], _ = json.Marshal(identifier) // a string always can be
	}
	for _, given := range []struct {
		flag string
		text json.RawMessage
		into map[string]json.RawMessage
	}{{"--properties", order.Properties, properties}, {"--user-properties", order.UserProperties, user}} {
		if len(given.text) > 0 {
			if err := json.Unmarshal(given.text, &given.into); err != nil {
				return nil, exit(exitUsage, fmt.Errorf(`%s must be a JSON object, such as '{"total": 20}'`, given.flag))
			}
		}
	}
	event := map[string]any{"event_type": name, "user_id": order.User, "insert_id": order.InsertID, "time": time.Now().UnixMilli(),
		"platform": "ampcio send-test", "library": "ampcio/" + version().version, "event_properties": properties}
	if len(user) > 0 {
		event["user_properties"] = user
	}
	return json.Marshal(event)
}

// testRecord is the event as it would be stored now.
func (d *daemon) testRecord(project string, raw []byte) (*mapping.Record, error) {
	e, problems := mapping.ParseEvent(raw)
	if len(problems) > 0 {
		return nil, exit(exitUsage, fmt.Errorf("that is no event: %s %s", problems[0].Field, problems[0].Detail))
	}
	known, err := d.users.User(project, e.UserID)
	if err != nil {
		return nil, exit(exitIO, err)
	}
	before := known.Properties
	if len(before) == 0 {
		before = []byte("{}")
	}
	properties, err := mapping.ApplyOperations(nil, before, e.UserProperties)
	if err != nil {
		return nil, exit(exitUsage, fmt.Errorf("--user-properties cannot be applied: %w", err))
	}
	return &mapping.Record{Project: project, Received: e.Time, UserID: e.UserID, Time: e.Time, Properties: properties, Raw: e.Raw,
		Builtins: mapping.ApplyBuiltins(nil, known.Builtins, &e).After}, nil
}
