package delivery_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/sandbox"
)

// visit is an event of a device, on which somebody may have logged in.
type visit struct {
	user, device string
	sole, links  bool
	n            int
	more         string // further event properties: `,"x":1`
	properties   string
	damaged      bool // the stored event is
}

type visits struct {
	now int64
	all []visit
}

func (b *visits) Size() int       { return 1000 * len(b.all) }
func (b *visits) Project() string { return "app" }

func (b *visits) Resolve(w *queue.Writer) error {
	for _, v := range b.all {
		lane := mapping.LaneOfDevice(v.device)
		if v.user != "" {
			lane = "u" + v.user
		}
		if v.properties == "" {
			v.properties = "{}"
		}
		raw := fmt.Appendf(nil, `{"event_type":"Order","event_properties":{"n":%d%s}}`, v.n, v.more)
		if v.damaged {
			raw = raw[:len(raw)-1]
		}
		place := w.Next()
		r := mapping.Record{UserID: v.user, DeviceID: v.device, Sole: v.sole, Links: v.links, Time: b.now, Properties: []byte(v.properties),
			Raw: raw}
		w.Put(queue.Record{Project: "app", Lane: lane, Received: b.now, ID: mapping.PlaceID(place.Nonce, place.Index), Body: r.AppendBody(nil)})
	}
	return nil
}

func (h *house) visit(all ...visit) {
	h.t.Helper()
	if err := h.log.Append(context.Background(), &visits{time.Now().UnixMilli(), all}); err != nil {
		h.t.Fatal(err)
	}
}

// What devices did before anybody logged in on them belongs to whoever did first: it goes before that person's identify,
// whatever fails, and in order over the login.
func TestAnonymousBacklogBeforeTheIdentify(t *testing.T) {
	for _, api := range []string{"v1", "v2"} {
		for _, spec := range []string{"", "500=0.1,cut_after=0.1,on=data", "latency=300ms,jitter=300ms", "outage=1s+20s"} {
			t.Run(api+" "+spec, func(t *testing.T) {
				bubble(t, func(t *testing.T, dir string) {
					box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, spec), Seed: 5})
					defer box.Close()
					h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Anonymous, s.AnonymousAPI = "send", api }), nil)
					const devices, before, after = 12, 9, 5
					var all []visit
					for n := range before {
						for d := range devices {
							all = append(all, visit{device: fmt.Sprintf("device-%d", d), n: n + 1})
						}
					}
					for n := range after {
						for d := range devices {
							v := visit{user: fmt.Sprintf("user-%d", d), device: fmt.Sprintf("device-%d", d), sole: true, links: n == 0, n: before + n + 1, properties: `{"plan":"pro"}`}
							all = append(all, v)
						}
					}
					// Somebody else on the same device: nothing of it is theirs.
					all = append(all, visit{user: "late", device: "device-0", n: 1})
					h.visit(all...)
					stats := h.drained(time.Hour)
					h.close()
					if b := stats.Books; int(b.Delivered) != len(all) {
						t.Errorf("books: %+v, tallies %v", b, stats.Tallies)
					}
					for d := range devices {
						p, _ := box.Person("id", fmt.Sprintf("user-%d", d))
						var got []string
						for _, e := range p.Events {
							got = append(got, string(e.Attributes))
						}
						if len(got) != before+after || !slices.IsSortedFunc(p.Events, func(a, b sandbox.Event) int { return int(a.Number - b.Number) }) {
							t.Errorf("user-%d has %v", d, got)
						}
						if id := string(p.Attributes["anonymous_id"]); id != fmt.Sprintf(`"device-%d"`, d) {
							t.Errorf("user-%d has the anonymous_id %s", d, id)
						}
					}
					if p, _ := box.Person("id", "late"); len(p.Events) != 1 || p.Attributes["anonymous_id"] != nil {
						t.Errorf("late has %d events, and the anonymous_id %s", len(p.Events), p.Attributes["anonymous_id"])
					}
					r := box.Report()
					if int(r.Events.Unique) != len(all) || r.Order.OutOfOrder+r.Order.Missing != 0 || len(r.Invalid) != 0 {
						t.Errorf("sandbox: %+v %+v %v", r.Events, r.Order, r.Invalid)
					}
				})
			})
		}
	}
}

// The first user's record waits for the device's for as long as these do, and for nobody else's.
func TestLoginWaitsForItsDevice(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "poison=never-mind,poison_how=500")})
		defer box.Close()
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Anonymous = "send" }), nil)
		h.visit(
			visit{device: "device-1", n: 1, more: `,"x":"never-mind"`},
			visit{user: "ann", device: "device-1", sole: true, links: true, n: 2},
			visit{user: "ann", device: "device-1", sole: true, n: 3},
			visit{user: "bob", device: "device-1", n: 4},
			visit{user: "eve", device: "device-2", sole: true, links: true, n: 5},
		)
		h.within(time.Minute, "the others are delivered", func() bool { return h.stats().Books.Delivered == 2 })
		time.Sleep(10 * time.Minute) // virtual: nothing may happen meanwhile
		if b := h.stats().Books; b.Pending != 3 || b.Delivered != 2 {
			t.Errorf("books while it waits: %+v", b)
		}
		if _, known := box.Person("id", "ann"); known {
			t.Error("ann was identified before what her device had done")
		}
		box.SetFaults(sandbox.Faults{})
		h.sync.RetryNow()
		h.drained(time.Hour)
		if p, _ := box.Person("id", "ann"); len(p.Events) != 3 {
			t.Errorf("ann has %d events", len(p.Events))
		}
	})
}

// Events larger than v2 takes go by v1, in the order of their user, and what v1 does not take either is kept.
func TestLargeEvents(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, OrderAttribute: "n", OrderFirst: 1, Faults: faults(t, "500=0.1,cut_after=0.1,on=data"), Seed: 9})
		defer box.Close()
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) { o.BatchOperations = 20 })
		var all []visit
		large, dead := 0, 0
		users := []string{"ann", "ada@example.com", "a/b?c d", "..", "日本", "cio_7"}
		for n := range 40 {
			for i, user := range users[:5] {
				v := visit{user: user, n: n + 1}
				switch {
				case n%7 == i:
					v.more = `,"x":["` + strings.Repeat("x", 60_000) + `"]`
					if large++; user == ".." {
						dead++
					}
				case n%7 == i+1 && n > 30:
					v.more = `,"x":["` + strings.Repeat("x", 100_001) + `"]`
					dead++
				}
				all = append(all, v)
			}
		}
		h.visit(all...)
		stats := h.drained(time.Hour)
		h.close()
		if b := stats.Books; int(b.Dead) != dead || int(b.Delivered) != len(all)-dead || dead < 6 {
			t.Errorf("want %d dead of %d, books: %+v", dead, len(all), b)
		}
		if got := stats.Tallies["event/dead/operation_too_large"].N; int(got) != dead {
			t.Errorf("tallies: %v", stats.Tallies)
		}
		r := box.Report()
		if int(r.Events.Unique) != len(all)-dead || r.Order.OutOfOrder != 0 || len(r.Invalid) != 0 {
			t.Errorf("sandbox: %+v %+v %v", r.Events, r.Order, r.Invalid)
		}
		for _, user := range users[:4] {
			kind := "id"
			if strings.Contains(user, "@") {
				kind = "email"
			}
			if p, known := box.Person(kind, user); !known || int(p.EventCount) < 30 {
				t.Errorf("%s has %d events", user, p.EventCount)
			}
		}
	})
}

// What is refused without being sent has its reason, is counted, and can be tried again.
func TestRefusedBeforeSending(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
		defer box.Close()
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Anonymous = "dead_letter" }), nil)
		long := strings.Repeat("é", 76)
		h.visit(visit{device: "device-1", n: 1}, visit{user: long, n: 2, properties: `{"plan":"pro"}`}, visit{user: long, n: 3, properties: `{"plan":"pro"}`},
			visit{user: "ann", n: 4, properties: `{"plan":["` + strings.Repeat("x", 1000) + `"]}`}, visit{user: "ann", n: 5, properties: `{"plan":["` + strings.Repeat("x", 1000) + `"]}`})
		stats := h.drained(time.Minute)
		if b := stats.Books; b.Dead != 3 || b.Delivered != 2 {
			t.Errorf("books: %+v", b)
		}
		for key, want := range map[string]uint64{"event/dead/no_identifier": 1, "event/dead/identifier_too_long": 2, "user/dead/identifier_too_long": 1,
			"user/unchanged": 3, "property/filtered/attribute_value_too_long": 1} {
			if got := stats.Tallies[key]; got.N != want {
				t.Errorf("%s: %d, want %d; all: %v", key, got.N, want, stats.Tallies)
			}
		}
		// The rule is mended, and the dead letters are tried again.
		h.reload(rules(t, func(s *mapping.Spec) { s.Anonymous = "send"; s.Identifier = "event.n" }), nil)
		var all []uint64
		for _, l := range h.dead(3) {
			all = append(all, l.Record.Seq)
		}
		for _, seq := range all {
			if _, err := h.consumer.ReplayDead([]uint64{seq}); err != nil {
				t.Fatal(err)
			}
		}
		h.within(time.Minute, "all are delivered", func() bool { return h.stats().Books.Delivered == 5 })
		if r := box.Report(); r.Events.Unique != 5 || len(r.Invalid) != 0 {
			t.Errorf("sandbox: %+v %v", r.Events, r.Invalid)
		}
	})
}

// A stored event that is damaged is kept, whoever it is of.
func TestDamagedEvent(t *testing.T) {
	for _, anonymous := range []string{"filter", "send"} {
		bubble(t, func(t *testing.T, dir string) {
			box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
			defer box.Close()
			h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Anonymous = anonymous }), nil)
			h.visit(visit{user: "ann", n: 1, damaged: true}, visit{user: "ann", n: 2})
			stats := h.drained(time.Minute)
			if b := stats.Books; b.Dead != 1 || b.Delivered != 1 || stats.Tallies["event/dead/not_mappable"].N != 1 {
				t.Errorf("%s: books %+v, tallies %v", anonymous, b, stats.Tallies)
			}
		})
	}
}

// An anonymous event that is a dead letter goes, when it is tried again, to the person who has logged in on its device
// meanwhile; to nobody, when it may be one of several.
func TestAnonymousDeadLettersFindTheirPerson(t *testing.T) {
	owners := map[string]string{"hers": "ann", "shared": ""}
	for _, identifier := range []string{"user_id", "user.email"} {
		t.Run(identifier, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
				kind, value := "id", "ann"
				if identifier == "user.email" {
					kind, value = "email", "ann@example.com"
				}
				h := open(t, dir, box, rules(t, func(s *mapping.Spec) {
					s.Anonymous, s.Identifier, s.IdentifierKind, s.UserProperties = "dead_letter", identifier, kind, []string{"plan"}
				}), func(o *delivery.Options) {
					o.Owner = func(_, device string) (string, error) { return owners[device], nil }
					o.Current = func(_, user, _ string) (properties, builtins []byte, err error) {
						if user == "" {
							return nil, nil, nil
						}
						return []byte(`{"plan":"pro","email":"ann@example.com"}`), nil, nil
					}
				})
				h.visit(visit{device: "hers", n: 1}, visit{device: "hers", n: 2}, visit{device: "shared", n: 3})
				if b := h.drained(time.Minute).Books; b.Dead != 3 {
					t.Fatalf("books %+v", b)
				}
				var all []uint64
				for _, d := range h.dead(3) {
					all = append(all, d.Record.Seq)
				}
				if n, err := h.consumer.ReplayDead(all); n != 3 || err != nil {
					t.Fatalf("replayed %d: %v", n, err)
				}
				if b := h.drained(time.Minute).Books; b.Dead != 1 || b.Delivered != 2 {
					t.Errorf("books %+v", b)
				}
				h.close()
				if d := h.buried; len(d) != 1 || d[0].Record.Seq != all[2] {
					t.Errorf("dead letters %+v", d)
				}
				p, _ := box.Person(kind, value)
				if len(p.Events) != 2 || string(p.Events[0].Attributes) != `{"n":1}` || string(p.Events[1].Attributes) != `{"n":2}` {
					t.Errorf("%s has %+v", value, p)
				}
			})
		})
	}
}
