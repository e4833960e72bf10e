package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

func init() {
	verbs["user-show"] = showUserVerb
	verbs["user-forget"] = forgetUserVerb
	readsOnly["user-show"] = true
}

// aboutUser is what is asked of a user, or of a device on its own.
type aboutUser struct {
	Project  string `json:"project,omitempty"`
	ID       string `json:"id"`
	IsDevice bool   `json:"is_device,omitempty"`
	ShowIDs  bool   `json:"show_ids,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (a *aboutUser) whom() whom {
	if a.IsDevice {
		return whom{Project: a.Project, Device: a.ID}
	}
	return whom{Project: a.Project, User: a.ID}
}

// shownUser is what is known of a user.
type shownUser struct {
	Project    string          `json:"project"`
	Kind       string          `json:"kind"` // user | device
	ID         string          `json:"id"`   // or its hash
	Known      bool            `json:"known"`
	User       string          `json:"user,omitempty"` // of a device: to whom it is linked
	Devices    []string        `json:"devices"`
	Properties json.RawMessage `json:"properties"`          // without show_ids: their names, and of what kind the values are
	Builtins   json.RawMessage `json:"built_in_properties"` // likewise
	InsertIDs  int             `json:"insert_ids"`          // remembered, to know a repeat
	Changed    *time.Time      `json:"changed"`             // the hour in which something of it changed last
	Records    uint64          `json:"records"`             // kept in the log
	First      *time.Time      `json:"first"`               // receipt of those
	Last       *time.Time      `json:"last"`
	Forgotten  *time.Time      `json:"forgotten"` // when somebody of this id was forgotten; null = nothing of that is in the log
	ErasedWith uint64          `json:"forgotten_records"`
	Behind     uint64          `json:"records_not_taken_up"` // since ampcio was killed
	Syncs      []shownUserIn   `json:"syncs"`
}

type shownUserIn struct {
	Sync        string            `json:"sync"`
	Identifiers []shownIdentifier `json:"identifiers"`
	Pending     uint64            `json:"pending"`
	Aside       uint64            `json:"aside"` // of those, in the side place
	DeadLetters uint64            `json:"dead_letters"`
	Failed      int               `json:"failed_tries"` // of the first of them
	Reason      string            `json:"reason,omitempty"`
	Next        *time.Time        `json:"next_try"`
}

type shownIdentifier struct {
	ID      string     `json:"id"`   // kind:value, the value or its hash
	Sent    *time.Time `json:"sent"` // the time of the last identify; null = none is known
	Has     []string   `json:"has"`  // attributes that Customer.io was sent
	Refused []string   `json:"refused,omitempty"`
}

func showUserVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked aboutUser
	if err := readInput(in, &asked); err != nil {
		return err
	}
	s, err := showUser(ctx, h, &asked)
	if err != nil {
		return err
	}
	return tell(out, s)
}

func showUser(ctx context.Context, h house, asked *aboutUser) (s *shownUser, err error) {
	w := asked.whom()
	if err := w.inProject(h); err != nil {
		return nil, err
	}
	hash, err := openUserHash(h.config().Storage.Dir)
	if err != nil {
		return nil, err
	}
	k, err := openKept(h)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closing := k.close(); err == nil {
			err = exit(exitIO, closing)
		}
	}()
	p, err := k.findPerson(ctx, w, hash)
	if err != nil {
		return nil, err
	}
	shown := func(id string) string {
		if asked.ShowIDs {
			return id
		}
		return hash.of(id)
	}
	s = &shownUser{Project: p.project, Kind: "user", ID: shown(p.id), Known: p.isKnown(), Devices: []string{}, Properties: p.Properties,
		Builtins: mapping.BuiltinsJSON(p.Builtins), InsertIDs: p.InsertIDs, Records: p.records, ErasedWith: p.forgotten, Behind: p.behind, Syncs: []shownUserIn{}}
	if p.isDevice {
		s.Kind, s.User = "device", shown(p.UserID)
	}
	for _, d := range p.Devices {
		s.Devices = append(s.Devices, shown(d))
	}
	if !asked.ShowIDs {
		s.Properties, s.Builtins = kindsOf(s.Properties), kindsOf(s.Builtins)
	}
	if p.Seen > 0 {
		s.Changed = timeOf(int64(p.Seen) * time.Hour.Milliseconds())
	}
	if p.first != 0 {
		s.First, s.Last = timeOf(p.first), timeOf(p.last)
	}
	if at, _ := k.log.ForgottenAt(p.project, p.lanes[0]); at != 0 {
		s.Forgotten = timeOf(at)
	}
	for _, y := range p.syncs {
		in := shownUserIn{Sync: y.name, Identifiers: []shownIdentifier{}, Pending: y.pending, Aside: y.aside, DeadLetters: y.dead, Failed: y.failed, Reason: y.reason}
		if y.due != 0 {
			in.Next = timeOf(y.due)
		}
		for _, key := range p.identifiers[y.name] {
			stored, err := k.sent(y.name, key)
			if err != nil {
				return nil, err
			}
			kind, value, _ := strings.Cut(key, ":")
			id := shownIdentifier{ID: kind + ":" + shown(value), Has: []string{}}
			if at, has, refused, ok := mapping.LastSent(stored); ok {
				id.Sent, id.Has, id.Refused = timeOf(at*1000), append(id.Has, has...), refused
			}
			in.Identifiers = append(in.Identifiers, id)
		}
		s.Syncs = append(s.Syncs, in)
	}
	return s, nil
}

// kindsOf gives the names of properties, and what kind of value each has.
func kindsOf(properties []byte) json.RawMessage {
	kinds := map[string]string{}
	mapping.Members(properties, func(name string, value []byte) error {
		kind := "number"
		switch value[0] {
		case '"':
			kind = "text"
		case '{':
			kind = "object"
		case '[':
			kind = "list"
		case 't', 'f':
			kind = "yes or no"
		case 'n':
			kind = "null"
		}
		kinds[name] = kind
		return nil
	})
	b, err := json.Marshal(kinds)
	if err != nil {
		return json.RawMessage("{}") // strings always marshal
	}
	return b
}

// forgottenUser is what was forgotten, or would be.
type forgottenUser struct {
	Project     string            `json:"project"`
	Kind        string            `json:"kind"`
	ID          string            `json:"id"` // or its hash
	Known       bool              `json:"known"`
	DryRun      bool              `json:"dry_run"`
	Properties  int               `json:"properties"`
	Devices     int               `json:"devices"`
	Identifiers int               `json:"identifiers"` // looked for in every sync's memory of what was sent
	Records     uint64            `json:"records"`     // of the log: no longer read, and erased with their files
	UpTo        uint64            `json:"up_to"`       // the last record that may be of the person
	Syncs       []forgottenUserIn `json:"syncs"`
	DryRuns     int               `json:"dry_run_operations"` // erased from the files of dry runs
	// Where old bytes may stand for longer: files that could not be written anew, and
	// damaged ones that were put aside.
	Remains []string `json:"remains"`
	// Others that a crash had left half forgotten, and that are forgotten now.
	Finished int `json:"finished"`
	// How long the records may stay on disk after every sync is done with them, in seconds.
	Keep        int64 `json:"keep_s"`
	RotateAfter int64 `json:"rotate_after_s"`
}

type forgottenUserIn struct {
	Sync        string `json:"sync"`
	Pending     uint64 `json:"pending"` // discarded
	DeadLetters uint64 `json:"dead_letters"`
	Sent        int    `json:"sent"` // identifiers of which nothing is known any more
}

func forgetUserVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked aboutUser
	if err := readInput(in, &asked); err != nil {
		return err
	}
	var f *forgottenUser
	do := func() (err error) {
		f, err = forgetUser(ctx, h, &asked)
		return err
	}
	err := error(nil)
	if asked.DryRun {
		err = do()
	} else {
		err = h.operate(do)
	}
	if err != nil {
		return err
	}
	return tell(out, f)
}

func forgetUser(ctx context.Context, h house, asked *aboutUser) (*forgottenUser, error) {
	w := asked.whom()
	if err := w.inProject(h); err != nil {
		return nil, err
	}
	hash, err := openUserHash(h.config().Storage.Dir)
	if err != nil {
		return nil, err
	}
	if h.userStore() == nil {
		store, err := users.Open(ctx, h.recordLog(), users.Options{Path: filepath.Join(h.config().Storage.Dir, "users.db")})
		if err != nil {
			return nil, storageError(h.config().Storage.Dir, err)
		}
		h = withUsers{h, store}
		defer store.Close() // all that matters was durable before
	}
	k, err := openKept(h)
	if err != nil {
		return nil, err
	}
	p, err := k.findPerson(ctx, w, hash)
	if err != nil {
		return nil, err
	}
	storage := h.config().Storage
	f := &forgottenUser{Project: p.project, Kind: "user", ID: p.id, Known: p.isKnown(), DryRun: asked.DryRun, Devices: len(p.Devices), Identifiers: len(p.all),
		Records: p.records, Syncs: []forgottenUserIn{}, Remains: []string{}, Keep: seconds(time.Duration(storage.Keep)), RotateAfter: seconds(time.Duration(storage.RotateAfter))}
	if p.isDevice {
		f.Kind = "device"
	}
	if !asked.ShowIDs {
		f.ID = hash.of(p.id)
	}
	mapping.Members(p.Properties, func(string, []byte) error { f.Properties++; return nil })
	if p.isDevice && p.UserID != "" {
		f.Properties = 0 // they are the user's
	}
	if asked.DryRun {
		for _, y := range p.syncs {
			in := forgottenUserIn{Sync: y.name, Pending: y.pending, DeadLetters: y.dead}
			for _, key := range p.all {
				if v, err := k.sent(y.name, key); err != nil {
					return nil, err
				} else if v != nil {
					in.Sent++
				}
			}
			f.Syncs = append(f.Syncs, in)
		}
		return f, nil
	}
	letGo, err := h.recordLog().BarBackups()
	if err != nil {
		return nil, exit(exitTemporary, fmt.Errorf("%w, which would hold some of the person and not the rest; nothing was changed: do it again when it has ended", err))
	}
	defer letGo()
	t, err := h.recordLog().ForgetLanes(ctx, p.project, queue.Forgetting{Lanes: p.lanes, Sent: p.all},
		func(uint64) error { return h.userStore().Forget(p.project, p.lanes) })
	if err != nil {
		return nil, exit(exitIO, err)
	}
	f.UpTo = t.UpTo
	done, err := finishForgetting(ctx, h, &f.Remains, &f.DryRuns)
	if err != nil {
		return nil, err
	}
	for _, y := range p.syncs {
		in := forgottenUserIn{Sync: y.name}
		if did := done[t.ID][y.name]; did != nil {
			in.Pending, in.DeadLetters, in.Sent = did.Pending, did.DeadLetters, did.Sent
		}
		f.Syncs = append(f.Syncs, in)
	}
	f.Finished = len(done) - 1
	return f, nil
}

// withUsers is a house whose users.db is open.
type withUsers struct {
	house
	store *users.Store
}

func (h withUsers) userStore() *users.Store { return h.store }

// finishForgetting lets ledgers and users.db go of all who were forgotten and of whom they
// may still know something: by tombstone and sync, what they had. What remains somewhere is
// added to remains, and to dryRuns how many operations went from their files. It may be
// ended and done again at any point.
func finishForgetting(ctx context.Context, h house, remains *[]string, dryRuns *int) (map[string]map[string]*queue.Forgotten, error) {
	done := map[string]map[string]*queue.Forgotten{}
	log, store := h.recordLog(), h.userStore()
	unfinished := log.Unfinished()
	if len(unfinished) == 0 {
		return done, nil
	}
	waiting, cancel := context.WithTimeout(ctx, claimsEnd)
	defer cancel()
	var pages []string
	for _, t := range unfinished {
		done[t.ID] = map[string]*queue.Forgotten{}
		for _, name := range h.names() {
			c := h.consumer(name)
			if c == nil || c.Project() != t.Project {
				continue
			}
			f, err := c.Forget(waiting, t.Unfinished.Sent)
			done[t.ID][name] = &f
			switch {
			case err == nil:
			case ctx.Err() != nil:
				return done, exit(exitTemporary, errors.New("the person is forgotten from here on, but not everywhere yet: do it again to finish it, or the next start of ampcio does"))
			case errors.Is(err, context.DeadlineExceeded):
				return done, exit(exitTemporary, fmt.Errorf("a request to Customer.io about the person did not end within %s: the person is forgotten from here on, but not everywhere yet: do it again to finish it, or the next start of ampcio does", claimsEnd))
			default:
				return done, exit(exitIO, fmt.Errorf("%w: the person is forgotten from here on, but not everywhere yet: do it again to finish it, or the next start of ampcio does", err))
			}
			if !f.Rewritten {
				pages = append(pages, filepath.Join("sync", name+".db"))
			}
		}
	}
	var err error
	for i := range unfinished {
		if err == nil {
			var n int
			n, err = forgetInDryRuns(waiting, h, &unfinished[i])
			*dryRuns += n
		}
	}
	if err == nil {
		err = store.Flush(waiting)
	}
	rewritten := false
	if err == nil {
		rewritten, err = store.Rewrite(waiting)
	}
	for _, t := range unfinished {
		if err == nil {
			err = log.FinishForgetting(t.ID)
		}
	}
	if err != nil {
		return done, exit(exitIO, fmt.Errorf("%w: the person is forgotten from here on, but not everywhere yet: do it again to finish it, or the next start of ampcio does", err))
	}
	if !rewritten {
		pages = append(pages, "users.db")
	}
	for _, p := range pages {
		*remains = append(*remains, p+": free pages, until they are used again")
	}
	dir := h.config().Storage.Dir
	if away, _ := os.ReadDir(filepath.Join(dir, "damaged")); len(away) > 0 {
		*remains = append(*remains, fmt.Sprintf("damaged/: %s, which ampcio never touches", counted(uint64(len(away)), "damaged file that was put aside", "damaged files that were put aside")))
	}
	if away, _ := filepath.Glob(filepath.Join(dir, "users.db.damaged-*")); len(away) > 0 {
		*remains = append(*remains, "users.db.damaged-…: put aside, which ampcio never touches")
	}
	return done, nil
}

// forgetUnfinished does at a start what a crash has kept from being done. What cannot be
// done now, such as on a full disk, is done by the next start: nobody is sent meanwhile.
func (d *daemon) forgetUnfinished() {
	var remains []string
	var dryRuns int
	done, err := finishForgetting(context.Background(), d, &remains, &dryRuns)
	if err != nil {
		d.log.Error("somebody was forgotten before the last stop, and not everywhere yet: it is tried again at the next start", "error", err)
	} else if len(done) > 0 {
		d.log.Info("forgot who was half forgotten at the last stop", "people", len(done))
	}
}
