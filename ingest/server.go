package ingest

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"ampcio/logbook"
)

// Server is the public HTTP server. Unlike http.Server it leaves nobody unanswered
// when it is shut down: that one closes a connection which was accepted but whose first
// request it had not yet read without an answer (conn.serve in net/http/server.go), and
// server SDKs drop their events then.
type Server struct {
	http     http.Server
	stopping atomic.Bool

	most    int // connections at a time
	repeats *logbook.Book

	mu        sync.Mutex
	listeners []net.Listener
	serving   sync.WaitGroup
	open      map[net.Conn]*list.Element // nil = new, or being answered; else its place in idle
	idle      *list.List                 // of idleConn, in the order in which they became so
	leaving   map[net.Conn]bool          // closed to make room, and still open
	busy      int                        // how many are not idle
	gone      sync.Cond                  // a connection is, or stopping has begun
	calm      chan struct{}              // closed when stopping and nothing is busy
	empty     chan struct{}              // closed when stopping and nothing is open
}

// linger is how long idle connections are still served after a stop has begun. A sender
// that comes on one in that time is answered, and told to connect anew; one whose request
// crosses the closing of its connection is cut off, and that is then a rare coincidence
// instead of the rule for all that send more often than this.
const linger = 500 * time.Millisecond

// settled is how long a connection must have been idle before it is closed for another one: who has just been answered
// may be sending the next, or have the answer of HTTP/2 still before him, which is written when its stream is closed.
const settled = 500 * time.Millisecond

type idleConn struct {
	net.Conn
	since time.Time
}

// NewServer returns a server for the public listener, with every time and size limited:
// a request has 5 s for its header and 30 s in all, an idle connection is kept for 120 s.
// It holds for TLS too: the handshake has 5 s, and of HTTP/2 each request counts for itself, of which
// a connection has at most 100 at a time. What net/http has to say goes to log as warnings.
//
// Of connections there are at most so many at a time: each holds a file descriptor, and the queue must find one for its
// files whoever connects. For one more, the one that has been idle for longest is closed; as long as none has been
// idle for a moment, further ones wait in the kernel.
func NewServer(h http.Handler, most int, log *slog.Logger, repeats *logbook.Book) *Server {
	s := &Server{most: most, repeats: repeats, open: map[net.Conn]*list.Element{}, idle: list.New(), leaving: map[net.Conn]bool{}}
	s.gone.L = &s.mu
	s.http = http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.stopping.Load() {
				w.Header().Set("Connection", "close")
			}
			h.ServeHTTP(w, r)
		}),
		ConnState:         s.track,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      40 * time.Second, // later than ReadTimeout: of HTTP/2 it would cut off the answer to a slow body
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: 30 * time.Second, WriteByteTimeout: 30 * time.Second},
		ErrorLog:          errorLog(log, repeats),
	}
	return s
}

// Serve answers on l until Shutdown or Close; then it returns http.ErrServerClosed.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopping.Load() {
		s.mu.Unlock()
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	s.listeners = append(s.listeners, l)
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	err := s.http.Serve(bounded{l, s})
	if s.stopping.Load() {
		return http.ErrServerClosed
	}
	return err
}

// bounded hands out what it accepts when there may be one more. That one is beyond the bound until then.
type bounded struct {
	net.Listener
	s *Server
}

func (b bounded) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err == nil {
		b.s.makeRoom()
	}
	return c, err
}

// makeRoom returns when there may be one more connection, or the server stops. It closes no second one while the first
// is still leaving: whoever becomes idle meanwhile wakes it, too.
func (s *Server) makeRoom() {
	s.mu.Lock()
	full := len(s.open) >= s.most
	s.mu.Unlock()
	if !full {
		return
	}
	s.repeats.Note(manyConnections, "", 1, "connections", s.most)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) >= s.most && !s.stopping.Load() {
		first := s.idle.Front()
		if first == nil || len(s.open)-len(s.leaving) < s.most {
			s.gone.Wait()
			continue
		}
		if early := settled - time.Since(first.Value.(idleConn).since); early > 0 {
			alarm := time.AfterFunc(early, func() {
				s.mu.Lock() // else it may come before the wait
				defer s.mu.Unlock()
				s.gone.Broadcast()
			})
			s.gone.Wait()
			alarm.Stop()
			continue
		}
		// It counts until it is closed, which can take a while: the other side may not be listening.
		c := s.idle.Remove(first).(idleConn).Conn
		s.open[c] = nil
		s.leaving[c] = true
		s.busy++
		go c.Close()
	}
}

// track is told of every connection before the next is accepted.
func (s *Server) track(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if place, known := s.open[c]; known && place != nil {
		s.idle.Remove(place)
	} else if known {
		s.busy--
	}
	switch state {
	case http.StateNew, http.StateActive:
		s.open[c] = nil
		s.busy++
	case http.StateIdle:
		s.open[c] = s.idle.PushBack(idleConn{c, time.Now()})
		s.gone.Signal() // it may make room
	default:
		delete(s.open, c)
		delete(s.leaving, c)
		s.gone.Signal()
	}
	if s.calm != nil && s.busy == 0 {
		close(s.calm)
		s.calm = nil
	}
	if s.empty != nil && len(s.open) == 0 {
		close(s.empty)
		s.empty = nil
	}
}

// Shutdown stops accepting, answers what has come, and closes what is idle. After an
// error something was still being answered when ctx ended: Close cuts that off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
	s.mu.Lock()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.gone.Broadcast()
	s.mu.Unlock()
	s.serving.Wait() // every connection that was accepted is tracked now

	lingering := time.NewTimer(linger)
	defer lingering.Stop()
	select {
	case <-s.when(&s.empty, func() bool { return len(s.open) == 0 }):
	case <-lingering.C:
	case <-ctx.Done():
	}
	select {
	case <-s.when(&s.calm, func() bool { return s.busy == 0 }):
	case <-ctx.Done():
	}
	return s.http.Shutdown(ctx)
}

// when gives a channel that is closed once it is so: now, or by track, which finds it
// in signal.
func (s *Server) when(signal *chan struct{}, so func() bool) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{})
	if so() {
		close(c)
	} else {
		*signal = c
	}
	return c
}

// Close cuts off everything.
func (s *Server) Close() error {
	s.mu.Lock()
	s.stopping.Store(true)
	s.gone.Broadcast()
	s.mu.Unlock()
	return s.http.Close()
}
