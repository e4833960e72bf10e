package mapping

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What is written into a room is what Map gives, stands there as the elements of a batch, and goes when it is cut off.
func TestRoom(t *testing.T) {
	rules, err := Compile(Spec{
		Identifier: "user_id", SendEvents: true, SendUsers: true, Select: []SelectSpec{{Event: []string{"*"}}},
		EventProperties: []string{"*"}, UserProperties: []string{"*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	record := func(n, large int) *Record {
		return &Record{ID: EventID("app", "device", "d", fmt.Sprint(n)), Received: 1795432948999, UserID: fmt.Sprint("user-", n), Time: 1795432948281,
			Properties: fmt.Appendf(nil, `{"n":%d}`, n), Raw: fmt.Appendf(nil, `{"event_type":"Type %d","event_properties":{"n":%d,"x":%q}}`, n%3, n, strings.Repeat("x", large))}
	}
	room := NewRoom(16 << 10)
	var bodies [][]byte
	var want []string
	for n := range 40 {
		r, large := record(n, n), n%7 == 3
		if large {
			r = record(n, maxOperation) // its event goes apart, by v1
		}
		id, _ := rules.Identifier(r)
		before := room.Len()
		cut, err := rules.MapInto(room, r, id, nil)
		if err != nil || len(cut.Operations) != 2 {
			t.Fatal(cut, err)
		}
		if room.Len() == before {
			t.Fatal("nothing was written")
		}
		room.Cut(before) // it does not fit; and then it does
		d, err := rules.MapInto(room, r, id, nil)
		alone, _ := rules.Map(r, id, nil)
		if err != nil || len(d.Operations) != 2 || d.EventType != alone.EventType || string(d.Sent) != string(alone.Sent) {
			t.Fatal(d, alone, err)
		}
		for i, op := range d.Operations {
			if string(op.Body) != string(alone.Operations[i].Body) || op.Path() != alone.Operations[i].Path() {
				t.Fatalf("%s\nalone: %s", op.Body, alone.Operations[i].Body)
			}
			if op.Path() == "" {
				bodies, want = append(bodies, op.Body), append(want, string(alone.Operations[i].Body))
			}
		}
	}
	all := strings.Join(want, ",")
	at := 0
	for i, body := range bodies {
		if got := room.Place(body); got != at || string(room.Run(at, len(body))) != want[i] {
			t.Fatalf("body %d stands at %d, want %d", i, got, at)
		}
		at += len(body) + 1
	}
	if got := room.Place(slices.Clone(bodies[1])); got != -1 {
		t.Error("what stands elsewhere stands here at", got)
	}
	if err := damagedIntoRoom(rules, room); err == nil {
		t.Error("a damaged record was mapped")
	}
	if got := room.Run(0, len(all)); string(got) != all {
		t.Error("what stood there before a damaged record is not there any more")
	}
}

// damagedIntoRoom maps a record whose event can be opened and not be written.
func damagedIntoRoom(rules *Rules, room *Room) error {
	r := &Record{UserID: "u", Properties: []byte(`{"n":1}`), Raw: []byte(`{"event_type":"A","event_properties":{"x" 1}}`)}
	id, _ := rules.Identifier(r)
	before := room.Len()
	_, err := rules.MapInto(room, r, id, nil)
	if room.Len() != before {
		return nil
	}
	return err
}

func TestFewTexts(t *testing.T) {
	var f fewTexts
	for range 2 {
		for n := range 2000 {
			for _, text := range []string{fmt.Sprint(n), fmt.Sprint("type ", n), strings.Repeat("x", n%200)} {
				if got := f.of([]byte(text)); got != text {
					t.Fatalf("%q for %q", got, text)
				}
			}
		}
	}
}
