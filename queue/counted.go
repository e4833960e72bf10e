package queue

import "maps"

// Counted is what a consumer has counted since its ledger began. Unlike Books it never
// goes down, whatever is tried again or taken once more: a record that ends twice is
// counted twice.
type Counted struct {
	Delivered, Filtered, Discarded, Lost uint64
	Buried                               uint64 // became dead letters, whatever became of these since
	Rewound                              uint64
	Tallies                              map[string]Count // must not be changed
}

// buriedTally counts what became a dead letter. Books.Dead says how many are kept.
const buriedTally = "record/buried"

// Counted tells what has been counted as far as it is on the disk: a crash, too, leaves
// the next start with no less.
func (c *Consumer) Counted() Counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.durable
}

// countedNow is what has been counted by now, on the disk or not. The caller holds c.mu.
func (c *Consumer) countedNow() Counted {
	s := &c.state
	return Counted{
		Delivered: s.ended[Delivered], Filtered: s.ended[Filtered], Discarded: s.ended[Discarded], Lost: s.ended[Lost],
		Buried: c.tallies[buriedTally].N, Rewound: s.rewound, Tallies: maps.Clone(c.tallies),
	}
}
