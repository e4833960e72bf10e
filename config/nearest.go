package config

import (
	"reflect"
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

// nearest returns the known word that written most likely stands for, and by how
// many letters they differ; "" when none is close.
func nearest(written string, known []string) (string, int) {
	plain := strings.ToLower(strings.ReplaceAll(written, "-", "_"))
	best, distance := "", 1+len(written)/4
	for _, k := range known {
		if d := smetrics.WagnerFischer(plain, k, 1, 1, 1); d <= distance && (best == "" || d < distance) {
			best, distance = k, d
		}
	}
	return best, distance
}

// keys are the names of the keys of the schema's table t.
func keys(t reflect.Type) []string {
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("toml"); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// schemaTables calls f with the path of every table of the schema, where NAME stands
// for a name its writer chooses. A table in a list has [] at its end.
func schemaTables(path string, t reflect.Type, f func(path string, t reflect.Type)) {
	switch t.Kind() {
	case reflect.Slice:
		schemaTables(path+"[]", t.Elem(), f)
	case reflect.Map:
		schemaTables(path+".NAME", t.Elem(), f)
	case reflect.Struct:
		names := keys(t)
		if len(names) == 0 {
			return // netip.Prefix and the like: a value
		}
		f(path, t)
		for _, field := range reflect.VisibleFields(t) {
			if name := field.Tag.Get("toml"); slices.Contains(names, name) {
				schemaTables(join(path, name), field.Type, f)
			}
		}
	}
}

// tablesWith are the paths of the tables that know key, as schemaTables gives them;
// when some of them are of the sync or project in which key was written (at inside),
// only those, with its name.
func tablesWith(key, inside string) []string {
	var same, all []string
	here := strings.SplitN(inside, ".", 3)
	schemaTables("", reflect.TypeFor[Config](), func(path string, t reflect.Type) {
		if path == "" || !slices.Contains(keys(t), key) {
			return
		}
		there := strings.SplitN(path, ".", 3)
		if len(here) > 1 && len(there) > 1 && here[0] == there[0] {
			there[1] = here[1]
			same = append(same, strings.Join(there, "."))
		}
		all = append(all, path)
	})
	if len(same) > 0 {
		return same
	}
	return all
}
