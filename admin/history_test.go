package admin

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// recorder lets time pass by ticks, as the daemon's ticker does.
type recorder struct {
	h       *History
	at      time.Time
	in, out uint64
}

func (r *recorder) run(d time.Duration, in, out int) {
	for end := r.at.Add(d); r.at.Before(end); {
		r.tick(2*time.Second, in, out)
	}
}

func (r *recorder) tick(d time.Duration, in, out int) {
	seconds := int(d / time.Second)
	r.at = r.at.Add(d)
	r.in, r.out = r.in+uint64(in*seconds), r.out+uint64(out*seconds)
	r.note()
}

func (r *recorder) note() {
	l := Level{In: r.in, Out: r.out, Pending: r.in - r.out}
	if l.Pending > 0 {
		l.Oldest = ptr(int64(l.Pending))
	}
	r.h.Note(r.at, map[string]Level{"production": l})
}

func known(ns numbers) numbers {
	return slices.DeleteFunc(slices.Clone(ns), math.IsNaN)
}

func TestHistoryOfADay(t *testing.T) {
	r := recorder{h: &History{}, at: noon}
	r.note()
	r.run(20*time.Hour, 10, 10)
	r.run(3*time.Hour, 10, 0) // an outage
	r.run(90*time.Minute, 10, 30)
	for name, want := range map[string]struct {
		step   int64
		points int
	}{"15m": {10, 90}, "1h": {10, 360}, "6h": {120, 180}, "24h": {120, 720}} {
		p := r.h.Of(spans[name], r.at)
		if p.Step != want.step || len(p.All.In) != want.points || len(p.Syncs) != 1 || len(p.Syncs[0].Out) != want.points {
			t.Errorf("%s: %d points of %d s", name, len(p.All.In), p.Step)
		}
		if ended := p.From + int64(want.points)*want.step; ended < r.at.Unix() || ended > r.at.Unix()+want.step {
			t.Errorf("%s: it ends %d s before now", name, r.at.Unix()-ended)
		}
		for i, v := range p.All.In {
			if v != 10 {
				t.Errorf("%s: %v a second in at point %d of %d", name, v, i, want.points)
				break
			}
		}
	}
	whole := r.h.Of(day, r.at).Syncs[0]
	if most := slices.Max(whole.Pending); most != 3*3600*10 {
		t.Errorf("at most %v were pending", most)
	}
	rates := known(whole.Out)
	slices.Sort(rates)
	if rates[0] != 0 || rates[len(rates)-1] != 30 || len(rates) != 720 {
		t.Errorf("out from %v to %v", rates[0], rates[len(rates)-1])
	}
	if last := whole.Pending[719]; last > 120*20 {
		t.Errorf("%v are pending in the end", last)
	}
}

func TestHistoryOfNothing(t *testing.T) {
	var h History
	p := h.Of(time.Hour, noon)
	if len(known(p.All.In)) != 0 || len(p.Syncs) != 0 || len(p.All.Pending) != 360 {
		t.Errorf("%+v", p)
	}
	b, err := json.Marshal(h.Of(20*time.Second, noon))
	want := `{"schema":1,"span_s":20,"step_s":10,"from":1795435190,"all":{"name":"","in":[null,null],"out":[null,null],"pending":[null,null],"oldest_s":[null,null]},"syncs":[]}`
	if err != nil || string(b) != want {
		t.Errorf("%v\n%s\n%s", err, b, want)
	}
}

// The total of several syncs is their sum, the oldest of all the oldest.
func TestHistoryOfAll(t *testing.T) {
	var h History
	for i := range 11 {
		n := uint64(i)
		h.Note(noon.Add(time.Duration(i)*time.Second), map[string]Level{
			"a": {In: n * 3, Out: n, Pending: n * 2, Oldest: ptr(int64(i))}, "b": {In: n * 5, Out: n * 5}})
	}
	p := h.Of(20*time.Second, noon.Add(11*time.Second))
	want := PastOfSync{In: numbers{8, 8}, Out: numbers{6, 6}, Pending: numbers{18, 20}, Oldest: numbers{9, 10}}
	if d := cmp.Diff(want, p.All); d != "" {
		t.Error(d)
	}
}

// Whatever the clock does: nothing in the future, no point twice, no rate that never was.
func TestHistoryWhenTheClockIsSet(t *testing.T) {
	for _, c := range []struct {
		name string
		jump time.Duration
		gap  bool // in the last hour
	}{
		{"back by an hour", -time.Hour, false},
		{"back by a minute", -time.Minute, false},
		{"back by a year", -365 * 24 * time.Hour, false},
		{"forward by ten minutes", 10 * time.Minute, true},
		{"forward by ten years", 10 * 365 * 24 * time.Hour, true},
		{"forward by nearly as far as a time.Duration goes", 290 * 365 * 24 * time.Hour, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := recorder{h: &History{}, at: noon}
			r.note()
			r.run(2*time.Hour, 10, 10)
			r.at = r.at.Add(c.jump)
			r.run(20*time.Minute, 10, 10)
			p := r.h.Of(time.Hour, r.at)
			unknown := 0
			for _, v := range p.All.In {
				if math.IsNaN(v) {
					unknown++
				} else if v < 9 || v > 11 {
					t.Errorf("%v a second in", v)
				}
			}
			if gap := unknown > 5; gap != c.gap {
				t.Errorf("%d of 360 points are unknown", unknown)
			}
			if ended := p.From + 3600; ended < r.at.Unix() || ended > r.at.Unix()+10 {
				t.Errorf("it ends at %d, now is %d", ended, r.at.Unix())
			}
		})
	}
}

// The daemon's times know how long it really was: a clock that is set between two looks
// changes no rate.
func TestHistoryRatesComeFromTheMonotonicClock(t *testing.T) {
	var h History
	begin := time.Now()
	for i := range 40 {
		at := begin.Add(time.Duration(i) * 2 * time.Second)
		h.Note(at, map[string]Level{"a": {In: uint64(i) * 20}})
	}
	for _, v := range known(h.Of(time.Hour, begin.Add(80*time.Second)).All.In) {
		if v != 10 {
			t.Errorf("%v a second", v)
		}
	}
}

func TestHistoryOfTotalsThatFall(t *testing.T) {
	r := recorder{h: &History{}, at: noon}
	r.note()
	r.run(time.Minute, 10, 10)
	r.out -= 300 // dead letters are tried again
	r.run(time.Minute, 10, 10)
	r.h.Forget("production") // its ledger was joined with a large one
	r.in, r.out = r.in+1_000_000, r.out+1_000_000
	r.run(time.Minute, 10, 10)
	for _, ns := range []numbers{known(r.h.Of(15*time.Minute, r.at).All.In), known(r.h.Of(15*time.Minute, r.at).All.Out)} {
		for _, v := range ns {
			if v < 0 || v > 10 {
				t.Errorf("%v a second", v)
			}
		}
	}
}

// Memory is bounded: in time, and in syncs.
func TestHistoryIsBounded(t *testing.T) {
	var h History
	many := map[string]Level{}
	for i := range 100 {
		many[strings.Repeat("x", i+1)] = Level{}
	}
	h.Note(noon, many)
	if n := len(h.Of(time.Hour, noon).Syncs); n != maxSyncs {
		t.Errorf("%d syncs", n)
	}
	if n := len(h.encode()); n > maxSyncs*18_000 {
		t.Errorf("%d bytes", n)
	}
	// Who is gone for a day makes room.
	h.Note(noon.Add(25*time.Hour), map[string]Level{"new": {}})
	h.Note(noon.Add(25*time.Hour+time.Second), map[string]Level{"new": {}})
	if got := h.Of(time.Hour, noon.Add(25*time.Hour)).Syncs; len(got) != 1 || got[0].Name != "new" {
		t.Errorf("%d syncs", len(got))
	}
}

func TestHistorySurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := recorder{h: &History{}, at: noon}
	r.note()
	r.run(3*time.Hour, 10, 5)
	before := r.h.Of(day, r.at)
	if err := r.h.Save(path); err != nil {
		t.Fatal(err)
	}
	var again History
	if err := again.Load(path, r.at); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, again.Of(day, r.at), cmp.Comparer(same)); d != "" {
		t.Error(d)
	}
	// It was down for ten minutes: a gap, and the rest has moved on.
	r.h = &again
	r.at = r.at.Add(10 * time.Minute)
	r.note()
	r.run(time.Minute, 10, 5)
	p := r.h.Of(15*time.Minute, r.at)
	unknown := len(p.All.In) - len(known(p.All.In))
	if unknown < 59 || unknown > 61 || len(known(p.All.In)) < 28 {
		t.Errorf("%d of %d points are unknown", unknown, len(p.All.In))
	}
}

// same lets two unknown numbers be alike.
func same(a, b numbers) bool {
	return slices.EqualFunc(a, b, func(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) })
}

// A file that cannot be used costs the history and nothing else.
func TestHistoryFilesThatAreWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r := recorder{h: &History{}, at: noon}
	r.note()
	r.run(time.Minute, 10, 10)
	good := r.h.encode()
	var h History
	if err := h.Load(path, noon); err != nil || len(h.syncs) != 0 {
		t.Errorf("no file: %v", err)
	}
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"empty": nil, "torn": good[:len(good)-100], "of a newer version": []byte(strings.Replace(string(good), "history 1", "history 2", 1)),
		"with a flipped bit": flipped, "with something behind": append(slices.Clone(good), 0), "something else": []byte("SQLite format 3"),
		"short": []byte(historyHead),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := h.Load(path, r.at); err == nil || len(h.syncs) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Load(path, noon.Add(-time.Hour)); err == nil || len(h.syncs) != 0 {
		t.Errorf("of the future: %v", err)
	}
	if err := h.Load(path, r.at); err != nil || len(h.syncs) != 1 {
		t.Errorf("a good one: %v", err)
	}
	if err := h.Save(filepath.Join(path, "under a file")); err == nil {
		t.Error("it was written where it cannot be")
	}
}

// Also behind a sum that is right no length is believed.
func FuzzHistoryFile(f *testing.F) {
	r := recorder{h: &History{}, at: noon}
	r.note()
	r.run(time.Minute, 10, 10)
	good := r.h.encode()
	f.Add(good[:len(good)-4])
	f.Add(good[:2000])
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := decodeHistory(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), noon); ok {
			h.Of(day, noon)
		}
	})
}
