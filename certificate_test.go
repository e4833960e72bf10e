package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/rehearsal"
)

// pair writes cert.pem and key.pem of a certificate of that name, which ends at a time.
func pair(t testing.TB, dir, name string, until time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-90 * 24 * time.Hour), NotAfter: until,
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return certFile, keyFile
}

// certbot renews without telling: the new files are taken within a minute, and a pair
// that is none leaves the old one in use, which is said once.
func TestCertificateIsRenewed(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	var said bytes.Buffer
	certFile, keyFile := pair(t, dir, "first.example", now.Add(20*24*time.Hour))
	c, err := openCertificate(certFile, keyFile, func() time.Time { return now }, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	inUse := func() string {
		t.Helper()
		p, err := c.tls().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return p.Leaf.Subject.CommonName
	}
	later := func(d time.Duration) { now = now.Add(d) }
	if inUse() != "first.example" {
		t.Fatal(inUse())
	}
	later(5 * time.Second)
	pair(t, dir, "second.example", now.Add(90*24*time.Hour))
	later(54 * time.Second)
	if inUse() != "first.example" {
		t.Error("the files were looked at again within a minute")
	}
	later(time.Second)
	if inUse() != "second.example" {
		t.Errorf("%s is in use a minute after the renewal", inUse())
	}
	if n := strings.Count(said.String(), "another certificate is in use"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &said)
	}

	// The certificate is renewed and the key is not yet; and so for some minutes.
	old, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pair(t, dir, "third.example", now.Add(80*24*time.Hour))
	whole, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, keyFile, string(old))
	for range 3 {
		later(time.Minute)
		if inUse() != "second.example" {
			t.Fatalf("%s is in use without its key", inUse())
		}
	}
	if n := strings.Count(said.String(), "the certificate on disk cannot be used"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &said)
	}
	shown := c.show(now)
	if shown.Problem == "" || shown.Names[0] != "second.example" || shown.DaysLeft != 89 {
		t.Errorf("shown: %+v", shown)
	}
	write(t, keyFile, string(whole))
	later(time.Minute)
	if shown := c.show(now); inUse() != "third.example" || shown.Problem != "" {
		t.Errorf("%s is in use, %+v", inUse(), shown)
	}

	// One that has expired is not taken in place of one that has not; a reload does not wait.
	pair(t, dir, "expired.example", now.Add(-time.Hour))
	c.follow(certFile, keyFile)
	if inUse() != "third.example" || c.show(now).Problem == "" {
		t.Errorf("%s is in use", inUse())
	}
	pair(t, dir, "fourth.example", now.Add(24*time.Hour))
	c.follow(certFile, keyFile)
	if inUse() != "fourth.example" {
		t.Errorf("%s is in use after a reload", inUse())
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	later(-24 * time.Hour) // the clock is set back
	if inUse() != "fourth.example" || c.show(now).Problem == "" {
		t.Errorf("%s is in use, %+v", inUse(), c.show(now))
	}
}

// secure is a client that trusts anybody and tells the certificate that it was shown.
func secure(t testing.TB) (client *http.Client, shown func() string) {
	var name string
	transport := &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			name = s.PeerCertificates[0].Subject.CommonName
			return nil
		}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}, func() string { return name }
}

// HTTPS, also on a socket that systemd passes; another certificate by a reload, none that
// is broken, and queue-stats tells when it ends.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	for name, passed := range map[string]bool{"own listener": false, "socket of systemd": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			if passed {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				socket, err := l.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				r.Listen = l.Addr().String()
				r.Command = func(args ...string) *exec.Cmd {
					c := ampcio(args...)
					// LISTEN_PID must be the daemon's own, which only a shell that becomes the daemon knows beforehand.
					c.Args = append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, c.Path}, args...)
					c.Path, c.ExtraFiles = "/bin/sh", []*os.File{socket}
					c.Env = append(c.Env, "LISTEN_FDS=1")
					return c
				}
			}
			edit(t, r, "[server]\n", "[server]\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n")
			pair(t, r.Dir, "first.example", time.Now().Add(10*24*time.Hour+time.Hour))
			up(t, r)
			client, shown := secure(t)
			post := func(body string) (status int, proto string) {
				t.Helper()
				a, err := client.Post("https://"+r.Listen+"/2/httpapi", "application/json", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				defer a.Body.Close()
				if _, err := io.Copy(io.Discard, a.Body); err != nil {
					t.Fatal(err)
				}
				return a.StatusCode, a.Proto
			}
			if status, proto := post(numbered("ann-1", 1, 3)); status != 200 || proto != "HTTP/2.0" || shown() != "first.example" {
				t.Errorf("%s %d, certificate of %s", proto, status, shown())
			}
			snap := stats(t, r)
			if c := snap.Door.Certificate; c == nil || c.DaysLeft != 10 || snap.Door.URL != "https://"+r.Listen+"/2/httpapi" {
				t.Errorf("%+v %+v", snap.Door, c)
			}
			contains(t, run(t, "queue-stats", "--config", r.ConfigPath).stdout, "expires on", "in 10 days: renew it")

			got := run(t, "send-test", "--config", r.ConfigPath, "--yes")
			contains(t, got.stdout, "certificate for first.example, 127.0.0.1", "refuse: x509:", "200 by HTTP/2.0", "ok: ")
			if passed != strings.Contains(got.stdout, "passed by systemd") || got.code != 0 {
				t.Errorf("send-test: exit %d\n%s%s", got.code, got.stdout, got.stderr)
			}

			contains(t, did(t, r, "reload", "--dry-run"), "nothing has changed")
			pair(t, r.Dir, "second.example", time.Now().Add(60*24*time.Hour))
			contains(t, did(t, r, "reload", "--dry-run"), r.ConfigPath+" would be put in force\n  another certificate, of the files that server.tls_cert and tls_key name\n")
			contains(t, did(t, r, "reload"), r.ConfigPath+" is in force\n  another certificate, ")
			if status, _ := post(numbered("ann-1", 4, 4)); status != 200 || shown() != "second.example" {
				t.Errorf("%d, certificate of %s", status, shown())
			}
			write(t, filepath.Join(r.Dir, "key.pem"), "nonsense")
			got = run(t, "reload", "--config", r.ConfigPath)
			contains(t, got.stderr, r.ConfigPath+":2: server.tls_cert: ", "no pair of a certificate and its private key")
			if status, _ := post(numbered("ann-1", 5, 5)); got.code != exitConfig || status != 200 || shown() != "second.example" {
				t.Errorf("exit %d; %d, certificate of %s", got.code, status, shown())
			}
			down(t, r)
			got = run(t, "serve", "--config", r.ConfigPath)
			contains(t, got.stderr, r.ConfigPath+":2: server.tls_cert: ", "no pair")
			if got.code != exitConfig {
				t.Errorf("exit %d", got.code)
			}
		})
	}
}

// Behind a proxy an address is the visitor's; a reload says which proxies are believed.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	seen := func() string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.Listen+"/2/httpapi", strings.NewReader(`{"api_key":"nobody's","events":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", "198.51.100.1, 203.0.113.9:1234")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return stats(t, r).Door.Refused[0].LastAddress
	}
	if got := seen(); got != "203.0.113.9" {
		t.Errorf("from %s", got)
	}
	edit(t, r, "[server]\n", "[server]\ntrusted_proxies = []\n")
	reloaded(t, r)
	if got := seen(); got != "127.0.0.1" {
		t.Errorf("without trusted proxies from %s", got)
	}
	if a := ask(t, "GET", "http://"+r.Listen+"/healthz", ""); a.status != 200 || a.body != "ok\n" {
		t.Errorf("/healthz: %d %s", a.status, a.body)
	}
	if a := ask(t, "GET", "http://"+r.Listen+"/readyz", ""); a.status == 200 {
		t.Errorf("/readyz is for the inside: %d %s", a.status, a.body)
	}
}

func TestAFullDiskSaysWhatToDo(t *testing.T) {
	err := roomMaker("/var/lib/ampcio", fmt.Errorf("commit to x: %w", syscall.ENOSPC))
	contains(t, err.Error(), "no space left", "df -h /var/lib/ampcio", "What was accepted is safe")
	if other := roomMaker("/var/lib/ampcio", syscall.EIO); other != error(syscall.EIO) {
		t.Error(other)
	}
}
