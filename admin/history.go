package admin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// History remembers for a day how fast each sync was and how much waited. It takes
// 17 kB a sync, for at most maxSyncs of them, whatever the traffic. Safe for concurrent
// use; the zero value is empty.
//
// It lives on a clock of its own, which only goes forward. When the machine's clock is
// set back, what is remembered moves back with it, so that nothing lies in the future or
// twice at one place; when it is set forward, there is a gap.
type History struct {
	mu    sync.Mutex
	last  time.Time     // of the newest Note; zero = none yet
	age   time.Duration // the own clock, at last
	syncs map[string]*series
}

// Level is the state of one sync at one moment. In and Out are totals that grow.
type Level struct {
	In, Out uint64
	Pending uint64
	Oldest  *int64 // seconds; nil = nothing waits
}

const (
	maxSyncs = 64
	// A total is compared with one that is at most so old. What grew in a longer time,
	// while nobody looked, has no rate.
	maxLook = time.Minute
	day     = 24 * time.Hour
)

// tiers are how fine it is remembered: the last hour in steps of 10 s, the day in steps
// of 2 min.
var tiers = [2]struct {
	step   time.Duration
	points int64
}{{10 * time.Second, 360}, {2 * time.Minute, 720}}

type series struct {
	at      time.Time     // when in and out were looked at; zero = they cannot be compared with
	seen    time.Duration // on the own clock
	in, out uint64
	rings   [len(tiers)]ring
}

// ring holds the points of one tier. A point's place is its number modulo their count.
type ring struct {
	newest int64 // number of the newest point: the own clock over the step
	points []moment
	// What came to the newest point so far; its rates are these over the seconds.
	in, out, seconds float64
}

// moment is one point: rates are the mean over its step, the others the highest.
type moment struct {
	In, Out float32 // a second; below 0 = unknown
	Pending uint32  // at most 4 billion
	Oldest  int32   // seconds; below 0 = unknown, and Pending is too
}

var unknown = moment{-1, -1, 0, -1}

// Note remembers the state of all syncs at one moment. Call it every few seconds.
func (h *History) Note(at time.Time, levels map[string]Level) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.age += h.passed(at)
	h.last = at
	for name, s := range h.syncs {
		if _, still := levels[name]; !still && h.age-s.seen > day {
			delete(h.syncs, name)
		}
	}
	for name, l := range levels {
		if s := h.of(name); s != nil {
			s.note(at, h.age, l)
		}
	}
}

// passed is how far the own clock is ahead of the newest Note at that time. Seconds that
// really went by count, also while the clock was set back; those that it jumped over
// count, too: the machine may have slept.
func (h *History) passed(at time.Time) time.Duration {
	if h.last.IsZero() {
		return 0
	}
	return min(max(at.Sub(h.last), at.Round(0).Sub(h.last.Round(0)), 0), day+time.Hour)
}

// of is the series of a sync; nil when there are too many.
func (h *History) of(name string) *series {
	if s := h.syncs[name]; s != nil {
		return s
	}
	if len(h.syncs) >= maxSyncs || len(name) > math.MaxUint8 {
		return nil
	}
	if h.syncs == nil {
		h.syncs = map[string]*series{}
	}
	s := &series{}
	for i := range s.rings {
		s.rings[i] = ring{newest: int64(h.age / tiers[i].step), points: slices.Repeat([]moment{unknown}, int(tiers[i].points))}
	}
	h.syncs[name] = s
	return s
}

func (s *series) note(at time.Time, age time.Duration, l Level) {
	seconds := at.Sub(s.at)
	known := !s.at.IsZero() && seconds > 0 && seconds <= maxLook
	in, out := grown(s.in, l.In), grown(s.out, l.Out)
	s.at, s.seen, s.in, s.out = at, age, l.In, l.Out
	for i := range s.rings {
		r := &s.rings[i]
		r.advance(int64(age / tiers[i].step))
		p := &r.points[r.newest%tiers[i].points]
		if known {
			r.in, r.out, r.seconds = r.in+in, r.out+out, r.seconds+seconds.Seconds()
			p.In, p.Out = float32(r.in/r.seconds), float32(r.out/r.seconds)
		}
		oldest := int64(0)
		if l.Oldest != nil {
			oldest = *l.Oldest
		}
		p.Pending = max(p.Pending, uint32(min(l.Pending, math.MaxUint32)))
		p.Oldest = max(p.Oldest, int32(min(max(oldest, 0), math.MaxInt32)))
	}
}

// grown is by how much a total has grown. One that fell, as when a dead letter is tried
// again, has not.
func grown(from, to uint64) float64 {
	if to < from {
		return 0
	}
	return float64(to - from)
}

func (r *ring) advance(to int64) {
	if to <= r.newest {
		return
	}
	n := int64(len(r.points))
	for i := max(r.newest+1, to-n+1); i <= to; i++ {
		r.points[i%n] = unknown
	}
	r.newest, r.in, r.out, r.seconds = to, 0, 0, 0
}

// Forget is of a sync whose totals begin anew: the next ones are not compared with these.
func (h *History) Forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.syncs[name]; s != nil {
		s.at = time.Time{}
	}
}

// Past is what History remembers of some time: one number a step, the oldest first, null
// where nothing is known.
type Past struct {
	Schema int          `json:"schema"`
	Span   int64        `json:"span_s"`
	Step   int64        `json:"step_s"`
	From   int64        `json:"from"` // of the first step, seconds since 1970
	All    PastOfSync   `json:"all"`  // the sum of them; of the oldest the oldest
	Syncs  []PastOfSync `json:"syncs"`
}

// PastOfSync are the steps of one sync.
type PastOfSync struct {
	Name    string  `json:"name"`
	In      numbers `json:"in"`  // a second
	Out     numbers `json:"out"` // a second: delivered, filtered, refused or given up
	Pending numbers `json:"pending"`
	Oldest  numbers `json:"oldest_s"`
}

func newPast(name string, n int64) PastOfSync {
	nothing := func() numbers { return slices.Repeat(numbers{math.NaN()}, int(n)) }
	return PastOfSync{name, nothing(), nothing(), nothing(), nothing()}
}

// numbers are written with two digits behind the point; NaN is null.
type numbers []float64

// MarshalJSON implements json.Marshaler.
func (ns numbers) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 6*len(ns)+2)
	b = append(b, '[')
	for i, n := range ns {
		if i > 0 {
			b = append(b, ',')
		}
		if math.IsNaN(n) {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendFloat(b, math.Round(n*100)/100, 'f', -1, 64)
		}
	}
	return append(b, ']'), nil
}

// spans that can be asked for.
var spans = map[string]time.Duration{"15m": 15 * time.Minute, "1h": time.Hour, "6h": 6 * time.Hour, "24h": day}

// Of gives what is remembered of the last span before at, in the finest steps that reach
// so far back.
func (h *History) Of(span time.Duration, at time.Time) Past {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := 0
	for i < len(tiers)-1 && span > tiers[i].step*time.Duration(tiers[i].points) {
		i++
	}
	step, most := tiers[i].step, tiers[i].points
	n := min(int64(span/step), most)
	age := h.age + h.passed(at)
	newest := int64(age / step)
	begins := at.Add(time.Duration(newest-n+1)*step - age)
	past := Past{Schema: Schema, Span: int64(span / time.Second), Step: int64(step / time.Second), From: begins.Unix(),
		All: newPast("", n), Syncs: []PastOfSync{}}
	for _, name := range sortedNames(h.syncs) {
		r := &h.syncs[name].rings[i]
		p := newPast(name, n)
		for k := range n {
			slot := newest - n + 1 + k
			if slot < 0 || slot > r.newest || slot <= r.newest-most {
				continue
			}
			m := r.points[slot%most]
			if m.In >= 0 {
				p.In[k], p.Out[k] = float64(m.In), float64(m.Out)
				add(&past.All.In[k], p.In[k])
				add(&past.All.Out[k], p.Out[k])
			}
			if m.Oldest >= 0 {
				p.Pending[k], p.Oldest[k] = float64(m.Pending), float64(m.Oldest)
				add(&past.All.Pending[k], p.Pending[k])
				if all := &past.All.Oldest[k]; math.IsNaN(*all) || *all < p.Oldest[k] {
					*all = p.Oldest[k]
				}
			}
		}
		past.Syncs = append(past.Syncs, p)
	}
	return past
}

func add(to *float64, n float64) {
	if math.IsNaN(*to) {
		*to = 0
	}
	*to += n
}

func sortedNames(syncs map[string]*series) []string {
	names := make([]string, 0, len(syncs))
	for name := range syncs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// The file of a History is for people: what it holds may be lost without harm. It is
// written whole under another name and renamed, without an fsync; one that is torn, or
// of another version, counts as none.
//
//	line     ampcio history, version
//	int64    when it was written, ns since 1970
//	int64    the own clock then, ns
//	uint32   syncs; of each:
//	  uint8    length of its name, and the name
//	  of each tier: int64 number of the newest point, and all points
//	uint32   CRC-32C of all that
const historyHead = "ampcio history 1\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errNoHistory = errors.New("it is torn, or of another version: the history begins anew")

// Save writes it to a file. Whoever calls it sees to it that the disk has space.
func (h *History) Save(path string) error {
	b := h.encode()
	if b == nil {
		return nil
	}
	err := os.WriteFile(path+".new", b, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the history: %w", err), os.Remove(path+".new"))
	}
	return nil
}

func (h *History) encode() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last.IsZero() {
		return nil // nothing was noted yet
	}
	b := []byte(historyHead)
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(h.last.UnixNano()))
	b = le.AppendUint64(b, uint64(h.age))
	b = le.AppendUint32(b, uint32(len(h.syncs)))
	for _, name := range sortedNames(h.syncs) {
		b = append(append(b, byte(len(name))), name...)
		for _, r := range h.syncs[name].rings {
			b = le.AppendUint64(b, uint64(r.newest))
			b, _ = binary.Append(b, le, r.points) // it fails for types without a size only
		}
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Load takes the place of an empty History with what a file holds. Without a file it
// stays empty; with an error, too. The time since then will be a gap.
func (h *History) Load(path string, now time.Time) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	read, ok := decodeHistory(b, now)
	if !ok {
		return fmt.Errorf("%s: %w", path, errNoHistory)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last, h.age, h.syncs = read.last, read.age, read.syncs
	return nil
}

func decodeHistory(b []byte, now time.Time) (*History, bool) {
	le := binary.LittleEndian
	body, known := bytes.CutPrefix(b, []byte(historyHead))
	if !known || len(body) < 24 || crc32.Checksum(b[:len(b)-4], castagnoli) != le.Uint32(b[len(b)-4:]) {
		return nil, false
	}
	body = body[:len(body)-4]
	h := &History{last: time.Unix(0, int64(le.Uint64(body))), age: time.Duration(le.Uint64(body[8:])), syncs: map[string]*series{}}
	// A file from the future: how long ago it was is anybody's guess.
	if h.age < 0 || h.last.After(now.Add(time.Minute)) {
		return nil, false
	}
	count := le.Uint32(body[16:])
	body = body[20:]
	for range count {
		if len(body) < 1 || len(body) < 1+int(body[0]) || len(h.syncs) >= maxSyncs {
			return nil, false
		}
		name := string(body[1 : 1+int(body[0])])
		body = body[1+len(name):]
		s := h.of(name)
		s.seen = h.age
		for i := range s.rings {
			r := &s.rings[i]
			size := 8 + binary.Size(r.points)
			if len(body) < size {
				return nil, false
			}
			r.newest = int64(le.Uint64(body))
			if _, err := binary.Decode(body[8:size], le, r.points); err != nil || r.newest < 0 || r.newest > int64(h.age/tiers[i].step) {
				return nil, false
			}
			body = body[size:]
		}
	}
	return h, len(body) == 0
}
