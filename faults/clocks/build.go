package clocks

import (
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"ampcio-faults/clocks/jumping"
	"ampcio-faults/scoreboard"
)

//go:embed jumping/jumping.go
var jumpingSource []byte

var (
	packageClause = regexp.MustCompile(`(?m)^package \w+\b`)
	now           = regexp.MustCompile(`\btime\.(Now|Since|Until)\b`)
	written       = regexp.MustCompile(`\b(\w+)\.ModTime\(\)`)
)

// program is what build makes.
const program = "ampcio"

// build makes an ampcio that goes by a clock of ours, in a folder. A static program has no other door for it: what can
// be put before a program's calls reaches only those that libc makes, and the machine's own clock belongs to everybody.
func build(ctx context.Context, root, folder string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	replaced, err := scoreboard.Planted()
	if err != nil {
		return err
	}
	if replaced == nil {
		replaced = map[string]string{}
	}
	put := func(path string, text []byte) error {
		to := filepath.Join(folder, "source", path)
		replaced[filepath.Join(root, path)] = to
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o600)
	}
	if err := put("jumping/jumping.go", jumpingSource); err != nil {
		return err
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root || e.Name() == "testdata" || strings.HasPrefix(e.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		from := path
		if planted, is := replaced[path]; is {
			from = planted
		}
		text, err := os.ReadFile(from)
		if err != nil || !now.Match(text) && !written.Match(text) {
			return err
		}
		at := packageClause.FindIndex(text)
		if at == nil {
			return fmt.Errorf("%s has no package clause", path)
		}
		body := now.ReplaceAllString(string(text[at[1]:]), "jumping.$1")
		body = written.ReplaceAllString(body, "jumping.Written($1.ModTime())")
		imports := `; import "ampcio/jumping"`
		if !strings.Contains(body, `"time"`) {
			imports += `; import "time"`
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return put(rel, []byte(string(text[:at[1]])+imports+body+"\nvar _ time.Time\n"))
	})
	if err != nil {
		return err
	}
	list, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return err
	}
	overlay, to := filepath.Join(folder, "overlay.json"), filepath.Join(folder, program)
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "go", "build", "-C", root, "-ldflags", "-s -w", "-overlay", overlay, "-o", to, ".") // as for planted bugs: half the time of a link
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build with a clock of ours: %w\n%s", err, out)
	}
	return nil
}

// A clock is set for a daemon that was built here.
type clock struct {
	file  *os.File
	times int
	ahead time.Duration // of the real clock
}

func newClock(path string) (*clock, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &clock{file: f}, f.Truncate(jumping.Bytes)
}

// set moves the clock, forward or back.
func (c *clock) set(by time.Duration) error {
	if c.times == jumping.Most {
		return fmt.Errorf("the clock was set %d times", c.times)
	}
	c.ahead += by
	c.times++
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], uint64(time.Now().UnixNano()))
	binary.NativeEndian.PutUint64(b[8:], uint64(c.ahead/time.Second))
	if _, err := c.file.WriteAt(b[:], int64(8+16*(c.times-1))); err != nil {
		return err
	}
	binary.NativeEndian.PutUint64(b[:], uint64(c.times))
	_, err := c.file.WriteAt(b[:8], 0)
	return err
}
