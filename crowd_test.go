package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/recordings"
	"ampcio/rehearsal"
)

// crowd is people whose apps send all the time, whatever becomes of the daemon: a request
// that is not answered 200 is sent again until it is, as SDKs do. A person belongs to one
// sender, so that their requests never race; their events carry a seq without gaps.
type crowd struct {
	t    testing.TB
	r    *rehearsal.Rehearsal
	o    crowdOptions
	seed uint64
	ctx  context.Context

	senders sync.WaitGroup
	ended   atomic.Bool
	acked   atomic.Int64 // events
	refused atomic.Int64 // requests, 503
	broken  atomic.Int64 // requests that nobody answered
	gaveUp  atomic.Bool  // a sender has, with an error

	mu   sync.Mutex
	last map[string]int // acknowledged, by person
}

type crowdOptions struct {
	people  [][]string    // one list a sender
	every   time.Duration // a sender's requests, when they are answered at once
	events  int           // of a request, at most
	padding int           // bytes of an event that do not compress
}

// gathered starts a crowd; ctx is when it gives up, which is a failure.
func gathered(ctx context.Context, t testing.TB, r *rehearsal.Rehearsal, seed uint64, o crowdOptions) *crowd {
	c := &crowd{t: t, r: r, o: o, seed: seed, ctx: ctx, last: map[string]int{}}
	for i := range o.people {
		c.senders.Go(func() { c.send(rand.New(rand.NewPCG(seed, uint64(i))), o.people[i]) })
	}
	return c
}

// people are n names, none of which is in another text.
func people(name string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s-%03d-", name, i))
	}
	return all
}

func (c *crowd) send(rng *rand.Rand, people []string) {
	pause := time.NewTicker(c.o.every)
	defer pause.Stop()
	last := map[string]int{}
	for !c.ended.Load() {
		var events []string
		for range 1 + rng.IntN(c.o.events) {
			person := people[rng.IntN(len(people))]
			last[person]++
			events = append(events, eventOf(person, last[person], c.noise(rng)))
		}
		if !c.post(fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, recordings.Key, strings.Join(events, ","))) {
			c.gaveUp.Store(true)
			return
		}
		c.mu.Lock()
		maps.Copy(c.last, last)
		c.mu.Unlock()
		c.acked.Add(int64(len(events)))
		select {
		case <-pause.C:
		case <-c.ctx.Done():
			return
		}
	}
}

// eventOf is an event of a person, whose plan changes now and then.
func eventOf(person string, seq int, padding string) string {
	return fmt.Sprintf(`{"event_type":"Order Completed","user_id":%[1]q,"device_id":"device of %[1]s","insert_id":"%[1]s%[2]d","time":%[3]d,`+
		`"event_properties":{"seq":%[2]d,"padding":%[4]s},"user_properties":{"plan":"p%[5]d"}}`, person, seq, time.Now().UnixMilli(), whole(padding), seq/40%7)
}

// noise is text that does not compress.
func (c *crowd) noise(rng *rand.Rand) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	b := make([]byte, 0, c.o.padding+10)
	for len(b) < c.o.padding {
		for bits, n := rng.Uint64(), 0; n < 10; bits, n = bits>>6, n+1 {
			b = append(b, letters[bits&63])
		}
	}
	return string(b[:c.o.padding])
}

// post sends a request until it is answered 200. Any other answer than that, or a 503 that
// tells an SDK to come back, is an error.
func (c *crowd) post(body string) bool {
	for {
		req, err := http.NewRequestWithContext(c.ctx, http.MethodPost, "http://"+c.r.Listen+"/2/httpapi", strings.NewReader(body))
		if err != nil {
			c.t.Error(err)
			return false
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		var text []byte
		if err == nil {
			text, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		switch {
		case err != nil:
			c.broken.Add(1)
		case resp.StatusCode == http.StatusOK:
			return true
		case resp.StatusCode == http.StatusServiceUnavailable:
			after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if err != nil || after < 1 || after > 120 || !strings.Contains(string(text), `"code":503`) {
				c.t.Errorf("503 with Retry-After %q: %s", resp.Header.Get("Retry-After"), text)
				return false
			}
			c.refused.Add(1)
		default:
			c.t.Errorf("a request was answered %d %s", resp.StatusCode, text)
			return false
		}
		select {
		case <-time.After(20 * time.Millisecond): // SDKs wait longer, but they are more
		case <-c.ctx.Done():
			if !c.t.Failed() { // else it is the test that has
				c.t.Errorf("a sender has given up: %v", c.ctx.Err())
			}
			return false
		}
	}
}

// more waits until n more events are acknowledged.
func (c *crowd) more(n int64) { c.t.Helper(); c.count(&c.acked, n, "events are acknowledged") }

// moreRefused waits until n more requests are refused.
func (c *crowd) moreRefused(n int64) { c.t.Helper(); c.count(&c.refused, n, "requests are refused") }

func (c *crowd) count(of *atomic.Int64, more int64, what string) {
	c.t.Helper()
	to := of.Load() + more
	eventually(c.t, 60*time.Second, fmt.Sprintf("%d more %s", more, what), func() bool { return of.Load() >= to || c.gaveUp.Load() })
	if c.gaveUp.Load() {
		c.t.FailNow()
	}
}

// soFar is what has been acknowledged, by person.
func (c *crowd) soFar() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.last)
}

// end lets what is on its way be acknowledged, and gives what was sent, by person.
func (c *crowd) end() map[string]int {
	c.ended.Store(true)
	c.senders.Wait()
	return c.soFar()
}

// logFiles are the names of the log's files in a storage folder, the oldest first.
func logFiles(t testing.TB, storage string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(storage, "log", "0*.db"))
	if err != nil || len(files) == 0 {
		t.Fatalf("log files %v, %v", files, err)
	}
	return files
}
