package mapping

import "encoding/binary"

// WhichSelect says which select rule decides about a record, counted from 1 as in the configuration; 0 = none does. reason
// is why no event is sent, as in Decision; "" when one is, if there is an identifier.
func (r *Rules) WhichSelect(record *Record) (rule int, reason string) {
	var v view
	_ = v.open(record) // of a damaged record, what could be read; Map reports it
	for i := range r.selects {
		one := *r
		one.selects = r.selects[i : i+1]
		chosen, why := one.selected(&v)
		switch {
		case chosen != nil:
			return i + 1, ""
		case why == reasonDropped:
			return i + 1, why
		case why != reasonNotSelected:
			return 0, why
		}
	}
	return 0, reasonNotSelected
}

// LastSent reads what a ledger remembers of an identifier (Decision.Sent): when its last identify was, as unix seconds, and
// the names of the attributes that Customer.io has, and of those that it refused. ok is false when it cannot be read.
func LastSent(stored []byte) (at int64, has, refused []string, ok bool) {
	var s sent
	if s.read(stored) != nil {
		return 0, nil, nil, false
	}
	for _, a := range s.attributes {
		if a.isNote() {
			continue
		}
		switch a.state {
		case sentValue:
			has = append(has, string(a.name))
		case sentRefused:
			refused = append(refused, string(a.name))
		}
	}
	return s.last, has, refused, true
}

// BodyOf says without reading the whole whom the body of a record is about: the ids share its memory. ok is false when it
// cannot be read.
func BodyOf(body []byte) (userID, deviceID []byte, ok bool) {
	if len(body) < 3 || body[0] == 0 || body[0] > bodyVersion {
		return nil, nil, false
	}
	rest := body[3:]
	var numbers [6]int // the time, and five lengths
	for i := range numbers {
		value, size := binary.Uvarint(rest) // a varint is as long
		if size <= 0 || i > 0 && value > uint64(len(body)) {
			return nil, nil, false
		}
		numbers[i], rest = int(value), rest[size:]
	}
	if numbers[1]+numbers[2] > len(rest) {
		return nil, nil, false
	}
	return rest[:numbers[1]], rest[numbers[1] : numbers[1]+numbers[2]], true
}

// UsualKeys are the keys of identifiers (Identifier.Key) that a record gives by the rules that most people have, or had: its
// user_id, and the user property email.
func UsualKeys(record *Record) (keys []string) {
	for _, v := range []value{textValue(record.UserID), valueOf(member(record.Properties, []byte("email")))} {
		for _, kind := range []string{"auto", "id", "email", "cio_id"} {
			if id, why := newIdentifier(v, kind); why == "" {
				keys = append(keys, id.Key())
			}
		}
	}
	return keys
}
