package users

import (
	"bytes"
	"encoding/binary"
)

const (
	// recentMax is how many insert_ids of one device (else user) are remembered.
	recentMax = 256
	// recentHours is for how long: Amplitude's seven days. Times are kept in hours, so
	// that an insert_id is known for at least this long, and up to an hour longer.
	recentHours = 7 * 24

	recentTag   = 1
	recentCell  = 7 + 2
	recentBytes = recentTag + recentCell // on disk and in memory, for each
)

// recent is the memory for duplicates of one device (else user): of each event that
// had an insert_id, 64 bits of its event id and the hour it was received. With 256
// of them, two different events are taken for one once in 7·10¹⁶ events.
//
// It is a ring over memory of its owner's, in the form in which it is also stored: of
// each id the lowest byte in tags, the other seven and the hour (little-endian) in
// cells. To look for an id is to look for a byte in at most 256, which is four cache
// lines, and to compare the one cell that has it by chance.
//
// Hours are kept modulo 65,536; the owner clears the whole ring when its newest entry
// has expired, so that they never wrap.
type recent struct {
	tags, cells []byte
	head, n     int // the oldest entry, and how many there are
}

// part gives the 64 bits of an event id that are remembered.
func part(id [16]byte) uint64 { return binary.BigEndian.Uint64(id[:8]) }

func expired(added uint16, hour uint32) bool {
	return int16(uint16(hour)-added) > recentHours
}

func (r *recent) hour(i int) uint16 { return binary.LittleEndian.Uint16(r.cells[i*recentCell+7:]) }

// has says whether id was added within the window.
func (r *recent) has(id uint64, hour uint32) bool {
	for from := 0; from < len(r.tags); from++ {
		i := bytes.IndexByte(r.tags[from:], byte(id))
		if i < 0 {
			return false
		}
		from += i
		at := from - r.head // how many are older
		if at < 0 {
			at += len(r.tags)
		}
		// The eighth byte read is the hour's.
		if at < r.n && binary.LittleEndian.Uint64(r.cells[from*recentCell:])<<8 == id>>8<<8 && !expired(r.hour(from), hour) {
			return true
		}
	}
	return false
}

// room is for how many ids a full ring makes room, up to recentMax.
func (r *recent) room() int {
	switch n := len(r.tags); {
	case r.n < n:
		return n
	case n < 4:
		return 4
	case n < 32:
		return 2 * n
	default:
		return min(n+32, recentMax)
	}
}

// add remembers id, in the place of the oldest when the ring is full. There are places.
func (r *recent) add(id uint64, hour uint32) {
	if r.n == len(r.tags) {
		r.drop()
	}
	i := r.head + r.n
	if i >= len(r.tags) {
		i -= len(r.tags)
	}
	r.tags[i] = byte(id)
	cell := r.cells[i*recentCell : (i+1)*recentCell]
	binary.LittleEndian.PutUint64(cell, id>>8)
	binary.LittleEndian.PutUint16(cell[7:], uint16(hour))
	r.n++
}

// prune forgets what has expired.
func (r *recent) prune(hour uint32) {
	for r.n > 0 && expired(r.hour(r.head), hour) {
		r.drop()
	}
}

func (r *recent) drop() {
	if r.head++; r.head == len(r.tags) {
		r.head = 0
	}
	r.n--
}

// copyTo puts the ids, oldest first, at the start of another ring's memory.
func (r *recent) copyTo(tags, cells []byte) {
	first := min(r.n, len(r.tags)-r.head)
	copy(tags, r.tags[r.head:r.head+first])
	copy(tags[first:], r.tags[:r.n-first])
	copy(cells, r.cells[r.head*recentCell:(r.head+first)*recentCell])
	copy(cells[first*recentCell:], r.cells[:(r.n-first)*recentCell])
}

// append writes the tags, oldest first, and behind them the cells.
func (r *recent) append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, r.n*recentBytes)...)
	r.copyTo(dst[start:start+r.n], dst[start+r.n:])
	return dst
}

// readRecent reads what append has written, and shares its memory; false when it
// cannot have been that.
func readRecent(b []byte) (recent, bool) {
	n := len(b) / recentBytes
	if n == 0 || n > recentMax || len(b) != n*recentBytes {
		return recent{}, false
	}
	return recent{tags: b[:n], cells: b[n:], n: n}, true
}
