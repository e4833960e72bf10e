package mapping

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// sdkEvents are events as real SDKs sent them, recorded on the wire.
func sdkEvents(t testing.TB) []struct {
	SDK   string         `json:"sdk"`
	Event jsontext.Value `json:"event"`
} {
	t.Helper()
	var all []struct {
		SDK   string         `json:"sdk"`
		Event jsontext.Value `json:"event"`
	}
	data, err := os.ReadFile("testdata/sdk-events.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestParseEventTakesWhatSDKsSend(t *testing.T) {
	for _, recorded := range sdkEvents(t) {
		e, problems := ParseEvent(recorded.Event)
		if problems != nil {
			t.Errorf("%s: %s: %v", recorded.SDK, recorded.Event, problems)
			continue
		}
		if !bytes.Equal(e.Raw, recorded.Event) {
			t.Errorf("%s: the event changed from\n%s to\n%s", recorded.SDK, recorded.Event, e.Raw)
		}
		var want struct {
			EventType string         `json:"event_type"`
			UserID    string         `json:"user_id"`
			DeviceID  string         `json:"device_id"`
			InsertID  string         `json:"insert_id"`
			UUID      string         `json:"uuid"`
			Time      int64          `json:"time"`
			Timestamp int64          `json:"timestamp"`
			User      jsontext.Value `json:"user_properties"`
		}
		if err := json.Unmarshal(recorded.Event, &want); err != nil {
			t.Fatal(err)
		}
		if want.InsertID == "" {
			want.InsertID = want.UUID
		}
		if string(want.User) == "{}" {
			want.User = nil
		}
		if e.Type != want.EventType || e.UserID != want.UserID || e.DeviceID != want.DeviceID || e.InsertID != want.InsertID ||
			e.Time != max(want.Time, want.Timestamp) || !bytes.Equal(e.UserProperties, want.User) || e.Time == 0 || e.InsertID == "" {
			t.Errorf("%s: %s: got %+v", recorded.SDK, recorded.Event, e)
		}
	}
}

func TestParseEventFields(t *testing.T) {
	tests := []struct {
		name, raw string
		want      Event // Raw "" = as it came
	}{
		{"only what is required", `{"event_type":"A"}`, Event{Type: "A"}},
		{"null is absent", `{"event_type":"A","user_id":null,"device_id":null,"time":null,"insert_id":null,"user_properties":null,"event_properties":null,"groups":null,"session_id":null,"$skip_user_properties_sync":null}`, Event{Type: "A"}},
		{"numbers as IDs become their digits", `{"event_type":"A","user_id":9007199254740993,"device_id":12e3,"insert_id":-7}`,
			Event{Type: "A", UserID: "9007199254740993", DeviceID: "12000", InsertID: "-7"}},
		{"legacy names", `{"event_type":"A","uuid":"u","timestamp":1795432938111}`, Event{Type: "A", InsertID: "u", Time: 1795432938111}},
		{"current names win", `{"event_type":"A","uuid":"u","insert_id":"i","timestamp":1,"time":2}`, Event{Type: "A", InsertID: "i", Time: 2}},
		{"somebody's own timestamp and uuid", `{"event_type":"A","timestamp":"2024-01-01","uuid":[1]}`, Event{Type: "A"}},
		{"an empty list for an object", `{"event_type":"A","user_properties":[],"event_properties":[ ]}`, Event{Type: "A"}},
		{"no user properties", `{"event_type":"A","user_properties":{ }}`, Event{Type: "A"}},
		{"skip", `{"event_type":"A","$skip_user_properties_sync":true}`, Event{Type: "A", SkipUserPropertiesSync: true}},
		{"escapes in names and values", `{"event\u005ftype":"caf\u00e9 \ud83d\ude00"}`, Event{Type: "café 😀"}},
		{"half surrogates become U+FFFD", `{"event_type":"cut \ud83d","user_id":"\ude00\uD83D\uDE00\ud83dx\\ud83d","x":"\ud83d\ud83d\ude00"}`,
			Event{Type: "cut \ufffd", UserID: "\ufffd😀\ufffdx\\ud83d", Raw: []byte(`{"event_type":"cut \ufffd","user_id":"\ufffd\uD83D\uDE00\ufffdx\\ud83d","x":"\ufffd\ud83d\ude00"}`)}},
		{"numbers keep their digits", `{"event_type":"A","event_properties":{"a":9007199254740993,"b":1e400,"c":1.50,"d":-0}}`, Event{Type: "A"}},
		{"the key never gets in", `{ "api_key" : "secret" , "event_type":"A", "x": [1, 2] }`, Event{Type: "A", Raw: []byte(`{"event_type":"A","x":[1, 2]}`)}},
		{"space around", " \n{\"event_type\":\"A\"}\t ", Event{Type: "A", Raw: []byte(`{"event_type":"A"}`)}},
		{"numbers and bools where texts belong", `{"event_type":"A","app_version":12,"os_version":true,"price":"12.5"}`, Event{Type: "A", Builtins: packed(t, `{"os_version":true,"app_version":12}`)}},
		{"library as an object", `{"event_type":"A","library":{"name":"amplitude-js","version":"8.21.10"}}`, Event{Type: "A"}},
		{"unknown fields", `{"event_type":"A","whatever":{"a":[{}]},"delay":{"id":"x","timeout":5}}`, Event{Type: "A"}},
		{"forty levels", `{"event_type":"A","event_properties":` + nested(40) + `}`, Event{Type: "A"}},
		{"brackets in texts are no levels", `{"event_type":"A","event_properties":{"a":"` + strings.Repeat("[{", 60) + `"}}`, Event{Type: "A"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			input := []byte(test.raw)
			if test.want.Raw == nil {
				test.want.Raw = input
			}
			got, problems := ParseEvent(input)
			if problems != nil {
				t.Fatal(problems)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s: -want +got\n%s", test.raw, diff)
			}
			if string(input) != test.raw {
				t.Error("the request's bytes were changed")
			}
		})
	}
}

func nested(levels int) string {
	return strings.Repeat(`{"a":`, levels-1) + "{}" + strings.Repeat("}", levels-1)
}

func TestParseEventProblems(t *testing.T) {
	tests := []struct{ name, raw, want string }{
		{"no event_type", `{"user_id":"user-1"}`, "event_type missing"},
		{"event_type null", `{"event_type":null}`, "event_type missing"},
		{"event_type empty", `{"event_type":""}`, "event_type missing"},
		{"event_type blank", `{"event_type":" \t"}`, "event_type missing"},
		{"event_type a number", `{"event_type":5}`, "event_type invalid"},
		{"time as text", `{"event_type":"A","time":"2024-01-01T00:00:00Z"}`, "time invalid"},
		{"time with a fraction", `{"event_type":"A","time":1795432938111.5}`, "time invalid"},
		{"time before 1970", `{"event_type":"A","time":-1}`, "time invalid"},
		{"time beyond int64", `{"event_type":"A","time":99999999999999999999}`, "time invalid"},
		{"ids that are no text", `{"event_type":"A","user_id":true,"device_id":["d"],"insert_id":{}}`, "user_id invalid, device_id invalid, insert_id invalid"},
		{"properties that are no objects", `{"event_type":"A","event_properties":"x","user_properties":[1],"groups":5,"group_properties":true}`,
			"event_properties invalid, user_properties invalid, groups invalid, group_properties invalid"},
		{"containers where a value belongs", `{"event_type":"A","platform":{},"price":[1],"library":[]}`, "platform invalid, price invalid, library invalid"},
		{"skip as text", `{"event_type":"A","$skip_user_properties_sync":"true"}`, "$skip_user_properties_sync invalid"},
		{"several", `{"time":"x","user_id":false}`, "time invalid, user_id invalid, event_type missing"},
		{"too deep", `{"event_type":"A","event_properties":` + nested(41) + `}`, "event_properties invalid"},
		{"too deep in an unknown field", `{"event_type":"A","mine":` + strings.Repeat("[", 41) + strings.Repeat("]", 41) + `}`, "mine invalid"},
		{"a field twice", `{"event_type":"A","user_id":"a","user_id":"b"}`, "user_id invalid"},
		{"a property twice", `{"event_type":"A","event_properties":{"x":1,"y":{"z":1,"\u007a":2}}}`, "event_properties invalid"},
		{"not UTF-8", "{\"event_type\":\"A\",\"event_properties\":{\"x\":\"\xff\"}}", "event_properties invalid"},
		{"two names that differed by a half surrogate", `{"event_type":"A","event_properties":{"\ud83d":1,"\ud83e":2}}`, "event_properties invalid"},
		{"a list", `[]`, " invalid"},
		{"a text", `"event"`, " invalid"},
		{"nothing", ``, " invalid"},
		{"half an object", `{"event_type":"A"`, " invalid"},
		{"two objects", `{"event_type":"A"}{}`, " invalid"},
		{"NaN", `{"event_type":"A","event_properties":{"x":NaN}}`, "event_properties invalid"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, problems := ParseEvent([]byte(test.raw))
			var got []string
			for _, p := range problems {
				how := "invalid"
				if p.Missing {
					how = "missing"
				}
				got = append(got, p.Field+" "+how)
				if p.Detail == "" {
					t.Errorf("%s: no detail", p.Field)
				}
			}
			if s := strings.Join(got, ", "); s != test.want {
				t.Errorf("%s: got %q (%v), want %q", test.raw, s, problems, test.want)
			}
		})
	}
}

func TestProblemsDoNotQuoteTheEvent(t *testing.T) {
	secret := strings.Repeat("ada@example.com", 10)
	for _, raw := range []string{
		`{"event_type":"A","` + secret + `":{"a":1,"a":2}}`,
		`{"event_type":"A","x":{"` + secret + `":1,"` + secret + `":2}}`,
		`{"event_type":"A","x":"` + secret + `\q"}`,
		`{"event_type":"A","time":"` + secret + `"}`,
	} {
		_, problems := ParseEvent([]byte(raw))
		if problems == nil || strings.Contains(fmt.Sprint(problems), "ada@") {
			t.Errorf("%s: %v", raw, problems)
		}
	}
}

func TestEventTime(t *testing.T) {
	const now, second, hour = int64(1_795_432_948_000), int64(1000), int64(3_600_000)
	tests := []struct {
		name                       string
		client, uploaded, received int64
		want                       int64
	}{
		{"no time: when it was received", 0, now - hour, now, now},
		{"no upload time: the client is believed", now - hour, 0, now, now - hour},
		{"clock right", now - 5*second, now - second, now, now - 5*second},
		{"59 s apart is no skew", now - 65*second, now - 59*second, now, now - 65*second},
		{"60 s apart is", now - 65*second, now - 60*second, now, now - 5*second},
		{"clock an hour slow", now - hour - 5*second, now - hour, now, now - 5*second},
		{"clock an hour fast", now + hour - 5*second, now + hour, now, now - 5*second},
		{"an event kept on the phone for an hour", now - 2*hour, now - second, now, now - 2*hour},
		{"never later than receipt + 60 s", now + hour, now, now, now + 60*second},
		{"nor after a correction", now, now - hour, now, now + 60*second},
		{"absurd numbers", math.MaxInt64, 1, now, now + 60*second},
		{"absurd upload time", 5, math.MaxInt64, now, now},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := EventTime(test.client, test.uploaded, test.received); got != test.want {
				t.Errorf("got %d, want %d (%+d ms from receipt)", got, test.want, test.want-test.received)
			}
		})
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, recorded := range sdkEvents(f) {
		f.Add([]byte(recorded.Event))
	}
	f.Add([]byte(benchmarkEvent))
	f.Add([]byte(`{"event_type":"\ud83d","api_key":"x","user_properties":{"$add":{"n":1e400}}}`))
	rules, err := Compile(Spec{Identifier: "event.a", SendEvents: true, SendUsers: true, Select: []SelectSpec{{Event: []string{"*"}}},
		EventProperties: []string{"*"}, EventUserProperties: []string{"*"}, EventFields: builtins, UserProperties: []string{"*"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, problems := ParseEvent(raw)
		if problems != nil {
			return
		}
		if !isCheckedObject(e.Raw) || e.Type == "" {
			t.Fatalf("%q gives %q", raw, e.Raw)
		}
		if again, problems := ParseEvent(e.Raw); problems != nil || !bytes.Equal(again.Raw, e.Raw) {
			t.Fatalf("%q is not taken again: %v", e.Raw, problems)
		}
		properties, err := ApplyOperations(nil, nil, e.UserProperties)
		if err != nil || !isCheckedObject(properties) {
			t.Fatalf("%q gives properties %q, %v", raw, properties, err)
		}
		d, err := rules.Map(&Record{Raw: e.Raw, Properties: properties, Received: 1}, Identifier{"id", "x"}, nil)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		for _, op := range d.Operations {
			if !isCheckedObject(op.Body) {
				t.Fatalf("%q becomes %q", raw, op.Body)
			}
		}
	})
}
