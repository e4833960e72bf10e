package delivery_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/sandbox"
)

// week is seven days of a small team's traffic, in virtual time.
type week struct {
	*house
	t       *testing.T
	root    string
	life    int
	rng     *rand.Rand
	sandbox *sandbox.Sandbox
	limits  queue.Options
	rules   *mapping.Rules

	sent     map[string]int // the last n of each user
	accepted map[string]int // events that the log has
	unsent   []event        // refused, and offered again, in order, as an SDK does
}

func (w *week) dir() string { return filepath.Join(w.root, fmt.Sprint(w.life)) }

func (w *week) open(handler http.Handler) {
	o := w.limits
	o.Dir = w.dir()
	w.house = openOn(w.t, o, handler, w.rules, nil)
}

// crash goes on with the files as they are now; what the dead process does after that
// nobody sees.
func (w *week) crash() {
	synctest.Wait()
	handler := *w.wire.handler.Load()
	next := filepath.Join(w.root, fmt.Sprint(w.life+1))
	err := filepath.WalkDir(w.dir(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.dir(), path)
		if err != nil || e.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(next, rel), 0o700))
		}
		from, err := os.Open(path)
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := os.Create(filepath.Join(next, rel))
		if err != nil {
			return err
		}
		_, err = io.Copy(to, from)
		return errors.Join(err, to.Close())
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.wire.cut(io.EOF)
	w.house.close()
	os.RemoveAll(w.dir())
	w.life++
	w.open(handler)
}

// offer appends what waits to be sent; a full disk leaves it waiting.
func (w *week) offer(events ...event) {
	w.unsent = append(w.unsent, events...)
	if len(w.unsent) == 0 {
		return
	}
	err := w.log.Append(w.ctx, &records{"app", w.unsent, time.Now().UnixMilli()})
	if full := (*queue.FullError)(nil); errors.As(err, &full) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range w.unsent {
		w.accepted[e.user]++
	}
	w.unsent = nil
}

// next is the next event of a user.
func (w *week) next(user string) event {
	w.sent[user]++
	return event{user: user, n: w.sent[user], properties: fmt.Sprintf(`{"plan":"p%d"}`, w.sent[user]%7)}
}

// live lets time pass, with events of everybody coming in and, now and then, a crash;
// at every step the books balance, and nothing has come twice or out of order.
func (w *week) live(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		var events []event
		for range w.rng.IntN(6) {
			events = append(events, w.next(fmt.Sprintf("user-%d", w.rng.IntN(40))))
		}
		if w.rng.IntN(3) == 0 {
			events = append(events, w.next("poor"))
		}
		w.offer(events...)
		if w.rng.IntN(80) == 0 {
			w.crash() // not last: what is looked at after this is a life that has begun
		}
		time.Sleep(10 * time.Minute)
		w.stats()
		if o := w.sandbox.Report().Order; o.OutOfOrder != 0 || o.Repeated != 0 {
			w.t.Fatalf("after %v: %+v", time.Since(start), o)
		}
	}
}

// A week in which everything goes wrong that can: outages, a revoked key, events that
// Customer.io will never take, a user who fails for days, a wrong rule, a full disk, a
// pause, reloads and crashes. In the end each event has been delivered once, in order,
// or is accounted for.
func TestAWeek(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	bubble(t, func(t *testing.T, dir string) {
		usual := faults(t, "500=3%,cut_after=5%")
		sb := sandbox.New(sandbox.Options{OrderAttribute: "n", OrderFirst: 1, Region: "us"})
		w := &week{t: t, root: dir, rng: rand.New(rand.NewPCG(seed, 0)), sandbox: sb, rules: rules(t, nil),
			limits: queue.Options{RotateBytes: 64 << 20, RotateAfter: 6 * time.Hour, Keep: 48 * time.Hour, KeepBytes: 1 << 30,
				InFlightBytes: 64 << 20, Now: time.Now},
			sent: map[string]int{}, accepted: map[string]int{}}
		sb.SetFaults(usual)
		w.open(sb)
		defer func() { w.house.close() }()

		// Monday: an outage in the evening.
		w.live(6 * time.Hour)
		sb.SetFaults(faults(t, "503=100%"))
		w.live(5 * time.Hour)
		if s := w.sync.Status(); s.State != delivery.Unreachable || s.NextProbe.IsZero() {
			t.Errorf("in an outage: %+v", s)
		}
		// It is back, and within retry_max all goes on. (With the usual faults the very try that finds it back may
		// meet one, and the next comes five minutes later.)
		sb.SetFaults(sandbox.Faults{})
		w.drained(6 * time.Minute)
		sb.SetFaults(usual)

		// From now on everything about one user fails, and some events are never taken.
		w.live(time.Hour)
		poorSince := w.stats().Tail
		sb.SetFaults(faults(t, `500=3%,cut_after=5%,poison="poor",poison_how=500,refuse_event=Bad`))
		const bad = 5
		for i := range bad {
			w.offer(event{user: fmt.Sprintf("bad-%d", i), name: "Bad", n: 1})
			w.live(2 * time.Hour)
		}
		if st := w.stats(); st.Books.Dead != bad || st.Aside.Lanes != 1 || st.Books.Pending != st.Aside.Records {
			t.Errorf("one user fails: %+v", st)
		}

		// Tuesday: the key is revoked, for 60 hours; somebody reloads without mending it.
		good := *w.wire.handler.Load()
		unauthorized := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(rw, `{"meta":{"error":"Unauthorized request"}}`)
		})
		w.wire.to(unauthorized)
		before := w.stats().Books
		w.live(30 * time.Hour)
		w.reload(w.rules, nil)
		w.live(30 * time.Hour)
		if s, b := w.sync.Status(), w.stats().Books; s.State != delivery.Blocked || s.Reason != "http_401" || b.Dead != before.Dead || b.Filtered != before.Filtered {
			t.Errorf("a key revoked for 60 hours: %+v, %+v", s, b)
		}
		w.wire.to(good)
		w.reload(w.rules, nil)
		w.within(10*time.Minute, "all but the one user's events are delivered", func() bool {
			// Others may have moved aside, who were in one request with that user a few times: they are back within these minutes.
			st := w.stats()
			return st.Books.Pending == st.Aside.Records && st.Aside.Lanes == 1
		})

		// Friday: a wrong rule filters everything for half a day. Pause, mend, rewind, resume.
		w.live(2 * time.Hour)
		w.rules = rules(t, func(s *mapping.Spec) { s.Select[0].Event = []string{"Oder"} })
		w.reload(w.rules, nil)
		wrongSince := time.Now()
		w.live(12 * time.Hour)
		filtered := w.stats().Tallies["event/filtered/not_selected"].N
		w.check(w.consumer.Pause())
		w.rules = rules(t, nil)
		w.reload(w.rules, nil)
		w.live(time.Hour)
		re, err := w.consumer.Rewind(w.ctx, wrongSince.UnixMilli(), false, false)
		if err != nil || re.Records == 0 || filtered == 0 {
			t.Errorf("rewound %+v, %v; %d filtered", re, err, filtered)
		}
		w.crash()
		w.live(4 * time.Hour)
		if st := w.stats(); st.PausedSince == 0 || st.Books.Pending < re.Records {
			t.Errorf("paused: %+v", st)
		}
		w.check(w.consumer.Resume())

		// Saturday: the disk is full for three hours; what was accepted is delivered.
		w.live(2 * time.Hour)
		tight := w.limits
		tight.MaxBytes = 1
		w.log.SetLimits(tight)
		for range 18 {
			w.offer(w.next("user-1"))
			time.Sleep(10 * time.Minute)
		}
		if len(w.unsent) != 18 {
			t.Errorf("%d events wait at their sender", len(w.unsent))
		}
		w.log.SetLimits(w.limits)
		w.live(time.Hour)
		if len(w.unsent) != 0 {
			t.Errorf("%d events still wait at their sender", len(w.unsent))
		}
		w.log.SetLimits(w.limits)
		if first := w.log.Stats().FirstFile; first <= poorSince {
			t.Errorf("a user who has failed since record %d keeps the log's file %d", poorSince, first)
		}

		// Sunday: all is mended, and the dead letters are tried again.
		sb.SetFaults(usual)
		w.live(3 * time.Hour)
		var seqs []uint64
		for _, d := range w.letters() {
			seqs = append(seqs, d.Record.Seq)
		}
		if n, err := w.consumer.ReplayDead(seqs); n != bad || err != nil {
			t.Errorf("%d dead letters tried again, %v", n, err)
		}
		st := w.drained(10 * time.Minute)

		report := sb.Report()
		if o := report.Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Missing != 0 {
			t.Errorf("order: %+v", o)
		}
		total := uint64(0)
		for user, n := range w.accepted {
			total += uint64(n)
			if p, _ := sb.Person("id", user); p.EventCount != int64(n) {
				t.Errorf("Customer.io has %d of %s's %d events", p.EventCount, user, n)
			}
		}
		b := st.Books
		if b.Taken != total || b.Rewound != re.Records || b.Dead != 0 || b.Discarded != 0 || b.Lost != 0 || uint64(report.Events.Accepted) != total {
			t.Errorf("%d events were accepted; books %+v", total, b)
		}
		t.Logf("%d events, %d lives, %d requests, %d repeats ignored, %+v", total, w.life+1, report.Requests, report.Events.Duplicates, b)
	})
}
