package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// dryRunCounts are what a dry run would have sent, by the hour in which it was received:
// to be held against what Amplitude says that it has delivered. They outlive the lines of
// the file, which is bounded. A crash may leave out, or double, what was counted in its
// last second.
type dryRunCounts struct {
	Schema   int       `json:"schema"`
	Sync     string    `json:"sync"`
	Since    time.Time `json:"since"` // when the dry run began
	Newest   time.Time `json:"newest"`
	Requests uint64    `json:"requests"`
	Bytes    uint64    `json:"bytes"` // of their bodies
	Events   uint64    `json:"events"`
	Users    uint64    `json:"user_updates"`
	LeftOut  uint64    `json:"lines_left_out"`

	Hours map[string]map[string]uint64 `json:"hours"` // "2026-11-25T14" → "event Order Completed" → how many

	changed bool
}

const (
	dryRunSchema = 1
	dryRunHours  = 15 * 24 // Amplitude's metrics look back two weeks
	dryRunNames  = 1000    // in an hour; what else there is counts under dryRunOthers
	dryRunOthers = "(others)"
	hourLayout   = "2006-01-02T15"
)

func newDryRunCounts(sync string, since time.Time) *dryRunCounts {
	return &dryRunCounts{Schema: dryRunSchema, Sync: sync, Since: since.UTC().Truncate(time.Second), Hours: map[string]map[string]uint64{}, changed: true}
}

// dryRunCountsPath is beside the file of the requests.
func dryRunCountsPath(lines string) string {
	return strings.TrimSuffix(lines, ".jsonl") + ".counts.json"
}

// readDryRunCounts reads the counts of a sync; nil when there are none that can be read.
func readDryRunCounts(storage, sync string) (*dryRunCounts, error) {
	text, err := os.ReadFile(dryRunCountsPath(dryRunPath(storage, sync, 0)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &dryRunCounts{}
	if json.Unmarshal(text, c) != nil || c.Schema != dryRunSchema || c.Hours == nil {
		return nil, nil // torn by a power cut
	}
	return c, nil
}

// add counts a request.
func (c *dryRunCounts) add(line *dryRunLine) {
	c.changed = true
	c.Newest = line.Time
	c.Requests++
	c.Bytes += uint64(line.Bytes)
	for _, o := range line.Operations {
		if o.Action == "identify" {
			c.Users++
		} else {
			c.Events++
		}
		hour := o.Received.UTC().Format(hourLayout)
		names := c.Hours[hour]
		if names == nil {
			names = map[string]uint64{}
			c.Hours[hour] = names
			c.forgetOld()
		}
		key := strings.TrimSpace(o.Action + " " + o.Name)
		if _, known := names[key]; !known && len(names) >= dryRunNames {
			key = o.Action + " " + dryRunOthers
		}
		names[key]++
	}
}

// forgetOld keeps the newest hours.
func (c *dryRunCounts) forgetOld() {
	for len(c.Hours) > dryRunHours {
		delete(c.Hours, slices.Min(slices.Collect(maps.Keys(c.Hours))))
	}
}

// changes is the text of the counts if they have changed since the last time, else nil.
func (c *dryRunCounts) changes() []byte {
	if !c.changed {
		return nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil // strings and numbers always marshal
	}
	c.changed = false
	return text
}

func (c *dryRunCounts) clone() dryRunCounts {
	out := *c
	out.Hours = make(map[string]map[string]uint64, len(c.Hours))
	for hour, names := range c.Hours {
		out.Hours[hour] = maps.Clone(names)
	}
	return out
}

// dryRunRow is one line of a report. Hour, Action and Name are "" where rows are not by
// them.
type dryRunRow struct {
	Hour   string `json:"hour,omitempty"`   // "2026-11-25T14:00:00Z", in which it was received
	Action string `json:"action,omitempty"` // identify | event | page | screen
	Name   string `json:"event,omitempty"`
	Count  uint64 `json:"count"`
}

// rows sums up what was received in hours from since on, by hour, by event, or both.
func (c *dryRunCounts) rows(byHour, byEvent bool, since time.Time) []dryRunRow {
	sums := map[dryRunRow]uint64{}
	for hour, names := range c.Hours {
		at, err := time.Parse(hourLayout, hour)
		if err != nil || at.Add(time.Hour).Before(since) || at.Add(time.Hour).Equal(since) {
			continue
		}
		for key, n := range names {
			row := dryRunRow{}
			row.Action, row.Name, _ = strings.Cut(key, " ")
			if byHour {
				row.Hour = at.Format(time.RFC3339)
			}
			if !byEvent {
				if row.Name = ""; row.Action != "identify" {
					row.Action = "event" // what Amplitude counts as one
				}
			}
			sums[row] += n
		}
	}
	rows := []dryRunRow{}
	for row, n := range sums {
		row.Count = n
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b dryRunRow) int {
		return cmp.Or(cmp.Compare(a.Hour, b.Hour), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Name, b.Name))
	})
	return rows
}
