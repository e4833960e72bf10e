package delivery

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"

	"ampcio/mapping"
	"ampcio/queue"
)

// memory is what a batch is made of, and is used again by another one: operations, with their bodies as they go into the
// request, and what is known of each record. When the batch has ended nobody may have kept anything of it. It is for one
// goroutine; the zero memory is empty.
type memory struct {
	room   *mapping.Room  // nil = bodies stand for themselves
	record mapping.Record // that plan reads into
	ahead  func(*queue.Record) string

	operationSlab slab[operation]
	listSlab      slab[*operation]
	partSlab      slab[part]
	takenSlab     slab[taken]
	outcomeSlab   slab[queue.Outcome]
	operations    []*operation // of the batch
	taken         []*taken
	tallies       map[tallied][]queue.Tally
}

// newBatch is one of used memory; end gives it back.
func (s *Sync) newBatch(p pass, ledger *atomic.Int64) *batch {
	m := memories.Get().(*memory)
	m.ahead = s.ahead
	return &batch{memory: m, pass: p, ledger: ledger, operations: m.operations, taken: m.taken}
}

// end gives back the batch's memory: all of its claims have ended.
func (b *batch) end() {
	b.memory.operations, b.memory.taken = b.operations, b.taken
	b.memory.release()
	b.memory, b.operations, b.taken = nil, nil, nil
}

// tallied is what the tallies of a record that was delivered depend on.
type tallied struct{ event, example, user, tries string }

// talliesMost bounds how many different ones are kept.
const talliesMost = 512

// talliesOf gives the tallies of records alike. They are shared, and must not be changed.
func (m *memory) talliesOf(of tallied) []queue.Tally {
	if list, ok := m.tallies[of]; ok {
		return list
	}
	var list []queue.Tally
	for _, t := range []queue.Tally{{Key: of.event, Example: of.example}, {Key: of.user}, {Key: of.tries}} {
		if t.Key != "" {
			list = append(list, t)
		}
	}
	if m.tallies == nil || len(m.tallies) >= talliesMost {
		m.tallies = map[tallied][]queue.Tally{}
	}
	m.tallies[of] = list
	return list
}

var memories = sync.Pool{New: func() any { return &memory{room: mapping.NewRoom(32 << 10)} }}

// roomMost bounds what is kept of a batch for the next: its first record may be larger than any request.
const roomMost = 1 << 20

func (m *memory) release() {
	if m.room.Cut(0); m.room.Cap() > roomMost {
		m.room = mapping.NewRoom(32 << 10)
	}
	m.operationSlab.reset()
	m.listSlab.reset()
	m.partSlab.reset()
	m.takenSlab.reset()
	m.outcomeSlab.reset()
	clear(m.operations)
	clear(m.taken)
	m.operations, m.taken = m.operations[:0], m.taken[:0]
	m.record, m.ahead = mapping.Record{}, nil
	memories.Put(m)
}

// A slab's first block has slabLeast elements, and each is twice the one before, up to slabMost: most batches are small, and
// what a batch has not used need not be cleared.
const (
	slabLeast = 16
	slabMost  = 256
)

// slab gives elements, all zero, and takes them back together.
type slab[T any] struct {
	blocks [][]T
	block  int // the one that is taken from
	used   int // of it
}

// take gives room for n elements one behind the other.
func (s *slab[T]) take(n int) []T {
	if n > slabMost {
		return make([]T, n)
	}
	for s.block < len(s.blocks) && s.used+n > len(s.blocks[s.block]) {
		s.block, s.used = s.block+1, 0
	}
	if s.block == len(s.blocks) {
		size := slabMost
		if i := len(s.blocks); slabLeast<<min(i, 8) < slabMost {
			size = slabLeast << i
		}
		s.blocks = append(s.blocks, make([]T, max(n, size)))
	}
	some := s.blocks[s.block][s.used : s.used+n : s.used+n]
	s.used += n
	return some
}

func (s *slab[T]) one() *T { return &s.take(1)[0] }

func (s *slab[T]) reset() {
	for i := range min(s.block, len(s.blocks)) {
		clear(s.blocks[i])
	}
	if s.block < len(s.blocks) {
		clear(s.blocks[s.block][:s.used])
	}
	s.block, s.used = 0, 0
}

// body is that of a request whose bytes are somebody's who needs them again: once it is closed nobody reads them any
// more, whatever of the transport is still at work.
type body struct {
	mu    sync.Mutex
	parts [3][]byte // what is still to be read
}

func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.parts {
		m := copy(p[n:], b.parts[i])
		n, b.parts[i] = n+m, b.parts[i][m:]
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close implements io.Closer. It waits for a Read, which waits for nothing.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts = [3][]byte{}
	return nil
}

// content is the bytes of a request, in up to three pieces.
type content [3][]byte

func (c content) len() int { return len(c[0]) + len(c[1]) + len(c[2]) }

func (c content) whole() []byte { return bytes.Join(c[:], nil) }
