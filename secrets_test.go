package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// Nothing that ampcio says, to whomever, holds a key or what a user did: not at the
// most talkative level, and not when everything goes wrong.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	const (
		cioKey   = rehearsal.APIKey           // of Customer.io
		otherKey = "wrong-key-91be02d4"       // one that was pasted wrongly
		ampKey   = "amplitude-key-77e1"       // the project's
		badKey   = "stranger-key-0a4c"        // of an SDK that has another
		person   = "person-c4a9@mail.example" // an id, an email
		secret   = "marker-2be8-property"     // what users do and are
		webhookS = "T0webhook-5d11-secret"    // in the address that alerts are posted to
		amplS    = "amplitude-hook-9c03"      // by which Amplitude's webhook is known
		badS     = "amplitude-hook-wrong-66"  // of one that has another
	)
	planted := []string{cioKey, otherKey, ampKey, badKey, person, secret, webhookS, amplS, badS}
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{}})
	edit(t, r, `retry_max = "2s"`, "retry_max = \"100ms\"\nretry_initial = \"50ms\"")
	edit(t, r, "[server]", "[log]\nlevel = \"debug\"\n\n[server]")
	edit(t, r, `["0123456789abcdef0123456789abcdef"]`, fmt.Sprintf("[%q]", ampKey))
	hook := newWebhook(t)
	edit(t, r, "[log]", fmt.Sprintf("[alerts]\nurl = %q\nafter = \"0s\"\nover_after = \"0s\"\n\n[log]", hook.URL+"/hook/"+webhookS+"?token="+webhookS))
	edit(t, r, "[project.app]\n", "[project.app]\nwebhook_secret_file = \"hook_secret\"\n")
	write(t, filepath.Join(r.Dir, "hook_secret"), amplS+"\n")
	keyFile := filepath.Join(r.Dir, "customerio_api_key")
	events := func(key string) string {
		return fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Visit","user_id":%q,"device_id":"device-%[2]s","insert_id":"%[3]s-1","ip":"203.0.113.77",`+
			`"event_properties":{"seq":1,"total":%[3]q},"user_properties":{"email":%[2]q,"plan":%[3]q,"role":%[3]q}}]}`, key, person, secret)
	}
	var heard bytes.Buffer // all that was said
	looks := 0
	look := func() {
		for _, args := range [][]string{{"queue-stats"}, {"queue-stats", "--json"}, {"check-config"}, {"check-config", "--online"}} {
			got := run(t, append(args, "--config", r.ConfigPath)...)
			heard.WriteString(got.stdout + got.stderr)
		}
		if looks++; looks%5 == 1 { // each is a process, and they are slow to start
			for _, args := range [][]string{{"alerts", "test"}, {"alerts", "test", "--json"}, {"alerts", "list"}, {"alerts", "list", "--json"}, {"audit"}, {"audit", "--json"},
				{"dead-letters", "list"}, {"dead-letters", "list", "--json"}} {
				got := run(t, append(args, "--config", r.ConfigPath)...)
				heard.WriteString(got.stdout + got.stderr)
			}
		}
		if r.Daemon == nil {
			return
		}
		heard.WriteString(ask(t, "GET", "http://"+r.Admin+"/stats", "").body)
		heard.WriteString(ask(t, "GET", "http://"+r.Admin+"/readyz", "").body)
		for _, page := range []string{"/", "/history", "/metrics"} {
			a := ask(t, "GET", "http://"+r.Admin+page, "")
			if a.status != 200 {
				t.Errorf("%s: %d", page, a.status)
			}
			heard.WriteString(a.body)
		}
		if runtime.GOOS == "linux" {
			for _, file := range []string{"cmdline", "environ"} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.Daemon.Process.Pid, file))
				if err != nil {
					t.Error(err)
				}
				heard.Write(b)
			}
		}
	}
	status := func(want string) {
		t.Helper()
		eventually(t, 15*time.Second, "the sync is "+want, func() bool { return only(t, stats(t, r)).Status == want })
	}

	// The key is wrong: 401. At the door, all that can be wrong.
	write(t, keyFile, otherKey+"\n")
	up(t, r)
	accepted(t, r, events(ampKey))
	for _, wrong := range []string{
		events(badKey), events(ampKey)[:150], strings.Replace(events(ampKey), `"seq":1`, `"seq":`+secret, 1),
		strings.Replace(events(ampKey), `"event_type":"Visit"`, fmt.Sprintf(`"event_type":{"a":%q}`, secret), 1),
		strings.Replace(events(ampKey), `"user_properties":{`, fmt.Sprintf(`"user_properties":{%q:1,%[1]q:2,`, secret), 1),
		fmt.Sprintf(`{"api_key":%q,"events":%q}`, ampKey, secret),
	} {
		if a := send(t, r, wrong); a.status != 400 {
			t.Errorf("answered %d %s", a.status, a.body)
		}
	}
	ask(t, "GET", "http://"+r.Listen+"/"+secret+"?api_key="+ampKey, "")
	for _, s := range []string{amplS, badS} {
		webhookOf(t, r, s, fmt.Sprintf(`{"event_type":{"a":%q},"user_id":%q}`, secret, person))
	}
	status(admin.StatusBlocked)
	look()
	down(t, r)

	// The region is wrong.
	write(t, keyFile, cioKey+"\n")
	edit(t, r, `region       = "eu"`, `region = "us"`)
	up(t, r)
	status(admin.StatusBlocked)
	look()
	down(t, r)
	edit(t, r, `region = "us"`, `region       = "eu"`)

	// Customer.io fails in each of its ways, and in the end refuses the event.
	for _, faults := range []string{"500=1", "500=1,on=data", "429=1,retry_after=never,on=data", "cut_after=1,on=data", "garbage=1,on=data",
		"truncate=1,on=data", "redirect=1", "redirect=1,on=data", "401=1,on=data", "403=1,on=data", "refuse_event=Visit"} {
		f, err := sandbox.ParseFaults(faults)
		if err != nil {
			t.Fatal(err)
		}
		r.Sandbox.SetFaults(f)
		hook.answers(map[bool]int{true: 404, false: 200}[strings.HasPrefix(faults, "500")]) // it repeats the address
		up(t, r)
		before := r.Sandbox.Report().Requests
		eventually(t, 15*time.Second, "requests meet "+faults, func() bool {
			y := only(t, stats(t, r))
			return r.Sandbox.Report().Requests > before+2 || y.Books.Pending == 0 || y.Status == admin.StatusBlocked
		})
		look()
		down(t, r)
	}
	if y := only(t, statsOfFiles(t, r)); y.Totals.Dead != 1 {
		t.Errorf("%+v", y)
	}
	look()

	// A configuration that is broken near its secrets.
	good, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{`api_key = ` + cioKey, `api_key = "` + cioKey, `api_key_ = "` + cioKey + `"`, `api_key = ["` + cioKey + `"]`, `api_key_file = "` + cioKey + `" x`,
		`api_key = "` + cioKey + `\` + `"`} {
		write(t, r.ConfigPath, strings.Replace(string(good), `api_key_file = "customerio_api_key"`, broken, 1))
		for _, verb := range []string{"serve", "check-config"} {
			got := run(t, verb, "--config", r.ConfigPath)
			if got.code != exitConfig {
				t.Errorf("%s: exit %d", broken, got.code)
			}
			heard.WriteString(got.stdout + got.stderr)
		}
	}

	for _, broken := range []string{`url = ` + webhookS, `url = "http://x/` + webhookS, `url = ["` + webhookS + `"]`, `url = "ftp://x/` + webhookS + `"`, `url = "x/` + webhookS + `"`,
		`url_file = "https://x/` + webhookS + `"`, `url = { a = "` + webhookS + `" }`, `urls = "` + webhookS + `"`, `url = "http://x/%zz` + webhookS + `"`} {
		write(t, r.ConfigPath, regexp.MustCompile(`(?m)^url = .*$`).ReplaceAllLiteralString(string(good), broken))
		got := run(t, "alerts", "test", "--config", r.ConfigPath)
		if got.code != exitConfig {
			t.Errorf("%s: exit %d", broken, got.code)
		}
		heard.WriteString(got.stdout + got.stderr)
	}
	for _, told := range hook.bodies { // what is posted, too
		heard.WriteString(told)
	}
	if len(hook.bodies) < 5 {
		t.Errorf("%d alerts were posted", len(hook.bodies))
	}

	log, err := os.ReadFile(r.LogFile.Name())
	if err != nil {
		t.Fatal(err)
	}
	if len(log) == 0 || heard.Len() < 1000 {
		t.Errorf("nothing was said: %d bytes of log, %d of the rest", len(log), heard.Len())
	}
	heard.Write(log)
	for _, p := range planted {
		for rest := heard.Bytes(); ; {
			i := bytes.Index(rest, []byte(p))
			if i < 0 {
				break
			}
			t.Errorf("%s was said: …%q…", p, rest[max(0, i-150):min(len(rest), i+80)])
			rest = rest[i+len(p):]
		}
	}

	// Keys are not stored either; and what is stored is for ampcio's eyes only.
	err = filepath.WalkDir(filepath.Join(r.Dir, "storage"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, p := range []string{cioKey, otherKey, ampKey, badKey, webhookS, amplS, badS} {
			if bytes.Contains(b, []byte(p)) {
				t.Errorf("%s holds %s", path, p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// webhookOf posts as Amplitude's webhook does, something that is refused.
func webhookOf(t *testing.T, r *rehearsal.Rehearsal, secret, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.Listen+"/webhook/amplitude", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 4 {
		t.Errorf("answered %d", resp.StatusCode)
	}
}
