package main

import (
	"fmt"
	"testing"
)

func TestDistinct(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 150_000, 1_000_000} {
		d := newDistinct()
		for i := range n {
			d.add(fmt.Sprint(i))
			d.add(fmt.Sprint(i / 2))
		}
		got := float64(d.count())
		if exact := n <= mostKept; exact && int(got) != n || got < 0.97*float64(n) || got > 1.03*float64(n) {
			t.Errorf("%d texts counted as %.0f", n, got)
		}
		if len(d.kept) > mostKept {
			t.Errorf("%d hashes are kept", len(d.kept))
		}
	}
}

func TestDaysBecomeMonths(t *testing.T) {
	days := map[string]uint64{}
	for day := 1; day <= 31; day++ {
		days[fmt.Sprintf("2026-10-%02d", day)] = 2
	}
	if rows := byTime(days); len(rows) != 31 || rows[0] != (count{"2026-10-01", 2}) {
		t.Errorf("%v", rows)
	}
	days["2026-11-01"] = 5
	if rows := byTime(days); fmt.Sprint(rows) != "[{2026-10 62} {2026-11 5}]" {
		t.Errorf("%v", rows)
	}
}
