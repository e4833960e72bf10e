package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ampcio/config"
	"ampcio/queue"
	"ampcio/users"
)

// explain works by the configuration file that it is given, in its own process. What is
// known of users, and what identifiers were last sent, it asks whoever has the storage: the
// daemon, or else the files. It only looks.

// look is what explain wants to know.
type look struct {
	Users   []someone    `json:"users,omitempty"`
	Devices []someone    `json:"devices,omitempty"`
	Sent    []identified `json:"sent,omitempty"`
	From    uint64       `json:"from,omitempty"` // sequences of records of the log, both included
	To      uint64       `json:"to,omitempty"`
	Dead    []string     `json:"dead,omitempty"` // syncs whose dead letter From is meant
	InForce []string     `json:"in_force,omitempty"`
}

type someone struct {
	Project string `json:"project"`
	ID      string `json:"id"`
}

type identified struct {
	Sync string `json:"sync"`
	Key  string `json:"key"`
}

// found is one thing that is known. Exactly one of its members is there.
type found struct {
	User    *knownOf    `json:"user,omitempty"`
	Device  *knownOf    `json:"device,omitempty"`
	Sent    *sentTo     `json:"sent,omitempty"`
	Record  *keptRecord `json:"record,omitempty"`
	InForce *inForce    `json:"in_force,omitempty"`
	Note    string      `json:"note,omitempty"`
}

type knownOf struct {
	someone
	UserID     string          `json:"user_id"`        // of a device: whom it was last linked to
	Sole       bool            `json:"sole,omitempty"` // of a device: no other user was seen on it
	Properties json.RawMessage `json:"properties"`     // null = nothing is known
	Builtins   []byte          `json:"builtins"`       // packed
}

type sentTo struct {
	identified
	Value  []byte `json:"value"`  // null = never
	Ledger bool   `json:"ledger"` // false: the sync has no ledger yet
}

// keptRecord is a record of the log, or a dead letter.
type keptRecord struct {
	queue.Record
	Sync    string `json:"sync,omitempty"` // of a dead letter
	Results []byte `json:"results,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// inForce says by what a sync of a daemon decides.
type inForce struct {
	Sync  string `json:"sync"`
	Rules string `json:"rules"` // a hash; "" = it has no such sync
}

// rulesHash tells two sets of rules apart.
func rulesHash(s *settings) string {
	if s == nil {
		return ""
	}
	text, err := json.Marshal(struct {
		Spec   any
		Late   time.Duration
		Policy string
	}{s.spec, s.options.LateAfter, s.options.LatePolicy})
	if err != nil {
		return "" // plain values always marshal
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// mostRecords bounds how many records one explain is about.
const mostRecords = 10_000

func init() {
	verbs["explain-look"] = explainLookVerb
	readsOnly["explain-look"] = true
}

func explainLookVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked look
	if err := readInput(in, &asked); err != nil {
		return err
	}
	if err := lookAtUsers(h, &asked, out); err != nil {
		return err
	}
	for _, who := range asked.Sent {
		value, ledger, err := lookAtSent(h, who)
		if err != nil {
			return err
		}
		if err := tell(out, found{Sent: &sentTo{who, value, ledger}}); err != nil {
			return err
		}
	}
	if h.running() {
		for _, sync := range asked.InForce {
			if err := tell(out, found{InForce: &inForce{sync, rulesHash(settingsOf(h.config(), sync))}}); err != nil {
				return err
			}
		}
	}
	switch {
	case asked.From == 0:
		return nil
	case len(asked.Dead) > 0:
		return lookAtDead(ctx, h, &asked, out)
	}
	each := func(r queue.Record) error { return tell(out, found{Record: &keptRecord{Record: r}}) }
	if records := h.recordLog(); records != nil {
		return exit(exitIO, records.Records(asked.From, asked.To, each))
	}
	err := queue.RecordsOf(h.config().Storage.Dir, asked.From, asked.To, each)
	if errors.Is(err, queue.ErrLocked) {
		return err
	}
	return exit(exitIO, err)
}

// lookAtUsers tells what is known of users and devices.
func lookAtUsers(h house, asked *look, out io.Writer) error {
	if len(asked.Users)+len(asked.Devices) == 0 {
		return nil
	}
	var user, device func(project, id string) (users.Known, error)
	if d, running := h.(*daemon); running {
		user, device = d.users.User, d.users.Device
	} else {
		path := filepath.Join(h.config().Storage.Dir, "users.db")
		r, err := users.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return tell(out, found{Note: "ampcio has not stored any event yet: nothing is known of anybody"})
		}
		if errors.Is(err, queue.ErrLocked) || err != nil && errors.Is(err, fs.ErrPermission) {
			return err
		}
		if err != nil {
			return exit(exitIO, err)
		}
		defer r.Close()
		newer := false
		stop := errors.New("one is enough")
		err = queue.RecordsOf(h.config().Storage.Dir, r.Good+1, math.MaxUint64, func(queue.Record) error { newer = true; return stop })
		if err != nil && !errors.Is(err, stop) {
			return exit(exitIO, err)
		}
		if newer {
			note := fmt.Sprintf("ampcio was not stopped in an orderly way: what is shown of users is as of record %d; the next start takes up the rest", r.Good)
			if err := tell(out, found{Note: note}); err != nil {
				return err
			}
		}
		user, device = r.User, r.Device
	}
	for _, kind := range []struct {
		who    []someone
		isUser bool // and has its own id for its UserID
		look   func(project, id string) (users.Known, error)
		as     func(k *knownOf) found
	}{
		{asked.Users, true, user, func(k *knownOf) found { return found{User: k} }},
		{asked.Devices, false, device, func(k *knownOf) found { return found{Device: k} }},
	} {
		for _, who := range kind.who {
			known, err := kind.look(who.Project, who.ID)
			if err != nil {
				return exit(exitIO, err)
			}
			k := &knownOf{someone: who, UserID: known.UserID, Sole: known.Sole, Properties: rawOr(known.Properties, "{}"), Builtins: known.Builtins}
			if !known.Any() && (known.UserID == "" || kind.isUser) {
				k.Properties = nil
			}
			if err := tell(out, kind.as(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAtSent reads what an identifier was last sent by a sync: in a dry run, what it would
// have been sent.
func lookAtSent(h house, who identified) (value []byte, ledger bool, err error) {
	name := who.Sync
	trial := settingsOf(h.config(), trialOf(name)) != nil
	if trial {
		name = trialOf(name)
	}
	if c := h.consumer(name); c != nil {
		if value, err = c.LastSent(who.Key); err != nil {
			return nil, true, exit(exitIO, err)
		}
		return value, true, nil
	}
	if h.running() {
		return nil, false, nil
	}
	value, err = queue.LastSent(h.config().Storage.Dir, name, trial, who.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil && !errors.Is(err, queue.ErrLocked) && !errors.Is(err, fs.ErrPermission):
		err = exit(exitIO, err)
	}
	return value, true, err
}

func lookAtDead(ctx context.Context, h house, asked *look, out io.Writer) error {
	q := deadQuery{IDs: map[string][]uint64{}, ShowIDs: true}
	for _, sync := range asked.Dead {
		q.IDs[sync] = []uint64{asked.From}
	}
	_, err := seek(ctx, h, &q, func(d *deadLetter) error {
		return tell(out, found{Record: &keptRecord{Record: d.Record, Sync: d.sync, Results: d.Results, Reason: d.Reason}})
	})
	return err
}

// memory is what explain knows of the world: what it was told, and what its own events
// would change.
type memory struct {
	look  func(ctx context.Context, q look, each func(found) error) error // nil: there is nobody to ask
	fresh bool                                                            // what was last sent counts for nothing
	notes []string
	sent  map[identified][]byte
	asked map[identified]bool
}

func newMemory() *memory {
	return &memory{sent: map[identified][]byte{}, asked: map[identified]bool{}}
}

func (m *memory) note(text string) {
	if !slices.Contains(m.notes, text) {
		m.notes = append(m.notes, text)
	}
}

// ask asks, and keeps the notes.
func (m *memory) ask(ctx context.Context, q look, each func(found)) error {
	if m.look == nil {
		return nil
	}
	return m.look(ctx, q, func(f found) error {
		if f.Note != "" {
			m.note(f.Note)
		}
		each(f)
		return nil
	})
}

// lastSent is what an identifier was last sent.
func (m *memory) lastSent(ctx context.Context, sync, key string) ([]byte, error) {
	who := identified{sync, key}
	if m.asked[who] {
		return m.sent[who], nil
	}
	m.asked[who] = true
	if m.fresh {
		return nil, nil
	}
	err := m.ask(ctx, look{Sent: []identified{who}}, func(f found) {
		if f.Sent != nil {
			m.sent[who] = f.Sent.Value
		}
	})
	return m.sent[who], err
}

func (m *memory) remember(sync, key string, sent []byte) {
	m.asked[identified{sync, key}] = true
	m.sent[identified{sync, key}] = sent
}

// askOperator lets the memory ask at an installation. strict: an error of that ends
// explain; else it says why nothing is known, and goes on.
func (m *memory) askOperator(o *operator, strict bool) {
	gone := false
	m.look = func(ctx context.Context, q look, each func(found) error) error {
		if gone {
			return nil
		}
		if _, err := os.Stat(o.cfg.Storage.Dir); errors.Is(err, fs.ErrNotExist) && !strict {
			if _, err := os.Stat(o.socket); errors.Is(err, fs.ErrNotExist) {
				gone = true
				m.note(fmt.Sprintf("there is no storage in %s: nothing is known of anybody", o.cfg.Storage.Dir))
				return nil
			}
		}
		err := o.do(ctx, "explain-look", q, func(line []byte) error {
			var f found
			if err := json.Unmarshal(line, &f); err != nil {
				return exit(exitUnavailable, fmt.Errorf("read the answer: %w", err))
			}
			return each(f)
		})
		if err != nil && !strict && ctx.Err() == nil {
			gone = true
			m.note(fmt.Sprintf("what is known of users could not be read, so it is as if nobody were known: %v", err))
			return nil
		}
		return err
	}
}

// currentOf gives what is known of the user of a dead letter now.
func (m *memory) currentOf(ctx context.Context) func(project, userID, deviceID string) (properties, builtins []byte, err error) {
	return func(project, userID, deviceID string) (properties, builtins []byte, err error) {
		q := look{Users: []someone{{project, userID}}}
		if userID == "" {
			q = look{Devices: []someone{{project, deviceID}}}
		}
		err = m.ask(ctx, q, func(f found) {
			for _, k := range []*knownOf{f.User, f.Device} {
				if k != nil && string(k.Properties) != "null" && (k != f.Device || k.UserID == "") {
					properties, builtins = k.Properties, k.Builtins
				}
			}
		})
		return properties, builtins, err
	}
}

// ownerOf gives the first and only user of a dead letter's device.
func (m *memory) ownerOf(ctx context.Context) func(project, deviceID string) (userID string, err error) {
	return func(project, deviceID string) (userID string, err error) {
		err = m.ask(ctx, look{Devices: []someone{{project, deviceID}}}, func(f found) {
			if f.Device != nil && f.Device.Sole {
				userID = f.Device.UserID
			}
		})
		return userID, err
	}
}

// rulesDiffer notes syncs whose rules in force are others than those of the file.
func (m *memory) rulesDiffer(ctx context.Context, cfg *config.Config, file string, syncs []string) error {
	return m.ask(ctx, look{InForce: syncs}, func(f found) {
		if f.InForce != nil && f.InForce.Rules != rulesHash(settingsOf(cfg, f.InForce.Sync)) {
			m.note(fmt.Sprintf("the ampcio that runs has other rules for sync %s in force than %s, by which this is explained: ampcio reload puts these in force", f.InForce.Sync, file))
		}
	})
}
