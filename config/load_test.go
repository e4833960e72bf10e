package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.want anew")

// The API key of every configuration in testdata.
const testKey = "s3cr3t"

// Every testdata/bad-NAME.toml gives exactly the errors in bad-NAME.want.
func TestBadConfigurations(t *testing.T) {
	files, err := filepath.Glob("testdata/bad-*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			c, err := Load(file, Environment{})
			if err == nil || c != nil {
				t.Fatalf("Load(%s) = %v, %v, want an error", file, c, err)
			}
			got := strings.ReplaceAll(err.Error(), "testdata/", "") + "\n"
			if strings.Contains(got, testKey) {
				t.Errorf("the error shows the API key:\n%s", got)
			}
			wantFile := strings.TrimSuffix(file, ".toml") + ".want"
			if *update {
				if err := os.WriteFile(wantFile, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(wantFile)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("errors of %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// The errors come one by one too, with line and path apart.
func TestErrorsCarryTheirPlace(t *testing.T) {
	_, err := Load("testdata/bad-project-unknown.toml", Environment{})
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *Error", err)
	}
	if e.Line != 9 || e.Path != "sync.production.project" {
		t.Errorf("line %d, path %q, want 9 and sync.production.project", e.Line, e.Path)
	}
}

func TestNoConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	_, err := Load(file, Environment{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "config.toml.example") {
		t.Errorf("a file that is not there: %v", err)
	}
	_, err = Load(filepath.Dir(file), Environment{})
	if err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("a folder: %v", err)
	}
	if err := os.WriteFile(file, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Load(file, Environment{})
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
}

// load writes text as a configuration file that only its owner can read.
func load(t *testing.T, text string) *Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const full = `
[project.app]
relay = "off"
amplitude_api_keys = ["0123456789abcdef", "0123456789abcdef", "00"]

[project.shop]
relay = "off"
amplitude_api_keys = ["fedcba9876543210"]

[sync.production]
project    = "app"
region     = "eu"
site_id    = "a1b2c3d4e5f6"
api_key    = "s3cr3t"
endpoint   = "http://[::1]:9000/base/"
identifier = "user.email"
identifier_kind = "email"

[[sync.production.select]]
event  = ["Order *"]
where  = [
  { path = "event.total", op = ">=", value = 10 },
  { path = "event.rate", op = "<", value = 0.5 },
  { path = "user.plan", op = "is", value = ["pro", 1, true] },
  { path = "user.plan", op = "is set" },
]
name   = "Bought"

[[sync.production.select]]
event  = ["*"]
action = "drop"

[sync.production.events]
rename = { "Order Total" = "total" }

[sync.production.delivery]
requests_per_second = 0.5
retry_max = "1d"
max_pending_bytes = "500MB"
when_full = "discard_oldest"
late_after = "2d"
late_policy = "dead_letter"

[sync.staging]
project = "shop"
region  = "us"
site_id = "1"
api_key = "2"
events.send = false
users.properties = ["*"]
delivery.max_pending_bytes = "1MiB"

[dead_letters]
keep = "0s"
max_bytes = 0

[storage]
max_bytes  = 1_000_000_000
keep_bytes = "1.5GiB"

[server]
admin = ""
cors_origins = []
`

// What is written wins over the defaults, also where a table is in a list or has a
// name; what is not written keeps them.
func TestLoad(t *testing.T) {
	c := load(t, full)
	want := Default()
	want.Storage.MaxBytes = 1e9
	want.Storage.KeepBytes = 3 * GiB / 2
	want.Server.Admin = ""
	want.Server.CORSOrigins = nil
	want.Project = Projects{
		"app":  {Name: "app", AmplitudeAPIKeys: []string{"0123456789abcdef", "00"}, Relay: "off"},
		"shop": {Name: "shop", AmplitudeAPIKeys: []string{"fedcba9876543210"}, Relay: "off"},
	}
	production := DefaultSync()
	production.Name, production.Project, production.Region = "production", "app", "eu"
	production.SiteID, production.APIKey, production.APIKeyFrom = "a1b2c3d4e5f6", NewSecret(testKey), "api_key"
	production.Endpoint = "http://[::1]:9000/base"
	production.Identifier, production.IdentifierKind = "user.email", "email"
	production.Select = []Select{
		{Event: []string{"Order *"}, Action: "send", Name: "Bought", Where: []Where{
			{"event.total", ">=", int64(10)},
			{"event.rate", "<", 0.5},
			{"user.plan", "is", []any{"pro", int64(1), true}},
			{"user.plan", "is set", nil},
		}},
		{Event: []string{"*"}, Action: "drop"},
	}
	production.Events.Rename = map[string]string{"Order Total": "total"}
	production.Delivery.RequestsPerSecond = 0.5
	production.Delivery.RetryMax = Duration(24 * time.Hour)
	production.Delivery.MaxPendingBytes, production.Delivery.WhenFull = 500e6, "discard_oldest"
	production.Delivery.LateAfter, production.Delivery.LatePolicy = Duration(48*time.Hour), "dead_letter"
	staging := DefaultSync()
	staging.Name, staging.Project, staging.Region = "staging", "shop", "us"
	staging.SiteID, staging.APIKey, staging.APIKeyFrom = "1", NewSecret("2"), "api_key"
	staging.Events.Send = false
	staging.Users.Properties = []string{"*"}
	staging.Delivery.MaxPendingBytes = OptionalByteSize(MiB)
	want.DeadLetters = DeadLetters{}
	want.Sync = Syncs{"production": production, "staging": staging}
	want.places = c.places
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
	if got := c.Sync.Names(); !reflect.DeepEqual(got, []string{"production", "staging"}) {
		t.Errorf("sync names %v", got)
	}
	if got := c.Project.Names(); !reflect.DeepEqual(got, []string{"app", "shop"}) {
		t.Errorf("project names %v", got)
	}
}

func TestTheOnlyProjectMayBeLeftOut(t *testing.T) {
	c := load(t, "\ufeff[project.app]\r\nrelay = 'off'\r\namplitude_api_keys = ['0']\r\n[sync.a]\r\nregion = 'us'\r\nsite_id = '1'\r\napi_key = '2'\r\nevents.send = false\r\n")
	if got := c.Sync["a"].Project; got != "app" {
		t.Errorf("project %q, want app", got)
	}
}

func TestWarnings(t *testing.T) {
	c := load(t, `
[project.app]
relay = "off"
amplitude_api_keys = ["0"]
[project.idle]
relay = "off"
amplitude_api_keys = ["1"]
[sync.a]
project = "app"
region  = "us"
site_id = "same"
api_key = "2"
events.send = false
delivery.max_pending_bytes = "8GiB"
[sync.b]
project = "app"
region  = "us"
site_id = "same"
api_key = "2"
events.send = false
users.send = false
delivery.max_pending_bytes = "8GiB"
[sync.c]
project = "app"
region  = "eu"
site_id = "same"
api_key = "2"
events.send = false
delivery.max_pending_bytes = "8GiB"
[server]
listen = ":8080"
admin  = "192.0.2.1:8081"
[storage]
max_bytes = "20GiB"
`)
	want := []string{
		"31: server.listen: :8080 is reachable from other machines",
		"32: server.admin: 192.0.2.1:8081 shows metrics",
		"15: sync.b: sends neither events nor users",
		"18: sync.b.site_id: sync a sends to the same workspace",
		"34: storage.max_bytes: the max_pending_bytes of all syncs together are more than 20GiB",
		"5: project.idle: no sync takes this project's events",
	}
	for i := range max(len(want), len(c.Warnings)) {
		if i >= len(want) || i >= len(c.Warnings) || !strings.Contains(c.Warnings[i], ":"+want[i]) {
			t.Fatalf("warnings:\n%s\nwant:\n%s", strings.Join(c.Warnings, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestLocate(t *testing.T) {
	c := load(t, full)
	file := c.places.file
	rows := strings.Split(full, "\n")
	for path, start := range map[string]string{
		"sync.production":                             "[sync.production]",
		"sync.production.identifier":                  "identifier = ",
		"sync.production.select[0]":                   "[[sync.production.select]]",
		"sync.production.select[0].event[0]":          "event  = [\"Order *\"]",
		"sync.production.select[0].where[1].op":       "  { path = \"event.rate\"",
		"sync.production.select[0].where[3].value":    "  { path = \"user.plan\", op = \"is set\"", // not written: where its table is
		"sync.production.select[1].action":            "action = \"drop\"",
		`sync.production.events.rename."Order Total"`: "rename = ",
		"sync.production.users.properties":            "[sync.production]",
		"sync.staging.events.send":                    "events.send = false",
		"sync.staging.events":                         "events.send = false",
		"storage.max_bytes":                           "max_bytes ",
	} {
		got := c.Locate(path)
		var row int
		if _, err := fmt.Sscanf(got, file+":%d: ", &row); err != nil || row < 1 || !strings.HasPrefix(rows[row-1], start) {
			t.Errorf("Locate(%s) = %q, want the line that begins with %s", path, got, start)
		}
	}
	if got := c.Locate("log.level"); got != "" {
		t.Errorf("Locate of what is not written = %q", got)
	}
	if got := new(Config).Locate("log.level"); got != "" {
		t.Errorf("Locate in a Config that was not loaded = %q", got)
	}
}

// Absurdly deep nesting is refused like any other nonsense.
func TestDeepNesting(t *testing.T) {
	const n = 5_000
	for _, text := range []string{
		"a = " + strings.Repeat("[", n),
		"a = " + strings.Repeat("[", n) + strings.Repeat("]", n),
		"a = " + strings.Repeat("{ a = ", 1000) + "1" + strings.Repeat("}", 1000),
		"a" + strings.Repeat(".a", 1000) + " = 1",
		"[a" + strings.Repeat(".a", 1000) + "]",
	} {
		if _, err := parse("config.toml", []byte(text), 0o600, Environment{}); err == nil {
			t.Errorf("%.20s… is accepted", text)
		}
	}
}

// Whatever is in the file, Load does not panic, shows no secret, and the scanner
// finds the line of every value that the toml library finds.
func FuzzLoad(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.toml")
	for _, file := range append(files, "../config.toml.example") {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(full))
	f.Add([]byte("a = '''x'''''\n\"\\u00e9\\t\".'b c'.d = \"\"\"\n\\\"\"\"\"\"\n[[e.f]]\n[e.f.g]\nh=[[1,{i=2}],\n#]\n[3]]\n[[e.f]]\n[e.f.g]\nh=1979-05-27 07:32:00\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parse("/no/such/folder/config.toml", text, 0o600, Environment{})
		if (c == nil) == (err == nil) {
			t.Fatalf("parse = %v, %v", c, err)
		}
		lines := scan(string(text))
		var values map[string]any
		if _, err := toml.Decode(string(text), &values); err == nil && !strings.HasPrefix(string(text), "\ufeff") {
			deep := false
			everyPath("", values, func(path string) { deep = deep || strings.Count(path, ".")+strings.Count(path, "[") >= maxDepth })
			everyPath("", values, func(path string) {
				if lines[path] == 0 && !deep {
					t.Errorf("no line for %s in\n%s", path, text)
				}
			})
		}
	})
}

func everyPath(path string, v any, f func(string)) {
	if path != "" {
		f(path)
	}
	if table, ok := v.(map[string]any); ok {
		for key, v := range table {
			everyPath(join(path, key), v, f)
		}
	}
	list, _ := items(v)
	for i, v := range list {
		everyPath(item(path, i), v, f)
	}
}
