package ingest

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/semaphore"

	"ampcio/mapping"
)

const (
	// firstGrant is how much memory, in bytes, a Content-Length alone is believed for;
	// beyond it a buffer grows only as bytes arrive, so that a claim costs nothing.
	firstGrant = 256 << 10
	// keepBuffer: larger buffers are not kept for later requests.
	keepBuffer = 1 << 20
	// maxDiscard is how many bytes of a refused body are read and thrown away, so that the
	// sender gets to see the answer.
	maxDiscard = 32 << 20
)

// limits of one request; sizes in bytes.
type limits struct {
	body, batchBody, inflated, inFlight int64
	events                              int
}

func newLimits(o Options) limits {
	l := limits{
		body:      cmp.Or(o.MaxBody, 1<<20),
		batchBody: cmp.Or(o.MaxBatchBody, 20<<20),
		inflated:  cmp.Or(o.MaxInflated, 20<<20),
		events:    cmp.Or(o.MaxEvents, 2000),
		inFlight:  cmp.Or(o.InFlightBytes, 64<<20),
	}
	// One request of the largest size must fit, or it would be told to come back for ever.
	l.inFlight = max(l.inFlight, l.body+1, l.batchBody+1, l.inflated+1)
	return l
}

// job is the memory of one request, used again by later ones.
type job struct {
	body     []byte // what the request says, inflated
	received int64  // bytes that came over the wire
	granted  int64  // bytes of budget taken, at least len(body)
	budget   *semaphore.Weighted
	keep     bool // the buffers may still be read by somebody: leave them to the collector

	request request
	events  []mapping.Event
}

var (
	jobs         = sync.Pool{New: func() any { return new(job) }}
	gzipReaders  sync.Pool // of *gzip.Reader
	errOverLimit = errors.New("body over the limit")
	errNoBudget  = errors.New("too many bytes in flight")
)

func newJob(budget *semaphore.Weighted) *job {
	j := jobs.Get().(*job)
	j.budget = budget
	return j
}

func (j *job) release() {
	j.budget.Release(j.granted)
	if j.keep || cap(j.body) > keepBuffer {
		return
	}
	clear(j.events) // their texts need not live on
	j.request.reset()
	*j = job{body: j.body[:0], events: j.events[:0], request: j.request}
	jobs.Put(j)
}

// grow makes room for more bytes, up to limit+1 (so that reading over the limit is noticed).
func (j *job) grow(want, limit int64) error {
	want = min(want, limit+1)
	if want <= j.granted {
		return errOverLimit
	}
	if !j.budget.TryAcquire(want - j.granted) {
		return errNoBudget
	}
	j.granted = want
	if int64(cap(j.body)) < want {
		j.body = append(make([]byte, 0, want), j.body...)
	}
	return nil
}

// fill reads src to its end. size is how much is expected, -1 = unknown.
func (j *job) fill(src io.Reader, size, limit int64) error {
	if size < 0 {
		size = 4 << 10
	}
	if err := j.grow(min(size+1, firstGrant), limit); err != nil {
		return err
	}
	for {
		if int64(len(j.body)) > limit {
			return errOverLimit
		}
		if int64(len(j.body)) == j.granted {
			if err := j.grow(2*j.granted, limit); err != nil {
				return err
			}
		}
		n, err := src.Read(j.body[len(j.body):j.granted])
		j.body = j.body[:len(j.body)+n]
		if err == io.EOF {
			if int64(len(j.body)) > limit {
				return errOverLimit
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// wire is a request's body as it arrives, counted, and at most limit bytes of it.
type wire struct {
	io.Reader
	received, limit int64
	err             error // that ended it, other than io.EOF
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.received += int64(n)
	if w.received > w.limit {
		err = errOverLimit
	}
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// read fills j.body with the body of r, at most limit bytes on the wire.
func (l limits) read(j *job, r *http.Request, limit int64) *refusal {
	if r.ContentLength > limit {
		return refuseLarge
	}
	body := &wire{Reader: r.Body, limit: limit}
	var err error
	switch coding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ","))); coding {
	case "", "identity":
		err = j.fill(body, r.ContentLength, limit)
	case "gzip", "x-gzip":
		err = l.inflate(j, body, r.ContentLength, limit)
	default:
		return refuseCoding
	}
	j.received = body.received
	if body.err != nil {
		err = body.err
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errOverLimit):
		return refuseLarge
	case errors.Is(err, errNoBudget):
		busy := *refuseBusy
		busy.cause = err
		return &busy
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuseSlow
	case body.err != nil && errors.Is(err, io.ErrUnexpectedEOF):
		return refuseAborted
	case body.err != nil:
		return refuseBody
	}
	return refuseGzip
}

func (l limits) inflate(j *job, src io.Reader, size, limit int64) error {
	z, ok := gzipReaders.Get().(*gzip.Reader)
	if !ok {
		z = new(gzip.Reader)
	}
	defer gzipReaders.Put(z)
	if err := z.Reset(src); err != nil {
		return err
	}
	if size > 0 {
		size *= 4 // events shrink to a fifth or less; a first guess saves copies
	}
	return j.fill(z, size, max(l.inflated, limit))
}

// discard reads what is left of a refused body, as far as that is reasonable.
func (l limits) discard(r *http.Request) {
	if r.Header.Get("Expect") != "" {
		return // the sender waits for our word before it sends, unless it was read above
	}
	_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
}
