package delivery

import (
	"time"

	"github.com/cenkalti/backoff/v4"
)

// maxRetryAfter bounds what is believed of a Retry-After: a broken proxy that
// says "in a year" must not stop a queue for a year.
const maxRetryAfter = time.Hour

// delay is how long to wait after the attempt with this number failed (0 = the
// first): RetryInitial doubled each time, give or take half of it, never above
// RetryMax, and never less than what Retry-After asked for.
//
// It is computed from the number alone, which the ledger keeps, so that a restart
// neither forgets how long a lane has been failing nor starts a stampede.
func (o *Options) delay(attempt int, retryAfter time.Duration) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(o.step(attempt)),
		backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxElapsedTime(0), // its default gives up after 15 minutes
	)
	return max(b.NextBackOff(), retryAfter)
}

// step is the middle of what delay may give without Retry-After. Jitter adds up to half: with two thirds of RetryMax as the largest
// step, RetryMax is the largest delay, and delays are spread below it and do not
// pile up on it.
func (o *Options) step(attempt int) time.Duration {
	largest := max(o.RetryMax*2/3, 1)
	step := max(o.RetryInitial, 1)
	for range attempt {
		if step >= largest {
			break
		}
		step *= 2
	}
	return min(step, largest)
}
