package queue

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
)

// A chunk is the unit that is stored, checked and read: a run of records with
// consecutive sequences, compressed together. Its key is its first sequence
// (8 bytes, big-endian); its value:
//
//	1 byte   format version
//	4 bytes  CRC-32C over the key, the format version and all that follows; a later
//	         format keeps these two, so that it is told from damage
//	4 bytes  number of records
//	16 bytes nonce
//	tallies  for each project seen so far: its name, and how many of its records
//	         the log took before this chunk; sorted by name
//	rest     the records, S2-compressed
//
// bbolt has no page checksum (21 % of random bit flips change a value and pass its
// check), hence the CRC. The tallies make every gap countable: a reader that knows
// how many records of its project it has seen learns from the next chunk how many
// it has missed.
const (
	chunkFormat   = 1
	chunkBytes    = 256 << 10 // raw bytes after which the next record opens another chunk
	maxChunkBytes = 1 << 30   // raw bytes that a reader is willing to inflate
	chunkHeader   = 1 + 4 + 4 + 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Chunk is a decoded run of records.
type Chunk struct {
	First  uint64            // sequence of the first record
	Count  int               // number of records, at least 1
	Before map[string]uint64 // per project: its records in the log before this chunk

	nonce [16]byte
	raw   []byte // the records as recordBytes wrote them

	forgotten *tombstones   // those of whom Records tells nothing
	lookers   *atomic.Int32 // how many may look at raw, and have not said done; nil = for ever
}

// chunkMemoryMost bounds the memory of a chunk that is kept for another.
const chunkMemoryMost = 1 << 20

var chunkMemory sync.Pool // of *[]byte, each chunkBytes or about as many

// lend gives the chunk to one more who looks at it.
func (c *Chunk) lend() *Chunk {
	c.lookers.Add(1)
	lent := *c
	return &lent
}

// done lets the chunk's memory be used for another one: for the one who has looked at it,
// and has kept nothing that aliases it. Who never says so leaves it to the garbage collector.
func (c *Chunk) done() {
	if c.lookers != nil && c.lookers.Add(-1) == 0 && cap(c.raw) >= chunkBytes && cap(c.raw) <= chunkMemoryMost {
		raw := c.raw
		chunkMemory.Put(&raw)
	}
	c.raw, c.Count, c.lookers = nil, 0, nil
}

// onlyLooker is that of a chunk that was just made.
func onlyLooker() *atomic.Int32 {
	n := new(atomic.Int32)
	n.Store(1)
	return n
}

// roomForChunk is used memory, or none.
func roomForChunk() []byte {
	if kept, ok := chunkMemory.Get().(*[]byte); ok {
		return (*kept)[:cap(*kept)]
	}
	return nil
}

// Last is the sequence of the chunk's last record.
func (c *Chunk) Last() uint64 { return c.First + uint64(c.Count) - 1 }

// Records calls f for each record, in order, and ends early with f's error. The
// slices of a record alias the chunk and stay valid until done; they must not be changed. Of who is
// forgotten it tells nothing but that there is a record. Safe for concurrent use.
func (c *Chunk) Records(f func(Record) error) error {
	if c.forgotten == nil {
		return c.AllRecords(f)
	}
	return c.AllRecords(func(r Record) error {
		if c.forgotten.cover(r.Project, r.Lane, r.Seq) {
			r.Lane, r.ID, r.Body, r.Forgotten = "", [16]byte{}, nil, true
		}
		return f(r)
	})
}

// AllRecords is Records, but forgotten ones come as they were stored: for who makes
// anew what they did to somebody else, such as a device that is another's by now.
func (c *Chunk) AllRecords(f func(Record) error) error {
	rest := c.raw
	var r Record
	for i := range c.Count {
		var n int
		var err error
		if r, n, err = readRecord(rest, r); err != nil {
			return fmt.Errorf("record %d: %w", c.First+uint64(i), err)
		}
		r.Seq = c.First + uint64(i)
		rest = rest[n:]
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

func appendRecord(dst []byte, r *Record) []byte {
	dst = appendBytes(dst, r.Project)
	dst = appendBytes(dst, r.Lane)
	dst = binary.AppendVarint(dst, r.Received)
	dst = append(dst, r.ID[:]...)
	return appendBytes(dst, r.Body)
}

// readRecord reads the first of the records in b and says how long it is. Its Body
// aliases b. before is a record of the same chunk, or none: equal names share their
// memory with it.
func readRecord(b []byte, before Record) (r Record, n int, err error) {
	d := decoder{b: b}
	r.Project = sameText(before.Project, d.bytes())
	r.Lane = sameText(before.Lane, d.bytes())
	r.Received = d.varint()
	copy(r.ID[:], d.take(16))
	r.Body = d.bytes()
	return r, len(b) - len(d.b), d.err
}

func sameText(before string, v []byte) string {
	if before == string(v) {
		return before
	}
	return string(v)
}

// checkRecords says whether b is exactly count records.
func checkRecords(b []byte, count int) error {
	d := decoder{b: b}
	for i := 0; i < count && d.err == nil; i++ {
		d.bytes()
		d.bytes()
		d.varint()
		d.take(16)
		d.bytes()
	}
	if d.err == nil && len(d.b) > 0 {
		return fmt.Errorf("%d bytes behind the last record: %w", len(d.b), ErrDamaged)
	}
	return d.err
}

// sealChunk appends the stored value of a chunk to dst and gives both.
func sealChunk(dst []byte, c *Chunk) (all, value []byte) {
	size := chunkHeader + binary.MaxVarintLen64
	for n := range c.Before {
		size += len(n) + 2*binary.MaxVarintLen64
	}
	dst = slices.Grow(dst, size+s2.MaxEncodedLen(len(c.raw)))
	v := dst[len(dst) : len(dst)+chunkHeader : cap(dst)]
	v[0] = chunkFormat
	binary.BigEndian.PutUint32(v[5:], uint32(c.Count))
	copy(v[9:], c.nonce[:])
	v = appendTallies(v, c.Before)
	packed := s2.Encode(v[len(v):cap(v)], c.raw)
	v = v[:len(v)+len(packed)]
	binary.BigEndian.PutUint32(v[1:], chunkSum(c.First, v))
	return dst[:len(dst)+len(v)], v
}

func appendTallies(b []byte, t map[string]uint64) []byte {
	b = binary.AppendUvarint(b, uint64(len(t)))
	for _, name := range slices.Sorted(maps.Keys(t)) {
		b = appendBytes(b, name)
		b = binary.AppendUvarint(b, t[name])
	}
	return b
}

// appendBytes writes a length and that many bytes.
func appendBytes[B string | []byte](b []byte, v B) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func chunkSum(first uint64, v []byte) uint32 {
	sum := crc32.Update(0, castagnoli, seqKey(first))
	sum = crc32.Update(sum, castagnoli, v[:1])
	return crc32.Update(sum, castagnoli, v[5:])
}

// openChunk decodes a stored value; the result shares no memory with it. Anything
// that is not exactly what sealChunk wrote is ErrDamaged, but for a later format.
func openChunk(first uint64, v []byte) (*Chunk, error) {
	if len(v) < chunkHeader {
		return nil, fmt.Errorf("chunk %d: %d bytes: %w", first, len(v), ErrDamaged)
	}
	if chunkSum(first, v) != binary.BigEndian.Uint32(v[1:]) {
		return nil, fmt.Errorf("chunk %d: checksum: %w", first, ErrDamaged)
	}
	switch {
	case v[0] > chunkFormat:
		return nil, fmt.Errorf("chunk %d: format %d: %w", first, v[0], ErrNewerFormat)
	case v[0] < chunkFormat:
		return nil, fmt.Errorf("chunk %d: format %d: %w", first, v[0], ErrDamaged)
	}
	c := &Chunk{First: first, Count: int(binary.BigEndian.Uint32(v[5:]))}
	copy(c.nonce[:], v[9:])
	d := decoder{b: v[chunkHeader:]}
	c.Before = d.tallies()
	if d.err != nil {
		return nil, fmt.Errorf("chunk %d: %w", first, d.err)
	}
	n, err := s2.DecodedLen(d.b)
	if err != nil || n > maxChunkBytes || c.Count == 0 {
		return nil, fmt.Errorf("chunk %d: length: %w", first, ErrDamaged)
	}
	c.lookers = onlyLooker()
	if c.raw, err = s2.Decode(roomForChunk(), d.b); err != nil {
		return nil, fmt.Errorf("chunk %d: %w: %w", first, err, ErrDamaged)
	}
	if err := checkRecords(c.raw, c.Count); err != nil {
		return nil, fmt.Errorf("chunk %d: %w", first, err)
	}
	return c, nil
}

// after gives the tallies that stand behind the chunk. The error can only be that of
// a chunk that no checksum has passed.
func (c *Chunk) after() (map[string]uint64, error) {
	t := maps.Clone(c.Before)
	if t == nil {
		t = map[string]uint64{}
	}
	err := c.Records(func(r Record) error { t[r.Project]++; return nil })
	return t, err
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// decoder reads the parts of a stored value; the first that does not fit makes all
// later ones empty.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b, d.err = nil, fmt.Errorf("cut short: %w", ErrDamaged)
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if uint64(len(d.b)) < n {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// bytes reads a length and that many bytes, which alias the input.
func (d *decoder) bytes() []byte { return d.take(d.uvarint()) }

func (d *decoder) tallies() map[string]uint64 {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	t := make(map[string]uint64, n)
	for range n {
		name := string(d.bytes())
		t[name] = d.uvarint()
	}
	return t
}
