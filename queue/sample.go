package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The states of a pending record in a sample.
const (
	StateReady    = "ready"
	StateInFlight = "inflight"
	StateRetry    = "retry"
)

// Sampled is a pending record that stands for Weight of those like it.
type Sampled struct {
	Record
	State  string
	Reason string // of StateRetry: what its user's last try was answered
	Behind bool   // of StateRetry: it waits behind another of its user
	Weight float64
}

// picker picks one of each step, at random: what comes in turns, as users may, would else
// be seen as one of them.
type picker struct{ step, n, at int }

func newPicker(step int) picker { return picker{step: step, at: rand.IntN(step)} }

func (p *picker) pick() bool {
	this := p.n == p.at
	if p.n++; p.n == p.step {
		p.n, p.at = 0, rand.IntN(p.step)
	}
	return this
}

// sampleChunks is into how many places of the log a sample looks.
const sampleChunks = 32

// Sample calls f for about most pending records, or for all where there are no more: those
// that were read ahead, the heads of the side place, and some chunks of what is still in
// the log, evenly. It costs milliseconds, whatever the backlog, and says whether it was
// all of them, each with the weight 1.
func (c *Consumer) Sample(most int, f func(Sampled)) (all bool, err error) {
	return c.sample(most, false, c.view, f)
}

// SampleFiles does the same of a consumer that no process has open: ErrLocked when one does.
func SampleFiles(dir, name string, most int, f func(Sampled)) (all bool, err error) {
	l, closeLog, err := OpenToRead(dir)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	known, counts, err := ledgersKnow(dir)
	if err != nil {
		return false, err
	}
	l.end.reach(known, counts)
	c := newConsumer(l, ConsumerOptions{Name: name, Now: time.Now})
	if err := viewLedger(dir, name, c.load); err != nil {
		return false, err
	}
	c.o.Project, c.read, c.readCount = c.state.project, c.state.low, c.state.lowCount
	return c.sample(most, true, func(look func(*bolt.Tx) error) error { return viewLedger(dir, name, look) }, f)
}

func (c *Consumer) sample(most int, stopped bool, view func(func(*bolt.Tx) error) error, f func(Sampled)) (all bool, err error) {
	all = true
	_, count := c.log.endOf(c.o.Project)
	c.mu.Lock()
	s := c.snapshot()
	count = max(count, c.readCount)
	read, readCount, unread := c.read, c.readCount, c.unread(count)
	picked := c.sampleWindow(most, &all)
	heads, weights := c.sampleAside(most/4, &all)
	c.mu.Unlock()
	for _, p := range picked {
		f(p)
	}
	if err := c.sampleHeads(heads, weights, view, f); err != nil {
		return false, err
	}
	if unread > 0 {
		err = c.sampleLog(&s, stopped, read, readCount, unread, most, &all, f)
	}
	return all, err
}

// sampleWindow picks of what was read ahead. The caller holds c.mu.
func (c *Consumer) sampleWindow(most int, all *bool) (picked []Sampled) {
	step := max((c.pending+most-1)/max(most, 1), 1)
	chance := newPicker(step)
	for _, l := range c.lanes.byKey {
		if l.aside != nil {
			continue
		}
		for i, e := range l.records {
			if e == nil || !chance.pick() {
				continue
			}
			p := Sampled{Record: e.rec, State: StateReady, Weight: float64(step)}
			switch {
			case i < l.taken:
				p.State = StateInFlight
			case l.heap >= 0:
				p.State, p.Reason, p.Behind = StateRetry, l.retry.reason, i > 0
			}
			picked = append(picked, p)
		}
	}
	*all = *all && step == 1
	return picked
}

// sampleAside picks of the lanes of the side place; each head stands for its lane, or for
// several. The caller holds c.mu.
func (c *Consumer) sampleAside(most int, all *bool) (heads []Sampled, weights float64) {
	step := max((len(c.side.lanes)+most-1)/max(most, 1), 1)
	chance := newPicker(step)
	for _, l := range c.side.lanes {
		*all = *all && l.aside.count == 1
		if !chance.pick() {
			continue
		}
		p := Sampled{Record: Record{Lane: l.key, Received: l.aside.oldest}, State: StateReady, Weight: float64(l.aside.count)}
		switch {
		case l.claimed:
			p.State = StateInFlight
		case l.retry.attempts > 0:
			p.State, p.Reason = StateRetry, l.retry.reason
		}
		weights += p.Weight
		heads = append(heads, p)
	}
	*all = *all && step == 1
	if weights > 0 {
		weights = float64(c.side.records) / weights
	}
	return heads, weights
}

// sampleHeads reads the first record of each lane. One that is not in the file yet, or no
// more, is told of as far as it is known.
func (c *Consumer) sampleHeads(heads []Sampled, weights float64, view func(func(*bolt.Tx) error) error, f func(Sampled)) error {
	if len(heads) == 0 {
		return nil
	}
	err := view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketAside)
		if b == nil {
			return nil
		}
		cur := b.Cursor()
		for i := range heads {
			key := laneKeyOf(heads[i].Lane)
			k, v := cur.Seek(key[:])
			if len(k) != 24 || laneKey(k[:16]) != key {
				continue
			}
			if e, err := openAside(k, v); err == nil && !c.log.Forgotten(c.o.Project, e.rec.Lane, e.rec.Seq) {
				heads[i].Record = e.rec
			}
		}
		return nil
	})
	if err = harmless(err); err != nil {
		return fmt.Errorf("sync %s: read the side place: %w", c.o.Name, err)
	}
	for _, h := range heads {
		h.Weight *= weights
		f(h)
	}
	return nil
}

// sampleLog reads some of what is still in the log behind a position; of few records, all.
func (c *Consumer) sampleLog(s *ledgerState, stopped bool, after, before, unread uint64, most int, all *bool, f func(Sampled)) error {
	tail := c.log.Tail()
	var picked []Sampled
	pick := func(chunk *Chunk, step int) error {
		ord, chance := chunk.Before[s.project], newPicker(step)
		return chunk.Records(func(r Record) error {
			if r.Project != s.project {
				return nil
			}
			if ord++; r.Seq <= after || ord <= before || !takes(s.spans, ord) || inRuns(s.done, ord) {
				return nil
			}
			if chance.pick() {
				p := Sampled{Record: r, State: StateReady, Weight: 1}
				if stopped { // the heads of lanes that wait are among these, and nobody writes retries
					if retry := c.retries[r.Lane]; retry.attempts > 0 {
						p.State, p.Reason = StateRetry, retry.reason
					}
				}
				picked = append(picked, p)
			}
			return nil
		})
	}
	if unread <= uint64(most) {
		r := c.log.OpenReader(after)
		defer r.Close()
		for {
			chunk, err := r.Try()
			if err != nil {
				return err
			}
			if chunk == nil {
				break
			}
			if err := pick(chunk, 1); err != nil {
				return err
			}
		}
	} else {
		*all = false
		look := logLook{l: c.log}
		defer look.end()
		last := uint64(0)
		for i := range uint64(sampleChunks) {
			chunk, err := look.chunkAt(after + 1 + (tail-after)/sampleChunks*i + (tail-after)/sampleChunks/2)
			if err != nil {
				return err
			}
			if chunk == nil || chunk.First == last {
				continue
			}
			last = chunk.First
			if err := pick(chunk, max(chunk.Count*sampleChunks/most, 1)); err != nil {
				return err
			}
		}
	}
	weight := float64(unread) / float64(max(len(picked), 1))
	for _, p := range picked {
		p.Weight = weight
		f(p)
	}
	return nil
}
