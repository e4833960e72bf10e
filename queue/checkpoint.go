package queue

import (
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// checkpointEvery is how long outcomes may wait for the disk: at most so much work
// is done again after a crash. dirtyBytes makes it sooner.
const (
	checkpointEvery = 250 * time.Millisecond
	dirtyBytes      = 4 << 20
)

// checkpoint writes everything that has changed, in one transaction, and then lets
// the log delete what this consumer no longer needs. Before it returns nil nothing
// of it counts; after an error the outcome is unknown.
func (c *Consumer) checkpoint() error {
	c.mu.Lock()
	if !c.changed {
		c.mu.Unlock()
		return nil
	}
	s := c.snapshot()
	tail, count := c.log.endOf(c.o.Project)
	s.seen, s.seenCount = max(s.seen, tail, c.read), max(s.seenCount, count, c.readCount)
	c.state.seen, c.state.seenCount = s.seen, s.seenCount
	sent, dead := c.sentNew, c.deadNew
	retries := make(map[string]retryState, len(c.retriesNew))
	for k := range c.retriesNew {
		retries[k] = c.retries[k]
	}
	tallies := make(map[string]Count, len(c.talliesNew))
	for k := range c.talliesNew {
		tallies[k] = c.tallies[k]
	}
	// Whoever asks for what was sent finds it in sentWriting until it is in the file.
	c.sentNew, c.sentWriting, c.deadNew = map[string][]byte{}, sent, nil
	clear(c.retriesNew)
	clear(c.talliesNew)
	c.changed, c.changedBytes = false, 0
	c.mu.Unlock()

	err := Guard(func() error {
		return c.db.Update(func(tx *bolt.Tx) error {
			return errors.Join(
				put(tx.Bucket(bucketMeta), keyState, s.append(nil)),
				putSent(tx.Bucket(bucketSent), sent),
				putDead(tx.Bucket(bucketDead), dead),
				putRetries(tx.Bucket(bucketRetry), retries),
				putTallies(tx.Bucket(bucketTally), tallies),
			)
		})
	})
	if errors.Is(err, ErrDamaged) {
		c.broken = true
		suspect(ledgerPath(c.log.o.Dir, c.o.Name))
	}
	if noSpace(err) {
		c.putOff(err, sent, dead, retries, tallies)
	}
	if err != nil {
		return fmt.Errorf("checkpoint of sync %s: %w", c.o.Name, err)
	}
	c.mu.Lock()
	c.sentWriting = nil
	if c.full != "" {
		c.full = ""
		c.wake()
	}
	c.mu.Unlock()
	// Only now, when a power cut cannot take the mark back.
	c.log.Release(c.holder(), s.low)
	return nil
}

// putOff takes back what a checkpoint could not write for lack of space, so that the
// next one does. Until then nothing more is claimed: what could not be remembered as
// delivered would only be sent again.
func (c *Consumer) putOff(err error, sent map[string][]byte, dead []DeadLetter, retries map[string]retryState, tallies map[string]Count) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range sent {
		if _, newer := c.sentNew[k]; !newer {
			c.sentNew[k] = v
		}
	}
	c.sentWriting = nil
	c.deadNew = append(dead, c.deadNew...)
	for k := range retries {
		c.retriesNew[k] = true
	}
	for k := range tallies {
		c.talliesNew[k] = true
	}
	c.changed, c.full = true, err.Error()
}

func putSent(b *bolt.Bucket, sent map[string][]byte) error {
	for _, k := range sortedKeys(sent) {
		if err := put(b, []byte(k), append([]byte(nil), sent[k]...)); err != nil {
			return err
		}
	}
	return nil
}

func putDead(b *bolt.Bucket, dead []DeadLetter) error {
	for i := range dead {
		if err := put(b, seqKey(dead[i].Record.Seq), dead[i].append(nil)); err != nil {
			return err
		}
	}
	return nil
}

func putRetries(b *bolt.Bucket, retries map[string]retryState) error {
	for _, lane := range sortedKeys(retries) {
		k, r := retryKey(lane), retries[lane]
		err := b.Delete(k)
		if r.attempts > 0 {
			err = put(b, k, r.append(nil, lane))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func putTallies(b *bolt.Bucket, tallies map[string]Count) error {
	for _, k := range sortedKeys(tallies) {
		if err := put(b, []byte(k), tallies[k].append(nil)); err != nil {
			return err
		}
	}
	return nil
}

func put(b *bolt.Bucket, k, v []byte) error { return b.Put(k, seal(k, v)) }

// sortedKeys lists keys in the order in which bbolt likes to be written.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
