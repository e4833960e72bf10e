package mapping

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Record is what is stored of one event, complete: nothing later depends on another record. Seq, Project, ID and
// Received live in the header of the queue's record; AppendBody and DecodeBody carry the rest.
type Record struct {
	Seq      uint64
	Project  string
	ID       [16]byte
	Received int64 // ms since 1970 UTC, our clock

	UserID, DeviceID string // resolved: UserID is the linked user when the event named none
	Time             int64  // ms since 1970 UTC, the event's, corrected (EventTime)
	Source           Source
	Address          string // peer IP
	Properties       []byte // user properties after this event, one compact JSON object; "{}" when there are none
	Partial          bool   // Properties carries only what some sync's rules name (very large sets); null is what had no room
	Snapshot         bool   // Properties came with the event, as all that the user had at Time
	Past             bool   // Properties are of the past: they are not the user's now, changed nothing, and are in no identify
	Login            bool   // of the webhook: the event itself named the user
	Sole             bool   // UserID is the first user that was seen on DeviceID, and no other has been since
	Links            bool   // of Sole: it became so with this event
	Raw              []byte // Event.Raw
	// What the user's built-in properties are after this event (packed, builtins.go): those that the event itself says, and
	// Beside; or, where the event has changed what was known, Builtins alone. Records of older programs have neither.
	Builtins, Beside []byte
	KeyID            uint64 // of the API key it came with, 0 = the project has one only

	// Of an import: which part of which archive, and the place in it that has been taken with this record.
	Part  [16]byte
	Place uint64
}

// LaneOfDevice is the lane of the events of a device on which nobody has logged in.
func LaneOfDevice(deviceID string) string { return "d" + deviceID }

// Bodies that say nothing new are written in version 1, which older programs read.
const (
	bodyVersion  = 2
	bodyPartial  = 1 << 0
	bodySnapshot = 1 << 1 // from version 2 on
	bodyPast     = 1 << 2 // from version 2 on
	bodyLogin    = 1 << 3 // from version 2 on
	bodySole     = 1 << 4 // in any version: programs that do not know it lose nothing by passing over it
	bodyLinks    = 1 << 5 // likewise

	tagPlace    = 1 // 16 bytes part, and the place as a uvarint
	tagBuiltins = 2
	tagBeside   = 3
	tagKeyID    = 16 // 8 bytes
)

var errShortBody = errors.New("record body ends early")

// AppendBody appends the stored form of r to dst, which may be nil. The form: one byte version; one byte flags; one byte
// source; the time as a varint; the lengths of user_id, device_id, address, properties and raw event as uvarints, then
// these five; then until the end any number of later fields, each a uvarint tag, a uvarint length and so many bytes,
// which a reader that does not know the tag skips.
func (r *Record) AppendBody(dst []byte) []byte {
	version, flags := byte(1), byte(0)
	if r.Partial {
		flags |= bodyPartial
	}
	if r.Snapshot {
		version, flags = bodyVersion, flags|bodySnapshot
	}
	if r.Past {
		version, flags = bodyVersion, flags|bodyPast
	}
	if r.Login {
		version, flags = bodyVersion, flags|bodyLogin
	}
	if r.Sole {
		flags |= bodySole
	}
	if r.Links {
		flags |= bodyLinks
	}
	if r.Place > 0 {
		version = bodyVersion
	}
	dst = append(dst, version, flags, byte(r.Source))
	dst = binary.AppendVarint(dst, r.Time)
	dst = binary.AppendUvarint(dst, uint64(len(r.UserID)))
	dst = binary.AppendUvarint(dst, uint64(len(r.DeviceID)))
	dst = binary.AppendUvarint(dst, uint64(len(r.Address)))
	dst = binary.AppendUvarint(dst, uint64(len(r.Properties)))
	dst = binary.AppendUvarint(dst, uint64(len(r.Raw)))
	dst = append(dst, r.UserID...)
	dst = append(dst, r.DeviceID...)
	dst = append(dst, r.Address...)
	dst = append(dst, r.Properties...)
	dst = append(dst, r.Raw...)
	for _, f := range [...]struct {
		tag   byte
		value []byte
	}{{tagBuiltins, r.Builtins}, {tagBeside, r.Beside}} {
		if len(f.value) > 0 {
			dst = binary.AppendUvarint(append(dst, f.tag), uint64(len(f.value)))
			dst = append(dst, f.value...)
		}
	}
	if r.KeyID != 0 {
		dst = append(binary.AppendUvarint(dst, tagKeyID), 8)
		dst = binary.BigEndian.AppendUint64(dst, r.KeyID)
	}
	if r.Place > 0 {
		var place [16 + binary.MaxVarintLen64]byte
		n := copy(place[:], r.Part[:])
		n += binary.PutUvarint(place[n:], r.Place)
		dst = append(binary.AppendUvarint(append(dst, tagPlace), uint64(n)), place[:n]...)
	}
	return dst
}

// DecodeBody sets every field but the four of the header. What is bytes aliases body. A body of a newer version, or a
// damaged one, is an error, and then r is unchanged.
func (r *Record) DecodeBody(body []byte) error {
	if len(body) < 3 {
		return errShortBody
	}
	if body[0] == 0 || body[0] > bodyVersion {
		return fmt.Errorf("record body has version %d, this program reads up to %d", body[0], bodyVersion)
	}
	flags, source, rest := body[1], Source(body[2]), body[3:]
	time, n := binary.Varint(rest)
	if n <= 0 {
		return errShortBody
	}
	rest = rest[n:]
	var lengths [5]int
	total := 0
	for i := range lengths {
		length, n := binary.Uvarint(rest)
		if n <= 0 || length > uint64(len(body)) {
			return errShortBody
		}
		rest = rest[n:]
		lengths[i] = int(length)
		total += int(length)
	}
	if total > len(rest) {
		return errShortBody
	}
	user, device, address := lengths[0], lengths[1], lengths[2]
	names := string(rest[:user+device+address]) // one allocation for the three
	rest = rest[len(names):]
	properties, rest := rest[:lengths[3]:lengths[3]], rest[lengths[3]:]
	raw, rest := rest[:lengths[4]:lengths[4]], rest[lengths[4]:]
	var part [16]byte
	place, keyID := uint64(0), uint64(0)
	var builtins, beside []byte
	for len(rest) > 0 { // later fields; those of later programs are passed over
		tag, n := binary.Uvarint(rest)
		if n <= 0 {
			return errShortBody
		}
		length, m := binary.Uvarint(rest[n:])
		if m <= 0 || length > uint64(len(rest)-n-m) {
			return errShortBody
		}
		field := rest[n+m : n+m+int(length)]
		rest = rest[n+m+int(length):]
		switch {
		case tag == tagKeyID && len(field) == 8:
			keyID = binary.BigEndian.Uint64(field)
		case tag == tagBuiltins:
			builtins = field
		case tag == tagBeside:
			beside = field
		case tag == tagPlace:
			if n = copy(part[:], field); n < len(part) {
				return errShortBody
			}
			if place, n = binary.Uvarint(field[len(part):]); n <= 0 {
				return errShortBody
			}
		}
	}
	r.KeyID, r.Builtins, r.Beside = keyID, builtins, beside
	r.UserID, r.DeviceID, r.Address = names[:user], names[user:user+device], names[user+device:]
	r.Time, r.Source, r.Partial = time, source, flags&bodyPartial != 0
	r.Snapshot, r.Past, r.Login = flags&bodySnapshot != 0, flags&bodyPast != 0, flags&bodyLogin != 0
	r.Sole, r.Links = flags&bodySole != 0, flags&bodyLinks != 0
	r.Part, r.Place = part, place
	r.Properties, r.Raw = properties, raw
	return nil
}
