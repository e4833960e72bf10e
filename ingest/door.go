package ingest

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Reasons for a refusal, as the operator reads them.
const (
	reasonNoKey    = "missing_api_key"
	reasonKey      = "invalid_api_key"
	reasonJSON     = "invalid_json"
	reasonField    = "invalid_request_field" // a member beside the events is missing or of a wrong type
	reasonEvents   = "invalid_events"
	reasonTooLarge = "too_large"
	reasonTooMany  = "too_many_events"
	reasonEncoding = "unknown_encoding"
	reasonPath     = "wrong_path"
	reasonMethod   = "wrong_method"
	reasonChecksum = "bad_checksum"
	reasonSecret   = "invalid_webhook_secret"
	reasonSlow     = "slow_body"
	reasonAborted  = "aborted_body"
	reasonBusy     = "busy"
	reasonFull     = "storage_full"
	reasonClosed   = "stopping"
	reasonStore    = "store_error"
	reasonDraining = "draining"   // an operator has new events refused
	reasonPlain    = "plain_http" // where TLS is spoken

	reasonSlowStore = "slow_disk" // of the webhook: it was not stored in the time there is
)

// DoorStats is what happened at the door since the start.
type DoorStats struct {
	Requests   uint64               `json:"requests"`     // of any kind
	Events     uint64               `json:"events"`       // accepted, duplicates included
	Duplicates uint64               `json:"duplicates"`   // accepted events that were stored already
	Refused    []Refusal            `json:"refused"`      // requests by reason, most frequent first
	LastSeen   map[string]time.Time `json:"last_seen"`    // project → last request with one of its keys (UTC); absent = never
	Last       *Request             `json:"last_request"` // of any kind, but a load balancer's questions; nil = none yet
}

// Refusal counts the requests refused for one reason.
type Refusal struct {
	Reason  string    `json:"reason"` // "invalid_api_key", "storage_full", …
	Count   uint64    `json:"count"`
	Last    time.Time `json:"last"`         // UTC
	Address string    `json:"last_address"` // peer IP of the last one
}

// Request is by which way a request came.
type Request struct {
	At      time.Time `json:"at"`      // UTC
	Peer    string    `json:"peer"`    // the other end of the connection; "" = a unix socket
	Proxied bool      `json:"proxied"` // it has X-Forwarded-For,
	Trusted bool      `json:"trusted"` // and that is believed, since the peer is a trusted proxy
}

// door counts. Safe for concurrent use.
type door struct {
	requests, events, duplicates atomic.Uint64
	last                         atomic.Pointer[Request]

	mu       sync.Mutex               // guards the maps
	refused  map[string]*Refusal      // by reason
	lastSeen map[string]*atomic.Int64 // project → ms since 1970, 0 = never
}

func newDoor() *door {
	return &door{lastSeen: map[string]*atomic.Int64{}, refused: map[string]*Refusal{}}
}

// project gives what tells when a project was last seen. One that is gone keeps it,
// and finds it again.
func (d *door) project(name string) *atomic.Int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lastSeen[name] == nil {
		d.lastSeen[name] = new(atomic.Int64)
	}
	return d.lastSeen[name]
}

func (d *door) refuse(reason string, at time.Time, address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.refused[reason]
	if r == nil {
		r = &Refusal{Reason: reason}
		d.refused[reason] = r
	}
	r.Count++
	r.Last, r.Address = at.UTC(), address
}

func (d *door) stats() DoorStats {
	s := DoorStats{
		Requests: d.requests.Load(), Events: d.events.Load(), Duplicates: d.duplicates.Load(),
		Refused: []Refusal{}, LastSeen: map[string]time.Time{}, Last: d.last.Load(),
	}
	d.mu.Lock()
	for project, at := range d.lastSeen {
		if ms := at.Load(); ms != 0 {
			s.LastSeen[project] = time.UnixMilli(ms).UTC()
		}
	}
	for _, r := range d.refused {
		s.Refused = append(s.Refused, *r)
	}
	d.mu.Unlock()
	slices.SortFunc(s.Refused, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}
