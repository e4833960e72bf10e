package mapping

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.out.json anew; read every line of the difference")

// pair is a NAME.in.json: a configuration in the words of config.toml, and events in the order in which they arrive.
type pair struct {
	Story  string `json:"story"`
	Config struct {
		Identifier     string `json:"identifier"`
		IdentifierKind string `json:"identifier_kind"`
		Select         []struct {
			Event []string `json:"event"`
			Where []struct {
				Path  string         `json:"path"`
				Op    string         `json:"op"`
				Value jsontext.Value `json:"value"`
			} `json:"where"`
			Action     string   `json:"action"`
			Name       string   `json:"name"`
			Properties []string `json:"properties"`
		} `json:"select"`
		Events struct {
			Send               *bool             `json:"send"`
			Properties         []string          `json:"properties"`
			UserProperties     []string          `json:"user_properties"`
			Fields             []string          `json:"fields"`
			Exclude            []string          `json:"exclude"`
			Rename             map[string]string `json:"rename"`
			PageViews          string            `json:"page_views"`
			UserPropertyValues string            `json:"user_property_values"`
		} `json:"events"`
		Users struct {
			Send       *bool             `json:"send"`
			Properties []string          `json:"properties"`
			Exclude    []string          `json:"exclude"`
			Rename     map[string]string `json:"rename"`
			Convert    map[string]string `json:"convert"`
			OnUnset    string            `json:"on_unset"`
		} `json:"users"`
	} `json:"config"`
	Events []struct {
		Received time.Time      `json:"received"`
		Note     string         `json:"note"`
		Event    jsontext.Value `json:"event"`
		Refused  *string        `json:"refused"` // Customer.io refuses this event's identify, naming this field
	} `json:"events"`
}

// outcome is what became of one event, in NAME.out.json.
type outcome struct {
	event, noEvent, noIdentify string
	refused                    string // of the operations, without being sent
	userProperties             jsontext.Value
	operations                 []jsontext.Value
}

func (p *pair) spec(t *testing.T) Spec {
	c := p.Config
	spec := Spec{Identifier: c.Identifier, IdentifierKind: c.IdentifierKind,
		SendEvents: c.Events.Send == nil || *c.Events.Send, EventProperties: c.Events.Properties, EventUserProperties: c.Events.UserProperties,
		EventFields: c.Events.Fields, EventExclude: c.Events.Exclude, EventRename: c.Events.Rename,
		PageViews: c.Events.PageViews, UserPropertyValues: c.Events.UserPropertyValues,
		SendUsers: c.Users.Send == nil || *c.Users.Send, UserProperties: c.Users.Properties, UserExclude: c.Users.Exclude,
		UserRename: c.Users.Rename, UserConvert: c.Users.Convert, OnUnset: c.Users.OnUnset}
	for _, s := range c.Select {
		rule := SelectSpec{Event: s.Event, Action: s.Action, Name: s.Name, Properties: s.Properties}
		for _, w := range s.Where {
			rule.Where = append(rule.Where, WhereSpec{w.Path, w.Op, specValue(t, string(w.Value))})
		}
		spec.Select = append(spec.Select, rule)
	}
	return spec
}

// play takes the events through the house as far as this room knows it: properties are kept by user_id, else by
// device_id, and each identifier's past by its key.
func (p *pair) play(t *testing.T, rules *Rules) []outcome {
	return p.each(t, rules, func(*Record, []byte) {})
}

// each plays, and calls look with each record, and with what its identifier was sent before.
func (p *pair) each(t *testing.T, rules *Rules, look func(record *Record, earlier []byte)) []outcome {
	properties, builtins, sent := map[string][]byte{}, map[string][]byte{}, map[string][]byte{}
	var outcomes []outcome
	for i, arrived := range p.Events {
		e, problems := ParseEvent(arrived.Event)
		if problems != nil {
			t.Fatalf("event %d: %v", i, problems)
		}
		received := arrived.Received.UnixMilli()
		record := Record{Project: "app", Received: received, UserID: e.UserID, DeviceID: e.DeviceID, Time: EventTime(e.Time, 0, received), Raw: e.Raw}
		switch {
		case e.InsertID == "":
			record.ID = PlaceID([16]byte{}, i)
		case e.DeviceID != "":
			record.ID = EventID("app", "device", e.DeviceID, e.InsertID)
		default:
			record.ID = EventID("app", "user", e.UserID, e.InsertID)
		}
		owner := "user " + e.UserID
		if e.UserID == "" {
			owner = "device " + e.DeviceID
		}
		before := properties[owner]
		if e.SkipUserPropertiesSync {
			before = nil
		}
		after, err := ApplyOperations(nil, before, e.UserProperties)
		if err != nil {
			t.Fatal(err)
		}
		if !e.SkipUserPropertiesSync {
			record.Builtins = ApplyBuiltins(nil, builtins[owner], &e).After
			builtins[owner] = record.Builtins
		}
		if record.Properties = after; !e.SkipUserPropertiesSync {
			properties[owner] = after
		}
		// Through the stored form, as in real life.
		body := record.AppendBody(nil)
		if err := record.DecodeBody(body); err != nil {
			t.Fatal(err)
		}
		var d Decision
		id, reason := rules.Identifier(&record)
		look(&record, sent[id.Key()])
		if reason != "" {
			if d = rules.NoIdentifier(&record, reason); d.Damaged != nil {
				t.Fatal(d.Damaged)
			}
		} else if d, err = rules.Map(&record, id, sent[id.Key()]); err != nil {
			t.Fatal(err)
		}
		if d.Sent != nil {
			sent[id.Key()] = d.Sent
			if arrived.Refused != nil && d.UserReason == "" {
				sent[id.Key()] = Refused(d.Sent, *arrived.Refused)
			}
		}
		o := outcome{event: d.EventType, userProperties: after, noEvent: d.EventReason, noIdentify: d.UserReason}
		for _, op := range d.Operations {
			if err := check(op.Body); err != nil || string(compactCopy(op.Body)) != string(op.Body) {
				t.Errorf("event %d: %s is not compact JSON (%v)", i, op.Body, err)
			}
			o.operations = append(o.operations, op.Body)
			if reason, _ := op.Refused(); reason != "" {
				o.refused = reason
			}
		}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// TestPairs reads testdata/*.in.json, which say in a configuration's words and with real events what each rule does, and
// compares what comes out with testdata/*.out.json.
func TestPairs(t *testing.T) {
	names, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(names) == 0 {
		t.Fatal("no pairs", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".in.json"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var p pair
			if err := json.Unmarshal(data, &p, json.RejectUnknownMembers(true), jsontext.AllowInvalidUTF8(true)); err != nil {
				t.Fatal(err)
			}
			rules, err := Compile(p.spec(t))
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, p.play(t, rules))
			out := strings.TrimSuffix(name, ".in.json") + ".out.json"
			if *update {
				if err := os.WriteFile(out, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("%s\n-want +got\n%s", p.Story, diff)
			}
		})
	}
}

// render writes one member a line, and each operation on a line of its own, as it would be sent.
func render(t *testing.T, outcomes []outcome) []byte {
	var b bytes.Buffer
	line := func(name string, v any, more bool) {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(`    "` + name + `": ` + string(raw))
		if more {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("[\n")
	for i, o := range outcomes {
		b.WriteString("  {\n")
		line("event", o.event, true)
		line("user_properties_after", o.userProperties, true)
		if o.noIdentify != "" {
			line("no_identify_because", o.noIdentify, true)
		}
		if o.noEvent != "" {
			line("no_event_because", o.noEvent, true)
		}
		if o.refused != "" {
			line("refused_because", o.refused, true)
		}
		b.WriteString(`    "operations": [`)
		for j, op := range o.operations {
			b.WriteString("\n      " + string(op))
			if j < len(o.operations)-1 {
				b.WriteByte(',')
			}
		}
		if len(o.operations) > 0 {
			b.WriteString("\n    ")
		}
		b.WriteString("]\n  }")
		if i < len(outcomes)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("]\n")
	return b.Bytes()
}
