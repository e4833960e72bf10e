package queue

import "testing"

// A rewind in the midst of much ingest does not run after the log's end, which may move as fast as it reads.
func TestARewindLooksNoFurtherThanItHasTo(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	defer h.close(cs)
	h.fill("app", 4, 400)
	far := h.log.Tail()
	h.fill("app", 4, 400)
	runs, err := h.log.readable(t.Context(), 1, 3)
	must(t, err)
	if len(runs) != 1 || runs[0].last < 3 || runs[0].last > far {
		t.Errorf("%v, of %d records", runs, h.log.Tail())
	}
	runs, err = h.log.readable(t.Context(), 0, h.log.Tail()+1)
	must(t, err)
	if len(runs) != 1 || runs[0].last != h.log.Tail() {
		t.Errorf("%v, of %d records", runs, h.log.Tail())
	}
}
