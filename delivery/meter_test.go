package delivery

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"
)

// Every answer is of one class: what Customer.io is asked to mend tells from what it asks
// of us.
func TestClassesOfAnswers(t *testing.T) {
	for _, c := range []struct {
		name, want string
		answer     answer
	}{
		{"accepted", "2xx", answer{status: 200, body: []byte(`{}`)}},
		{"some refused", "2xx", answer{status: 207, body: []byte(`{"errors":[{"batch_index":0,"reason":"invalid"}]}`)}},
		{"a login page", "garbled", answer{status: 200, body: []byte(`<html>`)}},
		{"another region", "3xx", answer{status: 301}},
		{"refused", "4xx", answer{status: 400, body: []byte(`{}`)}},
		{"a revoked key", "4xx", answer{status: 401}},
		{"fewer, please", "429", answer{status: 429}},
		{"down", "5xx", answer{status: 503}},
		{"too slow", "timeout", answer{err: context.DeadlineExceeded}},
		{"nobody there", "network", answer{err: syscall.ECONNREFUSED}},
		{"cut", "network", answer{err: errors.New("unexpected EOF")}},
	} {
		m := new(Meter)
		r := read(2, c.answer, time.Now())
		m.answered(&r, &c.answer)
		got := ""
		for i, n := range m.Attempts() {
			if n > 0 {
				got += CodeClasses[i]
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q (read as %q)", c.name, got, c.want, r.reason)
		}
	}
}
