package ingest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ampcio/mapping"
)

// Reading is what a body of the HTTP V2 API says.
type Reading struct {
	Key      string // the API key
	Uploaded int64  // client_upload_time in ms since 1970 UTC, 0 = absent
	Events   []mapping.Event
}

// Read reads a body as the Handler does, who would answer 400 where there is an error. Its
// text names each event and field that is wrong, and nothing that stands there. The events
// may alias body.
func Read(body []byte) (Reading, error) {
	j := &job{body: body}
	refused := j.request.parse(body, "events", 2000)
	if refused == nil {
		refused = j.parseEvents()
	}
	if refused != nil {
		return Reading{}, refused.explained()
	}
	return Reading{string(j.request.key), j.request.uploaded, j.events}, nil
}

func (f *refusal) explained() error {
	var wrong []string
	for _, kind := range []struct {
		what string
		of   eventIndexes
	}{{"is missing", f.missing}, {"is invalid", f.invalid}} {
		for _, field := range slices.Sorted(maps.Keys(kind.of)) {
			for _, i := range kind.of[field] {
				why := kind.what
				if slices.Contains(f.lengths[field], i) {
					why = "is too short"
				}
				wrong = append(wrong, fmt.Sprintf("event %d: %s %s", i, field, why))
			}
		}
	}
	if f.missingField != "" && len(wrong) == 0 {
		wrong = []string{f.missingField}
	}
	if len(wrong) == 0 {
		return errors.New(f.message)
	}
	return fmt.Errorf("%s: %s", f.message, strings.Join(wrong, ", "))
}
