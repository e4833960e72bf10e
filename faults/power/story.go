package power

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// project is the one that everything here belongs to.
const project = "p"

// An event of a story is known by its number alone, so that whoever finds it on a disk knows every byte of it.
type event struct {
	n    int
	user string
	raw  string
}

// writers are those that append at one time. Each has numbers, and users, of its own, so that the order of a user's events
// is that of their numbers.
const writers = 2

// victimsEvery is how many numbers a user has who is forgotten when they are through.
const victimsEvery = 64

// eventOf makes the event of a number.
func eventOf(seed uint64, n int) event {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	e := event{n: n, user: userOf(seed, n)}
	pad := r.IntN(200)
	if r.IntN(10) == 0 {
		pad = r.IntN(6000)
	}
	b := make([]byte, pad)
	for i := range b {
		b[i] = 'a' + byte(r.IntN(26))
	}
	e.raw = fmt.Sprintf(`{"event_type":"Step","user_id":"%s","insert_id":"i%d","event_properties":{"n":%d,"pad":"%s"},"user_properties":{"$set":{"last":%d},"$add":{"count":1}}}`,
		e.user, n, n, b, n)
	return e
}

// userOf gives whose event a number is.
func userOf(seed uint64, n int) string {
	if n%16 == 8 {
		return victim(n / victimsEvery)
	}
	return fmt.Sprintf("u%d", writers*rand.New(rand.NewPCG(seed, uint64(n))).IntN(3)+n%writers)
}

func victim(block int) string { return fmt.Sprintf("v%d", block) }

// endingOf is how an event ends the first time.
func endingOf(n int) queue.Ending {
	switch {
	case n%11 == 3:
		return queue.Dead
	case n%13 == 5:
		return queue.Filtered
	}
	return queue.Delivered
}

// failuresOf is how often an event is not taken before it ends: after five its user is put aside.
func failuresOf(n int) int {
	switch {
	case n%29 == 7:
		return 6
	case n%7 == 2:
		return 1
	}
	return 0
}

// arrivalOf makes a request of some events.
func arrivalOf(seed uint64, now int64, numbers []int) (mapping.Arrival, error) {
	a := mapping.Arrival{Project: project, Received: now, Uploaded: now, Address: "192.0.2.1", Source: mapping.SourceHTTP}
	for _, n := range numbers {
		ev, problems := mapping.ParseEvent([]byte(eventOf(seed, n).raw))
		if len(problems) > 0 {
			return a, fmt.Errorf("event %d: %v", n, problems)
		}
		a.Events = append(a.Events, ev)
	}
	return a, nil
}

// read gives the number of a record, and whether all of it is what was stored: bytes, lane, and the user's properties, whose
// count is how many of the user's events were stored up to it.
func read(seed uint64, r *queue.Record) (n int, count float64, err error) {
	var m mapping.Record
	if err := m.DecodeBody(r.Body); err != nil {
		return 0, 0, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	var in struct {
		Properties struct {
			N int `json:"n"`
		} `json:"event_properties"`
	}
	if err := json.Unmarshal(m.Raw, &in); err != nil {
		return 0, 0, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	n = in.Properties.N
	e := eventOf(seed, n)
	if string(m.Raw) != e.raw || m.UserID != e.user || r.Lane != users.LaneOfUser(e.user) {
		return n, 0, fmt.Errorf("record %d is not event %d: user %q, lane %q, %s", r.Seq, n, m.UserID, r.Lane, m.Raw)
	}
	p, err := propertiesOf(m.Properties)
	if err == nil && p.Last != n {
		err = fmt.Errorf("event %d has the properties of %d", n, p.Last)
	}
	return n, p.Count, err
}

type properties struct {
	Last  int     `json:"last"`
	Count float64 `json:"count"`
}

func propertiesOf(b []byte) (p properties, err error) {
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("user properties %q: %w", b, err)
	}
	return p, nil
}

// identifier is what a user is called at Customer.io.
func identifier(user string) string { return "cio-" + user }
