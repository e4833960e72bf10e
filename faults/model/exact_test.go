package model

import "testing"

// Each of these has been told as a violation, and was none: the product kept its promise, and the model asked for more.
func TestWhatTheModelDoesNotAskFor(t *testing.T) {
	for name, side := range map[string]strands{
		// The user update is accepted in a request of its own, and its record, whose event is not answered, goes back to its lane
		// when the delivery stops. So a rewind to before it finds that Customer.io knows more than the ledger, until
		// the record comes again.
		"an update of a record that has not ended, and a rewind": {histories: [][]step{{
			{"ingest", 387, 377, 413, 0}, {"deliver", 232, 619, 981, 676}, {"ingest", 381, 238, 671, 185}, {"ingest", 1, 0, 0, 0},
			{"deliver for real", 1, 484, 309, 3}, {"rewind", 619, 619, 36, 333}}}},
		// The bound is kept about once a second: while others deliver, until the crash.
		"what a bound gives up just before a crash": {house: []step{{"crash while some deliver", 999, 0, 0, 0}}, histories: [][]step{{
			{"ingest", 1, 2, 0, 7}, {"ingest", 6, 2, 3, 18}, {"ingest", 11, 2, 6, 29}, {"ingest", 16, 2, 9, 40}, {"ingest", 21, 2, 12, 51}, {"ingest", 26, 2, 15, 62},
			{do: "a moment"}, {do: "a moment"}, {do: "a moment"}, {"claim", 0, 0, 0, 0}, {"bound", 0, 1, 0, 0}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := live(t.Context(), memory(t), side, nil); err != nil {
				t.Error(err)
			}
		})
	}
}
