package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// Whatever is kept in memory of what was sent: it says what a file alone would say, over
// checkpoints, forgetting, another workspace, and more identifiers than memory has room for.
func TestWhatWasSentIsTheSameFromMemoryAndFile(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p")
	c := cs["p"]
	defer h.close(cs)
	must(t, c.EnterWorkspace(1, false)) // every other is another then
	const seed = 5
	random := rand.New(rand.NewPCG(seed, 1))
	model := map[string]string{}
	value := func(n int) string { return fmt.Sprint(n, strings.Repeat("x", 8<<10)) } // some 250 fill a half
	turned := false
	for i := range 2500 {
		key := fmt.Sprint("id:", random.IntN(900))
		switch n := random.IntN(100); {
		case n < 50:
			wanted := []string{key}
			for range random.IntN(4) {
				wanted = append(wanted, fmt.Sprint("id:", random.IntN(900)))
			}
			got, err := c.sent(wanted...)
			if err != nil || string(got) != model[key] {
				t.Fatalf("step %d: %s was sent %.10q (%v), want %.10q", i, key, got, err, model[key])
			}
		case n < 90:
			model[key] = value(i)
			c.mu.Lock()
			c.sentNew[key] = []byte(model[key])
			c.touch()
			c.mu.Unlock()
		case n < 95:
			delete(model, key)
			c.mu.Lock()
			c.sentNew[key] = nil
			c.touch()
			c.mu.Unlock()
		case n < 99:
			must(t, c.Flush())
		case i%4 == 0:
			clear(model)
			must(t, c.EnterWorkspace(int64(i+2), true))
		}
		c.mu.Lock()
		turned = turned || c.sentKnown.old != nil
		if c.sentKnown.bytes > sentMemory/2+16<<10 {
			t.Fatalf("step %d: half of the memory has %d bytes", i, c.sentKnown.bytes)
		}
		c.mu.Unlock()
	}
	if !turned {
		t.Error("the memory was never full: this shows less than it should")
	}
}

// Where the file is looked at for one person, those of the next lanes are looked for with it, and then known.
func TestTheNextLanesArePeopleLookedUpTogether(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p")
	c := cs["p"]
	defer h.close(cs)
	var items []string
	for i := range 10 {
		items = append(items, fmt.Sprintf("%d:x", i))
	}
	key := func(r *Record) string { return "id:" + r.Lane }
	h.append(items...)
	for range items { // each person is sent something, which the file has and memory has not
		cl := mustClaim(t, c)
		id := key(&cl.Records()[0])
		if v, held, err := cl.HoldSent(id, nil); v != nil || !held || err != nil {
			t.Fatal(v, held, err)
		}
		out := delivered(1)
		out[0].SentKey, out[0].Sent = id, []byte("sent to "+id)
		cl.Finish(out)
	}
	must(t, c.Flush())
	c.mu.Lock()
	c.sentKnown.clear()
	c.mu.Unlock()
	h.append(items...)
	eventually(t, "all are read", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.lanes.ready) == len(items)
	})
	var claims []Settlement
	for i := range items {
		cl := mustClaim(t, c)
		id := key(&cl.Records()[0])
		c.mu.Lock()
		_, known, _ := c.sentInMemory(id)
		c.mu.Unlock()
		if known != (i > 0) {
			t.Fatalf("claim %d: %s is in memory: %t", i, id, known)
		}
		if v, held, err := cl.HoldSent(id, key); string(v) != "sent to "+id || !held || err != nil {
			t.Fatalf("%s was sent %q (held %t): %v", id, v, held, err)
		}
		claims = append(claims, Settlement{Claim: cl, Outcomes: delivered(1)})
	}
	c.Settle(claims...)
}

// One that waits is woken at a time. It must pass on that there is more.
func TestEveryWaitingClaimGetsALane(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p")
	defer h.close(cs)
	const waiting = 8
	claims := make(chan *Claim, waiting)
	for range waiting {
		go func() {
			cl, _ := cs["p"].Claim(t.Context())
			claims <- cl
		}()
	}
	eventually(t, "all wait", func() bool {
		cs["p"].mu.Lock()
		defer cs["p"].mu.Unlock()
		return cs["p"].idle == waiting
	})
	var items []string
	for i := range waiting {
		items = append(items, fmt.Sprintf("%d:x", i))
	}
	h.append(items...)
	var all []*Claim
	for range waiting {
		all = append(all, <-claims) // none has ended
	}
	var ends []Settlement
	for _, cl := range all {
		ends = append(ends, Settlement{Claim: cl, Outcomes: delivered(len(cl.Records()))})
	}
	cs["p"].Settle(ends...)
}

// One of two that wait leaves: it may be the one who was woken for what is due later. The other still gets that in time.
func TestWhoLeavesPassesOnWhatIsDue(t *testing.T) {
	h, cs := mustOpen(t, options(quickDir(t)), "p")
	defer h.close(cs)
	c := cs["p"]
	waiting := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " wait"), func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.idle == n && len(c.ready) == 0
		})
	}
	h.append("a:1")
	cl := mustClaim(t, c)
	for range 10 {
		leaving, leave := context.WithCancel(t.Context())
		left, got := make(chan struct{}), make(chan *Claim)
		go func() {
			defer close(left)
			if cl, err := c.Claim(leaving); err == nil { // a slow machine: it was due before
				cl.Return()
			}
		}()
		waiting(1)
		staying, stop := context.WithTimeout(t.Context(), 20*time.Second)
		go func() {
			cl, _ := c.Claim(staying)
			got <- cl
		}()
		waiting(2)
		cl.Retry(50*time.Millisecond, "http_503")
		eventually(t, "one of them is woken", func() bool { return len(c.ready) == 0 })
		leave()
		<-left
		cl = <-got
		if stop(); cl == nil {
			t.Fatal("nobody comes for what is due")
		}
	}
	cl.Finish(delivered(1))
}

// A reader that keeps its file open has one at a time, and none at the end; one that is
// deleted under its hands is as gone as for any other.
func TestAReaderThatKeepsItsFile(t *testing.T) {
	o := small(quickDir(t))
	o.Keep, o.KeepBytes = time.Hour, 1<<30 // nobody holds them
	h, cs := mustOpen(t, o)
	h.fill("app", 2000, 1000)
	h.close(cs)
	h, cs = mustOpen(t, o) // so that nothing is read from memory
	defer h.close(cs)
	h.log.mu.Lock()
	files := append([]*logFile(nil), h.log.files...)
	h.log.mu.Unlock()
	if len(files) < 4 {
		t.Fatalf("%d files", len(files))
	}
	open := func() (n int) {
		for _, f := range files {
			f.mu.Lock()
			if f.db != nil && !f.writing {
				n++
			}
			f.mu.Unlock()
		}
		return n
	}
	r := h.log.OpenReader(0)
	next := uint64(1)
	for chunks := 0; next <= h.log.Tail(); chunks++ {
		c, err := r.Next(t.Context())
		must(t, err)
		if c.First > next {
			t.Fatalf("%d follows on %d", c.First, next-1)
		}
		next = c.Last() + 1
		if n := open(); n > 1 || chunks == 0 && n != 1 {
			t.Fatalf("after chunk %d: %d files are open", chunks, n)
		}
	}
	if c, err := r.Try(); c != nil || err != nil {
		t.Fatal(c, err)
	}
	if n := open(); n != 0 {
		t.Fatalf("at the tail %d files are open", n)
	}

	r = h.log.OpenReader(0)
	if _, err := r.Next(t.Context()); err != nil || open() != 1 {
		t.Fatal(err, open())
	}
	h.log.mu.Lock()
	h.log.drop(1)
	if n := open(); n != 0 {
		t.Fatalf("%d files are open after the one that is kept was deleted", n)
	}
	r.next = 2
	c, err := r.Next(t.Context())
	if err != nil || c.First < files[1].first {
		t.Fatalf("behind the deleted file comes %d (%v), want %d", c.First, err, files[1].first)
	}
	r.Close()
	if n := open(); n != 0 {
		t.Fatalf("%d files are open after Close", n)
	}
}
