package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// linked is a module of which the program that is given to people holds something, and
// the folders of what it holds, those above them too.
type linked struct {
	Path, Version, Dir string
	folders            []string
}

// linkedModules are those of the released binaries, with their tags: go.mod also names
// what only tests need.
func linkedModules(t *testing.T) []linked {
	t.Helper()
	found := map[string]linked{}
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.Command("go", "list", "-deps", "-tags", "urfave_cli_no_docs", "-json=Dir,Module", ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var p struct {
				Dir    string
				Module *struct {
					linked
					Main bool
				}
			}
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if p.Module == nil || p.Module.Main {
				continue
			}
			m, known := found[p.Module.Path]
			if !known {
				m = p.Module.linked
			}
			for dir := p.Dir; strings.HasPrefix(dir, m.Dir); dir = filepath.Dir(dir) {
				if !slices.Contains(m.folders, dir) {
					m.folders = append(m.folders, dir)
				}
			}
			slices.Sort(m.folders)
			found[m.Path] = m
		}
	}
	var all []linked
	for _, m := range found {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b linked) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

// licenceFile matches what states the terms of a module, or must go with it.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|copyright)([-.].*)?$`)

// texts are the licences in folders, the first of which is that of the module.
func texts(t *testing.T, folders ...string) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() || !licenceFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.ToSlash(strings.TrimPrefix(filepath.Join(dir, e.Name()), folders[0]+string(filepath.Separator)))
			fmt.Fprintf(&b, "\n%s:\n\n%s\n", name, strings.TrimSpace(strings.ReplaceAll(string(text), "\r", "")))
		}
		if b.Len() == 0 {
			t.Errorf("%s has no licence: may it be linked?", dir)
		}
	}
	return b.String()
}

// NOTICE names what is linked into the program, with the terms of each; when a module
// comes, goes or changes, it has to be written anew: make notice.
func TestNotice(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	const line = "\n--------------------------------------------------------------------------------\n"
	var b strings.Builder
	b.WriteString("The program ampcio holds parts of what follows, each under its own licence. For ampcio itself its\n" +
		"owner has chosen no licence yet. This file is written by a test: make notice.\n")
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "%sThe Go standard library and runtime, https://go.dev\n%s", line, texts(t, strings.TrimSpace(string(goroot))))
	for _, m := range linkedModules(t) {
		fmt.Fprintf(&b, "%s%s %s\n%s", line, m.Path, m.Version, texts(t, m.folders...))
	}
	// What was copied into this repository lies beside its licence.
	err = filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != "." && (strings.HasPrefix(e.Name(), ".") || slices.Contains([]string{"node_modules", "dist", "testdata", "packaging", "e2e", "contrib"}, e.Name())):
			return filepath.SkipDir
		case e.IsDir() || filepath.Dir(path) == "." || !copiedLicence.MatchString(e.Name()):
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			fmt.Fprintf(&b, "%s%s\n\n%s\n", line, filepath.ToSlash(path), strings.TrimSpace(string(text)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("NOTICE", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("NOTICE is not of the modules that are linked now: make notice, and look at what has changed")
	}
}

// copiedLicence matches the licence of a copied file, such as uPlot.LICENSE or
// uPlot-LICENSE.txt.
var copiedLicence = regexp.MustCompile(`(?i)licen[cs]e(\.txt|\.md)?$`)
