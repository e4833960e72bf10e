package ingest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ampcio/logbook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs h behind the real server on a free loopback port and returns its address.
func serve(t *testing.T, h http.Handler, change ...func(*http.Server)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(h, 1000, slog.New(slog.NewTextHandler(io.Discard, nil)), logbook.New(slog.New(slog.DiscardHandler), time.Now))
	for _, f := range change {
		f(&server.http)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return listener.Addr().String()
}

type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{c, bufio.NewReader(c)}
}

func (c *client) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer reads one answer to a request of the given method.
func (c *client) answer(t *testing.T, method string) (*http.Response, string) {
	t.Helper()
	response, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func posted(body string, header ...string) string {
	return fmt.Sprintf("POST /2/httpapi HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", strings.Join(header, ""), len(body), body)
}

func TestOneConnectionManyRequests(t *testing.T) {
	store := &memory{}
	c := dial(t, serve(t, New(options(), store)))
	body := batch(good)
	for i, request := range []struct {
		text, method string
		status       int
	}{
		{posted(body), "POST", 200},
		{posted("nonsense"), "POST", 400},
		{"HEAD /2/httpapi HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", 400},
		{"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", 400},
		{fmt.Sprintf("POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 50, body[:50], len(body)-50, body[50:]), "POST", 200},
		{posted(strings.Repeat("x", 3<<20)), "POST", 413},
		{posted(body, "Content-Type: text/plain\r\n"), "POST", 200},
		{"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + strings.Repeat("x", 600000), "POST", 400},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET", 400},
		{posted(body), "POST", 200},
	} {
		go func() { _, _ = io.WriteString(c, request.text) }() // both sides may be busy with a long body
		response, text := c.answer(t, request.method)
		if response.StatusCode != request.status {
			t.Fatalf("request %d: %d %s, want %d", i, response.StatusCode, text, request.status)
		}
		if response.Close {
			t.Fatalf("request %d: %d closes the connection", i, response.StatusCode)
		}
		if request.method == "HEAD" && (text != "" || response.Header.Get("Content-Type") != "application/json") {
			t.Errorf("request %d: HEAD answered with %q, %v", i, text, response.Header)
		}
	}
	if n := len(store.events()); n != 4 {
		t.Errorf("%d events stored, want 4", n)
	}
}

func TestExpectContinue(t *testing.T) {
	store := &memory{}
	address := serve(t, New(options(), store))
	body := batch(good)

	c := dial(t, address)
	c.send(t, fmt.Sprintf("POST /2/httpapi HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body)))
	if response, _ := c.answer(t, "POST"); response.StatusCode != 100 {
		t.Fatalf("%d, want 100", response.StatusCode)
	}
	c.send(t, body)
	if response, text := c.answer(t, "POST"); response.StatusCode != 200 || len(store.events()) != 1 {
		t.Errorf("%d %s", response.StatusCode, text)
	}

	// A body that is too large is refused before it is sent.
	c = dial(t, address)
	c.send(t, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
	if response, text := c.answer(t, "POST"); response.StatusCode != 413 {
		t.Errorf("%d %s, want 413", response.StatusCode, text)
	}
}

func TestSlowBody(t *testing.T) {
	h := New(options(), &memory{})
	c := dial(t, serve(t, h, func(s *http.Server) { s.ReadTimeout = 100 * time.Millisecond; s.WriteTimeout = 100 * time.Millisecond }))
	c.send(t, posted(batch(good))[:100])
	response, text := c.answer(t, "POST")
	if response.StatusCode != 408 || spins(408, []byte(text)) != "" || !response.Close {
		t.Errorf("%d %s, close %v; want 408 and close", response.StatusCode, text, response.Close)
	}
	if door := h.Door(); len(door.Refused) != 1 || door.Refused[0].Reason != "slow_body" || door.Refused[0].Address != "127.0.0.1" {
		t.Errorf("door %+v", door)
	}
	if !h.inFlight.TryAcquire(h.limits.inFlight) {
		t.Error("bytes in flight were not given back")
	}
}

func TestAbortedUpload(t *testing.T) {
	store := &memory{}
	h := New(options(), store)
	c := dial(t, serve(t, h))
	c.send(t, posted(batch(good) + strings.Repeat(" ", 1000))[:500]) // all of the JSON, not all of the body
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if response, text := c.answer(t, "POST"); response.StatusCode != 408 || len(store.events()) != 0 {
		t.Errorf("%d %s, %d events stored", response.StatusCode, text, len(store.events()))
	}
	if door := h.Door(); len(door.Refused) != 1 || door.Refused[0].Reason != "aborted_body" {
		t.Errorf("door %+v", door)
	}
}

func TestBadFraming(t *testing.T) {
	address := serve(t, New(options(), &memory{}))
	for name, request := range map[string]struct {
		text   string
		status int
	}{
		"huge header":        {"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nX-Huge: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431},
		"many headers":       {"POST /2/httpapi HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Many: x\r\n", 8<<10) + "\r\n", 431},
		"huge query":         {"GET /identify?identification=" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
		"bad chunk":          {"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		"no host":            {"POST /2/httpapi HTTP/1.1\r\n\r\n", 400},
		"two lengths":        {"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400},
		"length and chunked": {"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, address)
			go func() { _, _ = io.WriteString(c, request.text) }()
			if response, text := c.answer(t, "POST"); response.StatusCode != request.status {
				t.Errorf("%d %s, want %d", response.StatusCode, text, request.status)
			}
		})
	}
}

// With the budget of bytes taken, a request is told to come back, and taken when it does.
func TestBytesInFlightAreBounded(t *testing.T) {
	store := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
	o := options()
	o.MaxBody, o.MaxBatchBody, o.MaxInflated, o.InFlightBytes = 1<<10, 1<<10, 1<<10, 1<<10
	h := New(o, store)
	large := batch(good) + strings.Repeat(" ", 1<<10-len(batch(good)))

	first := make(chan int)
	go func() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/2/httpapi", strings.NewReader(large)))
		first <- w.Code
	}()
	<-store.begins // the first is on its way into the log
	status, answer := post(t, h, "/2/httpapi", large)
	if status != 503 || spins(503, []byte(answer)) != "" {
		t.Errorf("the second: %d %s, want 503", status, answer)
	}
	store.goesOn <- struct{}{}
	if status := <-first; status != 200 {
		t.Errorf("the first: %d, want 200", status)
	}
	go func() { <-store.begins; store.goesOn <- struct{}{} }()
	if status, answer := post(t, h, "/2/httpapi", large); status != 200 {
		t.Errorf("the second, when it came back: %d %s, want 200", status, answer)
	}
}

// A length that is announced and never sent costs no memory to speak of.
func TestAnnouncedLengthCostsNothing(t *testing.T) {
	h := New(options(), &memory{})
	j := newJob(h.inFlight)
	defer j.release()
	if err := j.fill(strings.NewReader("{}"), 20<<20, 20<<20); err != nil || j.granted > firstGrant {
		t.Errorf("granted %d bytes, %v", j.granted, err)
	}
}

// Buffers are used again: what one request stored must not change when others follow.
func TestConcurrentRequests(t *testing.T) {
	store := &memory{}
	h := New(options(), store)
	url := "http://" + serve(t, h)
	const senders, each = 16, 25
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for i := range each {
				mark := fmt.Sprintf("%02d-%03d", s, i)
				e := fmt.Sprintf(`{"event_type":"E","user_id":"user-%s","insert_id":"%s","event_properties":{"pad":"%s"}}`, mark, mark, strings.Repeat(mark, 1+s*i%97))
				body, header := []byte(batch(e, e)), http.Header{}
				if i%3 == 0 {
					body = []byte(compress(t, body))
					header.Set("Content-Encoding", "gzip")
				}
				r, err := http.NewRequest("POST", url+[]string{"/2/httpapi", "/batch", "/"}[i%3], bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header = header
				response, err := c.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				text, _ := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if response.StatusCode != 200 {
					t.Errorf("%s: %d %s", mark, response.StatusCode, text)
				}
				if i%5 == 0 {
					_, _ = post(t, h, "/2/httpapi", "nonsense")
					_ = h.Door()
				}
			}
		})
	}
	wg.Wait()
	for _, e := range store.events() {
		mark := e.InsertID
		if want := `"user_id":"user-` + mark + `"`; !bytes.Contains(e.Raw, []byte(want)) || !bytes.Contains(e.Raw, []byte(`"pad":"`+mark)) || e.UserID != "user-"+mark {
			t.Fatalf("event %s became %s", mark, e.Raw)
		}
	}
	door := h.Door()
	if door.Events != 2*senders*each || door.Duplicates != senders*each {
		t.Errorf("%d events and %d duplicates, want %d and %d", door.Events, door.Duplicates, 2*senders*each, senders*each)
	}
}

// A connection that was accepted just before a stop, and whose request comes only
// then, is answered: net/http's own Shutdown closes it without a word, and the Node
// and Go SDKs drop their events at that.
func TestStopAnswersWhoHasConnected(t *testing.T) {
	store := &memory{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(New(options(), store), 1000, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	c := dial(t, listener.Addr().String())
	for accepted := false; !accepted; runtime.Gosched() {
		server.mu.Lock()
		accepted = server.busy == 1
		server.mu.Unlock()
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Shutdown(t.Context()) }()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Fatalf("Serve: %v", err)
	}
	body := `{"api_key":"` + key + `","events":[{"event_type":"Late","user_id":"user-000001"}]}`
	fmt.Fprintf(c, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("answered %d, connection to be closed: %t", resp.StatusCode, resp.Close)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// A sender that keeps its connection is answered on it while the server stops, and told
// to connect anew: closed at once, the connection would take its next request along.
func TestStopServesIdleConnectionsForAMoment(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(New(options(), &memory{}), 1000, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	c := dial(t, listener.Addr().String())
	post := func() *http.Response {
		t.Helper()
		body := `{"api_key":"` + key + `","events":[{"event_type":"Kept","user_id":"user-000001"}]}`
		fmt.Fprintf(c, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d, %v", resp.StatusCode, err)
		}
		return resp
	}
	if post().Close {
		t.Error("told to connect anew before the stop")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Shutdown(t.Context()) }()
	<-served
	select {
	case <-stopped:
		t.Fatal("the idle connection was closed at once")
	case <-time.After(linger / 5):
	}
	if !post().Close {
		t.Error("not told to connect anew")
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}
