package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// tested runs send-test and gives its report.
func tested(t testing.TB, r *rehearsal.Rehearsal, code int, args ...string) (testReport, string) {
	t.Helper()
	got := verbOf(t, r, append([]string{"send-test", "--yes", "--json"}, args...)...)
	var report testReport
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("send-test %q: exit %d, %v in:\n%s%s", args, got.code, err, got.stdout, got.stderr)
	}
	if got.code != code || report.OK != (code == 0) {
		t.Errorf("send-test %q: exit %d, ok %t, want %d: %s", args, got.code, report.OK, code, got.stderr)
	}
	if strings.Contains(got.stdout+got.stderr, rehearsal.APIKey) {
		t.Error("the secret key is shown")
	}
	return report, got.stderr
}

// One event through the real listener until Customer.io has answered; nothing is sent
// before somebody says yes.
func TestSendTest(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	refuses(t, r, exitUnavailable, []string{"ampcio does not run", r.Socket, "systemctl start ampcio"}, "send-test", "--yes")
	up(t, r)

	contains(t, did(t, r, "send-test", "--dry-run"), "delivering, to "+r.SandboxURL, "the event is sent by "+r.ConfigPath, "would be sent:", `"user_id":"ampcio-send-test"`)
	got := verbOf(t, r, "send-test")
	contains(t, got.stdout, `event        "ampcio send-test" of user ampcio-send-test`, "campaigns that")
	contains(t, got.stderr, "nothing was changed, since there is no terminal to ask at")
	if snap := stats(t, r); got.code != exitUsage || snap.Door.Requests != 0 {
		t.Errorf("exit %d; %d requests came, and nobody has said yes", got.code, snap.Door.Requests)
	}

	report, _ := tested(t, r, 0, "--user-properties", `{"plan":"pro"}`)
	p, known := r.Sandbox.Person("id", "ampcio-send-test")
	if !known || len(p.Events) != 1 || p.Events[0].Name != "ampcio send-test" || p.Events[0].ID != report.Plan.EventID {
		t.Errorf("Customer.io has %+v, want the event %s", p.Events, report.Plan.EventID)
	}
	var steps []string
	for _, s := range report.Steps {
		steps = append(steps, s.What)
	}
	y := report.Syncs[0]
	if strings.Join(steps, " ") != "read claimed ended" || y.Event != "delivered" || y.User != "delivered" || report.Accepted.Status != 200 || report.Accepted.Protocol != "HTTP/1.1" {
		t.Errorf("%v %+v %+v", steps, y, report.Accepted)
	}
	contains(t, did(t, r, "send-test", "--yes", "--user", "x1", "--user-properties", `{"plan":"pro"}`), "200 by HTTP/1.1: it is on disk", "in its queue, sequence 2",
		"delivered: event accepted by Customer.io, user update accepted", "ok: ")
	if p, known := r.Sandbox.Person("id", "x1"); !known || len(p.Events) != 1 { // shorter than Amplitude lets a user id be
		t.Errorf("%+v", p)
	}
	if report, _ := tested(t, r, 0, "--event", "Signed Up", "--properties", `{"total":2.50}`); report.Syncs[0].User != "filtered/unchanged" {
		t.Errorf("%+v", report.Syncs)
	}
	if p, _ := r.Sandbox.Person("id", "ampcio-send-test"); string(p.Events[1].Attributes) != `{"total":2.50}` || p.Events[1].Name != "Signed Up" {
		t.Errorf("%s %s", p.Events[1].Name, p.Events[1].Attributes)
	}

	for _, wrong := range []struct {
		says string
		args []string
	}{
		{"--properties must be a JSON object", []string{"--properties", "total=2"}},
		{"--properties must be a JSON object", []string{"--properties", "[1]"}},
		{"--user-properties must be a JSON object", []string{"--user-properties", `"x"`}},
		{`no sync "dem": did you mean "demo"?`, []string{"--sync", "dem"}},
		{`there is no project "ap"`, []string{"--project", "ap"}},
		{"an event needs a user", []string{"--user", ""}},
		{"--timeout: it takes some time", []string{"--timeout", "0s"}},
		{"takes no arguments", []string{"now"}},
	} {
		refuses(t, r, exitUsage, []string{wrong.says}, append([]string{"send-test", "--yes"}, wrong.args...)...)
	}
	balanced(t, drained(t, r))
}

// Wherever it stops, send-test says where and what to do.
func TestSendTestThatDoesNotGetThrough(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	at := func(path string, line int) string {
		return fmt.Sprintf("%s:%d: sync.demo.%s", r.ConfigPath, line, path)
	}
	lineOf := func(part string) int {
		t.Helper()
		b, err := os.ReadFile(r.ConfigPath)
		if err != nil {
			t.Fatal(err)
		}
		before, _, found := strings.Cut(string(b), part)
		if !found {
			t.Fatalf("no %q", part)
		}
		return 1 + strings.Count(before, "\n")
	}
	drop := at("select[0]", lineOf("[[sync.demo.select]]"))
	report, said := tested(t, r, exitData, "--event", rehearsal.Drop)
	contains(t, said, "demo has not delivered the event: not sent (dropped_by_rule)", drop+` matches, and says action = "drop"`)
	if report.Syncs[0].Event != "filtered/dropped_by_rule" || report.Plan.Syncs[0].Event != "dropped_by_rule" {
		t.Errorf("%+v", report)
	}

	did(t, r, "sync", "pause", "demo")
	report, said = tested(t, r, exitUnavailable)
	contains(t, said, "demo is paused: the event waits in its queue")
	if report.Accepted.Status != 200 || report.Plan.Syncs[0].State.Advice != "ampcio sync resume demo" {
		t.Errorf("%+v", report.Plan.Syncs)
	}
	did(t, r, "sync", "resume", "demo")
	balanced(t, drained(t, r))

	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	report, said = tested(t, r, exitUnavailable, "--timeout", "300ms")
	contains(t, said, "it waits in", "queue")
	if s := report.Steps[len(report.Steps)-1]; s.What != "waits" || s.Reason != "http_503" {
		t.Errorf("%+v", report.Steps)
	}
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Refused"}})
	did(t, r, "sync", "retry", "demo")
	drained(t, r)
	report, said = tested(t, r, exitData, "--event", "Refused")
	contains(t, said, "demo has not delivered the event: refused (")
	if s := report.Steps[len(report.Steps)-1]; s.Ending != "dead" || !strings.Contains(string(s.Answer), "refused on request") {
		t.Errorf("%+v", s)
	}

	// A rule with a condition that the event does not meet, people known by email, events off.
	edit(t, r, "identifier   = \"user_id\"", "identifier   = \"user.email\"")
	edit(t, r, `event = ["*"]`, "event = [\"Order *\"]\nwhere = [{ path = \"event.total\", op = \">=\", value = 10 }]")
	reloaded(t, r)
	report, said = tested(t, r, exitData)
	contains(t, said, "not sent (not_selected)", "select[1] names the event, and its where does not hold: event.total >= 10")
	if report.Plan.Event != "Order ampcio send-test" || report.Plan.Syncs[0].Identifier != "email:ampcio-send-test@example.com" {
		t.Errorf("%+v", report.Plan)
	}
	_, said = tested(t, r, exitData, "--event", "Unheard Of")
	contains(t, said, `no select rule of demo names the event: add [[sync.demo.select]] with event = ["Unheard Of"]`)
	tested(t, r, 0, "--properties", `{"total":11}`)
	_, said = tested(t, r, exitData, "--properties", `{"total":11}`, "--user-properties", `{"email":null}`, "--user", "nobody-in-particular")
	contains(t, said, "no_identifier: the user has no identifier in sync.demo.identifier, which is user.email",
		fmt.Sprintf("(%s:%d)", r.ConfigPath, lineOf("identifier   = ")))
	edit(t, r, "[sync.demo.events]\n", "[sync.demo.events]\nsend = false\n")
	reloaded(t, r)
	if report, _ := tested(t, r, 0, "--user-properties", `{"plan":"pro"}`); report.Syncs[0].Event != "filtered/events_off" || report.Syncs[0].User != "delivered" {
		t.Errorf("%+v", report.Syncs)
	}
	tested(t, r, 0, "--user-properties", `{"plan":"pro"}`) // nothing is new

	edit(t, r, "[sync.demo]\n", "[sync.demo]\nenabled = false\n")
	reloaded(t, r)
	_, said = tested(t, r, exitUnavailable)
	contains(t, said, "no sync delivers: nothing reached Customer.io")
	_, said = tested(t, r, exitUnavailable, "--sync", "demo")
	contains(t, said, "demo is disabled: it never sends this event")
	contains(t, did(t, r, "send-test", "--dry-run"), "As things are, the event does not reach Customer.io.")

	edit(t, r, "min_free = \"16MiB\"", "min_free = \"1000000TiB\"")
	reloaded(t, r)
	got := verbOf(t, r, "send-test", "--yes")
	contains(t, got.stdout, "FULL, the event will be refused")
	contains(t, got.stderr, "the event was refused: 503", "storage.min_free")
	if got.code != exitUnavailable {
		t.Errorf("exit %d", got.code)
	}
}

// A key that Customer.io does not know: what it may be instead. And a daemon that dies
// in the middle.
func TestSendTestWithAWrongKey(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	const appKey = "0123456789abcdef0123456789abcdef"
	write(t, filepath.Join(r.Dir, "customerio_api_key"), appKey+"\n")
	up(t, r)
	eventually(t, 20*time.Second, "the sync is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
	got := verbOf(t, r, "send-test", "--yes")
	contains(t, got.stdout, "blocked, to ", "(http_401)", "has 32 characters; the Track API keys that we know have 20", "App API key", "Pipelines", "signing key",
		"swapped", `region "us"`)
	contains(t, got.stderr, "demo is blocked: the event waits in its queue")
	if got.code != exitUnavailable || strings.Contains(got.stdout+got.stderr, appKey) {
		t.Errorf("exit %d\n%s", got.code, got.stdout)
	}
	down(t, r)

	write(t, filepath.Join(r.Dir, "customerio_api_key"), rehearsal.APIKey+"\n")
	r.Sandbox.SetFaults(sandbox.Faults{Hang: 1, HangFor: 20 * time.Second, On: "data"})
	up(t, r)
	killed := make(chan error, 1)
	go func() {
		ctx := within(t, 20*time.Second)
		for {
			snap, err := r.Stats(ctx)
			if err != nil || snap.Pending() == 2 {
				killed <- errors.Join(err, r.Kill())
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	got = verbOf(t, r, "send-test", "--yes", "--event", "In Flight")
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	contains(t, got.stderr, "the daemon has gone in the middle of its answer")
	if got.code != exitUnavailable {
		t.Errorf("exit %d", got.code)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	up(t, r)
	balanced(t, drained(t, r))
	if p, _ := r.Sandbox.Person("id", "ampcio-send-test"); len(p.Events) != 2 {
		t.Errorf("Customer.io has %+v, and two events were accepted", p.Events)
	}
}

// Two syncs: all that are enabled have to deliver, or the one that is named.
func TestSendTestOfTwoSyncs(t *testing.T) {
	t.Parallel()
	const bound = "max_pending_bytes = \"1GiB\"\n"
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "retry_max = \"2s\"\n", "retry_max = \"2s\"\n"+bound+`
[sync.second]
region       = "eu"
site_id      = "another"
api_key_file = "customerio_api_key"
endpoint     = "`+r.SandboxURL+`"
delivery.max_pending_bytes = "1GiB"
[[sync.second.select]]
event = ["Order *"]
`)
	up(t, r)
	report, said := tested(t, r, exitUnavailable, "--event", "Order Placed") // the other's site id is wrong
	contains(t, said, "second is blocked")
	if len(report.Syncs) != 2 || !report.Syncs[0].Delivered || report.Syncs[1].Delivered {
		t.Errorf("%+v", report.Syncs)
	}
	tested(t, r, 0, "--sync", "demo")
	edit(t, r, "site_id      = \"another\"", "enabled = false\nsite_id = \"another\"")
	reloaded(t, r)
	if report, _ := tested(t, r, 0); report.Syncs[1].Counts {
		t.Errorf("%+v", report.Syncs)
	}
}

// A project that takes Amplitude's webhook alone has no key that a test event could carry.
func TestSendTestOfAWebhookOnly(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	write(t, filepath.Join(r.Dir, "webhook"), "a-secret-of-the-webhook")
	edit(t, r, fmt.Sprintf("amplitude_api_keys = [%q]", recordings.Key), `webhook_secret_file = "webhook"`)
	up(t, r)
	refuses(t, r, exitData, []string{"has no amplitude_api_keys", "ampcio trace --user"}, "send-test", "--yes")
}
