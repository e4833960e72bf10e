package main

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// seed is what chance begins with: new each time, or what a failed run has printed.
func seed(t testing.TB) uint64 {
	t.Helper()
	const name = "AMPCIO_TEST_SEED"
	n := uint64(time.Now().UnixNano())
	if given := os.Getenv(name); given != "" {
		var err error
		if n, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	t.Logf("to run it again: %s=%d", name, n)
	return n
}

// 10,000 events of 100 users, with some repeated by their senders and some that the
// rules drop, while Customer.io fails in every way it knows and the daemon is killed
// three times. What was acknowledged arrives once, in order, and the books say so.
func TestThousandsOfEventsThroughFaultsAndKills(t *testing.T) {
	if testing.Short() {
		t.Skip("10,000 events; TestNobodyIsInTwoRequestsAtOnce has as much at once")
	}
	t.Parallel()
	const (
		spread = 9 * time.Second
		outage = 5 * time.Second
		kills  = 3
	)
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	faults, err := sandbox.ParseFaults("500=5%,429=5%,cut_after=2%")
	if err != nil {
		t.Fatal(err)
	}
	down := time.Duration(rng.Int64N(int64(spread - outage)))
	faults.Outages = []sandbox.Outage{{FromNow: true, From: down, Length: outage}}
	var killAt []time.Duration
	for range kills {
		killAt = append(killAt, time.Duration(rng.Int64N(int64(spread))))
	}
	slices.Sort(killAt)
	t.Logf("Customer.io is down for %s after %s, the daemon is killed after %s", outage, down, killAt)

	// Small batches, so that there are many requests to fail; short waits, since the
	// sandbox recovers at once.
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed},
		Sync: "retry_initial = \"50ms\"\nbatch_operations = 25\nconcurrency = 8\nrequests_per_second = 1000\n"})
	up(t, r)
	tr := rehearsal.NewTraffic(r, 100, 10_000, seed)
	ctx := within(t, 60*time.Second)
	ids, err := tr.Replay(ctx)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.Sandbox.SetFaults(faults)
	sent := make(chan error, 1)
	go func() { sent <- tr.Run(ctx, spread) }()
	for _, at := range killAt {
		select {
		case <-time.After(time.Until(begin.Add(at))):
		case err := <-sent:
			sent <- err
		}
		if err := r.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := r.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatalf("the senders ended with %v", err)
	}
	t.Logf("all is acknowledged after %s", time.Since(begin).Round(time.Millisecond))
	books := drained(t, r)
	t.Logf("drained after %s", time.Since(begin).Round(time.Millisecond))

	v := tr.Verdict(ids, books)
	for _, problem := range v.Problems {
		t.Error(problem)
	}
	if v.Acknowledged < 10_000 || v.Delivered != v.Acknowledged {
		t.Errorf("%d acknowledged, %d delivered", v.Acknowledged, v.Delivered)
	}
	report := r.Sandbox.Report()
	t.Logf("faults met %v, %d repeats ignored, %d requests", report.FaultsInjected, v.Repeats, report.Requests)
	for _, fault := range []string{"500", "429", "cut_after", "outage_503"} {
		if report.FaultsInjected[fault] == 0 {
			t.Errorf("the sandbox has never met a client with %s: this tests less than it says", fault)
		}
	}
	if len(report.Invalid) != 0 {
		t.Errorf("Customer.io refused %v: %s", report.Invalid, report.FirstInvalid)
	}

	// The same books after a stop, read from the files.
	if err := r.Stop(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	sameBooks(t, books, statsOfFiles(t, r))
}

// The daemon is killed in the middle of storing, again and again: what it has answered
// 200 is there. (Kills at random moments mostly find it idle.)
func TestKillsWhileItStores(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed}, Sync: "requests_per_second = 1000\n"})
	up(t, r)
	tr := rehearsal.NewTraffic(r, 40, 12_000, seed)
	ctx := within(t, 60*time.Second)
	sent := make(chan error, 1)
	go func() { sent <- tr.Run(ctx, 0) }()
	for next := int64(0); next < 10_000; {
		next += 500 + rng.Int64N(1000)
		eventually(t, 30*time.Second, "more events are acknowledged", func() bool { return tr.Sent.Load() >= next })
		if err := r.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := r.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatalf("the senders ended with %v", err)
	}
	v := tr.Verdict(nil, drained(t, r))
	for _, problem := range v.Problems {
		t.Error(problem)
	}
	if v.Delivered != 12_000 {
		t.Errorf("%d acknowledged, %d delivered", v.Acknowledged, v.Delivered)
	}
	down(t, r)
}

// Every way of failing at once, and slow answers, without kills: then the sandbox can
// also tell that nobody is ever in two requests at the same time.
func TestNobodyIsInTwoRequestsAtOnce(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	faults, err := sandbox.ParseFaults("500=3%,502=3%,408=3%,429=2%,cut_before=3%,cut_after=3%,garbage=3%,garbage_applied=3%,truncate=3%," +
		"hang=3%,hang_for=150ms,latency=5ms,jitter=30ms,on=data")
	if err != nil {
		t.Fatal(err)
	}
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed, CheckOverlap: true, Faults: faults},
		Sync: "retry_initial = \"20ms\"\nbatch_operations = 10\nconcurrency = 8\nrequests_per_second = 1000\n"})
	edit(t, r, `retry_max = "2s"`, `retry_max = "300ms"`)
	up(t, r)
	tr := rehearsal.NewTraffic(r, 12, 2_000, seed)
	if err := tr.Run(within(t, 60*time.Second), 3*time.Second); err != nil {
		t.Fatal(err)
	}
	books := drained(t, r)
	v := tr.Verdict(nil, books)
	for _, problem := range v.Problems {
		t.Error(problem)
	}
	report := r.Sandbox.Report()
	t.Logf("%d requests, at most %d at once, faults met %v", report.Requests, report.MaxInFlight, report.FaultsInjected)
	if v.Delivered != 2_000 || report.MaxInFlight < 2 || len(report.FaultsInjected) < 9 {
		t.Errorf("%d delivered, at most %d requests at once, faults met %v", v.Delivered, report.MaxInFlight, report.FaultsInjected)
	}
	down(t, r)
}
