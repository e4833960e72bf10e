package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/rehearsal"
)

// twoPeople is a request of two, so that a line of the dry run is about both.
func twoPeople(n int) string {
	event := func(user string) string {
		return strings.TrimSuffix(strings.SplitN(one(user, "Order", fmt.Sprint(user, n), fmt.Sprintf(`{"plan":"plan of %s"}`, user)), `"events":[`, 2)[1], "]}")
	}
	return fmt.Sprintf(`%s,%s]}`, strings.TrimSuffix(one("bert@example.com", "Order", fmt.Sprint("bert", n), `{"plan":"plan of bert@example.com"}`), "]}"), event("anna@example.com"))
}

// Who is forgotten is also in no file of a dry run any more, nor in what its trial knows;
// others are, and the files are as before; whether the daemon runs or is stopped. What is
// explained of the log has them neither.
func TestForgetReachesDryRuns(t *testing.T) {
	t.Parallel()
	const anna, bert = "anna@example.com", "bert@example.com"
	r := rehearse(t, rehearsal.Settings{})
	edit(t, r, dryRunLive, dryRunOn)
	up(t, r)
	written := func(events, users int) {
		t.Helper()
		eventually(t, 10*time.Second, "it is all written", func() bool {
			if _, err := os.Stat(filepath.Join(r.Dir, "storage", "dry-run", "demo.jsonl")); err != nil {
				return false
			}
			seen := readDryRun(t, r)
			return len(seen.events) == events && len(seen.users) == users
		})
	}
	everywhere := func() (text string) {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(r.Dir, "storage", "dry-run", "*"))
		if err != nil || len(files) < 3 {
			t.Fatalf("%v, %v", files, err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text += string(b)
		}
		return text
	}
	accepted(t, r, twoPeople(1))
	written(2, 2)
	if text := everywhere(); !strings.Contains(text, anna) || !strings.Contains(text, bert) {
		t.Fatal("nobody is in the files")
	}
	contains(t, did(t, r, "explain", "--seq", "1-2"), "of         user "+anna)
	contains(t, did(t, r, "user", "forget", anna, "--yes"), "  dry runs: 2 operations erased from their files; what was counted stays counted\n")
	written(1, 1)
	if text := everywhere(); strings.Contains(text, anna) || !strings.Contains(text, bert) {
		t.Errorf("anna: %t, bert: %t", strings.Contains(text, anna), strings.Contains(text, bert))
	}
	explained := func() {
		t.Helper()
		said := did(t, r, "explain", "--seq", "1-2")
		contains(t, said, "of         user "+bert, "of somebody who was forgotten")
		if strings.Contains(said, anna) || strings.Contains(said, "cannot be read") {
			t.Error(said)
		}
	}
	explained()

	// Somebody of that name comes anew: the trial knows nothing of who was before.
	accepted(t, r, twoPeople(2))
	written(3, 2)
	down(t, r)
	explained()
	contains(t, did(t, r, "user", "forget", bert, "--yes"), "  dry runs: 3 operations erased from their files")
	if text := everywhere(); !strings.Contains(text, anna) || strings.Contains(text, bert) {
		t.Errorf("anna: %t, bert: %t", strings.Contains(text, anna), strings.Contains(text, bert))
	}
	up(t, r)
	accepted(t, r, twoPeople(3))
	written(3, 2)
	if names, err := filepath.Glob(filepath.Join(r.Dir, "storage", "sync", "*.dry.run*")); err != nil || len(names) != 0 {
		t.Errorf("a trial has left %v beside the ledgers, %v", names, err)
	}

	// A sync that is given up leaves nothing of its dry run.
	edit(t, r, dryRunOn, dryRunLive)
	config, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	write(t, r.ConfigPath, strings.ReplaceAll(string(config), "sync.demo", "sync.another"))
	did(t, r, "reload", "--yes")
	did(t, r, "sync", "remove", "demo", "--yes")
	if names, err := filepath.Glob(filepath.Join(r.Dir, "storage", "dry-run", "*")); err != nil || len(names) != 0 {
		t.Errorf("%v are left, %v", names, err)
	}
}
