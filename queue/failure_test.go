package queue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// appendUntilError appends with four callers until nothing is accepted any more, and
// gives what was acknowledged and what the others were told.
func appendUntilError(l *Log, pad int) (acked []string, told []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 100000 {
				body := fmt.Sprintf("%d:%d-", i, n)
				err := l.Append(context.Background(), batch(body+noise(uint64(n), pad)))
				mu.Lock()
				if err == nil {
					acked = append(acked, body)
				} else {
					told = append(told, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return acked, told
}

// checkAfterFailure opens the log again: all that was acknowledged is there.
func checkAfterFailure(t *testing.T, dir string, acked []string) {
	t.Helper()
	h, cs := mustOpen(t, options(dir))
	seqs, texts := readAll(t, h.log, 0)
	if !slices.Equal(seqs, count(1, uint64(len(seqs)))) {
		t.Errorf("sequences: %v", seqs)
	}
	stored := map[string]bool{}
	for _, text := range texts {
		stored[text[:strings.Index(text, "-")+1]] = true
	}
	for _, body := range acked {
		if !stored[body] {
			t.Errorf("%s was acknowledged and is gone", body)
		}
	}
	h.append("a:after")
	h.close(cs)
	if len(acked) == 0 {
		t.Error("nothing was acknowledged before the failure: the test shows nothing")
	}
}

func TestAfterAFailedCommitNothingIsAccepted(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	l, err := Open(o)
	must(t, err)
	l.writing.db.MaxSize = 300 << 10 // the file cannot grow: failed, and not stored
	l.writing.db.AllocSize = 4096
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background()) }()
	acked, told := appendUntilError(l, 3000)
	failed := 0
	for _, err := range told {
		if isFull(err) || errors.Is(err, ErrBusy) {
			t.Errorf("told %v: that says nothing was stored, and may be tried again", err)
		}
		if !errors.Is(err, ErrClosed) {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nobody was told of the failure itself")
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "commit to") {
		t.Errorf("Run: %v", err)
	}
	if err := l.Append(t.Context(), batch("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	must(t, l.Close())
	checkAfterFailure(t, dir, acked)
}

// The other way: the commit is stored, and then something fails.
func TestACommitThatFailsAndIsStored(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(options(dir))
	must(t, err)
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- l.Run(ctx) }()
	must(t, l.Append(t.Context(), batch("a:1-")))
	stop()
	must(t, <-done)
	// As round does it, but for the answer of the disk, which is lost.
	w := newWriter(l.end, nil)
	must(t, batch("a:2-").Resolve(&w))
	must(t, l.commit(w.finish(), logEnd{w.next - 1, w.counts}))
	must(t, l.Close())
	h, cs := mustOpen(t, options(dir))
	h.append("a:2-") // the sender tries again
	seqs, texts := readAll(t, h.log, 0)
	if !slices.Equal(seqs, count(1, 3)) || !slices.Equal(texts, []string{"a:1-", "a:2-", "a:2-"}) {
		t.Fatal(seqs, texts)
	}
	h.close(cs)
}

func init() {
	// Appends until the disk fails; what was acknowledged goes to the file "acked".
	roles["append"] = func(dir string) {
		signal.Ignore(syscall.SIGXFSZ) // then a write beyond the limit is EFBIG
		o := options(dir)
		o.MinFree = -1 << 40 // this is about the disk's own answer
		l, err := Open(o)
		if err != nil {
			fmt.Println("open:", err)
			return
		}
		l.writing.db.AllocSize = 4096 // so that it grows often
		if os.Getenv("QUEUE_TEST_LIMIT") != "" {
			limit := syscall.Rlimit{Cur: 400 << 10, Max: 400 << 10}
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
				fmt.Println("setrlimit:", err)
				return
			}
		}
		done := make(chan error, 1)
		ctx, stop := context.WithCancel(context.Background())
		go func() { done <- l.Run(ctx) }()
		acked, told := appendUntilError(l, 2000)
		stop()
		for _, body := range acked {
			fmt.Println("acked", body)
		}
		for _, err := range told {
			fmt.Println("told", err)
		}
		fmt.Println("run", <-done)
	}
}

// runAppender runs the child and gives what it said was acknowledged, and Run's error.
func runAppender(t *testing.T, cmd *exec.Cmd) (acked []string, run string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	for s := bufio.NewScanner(out); s.Scan(); {
		what, rest, _ := strings.Cut(s.Text(), " ")
		switch what {
		case "acked":
			acked = append(acked, rest)
		case "run":
			run = rest
		case "told":
			if strings.Contains(rest, "full") {
				t.Errorf("told %q: that says nothing was stored", rest)
			}
		default:
			t.Fatalf("child: %s", s.Text())
		}
	}
	must(t, cmd.Wait())
	return acked, run
}

func TestAFileThatMayNotGrow(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "append", dir)
	cmd.Env = append(cmd.Env, "QUEUE_TEST_LIMIT=1")
	acked, run := runAppender(t, cmd)
	if !strings.Contains(run, "file too large") {
		t.Errorf("run: %s", run)
	}
	checkAfterFailure(t, dir, acked)
}

// The sync fails after the pages were written: what is in the page cache is read
// again at the next start, though nobody was told that it is stored.
func TestASyncThatFails(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if err := exec.Command(strace, "-o", "/dev/null", "true").Run(); err != nil {
		t.Skipf("strace may not trace here: %v", err)
	}
	for _, when := range []string{"15+", "16+"} { // a commit syncs twice: data, then meta page
		t.Run(when, func(t *testing.T) {
			dir := t.TempDir()
			cmd := child(t, "append", dir)
			cmd.Args = append([]string{strace, "-f", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=" + when, "-o", "/dev/null"}, cmd.Args...)
			cmd.Path = strace
			acked, run := runAppender(t, cmd)
			if !strings.Contains(run, "input/output error") {
				t.Errorf("run: %s", run)
			}
			checkAfterFailure(t, dir, acked)
		})
	}
}

func TestAFailedCheckpointEndsTheConsumer(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(options(dir))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	running, consuming := make(chan error, 1), make(chan error, 1)
	go func() { running <- l.Run(ctx) }()
	go func() { consuming <- c.Run(ctx) }()
	must(t, l.Append(ctx, batch("a1", "a2", "b1")))
	mustClaim(t, c).Finish(delivered(1))
	held := mustClaim(t, c)
	bad := delivered(len(held.Records()))
	bad[0].SentKey, bad[0].Sent = strings.Repeat("k", 40_000), []byte("x") // bbolt takes no such key
	held.Finish(bad)
	err = <-consuming
	if !strings.Contains(err.Error(), "checkpoint of sync p") {
		t.Fatal(err)
	}
	// What the disk has of it is unknown: nothing that comes later may be said to be durable.
	for what, do := range map[string]func() error{"a pause": c.Pause, "a flush": c.Flush} {
		if do() == nil {
			t.Errorf("%s was written behind a checkpoint that had failed", what)
		}
	}
	mustStats(t, c) // still answers, for the last words
	stop()
	must(t, <-running)
	tail := l.Tail()
	must(t, c.Close())
	must(t, l.Close())
	h, cs := mustOpen(t, options(dir), "p")
	drain(t, cs["p"])
	if st := mustStats(t, cs["p"]); st.Books.Taken != tail || st.Books.Pending != 0 {
		t.Fatalf("%+v", st.Books)
	}
	h.close(cs)
}

// What a rewind takes again, and what was sent since, would be forgotten by the next start:
// it would take for the last that was sent what is none any more.
func TestNothingIsClaimedBehindARewindThatWasNotWritten(t *testing.T) {
	l, err := Open(options(t.TempDir()))
	must(t, err)
	o := consumerOptions("p")
	var c *Consumer
	o.Now = func() time.Time {
		if c != nil && c.held > 0 { // the rewind's, which holds c.mu here: the checkpoint behind it fails
			c.sentNew[strings.Repeat("k", 40_000)] = []byte("x") // bbolt takes no such key
		}
		return time.UnixMilli(1000)
	}
	opened, err := OpenConsumer(l, o)
	must(t, err)
	c = opened
	ctx, stop := context.WithCancel(t.Context())
	running, reading := make(chan error, 1), make(chan error, 1)
	go func() { running <- l.Run(ctx) }()
	go func() { reading <- c.readLog(ctx) }() // nobody makes checkpoints: a slow machine
	must(t, l.Append(ctx, batch("a1", "a2")))
	mustClaim(t, c).Finish(delivered(2))
	if _, err := c.Rewind(ctx, 0, false, false); err == nil {
		t.Fatal("the rewind was written")
	}
	eventually(t, "the records are read again", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.window) == 2
	})
	if cl := c.TryClaim(); cl != nil {
		t.Errorf("%q may be sent again, and the ledger will not know", bodies(cl.Records()))
		cl.Return()
	}
	stop()
	must(t, <-running)
	must(t, <-reading)
	if err := c.Close(); err != nil && !strings.Contains(err.Error(), "checkpoint of sync p") {
		t.Error(err)
	}
	must(t, l.Close())
}
