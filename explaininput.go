package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ampcio/config"
	"ampcio/ingest"
	"ampcio/mapping"
)

// input is what explain was given to read: requests, each with its events.
type input struct {
	ingest.Reading
	whole bool // a request as an SDK sends it, with an API key of its own
}

// readInputs reads one event, one request of the HTTP V2 API, or JSON lines of either; as
// if user had sent them, where that is not "".
func readInputs(text []byte, user string) ([]input, error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
	var all []input
	for n := 1; d.More(); n++ {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, exit(exitData, fmt.Errorf("object %d of the input is not valid JSON: %w", n, err))
		}
		in, err := readRequest(raw, user)
		if err != nil {
			return nil, exit(exitData, fmt.Errorf("object %d of the input: it would be answered 400: %w", n, err))
		}
		all = append(all, in)
	}
	if len(all) == 0 {
		return nil, exit(exitData, errors.New("the input is empty: give one event as a JSON object, a request body of Amplitude's HTTP V2 API, or JSON lines of these"))
	}
	return all, nil
}

func readRequest(raw json.RawMessage, user string) (in input, err error) {
	var shape struct {
		Events *json.RawMessage `json:"events"`
		Type   *json.RawMessage `json:"event_type"`
	}
	if err := json.Unmarshal(raw, &shape); err != nil {
		return in, errors.New("it is no JSON object")
	}
	body := []byte(raw)
	if in.whole = shape.Events != nil && shape.Type == nil; !in.whole {
		body = slices.Concat([]byte(`{"api_key":"-","events":[`), raw, []byte(`]}`))
	}
	if user != "" {
		if body, err = asUser(body, user); err != nil {
			return in, err
		}
	}
	in.Reading, err = ingest.Read(body)
	return in, err
}

// asUser is a request as if this user had sent its events.
func asUser(body []byte, user string) ([]byte, error) {
	id, err := json.Marshal(user)
	if err != nil {
		return nil, err
	}
	return replaced(body, "events", func(events []byte) ([]byte, error) {
		var list []json.RawMessage
		if json.Unmarshal(events, &list) != nil {
			return events, nil // what is wrong with it is told by who reads it
		}
		for i := range list {
			if list[i], err = replaced(list[i], "user_id", func([]byte) ([]byte, error) { return id, nil }); err != nil {
				return nil, err
			}
		}
		return json.Marshal(list)
	})
}

// replaced is a JSON object with another value for a member, which is added where there is
// none; everything else stays as it is.
func replaced(object []byte, member string, value func(was []byte) ([]byte, error)) ([]byte, error) {
	out, there := []byte{'{'}, false
	add := func(name string, v []byte) error {
		quoted, err := json.Marshal(name)
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, quoted...), ':'), v...)
		return err
	}
	err := mapping.Members(object, func(name string, v []byte) (err error) {
		if name == member {
			there = true
			if v, err = value(v); err != nil {
				return err
			}
		}
		return add(name, v)
	})
	if err == nil && !there {
		v, own := value(nil)
		err = errors.Join(own, add(member, v))
	}
	return append(out, '}'), err
}

// chooseSyncs are the syncs that are wanted, all without any.
func chooseSyncs(cfg *config.Config, wanted []string) ([]string, error) {
	names := cfg.Sync.Names()
	for _, w := range wanted {
		if !slices.Contains(names, w) {
			return nil, noSuchSync(w, names)
		}
	}
	if len(wanted) > 0 {
		return wanted, nil
	}
	return names, nil
}

// readSequences reads N, N-M, or, of a dead letter, also SYNC/N.
func readSequences(s string) (sync string, from, to uint64, err error) {
	wrong := exit(exitUsage, fmt.Errorf("--seq %q: a sequence such as 1234, several (1234-1240), or the id of a dead letter (production/1234)", s))
	if name, rest, named := strings.Cut(s, "/"); named {
		sync, s = name, rest
	}
	first, last, several := strings.Cut(s, "-")
	if _, err := fmt.Sscanf(first, "%d", &from); err != nil || from == 0 || fmt.Sprint(from) != first {
		return "", 0, 0, wrong
	}
	to = from
	if several {
		if _, err := fmt.Sscanf(last, "%d", &to); err != nil || to < from || fmt.Sprint(to) != last || to-from >= mostRecords {
			return "", 0, 0, wrong
		}
	}
	return sync, from, to, nil
}
