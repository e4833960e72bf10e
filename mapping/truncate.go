package mapping

import (
	"bytes"
	"unicode/utf8"
)

// maxText is how many characters Amplitude keeps of a text. Longer ones are cut, not refused (HTTP V2 page).
const maxText = 1024

// CutTexts cuts the texts of an event that are too long, in unknown fields too, as Amplitude does when it takes one in. event
// is the Raw of an Event, and is given back itself when there is nothing to cut. Names stay whole, and so do IDs: cut
// ones would make one user, or one event, of several.
func CutTexts(event []byte) []byte {
	if len(event) <= maxText {
		return event
	}
	var out []byte
	copied := 0 // bytes of event
	for w := walkObject(event); w.next(); {
		if len(w.value) <= maxText {
			continue
		}
		switch string(plainText(w.name)) {
		case "user_id", "device_id", "insert_id", "uuid":
			continue
		}
		for start, end := w.pos-len(w.value), w.pos; start < end; {
			next := bytes.IndexByte(event[start:end], '"')
			if next < 0 {
				break
			}
			from := start + next
			start = skipString(event, from)
			keep := from + 1 + firstCharacters(event[from+1:start-1], maxText)
			if keep == start-1 || isName(event[start:end]) {
				continue
			}
			out = append(append(out, event[copied:keep]...), '"')
			copied = start
		}
	}
	if out == nil {
		return event
	}
	return append(out, event[copied:]...)
}

// isName says whether what stood before rest was the name of a member.
func isName(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return len(rest) > 0 && rest[0] == ':'
}

// firstCharacters is how many bytes the first n characters of the inside of a JSON text have. An escape is one
// character, and so are the two escapes of a pair of surrogates.
func firstCharacters(inside []byte, n int) int {
	if len(inside) <= n {
		return len(inside)
	}
	i := 0
	for ; i < len(inside) && n > 0; n-- {
		switch {
		case inside[i] != '\\':
			_, size := utf8.DecodeRune(inside[i:])
			i += size
		case inside[i+1] != 'u':
			i += 2
		default:
			unit, _ := escapedUnit(inside[i:])
			if i += 6; unit >= 0xd800 && unit < 0xdc00 {
				i += 6 // halves without the other are repaired before
			}
		}
	}
	return min(i, len(inside))
}
