package users

import (
	"encoding/binary"
	"math/bits"
	"syscall"
)

// slab holds blocks of bytes in pages, each page cut into blocks of one size. It is
// memory that the garbage collector neither walks nor counts: half a million entries
// as objects of their own cost a seventh of the daemon's time in marking, and their
// bytes twice, since the heap may double before it is collected.
//
// Nothing but slots points at blocks, and a block says whose it is, so blocks can be
// moved: a page that is mostly free is vacated. That bounds what is lost to sizes that
// are not asked for any more.
type slab struct {
	pages   []page
	numbers []uint32 // of pages that are nil, to be used again
	spare   [][]byte // pages that are free as a whole
	arenas  [][]byte // where pages are cut from
	classes [maxClasses]class
	sparse  uint64 // bit per class: there may be a page to vacate
}

// ref says where a block is: its page's number, and its place in the page in units
// of unitBytes. 0 = nowhere.
type ref uint32

const (
	pageBytes  = 64 << 10
	unitBytes  = 16
	unitBits   = 12 // log2(pageBytes / unitBytes)
	arenaPages = 16
	minBlock   = 48
	maxBlock   = 16 << 10 // what is larger stands alone
	maxClasses = 64
	alone      = maxClasses // class of a page that is one large block
	noPlace    = -1
)

// page is one page's books.
type page struct {
	mem   []byte
	class uint8
	live  uint16 // blocks in use
	fresh uint16 // blocks from here on were never used
	free  uint16 // 1 + the first of the free blocks, each of which names the next
	place int    // in its class's list of pages with room; noPlace = full
}

// class is one size of blocks.
type class struct {
	size, perPage int
	room          []uint32 // pages with a free block
	blocks, free  int      // of its pages
}

var (
	classSizes []int
	// classOf: by size in units, rounded up.
	classOf [maxBlock/unitBytes + 1]uint8
)

// Sizes an eighth apart: a block is on average a sixteenth larger than what is in it.
func init() {
	for size := minBlock; ; size = (size*9/8 + unitBytes - 1) / unitBytes * unitBytes {
		size = min(size, maxBlock)
		for units := range classOf {
			if units*unitBytes <= size && (len(classSizes) == 0 || units*unitBytes > classSizes[len(classSizes)-1]) {
				classOf[units] = uint8(len(classSizes))
			}
		}
		if classSizes = append(classSizes, size); size == maxBlock {
			return
		}
	}
}

// A block in use begins with the number of the slot that it belongs to, a free one
// with 0 and then 1 + the number of the next free block of its page.
func ownerOf(b []byte) entry         { return entry(binary.LittleEndian.Uint32(b)) }
func setOwner(b []byte, e entry)     { binary.LittleEndian.PutUint32(b, uint32(e)) }
func nextFree(b []byte) uint16       { return binary.LittleEndian.Uint16(b[4:]) }
func setNextFree(b []byte, n uint16) { binary.LittleEndian.PutUint16(b[4:], n) }

// at gives a block: all of its size, which may be more than was asked for. It stays
// valid until it is freed, or the next vacate.
func (s *slab) at(r ref) block {
	p := &s.pages[r>>unitBits]
	if p.class == alone {
		return p.mem
	}
	start := int(r&(1<<unitBits-1)) * unitBytes
	size := classSizes[p.class]
	return p.mem[start : start+size : start+size]
}

func (s *slab) sizeOf(r ref) int64 {
	p := &s.pages[r>>unitBits]
	if p.class == alone {
		return int64(len(p.mem))
	}
	return int64(classSizes[p.class])
}

// alloc gives a block of at least n bytes with anything in it, that belongs to e.
func (s *slab) alloc(n int, e entry) ref {
	if n > maxBlock {
		// On the Go heap: it is rare, and then goes back at once.
		number := s.newPage(page{mem: make([]byte, n), class: alone, live: 1, place: noPlace})
		setOwner(s.pages[number].mem, e)
		return ref(number << unitBits)
	}
	k := classOf[(n+unitBytes-1)/unitBytes]
	c := &s.classes[k]
	if len(c.room) == 0 {
		c.size, c.perPage = classSizes[k], pageBytes/classSizes[k]
		number := s.newPage(page{mem: s.newMemory(), class: k})
		c.room = append(c.room, number)
		c.blocks += c.perPage
		c.free += c.perPage
	}
	number := c.room[len(c.room)-1]
	p := &s.pages[number]
	i := p.fresh
	if p.free != 0 {
		i = p.free - 1
		p.free = nextFree(p.mem[int(i)*c.size:])
	} else {
		p.fresh++
	}
	p.live++
	c.free--
	if int(p.live) == c.perPage {
		s.full(c, p)
	}
	start := int(i) * c.size
	setOwner(p.mem[start:], e)
	return ref(number<<unitBits) | ref(start/unitBytes)
}

// free gives a block back. What is in it stays as it is, but for the first few bytes,
// until the next alloc.
func (s *slab) free(r ref) {
	number := uint32(r >> unitBits)
	p := &s.pages[number]
	if p.class == alone {
		s.dropPage(number)
		return
	}
	k := p.class
	c := &s.classes[k]
	start := int(r&(1<<unitBits-1)) * unitBytes
	setOwner(p.mem[start:], nobody)
	setNextFree(p.mem[start:], p.free)
	p.free = uint16(start/c.size) + 1
	p.live--
	c.free++
	if p.place == noPlace {
		p.place = len(c.room)
		c.room = append(c.room, number)
	}
	if p.live == 0 {
		s.full(c, p)
		c.blocks -= c.perPage
		c.free -= c.perPage
		s.dropPage(number)
	}
	if c.sparse() {
		s.sparse |= 1 << k
	}
}

// full takes a page out of the list of those with room.
func (s *slab) full(c *class, p *page) {
	last := len(c.room) - 1
	c.room[p.place] = c.room[last]
	s.pages[c.room[last]].place = p.place
	c.room = c.room[:last]
	p.place = noPlace
}

// vacate frees one page of a class of which more than a quarter is free, when there
// is one, by moving its blocks to other pages. moved is told of each.
func (s *slab) vacate(moved func(e entry, from, to ref)) {
	k := bits.TrailingZeros64(s.sparse)
	if k == maxClasses {
		return
	}
	c := &s.classes[k]
	if !c.sparse() {
		s.sparse &^= 1 << k
		return
	}
	number := c.room[0]
	for _, other := range c.room {
		if s.pages[other].live < s.pages[number].live {
			number = other
		}
	}
	p := s.pages[number]
	s.full(c, &s.pages[number])
	c.blocks -= c.perPage
	c.free -= c.perPage - int(p.live)
	for start := 0; p.live > 0; start += c.size {
		b := p.mem[start : start+c.size]
		if e := ownerOf(b); e != nobody {
			p.live--
			to := s.alloc(c.size, e)
			copy(s.at(to), b)
			moved(e, ref(number<<unitBits)|ref(start/unitBytes), to)
		}
	}
	s.dropPage(number)
}

func (c *class) sparse() bool { return c.free*c.size > 2*pageBytes && 4*c.free > c.blocks }

func (s *slab) newPage(p page) uint32 {
	if len(s.pages) == 0 {
		s.pages = append(s.pages, page{}) // so that no block's ref is 0
	}
	if last := len(s.numbers) - 1; last >= 0 {
		number := s.numbers[last]
		s.numbers = s.numbers[:last]
		s.pages[number] = p
		return number
	}
	s.pages = append(s.pages, p)
	return uint32(len(s.pages) - 1)
}

func (s *slab) dropPage(number uint32) {
	if p := &s.pages[number]; p.class != alone {
		s.spare = append(s.spare, p.mem)
	}
	s.pages[number] = page{}
	s.numbers = append(s.numbers, number)
}

// newArena gives memory for pages, or nil when there is none to be had: memory that
// the system gives and takes back, and that the garbage collector does not know.
var newArena = mapArena

func mapArena(bytes int) []byte {
	arena, err := syscall.Mmap(-1, 0, bytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	return arena
}

func (s *slab) newMemory() []byte {
	if len(s.spare) == 0 {
		arena := newArena(arenaPages * pageBytes)
		if arena != nil {
			s.arenas = append(s.arenas, arena)
		} else {
			arena = make([]byte, arenaPages*pageBytes)
		}
		for ; len(arena) > 0; arena = arena[pageBytes:] {
			s.spare = append(s.spare, arena[:pageBytes:pageBytes])
		}
	}
	last := len(s.spare) - 1
	mem := s.spare[last]
	s.spare = s.spare[:last]
	return mem
}

// close gives all memory back: no block may be looked at any more.
func (s *slab) close() {
	for _, arena := range s.arenas {
		syscall.Munmap(arena) // of what Mmap gave: there is nothing that could fail
	}
	*s = slab{}
}
