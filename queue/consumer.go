package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ConsumerOptions of one consumer.
type ConsumerOptions struct {
	Name    string
	Project string // whose records it takes; "" = as its ledger says
	// Enabled: new records are taken. When not, it takes none from here on and holds
	// what it has.
	Enabled     bool
	WindowBytes int64 // how far it reads ahead, in bytes of records
	// Now is the wall clock, for what is stored and shown. How long a lane waits is
	// measured by the clock that nobody sets.
	Now func() time.Time
	// Trial: the ledger is in TrialsFolder, and nothing depends on it. It keeps no file of
	// the log, and takes no space that others may need; where it is damaged, OpenConsumer
	// gives ErrDamaged.
	Trial bool
	// Beat, if set, is called whenever the ledger has shown that it is alive: after each
	// checkpoint, and about once a second when nothing has changed.
	Beat func()
}

// Consumer takes the records of one project from the log, once each, and keeps
// account of them in its ledger. All methods but Run and Close are safe for
// concurrent use.
type Consumer struct {
	log      *Log
	o        ConsumerOptions
	db       *bolt.DB
	file     *os.File  // of db
	broken   bool      // a transaction may have panicked, and bbolt hold its own locks for ever (Stuck)
	away     *SetAside // the ledger that was damaged at open
	unmended error     // what is damaged in it, and why it was not set aside

	mu    sync.Mutex
	ready chan struct{} // has an element when a lane may have become ready: one Claim that waits looks, and passes it on
	woken bell          // something has ended
	room  bell          // the window has shrunk
	dirty chan struct{} // has an element when there is something to write
	haste chan struct{} // has an element when there is much to write
	lanes lanes
	side  sideplace
	// state is the ledger's: all as of now, but for low and done, which are as of the open
	// (the window knows better), and seen, as of the last checkpoint.
	state ledgerState

	// The window: what has been read and not passed by the low-water mark, in sequence.
	// What has ended leaves a slot without an entry; the first slot always has one.
	window      []slot
	windowBytes int64
	endedSlots  int    // slots without an entry, about
	pending     int    // entries in the window that have not ended
	inFlight    int    // of those, and of the side place's, in claims
	claims      int    // open ones
	idle        int    // calls of Claim that wait
	held        int    // who wants that nothing is claimed
	flowing     bool   // Customer.io takes deliveries
	hastens     uint64 // calls of Hasten
	delivered   uint64 // records, since the open
	latencies   latencies
	read        uint64 // everything up to here has been read
	readCount   uint64 // the project's records in the log up to read
	discardTo   uint64 // what is read up to here ends as Discarded
	epoch       uint64 // counts how often the consumer has gone back in the log
	reread      func() // ends the reader's wait for the log's next chunk, when epoch has changed
	bound       bound

	retries map[string]retryState // of lanes with failed tries, whether in the window or not
	tallies map[string]Count
	durable Counted // as of the last checkpoint

	// What the next checkpoint has to write.
	changed      bool
	changedBytes int64
	sentNew      map[string][]byte
	sentWriting  map[string][]byte // what the running checkpoint writes
	sentSpare    map[string][]byte // memory for sentNew, while a checkpoint runs
	sentKnown    sentCache         // what the file has of those that were asked for of late
	full         string            // why the last checkpoint found no space; then nothing is claimed
	// What identifiers were sent before sentNew, or before sentWriting, counts no more.
	forget, forgetting bool
	deadNew            map[uint64][]byte // sealed
	deadGone           map[uint64]bool   // before deadNew
	deadGoing          map[uint64]bool   // what the running checkpoint deletes
	retriesNew         map[string]bool
	talliesNew         map[string]bool
	noted              []Ended // what has ended since the last checkpoint: for the history
	notedNext          []Ended // memory for what ends during a checkpoint
	failed             error   // why Run ends

	using     sync.RWMutex // of db and file, which change when the ledger is written anew
	looking   sync.RWMutex // of looks that may last: none begins while it is written anew, and it is not while one lasts
	writing   sync.Mutex   // one checkpoint at a time
	torn      error        // of who holds writing: a checkpoint has failed, and what the disk has of it is unknown: nothing more is written
	unknown   error        // of who holds writing: why the file has to be opened anew before it is written to; nil = it has not
	operating sync.Mutex   // one change at a time of what has ended already

	// What expires dead letters: the time and bytes they have, and where the next look
	// begins. Run's, but for the first two.
	deadKeep   time.Duration
	deadMost   int64
	deadLooked uint64

	compactAfter time.Time // Run's
	history      *history  // of who holds writing

	followed map[[16]byte]map[*func(Step)]bool // by id: who is told what becomes of the record
}

func newConsumer(l *Log, o ConsumerOptions) *Consumer {
	return &Consumer{
		history: newHistory(historyFolder(l.o.Dir, o.Name), o.Now, l.historyMost),
		log:     l, o: o, lanes: newLanes(),
		ready: make(chan struct{}, 1), dirty: make(chan struct{}, 1), haste: make(chan struct{}, 1),
		retries: map[string]retryState{}, tallies: map[string]Count{},
		sentNew: map[string][]byte{}, retriesNew: map[string]bool{}, talliesNew: map[string]bool{},
		deadNew: map[uint64][]byte{}, deadGone: map[uint64]bool{}, side: newSideplace(),
	}
}

// OpenConsumer opens a consumer's ledger, creating it when there is none: then its
// first record is the next one the log takes. It registers the consumer as a holder
// of the log, so it is called before Log.Run, or while it runs for a name that is new
// or was open before.
//
// A damaged ledger is set aside, and what can be read of it goes on (SetAside tells).
// Where its position cannot be read, the consumer begins at the oldest record the log
// has, with books that begin anew: what was delivered before is sent again under the
// same ids. On a disk that is too full for what would be taken over, a ledger of which only
// entries are damaged, and none that was met in use, goes on as it is (Unmended tells).
func OpenConsumer(l *Log, o ConsumerOptions) (*Consumer, error) {
	c := newConsumer(l, o)
	path := c.path()
	err := suspected(path)
	if err == nil {
		err = c.openLedger(path, true)
	}
	if errors.Is(err, ErrDamaged) && !o.Trial {
		c, err = c.salvaged(path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("sync %s: %w", o.Name, err)
	}
	if !o.Trial {
		l.Hold(c.holder(), c.state.low)
	}
	return c, nil
}

// salvaged is the consumer with a ledger that takes the place of its damaged one.
func (c *Consumer) salvaged(path string, cause error) (*Consumer, error) {
	o := &c.log.o
	saved, err := saveLedger(path)
	if err != nil {
		fresh := c.afresh()
		if !NoSpace(err) || suspected(path) != nil || fresh.openLedger(path, false) != nil {
			return nil, err
		}
		fresh.unmended = fmt.Errorf("%w; nothing is taken over: %w", cause, err)
		return fresh, nil
	}
	away, err := putAside(o, path, cause, saved)
	if err != nil {
		return nil, err
	}
	c.away = &away
	fresh := c.afresh()
	return fresh, fresh.openLedger(path, true)
}

// afresh is the consumer before it has read a ledger.
func (c *Consumer) afresh() *Consumer {
	fresh := newConsumer(c.log, c.o)
	fresh.away = c.away
	return fresh
}

func (c *Consumer) holder() string { return "sync/" + c.o.Name }

// openLedger opens and reads the ledger, whole = only if no entry is damaged that would be missed, and makes its first
// checkpoint: one that cannot be written shows it now.
func (c *Consumer) openLedger(path string, whole bool) error {
	var err error
	var leftOut []spoilt
	o := ledgerOptions()
	if whole {
		o = wholeLedger(func(e spoilt) { leftOut = append(leftOut, e) })
	}
	if c.db, c.file, err = openDB(path, o); err != nil {
		return err
	}
	if err := c.deleteSpoilt(leftOut); err != nil {
		return errors.Join(err, c.Close())
	}
	if err := Guard(func() error { return c.db.View(c.load) }); err != nil {
		return errors.Join(fmt.Errorf("read %s: %w", path, err), c.db.Close())
	}
	c.durable = c.countedNow()
	if err := c.begin(); err != nil {
		return errors.Join(err, c.Close())
	}
	return nil
}

// deleteSpoilt deletes what would be left out, and what an audit would find again and again. On a full disk it waits for another start.
func (c *Consumer) deleteSpoilt(entries []spoilt) error {
	if len(entries) == 0 {
		return nil
	}
	err := Update(c.db, func(tx *bolt.Tx) error {
		for _, e := range entries {
			if err := tx.Bucket(e.bucket).Delete(e.key); err != nil {
				return err
			}
		}
		return nil
	})
	if Unknown(err) {
		c.unknown = err
	}
	c.broken = Stuck(err)
	if err != nil && !NoSpace(err) {
		return fmt.Errorf("delete damaged entries of %s: %w", c.path(), err)
	}
	return nil
}

// load reads the small parts of the ledger.
func (c *Consumer) load(tx *bolt.Tx) (err error) {
	if c.state, err = stateOf(tx); err != nil {
		return err
	}
	err = tx.Bucket(bucketRetry).ForEach(func(k, stored []byte) error {
		if v, err := unseal(k, stored); err == nil {
			if lane, r, err := readRetryState(v); err == nil {
				c.retries[lane] = r
			}
		}
		return nil
	})
	if err == nil {
		err = c.loadAside(tx)
	}
	if err == nil && c.away != nil {
		err = c.recount(tx)
	}
	if err != nil {
		return err
	}
	return tx.Bucket(bucketTally).ForEach(func(k, stored []byte) error {
		if v, err := unseal(k, stored); err == nil {
			if n, err := readCount(v); err == nil {
				c.tallies[string(k)] = n
			}
		}
		return nil
	})
}

// begin brings the spans in line with Enabled and writes that down before anything
// is taken.
func (c *Consumer) begin() error {
	s := &c.state
	if c.o.Project == "" {
		c.o.Project = s.project
	}
	tail, count := c.log.endOf(c.o.Project)
	switch {
	case s.project != "" && s.project != c.o.Project && len(s.spans) > 0:
		return fmt.Errorf("its ledger belongs to project %q, the config says %q: give the sync another name, or its old project back", s.project, c.o.Project)
	case len(s.spans) > 0:
	case c.away != nil:
		if err := c.startOver(); err != nil {
			return err
		}
	default:
		s.low, s.lowCount = tail, count
	}
	s.project = c.o.Project
	spans := len(s.spans)
	on := spans > 0 && s.spans[spans-1].to == 0
	s.spans = toggled(s.spans, c.o.Enabled, tail, count)
	moved := spans == 0 || on != c.o.Enabled // a span that begins or ends here has to be durable first
	s.seen, s.seenCount = max(s.seen, tail), max(s.seenCount, count)
	c.read, c.readCount = s.low, s.lowCount
	if c.away != nil {
		c.settleBooks(count)
	}
	c.changed = true
	err := c.checkpoint()
	if c.giveReserve(err) {
		err = c.checkpoint()
	}
	if NoSpace(err) && !moved { // nothing in it is new; Run tries again until there is space
		c.mu.Lock()
		defer c.mu.Unlock()
		c.touch()
		return nil
	}
	return err
}

// toggled ends the last span at the tail, or begins one there, so that one is open
// when on and none is when not.
func toggled(spans []span, on bool, tail, count uint64) []span {
	n := len(spans)
	open := n > 0 && spans[n-1].to == 0
	switch {
	case on && !open:
		return append(spans, span{from: tail, fromCount: count})
	case !on && open && spans[n-1].fromCount == count:
		return spans[:n-1] // it has taken nothing
	case !on && open:
		spans[n-1].to, spans[n-1].toCount = tail, count
	}
	return spans
}

// Run reads the log and checkpoints the ledger until ctx ends; then it makes a last
// checkpoint and returns nil. What claims end after that is forgotten, as by a crash:
// end them first. Any error is of the disk: the outcome of a failed checkpoint is
// unknown, and the process has to end.
func (c *Consumer) Run(ctx context.Context) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	reader := make(chan error, 1)
	go func() { reader <- c.readLog(reading) }()
	err := c.keepLedger(ctx, reader)
	if err != nil {
		stop()
		return errors.Join(err, <-reader)
	}
	err = errors.Join(<-reader, c.checkpoint())
	if NoSpace(err) {
		return nil // what was not written is sent again after the next start
	}
	return err
}

// keepLedger makes checkpoints until ctx ends or the reader does (nil; the reader's
// answer is put back), or one fails.
func (c *Consumer) keepLedger(ctx context.Context, reader chan error) error {
	idle := time.NewTicker(time.Second)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-reader:
			reader <- err
			return nil
		case <-idle.C:
			if err := c.keepHouse(); err != nil {
				return err
			}
		case <-c.dirty:
			if err := c.patientCheckpoint(ctx); err != nil {
				return err
			}
			c.rest(ctx)
		}
		c.mu.Lock()
		failed := c.failed
		c.mu.Unlock()
		if failed != nil {
			return failed
		}
		if c.o.Beat != nil {
			c.o.Beat()
		}
	}
}

// patientCheckpoint is checkpoint; where the disk is full it gives up the log's
// reserve, and then waits for space, for as long as it takes.
func (c *Consumer) patientCheckpoint(ctx context.Context) error {
	for {
		err := c.checkpoint()
		if !NoSpace(err) {
			return err
		}
		if c.giveReserve(err) {
			continue
		}
		if c.o.Beat != nil {
			c.o.Beat() // a full disk is not a stuck one
		}
		again := time.NewTimer(time.Second)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil // what was not written is sent again after the next start
		}
	}
}

// rest waits until the next checkpoint may be made.
func (c *Consumer) rest(ctx context.Context) {
	t := time.NewTimer(checkpointEvery)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.haste:
	case <-ctx.Done():
	}
}

// fail ends Run, since the ledger could not be read or written by someone else. The
// caller holds c.mu.
func (c *Consumer) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
	notify(c.dirty)
}

// readLog fills the window until ctx ends (nil) or the log cannot be read.
func (c *Consumer) readLog(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := c.readOn(ctx); err != nil {
			return fmt.Errorf("sync %s: read log: %w", c.o.Name, err)
		}
	}
	return nil
}

// readOn reads from where the consumer is, until ctx ends or the consumer goes back in
// the log.
func (c *Consumer) readOn(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c.mu.Lock()
	c.reread = stop
	r, epoch := c.log.OpenReader(c.read), c.epoch
	c.mu.Unlock()
	defer r.Close()
	for {
		if c.waitForRoom(ctx) != nil {
			return nil
		}
		chunk, err := r.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = c.take(chunk, epoch)
			chunk.done() // what the window holds are copies
		}
		if err != nil {
			return err
		}
	}
}

func (c *Consumer) waitForRoom(ctx context.Context) error {
	for {
		c.mu.Lock()
		roomy := !c.crowded() || c.relieve()
		if roomy {
			c.mu.Unlock()
			return ctx.Err()
		}
		room := c.room.wait()
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// view is a look at the ledger's file. Panics and faults are ErrDamaged.
func (c *Consumer) view(f func(*bolt.Tx) error) error {
	c.using.RLock()
	defer c.using.RUnlock()
	return Guard(func() error { return c.db.View(f) })
}

// SetAside tells of the ledger that was found damaged at open; nil when it was not.
func (c *Consumer) SetAside() *SetAside { return c.away }

// Unmended is what is damaged in the ledger, and why OpenConsumer has not set it aside: there is no room on the disk. nil =
// nothing; the next start with room mends it.
func (c *Consumer) Unmended() error { return c.unmended }

// Close closes the ledger. Run has returned or was never called. The consumer stays a
// holder of the log until Log.Forget.
func (c *Consumer) Close() error {
	c.history.close()
	if c.broken {
		abandon(c.file)
		return nil
	}
	return c.db.Close()
}
