package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"ampcio/mapping"
	"ampcio/queue"
)

// What a team takes with it when it leaves: events as one line each of what Amplitude's
// HTTP V2 API, and so ampcio, takes.

// exportedEvent is a line of a verb that exports events. The event is within an object of
// ours: its own first member may be called anything, error too.
type exportedEvent struct {
	Event json.RawMessage `json:"event"`
}

// tellEvent tells the event of a record; told is false when it cannot be read.
func tellEvent(out io.Writer, r *mapping.Record, whole bool) (told bool, err error) {
	if !whole {
		return false, nil
	}
	event, err := r.HTTPV2()
	if err != nil {
		return false, nil
	}
	line := append([]byte(`{"event":`), event...) // its own bytes: an encoder would write them anew
	_, err = out.Write(append(line, "}\n"...))
	return err == nil, err
}

// writeEvent prints the event that a line of tellEvent holds.
func writeEvent(w io.Writer, line []byte) error {
	var e exportedEvent
	if err := json.Unmarshal(line, &e); err != nil {
		return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
	}
	_, err := w.Write(append(bytes.Clone(e.Event), '\n'))
	return err
}

func noteUnreadable(w io.Writer, n uint64) {
	if n > 0 {
		fmt.Fprintf(w, "%s not be read, and left out\n", counted(n, "event can", "events can"))
	}
}

// exportEnd is the last line of an export of what is pending.
type exportEnd struct {
	Exported   uint64 `json:"exported"`
	Unreadable uint64 `json:"unreadable"`
}

func init() { verbs["sync-export"] = exportPendingVerb }

func exportPendingVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked oneSync
	if err := readInput(in, &asked); err != nil {
		return err
	}
	var end exportEnd
	err := h.whileOpen(asked.Sync, func(c *queue.Consumer) error {
		if c == nil {
			return unknownSync(h, asked.Sync)
		}
		return c.PendingRecords(ctx, func(q queue.Record) error {
			if q.Forgotten {
				return nil
			}
			r := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
			whole := r.DecodeBody(q.Body) == nil
			if whole && isRelay(asked.Sync) && !r.FromSDK() {
				return nil // Amplitude has it: that is where it came from
			}
			told, err := tellEvent(out, &r, whole)
			if told {
				end.Exported++
			} else {
				end.Unreadable++
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	return tell(out, end)
}

func syncExport(c *cli.Context) error {
	o, args, err := named(c, "NAME")
	if err != nil {
		return err
	}
	var end *exportEnd
	err = o.do(c.Context, "sync-export", oneSync{Sync: args[0]}, func(line []byte) error {
		if bytes.HasPrefix(line, []byte(`{"exported":`)) {
			end = &exportEnd{}
			return json.Unmarshal(line, end)
		}
		return writeEvent(c.App.Writer, line)
	})
	if err == nil && end == nil {
		err = exit(exitUnavailable, errors.New("the daemon has ended in the middle of its answer: this is not all"))
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "%s exported\n", events(end.Exported))
	noteUnreadable(c.App.ErrWriter, end.Unreadable)
	return nil
}
