package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ampcio/mapping"
)

// model is the same promise kept in the plainest way: all in maps, never written.
type model struct {
	carry   int
	users   map[string]string    // properties
	asOf    map[string]time.Time // of these
	devices map[string]*modelDevice
	ids     map[string][]modelID // by device, else user
	records []string
	dups    int
}

type modelDevice struct {
	user, properties string
	seen, asOf       time.Time
}

type modelID struct {
	id string
	at time.Time
}

func newModel(carry int) *model {
	return &model{carry: carry, users: map[string]string{}, asOf: map[string]time.Time{}, devices: map[string]*modelDevice{}, ids: map[string][]modelID{}}
}

func (m *model) properties(of string) string {
	if p := m.users[of]; p != "" {
		return p
	}
	return "{}"
}

func applied(before string, ev *mapping.Event) string {
	after, err := mapping.ApplyOperations(nil, []byte(before), ev.UserProperties)
	if err != nil {
		panic(err)
	}
	return string(after)
}

// take is an event of an SDK, or one of the webhook: those say when they happened, and may come late.
func (m *model) take(ev *mapping.Event, now time.Time, webhook bool) {
	who := "device " + ev.DeviceID
	if ev.DeviceID == "" {
		who = "user " + ev.UserID
	}
	if ev.InsertID != "" {
		if m.knows(who, ev.InsertID, now) || webhook && ev.UserID != "" && m.knows("user "+ev.UserID, ev.InsertID, now) {
			m.dups++
			return
		}
		m.ids[who] = append(m.ids[who], modelID{ev.InsertID, now})
	}
	at := now
	if webhook && ev.Time != 0 {
		at = time.UnixMilli(ev.Time).UTC()
	}
	d := m.devices[ev.DeviceID]
	if ev.DeviceID != "" {
		if d == nil {
			d = &modelDevice{properties: "{}"}
			m.devices[ev.DeviceID] = d
		}
		if d.user == "" && now.Sub(d.seen) > 30*24*time.Hour {
			d.properties, d.asOf = "{}", time.Time{}
		}
		d.seen = now
	}
	belongs := ev.UserID
	if belongs == "" && d != nil {
		belongs = d.user
	}
	asOf := m.asOf[belongs]
	if belongs == "" {
		asOf = d.asOf
	}
	past := webhook && at.Before(asOf)
	set := func(user, after string, always bool) {
		if after != m.properties(user) || always {
			m.asOf[user] = latest(m.asOf[user], at)
		}
		m.users[user] = after
	}
	if d != nil && ev.UserID != "" && !(webhook && at.Before(d.asOf)) {
		if d.user == "" {
			after, err := mapping.TakeOver([]byte(m.properties(ev.UserID)), []byte(d.properties))
			if err != nil {
				panic(err)
			}
			set(ev.UserID, string(after), false)
			d.properties = "{}"
		}
		if d.user != ev.UserID || webhook {
			d.asOf = latest(d.asOf, at)
		}
		d.user = ev.UserID
	}
	properties := m.properties(belongs)
	if belongs == "" {
		properties = d.properties
	}
	switch {
	case past && ev.Snapshot:
		properties = string(ev.UserProperties)
	case past:
	case ev.SkipUserPropertiesSync && !ev.Snapshot:
		properties = applied("{}", ev)
	default:
		after := string(ev.UserProperties)
		if !ev.Snapshot {
			after = applied(properties, ev)
		}
		if belongs != "" {
			set(belongs, after, ev.Snapshot)
		} else if after != properties || ev.Snapshot {
			d.properties, d.asOf = after, latest(d.asOf, at)
		}
		properties = after
	}
	if len(properties) > m.carry && !ev.Snapshot {
		properties = "{…}"
	}
	if past {
		properties += " past"
	}
	m.records = append(m.records, fmt.Sprintf("%s/%s %s", ev.DeviceID, belongs, properties))
}

func (m *model) knows(who, id string, now time.Time) bool {
	known := m.ids[who]
	for _, k := range known[max(0, len(known)-recentMax):] {
		if k.id == id && now.Sub(k.at) <= 7*24*time.Hour {
			return true
		}
	}
	return false
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// history drives a store and the model through the same events, with everything that
// can come between.
type history struct {
	*world
	o     Options
	model *model
	next  int // insert_ids
}

func (h *history) drawEvent(t *rapid.T) string {
	device := rapid.SampledFrom([]string{"d0", "d1", "d2", "d3", ""}).Draw(t, "device")
	user := rapid.SampledFrom([]string{"", "", "u0", "u1", "u2"}).Draw(t, "user")
	if device == "" && user == "" {
		device = "d4"
	}
	if rapid.IntRange(0, 12).Draw(t, "skip") == 0 {
		user += "!skip"
	}
	insert := "-"
	switch rapid.IntRange(0, 5).Draw(t, "insert_id") {
	case 0:
	case 1, 2:
		insert = fmt.Sprintf("i%d", rapid.IntRange(max(0, h.next-20), h.next).Draw(t, "again"))
	default:
		h.next++
		insert = fmt.Sprintf("i%d", h.next)
	}
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
	n := rapid.IntRange(0, 99).Draw(t, "value")
	properties := rapid.SampledFrom([]string{
		"", "",
		fmt.Sprintf(` {"$set":{%q:%d}}`, name, n),
		fmt.Sprintf(` {"$setOnce":{%q:%d}}`, name, n),
		fmt.Sprintf(` {"$add":{%q:%d}}`, name, n),
		fmt.Sprintf(` {"$append":{%q:%d}}`, name, n),
		fmt.Sprintf(` {"$unset":{%q:"-"}}`, name),
		` {"$clearAll":"-"}`,
		fmt.Sprintf(` {%q:"%060d"}`, name, n),
		fmt.Sprintf(` {%q:%d}`, name, n),
	}).Draw(t, "properties")
	return device + "/" + user + " " + insert + properties
}

func (h *history) check(t *rapid.T) {
	var got []string
	for _, r := range h.records() {
		p := string(r.Properties)
		if r.Partial {
			p = "{…}"
		}
		if r.Past {
			p += " past"
		}
		got = append(got, fmt.Sprintf("%s/%s %s", r.DeviceID, r.UserID, p))
	}
	if diff := cmp.Diff(h.model.records, got); diff != "" {
		t.Fatalf("records: -model +store\n%s", diff)
	}
	h.checkState(t)
}

func (h *history) checkState(t *rapid.T) {
	now := h.clock.now()
	for i := range 5 {
		device, user := fmt.Sprintf("d%d", i), fmt.Sprintf("u%d", i)
		belongs, properties := "", "{}"
		if d := h.model.devices[device]; d != nil {
			belongs = d.user
			if belongs != "" {
				properties = h.model.properties(belongs)
			} else if now.Sub(d.seen) <= 30*24*time.Hour {
				properties = d.properties
			}
		}
		k, err := h.store.Device("app", device)
		if err != nil {
			t.Fatal(err)
		}
		if k.UserID != belongs || string(k.Properties) != properties {
			t.Fatalf("device %s: %q %s, the model says %q %s", device, k.UserID, k.Properties, belongs, properties)
		}
		if k, err = h.store.User("app", user); err != nil {
			t.Fatal(err)
		}
		if string(k.Properties) != h.model.properties(user) {
			t.Fatalf("user %s: %s, the model says %s", user, k.Properties, h.model.properties(user))
		}
	}
}

// TestHistories: whatever happens, in whatever order, the store is the model. Times are
// whole hours, as the store keeps them.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{model: newModel(150), o: Options{
			CarryBytes:      150,
			CheckpointEvery: time.Hour, // only when a step says so
			CacheBytes:      rapid.SampledFrom([]int64{1, 4_000, 1 << 20}).Draw(rt, "cache"),
		}}
		h.world = start(t, t.TempDir(), h.o).run()
		h.store.perWrite = 2
		defer func() { h.stop() }()
		again := func(w *world) {
			h.stop()
			h.world = w.run()
			h.store.perWrite = 2
			if err := h.store.Warning(); err != nil {
				rt.Fatal(err)
			}
			h.checkState(rt)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				a := mapping.Arrival{Project: "app", Received: h.clock.now().UnixMilli()}
				webhook := rapid.IntRange(0, 2).Draw(t, "source") == 0
				if webhook {
					a.Source = mapping.SourceWebhook
				}
				before := h.model.dups
				for range rapid.IntRange(1, 4).Draw(t, "events") {
					ev := event(h.t, h.drawEvent(t))
					if webhook {
						late := rapid.SampledFrom([]int{0, 0, 1, 2, 30}).Draw(t, "hours late")
						ev.Time = a.Received - int64(late)*msPerHour
						ev.Snapshot = ev.UserProperties != nil && !bytes.Contains(ev.UserProperties, []byte("$"))
					}
					h.model.take(&ev, h.clock.now(), webhook)
					a.Events = append(a.Events, ev)
				}
				n, err := h.store.Append(context.Background(), a)
				if err != nil {
					t.Fatal(err)
				}
				if want := h.model.dups - before; n != want {
					t.Fatalf("%d duplicates, the model says %d", n, want)
				}
			},
			"checkpoint": func(t *rapid.T) {
				if err := h.store.checkpointNow(); err != nil {
					t.Fatal(err)
				}
			},
			"crash": func(t *rapid.T) { again(h.crash(h.o)) },
			"crash in a checkpoint": func(t *rapid.T) {
				left := rapid.IntRange(0, 6).Draw(t, "steps")
				h.failing = true
				h.store.interrupt = func(string) error {
					if left--; left < 0 {
						return errors.New("the power is cut")
					}
					return nil
				}
				h.store.checkpointNow()
				again(h.crash(h.o))
			},
			"restart": func(t *rapid.T) {
				h.runStore()
				h.stop()
				w := start(h.t, h.dir, h.o)
				w.clock.ms.Store(h.clock.ms.Load())
				if n := w.store.Stats().Replayed; n != 0 {
					t.Fatalf("%d records replayed after a clean stop", n)
				}
				again(w)
			},
			"time": func(t *rapid.T) {
				hours := rapid.SampledFrom([]int{1, 24, 24 * 3, 24 * 12}).Draw(t, "hours")
				h.clock.advance(time.Duration(hours) * time.Hour)
			},
			"": func(t *rapid.T) { h.checkBooks() },
		})
		h.check(rt)
	})
}

// The comparison would see it if two events changed places.
func TestModelSeesOrder(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	m := newModel(1 << 20)
	sent := []string{`d0 i1 {"a":1}`, `d0/u0 i2 {"$add":{"a":1}}`, `d0/u1 i3 {"$add":{"a":1}}`}
	w.send(sent...)
	for _, i := range []int{0, 2, 1} {
		ev := event(t, sent[i])
		m.take(&ev, w.clock.now(), false)
	}
	k, err := w.store.User("app", "u0")
	if err != nil {
		t.Fatal(err)
	}
	if string(k.Properties) == m.properties("u0") {
		t.Error("two logins in the wrong order gave the same state")
	}
}
