package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

// example reads config.toml.example in its two parts: what a person fills in, and
// everything else with its default.
func example(t *testing.T) (fillIn, rest string) {
	t.Helper()
	text, err := os.ReadFile("../config.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	fillIn, rest, found := strings.Cut(string(text), "\n# ---- That is all")
	if !found {
		t.Fatal("config.toml.example has no line that begins with # ---- That is all")
	}
	return fillIn + "\n", "# " + rest
}

var commentedLine = regexp.MustCompile(`(?m)^# (\[+[a-z_.]+\]|[a-z_]+ = )`)

func uncomment(text string) string { return commentedLine.ReplaceAllString(text, "$1") }

func decodeExample(t *testing.T, text string) (Config, map[string]any) {
	t.Helper()
	var values map[string]any
	if _, err := toml.Decode(text, &values); err != nil {
		t.Fatal(err)
	}
	c := Default()
	found := &problems{places: &places{file: "config.toml.example", line: scan(text)}, reported: map[string]bool{}}
	decoder{found}.table("", values, reflect.ValueOf(&c).Elem())
	if err := found.joined(); err != nil {
		t.Fatal(err)
	}
	return c, values
}

func TestExampleShowsEveryDefault(t *testing.T) {
	_, rest := example(t)
	got, _ := decodeExample(t, uncomment(rest))
	want := Default()
	want.Project = Projects{"app": DefaultProject()}
	sync, rule := DefaultSync(), DefaultSelect()
	rule.Where = got.Sync["production"].Select[0].Where // an example: it has no default
	sync.Select = []Select{rule}
	want.Sync = Syncs{"production": sync}
	if !reflect.DeepEqual(got, want) {
		a, _ := json.MarshalIndent(want, "", " ")
		b, _ := json.MarshalIndent(got, "", " ")
		t.Errorf("config.toml.example differs from the defaults (-default +example):\n%s", cmp.Diff(string(a), string(b)))
	}
}

func TestExampleShowsEveryKey(t *testing.T) {
	fillIn, rest := example(t)
	var shown []string
	for _, text := range []string{fillIn, uncomment(rest)} {
		_, values := decodeExample(t, text)
		everyPath("", values, func(path string) {
			path = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")
			path = regexp.MustCompile(`^(sync|project)\.(production|app)`).ReplaceAllString(path, "$1.NAME")
			shown = append(shown, path)
		})
	}
	schemaTables("", reflect.TypeFor[Config](), func(table string, typ reflect.Type) {
		for _, key := range keys(typ) {
			if path := join(table, key); table != "" && !slices.Contains(shown, strings.TrimPrefix(path, ".")) {
				t.Errorf("config.toml.example does not show %s", path)
			}
		}
	})
	for i, line := range strings.Split(rest, "\n") {
		if regexp.MustCompile(`^# [a-z_]+ = `).MatchString(line) && !regexp.MustCompile(` {2,}# .`).MatchString(line) {
			t.Errorf("line %d of the second part of config.toml.example explains nothing: %s", i+1, line)
		}
	}
}

// With its four values filled in, the example loads, as it is and with every default
// uncommented.
func TestExampleLoads(t *testing.T) {
	fillIn, rest := example(t)
	folder := t.TempDir()
	file := filepath.Join(folder, "config.toml")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, fillIn+rest)
	_, err := Load(file, Environment{})
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("the example as it comes has not four values to fill in:\n%v", err)
	}

	for from, to := range map[string]string{
		`amplitude_api_keys = [""]`: `amplitude_api_keys = ["0123456789abcdef0123456789abcdef"]`,
		`region       = ""`:         `region       = "eu"`,
		`site_id      = ""`:         `site_id      = "a1b2c3d4e5f6"`,
	} {
		if strings.Count(fillIn, from) != 1 {
			t.Fatalf("the example does not have %s once", from)
		}
		fillIn = strings.Replace(fillIn, from, to, 1)
	}
	write(filepath.Join(folder, "customerio_api_key"), testKey+"\n")
	write(file, fillIn+rest)
	c, err := Load(file, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Sync["production"].APIKey.Reveal() != testKey || len(c.Warnings) > 0 {
		t.Errorf("key %q, warnings %v", c.Sync["production"].APIKey.Reveal(), c.Warnings)
	}

	// The lines of the tables that stand at the top are moved up there.
	moved, tables := "", uncomment(rest)
	tables, more, _ := strings.Cut(tables, "# ---- More keys")
	top := map[string]string{}
	header := regexp.MustCompile(`(?m)^\[+[a-z_.]+\]+`)
	parts := header.FindAllStringIndex(more, -1)
	for i, at := range parts {
		end := len(more)
		if i+1 < len(parts) {
			end = parts[i+1][0]
		}
		_, lines, _ := strings.Cut(more[at[0]:end], "\n")
		top[more[at[0]:at[1]]] = lines
	}
	for line := range strings.Lines(fillIn) {
		moved += line
		if h := header.FindString(line); h != "" {
			moved += top[h]
			delete(top, h)
		}
	}
	if len(top) > 0 {
		t.Errorf("these tables are not at the top of the example: %v", top)
	}
	write(file, moved+tables)
	all, err := Load(file, Environment{})
	if err != nil {
		t.Fatalf("with every default uncommented:\n%v", err)
	}
	s := all.Sync["production"]
	s.Select[0].Where = nil
	all.places = c.places
	if !reflect.DeepEqual(all, c) {
		t.Errorf("uncommenting the defaults changes something:\n%+v\n%+v", all, c)
	}
}
