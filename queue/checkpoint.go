package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
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

// changes are what one checkpoint writes, in one transaction. Deletions come before
// what is put: the same key may have been both since the last checkpoint.
type changes struct {
	state    ledgerState
	forget   bool // all of the bucket sent
	sent     map[string][]byte
	deadGone map[uint64]bool
	dead     map[uint64][]byte // sealed
	retries  map[string]retryState
	tallies  map[string]Count
	gone     map[laneKey]map[uint64]bool
	fresh    []*entry
	lanes    map[string]*asideLane // nil = nothing of it is in the side place any more
	noted    []Ended               // not in the ledger: for the history
	counted  Counted               // with this checkpoint it is on the disk
}

// Flush makes durable all that has ended before the call, and then lets the log delete
// what this consumer no longer needs. It may be called while Run runs, and when it does
// not. After an error the outcome is unknown, unless the disk is full, and Run ends.
func (c *Consumer) Flush() error {
	err := c.checkpoint()
	if c.giveReserve(err) {
		err = c.checkpoint()
	}
	return err
}

// checkpoint writes everything that has changed, in one transaction. Before it returns
// nil nothing of it counts; after an error the outcome is unknown.
func (c *Consumer) checkpoint() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.checkpointLocked()
}

// checkpointLocked is checkpoint for who holds c.writing.
func (c *Consumer) checkpointLocked() error {
	if c.torn != nil {
		return c.torn
	}
	if c.unknown != nil {
		if err := c.openAnew(); NoSpace(err) { // nothing has been taken for it
			c.mu.Lock()
			c.full = err.Error()
			c.mu.Unlock()
			return err
		} else if err != nil {
			return c.tear(err)
		}
	}
	c.mu.Lock()
	fresh := c.side.freshBytes
	c.mu.Unlock()
	// What moves to the side place has its bytes in the log as well: where the disk is
	// short of space it stays there.
	roomy := fresh == 0 || c.log.roomFor(fresh)
	c.mu.Lock()
	if !c.changed {
		c.mu.Unlock()
		return nil
	}
	ch := c.takeChanges(roomy)
	c.mu.Unlock()

	err := Update(c.db, ch.write)
	c.broken = Stuck(err)
	if errors.Is(err, ErrDamaged) {
		suspect(c.path())
	}
	if NoSpace(err) {
		c.putOff(err, ch)
	}
	if Unknown(err) {
		c.unknown = err
	}
	if err != nil {
		err = fmt.Errorf("checkpoint of sync %s: %w", c.o.Name, err)
		if !NoSpace(err) {
			return c.tear(err)
		}
		return err
	}
	c.written(ch)
	c.history.add(ch.noted)
	c.useAgain(ch.noted)
	// Only now, when a power cut cannot take the mark back.
	c.log.Release(c.holder(), ch.state.low)
	return nil
}

// tear ends the writing of the ledger by an error, which it gives back. The caller holds c.writing.
func (c *Consumer) tear(err error) error {
	c.torn = err
	// At once: the caller may let claims go on, and what they sent would be unknown to the next start.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
	return err
}

// errLookedAt says that a file has to be opened anew, and is being looked at.
var errLookedAt = errors.New("somebody looks at the file, which has to be opened anew")

// openAnew opens the file of the ledger again. While an audit looks at it, it is as if the disk were still full (NoSpace, but
// nothing to give the reserve for): whoever waited for that would hold up every other look. The caller holds c.writing.
func (c *Consumer) openAnew() error {
	if !c.looking.TryLock() {
		return fmt.Errorf("sync %s: %w: %w", c.o.Name, errLookedAt, c.unknown)
	}
	defer c.looking.Unlock()
	c.using.Lock()
	defer c.using.Unlock()
	db, file, err := openAnew(c.db, c.path(), ledgerOptions())
	if err != nil {
		return fmt.Errorf("sync %s: %w", c.o.Name, err)
	}
	c.db, c.file, c.unknown = db, file, nil
	return nil
}

// takeChanges hands over what has changed; from here on changes are the next
// checkpoint's. What others may ask for meanwhile is also in sentWriting, deadGoing and
// side.going until it is in the file. Unless roomy, records that are new in the side
// place are not written: for the file they are pending where they were. The caller holds
// c.mu, and c.writing.
func (c *Consumer) takeChanges(roomy bool) *changes {
	ch := &changes{state: c.snapshot(), noted: c.noted, counted: c.countedNow(), forget: c.forget, sent: c.sentNew, deadGone: c.deadGone, dead: c.deadNew,
		gone: c.side.gone, retries: make(map[string]retryState, len(c.retriesNew)),
		tallies: make(map[string]Count, len(c.talliesNew)), lanes: make(map[string]*asideLane, len(c.side.changed))}
	before := len(c.side.fresh)
	c.side.fresh = slices.DeleteFunc(c.side.fresh, func(e *entry) bool {
		if e.over {
			c.side.freshBytes -= e.bytes()
		}
		return e.over
	})
	if len(c.side.fresh) < before {
		c.room.ring() // the reader may have waited for just these to be written
	}
	left := c.takeFresh(ch, roomy)
	tail, count := c.log.endOf(c.o.Project)
	s := &ch.state
	s.seen, s.seenCount = max(s.seen, tail, c.read), max(s.seenCount, count, c.readCount)
	c.state.seen, c.state.seenCount = s.seen, s.seenCount
	for k := range c.retriesNew {
		ch.retries[k] = c.retries[k]
	}
	for k := range c.talliesNew {
		ch.tallies[k] = c.tallies[k]
	}
	for k := range c.side.changed {
		ch.lanes[k] = nil
		if l := c.side.lanes[k]; l != nil {
			a := *l.aside
			for _, e := range left[k] {
				a.count--
				a.bytes -= e.bytes()
			}
			if a.count > 0 {
				ch.lanes[k] = &a
			}
		}
	}
	c.sentNew, c.sentWriting, c.sentSpare = c.sentSpare, ch.sent, nil
	if c.sentNew == nil {
		c.sentNew = map[string][]byte{}
	}
	c.sentKnown.moved++
	c.forget, c.forgetting = false, ch.forget
	c.deadNew, c.deadGone, c.deadGoing = map[uint64][]byte{}, map[uint64]bool{}, ch.deadGone
	c.side.gone, c.side.going = map[laneKey]map[uint64]bool{}, ch.gone
	clear(c.retriesNew)
	clear(c.talliesNew)
	clear(c.side.changed)
	for k := range left {
		c.side.changed[k] = true
	}
	c.changed, c.changedBytes = false, 0
	c.noted, c.notedNext = c.notedNext, nil
	return ch
}

// takeFresh decides which records that are new in the side place a checkpoint writes. Of
// those that it leaves, by lane, the state says that they are pending. Dead letters that
// are tried again are always written: they are nowhere else.
func (c *Consumer) takeFresh(ch *changes, roomy bool) (left map[string][]*entry) {
	if roomy {
		ch.fresh, c.side.fresh = c.side.fresh, nil
		return nil
	}
	left = map[string][]*entry{}
	var ords []uint64
	first := &entry{}
	stay := c.side.fresh[:0:0]
	for _, e := range c.side.fresh {
		if e.ord == 0 {
			ch.fresh = append(ch.fresh, e)
			continue
		}
		stay = append(stay, e)
		left[e.rec.Lane] = append(left[e.rec.Lane], e)
		ords = append(ords, e.ord)
		if first.ord == 0 || e.ord < first.ord {
			first = e
		}
	}
	c.side.fresh = stay
	if len(stay) == 0 {
		return left
	}
	s := &ch.state
	if first.ord <= s.lowCount {
		s.done = append(takenRuns(s.spans, first.ord, s.lowCount), s.done...)
		s.low, s.lowCount = first.rec.Seq-1, first.ord-1
	}
	slices.Sort(ords)
	s.done = without(s.done, ords)
	return left
}

// without takes numbers, in order, out of runs.
func without(runs []run, ords []uint64) (rest []run) {
	for _, r := range runs {
		for len(ords) > 0 && ords[0] <= r.last {
			if ords[0] >= r.first {
				if before := r.within(r.first, ords[0]-1); before.len() > 0 {
					rest = append(rest, before)
				}
				r.first = ords[0] + 1
			}
			ords = ords[1:]
		}
		if r.len() > 0 {
			rest = append(rest, r)
		}
	}
	return rest
}

// written takes note that a checkpoint is in the file.
func (c *Consumer) written(ch *changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sentKnown.written(ch.sent, ch.forget)
	c.sentWriting, c.forgetting, c.deadGoing, c.side.going = nil, false, nil, nil
	if len(ch.sent) < sentSpareMost {
		clear(ch.sent)
		c.sentSpare = ch.sent
	}
	c.durable = ch.counted
	inFile := map[string]map[*entry]bool{}
	for _, e := range ch.fresh {
		c.side.freshBytes -= e.bytes()
		if inFile[e.rec.Lane] == nil {
			inFile[e.rec.Lane] = map[*entry]bool{}
		}
		inFile[e.rec.Lane][e] = true
	}
	for name, entries := range inFile {
		if l := c.side.lanes[name]; l != nil {
			l.aside.fresh = slices.DeleteFunc(l.aside.fresh, func(e *entry) bool { return entries[e] })
		}
	}
	if len(ch.fresh) > 0 {
		c.room.ring()
	}
	if c.full != "" {
		c.full = ""
		c.wake()
	}
}

// putOff takes back what a checkpoint could not write for lack of space, so that the
// next one does. Until then nothing more is claimed: what could not be remembered as
// delivered would only be sent again.
func (c *Consumer) putOff(err error, ch *changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	older := func(into, from map[string][]byte) {
		for k, v := range from {
			if _, newer := into[k]; !newer {
				into[k] = v
			}
		}
	}
	if !c.forget {
		older(c.sentNew, ch.sent)
		c.forget = ch.forget
	}
	for seq, v := range ch.dead {
		if _, newer := c.deadNew[seq]; !newer && !c.deadGone[seq] {
			c.deadNew[seq] = v
		}
	}
	maps.Copy(c.deadGone, ch.deadGone)
	for lane, gone := range ch.gone {
		if c.side.gone[lane] == nil {
			c.side.gone[lane] = gone
		} else {
			maps.Copy(c.side.gone[lane], gone)
		}
	}
	c.side.fresh = append(ch.fresh, c.side.fresh...)
	if Unknown(err) { // they may be in the file, and be written no more: what is deleted there comes before what is put
		for _, e := range ch.fresh {
			c.forgetAside(laneKeyOf(e.rec.Lane), e.rec.Seq)
		}
	}
	c.noted = append(ch.noted, c.noted...)
	for k := range ch.lanes {
		c.side.changed[k] = true
	}
	for k := range ch.retries {
		c.retriesNew[k] = true
	}
	for k := range ch.tallies {
		c.talliesNew[k] = true
	}
	c.sentWriting, c.forgetting, c.deadGoing, c.side.going = nil, false, nil, nil
	c.changed, c.full = true, err.Error()
}

// write is the transaction of a checkpoint.
func (ch *changes) write(tx *bolt.Tx) error {
	sent := tx.Bucket(bucketSent)
	if ch.forget {
		if err := tx.DeleteBucket(bucketSent); err != nil {
			return err
		}
		var err error
		if sent, err = tx.CreateBucket(bucketSent); err != nil {
			return err
		}
	}
	return errors.Join(
		put(tx.Bucket(bucketMeta), keyState, ch.state.append(nil)),
		putSent(sent, ch.sent),
		ch.putDead(tx.Bucket(bucketDead)),
		putRetries(tx.Bucket(bucketRetry), ch.retries),
		putTallies(tx.Bucket(bucketTally), ch.tallies),
		ch.putAside(tx.Bucket(bucketAside)),
		ch.putAsideLanes(tx.Bucket(bucketAsideLane)),
	)
}

func putSent(b *bolt.Bucket, sent map[string][]byte) error {
	var key, sealed []byte
	for _, k := range sortedKeys(sent) {
		if sent[k] == nil { // forgotten
			if err := b.Delete([]byte(k)); err != nil {
				return err
			}
			continue
		}
		// bbolt copies keys, and keeps values until the transaction ends.
		start := len(sealed)
		if cap(sealed)-start < len(sent[k])+sealBytes {
			sealed, start = make([]byte, 0, max(64<<10, len(sent[k])+sealBytes)), 0
		}
		key = append(key[:0], k...)
		sealed = append(sealed, sent[k]...)
		sealed = binary.BigEndian.AppendUint32(sealed, sealSum(key, sent[k]))
		if err := b.Put(key, sealed[start:len(sealed):len(sealed)]); err != nil {
			return err
		}
	}
	return nil
}

func (ch *changes) putDead(b *bolt.Bucket) error {
	for _, seq := range slices.Sorted(maps.Keys(ch.deadGone)) {
		if err := b.Delete(seqKey(seq)); err != nil {
			return err
		}
	}
	for _, seq := range slices.Sorted(maps.Keys(ch.dead)) {
		if err := b.Put(seqKey(seq), ch.dead[seq]); err != nil {
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

func (ch *changes) putAside(b *bolt.Bucket) error {
	for lane, gone := range ch.gone {
		for _, seq := range slices.Sorted(maps.Keys(gone)) {
			if err := b.Delete(asideKey(lane, seq)); err != nil {
				return err
			}
		}
	}
	for _, e := range ch.fresh {
		if err := put(b, asideKey(laneKeyOf(e.rec.Lane), e.rec.Seq), appendAside(nil, e)); err != nil {
			return err
		}
	}
	return nil
}

func (ch *changes) putAsideLanes(b *bolt.Bucket) error {
	for _, name := range sortedKeys(ch.lanes) {
		k, a := retryKey(name), ch.lanes[name]
		err := b.Delete(k)
		if a != nil {
			err = put(b, k, a.append(nil, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func put(b *bolt.Bucket, k, v []byte) error { return b.Put(k, seal(k, v)) }

// sortedKeys lists keys in the order in which bbolt likes to be written.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
