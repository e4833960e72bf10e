package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"ampcio/admin"
	"ampcio/config"
)

// certificate is the pair of the public listener, as it was last read. Whoever renews
// it tells nobody (certbot does not), so a handshake looks from time to time whether
// the files are others. A pair that cannot be used leaves the old one in use.
type certificate struct {
	now func() time.Time
	log *slog.Logger

	mu       sync.Mutex // held while files are read: a few hundred microseconds, once a minute at most
	certFile string
	keyFile  string
	pair     *tls.Certificate
	read     [2]stamp // of the files that gave pair
	lookedAt time.Time
	problem  string // of the files as they are now; told once
}

// lookEvery is how often the files of the certificate are looked at, at most.
const lookEvery = time.Minute

// stamp tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
	name     string
}

// openCertificate reads the pair for the first time.
func openCertificate(certFile, keyFile string, now func() time.Time, log *slog.Logger) (*certificate, error) {
	c := &certificate{now: now, log: log, certFile: certFile, keyFile: keyFile}
	c.look()
	if c.pair == nil {
		return nil, exit(exitConfig, fmt.Errorf("server.tls_cert: %s", c.problem))
	}
	return c, nil
}

// tls is the configuration of a listener.
func (c *certificate) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lookIfDue()
			return c.pair, nil
		},
	}
}

// follow reads the pair again now, from these files. Without TLS it does nothing.
func (c *certificate) follow(certFile, keyFile string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certFile, c.keyFile = certFile, keyFile
	c.look()
}

// differs says whether the files are others than those that are in use. Without TLS they
// are not.
func (c *certificate) differs(certFile, keyFile string) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return stampsOf(certFile, keyFile) != c.read
}

// stampsOf are the states of the two files as they are now.
func stampsOf(files ...string) (found [2]stamp) {
	for i, file := range files {
		if info, err := os.Stat(file); err == nil {
			found[i] = stamp{info.ModTime(), info.Size(), file}
		}
	}
	return found
}

func (c *certificate) lookIfDue() {
	if now := c.now(); now.Sub(c.lookedAt) >= lookEvery || now.Before(c.lookedAt) {
		c.look()
	}
}

// look reads the files if they are not those that gave the pair. The caller holds c.mu, or is
// alone.
func (c *certificate) look() {
	c.lookedAt = c.now()
	found := stampsOf(c.certFile, c.keyFile)
	if c.pair != nil && found == c.read {
		c.problem = ""
		return
	}
	pair, err := config.LoadCertificate(c.certFile, c.keyFile)
	if err == nil && c.pair != nil && c.now().After(pair.Leaf.NotAfter) && c.pair.Leaf.NotAfter.After(pair.Leaf.NotAfter) {
		err = fmt.Errorf("%s has expired on %s", c.certFile, pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if err != nil {
		// certbot writes one file after the other: the next look may find a pair.
		if c.pair != nil && c.problem != err.Error() {
			c.log.Error("the certificate on disk cannot be used; the one in use stays, and the files are looked at again every minute",
				"error", err, "in_use_until", c.pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		c.problem = err.Error()
		return
	}
	if c.pair != nil {
		c.log.Info("another certificate is in use", "file", c.certFile, "until", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	c.pair, c.read, c.problem = &pair, found, ""
}

// show tells of the certificate in use; nil without TLS.
func (c *certificate) show(now time.Time) *admin.Certificate {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookIfDue()
	leaf := c.pair.Leaf
	shown := admin.Certificate{
		Names: append([]string{}, leaf.DNSNames...), NotAfter: leaf.NotAfter.UTC(), Problem: c.problem,
		DaysLeft: int(math.Floor(leaf.NotAfter.Sub(now).Hours() / 24)),
	}
	for _, ip := range leaf.IPAddresses {
		shown.Names = append(shown.Names, ip.String())
	}
	return &shown
}
