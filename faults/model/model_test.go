package model

import (
	"maps"
	"os"
	"reflect"
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
	for n := 0; n < b.N; n += perHouse {
		side := drawSome(uint64(n)*7919, min(perHouse, b.N-n))
		if err := live(b.Context(), dir, side, nil); err != nil {
			b.Fatalf("histories from %d: %v", n, shorter(b.Context(), dir, side, err))
		}
	}
}

// heard is what is told of histories.
func heard(t *testing.T, side strands) (lines []string) {
	t.Helper()
	if err := live(t.Context(), memory(t), side, func(line string) { lines = append(lines, line) }); err != nil {
		t.Fatal(err)
	}
	return lines
}

// The product's own delivery draws how long it waits, so what becomes of each request that fails is left to chance there;
// all else that a seed says is the same again.
func TestASeedIsAHistory(t *testing.T) {
	chance := func(s step) bool { return s.do == "deliver for real" || s.do == "crash while some deliver" }
	for seed := range uint64(4) {
		side := drawSome(seed*1_000_003, 3)
		if !reflect.DeepEqual(side, drawSome(seed*1_000_003, 3)) {
			t.Fatalf("seed %d draws other steps the second time", seed)
		}
		side.house = slices.DeleteFunc(side.house, chance)
		for i := range side.histories {
			side.histories[i] = slices.DeleteFunc(side.histories[i], chance)
		}
		once, again := heard(t, side), heard(t, side)
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
	side := drawSome(1<<20, 3)
	side.histories[2] = append(append([]step{{do: "ingest"}}, side.histories[2]...), step{do: "lie"}, step{do: "flush"})
	dir := memory(t)
	err := live(t.Context(), dir, side, nil)
	if err == nil || !strings.Contains(err.Error(), "history 3") || !strings.Contains(err.Error(), "lie") || !strings.Contains(err.Error(), "the books are") {
		t.Fatal(err)
	}
	text := shorter(t.Context(), dir, side, err).Error()
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
