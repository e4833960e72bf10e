package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// The script of the demo: traffic all along, an outage, and a kill in the middle.
const (
	demoLimit       = 60 * time.Second
	demoUsers       = 300
	demoEvents      = 6000
	demoSpread      = 18 * time.Second
	demoOutageAfter = 4 * time.Second
	demoOutage      = 6 * time.Second
	demoKillAfter   = 7 * time.Second // while Customer.io is down
	demoKillAgain   = 13 * time.Second
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "the whole thing on this machine: a sandbox Customer.io, the daemon, SDK traffic, an outage and a crash",
		Description: "Starts a sandbox Customer.io and the daemon on free loopback ports with a fresh storage folder,\n" +
			"replays recorded requests of real Amplitude SDKs and some thousand generated events, takes the\n" +
			"sandbox down for some seconds, kills the daemon twice, lets the queue drain, and compares what\n" +
			"was acknowledged with what arrived. It ends within a minute, with exit code 0 only when nothing\n" +
			"was lost, doubled or out of order.",
		UsageText: "ampcio demo [--keep] [--json]",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "keep", Usage: "leave everything running afterwards, to play with"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object at the end, instead of the story"}},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return exit(exitUsage, fmt.Errorf("demo takes no arguments: %q", c.Args().First()))
			}
			if c.Bool("json") && c.Bool("keep") {
				return exit(exitUsage, errors.New("--keep is for people, and --json is for machines: give one of them"))
			}
			return demo(c.Context, c.App.Writer, c.Bool("keep"), c.Bool("json"))
		},
	}
}

func demo(ctx context.Context, out io.Writer, keep, asJSON bool) (err error) {
	began := time.Now()
	machine := out
	if asJSON {
		out = io.Discard
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ampcio-demo-")
	if err != nil {
		return exit(exitCantCreate, err)
	}
	r, err := rehearsal.New(dir, func(args ...string) *exec.Cmd {
		c := exec.Command(self, args...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which stops its daemon itself
		return c
	},
		rehearsal.Settings{Sandbox: sandbox.Options{Seed: 1, Faults: faraway()}, Storage: "min_free = \"16MiB\"\n"})
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		err = errors.Join(err, r.Close())
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		} else {
			fmt.Fprintf(out, "everything that was written is kept in %s\n", dir)
		}
	}()
	limited, cancel := context.WithTimeout(ctx, demoLimit-5*time.Second)
	defer cancel()
	s := &stage{out: out, began: began, r: r, t: rehearsal.NewTraffic(r, demoUsers, demoEvents, uint64(began.UnixNano()))}
	if f, ok := out.(*os.File); ok {
		s.terminal = term.IsTerminal(int(f.Fd()))
	}
	v, err := s.play(limited)
	if err != nil && ctx.Err() != nil {
		s.say("stopped before the end")
		return errors.New("the demo was stopped: nothing is proved")
	}
	if err != nil {
		return err
	}
	s.sayVerdict(v)
	if asJSON {
		if err := tell(machine, shownVerdict(&v, time.Since(began))); err != nil {
			return err
		}
	}
	if keep {
		err = s.stay(ctx)
	}
	if len(v.Problems) > 0 {
		err = errors.Join(err, errors.New("the demo has found ampcio wanting"))
	}
	return err
}

// faraway lets the sandbox answer as slowly as a host across the internet, so that
// a kill meets requests in flight.
func faraway() sandbox.Faults {
	return sandbox.Faults{Latency: 60 * time.Millisecond, Jitter: 60 * time.Millisecond}
}

// stage shows what happens.
type stage struct {
	out      io.Writer
	terminal bool
	began    time.Time
	r        *rehearsal.Rehearsal
	t        *rehearsal.Traffic
}

func (s *stage) say(format string, args ...any) {
	if s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K") // over the live line
	}
	fmt.Fprintf(s.out, "%5.1fs  "+format+"\n", append([]any{time.Since(s.began).Seconds()}, args...)...)
}

// play runs the script and gives the verdict.
func (s *stage) play(ctx context.Context) (rehearsal.Verdict, error) {
	if err := s.r.Start(ctx); err != nil {
		return rehearsal.Verdict{}, err
	}
	s.say("a sandbox Customer.io runs on %s, ampcio on %s", s.r.SandboxURL, s.r.Listen)
	ids, err := s.t.Replay(ctx)
	if err != nil {
		return rehearsal.Verdict{}, err
	}
	s.say("%d recorded requests of real Amplitude SDKs were taken (%d events)", len(recordings.All()), s.t.Recorded.Load())

	sending := make(chan error, 1)
	go func() { sending <- s.t.Run(ctx, demoSpread) }()
	s.say("%s events of %d users begin to come", humanize.Comma(demoEvents), demoUsers)
	start := time.Now()
	script := []struct {
		after time.Duration
		do    func() error
	}{
		{demoOutageAfter, func() error {
			s.say("Customer.io goes down for %s; events keep coming", demoOutage)
			down := faraway()
			down.Outages = []sandbox.Outage{{FromNow: true, Length: demoOutage, How: "503"}}
			s.r.Sandbox.SetFaults(down)
			return nil
		}},
		{demoKillAfter, func() error { return s.killAndStart(ctx, "while Customer.io is down") }},
		{demoOutageAfter + demoOutage, func() error { s.say("Customer.io is back"); return nil }},
		{demoKillAgain, func() error {
			look := time.NewTicker(time.Millisecond)
			defer look.Stop()
			for s.r.Sandbox.Report().InFlight == 0 && ctx.Err() == nil {
				<-look.C // for the moment in which it hurts
			}
			return s.killAndStart(ctx, "in the middle of a delivery")
		}},
	}
	for _, step := range script {
		if err := s.watch(ctx, time.Until(start.Add(step.after)), sending); err != nil {
			return rehearsal.Verdict{}, err
		}
		if err := step.do(); err != nil {
			return rehearsal.Verdict{}, err
		}
	}
	if err := s.watch(ctx, demoLimit, sending); err != nil {
		return rehearsal.Verdict{}, err
	}
	s.say("all events are sent and acknowledged; the queue drains")
	books, err := s.r.Drained(ctx)
	if err != nil {
		return rehearsal.Verdict{}, err
	}
	s.live(ctx)
	return s.t.Verdict(ids, books), nil
}

func (s *stage) killAndStart(ctx context.Context, when string) error {
	s.say("kill -9 of ampcio, %s", when)
	if err := s.r.Kill(); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.r.Start(ctx); err != nil {
		return err
	}
	s.say("ampcio is up again after %s", time.Since(begin).Round(time.Millisecond))
	return nil
}

// watch shows the numbers for a while, or until all is sent.
func (s *stage) watch(ctx context.Context, d time.Duration, sending chan error) error {
	every := time.Second
	if s.terminal {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	end := time.After(max(d, 0))
	for {
		select {
		case err := <-sending:
			sending <- err // for the next watch
			if err != nil || d == demoLimit {
				return err
			}
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			s.live(ctx)
			continue
		}
		// All is sent, and a step is still to come.
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			s.live(ctx)
		}
	}
}

// live shows what is received, queued and delivered.
func (s *stage) live(ctx context.Context) {
	snap, err := s.r.Stats(ctx)
	if err != nil || len(snap.Syncs) == 0 {
		return // it is down: the next look will tell
	}
	y := snap.Syncs[0]
	line := fmt.Sprintf("%5.1fs  received %6s   queued %6s   delivered %6s   filtered %5s   %s", time.Since(s.began).Seconds(),
		humanize.Comma(int64(y.Books.Taken)), humanize.Comma(int64(y.Books.Pending)), humanize.Comma(int64(y.Totals.Delivered)),
		humanize.Comma(int64(y.Totals.Filtered)), y.Status)
	if s.terminal {
		fmt.Fprintf(s.out, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintln(s.out, line)
	}
}

func (s *stage) sayVerdict(v rehearsal.Verdict) {
	s.say("drained")
	p := func(what string, n int64, more string) {
		fmt.Fprintf(s.out, "  %-13s %8s   %s\n", what, humanize.Comma(n), more)
	}
	fmt.Fprintln(s.out)
	p("received", s.t.Sent.Load(), "events acknowledged, of which "+humanize.Comma(s.t.Repeats.Load())+" were sent a second time")
	for _, y := range v.Books.Syncs {
		p("delivered", int64(y.Totals.Delivered), fmt.Sprintf("records: %s events, %s user updates", humanize.Comma(int64(y.Totals.EventsDelivered)), humanize.Comma(int64(y.Totals.UsersDelivered))))
		p("filtered", int64(y.Totals.Filtered), "records that the rules do not send")
	}
	p("checked", v.Acknowledged, "events compared one by one with Customer.io; it ignored "+humanize.Comma(v.Repeats)+" repeats of the same id")
	p("lost", v.Lost, "")
	p("doubled", v.Doubled, "")
	p("out of order", v.OutOfOrder, "")
	books := "balanced"
	for _, y := range v.Books.Syncs {
		if !y.Books.Balanced {
			books = fmt.Sprintf("OUT BY %d", y.Books.Difference)
		}
	}
	fmt.Fprintf(s.out, "  %-13s %8s\n\n", "books", books)
	if len(v.Problems) == 0 {
		fmt.Fprintf(s.out, "no loss, no doubles, in order: proved in %.0f s\n", time.Since(s.began).Seconds())
		return
	}
	for _, problem := range v.Problems {
		fmt.Fprintln(s.out, "WRONG:", problem)
	}
}

// demoVerdict is what a demo tells a machine.
type demoVerdict struct {
	OK         bool     `json:"ok"`
	Took       int64    `json:"took_s"`
	Checked    int64    `json:"checked"` // events, one by one
	Delivered  int64    `json:"delivered"`
	Lost       int64    `json:"lost"`
	Doubled    int64    `json:"doubled"`
	OutOfOrder int64    `json:"out_of_order"`
	Repeats    int64    `json:"repeats_ignored"`
	Problems   []string `json:"problems"`
}

func shownVerdict(v *rehearsal.Verdict, took time.Duration) demoVerdict {
	return demoVerdict{len(v.Problems) == 0, seconds(took), v.Acknowledged, v.Delivered, v.Lost, v.Doubled, v.OutOfOrder, v.Repeats, append([]string{}, v.Problems...)}
}

// stay keeps everything running until the user ends it.
func (s *stage) stay(ctx context.Context) error {
	self := "ampcio"
	if args := os.Args; len(args) > 0 && filepath.Dir(args[0]) != "." {
		self = args[0]
	}
	fmt.Fprintf(s.out, `
Everything keeps running. Send an event:
  curl -s http://%s/2/httpapi -H 'content-type: application/json' -d '{"api_key":"%s","events":[{"user_id":"you-12345","event_type":"Hello","user_properties":{"plan":"pro"}}]}'
See it in the sandbox:
  curl -s %s/_sandbox/people/you-12345
See the queue:
  %s queue-stats --config %s
Take Customer.io down for 20 s:
  curl -s -X POST '%[3]s/_sandbox/faults?outage=20s'
Status page: http://%[6]s/   log: %[7]s
Ctrl-C ends it all.
`, s.r.Listen, recordings.Key, s.r.SandboxURL, self, s.r.ConfigPath, s.r.Admin, s.r.LogFile.Name())
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.r.Ended:
		s.r.Daemon = nil
		return fmt.Errorf("the daemon has ended: %w", err)
	}
}
