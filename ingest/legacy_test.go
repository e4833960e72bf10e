package ingest

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// oldForm is what amplitude-js posts. Further pairs replace its parameters; a value of "-" leaves one out.
func oldForm(events string, pairs ...string) string {
	v := url.Values{"client": {key}, "e": {events}, "v": {"2"}, "upload_time": {strconv.FormatInt(noon.UnixMilli(), 10)}}
	v.Set("checksum", checksum(v))
	for i := 0; i < len(pairs); i += 2 {
		if v.Set(pairs[i], pairs[i+1]); pairs[i+1] == "-" {
			v.Del(pairs[i])
		}
	}
	return v.Encode()
}

// otherNames are parameters that nobody asks for.
func otherNames(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("&" + strconv.Itoa(i))
	}
	return b.String()
}

func checksum(v url.Values) string {
	sum := md5.Sum([]byte(v.Get("v") + v.Get("client") + v.Get("e") + v.Get("upload_time")))
	return hex.EncodeToString(sum[:])
}

func TestOldSDKs(t *testing.T) {
	const one = `{"event_type":"Button Clicked","user_id":"user-1","device_id":"device-1","timestamp":1795432617042,"uuid":"u-1","version_name":null,"api_properties":{},"library":{"name":"amplitude-js","version":"8.21.10"}}`
	many := "[" + strings.Repeat(one+",", 2000) + one + "]"
	tests := []struct {
		name, kind, body string
		status           int
		answer           string
		stored           int
	}{
		{"JavaScript", "application/x-www-form-urlencoded; charset=UTF-8", oldForm("[" + one + "]"), 200, "success", 1},
		{"its beacon", "application/x-www-form-urlencoded;charset=UTF-8", oldForm("[" + one + "]"), 200, "success", 1},
		{"Android", asForm, oldForm("["+one+"]", "checksum", "-"), 200, "success", 1},
		{"iOS", asForm, oldForm("["+one+"]", "checksum", "-", "v", "3"), 200, "success", 1},
		{"a checksum in capitals", asForm, oldForm("["+one+"]", "checksum", strings.ToUpper(checksum(url.Values{"client": {key}, "e": {"[" + one + "]"}, "v": {"2"}, "upload_time": {strconv.FormatInt(noon.UnixMilli(), 10)}}))), 200, "success", 1},
		{"with a charset that is not said", "application/x-www-form-urlencoded; charset", oldForm("[" + one + "]"), 200, "success", 1},
		{"as text", "text/plain;charset=UTF-8", oldForm("[" + one + "]"), 200, "success", 1},
		{"as nothing", "", oldForm("[" + one + "]"), 200, "success", 1},
		{"one event, no array", asForm, oldForm(one), 400, "missing_event", 0},
		{"two", asForm, oldForm("[" + one + "," + one + "]"), 200, "success", 2},
		{"short ids, which the SDK lets pass", asForm, oldForm(`[{"event_type":"E","user_id":"42","device_id":null}]`), 200, "success", 1},
		{"a number as an id", asForm, oldForm(`[{"event_type":"E","user_id":1234567}]`), 200, "success", 1},
		{"an iPhone that has no advertising id", asForm, oldForm(`[{"event_type":"E","user_id":"user-1","device_id":"00000000-0000-0000-0000-000000000000"}]`), 200, "success", 1},
		{"an upload time that is none", asForm, oldForm("["+one+"]", "checksum", "-", "upload_time", "soon"), 200, "success", 1},

		{"a wrong checksum", asForm, oldForm("["+one+"]", "checksum", strings.Repeat("0", 32)), 400, "bad_checksum", 0},
		{"changed on its way", asForm, oldForm("["+one+"]", "upload_time", "1"), 400, "bad_checksum", 0},
		{"another key", asForm, oldForm("["+one+"]", "client", "x", "checksum", "-"), 400, "invalid_api_key", 0},
		{"no key", asForm, oldForm("["+one+"]", "client", "-"), 400, "invalid_api_key", 0},
		{"an empty key", asForm, oldForm("["+one+"]", "client", ""), 400, "invalid_api_key", 0},
		{"nothing", asForm, "", 400, "invalid_api_key", 0},
		{"no events", asForm, oldForm("", "e", "-"), 400, "missing_event", 0},
		{"an empty array", asForm, oldForm("[]"), 400, "missing_event", 0},
		{"null", asForm, oldForm("null"), 400, "missing_event", 0},
		{"a text", asForm, oldForm(`"` + one + `"`), 400, "missing_event", 0},
		{"cut off", asForm, oldForm("[" + one[:50]), 400, "missing_event", 0},
		{"something after it", asForm, oldForm("[" + one + "]x"), 400, "missing_event", 0},
		{"events twice", asForm, oldForm("["+one+"]") + "&e=[]", 400, "missing_event", 0},
		{"a broken escape", asForm, oldForm("["+one+"]") + "%z", 400, "missing_event", 0},
		{"an escape cut off", asForm, oldForm("["+one+"]") + "&x=%4", 400, "missing_event", 0},
		{"59 parameters more", asForm, oldForm("["+one+"]") + otherNames(59), 200, "success", 1},
		{"nothing but names", asForm, oldForm("["+one+"]") + otherNames(100_000), 400, "missing_event", 0},
		{"an event without a type", asForm, oldForm(`[` + one + `,{"user_id":"user-1"}]`), 400, `invalid_event_field: ["event_type"]`, 0},
		{"an event without ids", asForm, oldForm(`[{"event_type":"E"}]`), 400, `invalid_event_field: ["device_id" "user_id"]`, 0},
		{"an event that is none", asForm, oldForm(`[7]`), 400, `invalid_event_field: ["event"]`, 0},
		{"a time that is none", asForm, oldForm(`[{"event_type":"E","user_id":"user-1","time":"now"}]`), 400, `invalid_event_field: ["time"]`, 0},
		{"too many", asForm, oldForm(many), 413, "request_too_large", 0},
		{"too large", asForm, oldForm(`["` + strings.Repeat("x", 1<<20) + `"]`), 413, "request_too_large", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			w := do(t, New(options(), store), "POST", "/", test.body, "Content-Type", test.kind)
			if w.Code != test.status || w.Body.String() != test.answer || len(store.events()) != test.stored {
				t.Errorf("%d %q with %d stored, want %d %q with %d", w.Code, w.Body, len(store.events()), test.status, test.answer, test.stored)
			}
			if got := w.Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %q", got)
			}
		})
	}
}

// What amplitude-js has sent is stored as it came: its time and its identity are found under their old names.
func TestRecordedFormIsStored(t *testing.T) {
	for _, r := range recordedRequests(t) {
		if r.Name != "legacy-js-200" {
			continue
		}
		for _, packed := range []bool{false, true} {
			store := &memory{}
			h := New(options(), store)
			if packed {
				r.Body = compress(t, []byte(r.Body))
				r.Header = append(r.Header, [2]string{"Content-Encoding", "gzip"})
			}
			w := replay(t, h, r)
			if w.Code != 200 || w.Body.String() != "success" {
				t.Fatalf("packed %v: %d %s", packed, w.Code, w.Body)
			}
			if packed {
				r.Body = ""
			} else {
				form, err := url.ParseQuery(r.Body)
				if err != nil {
					t.Fatal(err)
				}
				var sent []json.RawMessage
				if err := json.Unmarshal([]byte(form.Get("e")), &sent); err != nil {
					t.Fatal(err)
				}
				for i, e := range store.events() {
					var was struct {
						UUID      string
						Timestamp int64
						UserID    string `json:"user_id"`
					}
					if err := json.Unmarshal(sent[i], &was); err != nil {
						t.Fatal(err)
					}
					if string(e.Raw) != string(sent[i]) || e.InsertID != was.UUID || e.Time != was.Timestamp || e.UserID != was.UserID {
						t.Errorf("event %d: %+v, sent %s", i, e, sent[i])
					}
				}
			}
			if a := store.arrivals[0]; len(a.Events) != 6 || a.Uploaded != 1795432938417 {
				t.Errorf("packed %v: %d events uploaded at %d", packed, len(a.Events), a.Uploaded)
			}
		}
		return
	}
	t.Fatal("no recording")
}

func TestOldHTTPAPI(t *testing.T) {
	form := func(pairs ...string) string {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Add(pairs[i], pairs[i+1])
		}
		return v.Encode()
	}
	tests := []struct {
		name, query, kind, body string
		status                  int
		answer                  string
		stored                  int
	}{
		{"one event", "", asForm, form("api_key", key, "event", good), 200, "success", 1},
		{"several", "", asForm, form("api_key", key, "event", "["+good+","+good+"]"), 200, "success", 2},
		{"in the query", form("api_key", key, "event", good), "", "", 200, "success", 1},
		{"JSON", "", "application/json; charset=utf-8", `{"api_key":"` + key + `","event":` + good + `}`, 200, "success", 1},
		{"a minimum for ids", "", asForm, form("api_key", key, "event", `{"event_type":"E","user_id":"u"}`, "options", `{"min_id_length":1}`), 200, "success", 1},
		{"short ids", "", asForm, form("api_key", key, "event", `{"event_type":"E","user_id":"u"}`), 400, `invalid_event_field: ["user_id"]`, 0},
		{"the second API's name", "", asForm, form("api_key", key, "events", "["+good+"]"), 400, "missing_event", 0},
		{"no key", "", asForm, form("event", good), 400, "invalid_api_key", 0},
		{"another key", "", asForm, form("api_key", "x", "event", good), 400, "invalid_api_key", 0},
		{"no event", "", asForm, form("api_key", key), 400, "missing_event", 0},
		{"no JSON", "", asForm, form("api_key", key, "event", "Order Placed"), 400, "missing_event", 0},
		{"a bad event", "", asForm, form("api_key", key, "event", `{"user_id":"user-1"}`), 400, `invalid_event_field: ["event_type"]`, 0},
		{"more than 2,000 under the second API's name, from an SDK that then sends halves", "", "application/json",
			`{"api_key":"` + key + `","events":[` + strings.Repeat(good+",", 2000) + good + `]}`, 413, `{"code":413,"error":"Payload too large"}`, 0},
		{"wrong options beside that name", "", "application/json", `{"api_key":"` + key + `","events":[` + good + `],"options":7}`, 400, `{"code":400,"error":"Request missing required field","missing_field":"options"}`, 0},
		{"JSON without any", "", "application/json", `{"api_key":"` + key + `"}`, 400, `{"code":400,"error":"Request missing required field","missing_field":"event"}`, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			w := do(t, New(options(), store), "POST", "/httpapi?"+test.query, test.body, "Content-Type", test.kind)
			if w.Code != test.status || w.Body.String() != test.answer || len(store.events()) != test.stored {
				t.Errorf("%d %q with %d stored, want %d %q with %d", w.Code, w.Body, len(store.events()), test.status, test.answer, test.stored)
			}
		})
	}
}

func TestGroupIdentify(t *testing.T) {
	const one = `{"group_type":"org","group_value":"Acme","group_properties":{"$set":{"plan":"pro"}}}`
	const stored = `{"event_type":"$groupidentify","groups":{"org":"Acme"},"group_properties":{"$set":{"plan":"pro"}}}`
	form := func(identification string) string {
		return url.Values{"api_key": {key}, "identification": {identification}}.Encode()
	}
	properties := func(n int) string {
		return `{"group_type":"org","group_value":"Acme","group_properties":{"$set":{` + manyNames(n) + `}}}`
	}
	tests := []struct {
		name, method, query, kind, body string
		status                          int
		answer                          string
		stored                          []string
	}{
		{"form", "POST", "", asForm, form(one), 200, "success", []string{stored}},
		{"form, an array", "POST", "", asForm, form("[" + one + "," + one + "]"), 200, "success", []string{stored, stored}},
		{"query", "GET", form(one), "", "", 200, "success", []string{stored}},
		{"query of a POST", "POST", form(one), "", "", 200, "success", []string{stored}},
		{"JSON", "POST", "", "application/json", `{"api_key":"` + key + `","identification":[` + one + `]}`, 200, "success", []string{stored}},
		{"a number as a name", "POST", "", asForm, form(`{"group_type":"org","group_value":7}`), 200, "success", []string{`{"event_type":"$groupidentify","groups":{"org":7}}`}},
		{"what else it says is kept", "POST", "", asForm, form(`{"insert_id":"i-1","group_properties":{"a":1},"event_type":"E","group_type":"org","group_value":"Acme"}`), 200, "success",
			[]string{`{"event_type":"$groupidentify","insert_id":"i-1","groups":{"org":"Acme"},"group_properties":{"a":1}}`}},
		{"no type", "POST", "", asForm, form(`{"group_value":"Acme","group_properties":{}}`), 400, `invalid_event_field: ["group_type"]`, nil},
		{"nothing in it", "POST", "", asForm, form(`{}`), 400, `invalid_event_field: ["group_type" "group_value"]`, nil},
		{"a type that is a number", "POST", "", asForm, form(`{"group_type":7,"group_value":"Acme"}`), 400, `invalid_event_field: ["group_type"]`, nil},
		{"several values", "POST", "", asForm, form(`{"group_type":"org","group_value":["Acme"]}`), 400, `invalid_event_field: ["group_value"]`, nil},
		{"an empty value", "POST", "", asForm, form(`{"group_type":"org","group_value":""}`), 400, `invalid_event_field: ["group_value"]`, nil},
		{"properties that are a text", "POST", "", asForm, form(`{"group_type":"org","group_value":"Acme","group_properties":"plan"}`), 400, `invalid_event_field: ["group_properties"]`, nil},
		{"a name twice", "POST", "", asForm, form(`{"group_type":"org","group_type":"team","group_value":"Acme"}`), 400, `invalid_event_field: ["group_type"]`, nil},
		{"no key", "POST", "", asForm, "identification=" + url.QueryEscape(one), 400, "invalid_api_key", nil},
		{"no identification", "POST", "", asForm, "api_key=" + key, 400, "missing_event", nil},
		{"cut off", "POST", "", asForm, form(one[:30]), 400, "missing_event", nil},
		{"1,025 of them", "POST", "", asForm, form("[" + strings.Repeat(one+",", 1024) + one + "]"), 413, "request_too_large", nil},
		{"1,024 properties", "POST", "", asForm, form(properties(1024)), 200, "success",
			[]string{`{"event_type":"$groupidentify","groups":{"org":"Acme"},"group_properties":{"$set":{` + manyNames(1024) + `}}}`}},
		{"1,025 properties", "POST", "", asForm, form(properties(1025)), 413, "request_too_large", nil},
		{"in two of them", "POST", "", asForm, form("[" + properties(1000) + "," + properties(25) + "]"), 413, "request_too_large", nil},
		{"a query that is too long", "GET", form(`{"group_type":"org","group_value":"` + strings.Repeat("x", 8<<10) + `"}`), "", "", 414, "request_too_large", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := &memory{}
			w := do(t, New(options(), store), test.method, "/groupidentify?"+test.query, test.body, "Content-Type", test.kind)
			if w.Code != test.status || w.Body.String() != test.answer {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, test.status, test.answer)
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

func TestLongTextsAreCutAtTheDoor(t *testing.T) {
	long := strings.Repeat("ü", 1030)
	store := &memory{}
	h := New(options(), store)
	body := batch(`{"event_type":"E","user_id":"user-1","user_properties":{"$set":{"a":"`+long+`"}},"event_properties":{"b":"`+long+`"}}`, good)
	if status, answer := post(t, h, "/2/httpapi", body); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	want := `{"event_type":"E","user_id":"user-1","user_properties":{"$set":{"a":"` + long[:2048] + `"}},"event_properties":{"b":"` + long[:2048] + `"}}`
	if e := store.events()[0]; string(e.Raw) != want || string(e.UserProperties) != `{"$set":{"a":"`+long[:2048]+`"}}` {
		t.Errorf("stored %s with %s", e.Raw, e.UserProperties)
	}
}
