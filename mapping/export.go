package mapping

import (
	"bytes"
	"errors"
	"strconv"
	"time"
)

// Amplitude's own form of an event: a line of an Export API archive, and the body of its webhook destination. Every
// column is on every line, null when it has no value; times are text in UTC; user_properties are what the user had when
// the event happened, not what the event does to them.

// ErrNotExport says that an object has neither an event_type nor user properties: it is no event and no identification.
var ErrNotExport = errors.New("neither an event nor an identification")

// exportNames are the columns that are called otherwise in the ingestion API, which is what records hold.
var exportNames = map[string]string{
	"$insert_id": "insert_id", "version_name": "app_version", "device_carrier": "carrier", "ip_address": "ip",
}

// exportLayouts are those of Export lines and of the webhook, without and with their zone. Parsing takes a fraction of
// a second after any of them.
var exportLayouts = []string{
	"2006-01-02 15:04:05", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00",
	"2006-01-02T15:04:05Z0700", "2006-01-02 15:04:05Z0700", "2006-01-02 15:04:05 MST",
}

// ExportTime reads a time of an Export line, in ms since 1970 UTC: "2022-02-28 20:07:01.795", ISO 8601, or a whole
// number of milliseconds. Without a zone it is UTC.
func ExportTime(value []byte) (ms int64, ok bool) {
	if len(value) == 0 {
		return 0, false
	}
	if value[0] != '"' {
		ms, ok = wholeNumber(value)
		return ms, ok && ms > 0
	}
	text := string(plainText(value))
	for _, layout := range exportLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			ms = t.UnixMilli()
			return ms, ms > 0
		}
	}
	return 0, false
}

// ExportTimeOf finds when the event of a line happened, as ParseExport does, without a look at the rest; 0 = it is not
// said. The line may be anything.
func ExportTimeOf(line []byte) int64 {
	var times [3][]byte
	for w := walkObject(line); w.next(); {
		switch string(w.name) {
		case `"event_time"`:
			times[0] = w.value
		case `"client_event_time"`:
			times[1] = w.value
		case `"time"`:
			times[2] = w.value
		}
	}
	for _, value := range times {
		if value != nil && !isNull(value) {
			ms, _ := ExportTime(value)
			return ms
		}
	}
	return 0
}

// ParseExport reads one Export line, or one body of Amplitude's webhook. What it gives is as if the event had come
// through the ingestion API: Raw has the columns that have a value, under the names they have there, the time in
// milliseconds, and no user_properties; those are the Event's UserProperties, a Snapshot unless they are absent or empty,
// as an empty set is what is sent where none were chosen. InsertID is $insert_id, else Amplitude's uuid. The time is
// event_time, else client_event_time, else time.
//
// An object without an event_type but with user_properties, or with $identify for one, is an identification as
// Amplitude's webhook sends it for users: its properties are operations, as in a $identify event. An error is
// ErrNotExport; what is wrong with an event are problems, which name the columns as they came.
func ParseExport(line []byte) (Event, []Problem, error) {
	line = repairSurrogates(trimSpace(line))
	if len(line) == 0 || line[0] != '{' {
		return Event{}, []Problem{{Detail: "is not a JSON object"}}, nil
	}
	if err := check(line); err != nil {
		return Event{}, []Problem{syntaxProblem(err)}, nil
	}
	var event, properties []byte
	var times [3][]byte // event_time, client_event_time, time
	for w := walkObject(line); w.next(); {
		if isNull(w.value) {
			continue
		}
		switch string(plainText(w.name)) {
		case "event_type":
			event = w.value
		case "user_properties":
			properties = w.value
		case "event_time":
			times[0] = w.value
		case "client_event_time":
			times[1] = w.value
		case "time":
			times[2] = w.value
		}
	}
	identifies := event == nil || string(plainText(event)) == "$identify"
	if event == nil && !isObjectStart(properties) {
		return Event{}, nil, ErrNotExport
	}
	if properties != nil && !isObject(properties) {
		return Event{}, []Problem{{Field: "user_properties", Detail: "must be an object"}}, nil
	}
	raw := append(make([]byte, 0, len(line)), '{')
	if identifies {
		raw = append(raw, `"event_type":"$identify"`...)
	}
	member := func(name, value []byte) {
		raw = append(append(append(appendComma(raw), name...), ':'), value...)
	}
	for i, value := range times {
		if value == nil {
			continue
		}
		ms, ok := ExportTime(value)
		if !ok {
			return Event{}, []Problem{{Field: [...]string{"event_time", "client_event_time", "time"}[i], Detail: `must be a time such as "2022-02-28 20:07:01.795"`}}, nil
		}
		member([]byte(`"time"`), strconv.AppendInt(nil, ms, 10))
		break
	}
	named := map[string]bool{}
	for w := walkObject(line); w.next(); {
		name := plainText(w.name)
		if isNull(w.value) {
			continue
		}
		switch string(name) {
		case "event_time", "client_event_time", "time":
			continue
		case "event_type":
			if identifies {
				continue
			}
		case "user_properties":
			if !identifies {
				continue
			}
		}
		quoted := w.name
		if to, renamed := exportNames[string(name)]; renamed {
			name, quoted = []byte(to), appendQuoted(nil, to)
		}
		if _, twin := twins[string(name)]; twin {
			if named[string(name)] { // the line has both names; what is Export's own came first or comes instead
				continue
			}
			named[string(name)] = true
		}
		member(quoted, w.value)
	}
	e, problems := ParseEvent(append(raw, '}'))
	if problems != nil {
		for i := range problems {
			if problems[i].Field == "insert_id" && bytes.Contains(line, []byte(`"$insert_id"`)) {
				problems[i].Field = "$insert_id"
			}
		}
		return Event{}, problems, nil
	}
	if !identifies {
		e.UserProperties = nil
		if snapshot := snapshotOf(properties); snapshot != nil {
			e.UserProperties, e.Snapshot = snapshot, true
		}
	}
	return e, nil, nil
}

// twins are the names that two columns of a line may end up with.
var twins = func() map[string]bool {
	m := map[string]bool{}
	for _, to := range exportNames {
		m[to] = true
	}
	return m
}()

// snapshotOf is a set of properties as records hold it: compact, without nulls; nil when nothing is in it.
func snapshotOf(properties []byte) []byte {
	if !isObjectStart(properties) {
		return nil
	}
	out := append(make([]byte, 0, len(properties)), '{')
	for w := walkObject(properties); w.next(); {
		if isNull(w.value) {
			continue
		}
		out = append(append(appendComma(out), canonicalName(w.name)...), ':')
		out = appendCompact(out, w.value)
	}
	if len(out) == 1 {
		return nil
	}
	return append(out, '}')
}
