package planted

import (
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// A change of the product that moves what a patch is for is seen here, and not only when everything is tried.
func TestEveryPatchMeetsItsPlaceInTheSource(t *testing.T) {
	for _, b := range bugs {
		t.Run(b.name, func(t *testing.T) {
			if _, err := patched("../..", []bug{b}); err != nil {
				t.Fatal(err)
			}
		})
	}
	files, err := patched("../..", bugs)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range files {
		if _, err := parser.ParseFile(token.NewFileSet(), path, text, 0); err != nil {
			t.Error(err)
		}
	}
}

func TestAPatchThatMeetsNothingIsAnError(t *testing.T) {
	for name, change := range map[string]func(*bug){
		"nowhere":        func(b *bug) { b.old = "no such text\n" },
		"in many places": func(b *bug) { b.old = "}\n" },
		"awake":          func(b *bug) { b.new = strings.ReplaceAll(b.new, "planted.Is", "is") },
	} {
		b := bugs[0]
		change(&b)
		if _, err := patched("../..", []bug{b}); err == nil || !strings.Contains(err.Error(), b.name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlantedBugsAreAtLeastTwentyOfDifferentNames(t *testing.T) {
	names := map[string]bool{}
	for _, b := range bugs {
		names[b.name] = true
		if b.trial == "" || b.what == "" {
			t.Errorf("%s says too little", b.name)
		}
		if enough[b.trial] == 0 {
			t.Errorf("%s: nobody says how many %s are enough", b.name, b.trial)
		}
	}
	if len(names) != len(bugs) || len(bugs) < 20 {
		t.Errorf("%d bugs of %d names", len(bugs), len(names))
	}
}

// TestChoose names some bugs: only these are hunted, in the process of a case too, and a replay is told which.
func TestChoose(t *testing.T) {
	t.Setenv(variable, "") // taken back at the end
	trial, err := Choose("paused-delivers,answer-before-commit")
	if err != nil || trial != trialName {
		t.Fatalf("%q %v", trial, err)
	}
	got := Trials()[0]
	if some := chosen(); got.Full != 2 || len(some) != 2 || some[0].name != "answer-before-commit" || some[1].name != "paused-delivers" ||
		got.With != "-bugs paused-delivers,answer-before-commit" {
		t.Errorf("%d are hunted: %v, a replay is told %q", got.Full, some, got.With)
	}
	if _, err := Choose("paused-delivers,pausd"); err == nil || !strings.Contains(err.Error(), "pausd") || !strings.Contains(err.Error(), "paused-delivers") {
		t.Errorf("%v", err)
	}
}
