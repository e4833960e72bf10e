package mapping

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestRelay(t *testing.T) {
	const received, event = 1_800_000_000_000, 1_799_999_999_500
	id := EventID("app", "device", "d-12345", "i-1")
	tests := []struct {
		name, raw, mark, want string
		user, device, address string // of the record
		time                  int64  // of the record, 0 = event
		skew                  int64
	}{
		{name: "nothing to add", raw: `{ "event_type" : "A",  "device_id":"d-12345", "insert_id":"i-1","time":1799999999500 , "ip":"10.0.0.1"}`, device: "d-12345",
			want: `{ "event_type" : "A",  "device_id":"d-12345", "insert_id":"i-1","time":1799999999500 , "ip":"10.0.0.1"}`},
		{name: "both are missing", raw: `{"event_type":"A","user_id":"ada-1"}`, user: "ada-1",
			want: `{"event_type":"A","user_id":"ada-1","insert_id":"` + relayedInsertID(id) + `","time":1799999999500}`},
		{name: "null and empty are missing", raw: `{"insert_id":"","event_type":"A","time": null,"user_id":"ada-1"}`, user: "ada-1",
			want: `{"insert_id":"` + relayedInsertID(id) + `","event_type":"A","time": 1799999999500,"user_id":"ada-1"}`},
		{name: "an insert_id of null", raw: `{"insert_id":null,"time":1799999999500}`, want: `{"insert_id":"` + relayedInsertID(id) + `","time":1799999999500}`},
		{name: "an empty event object", raw: `{}`, want: `{"insert_id":"` + relayedInsertID(id) + `","time":1799999999500}`},
		{name: "the time of legacy SDKs", raw: `{"timestamp":1799999999500,"uuid":"u"}`, want: `{"timestamp":1799999999500,"uuid":"u","insert_id":"` + relayedInsertID(id) + `","time":1799999999500}`},
		{name: "a time of 0 is one", raw: `{"insert_id":"i","time":0}`, want: `{"insert_id":"i","time":0}`, time: received},
		{name: "the sender's address", raw: `{"insert_id":"i","time":1799999999500,"ip":"$remote","x":1}`, address: "2001:db8::7",
			want: `{"insert_id":"i","time":1799999999500,"ip":"2001:db8::7","x":1}`},
		{name: "an escaped $remote", raw: `{"insert_id":"i","time":1799999999500,"ip":"\u0024remote"}`, address: "192.0.2.7",
			want: `{"insert_id":"i","time":1799999999500,"ip":"192.0.2.7"}`},
		{name: "nobody knows the address", raw: `{"insert_id":"i","time":1799999999500,"ip":"$remote"}`, want: `{"insert_id":"i","time":1799999999500,"ip":null}`},
		{name: "$remote elsewhere stays", raw: `{"insert_id":"i","time":1799999999500,"event_properties":{"ip":"$remote"}}`, address: "192.0.2.7",
			want: `{"insert_id":"i","time":1799999999500,"event_properties":{"ip":"$remote"}}`},
		{name: "an id that was none", raw: `{"insert_id":"i","time":1799999999500,"user_id":"unknown","device_id":"d-12345"}`, device: "d-12345",
			want: `{"insert_id":"i","time":1799999999500,"user_id":null,"device_id":"d-12345"}`},
		{name: "the user was linked, and not named", raw: `{"insert_id":"i","time":1799999999500,"device_id":"d-12345"}`, user: "ada-1", device: "d-12345",
			want: `{"insert_id":"i","time":1799999999500,"device_id":"d-12345"}`},
		{name: "a short device", raw: `{"insert_id":"i","time":1799999999500,"user_id":"ada-1","device_id":"ab"}`, user: "ada-1",
			want: `{"insert_id":"i","time":1799999999500,"user_id":"ada-1","device_id":null}`},
		{name: "numbers as ids", raw: `{"insert_id":"i","time":1799999999500,"user_id":1234567,"device_id":0}`, user: "1234567",
			want: `{"insert_id":"i","time":1799999999500,"user_id":1234567,"device_id":null}`},

		{name: "a mark beside properties", mark: "via", raw: `{"insert_id":"i","time":1799999999500,"event_properties":{"a": 1 }}`,
			want: `{"insert_id":"i","time":1799999999500,"event_properties":{"a": 1 ,"via":true}}`},
		{name: "a mark alone", mark: "via", raw: `{"insert_id":"i","time":1799999999500,"event_properties":{ }}`,
			want: `{"insert_id":"i","time":1799999999500,"event_properties":{ "via":true}}`},
		{name: "a mark without properties", mark: `v"ia`, raw: `{"insert_id":"i","time":1799999999500}`,
			want: `{"insert_id":"i","time":1799999999500,"event_properties":{"v\"ia":true}}`},
		{name: "properties of null", mark: "via", raw: `{"event_properties":null,"insert_id":"i","time":1799999999500}`,
			want: `{"event_properties":{"via":true},"insert_id":"i","time":1799999999500}`},
		{name: "PHP's empty list", mark: "via", raw: `{"event_properties":[],"insert_id":"i","time":1799999999500}`,
			want: `{"event_properties":{"via":true},"insert_id":"i","time":1799999999500}`},
		{name: "somebody's own mark", mark: "via", raw: `{"event_properties":{"a":1,"via":{"x":[1]},"b":2},"insert_id":"i","time":1799999999500}`,
			want: `{"event_properties":{"a":1,"via":true,"b":2},"insert_id":"i","time":1799999999500}`},
		{name: "an identify has no mark", mark: "via", raw: `{"user_properties":{"$set":{"a":1}},"event_type":"$identify","insert_id":"i","time":1799999999500}`,
			want: `{"user_properties":{"$set":{"a":1}},"event_type":"$identify","insert_id":"i","time":1799999999500}`},

		{name: "a clock that is slow", raw: `{"insert_id":"i","time":1799999000000}`, time: 1_799_999_900_000, skew: 900_000, want: `{"insert_id":"i","time":1799999000000}`},
		{name: "a clock that is fast", raw: `{"insert_id":"i","time":1800000900000}`, time: 1_799_999_900_000, skew: -1_000_000, want: `{"insert_id":"i","time":1800000900000}`},
		{name: "from the future, and nobody knows why", raw: `{"insert_id":"i","time":1800000900000}`, time: received + 60_000, want: `{"insert_id":"i","time":1800000900000}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := Record{ID: id, Received: received, Time: event, UserID: test.user, DeviceID: test.device, Address: test.address, Raw: []byte(test.raw)}
			if test.time != 0 {
				r.Time = test.time
			}
			before := bytes.Clone(r.Raw)
			got, err := r.Relay(test.mark)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Body) != test.want {
				t.Errorf("got  %s\nwant %s", got.Body, test.want)
			}
			if got.Skew != test.skew {
				t.Errorf("skew %d, want %d", got.Skew, test.skew)
			}
			if !json.Valid(got.Body) {
				t.Error("it is no JSON")
			}
			if !bytes.Equal(r.Raw, before) {
				t.Error("the record's own bytes have changed")
			}
			if again, err := r.Relay(test.mark); err != nil || !bytes.Equal(again.Body, got.Body) {
				t.Error("a second time it is not the same")
			}
		})
	}
	for _, raw := range []string{``, `{`, `{"a":1`, `{"a":}`, `[]`, `{"a":1}}`} {
		if _, err := (&Record{Raw: []byte(raw)}).Relay(""); err == nil {
			t.Errorf("%q is relayed", raw)
		}
	}
}

// Whatever an SDK may send and we accept is still an event that we would accept, with the
// same identity, when it has been relayed.
func FuzzRelay(f *testing.F) {
	f.Add(`{"event_type":"A","user_id":"ada-1","ip":"$remote","event_properties":{"a":[1,{"b":2}]}}`, "via", "ada-1")
	f.Add(`{"event_type":"A","device_id":null,"insert_id":12,"time":1,"event_properties":[]}`, "", "")
	f.Fuzz(func(t *testing.T, raw, mark, user string) {
		e, problems := ParseEvent([]byte(raw))
		if problems != nil || !json.Valid([]byte(`"`+mark+`"`)) {
			return
		}
		r := Record{Raw: e.Raw, UserID: user, DeviceID: e.DeviceID, Address: "192.0.2.7", Received: 5, Time: 5}
		got, err := r.Relay(mark)
		if err != nil {
			t.Fatalf("%s: %v", e.Raw, err)
		}
		relayed, problems := ParseEvent(got.Body)
		if problems != nil {
			t.Fatalf("%s became %s: %v", e.Raw, got.Body, problems)
		}
		if relayed.Type != e.Type || relayed.DeviceID != got.DeviceID || relayed.UserID != got.UserID || relayed.InsertID == "" || e.InsertID != "" && relayed.InsertID != e.InsertID && member(e.Raw, []byte("uuid")) == nil {
			t.Errorf("%s became %s", e.Raw, got.Body)
		}
	})
}

// An insert_id that was added leads back to the event, and nobody else's does.
func TestRelayedID(t *testing.T) {
	id := EventID("app", "device", "d-12345", "i-1")
	if got, ok := RelayedID(relayedInsertID(id)); !ok || got != id {
		t.Errorf("%x %v, want %x", got, ok, id)
	}
	for _, other := range []string{"", "ampcio-", ULID(id), "ampcio-" + ULID(id) + "x", "ampcio-!" + ULID(id)[1:]} {
		if got, ok := RelayedID(other); ok {
			t.Errorf("%q is %x", other, got)
		}
	}
}
