package jumping

import (
	"testing"
	"time"
)

func TestTheClockIsSet(t *testing.T) {
	defer func() { table[0] = 0 }()
	began, wall := Now(), time.Now()
	table[1], table[2] = wall.Add(-time.Hour).UnixNano(), -3*86_400 // an hour ago, back by three days
	table[3], table[4] = wall.Add(time.Hour).UnixNano(), 86_400     // in an hour, to a day ahead
	table[0] = 2
	if d := Now().Round(0).Sub(wall.Round(0)); d < -73*time.Hour || d > -71*time.Hour {
		t.Errorf("the wall clock differs by %s", d)
	}
	if d := Now().Sub(began); d < 0 || d > time.Minute {
		t.Errorf("%s have passed", d)
	}
	if d := Since(began); d < 0 || d > time.Minute {
		t.Errorf("it is %s ago", d)
	}
	for _, c := range []struct{ written, want time.Duration }{{-2 * time.Hour, -2 * time.Hour}, {-time.Minute, -72*time.Hour - time.Minute}, {2 * time.Hour, 26 * time.Hour}} {
		if got := Written(wall.Add(c.written)).Sub(wall); got != c.want {
			t.Errorf("what was written at %s is shown at %s, not %s", c.written, got, c.want)
		}
	}
}
