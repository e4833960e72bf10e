package delivery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/sandbox"
)

// Events that are too old to start campaigns go as late_policy says; the user's
// update goes in any case.
func TestLate(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		policy    string
		after     time.Duration
		age       time.Duration
		ending    string // delivered, filtered, dead
		tally     string
		arrives   bool
		withUsers bool
	}{
		{policy: "deliver", after: 3 * day, age: 30 * day, ending: "delivered", tally: "event/delivered", arrives: true, withUsers: true},
		{policy: "", after: 3 * day, age: 30 * day, ending: "delivered", tally: "event/delivered", arrives: true, withUsers: true},
		{policy: "filter", after: 0, age: 30 * day, ending: "delivered", tally: "event/delivered", arrives: true, withUsers: true},
		{policy: "filter", after: 3 * day, age: 3*day - time.Minute, ending: "delivered", tally: "event/delivered", arrives: true, withUsers: true},
		{policy: "filter", after: 3 * day, age: 3*day + time.Minute, ending: "delivered", tally: "event/filtered/late", withUsers: true},
		{policy: "filter", after: 3 * day, age: 3*day + time.Minute, ending: "filtered", tally: "event/filtered/late"},
		{policy: "dead_letter", after: 3 * day, age: 3*day - time.Minute, ending: "delivered", tally: "event/delivered", arrives: true, withUsers: true},
		{policy: "dead_letter", after: 3 * day, age: 3*day + time.Minute, ending: "dead", tally: "event/dead/late", withUsers: true},
		{policy: "dead_letter", after: 3 * day, age: 3*day + time.Minute, ending: "dead", tally: "event/dead/late"},
	} {
		t.Run(fmt.Sprintf("%s after %v, %v old, users %v", test.policy, test.after, test.age, test.withUsers), func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret})
				h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.SendUsers = test.withUsers }), func(o *delivery.Options) {
					o.LateAfter, o.LatePolicy = test.after, test.policy
				})
				h.append(event{user: "ann", n: 1, properties: `{"plan":"pro"}`, age: test.age})
				stats := h.drained(time.Minute)
				ended := map[string]uint64{"delivered": stats.Books.Delivered, "filtered": stats.Books.Filtered, "dead": stats.Books.Dead}
				if ended[test.ending] != 1 || stats.Tallies[test.tally].N != 1 {
					t.Errorf("want it %s: %+v, tallies %v", test.ending, stats.Books, stats.Tallies)
				}
				if arrived := box.Report().Events.Unique == 1; arrived != test.arrives {
					t.Errorf("arrived: %v", arrived)
				}
				p, _ := box.Person("id", "ann")
				if updated := string(p.Attributes["plan"]) == `"pro"`; updated != test.withUsers {
					t.Errorf("the user's plan is %s", p.Attributes["plan"])
				}
				if test.ending == "dead" {
					d := h.dead(1)[0]
					want := `{"action":"event","reason":"late","message":"older than 72h0m0s when it was to be delivered"}]`
					if d.Reason != "late" || !strings.HasSuffix(string(d.Results), want) {
						t.Errorf("dead letter: %s, %s", d.Reason, d.Results)
					}
					// A person who replays it wants it delivered.
					if n, err := h.consumer.ReplayDead([]uint64{d.Record.Seq}); n != 1 || err != nil {
						t.Fatalf("replayed %d: %v", n, err)
					}
					if b := h.drained(time.Minute).Books; b.Delivered != 1 || b.Dead != 0 || box.Report().Events.Unique != 1 {
						t.Errorf("after a replay: %+v", b)
					}
				}
			})
		})
	}
}

// An event that became old while it waited is late too, and one that is filtered for
// another reason keeps that.
func TestLateByWaiting(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "outage=0s+80h")})
		h := open(t, dir, box, rules(t, func(s *mapping.Spec) { s.Select[0].Event = []string{"Order"} }), func(o *delivery.Options) {
			o.LateAfter, o.LatePolicy = 72*time.Hour, "filter"
		})
		h.append(event{user: "ann", n: 1}, event{user: "bob", n: 1, name: "Viewed"})
		time.Sleep(60 * time.Hour)
		h.append(event{user: "ann", n: 2})
		time.Sleep(20 * time.Hour)
		stats := h.drained(10 * time.Minute)
		for _, key := range []string{"event/filtered/late", "event/filtered/not_selected", "event/delivered"} {
			if stats.Tallies[key].N != 1 {
				t.Errorf("%s: %v", key, stats.Tallies)
			}
		}
	})
}

// Dead letters that are tried again: only what was refused is sent, with what is known
// of the user now, under the same id and time.
func TestReplay(t *testing.T) {
	type sent struct{ action, attributes string }
	current := func(properties string) func(string, string, string) ([]byte, []byte, error) {
		return func(project, user, device string) ([]byte, []byte, error) {
			if project != "app" || user != "ann" || device != "" {
				return nil, nil, fmt.Errorf("asked for %s %s %s", project, user, device)
			}
			if properties == "" {
				return nil, nil, nil
			}
			return []byte(properties), nil, nil
		}
	}
	const first = `{"plan":"pro","note":"x"}`
	tests := []struct {
		name    string
		refuse  string // when it first dies
		then    string // when it is tried again
		current func(string, string, string) ([]byte, []byte, error)
		rules   func(*mapping.Spec)
		between func(h *house)
		sends   []sent // by the replay
		ending  string
		reason  string
		results string // of a dead one
		plan    string // in the end
	}{
		{
			name: "the event was refused", refuse: "refuse_event=Order", ending: "delivered",
			sends: []sent{{"event", `{"n":1}`}}, plan: `"pro"`,
		}, {
			name: "the identify was refused", refuse: "refuse_attribute=note", ending: "delivered",
			sends: []sent{{"identify", `{"note":"x","plan":"pro"}`}}, plan: `"pro"`,
		}, {
			name: "both were", refuse: "refuse_attribute=note,refuse_event=Order", ending: "delivered",
			sends: []sent{{"identify", `{"note":"x","plan":"pro"}`}, {"event", `{"n":1}`}}, plan: `"pro"`,
		}, {
			name: "the user has other properties now", refuse: "refuse_attribute=note", ending: "delivered", current: current(`{"plan":"team","note":"y"}`),
			sends: []sent{{"identify", `{"note":"y","plan":"team"}`}}, plan: `"team"`,
		}, {
			name: "nothing is known of the user now", refuse: "refuse_attribute=note", ending: "delivered", current: current(""),
			sends: []sent{{"identify", `{"note":"x","plan":"pro"}`}}, plan: `"pro"`,
		}, {
			name: "the event keeps what was known of its user then", refuse: "refuse_event=Order", ending: "delivered", current: current(`{"plan":"team"}`),
			rules: func(s *mapping.Spec) { s.EventUserProperties = []string{"plan"} },
			sends: []sent{{"event", `{"n":1,"plan":"pro"}`}}, plan: `"pro"`,
		}, {
			name: "one refused for all", refuse: "refuse_attribute=note,refuse_how=400", ending: "delivered",
			sends: []sent{{"identify", `{"note":"x","plan":"pro"}`}}, plan: `"pro"`,
		}, {
			name: "refused again", refuse: "refuse_event=Order", then: "refuse_event=Order,refuse_how=400", ending: "dead", reason: "http_400",
			sends: []sent{{"event", `{"n":1}`}}, plan: `"pro"`,
			results: `[{"action":"identify","status":200},{"action":"event","status":400,"reason":"http_400","field":"name","message":"refused on request"}]`,
		}, {
			name: "the identify refused again", refuse: "refuse_attribute=note", then: "refuse_attribute=note", ending: "dead", reason: "invalid",
			sends:   []sent{{"identify", `{"note":"x","plan":"pro"}`}},
			results: `[{"action":"identify","status":207,"reason":"invalid","field":"attributes.note","message":"refused on request"},{"action":"event","status":200}]`,
		}, {
			name: "one of two refused again", refuse: "refuse_attribute=note,refuse_event=Order", then: "refuse_attribute=note", ending: "dead", reason: "invalid",
			sends:   []sent{{"identify", `{"note":"x","plan":"pro"}`}, {"event", `{"n":1}`}},
			results: `[{"action":"identify","status":207,"reason":"invalid","field":"attributes.note","message":"refused on request"},{"action":"event","status":200}]`,
		}, {
			name: "the rules no longer choose the event", refuse: "refuse_event=Order", ending: "filtered", reason: "event/filtered/not_selected",
			rules: func(s *mapping.Spec) { s.Select[0].Event = []string{"Other"} }, plan: `"pro"`,
		}, {
			name: "the rules no longer choose the value", refuse: "refuse_attribute=note", ending: "filtered", reason: "user/users_off",
			rules: func(s *mapping.Spec) { s.SendUsers = false },
		}, {
			name: "the value has been mended since", refuse: "refuse_attribute=note", ending: "filtered", reason: "user/unchanged", current: current(`{"plan":"team","note":"z"}`),
			between: func(h *house) { h.append(event{user: "ann", n: 2, properties: `{"plan":"team","note":"z"}`}) }, plan: `"team"`,
		}, {
			name: "failures amid the replay", refuse: "refuse_event=Order", then: "500=0.5,cut_after=0.3", ending: "delivered", plan: `"pro"`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Seed: 5, Faults: faults(t, test.refuse)})
				var replaying atomic.Bool
				var got []sent
				var ids []string
				h := open(t, dir, tap(box, func(r *http.Request, body []byte) {
					if r.Method != http.MethodPost {
						return
					}
					for _, raw := range operationsOf(t, body) {
						var o struct {
							Action, ID string
							Timestamp  int64
							Attributes json.RawMessage
						}
						if err := json.Unmarshal(raw, &o); err != nil {
							t.Error(err)
						}
						if o.Action == "event" && strings.Contains(string(o.Attributes), `"n":1`) {
							ids = append(ids, fmt.Sprint(o.ID, o.Timestamp))
						}
						if replaying.Load() {
							var attributes map[string]any
							_ = json.Unmarshal(o.Attributes, &attributes)
							sorted, _ := json.Marshal(attributes)
							got = append(got, sent{o.Action, string(sorted)})
						}
					}
				}), rules(t, func(s *mapping.Spec) { s.UserProperties = []string{"plan", "note"} }), func(o *delivery.Options) { o.Current = test.current })
				h.append(event{user: "ann", n: 1, properties: first})
				if b := h.drained(time.Minute).Books; b.Dead != 1 {
					t.Fatalf("it did not die: %+v", b)
				}
				time.Sleep(time.Hour)
				box.SetFaults(sandbox.Faults{})
				if test.between != nil {
					test.between(h)
					h.drained(time.Minute)
				}
				box.SetFaults(faults(t, test.then))
				h.reload(rules(t, func(s *mapping.Spec) {
					s.UserProperties = []string{"plan", "note"}
					if test.rules != nil {
						test.rules(s)
					}
				}), nil)
				before := h.stats()
				d := h.dead(1)[0]
				replaying.Store(true)
				if n, err := h.consumer.ReplayDead([]uint64{d.Record.Seq}); n != 1 || err != nil {
					t.Fatalf("replayed %d: %v", n, err)
				}
				stats := h.drained(10 * time.Minute)
				h.close()
				ended := map[string]uint64{
					"delivered": stats.Books.Delivered - before.Books.Delivered,
					"filtered":  stats.Books.Filtered - before.Books.Filtered,
					"dead":      stats.Books.Dead,
				}
				if ended[test.ending] != 1 || ended["delivered"]+ended["filtered"]+ended["dead"] != 1 {
					t.Errorf("want it %s: %v, tallies %v", test.ending, ended, stats.Tallies)
				}
				if test.sends != nil && fmt.Sprint(got) != fmt.Sprint(test.sends) {
					t.Errorf("sent %v, want %v", got, test.sends)
				}
				for _, id := range ids {
					if id != ids[0] {
						t.Errorf("ids and times of the event: %v", ids)
					}
				}
				switch test.ending {
				case "dead":
					if again := h.buried; len(again) != 1 || again[0].Reason != test.reason || string(again[0].Results) != test.results {
						t.Errorf("dead letter %+v", again)
					}
				case "filtered":
					if len(got) > 0 || stats.Tallies[test.reason].N != before.Tallies[test.reason].N+1 {
						t.Errorf("sent %v, tallies %v", got, stats.Tallies)
					}
				}
				p, _ := box.Person("id", "ann")
				if plan := string(p.Attributes["plan"]); plan != test.plan {
					t.Errorf("plan %s, want %s", plan, test.plan)
				}
				if r := box.Report(); r.Events.Differing != 0 || r.Identifies.Stale != 0 {
					t.Errorf("events %+v, identifies %+v", r.Events, r.Identifies)
				}
			})
		})
	}
}

// Whoever cannot be asked about a user ends the sync with an error: nothing is sent
// with values that may be wrong.
func TestReplayWithoutAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, "refuse_event=Order")})
		broken := errors.New("users.db does not answer")
		h := open(t, dir, box, rules(t, nil), func(o *delivery.Options) {
			o.Current = func(string, string, string) (properties, builtins []byte, err error) { return nil, nil, broken }
		})
		h.append(event{user: "ann", n: 1})
		h.drained(time.Minute)
		d := h.dead(1)[0]
		if _, err := h.consumer.ReplayDead([]uint64{d.Record.Seq}); err != nil {
			t.Fatal(err)
		}
		if err := <-h.stopped; !errors.Is(err, broken) {
			t.Errorf("Run returned %v", err)
		}
		h.stopped <- nil // for close
		if b := h.stats().Books; b.Pending != 1 {
			t.Errorf("books %+v", b)
		}
	})
}

// Keys of another workspace: with events pending nothing is delivered before a person
// has decided; with none, it goes on by itself.
func TestOtherWorkspace(t *testing.T) {
	bubble(t, func(t *testing.T, dir string) {
		box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, EnvironmentID: 11, OrderAttribute: "n", OrderFirst: 1})
		h := open(t, dir, box, rules(t, nil), nil)
		h.append(event{user: "ann", n: 1, properties: `{"plan":"pro"}`})
		h.drained(time.Minute)

		// A change with nothing pending.
		box.SetEnvironmentID(12)
		h.reload(rules(t, nil), nil)
		h.within(time.Second, "it delivers to the new one", func() bool { return h.consumer.Workspace() == 12 })
		h.append(event{user: "ann", n: 2, properties: `{"plan":"pro"}`})
		h.drained(time.Minute)
		if n := h.lines.count("from=11 to=12"); n != 1 || h.consumer.Workspace() != 12 {
			t.Errorf("%d lines, workspace %d", n, h.consumer.Workspace())
		}
		// There nobody was sent anything: the plan came again.
		if n := box.Report().Operations["identify"]; n != 2 {
			t.Errorf("%d identifies", n)
		}

		// One with events pending, which came while nothing was delivered.
		h.stopSync()
		h.check(<-h.stopped)
		h.append(event{user: "ann", n: 3}, event{user: "bob", n: 1})
		box.SetEnvironmentID(13)
		h.deliver(rules(t, nil))
		h.within(time.Minute, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
		time.Sleep(3 * time.Hour)
		s := h.sync.Status()
		if s.Reason != "other_workspace" || s.OtherWorkspace != (delivery.OtherWorkspace{From: 12, To: 13}) ||
			!strings.Contains(s.Advice, "ampcio sync adopt production") || !strings.Contains(s.Detail, "12") || !strings.Contains(s.Detail, "13") {
			t.Errorf("status %+v", s)
		}
		if b := h.stats().Books; b.Pending != 2 || b.Delivered != 2 {
			t.Errorf("books %+v", b)
		}
		// The old keys are put back.
		box.SetEnvironmentID(12)
		h.drained(2 * time.Minute)
		if s := h.sync.Status(); s.State != delivery.Delivering || s.OtherWorkspace != (delivery.OtherWorkspace{}) {
			t.Errorf("status with the old keys %+v", s)
		}

		// And the change once more, adopted.
		h.stopSync()
		h.check(<-h.stopped)
		h.append(event{user: "ann", n: 4, properties: `{"plan":"pro"}`})
		box.SetEnvironmentID(13)
		h.deliver(rules(t, nil))
		h.within(time.Minute, "it is blocked", func() bool { return h.sync.Status().State == delivery.Blocked })
		box.SetFaults(faults(t, "401=1"))
		e, ok := errors.AsType[*delivery.AccountError](h.sync.Adopt(context.Background()))
		if !ok || e.Reason != "http_401" || h.consumer.Workspace() != 12 {
			t.Errorf("adopted with wrong keys: %v, workspace %d", e, h.consumer.Workspace())
		}
		box.SetFaults(sandbox.Faults{})
		if err := h.sync.Adopt(context.Background()); err != nil {
			t.Fatal(err)
		}
		h.drained(time.Second)
		if h.consumer.Workspace() != 13 || h.sync.Status().State != delivery.Delivering {
			t.Errorf("workspace %d, status %+v", h.consumer.Workspace(), h.sync.Status())
		}
		if err := h.sync.Adopt(context.Background()); err != nil {
			t.Errorf("adopted with nothing to adopt: %v", err)
		}
		// A workspace that is not told is none.
		box.SetEnvironmentID(0)
		h.append(event{user: "bob", n: 2})
		h.reload(rules(t, nil), nil)
		h.drained(time.Second)
		if h.consumer.Workspace() != 13 {
			t.Errorf("workspace %d after none was told", h.consumer.Workspace())
		}
		h.close()
		if err := h.sync.Adopt(context.Background()); err == nil {
			t.Error("a stopped sync adopts")
		}
		if r := box.Report(); r.Order.OutOfOrder+r.Order.Missing != 0 || r.Events.Unique != 6 {
			t.Errorf("order %+v, events %+v", r.Order, r.Events)
		}
	})
}

// A full queue refuses new events while its sync delivers, or would if it could; and
// not while a person has to mend something first.
func TestWhoMayRefuse(t *testing.T) {
	for _, test := range []struct {
		faults  string
		refuses bool
	}{
		{"outage=0s+100h,on=data", true}, {"503=1,on=region", true}, {"401=1", false}, {"401=1,on=data", false},
	} {
		t.Run(test.faults, func(t *testing.T) {
			bubble(t, func(t *testing.T, dir string) {
				box := sandbox.New(sandbox.Options{SiteID: "site", APIKey: secret, Faults: faults(t, test.faults)})
				h := open(t, dir, box, rules(t, nil), nil)
				h.append(crowd(100)...)
				h.consumer.SetBound(1000, false)
				time.Sleep(30 * time.Second)
				err := h.log.Append(context.Background(), &records{"app", crowd(1), time.Now().UnixMilli()})
				if _, refused := errors.AsType[*queue.FullError](err); refused != test.refuses {
					t.Errorf("status %+v: %v", h.sync.Status(), err)
				}
				box.SetFaults(sandbox.Faults{})
				h.drained(7 * time.Minute)
			})
		})
	}
}
