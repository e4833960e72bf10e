package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// What two standards make of one record, and whether that is a loss.
func TestVerdictsOfTwoGenerations(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	everything := mapping.Spec{Identifier: "user_id", SendEvents: true, SendUsers: true, Select: []mapping.SelectSpec{{Event: []string{"*"}}}}
	with := func(change func(*mapping.Spec)) mapping.Spec {
		s := everything
		change(&s)
		return s
	}
	noEvents := with(func(s *mapping.Spec) { s.SendEvents, s.Select = false, nil })
	noUsers := with(func(s *mapping.Spec) { s.SendUsers = false })
	nothing := with(func(s *mapping.Spec) { s.SendEvents, s.Select, s.SendUsers = false, nil, false })
	other := with(func(s *mapping.Spec) { s.Select = []mapping.SelectSpec{{Event: []string{"Other"}}} })
	byEmail := with(func(s *mapping.Spec) { s.Identifier = "user.email" })
	const event, update = "Order Completed", "$identify"
	tests := []struct {
		name          string
		before, after mapping.Spec
		policy        string // of after, for events older than an hour
		age           time.Duration
		event         string
		want          string // event and user, before → after
		loss          bool
	}{
		{name: "the same", before: everything, after: everything, event: event, want: "sent sent → sent sent"},
		{name: "an event that is no longer selected", before: everything, after: other, event: event, want: "sent sent → not_selected sent", loss: true},
		{name: "an event that was not selected before", before: other, after: everything, event: event, want: "not_selected sent → sent sent"},
		{name: "events are off", before: everything, after: noEvents, event: event, want: "sent sent → events_off sent", loss: true},
		{name: "users are off, the event is sent", before: everything, after: noUsers, event: event, want: "sent sent → sent users_off"},
		{name: "users are off, it was all there was", before: everything, after: noUsers, event: update, want: "identify sent → identify users_off", loss: true},
		{name: "a property update stays one", before: everything, after: other, event: update, want: "identify sent → identify sent"},
		{name: "nobody has the identifier", before: everything, after: byEmail, event: event, want: "sent sent → no_identifier no_identifier", loss: true},
		{name: "nothing was sent anyhow", before: nothing, after: byEmail, event: event, want: "events_off users_off → no_identifier no_identifier"},
		{name: "late, and filtered", before: everything, after: everything, policy: "filter", age: 61 * time.Minute, event: event, want: "sent sent → late sent", loss: true},
		{name: "not yet late", before: everything, after: everything, policy: "filter", age: 60 * time.Minute, event: event, want: "sent sent → sent sent"},
		{name: "late, and kept as a dead letter", before: everything, after: noUsers, policy: "dead_letter", age: 61 * time.Minute, event: event, want: "sent sent → late: dead letter users_off"},
		{name: "late, and delivered", before: everything, after: everything, policy: "deliver", age: 61 * time.Minute, event: event, want: "sent sent → sent sent"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			record := mapping.Record{UserID: "ann-1", Time: now.Add(-test.age).UnixMilli(), Properties: []byte(`{"plan":"pro"}`),
				Raw: fmt.Appendf(nil, `{"event_type":%q,"user_id":"ann-1"}`, test.event)}
			q := &queue.Record{Seq: 1, Body: record.AppendBody(nil)}
			var judgements [2]judged
			for i, spec := range []mapping.Spec{test.before, test.after} {
				rules, err := mapping.Compile(spec)
				if err != nil {
					t.Fatal(err)
				}
				s := standard{rules: rules, lateAfter: time.Hour}
				if i == 1 {
					s.latePolicy = test.policy
				}
				judgements[i] = s.judge(q, now)
			}
			was, will := judgements[0], judgements[1]
			if got := was.event + " " + was.user + " → " + will.event + " " + will.user; got != test.want || will.name != test.event {
				t.Errorf("%s of %s, want %s", got, will.name, test.want)
			}
			if got := newlyFiltered(was, will); got != test.loss {
				t.Errorf("a loss: %t", got)
			}
		})
	}
	rules, err := mapping.Compile(everything)
	if err != nil {
		t.Fatal(err)
	}
	s := standard{rules: rules}
	if j := s.judge(&queue.Record{Body: []byte("damaged")}, now); j.event != verdictUnreadable || newlyFiltered(j, j) {
		t.Errorf("a damaged record: %+v", j)
	}
}

func TestHowManyAreTooMany(t *testing.T) {
	for _, test := range []struct {
		sent, lost int
		want       bool
	}{{0, 0, false}, {9, 9, false}, {10, 10, true}, {19, 10, true}, {20, 10, false}, {20_000, 10_001, true}, {20_000, 10_000, false}} {
		p := pendingVerdicts{ToBeSent: test.sent, NewlyFiltered: test.lost}
		if p.tooMany() != test.want {
			t.Errorf("%d of %d: %t", test.lost, test.sent, !test.want)
		}
	}
}

// Of a long queue a part is looked at, all over: neither its beginning alone, nor only
// what comes at some regular distance.
func TestVerdictsOfALongQueue(t *testing.T) {
	t.Parallel()
	const events = 45_000
	r := rehearse(t, rehearsal.Settings{})
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
	up(t, r)
	n := 0
	abc := func() string { n++; return string("abc"[n%3]) }
	for first := 1; first <= events; first += 1500 {
		accepted(t, r, padded("ann-1", first, first+1499, abc))
	}
	// What stays: of the first two thirds every third event.
	edit(t, r, `event = ["*"]`, `event = ["*"]
where = [{ path = "event.seq", op = "<=", value = 30000 }, { path = "event.padding", op = "is", value = "a" }]`)
	// A look ends after some seconds, with less, where others keep the machine busy: that is no sample of all.
	var dry ran
	eventually(t, time.Minute, "a look that has had its time", func() bool {
		if dry = run(t, "reload", "--config", r.ConfigPath, "--dry-run"); dry.code != 0 {
			t.Fatalf("exit %d %s", dry.code, dry.stderr)
		}
		return strings.Contains(dry.stdout, "sync demo has 45,000 pending (15,000 of them looked at): ")
	})
	m := regexp.MustCompile(`: ([\d,]+) of 15,000 that are to be sent would be filtered`).FindStringSubmatch(dry.stdout)
	if m == nil {
		t.Fatalf("it says:\n%s", dry.stdout)
	}
	lost, _ := strconv.Atoi(strings.ReplaceAll(m[1], ",", ""))
	if want := 15_000 * 7 / 9; lost < want-300 || lost > want+300 { // 5 σ of such a sample are less
		t.Errorf("%d of 15,000 would be filtered, want about %d", lost, want)
	}
	down(t, r)
}
