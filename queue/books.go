package queue

// Ending is what became of a record in one consumer.
type Ending uint8

// The endings. Lost is entered by the reader alone, when the disk has lost records.
const (
	Delivered Ending = iota + 1
	Filtered
	Dead
	Discarded
	Lost
	endings // how many there are, and one
)

func (e Ending) String() string {
	return [...]string{"", "delivered", "filtered", "dead", "discarded", "lost"}[e]
}

// Books account for every record that a consumer has taken since it began:
// Taken = Delivered + Filtered + Dead + Discarded + Lost + Pending.
//
// The two sides are counted apart. Taken comes from the log, which counts what it
// stores for each project; the endings are entered one by one as they happen; and
// Pending is counted by what the consumer holds and has yet to read.
type Books struct {
	Taken     uint64 `json:"taken"`
	Delivered uint64 `json:"delivered"`
	Filtered  uint64 `json:"filtered"`
	Dead      uint64 `json:"dead"`
	Discarded uint64 `json:"discarded"`
	Lost      uint64 `json:"lost"`
	Pending   uint64 `json:"pending"`
}

// Difference is what the books are out by; 0 when they balance.
func (b Books) Difference() int64 {
	return int64(b.Taken) - int64(b.Delivered+b.Filtered+b.Dead+b.Discarded+b.Lost+b.Pending)
}

// span is a stretch of the log that a consumer takes: the records behind from, up
// to and with to. The counts are the project's records in the log at both ends.
type span struct {
	from, to           uint64 // to = 0: still open
	fromCount, toCount uint64
}

// takes says whether any span holds seq.
func takes(spans []span, seq uint64) bool {
	for i := len(spans) - 1; i >= 0; i-- {
		if s := spans[i]; seq > s.from {
			return s.to == 0 || seq <= s.to
		}
	}
	return false
}

// takenOf counts the records in spans, of which the first count the project has.
func takenOf(spans []span, count uint64) (n uint64) {
	for _, s := range spans {
		end := s.toCount
		if s.to == 0 {
			end = count
		}
		if min(end, count) > s.fromCount {
			n += min(end, count) - s.fromCount
		}
	}
	return n
}

// Tally counts something of a record apart from its ending, such as why its event
// was not sent. Keys are the caller's.
type Tally struct {
	Key     string
	Example string // of what was counted, for people; no user's data
}

// Count is a tally as it stands.
type Count struct {
	N       uint64 `json:"n"`
	Newest  int64  `json:"newest"` // ms since 1970 UTC
	Example string `json:"example,omitempty"`
}
