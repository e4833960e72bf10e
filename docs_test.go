package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ampcio/rehearsal"
)

// Whoever copies the configuration that a page shows has one that works.
func TestConfigurationsInTheDocs(t *testing.T) {
	t.Parallel()
	for _, page := range []string{"README.md", "docs/moving.md"} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			shown := 0
			for _, block := range strings.Split(string(b), "```toml\n")[1:] {
				text, _, ended := strings.Cut(block, "```")
				if !ended || !strings.Contains(text, "[project.app]") || !strings.Contains(text, "site_id") {
					continue // a part of one
				}
				shown++
				dir := t.TempDir()
				config := filepath.Join(dir, "config.toml")
				write(t, filepath.Join(dir, "customerio_api_key"), rehearsal.APIKey)
				write(t, config, strings.ReplaceAll(text, "…", "0123456789abcdef0123456789abcdef"))
				if got := run(t, "check-config", "--config", config); got.code != 0 {
					t.Errorf("exit %d: %s", got.code, got.stderr)
				}
			}
			if shown != 1 {
				t.Errorf("%d configurations, want 1", shown)
			}
		})
	}
}
