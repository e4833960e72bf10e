package main

import (
	"testing"
	"time"

	"ampcio/admin"
)

// What was given up is told of once, and once a minute at most.
func TestGivenUpIsToldOnce(t *testing.T) {
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	g := givenUp{}
	for i, step := range []struct {
		after time.Duration
		count uint64
		want  uint64
	}{
		{0, 7, 0}, // of the process before
		{2 * time.Second, 7, 0}, {4 * time.Second, 10, 3}, {6 * time.Second, 20, 0}, {63 * time.Second, 30, 0}, {64 * time.Second, 40, 30},
		{66 * time.Second, 40, 0}, {500 * time.Second, 40, 0}, {502 * time.Second, 41, 1},
		{504 * time.Second, 2, 0}, // another ledger has got the name
		{600 * time.Second, 5, 3},
	} {
		if n := g.since("production", start.Add(step.after), step.count); n != step.want {
			t.Errorf("step %d: %d, want %d", i, n, step.want)
		}
	}
	if n := g.since("mobile", start, 5); n != 0 {
		t.Errorf("another sync: %d", n)
	}
}

// Only a sync that delivers comes to an end of what is pending.
func TestDrainIsOfASyncThatDelivers(t *testing.T) {
	in, out := 1.0, 11.0
	for status, want := range map[string]bool{admin.StatusOK: true, admin.StatusPaused: false, admin.StatusUnreachable: false, admin.StatusDisabled: false} {
		y := admin.Sync{Status: status, RateIn: &in, RateOut: &out, Books: admin.Books{Pending: 100}}
		if eta := drain(y); (eta != nil) != want || want && *eta != 10 {
			t.Errorf("%s: %v", status, eta)
		}
	}
}
