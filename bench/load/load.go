// Package load sends events over connections that are kept, each with one request in flight. A user belongs to one
// connection, so the order in which a user's events were sent is that of their numbers in event_properties.seq.
package load

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"ampcio-bench/hist"
)

// A Plan says what is sent. It ends after Duration or Count events, what comes first.
type Plan struct {
	Address  string        // host:port
	Path     string        // [/2/httpapi]
	Events   int           // in each request [1]
	Size     int           // bytes of an event [700]
	Conns    int           // connections [64]
	Users    int           // [10,000]
	First    int           // number of the first user
	Spread   string        // how users are drawn: uniform [the default], zipf, or turns: one after the other, Count the same for each connection
	Seq      int           // the last number that each user has had
	Steady   bool          // users' properties never change
	Rate     float64       // events a second; latency counts from the moment that was planned. 0 = as fast as answers come
	Duration time.Duration // 0 = until Count
	Count    int64         // 0 = until Duration
	Tell     time.Duration // print latencies so often to Told; 0 = never
	Again    bool          // a request that is not answered 200 is sent until it is

	Bodies []string `json:",omitempty"` // files with ready-made requests to send instead of events; then Basic is their credentials
	Basic  string   `json:",omitempty"`
}

// A Result is what came of a plan.
type Result struct {
	Seconds  float64
	Requests int64
	Events   int64 // that were answered 200
	Bytes    int64 // of bodies that were answered 200
	Failed   int64 // requests without answer, or with another one
	Failure  string
	Latency  hist.Percentiles
}

// PerSecond is events that were answered.
func (r Result) PerSecond() float64 { return float64(r.Events) / r.Seconds }

type counts struct {
	requests, events, bytes, failed atomic.Int64
	failure                         atomic.Pointer[string]
	latency, lately                 hist.Hist
	left                            atomic.Int64 // requests
	run                             uint64       // makes insert_ids of each run others
	begun                           time.Time
}

// Run sends. told hears of the latencies of each stretch of p.Tell.
func Run(p Plan, told func(hist.Percentiles)) (Result, error) {
	p.Path, p.Spread = orElse(p.Path, "/2/httpapi"), orElse(p.Spread, "uniform")
	p.Events, p.Size, p.Conns, p.Users = orElse(p.Events, 1), orElse(p.Size, 700), orElse(p.Conns, 64), orElse(p.Users, 10_000)
	if p.Users < p.Conns || p.Duration == 0 && p.Count == 0 {
		return Result{}, fmt.Errorf("at least as many users as connections, and a duration or a count: %+v", p)
	}
	c := &counts{run: rand.Uint64()}
	c.left.Store(1 << 62)
	if p.Count > 0 {
		c.left.Store((p.Count + int64(p.Events) - 1) / int64(p.Events))
	}
	senders := make([]*sender, p.Conns)
	for i := range senders {
		s, err := newSender(&p, c, i)
		if err != nil {
			return Result{}, err
		}
		senders[i] = s
	}
	c.begun = time.Now()
	ended := make(chan struct{})
	var telling sync.WaitGroup
	if p.Tell > 0 {
		telling.Go(func() {
			tick := time.NewTicker(p.Tell)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					told(c.lately.Take())
				case <-ended:
					return
				}
			}
		})
	}
	var wg sync.WaitGroup
	for _, s := range senders {
		wg.Go(s.run)
	}
	wg.Wait()
	took := time.Since(c.begun).Seconds()
	close(ended)
	telling.Wait()
	r := Result{Seconds: took, Requests: c.requests.Load(), Events: c.events.Load(), Bytes: c.bytes.Load(), Failed: c.failed.Load(), Latency: c.latency.Take()}
	if f := c.failure.Load(); f != nil {
		r.Failure = *f
	}
	return r, nil
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

type sender struct {
	p      *Plan
	c      *counts
	id     int
	bodies []*body
	client client
}

func newSender(p *Plan, c *counts, id int) (*sender, error) {
	s := &sender{p: p, c: c, id: id, client: client{address: p.Address}}
	s.client.head = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%sContent-Length: ", p.Path, p.Address, basic(p.Basic))
	if len(p.Bodies) > 0 {
		for _, file := range p.Bodies {
			b, err := readBody(file)
			if err != nil {
				return nil, err
			}
			s.bodies = append(s.bodies, b)
		}
		return s, nil
	}
	r := rand.New(rand.NewPCG(1, uint64(id))) // the same bodies in every run
	for range max(1, min(16, 64/p.Events)) {
		s.bodies = append(s.bodies, newBody(p.Events, p.Size, p.Steady, r))
	}
	return s, nil
}

// users of this connection are those whose number leaves its own as the rest.
func (s *sender) users() func() int {
	mine := (s.p.Users - s.id + s.p.Conns - 1) / s.p.Conns
	r := rand.New(rand.NewPCG(s.c.run, uint64(s.id)))
	switch s.p.Spread {
	case "zipf":
		z := rand.NewZipf(r, 1.1, 1, uint64(mine-1))
		return func() int { return int(z.Uint64()) }
	case "turns":
		next := -1
		return func() int { next++; return next % mine }
	}
	return func() int { return r.IntN(mine) }
}

func (s *sender) run() {
	defer s.client.close()
	p, c := s.p, s.c
	user, seqs := s.users(), make([]uint32, p.Users/p.Conns+1)
	for i := range seqs {
		seqs[i] = uint32(p.Seq)
	}
	left := &c.left
	if p.Spread == "turns" && p.Count > 0 {
		left = new(atomic.Int64)
		left.Store(p.Count / int64(p.Events*p.Conns))
	}
	var end time.Time
	if p.Duration > 0 {
		end = c.begun.Add(p.Duration)
	}
	var every time.Duration
	if p.Rate > 0 {
		every = time.Duration(float64(time.Second) * float64(p.Conns) * float64(p.Events) / p.Rate)
	}
	next := c.begun.Add(every * time.Duration(s.id) / time.Duration(p.Conns))
	number := uint64(s.id) << 36
	for k := 0; left.Add(-1) >= 0; k++ {
		from := time.Now()
		if every > 0 {
			time.Sleep(next.Sub(from)) // the pace that was asked for
			from, next = next, next.Add(every)
		}
		if now := time.Now(); !end.IsZero() && now.After(end) {
			return
		}
		b := s.bodies[k%len(s.bodies)]
		now := time.Now().UnixMicro()
		if b.slots != nil {
			for i := range b.slots {
				u := user()
				seqs[u]++
				number++
				b.set(i, event{user: uint64(p.First + u*p.Conns + s.id), run: c.run, number: number, seq: uint64(seqs[u]), us: now})
			}
		}
		for {
			c.requests.Add(1)
			status, err := s.client.do(b.bytes)
			if err == nil && status == 200 {
				took := time.Since(from)
				c.latency.Add(took)
				if p.Tell > 0 {
					c.lately.Add(took)
				}
				c.events.Add(int64(max(len(b.slots), 1)))
				c.bytes.Add(int64(len(b.bytes)))
				break
			}
			if err == nil {
				err = fmt.Errorf("answer %d", status)
			}
			text := err.Error()
			c.failed.Add(1)
			c.failure.CompareAndSwap(nil, &text)
			if !p.Again || !end.IsZero() && time.Since(end) > 10*time.Second {
				break
			}
			time.Sleep(20 * time.Millisecond) // as a sender who was told to come again
		}
	}
}
