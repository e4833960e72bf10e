package sandbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

func TestControlFaults(t *testing.T) {
	r := start(t, Options{})
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		faults                   string
	}{
		{"none at first", "GET", "", "", 200, ""},
		{"by query", "POST", "?500=0.05&outage=10s+5s", "", 200, "500=0.05,outage=10s+5s"},
		{"by JSON, the others stay", "POST", "", `{"429":0.1,"latency":"1ms","refuse_id":["a","b"]}`, 200, "429=0.1,500=0.05,latency=1ms,outage=10s+5s,refuse_id=a,refuse_id=b"},
		{"one is taken back", "POST", "?500=0&outage=none", "", 200, "429=0.1,500=0,latency=1ms,refuse_id=a,refuse_id=b"},
		{"an error changes nothing", "POST", "?503=0.5", `{"latency":"soon"}`, 400, "429=0.1,500=0,latency=1ms,refuse_id=a,refuse_id=b"},
		{"too much together changes nothing", "POST", "?503=0.95", ``, 400, "429=0.1,500=0,latency=1ms,refuse_id=a,refuse_id=b"},
		{"bad JSON", "POST", "", `{"429":`, 400, "429=0.1,500=0,latency=1ms,refuse_id=a,refuse_id=b"},
		{"all replaced", "PUT", "", `{"hang":1}`, 200, "hang=1"},
		{"all ended", "DELETE", "", "", 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.must(c.status, c.method, "/_sandbox/faults"+c.path, c.body)
			var got struct {
				Schema int    `json:"schema"`
				Faults string `json:"faults"`
			}
			if err := json.Unmarshal([]byte(r.must(200, "GET", "/_sandbox/faults", "").body), &got); err != nil || got.Faults != c.faults || got.Schema != 1 {
				t.Errorf("in force: %q %v, want %q", got.Faults, err, c.faults)
			}
		})
	}
	if n := r.Report().Requests; n != 0 {
		t.Errorf("%d control requests were counted", n)
	}
}

func TestControlReads(t *testing.T) {
	r := start(t, Options{Now: newClock().now})
	var batch []string
	for i := range 2500 {
		batch = append(batch, fmt.Sprintf(`{"type":"person","action":"event","identifiers":{"id":"u%d"},"name":"e","attributes":{"n":%d}}`, i%3, i))
	}
	r.must(200, "POST", "/api/v2/batch", `{"batch":[`+strings.Join(batch, ",")+`]}`)
	for _, c := range []struct {
		path        string
		lines       int
		first, last string
	}{
		{"/_sandbox/events", 2500, `{"n":1,`, `"attributes":{"n":2499}}`},
		{"/_sandbox/events?after=2498", 2, `{"n":2499,`, `"attributes":{"n":2499}}`},
		{"/_sandbox/events?after=10&limit=1500", 1500, `{"n":11,`, `"attributes":{"n":1509}}`},
		{"/_sandbox/events?after=2500", 0, ``, ``},
	} {
		t.Run(c.path, func(t *testing.T) {
			body := strings.TrimSuffix(r.must(200, "GET", c.path, "").body, "\n")
			if n := len(strings.Split(body, "\n")); n != max(1, c.lines) || !strings.HasPrefix(body, c.first) || !strings.HasSuffix(body, c.last) {
				t.Errorf("%d lines from %.200s", n, body)
			}
		})
	}
	r.must(400, "GET", "/_sandbox/events?after=x", "")
	r.must(404, "GET", "/_sandbox/people/nobody", "")
	r.must(404, "GET", "/_sandbox/people/u1?kind=email", "")
	r.must(404, "GET", "/_sandbox/nothing", "")
	for id, told := range map[string]string{"4711": `"environment_id":4711}`, "0": `"environment_id":0}`} {
		r.must(200, "POST", "/_sandbox/workspace?id="+id, "")
		if got := r.must(200, "GET", "/api/v1/accounts/region", "").body; !strings.Contains(got, told) {
			t.Errorf("workspace %s: the region endpoint says %s", id, got)
		}
	}
	r.must(400, "POST", "/_sandbox/workspace?id=x", "")
	r.must(400, "POST", "/_sandbox/workspace", "")
	r.must(405, "PATCH", "/_sandbox/faults", "")
	if help := r.must(200, "GET", "/", "").body; !strings.Contains(help, "/_sandbox/report") || !strings.Contains(help, "cut_after") {
		t.Errorf("help says %s", help)
	}
	var people struct {
		Schema int `json:"schema"`
		People []struct {
			CioID      string         `json:"cio_id"`
			ID         string         `json:"id"`
			Count      int            `json:"event_count"`
			Attributes map[string]any `json:"attributes"`
		} `json:"people"`
	}
	if err := json.Unmarshal([]byte(r.must(200, "GET", "/_sandbox/people", "").body), &people); err != nil {
		t.Fatal(err)
	}
	if people.Schema != 1 || len(people.People) != 3 || people.People[2].ID != "u2" || people.People[2].Count != 833 || people.People[2].Attributes["id"] != "u2" {
		t.Errorf("people %+v", people)
	}
	var report Report
	if err := json.Unmarshal([]byte(r.must(200, "GET", "/_sandbox/report", "").body), &report, json.RejectUnknownMembers(true)); err != nil || report.Events.Accepted != 2500 {
		t.Errorf("report %+v %v", report, err)
	}
	r.must(200, "POST", "/_sandbox/reset", "")
	if got := r.Report(); got.Requests != 0 || got.People != 0 || len(r.Events(0, 0)) != 0 {
		t.Errorf("after a reset: %+v", got)
	}
}
