package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWebhookSecret(t *testing.T) {
	const secret = "a-secret-of-the-webhook"
	tests := []struct {
		name string
		text string // of [project.app]
		more string // of the file
		file map[string]string
		mode fs.FileMode
		cred string // CREDENTIALS_DIRECTORY below the folder
		want string // part of the error; "" = the secret is found
	}{
		{name: "beside the configuration", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret + "\n"}},
		{name: "a project without API keys", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret}},
		{name: "with API keys", text: "amplitude_api_keys = ['0']\nwebhook_secret_file = 'hook'", file: map[string]string{"hook": secret}},
		{name: "a credential", text: `webhook_secret_file = "hook"`, cred: "cred", file: map[string]string{"cred/hook": secret, "hook": "not this one, which"}, mode: 0o444},
		{name: "no file", text: `webhook_secret_file = "hook"`, want: "a secret of your own"},
		{name: "no credential", text: `webhook_secret_file = "hook"`, cred: "cred", want: "LoadCredential=hook:"},
		{name: "short", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret[:15]}, want: "holds 15 characters, and a secret has at least 16"},
		{name: "empty", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": "\n"}, want: "holds 0 characters"},
		{name: "two lines", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret + "\n" + secret}, want: "one word"},
		{name: "no ASCII", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret + "é"}, want: "visible ASCII"},
		{name: "open to all", text: `webhook_secret_file = "hook"`, file: map[string]string{"hook": secret}, mode: 0o644, want: "chmod o= "},
		{name: "the secret itself", text: `webhook_secret_file = "0123456789abcdef0123"`, want: "looks like the secret itself"},
		{name: "of two projects", text: "amplitude_api_keys = ['0']\nwebhook_secret_file = 'hook'", more: "[project.b]\nwebhook_secret_file = 'hook'\n", file: map[string]string{"hook": secret}, want: "project.b.webhook_secret_file: is also the secret of project app"},
		{name: "neither keys nor webhook", want: "unless there is a webhook_secret_file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			write := func(name, text string, mode fs.FileMode) {
				t.Helper()
				file := filepath.Join(folder, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, mode); err != nil {
					t.Fatal(err)
				}
			}
			write("config.toml", "[project.app]\n"+test.text+"\n"+test.more+"[sync.a]\nproject = 'app'\nregion = 'eu'\nsite_id = '1'\napi_key = 's3cr3t'\nevents.send = false\n", 0o600)
			for name, text := range test.file {
				mode := test.mode
				if mode == 0 {
					mode = 0o600
				}
				write(name, text, mode)
			}
			getenv := func(name string) string {
				if name == "CREDENTIALS_DIRECTORY" && test.cred != "" {
					return filepath.Join(folder, test.cred)
				}
				return ""
			}
			c, err := Load(filepath.Join(folder, "config.toml"), Environment{Getenv: getenv})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got := c.Project["app"].WebhookSecret.Reveal(); got != secret {
					t.Errorf("the secret is %q", got)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret[:15]) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if test.text == "" {
				return
			}
			c, err = Load(filepath.Join(folder, "config.toml"), Environment{Getenv: getenv, NoSecrets: true})
			if err != nil || !c.Project["app"].WebhookSecret.IsZero() {
				t.Errorf("without secrets: %v", err)
			}
		})
	}
}
