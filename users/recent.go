package users

import "encoding/binary"

const (
	// recentMax is how many insert_ids of one device (else user) are remembered.
	recentMax = 256
	// recentHours is for how long: Amplitude's seven days. Times are kept in hours, so
	// that an insert_id is known for at least this long, and up to an hour longer.
	recentHours = 7 * 24
	recentBytes = 8 + 2 // on disk and in memory, for each
)

// recent is the memory for duplicates of one device (else user): of each event that
// had an insert_id, 64 bits of its event id and the hour it was received. With 256
// of them, two different events are taken for one once in 7·10¹⁶ events.
//
// It is a ring whose size doubles up to recentMax. Hours are kept modulo 65,536; the
// owner clears the whole ring when its newest entry has expired, so that they never wrap.
type recent struct {
	ids     []uint64 // 0 = free; the length is a power of two
	hours   []uint16
	head, n int // the oldest entry, and how many there are
}

// part gives the 64 bits of an event id that are remembered; never 0.
func part(id [16]byte) uint64 {
	return max(binary.BigEndian.Uint64(id[:8]), 1)
}

func expired(added uint16, hour uint32) bool {
	return int16(uint16(hour)-added) > recentHours
}

// has says whether id was added within the window. The whole ring is compared, free
// places too: that is one run over at most 2 kB.
func (r *recent) has(id uint64, hour uint32) bool {
	for i := 0; i < len(r.ids); i += 4 {
		q := r.ids[i : i+4 : i+4]
		if q[0] != id && q[1] != id && q[2] != id && q[3] != id {
			continue
		}
		for j, v := range q {
			if v == id && !expired(r.hours[i+j], hour) {
				return true
			}
		}
	}
	return false
}

// add remembers id, in the place of the oldest when the ring is full.
func (r *recent) add(id uint64, hour uint32) {
	switch {
	case r.n == recentMax:
		r.drop()
	case r.n == len(r.ids):
		r.grow(max(4, 2*r.n))
	}
	i := (r.head + r.n) & (len(r.ids) - 1)
	r.ids[i], r.hours[i] = id, uint16(hour)
	r.n++
}

// prune forgets what has expired.
func (r *recent) prune(hour uint32) {
	for r.n > 0 && expired(r.hours[r.head], hour) {
		r.drop()
	}
}

func (r *recent) drop() {
	r.ids[r.head] = 0
	r.head = (r.head + 1) & (len(r.ids) - 1)
	r.n--
}

func (r *recent) grow(size int) {
	ids, hours := make([]uint64, size), make([]uint16, size)
	for i := range r.n {
		at := (r.head + i) & (len(r.ids) - 1)
		ids[i], hours[i] = r.ids[at], r.hours[at]
	}
	r.ids, r.hours, r.head = ids, hours, 0
}

// append writes the ids, oldest first, and behind them the hours, little-endian.
func (r *recent) append(dst []byte) []byte {
	for i := range r.n {
		dst = binary.LittleEndian.AppendUint64(dst, r.ids[(r.head+i)&(len(r.ids)-1)])
	}
	for i := range r.n {
		dst = binary.LittleEndian.AppendUint16(dst, r.hours[(r.head+i)&(len(r.ids)-1)])
	}
	return dst
}

// readRecent reads what append has written; false when it cannot have been that.
func readRecent(b []byte) (*recent, bool) {
	n := len(b) / recentBytes
	if n == 0 || n > recentMax || len(b) != n*recentBytes {
		return nil, false
	}
	size := 4
	for size < n {
		size *= 2
	}
	r := &recent{ids: make([]uint64, size), hours: make([]uint16, size), n: n}
	for i := range n {
		r.ids[i] = binary.LittleEndian.Uint64(b[8*i:])
		r.hours[i] = binary.LittleEndian.Uint16(b[8*n+2*i:])
		if r.ids[i] == 0 {
			return nil, false
		}
	}
	return r, true
}
