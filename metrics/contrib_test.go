package metrics

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// known are the labels of each name that /metrics shows, those of Go and of the process too.
func known(t *testing.T) map[string][]string {
	t.Helper()
	snap, process := full()
	w := httptest.NewRecorder()
	Handler(source{snap: snap, process: process}, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	names := map[string][]string{}
	for _, line := range strings.Split(w.Body.String(), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		for _, m := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(line, -1) {
			if !slices.Contains(names[name], m[1]) {
				names[name] = append(names[name], m[1])
			}
		}
		names[name] = append(names[name], "job", "instance") // Prometheus adds these
	}
	names["up"] = []string{"job", "instance"}                                                    // Prometheus' own
	names["ALERTS"] = []string{"alertname", "alertstate", "severity", "sync", "job", "instance"} // likewise
	return names
}

// check fails for what an expression asks for and /metrics does not have.
func check(t *testing.T, where, expr string, names map[string][]string) (metrics []string) {
	t.Helper()
	r, err := readExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	var all []string
	for _, m := range r.metrics {
		labels, ok := names[m]
		if !ok {
			t.Errorf("%s: ampcio has no metric %s", where, m)
		}
		all = append(all, labels...)
		for _, l := range r.labels[m] {
			if !slices.Contains(labels, l) {
				t.Errorf("%s: %s has no label %s", where, m, l)
			}
		}
	}
	for _, l := range r.grouped {
		if !slices.Contains(all, l) {
			t.Errorf("%s: nothing in %q has a label %s", where, expr, l)
		}
	}
	if len(r.metrics) == 0 {
		t.Errorf("%s: %q asks for nothing", where, expr)
	}
	return r.metrics
}

// dashboardExprs gives all expressions of the dashboard, by where they are.
func dashboardExprs(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("../contrib/grafana/ampcio.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard any
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if title, ok := v["title"].(string); ok {
				path += "/" + title
			}
			for k, below := range v {
				at := path + "/" + k
				text, isText := below.(string)
				if isText && (k == "expr" || k == "query" || k == "definition") && text != "prometheus" {
					if k != "expr" { // label_values(METRIC, LABEL): the label is no metric
						text, _, _ = strings.Cut(strings.TrimPrefix(text, "label_values("), ", ")
					}
					exprs[at] = text
				}
				walk(at, below)
			}
		case []any:
			for i, below := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), below)
			}
		}
	}
	walk("", dashboard)
	return exprs
}

func TestDashboardAsksForWhatThereIs(t *testing.T) {
	names := known(t)
	exprs := dashboardExprs(t)
	if len(exprs) < 40 {
		t.Fatalf("only %d expressions were found", len(exprs))
	}
	asked := map[string]bool{}
	for where, expr := range exprs {
		for _, m := range check(t, where, expr, names) {
			asked[m] = true
		}
	}
	b, err := os.ReadFile("../contrib/grafana/ampcio.json")
	if err != nil {
		t.Fatal(err)
	}
	// A name that stands anywhere else in the file would not have been looked at.
	for _, name := range regexp.MustCompile(`ampcio_[a-z_0-9]+`).FindAllString(string(b), -1) {
		if !asked[name] {
			t.Errorf("%s stands outside of an expression", name)
		}
	}
}

// rule is an alert of alerts.yml, as far as it is of interest here.
type rule struct{ name, expr, severity, runbook string }

func rules(t *testing.T) (rs []rule) {
	t.Helper()
	b, err := os.ReadFile("../contrib/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(b), "      - alert: ")[1:] {
		lines := strings.Split(block, "\n")
		r := rule{name: lines[0]}
		for i := 1; i < len(lines); i++ {
			key, value, _ := strings.Cut(strings.TrimSpace(lines[i]), ": ")
			switch {
			case key == "expr" && value == ">-":
				for ; i+1 < len(lines) && strings.HasPrefix(lines[i+1], strings.Repeat(" ", 10)); i++ {
					r.expr += " " + strings.TrimSpace(lines[i+1])
				}
			case key == "expr":
				r.expr = value
			case key == "labels":
				r.severity = strings.Trim(strings.TrimPrefix(value, "{severity: "), "}")
			case key == "runbook_url":
				r.runbook = value
			}
		}
		rs = append(rs, r)
	}
	return rs
}

func TestAlertsAskForWhatThereIs(t *testing.T) {
	names := known(t)
	rs := rules(t)
	if len(rs) < 20 {
		t.Fatalf("only %d alerts were found", len(rs))
	}
	tested, err := os.ReadFile("../contrib/prometheus/alerts_test.yml")
	if err == nil {
		var days []byte
		days, err = os.ReadFile("../contrib/prometheus/alerts_week_test.yml")
		tested = append(tested, days...)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		check(t, r.name, r.expr, names)
		if r.severity != "critical" && r.severity != "warning" {
			t.Errorf("%s: severity %q", r.name, r.severity)
		}
		if want := "docs/alerts.md#" + strings.ToLower(r.name); r.runbook != want {
			t.Errorf("%s: runbook_url %q, want %q", r.name, r.runbook, want)
		}
		if !strings.Contains(string(tested), `alertname="`+r.name+`"`) {
			t.Errorf("%s never fires in alerts_test.yml and alerts_week_test.yml", r.name)
		}
	}
}

// Each alert has a heading in the runbook, with all that somebody wants to know who was
// woken by it, and each heading is of an alert.
func TestRunbook(t *testing.T) {
	b, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(b), "\n### ")[1:] {
		name, text, _ := strings.Cut(s, "\n")
		if _, twice := sections[name]; twice {
			t.Errorf("two headings %s", name)
		}
		sections[name] = text
	}
	for _, r := range rules(t) {
		text, ok := sections[r.name]
		if !ok {
			t.Errorf("no heading %s", r.name)
			continue
		}
		delete(sections, r.name)
		for _, part := range []string{"**Means.**", "**If nobody does anything.**", "**Look at.**", "**Do.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: no %s", r.name, part)
			}
		}
	}
	for name := range sections {
		t.Errorf("heading %s is of no alert", name)
	}
}

// Every metric is in the table of docs/metrics.md, and the table has no other.
func TestEveryMetricIsDocumented(t *testing.T) {
	want := map[string]string{}
	for _, f := range Families() {
		labels := "–"
		if len(f.Labels) > 0 {
			labels = strings.Join(f.Labels, ", ")
		}
		when := ""
		if f.When != "" {
			when = " *(" + f.When + ")*"
		}
		want["`"+f.Name+"`"] = fmt.Sprintf("| `%s` | %s | %s | %s%s |", f.Name, f.Type, labels, f.Help, when)
	}
	path := "../docs/metrics.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	got := map[string]string{}
	for i, line := range lines {
		if !strings.HasPrefix(line, "| `ampcio_") {
			continue
		}
		name := strings.Fields(line)[1]
		if *update && want[name] != "" {
			lines[i] = want[name]
		}
		if got[name] != "" {
			t.Errorf("two rows of %s", name)
		}
		got[name] = lines[i]
	}
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-metrics +docs/metrics.md (rows that are there: go test ./metrics -update)\n%s", d)
	}
	if t.Failed() {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] == "" {
				t.Log(want[name])
			}
		}
	}
}
