package config

import (
	"maps"
	"reflect"
	"slices"
)

// Changes are the paths of the keys whose values differ between two configurations,
// in the order of the schema: "storage.max_bytes", "sync.production.users.properties".
// Of a project or sync that only one of them has it is the path of the table. Where a
// value was written counts for nothing, only what it is.
func Changes(before, after *Config) []string {
	var paths []string
	differing("", reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem(), func(path string) { paths = append(paths, path) })
	return paths
}

func differing(path string, before, after reflect.Value, report func(path string)) {
	t := before.Type()
	switch {
	case t.Kind() == reflect.Struct && len(keys(t)) > 0:
		for _, f := range reflect.VisibleFields(t) {
			if name := f.Tag.Get("toml"); slices.Contains(keys(t), name) {
				differing(join(path, name), before.FieldByIndex(f.Index), after.FieldByIndex(f.Index), report)
			}
		}
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct:
		names := map[string]bool{}
		for _, m := range []reflect.Value{before, after} {
			for _, name := range m.MapKeys() {
				names[name.String()] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			a, b := before.MapIndex(reflect.ValueOf(name)), after.MapIndex(reflect.ValueOf(name))
			if a.IsValid() && b.IsValid() {
				differing(join(path, name), a, b, report)
			} else {
				report(join(path, name))
			}
		}
	case !reflect.DeepEqual(before.Interface(), after.Interface()):
		report(path)
	}
}
