package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/rehearsal"
)

// Each statement of SECURITY.md names what holds it, and that exists: a test, a fuzz function, a trial of faults/, or
// a script.
func TestSecurityNamesItsTests(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, trials := testsAndTrials(t)
	_, holds, found := strings.Cut(string(text), "\n## What holds\n")
	holds, _, ended := strings.Cut(holds, "\n## ")
	if !found || !ended {
		t.Fatal("SECURITY.md has no section What holds, or it does not end")
	}
	names := regexp.MustCompile("`([^`]+)`")
	statements := 0
	for _, item := range strings.Split(holds, "\n- ")[1:] {
		statements++
		_, proof, said := strings.Cut(item, "Held by ")
		if !said {
			t.Errorf("what holds this? %s", item)
			continue
		}
		for _, name := range names.FindAllStringSubmatch(proof, -1) {
			word := name[1]
			trial, isTrial := strings.CutPrefix(word, "faults: ")
			switch _, err := os.Stat(word); {
			case isTrial && trials[trial]:
			case strings.HasPrefix(word, "Test") || strings.HasPrefix(word, "Fuzz"):
				if !tests[word] {
					t.Errorf("there is no %s: it is said to hold: %s", word, item)
				}
			case isTrial || err != nil:
				t.Errorf("there is no %s: it is said to hold: %s", word, item)
			}
		}
		if !names.MatchString(proof) {
			t.Errorf("nothing is named: %s", item)
		}
	}
	if statements < 15 || len(tests) < 500 || len(trials) < 2 {
		t.Errorf("%d statements, %d tests, %d trials", statements, len(tests), len(trials))
	}
}

// testsAndTrials are all of them, by name.
func testsAndTrials(t *testing.T) (tests, trials map[string]bool) {
	t.Helper()
	tests, trials = map[string]bool{}, map[string]bool{}
	test := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	trial := regexp.MustCompile(`\bName: "([^"]+)",`)
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "node_modules" || e.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range test.FindAllSubmatch(text, -1) {
				tests[string(m[1])] = true
			}
		} else if strings.HasPrefix(path, "faults"+string(filepath.Separator)) {
			for _, m := range trial.FindAllSubmatch(text, -1) {
				trials[string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, trials
}

// What a verb is asked is one JSON value and nothing behind it: of "forget ann, and bob" not only ann would be forgotten.
func TestWhatIsAskedIsOneValue(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"sync":"demo"}`: true, "{\"sync\":\"demo\"} \n\t": true, `{}`: true,
		``: false, `{`: false, `[]`: false, `{"sync":"demo","more":1}`: false, `{"sync":"demo"}{"sync":"demo"}`: false,
		`{"sync":"demo"} {}`: false, `{"sync":"demo"}x`: false, `{"sync":"demo"}]`: false, `{"sync":"demo"},`: false, `{"sync":"demo"}null`: false, "{\"sync\":\"demo\"}\x00": false,
	} {
		var asked auditing
		if err := readInput([]byte(text), &asked); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		} else if err != nil && codeOf(err) != exitUsage {
			t.Errorf("%q: code %d", text, codeOf(err))
		}
	}
}

// Neither listener has verbs or profiles, by any method: TestVerbsAreOnTheSocketOnly and TestAdminEndpoints see that the
// socket has.
func TestNoVerbAndNoProfileForTheNetwork(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	paths := []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine", "/debug/pprof/cmdline", "/debug/pprof/profile", "/debug/pprof/symbol", "/debug/pprof/trace"}
	for name := range verbs {
		paths = append(paths, "/do/"+name)
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			if a := ask(t, method, "http://"+r.Admin+path, "{}"); a.status != 404 && a.status != 405 {
				t.Errorf("%s %s at the admin listener: %d", method, path, a.status)
			}
			if a := ask(t, method, "http://"+r.Listen+path, "{}"); a.status != 400 {
				t.Errorf("%s %s at the public listener: %d", method, path, a.status)
			}
		}
	}
	down(t, r)
}

// A process that crashes leaves no core, in which events and keys would be: not even when it was started to do so.
func TestNoCoreIsLeft(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	r := rehearse(t, rehearsal.Settings{})
	command := r.Command
	r.Command = func(args ...string) *exec.Cmd {
		c := command(args...)
		c.Dir, c.Env = r.Dir, append(c.Env, "GOTRACEBACK=crash")
		c.Args = append([]string{"/bin/sh", "-c", `ulimit -c unlimited; exec "$0" "$@"`, c.Path}, args...) // where that may be raised
		c.Path = "/bin/sh"
		return c
	}
	up(t, r)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", r.Daemon.Process.Pid))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +1 +1 `).Match(limits) {
		t.Errorf("%s %v", limits, err)
	}
	if err := r.Daemon.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	daemon := r.Daemon
	<-r.Ended
	r.Daemon = nil
	if err := r.LogFile.Truncate(0); err != nil { // the stacks are meant this time
		t.Fatal(err)
	}
	status := daemon.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGABRT {
		t.Fatalf("it did not crash: %v", daemon.ProcessState)
	}
	cores, err := filepath.Glob(filepath.Join(r.Dir, "core*"))
	if err != nil || status.CoreDump() || len(cores) > 0 {
		t.Errorf("core dumped: %t, %q, %v", status.CoreDump(), cores, err)
	}
	unit, err := os.ReadFile("contrib/systemd/ampcio.service")
	if err != nil || !strings.Contains(string(unit), "\nLimitCORE=1\n") {
		t.Errorf("the unit allows cores: %v", err)
	}
}

// Keys and secrets of senders are found by comparing all, each in constant time: no comparison ends earlier for a
// key that is nearly right.
func TestKeysAreComparedInConstantTime(t *testing.T) {
	seen := 0
	for file, function := range map[string]string{"ingest/handler.go": "project", "ingest/webhook.go": "webhookProject"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, is := d.(*ast.FuncDecl)
			if !is || f.Name.Name != function {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				loop, is := n.(*ast.RangeStmt)
				if !is {
					return true
				}
				compares := false
				ast.Inspect(loop.Body, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.SelectorExpr:
						compares = compares || n.Sel.Name == "ConstantTimeCompare"
					case *ast.BranchStmt, *ast.ReturnStmt:
						t.Errorf("%s: the comparison ends early", file)
					}
					return true
				})
				if compares {
					seen++
				}
				return true
			})
		}
	}
	if seen != 2 {
		t.Errorf("%d of 2 places compare in constant time", seen)
	}
}

// What speaks old TLS, or no TLS, or breaks off, is told no; who speaks TLS 1.2 or 1.3 is served, whatever others do.
func TestTLSIsAttacked(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, "[server]\n", "[server]\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n")
	pair(t, r.Dir, "first.example", time.Now().Add(90*24*time.Hour))
	up(t, r)
	try := func(c *tls.Config) error {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: c}
		conn, err := d.DialContext(within(t, 10*time.Second), "tcp", r.Listen)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	rsaOnly := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_RSA_WITH_RC4_128_SHA}
	for _, test := range []struct {
		name   string
		config *tls.Config
		ok     bool
	}{
		{"TLS 1.0", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10, InsecureSkipVerify: true}, false},
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true}, false},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}, true},
		{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}, true},
		{"ciphers without forward secrecy", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: rsaOnly, InsecureSkipVerify: true}, false},
		{"another protocol", &tls.Config{NextProtos: []string{"imap"}, InsecureSkipVerify: true}, false},
		{"a name that the certificate does not have", &tls.Config{ServerName: "other.example", InsecureSkipVerify: true}, true}, // it is the client's to mind
		{"a client that does not trust it", &tls.Config{ServerName: "first.example"}, false},
	} {
		if err := try(test.config); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	// What is no handshake, or ends in it, ends the connection, and nothing more.
	hello := "\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"
	for _, begin := range []string{"", "\x00", "\x16", hello, hello + strings.Repeat("\x00", 189), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 70_000), "\x80\x2e\x01\x00\x02", "\x15\x03\x01\x00\x02\x02\x28", "\x17\x03\x03\x00\x05hello", strings.Repeat("\x16\x03\x01\x00\x00", 10_000)} {
		c, err := net.DialTimeout("tcp", r.Listen, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, begin) // it may be closed before all is written
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%.20q: %v", begin, err)
		}
		c.Close()
	}
	client, _ := secure(t)
	a, err := client.Post("https://"+r.Listen+"/2/httpapi", "application/json", strings.NewReader(numbered("ann-1", 1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	if a.StatusCode != 200 {
		t.Errorf("answered %d", a.StatusCode)
	}
	down(t, r)
	if log, err := os.ReadFile(r.LogFile.Name()); err != nil || slices.ContainsFunc([]string{"panic", "TLS handshake error"}, func(s string) bool { return strings.Contains(string(log), s) }) {
		t.Errorf("%s %v", log, err)
	}
}
