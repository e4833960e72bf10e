package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"ampcio/users"
)

// people is what is known of the users and devices of one project, in the plainest way.
type people struct {
	users   map[string]properties
	devices map[string]*device
	ids     map[string]map[string]time.Time // by who sends: insert_id, and when it came first
}

type properties map[string]int

type device struct {
	user       string // the one it was linked to last
	properties properties
	seen       time.Time
}

func newPeople() *people {
	return &people{users: map[string]properties{}, devices: map[string]*device{}, ids: map[string]map[string]time.Time{}}
}

// How long a repeat is known, and how long an anonymous device. The histories' clocks jump well over these or stay well
// below, since both are counted in hours.
const (
	idsKept       = 7 * 24 * time.Hour
	anonymousKept = 30 * 24 * time.Hour
)

// event is what a sender says.
type event struct {
	user, device, insertID string
	kind                   string // event_type
	n                      int    // its number, as an event property: no two have the same
	operation, name        string // on a user property; "" = none
	value                  int
}

// sender is who counts the event's insert_id.
func (e *event) sender() string {
	if e.device == "" {
		return "user " + e.user
	}
	return "device " + e.device
}

func (e *event) identity() string {
	if e.insertID == "" {
		return fmt.Sprint("number ", e.n)
	}
	return e.sender() + " " + e.insertID
}

func (e *event) raw() []byte {
	m := map[string]any{"event_type": e.kind, "event_properties": map[string]int{"n": e.n}}
	for name, value := range map[string]string{"user_id": e.user, "device_id": e.device, "insert_id": e.insertID} {
		if value != "" {
			m[name] = value
		}
	}
	switch e.operation {
	case "":
	case "plain":
		m["user_properties"] = properties{e.name: e.value}
	case "$clearAll":
		m["user_properties"] = map[string]any{"$clearAll": "-"}
	default:
		m["user_properties"] = map[string]properties{e.operation: {e.name: e.value}}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func (e *event) apply(to properties) properties {
	after := maps.Clone(to)
	if after == nil {
		after = properties{}
	}
	switch e.operation {
	case "$set", "plain":
		after[e.name] = e.value
	case "$setOnce":
		if _, has := after[e.name]; !has {
			after[e.name] = e.value
		}
	case "$add":
		after[e.name] += e.value
	case "$unset":
		delete(after, e.name)
	case "$clearAll":
		clear(after)
	}
	return after
}

// take gives whose the event is, and the properties after it; false for a repeat.
func (p *people) take(e *event, now time.Time) (user string, after properties, taken bool) {
	who := e.sender()
	if e.insertID != "" {
		if first, known := p.ids[who][e.insertID]; known && now.Sub(first) <= idsKept {
			return "", nil, false
		}
		if p.ids[who] == nil {
			p.ids[who] = map[string]time.Time{}
		}
		p.ids[who][e.insertID] = now
	}
	user = e.user
	var d *device
	if e.device != "" {
		if d = p.devices[e.device]; d == nil {
			d = &device{}
			p.devices[e.device] = d
		}
		if d.user == "" && now.Sub(d.seen) > anonymousKept {
			d.properties = nil
		}
		d.seen = now
		if user == "" {
			user = d.user
		}
		if e.user != "" {
			if d.user == "" { // the first login on it: what the user lacks comes along
				own := maps.Clone(d.properties)
				if own == nil {
					own = properties{}
				}
				maps.Copy(own, p.users[e.user])
				p.users[e.user], d.properties = own, nil
			}
			d.user = e.user
		}
	}
	if user != "" {
		p.users[user] = e.apply(p.users[user])
		return user, p.users[user], true
	}
	d.properties = e.apply(d.properties)
	return "", d.properties, true
}

// of is what is known of a device, as the product tells it.
func (p *people) of(id string, now time.Time) (user string, known properties) {
	d := p.devices[id]
	switch {
	case d == nil:
		return "", nil
	case d.user != "":
		return d.user, p.users[d.user]
	case now.Sub(d.seen) > anonymousKept:
		return "", nil
	}
	return "", d.properties
}

// lanes are those of a user: its own, and those of the devices that are linked to it.
func (p *people) lanes(user string) (lanes, devices []string) {
	lanes = []string{users.LaneOfUser(user)}
	for id, d := range p.devices {
		if d.user == user {
			lanes, devices = append(lanes, users.LaneOfDevice(id)), append(devices, id)
		}
	}
	return lanes, devices
}

func (p *people) forget(user string) {
	_, devices := p.lanes(user)
	delete(p.users, user)
	delete(p.ids, "user "+user)
	for _, id := range devices {
		delete(p.devices, id)
		delete(p.ids, "device "+id)
	}
}
