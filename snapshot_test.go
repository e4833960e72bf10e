package main

import (
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/queue"
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

// A rewind takes nothing back of what has ended: else nobody would know for a minute how
// fast it goes on, and what was rewound would look like a queue that stands.
func TestRateOverARewind(t *testing.T) {
	var rates admin.Rates
	at := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	for i, b := range []queue.Books{{Taken: 100, Pending: 0}, {Taken: 100, Rewound: 80, Pending: 80}, {Taken: 102, Rewound: 80, Pending: 42}} {
		p := progressOf(b)
		rates.Note("production", at.Add(time.Duration(i)*2*time.Second), p.In, p.Out)
	}
	if in, out := rates.Of("production"); in == nil || *in != 0.5 || *out != 10 {
		t.Errorf("in %v, out %v", in, out)
	}
}
