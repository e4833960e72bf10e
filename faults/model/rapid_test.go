package model

import (
	"testing"

	"pgregory.net/rapid"
)

// rapid draws otherwise than the trials do: what is at the edge more often, and short histories; and it shortens by its own
// means what breaks the promise. The trials draw for themselves, since rapid's tables are a quarter of what a process costs
// that they start.
func TestHistoriesDrawnByRapid(t *testing.T) {
	steps := func(of []string, least, most int) *rapid.Generator[[]step] {
		number := rapid.IntRange(0, 999)
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{
				rapid.SampledFrom(of).Draw(t, "do"),
				number.Draw(t, "a"), number.Draw(t, "b"), number.Draw(t, "c"), number.Draw(t, "d"),
			}
		}), least, most)
	}
	house, history := steps(oftenInTheHouse, 0, 7), steps(often, 1, 24)
	dir := memory(t)
	rapid.Check(t, func(rt *rapid.T) {
		side := strands{house: house.Draw(rt, "house"), histories: rapid.SliceOfN(history, 1, 3).Draw(rt, "histories")}
		if err := live(t.Context(), dir, side, nil); err != nil {
			rt.Fatal(err)
		}
	})
}

// What the trials draw has everything that may be done, and every length.
func TestWhatIsDrawn(t *testing.T) {
	done, lengths := map[string]bool{}, map[int]bool{}
	for seed := range uint64(200) {
		side := drawSome(seed, perHouse)
		for _, list := range append(side.histories, side.house) {
			lengths[len(list)] = true
			for _, s := range list {
				done[s.do] = true
				if min(s.a, s.b, s.c, s.d) < 0 || max(s.a, s.b, s.c, s.d) > 999 {
					t.Fatalf("%+v", s)
				}
			}
		}
	}
	for _, what := range append(append([]string{}, often...), oftenInTheHouse...) {
		if !done[what] {
			t.Errorf("%s is never done", what)
		}
	}
	for n := 3; n <= 24; n++ {
		if !lengths[n] {
			t.Errorf("no history has %d steps", n)
		}
	}
}
