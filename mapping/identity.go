package mapping

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/oklog/ulid/v2"
)

// EventID is the identity of an event that carries an insert_id: the first 128 bits of SHA-256 over "ampcio1", project,
// kind, id and insertID, each preceded by its length in bytes as a big-endian uint32. kind is "device", or "user" when
// the event names no device. Whoever sends the event again, a client, a replay or a restart, gives it the same identity,
// and Customer.io ignores the repeat.
func EventID(project, kind, id, insertID string) [16]byte {
	var space [256]byte
	b := appendPart(space[:0], "ampcio1")
	b = appendPart(b, project)
	b = appendPart(b, kind)
	b = appendPart(b, id)
	b = appendPart(b, insertID)
	return firstHalf(b)
}

// PlaceID is the identity of an event without an insert_id: where it was stored. The nonce is the random one of its
// chunk of the log, index its place in that chunk. It guards against our own repeats, not against the sender's.
func PlaceID(nonce [16]byte, index int) [16]byte {
	var space [64]byte
	b := appendPart(space[:0], "ampcio1")
	b = appendPart(b, "place")
	b = binary.BigEndian.AppendUint32(b, uint32(len(nonce)))
	b = append(b, nonce[:]...)
	b = binary.BigEndian.AppendUint32(b, 4)
	b = binary.BigEndian.AppendUint32(b, uint32(index))
	return firstHalf(b)
}

// ULID writes an identity in the 26 characters that Customer.io wants for an event's id. All 128 bits are ours: the part
// that is elsewhere a time says nothing here.
func ULID(id [16]byte) string { return ulid.ULID(id).String() }

func appendULID(dst []byte, id [16]byte) []byte {
	dst = slices.Grow(dst, ulid.EncodedSize)
	end := len(dst) + ulid.EncodedSize
	_ = ulid.ULID(id).MarshalTextTo(dst[len(dst):end]) // it has the one size that is right
	return dst[:end]
}

func appendPart(dst []byte, part string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(part)))
	return append(dst, part...)
}

func firstHalf(b []byte) (id [16]byte) {
	sum := sha256.Sum256(b)
	copy(id[:], sum[:])
	return id
}
