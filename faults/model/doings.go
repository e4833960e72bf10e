package model

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing/synctest"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
)

// doing is one kind of step.
type doing struct {
	name   string
	weight int
	do     func(h *history, s step)
}

var doings []doing

func init() {
	doings = []doing{
		{"ingest", 14, (*history).ingest},
		{"claim", 6, func(h *history, s step) {
			l := h.ledger(s.a)
			h.take(l, func(lane string) bool { return (len(lane)*31+int(lane[len(lane)-1])+s.b)%3 > 0 })
		}},
		{"end claims", 10, func(h *history, s step) {
			l := h.ledger(s.a)
			for i, cl := range slices.Clone(l.claims) {
				h.settle(l, cl, ways[(s.b+i)%len(ways)], s.c, s.d)
			}
		}},
		{"deliver", 5, func(h *history, s step) { h.deliver(h.ledger(s.a)) }},
		{"deliver for real", 6, (*history).deliverForReal},
		{"one fails", 3, func(h *history, s step) { h.stumble(h.ledger(s.a), s.b) }},
		{"a part ends", 2, (*history).partEnds},
		{"more comes to who fails", 2, (*history).holdFailing},
		{"a moment", 3, func(h *history, s step) { h.sleep(300 * time.Millisecond) }},
		{"flush", 1, func(h *history, s step) {
			l := h.ledger(s.a)
			h.must(h.consumer(l).Flush(), "flush")
			l.written()
		}},
		{"flowing", 2, func(h *history, s step) { h.consumer(h.ledger(s.a)).Flowing(s.b%4 > 0) }},
		{"pause", 1, func(h *history, s step) { h.pause(h.ledger(s.a), true) }},
		{"resume", 2, func(h *history, s step) { h.pause(h.ledger(s.a), false) }},
		{"rules", 2, (*history).newRules},
		{"enable", 2, (*history).enable},
		{"bound", 1, (*history).bound},
		{"add sync", 1, (*history).addSync},
		{"rename sync", 1, (*history).renameSync},
		{"remove sync", 1, (*history).removeSync},
		{"rewind", 2, (*history).rewind},
		{"retry dead letters", 3, func(h *history, s step) { h.deadLetters(s, true) }},
		{"drop dead letters", 1, func(h *history, s step) { h.deadLetters(s, false) }},
		{"forget", 1, (*history).forget},
		{"audit", 1, func(h *history, s step) { h.audit(h.ledger(s.a)) }},
	}
	for _, d := range doings {
		often = append(often, slices.Repeat([]string{d.name}, d.weight)...)
	}
	for _, d := range houseworks {
		oftenInTheHouse = append(oftenInTheHouse, slices.Repeat([]string{d.name}, d.weight)...)
	}
}

// houseworks are what befalls a whole house.
var houseworks = []struct {
	name   string
	weight int
	do     func(h *house, s step)
}{
	{"some seconds", 6, func(h *house, _ step) { h.sleep(2500 * time.Millisecond) }},
	{"hours", 2, func(h *house, _ step) { h.ahead += 2 * time.Hour; h.sleep(1100 * time.Millisecond) }},
	{"days", 2, func(h *house, _ step) { h.ahead += 8 * 24 * time.Hour; h.sleep(1100 * time.Millisecond) }},
	{"crash", 1, func(h *house, _ step) { h.crash() }},
	{"crash while some deliver", 2, (*house).crashDelivering},
	{"crash while some are forgotten", 1, (*house).crashForgetting},
	{"restart", 1, func(h *house, _ step) { h.restart() }},
}

// turn does one step, and looks whether all is as it should be.
func (h *house) turn(t turn) {
	h.who, h.at, h.doing = t.who, t.at, t.do
	h.say("%d %d %d %d", t.a, t.b, t.c, t.d)
	if t.who > 0 {
		y := h.histories[t.who-1]
		for _, d := range doings {
			if d.name == t.do {
				d.do(y, t.step)
			}
		}
		y.balance()
		return
	}
	for _, d := range houseworks {
		if d.name == t.do {
			d.do(h, t.step)
		}
	}
	for _, y := range h.histories {
		y.balance()
	}
}

func (h *history) ledger(n int) *ledger { return h.ledgers[n%len(h.ledgers)] }

// ingest is one request of one to three events.
func (h *history) ingest(s step) {
	project := h.projects[0]
	if s.a%5 == 0 {
		project = h.projects[1]
	}
	var events []*event
	for i := range 1 + s.b%3 {
		h.events++
		x := s.c + 7*i
		e := &event{n: h.events, kind: []string{"a", "b", "c"}[x%3], name: names[(x/3)%3], value: x % 10,
			operation: []string{"", "$set", "$set", "plain", "$add", "$setOnce", "$unset", "$clearAll"}[(x/9)%8]}
		y := s.d + 11*i
		if who := y % 8; who != 0 {
			e.device = deviceIDs[who%3]
		}
		if who := y / 8 % 7; who > 2 || e.device == "" {
			e.user = userIDs[who%3]
		}
		switch again := y / 56 % 4; again {
		case 0: // none
		case 1:
			e.insertID = fmt.Sprint("i", max(1, h.events-1-x%5))
		default:
			e.insertID = fmt.Sprint("i", h.events)
		}
		events = append(events, e)
	}
	h.arrive(project, events...)
}

// arrive is a request.
func (h *history) arrive(project string, events ...*event) {
	now := h.now()
	a := mapping.Arrival{Project: project, Received: now.UnixMilli(), Address: "192.0.2.1"}
	for _, e := range events {
		parsed, problems := mapping.ParseEvent(e.raw())
		if len(problems) > 0 {
			h.fail("an event is refused: %v", problems)
		}
		a.Events = append(a.Events, parsed)
		h.say("%s %s", project, parsed.Raw)
	}
	tail := h.log.Tail()
	duplicates, err := h.store.Append(context.Background(), a)
	h.must(err, "append")
	repeats := 0
	for _, e := range events {
		user, after, taken := h.people[project].take(e, now)
		if !taken {
			repeats++
			continue
		}
		tail++
		r := &record{seq: tail, ord: uint64(len(h.project[project])) + 1, project: project, user: user, device: e.device, kind: e.kind, n: e.n,
			event: e.identity(), lane: laneOf(user, e.device), properties: after, received: now.UnixMilli()}
		h.records, h.bySeq[r.seq], h.byNumber[r.n] = append(h.records, r), r, r
		h.project[project] = append(h.project[project], r)
		for _, l := range h.ledgers {
			if l.project == project {
				l.is = append(l.is, state{taken: l.enabled})
			}
		}
	}
	if duplicates != repeats || tail != h.log.Tail() {
		h.fail("%d of %d events are taken for repeats, not %d; the log ends at %d, not %d", duplicates, len(events), repeats, h.log.Tail(), tail)
	}
	h.lookAtPeople()
}

// sleep lets virtual time pass.
func (h *house) sleep(d time.Duration) {
	time.Sleep(d)
	h.quiet()
}

// quiet waits until nothing moves any more, and learns what some bound has discarded meanwhile.
func (h *house) quiet() {
	synctest.Wait()
	for _, l := range h.all() {
		if l.discards {
			l.h.learnDiscards(l)
		}
	}
}

// learnDiscards asks what was given up for the bound: those that had waited longest, and nothing that is in a claim.
func (h *history) learnDiscards(l *ledger) {
	fates, _ := h.fates(l)
	h.adopt(l, fates)
	claimed := map[uint64]bool{}
	for _, cl := range l.claims {
		for _, q := range cl.Records() {
			claimed[q.Seq], l.spared[q.Seq] = true, true
		}
	}
	now := l.now()
	gone, problem := h.giveUp(l, &now, fates)
	if problem != "" {
		h.fail("sync %s: %s", l.name, problem)
	}
	for _, r := range gone {
		if claimed[r.seq] {
			h.fail("sync %s: record %d is given up, and is in a claim", l.name, r.seq)
		}
	}
	l.is = now.is
	h.given(l, gone)
	l.written()
}

// giveUp enters in a snapshot which records a bound has discarded since. There must be no older one that was kept, unless it
// was in a claim.
func (h *history) giveUp(l *ledger, s *snapshot, fates []queue.Fate) (gone []*record, problem string) {
	kept := uint64(0)
	for i, r := range h.of(l.project) {
		is := &s.is[i]
		switch {
		case !is.taken || is.ending != 0:
		case fates[i].State == queue.FateEnded && r.forgotten:
		case fates[i].State == queue.FateEnded:
			if kept != 0 {
				return nil, fmt.Sprintf("record %d is given up for the bound, and record %d, which is older, is not", r.seq, kept)
			}
			is.ending = queue.Discarded
			gone = append(gone, r)
		case !l.spared[r.seq]:
			kept = r.seq
		}
	}
	return gone, ""
}

// given notes what it means that records were given up: of whom Customer.io may know something that only these would have corrected.
func (h *history) given(l *ledger, gone []*record) {
	for _, r := range gone {
		if l.to.loose[r.user] {
			l.to.unsure[r.user] = true
		}
		h.say("record %d of sync %s is given up", r.seq, l.name)
	}
}

func (h *history) pause(l *ledger, yes bool) {
	f := h.consumer(l).Resume
	if yes {
		f = h.consumer(l).Pause
	}
	h.must(f(), "pause or resume")
	h.say("sync %s", l.name)
	l.paused = yes
	l.written()
}

// newRules lets what is pending be mapped in another way. Where Customer.io may have been told something that the ledger
// does not know of, and which the new rules do not tell again, nothing is said of the user from here on.
func (h *history) newRules(s step) {
	l := h.ledger(s.a)
	l.rules = s.b % len(ruleSets)
	h.say("sync %s: %s", l.name, ruleSets[l.rules].name)
	for user := range l.to.loose {
		l.to.unsure[user] = true
	}
}

func (h *history) enable(s step) {
	l := h.ledger(s.a)
	l.enabled = s.b%3 > 0
	h.must(h.consumer(l).SetEnabled(l.enabled), "enable or disable")
	h.say("sync %s: %v", l.name, l.enabled)
	l.written()
}

func (h *history) bound(s step) {
	l := h.ledger(s.a)
	most := int64(0)
	if s.b%3 > 0 {
		most = 2000 + int64(s.c)*20
		if !l.discards {
			l.spared = map[uint64]bool{}
		}
		l.discards = true // for longer than the bound: what is not read yet is given up as it is
	}
	h.consumer(l).SetBound(most, true)
	h.say("sync %s: at most %d bytes", l.name, most)
}

func (h *history) addSync(s step) {
	if len(h.ledgers) < 3 {
		l := h.newLedger(h.projects[min(1, s.a%3)])
		h.say("sync %s of %s", l.name, l.project)
		h.openLedger(l)
		h.runLedger(l)
	}
}

func (h *history) renameSync(s step) {
	l := h.ledger(s.a)
	h.closeLedger(l)
	h.names++
	old := l.name
	l.name = fmt.Sprint("sync", h.names)
	h.must(queue.RenameLedger(h.log, old, l.name), "rename")
	h.say("sync %s is %s", old, l.name)
	h.openLedger(l)
	h.runLedger(l)
	if l.discarded { // there was time for that before it was closed: its claims were returned then
		h.learnDiscards(l)
	}
}

func (h *history) removeSync(s step) {
	if len(h.ledgers) < 2 {
		return
	}
	l := h.ledger(s.a)
	h.closeLedger(l)
	h.must(queue.RemoveLedger(h.log, l.name), "remove")
	h.say("sync %s", l.name)
	h.ledgers = slices.DeleteFunc(h.ledgers, func(other *ledger) bool { return other == l })
}

// rewind goes back to when some record was received; sometimes it takes what was not taken, too.
func (h *history) rewind(s step) {
	l := h.ledger(s.a)
	if len(h.records) == 0 {
		return
	}
	h.returnAll(l)
	from := h.records[s.b%len(h.records)]
	untaken := s.c%3 == 0 && l.enabled
	do := h.consumer(l).Rewind
	if untaken {
		do = h.consumer(l).TakeSince
	}
	h.say("sync %s to record %d, untaken %v", l.name, from.seq, untaken)
	fates, _ := h.fates(l)
	h.adopt(l, fates)
	var want queue.Rewound
	next := l.now()
	for i, r := range h.of(l.project) {
		is := &next.is[i]
		switch {
		case r.received < from.received:
		case !is.taken:
			if untaken {
				want.Untaken++
				is.taken = true
			}
		case is.ending == 0:
			want.Pending++
		case is.ending == queue.Dead:
			want.DeadLetters++
			is.ending, is.again = 0, false
		default:
			want.Records++
			next.past[is.ending]++
			is.ending, is.again = 0, false
		}
	}
	got, err := do(context.Background(), from.received, false, false)
	if errors.Is(err, queue.ErrNotKept) && h.now().Sub(beginning) > keep { // also what came before this history
		h.say("the log does not reach so far")
		l.written()
		return
	}
	h.must(err, "rewind")
	got.From = 0
	if got != want {
		h.fail("sync %s: the rewind to record %d takes %+v, not %+v", l.name, from.seq, got, want)
	}
	l.is, l.past = next.is, next.past
	l.written()
}

func (h *history) deadLetters(s step, again bool) {
	l := h.ledger(s.a)
	h.must(h.consumer(l).Flush(), "flush")
	l.written()
	var chosen []*record
	for i, r := range h.of(l.project) {
		if l.is[i].ending == queue.Dead && l.is[i].taken && (s.b+i)%3 > 0 {
			chosen = append(chosen, r)
		}
	}
	// While a lane is in a claim, its head may not change.
	chosen = slices.DeleteFunc(chosen, func(r *record) bool {
		return again && slices.ContainsFunc(l.claims, func(cl *claim) bool { return cl.lane == r.lane })
	})
	if len(chosen) == 0 {
		return
	}
	h.say("sync %s: records %v", l.name, numbers(chosen))
	do, ending := h.consumer(l).DropDead, queue.Discarded
	if again {
		do, ending = h.consumer(l).ReplayDead, 0
	}
	n, err := do(numbers(chosen))
	h.must(err, "retry or drop dead letters")
	if n != len(chosen) {
		h.fail("sync %s: %d of the dead letters %v are found", l.name, n, numbers(chosen))
	}
	for _, r := range chosen {
		l.state(r).ending, l.state(r).again = ending, again
	}
	l.written()
}

// audit proves the books from the disk.
func (h *history) audit(l *ledger) {
	a, err := h.consumer(l).Audit(context.Background())
	h.must(err, "audit")
	l.written()
	now := l.now()
	want, loose := now.books(h.of(l.project))
	if !a.Balanced() || a.Missing > 0 || !agrees(want, a.Books, loose, l.vague) {
		h.fail("sync %s: the audit says %+v; the books are %+v", l.name, a, want)
	}
}

// curtain ends a history: all that is pending is delivered, and everybody has what the model says.
func (h *history) curtain() {
	h.who, h.at, h.doing = h.number, 0, "the end"
	for _, l := range h.ledgers {
		h.returnAll(l)
		h.consumer(l).SetBound(0, false)
		if l.paused {
			h.pause(l, false)
		}
	}
	var last []*event
	for _, user := range userIDs {
		h.events++
		last = append(last, &event{user: user, kind: "a", n: h.events})
	}
	h.arrive(h.projects[0], last...)
	for round := 0; ; round++ {
		left := 0
		for _, l := range h.ledgers {
			h.deliver(l)
			for _, r := range h.of(l.project) {
				if l.pending(r) && !r.forgotten {
					left++
				}
			}
		}
		if left == 0 {
			break
		}
		if round == 20 {
			h.fail("%d records are never given to anybody", left)
		}
		h.sleep(2100 * time.Millisecond)
	}
	h.balance()
	for _, l := range h.ledgers {
		fates, _ := h.fates(l)
		h.adopt(l, fates)
		h.audit(l)
		for _, user := range userIDs {
			if n := len(h.of(l.project)); l.project == h.projects[0] && l.enabled && n > 0 && ruleSets[l.rules].users {
				h.must(l.to.same(user, h.people[l.project].users[user]), "in the end")
			}
		}
	}
	h.lookAtPeople()
}
