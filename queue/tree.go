package queue

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
)

// The layout of bbolt's pages, bbolt v1.5 (internal/common/page.go, bucket.go,
// internal/freelist/shared.go): a header of page number (8 bytes), flags, count (2
// each) and overflow (4: how many pages more it takes), then elements of 16 bytes. Of
// a branch: position, key size (4 each), page number (8). Of a leaf: flags (1 = a
// bucket), position, key size, value size; a bucket's value begins with the number of
// its root page, 0 = it stands within the value. Of the free list: page numbers.
const (
	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	noFreelist   = ^uint64(0)
)

// checkedPages bounds how many pages of a file are looked at when it is opened, the
// outer ones and those last written first. It is what a start may cost: some twentieth of a
// second where nothing is cached. Of the log's newest file a start looks at writtenPages only: what
// large commits have written there is never written again, and they stand far apart. Who reads what stands further
// back while this process writes the file has Guard and checksums.
const (
	checkedPages = 2048
	writtenPages = 512
)

// nearPages is how far apart pages may stand that are fetched as one: what is between them costs less than another
// request to the disk. aheadPages is how many are asked for at once: of more, Linux fetches the first only (as many as a
// device takes in one request, 128 kB at least), and says nothing.
const (
	nearPages  = 8
	aheadPages = 32
)

// checkTree looks at a file's pages for what bbolt could not be stopped from, once it
// has the file: a page below itself sends it round in circles; one that claims to be
// millions long makes it free them all; an element that points out of its page has it
// make a slice of somebody else's memory, on which the garbage collector ends the
// process; and a free list that names pages in use has them overwritten. It is not a
// check of everything: what it does not see fails under Guard, or a checksum.
func checkTree(f *os.File, m metaPage, forWriting bool, o DBOptions) error {
	t := newTree(f, m)
	t.entry, t.upwards = o.Entry, o.FirstFit
	if o.pages > 0 {
		t.most = o.pages
	}
	_, err := t.check()
	if err != nil || !forWriting || m.freelist == noFreelist {
		return err
	}
	free, err := t.freelist()
	if err != nil {
		return err
	}
	for i, id := range free {
		// Named twice, in a list that bbolt writes in order, a page would be given away twice.
		if id < 2 || id >= uint64(m.pages) || t.used.has(id) || i > 0 && id <= free[i-1] {
			return fmt.Errorf("its free list names page %d: %w", id, ErrDamaged)
		}
	}
	return nil
}

// tree reads a bbolt file without bbolt: what is damaged in it is an error, or passed
// over, but never a fault.
type tree struct {
	f    *os.File
	size int64 // of the file
	meta metaPage
	most int // pages that check looks at
	// upwards says that bbolt takes free pages from the front of the file, so that the pages written last stand there.
	upwards bool
	used    pageSet // pages met
	buf     []byte  // of the page that was read last
	// Of check, used again for each page. Only keys are kept, and grow.
	es, inlined []element
	keys        []byte
	// entry, if set, is called by check for what it meets in the top-level buckets.
	entry func(bucket string, k, v []byte) error
}

func newTree(f *os.File, m metaPage) *tree {
	// An empty key is not none.
	t := &tree{f: f, meta: m, most: checkedPages, keys: make([]byte, 0, 4096)}
	if st, err := f.Stat(); err == nil { // else nothing can be read of it
		t.size = st.Size()
	}
	t.used = make(pageSet, min(t.size/m.pageSize, m.pages)/64+1)
	return t
}

// pageSet is a set of pages of a file, by number. Numbers behind its end are in no set.
type pageSet []uint64

func (s pageSet) has(id uint64) bool {
	return id/64 < uint64(len(s)) && s[id/64]&(1<<(id%64)) != 0
}

func (s pageSet) add(id uint64) {
	if id/64 < uint64(len(s)) {
		s[id/64] |= 1 << (id % 64)
	}
}

// element is one of a page's: of a branch, a page below; of a leaf, a key and value.
type element struct {
	bucket   bool
	child    uint64
	at       int64 // of the key, from the page's begin; the value follows it
	key, val int64 // sizes
}

// page reads a page's header and elements, and gives the bytes it has read: of one that
// takes more pages the first. They are good until the next page is read (buf). What elements
// point at lies within the page.
func (t *tree) page(id uint64) (branch bool, es []element, b []byte, err error) {
	return t.pageInto(nil, id)
}

// pageInto is page, with the elements in the memory of some that nobody needs any more.
func (t *tree) pageInto(old []element, id uint64) (branch bool, es []element, b []byte, err error) {
	if id < 2 || id >= uint64(t.meta.pages) {
		return false, nil, nil, fmt.Errorf("page %d of %d: %w", id, t.meta.pages, ErrDamaged)
	}
	if t.buf == nil {
		t.buf = make([]byte, t.meta.pageSize)
	}
	b = t.buf
	if n, err := t.f.ReadAt(b, int64(id)*t.meta.pageSize); n < len(b) {
		return false, nil, nil, fmt.Errorf("page %d: %w: %w", id, err, ErrDamaged)
	}
	overflow := uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != id || id+overflow >= uint64(t.meta.pages) {
		return false, nil, nil, fmt.Errorf("page %d is not itself: %w", id, ErrDamaged)
	}
	for n := id; n <= id+overflow && int64(n) <= t.size/t.meta.pageSize; n++ { // of a file that ends early, what is there
		if t.used.has(n) {
			return false, nil, nil, fmt.Errorf("page %d is in the tree twice: %w", n, ErrDamaged)
		}
		t.used.add(n)
	}
	branch, es, err = elements(old, b, int64(overflow+1)*t.meta.pageSize)
	if err != nil {
		err = fmt.Errorf("page %d: %w", id, err)
	}
	return branch, es, b, err
}

// checkKeys looks whether the elements of a page stand one behind the other as bbolt writes
// them, so that none is missing, and whether their keys are in order and begin with the one
// by which the page above knows it. bbolt relies on that when it writes the page anew: it
// would leave the old one in the tree, and use it again for something else.
func (t *tree) checkKeys(p place, es []element, b []byte) error {
	// Only a bucket may be empty: bbolt keeps such a one within its value, but for that of a file without any.
	if len(es) == 0 && (p.key != nil || !p.inline && p.id != t.meta.root || len(bytes.TrimLeft(b[boltPageHeader:], "\x00")) > 0) {
		return fmt.Errorf("page %d has lost its elements: %w", p.id, ErrDamaged)
	}
	before, end := []byte(nil), boltPageHeader+16*int64(len(es))
	for i, e := range es {
		if e.at != end {
			return fmt.Errorf("page %d: its element %d stands in the wrong place: %w", p.id, i, ErrDamaged)
		}
		end = e.at + e.key + e.val
		if t.entry == nil && e.at+e.key+e.val > int64(len(b)) {
			e.val = 0 // nobody looks at it
		}
		k, v, err := t.part(e, p.id, b)
		if err != nil {
			return err
		}
		if e.child == 0 && !e.bucket && t.entry != nil && p.bucket != "" {
			if err := t.entry(p.bucket, k, v); err != nil {
				return fmt.Errorf("page %d: its element %d: %w", p.id, i, err)
			}
		}
		if i == 0 && p.key != nil && !bytes.Equal(k, p.key) || i > 0 && bytes.Compare(before, k) >= 0 {
			return fmt.Errorf("page %d: its key %d stands in the wrong place: %w", p.id, i, ErrDamaged)
		}
		before = k
	}
	return nil
}

// readAhead has the disk fetch the pages of a level, in the order in which they are looked at, while that goes on: where
// nothing is cached, each would be waited for by itself. What it gives is closed when all was asked for.
func (t *tree) readAhead(level []place) (asked chan struct{}) {
	asked = make(chan struct{})
	apart := func(i, j int) uint64 { return max(level[i].id, level[j].id) - min(level[i].id, level[j].id) }
	go func() {
		defer close(asked)
		for i, j := 0, 0; i < len(level); i = j {
			for j = i + 1; j < len(level) && apart(j-1, j) <= nearPages && apart(i, j) < aheadPages; j++ {
			}
			readAhead(t.f, int64(min(level[i].id, level[j-1].id))*t.meta.pageSize, int64(apart(i, j-1)+1)*t.meta.pageSize)
		}
	}()
	return asked
}

// part gives key and value of an element of a page, of which b is the begin.
func (t *tree) part(e element, id uint64, b []byte) (k, v []byte, err error) {
	if end := e.at + e.key + e.val; end <= int64(len(b)) {
		return b[e.at : e.at+e.key], b[e.at+e.key : end], nil
	}
	return t.read(id, e)
}

// elements reads those of a page of size bytes, of which b is the begin, into the memory of old ones.
func elements(old []element, b []byte, size int64) (branch bool, es []element, err error) {
	if len(b) < boltPageHeader {
		return false, nil, ErrDamaged
	}
	flags, count := binary.NativeEndian.Uint16(b[8:]), int64(binary.NativeEndian.Uint16(b[10:]))
	first := boltPageHeader + 16*count
	if flags != pageBranch && flags != pageLeaf || first > int64(len(b)) {
		return false, nil, fmt.Errorf("flags %#x, %d elements: %w", flags, count, ErrDamaged)
	}
	es = slices.Grow(old[:0], int(count))
	for i := range count {
		begin := boltPageHeader + 16*i
		field := func(n int64) int64 { return int64(binary.NativeEndian.Uint32(b[begin+4*n:])) }
		var e element
		if flags == pageBranch {
			e = element{at: begin + field(0), key: field(1), child: binary.NativeEndian.Uint64(b[begin+8:])}
		} else {
			e = element{bucket: field(0)&1 != 0, at: begin + field(1), key: field(2), val: field(3)}
		}
		if e.at < first || e.at+e.key+e.val > size {
			return false, nil, fmt.Errorf("element %d: %w", i, ErrDamaged)
		}
		es = append(es, e)
	}
	return flags == pageBranch, es, nil
}

// read gives the bytes of an element's key and value.
func (t *tree) read(id uint64, e element) (k, v []byte, err error) {
	at := int64(id)*t.meta.pageSize + e.at
	if end := at + e.key + e.val; end > t.size { // before memory is taken for it
		return nil, nil, fmt.Errorf("page %d: it ends at %d of %d bytes: %w", id, end, t.size, ErrDamaged)
	}
	b := make([]byte, e.key+e.val)
	if n, err := t.f.ReadAt(b, at); n < len(b) {
		return nil, nil, fmt.Errorf("page %d: %w: %w", id, err, ErrDamaged)
	}
	return b[:e.key], b[e.key:], nil
}

// bucketHeader is the size of what a bucket's value begins with.
const bucketHeader = 16

// bucket gives the root page of a bucket by its value; 0 means that the value holds
// the bucket itself, in the page that is given.
func bucket(v []byte) (root uint64, inline []byte, err error) {
	if len(v) < bucketHeader {
		return 0, nil, fmt.Errorf("a bucket of %d bytes: %w", len(v), ErrDamaged)
	}
	return binary.NativeEndian.Uint64(v), v[bucketHeader:], nil
}

// place is where in the tree a page stands: the key by which the page above knows it, nil
// when it is the root of a bucket; and the top-level bucket that it belongs to.
type place struct {
	id     uint64
	key    []byte
	bucket string
	inline bool // it stands within that page, in the bucket's value
}

// check visits the tree from above, level by level, the pages written last first. whole says that
// it has seen all of it.
func (t *tree) check() (whole bool, err error) {
	level := []place{{id: t.meta.root}}
	for seen := 0; len(level) > 0; {
		if seen >= t.most {
			return false, nil
		}
		below := newest{most: t.most - seen, upwards: t.upwards}
		asked := t.readAhead(level[:min(len(level), below.most)])
		looked, whole, err := t.checkLevel(level, &below)
		<-asked
		if !whole || err != nil {
			return false, err
		}
		seen, level = seen+looked, below.inOrder()
	}
	return true, nil
}

// checkLevel checks as many pages of a level as below is to have at most, counting those of large values.
func (t *tree) checkLevel(level []place, below *newest) (looked int, whole bool, err error) {
	for _, p := range level {
		if looked++; looked > below.most {
			return looked, false, nil
		}
		more, err := t.checkPage(p, below)
		if err != nil {
			return looked, false, err
		}
		looked += more
	}
	return looked, true, nil
}

// newest collects the places of the next level: of those that will not be seen one says so, and the others are let go.
// Where pages stand tells about when they were written: a file that grows has the last at its end, and one
// whose free pages are taken from the front has them there (upwards).
type newest struct {
	most    int // that will be seen
	upwards bool
	level   []place
	full    bool
	last    uint64 // of a full one: pages behind it, in this order, are not among those that will be seen
}

func (n *newest) wants(id uint64) bool {
	return !n.full || id == n.last || n.upwards == (id < n.last)
}

func (n *newest) add(p place) {
	if n.level = append(n.level, p); len(n.level) > 4*n.most {
		n.level = n.inOrder()[:n.most+1]
		n.full, n.last = true, n.level[n.most].id
	}
}

// inOrder sorts them as they are to be looked at.
func (n *newest) inOrder() []place {
	slices.SortFunc(n.level, func(a, b place) int {
		if n.upwards {
			return cmp.Compare(a.id, b.id)
		}
		return cmp.Compare(b.id, a.id)
	})
	return n.level
}

// checkPage checks one page, and adds the places below it. more is how many pages its large
// values take, which are read, too.
func (t *tree) checkPage(p place, below *newest) (more int, err error) {
	branch, es, b, err := t.pageInto(t.es, p.id)
	if err == nil {
		t.es = es
		err = t.checkKeys(p, es, b)
	}
	if err != nil {
		return 0, err
	}
	if n := len(es); n > 0 && t.entry != nil {
		more = int((es[n-1].at + es[n-1].key + es[n-1].val) / t.meta.pageSize)
	}
	for _, e := range es {
		switch {
		case branch && (e.child < 2 || e.child >= uint64(t.meta.pages)): // it may stand where it is not looked at
			return 0, fmt.Errorf("page %d: page %d of %d below it: %w", p.id, e.child, t.meta.pages, ErrDamaged)
		case branch && !below.wants(e.child), !branch && !e.bucket:
			continue
		}
		k, v, err := t.part(e, p.id, b)
		if err != nil {
			return 0, err
		}
		if branch {
			at := len(t.keys)
			t.keys = append(t.keys, k...) // where they have no room any more, they are copied, and the places keep the old ones
			below.add(place{id: e.child, key: t.keys[at:len(t.keys):len(t.keys)], bucket: p.bucket})
			continue
		}
		in := place{id: p.id, bucket: p.bucket}
		if p.bucket == "" {
			in.bucket = string(k)
		}
		root, inline, err := bucket(v)
		if err == nil && root == 0 {
			if _, t.inlined, err = elements(t.inlined, inline, int64(len(inline))); err == nil {
				in.inline = true
				err = t.checkKeys(in, t.inlined, inline)
			}
		}
		if err != nil {
			return 0, err
		}
		if in.id, in.inline = root, false; root != 0 && below.wants(root) {
			below.add(in)
		}
	}
	return more, nil
}

// each calls f for what can be read below a page, in order; buckets are given by their
// value. Damaged pages are passed over and counted.
func (t *tree) each(id uint64, f func(k, v []byte) error) (damaged int, err error) {
	branch, es, _, err := t.page(id)
	if err != nil {
		return 1, nil
	}
	for _, e := range es {
		if branch {
			n, err := t.each(e.child, f)
			if damaged += n; err != nil {
				return damaged, err
			}
			continue
		}
		k, v, err := t.read(id, e)
		if err != nil {
			damaged++
		} else if err := f(k, v); err != nil {
			return damaged, err
		}
	}
	return damaged, nil
}

// inBucket is each for the contents of a bucket, by its value.
func (t *tree) inBucket(value []byte, f func(k, v []byte) error) (damaged int, err error) {
	root, inline, err := bucket(value)
	switch {
	case err != nil:
		return 1, nil
	case root != 0:
		return t.each(root, f)
	}
	_, es, err := elements(nil, inline, int64(len(inline)))
	if err != nil {
		return 1, nil
	}
	for _, e := range es {
		if err := f(inline[e.at:e.at+e.key], inline[e.at+e.key:e.at+e.key+e.val]); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// Salvage calls f for every key and value that can be read of the top-level buckets of
// a bbolt file that nobody writes, however damaged it is, in the order of the tree, and
// ends early with f's error. It does not go through bbolt, so nothing in the file can
// hang or end the process; but what it gives may be changed: only a checksum tells.
// Other errors: those of opening the file.
func Salvage(path string, f func(bucket string, k, v []byte) error) error {
	return salvage(path, func(_ *tree, bucket string, k, v []byte) error { return f(bucket, k, v) })
}

// salvage is Salvage; with the tree, f can go into a bucket that it is given.
func salvage(path string, f func(t *tree, bucket string, k, v []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	m, err := newestMeta(file)
	if err != nil {
		return nil // nothing
	}
	t := newTree(file, m)
	_, err = t.each(m.root, func(name, value []byte) error {
		_, err := t.inBucket(value, func(k, v []byte) error { return f(t, string(name), k, v) })
		return err
	})
	return err
}

// freelist reads the numbers of the free pages.
func (t *tree) freelist() ([]uint64, error) {
	b := make([]byte, boltPageHeader)
	at := int64(t.meta.freelist) * t.meta.pageSize
	if t.meta.freelist >= uint64(t.meta.pages) {
		return nil, fmt.Errorf("free list at page %d of %d: %w", t.meta.freelist, t.meta.pages, ErrDamaged)
	}
	if _, err := t.f.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("free list: %w: %w", err, ErrDamaged)
	}
	flags, overflow := binary.NativeEndian.Uint16(b[8:]), uint64(binary.NativeEndian.Uint32(b[12:]))
	if flags != pageFreelist || binary.NativeEndian.Uint64(b) != t.meta.freelist || t.meta.freelist+overflow >= uint64(t.meta.pages) {
		return nil, fmt.Errorf("the free list is not itself: %w", ErrDamaged)
	}
	all := make([]byte, int64(overflow+1)*t.meta.pageSize)
	if _, err := t.f.ReadAt(all, at); err != nil {
		return nil, fmt.Errorf("free list: %w: %w", err, ErrDamaged)
	}
	count, from := uint64(binary.NativeEndian.Uint16(all[10:])), boltPageHeader
	if count == 0xffff { // the first number is the count
		count, from = binary.NativeEndian.Uint64(all[from:]), from+8
	}
	if count > uint64(len(all)-from)/8 {
		return nil, fmt.Errorf("a free list of %d pages: %w", count, ErrDamaged)
	}
	ids := make([]uint64, count)
	for i := range ids {
		if ids[i] = binary.NativeEndian.Uint64(all[from+8*i:]); ids[i]-t.meta.freelist <= overflow {
			return nil, fmt.Errorf("the free list names its own page %d: %w", ids[i], ErrDamaged)
		}
	}
	return ids, nil
}
