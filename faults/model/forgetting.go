package model

import (
	"context"
	"slices"

	"ampcio/queue"
)

// forget forgets a user.
func (h *history) forget(s step) {
	project := h.beginForgetting(s)
	h.finishForgetting()
	for _, l := range h.ledgers {
		if l.project == project {
			l.drop()
			fates, _ := h.fates(l)
			h.adopt(l, fates)
			l.written()
		}
	}
	h.lookAtPeople()
}

// crashForgetting crashes before it is done everywhere that some people are forgotten; the start finishes it.
func (h *house) crashForgetting(s step) {
	for i, y := range h.histories {
		if own := (step{a: s.b + 7*i, b: s.c + i}); own.a%4 > 0 {
			project := y.beginForgetting(own)
			for _, l := range y.ledgers {
				if l.project == project {
					l.drop()
				}
			}
		}
	}
	h.crash()
	for _, y := range h.histories {
		y.lookAtPeople()
	}
}

// beginForgetting does what is done at once when a user is forgotten; the ledgers come later.
func (h *history) beginForgetting(s step) (project string) {
	project, user := h.projects[min(1, s.a%4/3)], userIDs[s.b%len(userIDs)]
	for _, l := range h.ledgers {
		h.returnAll(l)
	}
	lanes, devices := h.people[project].lanes(user)
	known, err := h.store.Devices(context.Background(), project, user)
	h.must(err, "look for devices")
	slices.Sort(known)
	slices.Sort(devices)
	if !slices.Equal(known, devices) {
		h.fail("user %s of %s has devices %v, not %v", user, project, known, devices)
	}
	h.say("user %s of %s, devices %v", user, project, devices)
	_, err = h.log.ForgetLanes(context.Background(), project, queue.Forgetting{Lanes: lanes, Sent: []string{"id:" + user}},
		func(uint64) error { return h.store.Forget(project, lanes) })
	h.must(err, "forget")
	h.people[project].forget(user)
	for _, r := range h.of(project) {
		if slices.Contains(lanes, r.lane) {
			r.forgotten = true
		}
	}
	for _, l := range h.ledgers {
		if l.project == project {
			delete(l.to.people, user)
		}
	}
	return project
}

// finishForgetting does what the daemon does, also at a start.
func (h *house) finishForgetting() {
	unfinished := h.log.Unfinished()
	for _, t := range unfinished {
		for _, l := range h.all() {
			if l.project == t.Project {
				_, err := h.consumer(l).Forget(context.Background(), t.Unfinished.Sent)
				h.must(err, "forget in a ledger")
			}
		}
	}
	if len(unfinished) > 0 {
		h.must(h.store.Flush(context.Background()), "forget in users.db")
		_, err := h.store.Rewrite(context.Background())
		h.must(err, "write users.db anew")
	}
	for _, t := range unfinished {
		h.must(h.log.FinishForgetting(t.ID), "finish forgetting")
	}
}
