package ingest

import (
	"strings"
	"unicode/utf8"

	"ampcio/mapping"
)

const (
	defaultMinIDLength = 5    // characters, unless options.min_id_length says otherwise
	maxIDLength        = 1024 // characters; Amplitude cuts longer values, which would make one user of several
)

// noIDs are values that Amplitude does not take for an ID, in lower case: what programs send
// when they have none. Whether Amplitude minds the letter case is not documented; here it
// does not matter, since taking "Unknown" for a user would make one person of many.
// Source: https://amplitude.com/docs/apis/analytics/http-v2, "Device ID and User ID minimum length".
var noIDs = map[string]bool{
	"anonymous": true, "nil": true, "none": true, "null": true, "n/a": true, "na": true,
	"undefined": true, "unknown": true, "{}": true, "lmy47d": true, "0": true, "-1": true,
	"00000000-0000-0000-0000-000000000000": true,
}

type idVerdict uint8

const (
	idAbsent idVerdict = iota // the empty text counts as absent, as Amplitude's own examples send it
	idGood
	idShort
	idInvalid
)

func judgeID(id string, minLength int) idVerdict {
	if id == "" {
		return idAbsent
	}
	if len(id) <= len("00000000-0000-0000-0000-000000000000") && noIDs[strings.ToLower(id)] {
		return idInvalid
	}
	length := len(id)
	if length < 4*minLength || length > maxIDLength { // else it is long enough in any script
		length = utf8.RuneCountInString(id)
	}
	switch {
	case length < minLength:
		return idShort
	case length > maxIDLength:
		return idInvalid
	}
	return idGood
}

// checkIDs applies Amplitude's rules for user_id and device_id to e, the event at index. A bad
// ID beside a good one is dropped from e and the event taken; what is left without any goes into
// refused. A $groupidentify event needs none.
func checkIDs(e *mapping.Event, index, minLength int, refused *refusal) {
	user, device := judgeID(e.UserID, minLength), judgeID(e.DeviceID, minLength)
	if user == idGood && device == idGood {
		return
	}
	if user == idGood || device == idGood || e.Type == "$groupidentify" {
		if user != idGood {
			e.UserID = ""
		}
		if device != idGood {
			e.DeviceID = ""
		}
		return
	}
	if user == idAbsent && device == idAbsent {
		refused.missing.add("user_id", index)
		refused.missing.add("device_id", index)
		return
	}
	refused.addID("user_id", user, index)
	refused.addID("device_id", device, index)
}

func (f *refusal) addID(field string, verdict idVerdict, index int) {
	switch verdict {
	case idShort:
		f.lengths.add(field, index)
		f.invalid.add(field, index)
	case idInvalid:
		f.invalid.add(field, index)
	}
}
