package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// house is a daemon with a Customer.io of its own. The listening socket is held here, as systemd holds it: the daemon
// inherits it, and connections wait while no daemon runs.
type house struct {
	binary, folder string
	socket         *os.File
	url            string // for the SDKs
	sandbox, admin string // host:port
	daemon         *exec.Cmd
	sandboxProcess *exec.Cmd
}

func openHouse(binary, folder string) (*house, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	h := &house{binary: binary, folder: folder, socket: socket, url: "http://" + listener.Addr().String() + "/2/httpapi"}
	if h.sandbox, err = freeAddress(); err != nil {
		return nil, err
	}
	if h.admin, err = freeAddress(); err != nil {
		return nil, err
	}
	if err := writeCertificate(folder); err != nil {
		return nil, err
	}
	const tls = "tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n"
	for name, differs := range map[string]struct{ server, minFree string }{
		"config.toml": {"", "1MiB"}, "full.toml": {"", "1000000TiB"}, "tls.toml": {tls, "1MiB"},
	} {
		text := fmt.Sprintf(configuration, differs.server, h.admin, filepath.Join(folder, "admin.sock"), filepath.Join(folder, "state"),
			differs.minFree, apiKey, h.sandbox)
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	h.sandboxProcess, err = h.run("sandbox", "sandbox", "--listen", h.sandbox, "--order-attribute", "n", "--check-overlap")
	if err != nil {
		return nil, err
	}
	return h, waitFor("the sandbox", func() error { return getJSON("http://"+h.sandbox+"/_sandbox/report", nil) })
}

// writeCertificate writes a pair for 127.0.0.1 that nobody has signed.
func writeCertificate(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(30 * 24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(folder, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// run starts the binary; what it says goes to a file of that name. It dies with this process.
func (h *house) run(name string, arguments ...string) (*exec.Cmd, error) {
	said, err := os.OpenFile(filepath.Join(h.folder, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer said.Close()
	// LISTEN_PID must be the daemon's own, which only a shell that becomes the daemon knows beforehand.
	process := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, h.binary}, arguments...)...)
	if name == "daemon" {
		process.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=ampcio")
		process.ExtraFiles = []*os.File{h.socket} // descriptor 3, where systemd's begin
	}
	process.Stdout, process.Stderr = said, said
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return process, process.Start()
}

func (h *house) start(config string) (err error) {
	if h.daemon, err = h.run("daemon", "serve", "--config", filepath.Join(h.folder, config)); err != nil {
		return err
	}
	return waitFor("the daemon", func() error {
		answer, err := http.Get("http://" + h.admin + "/healthz")
		if err != nil {
			return err
		}
		return answer.Body.Close()
	})
}

// stop asks the daemon to end, as systemctl stop does.
func (h *house) stop() error {
	if err := h.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	if err := h.daemon.Wait(); err != nil {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	h.daemon = nil
	return nil
}

func (h *house) close() {
	for _, process := range []*exec.Cmd{h.daemon, h.sandboxProcess} {
		if process != nil && process.ProcessState == nil {
			_ = process.Process.Kill()
			_ = process.Wait()
		}
	}
}

// stats are the members of queue-stats --json that are checked.
type stats struct {
	Syncs []struct {
		Status string `json:"status"`
		Totals struct {
			Delivered, Filtered, Dead, Lost int
		} `json:"totals"`
		Books struct {
			Taken, Pending int
			Balanced       bool
		} `json:"books"`
	} `json:"syncs"`
	Door struct {
		Refused []struct {
			Reason string
			Count  int
		} `json:"refused"`
	} `json:"door"`
}

// refused is how many requests were refused for a reason since the daemon was started.
func (h *house) refused(reason string) (int, error) {
	s, err := h.stats()
	for _, r := range s.Door.Refused {
		if r.Reason == reason {
			return r.Count, err
		}
	}
	return 0, err
}

func (h *house) stats() (s stats, err error) {
	output, err := exec.Command(h.binary, "queue-stats", "--json", "--config", filepath.Join(h.folder, "config.toml")).Output()
	if err != nil {
		return s, fmt.Errorf("queue-stats: %w", err)
	}
	if err := json.Unmarshal(output, &s); err != nil {
		return s, fmt.Errorf("queue-stats: %w", err)
	}
	if len(s.Syncs) != 1 {
		return s, fmt.Errorf("queue-stats tells of %d syncs", len(s.Syncs))
	}
	return s, nil
}

// post sends one event as no SDK does, and returns the status.
func (h *house) post() (int, error) {
	body := fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Probe","user_id":"probe","device_id":"probe-device"}]}`, apiKey)
	answer, err := http.Post(h.url, "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

func getJSON(url string, into any) error {
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// waitFor tries every 50 ms for at most 30 s.
func waitFor(what string, try func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited 30 s for %s", what), err)
		}
	}
}
