package planted

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"ampcio-faults/scoreboard"
)

// awake is the source of a package that the product does not have: only what is built here imports it.
const awake = `package planted

import "os"

var name = os.Getenv("` + scoreboard.PlantedBug + `")

// Is says whether the bug of this name is awake.
func Is(bug string) bool { return bug == name }
`

var packageClause = regexp.MustCompile(`(?m)^package \w+$`)

// patched gives the product's files with the bugs in them, by their path below root.
func patched(root string, bugs []bug) (map[string][]byte, error) {
	files := map[string][]byte{filepath.Join("planted", "planted.go"): []byte(awake)}
	for _, b := range bugs {
		text, begun := files[b.file]
		if !begun {
			var err error
			if text, err = os.ReadFile(filepath.Join(root, b.file)); err != nil {
				return nil, fmt.Errorf("planted bug %s: %w", b.name, err)
			}
			at := packageClause.FindIndex(text)
			if at == nil {
				return nil, fmt.Errorf("planted bug %s: %s has no package clause", b.name, b.file)
			}
			// On the same line, so that a panic names the lines of the source.
			text = []byte(string(text[:at[1]]) + `; import "ampcio/planted"` + string(text[at[1]:]))
		}
		if n := bytes.Count(text, []byte(b.old)); n != 1 {
			return nil, fmt.Errorf("planted bug %s: %s has %d times, and should have once:\n%s\tmend the bug's patch in faults/planted/bugs.go", b.name, b.file, n, b.old)
		}
		if !strings.Contains(b.new, fmt.Sprintf("planted.Is(%q)", b.name)) {
			return nil, fmt.Errorf("planted bug %s does not sleep", b.name)
		}
		files[b.file] = bytes.Replace(text, []byte(b.old), []byte(b.new), 1)
	}
	return files, nil
}

// build makes an ampcio and a faults that have all the bugs in them, asleep, in a folder, and tells the overlay of which it
// made them. root is the product's folder, and the working directory that of this module.
func build(ctx context.Context, root, folder string, bugs []bug) (ampcio, faults, overlay string, err error) {
	fail := func(err error) (string, string, string, error) { return "", "", "", err }
	if root, err = filepath.Abs(root); err != nil {
		return fail(err)
	}
	files, err := patched(root, bugs)
	if err != nil {
		return fail(err)
	}
	replace := map[string]string{}
	for path, text := range files {
		to := filepath.Join(folder, "source", path)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fail(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return fail(err)
		}
		replace[filepath.Join(root, path)] = to
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return fail(err)
	}
	overlay, ampcio, faults = filepath.Join(folder, "overlay.json"), filepath.Join(folder, "ampcio"), filepath.Join(folder, "faults")
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		return fail(err)
	}
	for from, to := range map[string]string{root: ampcio, ".": faults} {
		c := exec.CommandContext(ctx, "go", "build", "-C", from, "-ldflags", "-s -w", "-overlay", overlay, "-o", to, ".") // nobody debugs these: half the time of a link
		if out, err := c.CombinedOutput(); err != nil {
			return fail(fmt.Errorf("build with planted bugs: %w\n%s", err, out))
		}
	}
	return ampcio, faults, overlay, nil
}
