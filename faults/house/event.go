// Package house is the log, the users and one ledger at work in one process, as the daemon has them but for its doors:
// with senders, with a Customer.io that is a list of lines, and with an operator who does everything at the wrong moment.
// What happens is written into a journal, so that what a crash has left can be judged.
package house

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// Project and Sync are the names of the only ones there are.
const (
	Project = "app"
	Sync    = "demo"
)

// properties is how many user properties there are; event n sets one of them.
const properties = 5

// Each user has one device. The user's first event comes from the device alone, and so does every fourth later on: whose
// these are, only users.db knows. insert_ids are the numbers of the events, which have no gaps.
func userOf(u int) string   { return fmt.Sprintf("user-%02d", u) }
func deviceOf(u int) string { return fmt.Sprintf("device-%02d", u) }

// anonymous says whether event n names no user.
func anonymous(n int) bool { return n == 1 || n%4 == 0 }

// Event is the n-th event of a user. It is always the same one for a seed.
func Event(seed uint64, u, n int) (mapping.Event, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `{"event_type":"Order","device_id":%q`, deviceOf(u))
	if !anonymous(n) {
		fmt.Fprintf(&b, `,"user_id":%q`, userOf(u))
	}
	fmt.Fprintf(&b, `,"insert_id":"%d","time":%d,"event_properties":{"pad":"`, n, 1_800_000_000_000+n)
	random := seed ^ uint64(u)<<32 ^ uint64(n)
	for range 40 + random%7*60 {
		random = random*6364136223846793005 + 1442695040888963407
		b.WriteByte('a' + byte(random>>59)%26)
	}
	fmt.Fprintf(&b, `"},"user_properties":{"$set":{"p%d":%d}}}`, n%properties, n)
	e, problems := mapping.ParseEvent([]byte(b.String()))
	if len(problems) > 0 {
		return e, fmt.Errorf("event %d of user %d: %s", n, u, problems[0].Detail)
	}
	return e, nil
}

// Known is what is known of a user behind event n: all properties that were ever set.
func Known(n int) map[string]int {
	known := map[string]int{}
	for m := max(1, n-properties+1); m <= n; m++ {
		known["p"+strconv.Itoa(m%properties)] = m
	}
	return known
}

// laneOf is the lane that event n of a user belongs into.
func laneOf(u, n int) string {
	if n == 1 {
		return users.LaneOfDevice(deviceOf(u))
	}
	return users.LaneOfUser(userOf(u))
}

// Read says which event a record is, and what is wrong with it: whether it is, byte by byte, what was sent, and says of
// its user what was known. wrong is about the event itself; unknowing about whose it is, which a damaged users.db may
// have forgotten.
func Read(seed uint64, r *queue.Record) (u, n int, wrong, unknowing error) {
	var m mapping.Record
	if err := m.DecodeBody(r.Body); err != nil {
		return 0, 0, fmt.Errorf("record %d cannot be read: %w", r.Seq, err), nil
	}
	if _, err := fmt.Sscanf(m.DeviceID, "device-%d", &u); err != nil {
		return 0, 0, fmt.Errorf("record %d is of device %q, whom nobody has sent", r.Seq, m.DeviceID), nil
	}
	var raw struct {
		InsertID string `json:"insert_id"`
	}
	if err := json.Unmarshal(m.Raw, &raw); err != nil {
		return 0, 0, fmt.Errorf("record %d: %w", r.Seq, err), nil
	}
	if n, wrong = strconv.Atoi(raw.InsertID); wrong != nil {
		return 0, 0, fmt.Errorf("record %d: %w", r.Seq, wrong), nil
	}
	sent, err := Event(seed, u, n)
	switch {
	case err != nil:
		return u, n, err, nil
	case !bytes.Equal(sent.Raw, m.Raw):
		return u, n, fmt.Errorf("record %d is not event %d of user %d as it was sent: %s", r.Seq, n, u, m.Raw), nil
	case r.ID != mapping.EventID(Project, "device", deviceOf(u), raw.InsertID):
		return u, n, fmt.Errorf("record %d, event %d of user %d, has the id %x", r.Seq, n, u, r.ID), nil
	}
	if r.Lane != laneOf(u, n) {
		return u, n, nil, fmt.Errorf("record %d, event %d of user %d, is in lane %q", r.Seq, n, u, r.Lane)
	}
	return u, n, nil, sameProperties(m.Properties, n)
}

// sameProperties compares what is known of a user with what should be behind event n.
func sameProperties(object []byte, n int) error {
	known := map[string]int{}
	if err := json.Unmarshal(object, &known); err != nil {
		return err
	}
	for k, v := range Known(n) {
		if known[k] != v {
			return fmt.Errorf("behind event %d the user's properties are %s: %s should be %d", n, object, k, v)
		}
		delete(known, k)
	}
	if len(known) > 0 {
		return fmt.Errorf("behind event %d the user's properties are %s", n, object)
	}
	return nil
}
