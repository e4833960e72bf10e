package users

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// check compares the slab's books with its pages, and gives the number of blocks in use.
func (s *slab) check(t interface{ Fatalf(string, ...any) }) (blocks int) {
	total, free := map[uint8]int{}, map[uint8]int{}
	withRoom := map[uint8]int{}
	for number, p := range s.pages {
		switch {
		case p.mem == nil:
			continue
		case p.class == alone:
			blocks++
			continue
		}
		c := &s.classes[p.class]
		live := 0
		for i := range int(p.fresh) {
			if ownerOf(p.mem[i*c.size:]) != nobody {
				live++
			}
		}
		unused := c.perPage - int(p.fresh)
		for at := p.free; at != 0; at = nextFree(p.mem[int(at-1)*c.size:]) {
			unused++
		}
		if live != int(p.live) || live == 0 || live+unused != c.perPage {
			t.Fatalf("page %d: %d live, %d free of %d; the books say %d live", number, live, unused, c.perPage, p.live)
		}
		if p.place != noPlace && c.room[p.place] != uint32(number) || (p.place == noPlace) != (unused == 0) {
			t.Fatalf("page %d with %d free: place %d", number, unused, p.place)
		}
		blocks += live
		total[p.class] += c.perPage
		free[p.class] += unused
		if unused > 0 {
			withRoom[p.class]++
		}
	}
	for k := range s.classes {
		c, k := &s.classes[k], uint8(k)
		if c.blocks != total[k] || c.free != free[k] || len(c.room) != withRoom[k] {
			t.Fatalf("class %d: %d blocks, %d free, %d pages with room; the books say %d, %d, %d", k, total[k], free[k], withRoom[k], c.blocks, c.free, len(c.room))
		}
	}
	return blocks
}

// Whatever is allocated, freed and moved: no two blocks share a byte, each keeps what
// was written to it, and little is lost between them.
func TestSlab(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slab
		held := map[entry][]byte{}
		where := map[entry]ref{}
		var order []entry
		next := entry(1)
		fill := func(n int) {
			e := next
			next++
			r := s.alloc(n, e)
			b := s.at(r)
			if len(b) < n || int64(len(b)) != s.sizeOf(r) || b.owner() != e || r == 0 {
				t.Fatalf("asked for %d, got %d", n, len(b))
			}
			for i := range b[4:] {
				b[4+i] = byte(int(e) + i)
			}
			where[e], held[e] = r, bytes.Clone(b)
			order = append(order, e)
		}
		drop := func(i int) {
			e := order[i]
			order[i] = order[len(order)-1]
			order = order[:len(order)-1]
			s.free(where[e])
			delete(where, e)
			delete(held, e)
		}
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			size := rapid.SampledFrom([]int{1, 48, 49, 130, 700, 2600, maxBlock, maxBlock + 1, 100_000}).Draw(t, "size")
			n := rapid.IntRange(0, min(3000, 4<<20/size)).Draw(t, "n")
			for range n {
				fill(size)
			}
			keep := rapid.IntRange(1, 9).Draw(t, "keep")
			for i := len(order) - 1; i >= 0; i-- {
				if i%10 >= keep {
					drop(i)
				}
			}
			for s.sparse != 0 {
				s.vacate(func(e entry, from, to ref) {
					if where[e] != from {
						t.Fatalf("block of %d was not at %d", e, from)
					}
					where[e] = to
				})
			}
			if got := s.check(t); got != len(held) {
				t.Fatalf("%d blocks for %d", got, len(held))
			}
			for e, want := range held {
				if !bytes.Equal(s.at(where[e]), want) {
					t.Fatalf("the block of %d has changed", e)
				}
			}
			for k := range s.classes {
				if c := &s.classes[k]; c.sparse() {
					t.Fatalf("class %d: %d of %d blocks are free", k, c.free, c.blocks)
				}
			}
		}
	})
}

// Memory of the system's, as the daemon has it.
func TestArena(t *testing.T) {
	defer func(old func(int) []byte) { newArena = old }(newArena)
	newArena = mapArena
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	if len(w.store.slab.arenas) != 0 {
		t.Error("memory before there is anything to keep")
	}
	story(w)
	w.checkpoint()
	moreStory(w)
	if len(w.store.slab.arenas) == 0 {
		t.Error("no memory of the system's")
	}
	want := w.everything()
	after := w.crash(Options{})
	defer after.stop()
	if got := after.everything(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// The index against a map, with hashes that collide.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex()
		model := map[entry]uint32{}
		next := entry(1)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			if len(model) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				for e, hash := range model {
					x.remove(hash, e)
					delete(model, e)
					break
				}
			} else {
				hash := rapid.Uint32Range(0, 3).Draw(t, "top")<<30 | rapid.Uint32Range(0, 20).Draw(t, "low")<<8
				x.insert(hash, next)
				model[next] = hash
				next++
			}
			for e, hash := range model {
				at := x.start(hash)
				for ; x.table[at] != placed(hash, e); at = x.next(at) {
					if x.table[at] == 0 {
						t.Fatalf("%d is not found", e)
					}
				}
			}
			if x.n != len(model) {
				t.Fatalf("%d in the index, want %d", x.n, len(model))
			}
		}
	})
}
