package model

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/queue"
)

func memory(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "model-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func BenchmarkHistories(b *testing.B) {
	dir := memory(b)
	for n := 0; n < b.N; {
		var all [][]step
		for i := range min(perCase, b.N-n) {
			all = append(all, draw(uint64(n+i)*7919))
		}
		lived, err := live(b.Context(), dir, all, nil)
		if err != nil {
			b.Fatalf("history %d: %v", n+lived+1, shorter(b.Context(), dir, all[:lived+1], err))
		}
		n += lived
	}
}

// heard is what is told of a history.
func heard(t *testing.T, all [][]step) (lines []string) {
	t.Helper()
	if _, err := live(t.Context(), memory(t), all, func(line string) { lines = append(lines, line) }); err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestASeedIsAHistory(t *testing.T) {
	for seed := range uint64(6) {
		seed *= 1_000_003
		once, again := heard(t, [][]step{draw(seed)}), heard(t, [][]step{draw(seed)})
		if !slices.Equal(once, again) {
			t.Fatalf("seed %d is\n%s\nand\n%s", seed, strings.Join(once, "\n"), strings.Join(again, "\n"))
		}
	}
}

// TestAViolationIsToldShortly lets a model go wrong in one step, in the third of three histories.
func TestAViolationIsToldShortly(t *testing.T) {
	before := doings
	defer func() { doings = before }()
	doings = append(slices.Clone(doings), doing{"lie", 0, func(h *history, s step) {
		if len(h.records) > 0 {
			h.ledgers[0].past[queue.Delivered]++
		}
	}})
	all := [][]step{draw(1 << 20), draw(2 << 20), draw(3 << 20)}
	all[2] = append(append([]step{{do: "ingest"}}, all[2]...), step{do: "lie"}, step{do: "crash"})
	dir := memory(t)
	n, err := live(t.Context(), dir, all, nil)
	if n != 2 || err == nil || !strings.Contains(err.Error(), "lie") || !strings.Contains(err.Error(), "the books are") {
		t.Fatalf("history %d: %v", n, err)
	}
	text := shorter(t.Context(), dir, all, err).Error()
	if !strings.Contains(text, "step 2, lie") || strings.Count(text, "\n") > 8 {
		t.Fatal(text)
	}
}

// TestPeople tells the model's own story, by the rules of the README.
func TestPeople(t *testing.T) {
	p, now := newPeople(), beginning
	for i, c := range []struct {
		event
		user  string
		after properties
		taken bool
		later time.Duration
	}{
		{event{device: "phone", operation: "$set", name: "plan", value: 1, insertID: "x"}, "", properties{"plan": 1}, true, 0},
		{event{device: "phone", insertID: "x"}, "", nil, false, time.Hour},
		{event{user: "anna", operation: "$add", name: "seats", value: 2}, "anna", properties{"seats": 2}, true, 0},
		{event{device: "phone", user: "anna", operation: "$setOnce", name: "plan", value: 5}, "anna", properties{"plan": 1, "seats": 2}, true, 0},
		{event{device: "phone", operation: "$unset", name: "seats"}, "anna", properties{"plan": 1}, true, 0},
		{event{device: "phone", user: "ben"}, "ben", properties{}, true, 0},
		{event{device: "phone", insertID: "x"}, "ben", properties{}, true, 8 * 24 * time.Hour},
	} {
		now = now.Add(c.later)
		user, after, taken := p.take(&c.event, now)
		if user != c.user || taken != c.taken || !maps.Equal(after, c.after) {
			t.Errorf("event %d: %q %v %v", i, user, after, taken)
		}
	}
}
