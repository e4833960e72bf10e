package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ampcio-bench/load"
	"ampcio-bench/machine"
)

// backlog is the daemon with 10 M queued, which rows 12 to 16 share.
type backlog struct {
	p       *process
	sent    int64 // events that were answered
	perDisk float64
	runs    pair // of row 14: behind the backlog, and empty
	next    int  // the first user that has sent nothing
}

// filled queues 10 M events of 1 M users when it is first asked for. It leaves the sync paused.
func (b *bench) filled() (*backlog, error) {
	if b.backlog != nil {
		return b.backlog, nil
	}
	d, err := b.daemon(stream{name: "queued", paused: true})
	if err != nil {
		return nil, err
	}
	l := &backlog{p: d, next: b.most}
	for i := 0; l.sent < int64(b.queued); i++ {
		o, err := b.against(d, load.Plan{Events: 100, Users: b.most, Spread: "turns", Seq: i, Count: int64(b.most)})
		if err != nil {
			return nil, err
		}
		l.sent += o.Events
		b.say("%s events queued: %v", count(float64(l.sent)), o)
	}
	disk, _ := machine.Used(filepath.Join(d.dir, "storage"))
	l.perDisk = float64(disk) / float64(l.sent)
	d.kept = true
	b.backlog = l
	return l, nil
}

func (b *bench) queuedNote() string {
	if b.queued < 10_000_000 {
		return fmt.Sprintf("%s queued and %s users only", count(float64(b.queued)), count(float64(b.most)))
	}
	return ""
}

func (b *bench) diskPerEvent() (r Row, err error) {
	l, err := b.filled()
	if err != nil {
		return r, err
	}
	r.Measured = fmt.Sprintf("%.0f B, everything in storage.dir counted", l.perDisk)
	r.Values = map[string]float64{"bytes_per_event": l.perDisk}
	r.Verdict, r.Note = verdict(l.perDisk <= 260), b.queuedNote()
	return r, nil
}

func (b *bench) coldStart() (r Row, err error) {
	l, err := b.filled()
	if err != nil {
		return r, err
	}
	var all []float64
	warm := ""
	for i := range b.runs {
		if err := b.end(l.p, os.Interrupt); err != nil {
			return r, err
		}
		if err := machine.DropCaches(); err != nil {
			warm = "the cache was warm: only root can make it cold"
		}
		begun := time.Now()
		if err := b.serve(l.p); err != nil {
			return r, err
		}
		for acked := false; !acked; {
			o, err := load.Run(load.Plan{Address: l.p.address, Conns: 1, Users: 1, First: l.next, Count: 1, Path: "/2/httpapi"}, nil)
			if err != nil {
				return r, err
			}
			if acked = o.Events == 1; !acked && time.Since(begun) > time.Minute {
				return r, fmt.Errorf("no event was acknowledged in a minute: %s", o.Failure)
			}
		}
		all = append(all, float64(time.Since(begun).Microseconds())/1000)
		l.next++
		l.sent++
		b.say("run %d of %d: %.0f ms", i+1, b.runs, all[i])
	}
	r.Measured = fmt.Sprintf("%.0f ms", median(all))
	r.Values = map[string]float64{"ms": median(all)}
	r.Verdict, r.Note = verdict(median(all) <= 100), b.queuedNote()+warm
	return r, nil
}

// behind runs row 1's load with 10 M queued and with an empty queue, by turns, deliveries running at ampcio's default pace.
func (b *bench) behind() (*backlog, error) {
	l, err := b.filled()
	if err != nil || l.runs.ours != nil {
		return l, err
	}
	for i := range b.runs {
		plan := load.Plan{Events: 100, Duration: b.seconds}
		empty, err := b.daemon(stream{name: "empty"})
		if err != nil {
			return nil, err
		}
		first := plan
		first.First = 1_000_000
		if err := b.warm(empty, first); err != nil {
			return nil, err
		}
		e, err := b.against(empty, plan)
		if err != nil {
			return nil, err
		}
		if err := b.discard(empty); err != nil {
			return nil, err
		}
		b.say("run %d of %d, empty: %v", i+1, b.runs, e)
		if err := b.command(l.p, "sync", "resume", "queued"); err != nil {
			return nil, err
		}
		first.First, first.Address, first.Duration = l.next, l.p.address, 500*time.Millisecond
		w, _, err := b.generate(first, nil)
		if err != nil {
			return nil, err
		}
		plan.First = l.next + 10_000
		o, err := b.against(l.p, plan)
		if err != nil {
			return nil, err
		}
		l.next += 20_000
		l.sent += w.Events + o.Events
		b.say("run %d of %d, with a backlog: %v", i+1, b.runs, o)
		if err := b.command(l.p, "sync", "pause", "queued"); err != nil {
			return nil, err
		}
		l.runs.ours, l.runs.ceiling = append(l.runs.ours, o), append(l.runs.ceiling, e)
	}
	return l, nil
}

func (b *bench) behindBacklog() (r Row, err error) {
	l, err := b.behind()
	if err != nil {
		return r, err
	}
	full, empty := of(l.runs.ours, perSecond), of(l.runs.ceiling, perSecond)
	late, usual := of(l.runs.ours, p99), of(l.runs.ceiling, p99)
	r.Measured = fmt.Sprintf("%s events/s, p99 %.1f ms; empty: %s, %.1f ms", count(full), late, count(empty), usual)
	r.Ratio = fmt.Sprintf("%.2f ×; p99 %.2f ×", full/empty, late/usual)
	r.Values = map[string]float64{"events_per_s": full, "events_per_s_empty": empty, "p99_ms": late, "p99_ms_empty": usual}
	r.Verdict, r.Note = verdict(full >= 0.95*empty && late <= 1.2*usual), b.queuedNote()
	return r, nil
}

func (b *bench) memory() (r Row, err error) {
	single, err := b.ingest("1")
	if err != nil {
		return r, err
	}
	many, err := b.ingest("100")
	if err != nil {
		return r, err
	}
	l, err := b.behind()
	if err != nil {
		return r, err
	}
	x, y, z := of(single.ours, anonymous), of(many.ours, anonymous), of(l.runs.ours, anonymous)-of(l.runs.ceiling, anonymous)
	r.Measured = fmt.Sprintf("%s / %s / %+.0f MiB", mib(x), mib(y), z/(1<<20))
	r.Values = map[string]float64{"anonymous_bytes_1": x, "anonymous_bytes_100": y, "added_bytes": z}
	r.Verdict, r.Note = verdict(x <= 64<<20 && y <= 128<<20 && z <= 32<<20), b.queuedNote()
	return r, nil
}

// afterDrain delivers everything that the other rows have queued, and looks whether all of it has come.
func (b *bench) afterDrain() (r Row, err error) {
	l, err := b.filled()
	if err != nil {
		return r, err
	}
	defer func() { b.backlog = nil; _ = b.discard(l.p) }()
	if err := b.end(l.p, os.Interrupt); err != nil {
		return r, err
	}
	if err := b.configure(l.p, stream{name: "queued", fast: true}); err != nil {
		return r, err
	}
	if err := b.serve(l.p); err != nil {
		return r, err
	}
	if err := b.command(l.p, "sync", "resume", "queued"); err != nil {
		return r, err
	}
	begun := time.Now()
	out, err := b.arrived(l.sent, "queued")
	if err != nil {
		return r, err
	}
	const most = 2 * 128 << 20
	storage := filepath.Join(l.p.dir, "storage")
	var all, log int64
	// Files go some moments after their last record has ended; only the disk tells.
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		log, _ = machine.Used(filepath.Join(storage, "log"))
		if all, _ = machine.Used(storage); log <= most {
			break
		}
	}
	r.Measured = fmt.Sprintf("log %s, with users, ledger and reserve %s; %s events, none missing, twice or out of order, the last part in %.0f s", mib(float64(log)), mib(float64(all)), count(float64(out.Events)), time.Since(begun).Seconds())
	r.Ratio = fmt.Sprintf("%.2f files", float64(log)/(most/2))
	r.Values = map[string]float64{"log_bytes": float64(log), "storage_bytes": float64(all), "events": float64(out.Events)}
	r.Verdict, r.Note = verdict(log <= most), b.queuedNote()
	return r, nil
}
