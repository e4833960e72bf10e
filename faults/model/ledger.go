package model

import (
	"slices"

	"ampcio/queue"
)

// record is a record of the log.
type record struct {
	seq, ord   uint64 // in the log, and among those of its project
	project    string
	lane       string
	user, kind string
	device     string
	n          int
	event      string     // what it is to whoever sends it: a repeat that is not known as one any more is the same
	properties properties // after it
	received   int64      // ms
	forgotten  bool       // its person was
}

// ledger is what the promise says of one sync: what has become of each record of its project.
type ledger struct {
	h             *history
	name, project string
	enabled       bool
	paused        bool
	rules         int
	discards      bool            // it has had a bound, since it was opened
	discarded     bool            // it had one, when it was last closed or the process crashed
	spared        map[uint64]bool // records that were in a claim then: the bound does not touch those

	is   []state // by ord, from 1
	past counts  // that had ended so, and were taken once more
	// What is on the disk for certain, and what memory was after each entry since: a crash leaves one of these.
	durable snapshot
	since   []snapshot

	claims []*claim
	to     *destination

	room      *room // the product's delivery that runs when a crash comes
	workspace int
	vague     uint64 // records that have ended as delivered or as filtered: which, the model does not know
}

type state struct {
	taken  bool
	again  bool         // it was a dead letter, and is tried again
	ending queue.Ending // 0 = pending
}

type counts [5]uint64 // by queue.Ending

type snapshot struct {
	is   []state
	past counts
}

func (l *ledger) now() snapshot { return snapshot{slices.Clone(l.is), l.past} }

// entered notes that memory has changed, in one step.
func (l *ledger) entered() { l.since = append(l.since, l.now()) }

// written notes that all of it is on the disk.
func (l *ledger) written() { l.durable, l.since = l.now(), nil }

// left lists what a crash may have left, the newest first. Records that came later are on the disk, and pending.
func (l *ledger) left() (list []snapshot) {
	for _, s := range append([]snapshot{l.durable}, l.since...) {
		s.is = slices.Clone(s.is)
		for i := len(s.is); i < len(l.is); i++ {
			s.is = append(s.is, state{taken: l.is[i].taken})
		}
		list = append(list, s)
	}
	slices.Reverse(list)
	return list
}

// books are what the product's must say. loose is how many records that are forgotten are pending: those may be
// Discarded already.
func (s *snapshot) books(records []*record) (b queue.Books, loose uint64) {
	ended := s.past
	for i, is := range s.is {
		if !is.taken {
			continue
		}
		b.Taken++
		if is.ending == 0 {
			b.Pending++
			if records[i].forgotten {
				loose++
			}
		} else {
			ended[is.ending]++
		}
	}
	b.Delivered, b.Filtered, b.Dead, b.Discarded = ended[queue.Delivered], ended[queue.Filtered], ended[queue.Dead], ended[queue.Discarded]
	for _, n := range s.past {
		b.Rewound += n
	}
	return b, loose
}

// agrees says whether books are those of the model, when some of the forgotten may have ended, and some that have ended
// as delivered may have been filtered.
func agrees(want, got queue.Books, loose, vague uint64) bool {
	if filtered := got.Filtered - want.Filtered; filtered <= vague {
		want.Delivered, want.Filtered = want.Delivered-filtered, want.Filtered+filtered
	}
	early := got.Discarded - want.Discarded
	if early > loose {
		return false
	}
	want.Discarded, want.Pending = want.Discarded+early, want.Pending-early
	return want == got
}

func (l *ledger) state(r *record) *state { return &l.is[r.ord-1] }

// pending says whether a record has still to end.
func (l *ledger) pending(r *record) bool {
	s := l.state(r)
	return s.taken && s.ending == 0
}

// drop ends dead letters of who is forgotten.
func (l *ledger) drop() {
	for _, s := range append(l.since, l.durable, snapshot{is: l.is}) {
		for i := range s.is {
			if s.is[i].ending == queue.Dead && l.h.of(l.project)[i].forgotten {
				s.is[i].ending = queue.Discarded
			}
		}
	}
}
