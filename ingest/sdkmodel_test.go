package ingest

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// sdk is what one of Amplitude's SDKs does with the answers it gets, as read in its source and seen in the recordings: which
// events it forgets, which it sends again and when. Time is its own, and costs nothing.
type sdk struct {
	family string // "browser", "node", "go", "python", "kotlin", "swift", "legacy-js"
	manual bool   // the application called flush(), after which Node does not try again
	send   func(events []json.RawMessage) (status int, answer []byte, err error)

	now       time.Duration
	sends     []sending
	delivered []json.RawMessage // answered so that the SDK tells its caller: done
	dropped   []json.RawMessage // given up
	kept      []json.RawMessage // still there when nothing more was to be learnt
}

type sending struct {
	at     time.Duration
	events int
	status int
}

// patience is after how many requests of one run it is clear that the SDK will go on for ever.
const patience = 40

// run lets the SDK send events, size of them in a request, until none is left, or it has had patience.
func (s *sdk) run(events []json.RawMessage, size int) {
	most := map[string]int{"node": 12, "browser": 5, "python": 12, "go": 13, "swift": 6}[s.family]
	if most == 0 {
		most = math.MaxInt
	}
	configured, splits, tries := size, 0, 0
	for waiting := slices.Clone(events); len(waiting) > 0; {
		if len(s.sends) == patience {
			s.kept = waiting
			return
		}
		n := min(size, len(waiting))
		batch, rest := waiting[:n:n], waiting[n:]
		status, answer, err := s.send(batch)
		s.sends = append(s.sends, sending{s.now, n, status})
		act := s.judge(status, answer, err, batch)
		switch {
		case act.done:
			s.delivered = append(s.delivered, batch...)
			waiting, tries = rest, 0
			continue
		case act.drop != nil:
			waiting = nil
			for i, e := range batch {
				if act.drop[i] {
					s.dropped = append(s.dropped, e)
				} else {
					waiting = append(waiting, e)
				}
			}
			waiting = append(waiting, rest...)
		case act.split && n == 1:
			s.dropped = append(s.dropped, batch...)
			waiting = rest
			continue
		case act.split && (s.family == "go" || s.family == "python"):
			splits++
			size = max(1, configured/(splits+1))
			continue
		case act.split:
			size = max(1, n/2)
			continue
		}
		if tries++; tries >= most || s.manual {
			s.dropped = append(s.dropped, waiting...)
			return
		}
		if act.keep {
			s.kept = waiting
			return
		}
		if act.drop == nil {
			s.now += act.wait(tries)
		}
	}
}

// action is what an answer makes an SDK do: one of done, drop, split, keep, or to try again after wait.
type action struct {
	done, split, keep bool
	drop              map[int]bool // by index in the request
	wait              func(tries int) time.Duration
}

func all(batch []json.RawMessage) map[int]bool {
	m := map[int]bool{}
	for i := range batch {
		m[i] = true
	}
	return m
}

func (s *sdk) judge(status int, answer []byte, err error, batch []json.RawMessage) action {
	backoff := action{wait: map[string]func(int) time.Duration{
		"node":    func(tries int) time.Duration { return time.Duration(tries) * time.Second },
		"browser": func(tries int) time.Duration { return time.Duration(tries) * time.Second },
		"go":      doubling,
		"python":  doubling,
		"kotlin":  func(tries int) time.Duration { return time.Duration(math.Pow(2, float64(min(tries, 8)))) * time.Second },
		"swift":   func(tries int) time.Duration { return time.Duration(math.Pow(2, float64(min(tries, 6)))) * time.Second },
	}[s.family]}
	if err != nil {
		if s.family == "node" || s.family == "go" {
			return action{drop: all(batch)}
		}
		return backoff
	}
	var a struct {
		Code     int              `json:"code"`
		Error    string           `json:"error"`
		Missing  string           `json:"missing_field"`
		Invalid  map[string][]int `json:"events_with_invalid_fields"`
		Absent   map[string][]int `json:"events_with_missing_fields"`
		Lengths  map[string][]int `json:"events_with_invalid_id_lengths"`
		Silenced []int            `json:"silenced_events"`
	}
	isJSON := json.Unmarshal(answer, &a) == nil
	if s.family == "legacy-js" {
		switch status {
		case 200:
			return action{done: true}
		case 413:
			return action{split: true}
		}
		return action{keep: true} // until the next event is logged
	}
	switch s.family {
	case "node", "browser":
		if isJSON {
			status = a.Code // without one it is 0, which is nothing
		}
	case "python":
		if !isJSON || a.Code == 0 {
			return action{drop: all(batch)} // a KeyError: lost, and nobody hears of it
		}
		status = a.Code
	}
	switch {
	case status/100 == 2:
		return action{done: true}
	case status == 413:
		if s.family == "go" && isJSON && a.Code == 0 {
			return action{wait: atOnce}
		}
		return action{split: true}
	case status == 429, status >= 500, status == 408:
		if status == 429 && s.family == "go" {
			return action{wait: atOnce} // without throttled_events
		}
		return backoff
	}
	drop := map[int]bool{}
	indexes := []map[string][]int{a.Invalid, a.Absent}
	if s.family != "kotlin" && s.family != "swift" {
		indexes = append(indexes, a.Lengths)
	}
	for _, field := range indexes {
		for _, at := range field {
			for _, i := range at {
				drop[i] = true
			}
		}
	}
	for _, i := range a.Silenced {
		drop[i] = true
	}
	switch {
	case s.family != "kotlin" && s.family != "swift" && a.Missing != "",
		s.family == "kotlin" && strings.Contains(strings.ToLower(a.Error), "invalid api key"),
		s.family == "swift" && a.Error == "Invalid API key: "+key,
		s.family != "kotlin" && s.family != "swift" && strings.HasPrefix(a.Error, "Invalid API key:"):
		return action{drop: all(batch)}
	case len(drop) > 0:
		return action{drop: drop}
	case s.family == "go":
		return action{wait: atOnce}
	case s.family == "node" || s.family == "browser":
		return action{wait: func(int) time.Duration { return 200 * time.Millisecond }}
	}
	return backoff
}

func atOnce(int) time.Duration { return 0 }

func doubling(tries int) time.Duration {
	return time.Duration(100 * math.Pow(2, float64((tries-1)/2)) * float64(time.Millisecond))
}

// spun says how the SDK would have gone on without a pause and without getting further, "" = it did not: of requests at
// one moment each has fewer events before it than the last, or is smaller.
func (s *sdk) spun() string {
	same := 0
	for i := 1; i < len(s.sends); i++ {
		if before := s.sends[i-1]; s.sends[i] == before && before.status/100 != 2 {
			if same++; same > 1 {
				return fmt.Sprintf("the same %d events are sent again at once, answered %d: %v", before.events, before.status, s.sends)
			}
		} else {
			same = 0
		}
	}
	return ""
}

// The models of SDKs tell a good door from a bad one: each of these answers made the real ones spin, or lose events.
func TestModelsKnowBadAnswers(t *testing.T) {
	for _, test := range []struct {
		family, answer string
		status         int
		spins, loses   bool
	}{
		{"go", `{"code":400,"error":"no"}`, 400, true, false},
		{"go", `404 page not found`, 404, true, false},
		{"go", `{"error":"too large"}`, 413, true, false},
		{"go", `{"code":429}`, 429, true, false},
		{"python", `{"ok":true}`, 200, false, true},
		{"node", `{"ok":true}`, 200, false, true},
	} {
		s := &sdk{family: test.family, send: func([]json.RawMessage) (int, []byte, error) { return test.status, []byte(test.answer), nil }}
		s.run([]json.RawMessage{[]byte(good), []byte(good)}, 2)
		if spun := s.spun() != ""; spun != test.spins || (len(s.dropped) > 0) != test.loses && !test.spins {
			t.Errorf("%s, %d %s: spins %v, %d dropped", test.family, test.status, test.answer, spun, len(s.dropped))
		}
	}
}
