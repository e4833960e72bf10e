package ingest

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
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

// counting counts the connections that it has accepted. Those of one with a lock are closed when it is free.
type counting struct {
	net.Listener
	accepted atomic.Int64
	closing  *sync.Mutex
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.accepted.Add(1)
	if l.closing != nil && err == nil {
		c = reluctant{c, l.closing}
	}
	return c, err
}

type reluctant struct {
	net.Conn
	closing *sync.Mutex
}

func (c reluctant) Close() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	return c.Conn.Close()
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

// Closing one can take seconds, and those who become idle meanwhile are not closed for the same newcomer.
func TestOneNewcomerClosesOneConnection(t *testing.T) {
	server, l := boundedServer(t, 2)
	l.closing = new(sync.Mutex)
	asks := func(c *client) {
		t.Helper()
		c.send(t, posted(batch(good)))
		if response, text := c.answer(t, "POST"); response.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", response.StatusCode, text)
		}
	}
	first, second := dial(t, l.Addr().String()), dial(t, l.Addr().String())
	asks(first)
	server.until(t, func() bool { return server.idle.Len() == 1 })
	asks(second)
	server.until(t, func() bool { return server.idle.Len() == 2 })
	l.closing.Lock()
	letGo := sync.OnceFunc(l.closing.Unlock)
	t.Cleanup(letGo)
	newcomer := dial(t, l.Addr().String())
	server.until(t, func() bool { return server.idle.Len() == 1 }) // the first is leaving
	for range 50 {
		asks(second)
		server.until(t, func() bool { return server.idle.Len() == 1 })
	}
	letGo()
	asks(newcomer)
	asks(second)
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
