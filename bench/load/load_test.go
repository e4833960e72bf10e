package load

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

type parsed struct {
	User   string `json:"user_id"`
	Insert string `json:"insert_id"`
	User2  struct {
		Logins int `json:"logins"`
	} `json:"user_properties"`
	Properties struct {
		Seq  int64 `json:"seq"`
		Sent int64 `json:"sent"`
	} `json:"event_properties"`
}

func TestBodiesAreJSONOfTheSizeAsked(t *testing.T) {
	for _, steady := range []bool{false, true} {
		b := newBody(100, 700, steady, rand.New(rand.NewPCG(1, 2)))
		for i := range b.slots {
			b.set(i, event{user: 42, run: 7, number: uint64(i), seq: uint64(i + 1), us: 1_795_432_617_042_123})
		}
		var q struct{ Events []json.RawMessage }
		if err := json.Unmarshal(b.bytes, &q); err != nil {
			t.Fatal(err)
		}
		for i, raw := range q.Events {
			var e parsed
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			if len(raw) != 700 || e.User != "user-000000042" || e.Properties.Seq != Base+int64(i)+1 || e.Properties.Sent != 1_795_432_617_042_123 || (e.User2.Logins == 0) != steady {
				t.Fatalf("%d bytes: %s", len(raw), raw)
			}
		}
	}
}

// What the server gets is each user's numbers without a gap, in order, and as many as were answered.
func TestSendsEachUsersNumbersInOrder(t *testing.T) {
	var mu sync.Mutex
	last, ids, got := map[string]int64{}, map[string]bool{}, int64(0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var q struct{ Events []parsed }
		if err := json.Unmarshal(b, &q); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range q.Events {
			if e.Properties.Seq != max(Base, last[e.User])+1 || ids[e.Insert] {
				t.Errorf("%s: %d after %d", e.User, e.Properties.Seq, last[e.User])
			}
			last[e.User], ids[e.Insert] = e.Properties.Seq, true
			got++
		}
	}))
	defer server.Close()
	for _, spread := range []string{"uniform", "zipf", "turns"} {
		clear(last)
		before := got
		r, err := Run(Plan{Address: strings.TrimPrefix(server.URL, "http://"), Events: 10, Conns: 4, Users: 50, Spread: spread, Count: 1000}, nil)
		if err != nil || r.Events != 1000 || got-before != 1000 || r.Failed > 0 || r.Latency.Count != 100 || len(last) < 10 {
			t.Errorf("%s: %+v, %v, %d arrived of %d users", spread, r, err, got-before, len(last))
		}
	}
}
