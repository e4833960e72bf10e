package planted

// bug is a mistake in the product's source that sleeps until its name stands in the environment.
type bug struct {
	name  string
	what  string // is wrong
	trial string // that must find it
	file  string // below the product's folder
	old   string // text that stands there once
	new   string // what takes its place
	seed  uint64 // of the hunt; 0 = by chance. Where what the bug breaks is one of many things that a trial does, and dear.
}

// bugs are as a tired programmer makes them: a line too early, a line forgotten, an error passed over. Each must be found
// by one trial, so that together they say of every trial that it can fail.
var bugs = []bug{{
	name: "answer-before-commit", trial: "kill -9",
	what: "senders are answered before the commit",
	file: "queue/commit.go",
	old: `	if len(g.chunks) == 0 {
		g.answer(nil)
`,
	new: `	if planted.Is("answer-before-commit") {
		g.answer(nil)
	}
	if len(g.chunks) == 0 {
		g.answer(nil)
`,
}, {
	name: "log-not-synced", trial: "ext4 cuts",
	what: "commits of the log are not synced",
	file: "queue/log.go",
	old: `	f.db, f.file, f.writing = db, file, true
`,
	new: `	f.db, f.file, f.writing = db, file, true
	db.NoSync = planted.Is("log-not-synced")
`,
}, {
	name: "ledger-not-synced", trial: "power cuts",
	what: "checkpoints of a ledger are not synced",
	file: "queue/consumer.go",
	old: `	if err := Guard(func() error { return c.db.View(c.load) }); err != nil {
`,
	new: `	c.db.NoSync = planted.Is("ledger-not-synced")
	if err := Guard(func() error { return c.db.View(c.load) }); err != nil {
`,
}, {
	name: "name-not-synced", trial: "crash images",
	what: "a new file's name is not synced",
	file: "queue/db.go",
	old: `	return syncDir(filepath.Dir(to))
`,
	new: `	if planted.Is("name-not-synced") {
		return nil
	}
	return syncDir(filepath.Dir(to))
`,
}, {
	name: "dead-letter-late", trial: "crash images",
	what: "a dead letter is written in another transaction than the outcome",
	file: "queue/checkpoint.go",
	old: `	err := Update(c.db, ch.write)
`,
	new: `	dead := ch.dead
	if planted.Is("dead-letter-late") {
		ch.dead = nil
	}
	err := Update(c.db, ch.write)
	if ch.dead = dead; planted.Is("dead-letter-late") && err == nil && len(dead) > 0 {
		err = Guard(func() error { return c.db.Update(func(tx *bolt.Tx) error { return ch.putDead(tx.Bucket(bucketDead)) }) })
	}
`,
}, {
	name: "commit-error-passed-over", trial: "I/O errors",
	what: "the process goes on after a commit that failed",
	file: "queue/commit.go",
	old: `	r.busy = nil
	if err == nil {
`,
	new: `	r.busy = nil
	if planted.Is("commit-error-passed-over") {
		err = nil
	}
	if err == nil {
`,
}, {
	name: "committed-behind-a-failure", trial: "I/O errors",
	what: "what was resolved behind a commit that failed is committed and answered all the same",
	file: "queue/commit.go",
	old: `		r.giveUp(ErrClosed)
`,
	new: `		if planted.Is("committed-behind-a-failure") && r.next != nil {
			r.handOver()
			<-r.committed
			r.busy = nil
		}
		r.giveUp(ErrClosed)
`,
}, {
	name: "meta-page-passed-over", trial: "I/O errors",
	what: "a ledger is not opened anew when it was the meta page for which a full disk had no space",
	file: "queue/db.go",
	old: `	if s := stats(); s.GetWrite() > s.GetSpill() {
`,
	new: `	if s := stats(); s.GetWrite() > s.GetSpill() && !planted.Is("meta-page-passed-over") {
`,
}, {
	name: "duplicates-answered-at-once", trial: "crash images",
	what: "requests that have become no record are answered before the commit that holds what they repeat",
	file: "queue/commit.go",
	old: `		case <-plenty:
			if err := r.resolveWhatWaits(); err != nil {
				return err
			}
`,
	new: `		case <-plenty:
			if err := r.resolveWhatWaits(); err != nil {
				return err
			}
			if g := r.next; planted.Is("duplicates-answered-at-once") && g != nil && g.writer.bytes == 0 {
				g.answer(nil)
				r.next = nil
			}
`,
}, {
	name: "full-disk-forgets", trial: "disk full",
	what: "what a checkpoint had no space for is forgotten, and not written later",
	file: "queue/checkpoint.go",
	old: `	if NoSpace(err) {
		c.putOff(err, ch)
	}
`,
	new: `	if NoSpace(err) {
		if planted.Is("full-disk-forgets") {
			ch.dead, ch.sent = nil, nil
		}
		c.putOff(err, ch)
	}
`,
}, {
	name: "chunk-sum-unchecked", trial: "bit flips",
	what: "the checksum of a chunk is not looked at",
	file: "queue/chunk.go",
	old: `	if chunkSum(first, v) != binary.BigEndian.Uint32(v[1:]) {
`,
	new: `	if chunkSum(first, v) != binary.BigEndian.Uint32(v[1:]) && !planted.Is("chunk-sum-unchecked") {
`,
}, {
	name: "loss-miscounted", trial: "bit flips",
	what: "one record less is counted as lost than was",
	file: "queue/window.go",
	old: `		c.state.ended[Lost] += missing
`,
	new: `		if planted.Is("loss-miscounted") {
			missing--
		}
		c.state.ended[Lost] += missing
`,
}, {
	name: "low-water-too-far", trial: "kill -9",
	what: "the low-water mark is that of a record that is still pending",
	file: "queue/window.go",
	old: `		s.low, s.lowCount = c.window[0].e.rec.Seq-1, c.window[0].first-1
`,
	new: `		s.low, s.lowCount = c.window[0].e.rec.Seq-1, c.window[0].first-1
		if planted.Is("low-water-too-far") {
			s.low, s.lowCount = s.low+1, s.lowCount+1
		}
`,
}, {
	name: "random-ulid", trial: "destination",
	what: "an event gets another id each time it is sent",
	file: "mapping/identity.go",
	old: `	dst = slices.Grow(dst, ulid.EncodedSize)
`,
	new: `	if planted.Is("random-ulid") {
		id = ulid.Make()
	}
	dst = slices.Grow(dst, ulid.EncodedSize)
`,
}, {
	name: "retry-overtaken", trial: "destination",
	what: "what has failed goes to the end of its lane",
	file: "queue/claim.go",
	old: `	if len(cl.entries) > 0 {
		cl.giveBack(0)
	}
`,
	new: `	if len(cl.entries) > 0 {
		cl.giveBack(0)
	}
	if planted.Is("retry-overtaken") && r.attempts > 0 && l.aside == nil && len(l.records) > 1 {
		l.records = append(l.records[1:len(l.records):len(l.records)], l.records[0])
	}
`,
}, {
	name: "buffer-used-again", trial: "kill -9",
	what: "a chunk keeps the writer's buffer, which the next one uses again",
	file: "queue/writer.go",
	old: `		w.open.raw = bytes.Clone(w.buf)
`,
	new: `		if !planted.Is("buffer-used-again") {
			w.open.raw = bytes.Clone(w.buf)
		}
`,
}, {
	name: "settled-before-answer", trial: "destination",
	what: "records end as delivered before Customer.io has answered",
	file: "delivery/sync.go",
	old: `		if b.err == nil {
			s.send(ctx, b)
		}
`,
	new: `		if b.err == nil {
			if planted.Is("settled-before-answer") {
				s.inLedger(ledger, func() {
					for _, o := range b.operations {
						o.verdict = delivered
					}
					for _, t := range b.taken {
						s.settle(t)
					}
					for _, o := range b.operations {
						o.verdict = unsent
					}
				})
			}
			s.send(ctx, b)
		}
`,
}, {
	name: "timeout-is-success", trial: "destination",
	what: "silence is taken for an answer",
	file: "delivery/verdict.go",
	old: `	if a.err != nil {
		return reading{verdict: retry, reason: networkReason(a.err)}
	}
`,
	new: `	if a.err != nil {
		if planted.Is("timeout-is-success") && networkReason(a.err) == "timeout" {
			return reading{verdict: delivered}
		}
		return reading{verdict: retry, reason: networkReason(a.err)}
	}
`,
}, {
	name: "refusals-of-207-unread", trial: "destination",
	what: "what a 207 refuses is taken as accepted",
	file: "delivery/verdict.go",
	old: `	if body.Errors == nil || string(body.Errors) == "null" {
`,
	new: `	if planted.Is("refusals-of-207-unread") && a.status == http.StatusMultiStatus {
		return reading{verdict: delivered}
	}
	if body.Errors == nil || string(body.Errors) == "null" {
`,
}, {
	name: "bad-event-dropped", trial: "malformed requests",
	what: "an event that is wrong is left out in silence, and the request answered 200",
	file: "ingest/request.go",
	old: `		event, problems := q.outliner.Event(item, outline)
`,
	new: `		event, problems := q.outliner.Event(item, outline)
		if planted.Is("bad-event-dropped") && problems != nil {
			continue
		}
`,
}, {
	name: "properties-not-carried", trial: "model",
	what: "a record has its event's own user properties, not what is known of the user",
	file: "users/resolve.go",
	old: `		s.apply(owner, &t, ev.UserProperties)
		r.Properties = s.block(owner).properties()
`,
	new: `		s.apply(owner, &t, ev.UserProperties)
		r.Properties = s.block(owner).properties()
		if planted.Is("properties-not-carried") {
			r.Properties = s.own(ev)
		}
`,
}, {
	name: "insert-ids-forgotten", trial: "model",
	what: "insert_ids are not written into users.db",
	file: "users/entry.go",
	old: `	if s.recent.n > 0 {
		dst = binary`,
	new: `	if s.recent.n > 0 && !planted.Is("insert-ids-forgotten") {
		dst = binary`,
}, {
	name: "paused-delivers", trial: "model",
	what: "a sync that is paused delivers",
	file: "queue/claim.go",
	old: `	return c.full == "" && c.failed == nil && c.state.paused == 0 && c.held == 0
`,
	new: `	return c.full == "" && c.failed == nil && (c.state.paused == 0 || planted.Is("paused-delivers")) && c.held == 0
`,
}, {
	name: "batch-cut-short", trial: "hostile senders",
	what: "the last event of a larger request is not stored",
	file: "users/resolve.go",
	old: `		s.evict()
		if err := s.resolve(p, b, i, ahead[i%together], w); err != nil {
`,
	new: `		if planted.Is("batch-cut-short") && i >= 20 && i == len(b.arrival.Events)-1 {
			break
		}
		s.evict()
		if err := s.resolve(p, b, i, ahead[i%together], w); err != nil {
`,
}, {
	name: "file-deleted-early", trial: "backlog",
	what: "a file of the log is deleted before every sync has passed it",
	file: "queue/space.go",
	old: `	for _, upTo := range l.holders {
		done = min(done, upTo)
	}
`,
	new: `	for _, upTo := range l.holders {
		if !planted.Is("file-deleted-early") {
			done = min(done, upTo)
		}
	}
`,
}, {
	name: "rest-turned-round", trial: "model",
	what: "what is left of a claim of which some has ended goes back in another order",
	file: "queue/claim.go",
	old: `	l.records = l.records[ended:]
`,
	new: `	l.records = l.records[ended:]
	if planted.Is("rest-turned-round") && ended > 0 && len(cl.entries) > ended+1 && l.aside == nil {
		l.records[0], l.records[1] = l.records[1], l.records[0]
	}
`,
}, {
	name: "meta-not-rewritten", trial: "forgetful fsync",
	what: "a start believes what it reads of a commit whose fsync has failed",
	file: "queue/db.go",
	old: `func (m metaPage) rewrite(f *os.File) error {
`,
	new: `func (m metaPage) rewrite(f *os.File) error {
	if planted.Is("meta-not-rewritten") {
		return nil
	}
`,
}, {
	name: "wait-by-wall-clock", trial: "clocks",
	what: "what waits for its next try waits by the wall clock",
	file: "queue/lanes.go",
	old: `		if l.due.After(now) {
`,
	new: `		if planted.Is("wait-by-wall-clock") {
			l.due, now = l.due.Round(0), now.Round(0)
		}
		if l.due.After(now) {
`,
}, {
	name: "watchdog-always-fed", trial: "systemd faults", seed: 44, // the stuck disk comes second in the first case
	what: "the watchdog is fed although a loop is stuck",
	file: "pulse.go",
	old: `			silent := d.pulse.silent(limit / 2)
			if len(silent) == 0 {
`,
	new: `			silent := d.pulse.silent(limit / 2)
			if len(silent) == 0 || planted.Is("watchdog-always-fed") {
`,
}, {
	name: "stop-cuts-off", trial: "socket restarts",
	what: "a stop does not wait for what is being answered",
	file: "ingest/server.go",
	old: `func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
`,
	new: `func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
	if planted.Is("stop-cuts-off") {
		return s.http.Close()
	}
`,
}}
