package house

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// Life is one life of a process that works in a house.
type Life struct {
	Settings
	Journal  string // a file to which lines are added
	Before   string // the journal of the lives before; "" = the same file
	Seed     uint64 // of the events, the same in all lives
	Number   uint64 // of this life: its chances
	Users    int    // the last of them is the one who is forgotten now and then
	Requests int    // that each of two senders sends; 0 = until it is killed
	Operator bool   // does everything at the wrong moment
	Patient  bool   // a disk that is full is waited for
	// KillAfter lines of the journal the process kills itself, some moments later; 0 = it does not. So a life does as much
	// on a slow machine as on a fast one.
	KillAfter int
}

// worker is a life while it is led.
type worker struct {
	Life
	h       *House
	out     *os.File
	outMu   sync.Mutex
	before  *Journal
	refused atomic.Bool // an append has ended by an error: nothing may be acknowledged any more
	lines   int         // said so far
}

// ErrBroken is of a life in which a promise was broken: it is in the journal.
var ErrBroken = errors.New("a promise was broken")

// Lead leads a life until all is sent and delivered, or the disk fails; its error is then the disk's.
func Lead(ctx context.Context, l Life) (err error) {
	w := &worker{Life: l}
	if w.out, err = os.OpenFile(l.Journal, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	defer w.out.Close()
	if err := dropUnsaid(w.out, l.Journal); err != nil {
		return err
	}
	if l.Before == "" {
		l.Before = l.Journal
	}
	if w.before, err = ReadJournal(l.Before, l.Seed); err != nil {
		return err
	}
	w.say("began")
	if w.h, err = Open(ctx, l.Settings); err != nil {
		return err
	}
	w.whole()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-w.h.Failed():
			stop(w.h.Err())
		case <-ctx.Done():
		}
	}()
	var senders, others sync.WaitGroup
	working, enough := context.WithCancel(ctx)
	for i := range 2 {
		senders.Go(func() { w.send(ctx, i) })
		others.Go(func() { w.deliver(working, i) })
	}
	if l.Operator {
		others.Go(func() { w.operate(working) })
	}
	senders.Wait()
	enough()
	others.Wait()
	return w.h.Close()
}

// say writes a line into the journal.
func (w *worker) say(format string, args ...any) {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	if _, err := fmt.Fprintf(w.out, format+"\n", args...); err != nil {
		fmt.Fprintln(os.Stderr, "journal:", err)
		os.Exit(3)
	}
	if w.lines++; w.lines == w.KillAfter {
		time.AfterFunc(time.Duration(rand.IntN(int(5*time.Millisecond))), func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	}
}

// wrong writes down that a promise was broken, and ends the life.
func (w *worker) wrong(format string, args ...any) {
	w.say("wrong life %d: "+format, append([]any{w.Number}, args...)...)
	w.h.Fail(ErrBroken)
}

// whole looks whether the start has found anything damaged.
func (w *worker) whole() {
	for _, what := range w.h.damage() {
		w.wrong("a start found %s", what)
	}
}

// damage is what a start has found damaged: neither a crash nor a failed write damages anything.
func (h *House) damage() (found []string) {
	if away := h.Log.SetAside(); len(away) > 0 {
		found = append(found, fmt.Sprintf("log files damaged: %+v", away))
	}
	if away := h.Ledger.SetAside(); away != nil {
		found = append(found, fmt.Sprintf("the ledger damaged: %+v", *away))
	}
	s := h.Users.Stats()
	if h.Users.Warning() != nil || s.Lost > 0 || s.DamagedKeys > 0 {
		found = append(found, fmt.Sprintf("users.db not whole: %v, %d records lost, %d entries damaged", h.Users.Warning(), s.Lost, s.DamagedKeys))
	}
	return found
}

func (w *worker) chances(who uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.Seed^w.Number<<20, who))
}

// send sends the events of half of the users, those of each one after the other.
func (w *worker) send(ctx context.Context, half int) {
	r := w.chances(uint64(half))
	next := map[int]int{}
	var mine []int
	for u := half; u < w.Users; u += 2 {
		next[u] = w.before.Acked[u] + 1
		mine = append(mine, u)
	}
	for i := 0; (w.Requests == 0 || i < w.Requests) && ctx.Err() == nil; i++ {
		u := mine[r.IntN(len(mine))]
		first, last := next[u], next[u]+r.IntN(8)
		a, err := w.arrival(u, first, last)
		if err != nil {
			w.wrong("%v", err)
			return
		}
		var second sync.WaitGroup
		var further answer
		if r.IntN(impatient) == 0 {
			more, err := w.again(a, last+r.IntN(2)*r.IntN(4))
			if err != nil {
				w.wrong("%v", err)
				return
			}
			after := time.Duration(r.Int64N(1 << (10 + r.IntN(12)))) // a commit takes from some 10 µs in memory to some ms
			second.Go(func() {
				time.Sleep(after) // so that it meets the first one on its way to the disk, and not each time behind it
				further = w.request(ctx, more)
			})
		}
		got := w.request(ctx, a)
		second.Wait()
		next[u] = max(first, got.next, further.next)
		if got.over || further.over {
			return
		}
	}
}

// arrival is a request of some events of a user, in a row.
type arrival struct {
	mapping.Arrival
	user, first, last int
}

func (w *worker) arrival(u, first, last int) (arrival, error) {
	a := arrival{mapping.Arrival{Project: Project, Received: time.Now().UnixMilli(), Source: mapping.SourceHTTP}, u, first, last}
	for n := first; n <= last; n++ {
		e, err := Event(w.Seed, u, n)
		if err != nil {
			return a, err
		}
		a.Events = append(a.Events, e)
	}
	return a, nil
}

// One in so many requests is of a sender who does not wait for the answer: his next one has all of it once more, with or without
// events behind it, and is so large that the log resolves it while the first is being committed.
const (
	impatient  = 6
	largeBytes = 96 << 10 // of raw events; the log reckons at least a third more
)

// again is the request of an impatient sender behind a, up to the event last. It has the events of a over and over, which makes it
// large, and what is stored no larger.
func (w *worker) again(a arrival, last int) (arrival, error) {
	more, err := w.arrival(a.user, a.last+1, last)
	if err != nil {
		return more, err
	}
	var repeats []mapping.Event
	for size := 0; size < largeBytes; {
		for _, e := range a.Events {
			repeats, size = append(repeats, e), size+len(e.Raw)
		}
	}
	more.Events, more.first, more.last = append(repeats, more.Events...), a.first, last
	return more, nil
}

// answer is what a sender knows behind a request.
type answer struct {
	next int  // the event to send next, if it was acknowledged
	over bool // nothing more is accepted
}

// request sends a request, and says what was sent and acknowledged.
func (w *worker) request(ctx context.Context, a arrival) answer {
	w.say("sent %d %d %d", a.user, a.first, a.last)
	refused := w.refused.Load()
	_, err := w.h.Users.Append(ctx, a.Arrival)
	var full *queue.FullError
	switch {
	case err == nil && refused:
		w.wrong("an event was acknowledged after an append had failed")
	case err == nil:
		w.say("acked %d %d %d", a.user, a.first, a.last)
		return answer{next: a.last + 1}
	case errors.As(err, &full) && w.Patient:
		time.Sleep(time.Millisecond) // as a sender does who is told to come again: nothing says when there is space
	case errors.Is(err, queue.ErrBusy) || errors.As(err, &full):
	default:
		w.refused.Store(true)
		if !errors.Is(err, queue.ErrClosed) {
			w.h.Fail(err)
		}
		return answer{over: true}
	}
	return answer{}
}

// deliver is a destination that refuses some events, fails at times and does not answer at others.
func (w *worker) deliver(ctx context.Context, who int) {
	r := w.chances(uint64(10 + who))
	for {
		cl, err := w.h.Ledger.Claim(ctx)
		if err != nil {
			return
		}
		w.settle(r, cl)
	}
}

func (w *worker) settle(r *rand.Rand, cl *queue.Claim) {
	cl.Trim(30)
	u, events := w.read(cl)
	if len(events) == 0 {
		cl.Return() // what is wrong with it has been said
		return
	}
	numbers := strings.Trim(fmt.Sprint(events), "[]")
	id := "id:" + userOf(u)
	if !cl.Hold(id) {
		cl.Return()
		return
	}
	w.say("claimed %d %s", u, numbers)
	what := r.IntN(20)
	if what == 0 {
		cl.Return()
		return
	}
	n := len(events)
	if what < 4 {
		n = r.IntN(n + 1) // the others have failed
	}
	var got []int
	out := make([]queue.Outcome, n)
	for i := range out {
		if r.IntN(15) == 0 {
			out[i] = queue.Outcome{Ending: queue.Dead, Reason: "refused", Results: []byte(`[{"status":400}]`), Tallies: []queue.Tally{{Key: "event/dead/refused", Example: "Order"}}}
			continue
		}
		got = append(got, events[i])
		out[i] = queue.Outcome{Ending: queue.Delivered, SentKey: id, Sent: fmt.Append(nil, events[i])}
	}
	if len(got) > 0 {
		w.say("got %d %s", u, strings.Trim(fmt.Sprint(got), "[]"))
	}
	cl.Settle(out, time.Duration(r.IntN(3))*time.Millisecond, "http_503")
}

// read says which events a claim has, and looks whether each is what was sent.
func (w *worker) read(cl *queue.Claim) (u int, events []int) {
	for i, rec := range cl.Records() {
		of, n, wrong, unknowing := Read(w.Seed, &rec)
		gone := w.before.Gone[of] || of == w.Users-1 // who is forgotten may begin anew
		if err := errors.Join(wrong, unknowing); wrong != nil || unknowing != nil && !gone {
			w.wrong("%s", oneLine(err))
			return 0, nil
		}
		if i > 0 && of != u {
			w.wrong("a claim has records of the users %d and %d", u, of)
			return 0, nil
		}
		u, events = of, append(events, n)
	}
	return u, events
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// operate does what operators do, at moments that nobody would choose.
func (w *worker) operate(ctx context.Context) {
	r := w.chances(20)
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(r.IntN(int(6 * time.Millisecond)))):
		case <-ctx.Done():
			return
		}
		if err := w.act(ctx, r); err != nil && ctx.Err() == nil && !harmless(err) {
			w.h.Fail(err)
			return
		}
	}
}

// harmless are refusals that an operator may hear.
func harmless(err error) bool {
	var full *queue.FullError
	return errors.As(err, &full) || errors.Is(err, queue.ErrNotKept) || errors.Is(err, queue.ErrClosed) || errors.Is(err, queue.ErrBackupRuns)
}

func (w *worker) act(ctx context.Context, r *rand.Rand) error {
	c := w.h.Ledger
	switch r.IntN(10) {
	case 0:
		if err := c.Pause(); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond) // others go on meanwhile; a cut may come in the pause
		return c.Resume()
	case 1, 2:
		dead, err := w.someDead(r)
		if err != nil {
			return err
		}
		_, err = c.ReplayDead(sequences(dead))
		return err
	case 3:
		dead, err := w.someDead(r)
		if err != nil {
			return err
		}
		for _, d := range dead {
			u, n, _, _ := Read(w.Seed, &d.Record)
			w.say("drop %d %d", u, n)
		}
		_, err = c.DropDead(sequences(dead))
		return err
	case 4:
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		defer stop()
		_, err := c.Rewind(short, time.Now().Add(-20*time.Millisecond).UnixMilli(), true, false)
		if short.Err() != nil {
			return nil
		}
		return err
	case 5:
		return w.h.Users.Checkpoint(ctx)
	case 6:
		_, err := w.h.Users.Rewrite(ctx)
		return err
	case 7:
		return w.forget(ctx)
	case 8:
		a, err := c.Audit(ctx)
		if err == nil && !a.Balanced() {
			w.wrong("the audit: %s", strings.Join(a.Differences, "; "))
		}
		return err
	default:
		if _, err := w.h.Log.Backup(ctx, io.Discard, queue.BackupOptions{Now: time.Now, Others: w.h.Users.Backup,
			Consumers: func(copies func([]*queue.Consumer) error) error { return copies([]*queue.Consumer{c}) }}); err != nil {
			return err
		}
		s, err := c.Stats()
		if err == nil && s.Books.Difference() != 0 {
			w.wrong("the books are out by %d: %+v", s.Books.Difference(), s.Books)
		}
		return err
	}
}

// someDead gives some of the dead letters.
func (w *worker) someDead(r *rand.Rand) (list []queue.DeadLetter, err error) {
	err = w.h.Ledger.DeadLetters(func(d queue.DeadLetter) error {
		if r.IntN(2) == 0 {
			list = append(list, d)
		}
		return nil
	})
	return list, err
}

func sequences(list []queue.DeadLetter) (seqs []uint64) {
	for _, d := range list {
		seqs = append(seqs, d.Record.Seq)
	}
	slices.Sort(seqs)
	return seqs
}

// forget forgets the last user, which also writes the ledger anew.
func (w *worker) forget(ctx context.Context) error {
	u := w.Users - 1
	w.say("forget %d", u)
	letGo, err := w.h.Log.BarBackups()
	if err != nil {
		return err
	}
	defer letGo()
	lanes := []string{users.LaneOfUser(userOf(u)), users.LaneOfDevice(deviceOf(u))}
	sent := []string{"id:" + userOf(u)}
	t, err := w.h.Log.ForgetLanes(ctx, Project, queue.Forgetting{Lanes: lanes, Sent: sent}, func(uint64) error { return w.h.Users.Forget(Project, lanes) })
	if err != nil {
		return err
	}
	if err := w.h.Users.Flush(ctx); err != nil {
		return err
	}
	if _, err := w.h.Ledger.Forget(ctx, sent); err != nil {
		return err
	}
	return w.h.Log.FinishForgetting(t.ID)
}
