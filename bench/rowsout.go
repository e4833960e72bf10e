package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ampcio-bench/hist"
	"ampcio-bench/load"
	"ampcio-bench/machine"
)

// through sends events and waits until the sink has them all; the rate is that of the sink, CPU that of everything.
func (b *bench) through(p *process, plan load.Plan, sites ...string) (o once, err error) {
	cpu := machine.CPU(p.pid())
	before, err := b.report(sites[0])
	if err != nil {
		return o, err
	}
	o, err = b.against(p, plan)
	if err != nil {
		return o, err
	}
	begun := time.Now().Add(-time.Duration(o.Seconds * float64(time.Second))) // later than it was by one flush of the disk
	r, err := b.arrived(before.Events+o.Events, sites...)
	if err != nil {
		return o, err
	}
	o.Seconds = r.LastAt.Sub(begun).Seconds()
	o.cpu = (machine.CPU(p.pid()) - cpu) * 1e6 / float64(o.Events)
	return o, nil
}

func (b *bench) endToEnd(events int, times, peer float64) (r Row, err error) {
	var runs []once
	for i := range b.runs {
		d, err := b.daemon(stream{name: "through", fast: true})
		if err != nil {
			return r, err
		}
		o, err := b.through(d, load.Plan{Events: events, Duration: b.seconds * 3 / 2}, "through")
		if err != nil {
			return r, err
		}
		b.say("run %d of %d, delivered: %v", i+1, b.runs, o)
		runs = append(runs, o)
		if err := b.discard(d); err != nil {
			return r, err
		}
	}
	got := of(runs, perSecond)
	r.Measured = fmt.Sprintf("%s events/s; %.2f µs of CPU an event; none missing, twice or out of order", count(got), of(runs, cpuPerEvent))
	r.Ratio = fmt.Sprintf("%.1f × the peer's", got/peer)
	r.Values = map[string]float64{"events_per_s": got, "cpu_us_per_event": of(runs, cpuPerEvent)}
	r.Verdict = verdict(got >= times*peer)
	return r, nil
}

func (b *bench) drain() (r Row, err error) {
	var ours, theirs, cpu []float64
	for i := range b.runs {
		d, err := b.daemon(stream{name: "drain", fast: true, paused: true})
		if err != nil {
			return r, err
		}
		in, err := b.against(d, load.Plan{Events: 100, Count: int64(b.queued / 10)})
		if err != nil {
			return r, err
		}
		before := machine.CPU(d.pid())
		if err := b.command(d, "sync", "resume", "drain"); err != nil {
			return r, err
		}
		out, err := b.arrived(in.Events, "drain")
		if err != nil {
			return r, err
		}
		cpu = append(cpu, (machine.CPU(d.pid())-before)*1e6/float64(in.Events))
		ours = append(ours, float64(out.Operations)/out.Seconds)
		b.say("run %d of %d: %s operations/s of which %s are events, %s bytes a request, %.2f µs of CPU an event", i+1, b.runs, count(ours[i]), count(float64(out.Events)/out.Seconds), count(float64(out.Bytes)/float64(out.Requests)), cpu[i])
		if err := b.discard(d); err != nil {
			return r, err
		}
		ready, err := b.readyMade()
		if err != nil {
			return r, err
		}
		theirs = append(theirs, ready)
		b.say("run %d of %d, ready-made batches: %s operations/s", i+1, b.runs, count(ready))
	}
	r.Measured = fmt.Sprintf("%s operations/s of %s; %.2f µs of CPU an event", count(median(ours)), count(median(theirs)), median(cpu))
	r.Ratio = fmt.Sprintf("%.2f ×", median(ours)/median(theirs))
	r.Values = map[string]float64{"operations_per_s": median(ours), "ready_made_per_s": median(theirs), "cpu_us_per_event": median(cpu)}
	r.Verdict = verdict(median(ours) >= 0.65*median(theirs))
	return r, nil
}

// readyMade posts again what ampcio has sent, from as many connections as it has. The sink takes them for doubles, which costs it
// no more.
func (b *bench) readyMade() (perSecond float64, err error) {
	var files []string
	for n := range 16 {
		body, err := b.get(fmt.Sprintf("/latest/%d", n))
		if err != nil {
			continue // fewer batches were kept
		}
		file := filepath.Join(b.dir, fmt.Sprintf("batch-%d", n))
		if err := os.WriteFile(file, body, 0o600); err != nil {
			return 0, err
		}
		defer os.Remove(file)
		files = append(files, file)
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("the sink has kept no batch")
	}
	if err := b.post("/reset?site=ready"); err != nil {
		return 0, err
	}
	if _, _, err := b.generate(load.Plan{Address: b.sink, Path: "/api/v2/batch", Conns: 4, Duration: b.seconds, Bodies: files, Basic: "ready:key"}, nil); err != nil {
		return 0, err
	}
	r, err := b.report("ready")
	if err == nil && r.Refused > 0 {
		err = fmt.Errorf("the sink refused ready-made batches: %s", r.Refusal)
	}
	return float64(r.Operations) / r.Seconds, err
}

func (b *bench) idle() (r Row, err error) {
	d, err := b.daemon(stream{name: "idle"})
	if err != nil {
		return r, err
	}
	first, _, err := b.generate(load.Plan{Address: d.address, Conns: 1, Users: 1000, Rate: 50, Count: 25}, nil)
	if err != nil {
		return r, err
	}
	sent := first.Events
	if _, err := b.arrived(sent, "idle"); err != nil {
		return r, err
	}
	var all []float64
	for i := range b.runs {
		o, err := b.against(d, load.Plan{Conns: 1, Users: 1000, First: 10_000 + i*1000, Rate: 50, Duration: 2 * b.seconds})
		if err != nil {
			return r, err
		}
		sent += o.Events
		arrived, err := b.arrived(sent, "idle")
		if err != nil {
			return r, err
		}
		b.say("run %d of %d: %d events, p50 %.2f ms, p99 %.2f ms, at most %.2f ms", i+1, b.runs, o.Events, arrived.Latency.P50, arrived.Latency.P99, arrived.Latency.Most)
		all = append(all, arrived.Latency.P99)
	}
	r.Measured = fmt.Sprintf("p99 %.2f ms", median(all))
	r.Values = map[string]float64{"p99_ms": median(all)}
	r.Verdict = verdict(median(all) <= 10)
	return r, nil
}

func (b *bench) flat() (r Row, err error) {
	sizes := []int{128, 10_240, b.most} // as many for each of 64 connections
	r.Values = map[string]float64{}
	var cpu []float64
	rates := ""
	for _, n := range sizes {
		d, err := b.daemon(stream{name: "flat", fast: true})
		if err != nil {
			return r, err
		}
		plan := load.Plan{Events: 100, Users: n, Spread: "turns", Steady: true, Count: int64(b.most)}
		var runs []once
		for i := range b.runs + 1 {
			plan.Seq = i * b.most / n
			o, err := b.through(d, plan, "flat")
			if err != nil {
				return r, err
			}
			if i == 0 {
				continue // the users are new
			}
			b.say("run %d of %d, %s users: %v", i, b.runs, count(float64(n)), o)
			runs = append(runs, o)
		}
		if err := b.discard(d); err != nil {
			return r, err
		}
		cpu = append(cpu, of(runs, cpuPerEvent))
		rates += fmt.Sprintf("%s users: %.2f µs; ", count(float64(n)), of(runs, cpuPerEvent))
		r.Values[fmt.Sprintf("cpu_us_per_event_%d_users", n)] = of(runs, cpuPerEvent)
	}
	var perSync []float64
	for _, n := range []int{1, 4} {
		var runs []once
		for i := range b.runs {
			var streams []stream
			var sites []string
			for k := range n {
				sites = append(sites, fmt.Sprintf("flat%d", k))
				streams = append(streams, stream{name: sites[k], fast: true})
			}
			d, err := b.daemon(streams...)
			if err != nil {
				return r, err
			}
			o, err := b.through(d, load.Plan{Events: 100, Steady: true, Count: int64(b.queued / 20)}, sites...)
			if err != nil {
				return r, err
			}
			o.cpu /= float64(n)
			b.say("run %d of %d, %d syncs: %.2f µs of CPU an event delivered", i+1, b.runs, n, o.cpu)
			runs = append(runs, o)
			if err := b.discard(d); err != nil {
				return r, err
			}
		}
		perSync = append(perSync, of(runs, cpuPerEvent))
		rates += fmt.Sprintf("%d syncs: %.2f µs; ", n, of(runs, cpuPerEvent))
		r.Values[fmt.Sprintf("cpu_us_per_event_%d_syncs", n)] = of(runs, cpuPerEvent)
	}
	r.Measured = rates[:len(rates)-2]
	most, least := max(cpu[0], cpu[1], cpu[2]), min(cpu[0], cpu[1], cpu[2])
	r.Ratio = fmt.Sprintf("%.2f / %.2f ×", most/least, perSync[1]/perSync[0])
	r.Verdict = verdict(most <= 1.10*least && perSync[1] <= 1.10*perSync[0])
	return r, nil
}

// stretch is what was seen at the end of one.
type stretch struct {
	anon        float64
	descriptors int
	files       int
	disk        int64
}

func (b *bench) anHour() (r Row, err error) {
	d, err := b.daemon(stream{name: "hour"})
	if err != nil {
		return r, err
	}
	stretches := 60
	each := b.hour / time.Duration(stretches)
	var seen []stretch
	var late float64
	plan := load.Plan{Address: d.address, Events: 10, Users: 100_000, Rate: 20_000, Duration: b.hour, Tell: each, Again: true}
	done := 0
	result, _, err := b.generate(plan, func(p hist.Percentiles) {
		done++
		_, files := machine.Used(filepath.Join(d.dir, "storage"))
		disk, _ := machine.Used(filepath.Join(d.dir, "storage"))
		s := stretch{float64(machine.Anonymous(d.pid())), machine.Descriptors(d.pid()), files, disk}
		seen, late = append(seen, s), max(late, p.P99)
		down := ""
		if done%6 == 3 { // Customer.io is away for half a stretch
			if err := b.post("/down?for=" + (each / 2).String()); err == nil {
				down = "; an outage begins"
			}
		}
		b.say("%v of %v: p99 %.1f ms, %s anonymous, %d descriptors, %d files of %s%s", time.Duration(done)*each, b.hour, p.P99, mib(s.anon), s.descriptors, files, mib(float64(disk)), down)
	})
	if err != nil {
		return r, err
	}
	if result.Failed > 0 {
		return r, fmt.Errorf("%d requests failed: %s", result.Failed, result.Failure)
	}
	if _, err := b.arrived(result.Events, "hour"); err != nil {
		return r, err
	}
	if len(seen) < 4 {
		return r, fmt.Errorf("too short to say anything")
	}
	early, end := seen[len(seen)/4:len(seen)/2], seen[3*len(seen)/4:]
	most := func(all []stretch, f func(stretch) float64) (m float64) {
		for _, s := range all {
			m = max(m, f(s))
		}
		return m
	}
	flat := func(f func(stretch) float64, slack float64) (string, bool) {
		x, y := most(early, f), most(end, f)
		return fmt.Sprintf("%s → %s", count(x), count(y)), y <= 1.1*x+slack
	}
	memory, a := flat(func(s stretch) float64 { return s.anon / (1 << 20) }, 4)
	descriptors, c := flat(func(s stretch) float64 { return float64(s.descriptors) }, 8)
	files, e := flat(func(s stretch) float64 { return float64(s.files) }, 4)
	r.Measured = fmt.Sprintf("%s events; from the second to the last quarter: %s MiB anonymous, %s descriptors, %s files; worst p99 of a sixtieth %.1f ms; none missing, twice or out of order",
		count(float64(result.Events)), memory, descriptors, files, late)
	r.Values = map[string]float64{"events": float64(result.Events), "worst_p99_ms": late, "p99_ms": result.Latency.P99, "anonymous_mib_last_quarter": most(end, func(s stretch) float64 { return s.anon / (1 << 20) })}
	r.Verdict = verdict(a && c && e && late <= 10)
	if b.hour != time.Hour {
		r.Note = fmt.Sprintf("%v instead of an hour", b.hour)
	}
	return r, nil
}
