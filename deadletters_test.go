package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// refused is an installation whose Customer.io refuses the events "Too Much, Indeed" and
// "Never" of two users, five in all, and one user update.
func refused(t *testing.T) *rehearsal.Rehearsal {
	t.Helper()
	r := rehearse(t, rehearsal.Settings{})
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Too Much, Indeed", "Never"}})
	up(t, r)
	accepted(t, r, numbered("ann-1", 1, 2))
	for i, e := range []struct{ user, event string }{
		{"ann-1", "Too Much, Indeed"}, {"bob-2", "Never"}, {"ann-1", "Too Much, Indeed"}, {"bob-2", "Never"}, {"bob-2", "Too Much, Indeed"},
	} {
		accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":%q,"user_id":%q,"device_id":"device of %[3]s","insert_id":"d%d","event_properties":{"total":%[4]d}}]}`,
			recordings.Key, e.event, e.user, i))
	}
	// An identifier of more than 150 bytes never leaves; a name of an attribute does.
	accepted(t, r, numbered("bob-2", 1, 3))
	if y := only(t, drained(t, r)); y.Totals.Dead != 5 || y.Totals.Delivered != 5 {
		t.Fatalf("%+v", y.Totals)
	}
	if n := len(listed(t, r)); n != 5 {
		t.Fatalf("%d are listed", n)
	}
	return r
}

var deadID = regexp.MustCompile(`(?m)^(demo/\d+) `)

// listed gives the ids of a list.
func listed(t testing.TB, r *rehearsal.Rehearsal, args ...string) (ids []string) {
	t.Helper()
	for _, m := range deadID.FindAllStringSubmatch(did(t, r, append([]string{"dead-letters", "list"}, args...)...), -1) {
		ids = append(ids, m[1])
	}
	return ids
}

// Which dead letters are meant: by ids and filters, the same running and stopped.
func TestDeadLettersList(t *testing.T) {
	wordsOnly(t)
	t.Parallel()
	r := refused(t)
	all := listed(t, r)
	table := did(t, r, "dead-letters", "list")
	contains(t, table, "ID ", "DIED", "REASON", "EVENT", "USER", "MESSAGE", "Too Much, Indeed", "Never", "invalid")
	for line := range strings.Lines(table) {
		if n := len([]rune(line)); n > 120 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if strings.Contains(table, "ann-1") || strings.Contains(table, "bob-2") {
		t.Errorf("the list shows users:\n%s", table)
	}
	shown := did(t, r, "dead-letters", "list", "--show-ids")
	contains(t, shown, "ann-1", "bob-2")
	var bob string // the hash that stands for him
	for line := range strings.Lines(did(t, r, "dead-letters", "list", "--event", "Never", "--json")) {
		var l deadLine
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Event != "Never" || l.Reason != "invalid" || l.Action != "event" || l.Message == "" || time.Since(l.Died) > time.Minute {
			t.Errorf("%v in %s", err, line)
		}
		if bob = l.User; len(bob) != 10 {
			t.Errorf("%q is no hash", bob)
		}
	}
	tests := []struct {
		name string
		args []string
		want []int // of all
	}{
		{"all", nil, []int{0, 1, 2, 3, 4}},
		{"limit", []string{"--limit", "2"}, []int{0, 1}},
		{"no limit", []string{"--limit", "0"}, []int{0, 1, 2, 3, 4}},
		{"sync", []string{"--sync", "demo"}, []int{0, 1, 2, 3, 4}},
		{"reason", []string{"--reason", "invalid"}, []int{0, 1, 2, 3, 4}},
		{"another reason", []string{"--reason", "http_400"}, nil},
		{"one of two reasons", []string{"--reason", "http_400", "--reason", "invalid"}, []int{0, 1, 2, 3, 4}},
		{"event with a comma", []string{"--event", "Too Much, Indeed"}, []int{0, 2, 4}},
		{"events by a glob", []string{"--event", "*ev*"}, []int{1, 3}},
		{"two events", []string{"--event", "N*r", "--event", "Too*"}, []int{0, 1, 2, 3, 4}},
		{"a glob is not a part", []string{"--event", "Nev"}, nil},
		{"user", []string{"--user", "bob-2"}, []int{1, 3, 4}},
		{"user by the hash", []string{"--user", bob}, []int{1, 3, 4}},
		{"device", []string{"--user", "device of ann-1"}, []int{0, 2}},
		{"not half a user", []string{"--user", "bob"}, nil},
		{"all must agree", []string{"--user", "bob-2", "--event", "Too*"}, []int{4}},
		{"old ones", []string{"--older-than", "1h"}, nil},
		{"new ones", []string{"--newer-than", "1h"}, []int{0, 1, 2, 3, 4}},
		{"since a date", []string{"--newer-than", "2020-02-29"}, []int{0, 1, 2, 3, 4}},
		{"ids", []string{all[3], all[1]}, []int{1, 3}},
		{"ids and a filter", []string{all[3], all[4], "--event", "Never"}, []int{3}},
		{"an id that is none", []string{all[3], "demo/999999"}, []int{3}},
	}
	for _, running := range []bool{true, false} {
		if !running {
			down(t, r)
		}
		for _, test := range tests {
			var want []string
			for _, i := range test.want {
				want = append(want, all[i])
			}
			if got := listed(t, r, test.args...); !slices.Equal(got, want) {
				t.Errorf("%s (running %t): %v, want %v", test.name, running, got, want)
			}
		}
		contains(t, did(t, r, "dead-letters", "list", "--limit", "2"), "3 more (--limit 0 shows all)\n")
		contains(t, did(t, r, "dead-letters", "list", all[0], "demo/999999", "demo/999998"), "2 ids are no dead letters (any more)\n")
		contains(t, did(t, r, "dead-letters", "list", "--reason", "none"), "no dead letters that were meant\n")
		if again := did(t, r, "dead-letters", "list", "--event", "Never"); !strings.Contains(again, bob) {
			t.Errorf("%s is not in:\n%s", bob, again)
		}
	}
	if key, err := os.Stat(filepath.Join(r.Dir, "storage", hashKeyFile)); err != nil || key.Mode().Perm() != 0o600 || key.Size() != hashKeyBytes {
		t.Errorf("%v, %v", key, err)
	}
}

func TestDeadLettersShowAndExport(t *testing.T) {
	t.Parallel()
	r := refused(t)
	all := listed(t, r)
	for _, running := range []bool{true, false} {
		if !running {
			down(t, r)
		}
		short := did(t, r, "dead-letters", "show", all[0])
		contains(t, short, "id          "+all[0]+"\n", "project     app\n", "event       Too Much, Indeed\n", ": invalid\n", "(at Customer.io)\n", "refused, invalid (207)",
			"to do       mend the cause, then: ampcio dead-letters replay "+all[0]+"\n", "(a hash: see --show-ids)")
		if strings.Contains(short, "ann-1") || strings.Contains(short, `"total"`) {
			t.Errorf("it shows a user:\n%s", short)
		}
		contains(t, did(t, r, "dead-letters", "show", "--show-ids", all[0]), "user_id     ann-1\n", "device_id   device of ann-1\n", `properties  {"plan":"pro"}`, `"event_properties":{"total":0}`)
		refuses(t, r, exitData, []string{"there is no such dead letter"}, "dead-letters", "show", "demo/999999")

		got := verbOf(t, r, "dead-letters", "export", "--event", "Never")
		if got.code != 0 || got.stderr != "2 dead letters exported\n" {
			t.Errorf("%+v", got)
		}
		lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
		if len(lines) != 2 {
			t.Fatalf("%d lines:\n%s", len(lines), got.stdout)
		}
		var w wholeDead
		if err := json.Unmarshal([]byte(lines[0]), &w); err != nil {
			t.Fatal(err)
		}
		var event struct {
			Type  string         `json:"event_type"`
			Props map[string]int `json:"event_properties"`
		}
		if err := json.Unmarshal(w.Event, &event); err != nil || event.Type != "Never" || event.Props["total"] != 1 {
			t.Errorf("%v in %s", err, w.Event)
		}
		if w.ID != all[1] || w.UserID != "bob-2" || w.Reason != "invalid" || w.Received.After(w.Died) || !bytes.Contains(w.Results, []byte(`"reason":"invalid"`)) || w.Project != "app" {
			t.Errorf("%+v", w)
		}
	}
}

// After the cause was mended they go out again, and in the end the books have no dead
// letters; what is refused again stays one.
func TestDeadLettersReplay(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped %t", stopped), func(t *testing.T) {
			t.Parallel()
			r := refused(t)
			all := listed(t, r)
			if stopped {
				down(t, r)
			}
			would := did(t, r, "dead-letters", "replay", "--event", "Never", "--dry-run")
			if want := "2 dead letters would be replayed\n  demo invalid: 2\n"; would != want {
				t.Errorf("%q, want %q", would, want)
			}
			refuses(t, r, exitUsage, []string{"2 dead letters would be replayed\n  demo invalid: 2\n",
				"2 of these events are younger than 72 h, and may start campaigns. Replay 2 dead letters: nothing was changed, since there is no terminal to ask at: add --yes"},
				"dead-letters", "replay", "--event", "Never")
			if got := listed(t, r); !slices.Equal(got, all) {
				t.Errorf("%v are left", got)
			}
			for _, args := range [][]string{{"replay", "--yes"}, {"replay", "--dry-run"}, {"drop", "--yes"}} {
				refuses(t, r, exitData, []string{"ampcio: nothing was changed: 1 id is no dead letter (any more)\n"}, "dead-letters", args[0], "demo/999999", args[1])
			}
			// Still refused: they die again.
			said := did(t, r, "dead-letters", "replay", all[1], "demo/999999", "--yes")
			contains(t, said, "1 dead letter replayed\n  demo invalid: 1\n", "1 id is no dead letter (any more)")
			if stopped {
				contains(t, said, "ampcio is stopped")
				up(t, r)
			}
			eventually(t, 10*time.Second, "it is refused again", func() bool { return slices.Equal(listed(t, r), all) })
			if stopped {
				down(t, r)
			}
			r.Sandbox.SetFaults(sandbox.Faults{})
			// By a pipe: the ids that a list has, headings and all.
			list := verbOf(t, r, "dead-letters", "list", "--user", "bob-2")
			replay := ampcio("dead-letters", "replay", "-", "--yes", "--config", r.ConfigPath)
			replay.Stdin = strings.NewReader(list.stdout)
			out, err := replay.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), "3 dead letters replayed\n  demo invalid: 3\n") {
				t.Errorf("%v: %s", err, out)
			}
			contains(t, did(t, r, "dead-letters", "replay", "--all", "--yes"), "2 dead letters replayed\n")
			if stopped {
				up(t, r)
			}
			snap := drained(t, r)
			balanced(t, snap)
			if y := only(t, snap); y.Totals.Delivered != 10 || y.Books.Taken != 10 || y.Kept.Count != 0 {
				t.Errorf("%+v %+v", y.Books, y.Totals)
			}
			for _, user := range []string{"ann-1", "bob-2"} {
				p, _ := r.Sandbox.Person("id", user)
				if want := map[string]int64{"ann-1": 4, "bob-2": 6}[user]; p.EventCount != want {
					t.Errorf("Customer.io has %d events of %s, want %d", p.EventCount, user, want)
				}
			}
			down(t, r)
		})
	}
}

// Of an event that arrived while its user's new value was refused, only the user goes
// out again, with what is known of it by now.
func TestDeadLettersReplayOnlyWhatWasRefused(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	event := func(id, plan string) string {
		return fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Order Completed","user_id":"ann-1","device_id":"device-1","insert_id":%q,`+
			`"event_properties":{"total":1},"user_properties":{"plan":%q,"email":"ann@example.com"}}]}`, recordings.Key, id, plan)
	}
	r.Sandbox.SetFaults(sandbox.Faults{RefuseAttribute: []string{"plan"}})
	accepted(t, r, event("1", "old"))
	if y := only(t, drained(t, r)); y.Totals.Dead != 1 || y.Totals.EventsDelivered != 1 {
		t.Fatalf("%+v", y.Totals)
	}
	ids := listed(t, r)
	contains(t, did(t, r, "dead-letters", "show", ids[0]), "identify    refused, invalid (207)", "event       accepted (200)\n")
	if report := r.Sandbox.Report(); report.Events.Accepted != 1 {
		t.Errorf("%+v", report.Events)
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	// Nothing of it can start a campaign: nobody is asked.
	did(t, r, "sync", "pause", "demo")
	contains(t, did(t, r, "dead-letters", "replay", ids[0]), "1 dead letter replayed\n", "demo is paused: ampcio sync resume demo")
	accepted(t, r, event("2", "pro"))
	did(t, r, "sync", "resume", "demo")
	balanced(t, drained(t, r))
	p, _ := r.Sandbox.Person("id", "ann-1")
	report := r.Sandbox.Report()
	if report.Events.Accepted != 2 || report.Events.Duplicates != 0 || p.EventCount != 2 || string(p.Attributes["plan"]) != `"pro"` {
		t.Errorf("%+v %+v", report.Events, p)
	}
	down(t, r)
}

// Old events start no campaigns, so nobody is asked.
func TestDeadLettersReplayOfOldEvents(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	r.Sandbox.SetFaults(sandbox.Faults{RefuseEvent: []string{"Never"}})
	up(t, r)
	old := time.Now().Add(-80 * time.Hour).UnixMilli()
	accepted(t, r, fmt.Sprintf(`{"api_key":%q,"events":[{"event_type":"Never","user_id":"ann-1","device_id":"device-1","insert_id":"o1","time":%d}]}`, recordings.Key, old))
	drained(t, r)
	r.Sandbox.SetFaults(sandbox.Faults{})
	contains(t, did(t, r, "dead-letters", "replay", "--all"), "1 dead letter replayed\n")
	balanced(t, drained(t, r))
	down(t, r)
}

func TestDeadLettersDrop(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped %t", stopped), func(t *testing.T) {
			t.Parallel()
			r := refused(t)
			all := listed(t, r)
			if stopped {
				down(t, r)
			}
			contains(t, did(t, r, "dead-letters", "drop", "--all", "--dry-run"), "5 dead letters would be dropped\n  demo invalid: 5\n")
			refuses(t, r, exitUsage, []string{"2 dead letters would be dropped for good\n  demo invalid: 2\n", "Drop 2 dead letters: nothing was changed, since there is no terminal"},
				"dead-letters", "drop", "--event", "Never")
			contains(t, did(t, r, "dead-letters", "drop", "--event", "Never", "--yes"), "2 dead letters dropped\n  demo invalid: 2\n")
			if got := listed(t, r); !slices.Equal(got, []string{all[0], all[2], all[4]}) {
				t.Errorf("%v are left", got)
			}
			if stopped {
				up(t, r)
			}
			y := only(t, stats(t, r))
			if !y.Books.Balanced || y.Totals.Dead != 3 || y.Totals.Discarded != 2 || y.Kept.Count != 3 || len(y.Discarded) == 0 {
				t.Errorf("%+v %+v %+v", y.Books, y.Totals, y.Discarded)
			}
			down(t, r)
		})
	}
}

// A dead letter that the disk has damaged is told of, and the others are as they were. The next start goes on without it, and
// counts it as lost.
func TestDeadLettersThatAreDamaged(t *testing.T) {
	t.Parallel()
	r := refused(t)
	all := listed(t, r)
	down(t, r)
	db, err := bolt.Open(filepath.Join(r.Dir, "storage", "sync", "demo.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("dead"))
		k, v := b.Cursor().First()
		spoilt := bytes.Clone(v)
		spoilt[len(spoilt)/2] ^= 0x40
		return b.Put(bytes.Clone(k), spoilt)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{false, true} {
		if running {
			up(t, r)
		}
		got := verbOf(t, r, "dead-letters", "list")
		if got.code != 0 {
			t.Errorf("%+v", got)
		}
		if !running {
			contains(t, got.stderr, "damaged, and passed over: sync demo: ")
		}
		if left := listed(t, r); !slices.Equal(left, all[1:]) {
			t.Errorf("%v are listed, of %v", left, all)
		}
	}
	r.Sandbox.SetFaults(sandbox.Faults{})
	contains(t, did(t, r, "dead-letters", "replay", "--all", "--yes"), "4 dead letters replayed\n")
	if y := only(t, drained(t, r)); y.Totals.Delivered != 9 || y.Totals.Dead != 0 || y.Totals.Lost != 1 || !y.Books.Balanced {
		t.Errorf("%+v %+v", y.Books, y.Totals)
	}
	down(t, r)
}

func TestGlobs(t *testing.T) {
	for _, test := range []struct {
		glob, text string
		want       bool
	}{
		{"*", "", true}, {"*", "x", true}, {"", "", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true}, {"*b", "ab", true},
		{"a*b", "ab", true}, {"a*b", "acb", true}, {"a*b", "abc", false}, {"*a*a*", "aa", true}, {"*a*a*", "a", false}, {"a*a", "a", false}, {"**", "x", true},
	} {
		if got := globMatches(test.glob, test.text); got != test.want {
			t.Errorf("%q, %q: %t", test.glob, test.text, got)
		}
	}
}

func TestIDsOnStdin(t *testing.T) {
	for _, test := range []struct {
		in   string
		want map[string][]uint64
		err  string
	}{
		{"", map[string][]uint64{}, ""},
		{"ID  DIED\na/1  x y\n\n  b-2/33\t\n{\"id\":\"a/2\",\"died\":\"…\"}\n", map[string][]uint64{"a": {1, 2}, "b-2": {33}}, ""},
		{"a/1\nrubbish here\n", nil, `line 2 of the ids: "rubbish" is no id of a dead letter`},
		{"a/0\n", nil, "line 1"}, {"a/x\n", nil, "line 1"}, {"A/1\n", nil, "line 1"}, {"/1\n", nil, "line 1"}, {"a/18446744073709551616\n", nil, "line 1"},
	} {
		got := map[string][]uint64{}
		err := idsOnStdin(strings.NewReader(test.in), got)
		if test.err == "" && (err != nil || fmt.Sprint(got) != fmt.Sprint(test.want)) || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%q: %v, %v", test.in, got, err)
		}
	}
}

// Foreign text cannot move the cursor of who reads it, or paint a line.
func TestClippedText(t *testing.T) {
	for in, want := range map[string]string{"plain": "plain", "a\x1b[31mred": "a·[31mred", "two\nlines": "two·lines", "äöü日本語": "äöü日本語", "eleven long": "eleven lo…"} {
		if got := clipText(in, 10); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
