package ingest

import (
	"unicode/utf8"

	"ampcio/mapping"
)

// itemReader makes an event of an item of a request. What is no object never comes here. With problems the event is not used.
type itemReader func(item []byte) (event []byte, problems []mapping.Problem)

// asIdentify is an identification as the $identify event that means the same.
func asIdentify(identification []byte) ([]byte, []mapping.Problem) {
	if !utf8.Valid(identification) {
		return identification, nil // to be refused by its reader, who knows the field
	}
	event := append(make([]byte, 0, len(identification)+32), `{"event_type":"$identify"`...)
	err := mapping.Members(identification, func(name string, value []byte) error {
		if name != "event_type" {
			event = appendMember(event, name, value)
		}
		return nil
	})
	if err != nil {
		return identification, nil // a name twice and the like
	}
	return append(event, '}'), nil
}

// Amplitude's limits of one request to /groupidentify.
const (
	mostGroups          = 1024
	mostGroupProperties = 1024
)

// asGroupIdentify is an identification of a group as the $groupidentify event that means the same.
func asGroupIdentify(identification []byte) ([]byte, []mapping.Problem) {
	if !utf8.Valid(identification) {
		return identification, nil
	}
	var kind, name, properties []byte
	event := append(make([]byte, 0, len(identification)+48), `{"event_type":"$groupidentify"`...)
	err := mapping.Members(identification, func(member string, value []byte) error {
		switch member {
		case "event_type", "groups":
		case "group_type":
			kind = value
		case "group_value":
			name = value
		case "group_properties":
			properties = value
		default:
			event = appendMember(event, member, value)
		}
		return nil
	})
	if err != nil {
		return identification, nil
	}
	var problems []mapping.Problem
	for _, field := range []struct {
		name  string
		value []byte
		fits  bool
	}{{"group_type", kind, isText(kind)}, {"group_value", name, isText(name) || isNumber(name)}} {
		missing := len(field.value) == 0 || string(field.value) == "null" || string(field.value) == `""`
		if missing || !field.fits {
			problems = append(problems, mapping.Problem{Field: field.name, Missing: missing})
		}
	}
	if problems != nil {
		return identification, problems
	}
	event = append(append(append(append(append(event, `,"groups":{`...), kind...), ':'), name...), '}')
	if properties != nil {
		event = appendMember(event, "group_properties", properties)
	}
	return append(event, '}'), nil
}

// fewGroupProperties refuses a request with more properties than Amplitude takes.
func fewGroupProperties(q *request, _ parameters) *refusal {
	n := 0
	for i, item := range q.items {
		if item[0] != '{' || q.deep[i] {
			continue
		}
		// What cannot be read is named later, by whoever reads it.
		_ = mapping.Members(item, func(member string, properties []byte) error {
			if member != "group_properties" || !startsWith(properties, '{') {
				return nil
			}
			return mapping.Members(properties, func(name string, value []byte) error {
				if name == "" || name[0] != '$' || !startsWith(value, '{') {
					n++
					return nil
				}
				return mapping.Members(value, func(string, []byte) error { n++; return nil })
			})
		})
	}
	if n > mostGroupProperties {
		return refuseMany
	}
	return nil
}

func appendMember(object []byte, name string, value []byte) []byte {
	object = appendQuoted(append(object, ','), name)
	return append(append(object, ':'), value...)
}

func startsWith(value []byte, c byte) bool { return len(value) > 0 && value[0] == c }

func isText(value []byte) bool { return startsWith(value, '"') }

func isNumber(value []byte) bool {
	return len(value) > 0 && (value[0] == '-' || '0' <= value[0] && value[0] <= '9')
}
