package lossy

import (
	"slices"
	"sync"
)

// spare are buffers that nobody uses any more. Memory that a process has not touched yet is dear, on some machines far more
// than to copy into it, and a disk of some megabytes is copied several times for each cut.
var spare struct {
	sync.Mutex
	list [][]byte
}

// What is kept: no small buffers, and no more of them than a case uses at a time.
const (
	spareBytes = 256 << 10
	mostSpare  = 8
)

// copyOf is a copy of b, with room for size bytes, in a spare buffer if there is one.
func copyOf(b []byte, size int) []byte {
	size = max(size, len(b))
	if size >= spareBytes {
		spare.Lock()
		defer spare.Unlock()
		for i, s := range spare.list {
			if cap(s) >= size {
				spare.list = slices.Delete(spare.list, i, i+1)
				return append(s[:0], b...)
			}
		}
	}
	return append(make([]byte, 0, size), b...)
}

// giveBack is of a buffer that nobody uses any more.
func giveBack(b []byte) {
	spare.Lock()
	defer spare.Unlock()
	if cap(b) >= spareBytes && len(spare.list) < mostSpare {
		spare.list = append(spare.list, b)
	}
}

// Done says that nothing more is asked of a life that is dead: its memory is for others. Its images stay as they are.
func (l *Life) Done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.die()
	for _, f := range l.disk.files {
		giveBack(f.now.Data)
		if !f.shared {
			giveBack(f.safe.Data)
		}
	}
	l.disk, l.log = NewDisk(l.disk.Strict), nil
}

// Instead lets go of an image of which the next one has been made. A life that has begun with it must be done.
func (im Image) Instead(next Image) Image {
	shared := map[*byte]bool{}
	for _, c := range next.Files {
		if len(c.Data) > 0 {
			shared[&c.Data[0]] = true
		}
	}
	for _, c := range im.Files {
		if len(c.Data) > 0 && !shared[&c.Data[0]] {
			giveBack(c.Data)
		}
	}
	return next
}
