package delivery

import "testing"

// A request is halved between two users where it has several, as near to the middle
// as there is such a place.
func TestCut(t *testing.T) {
	for lanes, want := range map[string]int{
		"ab": 1, "aab": 2, "abb": 1, "aabb": 2, "abcd": 2, "aaaaaab": 6, "abbbbbb": 1, "aabbbb": 2, "aaabbcc": 3,
		"aa": 1, "aaaa": 2, "aaaaa": 2,
	} {
		of := map[rune]*taken{}
		var operations []*operation
		for _, lane := range lanes {
			if of[lane] == nil {
				of[lane] = &taken{}
			}
			operations = append(operations, &operation{of: of[lane]})
		}
		if got := cut(operations); got != want {
			t.Errorf("%s is cut after %d, want %d", lanes, got, want)
		}
	}
}
