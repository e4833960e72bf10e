package days_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ampcio-faults/destination/days"
	"ampcio/delivery"
	"ampcio/sandbox"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// TestDays is the story of one seed. In the end each event has been delivered once and in order, or is dead because it
// is bad; and each user is at Customer.io as after the last event.
func TestDays(t *testing.T) {
	seed, length := rand.Uint64(), 6*time.Hour
	if s := os.Getenv(days.EnvSeed); s != "" {
		var err, err2 error
		var n int
		seed, err = strconv.ParseUint(s, 10, 64)
		n, err2 = strconv.Atoi(os.Getenv(days.EnvDays))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		length = time.Duration(n) * 24 * time.Hour
	}
	t.Logf("seed %d", seed)
	root, err := os.MkdirTemp(os.Getenv(days.EnvFolder), "days-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(start)) // the clock of a bubble begins in 2000, too early for Customer.io
		s := newStory(t, root, seed)
		defer func() { s.house.close() }()
		end := start.Add(length)
		s.trouble(start.Add(length / 4))
		s.blocked(end)
		for time.Now().Before(end) {
			s.trouble(end)
		}
		s.end()
	})
}

// A story is one installation, and what is to be found at Customer.io in the end.
type story struct {
	*house
	root    string
	life    int
	rng     *rand.Rand
	sandbox *sandbox.Sandbox
	sent    map[string]int // by user, the last n
	bad     int            // events that Customer.io never takes
	poor    string         // a user about whom everything fails; "" = none
	poorTo  time.Time      // until then
	faults  sandbox.Faults // of now, but for the poor user
}

func newStory(t *testing.T, root string, seed uint64) *story {
	s := &story{root: root, rng: rand.New(rand.NewPCG(seed, 0)), sent: map[string]int{},
		sandbox: sandbox.New(sandbox.Options{OrderAttribute: "n", OrderFirst: 1, Region: "us", Seed: seed})}
	s.house = open(t, s.dir(), newWire(s.sandbox))
	return s
}

func (s *story) dir() string { return filepath.Join(s.root, fmt.Sprint(s.life)) }

// set puts faults in force, beside those that are always there.
func (s *story) set(f sandbox.Faults) {
	s.faults = f
	f.RefuseEvent = []string{"Bad"}
	if s.poor != "" {
		f.Poison, f.PoisonHow = []string{s.poor}, []string{"500", "cut", "garbage", "503"}[len(s.poor)%4]
	}
	s.sandbox.SetFaults(f)
}

// next is the next event of a user.
func (s *story) next(user string) event {
	s.sent[user]++
	return event{user: user, name: "Order", plan: planOf(s.sent[user]), n: s.sent[user]}
}

// live lets time pass, with events coming in and, now and then, a crash.
func (s *story) live(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if s.poor != "" && time.Now().After(s.poorTo) {
			s.poor = ""
			s.set(s.faults)
		}
		var events []event
		for range s.rng.IntN(5) {
			events = append(events, s.next(fmt.Sprintf("user-%d", s.rng.IntN(30))))
		}
		if s.rng.IntN(40) == 0 {
			user := fmt.Sprintf("user-%d", s.rng.IntN(30))
			events = append(events, event{user: user, name: "Bad", plan: planOf(s.sent[user])})
			s.bad++
		}
		s.append(events)
		if s.rng.IntN(60) == 0 {
			s.crash()
		}
		time.Sleep(20 * time.Minute) // virtual: a story is days long
		if o := s.sandbox.Report().Order; o.OutOfOrder != 0 || o.Repeated != 0 {
			s.t.Fatalf("after %v: %+v", time.Since(start), o)
		}
		if b := s.stats().Books; int(b.Dead) > s.bad || b.Discarded != 0 || b.Lost != 0 {
			s.t.Fatalf("after %v, with %d bad events: %+v", time.Since(start), s.bad, b)
		}
	}
}

// trouble is one thing that goes wrong for hours or days, until it is mended, by a person where it takes one.
func (s *story) trouble(end time.Time) {
	hours := func(least, most int) time.Duration {
		return min(time.Duration(least+s.rng.IntN(most-least+1))*time.Hour, max(time.Until(end), time.Hour))
	}
	if s.poor == "" && s.rng.IntN(3) == 0 {
		s.poor, s.poorTo = fmt.Sprintf("user-%d", s.rng.IntN(30)), time.Now().Add(time.Duration(24+s.rng.IntN(72))*time.Hour)
	}
	none := sandbox.Faults{}
	s.set(none)
	switch s.rng.IntN(12) {
	case 0, 1:
		s.live(hours(1, 6))
	case 2:
		s.wire.cut(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
		s.live(hours(1, 48))
	case 3:
		s.wire.cut(&net.DNSError{Err: "no such host", Name: "track.customer.io", IsNotFound: true})
		s.live(hours(1, 48))
	case 4:
		s.set(sandbox.Faults{Hang: 1, HangFor: 2 * time.Hour})
		s.live(hours(1, 12))
	case 5:
		s.wire.late.Store(true)
		s.live(hours(1, 6))
	case 6:
		s.set(sandbox.Faults{Status: map[int]float64{429: 0.8}, RetryAfter: time.Duration(1+s.rng.IntN(7200)) * time.Second})
		s.live(hours(1, 24))
	case 7:
		s.set(sandbox.Faults{Status: map[int]float64{429: 0.8}, RetryAfter: -1})
		s.live(hours(1, 24))
	case 8:
		s.set(sandbox.Faults{Status: map[int]float64{500: 0.2, 503: 0.2}, CutAfter: 0.2, Garbage: 0.1, GarbageApplied: 0.1, Truncate: 0.1})
		s.live(hours(1, 24))
	case 9:
		s.set(sandbox.Faults{Status: map[int]float64{503: 1}})
		s.live(hours(1, 48))
	case 10:
		s.set(sandbox.Faults{CutAfter: 1})
		s.live(hours(1, 6))
	case 11:
		s.blocked(end)
	}
	s.wire.cut(nil) // a crash has made another one meanwhile
	s.wire.late.Store(false)
	s.set(none)
}

// blocked is a key that is revoked for 60 hours, or another thing that a person has to mend.
func (s *story) blocked(end time.Time) {
	f, reason := sandbox.Faults{Status: map[int]float64{http.StatusUnauthorized: 1}}, "http_401"
	if s.rng.IntN(3) == 0 {
		f, reason = sandbox.Faults{Redirect: 1, On: "data"}, "http_301"
	}
	s.set(f)
	before := s.stats().Books
	s.append([]event{s.next("user-0")})
	s.live(min(60*time.Hour, max(time.Until(end), time.Hour)))
	s.within(6*time.Hour, "it is blocked", func() bool {
		state := s.sync.Status()
		return state.State == delivery.Blocked && state.Reason == reason || reason == "http_301" // which is asked about each minute
	})
	if b := s.stats().Books; b.Dead != before.Dead || b.Filtered != before.Filtered {
		s.t.Fatalf("%s: the books were %+v, and are %+v", reason, before, b)
	}
	s.set(sandbox.Faults{})
	if s.rng.IntN(2) == 0 {
		s.reload() // the one who has mended it does not wait until it is asked again
	}
}

// end mends everything, waits, and looks at all.
func (s *story) end() {
	s.poor = ""
	s.set(sandbox.Faults{})
	s.within(24*time.Hour, "the queue is empty", func() bool { return s.stats().Books.Pending == 0 })
	b, report, total := s.stats().Books, s.sandbox.Report(), 0
	for user, n := range s.sent {
		total += n
		p, _ := s.sandbox.Person("id", user)
		if p.EventCount != int64(n) {
			s.t.Errorf("Customer.io has %d of %s's %d events", p.EventCount, user, n)
		}
		if plan := string(p.Attributes["plan"]); plan != strconv.Quote(planOf(n)) {
			s.t.Errorf("%s has the plan %s, at Customer.io %s", user, planOf(n), plan)
		}
	}
	if o := report.Order; o.OutOfOrder != 0 || o.Repeated != 0 || o.Missing != 0 || report.Events.Differing != 0 {
		s.t.Errorf("order: %+v; %+v", o, report.Events)
	}
	if int(b.Taken) != total+s.bad || int(b.Dead) != s.bad || b.Discarded != 0 || b.Lost != 0 || int(report.Events.Accepted) != total {
		s.t.Errorf("%d events, %d of them bad; the books say %+v", total+s.bad, s.bad, b)
	}
	letters := 0
	err := s.consumer.DeadLetters(func(d queueDeadLetter) error {
		letters++
		if d.Reason == "" {
			s.t.Errorf("a dead letter without a reason: %d", d.Record.Seq)
		}
		return nil
	})
	if err != nil || letters != s.bad {
		s.t.Errorf("%d dead letters, %v; %d events were bad", letters, err, s.bad)
	}
	a, err := s.consumer.Audit(s.ctx)
	if err != nil || !a.Balanced() {
		s.t.Errorf("audit: %v, %q", err, a.Differences)
	}
	s.t.Logf("%d events, %d lives, %d requests, %d repeats", total+s.bad, s.life+1, report.Requests, report.Events.Duplicates)
}

// crash goes on with the files as they are now; what the dead process does after that nobody sees.
func (s *story) crash() {
	synctest.Wait()
	next := filepath.Join(s.root, fmt.Sprint(s.life+1))
	if err := copyFolder(next, s.dir()); err != nil {
		s.t.Fatal(err)
	}
	s.wire.dead.Store(true)
	s.house.close()
	if err := os.RemoveAll(s.dir()); err != nil {
		s.t.Fatal(err)
	}
	s.life++
	w := newWire(s.sandbox)
	w.late.Store(s.wire.late.Load())
	w.broken.Store(s.wire.broken.Load())
	s.house = open(s.t, s.dir(), w)
}

func copyFolder(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || e.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(to, rel), 0o700))
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	})
}
