package delivery

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pace is how many requests a second may leave: the configured rate, halved when
// Customer.io says 429 and won back in steps of 1/32 a second while it does not.
// Safe for concurrent use.
type pace struct {
	now     func() time.Time
	limiter *rate.Limiter
	full    rate.Limit
	least   rate.Limit // 1 a second, or the configured rate when that is less

	mu      sync.Mutex
	changed time.Time
}

func newPace(o *Options) *pace {
	full := rate.Limit(o.RequestsPerSecond)
	burst := max(1, min(o.Concurrency, int(o.RequestsPerSecond)))
	return &pace{now: o.Now, limiter: rate.NewLimiter(full, burst), full: full, least: min(full, 1)}
}

// wait takes a turn; an error means that ctx ended before it came.
func (p *pace) wait(ctx context.Context) error { return p.limiter.Wait(ctx) }

// takeOver goes on at the speed that the generation before had, at most at its own.
func (p *pace) takeOver(before *pace) {
	before.mu.Lock()
	defer before.mu.Unlock()
	if slowed := before.limiter.Limit(); slowed < before.full {
		p.limiter.SetLimit(min(slowed, p.full))
		p.changed = before.changed
	}
}

func (p *pace) allowed() float64 { return float64(p.limiter.Limit()) }

// answered adjusts the rate, at most once a second: the answers to requests that
// were in flight together are one piece of news.
func (p *pace) answered(tooMany bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := p.limiter.Limit()
	now := p.now()
	if !tooMany && limit >= p.full || now.Sub(p.changed) < time.Second {
		return
	}
	p.changed = now
	if tooMany {
		p.limiter.SetLimit(max(limit/2, p.least))
	} else {
		p.limiter.SetLimit(min(limit+p.full/32, p.full))
	}
}
