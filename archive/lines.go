package archive

import (
	"container/heap"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Line is one that is not blank.
type Line struct {
	Number uint64 // in the order of its part, from 1; 0 = read as it stands
	File   string // where it stands: the file, or the archive and its member …
	Row    int    // … and the line of it, from 1
	Text   []byte // without its end; at most MaxLine+1 bytes. Valid until the function that was given it returns
	Time   int64
}

// At says where a line stands.
func (l *Line) At() string { return fmt.Sprintf("%s:%d", l.File, l.Row) }

// order is which order Lines gives. It is part of every digest: with another one a number would name another line.
const order = "ampcio archive 1"

// window is how many bytes of lines are sorted at a time. It is part of the order.
const window = 64 << 20

// lineBytes is about what a line costs beside its text.
const lineBytes = 128

// Look reads a part as it stands, and gives the digest of what is in it, however it was packed.
func (p *Part) Look(f func(*Line) error) (digest [16]byte, lines uint64, err error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n", order)
	for i := range p.members {
		m := &p.members[i]
		content := sha256.New()
		r, err := openMember(m, content)
		if err != nil {
			return digest, lines, err
		}
		for {
			text, err := r.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				lines++
				err = f(&Line{File: m.name, Row: r.row, Text: text})
			}
			if err != nil {
				return digest, lines, errors.Join(err, r.from.Close())
			}
		}
		if err := r.from.Close(); err != nil {
			return digest, lines, m.wrong(err)
		}
		sum.Write(content.Sum(nil))
	}
	copy(digest[:], sum.Sum(nil))
	return digest, lines, nil
}

// Lines gives the lines of a part by their times, the oldest first, or the newest; of one time, as they stand. That holds
// for a part of up to 64 MiB of lines. Of a larger one so much is sorted at a time: a line then comes too late only
// if that much of newer ones was read before it. A line of time 0 has that of the line before it. An error of f ends it.
func (p *Part) Lines(newestFirst bool, time func(text []byte) int64, f func(*Line) error) error {
	return p.lines(newestFirst, window, time, f)
}

func (p *Part) lines(newestFirst bool, window int, time func(text []byte) int64, f func(*Line) error) (err error) {
	readers, times := make([]*reader, 0, len(p.members)), make([]int64, len(p.members))
	defer func() {
		for _, r := range readers {
			err = errors.Join(err, r.from.Close())
		}
	}()
	for i := range p.members {
		r, err := openMember(&p.members[i], nil)
		if err != nil {
			return err
		}
		readers = append(readers, r)
	}
	waiting, number := &sorted{newestFirst: newestFirst}, uint64(0)
	give := func() error {
		l := heap.Pop(waiting).(*Line)
		waiting.bytes -= len(l.Text) + lineBytes
		number++
		l.Number = number
		return f(l)
	}
	// One line of each in turn.
	left := make([]int, len(readers))
	for i := range left {
		left[i] = i
	}
	for len(left) > 0 {
		still := left[:0]
		for _, i := range left {
			r := readers[i]
			text, err := r.next()
			if errors.Is(err, io.EOF) {
				continue
			}
			if err != nil {
				return err
			}
			still = append(still, i)
			if at := time(text); at != 0 {
				times[i] = at
			}
			heap.Push(waiting, &Line{File: r.m.name, Row: r.row, Text: append([]byte(nil), text...), Time: times[i], Number: uint64(i)})
			waiting.bytes += len(text) + lineBytes
			for waiting.bytes > window {
				if err := give(); err != nil {
					return err
				}
			}
		}
		left = still
	}
	for waiting.Len() > 0 {
		if err := give(); err != nil {
			return err
		}
	}
	return nil
}

// sorted is a heap of lines; while one is in it, its Number is that of its member.
type sorted struct {
	lines       []*Line
	newestFirst bool
	bytes       int
}

func (s *sorted) Len() int      { return len(s.lines) }
func (s *sorted) Swap(i, j int) { s.lines[i], s.lines[j] = s.lines[j], s.lines[i] }
func (s *sorted) Push(x any)    { s.lines = append(s.lines, x.(*Line)) }
func (s *sorted) Pop() any {
	last := len(s.lines) - 1
	x := s.lines[last]
	s.lines[last] = nil
	s.lines = s.lines[:last]
	return x
}

func (s *sorted) Less(i, j int) bool {
	a, b := s.lines[i], s.lines[j]
	if s.newestFirst {
		a, b = b, a
	}
	switch {
	case a.Time != b.Time:
		return a.Time < b.Time
	case a.Number != b.Number:
		return a.Number < b.Number
	}
	return a.Row < b.Row
}
