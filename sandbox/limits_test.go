package sandbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func attributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"a%d":%d`, i, i)
	}
	return "{" + strings.TrimPrefix(b.String(), ",") + "}"
}

// Each rule of an operation, once between two good ones of a batch and once alone.
func TestOperationRules(t *testing.T) {
	person := func(action, rest string) string {
		return `{"type":"person","action":"` + action + `","identifiers":{"id":"u-1"}` + rest + `}`
	}
	who := func(identifiers string) string {
		return `{"type":"person","action":"identify","identifiers":` + identifiers + `}`
	}
	event := func(rest string) string { return person("event", `,"name":"Buy"`+rest) }
	sized := func(n int) string {
		op := event(`,"attributes":{"a":""}`)
		return strings.Replace(op, `"a":""`, `"a":"`+strings.Repeat("x", n-len(op))+`"`, 1)
	}
	x := strings.Repeat
	for _, c := range []struct {
		name, operation string
		field, message  string // both "" = accepted
	}{
		{"minimal event", event(``), "", ""},
		{"event with all members", event(`,"id":"01HT8Z5W3V9Q4R6S7T8V9WXYZA","timestamp":1709634030,"attributes":{"total":10}`), "", ""},
		{"identify with email", who(`{"email":"a@example.com"}`), "", ""},
		{"identify with phone", who(`{"phone":"+4915112345678"}`), "", ""},
		{"identify with an unknown cio_id is dropped but accepted", who(`{"cio_id":"d9c106000001"}`), "", ""},
		{"identifier may be a number", who(`{"id":42}`), "", ""},
		{"page and screen", person("page", `,"name":"/home"`), "", ""},
		{"nulls count as absent", event(`,"id":null,"timestamp":null,"attributes":null`), "", ""},
		{"merge", `{"type":"person","action":"merge","primary":{"id":"u-1"},"secondary":{"email":"t@example.com"}}`, "", ""},
		{"device", person("add_device", `,"device":{"token":"t","platform":"ios","last_used":1709634030}`), "", ""},
		{"delete device", person("delete_device", `,"device":{"token":"t"}`), "", ""},
		{"suppress", person("suppress", ``), "", ""},
		{"relationships", person("add_relationships", `,"cio_relationships":[{"identifiers":{"object_type_id":"1","object_id":"acme"}}]`), "", ""},
		{"object", `{"type":"object","action":"identify","identifiers":{"object_type_id":"1","object_id":"acme"},"attributes":{"a":1}}`, "", ""},
		{"delivery", `{"type":"delivery","action":"event"}`, "", ""},
		{"anonymous event as Segment sends it", `{"type":"person","action":"event","identifiers":{"anonymous_id":"an-1"},"name":"Seen"}`, "", ""},

		{"an operation is an object", `[]`, "", "must be an object"},
		{"type is required", `{"action":"identify","identifiers":{"id":"1"}}`, "type", "required"},
		{"type is known", `{"type":"robot","action":"identify","identifiers":{"id":"1"}}`, "type", "person"},
		{"action is required", `{"type":"person","identifiers":{"id":"1"}}`, "action", "required"},
		{"action is known", person("dance", ``), "action", "no such action"},
		{"object needs its type", `{"type":"object","action":"identify","identifiers":{"object_id":"a"}}`, "identifiers", "object_type_id"},
		{"object type is an integer", `{"type":"object","action":"identify","identifiers":{"object_type_id":"x","object_id":"a"}}`, "identifiers.object_type_id", "integer"},
		{"relationships are an array on v2", person("add_relationships", `,"cio_relationships":{"action":"add_relationships"}`), "cio_relationships", "array"},

		{"identifiers are required", `{"type":"person","action":"identify"}`, "identifiers", "required"},
		{"identifiers are not empty", who(`{}`), "identifiers", "required"},
		{"exactly one identifier", who(`{"id":"1","email":"a@b.de"}`), "identifiers", "exactly one"},
		{"identifier is no object", who(`{"id":{}}`), "identifiers.id", "must be a string or a number"},
		{"identifier is no boolean", who(`{"id":true}`), "identifiers.id", "must be a string or a number"},
		{"identifier is not null", who(`{"id":null}`), "identifiers.id", "must be a string or a number"},
		{"identifier is not blank", who(`{"id":" \t"}`), "identifiers.id", "blank"},
		{"identifier kind is known", who(`{"user_id":"1"}`), "identifiers.user_id", "not an identifier"},
		{"email looks like one", who(`{"email":"nobody"}`), "identifiers.email", "email"},
		{"phone is E.164", who(`{"phone":"0151 234"}`), "identifiers.phone", "E.164"},
		{"id of 150 bytes", who(`{"id":"` + x("é", 75) + `"}`), "", ""},
		{"id of 151 bytes", who(`{"id":"` + x("é", 75) + `a"}`), "identifiers.id", "150 bytes"},
		{"anonymous identify", who(`{"anonymous_id":"an-1"}`), "identifiers.anonymous_id", "events only"},
		{"merge side with two identifiers", `{"type":"person","action":"merge","primary":{"id":"1","email":"a@b.de"},"secondary":{"id":"2"}}`, "primary", "exactly one"},
		{"merge by phone", `{"type":"person","action":"merge","primary":{"id":"1"},"secondary":{"phone":"+4915112345678"}}`, "secondary.phone", "id, email or cio_id"},
		{"merge without secondary", `{"type":"person","action":"merge","primary":{"id":"1"}}`, "secondary", "required"},

		{"name is required", person("event", ``), "name", "required"},
		{"name is a string", person("event", `,"name":7`), "name", "string"},
		{"name is not blank", person("event", `,"name":"  "`), "name", "blank"},
		{"name of 100 bytes, spaces around not counted", person("event", `,"name":" `+x("é", 50)+` "`), "", ""},
		{"name of 101 bytes", person("event", `,"name":"`+x("é", 50)+`a"`), "name", "100 bytes"},
		{"page without a name", person("page", ``), "name", "required"},
		{"event id is a string", event(`,"id":7`), "id", "string"},
		{"event attributes are an object", event(`,"attributes":"x"`), "attributes", "object"},
		{"event attributes may be long", event(`,"attributes":{"a":"` + x("x", 20_000) + `"}`), "", ""},

		{"timestamp is whole", event(`,"timestamp":1709634030.5`), "timestamp", "whole number"},
		{"timestamp is no string", event(`,"timestamp":"1709634030"`), "timestamp", "whole number"},
		{"timestamp in exponent form", event(`,"timestamp":17e8`), "timestamp", "whole number"},
		{"timestamp in milliseconds", event(`,"timestamp":1709634030000`), "timestamp", "seconds"},
		{"timestamp 10^9 - 1", event(`,"timestamp":999999999`), "timestamp", "seconds"},
		{"timestamp 10^9", event(`,"timestamp":1000000000`), "", ""},
		{"timestamp of an identify", person("identify", `,"timestamp":5`), "timestamp", "seconds"},

		{"identify attributes are an object", person("identify", `,"attributes":[]`), "attributes", "object"},
		{"value of 1000 bytes", person("identify", `,"attributes":{"plan":"`+x("x", 1000)+`"}`), "", ""},
		{"value of 1001 bytes", person("identify", `,"attributes":{"ok":1,"plan":"`+x("x", 1001)+`"}`), "attributes.plan", "longer than 1000 bytes"},
		{"escapes count as what they mean", person("identify", `,"attributes":{"plan":"`+x(`\u0041`, 1000)+`"}`), "", ""},
		{"a nested value counts as its JSON", person("identify", `,"attributes":{"plan":["`+x("x", 1000)+`"]}`), "attributes.plan", "1000 bytes"},
		{"attribute name of 150 bytes", person("identify", `,"attributes":{"`+x("n", 150)+`":1}`), "", ""},
		{"attribute name of 151 bytes", person("identify", `,"attributes":{"`+x("n", 151)+`":1}`), "attributes." + x("n", 151), "150 bytes"},
		{"300 attributes", person("identify", `,"attributes":`+attributes(300)), "", ""},
		{"301 attributes", person("identify", `,"attributes":`+attributes(301)), "attributes", "300"},
		{"_update is no attribute", person("identify", `,"attributes":`+strings.Replace(attributes(300), "{", `{"_update":false,`, 1)), "", ""},

		{"device token is required", person("add_device", `,"device":{"id":"t","platform":"ios"}`), "device.token", "required"},
		{"device platform", person("add_device", `,"device":{"token":"t","platform":"windows"}`), "device.platform", "ios or android"},
		{"device is required", person("delete_device", ``), "device", "required"},

		{"operation of 32,000 bytes", sized(32_000), "", ""},
		{"operation of 32,001 bytes", sized(32_001), "", "32000 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{})
			before, after := event(`,"attributes":{"before":1}`), event(`,"attributes":{"after":1}`)
			batch := `{"batch":[` + before + ` , ` + c.operation + "\n," + after + `]}`
			status, alone := 200, 200
			if c.message != "" {
				status, alone = 207, 400
			}
			got := r.must(status, "POST", "/api/v2/batch", batch)
			checkProblem(t, got.body, `"batch_index":1,`, c.field, c.message)
			if n := r.Report().Events.Received; n < 2 && c.name != "suppress" {
				t.Errorf("%d events taken: the good neighbours of a bad operation are accepted", n)
			}
			got = r.must(alone, "POST", "/api/v2/entity", c.operation)
			checkProblem(t, got.body, "", c.field, c.message)
		})
	}
}

func checkProblem(t *testing.T, body, index, field, message string) {
	t.Helper()
	if message == "" {
		if body != "{}\n" {
			t.Errorf("accepted with %s, want {}", body)
		}
		return
	}
	want := `{"errors":[{` + index + `"reason":"invalid",`
	if field != "" {
		want += `"field":"` + field + `",`
	}
	if want += `"message":"`; !strings.HasPrefix(body, want) || !strings.Contains(body, message) || strings.Count(body, "reason") != 1 {
		t.Errorf("says %s, want %s…%s…", body, want, message)
	}
	if !jsontext.Value(body).IsValid() {
		t.Errorf("not JSON: %s", body)
	}
}

// What v1 refuses, in its own words. An answer with several errors has the other
// documented shape.
func TestV1Rules(t *testing.T) {
	x := strings.Repeat
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"identify", "PUT", "1", `{"plan":"pro","age":7}`, 200, "{}\n"},
		{"id in the body equal to the path", "PUT", "1", `{"id":"1"}`, 200, "{}\n"},
		{"id in the body differs", "PUT", "1", `{"id":"2"}`, 400, `{"meta":{"error":"value for the id attribute does not match`},
		{"id in the body may differ from an email in the path", "PUT", "a@example.com", `{"id":"2"}`, 200, "{}\n"},
		{"id in the body is a number", "PUT", "1", `{"id":1}`, 400, "must be a string"},
		{"id in the body is empty", "PUT", "a@example.com", `{"id":""}`, 400, "cannot be empty"},
		{"blank id in the path", "PUT", "%20", `{}`, 400, "blank"},
		{"id of 150 bytes", "PUT", x("1", 150), `{}`, 200, "{}\n"},
		{"id of 151 bytes", "PUT", x("1", 151), `{}`, 400, "150 bytes"},
		{"body is an array", "PUT", "1", `[]`, 400, "object"},
		{"long value", "PUT", "1", `{"a":"` + x("x", 1001) + `"}`, 400, `{"meta":{"error":"property value cannot be longer than 1000 bytes"}}`},
		{"two errors", "PUT", "1", `{"a":"` + x("x", 1001) + `","` + x("n", 151) + `":1}`, 400, `{"meta":{"errors":["property value cannot be longer than 1000 bytes","property name`},
		{"301 attributes", "PUT", "1", attributes(301), 400, "300 attributes"},
		{"_timestamp in milliseconds", "PUT", "1", `{"_timestamp":1709634030000}`, 400, "seconds"},
		{"relationships are an object on v1", "PUT", "1", `{"cio_relationships":[]}`, 400, "object with an action"},

		{"event", "POST", "1/events", `{"name":"Buy","data":{"a":1}}`, 200, "{}\n"},
		{"event without data", "POST", "1/events", `{"name":"Buy"}`, 200, "{}\n"},
		{"event name missing", "POST", "1/events", `{"data":{}}`, 400, `{"meta":{"error":"name is required"}}`},
		{"event name blank", "POST", "1/events", `{"name":" "}`, 400, "blank"},
		{"event name of 101 bytes", "POST", "1/events", `{"name":"` + x("n", 101) + `"}`, 400, "100 bytes"},
		{"event data is a string", "POST", "1/events", `{"name":"Buy","data":"x"}`, 400, "data must be an object"},
		{"event data of 100,000 bytes", "POST", "1/events", `{"name":"Buy","data":{"a":"` + x("x", 100_000-8) + `"}}`, 200, "{}\n"},
		{"event data of 100,001 bytes", "POST", "1/events", `{"name":"Buy","data":{"a":"` + x("x", 100_001-8) + `"}}`, 400, "100000 bytes"},
		{"fractional timestamp", "POST", "1/events", `{"name":"Buy","timestamp":1709634030.25}`, 400, "whole number"},

		{"device", "PUT", "1/devices", `{"device":{"id":"tok","platform":"android","last_used":1709634030}}`, 200, "{}\n"},
		{"device key is id on v1", "PUT", "1/devices", `{"device":{"token":"tok","platform":"android"}}`, 400, "id is required"},
		{"device without platform", "PUT", "1/devices", `{"device":{"id":"tok"}}`, 400, "platform"},
		{"deleting an unknown device", "DELETE", "1/devices/tok", ``, 200, "{}\n"},
		{"deleting an unknown person", "DELETE", "1", ``, 200, "{}\n"},
		{"deleting with an empty object as body", "DELETE", "1", `{}`, 200, "{}\n"},
		{"suppress without a body", "POST", "1/suppress", ``, 200, "{}\n"},
		{"unsuppress with an empty object", "POST", "1/unsuppress", `{}`, 200, "{}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{})
			got := r.must(c.status, c.method, "/api/v1/customers/"+c.path, c.body)
			if !strings.HasPrefix(got.body, c.says) && (c.status == 200 || !strings.Contains(got.body, c.says)) {
				t.Errorf("says %s, want %s", got.body, c.says)
			}
			if c.status == 400 && !strings.HasPrefix(got.body, `{"meta":{"error`) {
				t.Errorf("says %s: not a shape of v1", got.body)
			}
		})
	}
}

// The walker reads what the strict parser accepts, and finds the same members.
func FuzzWalk(f *testing.F) {
	for _, v := range []string{`{}`, `{"a":1}`, ` { "a" : [ 1 , "]" , {"b":"}\\"} ] , "c\"\\" : null } `, `{"a":"\\\\\"","b":-1.5e+7,"c":true}`, `{"":{"":{}}}`, `{"\u0061":"\ud83d\ude00"}`} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		body := trimJSON([]byte(v))
		if checkJSON(body) != nil || !isObject(body) {
			return
		}
		var want, got []string
		d := jsontext.NewDecoder(strings.NewReader(v))
		_, _ = d.ReadToken()
		for d.PeekKind() != '}' {
			name, _ := d.ReadToken()
			n := name.String()
			value, _ := d.ReadValue()
			want = append(want, n, string(value))
		}
		for w := walk(body); ; {
			name, value, ok := w.member()
			if !ok {
				break
			}
			got = append(got, string(name), string(value))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: walked %q, want %q", v, got, want)
		}
	})
}
