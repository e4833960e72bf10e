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

// entry is what is known of one user or device.
type entry struct {
	project *project
	key     string // the kind's letter and the id: also the lane of its events
	state

	// What follows is the cache's. An entry is clean (as in users.db, in the clock, may
	// be forgotten) or dirty (changed since; stays until a checkpoint has written it).
	epoch      uint64 // the collection of dirty entries it belongs to; 0 = clean
	frozen     []byte // its value as of the running checkpoint's cut, when it has changed since
	prev, next *entry // the clock
	size       int64  // bytes it is accounted for
	used       bool   // looked at since the clock's hand passed
	stored     bool   // users.db has a value under its key
	forgotten  bool   // no longer in the cache
	last       *entry // of a device: the user of its last event; saves a look into the map
}

// state is the part of an entry that is kept in users.db.
type state struct {
	seq        uint64 // of the last record that changed it
	seen       uint32 // hour since 1970 of that change, for expiry
	user       string // of a device: the user it was last linked to
	properties []byte // JSON object; nil = none. Never changed in place, only replaced
	recent     *recent
}

func (e *entry) kind() kind { return kind(e.key[0]) }
func (e *entry) id() string { return e.key[1:] }

// empty says that nothing is known: such an entry is not kept.
func (s *state) empty() bool {
	return s.user == "" && s.properties == nil && (s.recent == nil || s.recent.n == 0)
}

// expire forgets what is too old at hour: expiry is computed from stored times at
// each look, so that it needs no timer and a restart does not defer it. It says
// whether it took away a part that costs space: properties, or all insert_ids.
func (e *entry) expire(hour, unlinkedHours uint32) (changed bool) {
	age := int64(hour) - int64(e.seen)
	if e.recent != nil {
		if age > recentHours {
			e.recent = nil
		} else if e.recent.prune(hour); e.recent.n == 0 {
			e.recent = nil
		}
		changed = e.recent == nil
	}
	if e.properties != nil && e.kind() == device && e.user == "" && age > int64(unlinkedHours) {
		e.properties = nil
		changed = true
	}
	return changed
}

// entryBytes is about what an entry costs besides its own strings and slices.
const entryBytes = 288

func (e *entry) cost() int64 {
	n := int64(entryBytes + len(e.key) + len(e.user) + cap(e.properties))
	if e.recent != nil {
		n += 64 + recentBytes*int64(len(e.recent.ids))
	}
	return n
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
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errEntry = errors.New("entry is damaged")

// longID is the length in bytes above which an id's hash stands in its key: bbolt
// takes no key above 32 kB, and long keys make a poor tree.
const longID = 512

// appendKey gives the key of an entry in its kind's bucket: twice the length of the
// project's name, plus 1 when a hash follows (uvarint); the name; the id or its SHA-256.
func appendKey(dst []byte, project, id string) []byte {
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

func seal(k kind, key, value []byte) {
	binary.LittleEndian.PutUint32(value[1:], entrySum(k, key, value))
}

// appendEntry appends the stored value of s under key.
func appendEntry(dst []byte, k kind, key []byte, s *state) []byte {
	start := len(dst)
	dst = append(dst, entryVersion, 0, 0, 0, 0)
	dst = binary.AppendUvarint(dst, s.seq)
	dst = binary.AppendUvarint(dst, uint64(s.seen))
	if s.user != "" {
		dst = binary.AppendUvarint(append(dst, tagUser), uint64(len(s.user)))
		dst = append(dst, s.user...)
	}
	if s.properties != nil {
		dst = binary.AppendUvarint(append(dst, tagProperties), uint64(len(s.properties)))
		dst = append(dst, s.properties...)
	}
	if s.recent != nil && s.recent.n > 0 {
		dst = binary.AppendUvarint(append(dst, tagRecent), uint64(recentBytes*s.recent.n))
		dst = s.recent.append(dst)
	}
	seal(k, key, dst[start:])
	return dst
}

// readEntry decodes a stored value; the state shares no memory with it. Whatever is
// not what appendEntry wrote under this key is errEntry.
func readEntry(k kind, key, value []byte) (s state, err error) {
	if len(value) < entryHeader || value[0] != entryVersion ||
		entrySum(k, key, value) != binary.LittleEndian.Uint32(value[1:]) {
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
			s.user = string(field)
		case tagProperties:
			s.properties = append(make([]byte, 0, n), field...)
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
