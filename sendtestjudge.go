package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
)

// What send-test says of a sync: how it would judge the event, by which rule, and whether
// it delivers.

// expect says what a sync would do with the record.
func (d *daemon) expect(name string, r *mapping.Record) (testSync, error) {
	y, rules := d.config().Sync[name], d.rulesOf(name)
	t := testSync{Sync: name, Endpoint: cmp.Or(y.Endpoint, delivery.BaseURL(y.Region)), Why: []string{}}
	var err error
	if t.State, err = d.testState(name); err != nil {
		return t, err
	}
	id, reason := rules.Identifier(r)
	var decision mapping.Decision
	if reason == "" {
		t.Identifier = id.Key()
		decision, err = rules.Map(r, id, nil)
	} else {
		decision = rules.NoIdentifier(r, reason)
		err = decision.Damaged
	}
	if err != nil {
		return t, exit(exitIO, err)
	}
	if reason != "" && decision.EventReason != "" {
		t.Why = append(t.Why, fmt.Sprintf("%s: the user has no identifier in %s, which is %s: give one with --user-properties, or --user (%s)",
			reason, "sync."+name+".identifier", y.Identifier, strings.TrimSuffix(d.config().Locate("sync."+name+".identifier"), ": ")))
	}
	t.Event, t.User = cmp.Or(decision.EventReason, verdictSent), cmp.Or(decision.UserReason, verdictSent)
	d.explainRule(&t, y, r, id)
	return t, nil
}

// explainRule names the rule that decides about the event, and says why it is not sent.
func (d *daemon) explainRule(t *testSync, y config.Sync, r *mapping.Record, id mapping.Identifier) {
	path := "sync." + y.Name
	at := func(i int) string {
		p := fmt.Sprintf("%s.select[%d]", path, i)
		return strings.TrimSuffix(d.config().Locate(p), " ") + " " + p
	}
	if t.Event == "events_off" {
		t.Why = append(t.Why, fmt.Sprintf("%s.events.send = false: this sync sends user updates only", path))
		return
	}
	// One rule at a time, as if it were the only one and said send.
	matches := func(rule config.Select) bool {
		alone := y
		rule.Action = "send"
		alone.Select = []config.Select{rule}
		rules, err := mapping.Compile(ruleSpec(alone))
		if err != nil {
			return false
		}
		decision, err := rules.Map(r, id, nil)
		return err == nil && decision.EventReason == ""
	}
	for i, rule := range y.Select {
		if !matches(rule) {
			continue
		}
		if t.Rule = at(i); rule.Action == "drop" {
			t.Why = append(t.Why, fmt.Sprintf("%s matches, and says action = \"drop\": change it, or put a rule that sends the event before it", t.Rule))
		}
		return
	}
	named := false
	for i, rule := range y.Select {
		unconditional := rule
		unconditional.Where = nil
		if rule.Action == "drop" || !matches(unconditional) {
			continue
		}
		named = true
		for _, w := range rule.Where {
			one := unconditional
			one.Where = []config.Where{w}
			if !matches(one) {
				t.Why = append(t.Why, fmt.Sprintf("%s names the event, and its where does not hold: %s %s %v. Give the event that, with --properties or --user-properties, or change the rule",
					at(i), w.Path, w.Op, valueWords(w.Value)))
			}
		}
	}
	if !named {
		t.Why = append(t.Why, fmt.Sprintf("no select rule of %s names the event: add [[%s.select]] with event = [%q], or choose another with --event", y.Name, path, clipText(recordEvent(r), 80)))
	}
}

func valueWords(v any) string {
	if v == nil {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func recordEvent(r *mapping.Record) string {
	e, _ := mapping.ParseEvent(r.Raw) // it has been parsed before
	return e.Type
}

// testState is how a sync is, and what to do about it.
func (d *daemon) testState(name string) (testState, error) {
	c := d.consumer(name)
	if c == nil {
		return testState{Status: admin.StatusStopped, Detail: "it has just been closed or renamed"}, nil
	}
	stats, err := c.Stats()
	if err != nil {
		return testState{}, exit(exitIO, err)
	}
	cfg, now := d.config(), time.Now()
	snap := newSnapshot(cfg, "daemon", now)
	y := syncOf(stats, cfg, now)
	y.Status = idle(cfg, name)
	if running := d.delivery(name); running != nil {
		applyStatus(&y, running.Status(), now)
	}
	y.Kept.Count = 0 // what was refused before is another matter
	snap.Syncs = []admin.Sync{y}
	snap.Disk = disk(cfg, d.records.Stats())
	snap.Advise()
	y = snap.Syncs[0]
	s := testState{Status: y.Status, Reason: y.Reason, Detail: y.Detail, Advice: y.Advice}
	set := cfg.Sync[name]
	if set.DryRun && !s.hopeless() {
		return testState{Status: dryRunStatus, Detail: "dry_run = true: it does everything but send",
			Advice: fmt.Sprintf("to send: set sync.%s.dry_run = false, then: ampcio reload", name)}, nil
	}
	if s.Status == admin.StatusBlocked && (s.Reason == "http_401" || s.Reason == "http_403") {
		s.Hints = keyHints(set)
	}
	return s, nil
}

// keyHints are what people take for a Track API key.
func keyHints(y config.Sync) []string {
	key := y.APIKey.Reveal()
	var hints []string
	if key == y.SiteID {
		hints = append(hints, "site_id and the API key are the same: one of them is missing")
	} else if n := len(key); n != trackKeyDigits {
		hints = append(hints, fmt.Sprintf("the API key (from %s) has %d characters; the Track API keys that we know have %d", y.APIKeyFrom, n, trackKeyDigits))
	}
	other := "eu"
	if y.Region == "eu" {
		other = "us"
	}
	return append(hints,
		"right: the pair of Site ID and API key under Account Settings > API Credentials > Track API Keys, both of one line there",
		"alike, and wrong: an App API key (same page, another tab; it is sent as a bearer token)",
		"alike, and wrong: the API key (write key) of a source under Data & Integrations, which is the Pipelines (CDP) API's",
		"alike, and wrong: the signing key of a reporting webhook, or Amplitude's own API or secret key",
		"Site ID and API key swapped, or of two different workspaces",
		fmt.Sprintf("the account may be in region %q: Customer.io shows it under Account Settings; a right key is refused in the wrong region. Now it says region = %q", other, y.Region),
	)
}

// trackKeyDigits is how long a Track API key is, by observation.
const trackKeyDigits = 20
