package users

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ampcio/mapping"
	"ampcio/queue"
)

// A history is many synced writes: 30 of them are for every day, and
// -rapid.checks=4000 -rapid.steps=60 for a change in how things are written.
func TestMain(m *testing.M) {
	flag.Parse()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		flag.Set("rapid.checks", "30")
	}
	// Pages on the Go heap, so that the race detector watches them. TestArena has those of
	// the system.
	newArena = func(int) []byte { return nil }
	goleak.VerifyTestMain(m)
}

// clock is the time of a test; it stands until it is moved.
type clock struct{ ms atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

const startOfTests = 1_800_000_000_000 // 2027-01-15 08:00:00 UTC

// world is a storage folder with a log and a store in it, as the daemon has them.
type world struct {
	t     testing.TB
	dir   string
	clock *clock
	log   *queue.Log
	store *Store
	stops []func()
	// failing: an error of what runs is part of the story.
	failing bool
}

// start opens the log and the store in dir; run starts the committer.
func start(t testing.TB, dir string, o Options) *world {
	t.Helper()
	w, err := tryOpen(t, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tryOpen(t testing.TB, dir string, o Options) (*world, error) {
	w := &world{t: t, dir: dir, clock: &clock{}}
	w.clock.ms.Store(startOfTests)
	log, err := queue.Open(queue.Options{Dir: dir, RotateBytes: 1 << 20, RotateAfter: 24 * time.Hour, InFlightBytes: 256 << 20, Now: w.clock.now, Keep: time.Hour, KeepBytes: 1 << 30})
	if err != nil {
		return nil, err
	}
	w.log = log
	o.Path = filepath.Join(dir, "users.db")
	if o.Now == nil {
		o.Now = w.clock.now
	}
	if w.store, err = Open(context.Background(), log, o); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	w.stops = append(w.stops, func() {
		if err := errors.Join(w.store.Close(), log.Close()); err != nil {
			t.Error(err)
		}
	})
	return w, nil
}

// run starts the log's committer.
func (w *world) run() *world {
	w.keep("log", w.log.Run)
	return w
}

// runStore starts the store's checkpoints.
func (w *world) runStore() *world {
	w.keep("users", w.store.Run)
	return w
}

func (w *world) keep(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := run(ctx); err != nil && !w.failing {
			w.t.Errorf("%s: %v", name, err)
		}
	})
	w.stops = append(w.stops, func() { cancel(); done.Wait() })
}

// stop ends what was started, the latest first, and closes the files.
func (w *world) stop() {
	for i := len(w.stops) - 1; i >= 0; i-- {
		w.stops[i]()
	}
	w.stops = nil
}

// checkpoint writes one now.
func (w *world) checkpoint() {
	w.t.Helper()
	if err := w.store.checkpointNow(); err != nil {
		w.t.Fatal(err)
	}
}

// checkpointNow does what Run does when a checkpoint is due.
func (s *Store) checkpointNow() error {
	s.mu.Lock()
	if s.cutting == nil {
		s.takeCut()
	}
	s.mu.Unlock()
	return s.maybeWrite(false)
}

// crash gives a world on a copy of the files as they are now: what a power cut would
// leave, since every commit is synced when it returns.
func (w *world) crash(o Options) *world {
	w.t.Helper()
	dir := w.t.TempDir()
	copyFolder(w.t, dir, w.dir)
	o.Now = w.clock.now
	after := start(w.t, dir, o)
	after.clock = w.clock
	return after
}

func copyFolder(t testing.TB, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		return copyFile(filepath.Join(to, name), path)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyFile leaves holes out: bbolt's files are larger than what is in them.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	end, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for at := int64(0); at < end; {
		if at, err = in.Seek(at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			break
		} else if err != nil {
			return err
		}
		hole, err := in.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, hole-at)); err != nil {
			return err
		}
		at = hole
	}
	return out.Truncate(end)
}

// event reads an event written short: "device/user insert_id {user_properties}", each
// part optional, "-" for none.
func event(t testing.TB, short string) mapping.Event {
	t.Helper()
	parts := strings.SplitN(short, " ", 3)
	device, user, _ := strings.Cut(parts[0], "/")
	raw := `{"event_type":"Test"`
	add := func(name, value string) {
		if value != "" && value != "-" {
			raw += fmt.Sprintf(",%q:%q", name, value)
		}
	}
	add("device_id", device)
	user, skip := strings.CutSuffix(user, "!skip")
	add("user_id", user)
	if len(parts) > 1 {
		add("insert_id", parts[1])
	}
	if len(parts) > 2 {
		raw += `,"user_properties":` + parts[2]
	}
	if skip {
		raw += `,"$skip_user_properties_sync":true`
	}
	ev, problems := mapping.ParseEvent([]byte(raw + "}"))
	if problems != nil {
		t.Fatalf("%s: %v", short, problems)
	}
	return ev
}

// send appends one arrival of events written short, and gives the number of duplicates.
func (w *world) send(short ...string) int {
	w.t.Helper()
	return w.sendTo("app", short...)
}

func (w *world) sendTo(project string, short ...string) int {
	w.t.Helper()
	a := mapping.Arrival{Project: project, Received: w.clock.now().UnixMilli()}
	for _, s := range short {
		a.Events = append(a.Events, event(w.t, s))
	}
	n, err := w.store.Append(context.Background(), a)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// records reads the whole log.
func (w *world) records() (all []mapping.Record) {
	w.t.Helper()
	for r := w.log.Reader(0); ; {
		c, err := r.Try()
		if err != nil {
			w.t.Fatal(err)
		}
		if c == nil {
			return all
		}
		err = c.Records(func(q queue.Record) error {
			var r mapping.Record
			if q.Forgotten {
				return nil
			}
			if err := r.DecodeBody(q.Body); err != nil {
				return err
			}
			r.Seq, r.Project, r.ID, r.Received = q.Seq, q.Project, q.ID, q.Received
			all = append(all, r)
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

func arrival(t testing.TB, w *world, short ...string) mapping.Arrival {
	t.Helper()
	a := mapping.Arrival{Project: "app", Received: w.clock.now().UnixMilli()}
	for _, s := range short {
		a.Events = append(a.Events, event(t, s))
	}
	return a
}
