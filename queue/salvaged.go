package queue

import (
	"encoding/binary"

	bolt "go.etcd.io/bbolt"
)

// A ledger that was salvaged has lost entries, nobody knows which: what is there is
// counted anew, and what the books then miss is entered as lost.

// recount makes the account of dead letters and of the side place anew, from what can be
// read of them. What no lane would find is deleted.
func (c *Consumer) recount(tx *bolt.Tx) error {
	found := map[string]*asideLane{}
	err := tx.Bucket(bucketAside).ForEach(func(k, stored []byte) error {
		if len(k) != 24 {
			return nil
		}
		key, seq := laneKey(k[:16]), binary.BigEndian.Uint64(k[16:])
		e, err := openAside(k, stored)
		if err != nil || laneKeyOf(e.rec.Lane) != key {
			c.forgetAside(key, seq)
			return nil
		}
		a := found[e.rec.Lane]
		if a == nil {
			a = &asideLane{oldest: e.rec.Received}
			found[e.rec.Lane] = a
		}
		a.count++
		a.bytes += e.bytes()
		a.oldest = min(a.oldest, e.rec.Received)
		return nil
	})
	if err != nil {
		return err
	}
	for name := range c.side.lanes { // as their summaries have it
		c.side.changed[name] = true
	}
	c.lanes, c.side.lanes, c.side.records, c.side.bytes = newLanes(), map[string]*lane{}, 0, 0
	for name, a := range found {
		c.side.changed[name] = true
		c.putAside(name, a)
	}
	c.state.ended[Dead], c.state.deadBytes = 0, 0
	return tx.Bucket(bucketDead).ForEach(func(k, stored []byte) error {
		if _, err := openDeadLetter(k, stored); err == nil {
			c.state.ended[Dead]++
			c.state.deadBytes += int64(len(stored))
		}
		return nil
	})
}

func (c *Consumer) forgetAside(lane laneKey, seq uint64) {
	if c.side.gone[lane] == nil {
		c.side.gone[lane] = map[uint64]bool{}
	}
	c.side.gone[lane][seq] = true
}

// startOver begins the books of a ledger whose state was lost at the oldest record that
// the log has. What it had is read again from there on; what it still has of records
// from before counts as taken once more.
func (c *Consumer) startOver() error {
	first, before, err := c.log.oldest(c.o.Project)
	if err != nil {
		return err
	}
	s := &c.state
	s.low, s.lowCount = first, before
	s.spans = []span{{from: first, fromCount: before}}
	sides, err := c.sideList()
	if err != nil {
		return err
	}
	for _, r := range sides {
		if l := c.side.lanes[r.lane]; r.seq > first && l != nil {
			c.leaveAside(l, r.seq, r.bytes)
		}
	}
	for name, l := range c.lanes.byKey {
		if l.empty() && !l.queued {
			delete(c.lanes.byKey, name)
		}
	}
	dead, err := c.deadBehind(first)
	if err != nil {
		return err
	}
	for _, d := range dead {
		c.deadGone[d.seq] = true
		s.deadBytes = max(s.deadBytes-d.bytes, 0)
	}
	s.ended[Dead] -= min(s.ended[Dead], uint64(len(dead)))
	s.rewound = s.ended[Dead] + c.side.records
	return nil
}

// settleBooks enters as lost what the books of a salvaged ledger miss.
func (c *Consumer) settleBooks(count uint64) {
	b := booksOf(&c.state, count, c.pendingNow(count))
	switch d := b.Difference(); {
	case d > 0:
		c.state.ended[Lost] += uint64(d)
		c.state.newest[Lost] = c.o.Now().UnixMilli()
		c.count(Tally{Key: "record/lost"}, uint64(d))
	case d < 0: // a newer entry than the state it was found with
		c.state.rewound += uint64(-d)
	}
}
