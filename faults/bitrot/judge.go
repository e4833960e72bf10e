package bitrot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ampcio-faults/house"
	"ampcio/mapping"
	"ampcio/queue"
)

// users is how many users the folder has events of.
const users = 8

// event names an event of the journal.
type event struct{ user, n int }

// whole is what the folder holds before anything is damaged.
type whole struct {
	dir, flipped string
	seed         uint64
	journal      *house.Journal
	pending      map[event]bool
	dead         map[event]bool
	taken        uint64
	lost         uint64
	rewound      uint64
	// forgotten is how many events the log still has of somebody who was forgotten, that the ledger has not yet ended: without
	// the file that says so they are pending, and where the log is damaged nobody knows whose they were.
	forgotten uint64
}

// judgeFlips is the child: it damages copies of a folder, and says of each flip what was not as it should be.
func judgeFlips(args []string) error {
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[4])
	if err != nil {
		return err
	}
	w, err := look(args[0], args[1], args[2], seed)
	if err != nil {
		return err
	}
	for i := range n {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		f, err := pick(r, w.dir)
		if err != nil {
			return err
		}
		fmt.Printf("flip %d, %s\n", i, f.text)
		if err := w.try(f); err != nil {
			fmt.Printf("wrong %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Println("held")
	}
	return nil
}

// look opens a copy of the folder and notes what is in it.
func look(dir, journal, flipped string, seed uint64) (*whole, error) {
	w := &whole{dir: dir, flipped: flipped, seed: seed, pending: map[event]bool{}, dead: map[event]bool{}}
	var err error
	if w.journal, err = house.ReadJournal(journal, seed); err != nil {
		return nil, err
	}
	if len(w.journal.Wrong) > 0 {
		return nil, fmt.Errorf("the folder was not whole: %s", w.journal.Wrong[0])
	}
	if err := copyFolder(dir, flipped); err != nil {
		return nil, err
	}
	defer os.RemoveAll(flipped)
	_, stored, err := queue.Inspect(flipped)
	if err != nil {
		return nil, err
	}
	if len(stored) != 1 {
		return nil, fmt.Errorf("%d ledgers", len(stored))
	}
	ctx := context.Background()
	h, err := house.Open(ctx, house.Settings{Dir: flipped, Keep: time.Hour})
	if err != nil {
		return nil, err
	}
	note := func(to map[event]bool) func(r queue.Record) error {
		return func(r queue.Record) error {
			u, n, wrong, _ := house.Read(seed, &r)
			to[event{u, n}] = true
			return wrong
		}
	}
	err = h.Ledger.PendingRecords(ctx, note(w.pending))
	if err == nil {
		err = h.Ledger.DeadLetters(func(d queue.DeadLetter) error { return note(w.dead)(d.Record) })
	}
	st, sterr := h.Ledger.Stats()
	// What the log has of somebody who was forgotten ends as it is read: a moment after the start.
	for until := time.Now().Add(10 * time.Second); sterr == nil && st.Books.Pending > uint64(len(w.pending)) && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
		st, sterr = h.Ledger.Stats()
	}
	w.taken, w.lost, w.rewound = st.Books.Taken, st.Books.Lost, st.Books.Rewound
	w.forgotten = st.Books.Discarded - stored[0].Books.Discarded
	if uint64(len(w.pending)) != st.Books.Pending && err == nil {
		err = fmt.Errorf("%d events are pending, by the books %d", len(w.pending), st.Books.Pending)
	}
	return w, errors.Join(err, sterr, h.Close())
}

// mostLives is how many starts may be needed behind the first.
const mostLives = 3

// try makes one flip in a copy and judges what becomes of it.
func (w *whole) try(f flip) error {
	if err := copyFolder(w.dir, w.flipped); err != nil {
		return err
	}
	defer os.RemoveAll(w.flipped)
	file, err := os.OpenFile(filepath.Join(w.flipped, f.path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.do(file), file.Close()); err != nil {
		return err
	}
	j := &judge{whole: w, file: f.path, meta: f.at < 2*page, claimed: map[event]bool{}, fresh: map[int]int{}}
	// Damage that only a write meets ends the process, and what an audit finds is marked: the next start mends it.
	for life := 0; ; life++ {
		err := j.live(life)
		if err == nil {
			break
		}
		if !errors.Is(err, queue.ErrDamaged) || errors.Is(err, errWrong) || life == mostLives {
			return fmt.Errorf("life %d: %w", life, err)
		}
	}
	return j.settled()
}

// judge is one flip, over the lives that it takes.
type judge struct {
	*whole
	file      string
	meta      bool           // a meta page of it
	claimed   map[event]bool // since the flip
	fresh     map[int]int    // by user: the last event that was acknowledged since
	dead      map[event]bool
	books     queue.Books
	aside     bool // the ledger was set aside
	forgetful bool // something of users.db was damaged
}

var errWrong = errors.New("wrong")

// live starts, sends some more, and delivers everything.
func (j *judge) live(life int) (err error) {
	ctx := context.Background()
	h, err := house.Open(ctx, house.Settings{Dir: j.flipped, Keep: time.Hour})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	j.aside = j.aside || h.Ledger.SetAside() != nil
	if err := h.Ledger.Resume(); err != nil {
		return err
	}
	if err := j.send(ctx, h); err != nil {
		return err
	}
	if err := h.Drain(ctx, j.take); err != nil {
		return err
	}
	st, err := h.Ledger.Stats()
	if err != nil {
		return err
	}
	j.books = st.Books
	us := h.Users.Stats()
	j.forgetful = j.forgetful || h.Users.Warning() != nil || us.DamagedKeys > 0
	if err := j.known(h); err != nil {
		return err
	}
	j.dead = map[event]bool{}
	err = h.Ledger.DeadLetters(func(d queue.DeadLetter) error {
		u, n, wrong, _ := house.Read(j.seed, &d.Record)
		j.dead[event{u, n}] = true
		if wrong != nil {
			return errors.Join(wrong, errWrong)
		}
		return nil
	})
	if err != nil && !errors.Is(err, queue.ErrDamaged) { // the audit will say so
		return err
	}
	a, err := h.Ledger.Audit(ctx)
	if err == nil && !a.Balanced() {
		err = fmt.Errorf("the audit: %s: %w", strings.Join(a.Differences, "; "), queue.ErrDamaged)
	}
	return err
}

// send sends two events more of each user, and one that came before.
func (j *judge) send(ctx context.Context, h *house.House) error {
	for u := range users {
		first := max(j.journal.Acked[u], j.fresh[u]) + 1
		if j.fresh[u] > 0 || j.journal.Sent[u] > j.journal.Acked[u] {
			continue
		}
		a := mapping.Arrival{Project: house.Project, Received: time.Now().UnixMilli()}
		for n := first; n < first+2; n++ {
			e, err := house.Event(j.seed, u, n)
			if err != nil {
				return err
			}
			a.Events = append(a.Events, e)
		}
		if _, err := h.Users.Append(ctx, a); err != nil {
			return err
		}
		j.fresh[u] = first + 1
	}
	return nil
}

// take looks at what is delivered after a flip.
func (j *judge) take(cl *queue.Claim) error {
	last := 0
	for _, rec := range cl.Records() {
		u, n, wrong, unknowing := house.Read(j.seed, &rec)
		stored := n <= j.journal.Acked[u]
		switch {
		case wrong != nil:
			return errors.Join(wrong, errWrong)
		case unknowing != nil && u != users-1 && (stored || j.file != "users.db"):
			return errors.Join(unknowing, errWrong)
		case n <= last && u != users-1:
			return fmt.Errorf("event %d of user %d comes behind %d: %w", n, u, last, errWrong)
		}
		last = n
		j.claimed[event{u, n}] = true
	}
	return nil
}

// known compares what is known of each user with the last event.
func (j *judge) known(h *house.House) error {
	for u := range users - 1 {
		last := j.fresh[u]
		if last == 0 {
			continue
		}
		if err := house.KnownIs(h.Users, u, last); err != nil && j.file != "users.db" {
			return errors.Join(err, errWrong)
		} else if err != nil && !j.forgetful {
			return fmt.Errorf("%w, and nothing is said to be damaged: %w", err, errWrong)
		}
	}
	return nil
}

// settled compares the books with what has come.
func (j *judge) settled() error {
	b := j.books
	fresh, missing := uint64(0), uint64(0)
	for u, last := range j.fresh {
		for n := j.journal.Acked[u] + 1; n <= last; n++ {
			if fresh++; !j.claimed[event{u, n}] {
				return fmt.Errorf("event %d of user %d, sent after the damage, was acknowledged and never delivered", n, u)
			}
		}
	}
	ledger := j.file == filepath.Join("sync", house.Sync+".db")
	again := uint64(0)
	for e := range j.claimed {
		if !j.pending[e] && e.n <= j.journal.Acked[e.user] {
			again++
		}
	}
	for e := range j.pending {
		if !j.claimed[e] && !(ledger && j.dead[e]) { // without its newest meta page the ledger is as of the checkpoint before
			missing++
		}
	}
	buried := uint64(0)
	for e := range j.whole.dead {
		if !j.dead[e] && !j.claimed[e] {
			buried++
		}
	}
	lost := b.Lost - j.lost
	undone := uint64(0) // of a rewind that only the newest meta page knew: what it took again had ended before
	if ledger && j.meta {
		undone = j.rewound - min(b.Rewound, j.rewound)
	}
	if j.file == "forgotten.jsonl" && again <= j.forgotten && j.kept() {
		again = 0
	}
	if !ledger && lost > missing {
		missing = min(lost, missing+j.forgotten)
	}
	switch {
	case b.Difference() != 0 || b.Pending != 0:
		return fmt.Errorf("the books are out by %d: %+v", b.Difference(), b)
	case !ledger && (b.Taken != j.taken+fresh || lost != missing || again > 0 || buried > 0):
		return fmt.Errorf("taken %d + %d, now %d; %d pending events never came, %d are counted as lost; %d came that had ended; %d dead letters are gone: %+v", j.taken, fresh, b.Taken, missing, lost, again, buried, b)
	case ledger && b.Taken == j.taken+fresh && missing+buried > lost+undone:
		return fmt.Errorf("%d pending events and %d dead letters never came, %d are counted as lost: %+v", missing, buried, lost, b)
	}
	// A meta page that is not whole is what a power cut leaves of a commit: it is no damage, and the one before counts.
	if (lost > 0 && !j.meta || j.aside) && !j.kept() {
		return fmt.Errorf("%d records are lost, and no damaged file is kept", lost)
	}
	return nil
}

// kept says whether a damaged file was set aside, or is marked to be.
func (j *judge) kept() bool { return setAside(j.flipped) }
