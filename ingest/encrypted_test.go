package ingest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ampcio/logbook"
)

// selfSigned is a certificate for 127.0.0.1.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveEncrypted is serve with TLS; the client trusts it, and speaks HTTP/2 if told to.
func serveEncrypted(t *testing.T, h *Handler, http2 bool) (server *Server, address string, client *http.Client) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pair := selfSigned(t)
	server = NewServer(h, 1000, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(h.Encrypted(listener, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}))
	}()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close()
		<-done
	})
	return server, listener.Addr().String(), &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func TestEncrypted(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(name, func(t *testing.T) {
			store := &memory{}
			h := New(options(), store)
			server, address, client := serveEncrypted(t, h, http2)
			ask := func() {
				t.Helper()
				answer, err := client.Post("https://"+address+"/2/httpapi", "application/json", strings.NewReader(batch(good)))
				if err != nil {
					t.Fatal(err)
				}
				defer answer.Body.Close()
				if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != 200 || answer.Proto != name {
					t.Errorf("%s %d %s %v", answer.Proto, answer.StatusCode, body, err)
				}
			}
			ask()
			// One that comes on an idle connection just after a stop has begun is answered as well.
			stopped := make(chan error)
			go func() { stopped <- server.Shutdown(context.Background()) }()
			for !server.stopping.Load() {
				time.Sleep(time.Millisecond)
			}
			ask()
			if err := <-stopped; err != nil || len(store.events()) != 2 {
				t.Errorf("stopped with %v, %d events stored", err, len(store.events()))
			}
		})
	}
}

// street is a listener in virtual time, for which a slow machine makes nobody slow. Its connections come from 127.0.0.1.
type street struct {
	door chan net.Conn
	over chan struct{}
	once sync.Once
}

func (s *street) Accept() (net.Conn, error) {
	select {
	case c := <-s.door:
		return passer{c}, nil
	case <-s.over:
		return nil, net.ErrClosed
	}
}

func (s *street) Close() error {
	s.once.Do(func() { close(s.over) })
	return nil
}

func (s *street) Addr() net.Addr { return &net.TCPAddr{} }

// enters gives the other end of a connection. Like one of the kernel it takes what is written without waiting for a
// reader: net/http closes under a lock, for which virtual time does not go on, and says goodbye before.
func (s *street) enters() net.Conn {
	outside, near := net.Pipe()
	far, inside := net.Pipe()
	carry(near, far)
	carry(far, near)
	s.door <- inside
	return outside
}

func carry(from, to net.Conn) {
	under := make(chan []byte, 1000)
	go func() {
		defer close(under)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if under <- b[:n]; err != nil {
				return
			}
		}
	}()
	go func() {
		defer to.Close()
		for b := range under {
			_, _ = to.Write(b) // to nobody, perhaps
		}
	}()
}

type passer struct{ net.Conn }

func (passer) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50_000} }

// The limits of time hold behind TLS.
func TestSlowSendersBehindTLS(t *testing.T) {
	pair := selfSigned(t)
	trusting := &tls.Config{InsecureSkipVerify: true}
	behindTLS := func(name string, f func(*testing.T, *Handler, *street)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, s := New(options(), &memory{}), &street{door: make(chan net.Conn), over: make(chan struct{})}
				server := NewServer(h, 1000, slog.New(slog.DiscardHandler), logbook.New(slog.New(slog.DiscardHandler), time.Now))
				served := make(chan error, 1)
				go func() {
					served <- server.Serve(h.Encrypted(s, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}))
				}()
				f(t, h, s)
				server.Close()
				<-served
			})
		})
	}
	// gone waits until c is closed by the server, which is to be after so long.
	gone := func(t *testing.T, c net.Conn, began time.Time, after time.Duration) {
		t.Helper()
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		if took := time.Since(began); took != after {
			t.Errorf("it was closed after %v, not %v", took, after)
		}
	}
	behindTLS("no handshake", func(t *testing.T, _ *Handler, s *street) {
		gone(t, s.enters(), time.Now(), 5*time.Second)
	})
	behindTLS("half a header", func(t *testing.T, _ *Handler, s *street) {
		c := tls.Client(s.enters(), trusting)
		if _, err := io.WriteString(c, "POST /2/httpapi HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		gone(t, c, time.Now(), 5*time.Second)
	})
	for name, http2 := range map[string]bool{"half a body": false, "half a body of HTTP/2": true} {
		behindTLS(name, func(t *testing.T, h *Handler, s *street) {
			transport := &http.Transport{TLSClientConfig: trusting.Clone(), ForceAttemptHTTP2: http2,
				DialContext: func(context.Context, string, string) (net.Conn, error) { return s.enters(), nil }}
			defer transport.CloseIdleConnections()
			body, writer := io.Pipe()
			defer writer.Close()
			go writer.Write([]byte(batch(good)[:50]))
			began := time.Now()
			answer, err := (&http.Client{Transport: transport}).Post("https://127.0.0.1/2/httpapi", "application/json", body)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			if took := time.Since(began); answer.StatusCode != 408 || answer.ProtoMajor == 2 != http2 || took < 30*time.Second || took > 40*time.Second {
				t.Errorf("%s %d after %v", answer.Proto, answer.StatusCode, took)
			}
			if refused := h.Door().Refused; len(refused) != 1 || refused[0].Reason != "slow_body" || refused[0].Address != "127.0.0.1" {
				t.Errorf("the door counts %+v", refused)
			}
		})
	}
}

// An SDK whose server URL was left at http:// hears what is wrong, keeps its events, and
// does not loop.
func TestPlainHTTPWhereTLSIsSpoken(t *testing.T) {
	for name, body := range map[string]string{"small": batch(good), "still sending": batch(good) + strings.Repeat(" ", 900_000)} {
		t.Run(name, func(t *testing.T) {
			h := New(options(), &memory{})
			_, address, client := serveEncrypted(t, h, false)
			answer, err := client.Post("http://"+address+"/2/httpapi", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			var said struct {
				Code  int
				Error string
			}
			if err != nil || answer.StatusCode != 503 || json.Unmarshal(text, &said) != nil || said.Code != 503 || !strings.Contains(said.Error, "https://") {
				t.Errorf("%d %s %v", answer.StatusCode, text, err)
			}
			if refused := h.Door().Refused; len(refused) != 1 || refused[0].Reason != "plain_http" || refused[0].Address != "127.0.0.1" {
				t.Errorf("the door counts %+v", refused)
			}
		})
	}
	t.Run("nonsense", func(t *testing.T) {
		_, address, _ := serveEncrypted(t, New(options(), &memory{}), false)
		c := dial(t, address)
		c.send(t, "nonsense without end")
		c.Conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || bytes.Contains(got, []byte("503")) {
			t.Errorf("%q %v", got, err)
		}
	})
}
