package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// statsSchema reads the JSON Schema of the documentation.
func statsSchema(t testing.TB) map[string]any {
	t.Helper()
	text, err := os.ReadFile("docs/queue-stats.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

// asTheSchemaSays holds what queue-stats has said against the schema, and against nothing
// else being there: what is not documented is not to be relied on.
func asTheSchemaSays(t testing.TB, what, text string) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v in:\n%s", what, err, text)
	}
	root := statsSchema(t)
	if err := (&validator{root}).check(root, v, "$"); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// validator knows the part of JSON Schema 2020-12 that the schema uses, and says so where
// it meets another: a library for this one file would be more code than this.
type validator struct{ root map[string]any }

func (v *validator) check(schema map[string]any, value any, at string) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+": "+format, args...)) }
	for _, keyword := range sortedKeys(schema) {
		asked := schema[keyword]
		switch keyword {
		case "$schema", "$defs", "title", "description", "required", "additionalProperties":
		case "$ref":
			name := strings.TrimPrefix(asked.(string), "#/$defs/")
			errs = append(errs, v.check(v.root["$defs"].(map[string]any)[name].(map[string]any), value, at))
		case "anyOf":
			if !slices.ContainsFunc(asked.([]any), func(s any) bool { return v.check(s.(map[string]any), value, at) == nil }) {
				fail("%v is none of those that are allowed", value)
			}
		case "type":
			kinds, several := asked.([]any)
			if !several {
				kinds = []any{asked}
			}
			if !slices.ContainsFunc(kinds, func(k any) bool { return isKind(value, k.(string)) }) {
				fail("%v is no %v", value, asked)
			}
		case "enum":
			if !slices.Contains(asked.([]any), value) {
				fail("%v is none of %v", value, asked)
			}
		case "const":
			if !reflect.DeepEqual(asked, value) {
				fail("%v is not %v", value, asked)
			}
		case "minimum":
			if n, is := value.(float64); is && n < asked.(float64) {
				fail("%v is below %v", value, asked)
			}
		case "format":
			if text, is := value.(string); is && asked == "date-time" {
				if moment, err := time.Parse(time.RFC3339, text); err != nil || moment.Location() != time.UTC {
					fail("%q is no time in UTC", text)
				}
			}
		case "items":
			list, _ := value.([]any)
			for i, item := range list {
				errs = append(errs, v.check(asked.(map[string]any), item, fmt.Sprintf("%s[%d]", at, i)))
			}
		case "properties":
			errs = append(errs, v.members(schema, value, at))
		default:
			fail("the schema says %q, which this test does not know", keyword)
		}
	}
	if others, is := schema["additionalProperties"].(map[string]any); is {
		members, _ := value.(map[string]any)
		for name, member := range members {
			errs = append(errs, v.check(others, member, at+"."+name))
		}
	}
	return errors.Join(errs...)
}

func (v *validator) members(schema map[string]any, value any, at string) error {
	members, is := value.(map[string]any)
	if !is {
		return nil // its type is somebody else's business
	}
	var errs []error
	known := schema["properties"].(map[string]any)
	for name, member := range members {
		s, is := known[name].(map[string]any)
		if !is {
			errs = append(errs, fmt.Errorf("%s.%s is not in the schema", at, name))
			continue
		}
		errs = append(errs, v.check(s, member, at+"."+name))
	}
	for _, name := range schema["required"].([]any) {
		if _, there := members[name.(string)]; !there {
			errs = append(errs, fmt.Errorf("%s.%s is missing", at, name))
		}
	}
	return errors.Join(errs...)
}

func isKind(value any, kind string) bool {
	switch kind {
	case "null":
		return value == nil
	case "integer":
		n, is := value.(float64)
		return is && n == math.Trunc(n)
	case "number":
		_, is := value.(float64)
		return is
	case "string":
		_, is := value.(string)
		return is
	case "boolean":
		_, is := value.(bool)
		return is
	case "array":
		_, is := value.([]any)
		return is
	case "object":
		_, is := value.(map[string]any)
		return is
	}
	return false
}

// The schema asks for something: what is not as it says is found.
func TestTheSchemaRefuses(t *testing.T) {
	text, err := os.ReadFile("testdata/queue-stats/running.json")
	if err != nil {
		t.Fatal(err)
	}
	root := statsSchema(t)
	for what, change := range map[string]func(m, sync map[string]any){
		"a member that is missing":   func(m, _ map[string]any) { delete(m, "health") },
		"one that nobody has named":  func(m, _ map[string]any) { m["more"] = 1.0 },
		"another version":            func(m, _ map[string]any) { m["schema"] = 2.0 },
		"a status that there is not": func(_, y map[string]any) { y["status"] = "fine" },
		"a text for a number":        func(_, y map[string]any) { y["depth"].(map[string]any)["ready"] = "many" },
		"half an event":              func(_, y map[string]any) { y["depth"].(map[string]any)["ready"] = 0.5 },
		"a list that is null":        func(_, y map[string]any) { y["waiting"] = nil },
		"a time that is none":        func(m, _ map[string]any) { m["at"] = "yesterday" },
	} {
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		before := (&validator{root}).check(root, m, "$") // what the file has hidden is no fault of the schema's
		change(m, m["syncs"].([]any)[0].(map[string]any))
		if after := (&validator{root}).check(root, m, "$"); after == nil || before != nil && after.Error() == before.Error() {
			t.Errorf("%s is taken", what)
		}
	}
}
