package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// arrows says which rooms a room may know. Whoever adds one says so here, and in
// DESIGN.md why. Tests may know more: they put rooms together.
var arrows = map[string][]string{
	"ampcio":            {"admin", "alerts", "archive", "config", "delivery", "ingest", "logbook", "mapping", "metrics", "queue", "recordings", "rehearsal", "sandbox", "users"},
	"ampcio/admin":      nil,
	"ampcio/alerts":     {"logbook"},
	"ampcio/archive":    nil,
	"ampcio/config":     nil,
	"ampcio/delivery":   {"logbook", "mapping", "queue"},
	"ampcio/ingest":     {"logbook", "mapping", "queue"},
	"ampcio/logbook":    nil,
	"ampcio/mapping":    nil,
	"ampcio/metrics":    {"admin"},
	"ampcio/queue":      nil,
	"ampcio/recordings": nil,
	"ampcio/rehearsal":  {"admin", "mapping", "recordings", "sandbox"},
	"ampcio/sandbox":    nil,
	"ampcio/users":      {"mapping", "queue"},
}

func TestArrowsBetweenRooms(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	d := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		allowed, known := arrows[p.ImportPath]
		if !known {
			t.Errorf("%s is a new room: it needs a place in arrows, and its promise in DESIGN.md", p.ImportPath)
		}
		for _, i := range p.Imports {
			if room, ours := strings.CutPrefix(i, "ampcio/"); ours && !slices.Contains(allowed, room) {
				t.Errorf("%s imports %s: no such arrow", p.ImportPath, i)
			}
		}
	}
	if seen != len(arrows) {
		t.Errorf("%d rooms, %d in arrows", seen, len(arrows))
	}
}
