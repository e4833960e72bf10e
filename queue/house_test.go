package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roles are what the test binary does when it is started again as another process.
var roles = map[string]func(dir string){}

func TestMain(m *testing.M) {
	if role := roles[os.Getenv("QUEUE_TEST_ROLE")]; role != nil {
		role(os.Getenv("QUEUE_TEST_DIR"))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child starts this binary again in a role.
func child(t testing.TB, role, dir string) *exec.Cmd {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(stop)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "QUEUE_TEST_ROLE="+role, "QUEUE_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// texts is a batch of plain records: "lane:body" each.
type texts struct {
	project string
	items   []string
	places  []Place
	size    int
}

func (b *texts) Size() int { return max(b.size, len(b.items)*100) }

func (b *texts) Project() string { return b.project }

func (b *texts) Resolve(w *Writer) error {
	for _, t := range b.items {
		p := w.Next()
		b.places = append(b.places, p)
		w.Put(Record{Project: b.project, Lane: laneOf(t), Received: int64(p.Seq) * 1000, Body: []byte(t)})
	}
	return nil
}

func laneOf(t string) string {
	if lane, _, ok := strings.Cut(t, ":"); ok {
		return lane
	}
	return t[:1]
}

func batch(items ...string) *texts { return &texts{project: "app", items: items} }

// gate is a batch whose turn the test decides: Resolve says that it has come, and waits.
type gate struct {
	texts
	reached, open chan struct{}
	err           error
}

func newGate(items ...string) *gate {
	return &gate{texts: *batch(items...), reached: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) Resolve(w *Writer) error {
	close(g.reached)
	<-g.open
	if g.err != nil {
		return g.err
	}
	return g.texts.Resolve(w)
}

// commitNow does with one batch as Run does, of a log that does not run.
func commitNow(l *Log, p *pending) error {
	r := newResolver(l)
	defer r.close()
	r.take(p)
	return r.flush()
}

func options(dir string) Options {
	return Options{Dir: dir, RotateBytes: 64 << 20, RotateAfter: 24 * time.Hour, InFlightBytes: 64 << 20, Now: time.Now}
}

func consumerOptions(name string) ConsumerOptions {
	return ConsumerOptions{Name: name, Project: "app", Enabled: true, WindowBytes: 1 << 20, Now: time.Now}
}

// house is a log and its consumers, running.
type house struct {
	t     testing.TB
	log   *Log
	stop  context.CancelFunc
	done  chan error
	parts int
}

func mustOpen(t testing.TB, o Options, names ...string) (*house, map[string]*Consumer) {
	t.Helper()
	var cos []ConsumerOptions
	for _, n := range names {
		co := consumerOptions(n)
		co.Now = o.Now
		cos = append(cos, co)
	}
	return mustOpenAs(t, o, cos...)
}

func mustOpenAs(t testing.TB, o Options, consumers ...ConsumerOptions) (*house, map[string]*Consumer) {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &house{t: t, log: l, stop: stop, done: make(chan error, 64)}
	cs := map[string]*Consumer{}
	for _, co := range consumers {
		c, err := OpenConsumer(l, co)
		if err != nil {
			t.Fatal(err)
		}
		cs[co.Name] = c
		h.start(func() error { return c.Run(ctx) })
	}
	h.start(func() error { return l.Run(ctx) })
	return h, cs
}

func (h *house) start(f func() error) {
	h.parts++
	go func() { h.done <- f() }()
}

func (h *house) close(cs map[string]*Consumer) {
	h.t.Helper()
	h.stop()
	for range h.parts {
		if err := <-h.done; err != nil {
			h.t.Error(err)
		}
	}
	for _, c := range cs {
		if err := c.Close(); err != nil {
			h.t.Error(err)
		}
	}
	if err := h.log.Close(); err != nil {
		h.t.Error(err)
	}
}

// holders are those that keep files of the log now.
func (h *house) holders() map[string]uint64 {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return maps.Clone(h.log.holders)
}

func (h *house) append(items ...string) {
	h.t.Helper()
	if err := h.log.Append(context.Background(), batch(items...)); err != nil {
		h.t.Fatal(err)
	}
}

// fill appends n records of 8 lanes, "0:00000012" with their sequence.
func (h *house) fill(project string, n int, pad int) {
	h.t.Helper()
	for n > 0 {
		b := &texts{project: project}
		for first := h.log.Tail() + 1; n > 0 && len(b.items) < 100; n-- {
			seq := first + uint64(len(b.items))
			b.items = append(b.items, fmt.Sprintf("%d:%08d%s", seq%8, seq, noise(seq, pad)))
		}
		if err := h.log.Append(context.Background(), b); err != nil {
			h.t.Fatal(err)
		}
	}
	h.append() // the committer rotates after it has answered: now it has
}

// noise is text that does not compress.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = 'a' + byte(seed>>59)%26
	}
	return string(b)
}

func delivered(n int) []Outcome {
	out := make([]Outcome, n)
	for i := range out {
		out[i].Ending = Delivered
	}
	return out
}

func mustClaim(t testing.TB, c *Consumer) *Claim {
	t.Helper()
	return claimWithin(t, c, 20*time.Second)
}

func claimWithin(t testing.TB, c *Consumer, limit time.Duration) *Claim {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), limit)
	defer stop()
	cl, err := c.Claim(ctx)
	if err != nil {
		t.Fatalf("no claim: %v", err)
	}
	return cl
}

// drain delivers until nothing is pending, and gives the bodies lane by lane.
func drain(t testing.TB, c *Consumer) map[string][]string {
	t.Helper()
	got := map[string][]string{}
	deadline := time.Now().Add(30 * time.Second)
	for {
		st := mustStats(t, c)
		if st.Books.Pending == 0 {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("not drained: %+v", st)
		}
		// A gap at the end of the log is no claim: look again soon.
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
		cl, err := c.Claim(ctx)
		stop()
		if err != nil {
			continue
		}
		for _, r := range cl.Records() {
			got[r.Lane] = append(got[r.Lane], string(r.Body))
		}
		cl.Finish(delivered(len(cl.Records())))
	}
}

func mustStats(t testing.TB, c *Consumer) ConsumerStats {
	t.Helper()
	st, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if d := st.Books.Difference(); d != 0 {
		t.Fatalf("books are out by %d: %+v", d, st.Books)
	}
	return st
}

// caughtUp waits until a consumer has read all there is.
func caughtUp(t testing.TB, h *house, c *Consumer) {
	t.Helper()
	eventually(t, "all is read", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.read == h.log.Tail()
	})
}

// eventually waits for the disk or another goroutine, and asks often.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func bodies(rs []Record) string {
	s := ""
	for _, r := range rs {
		s += string(r.Body) + " "
	}
	return s
}

// readAll gives the sequences that a reader sees behind after, and their bodies.
func readAll(t testing.TB, l *Log, after uint64) (seqs []uint64, texts []string) {
	t.Helper()
	r := l.Reader(after)
	for {
		c, err := r.Try()
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			return seqs, texts
		}
		c.Records(func(r Record) error {
			if r.Seq > after {
				seqs, texts = append(seqs, r.Seq), append(texts, string(r.Body))
			}
			return nil
		})
	}
}

// commits lists the first sequences of the commits in a log file.
func commits(t testing.TB, path string) (firsts []uint64) {
	t.Helper()
	o := logOptions(0)
	o.ReadOnly, o.MmapBytes = true, 0
	db, err := OpenDB(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketLog).ForEach(func(k, _ []byte) error {
			firsts = append(firsts, binary.BigEndian.Uint64(k))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return firsts
}

func logPaths(t testing.TB, dir string) []string {
	t.Helper()
	files, err := listLog(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.path)
	}
	return paths
}

// quickDir is for tests that open files hundreds of times and ask nothing of a real
// disk: in memory where there is a place for that.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "queue")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// bytesOnly is of a test about bytes on a disk, damaged or not, in which nothing happens at once that others do not do
// too: a short run under the race detector, in which it takes up to a minute, leaves it out.
func bytesOnly(t testing.TB) {
	t.Helper()
	if raceEnabled && testing.Short() {
		t.Skip("about bytes, and not about what happens at once")
	}
}

// copyTree copies a storage folder as a crash would leave it, files as they are now.
// Holes stay holes: bbolt's files are large and mostly empty.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copySparse(path, filepath.Join(to, rel))
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func copySparse(from, to string) error {
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
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for at := int64(0); at < st.Size(); {
		data, err := in.Seek(at, unix.SEEK_DATA)
		if err != nil {
			return nil // no more
		}
		n, err := in.ReadAt(block, data)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := out.WriteAt(block[:n], data); err != nil {
			return err
		}
		at = data + int64(max(n, 1))
	}
	return nil
}

func isFull(err error) bool {
	var full *FullError
	return errors.As(err, &full)
}
