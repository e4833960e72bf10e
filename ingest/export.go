package ingest

import (
	"errors"

	"ampcio/mapping"
)

// ReadExport reads an event as Amplitude itself writes it: a line of an Export archive, or a body of its webhook. It is
// [mapping.ParseExport], and what is no ID is dropped as at the other doors, but for their length: Amplitude has
// accepted the event. An error is mapping.ErrNotExport.
func ReadExport(line []byte) (mapping.Event, []mapping.Problem, error) {
	e, problems, err := mapping.ParseExport(line)
	if problems != nil || err != nil {
		return e, problems, err
	}
	if judgeID(e.UserID, 1) != idGood {
		e.UserID = ""
	}
	if judgeID(e.DeviceID, 1) != idGood {
		e.DeviceID = ""
	}
	if e.UserID == "" && e.DeviceID == "" && e.Type != "$groupidentify" {
		return mapping.Event{}, []mapping.Problem{{Field: "user_id", Missing: true, Detail: "has no value that is an ID, nor has device_id"}}, nil
	}
	return e, nil, nil
}

var errNotExport = mapping.Problem{Field: "event_type", Missing: true, Detail: "is required, or user_properties for a user"}

// exportProblem is ReadExport with the error as a problem.
func exportProblem(line []byte) (mapping.Event, []mapping.Problem) {
	e, problems, err := ReadExport(line)
	if errors.Is(err, mapping.ErrNotExport) {
		problems = []mapping.Problem{errNotExport}
	}
	return e, problems
}
