package config

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// The toml library knows the line of a syntax error but not of a value that was read
// well and is wrong. So a second, small reader notes the line of every key. It
// trusts that the library has accepted the text, and stops quietly where it does not
// understand it.

// places maps paths such as "sync.production.select[2].where[1].op" (indexes from 0)
// to lines, from 1.
type places struct {
	file string
	line map[string]int
}

// find returns the line of path or, when it is not in the file, of what encloses it;
// 0 when nothing does.
func (p *places) find(path string) int {
	for path != "" {
		if line := p.line[path]; line != 0 {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// Locate returns "FILE:LINE: " for a dotted path such as
// "sync.production.select[2].where[1].op", with indexes from 0. A path that is not in
// the file has the line of the nearest thing around it that is; "" when there is none.
func (c *Config) Locate(path string) string {
	if c.places == nil {
		return ""
	}
	line := c.places.find(path)
	if line == 0 {
		return ""
	}
	return c.places.file + ":" + strconv.Itoa(line) + ": "
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// join appends key to path as TOML would write it.
func join(path, key string) string {
	if !bareKey.MatchString(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func item(path string, index int) string {
	return path + "[" + strconv.Itoa(index) + "]"
}

// maxDepth bounds how deep tables and lists may lie in each other: the schema has 7
// levels, and the paths of very deep ones would fill the memory.
const maxDepth = 64

type scanner struct {
	text   string
	pos    int
	row    int
	depth  int
	lines  map[string]int
	tables map[string]int // how many [[path]] there were
}

// scan notes the line of every table, key and list item of valid TOML.
func scan(text string) map[string]int {
	s := scanner{text: text, row: 1, lines: map[string]int{}, tables: map[string]int{}}
	table := ""
	for s.blank(true); s.pos < len(s.text); s.blank(true) {
		ok := false
		if s.text[s.pos] == '[' {
			table, ok = s.header()
		} else {
			ok = s.keyValue(table)
		}
		if !ok {
			break
		}
		s.until("\n")
	}
	return s.lines
}

func (s *scanner) note(path string) {
	if s.lines[path] == 0 {
		s.lines[path] = s.row
	}
}

// header reads [a.b] or [[a.b]] and returns the table's path.
func (s *scanner) header() (string, bool) {
	brackets := 1
	if strings.HasPrefix(s.text[s.pos:], "[[") {
		brackets = 2
	}
	s.pos += brackets
	names, ok := s.key()
	path := ""
	for i, name := range names {
		path = join(path, name)
		last := i == len(names)-1
		if last {
			delete(s.lines, path) // a sub-table that came before has noted its own line
		}
		s.note(path)
		if last && brackets == 2 {
			s.tables[path]++
		}
		if n := s.tables[path]; n > 0 {
			path = item(path, n-1)
			s.note(path)
		}
	}
	return path, ok
}

func (s *scanner) keyValue(table string) bool {
	names, ok := s.key()
	if !ok {
		return false
	}
	path := table
	for _, name := range names {
		path = join(path, name)
		s.note(path)
	}
	s.blank(false)
	if s.pos >= len(s.text) || s.text[s.pos] != '=' {
		return false
	}
	s.pos++
	s.blank(false)
	return s.value(path)
}

// key reads a dotted key.
func (s *scanner) key() ([]string, bool) {
	var names []string
	for {
		s.blank(false)
		start := s.pos
		if s.pos < len(s.text) && (s.text[s.pos] == '"' || s.text[s.pos] == '\'') {
			if !s.quoted() {
				return names, false
			}
			name := s.text[start+1 : s.pos-1]
			if s.text[start] == '"' {
				name = unquote(s.text[start:s.pos])
			}
			names = append(names, name)
		} else {
			for s.pos < len(s.text) && !strings.ContainsRune(" \t\r\n.=]", rune(s.text[s.pos])) {
				s.pos++
			}
			if s.pos == start {
				return names, false
			}
			names = append(names, s.text[start:s.pos])
		}
		s.blank(false)
		if s.pos >= len(s.text) || s.text[s.pos] != '.' {
			return names, true
		}
		if len(names) == maxDepth {
			return names, false
		}
		s.pos++
	}
}

// unquote reads a string in double quotes; TOML's escapes are not Go's.
func unquote(quoted string) string {
	var v struct{ K string }
	if _, err := toml.Decode("K = "+quoted, &v); err != nil {
		return quoted
	}
	return v.K
}

func (s *scanner) value(path string) bool {
	s.depth++
	defer func() { s.depth-- }()
	if s.pos >= len(s.text) || s.depth > maxDepth {
		return false
	}
	switch s.text[s.pos] {
	case '"', '\'':
		return s.quoted()
	case '[':
		s.pos++
		for i := 0; ; i++ {
			if s.separators(); s.pos < len(s.text) && s.text[s.pos] == ']' {
				s.pos++
				return true
			}
			s.note(item(path, i))
			if !s.value(item(path, i)) {
				return false
			}
		}
	case '{':
		s.pos++
		for {
			if s.separators(); s.pos < len(s.text) && s.text[s.pos] == '}' {
				s.pos++
				return true
			}
			if !s.keyValue(path) {
				return false
			}
		}
	default:
		start := s.pos
		s.until(",]}#\n")
		return s.pos > start
	}
}

// quoted passes over a string of any of the four kinds.
func (s *scanner) quoted() bool {
	mark := s.text[s.pos : s.pos+1]
	escapes := mark == `"`
	if long := strings.Repeat(mark, 3); strings.HasPrefix(s.text[s.pos:], long) {
		mark = long
	}
	s.pos += len(mark)
	for s.pos < len(s.text) {
		switch {
		case escapes && s.text[s.pos] == '\\':
			s.step()
			s.step()
		case strings.HasPrefix(s.text[s.pos:], mark):
			s.pos += len(mark)
			// A long string may end in one or two quotes of its own.
			for i := 0; i < 2 && len(mark) == 3 && s.pos < len(s.text) && s.text[s.pos] == mark[0]; i++ {
				s.pos++
			}
			return true
		default:
			s.step()
		}
	}
	return false
}

// step passes over one byte.
func (s *scanner) step() {
	if s.pos < len(s.text) {
		if s.text[s.pos] == '\n' {
			s.row++
		}
		s.pos++
	}
}

// until passes over what comes before any of stops.
func (s *scanner) until(stops string) {
	for s.pos < len(s.text) && strings.IndexByte(stops, s.text[s.pos]) < 0 {
		s.step()
	}
}

// blank passes over white space and, with newlines, over line ends and comments.
func (s *scanner) blank(newlines bool) {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t' || c == '\r' || newlines && c == '\n':
			s.step()
		case newlines && c == '#':
			s.until("\n")
		default:
			return
		}
	}
}

// separators passes over what may stand between the items of a list or table.
func (s *scanner) separators() {
	for s.blank(true); s.pos < len(s.text) && s.text[s.pos] == ','; s.blank(true) {
		s.pos++
	}
}
