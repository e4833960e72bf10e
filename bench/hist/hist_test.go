package hist

import (
	"testing"
	"time"
)

func TestPercentilesAreWithinABucket(t *testing.T) {
	var h Hist
	for i := range 100_000 {
		h.Add(time.Duration(i+1) * 10 * time.Microsecond)
	}
	p := h.Take()
	for _, c := range []struct{ got, want float64 }{{p.P50, 500}, {p.P90, 900}, {p.P99, 990}, {p.Most, 1000}} {
		if c.got > c.want*1.001 || c.got < c.want*(1-1.0/32) {
			t.Errorf("%v ms instead of %v", c.got, c.want)
		}
	}
	if p.Count != 100_000 || h.Take().Count != 0 {
		t.Error(p.Count, "counted, and not taken")
	}
}
