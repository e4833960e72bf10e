// Package alerts tells one address of the operator's what is wrong: each trouble once
// when it has lasted, and its end once, whatever happens to the process, the disk or
// that address. It judges nothing: others say what is wrong at this moment.
//
// What is firing, and what is still to be posted, is in one small file (file.go); what
// is decided is in watch.go, how it reads in message.go, how it is posted in post.go.
package alerts

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"ampcio/logbook"
)

// Levels of a trouble.
const (
	Warning  = "warning"
	Critical = "critical"
)

// Trouble is one thing that is wrong at one moment, as somebody has judged it. It holds
// nothing personal and no secret: it is posted.
type Trouble struct {
	Kind    string           // a word: "blocked", "disk"
	Of      string           // which sync or project; "" = the whole house
	Cause   string           // troubles of one kind and cause are told in one message
	Level   string           // Warning | Critical
	What    string           // one sentence, with numbers
	Do      string           // what to do about it; may be ""
	Since   time.Time        // zero = nobody knows: since it was first seen
	Numbers map[string]int64 // for machines
	Known   bool             // somebody has said that they know: it is not told again while it lasts
}

// Sight is all that is wrong at one moment.
type Sight struct {
	At       time.Time
	Troubles []Trouble
	// Unclear says of what cannot be told now whether it is wrong: it stays as it was. nil
	// = all is clear.
	Unclear func(kind, of string) bool
}

// Options of a Desk. They may change while it runs, but for Path.
type Options struct {
	Path string // of the file

	URL       string // where to post; a secret. "" = nowhere: then it is only decided what is wrong
	Format    string // auto | json | slack
	Instance  string // who is speaking: a host's name
	Version   string
	After     time.Duration // a trouble is told once it has lasted so long
	OverAfter time.Duration // and its end once it has been gone so long; longer where it comes and goes
	Repeat    time.Duration // told again while it lasts; 0 = never

	// Heard is told of each message when it is decided. It may not call the desk.
	Heard     func(m Message)
	Transport http.RoundTripper // nil = the network
	Now       func() time.Time  // nil = time.Now
	Log       *slog.Logger      // nil = nobody hears
	Book      *logbook.Book     // likewise
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Heard == nil {
		o.Heard = func(Message) {}
	}
	if o.Book == nil {
		o.Book = logbook.New(o.Log, o.Now)
	}
	return o
}

// Desk decides what is told, keeps it, and posts it. Safe for concurrent use.
type Desk struct {
	shelf shelf
	kick  chan struct{} // something is to be posted, or how has changed
	dirty chan struct{} // something is to be saved

	mu      sync.Mutex
	o       Options
	state   state
	version uint64        // of state: rises with each change
	saved   uint64        // that is in the file
	saving  chan struct{} // closed, and made anew, after each attempt to save
	post    postState
	notSav  string // why the file is behind; "" = it is not
}

// Open reads what the last process has left. Of a file that cannot be read or makes no
// sense the desk begins anew, and says so in its log: an alert that is told twice does
// less harm than a daemon that does not start.
func Open(o Options) *Desk { return open(o, fileShelf{o.Path}) }

func open(o Options, s shelf) *Desk {
	o = o.withDefaults()
	d := &Desk{shelf: s, o: o, kick: make(chan struct{}, 1), dirty: make(chan struct{}, 1), saving: make(chan struct{})}
	b, err := s.read()
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	var damage string
	d.state, damage = decode(b)
	if problem += damage; problem != "" {
		o.Log.Warn("what alerts were firing is not known; they begin anew", "file", o.Path, "why", problem)
	}
	d.mute(d.state.Mute)
	return d
}

// mute lets the state fit to whether somebody is told; was says whether nobody was.
// Whoever is told from now on hears of all that is firing, and nobody of what waited for
// nobody. With mu held, or before others know the desk.
func (d *Desk) mute(was bool) {
	if d.state.Mute = d.o.URL == ""; d.state.Mute {
		d.state.Waiting, d.state.Dropped = nil, nil
	}
	if was != d.state.Mute {
		if was {
			d.tellAll()
		}
		d.changed()
	}
}

// tellAll lets all that is firing be told at the next look.
func (d *Desk) tellAll() {
	for _, k := range d.state.Known {
		if k.Firing {
			k.Told = time.Time{}
		}
	}
}

// Set changes how it is told, and to whom. Another address hears at once of all that is
// firing.
func (d *Desk) Set(o Options) {
	o = o.withDefaults()
	d.mu.Lock()
	defer d.mu.Unlock()
	another := o.URL != d.o.URL || o.Format != d.o.Format
	if was := d.o.URL; o.URL != was && was != "" && o.URL != "" {
		d.tellAll()
		d.changed()
	}
	o.Path = d.o.Path
	d.o = o
	d.mute(d.state.Mute)
	if another {
		d.post = postState{} // what the old address did says nothing of this one
		wake(d.kick)
	}
}

// changed is called with mu held, after a change of state.
func (d *Desk) changed() {
	d.version++
	wake(d.dirty)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Look decides by what is wrong now. It neither waits for the disk nor for the network.
func (d *Desk) Look(s Sight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	news, changed := d.state.look(s, rules{after: d.o.After, overAfter: d.o.OverAfter, repeat: d.o.Repeat})
	for _, m := range news {
		d.o.Heard(m)
	}
	if d.o.URL != "" {
		d.state.add(news)
		wake(d.kick)
	}
	if changed {
		d.changed()
	}
}

// Mark notes, for whoever judges, when something was last seen, so that it is known
// after a restart. A time before the one that is known changes nothing.
func (d *Desk) Mark(name string, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, before := d.state.Marks[name]
	if before && !at.After(known) {
		return
	}
	if d.state.Marks == nil {
		d.state.Marks = map[string]time.Time{}
	}
	d.state.Marks[name] = at.UTC()
	// A minute more or less of it is no reason to write a file.
	if !before || at.Sub(known) > markEvery || known.Sub(d.state.MarksSaved) > markEvery {
		d.state.MarksSaved = at.UTC()
		d.changed()
	}
}

// markEvery is how far behind a mark may be after a crash.
const markEvery = time.Minute

// Marked is the time of a mark; zero = there is none.
func (d *Desk) Marked(name string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Marks[name]
}

// Firing says whether a trouble has been told, and not its end.
func (d *Desk) Firing(kind, of string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.state.Known[key(kind, of)]
	return k != nil && k.Firing
}

// Firing is a trouble that has been told, and its end has not.
type Firing struct {
	Kind  string    `json:"kind"`
	Of    string    `json:"of"` // a sync or project; "" = the whole
	Level string    `json:"level"`
	Since time.Time `json:"since"`
	What  string    `json:"what"`
	Do    string    `json:"do"`
}

// List is what a person is shown.
type List struct {
	Firing  []Firing  `json:"firing"`
	Waiting []Message `json:"waiting"` // to be posted, oldest first
	// Trouble is why they wait: what the other side has answered; "" = nothing is wrong.
	Trouble string     `json:"trouble"`
	Next    *time.Time `json:"next_try"` // null = at once, or nothing waits
	Posted  *time.Time `json:"last_posted"`
	NotKept string     `json:"not_kept"` // why it is in memory only; "" = it is on disk
}

// List is what is firing and what waits.
func (d *Desk) List() List {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.state.list()
	l.NotKept = d.notSav
	if d.post.Tries > 0 && len(l.Waiting) > 0 {
		next := d.post.Next.UTC()
		l.Trouble, l.Next = d.post.Why, &next
	}
	return l
}

// ReadList is List of the file of a desk that does not run. Without a file it is empty.
func ReadList(path string) (List, error) {
	b, err := fileShelf{path}.read()
	if err != nil {
		return List{}, err
	}
	state, problem := decode(b)
	l := state.list()
	l.Trouble = problem
	return l, nil
}

func (s *state) list() List {
	l := List{Firing: []Firing{}, Waiting: append([]Message{}, s.Waiting...), Posted: s.Posted}
	for _, k := range s.Known {
		if k.Firing {
			l.Firing = append(l.Firing, Firing{k.Kind, k.Of, k.Level, k.Since, k.What, k.Do})
		}
	}
	slices.SortFunc(l.Firing, func(a, b Firing) int {
		return cmp.Or(cmp.Compare(rank(b.Level), rank(a.Level)), a.Since.Compare(b.Since), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Of, b.Of))
	})
	return l
}

func rank(level string) int {
	if level == Critical {
		return 1
	}
	return 0
}

// Run saves and posts until ctx ends. A post that is on its way may end within
// stopGrace, so that it need not be repeated. What could not be posted is in the file.
func (d *Desk) Run(ctx context.Context) {
	var saver sync.WaitGroup
	saving, stop := context.WithCancel(context.Background())
	saver.Go(func() { d.keepSaved(saving) })
	d.keepPosting(ctx)
	stop()
	saver.Wait()
}

// keepSaved writes the file whenever something has changed; what cannot be written is
// tried again every saveAgain.
func (d *Desk) keepSaved(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-d.dirty:
		case <-again.C:
		case <-ctx.Done():
			d.save()
			return
		}
		if !d.save() {
			again.Reset(saveAgain)
		}
	}
}

const saveAgain = 30 * time.Second

// save writes the state as it is now.
func (d *Desk) save() bool {
	d.mu.Lock()
	version := d.version
	if version == d.saved {
		d.mu.Unlock()
		return true
	}
	b := d.state.encode()
	d.mu.Unlock()
	err := d.shelf.write(b)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.notSav = ""; err == nil {
		d.saved = version
		d.o.Book.Over(notKept, "")
	} else {
		d.notSav = err.Error()
		d.o.Book.Note(notKept, "", 1, "error", err)
	}
	close(d.saving)
	d.saving = make(chan struct{})
	return err == nil
}

var notKept = logbook.Line{Level: slog.LevelWarn, Message: "the file of alerts is not written; they go on from memory", Over: "the file of alerts is written again"}

// kept waits, not for long, until what is known now is on disk: after a crash the same
// message is then posted under the same id, or not at all. A disk that is full or hangs
// holds up no alert.
func (d *Desk) kept(ctx context.Context) {
	limit := time.NewTimer(keptWithin)
	defer limit.Stop()
	d.mu.Lock()
	want := d.version
	for d.saved < want && d.notSav == "" {
		attempt := d.saving
		d.mu.Unlock()
		select {
		case <-attempt:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
		d.mu.Lock()
	}
	d.mu.Unlock()
}

const keptWithin = 5 * time.Second
