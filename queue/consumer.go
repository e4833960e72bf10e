package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sort"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ConsumerOptions of one consumer.
type ConsumerOptions struct {
	Name    string
	Project string // whose records it takes
	// Enabled: new records are taken. When not, it takes none from here on and holds
	// what it has.
	Enabled     bool
	WindowBytes int64 // how far it reads ahead, in bytes of records
	Now         func() time.Time
	// Beat, if set, is called whenever the ledger has shown that it is alive: after each
	// checkpoint, and about once a second when nothing has changed.
	Beat func()
}

// checkpointEvery is how long outcomes may wait for the disk: at most so much work
// is done again after a crash. dirtyBytes makes it sooner.
const (
	checkpointEvery = 250 * time.Millisecond
	dirtyBytes      = 4 << 20
)

// Consumer takes the records of one project from the log, once each, and keeps
// account of them in its ledger. Claims are safe for concurrent use.
type Consumer struct {
	log  *Log
	o    ConsumerOptions
	db   *bolt.DB
	away *SetAside // the ledger that was damaged at open

	mu    sync.Mutex
	woken chan struct{} // closed when a lane may have become ready
	room  chan struct{} // closed when the window has shrunk
	dirty chan struct{} // has an element when there is something to write
	haste chan struct{} // has an element when there is much to write
	lanes lanes
	state ledgerState // low and done are as of the last checkpoint; the window knows better

	// The window: what has been read and not passed by the low-water mark, in sequence.
	// An entry that has ended leaves a nil; the first one is never nil.
	window      []slot
	windowBytes int64
	pending     int    // entries in the window that have not ended
	inFlight    int    // of those, in claims
	read        uint64 // everything up to here has been read
	readCount   uint64 // the project's records in the log up to read

	retries map[string]retryState // of lanes with failed tries, whether in the window or not
	tallies map[string]Count

	// What the next checkpoint has to write.
	changed      bool
	changedBytes int64
	sentNew      map[string][]byte
	sentWriting  map[string][]byte // what the running checkpoint writes
	deadNew      []DeadLetter
	retriesNew   map[string]bool
	talliesNew   map[string]bool
	deadKept     uint64 // dead letters in the ledger
	lastEnded    [endings]int64
}

// slot is a record's place in the window. ord is its number among all records the
// project ever had, from 1: unlike sequences it has no gaps, so that runs of ended
// records and losses can be counted exactly.
type slot struct {
	ord uint64
	e   *entry // nil = ended
}

// OpenConsumer opens a consumer's ledger, creating it when there is none: then its
// first record is the next one the log takes. A damaged ledger is set aside, and
// the consumer begins at the oldest record the log has: what was delivered before
// is sent again under the same ids. It is called before Log.Run.
func OpenConsumer(l *Log, o ConsumerOptions) (*Consumer, error) {
	c := &Consumer{
		log: l, o: o, lanes: newLanes(),
		woken: make(chan struct{}), room: make(chan struct{}), dirty: make(chan struct{}, 1), haste: make(chan struct{}, 1),
		retries: map[string]retryState{}, tallies: map[string]Count{},
		sentNew: map[string][]byte{}, retriesNew: map[string]bool{}, talliesNew: map[string]bool{},
	}
	path := ledgerPath(l.o.Dir, o.Name)
	err := c.openLedger(path)
	if errors.Is(err, ErrDamaged) {
		if c.away, err = l.putAside(path, err); err != nil {
			return nil, err
		}
		err = c.openLedger(path)
	}
	if err != nil {
		return nil, err
	}
	if err := c.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("sync %s: %w", o.Name, err), c.db.Close())
	}
	l.Hold(c.holder(), c.state.low)
	return c, nil
}

func (c *Consumer) holder() string { return "sync/" + c.o.Name }

func (c *Consumer) openLedger(path string) error {
	db, err := OpenDB(path, ledgerOptions())
	if err != nil {
		return err
	}
	err = Guard(func() error { return db.View(c.load) })
	if err != nil {
		return errors.Join(fmt.Errorf("read %s: %w", path, err), db.Close())
	}
	c.db = db
	return nil
}

// load reads the small parts of the ledger. Entries that fail their checksum are
// left out: a lane is then due at once, a count starts again.
func (c *Consumer) load(tx *bolt.Tx) (err error) {
	if c.state, err = stateOf(tx); err != nil {
		return err
	}
	tx.Bucket(bucketRetry).ForEach(func(k, v []byte) error {
		if v, err := unseal(k, v); err == nil {
			if r, err := readRetryState(v); err == nil {
				c.retries[string(k)] = r
			}
		}
		return nil
	})
	tx.Bucket(bucketTally).ForEach(func(k, v []byte) error {
		if v, err := unseal(k, v); err == nil {
			if n, err := readCount(v); err == nil {
				c.tallies[string(k)] = n
			}
		}
		return nil
	})
	c.deadKept = uint64(tx.Bucket(bucketDead).Stats().KeyN)
	return nil
}

// begin brings the spans in line with Enabled and writes that down before anything
// is taken.
func (c *Consumer) begin() error {
	s := &c.state
	tail, count := c.log.Tail(), c.log.Count(c.o.Project)
	switch {
	case s.project != "" && s.project != c.o.Project && len(s.spans) > 0:
		return fmt.Errorf("its ledger belongs to project %q, the config says %q: give the sync another name, or its old project back", s.project, c.o.Project)
	case c.away != nil:
		first, before, err := c.log.oldest(c.o.Project)
		if err != nil {
			return err
		}
		s.low, s.lowCount = first, before
		s.spans = []span{{from: first, fromCount: before}}
	case len(s.spans) == 0:
		s.low, s.lowCount = tail, count
	}
	s.project = c.o.Project
	open := len(s.spans) > 0 && s.spans[len(s.spans)-1].to == 0
	switch {
	case c.o.Enabled && !open:
		s.spans = append(s.spans, span{from: tail, fromCount: count})
	case !c.o.Enabled && open:
		last := &s.spans[len(s.spans)-1]
		last.to, last.toCount = tail, count
	}
	s.seen, s.seenCount = max(s.seen, tail), max(s.seenCount, count)
	c.read, c.readCount = s.low, s.lowCount
	c.changed = true
	return c.checkpoint()
}

// Run reads the log and checkpoints the ledger until ctx ends; then it makes a last
// checkpoint and returns nil. Any error is of the disk: the outcome of a failed
// checkpoint is unknown, and the process has to end.
func (c *Consumer) Run(ctx context.Context) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	readerDone := make(chan error, 1)
	go func() { readerDone <- c.readLog(reading) }()
	err := c.keepLedger(ctx, readerDone)
	stop()
	return err
}

func (c *Consumer) keepLedger(ctx context.Context, readerDone <-chan error) error {
	idle := time.NewTicker(time.Second)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := <-readerDone; err != nil {
				return err
			}
			return c.checkpoint()
		case err := <-readerDone:
			if err == nil && ctx.Err() != nil {
				return c.checkpoint()
			}
			return errors.Join(err, c.checkpoint())
		case <-idle.C:
			if c.o.Beat != nil {
				c.o.Beat()
			}
			continue
		case <-c.dirty:
		}
		if err := c.checkpoint(); err != nil {
			return err
		}
		if c.o.Beat != nil {
			c.o.Beat()
		}
		rest := time.NewTimer(checkpointEvery)
		select {
		case <-rest.C:
		case <-c.haste:
		case <-ctx.Done():
		}
		rest.Stop()
	}
}

// readLog fills the window until ctx ends (nil) or the log cannot be read.
func (c *Consumer) readLog(ctx context.Context) error {
	r := c.log.Reader(c.read)
	for {
		if err := c.waitForRoom(ctx); err != nil {
			return nil
		}
		chunk, err := r.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sync %s: read log: %w", c.o.Name, err)
		}
		if err := c.take(chunk); err != nil {
			return fmt.Errorf("sync %s: read log: %w", c.o.Name, err)
		}
	}
}

func (c *Consumer) waitForRoom(ctx context.Context) error {
	for {
		c.mu.Lock()
		full, room := c.windowBytes >= c.o.WindowBytes, c.room
		c.mu.Unlock()
		if !full {
			return ctx.Err()
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take puts the records of a chunk into the window.
func (c *Consumer) take(chunk *Chunk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := chunk.Before[c.o.Project]; before > c.readCount && chunk.First > c.read+1 {
		c.countLost(chunk.First-1, before)
	}
	now := c.o.Now()
	restored := func(key string) (retryState, time.Time) {
		r := c.retries[key]
		if r.attempts == 0 {
			return r, time.Time{}
		}
		wait := min(max(time.UnixMilli(r.due).Sub(now), 0), time.Duration(r.delay)*time.Millisecond)
		return r, now.Add(wait)
	}
	err := chunk.Records(func(r Record) error {
		if r.Project != c.o.Project || r.Seq <= c.read {
			return nil
		}
		c.readCount++
		if !takes(c.state.spans, r.Seq) {
			return nil
		}
		if inRuns(c.state.done, c.readCount) {
			// It keeps its slot, so that the next checkpoint still knows that it has ended.
			c.window = append(c.window, slot{ord: c.readCount})
			c.windowBytes += slotBytes
			return nil
		}
		// A copy: the window holds single records, not whole chunks.
		r.Body = append([]byte(nil), r.Body...)
		e := &entry{rec: r, ord: c.readCount}
		c.window = append(c.window, slot{e.ord, e})
		c.windowBytes += e.bytes() + slotBytes
		c.pending++
		c.lanes.add(e, restored)
		return nil
	})
	c.read = max(c.read, chunk.Last())
	c.advance()
	c.wake()
	return err
}

// countLost enters the records that stood between what has been read and upTo, and
// cannot be read any more. count is the project's records up to there.
func (c *Consumer) countLost(upTo, count uint64) {
	missing := takenOf(c.state.spans, count) - takenOf(c.state.spans, c.readCount)
	for _, r := range c.state.done {
		if first, last := max(r.first, c.readCount+1), min(r.last, count); first <= last {
			missing -= min(missing, last-first+1)
		}
	}
	c.state.ended[Lost] += missing
	c.count(Tally{Key: "record/lost"}, missing)
	c.read, c.readCount = upTo, count
}

// enter ends one record.
func (c *Consumer) enter(e *entry, o Outcome) {
	i := sort.Search(len(c.window), func(i int) bool { return c.window[i].ord >= e.ord })
	c.window[i].e = nil
	c.windowBytes -= e.bytes()
	c.pending--
	c.state.ended[o.Ending]++
	c.lastEnded[o.Ending] = c.o.Now().UnixMilli()
	c.changedBytes += 64
	switch o.Ending {
	case Dead:
		d := DeadLetter{Record: e.rec, At: c.o.Now().UnixMilli(), Reason: o.Reason, Results: o.Results}
		c.deadNew = append(c.deadNew, d)
		c.deadKept++
		c.changedBytes += e.bytes()
	case Delivered, Filtered:
	default:
		panic("a claim cannot end a record as " + o.Ending.String())
	}
	if o.SentKey != "" {
		c.sentNew[o.SentKey] = o.Sent
		c.changedBytes += int64(len(o.SentKey) + len(o.Sent))
	}
	for _, t := range o.Tallies {
		c.count(t, 1)
	}
}

// count adds to a tally.
func (c *Consumer) count(t Tally, n uint64) {
	k := c.tallies[t.Key]
	k.N += n
	k.Newest = c.o.Now().UnixMilli()
	if t.Example != "" {
		k.Example = t.Example
	}
	c.tallies[t.Key] = k
	c.talliesNew[t.Key] = true
}

// setRetry remembers the failed tries of a lane; none forgets it.
func (c *Consumer) setRetry(l *lane, r retryState) {
	if l.retry == r {
		return
	}
	l.retry = r
	if r.attempts == 0 {
		delete(c.retries, l.key)
	} else {
		c.retries[l.key] = r
	}
	c.retriesNew[l.key] = true
	c.touch()
}

// advance moves the low-water mark over the records that have ended.
func (c *Consumer) advance() {
	n := 0
	for n < len(c.window) && c.window[n].e == nil {
		n++
	}
	c.window = c.window[n:]
	c.windowBytes -= int64(n) * slotBytes
	close(c.room)
	c.room = make(chan struct{})
	c.touch()
}

// touch asks for a checkpoint.
func (c *Consumer) touch() {
	c.changed = true
	signal(c.dirty)
	if c.changedBytes >= dirtyBytes {
		signal(c.haste)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wake lets every waiting Claim look again.
func (c *Consumer) wake() {
	close(c.woken)
	c.woken = make(chan struct{})
}

// low is the low-water mark as the window has it: every record at or below has
// ended. The caller holds c.mu.
func (c *Consumer) low() uint64 {
	if len(c.window) > 0 {
		return c.window[0].e.rec.Seq - 1
	}
	return c.read
}

// sent reads what an identifier was last sent.
func (c *Consumer) sent(identifier string) (v []byte, err error) {
	c.mu.Lock()
	v, ok := c.sentNew[identifier]
	if !ok {
		v, ok = c.sentWriting[identifier]
	}
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	err = c.db.View(func(tx *bolt.Tx) error {
		k := []byte(identifier)
		if stored := tx.Bucket(bucketSent).Get(k); stored != nil {
			if whole, err := unseal(k, stored); err == nil {
				v = append([]byte(nil), whole...)
			} // else: taken as never sent; an identify is sent once more
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sync %s: read what was sent: %w", c.o.Name, err)
	}
	return v, nil
}

// SetAside tells of the ledger that was found damaged at open; nil when it was not.
func (c *Consumer) SetAside() *SetAside { return c.away }

// Close closes the ledger. Run has returned.
func (c *Consumer) Close() error { return c.db.Close() }

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
	sent, dead := c.sentNew, c.deadNew
	retries := make(map[string]retryState, len(c.retriesNew))
	for k := range c.retriesNew {
		retries[k] = c.retries[k]
	}
	tallies := make(map[string]Count, len(c.talliesNew))
	for k := range c.talliesNew {
		tallies[k] = c.tallies[k]
	}
	c.sentNew, c.sentWriting, c.deadNew = map[string][]byte{}, sent, nil
	clear(c.retriesNew)
	clear(c.talliesNew)
	c.changed, c.changedBytes = false, 0
	c.mu.Unlock()

	err := c.db.Update(func(tx *bolt.Tx) error {
		if err := put(tx.Bucket(bucketMeta), keyState, s.append(nil)); err != nil {
			return err
		}
		for k, v := range sorted(sent) {
			if err := put(tx.Bucket(bucketSent), []byte(k), append([]byte(nil), v...)); err != nil {
				return err
			}
		}
		for i := range dead {
			if err := put(tx.Bucket(bucketDead), seqKey(dead[i].Record.Seq), dead[i].append(nil)); err != nil {
				return err
			}
		}
		for k, r := range sorted(retries) {
			if r.attempts == 0 {
				if err := tx.Bucket(bucketRetry).Delete([]byte(k)); err != nil {
					return err
				}
				continue
			}
			if err := put(tx.Bucket(bucketRetry), []byte(k), r.append(nil)); err != nil {
				return err
			}
		}
		for k, n := range sorted(tallies) {
			if err := put(tx.Bucket(bucketTally), []byte(k), n.append(nil)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("checkpoint of sync %s: %w", c.o.Name, err)
	}
	c.mu.Lock()
	c.sentWriting = nil
	c.state.low, c.state.lowCount = s.low, s.lowCount
	c.mu.Unlock()
	c.log.Release(c.holder(), s.low)
	return nil
}

func put(b *bolt.Bucket, k, v []byte) error { return b.Put(k, seal(k, v)) }

// sorted walks a map in the order in which bbolt likes to be written.
func sorted[V any](m map[string]V) func(yield func(string, V) bool) {
	keys := make([]string, 0, len(m))
	for k := range maps.Keys(m) {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return func(yield func(string, V) bool) {
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// snapshot is the state as the window has it now. The caller holds c.mu.
func (c *Consumer) snapshot() ledgerState {
	s := c.state
	s.low = c.low()
	s.lowCount = c.readCount
	if len(c.window) > 0 {
		s.lowCount = c.window[0].ord - 1
	}
	s.done = c.runs()
	s.spans = append([]span(nil), c.state.spans...)
	s.seen, s.seenCount = max(s.seen, c.read), max(s.seenCount, c.readCount)
	return s
}

// runs lists what has ended above the low-water mark: in the window, and behind it
// what an earlier run of this consumer has ended.
func (c *Consumer) runs() []run {
	var runs []run
	for _, w := range c.window {
		switch n := len(runs); {
		case w.e != nil:
		case n > 0 && runs[n-1].last == w.ord-1:
			runs[n-1].last = w.ord
		default:
			runs = append(runs, run{w.ord, w.ord})
		}
	}
	for _, r := range c.state.done {
		if r.last > c.readCount {
			runs = append(runs, run{max(r.first, c.readCount+1), r.last})
		}
	}
	return runs
}

func inRuns(runs []run, ord uint64) bool {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].last >= ord })
	return i < len(runs) && runs[i].first <= ord
}
