package mapping

import "sync/atomic"

// fewTexts gives the same string again for the same text, as long as there are few of them: types of events are, and each
// would be allocated with each event. It is safe for concurrent use.
type fewTexts struct{ slots [256]atomic.Pointer[string] }

// fewTextsMost bounds the bytes of one that is kept.
const fewTextsMost = 128

func (f *fewTexts) of(text []byte) string {
	if len(text) == 0 || len(text) > fewTextsMost {
		return string(text)
	}
	slot := &f.slots[nameKey(text)*0x9e3779b97f4a7c15>>56]
	kept := slot.Load()
	if kept != nil && *kept == string(text) {
		return *kept
	}
	made := string(text)
	if kept == nil { // who came first stays: many texts would only push out each other
		slot.Store(&made)
	}
	return made
}
