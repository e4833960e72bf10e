package alerts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// memoryShelf is a disk that may fail in both ways: an error with the bytes written, or
// without.
type memoryShelf struct {
	kept  []byte
	fails string // "" | lost | kept
}

func (m *memoryShelf) read() ([]byte, error) { return m.kept, nil }
func (m *memoryShelf) write(b []byte) error {
	if m.fails != "lost" {
		m.kept = b
	}
	if m.fails != "" {
		return errors.New("no space left on device")
	}
	return nil
}

// receiver is the other side: it keeps what it was told, each id once.
type receiver struct {
	status int // that it answers; 0 = it takes the message and the answer is lost
	seen   map[string]string
	told   []payload
	again  int
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if r.status/100 == 2 || r.status == 0 {
		var p payload
		if err := json.Unmarshal(b, &p); err != nil {
			return nil, err
		}
		about := fmt.Sprint(p.Event, p.Kind, len(p.Troubles))
		switch before, known := r.seen[p.ID]; {
		case !known:
			r.seen[p.ID] = about
			r.told = append(r.told, p)
		case before != about:
			return nil, fmt.Errorf("the id %s stands for %s and for %s", p.ID, before, about)
		default:
			r.again++
		}
	}
	if r.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{StatusCode: r.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("no"))}, nil
}

// Over random histories of troubles that come, go, get worse and cannot be seen, of a
// receiver that fails and a process that crashes anywhere: each trouble that lasts is
// told once, its end is told once, nothing is told that was not so, and never many.
func TestEachTroubleIsToldOnceAndEndsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const tick = 10 * time.Second
		now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
		disk, other := &memoryShelf{}, &receiver{status: 200, seen: map[string]string{}}
		o := Options{URL: "https://alerts.example/x", After: time.Minute, OverAfter: 5 * time.Minute, Repeat: 12 * time.Hour,
			Transport: other, Now: func() time.Time { return now }, Instance: "vm"}
		var d *Desk
		start := func() {
			d = open(o, disk)
		}
		start()
		names := []string{"a", "b", "c"}
		wrong, unclear := map[string]string{}, map[string]bool{} // by name: the level
		since := map[string]time.Time{}                          // wrong, clear and alive without a break
		lasted := map[string]bool{}                              // long enough that it must have been told
		step := func() {
			now = now.Add(tick)
			s := Sight{At: now, Unclear: func(_, of string) bool { return unclear[of] }}
			for _, n := range names {
				level := wrong[n]
				if level == "" || unclear[n] {
					delete(since, n)
					continue
				}
				s.Troubles = append(s.Troubles, Trouble{Kind: "k", Of: n, Level: level, Cause: "x", What: "w"})
				if since[n].IsZero() {
					since[n] = now
				}
				if now.Sub(since[n]) >= o.After {
					lasted[n] = true
				}
			}
			d.Look(s)
		}
		settle := func(tries int) {
			for range tries {
				d.save()
				if d.untilNext() == 0 {
					d.postFirst(context.Background())
				}
			}
			d.save()
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := rapid.SampledFrom(names).Draw(t, "who")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				wrong[n] = rapid.SampledFrom([]string{Warning, Critical}).Draw(t, "level")
			case 2, 3:
				wrong[n] = ""
			case 4:
				unclear[n] = !unclear[n]
			case 5:
				other.status = rapid.SampledFrom([]int{0, 200, 200, 404, 429, 503}).Draw(t, "answer")
			case 6: // a crash, perhaps before what was decided last is on disk
				if rapid.Bool().Draw(t, "saved") {
					d.save()
				}
				start()
				clear(since)
				for n := range lasted { // what was decided and not kept is decided again, if it is still so
					if !d.Firing("k", n) && !toldOf(other.told, n) && !waits(d, n) {
						delete(lasted, n)
					}
				}
			}
			for range rapid.IntRange(1, 60).Draw(t, "ticks") {
				step()
				settle(1)
			}
		}
		// In the end all is well, everybody listens, and time passes.
		clear(wrong)
		clear(unclear)
		other.status = 200
		for range int(2 * calmest / tick) {
			step()
			settle(4)
		}
		firing := map[string]bool{}
		perHour := map[string]int{}
		var before payload
		for _, p := range other.told {
			if p.At.Before(before.At) {
				t.Fatalf("out of order: %s before %s", before.At, p.At)
			}
			before = p
			for _, w := range p.Troubles {
				switch p.Event {
				case Began:
					if firing[w.Of] {
						t.Fatalf("%s was told twice", w.Of)
					}
					firing[w.Of] = true
					perHour[w.Of+p.At.Format(" 2006-01-02 15")]++
				case Over:
					if !firing[w.Of] {
						t.Fatalf("the end of %s was told, and it was not firing", w.Of)
					}
					firing[w.Of] = false
				default:
					if !firing[w.Of] {
						t.Fatalf("%s of %s, which was not firing", p.Event, w.Of)
					}
				}
			}
			if p.Earlier != nil {
				t.Fatalf("%d were collapsed of so few", p.Earlier.Count)
			}
		}
		for n := range lasted {
			if !toldOf(other.told, n) {
				t.Errorf("%s lasted and was not told", n)
			}
		}
		for n, is := range firing {
			if is {
				t.Errorf("the end of %s was not told", n)
			}
		}
		if l := d.List(); len(l.Firing)+len(l.Waiting) > 0 {
			t.Errorf("left: %+v", l)
		}
		for hour, n := range perHour {
			if n > 6 {
				t.Errorf("%s: told %d times", hour, n)
			}
		}
	})
}

func toldOf(told []payload, name string) bool {
	for _, p := range told {
		for _, w := range p.Troubles {
			if w.Of == name {
				return true
			}
		}
	}
	return false
}

func waits(d *Desk, name string) bool {
	for _, m := range d.List().Waiting {
		for _, w := range m.Troubles {
			if w.Of == name {
				return true
			}
		}
	}
	return false
}
