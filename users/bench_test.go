package users

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ampcio/mapping"
	"ampcio/queue"
)

// stopwatch sums up what a thread computes, which says more than the time that passes
// where others compute too.
type stopwatch struct{ total time.Duration }

func (s *stopwatch) run(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	err := f()
	s.total += threadTime() - began
	return err
}

func threadTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

func (s *stopwatch) report(b *testing.B, n int) {
	b.ReportMetric(float64(s.total)/float64(n), "cpu-ns/op")
}

// timed does its work in the committer and measures nothing but that.
type timed struct {
	b    *testing.B
	s    *stopwatch
	work func(w *queue.Writer) error
}

func (t timed) Size() int       { return 1 }
func (t timed) Project() string { return "app" }

func (t timed) Resolve(w *queue.Writer) error {
	t.b.StartTimer()
	defer t.b.StopTimer()
	return t.s.run(func() error { return t.work(w) })
}

// traffic makes events of 700 bytes of so many users, each with a device.
type traffic struct {
	store       *Store
	users, sent int
	insertIDs   bool
	properties  string // of each event; %d = a number that is always another
}

func (t *traffic) event() mapping.Event {
	t.sent++
	u := t.sent % t.users
	ev := mapping.Event{Type: "Page Viewed", UserID: fmt.Sprintf("user-%08d@example.com", u), DeviceID: fmt.Sprintf("6f1c7c1e-95a3-4c5e-8e0f-%012d", u)}
	if t.insertIDs {
		ev.InsertID = fmt.Sprintf("0b6a7e2c-1d1a-4a1e-9a55-%012d", t.sent)
	}
	raw := fmt.Sprintf(`{"event_type":"Page Viewed","user_id":%q,"device_id":%q,"insert_id":%q,"event_properties":{"p":%q}`, ev.UserID, ev.DeviceID, ev.InsertID, strings.Repeat("x", 480))
	if p := t.properties; p != "" {
		p = strings.ReplaceAll(p, "%d", fmt.Sprint(t.sent))
		ev.UserProperties = []byte(p)
		raw += `,"user_properties":` + p
	}
	ev.Raw = []byte(raw + "}")
	return ev
}

func (t *traffic) batches(events int) (all []*batch) {
	for events > 0 {
		a := mapping.Arrival{Project: "app", Received: startOfTests, Address: "192.0.2.1"}
		for range min(100, events) {
			a.Events = append(a.Events, t.event())
		}
		events -= len(a.Events)
		all = append(all, newBatch(t.store, a))
	}
	return all
}

// BenchmarkResolve: what resolving costs in the committer, requests of 100 events, and
// what of it is the log's own (putting a record of the same size). A full memory for
// duplicates is the usual case.
func BenchmarkResolve(b *testing.B) {
	for _, c := range []struct {
		name, properties string
		insertIDs        bool
		users            int
	}{
		{"10,000 users", "", true, 10_000},
		{"10,000 users, no insert_id", "", false, 10_000},
		{"one user", "", true, 1},
		{"10,000 users, set", `{"$set":{"plan":"pro","seats":%d}}`, true, 10_000},
		{"10,000 users, add", `{"$add":{"logins":1}}`, true, 10_000},
		{"100,000 users", "", true, 100_000},
		{"1,000,000 users", "", true, 1_000_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.StopTimer()
			w := start(b, b.TempDir(), Options{}).run()
			defer w.stop()
			b.ReportAllocs()
			t := &traffic{store: w.store, users: c.users, insertIDs: c.insertIDs, properties: c.properties}
			var cpu stopwatch
			resolve := func(events int) {
				all := t.batches(events)
				err := w.log.Append(context.Background(), timed{b, &cpu, func(w *queue.Writer) error {
					for _, a := range all {
						if err := a.Resolve(w); err != nil {
							return err
						}
					}
					return nil
				}})
				if err != nil {
					b.Fatal(err)
				}
			}
			for range max(1, 80_000/c.users) {
				for left := c.users; left > 0; left -= 10_000 {
					resolve(min(left, 10_000))
				}
			}
			cpu = stopwatch{}
			b.ResetTimer()
			for done := 0; done < b.N; done += 10_000 {
				resolve(min(10_000, b.N-done))
			}
			cpu.report(b, b.N)
			s := w.store.Stats()
			b.ReportMetric(float64(s.CachedBytes)/float64(s.Cached), "bytes/entry")
		})
	}
	b.Run("put alone", func(b *testing.B) {
		b.StopTimer()
		w := start(b, b.TempDir(), Options{}).run()
		defer w.stop()
		b.ReportAllocs()
		var cpu stopwatch
		r := queue.Record{Project: "app", Lane: "uuser-00000001@example.com", Received: startOfTests, Body: make([]byte, 800)}
		for done := 0; done < b.N; done += 10_000 {
			err := w.log.Append(context.Background(), timed{b, &cpu, func(w *queue.Writer) error {
				for range min(10_000, b.N-done) {
					w.Next()
					w.Put(r)
				}
				return nil
			}})
			if err != nil {
				b.Fatal(err)
			}
		}
		cpu.report(b, b.N)
	})
}

// BenchmarkReplay: what a crash costs at the next start, for each record behind the
// last checkpoint.
func BenchmarkReplay(b *testing.B) {
	w := start(b, b.TempDir(), Options{})
	w.run()
	defer w.stop()
	t := &traffic{store: w.store, users: 10_000, insertIDs: true, properties: `{"$set":{"seats":%d}}`}
	for sent := 0; sent < b.N; sent += 10_000 {
		for _, a := range t.batches(min(10_000, b.N-sent)) {
			if err := w.log.Append(context.Background(), a); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	var s *Store
	var cpu stopwatch
	err := cpu.run(func() (err error) {
		s, err = Open(context.Background(), w.log, Options{Path: b.TempDir() + "/users.db"})
		return err
	})
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	cpu.report(b, b.N)
	if n := s.Stats().Replayed; n != uint64(b.N) {
		b.Errorf("%d records replayed of %d", n, b.N)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCheckpoint: writing 10,000 devices with a full memory for duplicates, and
// their users.
func BenchmarkCheckpoint(b *testing.B) {
	w := start(b, b.TempDir(), Options{CacheBytes: 256 << 20}).run()
	defer w.stop()
	t := &traffic{store: w.store, users: 10_000, insertIDs: true, properties: `{"$set":{"seats":%d}}`}
	touchAll := func() {
		for _, a := range t.batches(10_000) {
			if err := w.log.Append(context.Background(), a); err != nil {
				b.Fatal(err)
			}
		}
	}
	for range recentMax {
		touchAll()
	}
	b.ReportAllocs()
	var cpu stopwatch
	for b.Loop() {
		b.StopTimer()
		touchAll()
		b.StartTimer()
		cpu.run(func() error { w.checkpoint(); return nil })
	}
	cpu.report(b, b.N)
	b.ReportMetric(float64(w.store.Stats().CheckpointBytes)/float64(w.store.Stats().Checkpoints), "bytes/op")
}
