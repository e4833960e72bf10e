package queue

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// texts is a batch of plain records: "lane:body" each.
type texts struct {
	project string
	items   []string
	places  []Place
}

func (b *texts) Size() int { return len(b.items) * 100 }

func (b *texts) Resolve(w *Writer) error {
	for _, t := range b.items {
		p := w.Next()
		b.places = append(b.places, p)
		w.Put(Record{Project: b.project, Lane: t[:1], Received: int64(p.Seq) * 1000, Body: []byte(t)})
	}
	return nil
}

func batch(items ...string) *texts { return &texts{project: "app", items: items} }

func options(dir string) Options {
	return Options{Dir: dir, RotateBytes: 64 << 20, RotateAfter: 24 * time.Hour, InFlightBytes: 64 << 20, Now: time.Now}
}

// house is a log and its consumers, running.
type house struct {
	t     testing.TB
	log   *Log
	stop  context.CancelFunc
	done  chan error
	parts int
}

func mustOpen(t testing.TB, o Options, names ...string) (*house, map[string]*Consumer) {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &house{t: t, log: l, stop: stop, done: make(chan error, 8)}
	cs := map[string]*Consumer{}
	for _, n := range names {
		c, err := OpenConsumer(l, ConsumerOptions{Name: n, Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: o.Now})
		if err != nil {
			t.Fatal(err)
		}
		cs[n] = c
		h.start(func() error { return c.Run(ctx) })
	}
	h.start(func() error { return l.Run(ctx) })
	return h, cs
}

func (h *house) start(f func() error) {
	h.parts++
	go func() { h.done <- f() }()
}

func (h *house) close(cs map[string]*Consumer) {
	h.t.Helper()
	h.stop()
	for range h.parts {
		if err := <-h.done; err != nil {
			h.t.Error(err)
		}
	}
	for _, c := range cs {
		if err := c.Close(); err != nil {
			h.t.Error(err)
		}
	}
	if err := h.log.Close(); err != nil {
		h.t.Error(err)
	}
}

func (h *house) append(items ...string) {
	h.t.Helper()
	if err := h.log.Append(context.Background(), batch(items...)); err != nil {
		h.t.Fatal(err)
	}
}

func delivered(n int) []Outcome {
	out := make([]Outcome, n)
	for i := range out {
		out[i].Ending = Delivered
	}
	return out
}

func mustClaim(t testing.TB, c *Consumer) *Claim {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	cl, err := c.Claim(ctx)
	if err != nil {
		t.Fatalf("no claim: %v", err)
	}
	return cl
}

func bodies(rs []Record) string {
	s := ""
	for _, r := range rs {
		s += string(r.Body) + " "
	}
	return s
}

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
