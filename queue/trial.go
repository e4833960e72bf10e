package queue

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// TrialsFolder is where the ledgers of trials are, below the storage folder: of consumers
// that try something on what the log takes. Nobody misses what is in there.
const TrialsFolder = "dry-run"

// path is where the ledger is.
func (c *Consumer) path() string {
	if c.o.Trial {
		return trialPath(c.log.o.Dir, c.o.Name)
	}
	return ledgerPath(c.log.o.Dir, c.o.Name)
}

func trialPath(storage, name string) string {
	return filepath.Join(storage, TrialsFolder, name+".db")
}

// giveReserve gives up the log's reserve for a checkpoint that finds no space; false when
// there is none, or it is not worth that.
func (c *Consumer) giveReserve(err error) bool {
	return NoSpace(err) && !errors.Is(err, errLookedAt) && !c.o.Trial && c.log.GiveReserve()
}

// Trials lists the names of the trials that have a ledger in a storage folder.
func Trials(storage string) ([]string, error) {
	names, err := ledgersIn(filepath.Join(storage, TrialsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// RemoveTrial deletes the ledger of a trial, if there is one. It is not open.
func RemoveTrial(storage, name string) error {
	path := trialPath(storage, name)
	for _, p := range []string{path, path + newSuffix, path + suspectSuffix} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// LastSent gives what an identifier was last sent, as Outcome.Sent had it; nil = never.
func (c *Consumer) LastSent(identifier string) ([]byte, error) { return c.sent(identifier) }

// LastSent is Consumer.LastSent of a ledger that no process uses, or of a trial's.
func LastSent(storage, name string, trial bool, identifier string) (v []byte, err error) {
	path := ledgerPath(storage, name)
	if trial {
		path = trialPath(storage, name)
	}
	err = viewFile(path, func(tx *bolt.Tx) error {
		k := []byte(identifier)
		if stored := tx.Bucket(bucketSent).Get(k); stored != nil {
			if whole, err := unseal(k, stored); err == nil {
				v = append([]byte(nil), whole...)
			}
		}
		return nil
	})
	return v, err
}

// Records calls f for the records of the log from sequence from to sequence to that can
// be read, in order. While it looks, no file is deleted.
func (l *Log) Records(from, to uint64, f func(Record) error) error {
	release := l.holdFor("a look at records", 0)
	defer release()
	return l.records(from, to, f)
}

func (l *Log) records(from, to uint64, f func(Record) error) error {
	r := l.OpenReader(max(from, 1) - 1)
	defer r.Close()
	for {
		chunk, err := r.Try()
		if err != nil || chunk == nil || chunk.First > to {
			return err
		}
		err = chunk.Records(func(r Record) error {
			switch {
			case r.Seq < from:
				return nil
			case r.Seq > to:
				return errStop
			}
			return f(r)
		})
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// RecordsOf is Log.Records of a storage folder that no process uses: ErrLocked when one
// does. It writes nothing.
func RecordsOf(storage string, from, to uint64, f func(Record) error) error {
	lock, err := lockForLook(storage)
	if err != nil {
		return err
	}
	defer lock.Close() // nil is harmless
	l := newLog(Options{Dir: storage, Now: time.Now})
	if l.files, err = listLog(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		for _, f := range l.files {
			f.close()
		}
	}()
	if len(l.files) == 0 {
		return nil
	}
	ts, err := tombstonesIn(storage)
	if err != nil {
		return err
	}
	l.forgotten.Store(ts)
	l.end = l.storedEnd(len(l.files))
	return l.records(from, to, f)
}

// A Rehearsal lets batches resolve as the log's resolver does, one after the other, and
// stores nothing. The nonces that it gives are no random ones: 1, 2, 3 and so on.
type Rehearsal struct {
	after logEnd
	taken uint64
	buf   []byte // the writer's
}

// Take gives the records that a batch resolves to, as they would stand in the log.
func (h *Rehearsal) Take(b Batch) (records []Record, err error) {
	if h.after.counts == nil {
		h.after.counts = map[string]uint64{}
	}
	w := newWriter(h.after, h.buf)
	w.Next()
	h.taken++
	w.open.nonce = [16]byte{}
	binary.BigEndian.PutUint64(w.open.nonce[8:], h.taken)
	if err := b.Resolve(&w); err != nil {
		return nil, err
	}
	for _, c := range w.finish() {
		if err := c.Records(func(r Record) error { records = append(records, r); return nil }); err != nil {
			return nil, err
		}
	}
	h.after, h.buf = logEnd{seq: w.next - 1, counts: w.counts}, w.buf
	return records, nil
}
