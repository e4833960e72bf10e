package queue

import (
	"bytes"
	"crypto/rand"
	"maps"
)

// Writer takes the records of the batches of one commit. It is the resolver's.
type Writer struct {
	next   uint64
	counts map[string]uint64
	open   *Chunk
	buf    []byte // the records of the open chunk
	bytes  int    // of all records so far
	done   []*Chunk
}

// Next is the place that the next record will have.
func (w *Writer) Next() Place {
	if w.open != nil && len(w.buf) >= chunkBytes {
		w.close()
	}
	if w.buf == nil {
		if w.buf = roomForChunk()[:0]; cap(w.buf) < chunkBytes {
			w.buf = make([]byte, 0, chunkBytes+chunkBytes/16)
		}
	}
	if w.open == nil {
		w.open = &Chunk{First: w.next, Before: maps.Clone(w.counts)}
		rand.Read(w.open.nonce[:]) // never fails: crypto/rand ends the process instead
	}
	return Place{Seq: w.next, Nonce: w.open.nonce, Index: w.open.Count}
}

// Put adds a record at the place that Next gave; its Seq is ignored, its bytes copied.
func (w *Writer) Put(r Record) {
	w.Next()
	before := len(w.buf)
	w.buf = appendRecord(w.buf, &r)
	w.bytes += len(w.buf) - before
	w.open.Count++
	w.counts[r.Project]++
	w.next++
}

// close ends the open chunk. It gets the buffer, or, where that is hardly used, bytes of its
// own and no more than it needs: it may be kept for long.
func (w *Writer) close() {
	w.open.lookers = onlyLooker()
	if w.open.raw = w.buf; len(w.buf) < cap(w.buf)/2 {
		w.open.raw = bytes.Clone(w.buf)
		w.buf = w.buf[:0]
	} else {
		w.buf = nil
	}
	w.done, w.open = append(w.done, w.open), nil
}

// newWriter begins behind end; buf is what another writer has left of its buffer, or nil.
func newWriter(end logEnd, buf []byte) Writer {
	return Writer{next: end.seq + 1, counts: maps.Clone(end.counts), buf: buf}
}

func (w *Writer) finish() []*Chunk {
	if w.open != nil && w.open.Count > 0 {
		w.close()
	}
	w.open = nil
	return w.done
}
