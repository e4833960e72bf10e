package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

func init() {
	verbs["trace"] = traceVerb
	readsOnly["trace"] = true
}

// tracing is what a trace is asked.
type tracing struct {
	whom
	Sync    string `json:"sync,omitempty"`
	Since   int64  `json:"since_ms,omitempty"` // of receipt, ms since 1970 UTC
	Limit   int    `json:"limit,omitempty"`    // the newest so many records
	ShowIDs bool   `json:"show_ids,omitempty"`
}

// traceMost bounds what a trace holds in memory: records, and bytes of them.
const (
	traceMost  = 10_000
	traceBytes = 64 << 20
)

// traced is one record, and what became of it.
type traced struct {
	Seq       uint64      `json:"seq"`
	Project   string      `json:"project"`
	Received  time.Time   `json:"received"`
	Time      *time.Time  `json:"event_time"` // null of a forgotten one
	Event     string      `json:"event,omitempty"`
	ID        string      `json:"id,omitempty"` // at Customer.io
	User      string      `json:"user,omitempty"`
	Device    string      `json:"device,omitempty"`
	Forgotten bool        `json:"forgotten"`
	InLog     bool        `json:"in_log"` // false = only a ledger still has it
	Syncs     []tracedFor `json:"syncs"`
}

// tracedFor is what became of a record in one sync. The states are those of the books, and
// of what is pending: delivered, filtered, dead_letter, discarded; pending, waiting,
// in_flight; not_taken; ended, when it has ended and nobody knows how any more.
type tracedFor struct {
	Sync     string        `json:"sync"`
	State    string        `json:"state"`
	At       *time.Time    `json:"at"`               // when it ended, or was answered; null = not known, or not yet
	Event    string        `json:"event"`            // what became of the event: delivered, or why not; "" = not known, or not yet
	UserSent string        `json:"user"`             // what became of the user update, likewise
	Tries    int           `json:"tries"`            // 0 = it was not sent, or nobody knows
	Reason   string        `json:"reason,omitempty"` // why it is filtered, dead or discarded, or why the last try failed
	Next     *time.Time    `json:"next_try"`
	Behind   bool          `json:"behind_same_user,omitempty"` // it waits for an earlier one of its user
	Aside    bool          `json:"aside,omitempty"`
	Paused   *time.Time    `json:"paused_since,omitempty"`
	Answers  []result      `json:"answers,omitempty"` // to a dead letter, part by part
	Earlier  []tracedEnd   `json:"earlier,omitempty"` // how it had ended before it was taken once more
	Rule     int           `json:"rule"`              // the select rule that decides now, counted from 1; 0 = none
	Now      *tracedByRule `json:"by_the_rules_now"`  // null when there are no rules, or nothing is known of the event
}

type tracedEnd struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

type tracedByRule struct {
	Event string `json:"event"` // sent, or why not
	User  string `json:"user"`  // sent, if anything is new; or why not
}

// traceSummary comes last.
type traceSummary struct {
	Found     uint64         `json:"found"`   // records
	Shown     int            `json:"shown"`   // the newest of them
	Kept      *time.Time     `json:"kept"`    // since when the log has records; null = it has none
	Looked    string         `json:"project"` // in which they were looked for
	Forgotten uint64         `json:"forgotten"`
	Syncs     []traceInBrief `json:"syncs"`
}

type traceInBrief struct {
	Sync    string `json:"sync"`
	Summary string `json:"summary"`
}

type traceLine struct {
	Record  *traced       `json:"record,omitempty"`
	Summary *traceSummary `json:"summary,omitempty"`
}

func traceVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	var asked tracing
	if err := readInput(in, &asked); err != nil {
		return err
	}
	if err := asked.inProject(h); err != nil {
		return err
	}
	hash, err := openUserHash(h.config().Storage.Dir)
	if err != nil {
		return err
	}
	k, err := openKept(h)
	if err != nil {
		return err
	}
	err = trace(ctx, k, &asked, hash, out)
	if closing := k.close(); err == nil {
		err = exit(exitIO, closing)
	}
	return err
}

func trace(ctx context.Context, k *kept, asked *tracing, hash userHash, out io.Writer) error {
	names := k.syncs(asked.Project)
	if asked.Sync != "" {
		if !slices.Contains(names, asked.Sync) {
			return unknownSync(k.h, asked.Sync)
		}
		names = []string{asked.Sync}
	}
	records, sum, err := asked.find(ctx, k, names, hash)
	if err != nil {
		return err
	}
	sum.Shown, sum.Looked = len(records), asked.Project
	lines := make([]*traced, len(records))
	for i := range records {
		lines[i] = asked.open(&records[i], hash)
	}
	now := time.Now()
	for _, name := range names {
		fates, err := k.fates(name, records, true)
		if err != nil {
			return err
		}
		var rules *standard
		if r := k.h.rulesOf(name); r != nil {
			rules = standardOf(k.h.config(), name, r)
		}
		for i := range records {
			t := tracedIn(name, &records[i], &fates[i])
			if rules != nil && !records[i].Forgotten {
				t.judge(rules, &records[i], now)
			}
			lines[i].Syncs = append(lines[i].Syncs, t)
		}
		sum.Syncs = append(sum.Syncs, traceInBrief{name, inBrief(name, lines)})
	}
	for _, l := range lines {
		if err := tell(out, traceLine{Record: l}); err != nil {
			return err
		}
	}
	return tell(out, traceLine{Summary: sum})
}

// find gives the newest of the records that are meant, in the order of the log.
func (a *tracing) find(ctx context.Context, k *kept, names []string, hash userHash) (records []queue.Found, sum *traceSummary, err error) {
	sum = &traceSummary{}
	limit := a.Limit
	if limit <= 0 || limit > traceMost {
		limit = traceMost
	}
	bytes := 0
	trim := func() {
		slices.SortFunc(records, func(a, b queue.Found) int { return cmp.Compare(a.Seq, b.Seq) })
		drop := max(len(records)-limit, 0)
		for ; bytes > traceBytes && drop < len(records)-1; drop++ {
			bytes -= len(records[drop].Body)
		}
		records = slices.Delete(records, 0, drop)
	}
	take := func(f queue.Found) {
		sum.Found++
		if f.Forgotten {
			sum.Forgotten++
		}
		f.Body = slices.Clone(f.Body)
		bytes += len(f.Body)
		if records = append(records, f); len(records) >= 2*limit || bytes > 2*traceBytes {
			trim()
		}
	}
	seen := map[uint64]bool{} // of those that ledgers hold
	match := a.matcher(hash)
	search := queue.Search{Project: a.Project, Since: a.Since, Match: match}
	if a.Seq != 0 {
		search.Seq, search.Match, search.Since = a.Seq, func(_, _ []byte) bool { return true }, 0
	}
	for _, name := range names {
		var lanes []string
		if a.User != "" {
			lanes = []string{users.LaneOfUser(a.User)}
		}
		held, err := k.held(ctx, name, lanes, func(d *queue.DeadLetter) bool {
			return d.Record.Seq == a.Seq || a.Seq == 0 && match([]byte(d.Record.Lane), d.Record.Body)
		})
		if err != nil {
			return nil, nil, err
		}
		for _, d := range held.Dead {
			held.Aside = append(held.Aside, d.Record)
		}
		for _, r := range held.Aside {
			if r.Project = a.Project; r.Received >= a.Since && !seen[r.Seq] {
				seen[r.Seq] = true
				take(queue.Found{Record: r})
			}
		}
	}
	err = k.search(ctx, search, func(f queue.Found) error {
		if seen[f.Seq] { // now its number is known
			i := slices.IndexFunc(records, func(r queue.Found) bool { return r.Seq == f.Seq })
			if i >= 0 {
				records[i].Ord = f.Ord
			}
			return nil
		}
		take(f)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	trim()
	since, err := k.log.Kept()
	if since != 0 {
		sum.Kept = timeOf(since)
	}
	return records, sum, exit(exitIO, err)
}

// open reads of a record what is shown of it.
func (a *tracing) open(f *queue.Found, hash userHash) *traced {
	t := &traced{Seq: f.Seq, Project: a.Project, Received: millisecond(f.Received), Forgotten: f.Forgotten, InLog: f.Ord != 0, Syncs: []tracedFor{}}
	r := mapping.Record{}
	if f.Forgotten || r.DecodeBody(f.Body) != nil {
		return t
	}
	e, _ := mapping.ParseEvent(r.Raw) // it was one when it was taken
	at := millisecond(r.Time)
	t.Time, t.Event, t.ID = &at, e.Type, mapping.ULID(f.ID)
	t.User, t.Device = r.UserID, r.DeviceID
	if !a.ShowIDs {
		t.User, t.Device = hash.of(r.UserID), hash.of(r.DeviceID)
	}
	return t
}

func millisecond(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// tracedIn says what a fate comes to.
func tracedIn(name string, r *queue.Found, f *queue.Fate) tracedFor {
	t := tracedFor{Sync: name, State: f.State, Aside: f.Aside}
	history := f.History
	switch f.State {
	case queue.FateDead:
		if n := len(history); n > 0 && history[n-1].Ending == queue.Dead {
			t.enter(&history[n-1])
			history = history[:n-1]
		}
		t.State = queue.FateDead
		if d := f.Dead; d != nil {
			at := millisecond(d.At)
			t.At, t.Reason = &at, d.Reason
			t.Answers = (&deadLetter{DeadLetter: *d}).results()
		}
	case queue.FateEnded:
		if n := len(history); n > 0 {
			t.enter(&history[n-1])
			history = history[:n-1]
		}
	case queue.FatePending, queue.FateWaiting:
		if t.Behind = f.Behind; f.State == queue.FateWaiting {
			at := millisecond(f.Due)
			t.Tries, t.Reason, t.Next = f.Failed, f.Reason, &at
		}
		if f.InFlight {
			t.State, t.Next = "in_flight", nil
		}
		if f.Paused != 0 {
			t.Paused = timeOf(f.Paused)
		}
	}
	if r.Forgotten && (t.State == queue.FatePending || t.State == queue.FateWaiting) {
		t.Reason, t.Next = queue.ForgottenReason, nil // it ends so when it is read
	}
	for _, e := range history {
		t.Earlier = append(t.Earlier, tracedEnd{stateOfEnding(e.Ending), millisecond(e.At), e.Reason})
	}
	return t
}

func stateOfEnding(e queue.Ending) string {
	if e == queue.Dead {
		return queue.FateDead
	}
	return e.String()
}

// enter takes over what the history says.
func (t *tracedFor) enter(e *queue.Ended) {
	at := millisecond(e.At)
	t.State, t.At, t.Tries, t.Reason = stateOfEnding(e.Ending), &at, e.Tries, e.Reason
	for _, tally := range e.Tallies {
		kind, rest, _ := strings.Cut(tally.Key, "/")
		rest = strings.TrimPrefix(rest, "filtered/")
		switch kind {
		case "event":
			t.Event = rest
		case "user":
			t.UserSent = rest
		}
	}
}

// judge says what the rules make of the record as they are now.
func (t *tracedFor) judge(rules *standard, f *queue.Found, now time.Time) {
	r := mapping.Record{Seq: f.Seq, Project: f.Project, ID: f.ID, Received: f.Received}
	if r.DecodeBody(f.Body) != nil {
		return
	}
	j := rules.judge(&f.Record, now)
	t.Rule, _ = rules.rules.WhichSelect(&r)
	t.Now = &tracedByRule{j.event, j.user}
}

// othersNow says how the rules as they are now would decide otherwise; "" when they would not.
// A late event is one that was not late then.
func (t *tracedFor) othersNow() string {
	if t.Now == nil || t.Event == "" || strings.HasPrefix(t.Event, "dead/") || t.Now.Event == verdictLate || t.Now.Event == verdictDead {
		return ""
	}
	was := t.Event
	if was == "delivered" {
		was = verdictSent
	}
	if was == t.Now.Event {
		return ""
	}
	return "by the rules as they are now it would be " + asVerdict(t.Now.Event)
}

func asVerdict(event string) string {
	if event == verdictSent {
		return verdictSent
	}
	return "filtered (" + event + ")"
}

// inBrief says in a sentence what became of all that is shown.
func inBrief(name string, lines []*traced) string {
	var order []string
	counts := map[string]int{}
	last := map[string]*tracedFor{}
	count := func(what string, t *tracedFor) {
		if counts[what]++; counts[what] == 1 {
			order = append(order, what)
		}
		last[what] = t
	}
	for _, l := range lines {
		for i := range l.Syncs {
			if t := &l.Syncs[i]; t.Sync == name {
				count(t.inShort(), t)
			}
		}
	}
	var parts []string
	for _, what := range order {
		n := fmt.Sprint(counts[what])
		if t := last[what]; t.At != nil && t.State == "delivered" {
			what += ", the last at " + clock(*t.At)
		}
		parts = append(parts, n+" "+what)
	}
	if parts == nil {
		return name + ": nothing is kept that it could have sent."
	}
	return fmt.Sprintf("%s: of %s, %s.", name, counted(uint64(len(lines)), "record", "records"), strings.Join(parts, "; "))
}

// inShort is what became of a record, in the words of the summary.
func (t *tracedFor) inShort() string {
	switch t.State {
	case "delivered":
		if t.Event != "" && t.Event != "delivered" {
			return "delivered as a user update only (event: " + t.Event + ")"
		}
		return "delivered"
	case "filtered", "discarded":
		return t.State + " (" + t.Reason + ")"
	case queue.FateDead:
		return "refused for good, and kept as a dead letter (" + t.Reason + "; ampcio dead-letters list)"
	case queue.FateWaiting:
		if t.Behind {
			return "waiting behind an earlier one of the same user (" + t.Reason + ")"
		}
		return "waiting for another try (" + t.Reason + ")"
	case queue.FateNotTaken:
		return "not taken, since the sync was off, in a dry run, or not there yet"
	case queue.FateEnded:
		return "ended; when and how is not known any more"
	case "in_flight":
		return "on the way now"
	}
	if t.Reason == queue.ForgottenReason {
		return "forgotten"
	}
	if t.Paused != nil {
		return "held, since the sync is paused"
	}
	return "pending"
}

func clock(t time.Time) string { return t.Format("2006-01-02 15:04:05 UTC") }
