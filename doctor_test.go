package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/ingest"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// said are a doctor's findings, one a line: verdict, check, what is said, what to do.
func (d *doctor) said() string {
	var lines []string
	for _, f := range d.findings {
		lines = append(lines, fmt.Sprintf("%s %s: %s | %s", f.Verdict, f.Check, f.Says, f.ToDo))
	}
	return strings.Join(lines, "\n")
}

// of says whether there is a finding that begins so.
func (d *doctor) of(begins string) bool {
	return slices.ContainsFunc(strings.Split(d.said(), "\n"), func(line string) bool { return strings.HasPrefix(line, begins) })
}

// units answers as systemctl show does.
func units(service, socket string) func(context.Context, ...string) (string, error) {
	return func(_ context.Context, args ...string) (string, error) {
		if slices.Contains(args, "ampcio.socket") {
			return "LoadState=loaded\nActiveState=" + socket + "\n", nil
		}
		return "LoadState=loaded\n" + service, nil
	}
}

// Each way in which an installation can be broken is named, in one line, with what to do.
func TestDoctorNamesWhatIsBroken(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	const good = "ActiveState=active\nSubState=running\nUnitFileState=enabled\nMainPID=1\nNRestarts=0\nNeedDaemonReload=no\n"
	door := func(t *testing.T, r *rehearsal.Rehearsal, s ingest.DoorStats) {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(r.Dir, "storage", doorBook), string(b))
	}
	lately := func() time.Time { return time.Now().Add(-20*time.Minute - 10*time.Second) }
	whole := rehearse(t, rehearsal.Settings{})
	up(t, whole)
	down(t, whole)
	for _, test := range []struct {
		name   string
		breaks func(*testing.T, *rehearsal.Rehearsal, *doctor)
		wants  []string
	}{
		{"nothing but that it is stopped", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.systemctl = units(strings.Replace(good, "=active", "=inactive", 1), "active")
		}, []string{
			"ok configuration: ", "ok keys: every key is there", "warning daemon: it is stopped, with 0 records pending | systemctl start ampcio; why it stopped: journalctl",
			"ok storage folder: ", "ok disk speed: a sync takes 2 ms, p99 3 ms: about 250 commits/s", "ok disk space: ", "ok listener: systemd holds ", "ok last refused: no request was refused", "skipped credentials: not asked (--offline)",
		}},
		{"no configuration", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.configFile = filepath.Join(r.Dir, "none.toml")
		},
			[]string{"wrong configuration: there is no ", "skipped keys: "}},
		{"a mistake in the configuration", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			edit(t, r, `region       = "eu"`, `region = "moon"`)
		},
			[]string{`wrong configuration: CONFIG:15: sync.demo.region: must be "us" or "eu", not "moon" | mend it`, "skipped keys: "}},
		{"rules that mean nothing", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			edit(t, r, `identifier   = "user_id"`, `identifier = "nobody."`)
		},
			[]string{"wrong configuration: "}},
		{"a configuration that everybody can change", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) { chmod(t, r.ConfigPath, 0o666) },
			[]string{"wrong config file: everybody on this machine can change CONFIG (mode 0666) | chmod 0640 CONFIG"}},
		{"a clock that was set back", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.now = func() time.Time { return time.Now().Add(-time.Hour) }
		}, []string{"warning config file: CONFIG was changed 59m in the future", "warning clock: a file in "}},
		{"a configuration that only others may read", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			if os.Geteuid() == 0 {
				t.Skip("root may read everything")
			}
			chmod(t, r.ConfigPath, 0)
		}, []string{"skipped configuration: you may not read CONFIG | run this as root", "skipped keys: "}},
		{"no key file", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			remove(t, filepath.Join(r.Dir, "customerio_api_key"))
		},
			[]string{"wrong keys: CONFIG:17: sync.demo.api_key_file: "}},
		{"a key file that everybody can read", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			chmod(t, filepath.Join(r.Dir, "customerio_api_key"), 0o644)
		},
			[]string{"wrong keys: CONFIG:17: sync.demo.api_key_file: everybody on this machine can get at "}},
		{"a secret in a configuration that everybody can read", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			edit(t, r, `api_key_file = "customerio_api_key"`, `api_key = "key"`)
			chmod(t, r.ConfigPath, 0o644)
		},
			[]string{"warning keys: CONFIG:17: sync.demo.api_key: a secret in a file that everybody on this machine can read"}},
		{"no storage folder", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			if err := os.Rename(filepath.Join(r.Dir, "storage"), filepath.Join(r.Dir, "moved")); err != nil {
				t.Fatal(err)
			}
		}, []string{"warning daemon: ampcio is not running and has never run", "warning storage folder: ", "ok disk space: "}},
		{"a storage folder that everybody can look into", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			chmod(t, filepath.Join(r.Dir, "storage"), 0o755)
		},
			[]string{"warning storage folder: everybody on this machine can look into "}},
		{"a file of somebody else's in it", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give files away")
			}
			if err := os.Chown(filepath.Join(r.Dir, "storage", "users.db"), 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}, []string{"wrong storage folder: STORAGE/users.db belongs to somebody else than the folder, which is root's: ampcio cannot use it | systemctl stop ampcio; chown -R root: STORAGE; systemctl start ampcio"}},
		{"the folder of another user than the service's", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.systemctl = units(good+"User=somebody\n", "active")
		}, []string{"wrong storage folder: STORAGE belongs to "}},
		{"a slow disk", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.tryDisk = func(context.Context, string) ([]time.Duration, error) {
				return append(make([]time.Duration, 0, 60), 30*time.Millisecond, 40*time.Millisecond, 70*time.Millisecond, 80*time.Millisecond), nil
			}
		}, []string{"warning disk speed: a sync takes 70 ms, p99 80 ms: about 7 commits/s"}},
		{"a disk that hangs", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.tryDisk = func(context.Context, string) ([]time.Duration, error) { return []time.Duration{2 * time.Second}, nil }
		}, []string{"wrong disk speed: a sync takes 2000 ms"}},
		{"a disk that keeps nothing", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.tryDisk = func(context.Context, string) ([]time.Duration, error) {
				return []time.Duration{3 * time.Microsecond}, nil
			}
		}, []string{"warning disk speed: "}},
		{"a disk that has become read-only", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.tryDisk = func(context.Context, string) ([]time.Duration, error) { return nil, syscall.EROFS }
		}, []string{"wrong disk speed: STORAGE cannot be written to: the disk is read-only | "}},
		{"less free than is wanted", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			edit(t, r, `min_free = "16MiB"`, `min_free = "900000GiB"`)
		},
			[]string{"wrong disk space: "}},
		{"a unit that fails", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.systemctl = units("ActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled\n", "active")
		}, []string{"wrong service: ampcio.service is activating (auto-restart): it ends as soon as it starts | journalctl -u ampcio -n 30 says why"}},
		{"a unit that is not enabled and was edited", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.systemctl = units(strings.NewReplacer("enabled", "disabled", "Reload=no", "Reload=yes").Replace(good), "inactive")
		}, []string{"wrong service: ampcio.service is active (running), but nothing answers at ", "warning service: ampcio.service is disabled: it is not started when", "warning service: the unit file was changed", "warning service: ampcio.socket is inactive: "}},
		{"a unit that is masked", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.systemctl = func(context.Context, ...string) (string, error) { return "LoadState=masked\n", nil }
		}, []string{"wrong service: ampcio.service is masked"}},
		{"a unit that runs, and another socket", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) { d.systemctl = units(good, "active") },
			[]string{"wrong service: ampcio.service is active (running), but nothing answers at "}},
		{"another program at the address", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			l, err := net.Listen("tcp", r.Listen)
			if err != nil {
				t.Fatal(err)
			}
			other := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.NotFoundHandler()}}
			other.Start()
			t.Cleanup(other.Close)
		}, []string{"wrong listener: ampcio is stopped, and another program answers at "}},
		{"no request has come", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) { door(t, r, ingest.DoorStats{}) },
			[]string{"warning last request: none has come to the last ampcio that ran | try the door: ampcio send-test; "}},
		{"requests, and none with a key", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			door(t, r, ingest.DoorStats{Requests: 3, Refused: []ingest.Refusal{{Reason: "invalid_api_key", Count: 3, Last: lately(), Address: "192.0.2.7"}}})
		}, []string{"warning last request: 3 requests came to the last ampcio that ran, none of them with an API key of a project | compare the API key",
			"warning last refused: invalid_api_key: 20m ago, from 192.0.2.7; 3 requests in all | compare the API key of that sender"}},
		{"old and harmless refusals", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			door(t, r, ingest.DoorStats{Requests: 3, LastSeen: map[string]time.Time{"app": lately()}, Refused: []ingest.Refusal{
				{Reason: "too_large", Count: 3, Last: lately().Add(-30 * time.Hour)}, {Reason: "aborted_body", Count: 1, Last: lately()}}})
		}, []string{"ok last request: 20m ago, of project app; 3 requests", "ok last refused: aborted_body: 20m ago"}},
		{"a proxy that is not trusted", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			door(t, r, ingest.DoorStats{Requests: 1, LastSeen: map[string]time.Time{"app": lately()}, Last: &ingest.Request{At: lately(), Peer: "10.1.2.3", Proxied: true}})
		}, []string{`warning proxy: the last request came through a proxy at 10.1.2.3, which is not trusted: all its senders have its address | if it is yours: server.trusted_proxies = ["10.1.2.3/32"], then: ampcio reload`}},
		{"a proxy that is trusted", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			door(t, r, ingest.DoorStats{Requests: 1, LastSeen: map[string]time.Time{"app": lately()}, Last: &ingest.Request{At: lately(), Peer: "127.0.0.1", Proxied: true, Trusted: true}})
		}, []string{"ok proxy: the last request came through a proxy at 127.0.0.1, which is trusted"}},
		{"a wrong key", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			write(t, filepath.Join(r.Dir, "customerio_api_key"), "another-key\n")
			d.offline = false
		}, []string{"wrong sync demo: Customer.io does not accept the Site ID and API key | check site_id and the Track API key", "ok clock: it agrees with that of the services"}},
		{"the other region", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			edit(t, r, `region       = "eu"`, `region       = "us"`)
			d.offline = false
		}, []string{`wrong sync demo: Customer.io says that this account is in region "eu" | the configuration says region = "us": set region = "eu"`}},
		{"Customer.io fails", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{503: 1}})
			d.offline = false
		}, []string{"warning sync demo: "}},
		{"a clock that is wrong", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			d.now = func() time.Time { return time.Now().Add(3 * time.Minute) }
			d.offline = false
		}, []string{"ok sync demo: Customer.io agrees: region eu", "wrong clock: this machine's is "}},
		{"a clock that jumps", func(t *testing.T, r *rehearsal.Rehearsal, d *doctor) {
			began := time.Now()
			d.now = func() time.Time { return time.Now().Add(10 * time.Since(began)).Round(0) }
			r.Sandbox.SetFaults(sandbox.Faults{Latency: 60 * time.Millisecond})
			d.offline = false
		}, []string{"warning clock: it jumped by "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{})
			copyFolder(t, filepath.Join(whole.Dir, "storage"), filepath.Join(r.Dir, "storage"))
			chmod(t, filepath.Join(r.Dir, "storage"), 0o700)
			d := &doctor{configFile: r.ConfigPath, offline: true, now: time.Now, getenv: func(string) string { return "" },
				tryDisk: func(context.Context, string) ([]time.Duration, error) {
					return []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}, nil
				}}
			test.breaks(t, r, d)
			d.examine(t.Context())
			for _, want := range test.wants {
				want = strings.NewReplacer("CONFIG", r.ConfigPath, "STORAGE", filepath.Join(r.Dir, "storage")).Replace(want)
				if !d.of(want) {
					t.Errorf("nothing begins with %q:\n%s", want, d.said())
				}
			}
			broken := slices.ContainsFunc(test.wants, func(w string) bool { return strings.HasPrefix(w, "wrong ") })
			if report := d.report(); broken != (report.Verdict == wrong) || codeOf(report.code()) != map[bool]int{true: exitConfig, false: exitFailed}[broken] {
				t.Errorf("the whole is %s, exit %v:\n%s", report.Verdict, report.code(), d.said())
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// What the listener shows is judged as an SDK would.
func TestDoctorJudgesTheCertificate(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name  string
		until time.Time
		want  string
	}{
		{"expired", now.Add(-49 * time.Hour), "wrong certificate: it expired 2d1h ago: SDKs are turned away before they can send | renew it"},
		{"not valid yet", now.Add(200 * 24 * time.Hour), "wrong certificate: it is valid only from "},
		{"one of one's own", now.Add(24 * time.Hour), "warning certificate: who issued it is not known to this machine"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file, _ := pair(t, t.TempDir(), "events.example.com", test.until)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(b)
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			_, trusted := leaf.Verify(x509.VerifyOptions{})
			d := &doctor{now: func() time.Time { return now }, snap: &admin.Snapshot{}}
			d.certificate(leaf, trusted)
			if !d.of(test.want) {
				t.Errorf("want %q:\n%s", test.want, d.said())
			}
		})
	}
}

// The command, beside a daemon that runs: what is in force, what came in, what is blocked.
func TestDoctorBesideTheDaemon(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	certFile, keyFile := pair(t, r.Dir, "localhost", time.Now().Add(60*24*time.Hour))
	edit(t, r, "[server]\n", fmt.Sprintf("[server]\ntls_cert = %q\ntls_key = %q\n", certFile, keyFile))
	chmod(t, keyFile, 0o600)
	up(t, r)
	before := stats(t, r)
	type report struct {
		Verdict  string
		Findings []struct {
			Check, Verdict, Says string
			ToDo                 string `json:"to_do"`
			Exact                map[string]any
		}
	}
	look := func(code int) (out report) {
		t.Helper()
		got := verbOf(t, r, "doctor", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.code != code {
			t.Fatalf("%v: %+v", err, got)
		}
		return out
	}
	of := func(r report, check string) string {
		t.Helper()
		for _, f := range r.Findings {
			if f.Check == check {
				return f.Verdict + ": " + f.Says + " | " + f.ToDo
			}
		}
		return "nothing is said of " + check
	}
	now := look(exitFailed)
	contains(t, of(now, "daemon"), "ok: it answers at "+r.Socket, fmt.Sprintf("pid %d", r.Daemon.Process.Pid))
	contains(t, of(now, "binary"), "ok: ")
	contains(t, of(now, "listener"), "ok: https://"+r.Listen+" answers")
	contains(t, of(now, "certificate"), "warning: who issued it is not known")
	contains(t, of(now, "file limit"), "ok: the daemon may open ")
	contains(t, of(now, "in force"), "ok: ")
	for _, f := range now.Findings {
		if f.Check == "disk speed" && (f.Exact["syncs"] == nil || f.Exact["p99_us"] == nil) {
			t.Errorf("the disk was not tried: %+v", f)
		}
	}
	if after := stats(t, r); after.Door.Requests != before.Door.Requests || toJSON(t, after.Door.Refused) != toJSON(t, before.Door.Refused) {
		t.Errorf("the door has seen the doctor: %+v", after.Door)
	}
	entries, err := os.ReadDir(filepath.Join(r.Dir, "storage"))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".doctor") {
			t.Errorf("%v: it has left %s", err, e.Name())
		}
	}

	// A change that is not in force, and a key that Customer.io refuses.
	edit(t, r, `properties = ["seq", "total", "currency"]`, `properties = ["seq"]`)
	contains(t, of(look(exitFailed), "in force"), "warning: the file was changed ", "sync demo changed", "ampcio reload --dry-run; then: ampcio reload")
	edit(t, r, `identifier   = "user_id"`, `identifier   = "user_id`)
	now = look(exitConfig)
	contains(t, of(now, "configuration"), "wrong: ", "broken TOML")
	contains(t, of(now, "in force"), "warning: the daemon runs by what the file was before")
	down(t, r)
}
