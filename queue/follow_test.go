package queue

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// marked is a batch of records that carry an id.
type marked struct {
	texts
	id [16]byte
}

func (b *marked) Resolve(w *Writer) error {
	for _, t := range b.items {
		p := w.Next()
		w.Put(Record{Project: b.project, Lane: laneOf(t), Received: int64(p.Seq) * 1000, ID: b.id, Body: []byte(t)})
	}
	return nil
}

// Who follows a record hears of each step, in order, and of no other record; in the
// side place too.
func TestFollow(t *testing.T) {
	for _, where := range []string{"window", "side place"} {
		t.Run(where, func(t *testing.T) {
			h, cs := mustOpen(t, options(quickDir(t)), "a")
			defer h.close(cs)
			c, id := cs["a"], [16]byte{7}
			var mu sync.Mutex
			var steps []string
			stop := c.Follow(id, func(s Step) {
				mu.Lock()
				defer mu.Unlock()
				steps = append(steps, fmt.Sprint(s.Kind, s.Seq, s.Reason, s.Wait.Milliseconds(), s.Outcome.Ending, len(s.Outcome.Tallies)))
			})
			append := func(id [16]byte, items ...string) {
				t.Helper()
				if err := h.log.Append(context.Background(), &marked{texts{project: "app", items: items}, id}); err != nil {
					t.Fatal(err)
				}
			}
			append([16]byte{1}, "ann:1")
			append(id, "ann:2")
			append([16]byte{9}, "bob:1")
			caughtUp(t, h, c)
			if where == "side place" {
				c.mu.Lock()
				c.moveAside(c.lanes.byKey["ann"])
				c.mu.Unlock()
			}
			settle := func(lane string, f func(*Claim)) {
				t.Helper()
				for {
					claim := mustClaim(t, c)
					if claim.Lane() == lane {
						f(claim)
						return
					}
					claim.Finish(delivered(len(claim.Records())))
				}
			}
			settle("ann", func(cl *Claim) { cl.Retry(time.Millisecond, "http_503") })
			settle("ann", func(cl *Claim) {
				ended := delivered(len(cl.Records()))
				ended[1].Tallies = []Tally{{Key: "event/delivered"}}
				cl.Finish(ended)
			})
			stop()
			append(id, "ann:3")
			caughtUp(t, h, c)
			settle("ann", func(cl *Claim) { cl.Finish(delivered(len(cl.Records()))) })
			mu.Lock()
			defer mu.Unlock()
			want := []string{
				fmt.Sprint("read", 2, "", 0, Ending(0), 0),
				fmt.Sprint("claimed", 2, "", 0, Ending(0), 0),
				fmt.Sprint("waits", 2, "http_503", 1, Ending(0), 0),
				fmt.Sprint("claimed", 2, "", 0, Ending(0), 0),
				fmt.Sprint("ended", 2, "", 0, Delivered, 1),
			}
			if !slices.Equal(steps, want) {
				t.Errorf("heard\n%q, want\n%q", steps, want)
			}
			if len(c.followed) != 0 {
				t.Errorf("%d records are followed still", len(c.followed))
			}
		})
	}
}
