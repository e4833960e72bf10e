package ceiling

import (
	"net/http/httptest"
	"strings"
	"testing"
)

// A ceiling that parses nothing would be too high.
func TestParsesWhatItIsGiven(t *testing.T) {
	for body, want := range map[string]string{
		`{"events":[{"user_id":"u","event_type":"e"},{"user_id":"u","event_type":"e"}]}`: `"events_ingested":2`,
		`{"events":[{"user_id":"u"}]}`: "without user_id or event_type",
		`{"events":[`:                  "parse",
	} {
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, httptest.NewRequest("POST", "/fastjson", strings.NewReader(body)))
		if !strings.Contains(w.Body.String(), want) || (w.Code == 200) != strings.Contains(want, "2") {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}
