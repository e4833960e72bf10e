package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// Environment is what Load takes from outside of the file.
type Environment struct {
	// Getenv looks up CREDENTIALS_DIRECTORY and AMPCIO_SYNC_<NAME>_API_KEY; os.Getenv
	// outside of tests. nil is an empty environment.
	Getenv func(string) string
	// NoSecrets leaves keys alone: no key file is opened and no key is required. For
	// verbs that only read, and may be run by somebody who cannot read the key files.
	NoSecrets bool
}

// Error is one thing wrong with a configuration.
type Error struct {
	File    string
	Line    int    // from 1; 0 = it has none, since nothing was written
	Path    string // dotted, indexes from 0: sync.production.select[2].where[1].op; "" for broken TOML
	Message string
	Missing []Missing // it is nothing wrong, but still to be written; see Unfilled
	err     error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

func (e *Error) Unwrap() error { return e.err }

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Load reads the file at path, decodes it strictly over the defaults, finds the keys
// and checks everything. The error joins every *Error found, in order of lines; each
// prints as "FILE:LINE: PATH: what is wrong and what to do". A file that cannot be
// opened gives an error that wraps fs.ErrNotExist or fs.ErrPermission. No error ever
// carries a Customer.io API key.
func Load(path string, env Environment) (*Config, error) {
	text, info, err := readFile(path, maxFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w: copy config.toml.example there and fill in its four values, or name another file with --config or $AMPCIO_CONFIG", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parse(path, text, info.Mode(), env)
}

// parse is Load without the reading; mode is that of the file.
func parse(path string, text []byte, mode fs.FileMode, env Environment) (*Config, error) {
	if env.Getenv == nil {
		env.Getenv = func(string) string { return "" }
	}
	source := strings.TrimPrefix(string(text), "\ufeff")
	var values map[string]any
	if _, err := toml.Decode(source, &values); err != nil {
		return nil, broken(path, source, err)
	}
	c := Default()
	c.places = &places{file: path, line: scan(source)}
	found := &problems{places: c.places, reported: map[string]bool{}}
	decoder{found}.table("", values, reflect.ValueOf(&c).Elem())
	check := checker{Config: &c, problems: found, env: env, open: mode.Perm()&0o007 != 0, folder: filepath.Dir(path)}
	check.all()
	if err := found.joined(); err != nil {
		return nil, err
	}
	c.Warnings = found.warnings
	return &c, nil
}

// problems collects what is wrong.
type problems struct {
	places   *places
	errors   []*Error
	warnings []string
	reported map[string]bool // paths of which something is known to be wrong
}

// add reports an error at path. It returns false, for callers that return whether
// all was well.
func (p *problems) add(path, format string, args ...any) bool {
	err := fmt.Errorf(format, args...)
	p.reported[path] = true
	p.errors = append(p.errors, &Error{File: p.places.file, Line: p.places.find(path), Path: path, Message: err.Error(), err: errors.Unwrap(err)})
	return false
}

// check reports an error at path unless something is known to be wrong there, in it
// or around it: then this would only follow from that.
func (p *problems) check(path, format string, args ...any) {
	inside := func(a, b string) bool {
		rest, ok := strings.CutPrefix(a, b)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	for r := range p.reported {
		if inside(r, path) || inside(path, r) {
			return
		}
	}
	p.add(path, format, args...)
}

func (p *problems) warn(path, format string, args ...any) {
	e := Error{File: p.places.file, Line: p.places.find(path), Path: path, Message: fmt.Sprintf(format, args...)}
	p.warnings = append(p.warnings, e.Error())
}

func (p *problems) joined() error {
	slices.SortStableFunc(p.errors, func(a, b *Error) int {
		if (a.Line == 0) != (b.Line == 0) {
			return b.Line - a.Line // what was not written at all comes last
		}
		return cmp.Or(a.Line-b.Line, cmp.Compare(a.Path, b.Path))
	})
	list := make([]error, len(p.errors))
	for i, e := range p.errors {
		list[i] = e
	}
	return errors.Join(list...)
}

// secretKey finds lines on which a secret may stand, also when its name is misspelt
// or it was written in place of the name of its file.
var secretKey = regexp.MustCompile(`(?i)(^|[^a-z0-9_-])(api[_-]?key(_file)?|secret|password|token|url(_file)?)([^a-z0-9_-]|$)`)

// broken turns the toml library's syntax error into an Error that shows the line and
// where in it, but not if that line may hold a secret.
func broken(path, source string, err error) error {
	var syntax toml.ParseError
	if !errors.As(err, &syntax) {
		return &Error{File: path, Message: err.Error(), err: err}
	}
	at := syntax.Position
	lines := strings.Split(source, "\n")
	line := ""
	if at.Line >= 1 && at.Line <= len(lines) {
		line = strings.TrimSuffix(lines[at.Line-1], "\r")
	}
	if secretKey.MatchString(line) || secretKey.MatchString(syntax.LastKey) {
		return &Error{File: path, Line: at.Line, Message: "broken TOML near a secret, so the line is not shown: a value needs quotes at both ends and ends with its line"}
	}
	message := "broken TOML: " + syntax.Message
	if strings.HasPrefix(syntax.Message, "expected value but found") {
		message += " (text needs quotes)"
	}
	if strings.Contains(syntax.Message, "already been") {
		message += " (a table or key may stand only once: put its lines together)"
	}
	before := line[:min(max(at.Col-1, 0), len(line))]
	pointed := line[len(before):min(len(before)+max(at.Len, 0), len(line))]
	indent := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, before)
	carets := strings.Repeat("^", max(utf8.RuneCountInString(pointed), 1))
	return &Error{File: path, Line: at.Line, Message: message + "\n    " + line + "\n    " + indent + carets}
}

// readFile reads a file of at most limit bytes. With regular, only a plain file will
// do, so that a pipe or a device cannot hold up the start.
func readFile(path string, limit int64, regular bool) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		if wrapped, ok := errors.AsType[*fs.PathError](err); ok {
			wrapped.Op = "open"
		}
		return nil, nil, err
	}
	if info.IsDir() {
		return nil, nil, fmt.Errorf("%s is a folder", path)
	}
	if regular && !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a plain file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(text)) > limit {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return text, info, nil
}
