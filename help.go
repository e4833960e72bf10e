package main

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// helpMost is how wide a line of help is at most: longer ones are hard to read.
const helpMost = 110

// readableHelp has the help fit the terminal. Elsewhere, as for a man page, it stays as it
// was written.
func readableHelp() {
	cli.HelpPrinter = func(w io.Writer, templ string, data any) {
		columns := terminalColumns(w)
		if columns == 0 {
			cli.HelpPrinterCustom(w, templ, data, nil)
			return
		}
		columns = min(columns, helpMost)
		words := 0 // where those about a flag begin
		if c, is := data.(*cli.Command); is {
			for _, f := range c.VisibleFlags() {
				name, _, _ := strings.Cut(f.String(), "\t")
				words = max(words, 3+utf8.RuneCountInString(name)+2)
			}
		}
		cli.HelpPrinterCustom(w, templ, data, map[string]any{"wrap": func(s string, offset int) string { return fitted(s, offset, words, columns) }})
	}
}

// fitted breaks text for a terminal, all lines but the first behind offset spaces. What
// belongs together in a paragraph is filled anew; command lines and what is indented stay
// as they are. The words about a flag stand behind a tab, which is the column words.
func fitted(s string, offset, words, columns int) string {
	if name, about, isFlag := strings.Cut(s, "\t"); isFlag {
		return name + "\t" + strings.Join(filled(about, max(columns-words, 30)), "\n   \t")
	}
	room := max(columns-offset, 30)
	var out []string
	paragraph := ""
	end := func() {
		if paragraph != "" {
			out = append(out, filled(paragraph, room)...)
			paragraph = ""
		}
	}
	for line := range strings.SplitSeq(s, "\n") {
		switch {
		case line == "" || line[0] == ' ' || strings.HasPrefix(line, "ampcio "):
			end()
			out = append(out, line)
		default:
			paragraph += line + " "
		}
	}
	end()
	for i := range out[1:] {
		if out[i+1] != "" {
			out[i+1] = strings.Repeat(" ", offset) + out[i+1]
		}
	}
	return strings.Join(out, "\n")
}

// filled breaks a text between words.
func filled(s string, room int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > room {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
