package queue

import (
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
//	meta   "format", and "state": the ledgerState, one value
//	sent   identifier → what it was last sent (opaque)
//	retry  lane → its failed tries and when the next is due
//	dead   sequence → a dead letter, whole
//	tally  key → a Count
//
// A checkpoint writes all that changed since the last one in one transaction, so
// the low-water mark, the books, dead letters and what was last sent always agree.
// A crash forgets what came after the last checkpoint: those records are read
// again, and sent again under the same ids. Every value ends with a checksum.
const ledgerFormat = 1

var (
	bucketSent  = []byte("sent")
	bucketRetry = []byte("retry")
	bucketDead  = []byte("dead")
	bucketTally = []byte("tally")
	keyState    = []byte("state")
)

func ledgerOptions() DBOptions {
	return DBOptions{MmapBytes: 64 << 20, Format: ledgerFormat,
		Buckets: []string{string(bucketSent), string(bucketRetry), string(bucketDead), string(bucketTally)}}
}

func ledgerPath(storage, name string) string {
	return filepath.Join(storage, "sync", name+".db")
}

// Ledgers lists the names of the consumers that have a ledger in a storage folder.
func Ledgers(storage string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(storage, "sync"))
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
	// The end of the log as this ledger has seen it, so that a log that was damaged or
	// restored from an older copy never uses a sequence twice.
	seen, seenCount uint64
}

// run is a stretch of a project's records by their number, both ends included.
type run struct{ first, last uint64 }

func (s *ledgerState) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.project)))
	b = append(b, s.project...)
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
	for _, n := range s.ended {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendUvarint(b, s.seen)
	return binary.AppendUvarint(b, s.seenCount)
}

func readLedgerState(v []byte) (s ledgerState, err error) {
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
	if n := d.uvarint(); n > uint64(endings) {
		return s, fmt.Errorf("%d endings: %w", n, ErrNewerFormat)
	} else {
		for i := range n {
			s.ended[i] = d.uvarint()
		}
	}
	s.seen = d.uvarint()
	s.seenCount = d.uvarint()
	return s, d.err
}

// endedAll is the number of records that have ended.
func (s *ledgerState) endedAll() (n uint64) {
	for _, c := range s.ended {
		n += c
	}
	return n
}

func stateOf(tx *bolt.Tx) (ledgerState, error) {
	v := tx.Bucket(bucketMeta).Get(keyState)
	if v == nil {
		return ledgerState{}, nil // created, and then the power went
	}
	v, err := unseal(keyState, v)
	if err != nil {
		return ledgerState{}, fmt.Errorf("ledger state: %w", err)
	}
	s, err := readLedgerState(v)
	if err != nil {
		return s, fmt.Errorf("ledger state: %w", err)
	}
	return s, nil
}

// ledgersKnow gives the highest sequence, and for each project the highest count of
// records, that any ledger has seen. It opens them one after the other, read-only.
func ledgersKnow(dir string) (seq uint64, counts map[string]uint64, err error) {
	counts = map[string]uint64{}
	names, err := Ledgers(filepath.Dir(dir))
	if err != nil {
		return 0, nil, err
	}
	for _, name := range names {
		s, err := peekLedger(filepath.Join(dir, name+".db"))
		if errors.Is(err, ErrDamaged) {
			continue // OpenConsumer sets it aside and says so
		}
		if err != nil {
			return 0, nil, err
		}
		seq = max(seq, s.seen)
		counts[s.project] = max(counts[s.project], s.seenCount)
	}
	return seq, counts, nil
}

func peekLedger(path string) (s ledgerState, err error) {
	o := ledgerOptions()
	o.ReadOnly, o.MmapBytes = true, 0
	db, err := OpenDB(path, o)
	if err != nil {
		return s, err
	}
	defer db.Close()
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			s, err = stateOf(tx)
			return err
		})
	})
	return s, err
}

// retryState is why and until when a lane waits.
type retryState struct {
	attempts int
	due      int64 // ms since 1970 UTC
	delay    int64 // ms, as it was set: bounds the wait when the clock has jumped
	reason   string
}

func (r retryState) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(r.attempts))
	b = binary.AppendVarint(b, r.due)
	b = binary.AppendVarint(b, r.delay)
	return append(b, r.reason...)
}

func readRetryState(v []byte) (retryState, error) {
	d := decoder{b: v}
	r := retryState{attempts: int(d.uvarint()), due: d.varint(), delay: d.varint()}
	r.reason = string(d.b)
	return r, d.err
}

// DeadLetter is a record that Customer.io has refused, whole.
type DeadLetter struct {
	Record  Record
	At      int64  // when it died, ms since 1970 UTC
	Reason  string // in the words of its Outcome
	Results []byte // what was answered, opaque
}

func (d *DeadLetter) append(b []byte) []byte {
	b = binary.AppendVarint(b, d.At)
	b = binary.AppendUvarint(b, uint64(len(d.Reason)))
	b = append(b, d.Reason...)
	b = binary.AppendUvarint(b, uint64(len(d.Results)))
	b = append(b, d.Results...)
	return appendRecord(b, &d.Record)
}

func readDeadLetter(seq uint64, v []byte) (l DeadLetter, err error) {
	d := decoder{b: v}
	l.At = d.varint()
	l.Reason = string(d.bytes())
	l.Results = append([]byte(nil), d.bytes()...)
	if d.err != nil {
		return l, d.err
	}
	l.Record, _, err = readRecord(append([]byte(nil), d.b...))
	l.Record.Seq = seq
	return l, err
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

// seal adds a checksum over key and value, since bbolt has none; unseal checks it
// and gives the value, which shares v's memory.
func seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, sealSum(key, value))
}

func unseal(key, v []byte) ([]byte, error) {
	n := len(v) - 4
	if n < 0 || sealSum(key, v[:n]) != binary.BigEndian.Uint32(v[n:]) {
		return nil, fmt.Errorf("checksum of an entry: %w", ErrDamaged)
	}
	return v[:n:n], nil
}

func sealSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
}
