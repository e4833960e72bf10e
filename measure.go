package main

import (
	"context"
	"net/http"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/metrics"
	"ampcio/queue"
)

// withMetrics adds /metrics to what the admin listener or socket shows.
func (d *daemon) withMetrics(mux *http.ServeMux) *http.ServeMux {
	mux.Handle("GET /metrics", metrics.Handler(d, d.log))
	return mux
}

// Measure implements metrics.Source. What it counts of a sync is what the disk has: a
// process that is killed and started again goes on from no less, so to Prometheus it
// looks as if nothing had happened.
func (d *daemon) Measure(ctx context.Context) (admin.Snapshot, metrics.Process, error) {
	snap, err := d.Snapshot(ctx)
	if err != nil {
		return snap, metrics.Process{}, err
	}
	for i := range snap.Syncs {
		if c := d.consumer(snap.Syncs[i].Name); c != nil {
			countDurably(&snap.Syncs[i], c.Counted(), d.config(), snap.At)
		}
	}
	u := d.users.Stats()
	p := metrics.Process{Started: d.started, Attempts: map[string]map[string]uint64{}, Users: metrics.Users{
		Cached: u.Cached, Bytes: u.FileBytes, Partial: u.Partial, Oversize: u.Oversize, Unappliable: u.Unappliable,
	}}
	for name, m := range d.allMeters() {
		p.Attempts[name] = map[string]uint64{}
		for i, n := range m.Attempts() {
			p.Attempts[name][delivery.CodeClasses[i]] = n
		}
	}
	return snap, p, nil
}

// countDurably replaces all that is counted of a sync, but what it has taken, which is
// on the disk in any case.
func countDurably(y *admin.Sync, c queue.Counted, cfg *config.Config, now time.Time) {
	counted := syncOf(queue.ConsumerStats{Tallies: c.Tallies, Books: queue.Books{
		Taken: y.Totals.Received, Delivered: c.Delivered, Filtered: c.Filtered, Dead: y.Totals.Dead, Discarded: c.Discarded, Lost: c.Lost,
	}}, cfg, now)
	y.Totals, y.Filtered, y.Dead, y.Discarded = counted.Totals, counted.Filtered, counted.Dead, counted.Discarded
	y.Books.Rewound = c.Rewound
}

// meter is what counts for a sync; the caller holds mu for writing.
func (d *daemon) meter(name string) *delivery.Meter {
	if d.meters[name] == nil {
		if d.meters == nil {
			d.meters = map[string]*delivery.Meter{}
		}
		d.meters[name] = new(delivery.Meter)
	}
	return d.meters[name]
}

// allMeters are those of syncs and relays.
func (d *daemon) allMeters() map[string]*delivery.Meter {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := map[string]*delivery.Meter{}
	for name, m := range d.meters {
		if _, trial := syncOfTrial(name); !trial {
			all[name] = m
		}
	}
	return all
}
