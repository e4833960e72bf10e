package senders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"ampcio-faults/scoreboard"
	"ampcio/recordings"
)

// requestsOfADaemon are sent to one.
const requestsOfADaemon = 25_000

// malformed is one daemon, some connections, and on each one request after the other, most of them wrong.
func malformed(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	const (
		connections = 8
		mostMemory  = 400 << 20
	)
	in, err := install(ctx, c, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	want := (min(requestsOfADaemon, c.Left) + connections - 1) / connections
	senders := make([]*sender, connections)
	var all errgroup.Group
	for i := range senders {
		s := &sender{in: in, address: in.Listen, user: fmt.Sprintf("good-user-%d", i),
			grammar: &grammar{Rand: rand.New(rand.NewPCG(c.Seed, uint64(i))), name: fmt.Sprintf("i%d", i)}}
		senders[i] = s
		all.Go(func() error { return s.run(ctx, want) })
	}
	err = all.Wait()
	sum := tally{}
	for _, s := range senders {
		sum.add(s.tally)
	}
	if err != nil {
		return sum.requests, err
	}
	// A grammar that breaks nothing, or everything before it is looked at, tries nothing.
	if sum.taken*20 < sum.requests || sum.refused*3 < sum.requests || sum.silent*5 > sum.requests {
		return sum.requests, fmt.Errorf("the requests are not what they should be: %+v", sum)
	}
	c.Note("%+v", sum)
	return sum.requests, in.verdict(ctx, sum, senders, mostMemory)
}

// tally is what came of requests.
type tally struct {
	requests int
	taken    int // answered 200
	refused  int // answered otherwise
	silent   int // not answered, the connection closed

	events  int // of those taken
	repeats int // at most so many of them have the insert_id of another
	good    int // events of the well-behaved, in events too
}

func (t *tally) add(o tally) {
	t.requests += o.requests
	t.taken += o.taken
	t.refused += o.refused
	t.silent += o.silent
	t.events += o.events
	t.repeats += o.repeats
	t.good += o.good
}

// sender has one connection at a time.
type sender struct {
	*grammar
	in      *installation
	address string
	user    string // of the good events
	conn    *conn
	wire    []byte
	tally
}

// goodEach: once in so many requests comes a good event.
const goodEach = 50

func (s *sender) run(ctx context.Context, want int) (err error) {
	defer func() { err = errors.Join(err, s.hangUp()) }()
	for s.requests < want {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var calm, other []*attempt // those that can be sent together, and at most one that cannot
		for range 1 + s.IntN(12) {
			a := s.attempt()
			if !a.calm {
				other = []*attempt{a}
				break
			}
			calm = append(calm, a)
		}
		before := s.requests / goodEach
		for _, together := range [][]*attempt{calm, other} {
			if err := s.try(together); err != nil {
				return err
			}
			s.requests += len(together)
		}
		if s.requests/goodEach > before {
			if err := s.well(); err != nil {
				return fmt.Errorf("a good event behind %s: %w", slices.Concat(calm, other)[len(calm)+len(other)-1].text(), err)
			}
		}
	}
	return nil
}

// text is an attempt as a person reads it.
func (a *attempt) text() string {
	return fmt.Sprintf("%s %s%s:\n%.3000q\n", a.method, a.door.path, a.what, a.wire)
}

func (s *sender) hangUp() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}

// try sends requests together, and reads what is answered.
func (s *sender) try(together []*attempt) error {
	if len(together) == 0 {
		return nil
	}
	if s.conn == nil {
		c, err := dial(s.address)
		if err != nil {
			return err // the listener is always there
		}
		s.conn = c
	}
	last, want := together[len(together)-1], len(together)
	s.wire = s.wire[:0]
	for _, a := range together {
		s.wire = append(s.wire, a.wire...)
	}
	if !last.framed {
		want = 0
	}
	answers, open, err := s.conn.exchange(s.wire, last.method, want)
	if err != nil {
		return errors.Join(fmt.Errorf("%s%w", together[min(len(answers), len(together)-1)].text(), err), s.hangUp())
	}
	for i := range answers {
		a, alone := last, false
		if last.framed {
			a, alone = together[i], true
		} else {
			alone = len(answers) == 1
		}
		if err := s.judge(a, &answers[i], alone); err != nil {
			return fmt.Errorf("%s%w", a.text(), err)
		}
	}
	s.silent += max(0, len(together)-len(answers))
	if !open {
		return s.hangUp()
	}
	return nil
}

// judge looks at one answer. alone says that it is the only one to the attempt.
func (s *sender) judge(a *attempt, got *answer, alone bool) error {
	if err := got.wellFormed(); err != nil {
		return err
	}
	events, err := got.stored()
	if err != nil {
		return err
	}
	if got.status != 200 {
		s.refused++
		if s.events += events; events > 0 { // the webhook's good ones beside bad ones
			s.repeats += repeated(a.plain)
		}
		return nil
	}
	s.taken++
	if got.health() {
		return nil
	}
	if a.framed && alone {
		count, err := a.count()
		if err != nil {
			return fmt.Errorf("answered 200 to what is no JSON: %w", err)
		}
		if events >= 0 && events != count {
			return fmt.Errorf("answered that %d events are stored, of %d", events, count)
		}
		events = count
	}
	if events < 0 {
		// /identify says no number, and where this request ends is not sure: it may have been
		// sent with a length that left it whole.
		if events, err = a.count(); err != nil {
			return fmt.Errorf("answered 200 to what is no JSON: %w", err)
		}
	}
	s.events += events
	s.repeats += repeated(a.plain)
	return nil
}

// count is how many events a body has, by the standard library.
func (a *attempt) count() (int, error) {
	list := json.RawMessage(a.plain)
	if a.door.list != "" {
		members := map[string]json.RawMessage{}
		if err := json.Unmarshal(a.plain, &members); err != nil {
			return 0, err
		}
		list = members[a.door.list]
		if list == nil {
			list = members["events"] // sent to another endpoint than its own
		}
	}
	var one map[string]json.RawMessage
	if json.Unmarshal(list, &one) == nil && one != nil {
		return 1, nil
	}
	var many []json.RawMessage
	err := json.Unmarshal(list, &many)
	return len(many), err
}

var (
	insertID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`insert_id"\s*:\s*("[^"]*"|[^,}\]]*)`) })
	unique   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^"i\d+-[0-9a-f]{16}"$`) }) // one that the grammar gave
)

// repeated is how many insert_ids of a body others may have too: those that were in it before, and those that are no
// longer what the grammar gave.
func repeated(body []byte) (n int) {
	before := map[string]bool{}
	for _, at := range insertID().FindAllSubmatch(body, -1) {
		if before[string(at[1])] || !unique().Match(at[1]) {
			n++
		}
		before[string(at[1])] = true
	}
	return n
}

// well sends an event as it should be, on the same connection if that is open. It is answered 200, whatever came before.
func (s *sender) well() error {
	body := fmt.Appendf(nil, `{"api_key":%q,"events":[{"event_type":"Good","user_id":%q,"insert_id":"%s-%016x","event_properties":{"seq":%d}}]}`,
		recordings.Key, s.user, s.name, s.Uint64(), s.good+1)
	a := &attempt{method: "POST", framed: true, door: httpapi, plain: body}
	s.frame(body, []string{"Content-Type: application/json"}, a, "")
	before := s.taken
	if err := s.try([]*attempt{a}); err != nil {
		return err
	}
	if s.taken != before+1 {
		return errors.New("it was not answered 200")
	}
	s.good++
	return nil
}
