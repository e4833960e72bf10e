package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"

	"ampcio/archive"
	"ampcio/ingest"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

func init() { verbs["import"] = importVerb }

// importing is some lines of a part of an archive. Without lines it only asks how far the part has been taken.
type importing struct {
	Project string   `json:"project"`
	Part    string   `json:"part"` // its digest, 32 hexadecimal digits
	State   bool     `json:"state"`
	From    uint64   `json:"from"` // the number of the first line, from 1
	Lines   [][]byte `json:"lines"`
	Flush   bool     `json:"flush"` // answer when what was seeded is durable
	Done    uint64   `json:"done"`  // the import has ended, with so many lines: for the log
}

// imported is what became of them.
type imported struct {
	users.Taken
	Bad  int    `json:"bad"`  // lines that are no events
	Wait string `json:"wait"` // nothing was taken, for this reason: try again
}

// importHouse is a house that takes lines of archives.
type importHouse interface {
	house
	importStore() *users.Store
	// whileTaking calls f as the door stores a request: which syncs take what comes does not change meanwhile.
	whileTaking(ctx context.Context, f func() error) error
}

func (d *daemon) importStore() *users.Store { return d.users }

func (d *daemon) whileTaking(ctx context.Context, f func() error) error { return d.door.Beside(ctx, f) }

func importVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked importing
	if err := readInput(in, &asked); err != nil {
		return err
	}
	into, ok := h.(importHouse)
	if !ok {
		return exit(exitUsage, errors.New("this house takes no imports"))
	}
	if _, known := h.config().Project[asked.Project]; !known {
		return exit(exitConfig, fmt.Errorf("the ampcio that runs knows no [project.%s]: reload it first (ampcio reload)", asked.Project))
	}
	store := into.importStore()
	var of [16]byte
	if n, err := hex.Decode(of[:], []byte(asked.Part)); (err != nil || n != len(of)) && asked.Part != "" {
		return exit(exitUsage, errors.New("a part of an archive is named by 32 hexadecimal digits"))
	}
	answer := imported{}
	switch {
	case asked.Done > 0:
		if d, running := h.(*daemon); running {
			d.log.Info("an archive has been imported", "project", asked.Project, "state", asked.State, "lines", asked.Done)
		}
	case asked.Flush:
		if err := store.Checkpoint(ctx); err != nil {
			return storedError(err, &answer, out)
		}
	case len(asked.Lines) == 0:
		answer.Place = store.Place(asked.Project, of, asked.State)
	default:
		if answer.Wait = crowded(h, asked.Project, asked.State); answer.Wait != "" {
			break
		}
		l := users.Lines{Project: asked.Project, Part: of, Received: time.Now().UnixMilli(), From: asked.From, Upto: asked.From + uint64(len(asked.Lines)) - 1}
		for i, line := range asked.Lines {
			n := asked.From + uint64(i)
			ev, why := importedEvent(line)
			if why != "" {
				answer.Bad++
				continue
			}
			if ev.InsertID == "" { // so that it is the same event when it is taken again
				ev.InsertID = fmt.Sprintf("ampcio import %s %d", asked.Part, n)
			}
			l.Events, l.Numbers = append(l.Events, ev), append(l.Numbers, n)
		}
		take := store.Import
		if asked.State {
			take = store.Seed
		}
		err := into.whileTaking(ctx, func() (err error) {
			answer.Taken, err = take(ctx, l)
			return err
		})
		if err != nil {
			return storedError(err, &answer, out)
		}
	}
	return tell(out, answer)
}

// importedEvent reads one line, or says why it cannot be taken.
func importedEvent(line []byte) (ev mapping.Event, why string) {
	if len(line) > archive.MaxLine {
		return ev, fmt.Sprintf("is longer than %s", humanize.IBytes(archive.MaxLine))
	}
	ev, problems, err := ingest.ReadExport(line)
	switch {
	case err != nil:
		return ev, "is " + err.Error()
	case problems != nil:
		if problems[0].Field != "" {
			return ev, problems[0].Field + " " + problems[0].Detail
		}
		return ev, problems[0].Detail
	case ev.Time == 0:
		return ev, "event_time is required"
	}
	return ev, ""
}

// storedError tells of an error of storing: what will pass is a reason to wait.
func storedError(err error, answer *imported, out io.Writer) error {
	full, isFull := errors.AsType[*queue.FullError](err)
	switch {
	case isFull:
		answer.Wait = full.Error()
	case errors.Is(err, queue.ErrBusy):
		answer.Wait = err.Error()
	case errors.Is(err, queue.ErrClosed):
		return exit(exitTemporary, errors.New("ampcio is stopping: do it again when it runs"))
	default:
		return exit(exitIO, err)
	}
	return tell(out, *answer)
}

// crowded says why an import has to wait: it leaves half of all bounds to what cannot be sent later.
func crowded(h house, project string, state bool) string {
	if why := h.recordLog().Crowded(); why != "" {
		return why + "; an import leaves half of it to new events"
	}
	if state {
		return ""
	}
	for _, name := range h.names() {
		why := ""
		_ = h.whileOpen(name, func(c *queue.Consumer) error {
			if c == nil {
				return nil
			}
			s, err := c.Stats()
			if err == nil && s.Enabled && s.Project == project && s.MaxPending > 0 && s.PendingBytes > s.MaxPending/2 {
				why = fmt.Sprintf("%s pending in sync %s, whose max_pending_bytes is %s; an import leaves half of it to new events",
					humanize.IBytes(uint64(s.PendingBytes)), name, humanize.IBytes(uint64(s.MaxPending)))
			}
			return nil
		})
		if why != "" {
			return why
		}
	}
	return ""
}
