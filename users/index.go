package users

import "hash/maphash"

// index finds a slot by the hash of its key: a table with linear probing, of eight
// bytes a place and no pointers. A place holds the upper half of the hash and the slot;
// where it wants to be is the hash's top bits, so the table grows without looking at a key.
type index struct {
	seed  maphash.Seed
	table []uint64 // 0 = free; the length is a power of two
	shift uint     // 32 - log2(len(table))
	n     int
}

const minIndexBits = 6

func newIndex() index {
	return index{seed: maphash.MakeSeed(), table: make([]uint64, 1<<minIndexBits), shift: 32 - minIndexBits}
}

func (x *index) hash(key []byte) uint32 { return uint32(maphash.Bytes(x.seed, key) >> 32) }

// start is where the search for a hash begins; it goes on with next until a free place.
func (x *index) start(hash uint32) uint32 { return hash >> x.shift }
func (x *index) next(at uint32) uint32    { return (at + 1) & uint32(len(x.table)-1) }
func placed(hash uint32, e entry) uint64  { return uint64(hash)<<32 | uint64(e) }

func (x *index) insert(hash uint32, e entry) {
	if x.n++; 4*x.n > 3*len(x.table) {
		x.grow()
	}
	x.put(placed(hash, e))
}

func (x *index) put(v uint64) {
	at := x.start(uint32(v >> 32))
	for x.table[at] != 0 {
		at = x.next(at)
	}
	x.table[at] = v
}

func (x *index) grow() {
	old := x.table
	x.table = make([]uint64, 2*len(old))
	x.shift--
	for _, v := range old {
		if v != 0 {
			x.put(v)
		}
	}
}

// remove takes a slot out. What stands behind it moves up, as far as it may, so that
// no search ends at the gap.
func (x *index) remove(hash uint32, e entry) {
	gap := x.start(hash)
	for v := placed(hash, e); x.table[gap] != v; {
		if x.table[gap] == 0 {
			return
		}
		gap = x.next(gap)
	}
	x.n--
	mask := uint32(len(x.table) - 1)
	for at := x.next(gap); x.table[at] != 0; at = x.next(at) {
		wants := x.start(uint32(x.table[at] >> 32))
		if (at-wants)&mask >= (at-gap)&mask {
			x.table[gap] = x.table[at]
			gap = at
		}
	}
	x.table[gap] = 0
}
