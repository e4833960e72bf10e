package mapping

import (
	"bytes"
	"unicode/utf8"
)

// maxText is how many characters Amplitude keeps of a text. Longer ones are cut, not refused (HTTP V2 page).
const maxText = 1024

// CutTexts cuts the texts of an event that are too long, in unknown fields too, as Amplitude does when it takes one in. event
// is the Raw of an Event, and is given back itself when there is nothing to cut. Names stay whole, and so do IDs: cut
// ones would make one user, or one event, of several. The receipts of a store stay whole as well, in both the places where
// the SDKs put them without cutting them: of a part of one Amplitude could verify no revenue that is passed on to it.
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
		switch string(w.nameText()) {
		case "user_id", "device_id", "insert_id", "uuid", "api_properties":
			continue
		}
		for start, end := w.pos-len(w.value), w.pos; start < end; {
			next := bytes.IndexByte(event[start:end], '"')
			if next < 0 {
				break
			}
			from := start + next
			start = skipString(event, from)
			if value := valueBehind(event[:end], start); value >= 0 {
				if isReceipt(plainText(event[from:start])) {
					start = skipValue(event, value)
				}
				continue
			}
			keep := from + 1 + firstCharacters(event[from+1:start-1], maxText)
			if keep == start-1 {
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

// valueBehind is where the value of a member begins whose name ends at data[pos]; -1 when what ends there is no name.
func valueBehind(data []byte, pos int) int {
	w := walk{data: data, pos: pos}
	if w.space(); w.pos >= len(data) || data[w.pos] != ':' {
		return -1
	}
	w.pos++
	w.space()
	return w.pos
}

func isReceipt(name []byte) bool { return string(name) == "$receipt" || string(name) == "$receiptSig" }

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
