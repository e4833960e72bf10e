package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair is a certificate that ends at a time, and its key.
func pair(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-90 * 24 * time.Hour), NotAfter: until, DNSNames: []string{"t.example"}}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Where the certificate of HTTPS is looked for, and what is wrong with it.
func TestTLSCertificate(t *testing.T) {
	now := time.Now()
	cert, key := pair(t, now.Add(60*24*time.Hour))
	_, other := pair(t, now.Add(60*24*time.Hour))
	soon, soonKey := pair(t, now.Add(10*24*time.Hour))
	expired, expiredKey := pair(t, now.Add(-24*time.Hour))
	early, earlyKey := pair(t, now.Add(91*24*time.Hour))
	const both = "tls_cert = 'cert.pem'\ntls_key = 'key.pem'"
	for _, test := range []struct {
		name  string
		lines string // of [server]
		env   map[string]string
		file  map[string]string // content by path below the test's folder; 0600
		mode  map[string]fs.FileMode
		at    string // below the test's folder: where both were found; or
		want  string // a part of the error
		warns string // a part of a warning; "" = there is none
	}{
		{name: "none", lines: ""},
		{name: "none, for everybody", lines: "listen = '0.0.0.0:80'", warns: "has no TLS: set tls_cert and tls_key"},
		{name: "beside the configuration", lines: both + "\nlisten = '0.0.0.0:443'", file: map[string]string{"cert.pem": cert, "key.pem": key}, at: "/"},
		{name: "with a chain", lines: both, file: map[string]string{"cert.pem": cert + soon, "key.pem": key}, at: "/"},
		{name: "credentials", lines: both, env: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			file: map[string]string{"cred/cert.pem": cert, "cred/key.pem": key, "cert.pem": soon}, mode: map[string]fs.FileMode{"cred/key.pem": 0o444}, at: "/cred/"},
		{name: "ends soon", lines: both, file: map[string]string{"cert.pem": soon, "key.pem": soonKey}, at: "/", warns: "expires on " + now.Add(10*24*time.Hour).UTC().Format(time.DateOnly)},
		{name: "has ended", lines: both, file: map[string]string{"cert.pem": expired, "key.pem": expiredKey}, at: "/", warns: "has expired on"},
		{name: "has not begun", lines: both, file: map[string]string{"cert.pem": early, "key.pem": earlyKey}, at: "/", warns: "is the clock of this machine right?"},

		{name: "no key", lines: "tls_cert = 'cert.pem'", want: "server.tls_key: required with tls_cert"},
		{name: "no certificate", lines: "tls_key = 'key.pem'", want: "server.tls_cert: required with tls_key"},
		{name: "no files", lines: both, want: "key.pem: no such file"},
		{name: "no credentials", lines: both, env: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"}, file: map[string]string{"cert.pem": cert, "key.pem": key},
			want: "LoadCredential=key.pem:/etc/ampcio/key.pem"},
		{name: "another's key", lines: both, file: map[string]string{"cert.pem": cert, "key.pem": other}, want: "are no pair of a certificate and its private key"},
		{name: "swapped", lines: both, file: map[string]string{"cert.pem": key, "key.pem": cert}, want: "are no pair"},
		{name: "empty", lines: both, file: map[string]string{"cert.pem": "", "key.pem": key}, want: "are no pair"},
		{name: "key for everybody", lines: both, file: map[string]string{"cert.pem": cert, "key.pem": key}, mode: map[string]fs.FileMode{"key.pem": 0o644}, want: "(mode 0644). Do: chmod o= "},
		{name: "folder", lines: both, file: map[string]string{"cert.pem/x": cert, "key.pem": key}, want: "is a folder"},
		{name: "device", lines: "tls_cert = '/dev/zero'\ntls_key = '/dev/zero'", want: "not a plain file"},
		{name: "everybody is a proxy", lines: "trusted_proxies = ['0.0.0.0/0']", warns: "is everybody"},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			for name, text := range test.file {
				file := filepath.Join(folder, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				mode := test.mode[name]
				if mode == 0 {
					mode = 0o600
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, mode); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(folder, "config.toml")
			text := "[server]\n" + test.lines + "\n[project.app]\namplitude_api_keys = ['0123456789abcdef']\nrelay = 'off'\n" +
				"[sync.production]\nregion = 'eu'\nsite_id = '1'\napi_key = 's3cr3t'\nevents.send = false\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			getenv := func(name string) string {
				if v := test.env[name]; v != "" {
					return folder + v
				}
				return ""
			}
			c, err := Load(file, Environment{Getenv: getenv})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "PRIVATE") {
					t.Errorf("want %q in: %v", test.want, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.at != "" && (c.Server.TLSCert != folder+test.at+"cert.pem" || c.Server.TLSKey != folder+test.at+"key.pem") {
				t.Errorf("found at %s and %s", c.Server.TLSCert, c.Server.TLSKey)
			}
			warnings := strings.Join(c.Warnings, "\n")
			if (warnings == "") != (test.warns == "") || !strings.Contains(warnings, test.warns) {
				t.Errorf("want the warning %q, got %q", test.warns, warnings)
			}
			// Who only asks a daemon need not be able to read them.
			if _, err := Load(file, Environment{Getenv: getenv, NoSecrets: true}); err != nil {
				t.Error(err)
			}
		})
	}
}
