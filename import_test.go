package main

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"ampcio/archive"
	"ampcio/queue"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
	"ampcio/users"
)

// exportLine is a line of an Export archive, with its columns as Amplitude has them.
func exportLine(user string, seq int, at time.Time, properties string) string {
	return fmt.Sprintf(`{"$insert_id":"%[1]s-%[2]d","$insert_key":null,"$schema":null,"adid":null,"amplitude_id":4152312374,"app":312345,"city":"Berlin",`+
		`"client_event_time":%[3]q,"country":"Germany","data":{"path":"/2/httpapi"},"device_carrier":null,"device_id":"device of %[1]s","event_id":%[2]d,`+
		`"event_properties":{"seq":%[2]d},"event_time":%[3]q,"event_type":"Order Completed","group_properties":{},"groups":{},"ip_address":"203.0.113.9",`+
		`"library":"amplitude-swift/1.17.0","platform":"iOS","server_upload_time":%[3]q,"session_id":-1,"user_id":%[1]q,"user_properties":%[4]s,`+
		`"uuid":"uuid-%[1]s-%[2]d","version_name":"3.14.1"}`, user, seq, at.UTC().Format("2006-01-02 15:04:05.000000"), properties)
}

// exported makes an archive of n events of some users: hours of parts, the lines of each in no order. Each user's events
// have seq 1, 2, … in the order of their times.
func exported(t testing.TB, path string, users, n int, from time.Time, rng *rand.Rand) (perUser map[string]int) {
	t.Helper()
	perUser = map[string]int{}
	var hours []string
	lines := map[string][]string{}
	for i := range n {
		user := fmt.Sprintf("importee-%d", i%users)
		perUser[user]++
		at := from.Add(time.Duration(i) * 700 * time.Millisecond)
		hour := at.UTC().Format("2006-01-02_15")
		if hour[11] == '0' {
			hour = hour[:11] + hour[12:]
		}
		if lines[hour] == nil {
			hours = append(hours, hour)
		}
		lines[hour] = append(lines[hour], exportLine(user, perUser[user], at, fmt.Sprintf(`{"plan":"plan-%d","email":"%s@example.com"}`, i, user)))
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	rng.Shuffle(len(hours), func(i, j int) { hours[i], hours[j] = hours[j], hours[i] })
	for _, hour := range hours {
		all := lines[hour]
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for part := range 3 {
			m, err := z.Create(fmt.Sprintf("312345/312345_%s#%d.json.gz", hour, part))
			if err != nil {
				t.Fatal(err)
			}
			g := gzip.NewWriter(m)
			for i := part; i < len(all); i += 3 {
				fmt.Fprintln(g, all[i])
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return perUser
}

// heard is what a process writes, to be read meanwhile.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(b)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}

// beginImport begins an import, and gives what it says and how it ends.
func beginImport(t testing.TB, args ...string) (c *exec.Cmd, stderr *heard, ended chan ran) {
	t.Helper()
	c = ampcio(append([]string{"import"}, args...)...)
	var stdout bytes.Buffer
	stderr = &heard{}
	c.Stdout, c.Stderr = &stdout, stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan ran, 1)
	late := time.AfterFunc(60*time.Second, func() { c.Process.Kill() })
	go func() {
		c.Wait()
		late.Stop()
		ended <- ran{code: c.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	}()
	return c, stderr, ended
}

// The events of an archive, while the command is killed, the daemon is killed under it, both are stopped, and the
// daemon is not there at all: Customer.io has each event once and in order. And nobody's attributes are those of the past.
func TestImportThroughKills(t *testing.T) {
	t.Parallel()
	const n = importSize
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed}, Sync: "requests_per_second = 1000\n"})
	z := filepath.Join(r.Dir, "export.zip")
	perUser := exported(t, z, 100, n, time.Now().Add(-100*time.Hour), rng)
	up(t, r)
	taken := func() uint64 { return only(t, stats(t, r)).Books.Taken }
	at := func(least uint64) {
		t.Helper()
		eventually(t, 30*time.Second, "more lines are taken", func() bool { return taken() >= least })
	}
	args := []string{"--config", r.ConfigPath, "--yes", "--rate", fmt.Sprint(n / 2), z}

	c, _, ended := beginImport(t, args...)
	at(n / 10)
	c.Process.Kill() // the command
	<-ended
	if got := taken(); got >= n {
		t.Fatalf("%d are taken: this tests less than it says", got)
	}

	_, _, ended = beginImport(t, args...)
	at(3 * n / 10)
	if err := r.Kill(); err != nil { // the daemon; the command waits for it
		t.Fatal(err)
	}
	up(t, r)
	at(45 * n / 100)
	c2, says, ended2 := beginImport(t, args...) // and another one does the same at the same time
	eventually(t, 30*time.Second, "the other one has looked through the archive", func() bool { return strings.Contains(says.String(), "by event:") })
	c2.Process.Signal(os.Interrupt)
	// It has ended by itself if the first one has just taken the last line.
	if got := <-ended2; got.code != 0 && (got.code != exitTemporary || !strings.Contains(got.stderr, "goes on from here")) {
		t.Errorf("interrupted: %d\n%s", got.code, got.stderr)
	}
	if got := <-ended; got.code != 0 {
		t.Errorf("the import whose daemon was killed: %d\n%s", got.code, got.stderr)
	}
	got := run(t, "import", "--config", r.ConfigPath, "--yes", z)
	if contains(t, got.stdout, many(n)+" lines taken: 0 events stored", many(n)+" lines had been taken before"); got.code != 0 {
		t.Errorf("once more: %d\n%s", got.code, got.stderr)
	}
	books := drained(t, r)
	balanced(t, books)
	complete(t, r, perUser)
	if taken := only(t, books).Books.Taken; taken != n {
		t.Errorf("the log has taken %d records for %d events", taken, n)
	}
	if p, _ := r.Sandbox.Person("id", "importee-1"); len(p.Attributes) != 1 { // its id
		t.Errorf("a past event has updated a person: %v", p.Attributes)
	}
	down(t, r)
}

// transactions is how many have been committed to a bbolt file that another process has open: the later number of its
// two meta pages (bbolt's page.go: 16 bytes of page header, and 48 of the meta before it).
func transactions(t testing.TB, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	newest := uint64(0)
	for page := range int64(2) {
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, page*int64(os.Getpagesize())+64); err != nil {
			t.Fatal(err)
		}
		newest = max(newest, binary.NativeEndian.Uint64(b))
	}
	return newest
}

// The same without a daemon: the command stores by itself, is killed in the middle, and goes on; then the daemon delivers.
func TestImportWithoutDaemon(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{Seed: seed}, Sync: "requests_per_second = 1000\n"})
	z := filepath.Join(r.Dir, "export.zip")
	perUser := exported(t, z, 40, 6000, time.Now().Add(-100*time.Hour), rand.New(rand.NewPCG(seed, 0)))
	if got := run(t, "import", "--config", r.ConfigPath, "--yes", z); got.code != exitUnavailable || !strings.Contains(got.stderr, "has never run") {
		t.Errorf("without a storage folder: %d %s", got.code, got.stderr)
	}
	up(t, r)
	down(t, r)
	c, _, ended := beginImport(t, "--config", r.ConfigPath, "--yes", "--rate", "3000", z)
	first := uint64(0)
	eventually(t, 30*time.Second, "the command stores lines", func() bool {
		held, _ := os.ReadFile(filepath.Join(r.Dir, "storage", "lock"))
		if strings.TrimSpace(string(held)) != fmt.Sprint(c.Process.Pid) {
			return false
		}
		files, _ := filepath.Glob(filepath.Join(r.Dir, "storage", "log", "*.db"))
		n := transactions(t, files[len(files)-1])
		if first == 0 {
			first = n
		}
		return n >= first+3
	})
	c.Process.Kill()
	<-ended
	got := run(t, "import", "--config", r.ConfigPath, "--yes", "--json", z)
	var end importEnd
	if err := json.Unmarshal([]byte(got.stdout), &end); err != nil || got.code != 0 {
		t.Fatalf("%d %v\n%s%s", got.code, err, got.stdout, got.stderr)
	}
	if end.Lines != 6000 || end.Stored+end.Before != 6000 || end.Before == 0 || end.Before == 6000 {
		t.Errorf("%+v", end)
	}
	if got := statsOfFiles(t, r); only(t, got).Books.Pending != 6000 {
		t.Errorf("%d are pending", only(t, got).Books.Pending)
	}
	up(t, r)
	balanced(t, drained(t, r))
	complete(t, r, perUser)
	down(t, r)
}

// The first day: what Amplitude knows is seeded, and an anonymous device of then is a known person now.
func TestAnonymousDeviceIsKnownAfterSeeding(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	z := filepath.Join(r.Dir, "export.zip")
	exported(t, z, 3, 30, time.Now().Add(-100*time.Hour), rand.New(rand.NewPCG(1, 1)))
	up(t, r)
	if got := run(t, "import", "--state", "--config", r.ConfigPath, "--yes", z); got.code != 0 {
		t.Fatalf("%d\n%s", got.code, got.stderr)
	}
	if snap := stats(t, r); only(t, snap).Books.Taken != 0 {
		t.Errorf("seeding has stored %d events", only(t, snap).Books.Taken)
	}
	// There is no record yet, and all the same they are known to whoever asks.
	write(t, filepath.Join(r.Dir, "event.json"), `{"event_type":"Order Completed","device_id":"device of importee-1"}`)
	contains(t, run0(t, "explain", "--config", r.ConfigPath, filepath.Join(r.Dir, "event.json")), "user importee-1", "importee-1@example.com")
	write(t, filepath.Join(r.Dir, "bob.json"), `{"event_type":"Seen","user_id":"bob","event_time":"2026-11-20 10:00:00.000","user_properties":{"plan":"pro"}}`)
	run0(t, "import", "--state", "--config", r.ConfigPath, "--yes", filepath.Join(r.Dir, "bob.json"))
	contains(t, run0(t, "user", "show", "bob", "--show-ids", "--config", r.ConfigPath), "plan", "pro")
	// Seeded is durable when the command says so.
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Order Completed","device_id":"device of importee-1","insert_id":"first","event_properties":{"seq":1}}]}`, recordings.Key))
	drained(t, r)
	p, known := r.Sandbox.Person("id", "importee-1")
	if !known || p.EventCount != 1 || string(p.Attributes["email"]) != `"importee-1@example.com"` || string(p.Attributes["plan"]) != `"plan-28"` {
		t.Errorf("known %v: %+v", known, p)
	}
	down(t, r)
}

// What is imported before the first start is delivered by it, and so is what is imported
// before a start that knows of one sync more.
func TestImportBeforeTheFirstStart(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	if err := os.MkdirAll(filepath.Join(r.Dir, "storage"), 0o700); err != nil {
		t.Fatal(err)
	}
	line := filepath.Join(r.Dir, "line.json")
	for n, name := range []string{"demo", "another"} {
		write(t, r.ConfigPath, strings.ReplaceAll(configOf(t, r), "sync.demo", "sync."+name))
		write(t, line, exportLine("ann-1", n+1, time.Now().Add(-time.Hour), "{}"))
		contains(t, run0(t, "import", "--yes", "--config", r.ConfigPath, line), "1 event stored; they are delivered after the next start")
		up(t, r)
		if y := syncNamed(t, drained(t, r), name); y.Totals.Delivered != 1 {
			t.Errorf("%s has delivered %d of 1", name, y.Totals.Delivered)
		}
		down(t, r)
	}
	complete(t, r, map[string]int{"ann-1": 2})
}

func TestImportSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sync: "late_policy = \"dead_letter\"\n"})
	at := time.Now().Add(-100 * time.Hour)
	lines := []string{
		exportLine("someone-1", 1, at, "{}"),
		`{"event_type":"A","user_id":"someone-1","event_time":"yesterday"}`,
		exportLine("someone-1", 2, at.Add(99*time.Hour), "{}"),
		`{"event_type":"A","user_id":null,"device_id":null,"event_time":"2022-02-28 20:07:01.795"}`,
		`{"scope":1,"merged_amplitude_id":2}`,
		`not JSON`,
		strings.Replace(strings.Replace(exportLine("someone-2", 1, at, "{}"), `"$insert_id":"someone-2-1",`, "", 1), `"uuid":"uuid-someone-2-1",`, "", 1),
	}
	file := filepath.Join(r.Dir, "lines.json")
	write(t, file, strings.Join(lines, "\n"))
	storage := filepath.Join(r.Dir, "storage")

	got := run(t, "import", "--config", r.ConfigPath, "--dry-run", file)
	contains(t, got.stdout, "7 lines in 1 part: 3 events of about 2 users", "Order Completed", "4 lines cannot be taken",
		"less than 72 h old, so that they may start campaigns: 1", `2 are older than late_after = "72h" and become dead letters`, "without $insert_id and uuid: 1")
	trial := filepath.Join(r.Dir, "trial.toml")
	write(t, trial, strings.Replace(configOf(t, r), "[sync.demo]\n", "[sync.demo]\ndry_run = true\n", 1))
	contains(t, run(t, "import", "--config", trial, "--dry-run", file).stdout, "sync demo is in a dry run: it sends none of these", "they would go nowhere")
	contains(t, got.stderr, file+":2: event_time must be a time", file+":4: user_id has no value", file+":5: is neither an event", file+":6: ")
	if got.code != exitData {
		t.Errorf("a dry run of bad lines: %d", got.code)
	}
	if _, err := os.Stat(storage); err == nil {
		t.Error("a dry run has made a storage folder")
	}

	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no archive", nil, exitUsage, "wants archives"},
		{"no file", []string{"--yes", "none.zip"}, exitUsage, "no such file"},
		{"a project that is none", []string{"--yes", "--project", "web", file}, exitUsage, "the projects are app"},
		{"a rate that is none", []string{"--yes", "--rate", "fast", file}, exitUsage, "lines a second"},
		{"stdin and a file", []string{"--yes", "-", file}, exitUsage, "one command each"},
		{"nobody to ask", []string{file}, exitUsage, "--yes"},
		{"strict", []string{"--yes", "--strict", file}, exitData, "nothing was taken"},
		{"no event at all", []string{"--yes", r.ConfigPath}, exitData, "no event in it"},
	}
	up(t, r)
	for _, test := range tests {
		got := run(t, append([]string{"import", "--config", r.ConfigPath}, test.args...)...)
		if got.code != test.code || !strings.Contains(got.stderr, test.says) {
			t.Errorf("%s: %d, want %d with %q\n%s", test.name, got.code, test.code, test.says, got.stderr)
		}
	}
	if taken := only(t, stats(t, r)).Books.Taken; taken != 0 {
		t.Errorf("%d events are taken", taken)
	}

	// What is right is taken, from stdin too, and once.
	for range 2 {
		c := ampcio("import", "--config", r.ConfigPath, "--yes", "-")
		c.Stdin = strings.NewReader(strings.Join(lines, "\n"))
		out, err := c.CombinedOutput()
		if contains(t, string(out), "stdin:2: event_time", "7 lines taken", "4 lines cannot be taken"); c.ProcessState.ExitCode() != exitData {
			t.Errorf("%v\n%s", err, out)
		}
	}
	snap := drained(t, r)
	if y := only(t, snap); y.Books.Taken != 3 || y.Totals.Dead != 2 {
		t.Errorf("taken %d, dead %d", y.Books.Taken, y.Totals.Dead)
	}
	for _, private := range []string{"someone-1", "someone-2", "203.0.113.9"} {
		log, _ := os.ReadFile(r.LogFile.Name())
		if bytes.Contains(log, []byte(private)) {
			t.Errorf("%s is in the log", private)
		}
	}
	down(t, r)
}

// Amplitude's webhook as the only source: a project without API keys.
func TestWebhookIsDelivered(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	const secret = "the-secret-of-the-webhook"
	edit(t, r, fmt.Sprintf("amplitude_api_keys = [%q]", recordings.Key), `webhook_secret_file = "webhook"`)
	if got := run(t, "check-config", "--config", r.ConfigPath); got.code != exitConfig || !strings.Contains(got.stderr, "webhook_secret_file") {
		t.Errorf("without the file: %d %s", got.code, got.stderr)
	}
	write(t, filepath.Join(r.Dir, "webhook"), secret+"\n")
	up(t, r)
	now := time.Now()
	post := func(body string) {
		t.Helper()
		header := [][2]string{{"Authorization", "Bearer " + secret}, {"Content-Type", "application/json"}}
		if err := r.Post(within(t, 10*time.Second), "/webhook/amplitude", header, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	post(exportLine("hooked-1", 1, now.Add(-3*time.Second), `{"plan":"pro","email":"a@example.com"}`))
	post(exportLine("hooked-1", 1, now.Add(-3*time.Second), `{"plan":"pro","email":"a@example.com"}`))
	post(exportLine("hooked-1", 2, now.Add(-9*time.Second), `{"plan":"free","email":"a@example.com"}`)) // it comes late
	post(`{"user_id":"hooked-1","user_properties":{"$set":{"role":"admin"}}}`)
	balanced(t, drained(t, r))
	p, _ := r.Sandbox.Person("id", "hooked-1")
	if p.EventCount != 2 || string(p.Attributes["plan"]) != `"pro"` || string(p.Attributes["role"]) != `"admin"` {
		t.Errorf("%+v", p)
	}
	if a := ask(t, "POST", "http://"+r.Listen+"/webhook/amplitude", `{}`); a.status != 401 {
		t.Errorf("without the secret: %d %s", a.status, a.body)
	}
	if door := stats(t, r).Door; door.Duplicates != 1 {
		t.Errorf("door %+v", door)
	}
	// Another secret holds from a reload on.
	write(t, filepath.Join(r.Dir, "webhook"), "another-secret-of-the-webhook\n")
	if got := run(t, "reload", "--config", r.ConfigPath); got.code != 0 {
		t.Errorf("%d %s", got.code, got.stderr)
	}
	if err := r.Post(within(t, 10*time.Second), "/webhook/amplitude", [][2]string{{"X-Ampcio-Secret", secret}}, []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with the secret of before: %v", err)
	}
	log, _ := os.ReadFile(r.LogFile.Name())
	if bytes.Contains(log, []byte("secret-of-the")) {
		t.Error("a secret is in the log")
	}
	down(t, r)
}

// The daemon is killed while lines are seeded, which are in no log: what it has forgotten is taken again.
func TestSeedingThroughAKill(t *testing.T) {
	t.Parallel()
	const lines = 6000
	r := rehearse(t, rehearsal.Settings{})
	z := filepath.Join(r.Dir, "export.json")
	var all []string
	for i := range lines {
		all = append(all, exportLine(fmt.Sprintf("importee-%d", i), 1, time.Now().Add(-time.Hour+time.Duration(i)*time.Millisecond), fmt.Sprintf(`{"n":%d}`, i)))
	}
	write(t, z, strings.Join(all, "\n"))
	set, err := archive.Open([]string{z})
	if err != nil {
		t.Fatal(err)
	}
	digest, _, err := set.Parts()[0].Look(func(*archive.Line) error { return nil })
	if err := errors.Join(err, set.Close()); err != nil {
		t.Fatal(err)
	}
	place := func() (out imported) {
		in, _ := json.Marshal(importing{Project: "app", Part: fmt.Sprintf("%x", digest), State: true})
		err := askDaemon(within(t, 10*time.Second), r.Socket, "import", in, func(line []byte) error { return json.Unmarshal(line, &out) })
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	up(t, r)
	_, _, ended := beginImport(t, "--state", "--config", r.ConfigPath, "--yes", "--rate", "4000", z)
	eventually(t, 30*time.Second, "lines are taken", func() bool { return place().Place >= 3000 })
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	up(t, r)
	if got := <-ended; got.code != 0 {
		t.Fatalf("%d\n%s", got.code, got.stderr)
	}
	down(t, r)
	store, err := queue.Open(queue.Options{Dir: filepath.Join(r.Dir, "storage"), Now: time.Now, RotateBytes: 1 << 20, RotateAfter: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	known, err := users.Open(t.Context(), store, users.Options{Path: filepath.Join(r.Dir, "storage", "users.db")})
	if err != nil {
		t.Fatal(errors.Join(err, store.Close()))
	}
	for i := range lines {
		k, err := known.Device("app", fmt.Sprintf("device of importee-%d", i))
		if err != nil || k.UserID != fmt.Sprintf("importee-%d", i) || string(k.Properties) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Fatalf("importee-%d: %q %s, %v", i, k.UserID, k.Properties, err)
		}
	}
	if err := errors.Join(known.Close(), store.Close()); err != nil {
		t.Error(err)
	}
}

// Half of the disk's bounds is left to new events: an import stops there, and goes on when there is room.
func TestImportLeavesRoomForNewEvents(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Storage: "max_bytes = \"3MiB\"\nrotate_bytes = \"1MiB\"\n", Sync: "requests_per_second = 1000\n"})
	z := filepath.Join(r.Dir, "export.json")
	rng := rand.New(rand.NewPCG(1, 1))
	perUser := map[string]int{}
	var all []string
	for i := range 2500 {
		noise := make([]byte, 700)
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		user := fmt.Sprintf("importee-%d", i%50)
		perUser[user]++
		all = append(all, exportLine(user, perUser[user], time.Now().Add(-time.Hour+time.Duration(i)*time.Millisecond), fmt.Sprintf(`{"noise":"%x"}`, noise)))
	}
	write(t, z, strings.Join(all, "\n"))
	up(t, r)
	down(t, r)
	got := run(t, "import", "--config", r.ConfigPath, "--yes", z)
	if contains(t, got.stderr, "of storage.max_bytes 3.0 MiB are used", "Start ampcio", "the same command goes on"); got.code != exitTemporary {
		t.Errorf("%d\n%s", got.code, got.stderr)
	}
	some := only(t, statsOfFiles(t, r)).Books.Pending
	if some == 0 || some == 2500 {
		t.Fatalf("%d of 2,500 are stored", some)
	}
	up(t, r) // it delivers, so that there is room
	got = run(t, "import", "--config", r.ConfigPath, "--yes", z)
	if contains(t, got.stdout, fmt.Sprintf("%s events stored", many(2500-some))); got.code != 0 {
		t.Errorf("%d\n%s", got.code, got.stderr)
	}
	balanced(t, drained(t, r))
	complete(t, r, perUser)
	down(t, r)
}
