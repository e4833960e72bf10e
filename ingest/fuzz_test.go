package ingest

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// FuzzRequest holds the parser to a strict reader: what is answered 200 is strict JSON (half
// surrogates aside) with so many events as were stored, each whole; all else stores nothing
// and stops the SDK that hears it.
func FuzzRequest(f *testing.F) {
	for _, c := range malformed(f) {
		if body := c.body(); len(body) < 4096 {
			f.Add([]byte(body))
		}
	}
	for _, r := range recordedRequests(f) {
		f.Add([]byte(r.Body))
	}
	store := &memory{}
	h := New(options(), store)
	f.Fuzz(func(t *testing.T, body []byte) {
		store.arrivals = nil
		status, answer := post(t, h, "/2/httpapi", string(body))
		stored := store.events()
		if status != 200 {
			if len(stored) != 0 {
				t.Fatalf("%q: answered %d and stored %d events", body, status, len(stored))
			}
			if reason := spins(status, []byte(answer)); reason != "" {
				t.Fatalf("%q: %d %s: %s", body, status, answer, reason)
			}
			return
		}
		if !jsontext.Value(body).IsValid(jsontext.AllowInvalidUTF8(true)) {
			t.Fatalf("%q: taken, and no JSON", body)
		}
		var sent struct {
			Events []json.RawMessage `json:"events"`
		}
		// The standard library matches names in any letter case: look at exact ones only.
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatalf("%q: taken, and the standard library says %v", body, err)
		}
		if err := json.Unmarshal(members["events"], &sent.Events); err != nil {
			t.Fatalf("%q: taken, and the standard library says %v of its events", body, err)
		}
		if len(sent.Events) != len(stored) {
			t.Fatalf("%q: %d events stored of %d", body, len(stored), len(sent.Events))
		}
		for i, e := range stored {
			if !jsontext.Value(e.Raw).IsValid() {
				t.Fatalf("%q: stored %q, which no strict reader takes", body, e.Raw)
			}
			if e.UserID == "" && e.DeviceID == "" && e.Type != "$groupidentify" {
				t.Fatalf("%q: stored event %d without an ID", body, i)
			}
			if bytes.Contains(e.Raw, []byte(key)) && !bytes.Contains(sent.Events[i], []byte(key)) {
				t.Fatalf("%q: the key is stored in %q", body, e.Raw)
			}
		}
	})
}
