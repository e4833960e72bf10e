package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAlertAddress(t *testing.T) {
	const address = "https://hooks.slack.com/services/T0/B0/s3cr3t"
	tests := []struct {
		name string
		text string // of [alerts]
		file map[string]string
		mode fs.FileMode // of these; 0 = 0600
		open fs.FileMode // of the configuration; 0 = 0600
		cred string      // CREDENTIALS_DIRECTORY below the folder
		from string      // where it is found, below the folder; or
		want string      // a part of the error; or
		warn string      // of a warning
	}{
		{name: "none"},
		{name: "here", text: `url = "` + address + `"`, from: "url"},
		{name: "a file", text: `url_file = "hook"`, file: map[string]string{"hook": "\ufeff" + address + "\r\n"}, from: "/hook"},
		{name: "a credential", text: `url_file = "hook"`, cred: "cred", file: map[string]string{"cred/hook": address}, mode: 0o444, from: "/cred/hook"},
		{name: "in clear", text: `url = "http://alerts.example/s3cr3t"`, from: "url", warn: "travel in clear"},
		{name: "in clear on this machine", text: `url = "http://127.0.0.1:9/s3cr3t"`, from: "url"},
		{name: "in an open configuration", text: `url = "` + address + `"`, open: 0o644, from: "url", warn: "use url_file"},
		{name: "both", text: "url = 'https://a.example/s3cr3t'\nurl_file = 'hook'", want: "not in both"},
		{name: "the address as a file's name", text: `url_file = "` + address + `"`, want: "looks like the address itself"},
		{name: "no file", text: `url_file = "hook"`, want: "chmod 600"},
		{name: "no credential", text: `url_file = "hook"`, cred: "cred", want: "LoadCredential=hook:"},
		{name: "open to all", text: `url_file = "hook"`, file: map[string]string{"hook": address}, mode: 0o644, want: "chmod o= "},
		{name: "empty", text: `url_file = "hook"`, file: map[string]string{"hook": "\n"}, want: "is empty"},
		{name: "two lines", text: `url_file = "hook"`, file: map[string]string{"hook": address + "\n" + address}, want: "does not hold an address"},
		{name: "no scheme", text: `url = "hooks.slack.com/s3cr3t"`, want: "url does not hold an address"},
		{name: "another scheme", text: `url = "ftp://hooks.slack.com/s3cr3t"`, want: "url does not hold an address"},
		{name: "a number", text: `url = 7`, want: "must be a string"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			write := func(name, text string, mode fs.FileMode) {
				t.Helper()
				if mode == 0 {
					mode = 0o600
				}
				file := filepath.Join(folder, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, mode); err != nil {
					t.Fatal(err)
				}
			}
			write("key", "k", 0)
			write("config.toml", "[project.app]\namplitude_api_keys = ['0']\nrelay = 'us'\n[alerts]\n"+test.text+"\n", test.open)
			for name, text := range test.file {
				write(name, text, test.mode)
			}
			env := Environment{Getenv: func(name string) string {
				if name == "CREDENTIALS_DIRECTORY" && test.cred != "" {
					return filepath.Join(folder, test.cred)
				}
				return ""
			}}
			c, err := Load(filepath.Join(folder, "config.toml"), env)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr3t") && test.name != "no file" {
					t.Errorf("got %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if from := strings.TrimPrefix(c.Alerts.URLFrom, folder); from != test.from || c.Alerts.URL.IsZero() != (test.from == "") || strings.ContainsAny(c.Alerts.URL.Reveal(), "\r\n\ufeff") {
				t.Errorf("%q from %q", c.Alerts.URL.Reveal(), from)
			}
			warned := strings.Join(c.Warnings, "\n")
			if !strings.Contains(warned, test.warn) || test.warn == "" && warned != "" || strings.Contains(warned, "s3cr3t") {
				t.Errorf("warnings: %s", warned)
			}
			env.NoSecrets = true
			if c, err = Load(filepath.Join(folder, "config.toml"), env); err != nil || !c.Alerts.URL.IsZero() {
				t.Errorf("without secrets: %v", err)
			}
		})
	}
}

func TestPercent(t *testing.T) {
	for text, want := range map[string]Percent{"0%": 0, "90%": 90, "100%": 100, "101%": -1, "90": -1, "-1%": -1, "0.9": -1, "": -1, "90 %": -1} {
		p := Percent(-1)
		if err := p.UnmarshalText([]byte(text)); (err != nil) != (want < 0) || p != want {
			t.Errorf("%q: %v, %v", text, p, err)
		}
	}
}
