package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretIsNeverShown(t *testing.T) {
	c := load(t, full)
	sync := c.Sync["production"]
	if sync.APIKey.Reveal() != testKey {
		t.Fatalf("the key is %q", sync.APIKey.Reveal())
	}
	hidden := struct{ key Secret }{sync.APIKey}
	for _, v := range []any{sync.APIKey, &sync.APIKey, sync, &sync, *c, c, c.Sync, hidden, &hidden, []Secret{sync.APIKey}, map[string]Secret{"a": sync.APIKey}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s", "%T"} {
			shown := fmt.Sprintf(verb, v)
			if strings.Contains(shown, testKey) || strings.Contains(shown, fmt.Sprintf("%x", testKey)) || strings.Contains(shown, fmt.Sprintf("%X", testKey)) {
				t.Errorf("%s of a %T shows the secret: %s", verb, v, shown)
			}
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if got := fmt.Sprintf(verb, sync.APIKey); got != "[redacted]" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
	if sync.APIKey.String() != "[redacted]" || sync.APIKey.GoString() != "[redacted]" {
		t.Error("String or GoString shows something")
	}
	encoded, err := json.Marshal(c)
	if err != nil || bytes.Contains(encoded, []byte(testKey)) || !bytes.Contains(encoded, []byte("[redacted]")) {
		t.Errorf("json: %s, %v", encoded, err)
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("loaded", "key", sync.APIKey, "pointer", &sync.APIKey, "sync", sync, "config", c, "hidden", hidden)
	}
	if strings.Contains(log.String(), testKey) || !strings.Contains(log.String(), "[redacted]") {
		t.Errorf("slog: %s", log.String())
	}
	if !new(Secret).IsZero() || new(Secret).Reveal() != "" || sync.APIKey.IsZero() {
		t.Error("IsZero")
	}
}

func TestSecretInBrokenTOML(t *testing.T) {
	for _, text := range []string{
		"api_key = s3cr3t",
		"[sync.a]\napi_key = \"s3cr3t",
		"[sync.a]\napi_key = \"s3cr3t\nregion = 1",
		"[sync.a]\napi_key \"s3cr3t\"",
		"[sync.a]\napi-key = s3cr3t\"",
		"[sync.a]\nAPIKEY = s3cr3t",
		"[sync.a]\napi_key_file = s3cr3t",
		"[sync.a]\napi_key = \"\"\"\n\x01s3cr3t",
		"[sync.a]\n'api_key' = s3cr3t",
		"[sync.a]\nsite_id = \"1\" api_key = \"s3cr3t\"",
		"sync = { a = { api_key = s3cr3t } }",
		"[sync.a]\napi_key = [ s3cr3t",
		"[sync.a]\napi_key = [\n s3cr3t",
		"[sync.a]\napi_key = [\"s3cr3t\", 1]",
		"[sync.a]\napi_key = { s3cr3t = 1 }",
		"[sync.a]\napi_key = \"s3cr3t\"\napi_key = \"s3cr3t\"",
	} {
		_, err := parse("config.toml", []byte(text), 0o600, Environment{})
		if err == nil || strings.Contains(err.Error(), testKey) {
			t.Errorf("%q gives %v", text, err)
		}
	}
}

// Where the key of sync "eu-west" may come from, and what is wrong with it.
func TestAPIKey(t *testing.T) {
	tests := []struct {
		name string
		line string            // of the sync
		env  map[string]string // CREDENTIALS_DIRECTORY: below the test's folder
		file map[string]string // content by path below the test's folder; 0600
		mode map[string]fs.FileMode
		from string // where APIKeyFrom says it was found, below the test's folder; or
		want string // a part of the error
	}{
		{name: "file beside the configuration", line: `api_key_file = "key"`, file: map[string]string{"key": "s3cr3t"}, from: "/key"},
		{name: "new lines and spaces around it", line: `api_key_file = "key"`, file: map[string]string{"key": "\ufeff\r\n  s3cr3t\r\n\n"}, from: "/key"},
		{name: "file for the owner's group", line: `api_key_file = "key"`, file: map[string]string{"key": "s3cr3t"}, mode: map[string]fs.FileMode{"key": 0o640}, from: "/key"},
		{name: "credential", line: `api_key_file = "key"`, env: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			file: map[string]string{"cred/key": "s3cr3t", "key": "another"}, mode: map[string]fs.FileMode{"cred/key": 0o444}, from: "/cred/key"},
		{name: "inline", line: `api_key = "s3cr3t"`, from: "api_key"},
		{name: "environment", env: map[string]string{"AMPCIO_SYNC_EU_WEST_API_KEY": "s3cr3t"}, from: "environment variable AMPCIO_SYNC_EU_WEST_API_KEY"},

		{name: "nowhere", want: "no API key. Write it"},
		{name: "no file", line: `api_key_file = "key"`, want: "chmod 600"},
		{name: "no credential", line: `api_key_file = "key"`, env: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			file: map[string]string{"key": "s3cr3t"}, want: "LoadCredential=key:/etc/ampcio/key"},
		{name: "out of the credentials", line: `api_key_file = "../key"`, env: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			file: map[string]string{"key": "s3cr3t"}, mode: map[string]fs.FileMode{"key": 0o644}, want: "everybody on this machine can get at"},
		{name: "readable by all", line: `api_key_file = "key"`, file: map[string]string{"key": "s3cr3t"}, mode: map[string]fs.FileMode{"key": 0o644}, want: "(mode 0644). Do: chmod o= "},
		{name: "writable by all", line: `api_key_file = "key"`, file: map[string]string{"key": "s3cr3t"}, mode: map[string]fs.FileMode{"key": 0o602}, want: "(mode 0602)"},
		{name: "empty file", line: `api_key_file = "key"`, file: map[string]string{"key": "\n"}, want: "is empty"},
		{name: "two keys in a file", line: `api_key_file = "key"`, file: map[string]string{"key": "s3cr3t\ns3cr3t"}, want: "more than one word or line"},
		{name: "large file", line: `api_key_file = "key"`, file: map[string]string{"key": strings.Repeat("s3cr3t", 1000)}, want: "larger than 4096 bytes"},
		{name: "folder", line: `api_key_file = "key"`, file: map[string]string{"key/key": "s3cr3t"}, want: "is a folder"},
		{name: "device", line: `api_key_file = "/dev/zero"`, want: "not a plain file"},
		{name: "file and inline", line: "api_key_file = 'key'\napi_key = 's3cr3t'", file: map[string]string{"key": "s3cr3t"}, want: "more than once, by api_key_file and by api_key"},
		{name: "inline and environment", line: "api_key = 's3cr3t'", env: map[string]string{"AMPCIO_SYNC_EU_WEST_API_KEY": "s3cr3t"}, want: "by api_key and by the environment variable AMPCIO_SYNC_EU_WEST_API_KEY"},
		{name: "variable of two syncs", line: "delivery.max_pending_bytes='1GiB'\n[sync.eu_west]\nregion='eu'\nsite_id='2'\nevents.send=false\ndelivery.max_pending_bytes='1GiB'", env: map[string]string{"AMPCIO_SYNC_EU_WEST_API_KEY": "s3cr3t"}, want: "could also be meant for sync eu_west"},
		{name: "nonsense in the environment", env: map[string]string{"AMPCIO_SYNC_EU_WEST_API_KEY": "s3cr3t s3cr3t"}, want: "does not hold an API key"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			write := func(name, text string) {
				t.Helper()
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
			write("config.toml", "[project.app]\nrelay = 'off'\namplitude_api_keys = ['0']\n[sync.eu-west]\nregion = 'eu'\nsite_id = '1'\nevents.send = false\n"+test.line)
			for name, text := range test.file {
				write(name, text)
			}
			getenv := func(name string) string {
				if name == "CREDENTIALS_DIRECTORY" && test.env[name] != "" {
					return folder + test.env[name]
				}
				return test.env[name]
			}
			c, err := Load(filepath.Join(folder, "config.toml"), Environment{Getenv: getenv})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
				if strings.Contains(err.Error(), testKey) {
					t.Errorf("the error shows the key: %v", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				s := c.Sync["eu-west"]
				if got := strings.TrimPrefix(s.APIKeyFrom, folder); s.APIKey.Reveal() != testKey || got != test.from {
					t.Errorf("key %q from %s, want %s", s.APIKey.Reveal(), got, test.from)
				}
			}
			c, err = Load(filepath.Join(folder, "config.toml"), Environment{Getenv: getenv, NoSecrets: true})
			if err != nil || !c.Sync["eu-west"].APIKey.IsZero() {
				t.Errorf("without secrets: %v", err)
			}
		})
	}
}

func TestAPIKeyFileThatCannotBeRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "key"), []byte(testKey), 0); err != nil {
		t.Fatal(err)
	}
	text := "[project.app]\nrelay = 'off'\namplitude_api_keys = ['0']\n[sync.a]\nregion = 'eu'\nsite_id = '1'\nevents.send = false\napi_key_file = 'key'\n"
	_, err := parse(filepath.Join(folder, "config.toml"), []byte(text), 0o600, Environment{})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "the user that runs ampcio") {
		t.Error(err)
	}
}

func TestInlineKeyInAFileForAll(t *testing.T) {
	text := "[project.app]\nrelay = 'off'\namplitude_api_keys = ['0']\n[sync.a]\nregion = 'eu'\nsite_id = '1'\nevents.send = false\napi_key = 's3cr3t'\n"
	c, err := parse("config.toml", []byte(text), 0o644, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || !strings.HasPrefix(c.Warnings[0], "config.toml:8: sync.a.api_key: a secret in a file") || strings.Contains(c.Warnings[0], testKey) {
		t.Errorf("warnings %q", c.Warnings)
	}
}

func TestAmplitudeKeysFile(t *testing.T) {
	folder := t.TempDir()
	text := "[project.app]\nrelay = 'off'\namplitude_api_keys_file = 'keys'\n[sync.a]\nregion = 'eu'\nsite_id = '1'\nevents.send = false\napi_key = '1'\n"
	for content, want := range map[string]string{
		"# web\r\n0123\r\n\n 4567 # iOS\n0123\n": "0123 4567",
		"# nothing yet\n":                        "error: holds no key",
		"two words\n":                            "error: key 1 is not an Amplitude API key",
	} {
		if err := os.WriteFile(filepath.Join(folder, "keys"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := parse(filepath.Join(folder, "config.toml"), []byte(text), 0o600, Environment{})
		if part, bad := strings.CutPrefix(want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%q: got %v, want %s", content, err, part)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.Project["app"].AmplitudeAPIKeys, " "); got != want {
			t.Errorf("%q: got %s, want %s", content, got, want)
		}
	}
}
