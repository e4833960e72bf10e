package main

import (
	"fmt"
	"strings"
)

// roff writes a man page in the man macros, which groff and mandoc read alike.
type roff struct {
	strings.Builder
	titled bool // nothing was written since a title
}

// newRoff begins a page: its name, its section and what it is, in a line.
func newRoff(name string, section int, what string) *roff {
	r := &roff{}
	date, _, _ := strings.Cut(version().time, "T")
	fmt.Fprintf(r, ".TH %s %d \"%s\" \"ampcio\" \"System Administration\"\n", strings.ToUpper(name), section, date)
	// A word that is typed stays in one piece, and lines are not stretched.
	r.WriteString(".nh\n.ad l\n")
	r.section("Name")
	fmt.Fprintf(r, "%s \\- %s\n", roffText(name), roffText(what))
	r.titled = false
	return r
}

func (r *roff) section(title string) {
	fmt.Fprintf(r, ".SH %s\n", strings.ToUpper(roffText(title)))
	r.titled = true
}

func (r *roff) part(title string) {
	fmt.Fprintf(r, ".SS \"%s\"\n", roffQuoted(title))
	r.titled = true
}

// paragraph begins one; a title has done so already.
func (r *roff) paragraph() {
	if !r.titled {
		r.WriteString(".PP\n")
	}
	r.titled = false
}

// text writes prose: paragraphs are parted by empty lines. One whose first line begins
// with Example, or that is indented, keeps its lines.
func (r *roff) text(prose string) {
	for _, paragraph := range strings.Split(strings.Trim(prose, "\n"), "\n\n") {
		lines := strings.Split(paragraph, "\n")
		kept := len(lines)
		for i, line := range lines {
			if strings.HasPrefix(line, " ") || strings.HasPrefix(line, "Example") {
				kept = i
				break
			}
		}
		if kept > 0 {
			r.paragraph()
			for _, line := range lines[:kept] {
				r.line(line)
			}
		}
		if kept < len(lines) {
			r.asIs(lines[kept:])
		}
	}
}

// asIs writes lines as they stand, without the indent that they share.
func (r *roff) asIs(lines []string) {
	r.paragraph()
	r.WriteString(".nf\n")
	indent := -1
	for _, line := range lines {
		if n := len(line) - len(strings.TrimLeft(line, " ")); line != "" && (indent < 0 || n < indent) {
			indent = n
		}
	}
	for _, line := range lines {
		r.line(line[min(max(indent, 0), len(line)):])
	}
	r.WriteString(".fi\n")
}

// item writes what a word, typed like that, means.
func (r *roff) item(word, meaning string) {
	fmt.Fprintf(r, ".TP\n\\fB%s\\fR\n", roffText(word))
	r.titled = false
	r.line(meaning)
}

func (r *roff) line(s string) {
	s = roffText(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	r.WriteString(s + "\n")
}

// roffText makes text safe: what would be a command or a typographic sign is what was
// written, so that it can be copied into a shell.
func roffText(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch c {
		case '\\':
			b.WriteString(`\e`)
		case '-':
			b.WriteString(`\-`)
		case '\'':
			b.WriteString(`\(aq`)
		case '`':
			b.WriteString("\\(ga")
		case '^':
			b.WriteString(`\(ha`)
		case '~':
			b.WriteString(`\(ti`)
		default:
			if c > 126 {
				fmt.Fprintf(&b, `\[u%04X]`, c)
			} else {
				b.WriteRune(c)
			}
		}
	}
	return b.String()
}

// roffQuoted is roffText for an argument of a macro in quotation marks.
func roffQuoted(s string) string { return strings.ReplaceAll(roffText(s), `"`, `\(dq`) }
