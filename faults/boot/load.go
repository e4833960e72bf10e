package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio/admin"
)

// A load is senders in the machine's network. Each has users of its own, whose events it numbers and sends one request after
// another; what is not acknowledged is sent again, as it was, until it is.
type load struct {
	m       *machine
	senders int
	users   int           // of a sender
	most    int           // events of a request
	pause   time.Duration // of a sender, after an acknowledgement
	pace    *pace         // of all senders together; nil = none
	seed    uint64
	clients [2]*http.Client // with a connection for each request, and with some that are kept

	acked  []atomic.Int64 // by user: the number of the last event that was acknowledged
	round  int            // of start
	cancel context.CancelFunc
	group  *errgroup.Group

	tries
}

// tries counts requests by how they ended.
type tries struct {
	good    atomic.Int64 // acknowledged
	refused atomic.Int64 // nobody listened
	broken  atomic.Int64 // no answer came, or another than 200, on a connection of its own

	mu   sync.Mutex
	last string // of what is broken or refused
}

func newLoad(m *machine, senders, users, most int, pause time.Duration, seed uint64) *load {
	l := &load{m: m, senders: senders, users: users, most: most, pause: pause, seed: seed, acked: make([]atomic.Int64, senders*users)}
	for i := range l.clients {
		l.clients[i] = &http.Client{Transport: &http.Transport{DialContext: m.dial, DisableKeepAlives: i == 0, MaxIdleConnsPerHost: senders}}
	}
	return l
}

func userName(u int) string { return fmt.Sprintf("boot-user-%05d", u) }

// start lets the senders go on where they stopped.
func (l *load) start(ctx context.Context) {
	sending, cancel := context.WithCancel(ctx)
	l.cancel, l.group = cancel, new(errgroup.Group)
	l.round++
	for s := range l.senders {
		rng := rand.New(rand.NewPCG(l.seed, uint64(l.round)<<32|uint64(s)))
		l.group.Go(func() error { return l.send(ctx, sending, s, rng) })
	}
}

// stop ends the senders, when what they have begun is acknowledged.
func (l *load) stop() error {
	if l.group == nil {
		return nil
	}
	l.cancel()
	err := l.group.Wait()
	l.group = nil
	return err
}

func (l *load) send(ctx, sending context.Context, sender int, rng *rand.Rand) error {
	next := make([]int64, l.users)
	for u := range next {
		next[u] = l.acked[sender*l.users+u].Load()
	}
	for {
		l.pace.wait(sending)
		if sending.Err() != nil {
			return nil
		}
		body := l.request(rng, sender, next)
		if err := l.deliver(ctx, sender%2 == 1, body); err != nil {
			return err
		}
		for u, n := range next {
			l.acked[sender*l.users+u].Store(n)
		}
		select {
		case <-time.After(l.pause):
		case <-sending.Done():
		}
	}
}

// A pace gives each request a moment to begin, the same time apart, also when those before it still wait.
type pace struct {
	mu    sync.Mutex
	next  time.Time
	apart time.Duration
}

func newPace(rate int) *pace {
	return &pace{next: time.Now(), apart: time.Second / time.Duration(rate)}
}

func (p *pace) wait(ctx context.Context) {
	if p == nil {
		return
	}
	p.mu.Lock()
	at := p.next
	p.next = p.next.Add(p.apart)
	p.mu.Unlock()
	select {
	case <-time.After(time.Until(at)):
	case <-ctx.Done():
	}
}

// request is some events of a sender's users, and counts them.
func (l *load) request(rng *rand.Rand, sender int, next []int64) string {
	var b strings.Builder
	b.WriteString(`{"api_key":"` + amplitudeKey + `","events":[`)
	for i := range 1 + rng.IntN(l.most) {
		if i > 0 {
			b.WriteByte(',')
		}
		u := rng.IntN(l.users)
		next[u]++
		user := userName(sender*l.users + u)
		fmt.Fprintf(&b, `{"event_type":"Step","user_id":%q,"insert_id":"%s-%d","event_properties":{"n":%d},"user_properties":{"plan":"plan-%d"}}`,
			user, user, next[u], next[u], next[u]/5)
	}
	b.WriteString(`]}`)
	return b.String()
}

// soonEnough is how soon after its connection a request comes, from a sender that has enough of the machine.
const soonEnough = 200 * time.Millisecond

// deliver sends a request until it is acknowledged; on a connection of its own, or on one that was kept.
func (l *load) deliver(ctx context.Context, kept bool, body string) error {
	client := l.clients[0]
	if kept {
		client = l.clients[1]
	}
	for {
		began := time.Now()
		var written atomic.Int64 // when the request was, after began; 0 = not yet
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { written.Store(int64(time.Since(began))) }})
		req, err := http.NewRequestWithContext(traced, http.MethodPost, "http://"+publicAddress+"/2/httpapi", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		answered := err == nil
		if answered {
			var answer []byte
			answer, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("answered %d: %.200s", resp.StatusCode, answer)
				if resp.StatusCode < 500 {
					return err // it would never be taken
				}
			}
		}
		excused := false
		switch {
		case err == nil:
			l.good.Add(1)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, errOff):
			l.refused.Add(1)
		case !answered && (kept || written.Load() == 0 || time.Duration(written.Load()) > soonEnough):
			// A connection that says nothing for half a second while a service stops is closed. One that is kept may just then
			// be used again, and this sender may have been too slow.
			excused = true
		default:
			l.broken.Add(1)
		}
		if !excused {
			l.mu.Lock()
			l.last = err.Error()
			l.mu.Unlock()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// acknowledged is how many events were.
func (l *load) acknowledged() (n int64) {
	for u := range l.acked {
		n += l.acked[u].Load()
	}
	return n
}

// flowing waits until so many more requests are acknowledged.
func (l *load) flowing(ctx context.Context, requests int64) error {
	from := l.good.Load()
	return soon(ctx, fmt.Sprintf("%d more requests to be acknowledged", requests), func() (bool, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.good.Load() >= from+requests, fmt.Errorf("there are %d; the last trouble: %s", l.good.Load()-from, l.last)
	})
}

// verify compares what was acknowledged with what Customer.io has got, with the books, and with an audit of the disk. The
// senders must be stopped.
func (l *load) verify(ctx context.Context, audit bool) error {
	acked := l.acknowledged()
	err := soon(ctx, "every acknowledged event to be delivered", func() (bool, error) {
		got := l.m.customerio.Report().Events.Unique
		return got >= acked, fmt.Errorf("%d of %d are", got, acked)
	})
	if err != nil {
		return err
	}
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	r := l.m.customerio.Report()
	wrong(r.Events.Unique != acked, "%d events were acknowledged, Customer.io has %d", acked, r.Events.Unique)
	wrong(r.Events.Differing > 0, "two events share the id %s", r.Events.FirstDiffering)
	wrong(r.Order.OutOfOrder > 0, "%d events out of order: %s", r.Order.OutOfOrder, r.Order.First)
	wrong(r.Order.Missing > 0, "%d events are missing at Customer.io", r.Order.Missing)
	wrong(r.Order.Repeated > 0, "%d events are doubled at Customer.io", r.Order.Repeated)
	wrong(r.Order.Overlaps > 0, "a person was in two requests at once: %s", r.Order.FirstOverlap)
	people := map[string]int64{}
	plans := map[string]string{}
	for _, p := range l.m.customerio.People() {
		people[p.ID], plans[p.ID] = p.EventCount, string(p.Attributes["plan"])
	}
	for u := range l.acked {
		n := l.acked[u].Load()
		if n == 0 {
			continue
		}
		wrong(people[userName(u)] != n, "%s: %d events were acknowledged, Customer.io has %d", userName(u), n, people[userName(u)])
		wrong(plans[userName(u)] != fmt.Sprintf("%q", fmt.Sprintf("plan-%d", n/5)), "%s: at Customer.io the plan is %s after event %d", userName(u), plans[userName(u)], n)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The answers of the last requests may have to be entered yet.
	err = soon(ctx, "balanced books with nothing pending", func() (bool, error) {
		snap, err := admin.Ask(ctx, l.m.path("/run/ampcio/admin.sock"))
		if err != nil {
			return false, err
		}
		if len(snap.Syncs) != 1 {
			return false, fmt.Errorf("%d syncs in the books", len(snap.Syncs))
		}
		y := snap.Syncs[0]
		return y.Books.Balanced && y.Books.Pending == 0 && y.Books.Taken == uint64(acked) && y.Totals.Dead == 0 && y.Totals.Lost == 0,
			fmt.Errorf("taken %d (acknowledged %d), pending %d, dead %d, lost %d, out by %d", y.Books.Taken, acked, y.Books.Pending, y.Totals.Dead, y.Totals.Lost, y.Books.Difference)
	})
	if err != nil || !audit {
		return err
	}
	said, err := l.m.run(ctx, "ampcio", "audit", "--json")
	if err != nil {
		return err
	}
	if !json.Valid([]byte(said)) {
		return fmt.Errorf("ampcio audit says %s", said)
	}
	return nil
}
