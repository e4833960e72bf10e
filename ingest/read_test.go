package ingest

import (
	"strings"
	"testing"

	"ampcio/recordings"
)

// What Read makes of a body is what the handler stores of it.
func TestReadIsWhatIsStored(t *testing.T) {
	for _, rec := range recordings.All() {
		r, err := Read(rec.Body)
		if err != nil || r.Key != recordings.Key || len(r.Events) == 0 {
			t.Errorf("%s: %+v, %v", rec.Name, r, err)
		}
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	for body, want := range map[string]string{
		`{"api_key":"k","events":[{"event_type":"A","user_id":"anna"}]}`:                          "Invalid id length for user_id or device_id: event 0: user_id is too short",
		`{"api_key":"k","events":[{"event_type":"A","user_id":"annabel"},{"user_id":"annabel"}]}`: "event 1: event_type is missing",
		`{"api_key":"k","events":[{"event_type":"A","device_id":"d-1234","time":"soon"}]}`:        "event 0: time is invalid",
		`{"events":[]}`: "api_key",
		`{`:             "JSON",
	} {
		if _, err := Read([]byte(body)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "anna") {
			t.Errorf("%s: %v", body, err)
		}
	}
	r, err := Read([]byte(`{"api_key":"k","events":[{"event_type":"A","user_id":"anna","device_id":"device-1"}]}`))
	if err != nil || r.Events[0].UserID != "" || r.Events[0].DeviceID != "device-1" {
		t.Errorf("a short id beside a good one: %+v, %v", r, err)
	}
}
