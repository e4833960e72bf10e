package config

import (
	"slices"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	tests := []struct {
		name     string
		old, new string // in full
		want     []string
	}{
		{"nothing", "", "", nil},
		{"a default that is written down", "[storage]\n", "[storage]\nkeep = \"72h\"\n", nil},
		{"the lines have moved", "[project.app]", "# a comment\n\n[project.app]", nil},
		{"a value of a table", "max_bytes  = 1_000_000_000", "max_bytes = \"2GB\"", []string{"storage.max_bytes"}},
		{"a list", `cors_origins = []`, `cors_origins = ["*"]`, []string{"server.cors_origins"}},
		{"keys of a project", `"fedcba9876543210"`, `"fedcba9876543210", "11"`, []string{"project.shop.amplitude_api_keys"}},
		{"the secret, which is not shown", `api_key    = "s3cr3t"`, `api_key = "another"`, []string{"sync.production.api_key"}},
		{"one condition of a rule", `value = 10 }`, `value = 11 }`, []string{"sync.production.select"}},
		{"a table of names", `rename = { "Order Total" = "total" }`, `rename = {}`, []string{"sync.production.events.rename"}},
		{"several, in the order of the schema", "[sync.staging]", "[log]\nlevel = \"debug\"\n[sync.staging]\nenabled = false\ndelivery.concurrency = 2",
			[]string{"sync.staging.enabled", "sync.staging.delivery.concurrency", "log.level"}},
		{"another name", "[sync.staging]", "[sync.test]", []string{"sync.staging", "sync.test"}},
		{"the endpoint is taken away", "endpoint   = \"http://[::1]:9000/base/\"\n", "", []string{"sync.production.endpoint"}},
	}
	before := load(t, full)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(full, test.old) {
				t.Fatalf("%q is not in the configuration", test.old)
			}
			after := load(t, strings.Replace(full, test.old, test.new, 1))
			if got := Changes(before, after); !slices.Equal(got, test.want) {
				t.Errorf("%v, want %v", got, test.want)
			}
			if got := Changes(after, before); len(got) != len(test.want) {
				t.Errorf("the other way round %v", got)
			}
		})
	}
}
