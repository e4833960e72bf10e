package mapping

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// exportLine is a line as Amplitude's Export API writes it, all 55 columns of it; changes are column, value, …
func exportLine(changes ...string) string {
	b, err := os.ReadFile("testdata/export-line.json")
	if err != nil {
		panic(err)
	}
	line := strings.TrimSpace(string(b))
	for i := 0; i < len(changes); i += 2 {
		name := `"` + changes[i] + `":`
		at := strings.Index(line, name)
		if at < 0 {
			line = strings.TrimSuffix(line, "}") + "," + name + changes[i+1] + "}"
			continue
		}
		at += len(name)
		line = line[:at] + changes[i+1] + line[skipValue([]byte(line), at):]
	}
	return line
}

func TestExportLineBecomesAnEvent(t *testing.T) {
	e, problems, err := ParseExport([]byte(exportLine()))
	if problems != nil || err != nil {
		t.Fatal(problems, err)
	}
	if e.Type != "Order Placed" || e.UserID != "user-7" || e.DeviceID != "8f4c9a52-8a53-4d3e-9d5e-0c2b6c1d7e11R" ||
		e.InsertID != "c6e4f4c0-5b9c-4f5a-9d2e-8a2f0d3b7a10" || e.Time != 1646078821795 {
		t.Errorf("%+v", e)
	}
	if !e.Snapshot || string(e.UserProperties) != `{"email":"ada@example.com","plan":"pro","logins":41,"tags":["a b","c"]}` {
		t.Errorf("snapshot %v: %s", e.Snapshot, e.UserProperties)
	}
	for _, want := range []string{
		`"time":1646078821795`, `"app_version":"3.14.1"`, `"carrier":"Vodafone"`, `"ip":"203.0.113.9"`,
		`"insert_id":"c6e4f4c0-5b9c-4f5a-9d2e-8a2f0d3b7a10"`, `"event_properties":{"total":12.50,"currency":"EUR"}`,
	} {
		if !bytes.Contains(e.Raw, []byte(want)) {
			t.Errorf("%s is not in %s", want, e.Raw)
		}
	}
	for _, gone := range []string{`"user_properties"`, "$insert_id", "event_time", "version_name", ":null", "ada@example.com"} {
		if bytes.Contains(e.Raw, []byte(gone)) {
			t.Errorf("%s is in %s", gone, e.Raw)
		}
	}
	// What is stored is an event of the ingestion API: it reads the same there.
	again, problems := ParseEvent(e.Raw)
	if problems != nil || again.InsertID != e.InsertID || again.Time != e.Time || again.UserID != e.UserID {
		t.Errorf("stored and read again: %+v, %v", again, problems)
	}
}

func TestExportLines(t *testing.T) {
	const device, uuid = "8f4c9a52-8a53-4d3e-9d5e-0c2b6c1d7e11R", "0f6dc1a4-98b0-11ec-a3b5-0242ac120002"
	tests := []struct {
		name    string
		line    string
		problem string // field of the only one
		err     error
		want    Event // but Raw
		raw     string
	}{
		{name: "a time in ISO 8601", line: `{"event_type":"A","user_id":"u","event_time":"2022-02-28T20:07:01.795Z"}`, want: Event{Type: "A", UserID: "u", Time: 1646078821795}},
		{name: "a time with a zone", line: `{"event_type":"A","user_id":"u","event_time":"2022-02-28T22:07:01.795+02:00"}`, want: Event{Type: "A", UserID: "u", Time: 1646078821795}},
		{name: "a time with microseconds", line: `{"event_type":"A","user_id":"u","event_time":"2022-02-28 20:07:01.795123"}`, want: Event{Type: "A", UserID: "u", Time: 1646078821795}},
		{name: "a time without a fraction", line: `{"event_type":"A","user_id":"u","event_time":"2022-02-28 20:07:01"}`, want: Event{Type: "A", UserID: "u", Time: 1646078821000}},
		{name: "milliseconds, as a template may write them", line: `{"event_type":"A","user_id":"u","time":1646078821795}`, want: Event{Type: "A", UserID: "u", Time: 1646078821795}},
		{name: "the client's time when there is no other", line: `{"event_type":"A","user_id":"u","event_time":null,"client_event_time":"2022-02-28 20:07:01.795000"}`, want: Event{Type: "A", UserID: "u", Time: 1646078821795}},
		{name: "no time", line: `{"event_type":"A","user_id":"u"}`, want: Event{Type: "A", UserID: "u"}, raw: `{"event_type":"A","user_id":"u"}`},
		{name: "a time that is none", line: `{"event_type":"A","user_id":"u","event_time":"yesterday"}`, problem: "event_time"},
		{name: "a time before 1970", line: `{"event_type":"A","user_id":"u","event_time":"1969-02-28 20:07:01"}`, problem: "event_time"},
		{name: "uuid when there is no $insert_id", line: `{"event_type":"A","user_id":"u","$insert_id":null,"uuid":"` + uuid + `"}`, want: Event{Type: "A", UserID: "u", InsertID: uuid}},
		{name: "both names of the insert_id", line: `{"event_type":"A","user_id":"u","$insert_id":"i","insert_id":"j"}`, want: Event{Type: "A", UserID: "u", InsertID: "i"}, raw: `{"event_type":"A","user_id":"u","insert_id":"i"}`},
		{name: "a numeric user_id", line: `{"event_type":"A","user_id":12345678901234567890}`, want: Event{Type: "A", UserID: "12345678901234567890"}},
		{name: "anonymous", line: `{"event_type":"A","user_id":null,"device_id":"` + device + `","user_properties":{"a":null,"b":1}}`,
			want: Event{Type: "A", DeviceID: device, Snapshot: true, UserProperties: []byte(`{"b":1}`)}},
		{name: "no properties are no snapshot", line: `{"event_type":"A","user_id":"u","user_properties":{}}`, want: Event{Type: "A", UserID: "u"}},
		{name: "properties of nulls are none", line: `{"event_type":"A","user_id":"u","user_properties":{"a":null}}`, want: Event{Type: "A", UserID: "u"}},
		{name: "properties named like operations are properties", line: `{"event_type":"A","user_id":"u","user_properties":{"$set":{"a":1}}}`,
			want: Event{Type: "A", UserID: "u", Snapshot: true, UserProperties: []byte(`{"$set":{"a":1}}`)}},
		{name: "an identification", line: `{"user_id":"u","device_id":"d","user_properties":{"$set":{"plan":"pro"}}}`,
			want: Event{Type: "$identify", UserID: "u", DeviceID: "d", UserProperties: []byte(`{"$set":{"plan":"pro"}}`)},
			raw:  `{"event_type":"$identify","user_id":"u","device_id":"d","user_properties":{"$set":{"plan":"pro"}}}`},
		{name: "an identification that says so", line: `{"event_type":"$identify","user_id":"u","user_properties":{"plan":"pro"},"event_time":"2022-02-28 20:07:01.795"}`,
			want: Event{Type: "$identify", UserID: "u", Time: 1646078821795, UserProperties: []byte(`{"plan":"pro"}`)}},
		{name: "half a surrogate", line: `{"event_type":"A","user_id":"u","user_properties":{"a":"\ud83d"}}`,
			want: Event{Type: "A", UserID: "u", Snapshot: true, UserProperties: []byte(`{"a":"\ufffd"}`)}},
		{name: "neither event nor identification", line: `{"scope":1,"amplitude_id":2,"merged_amplitude_id":3}`, err: ErrNotExport},
		{name: "properties that are no object", line: `{"event_type":"A","user_id":"u","user_properties":"x"}`, problem: "user_properties"},
		{name: "event properties that are no object", line: `{"event_type":"A","user_id":"u","event_properties":"x"}`, problem: "event_properties"},
		{name: "a user_id that is an object", line: `{"event_type":"A","user_id":{}}`, problem: "user_id"},
		{name: "a blank event_type", line: `{"event_type":" ","user_id":"u"}`, problem: "event_type"},
		{name: "cut off", line: `{"event_type":"A","user_id":"u"`, problem: ""},
		{name: "a list", line: `[{"event_type":"A"}]`, problem: ""},
		{name: "nothing", line: ``, problem: ""},
		{name: "a column twice", line: `{"event_type":"A","event_type":"B","user_id":"u"}`, problem: "event_type"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, problems, err := ParseExport([]byte(test.line))
			if !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if test.err != nil {
				return
			}
			if test.want.Type == "" {
				if len(problems) != 1 || problems[0].Field != test.problem {
					t.Fatalf("problems %+v, want one of %q", problems, test.problem)
				}
				return
			}
			if problems != nil {
				t.Fatal(problems)
			}
			if test.raw != "" && string(e.Raw) != test.raw {
				t.Errorf("stored %s\nwant   %s", e.Raw, test.raw)
			}
			if at := ExportTimeOf([]byte(test.line)); at != e.Time {
				t.Errorf("its time alone is %d, want %d", at, e.Time)
			}
			raw := e.Raw
			if e.Raw = nil; !sameEvent(e, test.want) {
				t.Errorf("got  %+v (%s)\nwant %+v (%s)", e, e.UserProperties, test.want, test.want.UserProperties)
			}
			if _, problems := ParseEvent(raw); problems != nil {
				t.Errorf("%s cannot be read again: %v", raw, problems)
			}
		})
	}
}

func sameEvent(a, b Event) bool {
	same := bytes.Equal(a.UserProperties, b.UserProperties)
	a.UserProperties, b.UserProperties = nil, nil
	return same && a.Type == b.Type && a.UserID == b.UserID && a.DeviceID == b.DeviceID && a.InsertID == b.InsertID && a.Time == b.Time &&
		a.Snapshot == b.Snapshot && a.SkipUserPropertiesSync == b.SkipUserPropertiesSync
}

// An event of the past is an event like any other, and updates nobody.
func TestPastPropertiesUpdateNobody(t *testing.T) {
	rules, err := Compile(Spec{Identifier: "user_id", IdentifierKind: "auto", SendEvents: true, SendUsers: true, EventUserProperties: []string{"plan"}, UserProperties: []string{"plan"}, OnUnset: "clear",
		PageViews: "event", UserPropertyValues: "json", Select: []SelectSpec{{Event: []string{"*"}, Where: []WhereSpec{{Path: "user.plan", Op: "is", Value: "pro"}}, Action: "send"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, past := range []bool{false, true} {
		r := Record{UserID: "user-7", Received: 1, Time: 1, Source: SourceImport, Snapshot: true, Past: past, Properties: []byte(`{"plan":"pro"}`), Raw: []byte(`{"event_type":"A"}`)}
		d, err := rules.Map(&r, Identifier{Kind: "id", Value: "user-7"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		last := d.Operations[len(d.Operations)-1]
		if last.Action != "event" || !bytes.Contains(last.Body, []byte(`"plan":"pro"`)) {
			t.Errorf("past %v: %s", past, last.Body)
		}
		if want := map[bool]int{false: 2, true: 1}[past]; len(d.Operations) != want || past != (d.UserReason == "past_properties") || past != (d.Sent == nil) {
			t.Errorf("past %v: %d operations, %q", past, len(d.Operations), d.UserReason)
		}
		if w, err := rules.Explain(&r, nil); err != nil || past != (len(w.Attributes) == 0) {
			t.Errorf("past %v: of the user it explains %+v, %v", past, w.Attributes, err)
		}
	}
}

// Whatever a line is: the reader does not panic, and what it takes can be stored and read again, the same.
func FuzzParseExport(f *testing.F) {
	for _, seed := range []string{exportLine(), exportLine("event_time", `"2022-02-28T20:07:01Z"`, "user_id", "null"), `{"user_properties":{"$add":{"n":1}}}`,
		`{"event_type":"A","$insert_id":"a","insert_id":"b","ip":"x","ip_address":"y"}`, `{"event_type":"\ud800","time":0}`, "{", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, problems, err := ParseExport(bytes.Clone(line))
		if problems != nil || err != nil {
			return
		}
		again, problems := ParseEvent(e.Raw)
		if problems != nil {
			t.Fatalf("%q gives %q, which has %v", line, e.Raw, problems)
		}
		if again.Type != e.Type || again.UserID != e.UserID || again.DeviceID != e.DeviceID || again.InsertID != e.InsertID || again.Time != e.Time {
			t.Fatalf("%q gives %+v, read again %+v", line, e, again)
		}
		if e.Snapshot && (!jsontext.Value(e.UserProperties).IsValid() || again.UserProperties != nil) {
			t.Fatalf("%q gives the snapshot %q and keeps %q", line, e.UserProperties, again.UserProperties)
		}
	})
}

func BenchmarkParseExport(b *testing.B) {
	line := []byte(exportLine())
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, problems, err := ParseExport(line); problems != nil || err != nil {
			b.Fatal(problems, err)
		}
	}
}
