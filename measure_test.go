package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"ampcio/admin"
	"ampcio/metrics"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// scrape reads /metrics: the value of each series, by its name and labels, and the names
// of all families.
func scrape(t *testing.T, client *http.Client, url string) (series map[string]float64, families map[string]string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s (%v)", url, resp.Status, text, err)
	}
	return seriesOf(t, string(text))
}

func seriesOf(t *testing.T, text string) (series map[string]float64, families map[string]string) {
	t.Helper()
	series, families = map[string]float64{}, map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if typed := strings.Fields(line); len(typed) == 4 && typed[1] == "TYPE" {
			families[typed[2]] = typed[3]
		}
		at := strings.LastIndexByte(line, ' ')
		if line == "" || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		series[line[:at]] = value
	}
	return series, families
}

func someEvents(users, from, to int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"api_key":%q,"events":[`, recordings.Key)
	for i := from; i < to; i++ {
		if i > from {
			b.WriteByte(',')
		}
		kind := "Order Paid"
		if i%10 == 9 {
			kind = rehearsal.Drop
		}
		fmt.Fprintf(&b, `{"user_id":"someone-%d","event_type":%q,"insert_id":"m%d","event_properties":{"total":%d}}`, i%users, kind, i, i)
	}
	b.WriteString("]}")
	return b.Bytes()
}

// durable are the counters that come from a ledger.
var durable = regexp.MustCompile(`^ampcio_(events|operations)_[a-z_]*total\{`)

// What is counted of a sync comes from its ledger: however the daemon ends, the next one
// goes on from no less, and in the end everything has been counted once.
func TestCountersGoOnAfterACrash(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := rehearse(t, rehearsal.Settings{})
	url := "http://" + r.Admin + "/metrics"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	socket := admin.Client(r.Socket)
	defer socket.CloseIdleConnections()
	const rounds, each = 4, 200
	before := map[string]float64{}
	for round := range rounds {
		up(t, r)
		if err := r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, someEvents(50, round*each, (round+1)*each)); err != nil {
			t.Fatal(err)
		}
		for range 8 { // while it delivers, and right up to the end
			now, _ := scrape(t, client, url)
			for name, was := range before {
				if is, there := now[name]; durable.MatchString(name) && (!there || is < was) {
					t.Fatalf("round %d: %s was %v, and is %v", round, name, was, is)
				}
			}
			before = now
		}
		if round < rounds-1 {
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := r.Drained(ctx); err != nil {
		t.Fatal(err)
	}
	const demo = `destination="customerio",sync="demo"}`
	ended := func(outcome string) string {
		return `ampcio_events_total{destination="customerio",outcome="` + outcome + `",sync="demo"}`
	}
	for { // until the last checkpoint
		now, _ := scrape(t, socket, "http://admin/metrics")
		if now[ended("delivered")]+now[ended("filtered")] == rounds*each {
			if got := now["ampcio_events_received_total{"+demo]; got != rounds*each {
				t.Errorf("%v received", got)
			}
			if got := now[`ampcio_events_delivered_total{attempt="first",`+demo] + now[`ampcio_events_delivered_total{attempt="retry",`+demo]; got != now[ended("delivered")] {
				t.Errorf("%v by attempt, %v delivered", got, now[ended("delivered")])
			}
			atTheEnd(t, r, now)
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%v were counted as delivered, and %v as filtered", now[ended("delivered")], now[ended("filtered")])
		}
	}
}

// atTheEnd stops the daemon: what queue-stats counts in its files is what /metrics has said.
func atTheEnd(t *testing.T, r *rehearsal.Rehearsal, last map[string]float64) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	got := run(t, "queue-stats", "--format", "prometheus", "--config", r.ConfigPath)
	if got.code != 0 {
		t.Fatal(got.stderr)
	}
	written, _ := seriesOf(t, got.stdout)
	compared := 0
	for name, was := range last {
		if !durable.MatchString(name) {
			continue
		}
		if compared++; written[name] != was {
			t.Errorf("stopped: %s is %v, and was %v", name, written[name], was)
		}
	}
	if compared < 10 || written["ampcio_running"] != 0 || written["ampcio_door_events_total"] == 0 {
		t.Errorf("%d series compared, in\n%s", compared, got.stdout)
	}
}

// What the daemon shows is what docs/metrics.md lists, and all that is to be there always is.
func TestMetricsOfADaemon(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Faults: sandbox.Faults{RefuseEvent: []string{"Order Paid"}}}})
	up(t, r)
	header := [][2]string{{"Content-Type", "application/json"}}
	if err := r.Post(ctx, "/2/httpapi", header, someEvents(5, 0, 20)); err != nil {
		t.Fatal(err)
	}
	if err := r.Post(ctx, "/2/httpapi", header, someEvents(5, 0, 20)); err != nil { // all of it again
		t.Fatal(err)
	}
	if err := r.Post(ctx, "/2/httpapi", header, []byte(`{"api_key":"wrong","events":[{"user_id":"someone","event_type":"Order"}]}`)); err == nil {
		t.Fatal("a wrong key was taken")
	}
	if _, err := r.Drained(ctx); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "reload", "--config", r.ConfigPath); got.code != 0 {
		t.Fatalf("reload: %s", got.stderr)
	}
	if got := run(t, "dead-letters", "drop", "--all", "--yes", "--config", r.ConfigPath); got.code != 0 {
		t.Fatalf("drop: %s", got.stderr)
	}
	if got := run(t, "audit", "--config", r.ConfigPath); got.code != 0 {
		t.Fatalf("audit: %s", got.stderr)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	series, families := scrape(t, client, "http://"+r.Admin+"/metrics")
	for name, want := range map[string]float64{
		`ampcio_running`:                                                                                   1,
		`ampcio_door_events_total`:                                                                         40,
		`ampcio_door_duplicates_total`:                                                                     20,
		`ampcio_door_requests_total`:                                                                       3,
		`ampcio_door_refused_total{reason="invalid_api_key"}`:                                              1,
		`ampcio_config_last_reload_successful`:                                                             1,
		`ampcio_sync_info{destination="customerio",project="app",sync="demo"}`:                             1,
		`ampcio_sync_health{destination="customerio",level="ok",sync="demo"}`:                              1,
		`ampcio_events_total{destination="customerio",outcome="dead",sync="demo"}`:                         18, // though none is kept any more
		`ampcio_events_total{destination="customerio",outcome="discarded",sync="demo"}`:                    18,
		`ampcio_events_total{destination="customerio",outcome="filtered",sync="demo"}`:                     2,
		`ampcio_events_discarded_total{destination="customerio",reason="dead_letter_dropped",sync="demo"}`: 18,
		`ampcio_dead_letters{destination="customerio",sync="demo"}`:                                        0,
		`ampcio_audit_last_difference{destination="customerio",sync="demo"}`:                               0,
		`ampcio_queue_oldest_age_seconds{destination="customerio",sync="demo"}`:                            0,
		`ampcio_delivery_latency_seconds_count{destination="customerio",sync="demo"}`:                      0,
	} {
		if got, there := series[name]; !there || got != want {
			t.Errorf("%s is %v (there: %t), want %v", name, got, there, want)
		}
	}
	if series[`ampcio_delivery_attempts_total{code_class="2xx",destination="customerio",sync="demo"}`] < 1 {
		t.Error("no request was counted")
	}
	listed := map[string]string{}
	for _, f := range metrics.Families() {
		listed[f.Name] = f.Type
		if f.When == "" && families[f.Name] == "" {
			t.Errorf("%s is not there", f.Name)
		}
	}
	for name, kind := range families {
		if strings.HasPrefix(name, "ampcio_") && listed[name] != kind {
			t.Errorf("%s, a %s, is not documented (%q)", name, kind, listed[name])
		}
	}
	for name := range series {
		for _, secret := range []string{"someone", "Order", recordings.Key, rehearsal.APIKey, "total="} {
			if strings.Contains(name, secret) {
				t.Errorf("%q is told in %s", secret, name)
			}
		}
	}
	if len(series) > 250 {
		t.Errorf("%d series, of one sync", len(series))
	}
}

// Whoever is woken at night copies commands from the runbook: there is each of them.
func TestCommandsOfTheRunbook(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, m := range regexp.MustCompile("(?m)(?:sudo |`)ampcio ([^`\n;|]+)").FindAllStringSubmatch(string(b), -1) {
		args := strings.Fields(strings.TrimSpace(m[1]))
		commands := app(io.Discard, io.Discard).Commands
		var verb *cli.Command
		for len(args) > 0 {
			i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[0]) && !c.Hidden })
			if i < 0 {
				break
			}
			verb, commands, args = commands[i], commands[i].Subcommands, args[1:]
		}
		if verb == nil || len(commands) > 0 {
			t.Errorf("there is no ampcio %s", m[1])
			continue
		}
		for _, word := range args {
			if strings.HasPrefix(word, "-") && word != "-" && flagOf(verb, word) == nil {
				t.Errorf("ampcio %s: no flag %s", m[1], word)
			}
		}
		checked++
	}
	if checked < 40 {
		t.Errorf("only %d commands were found", checked)
	}
}
