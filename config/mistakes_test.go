package config

import (
	"os"
	"path/filepath"
	"testing"
)

// However wrong a file is: where the daemon is to be found is read of it, as far as it
// can be made out.
func TestWithMistakes(t *testing.T) {
	for name, test := range map[string]struct{ text, socket, dir string }{
		"an unknown key":    {"[server]\nsocket = \"/run/a.sock\"\nsokcet = 1\n[storage]\ndir = '/var/a'\n", "/run/a.sock", "/var/a"},
		"broken before":     {"[server]\nlisten = = 1\nsocket = \"/run/a.sock\" # here\n[storage]\ndir = \"/var/a\"\n", "/run/a.sock", "/var/a"},
		"a table twice":     {"[server]\nsocket = \"/run/a.sock\"\n[storage]\ndir = \"/var/a\"\n[server]\n", "/run/a.sock", "/var/a"},
		"broken there":      {"[server]\nsocket = /run/a.sock\n[storage]\ndir = \"/var/a\"\n", "", "/var/a"},
		"of another table":  {"[sync.x]\ndir = \"/var/x\"\nbad\n[[sync.x.select]]\nsocket = \"/run/x.sock\"\n", "", "/var/lib/ampcio"},
		"no absolute paths": {"[server]\nsocket = \"a.sock\"\n[storage]\ndir = 7\n", "", "/var/lib/ampcio"},
		"a type":            {"server = 1\nstorage = \"/var/a\"\n", "", "/var/lib/ampcio"},
		"nothing":           {"", "", "/var/lib/ampcio"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if c := WithMistakes(path); c.Server.Socket != test.socket || c.Storage.Dir != test.dir {
				t.Errorf("socket %q, dir %q", c.Server.Socket, c.Storage.Dir)
			}
		})
	}
	if c := WithMistakes(filepath.Join(t.TempDir(), "none")); c.Storage.Dir != Default().Storage.Dir {
		t.Errorf("%q", c.Storage.Dir)
	}
}
