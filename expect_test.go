package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ampcio/rehearsal"
)

// A team keeps its mapping under test, on a machine that has neither storage nor keys.
func TestExpect(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.toml")
	write(t, conf, `
[project.app]
amplitude_api_keys_file = "not-on-this-machine"
relay = "off"

[storage]
dir = "/nowhere/at/all"

[sync.production]
region       = "eu"
site_id      = "site"
api_key_file = "not-on-this-machine-either"

[[sync.production.select]]
event = ["Order *"]
where = [{ path = "event.total", op = ">=", value = 10 }]

[sync.production.events]
properties = ["total"]

[sync.production.users]
properties = ["plan"]
`)
	pairs := filepath.Join(dir, "pairs")
	if err := os.Mkdir(pairs, 0o755); err != nil {
		t.Fatal(err)
	}
	in, out := filepath.Join(pairs, "orders.in.json"), filepath.Join(pairs, "orders.out.json")
	write(t, in, `{"story": "Large orders are sent, and a plan when it changes.", "events": [
  {"received": "2026-11-25T10:00:00Z", "note": "too small", "event": {"event_type":"Order Completed","user_id":"annabel","insert_id":"i-1","event_properties":{"total":9},"user_properties":{"plan":"free"}}},
  {"received": "2026-11-25T10:00:01Z", "event": {"event_type":"Order Completed","user_id":"annabel","insert_id":"i-2","event_properties":{"total":10.50}}},
  {"received": "2026-11-25T10:00:02Z", "note": "again", "event": {"event_type":"Order Completed","user_id":"annabel","insert_id":"i-2"}},
  {"received": "2026-11-25T10:00:03Z", "refused": "attributes.plan", "event": {"event_type":"$identify","user_id":"annabel","user_properties":{"plan":"odd"}}},
  {"received": "2026-11-25T10:00:04Z", "event": {"event_type":"$identify","user_id":"annabel","user_properties":{"plan":"odd"}}}
]}`)
	plain := filepath.Join(pairs, "plain.in.json")
	write(t, plain, `{"event_type":"Order Completed","user_id":"annabel","time":1795600800000,"event_properties":{"total":"12"}}`)
	expects := func(code int, says []string, flags ...string) {
		t.Helper()
		got := run(t, append([]string{"explain", "--expect", pairs, "--config", conf}, flags...)...)
		if got.code != code {
			t.Errorf("exit %d, want %d: %s%s", got.code, code, got.stdout, got.stderr)
		}
		contains(t, got.stdout+got.stderr, says...)
	}
	expects(exitFailed, []string{"FAIL  orders\n      there is no orders.out.json yet: --update writes it", "2 of 2 pairs are not as expected"})
	expects(0, []string{"wrote " + out}, "--update")
	expects(0, []string{"ok    orders\nok    plain\n"})
	golden(t, "expect/orders.out.json", read(t, out))

	// The mapping changes.
	good := read(t, conf)
	write(t, conf, strings.Replace(good, `value = 10`, `value = 20`, 1))
	expects(exitFailed, []string{"FAIL  orders\n", `      -         "verdict": "sent",`, `      +         "verdict": "filtered",`, `      +         "reason": "not_selected",`, "ok    plain\n", "1 of 2 pairs are not as expected"})
	write(t, conf, good)

	// What is left out is not checked, how it is written does not matter.
	write(t, out, `[{"syncs":{}},{"syncs":{"production":{"verdict":"sent"}}},{},{"user_properties_after":{ "plan" : "odd" }},{"syncs":{"production":{"no_identify_because":"unchanged", "requests": []}}}]`)
	expects(0, []string{"ok    orders\n"})
	write(t, out, `[{},{"syncs":{"production":{"verdict":"filtered"}}},{},{},{}]`)
	expects(exitFailed, []string{`-         "verdict": "filtered"`})
	write(t, out, `[{},{}]`)
	expects(exitFailed, []string{"FAIL  orders"})
	write(t, out, `[{"verdict":"sent"}]`)
	expects(exitFailed, []string{`orders.out.json: json: unknown field "verdict"`})
	write(t, out, `[{"syncs":{"prodction":{}}}]`)
	expects(exitFailed, []string{`no sync "prodction": did you mean "production"?`})
	expects(0, []string{"wrote"}, "--update")

	// An input that would be refused, and one that is none.
	write(t, in, `{"event_type":"A","user_id":"anna"}`)
	expects(exitFailed, []string{"event 0: it would be answered 400: Invalid id length for user_id or device_id: event 0: user_id is too short"})
	write(t, in, `{"events":[{"event":{},"recieved":"x"}]}`)
	expects(exitFailed, []string{`unknown field "recieved"`})
	expects(exitUsage, []string{"--expect goes with"}, "--json")
	got := run(t, "explain", "--expect", dir, "--config", conf)
	if got.code != exitData {
		t.Errorf("a folder without pairs: %+v", got)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The input of explain comes in many forms, and what is wrong with it is said.
func TestExplainSaysWhatItWants(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	event := filepath.Join(r.Dir, "e.json")
	write(t, event, `{"event_type":"Visit"}`)
	for _, tt := range []struct {
		code int
		says string
		args []string
	}{
		{exitData, "no such file", []string{"nothing.json"}},
		{exitData, "user_id is missing", []string{event}},
		{exitUsage, "takes one FILE, and 2 are given", []string{event, event}},
		{exitUsage, `no sync "dmo": did you mean "demo"?`, []string{"--sync", "dmo", event}},
		{exitUsage, "--dead goes with --seq", []string{"--dead", event}},
		{exitUsage, "explains what is stored", []string{"--seq", "1", event}},
		{exitUsage, `--seq "x": a sequence such as 1234`, []string{"--seq", "x"}},
		{exitUsage, `--seq "7-3"`, []string{"--seq", "7-3"}},
		{exitUnavailable, "has never run", []string{"--seq", "1"}},
		{exitUsage, "there is no [project.web]", []string{"--project", "web", event}},
		{exitUsage, "--update goes with --expect", []string{"--update", event}},
	} {
		refuses(t, r, tt.code, []string{tt.says}, append([]string{"explain"}, tt.args...)...)
	}
	text := did(t, r, "explain", "--user", "annabel", event)
	contains(t, text, "of         user annabel (project app)\n", "nothing is known of anybody", "sync demo: sent\n", `person     user_id = "annabel" -> id "annabel"`, "a stand-in")

	up(t, r)
	refuses(t, r, exitData, []string{"record 1 is not in the log"}, "explain", "--seq", "1")
	refuses(t, r, exitData, []string{"no dead letter has the sequence 1"}, "explain", "--seq", "1", "--dead")

	// Other rules in the file than in force: by the file, and that is said.
	edit(t, r, `event  = ["Heartbeat"]`, `event  = ["Visit"]`)
	contains(t, did(t, r, "explain", "--user", "annabel", event), "has other rules for sync demo in force", "filtered (dropped_by_rule)", `1. drop "Visit": decides`)
	did(t, r, "reload")
	if text := did(t, r, "explain", "--user", "annabel", event); strings.Contains(text, "in force") {
		t.Error(text)
	}
	down(t, r)
}

// A dead letter is explained as it would be tried again; what was delivered is not sent
// once more. What is known of a user counts for what comes.
func TestExplainOfADeadLetter(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, `retry_max = "2s"`, "retry_max = \"2s\"\nlate_policy = \"dead_letter\"")
	up(t, r)
	accepted(t, r, `{"api_key":"0123456789abcdef0123456789abcdef","events":[{"event_type":"Visit","user_id":"annabel","device_id":"device-1","insert_id":"old","time":1500000000000,"user_properties":{"plan":"free"}}]}`)
	drained(t, r)
	accepted(t, r, `{"api_key":"0123456789abcdef0123456789abcdef","events":[{"event_type":"$identify","device_id":"device-1","user_properties":{"plan":"pro"}}]}`)
	drained(t, r)
	look := func() {
		t.Helper()
		for _, seq := range [][]string{{"--seq", "1", "--dead"}, {"--seq", "demo/1"}} {
			e := explained(t, did(t, r, append([]string{"explain", "--json"}, seq...)...))
			if len(e) != 1 || e[0].From != "dead_letter" || len(e[0].Syncs) != 1 || len(e[0].Syncs[0].Operations) != 1 || e[0].Syncs[0].Operations[0].Action != "event" {
				t.Errorf("%s: %+v", seq, e)
			}
		}
		path := filepath.Join(r.Dir, "e.json")
		write(t, path, `{"event_type":"Visit","device_id":"device-1"}`)
		contains(t, did(t, r, "explain", path), "of         user annabel, device device-1", `before     {"plan":"pro"}`, "identify not sent: nothing has changed since")
		contains(t, did(t, r, "explain", "--seq", "1"), "stored as  record 1\n", "before     (not kept)", `after      {"plan":"free"}`, "late")
	}
	look()
	down(t, r)
	look()
}
