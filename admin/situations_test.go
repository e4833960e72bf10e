package admin

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// well is an installation of one sync that has nothing to complain of.
func well() Snapshot {
	return Snapshot{
		Schema: Schema, Source: "daemon", At: noon, Version: "v1.2.3", Uptime: ptr(int64(6*86400 + 4*3600)),
		Syncs: []Sync{{
			Name: "production", Project: "app", Status: StatusOK, Since: ago(6 * 24 * time.Hour), Gate: "open", Workspace: 201,
			RateIn: ptr(22.14), RateOut: ptr(22.0), WhenFull: "refuse",
			Totals: Totals{Received: 1_904_331, Delivered: 1_903_400, FirstAttempt: 1_903_062, AfterRetry: 338, Filtered: 931,
				EventsDelivered: 1_885_000, UsersDelivered: 40_000},
			Filtered:      []Reason{{Kind: "event", Reason: "not_selected", Count: 931, Newest: ago(3 * time.Second), Example: "Page Viewed"}},
			Books:         Books{Taken: 1_904_331, Balanced: true},
			Audit:         Audit{Balanced: true},
			Kept:          DeadLetters{KeepFor: 90 * 86400, MaxBytes: 2 << 30},
			LastDelivered: ago(0), LastAnswer: "ok",
		}},
		Door: Door{URL: "http://127.0.0.1:8080/2/httpapi", Requests: 20_000, Events: 1_904_341, Duplicates: 10},
		Disk: Disk{Dir: "/var/lib/ampcio", Used: 412 << 20, Max: 20 << 30, Free: 70 << 30, MinFree: 1 << 30, LogFiles: 3, LogBytes: 400 << 20},
	}
}

func ago(d time.Duration) *time.Time { return ptr(noon.Add(-d)) }

// waiting lets n records wait, as state says, and not a one be delivered of them.
func (y *Sync) waiting(n uint64, oldest time.Duration) {
	y.Books.Pending += n
	y.Books.Taken += n
	y.OldestAge = ptr(int64(oldest / time.Second))
	y.PendingBytes += int64(n) * 900
	y.RateOut = ptr(0.0)
	y.LastDelivered = ago(oldest)
}

// outage is an outage with all that can be told of one.
func outage() Snapshot {
	s := well()
	y := &s.Syncs[0]
	y.waiting(18_204, 41*time.Minute+12*time.Second)
	y.Status, y.Reason, y.Gate = StatusUnreachable, "http_503", "closed"
	y.Detail = "https://track-eu.customer.io does not take data (http_503)"
	y.Advice = "nothing needs to be done, it is tried again; see status.customer.io, and the network of this machine if it lasts"
	y.Since, y.GateSince, y.NextProbe, y.NextAttempt = ago(41*time.Minute), ago(41*time.Minute), ptr(int64(18)), ptr(int64(18))
	y.Depth = Depth{Held: 18_172, Retry: 32, Dead: 7}
	y.Totals.Dead, y.Books.Taken = 7, y.Books.Taken+7
	y.Kept.Count, y.Kept.Bytes, y.Kept.OldestAge = 7, 9_216, ptr(int64(3*86400))
	y.NewestAge, y.Approximate = ptr(int64(1)), true
	for _, b := range []struct{ le, n int64 }{{60, 154}, {300, 902}, {1800, 9_566}, {7200, 7_582}, {43200, 0}, {259200, 0}, {0, 0}} {
		bucket := AgeBucket{LE: &b.le, Count: uint64(b.n)}
		if b.le == 0 {
			bucket.LE = nil
		}
		y.AgeBuckets = append(y.AgeBuckets, bucket)
	}
	y.Late = Late{Limit: ptr(int64(259200)), OldestLeft: ptr(int64(259200 - 2472))}
	y.Latency = &Latency{P50: 0.084, P95: 1.21, P99: 12.4}
	y.Waiting = []Waiting{
		{Reason: "http_503", Users: 30, Records: ptr(uint64(30)), NextAttempt: ptr(int64(18)), OldestAge: ptr(int64(2472)), LastAnswer: "503 Service Unavailable",
			Example: &Example{Event: "Order \"Paid\"", User: "3f2a99c01b", AgeS: 2472}},
		{Reason: "timeout", Users: 2, Records: ptr(uint64(2)), NextAttempt: ptr(int64(40)), OldestAge: ptr(int64(2401)), LastAnswer: "no answer in time"},
	}
	y.Groups = &Groups{By: "event", Approximate: true, LeftOut: 23, LeftOutCount: 1_204, Rows: []Group{
		{Key: "Order Completed", Count: 15_000, OldestAge: ptr(int64(2472)), AgeBuckets: y.AgeBuckets},
		{Key: "An event with a very long name, longer than a column", Count: 2_000, OldestAge: ptr(int64(2000)), AgeBuckets: y.AgeBuckets},
	}}
	y.Acknowledged = &Acknowledged{Reason: "status.customer.io says 14:00", By: "ann", At: *ago(30 * time.Minute), Until: noon.Add(2 * time.Hour)}
	y.Audit = Audit{At: ago(time.Hour), Balanced: true}
	s.Disk.FullETA = ptr(int64(9 * 86400))
	s.Reload = &Reload{At: *ago(50 * time.Minute), Error: "config.toml:3: no such key"}
	return s
}

// What somebody is shown who is woken, or who only wants to know: every situation that
// there is a word for. Each says what to do, by the exact command or key.
func TestSituations(t *testing.T) {
	blocked := func(s *Snapshot, reason, detail, advice string) *Sync {
		y := &s.Syncs[0]
		y.waiting(18_084, 41*time.Minute)
		y.Status, y.Reason, y.Detail, y.Advice = StatusBlocked, reason, detail, advice
		y.Since, y.NextProbe = ago(41*time.Minute), ptr(int64(18))
		y.Depth = Depth{Held: 18_084}
		return y
	}
	wrongKey := func(s *Snapshot) *Sync {
		return blocked(s, "http_401", "Customer.io does not accept the Site ID and API key",
			`check site_id and the Track API key (Settings, API Credentials in Customer.io), and that the account is in region "eu"`)
	}
	bounded := func(s *Snapshot, pending int64, whenFull string) *Sync {
		y := &s.Syncs[0]
		y.waiting(2_290_000, 3*time.Hour)
		y.Depth = Depth{Ready: 2_289_500, InFlight: 500}
		y.RateOut, y.LastDelivered = ptr(20.5), ago(0)
		y.PendingBytes, y.MaxPending, y.WhenFull = pending, 2<<30, whenFull
		return y
	}
	relay := func(s *Snapshot) *Sync {
		y := &s.Syncs[0]
		y.Name, y.Destination, y.Workspace = "relay.app", ToAmplitude, 0
		y.Filtered = []Reason{{Kind: "event", Reason: "not_from_sdk", Count: 931, Newest: ago(3 * time.Second), Example: "Page Viewed"}}
		return y
	}
	tests := []struct {
		name string
		set  func(s *Snapshot)
		todo string // what the line "to do" must name
	}{
		{"well", func(s *Snapshot) {}, ""},
		{"dry-run", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.Status, y.Since, y.Gate, y.LastAnswer, y.LastDelivered = StatusDryRun, nil, "", "", nil
			y.Totals, y.Filtered, y.Books = Totals{}, nil, Books{Balanced: true}
			y.DryRun = &DryRun{Since: ago(26 * time.Hour), File: "/var/lib/ampcio/dry-run/production.jsonl", Requests: 18_000, Bytes: 61 << 20,
				Events: 88_000, UserUpdates: 2_100, LeftOut: 12, Pending: 40, Passed: 7,
				Filtered: []Reason{{Kind: "event", Reason: "not_selected", Count: 931, Newest: ago(3 * time.Second), Example: "Page Viewed"}},
				Refused:  []Reason{{Kind: "event", Reason: "operation_too_large", Count: 1, Newest: ago(time.Hour), Example: "Import Done"}}}
		}, "ampcio dry-run report --sync production"},
		{"unreachable", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(52_330, 40*time.Minute)
			y.Status, y.Reason, y.Gate = StatusUnreachable, "http_503", "closed"
			y.Detail = "https://track-eu.customer.io does not take data (http_503)"
			y.Advice = "nothing needs to be done, it is tried again; see status.customer.io, and the network of this machine if it lasts"
			y.Since, y.GateSince, y.NextProbe = ago(40*time.Minute), ago(40*time.Minute), ptr(int64(160))
			y.Depth = Depth{Held: 52_321, Retry: 9}
			y.Waiting = []Waiting{{Reason: "http_503", Users: 9, Records: ptr(uint64(9)), NextAttempt: ptr(int64(160))}}
			y.LastAnswer = "http_503"
		}, "ampcio sync retry production"},
		{"blocked-401", func(s *Snapshot) { wrongKey(s) }, "systemctl restart ampcio"},
		{"blocked-region", func(s *Snapshot) {
			blocked(s, "wrong_region", `Customer.io says that this account is in region "eu"`,
				`the configuration says region = "us": set region = "eu" if that is where the account is`)
		}, `region = "eu"`},
		{"blocked-workspace", func(s *Snapshot) {
			y := blocked(s, "other_workspace", "events are pending for workspace 201, and the Site ID and key are of workspace 305",
				"these events were accepted for workspace 201; ampcio sync adopt production delivers them to workspace 305, or put the old Site ID and key back")
			y.OtherWorkspace = &OtherWorkspace{From: 201, To: 305}
		}, "ampcio sync adopt production"},
		{"paused", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(1_204, 2*time.Hour)
			y.Status, y.PausedSince, y.Since = StatusPaused, ago(2*time.Hour), ago(2*time.Hour)
			y.Depth = Depth{Held: 1_204}
		}, "ampcio sync resume production"},
		{"paused-and-blocked", func(s *Snapshot) { wrongKey(s).PausedSince = ago(2 * time.Hour) }, "ampcio sync resume production"},
		{"aside", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.Books.Pending, y.Books.Taken = 1_204, y.Books.Taken+1_204
			y.Depth = Depth{Retry: 1_204}
			y.OldestAge, y.PendingBytes = ptr(int64(7*86400+2*3600)), 1_153_434
			y.Aside = Aside{Users: 1, Records: 1_204, Bytes: 1_153_434, OldestAge: y.OldestAge}
			y.Waiting = []Waiting{{Reason: "http_500", Users: 1, Records: ptr(uint64(1_204)), NextAttempt: ptr(int64(212))}}
		}, "ampcio sync retry production"},
		{"orphaned", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(52_330, 40*time.Hour)
			y.Status, y.Since, y.Gate, y.Depth = StatusOrphaned, nil, "", Depth{Held: 52_330, Dead: 3}
			y.Totals.Dead, y.Books.Taken = 3, y.Books.Taken+3
			y.Kept.Count, y.Kept.Bytes = 3, 4_096
		}, "ampcio sync rename production NEW"},
		{"relay-blocked", func(s *Snapshot) {
			relay(s)
			y := blocked(s, "invalid_api_key", "Amplitude does not know the API key of project app",
				`check project.app.amplitude_api_keys (Amplitude: Settings > Projects), and that the project is in region "eu", as relay says`)
			y.Totals.UsersDelivered = 0
		}, "ampcio reload"},
		{"relay-off", func(s *Snapshot) {
			y := relay(s)
			y.waiting(52_330, 40*time.Hour)
			y.Status, y.Since, y.Gate, y.Depth = StatusOrphaned, nil, "", Depth{Held: 52_330}
		}, "ampcio sync remove relay.app"},
		{"relay-bounded", func(s *Snapshot) {
			relay(s)
			bounded(s, 2<<30, "discard_oldest").Discarded = []Reason{{Kind: "event", Reason: "max_pending_bytes", Count: 31, Newest: ago(time.Minute)}}
		}, "project.app.relay_max_pending_bytes"},
		{"disabled", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(12, 40*time.Hour)
			y.Status, y.Since, y.Gate, y.Depth = StatusDisabled, nil, "", Depth{Held: 12}
		}, "sync.production.enabled = true"},
		{"disk-max-bytes", func(s *Snapshot) {
			y := wrongKey(s)
			y.PendingBytes = 19 << 30
			s.Disk.Used, s.Disk.LogFiles, s.Disk.LogBytes = 20<<30, 152, 19<<30
			s.Disk.Full = "20 GiB used of storage.max_bytes 20 GiB"
		}, "storage.max_bytes"},
		{"disk-min-free", func(s *Snapshot) {
			s.Disk.Free, s.Disk.Full = 900<<20, "900 MiB free on the disk of storage.dir, storage.min_free is 1.0 GiB"
		}, "df -h /var/lib/ampcio"},
		{"disk-no-checkpoint", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(5_200, 4*time.Minute)
			y.Depth = Depth{Ready: 5_200}
			y.NoCheckpoint = "write /var/lib/ampcio/sync/production.db: no space left on device"
			s.Disk.Free, s.Disk.Full = 0, "0 B free on the disk of storage.dir, storage.min_free is 1.0 GiB"
		}, "df -h /var/lib/ampcio"},
		{"pending-near", func(s *Snapshot) { bounded(s, 1_803_886_264, "refuse") }, "sync.production.delivery.max_pending_bytes"},
		{"pending-reached", func(s *Snapshot) {
			bounded(s, 2<<30, "refuse")
			s.Disk.Full = "2.0 GiB pending of sync production, its max_pending_bytes is 2.0 GiB"
		}, "ampcio sync pause production"},
		{"pending-refuses-large", func(s *Snapshot) {
			y := bounded(s, 659<<10, "refuse")
			y.MaxPending = 1 << 20
			s.Disk.Full = "659 KiB pending of sync production, its max_pending_bytes is 1.0 MiB"
		}, "sync.production.delivery.max_pending_bytes"},
		{"unreachable-discards", func(s *Snapshot) {
			y := bounded(s, 2<<30, "discard_oldest")
			y.Status, y.Since, y.Reason, y.Gate = StatusUnreachable, ago(3*time.Hour), "http_503", "closed"
			y.Depth = Depth{Held: y.Books.Pending}
			y.Totals.Discarded, y.Books.Taken = 40_000, y.Books.Taken+40_000
			y.Discarded = []Reason{{Kind: "record", Reason: "max_pending_bytes", Count: 40_000, Newest: ago(2 * time.Second)}}
		}, "ampcio sync retry production"},
		{"disabled-paused", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(12, 40*time.Hour)
			y.Status, y.Since, y.Gate, y.Depth, y.PausedSince = StatusDisabled, nil, "", Depth{Held: 12}, ago(2*time.Hour)
		}, "ampcio sync resume production"},
		{"dead-letters-for-ever", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.Totals.Dead, y.Books.Taken, y.Depth.Dead = 7, y.Books.Taken+7, 7
			y.Kept = DeadLetters{Count: 7, Bytes: 9_216}
			y.Dead = []Reason{{Kind: "event", Reason: "invalid", Count: 7, Newest: ago(49 * time.Hour), Example: "Order"}}
		}, "ampcio dead-letters list --sync production"},
		{"pending-discards", func(s *Snapshot) {
			y := bounded(s, 2<<30, "discard_oldest")
			y.Totals.Discarded, y.Books.Taken = 40_000, y.Books.Taken+40_000
			y.Discarded = []Reason{{Kind: "record", Reason: "max_pending_bytes", Count: 40_000, Newest: ago(2 * time.Second)}}
		}, "sync.production.delivery.max_pending_bytes"},
		{"pending-blocked", func(s *Snapshot) {
			y := wrongKey(s)
			y.PendingBytes, y.MaxPending = 3<<30, 2<<30
		}, "systemctl restart ampcio"},
		{"rewound", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.Books.Rewound, y.Books.Pending, y.LastRewind = 12_000, 11_200, ago(4*time.Minute)
			y.Totals.Delivered += 800
			y.Depth, y.OldestAge, y.PendingBytes = Depth{Ready: 11_100, InFlight: 100}, ptr(int64(86400)), 12<<20
			y.DrainETA = ptr(int64(140))
		}, ""},
		{"dead-letters", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.Totals.Dead, y.Books.Taken, y.Depth.Dead = 7, y.Books.Taken+12, 7
			y.Totals.Discarded = 5
			y.Kept.Count, y.Kept.Bytes = 7, 9_216
			y.Dead = []Reason{{Kind: "event", Reason: "invalid", Count: 12, Newest: ago(49 * time.Hour), Example: "Order \"Paid\""}}
			y.Discarded = []Reason{{Kind: "record", Reason: "dropped", Count: 5, Newest: ago(time.Hour)}}
		}, "ampcio dead-letters list --sync production"},
		{"books-out", func(s *Snapshot) {
			s.Syncs[0].Books.Taken += 3
			s.Syncs[0].Books.Balanced, s.Syncs[0].Books.Difference = false, 3
		}, "ampcio audit"},
		{"stopped", func(s *Snapshot) {
			y := &s.Syncs[0]
			y.waiting(1_204, 20*time.Minute)
			y.Status, y.Since, y.Gate, y.RateIn, y.RateOut = StatusStopped, nil, "", nil, nil
			y.Depth = Depth{Held: 1_204}
			y.Waiting = []Waiting{{Reason: "http_503", Users: 2, NextAttempt: ptr(int64(18))}}
			s.Source, s.Uptime = "files", nil
		}, "systemctl start ampcio"},
		{"stopped-damaged", func(s *Snapshot) {
			s.Syncs[0] = Sync{Name: "production", Project: "app", Status: StatusStopped, LedgerDamaged: true}
			s.Source, s.Uptime = "files", nil
		}, "systemctl start ampcio"},
		{"shared-workspace", func(s *Snapshot) {
			y := s.Syncs[0]
			y.Name = "mobile"
			s.Syncs = append([]Sync{y}, s.Syncs...)
			s.Notes = []string{"syncs mobile and production deliver to the same Customer.io workspace (201): an event that several of them send arrives there once"}
		}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			snap := well()
			test.set(&snap)
			for _, y := range snap.Syncs {
				b, o := y.Books, y.Totals
				if d := int64(b.Taken+b.Rewound) - int64(o.Delivered+o.Filtered+o.Dead+o.Discarded+o.Lost+b.Pending); d != b.Difference {
					t.Errorf("the example's books are out by %d", d)
				}
			}
			snap.Advise()
			snap.Judge(DefaultThresholds())
			text := goldenTable(t, test.name, snap, 80)
			todo := snap.Disk.Advice
			for _, y := range snap.Syncs {
				todo += "\n" + y.Advice
			}
			if !strings.Contains(todo, test.todo) || !strings.Contains(text, "  to do      ") {
				t.Errorf("nothing says %q:\n%s", test.todo, todo)
			}
			if strings.TrimSpace(todo) == "" && !strings.Contains(text, "  to do      nothing") {
				t.Errorf("nothing is to be done, and it does not say so:\n%s", text)
			}
			// A command is to be copied: it stands in one line.
			if strings.Contains(test.todo, "ampcio ") && !strings.Contains(text, test.todo) {
				t.Errorf("%q is torn apart in:\n%s", test.todo, text)
			}
		})
	}
}

// goldenTable compares the table of a snapshot with that of testdata.
func goldenTable(t *testing.T, name string, snap Snapshot, columns int) string {
	t.Helper()
	var got bytes.Buffer
	if err := WriteTable(&got, snap, Look{Columns: columns}); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", name+".txt")
	if columns != 80 {
		golden = filepath.Join("testdata", fmt.Sprintf("%s-%d.txt", name, columns))
	}
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if strings.Contains(got.String(), "\x1b") {
		t.Error("colour without being asked")
	}
	for line := range strings.Lines(got.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > columns && !strings.Contains(line, "http") && !strings.Contains(line, "ampcio ") {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	return got.String()
}

// What sync status prints is what queue-stats says of the sync's state.
func TestStatesAreThoseOfTheTable(t *testing.T) {
	snap := night()
	snap.Advise()
	snap.Judge(DefaultThresholds())
	var table, states bytes.Buffer
	if err := WriteTable(&table, snap, Look{}); err != nil {
		t.Fatal(err)
	}
	if err := WriteStates(&states, snap, Look{}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(states.String()) {
		if !strings.Contains(table.String(), line) {
			t.Errorf("not in the table: %s", line)
		}
	}
	for _, y := range snap.Syncs {
		if !strings.Contains(states.String(), y.Name+" (project app): "+y.Status) {
			t.Errorf("%s is missing in:\n%s", y.Name, &states)
		}
	}
	if strings.Contains(states.String(), "door ") {
		t.Errorf("the door is none of a sync's states:\n%s", &states)
	}
}

// A command, and a key with its value, can be copied from one line, however narrow.
func TestWrap(t *testing.T) {
	for text, want := range map[string][]string{
		"":                         {""},
		"some words that are long": {"some words that", "are long"},
		"mend it, then: ampcio sync retry production; or not": {"mend it, then:", "ampcio sync retry production;", "or not"},
		"it does (df -h /var/lib/ampcio): good":               {"it does", "(df -h /var/lib/ampcio):", "good"},
		`please set region = "eu" there`:                      {"please set", `region = "eu"`, "there"},
		"ampcio":                                              {"ampcio"},
		"averyverylongword that is":                           {"averyverylongword", "that is"},
	} {
		if d := cmp.Diff(want, wrap(text, 16)); d != "" {
			t.Errorf("%q: -want +got\n%s", text, d)
		}
	}
}
