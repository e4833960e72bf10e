package mapping

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func packed(t *testing.T, object string) []byte {
	t.Helper()
	p, err := PackBuiltins([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// after gives what is known of a user whose events these are, one after the other, as JSON.
func after(t *testing.T, events ...string) string {
	t.Helper()
	var known []byte
	for _, raw := range events {
		e, problems := ParseEvent([]byte(raw))
		if problems != nil {
			t.Fatal(raw, problems)
		}
		known = ApplyBuiltins(nil, known, &e).After
	}
	return string(BuiltinsJSON(known))
}

// Each case: the fields of one event after another, and what is known then.
func TestBuiltinsOfAUser(t *testing.T) {
	for _, test := range []struct {
		name   string
		fields []string
		want   string
	}{
		{"nothing is said", []string{``}, `{}`},
		{"what is not said again stays", []string{`"platform":"iOS","os_name":"ios","country":"France","language":"French"`, ``},
			`{"platform":"iOS","os_name":"ios","country":"France","language":"French"}`},
		{"one of the device resets the others of the device", []string{
			`"platform":"iOS","os_name":"ios","os_version":"17","device_brand":"Apple","device_manufacturer":"Apple","device_model":"iPhone","carrier":"Orange","country":"France","language":"fr"`, `"platform":"Web"`},
			`{"platform":"Web","country":"France","language":"fr"}`},
		{"so does the last of the group", []string{`"platform":"iOS","os_name":"ios"`, `"carrier":"Orange"`}, `{"carrier":"Orange"}`},
		{"one of the place resets the others of the place", []string{
			`"country":"France","region":"IdF","city":"Paris","dma":"x","platform":"iOS"`, `"city":"Lyon"`}, `{"platform":"iOS","city":"Lyon"}`},
		{"dma is of the place", []string{`"country":"France"`, `"dma":"501"`}, `{"dma":"501"}`},
		{"language and version are each for itself", []string{`"language":"fr","app_version":"1","platform":"iOS"`, `"language":"de"`, `"app_version":"2"`},
			`{"platform":"iOS","language":"de","app_version":"2","start_version":"1"}`},
		{"null and the empty text say nothing", []string{`"platform":"iOS","os_name":"ios","city":"Paris"`, `"platform":null,"carrier":"","city":""`},
			`{"platform":"iOS","os_name":"ios","city":"Paris"}`},
		{"beside another of the group they reset", []string{`"platform":"iOS","os_name":"ios"`, `"platform":"Web","os_name":null`}, `{"platform":"Web"}`},
		{"the mobile SDKs' name of the version", []string{`"version_name":"3.1"`}, `{"app_version":"3.1","start_version":"3.1"}`},
		{"app_version beats it", []string{`"version_name":"3.1","app_version":"4"`}, `{"app_version":"4","start_version":"4"}`},
		{"the first version stays", []string{`"app_version":"1"`, `"app_version":"2"`}, `{"app_version":"2","start_version":"1"}`},
		{"an identify may say otherwise", []string{`"app_version":"1"`, `"start_version":"0.9","paying":"true"`}, `{"app_version":"1","start_version":"0.9","paying":"true"}`},
		{"revenue makes paying", []string{`"price":2.5`, ``}, `{"paying":true}`},
		{"also as revenue", []string{`"revenue":1`}, `{"paying":true}`},
		{"a refund does not", []string{`"price":2.5,"quantity":-1`, `"revenue":-3`}, `{}`},
		{"nor nothing", []string{`"price":0,"revenue":0`}, `{}`},
		{"numbers are values", []string{`"os_version":17,"paying":false`}, `{"os_version":17,"paying":false}`},
		{"user properties of these names are others", []string{`"user_properties":{"platform":"mine","$set":{"country":"x"}}`}, `{}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var events []string
			for _, fields := range test.fields {
				events = append(events, strings.Replace(`{"event_type":"A",`+fields+`}`, ",}", "}", 1))
			}
			if got := after(t, events...); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	for _, event := range revenueEvents {
		if got := after(t, `{"event_type":"`+event+`","event_properties":{"$revenue":3}}`); got != `{"paying":true}` {
			t.Errorf("the SDKs' revenue(): %s", got)
		}
	}
	if got := after(t, `{"event_type":"Other","event_properties":{"$revenue":3}}`); got != `{}` {
		t.Errorf("a property of that name: %s", got)
	}
}

// A user who logs in for the first time on a device.
func TestTakeOverBuiltins(t *testing.T) {
	for _, test := range []struct{ name, own, anonymous, want string }{
		{"all of it", `{}`, `{"platform":"iOS","city":"Paris","start_version":"1"}`, `{"platform":"iOS","city":"Paris","start_version":"1"}`},
		{"what the user has wins, by groups", `{"platform":"Web","language":"de"}`, `{"os_name":"ios","city":"Paris","language":"fr"}`, `{"platform":"Web","city":"Paris","language":"de"}`},
		{"nothing to take", `{"platform":"Web"}`, `{}`, `{"platform":"Web"}`},
	} {
		if got := BuiltinsJSON(TakeOverBuiltins(packed(t, test.own), packed(t, test.anonymous))); string(got) != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
	own := packed(t, `{"platform":"Web"}`)
	if got := TakeOverBuiltins(own, []byte{99}); string(got) != string(own) {
		t.Errorf("damaged: %x", got)
	}
}

// The rules once more, from Amplitude's words: setting any of a group resets the others of it unless they are sent on the same
// event; all stay when none is sent.
type modelBuiltins map[string]string

func (m modelBuiltins) take(event map[string]string) {
	for _, group := range [][]string{
		{"platform", "os_name", "os_version", "device_brand", "device_manufacturer", "device_model", "carrier"},
		{"country", "region", "city", "dma"}, {"language"}, {"app_version"},
	} {
		if slices.ContainsFunc(group, func(name string) bool { return event[name] != "" }) {
			for _, name := range group {
				if delete(m, name); event[name] != "" {
					m[name] = event[name]
				}
			}
		}
	}
	if m["start_version"] == "" && m["app_version"] != "" {
		m["start_version"] = m["app_version"]
	}
}

// What a record says, together with its event, is what the user has: by any path, and for whoever reads it.
func TestBuiltinsAgainstTheModel(t *testing.T) {
	names := []string{"platform", "os_name", "os_version", "device_brand", "device_manufacturer", "device_model", "carrier",
		"country", "region", "city", "dma", "language", "app_version"}
	rules, err := Compile(Spec{Identifier: "user_id", SendUsers: true, UserProperties: append([]string{"start_version"}, names...)})
	if err != nil {
		t.Fatal(err)
	}
	checkHistories(t, func(t *rapid.T) {
		model := modelBuiltins{}
		var known []byte
		for range rapid.IntRange(1, 8).Draw(t, "events") {
			event := map[string]string{}
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 5, rapid.ID).Draw(t, "names") {
				event[name] = rapid.SampledFrom([]string{"", "a", "é", `"\`}).Draw(t, name)
			}
			model.take(event)
			raw := `{"event_type":"$identify"`
			for name, value := range event {
				raw += fmt.Sprintf(`,%q:%q`, name, value)
			}
			e, problems := ParseEvent([]byte(raw + "}"))
			if problems != nil {
				t.Fatal(problems)
			}
			k := ApplyBuiltins(nil, known, &e)
			known = k.After
			r := Record{UserID: "ann", Raw: e.Raw, Properties: []byte("{}")}
			if k.Changed {
				r.Builtins = k.After
			} else {
				r.Beside = k.Beside
			}
			var stored Record
			if err := stored.DecodeBody(r.AppendBody(nil)); err != nil {
				t.Fatal(err)
			}
			d, err := rules.Map(&stored, Identifier{Kind: "id", Value: "ann"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			if len(d.Operations) > 0 {
				var o struct {
					Attributes map[string]string `json:"attributes"`
				}
				if err := json.Unmarshal(d.Operations[0].Body, &o); err != nil {
					t.Fatal(err)
				}
				got = o.Attributes
			}
			if !maps.Equal(got, model) {
				t.Fatalf("%s: %v, the model says %v", raw, got, model)
			}
		}
	})
}

// An event that says more than is kept changes nothing of what is known, and nothing of that is cleared at Customer.io.
func TestBuiltinsThatAreTooLarge(t *testing.T) {
	rules, err := Compile(Spec{Identifier: "user_id", SendUsers: true, UserProperties: []string{"country", "platform"}})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("😀", 1000)
	e, problems := ParseEvent([]byte(`{"event_type":"A","platform":"Web","os_name":"` + long + `","carrier":"` + long + `","language":"` + long + `"}`))
	if problems != nil {
		t.Fatal(problems)
	}
	id := Identifier{Kind: "id", Value: "ann"}
	before := packed(t, `{"platform":"iOS","country":"France"}`)
	first, err := rules.Map(&Record{UserID: "ann", Raw: []byte(`{"event_type":"A"}`), Beside: before}, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := ApplyBuiltins(nil, before, &e)
	r := Record{UserID: "ann", Raw: e.Raw, Beside: k.Beside}
	if k.Changed {
		r.Builtins, r.Beside = k.After, nil
	}
	then, err := rules.Map(&r, id, first.Sent)
	if err != nil || string(k.After) != string(before) || len(then.Operations) != 0 {
		t.Errorf("known is %s, and sent %+v, %v", BuiltinsJSON(k.After), then, err)
	}
}

func TestBuiltinsInRules(t *testing.T) {
	record := Record{UserID: "ann", Properties: []byte(`{"country":"mine","plan":"pro"}`), Raw: []byte(`{"event_type":"A","os_name":"ios"}`),
		Beside: packed(t, `{"country":"France","city":"Paris","language":"French","app_version":"2"}`)}
	sends := func(spec Spec) string {
		t.Helper()
		spec.Identifier = "user_id"
		rules, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		d, err := rules.Map(&record, Identifier{Kind: "id", Value: "ann"}, nil)
		if err != nil || len(d.Operations) != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		var o struct {
			Attributes map[string]any `json:"attributes"`
		}
		if err := json.Unmarshal(d.Operations[0].Body, &o); err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(o.Attributes, json.Deterministic(true))
		return string(text)
	}
	all := []SelectSpec{{Event: []string{"*"}}}
	for _, test := range []struct {
		name, want string
		spec       Spec
	}{
		{"a name that a property has too is the property's", `{"city":"Paris","country":"mine","os":"ios"}`,
			Spec{SendUsers: true, UserProperties: []string{"country", "city", "os", "device"}}},
		{"* chooses no built-ins", `{"country":"mine","plan":"pro"}`, Spec{SendUsers: true, UserProperties: []string{"*", "c*"}}},
		{"rename, exclude", `{"town":"Paris"}`, Spec{SendUsers: true, UserProperties: []string{"city", "language"}, UserExclude: []string{"lang*"}, UserRename: map[string]string{"city": "town"}}},
		{"with events", `{"app_version":"2","city":"Paris"}`, Spec{SendEvents: true, Select: all, EventUserProperties: []string{"city"}, EventFields: []string{"app_version", "platform"}}},
		{"where, by both kinds of paths", `{}`, Spec{SendEvents: true, Select: []SelectSpec{{Event: []string{"A"}, Where: []WhereSpec{
			{Path: "country", Op: "is", Value: "France"}, {Path: "user.country", Op: "is", Value: "mine"}, {Path: "user.city", Op: "is", Value: "Paris"}, {Path: "user.os", Op: "is", Value: "ios"}, {Path: "platform", Op: "is not set"}}}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := sends(test.spec); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	rules, err := Compile(Spec{Identifier: "user.city"})
	if err == nil {
		if id, why := rules.Identifier(&record); why != "" || id.Value != "Paris" {
			t.Errorf("as identifier: %+v %s", id, why)
		}
	}
	// A built-in that is gone is cleared like any other.
	rules, err = Compile(Spec{Identifier: "user_id", SendUsers: true, UserProperties: []string{"platform", "city"}})
	if err != nil {
		t.Fatal(err)
	}
	id := Identifier{Kind: "id", Value: "ann"}
	first, err := rules.Map(&Record{UserID: "ann", Raw: []byte(`{"event_type":"A","platform":"iOS"}`)}, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	then, err := rules.Map(&record, id, first.Sent)
	if err != nil || len(then.Operations) != 1 || !strings.Contains(string(then.Operations[0].Body), `"attributes":{"city":"Paris","platform":""}`) {
		t.Errorf("%+v, %v", then, err)
	}
}

// A record of a program before there were built-in properties: its event's own are all that is known.
func TestRecordsBeforeBuiltins(t *testing.T) {
	const event = `{"event_type":"A","platform":"iOS"}`
	// Version, flags, source; time; the lengths of user_id, device_id, address, properties and event; these.
	old := "\x01\x00\x00" + "\x02" + "\x03\x01\x00\x02" + string(rune(len(event))) + "ann" + "d" + "{}" + event
	var r Record
	if err := r.DecodeBody([]byte(old)); err != nil {
		t.Fatal(err)
	}
	if r.UserID != "ann" || r.DeviceID != "d" || r.Builtins != nil || r.Beside != nil {
		t.Fatalf("%+v", r)
	}
	var v view
	if err := v.open(&r); err != nil || string(v.builtin("platform").text) != "iOS" {
		t.Errorf("%v, %+v", err, v.builtin("platform"))
	}
	if again := r.AppendBody(nil); cmp.Diff(string(again), old) != "" {
		t.Errorf("a record without built-ins is written otherwise: %q", again)
	}
}

// FuzzReadBuiltins: what a damaged disk gives back is no set, or one that is written the same again.
func FuzzReadBuiltins(f *testing.F) {
	p, _ := PackBuiltins([]byte(`{"platform":"iOS","city":"Paris","paying":true}`))
	f.Add(p, []byte(`{"event_type":"A","os_name":"ios","price":3}`))
	f.Add([]byte{1, 0}, []byte(`{"event_type":"A"}`))
	f.Add([]byte{200, 1, '1'}, []byte(`{"event_type":"A","version_name":7}`))
	f.Fuzz(func(t *testing.T, packed, raw []byte) {
		BuiltinsJSON(packed)
		var s builtinSet
		if s.read(packed) {
			var again builtinSet
			if !again.read(s.pack(nil)) || cmp.Diff(s, again) != "" {
				t.Fatalf("%x: read again it is another", packed)
			}
		}
		e, problems := ParseEvent(raw)
		if problems != nil {
			return
		}
		k := ApplyBuiltins(nil, packed, &e)
		once := ApplyBuiltins(nil, k.After, &e)
		if s.read(packed) && string(once.After) != string(k.After) {
			t.Fatalf("%x, then %s twice: %x is %x", packed, raw, k.After, once.After)
		}
		TakeOverBuiltins(k.After, packed)
		TakeOverBuiltins(packed, k.After)
		_ = new(view).open(&Record{Raw: raw, Beside: packed})
		_ = new(view).open(&Record{Raw: raw, Builtins: packed})
	})
}

// A dead letter that is tried again has what is known of its user now: what its event said then counts no more.
func TestBuiltinsOfNow(t *testing.T) {
	r := Record{UserID: "ann", Raw: []byte(`{"event_type":"A","platform":"iOS","version_name":"1"}`), Builtins: packed(t, `{"city":"Paris"}`)}
	var v view
	if err := v.open(&r); err != nil || v.builtin("platform").isSet() || v.builtin("app_version").isSet() || string(v.builtin("city").text) != "Paris" {
		t.Errorf("%v, %+v", err, v.known)
	}
}

// Every event comes by here, in the one goroutine that all requests wait for.
func TestBuiltinsThatStayCostNoMemory(t *testing.T) {
	before := ApplyBuiltins(nil, nil, &Event{Builtins: mustPack(t, `{"platform":"iOS","country":"France","language":"fr"}`)}).After
	for name, said := range map[string]string{"nothing said": `{}`, "all said": `{"platform":"iOS","country":"France","language":"fr"}`, "some said": `{"language":"fr"}`} {
		event := Event{Builtins: mustPack(t, said)}
		var kept []byte
		if n := testing.AllocsPerRun(100, func() { kept = ApplyBuiltins(kept[:0], before, &event).After }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func mustPack(t *testing.T, object string) []byte {
	t.Helper()
	packed, err := PackBuiltins([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	return packed
}
