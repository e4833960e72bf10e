package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// CertificateSoon is how long before its end a certificate is worth a warning: Let's
// Encrypt's are renewed 30 days before.
const CertificateSoon = 14 * 24 * time.Hour

// certificate finds tls_cert and tls_key, and tries whether they are a pair.
func (c checker) certificate() {
	const cert, key = "server.tls_cert", "server.tls_key"
	s := &c.Server
	switch {
	case s.TLSCert == "" && s.TLSKey == "":
		return
	case s.TLSKey == "":
		c.check(key, "required with tls_cert: the file with the certificate's private key (PEM)")
		return
	case s.TLSCert == "":
		c.check(cert, "required with tls_key: the file with the certificate and those it was issued by (PEM; certbot: fullchain.pem)")
		return
	}
	var certCredential, credential bool
	s.TLSCert, certCredential = c.keyFilePath(s.TLSCert)
	s.TLSKey, credential = c.keyFilePath(s.TLSKey)
	for _, file := range []*string{&s.TLSCert, &s.TLSKey} { // a reload may see the configuration from another folder
		if whole, err := filepath.Abs(*file); err == nil {
			*file = whole
		}
	}
	if c.env.NoSecrets {
		return
	}
	absent := func(path, file string, err error) bool {
		return errors.Is(err, fs.ErrNotExist) && !c.add(path, "%w: the unit needs the line LoadCredential=%s:/etc/ampcio/%s (read at the start only), or write here an absolute path",
			err, filepath.Base(file), filepath.Base(file))
	}
	if _, _, err := readFile(s.TLSCert, maxCertificate, true); err != nil && !(certCredential && absent(cert, s.TLSCert, err)) {
		c.check(cert, "%w", hinted(err))
	}
	_, info, err := readFile(s.TLSKey, maxCertificate, true)
	switch {
	case err != nil && credential && absent(key, s.TLSKey, err):
	case err != nil:
		c.check(key, "%w", hinted(err))
	case !credential && info.Mode().Perm()&0o007 != 0:
		c.check(key, "everybody on this machine can get at %s (mode %04o). Do: chmod o= %s", s.TLSKey, info.Mode().Perm(), s.TLSKey)
	}
	if c.reported[cert] || c.reported[key] {
		return
	}
	pair, err := LoadCertificate(s.TLSCert, s.TLSKey)
	if err != nil {
		c.check(cert, "%w", err)
		return
	}
	switch now, leaf := time.Now(), pair.Leaf; {
	case now.After(leaf.NotAfter):
		c.warn(cert, "the certificate has expired on %s: SDKs refuse it. Renew it", leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		c.warn(cert, "the certificate is not valid before %s: is the clock of this machine right?", leaf.NotBefore.UTC().Format(time.RFC3339))
	case leaf.NotAfter.Sub(now) < CertificateSoon:
		c.warn(cert, "the certificate expires on %s: renew it", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
}

// maxCertificate bounds a file of a certificate or its key, in bytes.
const maxCertificate = 1 << 20

// hinted says whose the files of a certificate must be.
func hinted(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: the user that runs ampcio must be able to read it. /etc/letsencrypt is closed to all but root: let a deploy hook of certbot copy the pair, or use LoadCredential= of the unit", err)
	}
	return err
}

// LoadCertificate reads a pair of PEM files, as they are now. The error never shows what
// is in them.
func LoadCertificate(certFile, keyFile string) (tls.Certificate, error) {
	cert, _, err := readFile(certFile, maxCertificate, true)
	if err != nil {
		return tls.Certificate{}, hinted(err)
	}
	key, _, err := readFile(keyFile, maxCertificate, true)
	if err != nil {
		return tls.Certificate{}, hinted(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("%s and %s are no pair of a certificate and its private key (%w)", certFile, keyFile, err)
	}
	if pair.Leaf == nil { // under GODEBUG=x509keypairleaf=0
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return pair, fmt.Errorf("%s: %w", certFile, err)
		}
	}
	return pair, nil
}

// trustedProxies warns of one that is everybody.
func (c checker) trustedProxies() {
	for i, p := range c.Server.TrustedProxies {
		if p.Bits() == 0 {
			c.warn(item("server.trusted_proxies", i), "%s is everybody: a sender can then give any address as its own", p)
		}
	}
}
