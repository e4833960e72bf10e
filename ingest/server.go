package ingest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server is the public HTTP server. Unlike http.Server it leaves nobody unanswered
// when it is shut down: that one closes a connection which was accepted but whose first
// request it had not yet read without an answer (conn.serve in net/http/server.go), and
// server SDKs drop their events then.
type Server struct {
	http     http.Server
	stopping atomic.Bool

	mu        sync.Mutex
	listeners []net.Listener
	serving   sync.WaitGroup
	busy      map[net.Conn]bool // new, or being answered
	calm      chan struct{}     // closed when stopping and nothing is busy
}

// NewServer returns a server for the public listener, with every time and size limited:
// a request has 5 s for its header and 30 s in all, an idle connection is kept for 120 s.
// What net/http has to say goes to log as warnings.
func NewServer(h http.Handler, log *slog.Logger) *Server {
	s := &Server{busy: map[net.Conn]bool{}}
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
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
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
	err := s.http.Serve(l)
	if s.stopping.Load() {
		return http.ErrServerClosed
	}
	return err
}

// track is told of every connection before the next is accepted.
func (s *Server) track(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew, http.StateActive:
		s.busy[c] = true
	default:
		delete(s.busy, c)
	}
	if s.calm != nil && len(s.busy) == 0 {
		close(s.calm)
		s.calm = nil
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
	s.mu.Unlock()
	s.serving.Wait() // every connection that was accepted is tracked now

	calm := make(chan struct{})
	s.mu.Lock()
	if len(s.busy) == 0 {
		close(calm)
	} else {
		s.calm = calm
	}
	s.mu.Unlock()
	select {
	case <-calm:
	case <-ctx.Done():
	}
	return s.http.Shutdown(ctx)
}

// Close cuts off everything.
func (s *Server) Close() error {
	s.stopping.Store(true)
	return s.http.Close()
}
