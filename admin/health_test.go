package admin

import (
	"strings"
	"testing"
	"time"
)

// What somebody is woken by, what only shows, and what is well.
func TestHealth(t *testing.T) {
	tests := []struct {
		name        string
		set         func(s *Snapshot, y *Sync)
		level, word string
		says        string
	}{
		{"well", func(*Snapshot, *Sync) {}, LevelOK, "well", ""},
		{"some wait for seconds", func(_ *Snapshot, y *Sync) {
			y.waiting(500, 4*time.Second)
			y.Depth.Ready, y.LastDelivered = 500, ago(0)
		}, LevelOK, "well", ""},
		{"behind", func(_ *Snapshot, y *Sync) {
			y.waiting(90_000, 6*time.Minute)
			y.Depth.Ready, y.LastDelivered = 90_000, ago(0)
		}, LevelWarning, "behind", "the oldest event waits 6m (from 5m)"},
		{"far behind", func(_ *Snapshot, y *Sync) {
			y.waiting(90_000, time.Hour)
			y.Depth.Ready, y.LastDelivered = 90_000, ago(0)
		}, LevelCritical, "behind", "the oldest event waits 1h (from 1h)"},
		{"catching up", func(_ *Snapshot, y *Sync) {
			y.waiting(90_000, 70*time.Hour)
			y.Depth.Ready, y.LastDelivered, y.DrainETA = 90_000, ago(0), ptr(int64(300))
			y.Late.Limit, y.Late.OldestLeft = ptr(int64(72*3600)), ptr(int64(2*3600))
		}, LevelWarning, "catching up", "the oldest event waits 2d22h, and all are sent in 5m"},
		{"stuck", func(_ *Snapshot, y *Sync) {
			y.waiting(9, 11*time.Minute)
			y.Depth.Ready = 9
		}, LevelCritical, "stuck", "9 events could be sent, and none was for 11m"},
		{"nothing could be sent until a moment ago", func(_ *Snapshot, y *Sync) {
			y.waiting(9, 11*time.Minute)
			y.Depth.Ready, y.Since = 9, ago(2*time.Second)
		}, LevelWarning, "behind", "the oldest event waits 11m"},
		{"all of a long backlog is filtered", func(_ *Snapshot, y *Sync) {
			y.waiting(9, 11*time.Minute)
			y.Depth.Ready, y.RateOut = 9, ptr(900.0)
		}, LevelWarning, "behind", "the oldest event waits 11m"},
		{"a rewind of a month takes hours", func(_ *Snapshot, y *Sync) {
			y.waiting(9_000_000, 30*24*time.Hour)
			y.Depth.Ready, y.LastDelivered, y.DrainETA, y.LastRewind = 9_000_000, ago(0), ptr(int64(5*3600)), ago(time.Hour)
			y.Late.Limit, y.Late.OldestLeft = ptr(int64(72*3600)), ptr(int64(-27*86400))
		}, LevelWarning, "catching up", "all are sent in 5h"},
		{"what came after a rewind waits for long", func(_ *Snapshot, y *Sync) {
			y.waiting(9_000_000, 2*time.Hour)
			y.Depth.Ready, y.LastDelivered, y.DrainETA, y.LastRewind = 9_000_000, ago(0), ptr(int64(5*3600)), ago(3*time.Hour)
		}, LevelCritical, "behind", "the oldest event waits 2h"},
		{"a night without traffic, and then one event", func(_ *Snapshot, y *Sync) {
			y.waiting(1, time.Second)
			y.Depth.Ready, y.LastDelivered = 1, ago(9*time.Hour)
		}, LevelOK, "well", ""},
		{"one user waits for days, the others do not", func(_ *Snapshot, y *Sync) {
			y.waiting(12, 7*24*time.Hour)
			y.Depth.Retry, y.LastDelivered, y.Late = 12, ago(0), Late{}
			y.Waiting = []Waiting{{Reason: "http_500", Users: 1}}
		}, LevelWarning, "waiting", "12 events wait, the oldest for 7d (http_500); all others are delivered"},
		{"unreachable for a moment", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusUnreachable, "api.example does not take data (http_503)"
			y.waiting(9, 20*time.Second)
		}, LevelWarning, "unreachable", "does not take data (http_503)"},
		{"unreachable for two hours", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusUnreachable, "api.example does not take data (http_503)"
			y.waiting(9, 2*time.Hour)
		}, LevelCritical, "unreachable", "the oldest event waits 2h"},
		{"an outage that somebody knows of", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusUnreachable, "api.example does not take data (http_503)"
			y.waiting(9, 2*time.Hour)
			y.Acknowledged = &Acknowledged{Reason: "ticket 77", By: "ann", Until: noon.Add(3 * time.Hour)}
		}, LevelWarning, "unreachable", "known to ann for another 3h: ticket 77"},
		{"blocked", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusBlocked, "Customer.io does not accept the Site ID and API key"
		}, LevelCritical, "blocked", "does not accept"},
		{"blocked, and somebody knows", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusBlocked, "Customer.io does not accept the Site ID and API key"
			y.waiting(9, 2*time.Hour)
			y.Acknowledged = &Acknowledged{Reason: "new key on Monday", By: "ann", Until: noon.Add(time.Hour)}
		}, LevelWarning, "blocked", "known to ann for another 1h: new key on Monday"},
		{"blocked for longer than somebody knew", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusBlocked, "Customer.io does not accept the Site ID and API key"
			y.Acknowledged = &Acknowledged{Reason: "new key on Monday", By: "ann", Until: noon}
		}, LevelCritical, "blocked", ""},
		{"late soon, whoever knows", func(_ *Snapshot, y *Sync) {
			y.Status, y.Detail = StatusBlocked, "Customer.io does not accept the Site ID and API key"
			y.Acknowledged = &Acknowledged{Reason: "new key on Monday", By: "ann", Until: noon.Add(time.Hour)}
			y.waiting(9, 61*time.Hour)
			y.Late.Limit, y.Late.OldestLeft = ptr(int64(72*3600)), ptr(int64(11*3600))
		}, LevelCritical, "late", "the oldest event waits 2d13h: from 3d on it starts no campaigns"},
		{"paused", func(_ *Snapshot, y *Sync) {
			y.Status = StatusPaused
			y.waiting(9, 2*time.Hour)
		}, LevelWarning, "paused", "paused by an operator, and 9 events wait"},
		{"off, with nothing left", func(_ *Snapshot, y *Sync) { y.Status = StatusDisabled }, LevelOK, "off", ""},
		{"off, with something left", func(_ *Snapshot, y *Sync) {
			y.Status = StatusDisabled
			y.waiting(1, 2*time.Hour)
		}, LevelWarning, "off", "1 event waits"},
		{"a dry run", func(_ *Snapshot, y *Sync) { y.Status = StatusDryRun }, LevelOK, "dry run", ""},
		{"one dead letter", func(_ *Snapshot, y *Sync) { y.Depth.Dead = 1 }, LevelWarning, "refused", "1 dead letter is kept"},
		{"a hundred dead letters", func(_ *Snapshot, y *Sync) { y.Depth.Dead = 100 }, LevelCritical, "refused", "100 dead letters are kept"},
		{"books", func(_ *Snapshot, y *Sync) { y.Books.Balanced, y.Books.Difference = false, -3 }, LevelCritical, "unbalanced", "out by -3"},
		{"an audit", func(_ *Snapshot, y *Sync) { y.Audit = Audit{At: ago(time.Hour), Difference: 2} }, LevelCritical, "unbalanced", "2 differences"},
		{"no checkpoint", func(_ *Snapshot, y *Sync) { y.NoCheckpoint = "no space left on device" }, LevelCritical, "full", "no space left"},
		{"discarding", func(_ *Snapshot, y *Sync) {
			y.PendingBytes, y.MaxPending, y.WhenFull = 2<<30, 2<<30, "discard_oldest"
		}, LevelCritical, "discarding", "the oldest are discarded"},
		{"orphaned", func(_ *Snapshot, y *Sync) {
			y.Status = StatusOrphaned
			y.waiting(9, 2*time.Hour)
		}, LevelWarning, "orphaned", "no longer in the configuration, and 9 events wait"},
		{"refusing", func(s *Snapshot, _ *Sync) { s.Disk.Full = "20 GiB used of storage.max_bytes 20 GiB" }, LevelCritical, "refusing", "new events are refused: 20 GiB used"},
		{"three quarters of the disk", func(s *Snapshot, _ *Sync) { s.Disk.Share = 0.75 }, LevelWarning, "disk", "75 %"},
		{"nine tenths of the disk", func(s *Snapshot, _ *Sync) { s.Disk.Share = 0.91 }, LevelCritical, "disk", "91 %"},
		{"filling fast", func(s *Snapshot, _ *Sync) { s.Disk.FullETA, s.Disk.Share = ptr(int64(3*3600)), 0.6 }, LevelWarning, "disk", "refused in 3h"},
		{"a burst on a disk with much room", func(s *Snapshot, _ *Sync) { s.Disk.FullETA = ptr(int64(3 * 3600)) }, LevelOK, "well", ""},
		{"much room, and full within the hour", func(s *Snapshot, _ *Sync) { s.Disk.FullETA = ptr(int64(1800)) }, LevelWarning, "disk", "refused in 30m"},
		{"filling slowly", func(s *Snapshot, _ *Sync) { s.Disk.FullETA = ptr(int64(5 * 3600)) }, LevelOK, "well", ""},
		{"stopped, and something waits", func(s *Snapshot, y *Sync) {
			s.Source, y.Status = "files", StatusStopped
			y.waiting(9, 2*time.Hour)
		}, LevelCritical, "stopped", "no events are taken, and 9 events wait"},
		{"stopped, and nothing waits", func(s *Snapshot, y *Sync) { s.Source, y.Status = "files", StatusStopped }, LevelWarning, "stopped", "nothing waits"},
		{"stopped, and damaged", func(s *Snapshot, y *Sync) {
			s.Source, y.Status, y.LedgerDamaged = "files", StatusStopped, true
		}, LevelCritical, "stopped", "what waits is unknown"},
		{"expired", func(s *Snapshot, _ *Sync) { s.Door.Certificate = &Certificate{DaysLeft: -1} }, LevelCritical, "certificate", "expired"},
		{"a failed reload", func(s *Snapshot, _ *Sync) { s.Reload = &Reload{Error: "line 3: no such key"} }, LevelWarning, "reload", "line 3"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := well()
			test.set(&s, &s.Syncs[0])
			s.Advise()
			s.Judge(DefaultThresholds())
			h := s.Health
			if h.Level == LevelOK {
				h = s.Syncs[0].Health
			}
			if h.Level != test.level || h.Word != test.word || !strings.Contains(h.Why, test.says) || (h.Why == "") != (h.Level == LevelOK) || (h.ToDo == "") != (h.Level == LevelOK) {
				t.Errorf("%+v", h)
			}
		})
	}
}

// The worst sync is that of the house, and says which it is.
func TestHealthOfSeveral(t *testing.T) {
	s := well()
	second := s.Syncs[0]
	second.Name, second.Status, second.Detail = "mobile", StatusBlocked, "the key is wrong"
	s.Syncs = append(s.Syncs, second)
	s.Judge(DefaultThresholds())
	if s.Health != (Health{LevelCritical, "blocked", "mobile: the key is wrong", ""}) || s.Syncs[0].Health.Level != LevelOK || s.Syncs[1].Health.Why != "the key is wrong" {
		t.Errorf("%+v, %+v, %+v", s.Health, s.Syncs[0].Health, s.Syncs[1].Health)
	}
	s.Syncs = nil
	s.Judge(DefaultThresholds())
	if s.Health != (Health{Level: LevelOK, Word: "well"}) {
		t.Errorf("without syncs: %+v", s.Health)
	}
}

func TestWhenTheDiskIsFull(t *testing.T) {
	disk := Disk{Used: 4 << 30, LogBytes: 3 << 30, Kept: 1 << 30, Max: 20 << 30, Free: 100 << 30, MinFree: 1 << 30}
	var f Filling
	if f.ETA(disk) != nil {
		t.Error("it knows before it has looked")
	}
	for i := range 61 { // 15 min: a GiB more waits
		d := disk
		d.Used += int64(i) * (1 << 30) / 60
		d.LogBytes, d.Free = d.LogBytes+d.Used-disk.Used, d.Free-d.Used+disk.Used
		f.Note(noon.Add(time.Duration(i)*FillingEvery), d, int64(i)*(1<<30)/60)
		if i == 60 {
			if eta := f.ETA(d); eta == nil || *eta != 16*900 { // 20 less 5, and 1 that is only kept
				t.Errorf("by its own bound: %v", eta)
			}
			d.Max = 0
			if eta := f.ETA(d); eta == nil || *eta != 99*900 { // 99 free, 1 kept, less 1
				t.Errorf("by the disk's: %v", eta)
			}
		}
	}
	// The log's files come and go while nothing waits: that fills nothing.
	f = Filling{}
	for i := range 20 {
		d := disk
		d.Used += int64(i) << 20
		d.LogBytes, d.Free = d.LogBytes+d.Used-disk.Used, d.Free-d.Used+disk.Used
		f.Note(noon.Add(time.Duration(i)*FillingEvery), d, 0)
		if f.ETA(d) != nil {
			t.Fatal("it fills by the log's size alone")
		}
	}
	// It was a burst, and is over; or it has only just begun.
	f = Filling{}
	for i := range 61 {
		d := disk
		f.Note(noon.Add(time.Duration(i)*FillingEvery), d, int64(min(i, 24))<<28)
		switch eta := f.ETA(d); {
		case i == 8 && eta != nil, i == 61-1 && eta != nil:
			t.Errorf("a burst, after %d looks: full in %d s", i, *eta)
		case i == 24 && eta == nil:
			t.Error("it fills for minutes, and that is not seen")
		}
	}
	// Somebody else writes on the same disk.
	f = Filling{}
	for i := range 61 {
		d := disk
		d.Free -= int64(i) * (10 << 30) / 60
		f.Note(noon.Add(time.Duration(i)*FillingEvery), d, 0)
		if i == 60 {
			if eta := f.ETA(d); eta == nil || *eta != 9*900 {
				t.Errorf("by others: %v", eta)
			}
		}
	}
}

func TestShareOfTheDisk(t *testing.T) {
	for _, test := range []struct {
		disk Disk
		want float64
	}{
		{Disk{Used: 5 << 30, Max: 20 << 30, Free: 100 << 30, MinFree: 1 << 30}, 0.25},
		{Disk{Used: 5 << 30, Kept: 4 << 30, Max: 20 << 30, Free: 100 << 30, MinFree: 1 << 30}, 0.05},
		{Disk{Used: 5 << 30, Max: 20 << 30, Free: 6 << 30, MinFree: 1 << 30}, 0.5},
		{Disk{Used: 5 << 30, Max: 20 << 30, Free: 1 << 30, MinFree: 1 << 30}, 1},
		{Disk{Used: 21 << 30, Max: 20 << 30, Free: 100 << 30}, 1},
		{Disk{Used: 1 << 30, Free: 3 << 30}, 0.25},
		{Disk{}, 1},
	} {
		d := test.disk
		if d.SetShare(); d.Share != test.want {
			t.Errorf("%+v", d)
		}
	}
}
