package config

import (
	"strings"

	"github.com/BurntSushi/toml"
)

// WithMistakes reads of a file that Load does not take where a daemon that runs can be
// found: server.socket and storage.dir, as far as they can be made out. All else is as
// by default.
func WithMistakes(path string) *Config {
	c := Default()
	text, _, err := readFile(path, maxFile, false)
	if err != nil {
		return &c // it cannot be opened
	}
	source := strings.TrimPrefix(string(text), "\ufeff")
	var values map[string]any
	if _, err := toml.Decode(source, &values); err != nil {
		values = byLine(source)
	}
	take := func(table, key string, to *string) {
		if t, is := values[table].(map[string]any); is {
			if s, is := t[key].(string); is && (s == "" || s[0] == '/') {
				*to = s
			}
		}
	}
	take("server", "socket", &c.Server.Socket)
	take("storage", "dir", &c.Storage.Dir)
	return &c
}

// byLine reads those lines of broken TOML that make sense for themselves.
func byLine(source string) map[string]any {
	table := map[string]any{} // what stands before the first header is in none
	values := map[string]any{}
	for line := range strings.Lines(source) {
		line = strings.TrimSpace(line)
		if name, is := strings.CutPrefix(line, "["); is {
			name, _, _ = strings.Cut(name, "]")
			name = strings.TrimSpace(name)
			if _, again := values[name]; !again {
				values[name] = map[string]any{}
			}
			table = values[name].(map[string]any)
			continue
		}
		var one map[string]any
		if _, err := toml.Decode(line, &one); err != nil {
			continue
		}
		for key, value := range one {
			table[key] = value
		}
	}
	return values
}
