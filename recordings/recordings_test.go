package recordings_test

import (
	"encoding/json"
	"strconv"
	"testing"

	"ampcio/recordings"
)

func TestBodiesAreComplete(t *testing.T) {
	all := recordings.All()
	if len(all) < 20 {
		t.Fatalf("%d recordings, want those of all SDKs", len(all))
	}
	for _, r := range all {
		t.Run(r.Name, func(t *testing.T) {
			length := ""
			for _, h := range r.Header {
				if h[0] == "Content-Length" || h[0] == "content-length" {
					length = h[1]
				}
			}
			if length != strconv.Itoa(len(r.Body)) {
				t.Errorf("body has %d bytes, the SDK announced %s", len(r.Body), length)
			}
			var body struct {
				Key    string `json:"api_key"`
				Events []any  `json:"events"`
			}
			if err := json.Unmarshal(r.Body, &body); err != nil {
				t.Fatalf("body: %v", err)
			}
			if body.Key != recordings.Key || len(body.Events) == 0 {
				t.Errorf("key %q, %d events", body.Key, len(body.Events))
			}
			if r.Method != "POST" || r.Path == "" || r.SDK == "" {
				t.Errorf("incomplete: %s %q by %q", r.Method, r.Path, r.SDK)
			}
		})
	}
}
