package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ampcio-bench/hist"
	"ampcio-bench/load"
)

// The best of the peers that were measured with 64 connections, 700-byte events, and durable before the answer: RudderStack's
// gateway, Redpanda Connect with a synced SQLite buffer, NSQ. Events a second, on a machine of two cores whose fastjson
// ceiling was 80,000 at 1 event a request and 1.4 M at 100: elsewhere they say little.
const (
	peerIngest = 68_000
	peer100    = 31_500 // end to end
	peer1      = 1_440
)

var rows = []struct {
	n            int
	what, target string
	measure      func(*bench) (Row, error)
}{
	{1, "ingest, 64 connections × 100 events, 10,000 users", "≥ 0.45 × fastjson, ≥ 9 × every peer", func(b *bench) (Row, error) {
		return b.ingestRow("100", 0.45, func(p pair, r *Row) bool {
			r.Ratio += fmt.Sprintf("; %.1f × peers", of(p.ours, perSecond)/peerIngest)
			return of(p.ours, perSecond) >= 9*peerIngest
		})
	}},
	{2, "ingest, 64 × 1000 (/batch), within 256 MiB", "≥ 0.50 × fastjson", func(b *bench) (Row, error) {
		return b.ingestRow("1000", 0.50, func(p pair, r *Row) bool {
			r.Measured += "; " + mib(of(p.ours, anonymous)) + " anonymous"
			if again := of(p.ours, func(o once) float64 { return float64(o.Failed) }); again > 0 {
				r.Measured += fmt.Sprintf("; %s requests sent again", count(again))
			}
			return of(p.ours, anonymous) <= 256<<20
		})
	}},
	{3, "ingest, 64 × 10", "≥ 0.50 × fastjson", func(b *bench) (Row, error) { return b.ingestRow("10", 0.50, nil) }},
	{4, "ingest, 512 × 1", "≥ 0.75 × fastjson", func(b *bench) (Row, error) { return b.ingestRow("512", 0.75, nil) }},
	{5, "ingest, 64 × 1", "≥ 0.55 × fastjson, p99 ≤ 1.0 × its p99", func(b *bench) (Row, error) {
		return b.ingestRow("1", 0.55, func(p pair, r *Row) bool {
			r.Measured += fmt.Sprintf("; p99 %.1f ms", of(p.ours, p99))
			r.Ratio += fmt.Sprintf("; p99 %.2f ×", of(p.ours, p99)/of(p.ceiling, p99))
			return of(p.ours, p99) <= of(p.ceiling, p99)
		})
	}},
	{6, "one lone client, idle daemon", "p50 ≤ 2.5 × one raw fdatasync", (*bench).lone},
	{7, "end to end, full mapping, 10,000 users, 64 × 100 in, 490 kB batches out", "≥ 8 × the best peer (31,500)", func(b *bench) (Row, error) { return b.endToEnd(100, 8, peer100) }},
	{8, "end to end, 64 × 1 in", "≥ 20 × the best peer (1,440)", func(b *bench) (Row, error) { return b.endToEnd(1, 20, peer1) }},
	{9, "drain of a backlog, no ingest", "≥ 0.65 × a client with ready-made batches", (*bench).drain},
	{10, "event to sink when idle", "p99 ≤ 10 ms", (*bench).idle},
	{11, "device bytes per payload byte, 64 × 100 / 64 × 1", "≤ 0.40 / 1.4", (*bench).deviceBytes},
	{12, "disk per queued event", "≤ 260 B", (*bench).diskPerEvent},
	{13, "anonymous memory at full ingest 64 × 1 / 64 × 100 / added by 10 M queued", "≤ 64 / 128 / + 32 MiB", (*bench).memory},
	{14, "ingest with 10 M queued and deliveries running", "≥ 0.95 × empty, p99 ≤ 1.2 ×", (*bench).behindBacklog},
	{15, "start with 10 M queued and 1 M users, cold cache, to the first ack", "≤ 100 ms", (*bench).coldStart},
	{16, "disk after a drain", "≤ 2 files of the rotation size", (*bench).afterDrain},
	{17, "ingest, 1 M users whose properties change on every event, uniform / Zipf", "≥ 0.60 / 0.85 × row 1", (*bench).manyUsers},
	{18, "flat: CPU per event delivered, 100 to 1,000,000 users; 1 to 4 syncs", "within 10 %", (*bench).flat},
	{19, "ingest while queue-stats runs each second / while one of two syncs is down", "≥ 0.95 × ingest alone", (*bench).disturbed},
	{20, "an hour at 20,000 events/s with outages", "memory, descriptors, files flat; p99 ≤ 10 ms", (*bench).anHour},
}

// pair is runs of ampcio and of the ceiling, which took turns.
type pair struct{ ours, ceiling []once }

var shapes = map[string]load.Plan{
	"1":    {Conns: 64, Events: 1},
	"10":   {Conns: 64, Events: 10},
	"100":  {Conns: 64, Events: 100},
	"1000": {Conns: 64, Events: 1000, Path: "/batch", Again: true}, // it may be told to wait: what is in flight is bounded
	"512":  {Conns: 512, Events: 1},
}

// warm sends for half a second what is not counted.
func (b *bench) warm(p *process, plan load.Plan) error {
	plan.Address, plan.Duration, plan.Count = p.address, 500*time.Millisecond, 0
	_, _, err := b.generate(plan, nil)
	return err
}

// ingest measures a shape: each run of ampcio on a fresh folder, its sync paused, so that everything is queued.
func (b *bench) ingest(name string) (pair, error) {
	if p, ok := b.shapes[name]; ok {
		return p, nil
	}
	ceiling, err := b.ceilingServer()
	if err != nil {
		return pair{}, err
	}
	var p pair
	plan := shapes[name]
	plan.Duration = b.seconds
	for i := range b.runs {
		d, err := b.daemon(stream{name: "held", paused: true})
		if err != nil {
			return p, err
		}
		if err := b.warm(d, plan); err != nil {
			return p, err
		}
		o, err := b.against(d, plan)
		if err != nil {
			return p, err
		}
		b.say("run %d of %d, ampcio: %v", i+1, b.runs, o)
		if err := b.discard(d); err != nil {
			return p, err
		}
		fast := plan
		fast.Path = "/fastjson"
		if err := b.warm(ceiling, fast); err != nil {
			return p, err
		}
		c, err := b.against(ceiling, fast)
		if err != nil {
			return p, err
		}
		b.say("run %d of %d, fastjson: %v", i+1, b.runs, c)
		p.ours, p.ceiling = append(p.ours, o), append(p.ceiling, c)
	}
	if b.shapes == nil {
		b.shapes = map[string]pair{}
	}
	b.shapes[name] = p
	return p, nil
}

func (b *bench) ingestRow(shape string, least float64, more func(pair, *Row) bool) (r Row, err error) {
	p, err := b.ingest(shape)
	if err != nil {
		return r, err
	}
	ours, ceiling := of(p.ours, perSecond), of(p.ceiling, perSecond)
	r.Measured = fmt.Sprintf("%s events/s of %s; %.2f µs of CPU an event", count(ours), count(ceiling), of(p.ours, cpuPerEvent))
	r.Ratio = fmt.Sprintf("%.2f ×", ours/ceiling)
	r.Values = map[string]float64{"events_per_s": ours, "ceiling_events_per_s": ceiling, "cpu_us_per_event": of(p.ours, cpuPerEvent), "ceiling_cpu_us_per_event": of(p.ceiling, cpuPerEvent),
		"p99_ms": of(p.ours, p99), "ceiling_p99_ms": of(p.ceiling, p99), "anonymous_bytes": of(p.ours, anonymous), "device_bytes_per_payload_byte": of(p.ours, perByte)}
	ok := ours >= least*ceiling
	if more != nil && !more(p, &r) {
		ok = false
	}
	r.Verdict, r.Note = verdict(ok), disturbance(append(p.ours[:len(p.ours):len(p.ours)], p.ceiling...))
	return r, nil
}

// disturbance says when the machine was not ampcio's and the generator's alone.
func disturbance(all []once) string {
	if other := of(all, func(o once) float64 { return o.other }); other > 0.25 {
		return fmt.Sprintf("not quiet: others used %.1f cores", other)
	}
	return ""
}

func (b *bench) lone() (r Row, err error) {
	d, err := b.daemon(stream{name: "held", paused: true})
	if err != nil {
		return r, err
	}
	plan := load.Plan{Conns: 1, Events: 1, Duration: b.seconds / 2}
	var ours []once
	var raw []float64
	for i := range b.runs {
		o, err := b.against(d, plan)
		if err != nil {
			return r, err
		}
		sync, err := b.rawSync(b.seconds / 2)
		if err != nil {
			return r, err
		}
		b.say("run %d of %d: p50 %.2f ms; fdatasync %.2f ms", i+1, b.runs, o.Latency.P50, sync.P50)
		ours, raw = append(ours, o), append(raw, sync.P50)
	}
	r.Measured = fmt.Sprintf("p50 %.2f ms; fdatasync of 4 KiB appended: %.2f ms", of(ours, p50), median(raw))
	r.Ratio = fmt.Sprintf("%.2f ×", of(ours, p50)/median(raw))
	r.Values = map[string]float64{"p50_ms": of(ours, p50), "fdatasync_p50_ms": median(raw)}
	r.Verdict, r.Note = verdict(of(ours, p50) <= 2.5*median(raw)), disturbance(ours)
	return r, nil
}

// rawSync appends 4 KiB and waits for the disk, again and again.
func (b *bench) rawSync(d time.Duration) (p hist.Percentiles, err error) {
	f, err := os.Create(filepath.Join(b.dir, "raw"))
	if err != nil {
		return p, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var h hist.Hist
	page := make([]byte, 4096)
	for end := time.Now().Add(d); time.Now().Before(end); {
		from := time.Now()
		if _, err := f.Write(page); err != nil {
			return p, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return p, err
		}
		h.Add(time.Since(from))
	}
	return h.Take(), nil
}

func (b *bench) deviceBytes() (r Row, err error) {
	many, err := b.ingest("100")
	if err != nil {
		return r, err
	}
	single, err := b.ingest("1")
	if err != nil {
		return r, err
	}
	x, y := of(many.ours, perByte), of(single.ours, perByte)
	r.Measured = fmt.Sprintf("%.2f / %.2f, written to %s", x, y, many.ours[0].disk)
	r.Values = map[string]float64{"bytes_per_byte_100": x, "bytes_per_byte_1": y}
	r.Verdict, r.Note = verdict(x <= 0.40 && y <= 1.4), disturbance(append(many.ours[:len(many.ours):len(many.ours)], single.ours...))
	return r, nil
}

func (b *bench) manyUsers() (r Row, err error) {
	few, err := b.daemon(stream{name: "few", paused: true})
	if err != nil {
		return r, err
	}
	many, err := b.daemon(stream{name: "many", paused: true})
	if err != nil {
		return r, err
	}
	plan := load.Plan{Events: 100, Users: b.most, Duration: b.seconds}
	all := plan
	all.Spread, all.Duration, all.Count = "turns", 0, int64(b.most)
	if o, err := b.against(many, all); err != nil {
		return r, err
	} else {
		b.say("%s users were seen for the first time: %v", count(float64(b.most)), o)
	}
	var runs [3][]once
	zipf := plan
	zipf.Spread = "zipf"
	one := plan
	one.Users = 10_000
	if err := b.warm(few, one); err != nil {
		return r, err
	}
	for i := range b.runs {
		for k, c := range []struct {
			what string
			p    *process
			plan load.Plan
		}{{"10,000 users", few, one}, {"uniform", many, plan}, {"Zipf", many, zipf}} {
			o, err := b.against(c.p, c.plan)
			if err != nil {
				return r, err
			}
			b.say("run %d of %d, %s: %v", i+1, b.runs, c.what, o)
			runs[k] = append(runs[k], o)
		}
	}
	base, uniform, z := of(runs[0], perSecond), of(runs[1], perSecond), of(runs[2], perSecond)
	r.Measured = fmt.Sprintf("%s / %s events/s; 10,000 users: %s", count(uniform), count(z), count(base))
	r.Ratio = fmt.Sprintf("%.2f / %.2f ×", uniform/base, z/base)
	r.Values = map[string]float64{"events_per_s_10000": base, "events_per_s_uniform": uniform, "events_per_s_zipf": z, "cpu_us_per_event_10000": of(runs[0], cpuPerEvent),
		"cpu_us_per_event_uniform": of(runs[1], cpuPerEvent), "cpu_us_per_event_zipf": of(runs[2], cpuPerEvent), "anonymous_bytes_uniform": of(runs[1], anonymous)}
	r.Verdict, r.Note = verdict(uniform >= 0.60*base && z >= 0.85*base), disturbance(runs[0])
	return r, nil
}

func (b *bench) disturbed() (r Row, err error) {
	plan := load.Plan{Events: 100, Duration: b.seconds}
	var runs [3][]once
	for i := range b.runs {
		for k, what := range []string{"alone", "queue-stats each second", "a second sync that is down"} {
			streams := []stream{{name: "up"}}
			if k == 2 {
				streams = append(streams, stream{name: "lost", down: true})
			}
			d, err := b.daemon(streams...)
			if err != nil {
				return r, err
			}
			if err := b.warm(d, load.Plan{Events: 100, First: 1_000_000}); err != nil {
				return r, err
			}
			stop, asked := make(chan struct{}), make(chan error, 1)
			go func() { asked <- b.askEachSecond(d, k == 1, stop) }()
			o, err := b.against(d, plan)
			close(stop)
			if err := errors.Join(err, <-asked); err != nil {
				return r, err
			}
			b.say("run %d of %d, %s: %v", i+1, b.runs, what, o)
			runs[k] = append(runs[k], o)
			if err := b.discard(d); err != nil {
				return r, err
			}
		}
	}
	alone, asked, down := of(runs[0], perSecond), of(runs[1], perSecond), of(runs[2], perSecond)
	r.Measured = fmt.Sprintf("%s / %s events/s; alone: %s", count(asked), count(down), count(alone))
	r.Ratio = fmt.Sprintf("%.2f / %.2f ×", asked/alone, down/alone)
	r.Values = map[string]float64{"events_per_s_alone": alone, "events_per_s_queue_stats": asked, "events_per_s_one_down": down}
	r.Verdict = verdict(asked >= 0.95*alone && down >= 0.95*alone)
	return r, nil
}

// askEachSecond runs queue-stats as an operator's watch does, the first time at once.
func (b *bench) askEachSecond(p *process, does bool, stop <-chan struct{}) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for does {
		if err := b.command(p, "queue-stats"); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-stop:
			return nil
		}
	}
	return nil
}
