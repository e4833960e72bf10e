package queue

import (
	"fmt"
	"testing"
	"time"
)

func TestWhatWasAppendedIsClaimedInOrderAndSurvivesRestarts(t *testing.T) {
	dir := t.TempDir()
	h, cs := mustOpen(t, options(dir), "p")
	h.append("a1", "b1", "a2")
	h.append("a3")
	c := cs["p"]
	first := mustClaim(t, c)
	if got := bodies(first.Records()); got != "a1 a2 a3 " && got != "a1 a2 " {
		t.Fatalf("first claim %q", got)
	}
	first.Finish(delivered(len(first.Records())))
	var st ConsumerStats
	for {
		cl := mustClaim(t, c)
		if cl.Lane() == "b" {
			cl.Retry(time.Hour, "http_503")
		} else {
			cl.Finish(delivered(len(cl.Records())))
		}
		var err error
		if st, err = c.Stats(); err != nil {
			t.Fatal(err)
		}
		if st.Books.Delivered == 3 && st.Retry == 1 {
			break
		}
	}
	if st.Books.Pending != 1 || st.Books.Taken != 4 || st.Books.Difference() != 0 || st.Oldest != 2000 {
		t.Fatalf("%+v", st)
	}
	h.close(cs)

	_, off, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	if off[0].Books != st.Books || off[0].Oldest != 2000 || off[0].Waiting["http_503"].Lanes != 1 {
		t.Fatalf("stopped: %+v", off[0])
	}

	h, cs = mustOpen(t, options(dir), "p")
	defer func() { h.close(cs) }()
	h.append("a4")
	cl := mustClaim(t, cs["p"])
	if got := bodies(cl.Records()); got != "a4 " {
		t.Fatalf("after restart: %q; b must still wait", got)
	}
	cl.Return()
	for i := range 3 {
		h.append(fmt.Sprintf("b%d", i+2))
	}
	if st, _ := cs["p"].Stats(); st.Books.Difference() != 0 || st.Books.Taken != 8 {
		t.Fatalf("%+v", st)
	}
}
