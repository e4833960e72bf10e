package power

import (
	"strings"
	"testing"
)

// TestTheJudgeSeesWhatIsWrong shows the judge disks that are right, and some that are not. Event 3 ends as a dead letter, 0 and
// 1 are delivered; each is the first of its user.
func TestTheJudgeSeesWhatIsWrong(t *testing.T) {
	const seed = 7
	u := func(n int) string { return userOf(seed, n) }
	if u(1) == u(3) {
		t.Fatal("choose another seed: 1 and 3 have one user")
	}
	whole := func(pending, dead []int, delivered ...int) *seen {
		s := &seen{pending: pending, dead: dead, counts: map[int]float64{}, users: map[string]properties{}, sent: map[string]int{}}
		for _, n := range append(append(append([]int{}, pending...), dead...), delivered...) {
			s.taken++
			s.users[u(n)] = properties{n, 1}
		}
		for _, n := range delivered {
			s.sent[u(n)] = n
		}
		return s
	}
	both := []string{"put 1 3", "have 1 3"}
	for _, c := range []struct {
		name  string
		lines []string
		seen  *seen
		wrong string // "" = nothing
	}{
		{"all waits", both, whole([]int{1, 3}, nil), ""},
		{"it was never acknowledged, and is not there", []string{"put 1 3"}, whole(nil, nil), ""},
		{"it was never acknowledged, and is there", []string{"put 1 3"}, whole([]int{1, 3}, nil), ""},
		{"half a request", []string{"put 1 3"}, whole([]int{1}, nil), "only a part"},
		{"a loss", both, whole([]int{1}, nil), "event 3 is neither"},
		{"an end that was not begun", both, whole([]int{3}, nil, 1), "event 1 is neither"},
		{"an end that may be", append(both, "ends 1"), whole([]int{3}, nil, 1), ""},
		{"an end that need not be", append(both, "ends 1"), whole([]int{1, 3}, nil), ""},
		{"an end that must be", append(both, "ends 1", "durable 1"), whole([]int{1, 3}, nil), "event 1 is pending"},
		{"a dead letter", append(both, "ends 3", "durable 3"), whole([]int{1}, []int{3}), ""},
		{"a dead letter that is lost", append(both, "ends 3", "durable 3"), whole([]int{1}, nil, 3), "event 3 is neither"},
		{"a dead letter that is dropped", append(both, "ends 3", "durable 3", "drop 3", "dropped 3"), func() *seen {
			s := whole([]int{1}, nil, 3)
			s.sent = nil
			return s
		}(), ""},
		{"a double", both, func() *seen {
			s := whole([]int{1, 3}, nil)
			s.pending = append(s.pending, 1)
			return s
		}(), "there twice"},
		{"an event that nobody sent", both, func() *seen {
			s := whole([]int{1, 3}, nil)
			s.pending = append(s.pending, 5)
			return s
		}(), "never put"},
		{"one too many was counted", both, func() *seen {
			s := whole([]int{1, 3}, nil)
			s.taken++
			return s
		}(), "the log has taken 3"},
		{"a user of whom is known too little", both, func() *seen {
			s := whole([]int{1, 3}, nil)
			delete(s.users, u(3))
			return s
		}(), "is known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBook(seed)
			for _, l := range c.lines {
				if err := b.note(l); err != nil {
					t.Fatal(err)
				}
			}
			_, err := b.judge(c.seen)
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("%v, want %q", err, c.wrong)
			}
		})
	}
}
