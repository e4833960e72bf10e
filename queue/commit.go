package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A commit has two halves, in two goroutines: while the disk takes one group of requests,
// the next is resolved. The resolver takes requests in turn and lets them become records;
// the committer seals, writes and answers (but for one that comes alone: handOver). Of groups there are two at most, and each waits
// for the one before: when a commit fails, whatever was resolved behind it is gone with the
// process, and nobody was told that it is stored.

// The bound of one transaction, and of the chunks kept in memory for consumers that
// are caught up. A request is never split, so a transaction may be larger by one.
const (
	commitBytes = 2 << 20
	recentBytes = 8 << 20
	// Records carry what is known of their users, so that a small request may resolve to
	// much: the transaction ends behind the request that makes it larger than this.
	resolvedBytes = 8 << 20
)

// group is the requests of one commit. They may have become no record at all: what they
// repeat may stand in the group before, so they wait for that all the same.
type group struct {
	taken  []*pending
	size   int64 // of the requests
	writer Writer
	chunks []*Chunk // nil until nothing is added any more
	end    logEnd   // behind it
}

// full says that nothing more is to be added.
func (g *group) full() bool {
	return g != nil && (g.size >= commitBytes || g.writer.bytes >= resolvedBytes)
}

func (g *group) answer(err error) {
	for _, p := range g.taken {
		p.done <- err
	}
}

// resolver is the half of Run that takes requests. It is for one goroutine.
type resolver struct {
	l         *Log
	next      *group     // being resolved; nil = no request has been
	taken     []*pending // there was room for them on the disk, and not yet in a group
	commits   chan *group
	committed chan error
	busy      *group // what the committer has; nil = nothing
	ticked    bool   // a second has gone since tick was called
}

// Run commits what is appended, until ctx ends (then what waits is committed, and
// Run returns nil) or a commit fails. After an error nothing is accepted: the
// process has to end, and the next start looks at what the disk holds.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer l.noMore()
	l.running.Store(true)
	keeper := make(chan struct{})
	keeping, stopKeeping := context.WithCancel(context.Background())
	go func() { defer close(keeper); l.keepHouse(keeping) }()
	defer func() { stopKeeping(); <-keeper }()
	r := newResolver(l)
	defer r.close()
	for {
		if err := r.goOn(); err != nil {
			return err
		}
		in, plenty := l.in, l.plenty
		if r.busy != nil {
			in = nil // what comes now waits; the more of it, the fewer the commits
		}
		if r.busy == nil || r.next.full() {
			plenty = nil
		}
		select {
		case p := <-in:
			r.take(p)
		case <-plenty:
			if err := r.resolveWhatWaits(); err != nil {
				return err
			}
		case err := <-r.committed:
			if err := r.ended(err); err != nil {
				return err
			}
		case f := <-l.turns:
			if err := r.flush(); err != nil {
				return err
			}
			f()
		case <-tick.C:
			if r.ticked = true; r.busy == nil {
				if err := r.tick(); err != nil {
					return err
				}
				l.beat() // whoever waits for the disk is not alive
			}
		case <-ctx.Done():
			return r.finish()
		}
	}
}

func (l *Log) beat() {
	if l.o.Beat != nil {
		l.o.Beat()
	}
}

// newResolver starts the committer, which ends with close.
func newResolver(l *Log) *resolver {
	r := &resolver{l: l, commits: make(chan *group), committed: make(chan error, 1)}
	go func() {
		for g := range r.commits {
			r.committed <- l.store(g)
		}
	}()
	return r
}

// close waits for the committer, so that after Run nothing is written.
func (r *resolver) close() {
	if r.busy != nil {
		<-r.committed
	}
	close(r.commits)
}

// goOn hands over what there is, when the committer is free.
func (r *resolver) goOn() error {
	if r.busy != nil {
		return nil
	}
	if err := r.resolveWhatWaits(); err != nil || r.next == nil {
		return err
	}
	// Who is about to append and has only to be let is in this commit, too. Where the
	// processors have nothing else to do this takes no time.
	for before := 0; before < len(r.next.taken) && !r.next.full(); {
		before = len(r.next.taken)
		runtime.Gosched()
		if err := r.resolveWhatWaits(); err != nil {
			return err
		}
	}
	r.handOver()
	return nil
}

// handOver gives the group to the committer, which is free. One small request that has come
// alone the resolver stores itself: it is answered sooner by the waking of two goroutines. What comes
// meanwhile is resolved after that, for the next commit.
func (r *resolver) handOver() {
	g := r.next
	g.chunks = g.writer.finish()
	g.end = logEnd{g.writer.next - 1, g.writer.counts}
	r.l.writeBuf = g.writer.buf
	r.next = nil
	if len(g.taken) == 1 && len(r.taken) == 0 && max(g.size, int64(g.writer.bytes)) < plentyBytes {
		err := r.l.store(g)
		r.busy = g // and not before: behind a panic close would wait for an answer
		r.committed <- err
		return
	}
	r.busy = g
	r.commits <- g
}

// ended takes the committer's answer. After an error the group that was being resolved is
// not stored; who is in it hears that.
func (r *resolver) ended(err error) error {
	r.busy = nil
	if err == nil {
		r.l.beat()
		if r.ticked {
			err = r.tick()
		}
	}
	if err != nil {
		r.giveUp(ErrClosed)
	}
	return err
}

// tick does what is to be done about once a second, when the committer is free.
func (r *resolver) tick() error {
	r.ticked = false
	return r.l.rotateWhenOld()
}

// giveUp answers all that were taken and are not being committed.
func (r *resolver) giveUp(err error) {
	if r.next != nil {
		r.next.answer(err)
	}
	for _, p := range r.taken {
		p.done <- ErrClosed // not looked at
	}
	r.next, r.taken = nil, nil
}

// flush commits all that was taken. What only waits goes on to wait.
func (r *resolver) flush() error {
	for {
		if err := r.resolveTaken(); err != nil {
			return err
		}
		if r.busy == nil && r.next == nil {
			return nil
		}
		if r.busy == nil {
			r.handOver()
		}
		if err := r.ended(<-r.committed); err != nil {
			return err
		}
	}
}

// finish commits all that was taken, and all that waits.
func (r *resolver) finish() error {
	for {
		if err := r.flush(); err != nil || !r.take(nil) && len(r.l.in) == 0 {
			return err // what take takes and refuses is no reason to end
		}
	}
}

// resolveWhatWaits lets the requests that wait become records, as many as one commit takes.
func (r *resolver) resolveWhatWaits() error {
	for {
		if err := r.resolveTaken(); err != nil || r.next.full() || !r.take(nil) {
			return err
		}
	}
}

// resolveTaken does so with those that were taken.
func (r *resolver) resolveTaken() error {
	for len(r.taken) > 0 && !r.next.full() {
		if r.next == nil {
			var end logEnd
			if r.busy != nil {
				end = r.busy.end
			} else {
				end = r.l.end // nobody moves it now
			}
			r.next = &group{writer: newWriter(end, r.l.writeBuf)}
		}
		p := r.taken[0]
		r.taken[0], r.taken = nil, r.taken[1:]
		r.next.taken, r.next.size = append(r.next.taken, p), r.next.size+p.size
		if err := p.batch.Resolve(&r.next.writer); err != nil {
			err = fmt.Errorf("resolve: %w", err)
			if r.busy != nil { // it was resolved before
				err = errors.Join(err, <-r.committed)
				r.busy = nil
			}
			r.giveUp(err)
			return err
		}
	}
	return nil
}

// take takes first, or else what waits, up to commitBytes and as far as there is room on
// the disk; the others are refused. It says whether there is something in r.taken.
func (r *resolver) take(first *pending) bool {
	l := r.l
	var taken []*pending
	size, most := int64(0), int64(commitBytes)
	if r.next != nil {
		most -= r.next.size
	}
	add := func(p *pending) {
		l.waits.Add(-p.size)
		taken, size = append(taken, p), size+p.size
	}
	if first != nil {
		add(first)
	}
	for waits := true; waits && size < most; {
		select {
		case p := <-l.in:
			add(p)
		default:
			waits = false
		}
	}
	if len(taken) == 0 {
		return false
	}
	// Before anything is resolved: resolving moves the state of users.
	if taken, size = l.withoutOverfull(taken, size, r.unwritten()); len(taken) == 0 {
		return false
	}
	limits := l.limits.Load()
	l.disk.maxBytes, l.disk.minFree = limits.MaxBytes, limits.MinFree
	for full := l.disk.full(size, r.unwritten()); full != nil; full = l.disk.full(size, r.unwritten()) {
		if !l.dropOldestKept() {
			l.refuse(size)
			for _, p := range taken {
				p.done <- full
			}
			return false
		}
	}
	l.refused.Store(0)
	r.taken = append(r.taken, taken...)
	return true
}

// unwritten is how many bytes of requests there was room for that are not yet on the disk.
func (r *resolver) unwritten() (n int64) {
	for _, g := range []*group{r.busy, r.next} {
		if g != nil {
			n += g.size
		}
	}
	return n
}

// withoutOverfull refuses the batches of projects of which a consumer has too much
// pending, and gives the others.
func (l *Log) withoutOverfull(taken []*pending, size, unwritten int64) ([]*pending, int64) {
	full := l.overfull(size + unwritten)
	if len(full) == 0 {
		return taken, size
	}
	rest := taken[:0:0]
	for _, p := range taken {
		if why := full[p.batch.Project()]; why != nil {
			l.refuse(size)
			size -= p.size
			p.done <- why
			continue
		}
		rest = append(rest, p)
	}
	return rest, size
}

// refuse notes what there was no room for.
func (l *Log) refuse(size int64) {
	l.refused.Store(size)
	l.refusedAt.Store(l.o.Now().UnixMilli())
}

// store makes one commit of a group, and answers it.
func (l *Log) store(g *group) error {
	if len(g.chunks) == 0 {
		g.answer(nil)
		return l.rotateWhenLarge()
	}
	if err := l.commit(g.chunks, g.end); err != nil {
		g.answer(err)
		return err
	}
	changed := l.publish(g.chunks, g.end)
	g.answer(nil)
	// Readers have time. Who has come alone goes on here and now, and not when another processor has been woken for it.
	if len(g.taken) == 1 {
		runtime.Gosched()
	}
	close(changed)
	return l.rotateWhenLarge()
}

// commit writes chunks in one transaction. When it returns nil they are on stable storage.
func (l *Log) commit(chunks []*Chunk, end logEnd) error {
	f := l.writing
	err := Update(f.db, func(tx *bolt.Tx) (err error) {
		l.sealBuf, err = putCommit(tx, chunks, end, l.sealBuf[:0])
		return err
	})
	if cap(l.sealBuf) > 4*commitBytes { // after a very large request
		l.sealBuf = nil
	}
	if Stuck(err) {
		f.breakDown(errors.Is(err, ErrDamaged))
	}
	if err != nil {
		return fmt.Errorf("commit to %s: %w", f.path, err)
	}
	return nil
}

// publish lets readers see what has been committed. Those that wait look again when changed is closed.
func (l *Log) publish(chunks []*Chunk, end logEnd) (changed chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing.first > l.end.seq { // the file's first commit
		l.openedAt = l.o.Now()
	}
	l.end = end
	for _, c := range chunks {
		l.recent = append(l.recent, c)
		l.kept += int64(cap(c.raw))
	}
	drop := 0
	for l.kept > recentBytes && drop < len(l.recent)-1 {
		l.kept -= int64(cap(l.recent[drop].raw))
		l.recent[drop].done()
		l.recent[drop] = nil
		drop++
	}
	l.recent = l.recent[drop:]
	changed, l.changed = l.changed, make(chan struct{})
	return changed
}

func (l *Log) rotateWhenLarge() error {
	l.writing.measure()
	size := l.writing.bytes.Load()
	// A bound that has grown is the next file's.
	most := min(l.limits.Load().RotateBytes, l.mapped)
	if size > most/2 && l.spare == nil {
		l.prepareAhead()
	}
	if size < most {
		return nil
	}
	return l.rotate()
}

func (l *Log) rotateWhenOld() error {
	if l.writing.first > l.end.seq || l.o.Now().Sub(l.openedAt) < l.limits.Load().RotateAfter {
		return nil
	}
	return l.rotate()
}

// rotate begins the next file. Where it cannot be made, as on a full disk, nothing is
// lost: the one that is written goes on, and the next commit tries again.
func (l *Log) rotate() error {
	if err := l.prepare(); err != nil {
		return nil
	}
	return l.startFile(l.end.seq)
}
