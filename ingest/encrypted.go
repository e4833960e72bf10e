package ingest

import (
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"ampcio/logbook"
)

// Encrypted is l with TLS. Somebody who speaks plain HTTP there is told so in a way that
// every SDK keeps its events: net/http's own answer, a 400 that names nothing, would make
// the Go SDK send again at once, without end.
func (h *Handler) Encrypted(l net.Listener, config *tls.Config) net.Listener {
	return tls.NewListener(knocked{l, h}, config)
}

// knocked tells plain HTTP from TLS by the first byte of a connection.
type knocked struct {
	net.Listener
	h *Handler
}

func (k knocked) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &knock{Conn: c, h: k.h}, nil
}

type knock struct {
	net.Conn
	h     *Handler
	read  bool        // something was; only by the handshake, at first
	plain atomic.Bool // it was no TLS
}

// tlsHandshake is the first byte of every TLS connection.
const tlsHandshake = 0x16

func (k *knock) Read(b []byte) (int, error) {
	n, err := k.Conn.Read(b)
	if n > 0 && !k.read {
		k.read = true
		k.plain.Store(b[0] != tlsHandshake)
	}
	return n, err
}

// Write replaces what crypto/tls and net/http say to somebody who speaks no TLS: that is
// all that they write on such a connection.
func (k *knock) Write(b []byte) (int, error) {
	if !k.plain.Load() {
		return k.Conn.Write(b)
	}
	if !strings.HasPrefix(string(b), "HTTP/") {
		return len(b), nil // an alert of TLS, which would stand before the answer
	}
	k.h.door.refuse(reasonPlain, k.h.now(), shown(peer(&http.Request{RemoteAddr: k.RemoteAddr().String()})))
	const text = `{"code":503,"error":"Service Unavailable: this address speaks HTTPS only: let the server URL begin with https://"}`
	_, err := io.WriteString(k.Conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\nRetry-After: 60\r\n"+
		"Connection: close\r\n\r\n"+text)
	return len(b), err
}

// Close hears out somebody who speaks no TLS: who is still sending when a connection is
// closed gets to see a reset in place of the answer.
func (k *knock) Close() error {
	if k.plain.Load() {
		if c, ok := k.Conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil && k.SetReadDeadline(time.Now().Add(time.Second)) == nil {
			_, _ = io.CopyN(io.Discard, k.Conn, maxDiscard)
		}
	}
	return k.Conn.Close()
}

// errorLog is where net/http says what it has to say. Failed handshakes are what anybody
// can cause, port scanners and load balancers every few seconds.
func errorLog(to *slog.Logger, repeats *logbook.Book) *log.Logger {
	return log.New(netHTTP{to, repeats}, "", 0)
}

type netHTTP struct {
	log     *slog.Logger
	repeats *logbook.Book
}

func (n netHTTP) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	if strings.HasPrefix(line, "http: TLS handshake error") {
		n.log.Debug("a TLS handshake failed", "what", line)
	} else {
		n.repeats.Note(httpProblem, "", 1, "what", line)
	}
	return len(b), nil
}
