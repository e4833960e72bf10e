package users

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ampcio/mapping"
)

// The people of a project, from Amplitude's words and nothing of the code: everything is a Go map, and nothing is
// remembered in a clever way.
//
// An event is of its user_id, else of the user its device was last linked to, else of the device. A user_id links the
// device. The first of a device takes over what the device has, where the user has nothing of his own; nobody later does.
type people struct {
	known  map[string]*person // "user ann", "device d1"
	linked map[string]string
	seen   map[string]bool // insert_ids, by device or else by user
}

type person struct {
	properties map[string]any
	builtins   map[string]string
}

func (p *people) of(who string) *person {
	if p.known[who] == nil {
		p.known[who] = &person{map[string]any{}, map[string]string{}}
	}
	return p.known[who]
}

// told is one event.
type told struct {
	device, user, insert string
	skip                 bool
	change               map[string]any    // user_properties
	fields               map[string]string // built-in properties
}

var builtinGroups = [][]string{{"platform", "os_name", "carrier"}, {"country", "city"}, {"language"}}

// overlay puts values over others: what one of a group is set by, resets the rest of it.
func overlay(under, over map[string]string) map[string]string {
	out := map[string]string{}
	for _, group := range builtinGroups {
		from := under
		if slices.ContainsFunc(group, func(name string) bool { return over[name] != "" }) {
			from = over
		}
		for _, name := range group {
			if from[name] != "" {
				out[name] = from[name]
			}
		}
	}
	return out
}

// take gives what the event's record should say: whose it is, and what they have then; nil for a repeat.
func (p *people) take(e *told) (belongs string, then *person) {
	if e.insert != "" {
		key := "user " + e.user + " " + e.insert
		if e.device != "" {
			key = "device " + e.device + " " + e.insert
		}
		if p.seen[key] {
			return "", nil
		}
		p.seen[key] = true
	}
	if belongs = e.user; belongs == "" {
		belongs = p.linked[e.device]
	}
	owner := p.of("device " + e.device)
	if belongs != "" {
		owner = p.of("user " + belongs)
	}
	if e.device != "" && e.user != "" {
		if p.linked[e.device] == "" {
			anonymous := p.of("device " + e.device)
			for name, value := range anonymous.properties {
				if _, has := owner.properties[name]; !has {
					owner.properties[name] = value
				}
			}
			owner.builtins = overlay(anonymous.builtins, owner.builtins)
			delete(p.known, "device "+e.device)
		}
		p.linked[e.device] = e.user
	}
	if e.skip {
		owner = &person{map[string]any{}, map[string]string{}}
	}
	change(owner.properties, e.change)
	owner.builtins = overlay(owner.builtins, e.fields)
	return belongs, owner
}

// change applies some operations, of those whose whole model is mapping's.
func change(properties, by map[string]any) {
	arguments := func(op string) map[string]any { m, _ := by[op].(map[string]any); return m }
	if by["$clearAll"] != nil {
		clear(properties)
	}
	for name := range arguments("$unset") {
		delete(properties, name)
	}
	maps.Copy(properties, arguments("$set"))
	for name, value := range arguments("$setOnce") {
		if _, has := properties[name]; !has {
			properties[name] = value
		}
	}
	for name, value := range arguments("$add") {
		if number, is := properties[name].(float64); is {
			properties[name] = number + value.(float64)
		} else if properties[name] == nil {
			properties[name] = value
		}
	}
	for name, value := range arguments("$append") {
		list, is := properties[name].([]any)
		if !is && properties[name] != nil {
			list = []any{properties[name]}
		}
		properties[name] = append(slices.Clone(list), value)
	}
	for name, value := range by {
		if !strings.HasPrefix(name, "$") {
			properties[name] = value
		}
	}
}

// event is what a sender makes of it, with ids that begin with of.
func (e *told) event(t *testing.T, of string) mapping.Event {
	t.Helper()
	raw := map[string]any{"event_type": "Test"}
	for name, value := range map[string]string{"device_id": e.device, "user_id": e.user} {
		if value != "" {
			raw[name] = of + value
		}
	}
	if e.insert != "" {
		raw["insert_id"] = e.insert
	}
	for name, value := range e.fields {
		raw[name] = value
	}
	if e.change != nil {
		raw["user_properties"] = e.change
	}
	if e.skip {
		raw["$skip_user_properties_sync"] = true
	}
	text, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	ev, problems := mapping.ParseEvent(text)
	if problems != nil {
		t.Fatal(problems)
	}
	return ev
}

func drawTold(rnd *rand.Rand) *told {
	pick := func(from ...string) string { return from[rnd.IntN(len(from))] }
	e := &told{device: pick("d1", "d2", "d3", ""), user: pick("", "", "ann", "bob", "cat"), skip: rnd.IntN(12) == 0, fields: map[string]string{}}
	if e.device == "" && e.user == "" {
		e.device = "d1"
	}
	if rnd.IntN(3) > 0 {
		e.insert = fmt.Sprintf("i%d", rnd.IntN(12))
	}
	for range rnd.IntN(3) {
		e.fields[pick("platform", "os_name", "carrier", "country", "city", "language")] = pick("x", "y")
	}
	if rnd.IntN(2) == 0 {
		e.change = map[string]any{}
		for range 1 + rnd.IntN(2) {
			one := map[string]any{pick("a", "b"): float64(rnd.IntN(4))}
			switch op := pick("$set", "$setOnce", "$add", "$append", "$unset", "$clearAll", ""); op {
			case "":
				maps.Copy(e.change, one)
			case "$clearAll":
				e.change[op] = "-"
			default:
				e.change[op] = one
			}
		}
	}
	return e
}

// decoded makes one form of numbers and lists.
func decoded(t *testing.T, object []byte) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := json.Unmarshal(object, &out); err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	return out
}

// TestIdentityAgainstTheModel: 10,000 histories of some devices and people, each record compared, and at the end of each all
// that is known. Each history has
// its own ids. It runs the committer's own code in memory; TestHistories and TestEveryCut have the files.
func TestIdentityAgainstTheModel(t *testing.T) {
	const histories = 10_000
	repeats, takeOvers := 0, 0
	r := NewRehearsal(Options{})
	defer r.Close()
	for seed := range uint64(histories) {
		rnd, of := rand.New(rand.NewPCG(seed, 11)), fmt.Sprint(seed, " ")
		p := &people{map[string]*person{}, map[string]string{}, map[string]bool{}}
		var story []string
		for range 1 + rnd.IntN(10) {
			e := drawTold(rnd)
			story = append(story, fmt.Sprintf("%+v", *e))
			if e.user != "" && e.device != "" && p.linked[e.device] == "" && len(p.of("device "+e.device).properties) > 0 {
				takeOvers++
			}
			belongs, then := p.take(e)
			records, err := r.Take(mapping.Arrival{Project: "app", Received: startOfTests, Events: []mapping.Event{e.event(t, of)}})
			if err != nil {
				t.Fatal(err)
			}
			if then == nil {
				if repeats++; len(records) != 0 {
					t.Fatalf("seed %d: a repeat is stored: %s", seed, strings.Join(story, "\n"))
				}
				continue
			}
			if len(records) != 1 {
				t.Fatalf("seed %d: not stored: %s", seed, strings.Join(story, "\n"))
			}
			var m mapping.Record
			if err := m.DecodeBody(records[0].Body); err != nil {
				t.Fatal(err)
			}
			if strings.TrimPrefix(m.UserID, of) != belongs || !reflect.DeepEqual(decoded(t, m.Properties), then.properties) || !sameTexts(decoded(t, []byte(builtinsOf(t, &m))), then.builtins) {
				t.Fatalf("seed %d: %q %s %s\nthe model says %q %v %v after\n%s", seed, m.UserID, m.Properties, builtinsOf(t, &m), belongs, then.properties, then.builtins, strings.Join(story, "\n"))
			}
		}
		for _, who := range []string{"device d1", "device d2", "device d3", "user ann", "user bob", "user cat"} {
			look, id := r.User, strings.TrimPrefix(who, "user ")
			if name, is := strings.CutPrefix(who, "device "); is {
				look, id = r.Device, name
				if p.linked[id] != "" {
					who = "user " + p.linked[id]
				}
			}
			k, err := look("app", of+id)
			if err != nil {
				t.Fatal(err)
			}
			if want := p.of(who); !reflect.DeepEqual(decoded(t, k.Properties), want.properties) || !sameTexts(decoded(t, mapping.BuiltinsJSON(k.Builtins)), want.builtins) {
				t.Fatalf("seed %d: %s has %s %s\nthe model says %v %v after\n%s", seed, who, k.Properties, mapping.BuiltinsJSON(k.Builtins), want.properties, want.builtins, strings.Join(story, "\n"))
			}
		}
	}
	if repeats < histories/10 || takeOvers < histories/100 {
		t.Errorf("%d repeats and %d take-overs in %d histories: too few to try them", repeats, takeOvers, histories)
	}
}

func sameTexts(got map[string]any, want map[string]string) bool {
	return len(got) == len(want) && !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(name string) bool { return got[name] != want[name] })
}
