package users

import (
	"testing"

	"ampcio/mapping"
	"ampcio/queue"
)

// A replay reads of a stored event only what it must, and finds the same as the parser.
func TestOriginal(t *testing.T) {
	for name, raw := range map[string]string{
		"plain":                   `{"event_type":"a","device_id":"d","insert_id":"i1"}`,
		"none":                    `{"event_type":"a","device_id":"d"}`,
		"null":                    `{"event_type":"a","device_id":"d","insert_id":null}`,
		"empty":                   `{"event_type":"a","device_id":"d","insert_id":""}`,
		"with space":              `{"event_type":"a","device_id":"d","insert_id" : "i1"}`,
		"a number":                `{"event_type":"a","device_id":"d","insert_id":17,"x":"y"}`,
		"with escapes":            `{"event_type":"a","device_id":"d","insert_id":"i\"1\\"}`,
		"a legacy one":            `{"event_type":"a","device_id":"d","uuid":"i1"}`,
		"both":                    `{"event_type":"a","device_id":"d","uuid":"i1","insert_id":"i2"}`,
		"only as a property":      `{"event_type":"a","device_id":"d","event_properties":{"insert_id":"i1"}}`,
		"first as a property":     `{"event_type":"a","device_id":"d","event_properties":{"insert_id":"i1"},"insert_id":"i2"}`,
		"in a text":               `{"event_type":"\"insert_id\":\"i1\"","device_id":"d"}`,
		"its name escaped":        `{"event_type":"a","device_id":"d","\u0069nsert_id":"i1"}`,
		"of a user":               `{"event_type":"a","user_id":"u","insert_id":"i1"}`,
		"skip":                    `{"event_type":"a","device_id":"d","insert_id":"i1","$skip_user_properties_sync":true}`,
		"skip, its name escaped":  `{"event_type":"a","device_id":"d","insert_id":"i1","$skip_user_\u0070roperties_sync":true}`,
		"skip, the first as well": `{"event_type":"a","device_id":"d","insert_id":"i1","\u0024skip_user_properties_sync":true}`,
		"not skipped":             `{"event_type":"a","device_id":"d","insert_id":"i1","$skip_user_properties_sync":false}`,
		"with operations":         `{"event_type":"a","device_id":"d","insert_id":"i1","user_properties":{"$add":{"n":1}}}`,
		"operations with an id":   `{"event_type":"a","device_id":"d","user_properties":{"insert_id":"i1"}}`,
		"letters beyond ASCII":    `{"event_type":"\u00e9","device_id":"d","insert_id":"é\u00e9"}`,
	} {
		for _, partial := range []bool{false, true} {
			ev, problems := mapping.ParseEvent([]byte(raw))
			if problems != nil {
				t.Fatalf("%s: %v", name, problems)
			}
			q := queue.Record{Project: "app", ID: mapping.PlaceID([16]byte{1}, 0)}
			if k, id := identity(ev.DeviceID, ev.UserID); ev.InsertID != "" {
				q.ID = mapping.EventID("app", k, id, ev.InsertID)
			}
			got, err := originalOf(&mapping.Record{DeviceID: ev.DeviceID, UserID: ev.UserID, Raw: []byte(raw), Partial: partial}, &q)
			if err != nil {
				t.Fatal(err)
			}
			if got.named != (ev.InsertID != "") || got.skip != ev.SkipUserPropertiesSync || partial && string(got.operations) != string(ev.UserProperties) {
				t.Errorf("%s: %+v, the parser says %+v", name, got, ev)
			}
		}
	}
}
