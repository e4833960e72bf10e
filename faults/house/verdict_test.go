package house

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// A verdict that cannot be "no" is worth nothing: each line of the journal that must not be there is told, and what may be is not.
func TestTheJournalTellsDisorder(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines string
		wrong string // "" = nothing is
	}{
		{"one after the other", "sent 0 1 3\nacked 0 1 3\nclaimed 0 1\ngot 0 1\nclaimed 0 2 3\ngot 0 2 3", ""},
		{"again after a crash", "claimed 0 1\nclaimed 0 2 3 4\nclaimed 0 2 3\nclaimed 0 4 5", ""},
		{"a dead letter is tried again", "claimed 0 2 3 4\nclaimed 0 2\nclaimed 0 5", ""},
		{"the first has a lane of its own", "claimed 0 2\nclaimed 0 1", ""},
		{"one is left out", "claimed 0 2 3\nclaimed 0 5", "user 0: event 5 was claimed, and the furthest before it was 3"},
		{"one is left out in a claim", "claimed 0 2 4", "event 4 was claimed"},
		{"what failed is overtaken, though both came before", "claimed 0 2 3 4\nclaimed 0 3 4 2", "user 0: event 2 was claimed behind event 4"},
		{"one twice in a claim", "claimed 0 2 3\nclaimed 0 3 3", "event 3 was claimed behind event 3"},
		{"who was forgotten begins anew", "claimed 0 2 3\nforget 0\nclaimed 0 7 6", ""},
		{"another was forgotten", "claimed 0 2 3\nforget 1\nclaimed 0 3 2", "event 2 was claimed behind event 3"},
		{"sent behind what was not acknowledged", "acked 0 1 3\nacked 0 5 6", "event 5 was sent behind 3"},
		{"a life has found something", "wrong life 3: a start found the ledger damaged", "a start found the ledger damaged"},
		{"nobody knows what it means", "stored 0 1", `the line "stored 0 1"`},
		{"a number that is none", "got 0 x", `the line "got 0 x"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := NewJournal(1)
			for line := range strings.SplitSeq(test.lines, "\n") {
				j.Add(line)
			}
			told(t, j.broken(), test.wrong)
		})
	}
}

func told(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("it says %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("it says %v, not %q", err, want)
	}
}

// stored opens a house in which the first events of user 0 are, and closes it again.
func stored(t *testing.T, dir string, seed uint64, events int) {
	t.Helper()
	h, err := Open(t.Context(), Settings{Dir: dir, Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= events; n++ {
		e, err := Event(seed, 0, n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Users.Append(t.Context(), mapping.Arrival{Project: Project, Received: int64(1000 + n), Source: mapping.SourceHTTP, Events: []mapping.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a house has is one thing, and what the journal says of it another.
func TestTheVerdictOnAHouse(t *testing.T) {
	const seed, there = 7, 6
	for _, test := range []struct {
		name  string
		says  string
		wrong string
	}{
		{"all is as it was said", "sent 0 1 6\nacked 0 1 6", ""},
		{"more is there than was acknowledged", "sent 0 1 6\nacked 0 1 4", ""},
		{"one is lost", "sent 0 1 7\nacked 0 1 7", "event 7 of 7 was acknowledged and never delivered"},
		{"one was given up", "sent 0 1 7\nacked 0 1 7\ndrop 0 7", "p2 should be 7"}, // which is known of the user all the same
		{"one was never sent", "sent 0 1 5\nacked 0 1 5", "event 6 was delivered and never sent"},
		{"the last is sent again", "sent 0 1 6\nacked 0 1 6\nclaimed 0 2 3 4 5 6\ngot 0 6", ""},
		{"users.db is behind", "sent 0 1 9\nacked 0 1 6\nclaimed 0 2 3 4 5 6 7 8 9\ngot 0 7 8 9", "user 0 in users.db, whose last event is 9"},
		{"another's are lost", "sent 0 1 6\nacked 0 1 6\nsent 1 1 1\nacked 1 1 1", "user 1: event 1 of 1 was acknowledged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "storage")
			stored(t, dir, seed, there)
			j := NewJournal(seed)
			for line := range strings.SplitSeq(test.says, "\n") {
				j.Add(line)
			}
			told(t, Judge(t.Context(), Settings{Dir: dir}, j, 3), test.wrong)
		})
	}
}

// What the ledger remembers as sent last is what was: else a person's state at Customer.io would stay an older one.
func TestTheVerdictOnWhatWasSentLast(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "storage")
	stored(t, dir, 7, 6)
	h, err := Open(t.Context(), Settings{Dir: dir, Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Drain(t.Context(), func(*queue.Claim) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ got, wrong string }{
		{"got 0 1 2 3 4 5 6", ""},
		{"got 0 1 2 3 4 5 6 3", `user 0 was last sent event 3; the ledger says "6"`},
		{"got 0 1 2 3 4 5 6 3\ndrop 0 3", ""}, // a crash has taken the delivery away, and then it was given up
		{"got 0 1 2 3 4 5 6 3\ndrop 0 4", "was last sent event 3"},
	} {
		j := NewJournal(7)
		for line := range strings.SplitSeq("sent 0 1 6\nacked 0 1 6\n"+test.got, "\n") {
			j.Add(line)
		}
		j.settled(h, 3)
		told(t, j.broken(), test.wrong)
	}
}

// The books of a house count what is in it: one that another seed has filled is not what was sent.
func TestTheVerdictReadsEachEvent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "storage")
	stored(t, dir, 7, 3)
	j := NewJournal(8)
	j.Add("sent 0 1 3")
	told(t, Judge(t.Context(), Settings{Dir: dir}, j, 3), "as it was sent")
}

// Lives without a crash break nothing, operators and refusals and all, and leave nothing out.
func TestLivesThatEndWell(t *testing.T) {
	dir := t.TempDir()
	l := Life{Settings: Settings{Dir: filepath.Join(dir, "storage")}, Journal: filepath.Join(dir, "journal"), Seed: 3, Users: 4, Requests: 12, Operator: true}
	for l.Number = range 3 {
		if err := Lead(context.Background(), l); err != nil {
			t.Fatal(err)
		}
	}
	j, err := ReadJournal(l.Journal, l.Seed)
	if err != nil {
		t.Fatal(err)
	}
	acked := 0
	for u := range l.Users {
		acked += j.Acked[u]
	}
	if j.Began != 3 || acked < 3*24 {
		t.Errorf("%d lives, %d events were acknowledged", j.Began, acked)
	}
	if err := Judge(context.Background(), l.Settings, j, l.Users); err != nil {
		t.Error(err)
	}
}

// Each of what is stored twice, or in a lane that is not its own, is told.
func TestTheVerdictOnARecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "storage")
	stored(t, dir, 7, 5)
	h, err := Open(t.Context(), Settings{Dir: dir, Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := KnownIs(h.Users, 0, 5); err != nil {
		t.Error(err)
	}
	if err := KnownIs(h.Users, 0, 4); err == nil {
		t.Error("behind event 5 a user is as behind event 4")
	}
	for range 5 {
		cl, err := h.Ledger.Claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cl.Trim(1)
		rec := cl.Records()[0]
		if _, _, wrong, unknowing := Read(7, &rec); wrong != nil || unknowing != nil {
			t.Error(wrong, unknowing)
		}
		strange := rec
		strange.Lane = users.LaneOfUser("another")
		if _, _, _, unknowing := Read(7, &strange); unknowing == nil {
			t.Errorf("record %d in another's lane is nothing", rec.Seq)
		}
		strange = rec
		strange.ID[3] ^= 1
		if _, _, wrong, _ := Read(7, &strange); wrong == nil {
			t.Errorf("record %d with another id is nothing", rec.Seq)
		}
		cl.Finish([]queue.Outcome{{Ending: queue.Delivered}})
	}
}

// A kill in the middle of a line leaves a part of it: it was never said, and does not spoil what the next life says.
func TestAPartOfALineIsDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, []byte("began\nsent 0 1 3\nsent 1 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 { // what is whole stays
		if err := dropUnsaid(f, path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteString("began\n"); err != nil {
		t.Fatal(err)
	}
	j, err := ReadJournal(path, 1)
	if err != nil || len(j.Wrong) > 0 || j.Began != 2 || len(j.Sent) != 1 || j.Sent[0] != 3 {
		t.Fatalf("%+v, %v", j, err)
	}
}
