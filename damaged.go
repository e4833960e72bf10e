package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// setAsideAt is the end of the name of a file that was set aside: when that was, in UTC.
var setAsideAt = regexp.MustCompile(`-(\d{8}T\d{6}(-\d+)?)$`)

// damagedNote tells of the damaged files that are kept, but of those in told, of which
// there is a note already; "" when there are none.
func damagedNote(dir string, told map[string]bool) string {
	dir = filepath.Join(dir, "damaged")
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return "damaged files that are kept cannot be listed: " + err.Error()
	}
	n, newest, newestAt := 0, "", ""
	for _, f := range files {
		if told[filepath.Join(dir, f.Name())] {
			continue
		}
		n++
		if at := setAsideAt.FindString(f.Name()); newest == "" || at > newestAt {
			newest, newestAt = f.Name(), at
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("1 damaged file, set aside earlier, is kept in %s: %s; nothing reads it any more", dir, newest)
	}
	return fmt.Sprintf("%d damaged files, set aside earlier, are kept in %s, the newest is %s; nothing reads them any more", n, dir, newest)
}

// earlierDamage is the note about what was set aside before this process started.
func (d *daemon) earlierDamage() string {
	told := map[string]bool{}
	for _, a := range d.records.SetAside() {
		told[a.Path] = true
	}
	for _, name := range d.names() {
		if c := d.consumer(name); c != nil && c.SetAside() != nil {
			told[c.SetAside().Path] = true
		}
	}
	return damagedNote(d.config().Storage.Dir, told)
}
