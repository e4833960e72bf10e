package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"
)

// The history of a consumer says of each record when and how it ended, which the ledger
// does not keep: for whoever asks later (trace). It is never needed to deliver. So it has
// no sync of its own: a crash forgets the last second. What cannot be written is left out,
// what cannot be read is passed over. No user's data is in it: sequences, times, reasons.
//
// It is a folder of files that are only appended to, one block for each checkpoint of the
// ledger, behind it in time: the history never says more than the ledger knows. A block:
//
//	1 byte   format version
//	4 bytes  CRC-32C over all that follows
//	4 bytes  length of the payload
//	8, 8     the least and the greatest sequence in it
//	payload  S2 of: how many kinds there are, and each (ending, tries, reason, tallies);
//	         how many records, and for each the step in sequence, the step in time, its kind
//
// (numbers outside the payload are big-endian, in it varints.) That is some three bytes
// for a record. A file goes when the log has none of its records any more, and the oldest
// go when there are more bytes than historyMost, or a 32nd of max_bytes.
const (
	historyVersion   = 1
	historyHeader    = 1 + 4 + 4 + 8 + 8
	historySuffix    = ".hist"
	historyFileBytes = 4 << 20
	historyFileFor   = 24 * time.Hour
	historyMost      = 128 << 20 // bytes
	historyLook      = time.Minute
	historyPayload   = 64 << 20 // that a reader is willing to inflate
	notedMost        = 1 << 18  // entries that wait for a checkpoint
)

// Ended is one thing that happened to a record: it ended so. A record may end more than
// once: a dead letter is tried again, a rewind takes records once more.
type Ended struct {
	Seq    uint64
	At     int64 // ms since 1970 UTC
	Ending Ending
	Tries  int    // as far as they are counted, which is for the first that waits of its user; 0 = it was not sent
	Reason string // of Filtered, Dead and Discarded; of Delivered what the last failed try was answered
	// Tallies are those of its Outcome: what became of the parts of it.
	Tallies []Tally
}

// note remembers an ending for the history; nobody asks for that of a trial. The caller
// holds c.mu.
func (c *Consumer) note(e Ended) {
	if len(c.noted) < notedMost && !c.o.Trial {
		c.noted = append(c.noted, e)
	}
}

// useAgain gives back the memory of what was noted.
func (c *Consumer) useAgain(noted []Ended) {
	if cap(noted) > 64<<10 {
		return // after a burst
	}
	clear(noted)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noted == nil {
		c.noted = noted[:0]
	} else {
		c.notedNext = noted[:0]
	}
}

func historyFolder(storage, name string) string {
	return filepath.Join(storage, "sync", name+".history")
}

// history writes a consumer's history. It is for one goroutine at a time.
type history struct {
	dir   string
	now   func() time.Time
	most  func() int64 // bytes
	file  *os.File     // nil = the next block begins one
	bytes int64        // of file
	begun time.Time
	files []historyFile // oldest first; nil = not looked at yet
	look  time.Time     // when they are looked at next
	buf   []byte
}

type historyFile struct {
	path  string
	most  uint64 // the greatest sequence in it
	bytes int64
}

func newHistory(dir string, now func() time.Time, most func() int64) *history {
	return &history{dir: dir, now: now, most: most}
}

// historyMost is how many bytes a history may have: little of a storage that is small.
func (l *Log) historyMost() int64 {
	if most := l.limits.Load().MaxBytes; most > 0 {
		return min(historyMost, most/32)
	}
	return historyMost
}

// add appends a block. What the disk does not take is left out.
func (h *history) add(list []Ended) {
	if len(list) == 0 {
		return
	}
	h.buf = appendHistory(h.buf[:0], list)
	if h.file != nil && (h.bytes+int64(len(h.buf)) > historyFileBytes || h.now().Sub(h.begun) >= historyFileFor) {
		h.close()
	}
	if h.file == nil && h.begin() != nil {
		return
	}
	if n, err := h.file.Write(h.buf); err != nil {
		// Behind half a block nothing would be read. The file stays the one that is written
		// to: a full disk would get another with every checkpoint.
		if n > 0 && h.file.Truncate(h.bytes) != nil {
			h.close()
		}
		return
	}
	h.bytes += int64(len(h.buf))
	if n := len(h.files); n > 0 {
		f := &h.files[n-1]
		f.bytes = h.bytes
		for _, e := range list {
			f.most = max(f.most, e.Seq)
		}
	}
	if cap(h.buf) > 4<<20 {
		h.buf = nil
	}
}

func (h *history) begin() error {
	h.list()
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	for at := max(h.now().UnixMilli(), 0); ; at++ {
		path := filepath.Join(h.dir, fmt.Sprintf("%013d%s", at, historySuffix))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		h.file, h.bytes, h.begun = f, 0, h.now()
		h.files = append(h.files, historyFile{path: path})
		h.prune(0)
		return nil
	}
}

func (h *history) close() {
	if h.file != nil {
		h.file.Close() // it is only for people: what is not on the disk is left out
		h.file = nil
	}
}

// list learns what files there are.
func (h *history) list() {
	if h.files != nil {
		return
	}
	h.files = []historyFile{}
	for _, path := range historyFiles(h.dir) {
		f := historyFile{path: path}
		if file, err := os.Open(path); err == nil {
			if st, err := file.Stat(); err == nil {
				f.bytes = st.Size()
			}
			eachBlock(file, func(least, most uint64, payload func() ([]byte, error)) error {
				f.most = max(f.most, most)
				return nil
			})
			file.Close()
		}
		h.files = append(h.files, f)
	}
}

// tidy deletes what the log has no records of any more: first is the first that it has.
func (h *history) tidy(first uint64) {
	if now := time.Now(); now.After(h.look) {
		h.look = now.Add(historyLook)
		h.list()
		h.prune(first)
	}
}

func (h *history) prune(first uint64) {
	bytes := int64(0)
	for _, f := range h.files {
		bytes += f.bytes
	}
	for len(h.files) > 0 {
		f := h.files[0]
		if written := len(h.files) == 1 && h.file != nil; written || f.most >= first && bytes <= h.most() {
			return
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return
		}
		bytes -= f.bytes
		h.files = h.files[1:]
	}
}

func appendHistory(dst []byte, list []Ended) []byte {
	type kind struct {
		ending  Ending
		tries   int
		reason  string
		tallies [4]string
	}
	numbers := map[kind]uint64{}
	var kinds, rows []byte
	least, most := list[0].Seq, list[0].Seq
	seq, at := uint64(0), int64(0)
	for _, e := range list {
		least, most = min(least, e.Seq), max(most, e.Seq)
		k := kind{ending: e.Ending, tries: e.Tries, reason: e.Reason}
		for i := range min(len(e.Tallies), len(k.tallies)) {
			k.tallies[i] = e.Tallies[i].Key
		}
		n, known := numbers[k]
		if !known {
			n = uint64(len(numbers))
			numbers[k] = n
			kinds = append(kinds, byte(k.ending))
			kinds = binary.AppendUvarint(kinds, uint64(k.tries))
			kinds = appendBytes(kinds, k.reason)
			for _, t := range k.tallies {
				kinds = appendBytes(kinds, t)
			}
		}
		rows = binary.AppendVarint(rows, int64(e.Seq-seq))
		rows = binary.AppendVarint(rows, e.At-at)
		rows = binary.AppendUvarint(rows, n)
		seq, at = e.Seq, e.At
	}
	raw := binary.AppendUvarint(nil, uint64(len(numbers)))
	raw = append(raw, kinds...)
	raw = binary.AppendUvarint(raw, uint64(len(list)))
	payload := s2.Encode(nil, append(raw, rows...))
	start := len(dst)
	dst = append(dst, historyVersion, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.BigEndian.AppendUint64(dst, least)
	dst = binary.BigEndian.AppendUint64(dst, most)
	dst = append(dst, payload...)
	binary.BigEndian.PutUint32(dst[start+1:], crc32.Checksum(dst[start+5:], castagnoli))
	return dst
}

func historyFiles(dir string) (paths []string) {
	entries, _ := os.ReadDir(dir) // sorted by name, so by time; without a folder there is none
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), historySuffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// eachBlock calls f for the blocks of a file, as far as they can be read. payload reads
// what the block holds; a block of which it is not called is passed over.
func eachBlock(file *os.File, f func(least, most uint64, payload func() ([]byte, error)) error) {
	at := int64(0)
	header := make([]byte, historyHeader)
	for {
		if n, _ := file.ReadAt(header, at); n < historyHeader || header[0] != historyVersion {
			return
		}
		size := int64(binary.BigEndian.Uint32(header[5:]))
		if size > historyPayload {
			return
		}
		payload := func() ([]byte, error) {
			b := make([]byte, size)
			if _, err := file.ReadAt(b, at+historyHeader); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			if crc32.Update(crc32.Checksum(header[5:], castagnoli), castagnoli, b) != binary.BigEndian.Uint32(header[1:]) {
				return nil, ErrDamaged
			}
			if n, err := s2.DecodedLen(b); err != nil || n > historyPayload {
				return nil, ErrDamaged
			}
			return s2.Decode(nil, b)
		}
		if f(binary.BigEndian.Uint64(header[9:]), binary.BigEndian.Uint64(header[17:]), payload) != nil {
			return
		}
		at += historyHeader + size
	}
}

// readHistory gives what a history knows of some sequences, which are in order, as it happened.
func readHistory(dir string, seqs []uint64) map[uint64][]Ended {
	found := map[uint64][]Ended{}
	if len(seqs) == 0 {
		return found
	}
	for _, path := range historyFiles(dir) {
		file, err := os.Open(path)
		if err != nil {
			continue // deleted meanwhile, or not ours to read
		}
		eachBlock(file, func(least, most uint64, payload func() ([]byte, error)) error {
			if i, _ := slices.BinarySearch(seqs, least); i == len(seqs) || seqs[i] > most {
				return nil
			}
			raw, err := payload()
			if err != nil {
				return nil // what is behind it may be whole
			}
			eachEnded(raw, func(e Ended) {
				if _, wanted := slices.BinarySearch(seqs, e.Seq); wanted {
					found[e.Seq] = append(found[e.Seq], e)
				}
			})
			return nil
		})
		file.Close()
	}
	return found
}

func eachEnded(raw []byte, f func(Ended)) {
	d := decoder{b: raw}
	kinds := make([]Ended, 0, 16)
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		k := Ended{}
		if b := d.take(1); d.err == nil {
			k.Ending = Ending(b[0])
		}
		k.Tries = int(d.uvarint())
		k.Reason = string(d.bytes())
		for range 4 {
			if t := d.bytes(); len(t) > 0 {
				k.Tallies = append(k.Tallies, Tally{Key: string(t)})
			}
		}
		kinds = append(kinds, k)
	}
	seq, at := uint64(0), int64(0)
	for n := d.uvarint(); n > 0; n-- {
		seq += uint64(d.varint())
		at += d.varint()
		k := d.uvarint()
		if d.err != nil || k >= uint64(len(kinds)) || kinds[k].Ending >= endings {
			return
		}
		e := kinds[k]
		e.Seq, e.At = seq, at
		f(e)
	}
}

// moveHistory lets a history go with its ledger to another name. It is only for people:
// what cannot be moved is left.
func moveHistory(storage, old, new string) {
	from, to := historyFolder(storage, old), historyFolder(storage, new)
	if os.Rename(from, to) == nil {
		return
	}
	for _, path := range historyFiles(from) { // two become one
		name := strings.TrimSuffix(filepath.Base(path), historySuffix)
		for n := 0; n < 100; n++ {
			into := filepath.Join(to, fmt.Sprintf("%s-%d%s", name, n, historySuffix))
			if !exists(into) {
				os.Rename(path, into)
				break
			}
		}
	}
	os.RemoveAll(from)
}
