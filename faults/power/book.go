package power

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ampcio/queue"
)

// How far an event has come. A dead letter that is tried again goes on to retried, and to ended again; one that is dropped
// goes to ended again at once.
const (
	waits = iota
	ended
	retried
	endedAgain
)

// How far the forgetting of a user has come.
const (
	known     = iota
	buried    = 2 // the tombstone is there
	forgotten = 3
)

// span is what is certain of a step, and what may be: a crash may leave anything between the two.
type span struct{ least, most int }

// fate is what is known of an event.
type fate struct {
	user string
	have bool // it was acknowledged
	span
}

// book is what a child has said: what must be on its disk, and what may be.
type book struct {
	seed     uint64
	events   map[int]*fate
	users    map[string][]int // the numbers of their events, in order
	requests [][]int
	victims  map[int]*span
	lines    int // that were noted
}

func newBook(seed uint64) *book {
	return &book{seed: seed, events: map[int]*fate{}, users: map[string][]int{}, victims: map[int]*span{}}
}

// note takes a line of the child's; see recorder.
func (b *book) note(line string) error {
	fields := strings.Fields(line)
	numbers, err := numbersIn(fields[1:])
	if err != nil {
		return fmt.Errorf("line %q: %w", line, err)
	}
	b.lines++
	if fields[0] == "put" {
		if !slices.ContainsFunc(b.requests, func(r []int) bool { return slices.Equal(r, numbers) }) {
			b.requests = append(b.requests, numbers)
		}
		for _, n := range numbers {
			if b.events[n] == nil {
				u := userOf(b.seed, n)
				b.events[n] = &fate{user: u}
				b.users[u] = append(b.users[u], n)
				slices.Sort(b.users[u])
			}
		}
		return nil
	}
	if word := fields[0]; strings.HasPrefix(word, "forg") {
		v := b.victims[numbers[0]]
		if v == nil {
			v = &span{}
			b.victims[numbers[0]] = v
		}
		v.most = forgotten
		v.least = max(v.least, map[string]int{"forget": known, "forgot": buried, "forgotten": forgotten}[word])
		return nil
	}
	for _, n := range numbers {
		f := b.events[n]
		if f == nil {
			return fmt.Errorf("line %q: event %d was never put", line, n)
		}
		switch fields[0] {
		case "have":
			f.have = true
		case "ends":
			f.most = max(f.most, ended)
		case "durable":
			f.least = max(f.least, ended)
		case "replay":
			f.most = max(f.most, retried)
		case "replayed":
			f.least = max(f.least, retried)
		case "ends2", "drop":
			f.most = max(f.most, endedAgain)
		case "durable2", "dropped":
			f.least = max(f.least, endedAgain)
		default:
			return fmt.Errorf("line %q is not understood", line)
		}
	}
	return nil
}

// status is what a disk says of an event.
type status string

const (
	pending status = "pending"
	dead    status = "a dead letter"
	gone    status = "neither pending nor a dead letter"
)

// statusAt is what a disk says of an event that has come so far; "" = it never stays there.
func statusAt(n, level int) status {
	switch {
	case level == waits, level == retried && n%2 == 0:
		return pending
	case level == ended && endingOf(n) == queue.Dead:
		return dead
	case level == ended, level == endedAgain:
		return gone
	}
	return ""
}

// levels are those between least and most at which an event has a status.
func (f *fate) levels(n int, s status) (all []int) {
	for l := f.least; l <= f.most; l++ {
		if statusAt(n, l) == s {
			all = append(all, l)
		}
	}
	return all
}

// seen is what a storage folder has, after a start.
type seen struct {
	pending []int           // in the order in which they are read, which is that of each user
	counts  map[int]float64 // by number: how many of its user's events there were up to it, by its properties
	dead    []int
	taken   int // events that the log has ever taken
	users   map[string]properties
	sent    map[string]int // what each user was last sent; 0 = nothing
	victims map[int]int    // how far they are forgotten, as far as the disk still knows
}

func (s *seen) status(n int) status {
	switch {
	case slices.Contains(s.pending, n):
		return pending
	case slices.Contains(s.dead, n):
		return dead
	}
	return gone
}

// judge says what is wrong with what a folder has. stored are the events that it took.
func (b *book) judge(s *seen) (stored map[int]bool, err error) {
	var wrong []error
	complain := func(format string, args ...any) {
		if len(wrong) < 10 {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	statuses := make(map[int]status, len(b.events))
	for n := range b.events {
		statuses[n] = gone
	}
	mark := func(numbers []int, as status) {
		for _, n := range numbers {
			if before, put := statuses[n]; !put {
				complain("event %d is there and was never put", n)
			} else if before != gone {
				complain("event %d is there twice", n)
			}
			statuses[n] = as
		}
	}
	mark(s.pending, pending)
	mark(s.dead, dead)
	stored = make(map[int]bool, len(b.events))
	for n, f := range b.events {
		is := statuses[n]
		stored[n] = f.have || is != gone || f.most >= ended
		if !stored[n] {
			continue
		}
		if buried := s.buried(b, n); buried > known {
			if buried == forgotten && is != gone {
				complain("event %d is %s, and its user was forgotten", n, is)
			}
			continue
		}
		if len(f.levels(n, is)) == 0 {
			complain("event %d is %s (acknowledged: %v, it has come to between %d and %d)", n, is, f.have, f.least, f.most)
		}
	}
	for _, r := range b.requests {
		if some := slices.ContainsFunc(r, func(n int) bool { return stored[n] }); some && slices.ContainsFunc(r, func(n int) bool { return !stored[n] }) {
			complain("of the request of %v only a part is there", r)
		}
	}
	count := 0
	for _, is := range stored {
		if is {
			count++
		}
	}
	if s.taken != count {
		complain("the log has taken %d events, %d were stored", s.taken, count)
	}
	b.judgeUsers(s, stored, statuses, complain)
	b.judgeOrder(s, complain)
	return stored, errors.Join(wrong...)
}

// buried is how far an event's user is forgotten on a disk.
func (s *seen) buried(b *book, n int) int {
	if b.events[n].user[0] != 'v' {
		return known
	}
	block := n / victimsEvery
	if v := b.victims[block]; v != nil && v.least == forgotten {
		return forgotten // the tombstone goes when the log has nothing of the user any more
	}
	return s.victims[block]
}

func (b *book) judgeUsers(s *seen, stored map[int]bool, statuses map[int]status, complain func(string, ...any)) {
	for u, numbers := range b.users {
		var want properties
		sent, tomb := 0, s.buried(b, numbers[0])
		for _, n := range numbers {
			if !stored[n] {
				continue
			}
			want = properties{n, want.Count + 1}
			if c, is := s.counts[n]; is && c != want.Count && tomb == known {
				complain("event %d says that it is number %v of %s, it is number %v", n, c, u, want.Count)
			}
			if statuses[n] == gone && endingOf(n) == queue.Delivered {
				sent = n
			}
		}
		if tomb > known {
			want, sent = properties{}, 0
		}
		if got := s.users[u]; got != want {
			complain("of %s is known %+v, it should be %+v (forgotten: %d)", u, got, want, tomb)
		}
		if got := s.sent[u]; got != sent && tomb != buried {
			complain("%s was last sent %d, it should be %d", u, got, sent)
		}
	}
	for j, v := range b.victims {
		if v.least == buried && s.victims[j] < buried {
			complain("%s was forgotten, and there is no tombstone", victim(j))
		}
	}
}

// judgeOrder looks whether each user's events come in the order in which they were stored; dead letters that are tried
// again come first.
func (b *book) judgeOrder(s *seen, complain func(string, ...any)) {
	last := map[string]int{}
	for _, n := range s.pending {
		if b.events[n] == nil || b.events[n].most >= retried {
			continue
		}
		u := b.events[n].user
		if n < last[u] {
			complain("event %d of %s comes behind %d", n, u, last[u])
		}
		last[u] = n
	}
}

// settle takes a disk's word for what was in doubt: the next life goes on from there.
func (b *book) settle(s *seen, stored map[int]bool) (again [][]int) {
	for n, f := range b.events {
		if !stored[n] {
			continue
		}
		f.have = true
		if l := f.levels(n, s.status(n)); len(l) > 0 {
			f.least, f.most = l[0], l[len(l)-1]
		}
	}
	b.requests = slices.DeleteFunc(b.requests, func(r []int) bool {
		if !stored[r[0]] {
			again = append(again, r)
		}
		return true
	})
	for _, r := range again {
		for _, n := range r {
			u := b.events[n].user
			b.users[u] = slices.DeleteFunc(b.users[u], func(k int) bool { return k == n })
			if len(b.users[u]) == 0 {
				delete(b.users, u)
			}
			delete(b.events, n)
		}
	}
	for j, v := range b.victims {
		if v.least < forgotten {
			*v = span{s.victims[j], forgotten}
			if s.victims[j] == known {
				delete(b.victims, j)
			}
		}
	}
	return again
}
