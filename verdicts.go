package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"ampcio/config"
	"ampcio/mapping"
	"ampcio/queue"
)

// How much of what is pending is looked at before rules change, and for how long.
const (
	surveyRecords = 20_000
	surveyFor     = 5 * time.Second
)

// standard is by what a sync decides about a record: pure, so that what two of them
// make of the same record can be compared.
type standard struct {
	rules      *mapping.Rules // nil = it is a relay's
	lateAfter  time.Duration  // of the event's time
	latePolicy string         // deliver | filter | dead_letter
}

func standardOf(cfg *config.Config, name string, rules *mapping.Rules) *standard {
	if isRelay(name) {
		return &standard{}
	}
	late := cfg.Sync[name].Delivery
	return &standard{rules: rules, lateAfter: time.Duration(late.LateAfter), latePolicy: late.LatePolicy}
}

// Verdicts beside the reasons of mapping.
const (
	verdictSent       = "sent"
	verdictLate       = "late"
	verdictDead       = "late: dead letter"
	verdictUnreadable = "unreadable: dead letter"
)

// judged is what becomes of a record's event and, apart, of its user update: sent, or
// why not. What a person was last sent is left out of account: an update that is sent
// here may turn out to be nothing new.
// user is "" where there are none.
type judged struct{ event, user, name string }

func (s *standard) judge(q *queue.Record, now time.Time) judged {
	r := mapping.Record{Seq: q.Seq, Project: q.Project, ID: q.ID, Received: q.Received}
	if r.DecodeBody(q.Body) != nil {
		return judged{event: verdictUnreadable, user: verdictUnreadable}
	}
	if s.rules == nil {
		return s.relayJudge(r.FromSDK(), r.EventType())
	}
	var d mapping.Decision
	var err error
	if id, reason := s.rules.Identifier(&r); reason != "" {
		d = s.rules.NoIdentifier(&r, reason)
		err = d.Damaged
	} else {
		d, err = s.rules.Map(&r, id, nil)
	}
	if err != nil {
		return judged{event: verdictUnreadable, user: verdictUnreadable}
	}
	j := judged{event: cmp.Or(d.EventReason, verdictSent), user: cmp.Or(d.UserReason, verdictSent), name: d.EventType}
	for i := range d.Operations {
		o := &d.Operations[i]
		switch reason, _ := o.Refused(); {
		case reason == "":
		case o.Action == "identify":
			j.user = verdictDead
		default:
			j.event = verdictDead
		}
	}
	if j.event == verdictSent && s.lateAfter > 0 && now.Sub(time.UnixMilli(r.Time)) > s.lateAfter {
		switch s.latePolicy {
		case "filter":
			j.event = verdictLate
		case "dead_letter":
			j.event = verdictDead
		}
	}
	return j
}

// filtered says whether nothing at all comes of the record.
func (j judged) filtered() bool {
	return !j.kept() && j.user != verdictSent && j.user != verdictDead
}

// kept says whether the event reaches Customer.io or stays as a dead letter.
func (j judged) kept() bool {
	return j.event == verdictSent || j.event == verdictDead || j.event == verdictUnreadable
}

// newlyFiltered says whether a record that would have been sent no longer is. Its event
// counts for itself: that its user update is still sent makes up for nothing.
func newlyFiltered(before, after judged) bool {
	return before.event == verdictSent && !after.kept() || !before.filtered() && after.filtered()
}

// pendingVerdicts tell how verdicts on what is pending in a sync would change.
type pendingVerdicts struct {
	Sync    string `json:"sync"`
	Pending uint64 `json:"pending"`
	Looked  int    `json:"looked_at"` // records; the counts below are of these
	// Of those that the rules in force would send, how many no longer are. 0 when none
	// are in force.
	ToBeSent      int             `json:"to_be_sent"`
	NewlyFiltered int             `json:"newly_filtered"`
	Verdicts      []verdictChange `json:"verdicts"` // most frequent first
}

// verdictChange counts what becomes of events, or of user updates.
type verdictChange struct {
	Kind    string `json:"kind"`             // event | user
	Before  string `json:"before,omitempty"` // sent, or why not; absent when no rules are in force
	After   string `json:"after"`
	Records int    `json:"records"`
	Example string `json:"example"` // the name of an event
}

// survey compares what two standards make of what is pending; before may be nil. It
// looks at surveyRecords at most, spread evenly, and ends when the time is up.
func survey(ctx context.Context, c *queue.Consumer, limit time.Duration, before, after *standard) (pendingVerdicts, error) {
	stats, err := c.Stats()
	if err != nil {
		return pendingVerdicts{}, err
	}
	out := pendingVerdicts{Sync: stats.Name, Pending: stats.Books.Pending}
	counts := map[verdictChange]*verdictChange{}
	count := func(kind, before, after, example string) {
		key := verdictChange{Kind: kind, Before: before, After: after}
		if counts[key] == nil {
			counts[key] = &verdictChange{Kind: kind, Before: before, After: after, Example: example}
		}
		counts[key].Records++
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// One of each so many, by chance, so that a pattern in the queue cannot hide.
	each := max(1, int((out.Pending+surveyRecords-1)/surveyRecords))
	chance := rand.New(rand.NewPCG(out.Pending, 0))
	seen, pick, now := 0, chance.IntN(each), time.Now()
	err = c.PendingRecords(limited, func(r queue.Record) error {
		at := seen % each
		if seen++; at == 0 {
			pick = chance.IntN(each)
		}
		if at != pick || out.Looked == surveyRecords {
			return nil
		}
		out.Looked++
		will := after.judge(&r, now)
		var was judged
		if before != nil {
			was = before.judge(&r, now)
			if !was.filtered() {
				out.ToBeSent++
			}
			if newlyFiltered(was, will) {
				out.NewlyFiltered++
			}
		}
		count("event", was.event, will.event, will.name)
		if will.user != "" {
			count("user", was.user, will.user, will.name)
		}
		return nil
	})
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return out, fmt.Errorf("sync %s: read what is pending: %w", out.Sync, err)
	}
	for _, v := range counts {
		out.Verdicts = append(out.Verdicts, *v)
	}
	slices.SortFunc(out.Verdicts, func(a, b verdictChange) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(b.Records, a.Records), cmp.Compare(a.Before, b.Before), cmp.Compare(a.After, b.After))
	})
	return out, nil
}

// tooMany says whether most of what would be sent would be filtered instead. A few
// records are no reason to refuse.
func (p *pendingVerdicts) tooMany() bool {
	return p.NewlyFiltered >= 10 && 2*p.NewlyFiltered > p.ToBeSent
}

// looked says how much was looked at.
func (p *pendingVerdicts) looked() string {
	if uint64(p.Looked) >= p.Pending {
		return "all looked at"
	}
	return humanize.Comma(int64(p.Looked)) + " of them looked at"
}

// loss says what would, or will, be filtered, and why.
func (p *pendingVerdicts) loss(would string) string {
	var why []string
	for _, v := range p.Verdicts {
		if v.Kind == "event" && v.Before == verdictSent && v.After != verdictSent && v.After != verdictDead {
			why = append(why, fmt.Sprintf("%s %s, such as %q", humanize.Comma(int64(v.Records)), v.After, v.Example))
		}
	}
	text := fmt.Sprintf("sync %s has %s pending (%s): %s of %s that are to be sent %s be filtered", p.Sync, humanize.Comma(int64(p.Pending)), p.looked(),
		humanize.Comma(int64(p.NewlyFiltered)), humanize.Comma(int64(p.ToBeSent)), would)
	if len(why) > 0 {
		text += " (" + strings.Join(why, "; ") + ")"
	}
	return text
}

// write prints the verdicts for a person.
func (p *pendingVerdicts) write(w io.Writer) {
	fmt.Fprintf(w, "sync %s: %s pending, %s\n", p.Sync, humanize.Comma(int64(p.Pending)), p.looked())
	for _, kind := range []struct{ kind, title string }{{"event", "events"}, {"user", "user updates, if anything is new"}} {
		titled := false
		for _, v := range p.Verdicts {
			if v.Kind != kind.kind {
				continue
			}
			if !titled {
				titled = true
				fmt.Fprintf(w, "  %s\n", kind.title)
			}
			verdict := v.After
			if v.Before != "" {
				verdict = v.Before + " -> " + v.After
			}
			fmt.Fprintf(w, "    %-40s %11s   such as %q\n", verdict, humanize.Comma(int64(v.Records)), v.Example)
		}
	}
	if p.tooMany() {
		fmt.Fprintf(w, "  ampcio reload: %s of %s that are to be sent would be filtered. %s\n",
			humanize.Comma(int64(p.NewlyFiltered)), humanize.Comma(int64(p.ToBeSent)), wantsYes)
	}
}
