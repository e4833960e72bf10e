package admin

import (
	"math"
	"sync"
	"time"
)

// SetShare says how much of the space that may be used is: what is kept only for later
// use, and goes first, counts as free.
func (d *Disk) SetShare() {
	used := float64(max(d.Used-d.Kept, 0))
	room := float64(d.Free + d.Kept - d.MinFree)
	if d.Max > 0 {
		room = min(room, float64(d.Max)-used)
	}
	if room <= 0 {
		d.Share = 1
		return
	}
	d.Share = math.Round(used/(used+room)*1000) / 1000
}

// Filling remembers how what fills the disk has grown, so that a snapshot can say when it
// will be full. The log's files go as a whole when nobody needs them any more, so their
// size says little from minute to minute: what is counted is what waits, and what is no
// log. Safe for concurrent use.
type Filling struct {
	mu     sync.Mutex
	points []filled
}

type filled struct {
	at     time.Time
	ours   int64 // what waits, and what is no log
	others int64 // what is neither free nor ours, and less some constant
}

// FillingEvery is how often Filling wants to be told.
const FillingEvery = 15 * time.Second

// How far back it looks, what is of late, over how long it has to have looked before it
// says anything, and what is too far away to be told of.
const (
	fillingWindow = 15 * time.Minute
	fillingOfLate = 3 * time.Minute
	fillingLeast  = 5 * time.Minute
	fillingMost   = 365 * 24 * time.Hour
)

// Note adds how the disk is at one moment; waits is how many bytes of the log wait.
func (f *Filling) Note(at time.Time, d Disk, waits int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.points = append(f.points, filled{at, waits + d.Used - d.LogBytes, -(d.Free + d.Used)})
	for len(f.points) > 2 && at.Sub(f.points[1].at) >= fillingWindow {
		f.points = f.points[1:]
	}
}

// ETA is in how many seconds new events are refused, if it goes on as in the last
// minutes; nil: the disk is not filling, or too little is known.
func (f *Filling) ETA(d Disk) *int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.points) < 2 {
		return nil
	}
	first, ofLate, last := f.points[0], f.points[0], f.points[len(f.points)-1]
	if last.at.Sub(first.at) < fillingLeast {
		return nil
	}
	for _, p := range f.points {
		if last.at.Sub(p.at) >= fillingOfLate {
			ofLate = p
		}
	}
	eta := math.Inf(1)
	until := func(room int64, size func(filled) int64) {
		slowest := math.Inf(1) // bytes a second: of a burst that is over they are none
		for _, from := range []filled{first, ofLate} {
			slowest = min(slowest, float64(size(last)-size(from))/last.at.Sub(from.at).Seconds())
		}
		if slowest > 0 {
			eta = min(eta, float64(max(room, 0))/slowest)
		}
	}
	if d.Max > 0 {
		until(d.Max-d.Used+d.Kept, func(p filled) int64 { return p.ours })
	}
	until(d.Free+d.Kept-d.MinFree, func(p filled) int64 { return p.ours + p.others })
	if eta > fillingMost.Seconds() {
		return nil
	}
	s := int64(eta)
	return &s
}
