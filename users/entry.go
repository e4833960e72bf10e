package users

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// kind says what an entry is about. It is also the first letter of a lane.
type kind byte

const (
	user   kind = 'u'
	device kind = 'd'
)

// state is what is known of one user or device. It shares the memory of the block or
// stored value that it was read from.
type state struct {
	seq        uint64 // of the last record that changed it
	seen       uint32 // hour since 1970 of that change, for expiry
	asOf       asOf   // of its properties, and of a device's link
	user       []byte // of a device: the user it was last linked to; empty = none
	sole       bool   // of a device: no other user was seen on it before
	properties []byte // JSON object; empty = none
	builtins   []byte // built-in properties, packed (mapping); empty = none
	recent     recent
}

// expire forgets what is too old at hour: expiry is computed from stored times at
// each look, so that it needs no timer and a restart does not defer it. It says
// whether it took away a part that costs space: properties, or all insert_ids.
func (s *state) expire(k kind, hour, unlinkedHours uint32) (changed bool) {
	age := int64(hour) - int64(s.seen)
	if s.recent.n > 0 {
		if age > recentHours {
			s.recent.head, s.recent.n = 0, 0
		} else {
			s.recent.prune(hour)
		}
		changed = s.recent.n == 0
	}
	if (len(s.properties)+len(s.builtins) > 0 || s.asOf != 0) && k == device && len(s.user) == 0 && age > int64(unlinkedHours) {
		s.properties, s.builtins, s.asOf = nil, nil, 0
		changed = true
	}
	return changed
}

// The value of an entry in users.db:
//
//	1 byte   version
//	4 bytes  CRC-32C (little-endian) over the kind, the key and all that follows:
//	         bbolt has no page checksum, and 21 % of random bit flips pass its check
//	uvarint  seq
//	uvarint  seen
//	fields   tag, length (uvarints) and that many bytes; unknown tags are passed over
const (
	entryVersion  = 1
	entryHeader   = 1 + 4
	tagUser       = 1
	tagProperties = 2
	tagRecent     = 3
	tagAsOf       = 4 // a uvarint; absent = 0, as in what versions before it have written
	tagBuiltins   = 5 // absent = none, likewise
	tagSole       = 6 // of no bytes; absent = not so, or not known, as in what versions before it have written
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errEntry = errors.New("entry is damaged")

// longID is the length in bytes above which an id's hash stands in its key: bbolt
// takes no key above 32 kB, and long keys make a poor tree.
const longID = 512

// appendKey gives the key of an entry in its kind's bucket: twice the length of the
// project's name, plus 1 when a hash follows (uvarint); the name; the id or its SHA-256.
func appendKey[ID string | []byte](dst []byte, project string, id ID) []byte {
	if len(id) > longID {
		dst = binary.AppendUvarint(dst, uint64(len(project))<<1|1)
		sum := sha256.Sum256([]byte(id))
		return append(append(dst, project...), sum[:]...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(project))<<1)
	return append(append(dst, project...), id...)
}

// splitKey gives the parts of a key; false when a hash stands for the id.
func splitKey(key []byte) (project, id string, ok bool) {
	n, m := binary.Uvarint(key)
	if m <= 0 || n&1 == 1 || n>>1 > uint64(len(key)-m) {
		return "", "", false
	}
	key = key[m:]
	return string(key[:n>>1]), string(key[n>>1:]), true
}

func entrySum(k kind, key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, []byte{byte(k)})
	sum = crc32.Update(sum, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, value[:1])
	return crc32.Update(sum, castagnoli, value[entryHeader:])
}

// seal gives a value its checksum. It takes time in proportion to the value, so it
// is done where nobody waits.
func seal(k kind, key, value []byte) {
	binary.LittleEndian.PutUint32(value[1:], entrySum(k, key, value))
}

// wholeEntry says whether a value is what was written under a key.
func wholeEntry(k kind, key, value []byte) bool {
	return len(value) >= entryHeader && value[0] == entryVersion && entrySum(k, key, value) == binary.LittleEndian.Uint32(value[1:])
}

// appendEntry appends the stored value of s, but for its checksum: see seal.
func appendEntry(dst []byte, s *state) []byte {
	dst = append(dst, entryVersion, 0, 0, 0, 0)
	dst = binary.AppendUvarint(dst, s.seq)
	dst = binary.AppendUvarint(dst, uint64(s.seen))
	if len(s.user) > 0 {
		dst = binary.AppendUvarint(append(dst, tagUser), uint64(len(s.user)))
		dst = append(dst, s.user...)
	}
	if s.sole {
		dst = append(dst, tagSole, 0)
	}
	if len(s.properties) > 0 {
		dst = binary.AppendUvarint(append(dst, tagProperties), uint64(len(s.properties)))
		dst = append(dst, s.properties...)
	}
	if len(s.builtins) > 0 {
		dst = binary.AppendUvarint(append(dst, tagBuiltins), uint64(len(s.builtins)))
		dst = append(dst, s.builtins...)
	}
	if s.asOf != 0 {
		var number [binary.MaxVarintLen64]byte
		n := binary.PutUvarint(number[:], uint64(s.asOf))
		dst = append(append(dst, tagAsOf, byte(n)), number[:n]...)
	}
	if s.recent.n > 0 {
		dst = binary.AppendUvarint(append(dst, tagRecent), uint64(recentBytes*s.recent.n))
		dst = s.recent.append(dst)
	}
	return dst
}

// readEntry decodes a stored value; the state shares its memory. Whatever is not what
// appendEntry and seal wrote under this key is errEntry.
func readEntry(k kind, key, value []byte) (s state, err error) {
	if !wholeEntry(k, key, value) {
		return state{}, errEntry
	}
	rest := value[entryHeader:]
	whole := true
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			whole, rest = false, nil
			return 0
		}
		rest = rest[n:]
		return v
	}
	s.seq = number()
	seen := number()
	if s.seen = uint32(seen); uint64(s.seen) != seen {
		return state{}, errEntry
	}
	for whole && len(rest) > 0 {
		tag, n := number(), number()
		if !whole || n > uint64(len(rest)) {
			return state{}, errEntry
		}
		field := rest[:n]
		rest = rest[n:]
		switch tag {
		case tagUser:
			s.user = field
		case tagProperties:
			s.properties = field
		case tagBuiltins:
			s.builtins = field
		case tagSole:
			s.sole = true
		case tagAsOf:
			at, n := binary.Uvarint(field)
			if whole = n == len(field); !whole {
				return state{}, errEntry
			}
			s.asOf = asOf(at)
		case tagRecent:
			if s.recent, whole = readRecent(field); !whole {
				return state{}, errEntry
			}
		}
	}
	if !whole {
		return state{}, errEntry
	}
	return s, nil
}
