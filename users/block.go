package users

import "encoding/binary"

// block is one entry in memory, in one run of bytes (numbers are little-endian):
//
//	 0  4 bytes  the slot it belongs to
//	 4  4 bytes  seen
//	 8  8 bytes  seq
//	16  4 bytes  length of the key
//	20  4 bytes  length of the user
//	24  4 bytes  length of the properties
//	28  1 byte   places of the ring of insert_ids, in fours; the highest bit: sole
//	29  1 byte   its head
//	30  2 bytes  how many ids are in it
//	32  8 bytes  asOf
//	40  4 bytes  length of the built-in properties
//	44  4 bytes  number of the project
//	    the key: the kind's letter and the id, as it is the lane of its events
//	    the user, the ring's tags and cells, the built-in properties, the properties
//
// and then what is left of the block, into which properties grow.
type block []byte

const (
	blockProject = 44
	blockHead    = 48
	ringUnit     = 4
	blockSole    = 0x80
)

func (b block) u32(at int) int       { return int(binary.LittleEndian.Uint32(b[at:])) }
func (b block) setU32(at int, v int) { binary.LittleEndian.PutUint32(b[at:], uint32(v)) }

func (b block) owner() entry      { return ownerOf(b) }
func (b block) seen() uint32      { return binary.LittleEndian.Uint32(b[4:]) }
func (b block) setSeen(h uint32)  { binary.LittleEndian.PutUint32(b[4:], h) }
func (b block) seq() uint64       { return binary.LittleEndian.Uint64(b[8:]) }
func (b block) setSeq(seq uint64) { binary.LittleEndian.PutUint64(b[8:], seq) }
func (b block) asOf() asOf        { return asOf(binary.LittleEndian.Uint64(b[32:])) }
func (b block) setAsOf(a asOf)    { binary.LittleEndian.PutUint64(b[32:], uint64(a)) }
func (b block) places() int       { return ringUnit * int(b[28]&^blockSole) }
func (b block) sole() bool        { return b[28]&blockSole != 0 }
func (b block) setNotSole()       { b[28] &^= blockSole }
func (b block) ids() int          { return int(binary.LittleEndian.Uint16(b[30:])) }
func (b block) project() uint32   { return binary.LittleEndian.Uint32(b[blockProject:]) }

// name is what the index finds a block by: the project's number and the key.
func (b block) name() []byte { return b[blockProject : blockHead+b.u32(16)] }
func (b block) key() []byte  { return b[blockHead : blockHead+b.u32(16)] }
func (b block) kind() kind   { return kind(b[blockHead]) }
func (b block) id() []byte   { return b.key()[1:] }

func (b block) user() []byte {
	at := blockHead + b.u32(16)
	return b[at : at+b.u32(20)]
}

func (b block) ring() int      { return blockHead + b.u32(16) + b.u32(20) }
func (b block) afterRing() int { return b.ring() + b.places()*recentBytes }
func (b block) builtins() []byte {
	at := b.afterRing()
	n := b.u32(40)
	return b[at : at+n : at+n]
}

func (b block) afterBuiltins() int { return b.afterRing() + b.u32(40) }
func (b block) properties() []byte {
	at := b.afterBuiltins()
	n := b.u32(24)
	return b[at : at+n : at+n]
}

// setProperties says whether there is room for them.
func (b block) setProperties(p []byte) bool {
	at := b.afterBuiltins()
	if len(p) > len(b)-at {
		return false
	}
	copy(b[at:], p)
	b.setU32(24, len(p))
	return true
}

func (b block) recent() recent {
	at, places := b.ring(), b.places()
	cells := at + places
	return recent{tags: b[at:cells], cells: b[cells : cells+places*recentCell], head: int(b[29]), n: b.ids()}
}

// setRecent notes where a ring over b's memory begins now, and how many are in it.
func (b block) setRecent(r *recent) {
	b[29] = byte(r.head)
	binary.LittleEndian.PutUint16(b[30:], uint16(r.n))
}

// state is what b says; it shares b's memory.
func (b block) state() state {
	return state{seq: b.seq(), seen: b.seen(), asOf: b.asOf(), user: b.user(), sole: b.sole(), builtins: b.builtins(), properties: b.properties(), recent: b.recent()}
}

// expire is state's, in place.
func (b block) expire(hour, unlinkedHours uint32) (changed bool) {
	st := b.state()
	before := st.recent.n
	if changed = st.expire(b.kind(), hour, unlinkedHours); changed || st.recent.n != before {
		b.setRecent(&st.recent)
		b.setU32(24, len(st.properties))
		b.setU32(40, len(st.builtins)) // nothing or all of it, with the properties: these do not move
		b.setAsOf(st.asOf)
	}
	return changed
}

// empty says that nothing is known, not even of when that is: such an entry is not kept.
func (b block) empty() bool {
	return b.u32(20) == 0 && b.u32(24) == 0 && b.u32(40) == 0 && b.ids() == 0 && b.asOf() == 0
}

// blockBytes is how large the block of a state is when its ring has so many places.
func blockBytes(key []byte, st *state, places int) int {
	return blockHead + len(key) + len(st.user) + places*recentBytes + len(st.builtins) + len(st.properties)
}

// fill writes all of a block but its owner. What it is given is not in b.
func (b block) fill(project uint32, key []byte, st *state, places int) {
	b.setSeen(st.seen)
	b.setSeq(st.seq)
	b.setAsOf(st.asOf)
	b.setU32(16, len(key))
	b.setU32(20, len(st.user))
	b.setU32(40, len(st.builtins))
	b[28], b[29] = byte(places/ringUnit), 0
	if st.sole {
		b[28] |= blockSole
	}
	binary.LittleEndian.PutUint16(b[30:], uint16(st.recent.n))
	binary.LittleEndian.PutUint32(b[blockProject:], project)
	at := blockHead + copy(b[blockHead:], key)
	copy(b[at:], st.user)
	if r := b.recent(); st.recent.n > 0 {
		st.recent.copyTo(r.tags, r.cells)
	}
	copy(b[b.afterRing():], st.builtins)
	b.setProperties(st.properties)
}

// ringPlaces is how many places a ring of n ids gets when it is read.
func ringPlaces(n int) int { return (n + ringUnit - 1) / ringUnit * ringUnit }
