package config

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// decoder writes the toml library's generic values into the schema. The library's
// own decoding stops at the first wrong value, takes keys in any letter case and
// knows nothing of defaults inside of lists and named tables.
type decoder struct {
	*problems
}

// defaultOf is what a table of type t starts from.
func defaultOf(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch t {
	case reflect.TypeFor[Config]():
		v.Set(reflect.ValueOf(Default()))
	case reflect.TypeFor[Project]():
		v.Set(reflect.ValueOf(DefaultProject()))
	case reflect.TypeFor[Sync]():
		v.Set(reflect.ValueOf(DefaultSync()))
	case reflect.TypeFor[Select]():
		v.Set(reflect.ValueOf(DefaultSelect()))
	}
	return v
}

// table decodes a table into the struct out, which holds its defaults.
func (d decoder) table(path string, in map[string]any, out reflect.Value) {
	fields := map[string]reflect.StructField{}
	for _, f := range reflect.VisibleFields(out.Type()) {
		if name := f.Tag.Get("toml"); name != "-" && name != "" {
			fields[name] = f
		}
	}
	for _, key := range slices.Sorted(maps.Keys(in)) {
		field, known := fields[key]
		if !known {
			d.unknown(path, key, in[key], out.Type())
			continue
		}
		d.field(join(path, key), in[key], out.FieldByIndex(field.Index), field.Tag)
	}
}

func (d decoder) field(path string, in any, out reflect.Value, tag reflect.StructTag) {
	standard := reflect.New(out.Type()).Elem()
	standard.Set(out)
	if !d.value(path, in, out) {
		return
	}
	if words := strings.Fields(tag.Get("enum")); len(words) > 0 && !slices.Contains(words, out.String()) {
		if out.String() == "" && standard.String() == "" {
			return // as if it had not been written; whether it is required is checked later
		}
		hint := ""
		if word, _ := nearest(out.String(), words); word != "" {
			hint = fmt.Sprintf("; did you mean %q?", word)
		}
		d.add(path, "must be %s, not %q%s", orList(words), out.String(), hint)
		out.Set(standard)
	}
}

// value decodes in into out and says whether that went well; when not, it is
// reported and out is as it was.
func (d decoder) value(path string, in any, out reflect.Value) bool {
	if text, ok := out.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.text(path, in, text)
	}
	switch out.Kind() {
	case reflect.String:
		s, ok := in.(string)
		if !ok {
			return d.add(path, "must be a string in quotes, not %s", kindOf(in))
		}
		out.SetString(s)
	case reflect.Bool:
		b, ok := in.(bool)
		if !ok {
			return d.add(path, "must be true or false, without quotes, not %s", kindOf(in))
		}
		out.SetBool(b)
	case reflect.Int:
		n, ok := in.(int64)
		if !ok || out.OverflowInt(n) {
			return d.add(path, "must be a whole number without quotes, not %s", kindOf(in))
		}
		out.SetInt(n)
	case reflect.Float64:
		f, ok := in.(float64)
		if n, whole := in.(int64); whole {
			f, ok = float64(n), true
		}
		if !ok || math.IsNaN(f) || math.IsInf(f, 0) {
			return d.add(path, "must be a number without quotes, not %s", kindOf(in))
		}
		out.SetFloat(f)
	case reflect.Slice:
		return d.list(path, in, out)
	case reflect.Map:
		return d.named(path, in, out)
	case reflect.Struct:
		table, ok := in.(map[string]any)
		if _, list := in.([]map[string]any); list {
			return d.add(path, "is one table: write [%s], not [[%s]]", path, path)
		}
		if !ok {
			return d.add(path, "must be a table, not %s", kindOf(in))
		}
		d.table(path, table, out)
	case reflect.Interface:
		return d.condition(path, in, out)
	}
	return true
}

// text decodes what has a notation of its own. The message of a Secret never
// carries what was written.
func (d decoder) text(path string, in any, out encoding.TextUnmarshaler) bool {
	var written string
	switch in := in.(type) {
	case string:
		written = in
	case int64:
		written = strconv.FormatInt(in, 10)
	case float64:
		written = strconv.FormatFloat(in, 'f', -1, 64)
	}
	_, right := in.(string)
	switch out.(type) {
	case *Duration, *ByteSize, *OptionalByteSize:
		right = right || written != "" // a number: of bytes, or an error that explains the missing unit
	}
	if !right {
		return d.add(path, "must be a string in quotes, not %s", kindOf(in))
	}
	if err := out.UnmarshalText([]byte(written)); err != nil {
		if _, secret := out.(*Secret); secret {
			return d.add(path, "cannot be read")
		}
		if _, prefix := out.(*netip.Prefix); prefix {
			return d.add(path, `%q: must be a network such as "10.0.0.0/8", or one address: "192.0.2.7/32", "2001:db8::7/128"`, written)
		}
		return d.add(path, "%q: %w", written, err)
	}
	return true
}

// list decodes a list, of tables too. An empty one is nil.
func (d decoder) list(path string, in any, out reflect.Value) bool {
	items, ok := items(in)
	tables := out.Type().Elem().Kind() == reflect.Struct && len(keys(out.Type().Elem())) > 0
	if _, one := in.(map[string]any); one && tables && strings.Contains(path, "[") {
		return d.add(path, "is a list: put [ ] around the { }")
	}
	if _, one := in.(map[string]any); one && tables {
		return d.add(path, "is a list of tables: write [[%s]] with two brackets", path)
	}
	if !ok && tables {
		return d.add(path, "must be a list of tables, not %s", kindOf(in))
	}
	if !ok {
		return d.add(path, "must be a list such as [\"a\", \"b\"], not %s", kindOf(in))
	}
	list := reflect.New(out.Type()).Elem()
	well := true
	for i, in := range items {
		element := defaultOf(out.Type().Elem())
		well = d.value(item(path, i), in, element) && well
		list = reflect.Append(list, element)
	}
	if well {
		out.Set(list)
	}
	return well
}

func items(in any) ([]any, bool) {
	switch in := in.(type) {
	case []any:
		return in, true
	case []map[string]any:
		list := make([]any, len(in))
		for i := range in {
			list[i] = in[i]
		}
		return list, true
	}
	return nil, false
}

var tableName = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

// named decodes a table whose keys are names: of projects, of syncs, or of
// properties. An empty one is nil.
func (d decoder) named(path string, in any, out reflect.Value) bool {
	ofTables := out.Type().Elem().Kind() == reflect.Struct
	table, ok := in.(map[string]any)
	if _, list := in.([]map[string]any); list && ofTables {
		return d.add(path, "each %s needs a name: write [%s.NAME], not [[%s]]", path, path, path)
	}
	if !ok {
		return d.add(path, "must be a table such as { a = \"b\" }, not %s", kindOf(in))
	}
	if len(table) == 0 {
		return true
	}
	result := reflect.MakeMap(out.Type())
	well := true
	for _, name := range slices.Sorted(maps.Keys(table)) {
		at := join(path, name)
		if ofTables {
			if _, isTable := table[name].(map[string]any); !isTable {
				return d.add(path, "each %s needs a name: write [%s.NAME] above %s", path, path, name)
			}
			if !tableName.MatchString(name) {
				well = d.add(at, "a name is 1 to 32 of the characters a-z 0-9 _ -")
				continue
			}
		}
		element := defaultOf(out.Type().Elem())
		well = d.value(at, table[name], element) && well
		result.SetMapIndex(reflect.ValueOf(name), element)
	}
	out.Set(result)
	return well
}

// condition decodes the value of a Where: a string, bool, integer or float, or a
// list of those.
func (d decoder) condition(path string, in any, out reflect.Value) bool {
	scalar := func(path string, v any) bool {
		switch v := v.(type) {
		case string, bool, int64:
			return true
		case float64:
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				return true
			}
		case time.Time:
			return d.add(path, "must be a string, a number, true or false, or a list of those, not a date: put it in quotes")
		}
		return d.add(path, "must be a string, a number, true or false, or a list of those, not %s", kindOf(v))
	}
	list, ok := in.([]any)
	if !ok {
		if !scalar(path, in) {
			return false
		}
		out.Set(reflect.ValueOf(in))
		return true
	}
	if len(list) == 0 {
		return d.add(path, "an empty list matches nothing")
	}
	well := true
	for i, v := range list {
		well = scalar(item(path, i), v) && well
	}
	if well {
		out.Set(reflect.ValueOf(list))
	}
	return well
}

// unknown reports a key that table t does not have, or a whole unknown table once.
func (d decoder) unknown(path, key string, in any, t reflect.Type) {
	at := join(path, key)
	what := "unknown key"
	switch in.(type) {
	case map[string]any, []map[string]any:
		what = "unknown table"
	}
	sibling, distance := nearest(key, keys(t))
	if sibling != "" && distance > 1 {
		if tables := tablesWith(key, path); len(tables) > 0 {
			sibling = ""
		}
	}
	if sibling != "" {
		d.add(at, "%s; did you mean %q?", what, join(path, sibling))
		d.reported[join(path, sibling)] = true // that it is missing follows from this
		return
	}
	if tables := tablesWith(key, path); len(tables) > 0 {
		for i, table := range tables {
			d.reported[join(table, key)] = true
			tables[i] = "[" + table + "]"
			if list, ok := strings.CutSuffix(table, "[]"); ok {
				tables[i] = "[[" + list + "]]"
			}
		}
		d.add(at, "%s here; it belongs under %s", what, strings.Join(tables, " or "))
		return
	}
	if path == "" {
		d.add(at, "%s; there are %s", what, strings.Join(keys(t), ", "))
		return
	}
	d.add(at, "%s; [%s] knows %s", what, path, strings.Join(keys(t), ", "))
}

// kindOf names the kind of a TOML value, never the value: it may be a secret in the
// wrong place.
func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64:
		return "a whole number"
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "nan or inf"
		}
		return "a number with a fraction"
	case time.Time:
		return "a date or time"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	}
	return "a list"
}

// orList writes "a", "b" or "c".
func orList(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	if len(quoted) < 2 {
		return strings.Join(quoted, "")
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}
