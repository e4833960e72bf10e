package queue

import "time"

// What a Step tells.
const (
	StepRead    = "read"    // the consumer has come to the record: it is pending
	StepClaimed = "claimed" // somebody is about to deliver it
	StepWaits   = "waits"   // a try has failed; Reason and Wait say why and for how long
	StepEnded   = "ended"   // Outcome says how
)

// Step is something that has become of a record that is followed.
type Step struct {
	Kind    string
	Seq     uint64
	Reason  string
	Wait    time.Duration
	Outcome Outcome
}

// Follow calls f with what becomes, in this consumer, of the record with that id, from
// the moment on; nothing is told of what has been before. f is called with the consumer locked: it
// must neither wait nor call the consumer. stop ends it. Safe for concurrent use.
func (c *Consumer) Follow(id [16]byte, f func(Step)) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.followed == nil {
		c.followed = map[[16]byte]map[*func(Step)]bool{}
	}
	if c.followed[id] == nil {
		c.followed[id] = map[*func(Step)]bool{}
	}
	key := &f
	c.followed[id][key] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.followed[id], key); len(c.followed[id]) == 0 {
			delete(c.followed, id)
		}
	}
}

// tellFollowers tells a step of a record to who follows it. The caller holds c.mu.
func (c *Consumer) tellFollowers(r *Record, s Step) {
	if len(c.followed) == 0 {
		return
	}
	for f := range c.followed[r.ID] {
		s.Seq = r.Seq
		(*f)(s)
	}
}
