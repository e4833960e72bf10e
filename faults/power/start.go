package power

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// probe is a user of whom each start takes one event more, after it has looked at what is there.
const probe = "probe"

// start does with a storage folder what the daemon does at its start, and gives what it finds there. Then it writes. With
// deep it also delivers all that waits, and audits the folder once more when it is closed.
func start(ctx context.Context, dir string, b *book, deep bool) (s *seen, err error) {
	h, err := openHouse(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	defer func() {
		err = errors.Join(err, h.close())
		if err == nil && deep {
			err = auditClosed(ctx, dir)
		}
	}()
	if away := h.log.SetAside(); len(away) > 0 {
		return nil, fmt.Errorf("start: the log has set aside %+v", away)
	}
	if away := h.consumer.SetAside(); away != nil {
		return nil, fmt.Errorf("start: the ledger was set aside: %+v", *away)
	}
	if w := h.store.Warning(); w != nil {
		return nil, fmt.Errorf("start: %w", w)
	}
	if s, err = look(ctx, &h, b); err != nil {
		return nil, err
	}
	a, err := h.consumer.Audit(ctx)
	if err != nil {
		return nil, err
	}
	if err := balanced(&a); err != nil {
		return nil, err
	}
	return s, write(ctx, &h, b, s, deep)
}

// look reads everything.
func look(ctx context.Context, h *house, b *book) (*seen, error) {
	s := &seen{counts: map[int]float64{}, users: map[string]properties{}, sent: map[string]int{}, victims: map[int]int{}, taken: int(h.log.Count(project))}
	err := h.consumer.PendingRecords(ctx, func(r queue.Record) error {
		n, count, err := read(b.seed, &r)
		s.pending = append(s.pending, n)
		s.counts[n] = count
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what is pending: %w", err)
	}
	err = h.consumer.DeadLetters(func(d queue.DeadLetter) error {
		n, _, err := read(b.seed, &d.Record)
		s.dead = append(s.dead, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	for u, numbers := range b.users {
		k, err := h.store.User(project, u)
		if err != nil {
			return nil, err
		}
		if s.users[u], err = propertiesOf(k.Properties); err != nil {
			return nil, err
		}
		sent, err := h.consumer.Sent(identifier(u))
		if err != nil {
			return nil, err
		}
		if sent != nil {
			if s.sent[u], err = strconv.Atoi(string(sent)); err != nil {
				return nil, fmt.Errorf("%s was last sent %q", u, sent)
			}
		}
		if u[0] == 'v' {
			if at, upTo := h.log.ForgottenAt(project, users.LaneOfUser(u)); at > 0 {
				s.victims[numbers[0]/victimsEvery] = forgotten
				for _, t := range h.log.Unfinished() {
					if t.UpTo == upTo && t.Unfinished.Lanes[0] == users.LaneOfUser(u) {
						s.victims[numbers[0]/victimsEvery] = buried
					}
				}
			}
		}
	}
	return s, nil
}

// write lets the log take one event more; with deep everything is delivered too.
func write(ctx context.Context, h *house, b *book, s *seen, deep bool) error {
	running, stop := context.WithCancel(ctx)
	parts := 1
	ends := make(chan error, 2)
	go func() { ends <- h.log.Run(running) }()
	if deep {
		parts++
		go func() { ends <- h.consumer.Run(running) }()
	}
	err := take(ctx, h)
	if err == nil && deep {
		err = drain(ctx, h, b, s)
	}
	stop()
	for range parts {
		err = errors.Join(err, <-ends)
	}
	if err == nil && int(h.log.Count(project)) != s.taken+1 {
		err = fmt.Errorf("one event was taken more, and the log counts %d after %d", h.log.Count(project), s.taken)
	}
	return err
}

func take(ctx context.Context, h *house) error {
	now := time.Now().UnixMilli()
	ev, problems := mapping.ParseEvent([]byte(`{"event_type":"Probe","user_id":"` + probe + `","insert_id":"` + strconv.FormatInt(now, 10) + `"}`))
	if len(problems) > 0 {
		return fmt.Errorf("%v", problems)
	}
	before := h.log.Tail()
	_, err := h.store.Append(ctx, mapping.Arrival{Project: project, Received: now, Source: mapping.SourceHTTP, Events: []mapping.Event{ev}})
	if err != nil {
		return fmt.Errorf("one event more: %w", err)
	}
	if after := h.log.Tail(); after != before+1 {
		return fmt.Errorf("one event more: the log ends at %d after %d", after, before)
	}
	return nil
}

// drain delivers all that waits, and looks whether it is what was seen, in order.
func drain(ctx context.Context, h *house, b *book, s *seen) error {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	left := map[int]bool{}
	for _, n := range s.pending {
		left[n] = true
	}
	last := map[string]int{}
	for probed := false; len(left) > 0 || !probed; {
		cl, err := h.consumer.Claim(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d that are pending are not delivered: %w", len(left), len(s.pending), err)
		}
		records := cl.Records()
		outcomes := make([]queue.Outcome, len(records))
		for i := range records {
			outcomes[i].Ending = queue.Delivered
			if records[i].Lane == users.LaneOfUser(probe) {
				probed = true
				continue
			}
			n, _, err := read(b.seed, &records[i])
			if err == nil && !left[n] {
				err = fmt.Errorf("event %d is delivered, and was not pending", n)
			}
			if err != nil {
				cl.Return()
				return err
			}
			u := b.events[n].user
			if _, again := cl.Replay(i); !again {
				if n < last[u] {
					cl.Return()
					return fmt.Errorf("event %d of %s is delivered behind %d", n, u, last[u])
				}
				last[u] = n
			}
			delete(left, n)
		}
		cl.Finish(outcomes)
	}
	if err := h.consumer.Flush(); err != nil {
		return err
	}
	a, err := h.consumer.Audit(ctx)
	if err == nil {
		err = balanced(&a)
	}
	if err == nil && a.Books.Pending != 0 {
		err = fmt.Errorf("all was delivered, and %d are pending", a.Books.Pending)
	}
	return err
}

func balanced(a *queue.Audit) error {
	if !a.Balanced() || a.Missing > 0 || a.Books.Lost > 0 || a.Books.Difference() != 0 {
		return fmt.Errorf("the books do not balance: %+v", *a)
	}
	return nil
}

func auditClosed(ctx context.Context, dir string) error {
	all, err := queue.AuditFiles(ctx, dir)
	for i := range all {
		err = errors.Join(err, balanced(&all[i]))
	}
	return err
}
