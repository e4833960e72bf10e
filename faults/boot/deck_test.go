package boot

import (
	"math/rand/v2"
	"testing"
)

// However many faults are wanted, they are dealt: each as often as the deck has it, the installation first, and no machine
// is set up for nothing.
func TestTheDeckIsDealt(t *testing.T) {
	for n := 1; n <= len(deck); n++ {
		hands := deal(rand.New(rand.NewPCG(1, uint64(n))), n)
		if len(hands) != min(machines, n) || hands[0][0].name != deck[0].name {
			t.Fatalf("%d faults: %d machines, the first begins with %s", n, len(hands), hands[0][0].name)
		}
		dealt, times := 0, map[string]int{}
		for _, hand := range hands {
			if dealt += len(hand); len(hand) == 0 {
				t.Errorf("%d faults: a machine has none", n)
			}
			for _, f := range hand {
				times[f.name]++
			}
		}
		if dealt != n {
			t.Errorf("%d of %d faults are dealt", dealt, n)
		}
		has := map[string]int{}
		for _, f := range deck {
			has[f.name]++
		}
		for name, n := range times {
			if n > has[name] {
				t.Errorf("%s is dealt %d times, the deck has it %d times", name, n, has[name])
			}
		}
	}
}
