package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// keyed is a V2 body with an API key of its own.
func keyed(apiKey, event string) string {
	return fmt.Sprintf(`{"api_key":%q,"events":[%s]}`, apiKey, event)
}

// A change waits for what is being stored, lets nothing in meanwhile, and then it is
// there for everybody: a request is of the old projects or of the new ones.
func TestChangeComesBetweenTwoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
		h := New(options(), m)
		var all sync.WaitGroup
		answers := map[string]int{}
		var mu sync.Mutex
		begin := func(name, apiKey string) {
			all.Go(func() {
				code, _ := post(t, h, "/2/httpapi", keyed(apiKey, strings.Replace(good, "i-1", name, 1)))
				mu.Lock()
				answers[name] = code
				mu.Unlock()
			})
			synctest.Wait()
		}
		begin("before", key)
		<-m.begins // it is being stored
		changed, inside, goOn := false, false, make(chan struct{})
		all.Go(func() {
			err := h.Change(t.Context(), map[string][]string{"app": {"third-key"}, "new": {"second-key"}}, nil, func() error {
				inside = true
				<-goOn
				return nil
			})
			changed = err == nil
		})
		synctest.Wait()
		if inside {
			t.Error("the change did not wait for the request that is being stored")
		}
		begin("old key", key)
		begin("new key", "third-key")
		begin("moved key", "second-key")
		m.goesOn <- struct{}{}
		synctest.Wait()
		if !inside || len(m.arrivals) != 1 || answers["before"] != 200 {
			t.Errorf("changing %t, %d arrivals, answers %v", inside, len(m.arrivals), answers)
		}
		goOn <- struct{}{}
		for range 2 {
			<-m.begins
			m.goesOn <- struct{}{}
		}
		all.Wait()
		if !changed || answers["old key"] != 400 || answers["new key"] != 200 || answers["moved key"] != 200 {
			t.Errorf("changed %t, answers %v", changed, answers)
		}
		projects := map[string]string{}
		for _, a := range m.arrivals {
			projects[a.Events[0].InsertID] = a.Project
		}
		if projects["before"] != "app" || projects["new key"] != "app" || projects["moved key"] != "new" {
			t.Errorf("stored under %v", projects)
		}
		if seen := h.Door().LastSeen; len(seen) != 2 || !seen["new"].Equal(noon) {
			t.Errorf("seen %v", seen)
		}
		if w := do(t, h, "OPTIONS", "/2/httpapi", "", "Origin", "https://example.com", "Access-Control-Request-Method", "POST"); w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Error("browsers are still let in")
		}
	})
}

// A change that fails, or that waits in vain, changes nothing, and nobody waits on.
func TestChangeThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{begins: make(chan struct{}), goesOn: make(chan struct{})}
		h := New(options(), m)
		other := map[string][]string{"app": {"third-key"}}
		wrong := errors.New("no ledger")
		if err := h.Change(t.Context(), other, nil, func() error { return wrong }); !errors.Is(err, wrong) {
			t.Errorf("it says %v", err)
		}
		var all sync.WaitGroup
		all.Go(func() { post(t, h, "/2/httpapi", batch(good)) })
		<-m.begins
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := h.Change(ctx, other, nil, func() error { t.Error("it did not wait"); return nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it says %v", err)
		}
		m.goesOn <- struct{}{}
		all.Wait()
		m.begins = nil
		if code, body := post(t, h, "/2/httpapi", batch(good)); code != 200 {
			t.Errorf("the old key is answered %d %s", code, body)
		}
		if code, _ := post(t, h, "/2/httpapi", keyed("third-key", good)); code != 400 {
			t.Errorf("the new key is answered %d", code)
		}
	})
}

// Who waits for a change for too long is told to come back.
func TestRequestThatWaitsForAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(options(), &memory{})
		err := h.Change(t.Context(), map[string][]string{"app": {key}}, nil, func() error {
			began := time.Now()
			w := do(t, h, "POST", "/2/httpapi", batch(good))
			if w.Code != 503 || w.Header().Get("Retry-After") == "" || time.Since(began) != answerWithin {
				t.Errorf("answered %d after %s", w.Code, time.Since(began))
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if code, _ := post(t, h, "/2/httpapi", batch(good)); code != 200 {
			t.Errorf("afterwards %d", code)
		}
	})
}

// What is stored another way is stored before a change or after it.
func TestChangeWaitsForWhatIsStoredBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(options(), &memory{})
		var order []string
		goOn, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			err := h.Beside(t.Context(), func() error { <-goOn; order = append(order, "beside"); return nil })
			if err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		go func() {
			synctest.Wait() // until the change below waits
			close(goOn)
		}()
		err := h.Change(t.Context(), nil, nil, func() error { order = append(order, "change"); return nil })
		<-done
		if err != nil || strings.Join(order, " ") != "beside change" {
			t.Errorf("%v, %v", order, err)
		}
	})
}
