package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"
)

// The README's table of faults survived is that of the trials: the same names, the same numbers.
func TestTheReadmesTable(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\|.*\\| ([0-9,]+) [a-z ]+\\| `\"(.*)\"` \\|$").FindAllStringSubmatch(string(text), -1) {
		told[row[2]] = row[1]
	}
	for _, trial := range trials() {
		if want := humanize.Comma(int64(trial.Full)); told[trial.Name] != want {
			t.Errorf("the README says %q of %s, which are %s", told[trial.Name], trial.Name, want)
		}
		if strings.TrimSpace(trial.Fault) == "" || trial.Unit == "" {
			t.Errorf("%s does not say what it is", trial.Name)
		}
		delete(told, trial.Name)
	}
	for name := range told {
		t.Errorf("the README speaks of %q, which is no trial", name)
	}
}

// Wrong use is told apart from a promise that was broken.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"slow"}, {"quick", "more"}, {"replay", "model"}, {"quick", "-only", "no such trial"}, {"quick", "-seed", "x"}, {"quick", "-bugs", "no-such-bug"}} {
		if code := run(args); code != exitUsage {
			t.Errorf("%q ends with %d", args, code)
		}
	}
	if code := run([]string{"list"}); code != 0 {
		t.Errorf("list ends with %d", code)
	}
}
