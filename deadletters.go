package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// deadQuery says which dead letters are meant: those that all of it agrees with.
type deadQuery struct {
	Syncs   []string            `json:"syncs,omitempty"` // none = all
	Reasons []string            `json:"reasons,omitempty"`
	Events  []string            `json:"events,omitempty"` // names, or globs with *
	User    string              `json:"user,omitempty"`   // a user_id or device_id, or the hash of it
	After   int64               `json:"after_ms,omitempty"`
	Until   int64               `json:"until_ms,omitempty"` // both of death, ms since 1970 UTC; 0 = any
	IDs     map[string][]uint64 `json:"ids,omitempty"`      // sync → sequences; nil = any
	All     bool                `json:"all,omitempty"`      // of replay and drop: without any of the above

	Limit   int  `json:"limit,omitempty"`   // of list; 0 = all
	HTTPV2  bool `json:"http_v2,omitempty"` // of export: events alone
	ShowIDs bool `json:"show_ids,omitempty"`
	DryRun  bool `json:"dry_run,omitempty"`
}

// chosen is an error when a verb that changes was told nothing about which ones.
func (q *deadQuery) chosen() error {
	if q.All || len(q.Syncs) > 0 || len(q.Reasons) > 0 || len(q.Events) > 0 || q.User != "" || q.After != 0 || q.IDs != nil {
		return nil
	}
	return exit(exitUsage, errors.New("say which dead letters: by ids, by --sync, --reason, --event, --user, --older-than or --newer-than; or --all"))
}

// deadLetter is one, opened.
type deadLetter struct {
	queue.DeadLetter
	sync   string
	record mapping.Record
	event  string // its name
	whole  bool   // the record could be read
	hash   userHash
}

func (d *deadLetter) id() string { return fmt.Sprintf("%s/%d", d.sync, d.Record.Seq) }

// user is who the event is about: the user, else the device.
func (d *deadLetter) user() string { return cmp.Or(d.record.UserID, d.record.DeviceID) }

func openDeadLetter(sync string, l queue.DeadLetter) deadLetter {
	d := deadLetter{DeadLetter: l, sync: sync}
	q := &l.Record
	d.record = mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if d.record.DecodeBody(q.Body) == nil {
		d.whole = true
		e, _ := mapping.ParseEvent(d.record.Raw) // it was one when it was taken
		d.event = e.Type
	}
	return d
}

// young says whether a replay sends an event that may still start campaigns.
func (d *deadLetter) young(now time.Time) bool {
	return d.whole && !isRelay(d.sync) && now.Sub(time.UnixMilli(d.record.Time)) < campaignAge &&
		slices.ContainsFunc(d.results(), func(r result) bool { return r.Reason != "" && r.Action != "identify" })
}

// seeking is a query that is being answered.
type seeking struct {
	*deadQuery
	hash    userHash
	ids     map[string]map[uint64]bool
	found   uint64 // of ids
	damaged []string
}

// seek calls f for each dead letter that the query means, by sync and sequence.
func seek(ctx context.Context, h house, q *deadQuery, f func(*deadLetter) error) (*seeking, error) {
	s := &seeking{deadQuery: q}
	if q.User != "" || !q.ShowIDs {
		var err error
		if s.hash, err = openUserHash(h.config().Storage.Dir); err != nil {
			return s, err
		}
	}
	if q.IDs != nil {
		s.ids = map[string]map[uint64]bool{}
		for name, seqs := range q.IDs {
			s.ids[name] = make(map[uint64]bool, len(seqs))
			for _, seq := range seqs {
				s.ids[name][seq] = true
			}
		}
	}
	names := h.names()
	for _, name := range slices.Concat(q.Syncs, sortedKeys(q.IDs)) {
		if !slices.Contains(names, name) {
			return s, unknownSync(h, name)
		}
	}
	for _, name := range names {
		if len(q.Syncs) > 0 && !slices.Contains(q.Syncs, name) || q.IDs != nil && len(s.ids[name]) == 0 {
			continue
		}
		err := s.eachDeadLetter(h, name, func(l queue.DeadLetter) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if d := openDeadLetter(name, l); s.means(&d) {
				return f(&d)
			}
			return nil
		})
		if errors.Is(err, queue.ErrDamaged) {
			s.damaged = append(s.damaged, fmt.Sprintf("sync %s: %v", name, err))
			continue
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// eachDeadLetter reads the dead letters of a sync that may be meant, from its ledger,
// open or not.
func (s *seeking) eachDeadLetter(h house, name string, f func(queue.DeadLetter) error) error {
	var own error // f's errors are not the disk's
	each := func(l queue.DeadLetter) error { own = f(l); return own }
	c := h.consumer(name)
	if c != nil {
		_ = c.Flush() // the newest are read from the file; where the disk is full they are missing for now
	}
	var err error
	switch {
	case c == nil:
		err = queue.DeadLetters(h.config().Storage.Dir, name, each)
	case s.ids != nil:
		err = lookUp(c, sortedKeys(s.ids[name]), each)
	default:
		err = c.DeadLetters(each)
	}
	if own != nil || err == nil {
		return own
	}
	if errors.Is(err, queue.ErrDamaged) || errors.Is(err, queue.ErrLocked) {
		return err
	}
	return exit(exitIO, err)
}

// lookUp reads dead letters one by one: a few of very many.
func lookUp(c *queue.Consumer, seqs []uint64, f func(queue.DeadLetter) error) error {
	var damaged error
	for _, seq := range seqs {
		l, there, err := c.DeadLetter(seq)
		switch {
		case errors.Is(err, queue.ErrDamaged):
			damaged = err
		case err != nil:
			return err
		case there:
			if err := f(l); err != nil {
				return err
			}
		}
	}
	return damaged
}

func (s *seeking) means(d *deadLetter) bool {
	if s.ids != nil {
		if !s.ids[d.sync][d.Record.Seq] {
			return false
		}
		s.found++
	}
	d.hash = s.hash
	return (len(s.Reasons) == 0 || slices.Contains(s.Reasons, d.Reason)) &&
		(len(s.Events) == 0 || slices.ContainsFunc(s.Events, func(g string) bool { return globMatches(g, d.event) })) &&
		(s.User == "" || s.User == d.record.UserID || s.User == d.record.DeviceID || s.User == s.hash.of(d.user())) &&
		d.At >= s.After && (s.Until == 0 || d.At <= s.Until)
}

// missing counts the ids that are no dead letters, or no longer.
func (s *seeking) missing() (n uint64) {
	for _, seqs := range s.ids {
		n += uint64(len(seqs))
	}
	return n - min(n, s.found)
}

// globMatches says whether text is what glob means, in which * is any text.
func globMatches(glob, text string) bool {
	head, rest, wild := strings.Cut(glob, "*")
	if !wild {
		return glob == text
	}
	text, ok := strings.CutPrefix(text, head)
	if !ok {
		return false
	}
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(text, part)
		}
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text, rest = text[i+len(part):], after
	}
}

// result is one element of what Customer.io answered, as delivery keeps it.
type result struct {
	Action  string `json:"action"`
	Status  int    `json:"status,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message,omitempty"`
}

func (d *deadLetter) results() []result {
	var list []result
	_ = json.Unmarshal(d.Results, &list) // what is damaged has nothing to show
	return list
}

// refusal is the first answer that was a no.
func (d *deadLetter) refusal() result {
	for _, r := range d.results() {
		if r.Reason != "" {
			return r
		}
	}
	return result{}
}

// deadLine is a dead letter in a list.
type deadLine struct {
	ID      string    `json:"id"`
	Died    time.Time `json:"died"`
	Reason  string    `json:"reason"`
	Event   string    `json:"event"` // "" = its record cannot be read
	User    string    `json:"user"`  // a hash; with show_ids the user_id or device_id
	Action  string    `json:"action"`
	Field   string    `json:"field"`
	Message string    `json:"message"` // Customer.io's words
}

// listEnd is the last line of a list.
type listEnd struct {
	Listed  uint64 `json:"listed"`
	More    uint64 `json:"more"`    // are meant too, and were not listed
	Missing uint64 `json:"missing"` // ids that are no dead letters
	// Of an export of events: records that hold none that can be read.
	Unreadable uint64   `json:"unreadable,omitempty"`
	Damaged    []string `json:"damaged,omitempty"`
}

func listDeadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var q deadQuery
	if err := readInput(in, &q); err != nil {
		return err
	}
	var end listEnd
	s, err := seek(ctx, h, &q, func(d *deadLetter) error {
		if q.Limit > 0 && end.Listed == uint64(q.Limit) {
			end.More++
			return nil
		}
		end.Listed++
		no := d.refusal()
		return tell(out, deadLine{ID: d.id(), Died: *timeOf(d.At), Reason: d.Reason, Event: d.event, User: d.shownUser(q.ShowIDs),
			Action: no.Action, Field: no.Field, Message: no.Message})
	})
	if err != nil {
		return err
	}
	end.Missing, end.Damaged = s.missing(), s.damaged
	return tell(out, end)
}

func (d *deadLetter) shownUser(showIDs bool) string {
	if showIDs {
		return d.user()
	}
	return d.hash.of(d.user())
}

// wholeDead is all that is known of a dead letter.
type wholeDead struct {
	ID         string          `json:"id"`
	Sync       string          `json:"sync"`
	Sequence   uint64          `json:"sequence"`
	Project    string          `json:"project"`
	Received   time.Time       `json:"received"`
	Died       time.Time       `json:"died"`
	Reason     string          `json:"reason"`
	Results    json.RawMessage `json:"results"` // of each operation what was answered
	EventType  string          `json:"event_type"`
	Time       *time.Time      `json:"time"`           // the event's
	EventID    string          `json:"event_id"`       // at Customer.io
	User       string          `json:"user,omitempty"` // the hash that stands for who it is about
	UserID     string          `json:"user_id,omitempty"`
	DeviceID   string          `json:"device_id,omitempty"`
	Properties json.RawMessage `json:"user_properties,omitempty"` // as they were after the event
	Event      json.RawMessage `json:"event,omitempty"`           // as it was received
	Body       []byte          `json:"body,omitempty"`            // instead of the above, when it cannot be read
}

func (d *deadLetter) all(showIDs bool) wholeDead {
	w := wholeDead{
		ID: d.id(), Sync: d.sync, Sequence: d.Record.Seq, Project: d.Record.Project, Received: *timeOf(d.Record.Received),
		Died: *timeOf(d.At), Reason: d.Reason, Results: rawOr(d.Results, "[]"), EventType: d.event, EventID: mapping.ULID(d.Record.ID),
	}
	if d.whole {
		w.Time = timeOf(d.record.Time)
	}
	switch {
	case !showIDs:
		w.User = d.hash.of(d.user())
	case d.whole:
		w.UserID, w.DeviceID = d.record.UserID, d.record.DeviceID
		w.Properties, w.Event = rawOr(d.record.Properties, "{}"), rawOr(d.record.Raw, "null")
	default:
		w.Body = d.Record.Body
	}
	return w
}

// rawOr is b if it is JSON.
func rawOr(b []byte, other string) json.RawMessage {
	if !json.Valid(b) {
		return json.RawMessage(other)
	}
	return b
}

func showDeadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var q deadQuery
	if err := readInput(in, &q); err != nil {
		return err
	}
	found := errors.New("found")
	s, err := seek(ctx, h, &q, func(d *deadLetter) error {
		if err := tell(out, d.all(q.ShowIDs)); err != nil {
			return err
		}
		return found
	})
	if errors.Is(err, found) {
		return nil
	}
	if err == nil {
		err = exit(exitData, errors.New("there is no such dead letter: it was replayed or dropped, or was too old"))
		if len(s.damaged) > 0 {
			err = exit(exitIO, fmt.Errorf("it cannot be read, or there is none: %s", strings.Join(s.damaged, "; ")))
		}
	}
	return err
}

func exportDeadVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var q deadQuery
	if err := readInput(in, &q); err != nil {
		return err
	}
	q.ShowIDs = true
	var end listEnd
	s, err := seek(ctx, h, &q, func(d *deadLetter) error {
		if q.HTTPV2 {
			if told, err := tellEvent(out, &d.record, d.whole); err != nil || !told {
				end.Unreadable++
				return err
			}
			end.Listed++
			return nil
		}
		end.Listed++
		return tell(out, d.all(true))
	})
	if err != nil {
		return err
	}
	end.Missing, end.Damaged = s.missing(), s.damaged
	return tell(out, end)
}
