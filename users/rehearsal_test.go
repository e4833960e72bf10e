package users

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ampcio/mapping"
)

// What a rehearsal says of the next request, knowing what is known of its users and
// devices, is what is stored then.
func TestRehearsalForetells(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{model: newModel(150), o: Options{CarryBytes: 150}}
		h.world = start(t, t.TempDir(), h.o).run()
		defer func() { h.stop() }()
		for range rapid.IntRange(1, 6).Draw(rt, "requests") {
			now := h.clock.now().UnixMilli()
			r := NewRehearsal(Options{CarryBytes: 150, Now: h.clock.now})
			a := mapping.Arrival{Project: "app", Received: now}
			for range rapid.IntRange(1, 4).Draw(rt, "events") {
				h.next += 100 // an insert_id of its own: what a rehearsal was not told of it cannot know
				a.Events = append(a.Events, event(h.t, h.drawEvent(rt)))
			}
			for i := range 5 {
				d, err := h.store.Device("app", fmt.Sprintf("d%d", i))
				if err != nil {
					rt.Fatal(err)
				}
				if err := r.KnowDevice("app", fmt.Sprintf("d%d", i), d.UserID, d.Sole, d.Properties, d.Builtins, now); err != nil {
					rt.Fatal(err)
				}
				u, err := h.store.User("app", fmt.Sprintf("u%d", i))
				if err != nil {
					rt.Fatal(err)
				}
				if err := r.KnowUser("app", fmt.Sprintf("u%d", i), u.Properties, u.Builtins, now); err != nil {
					rt.Fatal(err)
				}
			}
			foretold, err := r.Take(a)
			if err != nil {
				rt.Fatal(err)
			}
			before := len(h.records())
			if _, err := h.store.Append(context.Background(), a); err != nil {
				rt.Fatal(err)
			}
			got := h.records()[before:]
			r.Close()
			if len(got) != len(foretold) {
				continue // an insert_id had come before
			}
			for i, want := range foretold {
				m := mapping.Record{Seq: got[i].Seq, Project: want.Project, ID: want.ID, Received: want.Received}
				if err := m.DecodeBody(want.Body); err != nil {
					rt.Fatal(err)
				}
				if e, _ := mapping.ParseEvent(m.Raw); e.InsertID == "" {
					m.ID = got[i].ID // made of the nonce
				}
				if diff := cmp.Diff(got[i], m); diff != "" {
					rt.Fatalf("-stored +foretold\n%s", diff)
				}
			}
		}
	})
}

// A users.db is read as the store would, and stays as it is.
func TestReadFile(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run().runStore()
	w.send(`d0 i1 {"$set":{"a":1}}`, `d0/u0 i2 {"$set":{"b":2}}`, `d1 i3 {"$set":{"c":3}}`)
	tail := w.log.Tail()
	w.stop()
	r, err := ReadFile(filepath.Join(w.dir, "users.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Good != tail {
		t.Errorf("good for %d of %d", r.Good, tail)
	}
	for id, want := range map[string]string{"d0": `{"a":1,"b":2}`, "d1": `{"c":3}`, "d2": `{}`} {
		if k, err := r.Device("app", id); err != nil || string(k.Properties) != want {
			t.Errorf("%s: %s, %v; want %s", id, k.Properties, err, want)
		}
	}
	if k, err := r.User("app", "u0"); err != nil || string(k.Properties) != `{"a":1,"b":2}` {
		t.Errorf("u0: %s, %v", k.Properties, err)
	}
}
