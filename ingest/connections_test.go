package ingest

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ampcio/logbook"
)

// boundedServer serves with at most so many connections.
func boundedServer(t *testing.T, most int) (server *Server, l *counting) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = &counting{Listener: tcp}
	server = NewServer(New(options(), &memory{}), most, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return server, l
}

// counting counts the connections that it has accepted.
type counting struct {
	net.Listener
	accepted atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.accepted.Add(1)
	return c, err
}

// until waits for what another goroutine brings about.
func (s *Server) until(t *testing.T, so func() bool) {
	t.Helper()
	late := time.Now().Add(20 * time.Second)
	for now := false; !now; runtime.Gosched() {
		s.mu.Lock()
		now = so()
		s.mu.Unlock()
		if time.Now().After(late) {
			t.Fatal("it does not come about")
		}
	}
}

// Who connects finds room: of those that have long been idle one is closed, and nobody else.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	const most = 3
	server, l := boundedServer(t, most)
	var all []*client
	for i := range most + 1 {
		c := dial(t, l.Addr().String())
		c.send(t, posted(batch(good)))
		if response, text := c.answer(t, "POST"); response.StatusCode != 200 {
			t.Fatalf("connection %d: %d %s", i, response.StatusCode, text)
		}
		all = append(all, c)
		server.until(t, func() bool { return server.idle.Len() == min(i+1, most) })
	}
	if n, err := all[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection that was idle for longest is still open: %d bytes, %v", n, err)
	}
	for i, c := range all[1:] {
		c.send(t, posted(batch(good)))
		if response, text := c.answer(t, "POST"); response.StatusCode != 200 {
			t.Errorf("connection %d: %d %s", i+1, response.StatusCode, text)
		}
	}
}

// hall is a listener in virtual time. What it has accepted is closed when closing is.
type hall struct {
	t       *testing.T
	server  *Server
	door    chan net.Conn
	over    chan struct{}
	closing chan struct{}
}

// inHall serves so many connections at a time.
func inHall(t *testing.T, most int, f func(*testing.T, *hall)) {
	synctest.Test(t, func(t *testing.T) {
		h := &hall{t: t, door: make(chan net.Conn), over: make(chan struct{}), closing: make(chan struct{})}
		answer := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
		h.server = NewServer(answer, most, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
		served := make(chan error, 1)
		go func() { served <- h.server.Serve(h) }()
		f(t, h)
		h.server.Close()
		<-served
	})
}

func (h *hall) Accept() (net.Conn, error) {
	select {
	case c := <-h.door:
		return reluctant{c, h.closing}, nil
	case <-h.over:
		return nil, net.ErrClosed
	}
}

func (h *hall) Close() error {
	select {
	case <-h.over:
	default:
		close(h.over)
	}
	return nil
}

func (h *hall) Addr() net.Addr { return &net.TCPAddr{} }

func (h *hall) enters() net.Conn {
	c, inside := net.Pipe()
	h.door <- inside
	return c
}

// asks is one request on a connection and its answer.
func (h *hall) asks(who string, c net.Conn) {
	h.t.Helper()
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if err == nil {
		_, err = http.ReadResponse(bufio.NewReader(c), nil)
	}
	if err != nil {
		h.t.Fatalf("%s: %v", who, err)
	}
	synctest.Wait()
}

type reluctant struct {
	net.Conn
	closing chan struct{}
}

func (c reluctant) Close() error {
	<-c.closing
	return c.Conn.Close()
}

// Who has just been answered may be sending the next request: it is not closed for a newcomer, who waits.
func TestWhoWasJustAnsweredIsNotClosed(t *testing.T) {
	inHall(t, 1, func(t *testing.T, h *hall) {
		close(h.closing)
		busy := h.enters()
		h.asks("busy", busy)
		newcomer := h.enters()
		for range 10 {
			time.Sleep(settled - time.Millisecond)
			h.asks("busy", busy)
		}
		begin := time.Now()
		h.asks("newcomer", newcomer)
		if waited := time.Since(begin); waited != settled {
			t.Errorf("the newcomer waited for %v", waited)
		}
	})
}

// Closing one can take seconds, and those who become idle meanwhile are not closed for the same newcomer.
func TestOneNewcomerClosesOneConnection(t *testing.T) {
	inHall(t, 2, func(t *testing.T, h *hall) {
		first, second := h.enters(), h.enters()
		h.asks("first", first)
		h.asks("second", second)
		newcomer := h.enters()
		for range 3 {
			time.Sleep(2 * settled) // the first is leaving
			h.asks("second", second)
		}
		time.Sleep(2 * settled)
		close(h.closing)
		h.asks("newcomer", newcomer)
		h.asks("second", second)
	})
}

// While all connections are at work one more waits, and is served when one of them is done: none is cut off for it.
func TestConnectionsWaitForThoseAtWork(t *testing.T) {
	const most = 2
	server, l := boundedServer(t, most)
	body := batch(good)
	var all []*client
	for range most {
		c := dial(t, l.Addr().String())
		c.send(t, fmt.Sprintf("POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:10]))
		all = append(all, c)
	}
	server.until(t, func() bool { return server.busy == most })
	waiting := dial(t, l.Addr().String())
	waiting.send(t, posted(body))
	if err := waiting.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d bytes of an answer beyond the bound", n)
	}
	if err := waiting.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		c.send(t, body[10:])
		if response, text := c.answer(t, "POST"); response.StatusCode != http.StatusOK {
			t.Errorf("who was at work: %d %s", response.StatusCode, text)
		}
	}
	if response, text := waiting.answer(t, "POST"); response.StatusCode != http.StatusOK {
		t.Errorf("who waited: %d %s", response.StatusCode, text)
	}
}

// A stop does not wait for room, and who waited for it is answered.
func TestStopWhileConnectionsWait(t *testing.T) {
	server, l := boundedServer(t, 1)
	c := dial(t, l.Addr().String())
	c.send(t, "POST /2/httpapi HTTP/1.1\r\n")
	server.until(t, func() bool { return server.busy == 1 })
	stopped := make(chan error, 1)
	waiting := dial(t, l.Addr().String()) // accepted, and held back; the stop lets it in
	waiting.send(t, posted(batch(good)))
	server.until(t, func() bool { return l.accepted.Load() == 2 })
	go func() { stopped <- server.Shutdown(t.Context()) }()
	if response, text := waiting.answer(t, "POST"); response.StatusCode != http.StatusOK {
		t.Errorf("%d %s", response.StatusCode, text)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the stop does not end")
	}
}
