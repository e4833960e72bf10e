package queue

import (
	"encoding/binary"
	"errors"
	"maps"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// logView is the log as an audit sees it: its files, never the chunks in memory.
type logView struct {
	files  []*logFile
	stored logEnd // where it ends by its newest file
	end    logEnd // the same, or further, where ledgers have seen more
}

// openLog finds the end of the log, and looks whether it fits the last chunk.
func (au *auditor) openLog(files []*logFile, known *logEnd) error {
	v := &au.log
	v.files, v.stored = files, logEnd{counts: map[string]uint64{}}
	for i := len(files) - 1; i >= 0; i-- {
		end, last, err := tailOf(files[i])
		if errors.Is(err, ErrDamaged) {
			au.note("%s cannot be read at its end: %v", filepath.Base(files[i].path), err)
			continue
		}
		if err != nil {
			return err
		}
		if end == nil {
			continue
		}
		v.stored = *end
		if last == nil {
			break
		}
		after, err := last.after()
		if err != nil {
			return err
		}
		switch {
		case last.Last() > end.seq:
			au.differs("%s says that the log ends with %s, and holds records up to %s", filepath.Base(files[i].path), comma(end.seq), comma(last.Last()))
		case last.Last() == end.seq:
			au.compareTallies("the end of "+filepath.Base(files[i].path), end.counts, after)
		}
		break
	}
	if n := len(files); n > 0 {
		v.stored.seq = max(v.stored.seq, files[n-1].first-1)
	}
	v.end = logEnd{v.stored.seq, maps.Clone(v.stored.counts)}
	s := au.s
	if known != nil {
		v.end.reach(known.seq, known.counts)
	}
	v.end.reach(s.seen, map[string]uint64{s.project: s.seenCount})
	if v.end.seq > v.stored.seq || v.end.counts[s.project] > v.stored.counts[s.project] {
		au.note("the log ends with %s, the ledgers have seen it up to %s: it was restored from an older copy, or has lost its end; "+
			"the next start goes on behind that, and counts as lost what is not there", comma(v.stored.seq), comma(v.end.seq))
	}
	return nil
}

// tailOf gives the end of the log as a file knows it, nil when it does not, and its last
// chunk, both as of one moment.
func tailOf(f *logFile) (end *logEnd, last *Chunk, err error) {
	db, ok, err := f.acquire()
	if err != nil || !ok {
		return nil, nil, err
	}
	defer f.release()
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) (err error) {
			if end, err = storedEnd(tx); err != nil || end == nil {
				return err
			}
			name, _ := tx.Bucket(bucketLog).Cursor().Last()
			if name == nil {
				return nil
			}
			if commit := tx.Bucket(bucketLog).Bucket(name); commit != nil {
				if k, v := commit.Cursor().Last(); len(k) == 8 {
					if last, err = openChunk(binary.BigEndian.Uint64(k), v); errors.Is(err, ErrDamaged) {
						return nil // whoever reads there meets it
					}
				}
			}
			return err
		})
	})
	return end, last, err
}

// jumpOf gives what a file knows of sequences that were passed over at its birth: the
// last one known before, and the first one used; zeros when there is nothing.
func jumpOf(f *logFile) (from, to uint64) {
	db, ok, err := f.acquire()
	if err != nil || !ok {
		return 0, 0
	}
	defer f.release()
	Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			if v, err := unseal(keyJump, tx.Bucket(bucketMeta).Get(keyJump)); err == nil && len(v) == 16 {
				from, to = binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
			}
			return nil
		})
	})
	return from, to
}

// compareTallies looks whether the tallies that the log has at some place are those
// that its records make.
func (au *auditor) compareTallies(where string, stored, made map[string]uint64) {
	for _, p := range sortedKeys(union(stored, made)) {
		if stored[p] != made[p] {
			au.differs("the log's tallies at %s say %s of project %s; its records make %s", where, records(stored[p]), p, comma(made[p]))
		}
	}
}

func union(a, b map[string]uint64) map[string]uint64 {
	u := maps.Clone(a)
	if u == nil {
		u = map[string]uint64{}
	}
	maps.Copy(u, b)
	return u
}

// chunkFrom gives the chunk that holds a sequence, or the first that can be read behind
// it; nil when there is none.
func (v *logView) chunkFrom(seq uint64) (*Chunk, error) {
	for i, f := range v.files {
		end := v.fileEnd(i)
		if end < seq {
			continue
		}
		db, ok, err := f.acquire()
		if errors.Is(err, ErrDamaged) || err == nil && !ok {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, _, err := chunkBehind(db, seq, end)
		f.release()
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if err == nil && c != nil && c.First <= end {
			return c, nil
		}
	}
	return nil, nil
}

// fileEnd is the last sequence that a file may hold.
func (v *logView) fileEnd(i int) uint64 {
	if i < len(v.files)-1 {
		return v.files[i+1].first - 1
	}
	return v.stored.seq
}

// tallyAt gives the bounds of how many records a project has in the log up to a
// sequence, by what can be read around it. They are the same but in a gap.
func (v *logView) tallyAt(seq uint64, project string) (least, most uint64, err error) {
	c, err := v.chunkFrom(seq)
	if err != nil {
		return 0, 0, err
	}
	next, before := v.stored.seq, v.stored.counts[project] // the gap ends here, with so many
	switch {
	case c != nil && c.First <= seq:
		n := c.Before[project]
		err := c.Records(func(r Record) error {
			if r.Seq <= seq && r.Project == project {
				n++
			}
			return nil
		})
		return n, n, err
	case c != nil:
		next, before = c.First-1, c.Before[project]
	}
	if next < seq { // behind the end
		return before, before + seq - next, nil
	}
	return before - min(before, next-seq), before, nil
}

// checkAgainstLog looks whether the numbers that the ledger has for places in the log
// are those of the log, where it still reaches.
func (au *auditor) checkAgainstLog() error {
	s := au.s
	check := func(what string, seq, has uint64) error {
		least, most, err := au.log.tallyAt(seq, s.project)
		switch {
		case err != nil:
			return err
		case has >= least && has <= most:
		case least == most:
			au.differs("%s at %s says that the log has %s up to there; the log's tallies say %s", what, comma(seq), records(has), comma(least))
		default:
			au.differs("%s at %s says that the log has %s up to there; by the log's tallies it has %s to %s", what, comma(seq), records(has), comma(least), comma(most))
		}
		return nil
	}
	if err := check("the low-water mark", s.low, s.lowCount); err != nil {
		return err
	}
	if err := check("what the ledger has seen", s.seen, s.seenCount); err != nil {
		return err
	}
	for _, sp := range s.spans {
		if err := check("the begin of a span", sp.from, sp.fromCount); err != nil {
			return err
		}
		if sp.to == 0 {
			continue
		}
		if err := check("the end of a span", sp.to, sp.toCount); err != nil {
			return err
		}
	}
	return nil
}

// walk is where the reading of the log stands.
type walk struct {
	seq    uint64            // everything up to here was read, or is missing
	n      uint64            // the project's records up to there
	counts map[string]uint64 // those of all projects; nil = not known yet
	jumps  []run             // sequences that were never used
}

// readPending reads the log behind the low-water mark: what is there and has not ended is
// pending, what is not there and has not ended is missing. On the way it compares the
// log's tallies with its records.
func (au *auditor) readPending() error {
	v, w := &au.log, &walk{seq: au.s.low, n: au.s.lowCount}
	for i, f := range v.files {
		end := v.fileEnd(i)
		if end <= au.s.low {
			continue
		}
		if from, to := jumpOf(f); to > from+1 {
			w.jumps = append(w.jumps, run{from + 1, to - 1})
		}
		if err := au.readFile(w, f, end); err != nil {
			return err
		}
		known := &v.stored
		if i < len(v.files)-1 {
			var err error
			if known, err = f.lastKnown(); errors.Is(err, ErrDamaged) || err == nil && known == nil {
				continue // the next file tells
			} else if err != nil {
				return err
			}
		}
		if known.seq > w.seq || i < len(v.files)-1 { // else openLog has compared them
			au.arrive(w, "the end of "+filepath.Base(f.path), known.seq+1, known.counts)
		}
	}
	// What ledgers know to have been behind the end of the log.
	if v.end.seq > w.seq || v.end.counts[au.s.project] > w.n {
		w.jumps = append(w.jumps, run{w.seq + 1, max(v.end.seq, w.seq+1)})
		au.arrive(w, "the end of the log", max(v.end.seq, w.seq)+1, v.end.counts)
	}
	return nil
}

// readFile reads what one file has behind w, up to sequence end.
func (au *auditor) readFile(w *walk, f *logFile, end uint64) error {
	db, ok, err := f.acquire()
	switch {
	case errors.Is(err, ErrDamaged):
		au.note("%s cannot be read: %v", filepath.Base(f.path), err)
		return nil
	case err != nil || !ok:
		return err
	}
	defer f.release()
	for w.seq < end {
		if err := au.ctx.Err(); err != nil {
			return err
		}
		c, damaged, err := chunkBehind(db, w.seq+1, end)
		if damaged > 0 || errors.Is(err, ErrDamaged) {
			au.note("%s has something behind %s that cannot be read", filepath.Base(f.path), comma(w.seq))
		}
		if errors.Is(err, ErrDamaged) || err == nil && (c == nil || c.First > end) {
			return nil
		}
		if err == nil {
			err = au.readChunk(w, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (au *auditor) readChunk(w *walk, c *Chunk) error {
	s := au.s
	counts := maps.Clone(c.Before)
	where := "the chunk at " + comma(c.First)
	switch {
	case c.First > w.seq+1:
		au.arrive(w, where, c.First, c.Before)
	case w.counts == nil: // it holds the low-water mark, whose own number was compared already
		w.n = c.Before[s.project]
	case c.First == w.seq+1:
		au.compareTallies(where, c.Before, w.counts)
		counts = w.counts
	default:
		au.differs("%s begins before the one in front of it ends: %s", where, comma(w.seq))
	}
	err := c.Records(func(r Record) error {
		counts[r.Project]++
		if r.Project == s.project && r.Seq <= w.seq && w.counts == nil {
			w.n++
		}
		if r.Project != s.project || r.Seq <= w.seq {
			return nil
		}
		w.n++
		if !takes(s.spans, w.n) || inRuns(s.done, w.n) {
			return nil
		}
		au.InLog++
		au.pendingRecord(&r)
		return nil
	})
	w.seq, w.counts = max(w.seq, c.Last()), counts
	return err
}

// arrive is at a place where the tallies tell how many records stand before: those that
// were not read are missing.
func (au *auditor) arrive(w *walk, where string, next uint64, tallies map[string]uint64) {
	s := au.s
	gap := run{w.seq + 1, next - 1}
	if gap.len() == 0 {
		if w.counts != nil {
			au.compareTallies(where, tallies, w.counts)
		}
		return
	}
	missing := uint64(0) // of all projects
	for _, p := range sortedKeys(union(tallies, w.counts)) {
		have := w.counts[p]
		if w.counts == nil {
			if p != s.project {
				continue
			}
			have = w.n
		}
		if tallies[p] < have {
			au.differs("the log's tallies at %s say %s of project %s; its records make %s before that", where, records(tallies[p]), p, comma(have))
			continue
		}
		missing += tallies[p] - have
	}
	if missing > gap.len() {
		au.differs("the log's tallies at %s say that %s stood between %s and %s, where there is place for %s",
			where, records(missing), comma(gap.first-1), comma(next), comma(gap.len()))
	}
	au.passGap(w, gap, tallies[s.project])
	w.seq = next - 1
	if w.counts = tallies; w.counts != nil {
		w.counts = maps.Clone(tallies)
	}
}

// passGap counts what is missing of the project in a gap behind which it has count records.
func (au *auditor) passGap(w *walk, gap run, count uint64) {
	s := au.s
	if count <= w.n {
		return
	}
	missing := uint64(0)
	for _, r := range takenRuns(s.spans, w.n, count) {
		missing += r.len() - overlap(s.done, r)
	}
	w.n = count
	if missing == 0 {
		return
	}
	au.Missing += missing
	if overlap(w.jumps, gap) == gap.len() {
		au.note("%s between %s and %s are not in the log, which was restored from an older copy, or has lost its end; they will be counted as lost",
			records(missing), comma(gap.first-1), comma(gap.last+1))
		return
	}
	au.differs("%s between %s and %s are neither ended nor in the log", records(missing), comma(gap.first-1), comma(gap.last+1))
}
