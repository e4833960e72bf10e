package destination

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ampcio/rehearsal"
)

// A front is the address of a Customer.io: it may be gone, broken or strange, in front of a sandbox that is well.
type front struct {
	address string // always the same, 127.0.0.1
	scheme  string // http | https
	http2   bool
	inner   http.Handler // the sandbox
	keys    *keys

	met      atomic.Int64 // connections and requests since the last change
	followed atomic.Int64 // requests of who has followed a redirect: never

	mu      sync.Mutex
	closers []func() // of what listens now
	served  sync.WaitGroup
}

// shape is how a front is at a time. The zero value is well.
type shape struct {
	gone bool                         // nobody listens
	raw  func(c net.Conn)             // what is done with each connection, instead of HTTP; it closes it
	tls  func(k *keys, c *tls.Config) // changes what the handshake shows
	http bool                         // plain HTTP where TLS should be
	does func(w http.ResponseWriter, r *http.Request, inner http.Handler)
}

const followedPath = "/followed"

func newFront(scheme string, http2 bool, inner http.Handler) (*front, error) {
	f := &front{scheme: scheme, http2: http2, inner: inner}
	var err error
	if f.keys, err = theKeys(); err != nil {
		return nil, err
	}
	if f.address, err = rehearsal.FreeAddress(); err != nil {
		return nil, err
	}
	return f, f.become(shape{})
}

func (f *front) url() string { return f.scheme + "://" + f.address }

// become closes what there was, with all its connections, and is something else from now on.
func (f *front) become(s shape) error {
	f.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.met.Store(0)
	if s.gone {
		return nil
	}
	// A process that is being started has what listened before until it becomes another program.
	l, err := net.Listen("tcp", f.address)
	for began := time.Now(); errors.Is(err, syscall.EADDRINUSE) && time.Since(began) < 10*time.Second; l, err = net.Listen("tcp", f.address) {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("listen again: %w", err)
	}
	if s.raw != nil {
		f.closers = append(f.closers, f.serveRaw(l, s.raw))
		return nil
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(f.http2)
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0), Protocols: protocols,
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				f.met.Add(1)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.met.Add(1)
			if len(r.URL.Path) >= len(followedPath) && r.URL.Path[:len(followedPath)] == followedPath {
				f.followed.Add(1)
			}
			if s.does != nil {
				s.does(w, r, f.inner)
				return
			}
			f.inner.ServeHTTP(w, r)
		}),
	}
	if f.scheme == "https" && !s.http {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{f.keys.right}}
		if s.tls != nil {
			s.tls(f.keys, server.TLSConfig)
		}
		f.served.Go(func() { _ = server.ServeTLS(l, "", "") })
	} else {
		f.served.Go(func() { _ = server.Serve(l) })
	}
	// The server does not know its listener before its goroutine runs.
	f.closers = append(f.closers, func() { l.Close(); server.Close() })
	return nil
}

func (f *front) serveRaw(l net.Listener, raw func(net.Conn)) (stop func()) {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	f.served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.met.Add(1)
			mu.Lock()
			open[c] = true
			mu.Unlock()
			f.served.Go(func() { raw(c) })
		}
	})
	return func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			c.Close()
		}
	}
}

// close ends what listens and its connections. Handlers may still be at work.
func (f *front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.closers {
		c()
	}
	f.closers = nil
}

// keys are certificates: one that is right, and ways to be wrong. They are made once.
type keys struct {
	authority                         []byte // PEM, of the one that the daemon trusts
	right, name, expired, early, self tls.Certificate
}

var theKeys = sync.OnceValues(func() (*keys, error) {
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := int64(0)
	issue := func(name string, from, to time.Time, parent *x509.Certificate) (tls.Certificate, error) {
		serial++
		t := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to}
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = []net.IP{ip}
		} else {
			t.DNSNames = []string{name}
		}
		if parent == nil {
			parent, t.IsCA, t.BasicConstraintsValid, t.KeyUsage = t, true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}
		der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, key)
		if err != nil {
			return tls.Certificate{}, err
		}
		leaf, err := x509.ParseCertificate(der)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
	}
	day := 24 * time.Hour
	authority, err := issue("the authority of these trials", now.Add(-365*day), now.Add(365*day), nil)
	if err != nil {
		return nil, err
	}
	k := &keys{authority: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate[0]})}
	const here = "127.0.0.1"
	for _, one := range []struct {
		to        *tls.Certificate
		name      string
		from, to2 time.Time
		parent    *x509.Certificate
	}{
		{&k.right, here, now.Add(-day), now.Add(30 * day), authority.Leaf},
		{&k.name, "track.example.com", now.Add(-day), now.Add(30 * day), authority.Leaf},
		{&k.expired, here, now.Add(-30 * day), now.Add(-day), authority.Leaf},
		{&k.early, here, now.Add(day), now.Add(30 * day), authority.Leaf},
		{&k.self, here, now.Add(-day), now.Add(30 * day), nil},
	} {
		if *one.to, err = issue(one.name, one.from, one.to2, one.parent); err != nil {
			return nil, err
		}
	}
	return k, nil
})
