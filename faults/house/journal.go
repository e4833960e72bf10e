package house

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Journal is what is known from the lines of all lives. A line is one write, before what it speaks of is done; of one that
// goes over a page's end a kill may leave a part, which the next life drops:
//
//	sent U N M    the events N to M of user U are about to be sent
//	acked U N M   and were acknowledged
//	claimed U N…  were taken to be delivered, together and in this order
//	got U N…      the destination has them
//	drop U N      a dead letter is about to be given up
//	forget U      the user is about to be forgotten
//	wrong TEXT    a promise was broken
type Journal struct {
	Seed    uint64
	Sent    map[int]int // by user: up to here
	Acked   map[int]int
	Claimed map[int]int          // by user: up to here, without a gap
	Got     map[int]map[int]bool // by user and event
	LastGot map[int]int          // by user: the event that was delivered last
	Dropped map[int]map[int]bool // may be
	Gone    map[int]bool         // users who may have been forgotten
	Wrong   []string
	Began   int // lives
}

// NewJournal is one without a line.
func NewJournal(seed uint64) *Journal {
	return &Journal{Seed: seed, Sent: map[int]int{}, Acked: map[int]int{}, Claimed: map[int]int{}, Got: map[int]map[int]bool{}, LastGot: map[int]int{},
		Dropped: map[int]map[int]bool{}, Gone: map[int]bool{}}
}

// ReadJournal reads a file of lines. A last line without its end was never said.
func ReadJournal(path string, seed uint64) (*Journal, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	j := NewJournal(seed)
	for line := range bytes.Lines(text) {
		if bytes.HasSuffix(line, []byte("\n")) {
			j.Add(string(line[:len(line)-1]))
		}
	}
	return j, nil
}

// dropUnsaid takes from the end of a file of lines what is no whole line.
func dropUnsaid(f *os.File, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	if whole == len(text) {
		return nil
	}
	return f.Truncate(int64(whole))
}

// Add takes a line.
func (j *Journal) Add(line string) {
	what, rest, _ := strings.Cut(line, " ")
	if what == "wrong" {
		j.Wrong = append(j.Wrong, rest)
		return
	}
	var f []int
	for _, s := range strings.Fields(rest) {
		n, err := strconv.Atoi(s)
		if err != nil {
			j.wrong("the line %q of the journal", line)
			return
		}
		f = append(f, n)
	}
	switch {
	case what == "began":
		j.Began++
	case what == "sent" && len(f) == 3:
		j.Sent[f[0]] = max(j.Sent[f[0]], f[2])
	case what == "acked" && len(f) == 3:
		if f[1] > j.Acked[f[0]]+1 {
			j.wrong("user %d: event %d was sent behind %d", f[0], f[1], j.Acked[f[0]])
		}
		j.Acked[f[0]] = max(j.Acked[f[0]], f[2])
	case what == "claimed" && len(f) > 1:
		j.claimed(f[0], f[1:])
	case what == "got" && len(f) > 1:
		if j.Got[f[0]] == nil {
			j.Got[f[0]] = map[int]bool{}
		}
		for _, n := range f[1:] {
			j.Got[f[0]][n], j.LastGot[f[0]] = true, n
		}
	case what == "drop" && len(f) == 2:
		if j.Dropped[f[0]] == nil {
			j.Dropped[f[0]] = map[int]bool{}
		}
		j.Dropped[f[0]][f[1]] = true
	case what == "forget" && len(f) == 1:
		j.Gone[f[0]] = true
	default:
		j.wrong("the line %q of the journal", line)
	}
}

func (j *Journal) wrong(format string, args ...any) {
	j.Wrong = append(j.Wrong, fmt.Sprintf(format, args...))
}

// claimed checks the order of a user's events: what comes for the first time is the next one. What was claimed before may
// come again: after a crash, a rewind, or as a dead letter that is tried again; but never behind a later one in one claim, which
// has the records of a lane in the order of the log. The first event has a lane of its own.
func (j *Journal) claimed(u int, events []int) {
	for i, n := range events {
		if i > 0 && n <= events[i-1] && !j.Gone[u] { // who was forgotten begins anew
			j.wrong("user %d: event %d was claimed behind event %d", u, n, events[i-1])
		}
		switch last := max(j.Claimed[u], 1); {
		case n <= last:
		case n == last+1 || j.Gone[u]:
			j.Claimed[u] = n
		default:
			j.wrong("user %d: event %d was claimed, and the furthest before it was %d", u, n, last)
		}
	}
}
