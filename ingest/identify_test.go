package ingest

import (
	"bytes"
	"mime/multipart"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const asForm = "application/x-www-form-urlencoded"

func TestIdentify(t *testing.T) {
	const one = `{"user_id":"user-1","user_properties":{"$set":{"plan":"pro"}},"paying":"true"}`
	const stored = `{"event_type":"$identify","user_id":"user-1","user_properties":{"$set":{"plan":"pro"}},"paying":"true"}`
	form := func(parameters ...string) string {
		v := url.Values{}
		for i := 0; i < len(parameters); i += 2 {
			v.Add(parameters[i], parameters[i+1])
		}
		return v.Encode()
	}
	multi := func(parameters ...string) (string, string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for i := 0; i < len(parameters); i += 2 {
			if err := w.WriteField(parameters[i], parameters[i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String(), w.FormDataContentType()
	}
	parts, asParts := multi("api_key", key, "identification", one)

	tests := []struct {
		name, method, query, kind, body string
		status                          int
		answer                          string
		stored                          []string
	}{
		{"form", "POST", "", asForm, form("api_key", key, "identification", one), 200, "success", []string{stored}},
		{"form, an array", "POST", "", asForm, form("api_key", key, "identification", "[ "+one+" , "+one+" ]"), 200, "success", []string{stored, stored}},
		{"multipart", "POST", "", asParts, parts, 200, "success", []string{stored}},
		{"query", "GET", form("api_key", key, "identification", one), "", "", 200, "success", []string{stored}},
		{"query of a POST", "POST", form("api_key", key, "identification", one), "", "", 200, "success", []string{stored}},
		{"JSON", "POST", "", "application/json", `{"api_key":"` + key + `","identification":` + one + `}`, 200, "success", []string{stored}},
		{"JSON, an array", "POST", "", "text/plain", `{"identification":[` + one + `],"api_key":"` + key + `"}`, 200, "success", []string{stored}},
		{"options", "POST", "", asForm, form("api_key", key, "identification", `{"user_id":"u1"}`, "options", `{"min_id_length":1}`), 200, "success",
			[]string{`{"event_type":"$identify","user_id":"u1"}`}},
		{"its type is not its own", "POST", "", asForm, form("api_key", key, "identification", `{"event_type":"Order Placed","user_id":"user-1","api_key":"`+key+`"}`), 200, "success",
			[]string{`{"event_type":"$identify","user_id":"user-1"}`}},
		{"no key", "POST", "", asForm, form("identification", one), 400, "invalid_api_key", nil},
		{"unknown key", "POST", "", asForm, form("api_key", "x", "identification", one), 400, "invalid_api_key", nil},
		{"no identification", "POST", "", asForm, form("api_key", key), 400, "missing_event", nil},
		{"nothing", "POST", "", asForm, "", 400, "invalid_api_key", nil},
		{"an empty array", "POST", "", asForm, form("api_key", key, "identification", "[]"), 400, "missing_event", nil},
		{"null", "POST", "", asForm, form("api_key", key, "identification", "null"), 400, "missing_event", nil},
		{"cut off", "POST", "", asForm, form("api_key", key, "identification", one[:20]), 400, "missing_event", nil},
		{"two of them", "POST", "", asForm, form("api_key", key, "identification", one, "identification", one), 400, "missing_event", nil},
		{"one in the query, one in the body", "POST", form("identification", one), asForm, form("api_key", key, "identification", one), 400, "missing_event", nil},
		{"something after it", "POST", "", asForm, form("api_key", key, "identification", one+"x"), 400, "missing_event", nil},
		{"a broken form", "POST", "", asForm, "api_key=%zz", 400, "missing_event", nil},
		{"a broken multipart form", "POST", "", asParts, parts[:len(parts)/2], 400, "missing_event", nil},
		{"options of a wrong type", "POST", "", asForm, form("api_key", key, "identification", one, "options", "[1]"), 400, "missing_event", nil},
		{"options that are no JSON", "POST", "", asForm, form("api_key", key, "identification", one, "options", `{"min_id_length"`), 400, "missing_event", nil},
		{"a number", "POST", "", asForm, form("api_key", key, "identification", "[7]"), 400, `invalid_event_field: ["event"]`, nil},
		{"bad properties", "POST", "", asForm, form("api_key", key, "identification", `{"user_id":"user-1","user_properties":7}`), 400, `invalid_event_field: ["user_properties"]`, nil},
		{"no ids", "POST", "", asForm, form("api_key", key, "identification", `{"user_properties":{}}`), 400, `invalid_event_field: ["device_id" "user_id"]`, nil},
		{"a name twice", "POST", "", asForm, form("api_key", key, "identification", `{"user_id":"user-1","user_id":"user-2"}`), 400, `invalid_event_field: ["user_id"]`, nil},
		{"bad UTF-8", "POST", "", asForm, form("api_key", key, "identification", "{\"user_id\":\"user-\xff\"}"), 400, `invalid_event_field: ["user_id"]`, nil},
		{"too many", "POST", "", asForm, form("api_key", key, "identification", "["+strings.Repeat("{},", 2000)+"{}]"), 413, "request_too_large", nil},
		{"too deep", "POST", "", asForm, form("api_key", key, "identification", strings.Repeat(`{"a":`, 10000)+"1"+strings.Repeat("}", 10000)), 400, `invalid_event_field: ["event"]`, nil},
		{"a POST that a redirect made a GET", "GET", "", "", "", 400, `{"code":400,"error":"Request missing required field","missing_field":"api_key"}`, nil},
		{"an SDK with a wrong URL gets what stops it", "POST", "", "application/json", batch(good), 400,
			`{"code":400,"error":"Request missing required field","missing_field":"identification"}`, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			w := do(t, New(options(), store), test.method, "/identify?"+test.query, test.body, "Content-Type", test.kind)
			if w.Code != test.status || (w.Body.String() != test.answer) {
				t.Errorf("%s: %d %q, want %d %q", head(test.query+test.body), w.Code, w.Body, test.status, test.answer)
			}
			var got []string
			for _, e := range store.events() {
				got = append(got, string(e.Raw))
			}
			if diff := cmp.Diff(test.stored, got); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
		})
	}
}
