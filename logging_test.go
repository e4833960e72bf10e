package main

import (
	"strings"
	"testing"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// A reload changes from which level on something is logged, and back, without a restart.
func TestLogLevelByReload(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{Sandbox: sandbox.Options{}})
	edit(t, r, "[server]", "[log]\nlevel = \"error\"\nformat = \"json\"\n\n[server]")
	up(t, r)
	paused := func() int { // each is a line at info; those that change nothing are at debug
		did(t, r, "sync", "pause", rehearsal.Sync)
		did(t, r, "sync", "resume", rehearsal.Sync)
		did(t, r, "dead-letters", "list")
		return strings.Count(logOf(t, r), "done on an operator's word")
	}
	if n := paused(); n != 0 || strings.Contains(logOf(t, r), `"level":"INFO"`) {
		t.Errorf("%d lines at the level error", n)
	}
	before := 0
	for _, step := range []struct {
		from, to string
		more     int
	}{{"error", "info", 2}, {"info", "debug", 3}, {"debug", "warn", 0}} {
		edit(t, r, `level = "`+step.from+`"`, `level = "`+step.to+`"`)
		if step.to == "debug" {
			hangup(t, r)
			said(t, r, 2, "the configuration is reloaded")
		} else {
			reloaded(t, r)
		}
		n := paused()
		if n-before != step.more {
			t.Errorf("at the level %s: %d lines more, want %d", step.to, n-before, step.more)
		}
		before = n
	}
}
