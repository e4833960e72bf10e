package config

import (
	"strings"
	"testing"
)

// A team may try ampcio before it has anything of Customer.io's; what sends needs it.
func TestDryRunNeedsNoKeys(t *testing.T) {
	const text = `
[project.app]
amplitude_api_keys = ["0123456789abcdef0123456789abcdef"]
relay = "off"

[sync.production]
region  = "eu"
dry_run = true

[[sync.production.select]]
event = ["*"]
`
	c, err := parse("config.toml", []byte(text), 0o600, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Sync["production"].DryRun || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "config.toml:8: sync.production.dry_run: nothing is sent") {
		t.Errorf("%+v, warnings %q", c.Sync["production"], c.Warnings)
	}
	_, err = parse("config.toml", []byte(strings.Replace(text, "true", "false", 1)), 0o600, Environment{})
	if err == nil || !strings.Contains(err.Error(), "no API key") || !strings.Contains(err.Error(), "site_id: required") {
		t.Errorf("without dry_run: %v", err)
	}
}
