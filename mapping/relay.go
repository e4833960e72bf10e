package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/oklog/ulid/v2"
)

// RelayedEvent is an event as Amplitude is to get it.
type RelayedEvent struct {
	Type             string // event_type
	Body             []byte // one element of a request's events
	UserID, DeviceID string // that it names; "" = none
	// Skew is how far the sender's clock was behind ours, in ms, where that is so much that
	// the event's time was corrected. Body has the sender's own time: Amplitude corrects it
	// alike when the request says what the sender's clock shows now (client_upload_time).
	Skew int64
}

// FromSDK says whether a record came from an SDK, or whatever speaks Amplitude's ingestion
// API: what came in any other way has come from Amplitude, and is not passed on to it.
func (r *Record) FromSDK() bool { return r.Source == SourceHTTP }

// EventType is the event_type of the record's event.
func (r *Record) EventType() string { return string(plainText(member(r.Raw, []byte("event_type")))) }

// Relay writes the event of a record for Amplitude: its own bytes, but for what Amplitude
// would otherwise find out itself from a request of the sender's, or would refuse.
//
//   - insert_id and time are added where they are missing, so that a repeat is known as one
//     and a late delivery is no late event;
//   - an ip that is $remote becomes the sender's address, or null where that is not known:
//     it must not become that of this machine;
//   - a user_id or device_id that was not taken for one, beside another that was, becomes null:
//     Amplitude would refuse the event for it, or make one user of many;
//   - mark, unless it is "", becomes an event property that is true, on all events but
//     $identify and $groupidentify, which are none.
func (r *Record) Relay(mark string) (RelayedEvent, error) { return r.relay(mark, false) }

// HTTPV2 is the event of a record as one element of a request to Amplitude's HTTP V2 API, and so to ours: as Relay writes
// it, but with its corrected time, since nobody will say what the sender's clock shows.
func (r *Record) HTTPV2() ([]byte, error) {
	e, err := r.relay("", true)
	return e.Body, err
}

func (r *Record) relay(mark string, corrected bool) (RelayedEvent, error) {
	raw := r.Raw
	if len(raw) < 2 || raw[len(raw)-1] != '}' {
		return RelayedEvent{}, errMalformed
	}
	if mark != "" {
		switch r.EventType() {
		case "$identify", "$groupidentify":
			mark = ""
		}
	}
	out := RelayedEvent{Body: make([]byte, 0, len(raw)+96+len(mark))}
	copied := 0 // bytes of raw
	replace := func(w *walk, value ...[]byte) {
		out.Body = append(out.Body, raw[copied:w.pos-len(w.value)]...)
		for _, part := range value {
			out.Body = append(out.Body, part...)
		}
		copied = w.pos
	}
	named, timed, marked := false, false, mark == ""
	w := walkObject(raw)
	for w.next() {
		switch string(w.nameText()) {
		case "event_type":
			out.Type = string(plainText(w.value))
		case "insert_id":
			if named = true; isNull(w.value) || len(w.value) == 2 && w.value[0] == '"' {
				replace(&w, appendQuoted(nil, relayedInsertID(r.ID)))
			}
		case "time":
			timed = true
			if isNull(w.value) || corrected {
				replace(&w, strconv.AppendInt(nil, r.Time, 10))
			} else if client, ok := wholeNumber(w.value); ok {
				out.Skew = r.skew(client)
			}
		case "ip":
			if string(plainText(w.value)) != "$remote" {
				continue
			}
			if r.Address == "" {
				replace(&w, []byte("null"))
			} else {
				replace(&w, appendQuoted(nil, r.Address))
			}
		case "user_id":
			if out.UserID, _ = textOrDigits(w.value); out.UserID != "" && out.UserID != r.UserID {
				out.UserID = ""
				replace(&w, []byte("null"))
			}
		case "device_id":
			if out.DeviceID, _ = textOrDigits(w.value); out.DeviceID != "" && out.DeviceID != r.DeviceID {
				out.DeviceID = ""
				replace(&w, []byte("null"))
			}
		case "event_properties":
			if marked {
				continue
			}
			marked = true
			properties, err := withMark(w.value, mark)
			if err != nil {
				return RelayedEvent{}, err
			}
			replace(&w, properties)
		}
	}
	if w.bad || w.pos != len(raw)-1 {
		return RelayedEvent{}, errMalformed
	}
	out.Body = append(out.Body, raw[copied:len(raw)-1]...)
	if !named {
		out.Body = append(appendComma(out.Body), `"insert_id":`...)
		out.Body = appendQuoted(out.Body, relayedInsertID(r.ID))
	}
	if !timed {
		out.Body = append(appendComma(out.Body), `"time":`...)
		out.Body = strconv.AppendInt(out.Body, r.Time, 10)
	}
	if !marked {
		out.Body = append(appendComma(out.Body), `"event_properties":{`...)
		out.Body = append(appendQuoted(out.Body, mark), ":true}"...)
	}
	out.Body = append(out.Body, '}')
	return out, nil
}

// relayedPrefix begins the insert_id that is added to events that came without one.
const relayedPrefix = "ampcio-"

func relayedInsertID(id [16]byte) string { return relayedPrefix + ULID(id) }

// RelayedID is the identity of an event by an insert_id that was added when it was relayed:
// where Amplitude sends it back, by its webhook or in an archive, it is the same event.
func RelayedID(insertID string) (id [16]byte, ok bool) {
	text, ok := strings.CutPrefix(insertID, relayedPrefix)
	if !ok {
		return id, false
	}
	parsed, err := ulid.ParseStrict(text)
	return parsed, err == nil
}

// skew is RelayedEvent.Skew for a sender's time. What was held at the latest time that an
// event may have tells nothing of a clock.
func (r *Record) skew(client int64) int64 {
	const minute = 60_000
	moved := r.Time - client
	if client <= 0 || r.Time == addWithin(r.Received, minute) || moved < minute && moved > -minute {
		return 0
	}
	return moved
}

// withMark adds a property that is true to an object of properties, null, or the empty
// list that stands for an empty object.
func withMark(properties []byte, mark string) ([]byte, error) {
	if !isObjectStart(properties) {
		return append(appendQuoted([]byte{'{'}, mark), ":true}"...), nil
	}
	out := make([]byte, 0, len(properties)+len(mark)+16)
	w := walkObject(properties)
	for w.next() {
		if bytes.Equal(w.nameText(), []byte(mark)) {
			out = append(append(out, properties[:w.pos-len(w.value)]...), "true"...)
			return append(out, properties[w.pos:]...), nil
		}
	}
	if w.bad {
		return nil, errMalformed
	}
	out = append(out, properties[:w.pos]...)
	if w.value != nil {
		out = append(out, ',')
	}
	out = append(appendQuoted(out, mark), ":true"...)
	return append(out, properties[w.pos:]...), nil
}

// KeyID stands for an API key where the key itself must not be stored; it is never 0.
func KeyID(key string) uint64 {
	sum := sha256.Sum256([]byte("ampcio1 api_key " + key))
	return max(binary.BigEndian.Uint64(sum[:8]), 1)
}
