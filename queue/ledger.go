package queue

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// A ledger is a consumer's memory: one bbolt file in the folder sync. Buckets:
//
//	meta       "format", and "state": the ledgerState, one value
//	sent       identifier → what it was last sent (opaque)
//	retry      hash of a lane → the lane, its failed tries and when the next is due
//	dead       sequence → a dead letter, whole
//	tally      key → a Count
//	aside      hash of a lane, sequence → a record of the side place, whole (aside.go)
//	asidelane  hash of a lane → the lane, and how much of it is in the side place
//
// Format 1 had no side place, and nothing behind seenCount in its state but the number
// of dead letters. It is brought up to format 2 when it is opened for writing.
//
// A checkpoint writes all that changed since the last one in one transaction, so
// the low-water mark, the books, dead letters and what was last sent always agree.
// A crash forgets what came after the last checkpoint: those records are read
// again, and sent again under the same ids. Every value ends with a checksum; an
// entry that fails it is left out: a lane is then due at once, a count starts again,
// an identifier counts as never sent. Of others see wholeLedger.
const ledgerFormat = 2

var (
	bucketSent      = []byte("sent")
	bucketRetry     = []byte("retry")
	bucketDead      = []byte("dead")
	bucketTally     = []byte("tally")
	bucketAside     = []byte("aside")
	bucketAsideLane = []byte("asidelane")
	keyState        = []byte("state")
)

// ledgerMmap is address space taken at once, not memory. A file that outgrows it is mapped
// anew, which waits for every look at it, also for an audit, and all else waits behind that.
const ledgerMmap = 8 << 30

func ledgerOptions() DBOptions {
	return DBOptions{MmapBytes: ledgerMmap, FirstFit: true, Format: ledgerFormat, Upgrade: upgradeLedger,
		Buckets: []string{string(bucketSent), string(bucketRetry), string(bucketDead), string(bucketTally),
			string(bucketAside), string(bucketAsideLane)}}
}

// spoilt is an entry of a ledger whose checksum is wrong.
type spoilt struct{ bucket, key []byte }

// wholeLedger is ledgerOptions for an open that asks for checksums, too, as far as it looks: a dead letter that nobody can read
// would stay among the dead, and keep an audit red for ever. Set aside, the ledger goes on without it, and it is counted as
// lost. What nobody misses, since it is left out, is no reason for that; it is given to each, to be deleted.
func wholeLedger(each func(spoilt)) DBOptions {
	o := ledgerOptions()
	o.Entry = func(bucket string, k, v []byte) error {
		_, err := unseal(k, v)
		switch bucket {
		case string(bucketSent), string(bucketRetry), string(bucketTally):
			if err != nil {
				each(spoilt{[]byte(bucket), bytes.Clone(k)})
			}
			return nil
		}
		return err
	}
	return o
}

// upgradeLedger writes the state of an older format in this one. Buckets that are new
// are there already, and the format is entered by the caller, in the same transaction.
func upgradeLedger(tx *bolt.Tx) error {
	s, err := stateOf(tx)
	if err != nil || s.project == "" {
		return err
	}
	cur := tx.Bucket(bucketDead).Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		s.deadBytes += int64(len(v))
	}
	return put(tx.Bucket(bucketMeta), keyState, s.append(nil))
}

func ledgerPath(storage, name string) string {
	return filepath.Join(storage, "sync", name+".db")
}

// Ledgers lists the names of the consumers that have a ledger in a storage folder.
func Ledgers(storage string) ([]string, error) { return ledgersIn(filepath.Join(storage, "sync")) }

func ledgersIn(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".db"); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// ledgerState is what has to agree at every moment.
type ledgerState struct {
	project string
	spans   []span
	low     uint64 // every record at or below has ended
	// lowCount is how many records of the project the log has up to low; done lists
	// those above that have ended, by their number among the project's records.
	lowCount uint64
	done     []run
	ended    [endings]uint64 // by Ending
	// The end of the log as this ledger has seen it, and the project's records up to
	// there, so that a log that was damaged or restored from an older copy never uses a
	// sequence twice, and what it has lost is counted.
	seen, seenCount uint64
	newest          [endings]int64 // by Ending: when the last one was entered, ms since 1970 UTC
	deadBytes       int64          // of the dead letters in the ledger, of which there are ended[Dead]
	rewound         uint64         // records taken once more by rewinds
	lastRewind      int64          // ms since 1970 UTC, 0 = never
	// Where the log ended at the last rewind: up to there, what is pending is bounded by
	// what the log keeps, and not by how much may be pending.
	rewindTail, rewindCount uint64
	paused                  int64 // since when, ms since 1970 UTC; 0 = it is not
	workspace               int64 // where deliveries go, as Customer.io numbers it; 0 = not known yet
	// id is the ledger's own, random; absorbed are those of ledgers that were taken into
	// this one: should a crash leave such a file, it is deleted.
	id       ledgerID
	absorbed []ledgerID
}

type ledgerID [8]byte

func newLedgerID() (id ledgerID) {
	rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return id
}

func (s *ledgerState) append(b []byte) []byte {
	b = s.appendFormat1(b)
	b = binary.AppendVarint(b, s.deadBytes)
	b = binary.AppendUvarint(b, s.rewound)
	for _, v := range []int64{s.lastRewind, s.paused, s.workspace} {
		b = binary.AppendVarint(b, v)
	}
	b = binary.AppendUvarint(b, s.rewindTail)
	b = binary.AppendUvarint(b, s.rewindCount)
	b = append(b, s.id[:]...)
	b = binary.AppendUvarint(b, uint64(len(s.absorbed)))
	for _, id := range s.absorbed {
		b = append(b, id[:]...)
	}
	return b
}

// appendFormat1 writes what format 1 has too, and at the same place.
func (s *ledgerState) appendFormat1(b []byte) []byte {
	b = appendBytes(b, s.project)
	b = binary.AppendUvarint(b, uint64(len(s.spans)))
	for _, r := range s.spans {
		for _, v := range []uint64{r.from, r.to, r.fromCount, r.toCount} {
			b = binary.AppendUvarint(b, v)
		}
	}
	b = binary.AppendUvarint(b, s.low)
	b = binary.AppendUvarint(b, s.lowCount)
	b = binary.AppendUvarint(b, uint64(len(s.done)))
	for _, r := range s.done {
		b = binary.AppendUvarint(b, r.first)
		b = binary.AppendUvarint(b, r.last)
	}
	b = binary.AppendUvarint(b, uint64(endings))
	for i, n := range s.ended {
		b = binary.AppendUvarint(b, n)
		b = binary.AppendVarint(b, s.newest[i])
	}
	b = binary.AppendUvarint(b, s.seen)
	return binary.AppendUvarint(b, s.seenCount)
}

func readLedgerState(v []byte, format byte) (s ledgerState, err error) {
	d := decoder{b: v}
	s.project = string(d.bytes())
	n := d.uvarint()
	for i := uint64(0); i < n && d.err == nil; i++ {
		s.spans = append(s.spans, span{from: d.uvarint(), to: d.uvarint(), fromCount: d.uvarint(), toCount: d.uvarint()})
	}
	s.low = d.uvarint()
	s.lowCount = d.uvarint()
	n = d.uvarint()
	for i := uint64(0); i < n && d.err == nil; i++ {
		s.done = append(s.done, run{d.uvarint(), d.uvarint()})
	}
	n = d.uvarint()
	if d.err == nil && n > uint64(endings) {
		return s, fmt.Errorf("%d endings: %w", n, ErrNewerFormat)
	}
	for i := range n {
		s.ended[i] = d.uvarint()
		s.newest[i] = d.varint()
	}
	s.seen = d.uvarint()
	s.seenCount = d.uvarint()
	if format < 2 {
		d.uvarint() // dead letters: s.ended[Dead]
		s.id = newLedgerID()
		return s, d.err
	}
	s.deadBytes = d.varint()
	s.rewound = d.uvarint()
	s.lastRewind, s.paused, s.workspace = d.varint(), d.varint(), d.varint()
	s.rewindTail, s.rewindCount = d.uvarint(), d.uvarint()
	copy(s.id[:], d.take(uint64(len(s.id))))
	n = d.uvarint()
	for i := uint64(0); i < n && d.err == nil; i++ {
		s.absorbed = append(s.absorbed, ledgerID(append(d.take(8), make([]byte, 8)...)[:8]))
	}
	return s, d.err
}

func stateOf(tx *bolt.Tx) (ledgerState, error) {
	meta := tx.Bucket(bucketMeta)
	v := meta.Get(keyState)
	if v == nil {
		return ledgerState{id: newLedgerID()}, nil // created, and then the power went
	}
	v, err := unseal(keyState, v)
	if err != nil {
		return ledgerState{}, fmt.Errorf("ledger state: %w", err)
	}
	format, err := unseal(keyFormat, meta.Get(keyFormat))
	if err != nil {
		return ledgerState{}, fmt.Errorf("ledger format: %w", err)
	}
	s, err := readLedgerState(v, format[0])
	if err != nil {
		return s, fmt.Errorf("ledger state: %w", err)
	}
	return s, nil
}

// ledgersKnow gives the highest sequence, and for each project the highest count of
// records, that any ledger has seen. It opens them one after the other, read-only.
func ledgersKnow(storage string) (seq uint64, counts map[string]uint64, err error) {
	states, err := peekLedgers(storage)
	if err != nil {
		return 0, nil, err
	}
	seq, counts = seenBy(states)
	return seq, counts, nil
}

// peekLedgers reads the states of all ledgers, none of which is open, by name. One that
// bbolt cannot read is not among them: OpenConsumer sets it aside and says so.
func peekLedgers(storage string) (map[string]ledgerState, error) {
	names, err := Ledgers(storage)
	if err != nil {
		return nil, err
	}
	states := make(map[string]ledgerState, len(names))
	for _, name := range names {
		s, err := peekLedger(storage, name)
		switch {
		case err == nil:
			states[name] = s
		case !errors.Is(err, ErrDamaged):
			return nil, err
		}
	}
	return states, nil
}

// seenBy is what ledgersKnow tells, of ledgers' states.
func seenBy(states map[string]ledgerState) (seq uint64, counts map[string]uint64) {
	counts = map[string]uint64{}
	for _, s := range states {
		seq = max(seq, s.seen)
		counts[s.project] = max(counts[s.project], s.seenCount)
	}
	delete(counts, "")
	return seq, counts
}

// LedgerProject gives the project of a consumer that is not open, so that it can be
// opened when the configuration does not name it any more: as long as that does not
// happen, nothing keeps the log files it needs. "" when the ledger never took
// anything, or is damaged: OpenConsumer then takes the project from what it can
// salvage.
func LedgerProject(storage, name string) (string, error) {
	s, err := peekLedger(storage, name)
	if errors.Is(err, ErrDamaged) {
		return "", nil
	}
	return s.project, err
}

// peekLedger reads the state of a ledger that is not open.
func peekLedger(storage, name string) (s ledgerState, err error) {
	err = viewLedger(storage, name, func(tx *bolt.Tx) error {
		s, err = stateOf(tx)
		return err
	})
	return s, err
}

// viewLedger opens a ledger read-only for one look.
func viewLedger(storage, name string, f func(tx *bolt.Tx) error) error {
	return viewFile(ledgerPath(storage, name), f)
}

func viewFile(path string, f func(tx *bolt.Tx) error) error {
	o := ledgerOptions()
	o.ReadOnly, o.MmapBytes, o.strict = true, 0, true
	return viewDB(path, o, f)
}

// viewLedgerAsStart is viewLedger; of a ledger that the next start would set aside it says ErrDamaged, even where
// what is asked for could still be read.
func viewLedgerAsStart(storage, name string, f func(tx *bolt.Tx) error) error {
	o := wholeLedger(func(spoilt) {})
	o.ReadOnly, o.MmapBytes, o.strict, o.writable = true, 0, true, true
	return viewDB(ledgerPath(storage, name), o, f)
}

func viewDB(path string, o DBOptions, f func(tx *bolt.Tx) error) error {
	db, err := OpenDB(path, o)
	if err != nil {
		return err
	}
	err = Guard(func() error { return db.View(f) })
	return errors.Join(err, db.Close())
}

// retryState is why and until when a lane waits.
type retryState struct {
	attempts int
	due      int64 // ms since 1970 UTC
	delay    int64 // ms, as it was set: bounds the wait when the clock has jumped
	reason   string
}

// retryKey is the key of a lane in the bucket retry: bbolt takes neither an empty key
// nor a very long one, and lanes may be both.
func retryKey(lane string) []byte {
	h := sha256.Sum256([]byte(lane))
	return h[:16]
}

func (r retryState) append(b []byte, lane string) []byte {
	b = appendBytes(b, lane)
	b = binary.AppendUvarint(b, uint64(r.attempts))
	b = binary.AppendVarint(b, r.due)
	b = binary.AppendVarint(b, r.delay)
	return append(b, r.reason...)
}

func readRetryState(v []byte) (lane string, r retryState, err error) {
	d := decoder{b: v}
	lane = string(d.bytes())
	r = retryState{attempts: int(d.uvarint()), due: d.varint(), delay: d.varint()}
	r.reason = string(d.b)
	return lane, r, d.err
}

func (c Count) append(b []byte) []byte {
	b = binary.AppendUvarint(b, c.N)
	b = binary.AppendVarint(b, c.Newest)
	return append(b, c.Example...)
}

func readCount(v []byte) (Count, error) {
	d := decoder{b: v}
	c := Count{N: d.uvarint(), Newest: d.varint()}
	c.Example = string(d.b)
	return c, d.err
}

// sealBytes is what seal adds.
const sealBytes = 4

// seal adds a checksum over key and value, since bbolt has none; unseal checks it
// and gives the value, which shares v's memory.
func seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, sealSum(key, value))
}

func unseal(key, v []byte) ([]byte, error) {
	n := len(v) - sealBytes
	if n < 0 || sealSum(key, v[:n]) != binary.BigEndian.Uint32(v[n:]) {
		return nil, fmt.Errorf("checksum of an entry: %w", ErrDamaged)
	}
	return v[:n:n], nil
}

func sealSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
}
