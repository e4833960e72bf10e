package users

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"ampcio/mapping"
	"ampcio/queue"
)

// Everything that a store can be asked of a small world.
func (w *world) everything() string {
	w.t.Helper()
	var b strings.Builder
	for i := range 6 {
		fmt.Fprintln(&b, w.know(fmt.Sprintf("d%d", i), ""))
		fmt.Fprintln(&b, w.know("", fmt.Sprintf("u%d", i)))
	}
	return b.String()
}

// story is traffic with everything in it that a crash could tear: links, take-overs,
// operations, sets that records carry in part, insert_ids.
func story(w *world) {
	big := strings.Repeat("x", 200)
	w.send(`d0 a0 {"utm":"ad"}`, `d1 a1 {"big":"`+big+`"}`, `d2/u2 a2 {"n":1}`, `d3 a3 {"big":"`+big+`","n":3}`)
	w.send(`d0/u0 b0`, `d2 b2 {"$add":{"n":1}}`, `d4 b4`)
}

func moreStory(w *world) {
	w.send(`d1/u1 c1 {"$append":{"list":1}}`, `d2/u0 c2 {"$add":{"n":1}}`, `d3/u1 c3`, `/u1 c4 {"$append":{"list":2}}`)
	w.send(`d5 d5 {"$setOnce":{"first":1}}`, `d1/u2 d1 {"$add":{"n":10}}`, `d3 d3 {"$append":{"list":3}}`, `d0 d0`)
}

// After a crash between any two steps of a checkpoint the state is what it was: with
// one entry in a transaction, every step between two of them is tried.
func TestCrashInCheckpoint(t *testing.T) {
	o := Options{CarryBytes: 100}
	for steps := 0; ; steps++ {
		w := start(t, t.TempDir(), o).run()
		w.failing = true
		w.store.perWrite = 1
		story(w)
		w.checkpoint()
		moreStory(w)
		left := steps
		w.store.interrupt = func(string) error {
			if left--; left < 0 {
				return errors.New("the power is cut")
			}
			return nil
		}
		want := w.everything()
		err := w.store.checkpointNow()
		after := w.crash(o)
		if got := after.everything(); got != want {
			t.Errorf("crash after %d steps:\ngot\n%swant\n%s", steps, got, want)
		}
		// And once more, in the checkpoint after that.
		after.run()
		after.send(`d1 e1 {"$append":{"list":4}}`, `d5/u5 e5`)
		want = after.everything()
		after.store.perWrite = 1
		left = steps / 2
		after.store.interrupt = w.store.interrupt
		after.store.checkpointNow()
		again := after.crash(o)
		if got := again.everything(); got != want {
			t.Errorf("crash after %d steps, then after %d:\ngot\n%swant\n%s", steps, steps/2, got, want)
		}
		again.stop()
		after.stop()
		w.stop()
		if err == nil {
			if steps < 8 {
				t.Errorf("only %d steps", steps)
			}
			return
		}
	}
}

// Devices written before users lose a take-over: the tests above would see it. (The
// device has no anonymous properties any more, and the user does not have them yet.)
func TestWrongOrderIsSeen(t *testing.T) {
	o := Options{CarryBytes: 100}
	w := start(t, t.TempDir(), o).run()
	defer w.stop()
	story(w)
	w.checkpoint()
	moreStory(w)
	want := w.everything()
	s := w.store
	s.mu.Lock()
	s.takeCut()
	s.mu.Unlock()
	places := s.order(s.cutting.dirty)
	devices := slices.IndexFunc(places, func(p place) bool { return p.group&devicesLast != 0 })
	var arena []byte
	_, pairs, _ := s.freezeSome(places[devices:], &arena)
	err := s.update(func(tx *bolt.Tx) error {
		for _, p := range pairs {
			if err := tx.Bucket(bucketDevices).Put(p.key, p.value); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyReach, binary.BigEndian.AppendUint64(nil, s.cutting.seq))
	})
	if err != nil {
		t.Fatal(err)
	}
	after := w.crash(o)
	defer after.stop()
	if after.everything() == want {
		t.Error("a checkpoint in the wrong order, cut short, gave the right state")
	}
}

// failed is a batch whose commit fails after everything was resolved.
type failed struct{ *batch }

func (f failed) Resolve(w *queue.Writer) error {
	return errors.Join(f.batch.Resolve(w), errors.New("the disk is gone"))
}

// What the log has not committed never reaches users.db, not even at the end.
func TestFailedCommit(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, dir, Options{CheckpointEvery: time.Millisecond})
		w.failing = true
		w.run()
		w.send(`d0 a0 {"$add":{"n":1}}`)
		want := w.everything()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.store.Run(ctx) }()
		a := mapping.Arrival{Project: "app", Received: startOfTests, Events: []mapping.Event{event(t, `d0/u0 a1 {"$add":{"n":1}}`)}}
		if err := w.log.Append(t.Context(), failed{newBatch(w.store, a)}); err == nil {
			t.Fatal("stored")
		}
		time.Sleep(time.Second) // in the bubble: many checkpoints could begin
		if w.everything() == want {
			t.Error("the test is not one: nothing was resolved")
		}
		asked := time.Now()
		cancel()
		if err := <-ended; err == nil {
			t.Error("Run says that everything is written")
		}
		if waited := time.Since(asked); waited > 0 {
			t.Errorf("Run waited %s for a log that commits nothing any more", waited)
		}
		after := w.crash(Options{})
		if got := after.everything(); got != want {
			t.Errorf("after the next start: got\n%swant\n%s", got, want)
		}
		after.stop()
		w.stop()
	})
}

// While the disk is full nothing can be written, and everything goes on: the state is
// right, the log keeps what a replay needs, and the checkpoint is tried again.
func TestDiskFull(t *testing.T) {
	w := start(t, t.TempDir(), Options{CheckpointBytes: 10_000, CacheBytes: 20_000}).run()
	defer w.stop()
	w.store.perWrite = 1
	story(w)
	w.checkpoint()
	good := w.store.Stats().Good
	w.store.db.MaxSize = 1 // bbolt refuses to let the file grow, as the disk would
	w.store.db.AllocSize = 4096
	n := 0
	fill := func() {
		for range 40 {
			n++
			w.send(fmt.Sprintf(`e%d/e%d - {"n":%q}`, n, n, strings.Repeat("x", 500)), `d0 - {"$add":{"n":1}}`)
		}
	}
	fill()
	moreStory(w)
	for range 3 {
		if err := w.store.checkpointNow(); err != nil {
			t.Fatal(err)
		}
		w.checkBooks()
		fill()
	}
	if s := w.store.Stats(); s.Waits == "" || s.Good != good {
		t.Errorf("the disk is full, and the stats say %+v", s)
	}
	want := w.everything()
	after := w.crash(Options{})
	if got := after.everything(); got != want {
		t.Errorf("after a crash: got\n%swant\n%s", got, want)
	}
	after.stop()
	w.store.db.MaxSize = 0
	if err := w.store.maybeWrite(true); err != nil {
		t.Fatal(err)
	}
	if s := w.store.Stats(); s.Waits != "" || s.Good == good || s.Good == w.log.Tail() {
		t.Errorf("there is room again, and the stats say %+v", s)
	}
	w.checkpoint()
	w.checkBooks()
	after = w.crash(Options{})
	defer after.stop()
	if got := after.everything(); got != want || after.store.Stats().Replayed != 0 {
		t.Errorf("from users.db alone: got\n%swant\n%s", got, want)
	}
}

// A stop on a full disk is no failure: what could not be written the next start takes from the log.
func TestAStopOnAFullDisk(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	story(w)
	w.checkpoint()
	w.store.db.MaxSize, w.store.db.AllocSize = 1, 4096
	for n := range 40 {
		w.send(fmt.Sprintf(`e%d/e%d - {"n":%q}`, n, n, strings.Repeat("x", 500)))
	}
	want := w.everything()
	if err := w.store.Flush(t.Context()); !queue.NoSpace(err) {
		t.Errorf("who flushes it hears: %v", err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := w.store.Run(stopped); err != nil {
		t.Errorf("the stop: %v", err)
	}
	after := w.crash(Options{})
	if got := after.everything(); got != want || after.store.Stats().Replayed == 0 {
		t.Errorf("after the next start: got\n%swant\n%s", got, want)
	}
	after.stop()
	w.store.db.MaxSize = 0
	w.stop()
}

// Any other failed write ends the daemon: its outcome is unknown.
func TestFailedCheckpoint(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.failing = true
	story(w)
	want, good := w.everything(), w.store.Stats().Good
	gone := errors.New("the disk is gone")
	w.store.interrupt = func(string) error { return gone }
	if err := w.store.checkpointNow(); !errors.Is(err, gone) {
		t.Errorf("checkpoint: %v", err)
	}
	if err := w.store.Run(t.Context()); !errors.Is(err, gone) {
		t.Errorf("Run: %v", err)
	}
	if _, err := w.store.Append(t.Context(), arrival(t, w, `d0`)); !errors.Is(err, gone) {
		t.Errorf("an event after that: %v", err)
	}
	if s := w.store.Stats(); s.Good != good {
		t.Errorf("good for %d", s.Good)
	}
	after := w.crash(Options{})
	defer after.stop()
	if got := after.everything(); got != want {
		t.Errorf("after the next start: got\n%swant\n%s", got, want)
	}
}

// Run writes without being asked, lets the log have its files, and ends with a last
// checkpoint: the next start replays nothing.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, dir, Options{}).run().runStore()
		story(w)
		time.Sleep(2 * patience * time.Second)
		synctest.Wait()
		if s := w.store.Stats(); s.Good != w.log.Tail() || s.DirtyBytes != 0 || s.Checkpoints != 1 {
			t.Errorf("after a while: %+v", s)
		}
		moreStory(w)
		want := w.everything()
		w.stop()
		again := start(t, dir, Options{})
		defer again.stop()
		if s := again.store.Stats(); s.Replayed != 0 || s.Good != again.log.Tail() || again.store.Warning() != nil {
			t.Errorf("after a stop: %+v", s)
		}
		if got := again.everything(); got != want {
			t.Errorf("after a stop: got\n%swant\n%s", got, want)
		}
	})
}

// What a start has to replay is bounded, also when a checkpoint saves little.
func TestBoundedReplay(t *testing.T) {
	w := start(t, t.TempDir(), Options{CheckpointEvery: time.Hour}).run()
	w.store.mostReplay = 10
	w.runStore()
	defer w.stop()
	for i := range 100 {
		w.send(fmt.Sprintf(`d%d i%d`, i, i))
	}
	w.store.mu.Lock()
	for w.store.cutting != nil {
		w.store.written.Wait()
	}
	w.store.mu.Unlock()
	if s := w.store.Stats(); s.Checkpoints < 2 || s.Good < 10 || s.Resolved != 100 {
		t.Errorf("%+v", s)
	}
}

// Many users and little memory: entries go and come back, changes are pinned until
// they are written, and when they fill the memory the committer waits for that.
func TestBoundedMemory(t *testing.T) {
	const people, bound = 150, 9_000
	o := Options{CacheBytes: bound, CheckpointEvery: time.Hour}
	w := start(t, t.TempDir(), o).run().runStore()
	for round := range 3 {
		for i := range people {
			w.send(fmt.Sprintf(`d%d/u%d i%d {"$add":{"n":1}}`, i, i, round))
			if s := w.store.Stats(); s.CachedBytes > bound+2*bound/10 || s.DirtyBytes > s.CachedBytes {
				t.Fatalf("%d bytes in memory, %d of them dirty; the bound is %d", s.CachedBytes, s.DirtyBytes, bound)
			}
		}
	}
	s := w.store.Stats()
	if s.Cached > people || s.Checkpoints < 3 || s.Misses < people {
		t.Errorf("this was to be a small memory: %+v", s)
	}
	var again []string
	for i := range people {
		if got, want := w.know("", fmt.Sprintf("u%d", i)), fmt.Sprintf(`u%d {"n":3} 0 insert_ids`, i); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		again = append(again, fmt.Sprintf(`d%d i%d`, i, i%3))
	}
	if n := w.send(again...); n != people {
		t.Fatalf("%d of %d insert_ids are known", n, people)
	}
	w.stop()
}

// The books of the cache agree with what is in it, whatever has happened.
func (w *world) checkBooks() {
	w.t.Helper()
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	var all, dirty int64
	count, clean, blocks := 0, 0, 0
	listed := map[entry]int{}
	for _, e := range s.dirty {
		listed[e]++
	}
	for i, sl := range s.slots {
		e := entry(i)
		if sl.at == 0 {
			if sl != (slot{}) || e != nobody && !slices.Contains(s.unused, e) {
				w.t.Fatalf("free slot %d: %+v", e, sl)
			}
			continue
		}
		b := s.block(e)
		found := false
		for at := s.index.start(s.index.hash(b.name())); s.index.table[at] != 0; at = s.index.next(at) {
			found = found || entry(s.index.table[at]) == e
		}
		if !found || b.owner() != e {
			w.t.Fatalf("%q in slot %d is of slot %d; in the index: %v", b.key(), e, b.owner(), found)
		}
		count++
		blocks++
		cost := s.cost(e)
		if sl.frozen != 0 {
			blocks++
			cost += s.slab.sizeOf(sl.frozen)
			if s.cutting == nil || sl.marks&anyDirty != anyDirty || s.slab.at(sl.frozen).owner() != e {
				w.t.Fatalf("%q is frozen: %+v", b.key(), sl)
			}
		}
		all += cost
		if sl.marks&anyDirty != 0 {
			dirty += cost
		} else {
			clean++
		}
		now := 0
		if sl.marks&s.dirtyMark() != 0 {
			now = 1
		}
		if listed[e] != now || s.cutting == nil && sl.marks&anyDirty&^s.dirtyMark() != 0 {
			w.t.Fatalf("%q is %d times among what has changed: %+v", b.key(), listed[e], sl)
		}
	}
	if all != s.bytes || dirty != s.dirtyBytes || count != s.count || clean != s.clean || count != s.index.n {
		w.t.Fatalf("%d bytes, %d dirty, %d entries, %d clean; the books say %d, %d, %d, %d and %d in the index",
			all, dirty, count, clean, s.bytes, s.dirtyBytes, s.count, s.clean, s.index.n)
	}
	if n := s.slab.check(w.t); n != blocks {
		w.t.Fatalf("%d blocks in use for %d entries and frozen copies", n, blocks)
	}
}

// An event that comes while a checkpoint writes is not in it, and not lost either.
func TestEventsDuringCheckpoint(t *testing.T) {
	w := start(t, t.TempDir(), Options{}).run()
	defer w.stop()
	w.store.perWrite = 1
	story(w)
	n := 0
	w.store.interrupt = func(string) error {
		w.checkBooks()
		w.send(`d0 - {"$add":{"n":1}}`, fmt.Sprintf(`d4/u4 x%d {"$add":{"n":1}}`, n), fmt.Sprintf(`d%d y%d`, 10+n, n))
		n++
		return nil
	}
	w.checkpoint()
	w.store.interrupt = nil
	if good, tail := w.store.Stats().Good, w.log.Tail(); good != 7 || tail == good {
		t.Errorf("good for %d of %d", good, tail)
	}
	w.checkBooks()
	want := w.everything()
	for range 2 {
		after := w.crash(Options{})
		if got := after.everything(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		after.stop()
		w.checkpoint()
		w.checkBooks()
	}
}

// keys counts what is in users.db.
func (w *world) keys() (n int) {
	w.t.Helper()
	err := w.store.db.View(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketUsers, bucketDevices} {
			n += tx.Bucket(b).Stats().KeyN
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// What need not be known is not kept: devices that said nothing of themselves, those
// that nobody logged in on for 30 days, insert_ids after seven.
func TestExpiry(t *testing.T) {
	const day = 24 * time.Hour
	w := start(t, t.TempDir(), Options{CacheBytes: 10_000}).run()
	defer w.stop()
	w.send(`quiet`, `quiet2/ghost`)
	w.checkpoint()
	if n := w.keys(); n != 1 {
		t.Errorf("%d keys; only the link of a device is worth one", n)
	}
	var events []string
	for i := range sweepEntries + 100 {
		events = append(events, fmt.Sprintf(`anon%d i%d {"a":1}`, i, i))
	}
	w.send(append(events, `known/ann i {"a":1}`, `old i`)...)
	w.checkpoint()
	full := sweepEntries + 104
	if n := w.keys(); n != full {
		t.Fatalf("%d keys, want %d", n, full)
	}
	if got := w.know("anon5", ""); got != ` {"a":1} 1 insert_ids` {
		t.Error(got)
	}

	w.clock.advance(8 * day) // the insert_ids go, and with them a device that had nothing else
	if got := w.know("anon5", ""); got != ` {"a":1} 0 insert_ids` {
		t.Error(got)
	}
	w.send(`anon7 - {"b":2}`) // this one is still there
	for range 6 {
		w.checkpoint()
	}
	if n := w.keys(); n != full-1 {
		t.Errorf("%d keys after 8 days, want %d", n, full-1)
	}

	w.clock.advance(23 * day)
	if got := w.know("anon5", ""); got != ` {} 0 insert_ids` {
		t.Errorf("after 31 days, before a sweep: %s", got)
	}
	w.send(`anon6/bob`)
	if got := w.know("anon6", ""); got != `bob {} 0 insert_ids` {
		t.Errorf("a login takes over what had expired: %s", got)
	}
	after := w.crash(Options{CacheBytes: 10_000}).run() // a restart does not put it off
	defer after.stop()
	for range 6 {
		after.checkpoint()
		after.checkBooks()
	}
	// quiet2, known, ann, anon6 (linked) and anon7 (seen 23 days ago)
	if n := after.keys(); n != 5 {
		t.Errorf("%d keys after 31 days, want 5", n)
	}
	if got := after.know("anon7", ""); got != ` {"a":1,"b":2} 0 insert_ids` {
		t.Error(got)
	}
	if after.store.Stats().Expired == 0 {
		t.Error("not counted")
	}
}
