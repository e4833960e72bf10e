package queue

import "sort"

// Ending is what became of a record in one consumer.
type Ending uint8

// The endings. Lost is entered by the reader alone, when the disk has lost records.
const (
	Delivered Ending = iota + 1
	Filtered
	Dead
	Discarded
	Lost
	endings // how many there are, and one
)

func (e Ending) String() string {
	return [...]string{"", "delivered", "filtered", "dead", "discarded", "lost"}[e]
}

// Books account for every record that a consumer has taken since it began:
// Taken + Rewound = Delivered + Filtered + Dead + Discarded + Lost + Pending.
//
// The two sides are counted apart. Taken comes from the log, which counts what it
// stores for each project; the endings are entered one by one as they happen; and
// Pending is counted by what the consumer holds and has yet to read. A dead letter that
// is tried again goes from Dead to Pending, one that is given up to Discarded.
type Books struct {
	Taken     uint64 `json:"taken"`
	Rewound   uint64 `json:"rewound"` // what had ended and was taken once more by a rewind
	Delivered uint64 `json:"delivered"`
	Filtered  uint64 `json:"filtered"`
	Dead      uint64 `json:"dead"`
	Discarded uint64 `json:"discarded"`
	Lost      uint64 `json:"lost"`
	Pending   uint64 `json:"pending"`
}

// Difference is what the books are out by; 0 when they balance.
func (b Books) Difference() int64 {
	return int64(b.Taken+b.Rewound) - int64(b.Delivered+b.Filtered+b.Dead+b.Discarded+b.Lost+b.Pending)
}

// span is a stretch of the log that a consumer takes: the records behind from, up
// to and with to. The counts are the project's records in the log at both ends.
type span struct {
	from, to           uint64 // to = 0: still open
	fromCount, toCount uint64
}

// ords gives the numbers that the span's records have among those of its project, of
// which there are count so far.
func (s span) ords(count uint64) run {
	last := s.toCount
	if s.to == 0 {
		last = count
	}
	return run{s.fromCount + 1, min(last, count)}
}

// takes says whether any span holds a project's record of number ord.
func takes(spans []span, ord uint64) bool {
	for i := len(spans) - 1; i >= 0; i-- {
		if ord > spans[i].fromCount {
			return spans[i].ords(ord).last >= ord
		}
	}
	return false
}

// spanningFrom makes the last span, which is open, one that takes everything behind a
// position too.
func spanningFrom(spans []span, p position) []span {
	var out []span
	last := span{from: p.seq, fromCount: p.count}
	for _, s := range spans {
		switch {
		case s.to != 0 && s.toCount <= p.count:
			out = append(out, s)
			last.from = max(last.from, s.to) // between the two are other projects' records
		case s.fromCount < last.fromCount:
			last.from, last.fromCount = s.from, s.fromCount
		}
	}
	return append(out, last)
}

// takenRuns lists what the spans take of a project's records, from behind number after
// up to number upTo.
func takenRuns(spans []span, after, upTo uint64) (runs []run) {
	for _, s := range spans {
		if r := s.ords(upTo).within(after+1, upTo); r.len() > 0 {
			runs = append(runs, r)
		}
	}
	return runs
}

// takenOf counts what the spans take of the first count records of a project.
func takenOf(spans []span, count uint64) (n uint64) {
	for _, r := range takenRuns(spans, 0, count) {
		n += r.len()
	}
	return n
}

// run is a stretch of a project's records by their number among them, from 1, both
// ends included. Unlike sequences these numbers have no gaps, so what has ended and
// what was lost can be counted.
type run struct{ first, last uint64 }

func (r run) len() uint64 {
	if r.last < r.first {
		return 0
	}
	return r.last - r.first + 1
}

func (r run) within(first, last uint64) run { return run{max(r.first, first), min(r.last, last)} }

// inRuns says whether one of the runs, which are in order, holds ord.
func inRuns(runs []run, ord uint64) bool {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].last >= ord })
	return i < len(runs) && runs[i].first <= ord
}

// overlap counts what the runs have in common with r.
func overlap(runs []run, r run) (n uint64) {
	for _, o := range runs {
		n += o.within(r.first, r.last).len()
	}
	return n
}

// Tally counts something of a record apart from its ending, such as why its event
// was not sent. Keys are the caller's.
type Tally struct {
	Key     string
	Example string // of what was counted, for people; no user's data
}

// Count is a tally as it stands.
type Count struct {
	N       uint64 `json:"n"`
	Newest  int64  `json:"newest"` // ms since 1970 UTC
	Example string `json:"example,omitempty"`
}
