package admin

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// schemaFile is the JSON Schema of what queue-stats --json and /stats say. It is made of
// the types and of what stands beside them; the tests of the whole hold what ampcio
// really says against it.
const schemaFile = "../docs/queue-stats.schema.json"

func TestTheSchemaIsThatOfTheTypes(t *testing.T) {
	g := schemaOf{said: commentsOf(t, "snapshot.go", "health.go"), defs: map[string]any{}}
	top := g.object(reflect.TypeFor[Snapshot]())
	top["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	top["title"] = "ampcio queue-stats --json"
	top["description"] = "Members may be added under the same schema number: readers ignore those they do not know. Times are RFC 3339 in UTC, " +
		"ages and waits whole seconds, sizes bytes; null means unknown or none. Counts are present also when 0."
	top["$defs"] = g.defs
	top["properties"].(map[string]any)["schema"] = map[string]any{"const": Schema}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(top); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("the types have changed: go test ./admin -run Schema -update, and read what it says. -want +got\n%s", d)
	}
}

// schemaOf makes a schema of types.
type schemaOf struct {
	said map[string]string // by Type.Field
	defs map[string]any
}

// words are the values of members that have few.
var words = map[string][]any{
	"Snapshot.source": {"daemon", "files"}, "Sync.destination": {ToCustomerIO, ToAmplitude},
	"Sync.status": {StatusOK, StatusChecking, StatusUnreachable, StatusBlocked, StatusPaused, StatusDisabled, StatusDryRun, StatusOrphaned, StatusStopped},
	"Sync.gate":   {"", "open", "closed", "opening"}, "Sync.when_full": {"refuse", "discard_oldest"},
	"Health.level": {LevelOK, LevelWarning, LevelCritical, LevelUnknown}, "Groups.by": {"reason", "event", "status", "user"},
	"Reason.kind": {"event", "user", "record"},
}

func (g *schemaOf) object(t reflect.Type) map[string]any {
	members, required := map[string]any{}, []any{}
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		member := g.value(f.Type)
		if values := words[t.Name()+"."+name]; values != nil {
			member["enum"] = values
		}
		if said := g.said[t.Name()+"."+f.Name]; said != "" {
			member["description"] = said
		}
		members[name] = member
		if options == "" {
			required = append(required, name)
		}
	}
	o := map[string]any{"type": "object", "properties": members, "required": required}
	if said := g.said[t.Name()]; said != "" {
		o["description"] = said
	}
	return o
}

func (g *schemaOf) value(t reflect.Type) map[string]any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		v := g.value(t.Elem())
		if ref, is := v["$ref"]; is {
			return map[string]any{"anyOf": []any{map[string]any{"$ref": ref}, map[string]any{"type": "null"}}}
		}
		v["type"] = []any{v["type"], "null"}
		return v
	case t.Kind() == reflect.Struct:
		if g.defs[t.Name()] == nil {
			g.defs[t.Name()] = true // it is being made
			g.defs[t.Name()] = g.object(t)
		}
		return map[string]any{"$ref": "#/$defs/" + t.Name()}
	case t.Kind() == reflect.Slice:
		v := map[string]any{"type": "array", "items": g.value(t.Elem())}
		return v
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": g.value(t.Elem())}
	case t.Kind() == reflect.String:
		return map[string]any{"type": "string"}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	case t.Kind() == reflect.Float64:
		return map[string]any{"type": "number"}
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64:
		return map[string]any{"type": "integer", "minimum": 0}
	}
	return map[string]any{"type": "integer"}
}

// commentsOf gives what is said of types and their fields.
func commentsOf(t *testing.T, files ...string) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			d, is := n.(*ast.GenDecl)
			if !is || d.Tok != token.TYPE {
				return true
			}
			spec := d.Specs[0].(*ast.TypeSpec)
			fields, is := spec.Type.(*ast.StructType)
			if !is {
				return true
			}
			said[spec.Name.Name] = oneLine(d.Doc)
			for _, f := range fields.Fields.List {
				for _, name := range f.Names {
					said[spec.Name.Name+"."+name.Name] = strings.TrimSpace(oneLine(f.Doc) + " " + oneLine(f.Comment))
				}
			}
			return true
		})
	}
	return said
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }
