package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ampcio-bench/hist"
	"ampcio-bench/load"
	"ampcio-bench/machine"
	"ampcio-bench/sink"
)

// bench runs what is measured, as processes of their own, on the machine that they all share.
type bench struct {
	ctx          context.Context
	began        time.Time
	ampcio, self string // programs
	dir          string // for all storage
	quick        bool
	runs         int
	seconds      time.Duration // of a run
	queued, most int           // the long queue, and the most users
	hour         time.Duration
	row          int // that is being measured, for what is said

	running []*process
	sink    string // address, once it runs
	ceiling *process
	shapes  map[string]pair
	backlog *backlog
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.0f s    row %d, %s\n", time.Since(b.began).Seconds(), b.row, fmt.Sprintf(format, args...))
}

// process is one that has been started; it ends with bench.
type process struct {
	cmd     *exec.Cmd
	address string
	ended   chan error
	dir     string // of a daemon
	config  string
	kept    bool // beyond its row
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (b *bench) start(p *process, program string, args ...string) error {
	p.cmd = exec.Command(program, args...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	p.cmd.Stderr = &said
	if p.dir != "" {
		f, err := os.OpenFile(filepath.Join(p.dir, "said"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		p.cmd.Stderr = f
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.ended = make(chan error, 1)
	go func() { p.ended <- p.cmd.Wait() }()
	b.running = append(b.running, p)
	// Another process cannot say that it listens but by listening.
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", p.address)
		if err == nil {
			return c.Close()
		}
		select {
		case err := <-p.ended:
			p.ended <- err
			if p.dir != "" {
				text, _ := os.ReadFile(filepath.Join(p.dir, "said"))
				said.Write(text)
			}
			return fmt.Errorf("%s %v ended at its start: %v\n%s", program, args, err, tail(said.String()))
		case <-b.ctx.Done():
			return b.ctx.Err()
		default:
		}
	}
	return fmt.Errorf("%s %v does not listen after a minute", program, args)
}

func tail(s string) string { return s[max(0, len(s)-600):] }

// end stops p by s and waits for its end.
func (b *bench) end(p *process, s os.Signal) error {
	b.running = slices.DeleteFunc(b.running, func(o *process) bool { return o == p })
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := <-p.ended; err != nil && s != os.Kill {
		return fmt.Errorf("end of %s: %w", p.cmd.Path, err)
	}
	return nil
}

// discard ends p, and nothing of it is left.
func (b *bench) discard(p *process) error {
	err := b.end(p, os.Kill)
	if p.dir != "" {
		err = errors.Join(err, os.RemoveAll(p.dir))
	}
	return err
}

func (b *bench) stopAll() {
	for len(b.running) > 0 {
		_ = b.discard(b.running[0])
	}
}

func (b *bench) stopUnkept() {
	for _, p := range slices.Clone(b.running) {
		if !p.kept {
			_ = b.discard(p)
		}
	}
}

func freeAddress() string {
	for {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))) // below what connections get
		if err == nil {
			address := l.Addr().String()
			l.Close()
			return address
		}
	}
}

// sinkAddress starts the sink when it is first asked for.
func (b *bench) sinkAddress() (string, error) {
	if b.sink == "" {
		p := &process{address: freeAddress(), kept: true}
		if err := b.start(p, b.self, "sink", p.address); err != nil {
			return "", err
		}
		b.sink = p.address
	}
	return b.sink, nil
}

func (b *bench) ceilingServer() (*process, error) {
	if b.ceiling == nil {
		p := &process{address: freeAddress(), kept: true}
		if err := b.start(p, b.self, "ceiling", p.address); err != nil {
			return nil, err
		}
		b.ceiling = p
	}
	return b.ceiling, nil
}

// stream is a sync. Its name is also its Site ID, by which the sink keeps books.
type stream struct {
	name   string
	fast   bool // no bound but the machine's, in batches of 500,000 bytes; else ampcio's defaults: 100 requests a second of 500 operations
	paused bool
	down   bool // nobody is where it sends to
}

// daemon starts a fresh ampcio with these streams.
func (b *bench) daemon(streams ...stream) (*process, error) {
	dir, err := os.MkdirTemp(b.dir, "daemon-")
	if err != nil {
		return nil, err
	}
	p := &process{address: freeAddress(), dir: dir, config: filepath.Join(dir, "config.toml")}
	if err := b.configure(p, streams...); err != nil {
		return nil, err
	}
	if err := b.serve(p); err != nil {
		return nil, err
	}
	for _, s := range streams {
		if err := b.post("/reset?site=" + s.name); err != nil {
			return nil, err
		}
		if s.paused {
			if err := b.command(p, "sync", "pause", s.name); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (b *bench) serve(p *process) error { return b.start(p, b.ampcio, "serve", "--config", p.config) }

func (b *bench) configure(p *process, streams ...stream) error {
	address, err := b.sinkAddress()
	if err != nil {
		return err
	}
	var s strings.Builder
	fmt.Fprintf(&s, "[server]\nlisten = %q\nadmin = \"\"\nsocket = %q\n[log]\nlevel = \"warn\"\n[storage]\ndir = %q\nkeep = \"0s\"\nmax_bytes = \"40GiB\"\nmin_free = \"512MiB\"\n[project.app]\namplitude_api_keys = [%q]\nrelay = \"off\"\n",
		p.address, filepath.Join(p.dir, "s"), filepath.Join(p.dir, "storage"), load.Key)
	for _, st := range streams {
		to := address
		if st.down {
			to = freeAddress()
		}
		fmt.Fprintf(&s, "[sync.%[1]s]\nregion = \"us\"\nsite_id = %[1]q\napi_key = \"key\"\nendpoint = \"http://%[2]s\"\nidentifier = \"user_id\"\n[[sync.%[1]s.select]]\nevent = [\"*\"]\n[sync.%[1]s.events]\nproperties = [\"*\"]\n[sync.%[1]s.users]\nproperties = [\"*\"]\n[sync.%[1]s.delivery]\nmax_pending_bytes = \"16GiB\"\n", st.name, to)
		if st.fast {
			s.WriteString("requests_per_second = 10000\nbatch_operations = 10000\n")
		}
	}
	return os.WriteFile(p.config, []byte(s.String()), 0o600)
}

// command runs ampcio against p.
func (b *bench) command(p *process, args ...string) error {
	out, err := exec.CommandContext(b.ctx, b.ampcio, append(args, "--config", p.config)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ampcio %s: %v\n%s", strings.Join(args, " "), err, tail(string(out)))
	}
	return nil
}

func (b *bench) version() string {
	out, err := exec.CommandContext(b.ctx, b.ampcio, "--version").Output()
	if err != nil {
		return err.Error()
	}
	version := strings.TrimSpace(strings.TrimPrefix(string(out), "ampcio "))
	version, _, _ = strings.Cut(version, "\n")
	if commit, err := exec.CommandContext(b.ctx, "git", "describe", "--always", "--dirty", "--abbrev=8").Output(); err == nil {
		version += " (" + strings.TrimSpace(string(commit)) + ")"
	}
	return version
}

func (b *bench) post(path string) error {
	r, err := http.Post("http://"+b.sink+path, "", nil)
	if err != nil {
		return err
	}
	return r.Body.Close()
}

func (b *bench) get(path string) ([]byte, error) {
	r, err := http.Get("http://" + b.sink + path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", path, r.Status)
	}
	return io.ReadAll(r.Body)
}

func (b *bench) report(site string) (sink.Report, error) {
	var all map[string]sink.Report
	text, err := b.get("/report")
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	return all[site], err
}

// arrived waits until the sink has n events of each site, and looks whether all is as promised.
func (b *bench) arrived(n int64, sites ...string) (r sink.Report, err error) {
	for _, site := range sites {
		have, since := int64(-1), time.Now()
		for have < n {
			text, err := b.get("/events?site=" + site)
			if err != nil {
				return r, err
			}
			now, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if now > have {
				have, since = now, time.Now()
			}
			if time.Since(since) > time.Minute || b.ctx.Err() != nil {
				return r, fmt.Errorf("the sink has %d of %d events, and nothing more comes", have, n)
			}
			time.Sleep(50 * time.Millisecond) // to ask more often would take CPU from what is measured
		}
		if r, err = b.report(site); err != nil {
			return r, err
		}
		if r.Events != n {
			return r, fmt.Errorf("the sink has %d events of %d that were answered", r.Events, n)
		}
		if err := r.Wrong(); err != nil {
			return r, fmt.Errorf("at the sink: %w", err)
		}
	}
	return r, nil
}

// generate runs the generator as a process of its own.
func (b *bench) generate(p load.Plan, told func(hist.Percentiles)) (r load.Result, cpu float64, err error) {
	plan, err := json.Marshal(p)
	if err != nil {
		return r, 0, err
	}
	c := exec.CommandContext(b.ctx, b.self, "load", string(plan))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.StdoutPipe()
	if err != nil {
		return r, 0, err
	}
	if err := c.Start(); err != nil {
		return r, 0, err
	}
	r, err = result(bufio.NewScanner(out), told)
	if ended := c.Wait(); ended != nil {
		return r, 0, fmt.Errorf("the generator: %w %s", ended, tail(said.String()))
	}
	if err == nil && r.Failed > 0 && !p.Again {
		err = fmt.Errorf("%d requests failed: %s", r.Failed, r.Failure)
	}
	u := c.ProcessState
	return r, (u.UserTime() + u.SystemTime()).Seconds(), err
}

// once is a run of the generator against p, and what p used.
type once struct {
	load.Result
	cpu     float64 // µs of p an event
	anon    float64 // bytes of p, at most
	written float64 // bytes of the disk
	disk    string
	other   float64 // cores that others used
}

func (b *bench) against(p *process, plan load.Plan) (o once, err error) {
	plan.Address = p.address
	if err := machine.Flush(b.dir); err != nil {
		return o, err
	}
	before, _ := machine.Written(b.dir)
	busy, cpu, peak := machine.Busy(), machine.CPU(p.pid()), machine.Watch(p.pid())
	var generator float64
	o.Result, generator, err = b.generate(plan, nil)
	o.anon = float64(peak.Stop())
	used := machine.CPU(p.pid()) - cpu
	o.cpu = used * 1e6 / float64(max(1, o.Events))
	o.other = (machine.Busy() - busy - used - generator) / max(o.Seconds, 0.001)
	if err := machine.Flush(b.dir); err != nil {
		return o, err
	}
	after, disk := machine.Written(b.dir)
	o.written, o.disk = float64(after-before), disk
	if err == nil && o.Events == 0 {
		err = errors.New("nothing was answered")
	}
	return o, err
}

func (o once) String() string {
	return fmt.Sprintf("%s events/s, p99 %.1f ms, %.2f µs of CPU an event, %s anonymous, %.2f cores used by others", count(o.PerSecond()), o.Latency.P99, o.cpu, mib(o.anon), o.other)
}

// of is the median of a value of several runs.
func of(all []once, value func(once) float64) float64 {
	var values []float64
	for _, o := range all {
		values = append(values, value(o))
	}
	return median(values)
}

func perSecond(o once) float64 { return o.PerSecond() }
func p50(o once) float64       { return o.Latency.P50 }
func p99(o once) float64       { return o.Latency.P99 }
func cpuPerEvent(o once) float64 {
	return o.cpu
}
func anonymous(o once) float64 { return o.anon }
func perByte(o once) float64   { return o.written / float64(o.Bytes) }
