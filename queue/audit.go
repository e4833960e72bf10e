package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/dustin/go-humanize"
	bolt "go.etcd.io/bbolt"
)

// Audit is what an audit has found: the books of one consumer, proved from the disk.
// What can be counted by reading is counted so: pending records in the log and in the
// side place, and dead letters. What cannot, as how many records were delivered, is the
// ledger's count; the equation shows when one of these is wrong.
type Audit struct {
	Name    string `json:"name"`
	Project string `json:"project"`
	// Books: Taken by the log's tallies, the endings by the ledger, Pending by reading.
	Books Books `json:"books"`
	// Pending is made of these.
	InLog   uint64 `json:"in_log"`  // read in the log: taken, and not ended
	Aside   uint64 `json:"aside"`   // read in the side place
	Missing uint64 `json:"missing"` // not ended by the ledger's account, and not to be found
	// Counted is what is pending by the counters alone.
	Counted     uint64 `json:"counted"`
	DeadLetters uint64 `json:"dead_letters"` // that can be read
	Low         uint64 `json:"low"`          // every record up to here has ended, or is in the side place
	Tail        uint64 `json:"tail"`         // the log's last record
	// Differences are what does not add up; none = the books balance. Notes are what a
	// person should know beside that.
	Differences []string `json:"differences"`
	Notes       []string `json:"notes"`

	damaged bool // something in the ledger is not what was written
}

// Balanced says whether nothing was found that does not add up.
func (a *Audit) Balanced() bool { return len(a.Differences) == 0 }

// mostDifferences bounds what is told of one ledger; a broken one could fill a disk.
const mostDifferences = 100

func (a *Audit) differs(format string, args ...any) {
	switch n := len(a.Differences); {
	case n < mostDifferences:
		a.Differences = append(a.Differences, fmt.Sprintf(format, args...))
	case n == mostDifferences:
		a.Differences = append(a.Differences, "there are more differences than these")
	}
}

func (a *Audit) note(format string, args ...any) {
	if len(a.Notes) < mostDifferences {
		a.Notes = append(a.Notes, fmt.Sprintf(format, args...))
	}
}

// Audit proves the consumer's books from the disk while everything goes on: it writes a
// checkpoint, looks at the ledger as of that moment in one transaction, and reads in the
// log's files what is pending by its account. Meanwhile no file that it needs is deleted.
//
// It reads the ledger, and the log from the low-water mark on: on two cores nearly a million
// records a second. It holds a chunk, some pages and eight megabytes at most, however much
// is pending. While it reads, the ledger's file grows, since pages that the
// transaction sees are not used again before it ends.
//
// Damage that leaves nothing to compare with is an error: ErrDamaged. A ledger in which
// damage is found is marked, so that the next start salvages it.
func (c *Consumer) Audit(ctx context.Context) (Audit, error) {
	if err := c.Flush(); err != nil && !NoSpace(err) { // then the last checkpoint is audited
		return Audit{}, err
	}
	c.looking.RLock()
	defer c.looking.RUnlock()
	letGo := c.log.holdFor("an audit of "+c.o.Name, 0)
	defer func() { letGo() }()
	var a Audit
	err := c.view(func(tx *bolt.Tx) error {
		s, err := stateOf(tx)
		if err != nil {
			return err
		}
		all := letGo
		letGo = c.log.holdFor("an audit of "+c.o.Name, s.low)
		all()
		// Only now: what the ledger knows of is then in the log.
		a, err = auditLedger(ctx, c.o.Name, tx, &s, c.log.list(), nil)
		return err
	})
	if a.damaged || errors.Is(err, ErrDamaged) {
		suspect(c.path())
		a.note("the next start sets the ledger aside, takes over what can be read of it, and counts what is missing as lost")
	}
	if err != nil {
		return a, fmt.Errorf("audit of sync %s: %w", c.o.Name, err)
	}
	return a, nil
}

// list gives the log's files, oldest first.
func (l *Log) list() []*logFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*logFile(nil), l.files...)
}

// AuditFiles does the same for all ledgers of a folder that no process uses, or those
// named: ErrLocked when one does. It writes nothing; a daemon that starts meanwhile waits
// for it, but not for long. An audit that fails does not hide the others.
func AuditFiles(ctx context.Context, dir string, names ...string) (all []Audit, err error) {
	lock, err := lockForLook(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // nil is harmless
	if len(names) == 0 {
		if names, err = Ledgers(dir); err != nil && !errors.Is(err, fs.ErrNotExist) || len(names) == 0 {
			return nil, err
		}
	}
	files, err := listLog(filepath.Join(dir, "log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			f.close()
		}
	}()
	known := logEnd{}
	if known.seq, known.counts, err = ledgersKnow(dir); err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range names {
		var a Audit
		err := viewLedger(dir, name, func(tx *bolt.Tx) error {
			s, err := stateOf(tx)
			if err != nil {
				return err
			}
			a, err = auditLedger(ctx, name, tx, &s, files, &known)
			return err
		})
		if errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w: the next start of ampcio sets the ledger aside, and takes over what can be read of it", err)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("audit of sync %s: %w", name, err))
			continue
		}
		switch {
		case suspected(ledgerPath(dir, name)) != nil:
			a.note("damage was met in this ledger while it was in use: the next start sets it aside and takes over what can be read")
		case a.damaged:
			a.note("the next start that meets the damage sets the ledger aside, takes over what can be read of it, and counts what is missing as lost, or deletes what nobody will miss; in a large ledger it may not look so far: run ampcio audit while ampcio runs, and start it again")
		}
		all = append(all, a)
	}
	return all, errors.Join(errs...)
}

// auditor is one audit that runs.
type auditor struct {
	Audit
	ctx  context.Context
	tx   *bolt.Tx
	s    *ledgerState
	log  logView
	dead *deadSequences
	side *asideSequences
	twice
	deadBytes int64 // of the dead letters that can be read
}

// auditLedger does the work. known is what all ledgers have seen of the log, where no
// process has brought the log up to that yet.
func auditLedger(ctx context.Context, name string, tx *bolt.Tx, s *ledgerState, files []*logFile, known *logEnd) (Audit, error) {
	au := &auditor{ctx: ctx, tx: tx, s: s}
	au.Name, au.Project, au.Low = name, s.project, s.low
	au.Differences, au.Notes = []string{}, []string{}
	if s.project == "" {
		au.note("the ledger was created, and has not been used yet")
		return au.Audit, nil
	}
	if err := au.openLog(files, known); err != nil {
		return au.Audit, err
	}
	au.Tail = au.log.end.seq
	au.checkState()
	for _, check := range []func() error{au.checkEntries, au.checkAgainstLog, au.readPending} {
		if err := check(); err != nil {
			return au.Audit, err
		}
	}
	au.tellTwice()
	au.balance()
	return au.Audit, nil
}

// checkState looks whether the state agrees with itself.
func (au *auditor) checkState() {
	s := au.s
	if s.low > s.seen || s.lowCount > s.seenCount {
		au.differs("the low-water mark %s (%s) is ahead of what the ledger has seen of the log: %s (%s)",
			comma(s.low), records(s.lowCount), comma(s.seen), records(s.seenCount))
	}
	for i, sp := range s.spans {
		open := sp.to == 0
		switch {
		case open && i < len(s.spans)-1:
			au.differs("the span from %s is open, and there is another behind it", comma(sp.from))
		case !open && (sp.to < sp.from || sp.toCount < sp.fromCount || sp.toCount-sp.fromCount > sp.to-sp.from):
			au.differs("the span from %s (%s) to %s (%s) is impossible", comma(sp.from), records(sp.fromCount), comma(sp.to), records(sp.toCount))
		}
		if i == 0 {
			continue
		}
		if before := s.spans[i-1]; sp.from < before.to || sp.fromCount < before.toCount {
			au.differs("the span from %s overlaps the one before, which ends with %s", comma(sp.from), comma(before.to))
		}
	}
	count := max(au.log.end.counts[s.project], s.seenCount)
	last := s.lowCount
	for i, r := range s.done {
		switch {
		case r.first > r.last:
			au.differs("the run %s is impossible", r)
		case r.first <= last && i == 0:
			au.differs("the run %s of what has ended above the low-water mark begins below it: %s", r, records(s.lowCount))
		case r.first <= last:
			au.differs("the run %s of what has ended overlaps the one before", r)
		case r.last > count:
			au.differs("the run %s of what has ended goes beyond the %s there are", r, records(count))
		case overlapSpans(s.spans, r) != r.len():
			au.differs("the run %s of what has ended is of records that the sync does not take", r)
		}
		last = max(last, r.last)
	}
}

// overlapSpans counts what spans take of a run.
func overlapSpans(spans []span, r run) (n uint64) {
	for _, t := range takenRuns(spans, r.first-1, r.last) {
		n += t.len()
	}
	return n
}

// balance compares the two sides of the books.
func (au *auditor) balance() {
	s := au.s
	au.Books = booksOf(s, au.log.end.counts[s.project], au.InLog+au.Missing+au.Aside)
	b := au.Books
	endings := b.Delivered + b.Filtered + b.Dead + b.Discarded + b.Lost
	if total := b.Taken + b.Rewound; total > endings {
		au.Counted = total - endings
	}
	if s.ended[Dead] != au.DeadLetters {
		au.differs("the ledger counts %s, %s can be read: %s", plural(s.ended[Dead], "dead letter"), comma(au.DeadLetters), surplus(au.DeadLetters, s.ended[Dead]))
	}
	format2 := au.tx.Bucket(bucketAside) != nil // the first did not know of bytes
	if format2 && s.ended[Dead] == au.DeadLetters && s.deadBytes != au.deadBytes {
		au.differs("the ledger's dead letters have by its account %s bytes; those that can be read have %s", humanize.Comma(s.deadBytes), humanize.Comma(au.deadBytes))
	}
	if b.Difference() == 0 {
		return
	}
	au.differs("taken %s + rewound %s, but delivered %s + filtered %s + dead %s + discarded %s + lost %s + pending %s make %s: %s",
		comma(b.Taken), comma(b.Rewound), comma(b.Delivered), comma(b.Filtered), comma(b.Dead), comma(b.Discarded), comma(b.Lost), comma(b.Pending),
		comma(endings+b.Pending), surplus(endings+b.Pending, b.Taken+b.Rewound))
	// Which side is it? What has ended is told by positions, too.
	passed := takenOf(s.spans, s.lowCount)
	for _, r := range s.done {
		passed += r.len()
	}
	if by := int64(endings+au.Aside) - int64(b.Rewound); by != int64(passed) {
		au.differs("by its low-water mark and the runs above it %s ended or went to the side place; its counts, and what is in the side place, say %s",
			records(passed), humanize.Comma(by))
	}
	if behind := b.Taken - passed; behind != au.InLog+au.Missing {
		au.differs("%s should be pending in the log; %s are", records(behind), comma(au.InLog+au.Missing))
	}
}

// surplus says how two counts differ: what was found against what should be.
func surplus(found, want uint64) string {
	if found > want {
		return comma(found-want) + " too many"
	}
	return comma(want-found) + " missing"
}

func comma(n uint64) string { return humanize.Comma(int64(n)) }

func records(n uint64) string { return plural(n, "record") }

func plural(n uint64, what string) string {
	if n != 1 {
		what += "s"
	}
	return comma(n) + " " + what
}

func (r run) String() string { return comma(r.first) + "–" + comma(r.last) }
