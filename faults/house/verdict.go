package house

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ampcio/queue"
	"ampcio/users"
)

// Judge opens what lives have left, delivers all that is pending, and says which promises were broken: everything that was
// acknowledged was delivered or is known to have been given up; each event is in the log once, and came in order; the books
// and the audit balance; and users.db knows of each user what the last event said. The journal goes on meanwhile.
func Judge(ctx context.Context, s Settings, j *Journal, all int) (err error) {
	if err := j.broken(); err != nil {
		return err
	}
	s.Keep = time.Hour
	h, err := Open(ctx, s)
	if err != nil {
		return fmt.Errorf("it does not start: %w", err)
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, h.Close())
		}
	}()
	if damage := h.damage(); len(damage) > 0 {
		return fmt.Errorf("a start found %s", strings.Join(damage, "; "))
	}
	if err := h.Ledger.Resume(); err != nil {
		return err
	}
	if err := h.replayAll(); err != nil {
		return err
	}
	if err := h.Drain(ctx, func(c *queue.Claim) error { return j.take(c, all) }); err != nil {
		return err
	}
	st, err := h.Ledger.Stats()
	if err != nil {
		return err
	}
	if d := st.Books.Difference(); d != 0 || st.Books.Lost > 0 || st.Books.Taken != h.Log.Tail() {
		j.wrong("the log has %d records, and the books are out by %d: %+v", h.Log.Tail(), d, st.Books)
	}
	j.settled(h, all)
	closed = true
	if err := h.Close(); err != nil {
		return err
	}
	audits, err := queue.AuditFiles(ctx, s.Dir)
	for _, a := range audits {
		if !a.Balanced() {
			j.wrong("the audit: %s", strings.Join(a.Differences, "; "))
		}
	}
	return errors.Join(err, j.broken())
}

// Drain claims until nothing is pending; take looks at a claim, which is then delivered.
func (h *House) Drain(ctx context.Context, take func(*queue.Claim) error) error {
	limit, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	for {
		st, err := h.Ledger.Stats()
		if err != nil {
			return err
		}
		if st.Books.Pending == 0 {
			return nil
		}
		// What is lost at the end of the log is no claim: it is looked again soon.
		soon, cancel := context.WithTimeout(limit, 20*time.Millisecond)
		cl, err := h.Ledger.Claim(soon)
		cancel()
		switch {
		case h.Err() != nil:
			if err == nil {
				cl.Return()
			}
			return h.Err()
		case limit.Err() != nil:
			return fmt.Errorf("it does not drain: %+v", st)
		case err != nil:
			continue
		}
		err = take(cl)
		out := make([]queue.Outcome, len(cl.Records()))
		for i, rec := range cl.Records() {
			u, n, _, _ := Read(0, &rec)
			out[i] = queue.Outcome{Ending: queue.Delivered, SentKey: "id:" + userOf(u), Sent: fmt.Append(nil, n)}
			cl.Hold("id:" + userOf(u))
		}
		cl.Finish(out)
		if err != nil {
			return err
		}
	}
}

// replayAll makes all dead letters pending again.
func (h *House) replayAll() error {
	var dead []queue.DeadLetter
	err := h.Ledger.DeadLetters(func(d queue.DeadLetter) error { dead = append(dead, d); return nil })
	if err != nil {
		return err
	}
	_, err = h.Ledger.ReplayDead(sequences(dead))
	return err
}

// take enters a claim into the journal.
func (j *Journal) take(cl *queue.Claim, all int) error {
	of, events := 0, ""
	for i, rec := range cl.Records() {
		u, n, wrong, unknowing := Read(j.Seed, &rec)
		if wrong != nil || unknowing != nil && u != all-1 {
			return errors.Join(wrong, unknowing)
		}
		if i > 0 && u != of {
			return fmt.Errorf("a claim has records of the users %d and %d", of, u)
		}
		of, events = u, events+fmt.Sprintf(" %d", n)
	}
	j.Add(fmt.Sprintf("claimed %d%s", of, events))
	j.Add(fmt.Sprintf("got %d%s", of, events))
	return nil
}

// settled looks what became of each user's events, when nothing is pending any more.
func (j *Journal) settled(h *House, all int) {
	stored := map[int]map[int]int{}
	reader := h.Log.Reader(0)
	first := uint64(0) // of the log's records: files that nobody needed may be gone
	for {
		c, err := reader.Try()
		if err != nil {
			j.wrong("read the log: %v", err)
			return
		}
		if c == nil {
			break
		}
		if first == 0 {
			first = c.First
		}
		err = c.Records(func(r queue.Record) error {
			if r.Forgotten {
				return nil
			}
			u, n, wrong, _ := Read(j.Seed, &r)
			if stored[u] == nil {
				stored[u] = map[int]int{}
			}
			stored[u][n]++
			return wrong
		})
		if err != nil {
			j.wrong("read the log: %v", err)
		}
	}
	for u := range all {
		if u == all-1 && j.Gone[u] {
			continue
		}
		for n := 1; n <= j.Acked[u]; n++ {
			if !j.Got[u][n] && !j.Dropped[u][n] {
				j.wrong("user %d: event %d of %d was acknowledged and never delivered", u, n, j.Acked[u])
			}
		}
		for n, times := range stored[u] {
			if times > 1 {
				j.wrong("user %d: event %d is in the log %d times", u, n, times)
			}
		}
		for n := range j.Got[u] {
			if n > j.Sent[u] {
				j.wrong("user %d: event %d was delivered and never sent", u, n)
			}
		}
		j.settledUser(h, u)
	}
}

// settledUser compares what is known of a user, and was sent of him, with the last event that there is.
func (j *Journal) settledUser(h *House, u int) {
	last := 0
	for n := range j.Got[u] {
		last = max(last, n)
	}
	for n := range j.Dropped[u] {
		last = max(last, n)
	}
	if last == 0 {
		return
	}
	if err := KnownIs(h.Users, u, last); err != nil {
		j.wrong("%v", err)
	}
	sent, err := h.Ledger.LastSent("id:" + userOf(u))
	n, _ := strconv.Atoi(string(sent))
	// Of an event that was delivered, and was one of the dead letters when a crash had taken that away, and was given up, the
	// ledger knows nothing.
	if gaveUp := j.Dropped[u][j.LastGot[u]] && j.Got[u][n]; err != nil || n != j.LastGot[u] && !gaveUp {
		j.wrong("user %d was last sent event %d; the ledger says %q, %v", u, j.LastGot[u], sent, err)
	}
}

// broken gives what is wrong, as an error.
func (j *Journal) broken() error {
	if len(j.Wrong) == 0 {
		return nil
	}
	some := j.Wrong[:min(len(j.Wrong), 5)]
	return fmt.Errorf("%d promises were broken: %s", len(j.Wrong), strings.Join(some, "; "))
}

// KnownIs compares what is known of a user with what should be behind his event n.
func KnownIs(s *users.Store, u, n int) error {
	k, err := s.Device(Project, deviceOf(u))
	if err == nil {
		err = sameProperties(k.Properties, n)
	}
	if err != nil {
		return fmt.Errorf("user %d in users.db, whose last event is %d: %w", u, n, err)
	}
	return nil
}
