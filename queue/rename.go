package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// RenameLedger gives the ledger old the name new. Where there is a ledger of that name
// already, both become one: what old has pending goes on under the new name, with its
// books, dead letters and what it has sent. That takes that both are of one project and
// one workspace, and that old took its last record before new took its first; else the
// error says what is in the way, and nothing has changed. Neither is open.
//
// A crash leaves both, or new alone, or new and an old that the next start deletes.
func RenameLedger(l *Log, old, new string) error {
	from, to := ledgerPath(l.o.Dir, old), ledgerPath(l.o.Dir, new)
	if !exists(from) {
		return fmt.Errorf("sync %s has no ledger: %w", old, fs.ErrNotExist)
	}
	if old == new {
		return fmt.Errorf("sync %s: it has this name already", old)
	}
	for _, path := range []string{from, to} {
		if err := suspected(path); err != nil {
			return fmt.Errorf("%s: %w: restart ampcio, which saves what can be read, and rename then", path, err)
		}
	}
	var err error
	if exists(to) {
		err = joinLedgers(from, to, new)
	} else {
		err = renameDurably(from, to)
	}
	if err == nil {
		moveHistory(l.o.Dir, old, new)
	}
	if err != nil {
		return fmt.Errorf("rename sync %s to %s: %w", old, new, err)
	}
	s, err := peekLedger(l.o.Dir, new)
	if err != nil {
		return fmt.Errorf("rename sync %s to %s: %w", old, new, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders["sync/"+new] = s.low
	delete(l.holders, "sync/"+old)
	return nil
}

// RemoveLedger deletes a ledger that is not open: what is pending of it is delivered to
// nobody, and its dead letters are gone. It keeps no log file any more.
func RemoveLedger(l *Log, name string) error {
	path := ledgerPath(l.o.Dir, name)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove sync %s: %w", name, err)
	}
	if err := os.Remove(path + suspectSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove sync %s: %w", name, err)
	}
	l.Forget("sync/" + name)
	os.RemoveAll(historyFolder(l.o.Dir, name)) // what stays of it says nothing without the ledger
	return syncDir(filepath.Dir(path))
}

// joinLedgers makes one ledger of two, and deletes the first.
func joinLedgers(from, to, name string) error {
	old, err := OpenDB(from, ledgerOptions())
	if err != nil {
		return err
	}
	defer old.Close()
	new, err := OpenDB(to, ledgerOptions())
	if err != nil {
		return err
	}
	defer new.Close()
	first, err := viewState(old)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	second, err := viewState(new)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	joined, err := joinStates(first, second, name)
	if err != nil {
		return err
	}
	fresh := to + ".joined" + newSuffix // what a crash leaves of it is removed
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	made, err := OpenDB(fresh, ledgerOptions())
	if err != nil {
		return err
	}
	made.NoSync = true // once, at the end
	w := saver{to: made}
	err = Guard(func() error {
		return old.View(func(was *bolt.Tx) error {
			return new.View(func(is *bolt.Tx) error { return joinBuckets(&w, was, is) })
		})
	})
	if err == nil {
		err = w.take(string(bucketMeta), keyState, seal(keyState, joined.append(nil)))
	}
	if err = errors.Join(err, w.flush(), made.Sync(), made.Close()); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := renameDurably(fresh, to); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil {
		return err
	}
	return syncDir(filepath.Dir(from))
}

func viewState(db *bolt.DB) (s ledgerState, err error) {
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			s, err = stateOf(tx)
			return err
		})
	})
	return s, err
}

// joinStates adds two ledgers' states, of which old has ended taking records before the
// other began.
func joinStates(old, new ledgerState, name string) (ledgerState, error) {
	switch {
	case old.project != new.project && old.project != "" && new.project != "":
		return new, fmt.Errorf("it is of project %q, sync %s of project %q", old.project, name, new.project)
	case old.workspace != new.workspace && old.workspace != 0 && new.workspace != 0:
		return new, fmt.Errorf("its workspace is %d, that of sync %s is %d: %w", old.workspace, name, new.workspace, ErrOtherWorkspace)
	}
	if n := len(old.spans); n > 0 && len(new.spans) > 0 {
		if last := old.spans[n-1]; last.to == 0 || last.toCount > new.spans[0].fromCount {
			return new, fmt.Errorf("sync %s took records before this one had taken its last: the two cannot become one", name)
		}
	}
	s := new
	s.spans = append(slices.Clone(old.spans), new.spans...)
	if len(old.spans) > 0 && (old.low < new.low || len(new.spans) == 0) {
		s.low, s.lowCount = old.low, old.lowCount
	}
	s.done = nil
	for _, of := range []ledgerState{old, new} {
		s.done = append(s.done, takenRuns(of.spans, s.lowCount, of.lowCount)...)
		for _, r := range of.done {
			if r = r.within(s.lowCount+1, r.last); r.len() > 0 {
				s.done = append(s.done, r)
			}
		}
	}
	slices.SortFunc(s.done, func(a, b run) int { return int(int64(a.first) - int64(b.first)) })
	s.project = max(old.project, new.project)
	if s.paused == 0 {
		s.paused = old.paused // to hold too much is the lesser mistake
	}
	s.workspace = max(old.workspace, new.workspace)
	for e := range s.ended {
		s.ended[e] += old.ended[e]
		s.newest[e] = max(s.newest[e], old.newest[e])
	}
	s.seen, s.seenCount = max(old.seen, new.seen), max(old.seenCount, new.seenCount)
	s.deadBytes += old.deadBytes
	s.rewound += old.rewound
	s.lastRewind = max(s.lastRewind, old.lastRewind)
	s.rewindTail, s.rewindCount = max(s.rewindTail, old.rewindTail), max(s.rewindCount, old.rewindCount)
	s.absorbed = slices.Concat(new.absorbed, old.absorbed, []ledgerID{old.id})
	return s, nil
}

// joinBuckets copies the entries of two ledgers. Of what identifiers were sent the second
// knows the newer, of tries that failed the first the older, which is the head's.
func joinBuckets(w *saver, old, new *bolt.Tx) error {
	all := func(tx *bolt.Tx, bucket []byte, but func(k []byte) bool) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			if but != nil && but(k) {
				return nil
			}
			return w.take(string(bucket), k, v)
		})
	}
	in := func(tx *bolt.Tx, bucket []byte) func(k []byte) bool {
		return func(k []byte) bool { return tx.Bucket(bucket).Get(k) != nil }
	}
	sum := func(bucket []byte, add func(k, a, b []byte) ([]byte, error)) error {
		err := new.Bucket(bucket).ForEach(func(k, v []byte) error {
			if other := old.Bucket(bucket).Get(k); other != nil {
				var err error
				if v, err = add(k, other, v); err != nil {
					return err
				}
			}
			return w.take(string(bucket), k, v)
		})
		if err != nil {
			return err
		}
		return all(old, bucket, in(new, bucket))
	}
	return errors.Join(
		all(old, bucketSent, in(new, bucketSent)), all(new, bucketSent, nil),
		all(new, bucketRetry, in(old, bucketRetry)), all(old, bucketRetry, nil),
		all(old, bucketDead, nil), all(new, bucketDead, nil),
		all(old, bucketAside, nil), all(new, bucketAside, nil),
		sum(bucketTally, addCounts), sum(bucketAsideLane, addAsideLanes),
	)
}

func addCounts(k, a, b []byte) ([]byte, error) {
	var c [2]Count
	for i, stored := range [][]byte{a, b} {
		v, err := unseal(k, stored)
		if err == nil {
			c[i], err = readCount(v)
		}
		if err != nil {
			return nil, err
		}
	}
	newer := c[1]
	if c[0].Newest > newer.Newest {
		newer = c[0]
	}
	newer.N = c[0].N + c[1].N
	return seal(k, newer.append(nil)), nil
}

func addAsideLanes(k, a, b []byte) ([]byte, error) {
	var lane string
	var sum asideLane
	for _, stored := range [][]byte{a, b} {
		v, err := unseal(k, stored)
		if err != nil {
			return nil, err
		}
		name, one, err := readAsideLane(v)
		if err != nil {
			return nil, err
		}
		if lane = name; sum.count == 0 || one.oldest < sum.oldest {
			sum.oldest = one.oldest
		}
		sum.count += one.count
		sum.bytes += one.bytes
	}
	return seal(k, sum.append(nil, lane)), nil
}

// dropAbsorbed deletes the ledgers that others have taken in: a crash came between.
func dropAbsorbed(storage string, states map[string]ledgerState) error {
	owner := map[ledgerID]string{}
	absorbed := map[ledgerID]bool{}
	for name, s := range states {
		owner[s.id] = name
		for _, id := range s.absorbed {
			absorbed[id] = true
		}
	}
	for id, name := range owner {
		if absorbed[id] {
			if err := os.Remove(ledgerPath(storage, name)); err != nil {
				return err
			}
		}
	}
	return syncDir(filepath.Join(storage, "sync"))
}
