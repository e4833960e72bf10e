package sandbox

import (
	"bytes"
	"slices"
	"strconv"
)

// maxSpans bounds the memory of one sequence: beyond it the lower half is taken as
// one stretch whose gaps stay counted as missing.
const maxSpans = 64

type span struct{ low, high int64 }

// A sequence is what was seen of one person's order attribute. It keeps the
// stretches without a gap, so that missing numbers are known exactly.
type sequence struct {
	last       int64 // the highest so far
	outOfOrder int64
	repeated   int64 // numbers that came twice under different event ids; also out of order
	given      int64 // numbers seen
	settled    int64 // missing ones in stretches no longer kept apart
	spans      []span
}

// add tells whether v is greater than everything before it.
func (q *sequence) add(v int64) bool {
	q.given++
	n := len(q.spans)
	if n == 0 || v > q.last {
		q.last = v
		if n > 0 && q.spans[n-1].high == v-1 {
			q.spans[n-1].high = v
			return true
		}
		q.spans = append(q.spans, span{v, v})
		q.bound()
		return true
	}
	q.outOfOrder++
	q.fill(v)
	return false
}

// fill enters a number at or below the highest.
func (q *sequence) fill(v int64) {
	i, _ := slices.BinarySearchFunc(q.spans, v, func(s span, v int64) int {
		switch {
		case s.high < v:
			return -1
		case s.low > v:
			return 1
		}
		return 0
	})
	if i < len(q.spans) && q.spans[i].low <= v {
		q.repeated++
		return
	}
	below, above := i > 0 && q.spans[i-1].high == v-1, i < len(q.spans) && q.spans[i].low == v+1
	switch {
	case below && above:
		q.spans[i-1].high = q.spans[i].high
		q.spans = slices.Delete(q.spans, i, i+1)
	case below:
		q.spans[i-1].high = v
	case above:
		q.spans[i].low = v
	default:
		q.spans = slices.Insert(q.spans, i, span{v, v})
		q.bound()
	}
}

func (q *sequence) bound() {
	if len(q.spans) <= maxSpans {
		return
	}
	half := maxSpans / 2
	for i := 1; i < half; i++ {
		q.settled += q.spans[i].low - q.spans[i-1].high - 1
	}
	q.spans[half-1].low = q.spans[0].low
	q.spans = slices.Delete(q.spans, 0, half-1)
}

// join adds what was seen of another sequence, without its order.
func (q *sequence) join(other *sequence) {
	q.given += other.given
	q.outOfOrder += other.outOfOrder
	q.repeated += other.repeated
	q.settled += other.settled
	for _, s := range other.spans {
		for v := s.low; v <= s.high; v++ {
			if len(q.spans) == 0 || v > q.last {
				q.add(v)
				q.given--
			} else {
				q.fill(v)
			}
		}
	}
}

// orderCounts sums sequences.
type orderCounts struct{ outOfOrder, repeated, missing, given int64 }

func (c *orderCounts) add(d orderCounts) {
	c.outOfOrder += d.outOfOrder
	c.repeated += d.repeated
	c.missing += d.missing
	c.given += d.given
}

// counts: missing are the numbers between first (0: the lowest seen) and the
// highest seen that never came.
func (q *sequence) counts(first int64) orderCounts {
	c := orderCounts{outOfOrder: q.outOfOrder, repeated: q.repeated, missing: q.settled, given: q.given}
	for i := range q.spans {
		if i > 0 {
			c.missing += q.spans[i].low - q.spans[i-1].high - 1
		} else if first > 0 {
			c.missing += max(0, q.spans[0].low-first)
		}
	}
	return c
}

func orderOf(events []*event) (q sequence) {
	for _, e := range events {
		if e.hasSeq {
			q.add(e.seq)
		}
	}
	return q
}

// sequenceOf reads the order attribute of an event: a whole number, or a string
// holding one.
func (s *Sandbox) sequenceOf(o *operation) (int64, bool) {
	if s.o.OrderAttribute == "" {
		return 0, false
	}
	if o.values != nil {
		if raw := member(o.values, s.o.OrderAttribute); raw != nil {
			if v, err := strconv.ParseInt(string(bytes.Trim(raw, `"`)), 10, 64); err == nil {
				return v, true
			}
		}
	}
	s.n.withoutOrder++
	return 0, false
}
