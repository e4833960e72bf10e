package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// parsed reads the one object that a verb has printed.
func parsed[T any](t *testing.T, got ran, code int) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || got.code != code {
		t.Fatalf("%v: %+v", err, got)
	}
	return v
}

// What people read is there for machines, too: one object, also when something is wrong.
func TestJSONOfVerbs(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 5))
	drained(t, r)

	check := parsed[checkReport](t, verbOf(t, r, "check-config", "--online", "--pending", "--json"), 0)
	if !check.OK || len(check.Errors) != 0 || len(check.Syncs) != 1 || check.Syncs[0].Agrees == nil || !*check.Syncs[0].Agrees || check.Syncs[0].Region != "eu" || len(check.Pending) != 1 {
		t.Errorf("%+v", check)
	}
	r.Sandbox.SetFaults(sandbox.Faults{Status: map[int]float64{401: 1}})
	check = parsed[checkReport](t, verbOf(t, r, "check-config", "--online", "--json"), exitConfig)
	if check.OK || len(check.Errors) != 1 || check.Syncs[0].Agrees == nil || *check.Syncs[0].Agrees || !strings.Contains(check.Syncs[0].Error, "does not accept") {
		t.Errorf("a wrong key: %+v", check)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})

	copied := filepath.Join(r.Dir, "b.tar")
	type backup struct {
		File  string
		Bytes int64
		Tail  uint64
		Dir   string
		Syncs []struct {
			Name    string
			Pending *uint64
		}
	}
	if b := parsed[backup](t, verbOf(t, r, "backup", copied, "--json"), 0); b.File != copied || b.Bytes == 0 || b.Tail != 5 || len(b.Syncs) != 1 || b.Syncs[0].Pending == nil {
		t.Errorf("%+v", b)
	}
	if got := verbOf(t, r, "backup", "-", "--json"); got.code != exitUsage || got.stdout != "" {
		t.Errorf("to stdout: exit %d", got.code)
	}
	contains(t, did(t, r, "backup", copied, "--force"), "b.tar: ", " files, up to record 5.\n  demo: 0 pending\n")
	down(t, r)
	edit(t, r, filepath.Join(r.Dir, "storage"), filepath.Join(r.Dir, "other"))
	if b := parsed[backup](t, verbOf(t, r, "restore", copied, "--json"), 0); b.Dir != filepath.Join(r.Dir, "other") || b.Tail != 5 || len(b.Syncs) != 1 {
		t.Errorf("%+v", b)
	}

	edit(t, r, `region       = "eu"`, `region       = ""`)
	check = parsed[checkReport](t, verbOf(t, r, "check-config", "--json"), exitConfig)
	if len(check.Missing) != 1 || check.Missing[0].Text != `region = "us"` || check.Missing[0].Line != 15 || len(check.Errors) != 1 || check.Errors[0].Path != "sync.demo.region" {
		t.Errorf("%+v", check)
	}
	v := parsed[map[string]string](t, run(t, "version", "--json"), 0)
	if v["version"] != version().version || v["go"] == "" {
		t.Errorf("%v", v)
	}
}
