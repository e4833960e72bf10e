package model

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"ampcio/queue"
	"ampcio/users"
)

func laneOf(user, device string) string {
	if user == "" {
		return users.LaneOfDevice(device)
	}
	return users.LaneOfUser(user)
}

// history is one, with what the model knows of it.
type history struct {
	*house
	number   int // in its house
	projects []string
	people   map[string]*people
	records  []*record
	project  map[string][]*record
	bySeq    map[uint64]*record
	byNumber map[int]*record // of the event
	ledgers  []*ledger       // by name
	events   int
}

// house is an installation, in which some histories live side by side, each with projects, users and syncs of its own.
// What befalls it befalls all of them: a crash, a restart, time.
type house struct {
	root  string
	tell  func(string)
	who   int // whose step it is: a history's number; 0 = the house's own
	at    int // which step
	doing string

	histories []*history
	names     int           // of syncs so far
	ahead     time.Duration // how far the wall clock has been set forward

	// What runs.
	life    int
	log     *queue.Log
	store   *users.Store
	running map[string]*running // by sync
	stop    context.CancelFunc
	ctx     context.Context
	parts   sync.WaitGroup
	mu      sync.Mutex
	broke   error
}

type running struct {
	c    *queue.Consumer
	stop context.CancelFunc
	done chan struct{}
}

// keep is how long the log keeps files that nobody needs.
const keep = time.Hour

// beginning is when all histories begin: the clock of a bubble begins in 2000, too early for Customer.io.
var beginning = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func (h *house) fail(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

func (h *house) must(err error, what string) {
	if err != nil {
		h.fail("%s: %v", what, err)
	}
}

func (h *house) say(format string, args ...any) {
	if h.tell != nil {
		h.tell(fmt.Sprintf("%s step %d, %s: ", h.whose(), h.at, h.doing) + fmt.Sprintf(format, args...))
	}
}

// whose says whose step it is.
func (h *house) whose() string {
	if h.who == 0 {
		return "house"
	}
	return fmt.Sprint("history ", h.who)
}

func stack() string {
	b := make([]byte, 8<<10)
	return string(b[:runtime.Stack(b, false)])
}

func (h *house) now() time.Time { return time.Now().Add(h.ahead) }

func (h *history) of(project string) []*record { return h.project[project] }

func (h *house) dir() string { return filepath.Join(h.root, fmt.Sprint(h.life)) }

// build makes an installation without a sync.
func (h *house) build() {
	time.Sleep(time.Until(beginning)) // the clock of a bubble begins in 2000
	h.doing = "build"
	h.must(os.Mkdir(h.dir(), 0o700), "make a folder")
	// The product's reserve of disk space is 4 MiB: it is no file that anything is read from.
	h.must(os.WriteFile(filepath.Join(h.dir(), "reserve"), nil, 0o600), "make a folder")
	h.open()
}

// begin begins a history: projects that nobody has heard of, and one sync.
func (h *house) begin() {
	n := len(h.histories) + 1
	y := &history{house: h, number: n, people: map[string]*people{}, project: map[string][]*record{}, bySeq: map[uint64]*record{}, byNumber: map[int]*record{}}
	h.histories = append(h.histories, y)
	h.who, h.at, h.doing = n, 0, "begin"
	for _, p := range []string{"app", "web"} {
		p = fmt.Sprint(p, n)
		y.projects = append(y.projects, p)
		y.people[p] = newPeople()
	}
	l := y.newLedger(y.projects[0])
	h.openLedger(l)
	h.runLedger(l)
}

// all are the ledgers of all histories.
func (h *house) all() (list []*ledger) {
	for _, y := range h.histories {
		list = append(list, y.ledgers...)
	}
	return list
}

func (h *history) newLedger(project string) *ledger {
	h.names++
	l := &ledger{h: h, name: fmt.Sprint("sync", h.names), project: project, enabled: true}
	l.is = make([]state, len(h.of(project))) // what came before it is not taken
	l.to = newDestination(h, l)
	l.written()
	h.ledgers = append(h.ledgers, l)
	return l
}

// open starts what the daemon starts, in its order.
func (h *house) open() {
	var err error
	h.log, err = queue.Open(queue.Options{Dir: h.dir(), RotateBytes: 1 << 20, RotateAfter: 20 * time.Hour, Keep: keep, KeepBytes: 1 << 30,
		InFlightBytes: 16 << 20, Now: h.now})
	h.must(err, "open the log")
	if away := h.log.SetAside(); len(away) > 0 {
		h.fail("the log was taken for damaged: %+v", away)
	}
	h.store, err = users.Open(context.Background(), h.log, users.Options{Path: filepath.Join(h.dir(), "users.db"), CacheBytes: 256 << 10, Now: h.now})
	h.must(err, "open users.db")
	h.must(h.store.Warning(), "users.db needs no repair")
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.running = map[string]*running{}
	for _, l := range h.all() {
		h.openLedger(l)
	}
	h.run(h.log.Run)
	h.run(h.store.Run)
	for _, l := range h.all() {
		h.runLedger(l)
	}
	h.finishForgetting()
	synctest.Wait()
}

func (h *house) openLedger(l *ledger) {
	c, err := queue.OpenConsumer(h.log, queue.ConsumerOptions{Name: l.name, Project: l.project, Enabled: l.enabled, WindowBytes: 3000, Now: h.now})
	h.must(err, "open sync "+l.name)
	if away := c.SetAside(); away != nil {
		h.fail("sync %s was taken for damaged: %+v", l.name, away)
	}
	c.Flowing(true)
	h.running[l.name] = &running{c: c}
	l.claims, l.discarded, l.discards = nil, l.discards, false
}

func (h *house) runLedger(l *ledger) {
	r := h.running[l.name]
	ctx, stop := context.WithCancel(h.ctx)
	r.stop, r.done = stop, make(chan struct{})
	h.parts.Go(func() {
		defer close(r.done)
		h.note(r.c.Run(ctx))
	})
}

func (h *house) run(part func(context.Context) error) {
	ctx := h.ctx
	h.parts.Go(func() { h.note(part(ctx)) })
}

func (h *house) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broke = errors.Join(h.broke, err)
}

// close stops everything in the daemon's order.
func (h *house) close() error {
	if h.log == nil {
		return nil
	}
	var err error
	for _, l := range h.all() {
		if l.room != nil {
			err = errors.Join(err, l.room.end())
		}
	}
	if h.stop != nil {
		h.stop()
	}
	h.parts.Wait()
	err = errors.Join(err, h.broke)
	for _, r := range h.running {
		err = errors.Join(err, r.c.Close())
	}
	if h.store != nil {
		err = errors.Join(err, h.store.Close())
	}
	err = errors.Join(err, h.log.Close())
	h.log, h.store, h.stop, h.running, h.broke = nil, nil, nil, nil, nil
	return err
}

// closeLedger ends one sync as a reload does: what has ended is on the disk.
func (h *history) closeLedger(l *ledger) {
	h.returnAll(l)
	r := h.running[l.name]
	r.stop()
	<-r.done
	h.must(r.c.Close(), "close sync "+l.name)
	delete(h.running, l.name)
	l.written()
}

func (h *house) consumer(l *ledger) *queue.Consumer { return h.running[l.name].c }

// crash goes on with the files as they are, and nothing of the memory.
func (h *house) crash() {
	synctest.Wait()
	from := h.dir()
	h.life++
	h.must(copyFolder(h.dir(), from), "copy the folder")
	h.must(h.close(), "close what has crashed")
	h.must(os.RemoveAll(from), "remove the folder")
	h.open()
	for _, l := range h.all() {
		for user := range l.to.people {
			l.to.loose[user] = true
		}
		l.h.wakeUp(l)
	}
}

// restart stops and starts again.
func (h *house) restart() {
	h.must(h.close(), "stop")
	for _, l := range h.all() {
		l.written()
	}
	h.open()
	for _, l := range h.all() {
		l.h.wakeUp(l)
	}
}

// wakeUp finds out which of the states that a crash may have left is there. There must be one.
func (h *history) wakeUp(l *ledger) {
	if l.room != nil {
		h.must(l.room.violation(), "a request")
		l.room = nil
		h.learn(l)
		return
	}
	fates, books := h.fates(l)
	records := h.of(l.project)
	var why []string
	for _, s := range l.left() {
		var gone []*record
		if l.discarded { // there was time for that since it was last asked
			var problem string
			if gone, problem = h.giveUp(l, &s, fates); problem != "" {
				why = append(why, problem)
				continue
			}
		}
		problem := h.differs(l, &s, records, fates, books)
		if problem == "" {
			l.is, l.past = s.is, s.past
			h.adopt(l, fates)
			h.given(l, gone)
			l.written()
			return
		}
		why = append(why, problem)
	}
	h.fail("sync %s is as it never was: %s", l.name, strings.Join(slices.Compact(why), "; or "))
}

// fates asks the product what has become of every record. It is all on the disk then.
func (h *history) fates(l *ledger) ([]queue.Fate, queue.Books) {
	c := h.consumer(l)
	records := h.of(l.project)
	asked := make([]queue.Found, len(records))
	for i, r := range records {
		asked[i] = queue.Found{Record: queue.Record{Seq: r.seq, Project: r.project, Lane: r.lane}, Ord: r.ord}
	}
	fates, err := c.Fates(asked, false)
	h.must(err, "look up records")
	st, err := c.Stats()
	h.must(err, "look at the books")
	return fates, st.Books
}

// differs says in what the product is not as a snapshot; "" = in nothing.
func (h *history) differs(l *ledger, s *snapshot, records []*record, fates []queue.Fate, books queue.Books) string {
	want, loose := s.books(records)
	if !agrees(want, books, loose, l.vague) {
		return fmt.Sprintf("the books are %+v, not %+v", books, want)
	}
	for i, f := range fates {
		is, r := s.is[i], records[i]
		expected := f.State
		switch {
		case !is.taken:
			expected = queue.FateNotTaken
		case is.ending == 0 && r.forgotten && f.State == queue.FateEnded:
		case is.ending == 0 && f.State == queue.FateWaiting:
		case is.ending == 0:
			expected = queue.FatePending
		case is.ending == queue.Dead:
			expected = queue.FateDead
		default:
			expected = queue.FateEnded
		}
		if expected != f.State {
			return fmt.Sprintf("record %d is %s, not %s", r.seq, f.State, expected)
		}
	}
	return ""
}

// adopt takes over which of the forgotten have ended.
func (h *history) adopt(l *ledger, fates []queue.Fate) {
	for i, r := range h.of(l.project) {
		if l.pending(r) && r.forgotten && fates[i].State == queue.FateEnded {
			l.state(r).ending = queue.Discarded
		}
	}
}

// balance compares books and state after a step.
func (h *history) balance() {
	h.quiet()
	h.mu.Lock()
	broke := h.broke
	h.mu.Unlock()
	h.must(broke, "what runs has ended")
	for _, l := range h.ledgers {
		st, err := h.consumer(l).Stats()
		h.must(err, "look at the books")
		now := l.now()
		want, loose := now.books(h.of(l.project))
		if !agrees(want, st.Books, loose, l.vague) {
			h.fail("sync %s: the books are %+v, not %+v", l.name, st.Books, want)
		}
		if paused := st.PausedSince != 0; paused != l.paused || st.Enabled != l.enabled {
			h.fail("sync %s: paused %v, enabled %v; not %v, %v", l.name, paused, st.Enabled, l.paused, l.enabled)
		}
	}
}

// lookAtPeople compares what is known of everybody.
func (h *history) lookAtPeople() {
	now := h.now()
	for _, name := range h.projects {
		p := h.people[name]
		for _, id := range userIDs {
			k, err := h.store.User(name, id)
			h.must(err, "look at a user")
			h.sameProperties("user "+id+" of "+name, p.users[id], k.Properties)
		}
		for _, id := range deviceIDs {
			k, err := h.store.Device(name, id)
			h.must(err, "look at a device")
			user, known := p.of(id, now)
			if k.UserID != user {
				h.fail("device %s of %s is linked to %q, not %q", id, name, k.UserID, user)
			}
			h.sameProperties("device "+id+" of "+name, known, k.Properties)
		}
	}
}

var (
	userIDs   = []string{"anna", "ben", "carla"}
	deviceIDs = []string{"phone", "laptop", "kiosk"}
)
