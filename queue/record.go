package queue

// Record is one event as the log keeps it: the header that the queue knows, and a
// body that is opaque to it. A record is complete: nothing later depends on
// another record.
type Record struct {
	Seq      uint64   // position in the log, from 1, never reused; given by the resolver
	Project  string   // whose consumers take it
	Lane     string   // the ordering key, fixed at append: who the event belongs to
	Received int64    // when it was received, ms since 1970 UTC
	ID       [16]byte // the event's identity; repeats of one event carry the same
	Body     []byte   // opaque

	// Forgotten: the person was forgotten, and Lane and Body are empty, whatever stands in
	// the file. Of the caller's records it says nothing.
	Forgotten bool
}

// Place is where in the log a record will stand. Nonce is random and belongs to the
// chunk, so (Nonce, Index) never names two records, even after a log was restored
// from a copy and sequences are used again.
type Place struct {
	Seq   uint64
	Nonce [16]byte
	Index int // within the chunk, from 0
}

// Batch is what one request wants stored: all of it or nothing.
type Batch interface {
	// Size is about how many bytes the batch holds in memory; it bounds what is in flight.
	Size() int
	// Project is whose records they all are.
	Project() string
	// Resolve turns the batch into records. The resolver calls it once, from its own
	// goroutine, when the batch's turn in the log has come; so calls never overlap and
	// their order is the log's order. An error means the state needed to resolve cannot
	// be read: the resolver stops, as after a failed commit.
	Resolve(w *Writer) error
}
