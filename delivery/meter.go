package delivery

import (
	"net/http"
	"sync/atomic"
)

// CodeClasses are the kinds of answers to requests of data, in the words of Meter.
var CodeClasses = [...]string{"2xx", "3xx", "4xx", "429", "5xx", "timeout", "network", "garbled"}

const (
	class2xx = iota
	class3xx
	class4xx // but 429
	class429
	class5xx
	classTimeout
	classNetwork // no answer: refused, DNS, TLS, cut
	classGarbled // 2xx, and not what the service answers
)

// Meter counts what the deliveries of one sync do, over its generations, for as long as
// the process lives: nothing in it ever goes down. Safe for concurrent use, without locks.
type Meter struct {
	attempts [len(CodeClasses)]atomic.Uint64
}

// Attempts are the requests of data so far, by CodeClasses.
func (m *Meter) Attempts() (n [len(CodeClasses)]uint64) {
	for i := range m.attempts {
		n[i] = m.attempts[i].Load()
	}
	return n
}

// answered counts a request of data by its answer.
func (m *Meter) answered(r *reading, a *answer) { m.attempts[classOf(r, a)].Add(1) }

func classOf(r *reading, a *answer) int {
	switch {
	case a.err != nil && r.reason == "timeout":
		return classTimeout
	case a.err != nil:
		return classNetwork
	case a.status == http.StatusTooManyRequests:
		return class429
	case a.status >= 500:
		return class5xx
	case a.status >= 400:
		return class4xx
	case a.status >= 300:
		return class3xx
	case r.verdict == retry:
		return classGarbled
	}
	return class2xx
}
