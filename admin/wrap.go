package admin

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// wrap breaks a text into rows. Commands and keys with their values stay in one piece,
// to be copied, even where that makes a row longer.
func wrap(s string, width int) (rows []string) { return wrapPieces(pieces(s), width) }

func wrapPieces(pieces []string, width int) (rows []string) {
	row := ""
	for _, piece := range pieces {
		if row != "" && text.StringWidthWithoutEscSequences(row)+1+text.StringWidthWithoutEscSequences(piece) > width {
			rows = append(rows, row)
			row = ""
		}
		if row != "" {
			row += " "
		}
		row += piece
	}
	return append(rows, row)
}

// pieces are the words of a text, or several where a command or a key begins: a command
// goes on to the next punctuation.
func pieces(s string) (out []string) {
	words := strings.Fields(s)
	for len(words) > 0 {
		n := 1
		switch strings.TrimLeft(words[0], "(") {
		case "ampcio", "systemctl", "df", "journalctl", "certbot":
			for n < len(words) && strings.IndexByte(",;:.)", words[n-1][len(words[n-1])-1]) < 0 {
				n++
			}
		default:
			if len(words) > 2 && words[1] == "=" {
				n = 3
			}
		}
		out = append(out, strings.Join(words[:n], " "))
		words = words[n:]
	}
	return out
}
