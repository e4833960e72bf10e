package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logMessages finds the fixed texts that the daemon logs: those of level Warn or Error,
// and all others. A text that is not fixed, but for the name of a service in front of it,
// fails the test: nobody could look it up.
func logMessages(t *testing.T) (urgent, calm []string) {
	t.Helper()
	fset := token.NewFileSet()
	add := func(is bool, text string) {
		if is {
			urgent = append(urgent, text)
		} else {
			calm = append(calm, text)
		}
	}
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != "." {
			return fs.SkipDir
		}
		if e.IsDir() && (e.Name() == "testdata" || e.Name() == "e2e" || e.Name() == "contrib" || e.Name() == "logbook") {
			return fs.SkipDir // that writes what others give it
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				of, is := n.Fun.(*ast.SelectorExpr)
				if !is || len(n.Args) == 0 {
					return true
				}
				level := of.Sel.Name
				if level == "Log" && ofLog(of.X) && len(n.Args) >= 3 {
					if text := fixed(n.Args[2]); text != "" { // else it is a title, below
						add(true, text)
					}
				}
				if !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, level) || !ofLog(of.X) {
					return true
				}
				text := fixed(n.Args[0])
				if text == "" {
					t.Errorf("%s: the message is not a fixed text: put what varies into an attribute", fset.Position(n.Pos()))
				}
				add(level == "Warn" || level == "Error", text)
			case *ast.CompositeLit:
				if of, is := n.Type.(*ast.SelectorExpr); is && of.Sel.Name == "Line" {
					var level, message, over string
					for _, e := range n.Elts {
						kv, is := e.(*ast.KeyValueExpr)
						if !is {
							continue
						}
						switch kv.Key.(*ast.Ident).Name {
						case "Level":
							level = kv.Value.(*ast.SelectorExpr).Sel.Name
						case "Message":
							message = fixed(kv.Value)
						case "Over":
							over = fixed(kv.Value)
						}
					}
					add(level == "LevelWarn" || level == "LevelError", message)
					add(false, over)
				}
			case *ast.ValueSpec: // what alerts tell is logged, too
				if len(n.Names) == 1 && n.Names[0].Name == "titles" && path == filepath.Join("alerts", "message.go") {
					for _, e := range n.Values[0].(*ast.CompositeLit).Elts {
						kv := e.(*ast.KeyValueExpr)
						kind, pair := fixed(kv.Key), kv.Value.(*ast.CompositeLit).Elts
						if kind != "test" && !loggedElsewhere[kind] {
							add(true, fixed(pair[0]))
							add(false, fixed(pair[1]))
						}
					}
				}
				if len(n.Names) == 1 && n.Names[0].Name == "diskFull" {
					add(true, fixed(n.Values[0]))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return urgent, calm
}

// ofLog says whether an expression is a logger: log, d.log, s.o.Log, n.log.
func ofLog(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name == "log"
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log")
	}
	return false
}

// fixed is a text in quotes, also behind the name of a service.
func fixed(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(x.Value)
		return text
	case *ast.BinaryExpr:
		return strings.TrimSpace(fixed(x.Y))
	case *ast.Ident, *ast.SelectorExpr:
		return ""
	}
	return ""
}

// Every message of docs/log.md is one that ampcio writes, and every warning and error
// that it writes is there.
func TestLogMessagesAreInTheDocs(t *testing.T) {
	wordsOnly(t)
	b, err := os.ReadFile("docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	messages, kindsOfAlerts, found := strings.Cut(string(b), "\n## What alerts there are\n")
	if !found {
		t.Fatal("docs/log.md does not say what alerts there are")
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|.*$")
	told := map[string]bool{"kind": true, troubleLate: true, troubleDeadLetters: true, troubleNoTraffic: true}
	for _, kind := range kinds {
		told[kind] = true
	}
	for _, r := range row.FindAllStringSubmatch(kindsOfAlerts, -1) {
		if !told[r[1]] {
			t.Errorf("docs/log.md has the kind of alert %q, which there is not", r[1])
		}
		delete(told, r[1])
	}
	if len(told) > 0 {
		t.Errorf("docs/log.md does not have the kinds of alerts %v", told)
	}
	var shown []string
	for _, row := range row.FindAllStringSubmatch(messages, -1) {
		shown = append(shown, row[1])
		if cells := strings.Split(strings.Trim(row[0], "|"), " | "); len(cells) != 3 || len(strings.TrimSpace(cells[1])) < 10 || strings.TrimSpace(cells[2]) == "" {
			t.Errorf("the row of %q needs what it means, and what to do", row[1])
		}
	}
	urgent, calm := logMessages(t)
	if len(urgent) < 30 || len(calm) < 15 {
		t.Fatalf("only %d and %d messages were found", len(urgent), len(calm))
	}
	is := func(shown, text string) bool {
		service, rest, _ := strings.Cut(shown, " ")
		return shown == text || rest == text && (service == "Customer.io" || service == "Amplitude")
	}
	for _, text := range urgent {
		if !slices.ContainsFunc(shown, func(s string) bool { return is(s, text) }) {
			t.Errorf("not in docs/log.md: %q", text)
		}
	}
	for _, s := range shown {
		if !slices.ContainsFunc(slices.Concat(urgent, calm), func(text string) bool { return is(s, text) }) {
			t.Errorf("docs/log.md has %q, which ampcio does not write", s)
		}
	}
}
