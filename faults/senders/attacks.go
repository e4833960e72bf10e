package senders

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio/recordings"
)

// event is a request with n events of the attacker, each with an insert_id of its own.
func (a *attacker) event(n int) []byte {
	b := fmt.Appendf(nil, `{"api_key":%q,"events":[`, recordings.Key)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"event_type":"Hostile","user_id":%q,"insert_id":"%s-%016x"}`, a.name, a.name, a.Uint64())
	}
	return append(b, `]}`...)
}

// request is a POST with a body and its length.
func request(path string, body []byte, header ...string) []byte {
	w := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n", path, strings.Join(header, ""), len(body))
	return append(w, body...)
}

// connect opens n connections; done closes them.
func (a *attacker) connect(n int) (all []*conn, done func(), err error) {
	done = func() {
		for _, c := range all {
			_ = c.Close() // with a reset
		}
	}
	for range n {
		c, err := dial(a.in.Listen)
		if err != nil {
			done()
			return nil, nil, err
		}
		all = append(all, c)
	}
	return all, done, nil
}

// answered sends what is one request and wants one of these answers. want 0 = whatever, or none.
func answered(c *conn, wire []byte, want ...int) (*answer, error) {
	got, _, err := c.exchange(wire, "POST", 1)
	if err != nil {
		return nil, err
	}
	if len(got) == 0 {
		return nil, errors.New("the connection was closed without an answer")
	}
	for _, w := range want {
		if got[0].status == w {
			return &got[0], got[0].wellFormed()
		}
	}
	return nil, fmt.Errorf("answered %d %.200s, not one of %d", got[0].status, got[0].body, want)
}

// store sends a good request with n events, of which fresh are new, until it is answered 200: 503 is what others may
// bring about, who use up the memory that there is for bodies.
func (a *attacker) store(ctx context.Context, c *conn, wire []byte, n, fresh int64) error {
	for {
		got, err := answered(c, wire, 200, 503)
		if err != nil {
			return err
		}
		if got.status == 200 {
			a.served.Add(n)
			a.sent.Add(fresh)
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// drip writes one byte after the other to all of the connections until held ends, whatever becomes of them.
func (a *attacker) drip(all []*conn, text string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		for _, c := range all {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = c.Write([]byte{text[i%len(text)]})
		}
		select {
		case <-tick.C:
		case <-a.held.Done():
			return
		}
	}
}

// slowHeaders hold connections by headers that do not end, as slowloris does. The daemon closes them, all.
func slowHeaders(_ context.Context, a *attacker) error {
	all, done, err := a.connect(200)
	if err != nil {
		return err
	}
	defer done()
	for _, c := range all {
		if _, err := io.WriteString(c, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
			return err
		}
	}
	a.drip(all, "slow")
	for _, c := range all {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !closed(err) {
			return fmt.Errorf("a header without an end holds a connection: %w", err)
		}
	}
	return nil
}

// slowBodies are of good events, and come too slowly; then the sender is gone.
func slowBodies(_ context.Context, a *attacker) error {
	all, done, err := a.connect(200)
	if err != nil {
		return err
	}
	defer done()
	body := a.event(40)
	for _, c := range all {
		if _, err := c.Write(request("/batch", body)[:200]); err != nil {
			return err
		}
	}
	a.drip(all, string(body[100:]))
	return nil
}

// abortedUploads end in the middle of a good body: nothing of it may be stored.
func abortedUploads(ctx context.Context, a *attacker) error {
	for range 300 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c, err := dial(a.in.Listen)
		if err != nil {
			return err
		}
		wire := request("/2/httpapi", a.event(20))
		_, err = c.Write(wire[:len(wire)-1-a.IntN(len(wire)-100)])
		if a.IntN(2) == 0 && err == nil {
			err = c.CloseWrite() // and listens to what it is told
			if got, _, failed := c.exchange(nil, "POST", 1); failed != nil || len(got) > 0 && got[0].status == 200 {
				return fmt.Errorf("half a body: %v, %w", got, errors.Join(failed, c.Close()))
			}
		}
		if err = errors.Join(err, c.Close()); err != nil && !closed(err) {
			return err
		}
	}
	return nil
}

// bomb is 200 MB of spaces in 200 kB, inside a good request.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // to memory; the level is one that there is
	fmt.Fprintf(z, `{"api_key":%q,"events":[{"event_type":"Bomb","user_id":"user-bomb"}`, recordings.Key)
	space := bytes.Repeat([]byte{' '}, 1<<20)
	for range 200 {
		_, _ = z.Write(space)
	}
	_, _ = io.WriteString(z, "]}")
	_ = z.Close()
	return b.Bytes()
})

func gzipBombs(ctx context.Context, a *attacker) error {
	bomb() // is made first: a connection that says nothing for 5 s is closed
	all, done, err := a.connect(6)
	if err != nil {
		return err
	}
	defer done()
	var g errgroup.Group
	for i, c := range all {
		g.Go(func() error {
			path := []string{"/2/httpapi", "/batch", "/identify"}[i%3]
			for range 5 {
				// 503 = the memory that there is for bodies is in use: the same bomb from others.
				if _, err := answered(c, request(path, bomb(), "Content-Encoding: gzip\r\n"), 413, 503); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func deepJSON(ctx context.Context, a *attacker) error {
	all, done, err := a.connect(1)
	if err != nil {
		return err
	}
	defer done()
	begin := fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"E","user_id":"user-deep"`, recordings.Key)
	for i := range 60 {
		levels := []int{10_000, 100_000, 400_000}[i%3] / 2
		open := []string{"[", `{"a":`}[i%2]
		if i%2 == 1 {
			levels /= 3
		}
		d := string(deep(levels, open))
		body := []string{begin + `,"event_properties":` + d + `}]}`, begin + `}],"x":` + d + `}`, d, begin + `,"x":` + strings.Repeat(open, levels)}[i/2%4]
		if _, err := answered(all[0], request("/batch", []byte(body)), 400, 503); err != nil {
			return fmt.Errorf("%d levels: %w", levels, err)
		}
	}
	return nil
}

// oneConnection sends everything on one connection.
func oneConnection(ctx context.Context, a *attacker) error {
	all, done, err := a.connect(1)
	if err != nil {
		return err
	}
	defer done()
	for range 1000 {
		if err := a.store(ctx, all[0], request("/2/httpapi", a.event(2)), 2, 2); err != nil {
			return err
		}
	}
	return nil
}

// idleConnections are ten thousand that have asked for something once. All are held, and in the end still served.
func idleConnections(ctx context.Context, a *attacker) error {
	all, done, err := a.connect(0)
	if err != nil {
		return err
	}
	defer func() { done() }()
	for range 100 {
		some, close, err := a.connect(100) // and each says something soon, on the slowest machine
		if err != nil {
			return err
		}
		before := done
		done = func() { before(); close() }
		all = append(all, some...)
		for _, c := range some {
			if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				return err
			}
		}
		for _, c := range some {
			if _, err := answered(c, nil, 200); err != nil {
				return err
			}
		}
	}
	<-a.held.Done()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i := range 100 {
		if err := a.store(ctx, all[i*100], request("/2/httpapi", a.event(1)), 1, 1); err != nil {
			return fmt.Errorf("connection %d of %d: %w", i*100, len(all), err)
		}
	}
	return nil
}

// retryStorm sends the same events again and again, on several connections at once: each is stored once.
func retryStorm(ctx context.Context, a *attacker) error {
	const each = 10
	all, done, err := a.connect(8)
	if err != nil {
		return err
	}
	defer done()
	bodies := [][]byte{request("/2/httpapi", a.event(each)), request("/batch", a.event(each)), request("/2/httpapi", a.event(each))}
	a.sent.Add(int64(each * len(bodies)))
	var g errgroup.Group
	for _, c := range all {
		g.Go(func() error {
			for i := range 100 {
				if err := a.store(ctx, c, bodies[i%len(bodies)], each, 0); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// expectations are headers that ask before the body is sent.
func expectations(ctx context.Context, a *attacker) error {
	for i := range 60 {
		c, err := dial(a.in.Listen)
		if err != nil {
			return err
		}
		body := a.event(1)
		head := func(length int, expect string) []byte {
			return fmt.Appendf(nil, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nExpect: %s\r\nContent-Length: %d\r\n\r\n", expect, length)
		}
		switch i % 4 {
		case 0: // as it should be
			if err = c.SetDeadline(time.Now().Add(patience)); err != nil {
				break
			}
			if _, err = c.Write(head(len(body), "100-continue")); err != nil {
				break
			}
			var r *http.Response
			if r, err = http.ReadResponse(c.r, nil); err != nil || r.StatusCode != http.StatusContinue {
				err = fmt.Errorf("%v, not 100: %w", r, err)
				break
			}
			var got *answer
			if got, err = answered(c, body, 200, 503); err == nil && got.status == 200 {
				a.sent.Add(1)
				a.served.Add(1)
			}
		case 1: // too large: refused unsent
			_, err = answered(c, head(99_999_999, "100-continue"), 413, 503)
		case 2:
			_, err = answered(c, head(len(body), "something-else"), 417)
		case 3: // the body never comes
			_, err = c.Write(head(len(body), "100-continue"))
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pipelining sends hundreds of requests before it reads an answer, and wrong ones among them.
func pipelining(ctx context.Context, a *attacker) error {
	all, done, err := a.connect(1)
	if err != nil {
		return err
	}
	defer done()
	const n = 400
	var wire []byte
	for i := range n {
		if i%5 == 4 {
			wire = append(wire, request("/2/httpapi", []byte(`{"api_key":`))...)
			continue
		}
		wire = append(wire, request("/2/httpapi", a.event(1))...)
	}
	answers, _, err := all[0].exchange(wire, "POST", n)
	if err != nil || len(answers) != n {
		return fmt.Errorf("%d of %d answered, %w", len(answers), n, err)
	}
	for i, got := range answers {
		if want := map[bool]int{true: 400, false: 200}[i%5 == 4]; got.status != want && got.status != 503 {
			return fmt.Errorf("request %d is answered %d %.200s, not %d", i, got.status, got.body, want)
		}
		if got.status == 200 {
			a.sent.Add(1)
			a.served.Add(1)
		}
	}
	return nil
}

func largeHeaders(ctx context.Context, a *attacker) error {
	for i := range 40 {
		c, err := dial(a.in.Listen)
		if err != nil {
			return err
		}
		header := "X-Large: " + strings.Repeat("x", 1<<20) + "\r\n"
		if i%2 == 1 {
			header = strings.Repeat("X: y\r\n", 100_000)
		}
		// That it is closed while it is still being sent is as good.
		got, _, err := c.exchange(request("/2/httpapi", a.event(1), header), "POST", 1)
		if len(got) > 0 && got[0].status != 431 {
			err = errors.Join(err, fmt.Errorf("answered %d", got[0].status))
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// connectAndLeave is a storm of connections, of which some say something that is no HTTP.
func connectAndLeave(ctx context.Context, a *attacker) error {
	for i := range 2000 {
		c, err := dial(a.in.Listen)
		if err != nil {
			return err
		}
		switch i % 4 {
		case 1:
			_, _ = c.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")) // TLS, where none is spoken
		case 2:
			_, _ = c.Write([]byte{byte(a.Uint32()), byte(a.Uint32()), '\r', '\n'})
		case 3:
			_ = c.CloseWrite()
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

// tinyChunks is a good request, a byte in each chunk.
func tinyChunks(ctx context.Context, a *attacker) error {
	all, done, err := a.connect(1)
	if err != nil {
		return err
	}
	defer done()
	for range 5 {
		wire := []byte("POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
		for _, b := range a.event(100) {
			wire = append(wire, '1', '\r', '\n', b, '\r', '\n')
		}
		if err := a.store(ctx, all[0], append(wire, "0\r\n\r\n"...), 100, 100); err != nil {
			return err
		}
	}
	return nil
}

// deaf sends without end and reads no answer: what the daemon has to say to it must not grow in its memory.
func deaf(_ context.Context, a *attacker) error {
	all, done, err := a.connect(20)
	if err != nil {
		return err
	}
	defer done()
	wire := bytes.Repeat([]byte("GET /"+strings.Repeat("x", 200)+" HTTP/1.1\r\nHost: x\r\n\r\n"), 100)
	var g errgroup.Group
	for _, c := range all {
		g.Go(func() error {
			for a.held.Err() == nil {
				if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
					return err
				}
				// Cut in the middle, what follows is nonsense: that is answered and closed.
				if _, err := c.Write(wire); err != nil {
					<-a.held.Done()
				}
			}
			return nil
		})
	}
	return g.Wait()
}
