package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/alerts"
	"ampcio/config"
)

func ptr[T any](v T) *T { return &v }

// What of a snapshot somebody is told of, and where it begins and ends.
func TestTroublesOfASnapshot(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	well := func() admin.Sync {
		y := admin.Sync{Name: "production", Project: "app", Destination: admin.ToCustomerIO, Status: admin.StatusOK, Books: admin.Books{Balanced: true}, Audit: admin.Audit{Balanced: true}}
		y.Late.Limit = ptr(int64(72 * 3600))
		return y
	}
	waiting := func(age time.Duration, y admin.Sync) admin.Sync {
		y.OldestAge, y.Books.Pending, y.Late.OldestLeft = ptr(seconds(age)), 18204, ptr(*y.Late.Limit-seconds(age))
		y.LastDelivered = ptr(now.Add(-time.Second))
		return y
	}
	blocked := waiting(2*time.Hour, well())
	blocked.Status, blocked.Reason, blocked.Detail, blocked.Advice = admin.StatusBlocked, "http_401", "Customer.io does not accept the API key", "check the key"
	blocked.Since = ptr(now.Add(-time.Hour))
	unreachable := func(age time.Duration) admin.Sync {
		y := waiting(age, well())
		y.Status, y.Reason, y.Detail, y.Advice = admin.StatusUnreachable, "http_503", "https://track.customer.io does not take data (http_503)", "nothing"
		return y
	}
	paused := func(age time.Duration) admin.Sync {
		y := waiting(age, well())
		y.Status = admin.StatusPaused
		return y
	}
	orphaned := func(age time.Duration) admin.Sync {
		y := waiting(age, well())
		y.Status, y.Late = admin.StatusOrphaned, admin.Late{}
		return y
	}
	known := blocked
	known.Acknowledged = &admin.Acknowledged{By: "anna", Reason: "a new key comes", Until: now.Add(time.Hour)}
	dead := func(ago time.Duration, kept uint64) admin.Sync {
		y := well()
		y.Kept.Count, y.Depth.Dead = kept, kept
		y.Dead = []admin.Reason{{Kind: "event", Reason: "invalid", Count: 7, Newest: ptr(now.Add(-ago)), Example: "Anna's order"}}
		return y
	}
	catchingUp := waiting(80*time.Hour, well())
	catchingUp.DrainETA = ptr(int64(600))
	full := well()
	full.NoCheckpoint = "write production.db: no space left on device"
	out := well()
	out.Books.Balanced, out.Books.Difference = false, -3
	disk := func(share float64) admin.Disk {
		return admin.Disk{Dir: "/var/lib/ampcio", Used: 9 << 30, Max: 10 << 30, Free: 50 << 30, MinFree: 1 << 30, Share: share}
	}
	refusing := disk(1)
	refusing.Full, refusing.Advice = "10 GiB used of storage.max_bytes 10 GiB", "raise it"
	soon, burst := disk(0.6), disk(0.1)
	soon.FullETA, burst.FullETA = ptr(int64(3600)), ptr(int64(2*3600))
	one := func(y admin.Sync) admin.Snapshot { return admin.Snapshot{Syncs: []admin.Sync{y}, Disk: disk(0.1)} }
	tests := []struct {
		name   string
		snap   admin.Snapshot
		firing string // "kind of" before
		limits func(*config.Alerts)
		quiet  time.Duration // since the last request of app
		want   []string      // "level kind of: part of what is told"
	}{
		{name: "all is well", snap: one(well())},
		{name: "blocked, and not that events wait", snap: one(blocked), want: []string{"critical blocked production: Customer.io does not accept the API key (http_401); 18,204 events wait, and nothing is lost"}},
		{name: "blocked, and somebody knows", snap: one(known), want: []string{"warning blocked production: the API key (http_401; known to anna for another 1h: a new key comes); 18,204 events wait"}},
		{name: "gone from the configuration for some minutes", snap: one(orphaned(50 * time.Minute))},
		{name: "gone from the configuration", snap: one(orphaned(2 * time.Hour)), want: []string{"warning age production: [sync.production] is gone from the configuration; the oldest event waits 2h; 18,204 events wait, and nothing is lost"}},
		{name: "gone from the configuration for long", snap: one(orphaned(80 * time.Hour)), want: []string{"critical age production: "}},
		{name: "an outage of minutes", snap: one(unreachable(50 * time.Minute))},
		{name: "an outage of an hour", snap: one(unreachable(61 * time.Minute)), want: []string{"warning age production: does not take data (http_503); the oldest event waits 1h1m; 18,204 events wait"}},
		{name: "an outage of a day", snap: one(unreachable(24 * time.Hour)), want: []string{"critical age production: "}},
		{name: "it is a bit below the limit, and firing", snap: one(unreachable(50 * time.Minute)), firing: "age production", want: []string{"warning age production: the oldest event waits 50m"}},
		{name: "it is well below the limit", snap: one(unreachable(40 * time.Minute)), firing: "age production"},
		{name: "ages are not told", snap: one(unreachable(24 * time.Hour)), limits: func(a *config.Alerts) { a.Age = 0 }},
		{name: "an operator holds it", snap: one(paused(30 * time.Hour))},
		{name: "an operator has forgotten it", snap: one(paused(61 * time.Hour)), want: []string{"critical late production: is late in 11h: from 3d on it starts no campaigns"}},
		{name: "late ones that are all sent in minutes", snap: one(catchingUp)},
		{name: "it is late", snap: one(paused(80 * time.Hour)), want: []string{"critical late production: older than 3d, and start no campaigns in Customer.io any more"}},
		{name: "late is firing and no longer near", snap: one(paused(58 * time.Hour)), firing: "late production", want: []string{"critical late production: "}},
		{name: "a new dead letter", snap: one(dead(time.Minute, 1)), want: []string{"warning dead_letters production: Customer.io refuses events for good, the last one at 07:59 UTC: invalid (7 so far); 1 dead letter kept"}},
		{name: "old dead letters", snap: one(dead(2*time.Hour, 500))},
		{name: "dead letters that were dropped", snap: one(dead(time.Minute, 0))},
		{name: "fewer dead letters than are told", snap: one(dead(time.Minute, 9)), limits: func(a *config.Alerts) { a.DeadLetters = 10 }},
		{name: "no checkpoint", snap: one(full), want: []string{"critical checkpoint production: no space left on device"}},
		{name: "the books", snap: one(out), want: []string{"critical books production: out by -3"}},
		{name: "a disk that fills", snap: admin.Snapshot{Disk: disk(0.9)}, want: []string{"warning disk : 90 % of the space for events is used; 9.0 GiB of storage.max_bytes 10 GiB are used, and 50 GiB are free on the disk"}},
		{name: "a bit less", snap: admin.Snapshot{Disk: disk(0.87)}},
		{name: "a bit less, and firing", snap: admin.Snapshot{Disk: disk(0.87)}, firing: "disk ", want: []string{"warning disk : "}},
		{name: "a disk that will be full in an hour", snap: admin.Snapshot{Disk: soon}, want: []string{"warning disk : new events are refused in 1h"}},
		{name: "a burst on a disk with much room", snap: admin.Snapshot{Disk: burst}},
		{name: "a disk that is full", snap: admin.Snapshot{Disk: refusing}, want: []string{"critical disk : new events are refused: 10 GiB used of storage.max_bytes 10 GiB; SDKs keep them for a while, and try again"}},
		{name: "no traffic", snap: admin.Snapshot{Disk: disk(0.1)}, quiet: 26 * time.Hour, want: []string{"warning no_traffic app: no request with a key of project app for 26h"}},
		{name: "some traffic", snap: admin.Snapshot{Disk: disk(0.1)}, quiet: 23 * time.Hour},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := config.Default()
			if test.limits != nil {
				test.limits(&cfg.Alerts)
			}
			test.snap.At, test.snap.Source = now, "daemon"
			test.snap.Advise()
			desk := alerts.Open(alerts.Options{Path: t.TempDir() + "/none", Now: func() time.Time { return now }})
			desk.Mark("project app", now.Add(-test.quiet))
			j := judge{limits: cfg.Alerts, now: now, firing: func(kind, of string) bool { return kind+" "+of == test.firing }}
			j.lastSeen(desk, "app", "", now.Add(-time.Hour))
			s := j.sight(&test.snap)
			var got []string
			for _, w := range s.Troubles {
				got = append(got, fmt.Sprintf("%s %s %s: %s", w.Level, w.Kind, w.Of, w.What))
				if w.Do == "" {
					t.Errorf("%s: nothing is said to do", w.Kind)
				}
				if strings.Contains(w.What+w.Do+w.Cause, "Anna") {
					t.Errorf("something personal: %+v", w)
				}
			}
			if len(got) != len(test.want) {
				t.Fatalf("told: %q, want %q", got, test.want)
			}
			for i, want := range test.want {
				head, part, _ := strings.Cut(want, ": ")
				if !strings.HasPrefix(got[i], head+": ") || !strings.Contains(got[i], part) {
					t.Errorf("told: %q, want %q", got[i], want)
				}
			}
		})
	}
}

// Who sees nothing tells that it is stuck, and forgets nothing.
// What is blocked and then held, or renamed by a slip, delivers no more than before: no
// end of it is told until its events have gone.
func TestNoFalseEndOfABlock(t *testing.T) {
	for status, unclear := range map[string]bool{admin.StatusChecking: true, admin.StatusPaused: true, admin.StatusOrphaned: true, admin.StatusOK: false} {
		for pending, want := range map[uint64]bool{18204: unclear, 0: status == admin.StatusChecking} {
			y := admin.Sync{Name: "production", Status: status, Books: admin.Books{Pending: pending, Balanced: true}}
			j := judge{limits: config.Default().Alerts, now: time.Now(), firing: func(string, string) bool { return true }}
			s := j.sight(&admin.Snapshot{Source: "daemon", Syncs: []admin.Sync{y}})
			if s.Unclear("blocked", "production") != want || s.Unclear("age", "production") {
				t.Errorf("%s with %d pending: unclear %v, want %v", status, pending, !want, want)
			}
		}
	}
}

func TestBlindSight(t *testing.T) {
	j := judge{now: time.Now(), firing: func(string, string) bool { return true }, stuck: []string{"log"}}
	s := j.blind()
	if len(s.Troubles) != 1 || s.Troubles[0].Kind != troubleStuck || !s.Unclear("blocked", "production") || s.Unclear(troubleStuck, "") {
		t.Errorf("%+v", s)
	}
}

// A clock that was set back by days silences nobody: what the door last saw is then in the time to come.
func TestNoTrafficAfterTheClockWasSetBack(t *testing.T) {
	right := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	limits := config.Default().Alerts
	desk := alerts.Open(alerts.Options{Path: t.TempDir() + "/none"})
	look := func(now time.Time, seen string) bool {
		j := judge{limits: limits, now: now, firing: func(string, string) bool { return false }}
		j.lastSeen(desk, "app", seen, right.AddDate(0, 0, -300))
		desk.Look(alerts.Sight{At: now})
		return len(j.quiet) > 0
	}
	ahead := right.AddDate(0, 0, 30)
	seen := ahead.Format(time.RFC3339)
	if look(ahead, seen) || look(right, seen) || look(right.Add(time.Hour), seen) {
		t.Error("it is quiet though there was a request")
	}
	if limit := time.Duration(limits.NoTraffic); !look(right.Add(limit+time.Hour), seen) {
		t.Errorf("no request for %v since the clock was set back, and that is no trouble", limit+time.Hour)
	}
	if back := right.AddDate(0, 0, 2); look(back, back.Format(time.RFC3339)) {
		t.Error("it is quiet though there was a request after that")
	}
}

// After a start senders have some minutes to come back, and a project that is new has its
// time; a restart does not begin the time anew.
func TestNoTrafficOverRestarts(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	limits := config.Default().Alerts
	quiet := func(desk *alerts.Desk, up time.Duration, firing bool) bool {
		j := judge{limits: limits, now: now, firing: func(string, string) bool { return firing }}
		j.lastSeen(desk, "app", "", now.Add(-up))
		return len(j.quiet) > 0
	}
	desk := alerts.Open(alerts.Options{Path: t.TempDir() + "/none"})
	if quiet(desk, 48*time.Hour, false) {
		t.Error("a project that is new")
	}
	now = now.Add(25 * time.Hour)
	if !quiet(desk, time.Hour, false) || quiet(desk, time.Minute, false) || !quiet(desk, time.Minute, true) {
		t.Error("over a restart")
	}
}
