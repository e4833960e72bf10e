package mapping

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestBodyKeepsEverything(t *testing.T) {
	header := Record{Seq: 7, Project: "app", ID: [16]byte{1, 2}, Received: 99}
	tests := []struct {
		name   string
		record Record
	}{
		{"empty", Record{Properties: []byte("{}"), Raw: []byte("{}")}},
		{"full", Record{UserID: "ada", DeviceID: "d-1", Time: 1795432948281, Source: SourceImport, Address: "2001:db8::1",
			KeyID:      1 << 63,
			Properties: []byte(`{"a":1}`), Partial: true, Raw: []byte(benchmarkEvent)}},
		{"before 1970", Record{Time: -5, Properties: []byte("{}"), Raw: []byte("{}")}},
		{"long", Record{UserID: strings.Repeat("u", 300), Properties: bytes.Repeat([]byte("x"), 70000), Raw: bytes.Repeat([]byte("y"), 70000)}},
		{"snapshot", Record{Source: SourceWebhook, Snapshot: true, Properties: []byte(`{"a":1}`), Raw: []byte("{}")}},
		{"past", Record{Source: SourceWebhook, Snapshot: true, Past: true, Properties: []byte(`{"a":1}`), Raw: []byte("{}")}},
		{"login", Record{Source: SourceWebhook, Login: true, Properties: []byte("{}"), Raw: []byte("{}")}},
		{"of the only user of a device", Record{UserID: "ada", DeviceID: "d", Sole: true, Properties: []byte("{}"), Raw: []byte("{}")}},
		{"of the login that made it so", Record{UserID: "ada", DeviceID: "d", Sole: true, Links: true, Properties: []byte("{}"), Raw: []byte("{}")}},
		{"with built-in properties", Record{UserID: "ada", Properties: []byte("{}"), Raw: []byte("{}"), Builtins: []byte("\x01\x05\"iOS\""), Beside: []byte("\x08\x04\"Fr\"")}},
		{"with all that there is", Record{UserID: "ada", DeviceID: "d", Time: 1, Source: SourceImport, Address: "::1", Properties: []byte(`{"a":1}`), Raw: []byte(`{"b":2}`),
			Partial: true, Snapshot: true, Past: true, Login: true, Sole: true, Links: true, Builtins: []byte("\x01\x05\"iOS\""), Beside: []byte("\x08\x04\"Fr\""),
			KeyID: 7, Part: [16]byte{1}, Place: 2}},
		{"of an import", Record{Source: SourceImport, Past: true, Properties: []byte("{}"), Raw: []byte("{}"), Part: [16]byte{1, 15: 2}, Place: 1 << 40}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := []byte("what stood there")
			body := test.record.AppendBody(before)
			if !bytes.HasPrefix(body, before) {
				t.Fatal("what stood before it is gone")
			}
			body = body[len(before):]
			version := byte(1) // what a program of before can read stays readable to it
			if r := test.record; r.Snapshot || r.Past || r.Login || r.Place > 0 {
				version = 2
			}
			if body[0] != version {
				t.Errorf("begins with version %d", body[0])
			}
			got, want := header, test.record
			want.Seq, want.Project, want.ID, want.Received = header.Seq, header.Project, header.ID, header.Received
			if err := got.DecodeBody(body); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
			if again := got.AppendBody(nil); !bytes.Equal(again, body) {
				t.Error("stored again it is not the same")
			}
		})
	}
}

func TestBodyOfALaterProgram(t *testing.T) {
	record := Record{UserID: "ada", Properties: []byte(`{"a":1}`), Raw: []byte(`{"event_type":"A"}`)}
	body := record.AppendBody(nil)
	var got Record
	withFields := append(bytes.Clone(body), 9, 3, 'x', 'y', 'z', 200, 1, 0)
	if err := got.DecodeBody(withFields); err != nil || got.UserID != "ada" || string(got.Raw) != string(record.Raw) {
		t.Errorf("fields it does not know: got %+v, %v", got, err)
	}
	body[0] = 3
	if err := got.DecodeBody(body); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("a version it does not know: got %v", err)
	}
}

func TestDamagedBody(t *testing.T) {
	record := benchmarkRecord()
	body := record.AppendBody(nil)
	for n := range body {
		got := Record{UserID: "as before"}
		if err := got.DecodeBody(body[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes pass for a whole", n, len(body))
		}
		if got.UserID != "as before" {
			t.Fatal("an error has changed the record")
		}
	}
	for _, tail := range [][]byte{{1}, {1, 5, 'x'}, {0x80}, {1, 0x80}, {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}} {
		var got Record
		if err := got.DecodeBody(append(bytes.Clone(body), tail...)); err == nil {
			t.Errorf("the later fields %x pass", tail)
		}
	}
}

func FuzzDecodeBody(f *testing.F) {
	record := benchmarkRecord()
	f.Add(record.AppendBody(nil))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0})
	rules, err := Compile(Spec{Identifier: "user.a", SendEvents: true, SendUsers: true, Select: []SelectSpec{{Event: []string{"*"}}},
		EventProperties: []string{"*"}, EventUserProperties: []string{"*"}, EventFields: builtins, UserProperties: []string{"*"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var r Record
		if r.DecodeBody(body) != nil {
			return
		}
		var again Record
		if err := again.DecodeBody(r.AppendBody(nil)); err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Fatalf("%x: %+v, %v", body, again, err)
		}
		// Whatever the bytes say, mapping them ends in a decision or an error.
		id, reason := rules.Identifier(&r)
		rules.NoIdentifier(&r, reason)
		if d, err := rules.Map(&r, id, body); err == nil {
			Refused(d.Sent, "attributes.a")
			Refused(body, "")
		}
	})
}
