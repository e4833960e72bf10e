package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// whom says which people's records are meant: a user's, a device's, those of an insert_id,
// or one record. Of ids, the hash that lists show will do.
type whom struct {
	Project  string `json:"project,omitempty"` // may be left out when there is only one
	User     string `json:"user,omitempty"`
	Device   string `json:"device,omitempty"`
	InsertID string `json:"insert_id,omitempty"`
	Seq      uint64 `json:"seq,omitempty"`
}

var hashed = regexp.MustCompile(`^[0-9a-f]{10}$`)

// isID says whether id is the given one, or the one that the given hash stands for.
func (h userHash) isID(id []byte, given string) bool {
	return string(id) == given || len(id) > 0 && hashed.MatchString(given) && h.of(string(id)) == given
}

// inProject fills in the project that is meant.
func (w *whom) inProject(h house) error {
	names := h.config().Project.Names()
	switch {
	case w.Project != "":
		if !slices.Contains(names, w.Project) {
			return exit(exitData, fmt.Errorf("there is no project %q: there are: %s", w.Project, strings.Join(names, ", ")))
		}
	case len(names) == 1:
		w.Project = names[0]
	default:
		return exit(exitUsage, fmt.Errorf("say in which project, with --project: there are: %s", strings.Join(names, ", ")))
	}
	return nil
}

// matcher says of a record's lane and body whether it is meant. It is asked by several
// goroutines.
func (w *whom) matcher(hash userHash) func(lane, body []byte) bool {
	switch {
	case w.User != "":
		isHash := hashed.MatchString(w.User)
		lane := []byte(users.LaneOfUser(w.User))
		return func(l, _ []byte) bool {
			return bytes.Equal(l, lane) || isHash && len(l) > 1 && l[0] == lane[0] && hash.isID(l[1:], w.User)
		}
	case w.Device != "":
		isHash := hashed.MatchString(w.Device)
		return func(_, body []byte) bool {
			_, device, ok := mapping.BodyOf(body)
			return ok && (string(device) == w.Device || isHash && hash.isID(device, w.Device))
		}
	}
	id := []byte(w.InsertID)
	return func(_, body []byte) bool {
		if !bytes.Contains(body, id) && !bytes.Contains(body, []byte(`\`)) {
			return false
		}
		var r mapping.Record
		if r.DecodeBody(body) != nil {
			return false
		}
		ev, problems := mapping.ParseEvent(r.Raw)
		return problems == nil && ev.InsertID == w.InsertID
	}
}

// kept is what is kept of an installation, for looks at it: of a daemon that runs, or of
// its files.
type kept struct {
	h     house
	log   *queue.Log
	close func() error
}

func openKept(h house) (*kept, error) {
	k := &kept{h: h, log: h.recordLog(), close: func() error { return nil }}
	if k.log != nil {
		return k, nil
	}
	var err error
	if k.log, k.close, err = queue.OpenToRead(h.config().Storage.Dir); err != nil {
		if errors.Is(err, queue.ErrLocked) {
			return nil, err
		}
		return nil, exit(exitIO, err)
	}
	return k, nil
}

// syncs are those that take the records of a project.
func (k *kept) syncs(project string) (names []string) {
	for _, name := range k.h.names() {
		of := ""
		if c := k.h.consumer(name); c != nil {
			of = c.Project()
		} else if y, configured := k.h.config().Sync[name]; configured {
			of = y.Project
		} else {
			of, _ = queue.LedgerProject(k.h.config().Storage.Dir, name)
		}
		if of == project {
			names = append(names, name)
		}
	}
	return names
}

// search calls f for each kept record that is meant, in no order. Where a daemon delivers
// meanwhile, half of the processors are left to it.
func (k *kept) search(ctx context.Context, s queue.Search, f func(queue.Found) error) error {
	s.Workers = runtime.GOMAXPROCS(0)
	if k.h.running() {
		s.Workers = max(s.Workers/2, 1)
	}
	err := k.log.Search(ctx, s, f)
	if err != nil && ctx.Err() == nil {
		return exit(exitIO, err)
	}
	return err
}

func (k *kept) fates(name string, records []queue.Found, history bool) (fates []queue.Fate, err error) {
	if c := k.h.consumer(name); c != nil {
		fates, err = c.Fates(records, history)
	} else {
		fates, err = queue.FatesInFiles(k.h.config().Storage.Dir, name, records, history)
	}
	if errors.Is(err, queue.ErrLocked) {
		return nil, err
	}
	return fates, exit(exitIO, err)
}

func (k *kept) held(ctx context.Context, name string, lanes []string, match func(*queue.DeadLetter) bool) (held queue.HeldOf, err error) {
	if c := k.h.consumer(name); c != nil {
		held, err = c.Held(ctx, lanes, match)
	} else {
		held, err = queue.HeldInFiles(ctx, k.h.config().Storage.Dir, name, lanes, match)
	}
	if errors.Is(err, queue.ErrLocked) || ctx.Err() != nil {
		return held, err
	}
	return held, exit(exitIO, err)
}

func (k *kept) sent(name, identifier string) (v []byte, err error) {
	if c := k.h.consumer(name); c != nil {
		v, err = c.Sent(identifier)
	} else {
		v, err = queue.SentInFiles(k.h.config().Storage.Dir, name, identifier)
	}
	if errors.Is(err, queue.ErrLocked) {
		return nil, err
	}
	return v, exit(exitIO, err)
}

// known is what users.db, or the memory of the daemon, knows of a user or device. behind is
// how many records users.db has not taken up yet, since ampcio was killed.
func (k *kept) known(ctx context.Context, project string, isDevice bool, id string) (l users.Look, behind uint64, err error) {
	store := k.h.userStore()
	if store == nil {
		l, err = users.LookInto(ctx, filepath.Join(k.h.config().Storage.Dir, "users.db"), project, isDevice, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			l.Properties, err = []byte("{}"), nil
		case errors.Is(err, queue.ErrDamaged):
			err = exit(exitIO, fmt.Errorf("%w: the next start of ampcio repairs it", err))
		}
		if tail := k.log.Tail(); err == nil && tail > l.Good {
			behind = tail - l.Good
		}
		lane := users.LaneOfUser(id)
		if isDevice {
			lane = users.LaneOfDevice(id)
		}
		for _, t := range k.log.Unfinished() { // a crash came before that was written
			if t.Project == project && slices.Contains(t.Unfinished.Lanes, lane) && l.Seq <= t.UpTo {
				l = users.Look{Known: users.Known{Properties: []byte("{}")}}
			}
		}
		return l, behind, err
	}
	if isDevice {
		l.Known, err = store.Device(project, id)
		return l, 0, exit(exitIO, err)
	}
	if l.Known, err = store.User(project, id); err == nil {
		l.Devices, err = store.Devices(ctx, project, id)
	}
	return l, 0, exit(exitIO, err)
}

// person is all that is kept of a user, or of a device on its own.
type person struct {
	project  string
	isDevice bool
	id       string
	users.Look
	behind      uint64
	lanes       []string            // the user's, and those of the devices linked to them
	identifiers map[string][]string // by sync, the keys of them; sorted
	all         []string            // of all syncs, and such as rules of other times may have made
	records     uint64              // kept in the log
	forgotten   uint64              // of lanes of that name, but of somebody who is forgotten
	first, last int64               // receipt of those, ms since 1970 UTC; 0 = there is none
	syncs       []personIn
}

// personIn is what one sync holds of a person.
type personIn struct {
	name                 string
	pending, aside, dead uint64
	failed               int
	reason               string
	due                  int64
}

// known says whether there is anything at all.
func (p *person) isKnown() bool {
	held := uint64(0)
	for _, y := range p.syncs {
		held += y.pending + y.dead
	}
	return p.Any() || p.InsertIDs > 0 || len(p.Devices) > 0 || p.records > 0 || held > 0 || p.isDevice && p.UserID != ""
}

// fatesAtOnce bounds what a person with very many records takes in memory.
const fatesAtOnce = 4096

// findPerson gathers what is kept of a person.
func (k *kept) findPerson(ctx context.Context, w whom, hash userHash) (*person, error) {
	p := &person{project: w.Project, isDevice: w.Device != "", id: cmp.Or(w.User, w.Device), identifiers: map[string][]string{}}
	var err error
	if hashed.MatchString(p.id) {
		if err := k.resolveHash(ctx, p, hash); err != nil {
			return nil, err
		}
	}
	if p.Look, p.behind, err = k.known(ctx, p.project, p.isDevice, p.id); err != nil {
		return nil, err
	}
	if p.isDevice {
		p.lanes = []string{users.LaneOfDevice(p.id)}
	} else {
		p.lanes = []string{users.LaneOfUser(p.id)}
		for _, d := range p.Devices {
			p.lanes = append(p.lanes, users.LaneOfDevice(d))
		}
	}
	keys := map[string]map[string]bool{}
	all := map[string]bool{}
	names := k.syncs(p.project)
	for _, name := range names {
		keys[name] = map[string]bool{}
	}
	learn := func(r *mapping.Record) {
		for _, name := range names {
			if rules := k.h.rulesOf(name); rules != nil {
				if id, why := rules.Identifier(r); why == "" {
					keys[name][id.Key()], all[id.Key()] = true, true
				}
			}
		}
		for _, key := range mapping.UsualKeys(r) {
			all[key] = true
		}
	}
	now := mapping.Record{Project: p.project, UserID: p.id, Properties: p.Properties, Builtins: p.Builtins}
	if p.isDevice {
		now.UserID, now.DeviceID = p.UserID, p.id
	}
	learn(&now)

	y := map[string]*personIn{}
	for _, name := range names {
		y[name] = &personIn{name: name}
	}
	var some []queue.Found
	count := func() error {
		for _, name := range names {
			fates, err := k.fates(name, some, false)
			if err != nil {
				return err
			}
			for _, f := range fates {
				if f.State == queue.FatePending || f.State == queue.FateWaiting {
					y[name].pending++
					y[name].failed, y[name].reason, y[name].due = f.Failed, f.Reason, f.Due
				}
			}
		}
		some = some[:0]
		return nil
	}
	wanted := map[string]bool{}
	for _, lane := range p.lanes {
		wanted[lane] = true
	}
	err = k.search(ctx, queue.Search{Project: p.project, Match: func(lane, _ []byte) bool { return wanted[string(lane)] }}, func(f queue.Found) error {
		if f.Forgotten {
			p.forgotten++
			return nil
		}
		p.records++
		if p.first == 0 || f.Received < p.first {
			p.first = f.Received
		}
		p.last = max(p.last, f.Received)
		r := mapping.Record{Seq: f.Seq, Project: f.Project, ID: f.ID, Received: f.Received}
		if r.DecodeBody(f.Body) == nil {
			learn(&r)
		}
		f.Body = nil
		if some = append(some, f); len(some) == fatesAtOnce {
			return count()
		}
		return nil
	})
	if err == nil {
		err = count()
	}
	if err != nil {
		return nil, err
	}
	inLog := map[string]uint64{}
	for _, name := range names {
		inLog[name] = y[name].pending
	}
	for _, name := range names {
		held, err := k.held(ctx, name, p.lanes, nil)
		if err != nil {
			return nil, err
		}
		y[name].aside, y[name].dead = uint64(len(held.Aside)), uint64(len(held.Dead))
		y[name].pending = max(inLog[name], y[name].aside) // the side place holds what the log has let go of
		for i := range held.Aside {
			learnBody(&held.Aside[i], learn)
		}
		for i := range held.Dead {
			learnBody(&held.Dead[i].Record, learn)
		}
		for key := range keys[name] {
			p.identifiers[name] = append(p.identifiers[name], key)
		}
		slices.Sort(p.identifiers[name])
		p.syncs = append(p.syncs, *y[name])
	}
	p.all = sortedKeys(all)
	return p, nil
}

func learnBody(q *queue.Record, learn func(*mapping.Record)) {
	r := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if r.DecodeBody(q.Body) == nil {
		learn(&r)
	}
}

// errFound ends a search.
var errFound = errors.New("found")

// resolveHash finds the id that a hash stands for, among the kept records and the dead
// letters, whose lists show it; where there is none, it is taken for an id.
func (k *kept) resolveHash(ctx context.Context, p *person, hash userHash) error {
	given := p.id
	match := (&whom{User: given}).matcher(hash)
	if p.isDevice {
		match = (&whom{Device: given}).matcher(hash)
	}
	take := func(r *queue.Record) bool {
		userID, deviceID := users.OfLane(r.Lane)
		if p.isDevice {
			if _, of, ok := mapping.BodyOf(r.Body); ok {
				deviceID = string(of)
			}
			userID = deviceID
		}
		if userID != "" {
			p.id = userID
		}
		return userID != ""
	}
	err := k.search(ctx, queue.Search{Project: p.project, Match: match}, func(f queue.Found) error {
		if !f.Forgotten && take(&f.Record) {
			return errFound
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, errFound) {
			return nil
		}
		return err
	}
	for _, name := range k.syncs(p.project) { // dead letters are there for longer than the log
		held, err := k.held(ctx, name, nil, func(d *queue.DeadLetter) bool { return match([]byte(d.Record.Lane), d.Record.Body) })
		if err != nil {
			return err
		}
		for i := range held.Dead {
			if take(&held.Dead[i].Record) {
				return nil
			}
		}
	}
	return nil
}
