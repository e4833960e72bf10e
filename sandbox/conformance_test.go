package sandbox

import (
	"fmt"
	"strings"
	"testing"
)

// What the test suites of Customer.io's own clients hold a client to, seen from the
// server: the requests they check must be understood. The numbers are those of
// section 7 of the project's notes on the Track API; those that only a client can
// meet (1, 19, 21, 23) are not here.
func TestWhatOfficialClientsSend(t *testing.T) {
	const c1 = "/api/v1/customers/"
	for _, c := range []struct {
		name  string
		steps []string // "status METHOD path body"
		want  string   // of the last event or person, see describe
		who   string
	}{
		{"2 identify: exactly the attributes as body", []string{`200 PUT ` + c1 + `1 {"first_name":"Bob","plan":"basic"}`}, `1 {"first_name":"Bob","plan":"basic"}`, "1"},
		{"3 an id with a space, a slash and reserved characters", []string{
			`200 PUT ` + c1 + `1%20 {"n":1}`, `200 PUT ` + c1 + `1%2F {"n":2}`, `200 PUT ` + c1 + `2%20%60%21%40%23%24%25%5E%26%2A%28%29-_%2B%3D%20%5B%5D {"n":3}`},
			"2 `!@#$%^&*()-_+= [] {\"n\":3}", "2 `!@#$%^&*()-_+= []"},
		{"3 Go's client leaves @ + : & = $ bare", []string{`200 PUT ` + c1 + `a+b&c=d:$ {"n":1}`}, `a+b&c=d:$ {"n":1}`, "a+b&c=d:$"},
		{"4 numbers as ids", []string{`200 PUT ` + c1 + `5 {}`, `200 POST /api/v2/entity {"type":"person","action":"identify","identifiers":{"id":5},"attributes":{"n":1}}`}, `5 {"n":1}`, "5"},
		{"5 track", []string{`200 POST ` + c1 + `1/events {"name":"purchase","data":{"price":13.99}}`}, `1 {} event purchase 0 {"price":13.99}`, "1"},
		{"5 track with empty data", []string{`200 POST ` + c1 + `1/events {"name":"purchase","data":{}}`}, `1 {} event purchase 0 {}`, "1"},
		{"6 id, timestamp and type beside data", []string{`200 POST ` + c1 + `1/events {"name":"purchase","data":{"a":1},"id":"` + someULID + `","timestamp":1561235678,"type":"event"}`}, `1 {} event purchase 1561235678 {"a":1}`, "1"},
		{"7 a timestamp that is not whole seconds", []string{`400 POST ` + c1 + `1/events {"name":"purchase","timestamp":1561231234567}`, `400 POST ` + c1 + `1/events {"name":"purchase","timestamp":"Hello world"}`}, `nobody`, "1"},
		{"8 anonymous, joined later", []string{`200 POST /api/v1/events {"name":"seen","data":{},"anonymous_id":"anon"}`, `200 PUT ` + c1 + `1 {"anonymous_id":"anon"}`}, `1 {"anonymous_id":"anon"} event seen 0 {}`, "1"},
		{"8 anonymous without an id, an invite", []string{`200 POST /api/v1/events {"name":"invite","data":{"recipient":"a@example.com"}}`}, `nobody`, "1"},
		{"9 page view", []string{`200 POST ` + c1 + `1/events {"type":"page","name":"http://test.com","data":{"referrer":""}}`}, `1 {} page http://test.com 0 {"referrer":""}`, "1"},
		{"10 delete, with and without a body", []string{`200 PUT ` + c1 + `1 {}`, `200 DELETE ` + c1 + `1`, `200 DELETE ` + c1 + `1 {}`}, `nobody`, "1"},
		{"11 devices", []string{`200 PUT ` + c1 + `1/devices {"device":{"id":"a/b","platform":"ios","last_used":1561235678,"attributes":{"x":"y"}}}`, `200 PUT ` + c1 + `1/devices {"device":{"id":"c","platform":"android"}}`,
			`200 DELETE ` + c1 + `1/devices/c`}, `1 {} [a/b]`, "1"},
		{"12 suppress and unsuppress", []string{`200 POST ` + c1 + `1/suppress {}`, `200 PUT ` + c1 + `1 {"n":1}`, `200 POST ` + c1 + `1/unsuppress`, `200 PUT ` + c1 + `1 {"n":2}`}, `1 {"n":2}`, "1"},
		{"13 merge", []string{`200 PUT ` + c1 + `1 {}`, `200 PUT ` + c1 + `b@example.com {"n":1}`, `200 POST /api/v1/merge_customers {"primary":{"id":"1"},"secondary":{"email":"b@example.com"}}`}, `1 {"n":1}`, "1"},
		{"13 merge with blanks or other kinds", []string{`400 POST /api/v1/merge_customers {"primary":{"id":""},"secondary":{"id":"2"}}`, `400 POST /api/v1/merge_customers {"primary":{"id":"1","email":"a@b.de"},"secondary":{"id":"2"}}`,
			`400 POST /api/v1/merge_customers {"primary":{"name":"1"},"secondary":{"id":"2"}}`}, `nobody`, "1"},
		{"14 addressing by cio_id", []string{`200 PUT ` + c1 + `1 {}`, `200 PUT ` + c1 + `cio_000100000001 {"n":1}`}, `1 {"n":1}`, "1"},
		{"15 batch unchanged, empty refused", []string{`200 POST /api/v2/batch {"batch":[{"type":"person","identifiers":{"id":"1"},"action":"identify","attributes":{"n":1}},{"type":"person","identifiers":{"id":"1"},"action":"event","name":"e"}]}`,
			`400 POST /api/v2/batch {"batch":[]}`}, `1 {"n":1} event e 0 {}`, "1"},
		{"16 blanks", []string{`404 PUT ` + c1 + ` {}`, `400 PUT ` + c1 + `%20%20 {}`, `400 POST ` + c1 + `1/events {"name":""}`, `400 PUT ` + c1 + `1/devices {"device":{"id":"","platform":"ios"}}`}, `nobody`, "1"},
		{"18 bytes are counted, not characters", []string{`200 PUT ` + c1 + `1 {"name":"` + strings.Repeat("é", 500) + `"}`, `400 PUT ` + c1 + `1 {"name":"` + strings.Repeat("é", 501) + `"}`}, `1 {"name":"` + strings.Repeat("é", 500) + `"}`, "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Options{})
			for _, step := range c.steps {
				f := append(strings.SplitN(step, " ", 4), "")
				var status int
				if _, err := fmt.Sscan(f[0], &status); err != nil {
					t.Fatal(err)
				}
				r.must(status, f[1], f[2], f[3])
			}
			if got := r.describe(c.who); got != c.want {
				t.Errorf("holds %s, want %s", got, c.want)
			}
		})
	}
}

// describe: id, attributes, then the last event or the devices.
func (r *rig) describe(id string) string {
	p, ok := r.Person("id", id)
	if !ok {
		return "nobody"
	}
	out := p.ID + " " + r.attributes("id", id)
	if n := len(p.Events); n > 0 {
		e := p.Events[n-1]
		if e.Attributes == nil {
			e.Attributes = []byte("{}")
		}
		out += fmt.Sprintf(" %s %s %d %s", e.Action, e.Name, e.Timestamp, e.Attributes)
	}
	if len(p.Devices) > 0 {
		out += fmt.Sprint(" ", p.Devices)
	}
	return out
}
