package main

import (
	"testing"

	"ampcio/admin"
)

// What was given up is told of once; how often there is a line is the book's to say.
func TestGivenUpIsToldOnce(t *testing.T) {
	g := givenUp{}
	for i, step := range []struct{ count, want uint64 }{
		{7, 0}, // of the process before
		{7, 0}, {10, 3}, {20, 10}, {20, 0}, {21, 1},
		{2, 0}, // another ledger has got the name
		{5, 3},
	} {
		if n := g.since("production", step.count); n != step.want {
			t.Errorf("step %d: %d, want %d", i, n, step.want)
		}
	}
	if n := g.since("mobile", 5); n != 0 {
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
