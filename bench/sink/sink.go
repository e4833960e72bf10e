// Package sink is a Customer.io that takes batches as fast as it can check them: each user's events in order, none
// missing, none twice. Unlike the sandbox it knows little of people, so that it is not what is measured.
package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fastjson"

	"ampcio-bench/hist"
	"ampcio-bench/load"
)

const (
	mostBytes = 500_000 // of a request, as at Customer.io
	keeps     = 16      // requests, to be sent again by a client that has them ready
	shards    = 256
)

// Sink keeps books for each Site ID apart.
type Sink struct {
	mu     sync.Mutex
	books  map[string]*book
	down   atomic.Int64 // answers 503 until then, ns since 1970
	latest [keeps][]byte
	turn   atomic.Uint64

	parsers fastjson.ParserPool
	buffers sync.Pool
}

type book struct {
	shards                               [shards]shard
	requests, bytes, operations, updates atomic.Int64
	refused                              atomic.Int64
	refusal                              atomic.Pointer[string]
	first, last                          atomic.Int64 // ns since 1970
	latency                              hist.Hist    // from the moment that the generator has written into an event
}

// shard has every 256th user, by number.
type shard struct {
	sync.Mutex
	users                      []user
	events, doubles, disorders int64
}

// user: numbers begin at 1, so all that is needed is the highest, and what is missing below it.
type user struct {
	last uint32
	gaps map[uint32]bool
}

// Report of one Site ID.
type Report struct {
	Events    int64 // different ones
	Missing   int64 // lower than another one of their user, and not here
	Doubles   int64
	Disorders int64 // came after a later one of their user

	Requests, Bytes, Operations, Updates int64
	Refused                              int64 // requests that were wrong
	Refusal                              string
	Seconds                              float64 // between the first request and the last answer
	LastAt                               time.Time
	Latency                              hist.Percentiles // since the last report
}

// Wrong says what is not as promised.
func (r Report) Wrong() error {
	if r.Missing+r.Doubles+r.Disorders+r.Refused > 0 {
		return fmt.Errorf("%d missing, %d twice, %d out of order, %d requests refused %s", r.Missing, r.Doubles, r.Disorders, r.Refused, r.Refusal)
	}
	return nil
}

// New has empty books.
func New() *Sink {
	s := &Sink{books: map[string]*book{}}
	s.buffers.New = func() any { b := make([]byte, mostBytes); return &b }
	return s
}

// Handler answers Customer.io's Track API, and beside it: GET /report, POST /reset?site=ID,
// GET /events?site=ID (how many), POST /down?for=5s, GET /latest/N.
func (s *Sink) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v2/batch", s.batch)
	mux.HandleFunc("GET /api/v1/accounts/region", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"url":"https://track.customer.io","region":"us","environment_id":1}`)
	})
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, r *http.Request) { _ = json.NewEncoder(w).Encode(s.Report()) })
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.books, r.FormValue("site"))
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, s.book(r.FormValue("site")).events()) })
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.down.Store(time.Now().Add(d).UnixNano())
	})
	mux.HandleFunc("GET /latest/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		s.mu.Lock()
		defer s.mu.Unlock()
		if n < 0 || n >= keeps || s.latest[n] == nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(s.latest[n])
	})
	return mux
}

func (s *Sink) book(site string) *book {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.books[site]
	if b == nil {
		b = &book{}
		s.books[site] = b
	}
	return b
}

func (s *Sink) batch(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	site, _, _ := r.BasicAuth()
	if now.UnixNano() < s.down.Load() {
		_, _ = io.Copy(io.Discard, r.Body)
		http.Error(w, "{}", http.StatusServiceUnavailable)
		return
	}
	b := s.book(site)
	b.first.CompareAndSwap(0, now.UnixNano())
	space := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(space)
	if r.ContentLength < 0 || r.ContentLength > mostBytes {
		b.refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("%d bytes", r.ContentLength))
		return
	}
	body := (*space)[:r.ContentLength]
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return
	}
	p := s.parsers.Get()
	defer s.parsers.Put(p)
	v, err := p.ParseBytes(body)
	if err != nil {
		b.refuse(w, http.StatusBadRequest, err)
		return
	}
	operations := v.GetArray("batch")
	for i, o := range operations {
		if err := b.take(o, now); err != nil {
			b.refuse(w, http.StatusBadRequest, fmt.Errorf("operation %d: %w", i, err))
			return
		}
	}
	if n := s.turn.Add(1); n%64 == 0 { // few, so that they cost nothing
		s.mu.Lock()
		at := n / 64 % keeps
		s.latest[at] = append(s.latest[at][:0], body...)
		s.mu.Unlock()
	}
	b.requests.Add(1)
	b.bytes.Add(int64(len(body)))
	b.operations.Add(int64(len(operations)))
	b.last.Store(time.Now().UnixNano())
	w.Header()["Content-Type"] = []string{"application/json"}
	_, _ = io.WriteString(w, "{}")
}

func (b *book) refuse(w http.ResponseWriter, status int, err error) {
	b.refused.Add(1)
	text := err.Error()
	b.refusal.CompareAndSwap(nil, &text)
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"reason":"invalid","message":%q}]}`, text)
}

func (b *book) take(o *fastjson.Value, now time.Time) error {
	if kind := o.GetStringBytes("type"); string(kind) != "person" {
		return fmt.Errorf("of type %q", kind)
	}
	id := o.Get("identifiers").GetStringBytes("id")
	switch action := o.GetStringBytes("action"); {
	case len(id) == 0:
		return errors.New("without identifier")
	case string(action) == "identify":
		b.updates.Add(1)
		return nil
	case string(action) != "event":
		return fmt.Errorf("with action %q", action)
	case len(o.GetStringBytes("name")) == 0 || len(o.GetStringBytes("id")) == 0:
		return errors.New("an event without name or id")
	}
	number := 0
	for _, c := range id[min(len(id), len("user-")):] {
		if c < '0' || c > '9' {
			return fmt.Errorf("of a user that the generator has not: %q", id)
		}
		number = number*10 + int(c-'0')
	}
	attributes := o.Get("attributes")
	seq, sent := attributes.GetInt64("seq")-load.Base, attributes.GetInt64("sent")
	if seq <= 0 || seq >= 1<<32 || sent == 0 || number > 1<<28 {
		return fmt.Errorf("without the generator's seq and sent, or with wrong ones: %s", o)
	}
	b.latency.Add(now.Sub(time.UnixMicro(sent)))
	b.shards[number%shards].take(number/shards, uint32(seq))
	return nil
}

func (s *shard) take(index int, seq uint32) {
	s.Lock()
	defer s.Unlock()
	for len(s.users) <= index {
		s.users = append(s.users, user{})
	}
	u := &s.users[index]
	switch {
	case seq > u.last:
		for n := u.last + 1; n < seq; n++ {
			if u.gaps == nil {
				u.gaps = map[uint32]bool{}
			}
			u.gaps[n] = true
		}
		u.last = seq
		s.events++
	case u.gaps[seq]:
		delete(u.gaps, seq)
		s.disorders++
		s.events++
	default:
		s.doubles++
	}
}

func (b *book) events() (n int64) {
	for i := range b.shards {
		b.shards[i].Lock()
		n += b.shards[i].events
		b.shards[i].Unlock()
	}
	return n
}

// Report returns the books by Site ID.
func (s *Sink) Report() map[string]Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]Report{}
	for site, b := range s.books {
		r := Report{Requests: b.requests.Load(), Bytes: b.bytes.Load(), Operations: b.operations.Load(), Updates: b.updates.Load(),
			Refused: b.refused.Load(), Latency: b.latency.Take()}
		if text := b.refusal.Load(); text != nil {
			r.Refusal = *text
		}
		if first, last := b.first.Load(), b.last.Load(); last > first {
			r.Seconds, r.LastAt = float64(last-first)/1e9, time.Unix(0, last)
		}
		for i := range b.shards {
			sh := &b.shards[i]
			sh.Lock()
			r.Events, r.Doubles, r.Disorders = r.Events+sh.events, r.Doubles+sh.doubles, r.Disorders+sh.disorders
			for _, u := range sh.users {
				r.Missing += int64(len(u.gaps))
			}
			sh.Unlock()
		}
		all[site] = r
	}
	return all
}
