package queue

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// busy appends, delivers, fails and operates, all at full speed, until ctx ends. did is
// called after each operation.
func busy(ctx context.Context, l *Log, c *Consumer, fail func(error), did func()) (work *sync.WaitGroup) {
	work = &sync.WaitGroup{}
	c.Flowing(true)
	for w := range 2 {
		work.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				project := "app"
				if n%5 == 0 {
					project = "web"
				}
				b := &texts{project: project}
				for i := range 20 {
					b.items = append(b.items, fmt.Sprintf("%d:%d-%d-%d%s", (n+i)%40, w, n, i, noise(uint64(n), 200)))
				}
				if err := l.Append(context.Background(), b); err != nil {
					fail(err)
					return
				}
			}
		})
		work.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			for {
				cl, err := c.Claim(ctx)
				if err != nil {
					return
				}
				if lane := cl.Lane(); len(lane) == 1 && random.IntN(20) > 0 { // 0 to 9 fail and fail
					cl.Retry(time.Duration(random.IntN(5))*time.Millisecond, "http_500")
					continue
				}
				settleSomehow(cl, random)
			}
		})
	}
	work.Go(func() {
		if err := operate(ctx, c, did); err != nil {
			fail(err)
		}
	})
	return work
}

func busyOptions(dir string) (Options, ConsumerOptions) {
	o, co := small(dir), consumerOptions("p")
	o.RotateBytes, o.Keep, o.KeepBytes = 1<<20, time.Hour, 1<<40
	co.WindowBytes = 64 << 10
	return o, co
}

// While all goes on, an operator's verbs among it, an audit never finds what is not there.
func TestAuditUnderLoad(t *testing.T) {
	o, co := busyOptions(t.TempDir())
	h, cs := mustOpenAs(t, o, co)
	c := cs["p"]
	ctx, stop := context.WithCancel(t.Context())
	work := busy(ctx, h.log, c, func(err error) { t.Error(err) }, func() {})
	limit := 4 * time.Second
	if testing.Short() {
		limit = 2 * time.Second
	}
	var most Audit
	rounds := 0
	shown := func() bool {
		return rounds >= 3 && most.InLog > 0 && most.Aside > 0 && most.DeadLetters > 0 && most.Books.Rewound > 0 && most.Books.Discarded > 0
	}
	for begun := time.Now(); (time.Since(begun) < limit || !shown() && time.Since(begun) < 15*limit) && !t.Failed(); rounds++ {
		a, err := c.Audit(t.Context())
		must(t, err)
		if !a.Balanced() || a.Books.Difference() != 0 || a.Counted != a.Books.Pending || len(a.Notes) != 0 {
			t.Errorf("round %d: %s\n%+v", rounds, strings.Join(a.Differences, "\n"), a)
		}
		most.InLog, most.Aside, most.DeadLetters = max(most.InLog, a.InLog), max(most.Aside, a.Aside), max(most.DeadLetters, a.DeadLetters)
		most.Books = a.Books
	}
	stop()
	work.Wait()
	t.Logf("%d audits, with up to %d pending in the log, %d in the side place, %d dead letters; %+v",
		rounds, most.InLog, most.Aside, most.DeadLetters, most.Books)
	if !shown() {
		t.Error("that shows nothing")
	}
	if held := h.holders(); len(held) != 1 {
		t.Errorf("audits still hold the log: %v", held)
	}
	h.close(cs)
	mustBalance(t, audited(t, o.Dir))
}

// operate does what operators do, one after the other, until ctx ends.
func operate(ctx context.Context, c *Consumer, did func()) (err error) {
	random := rand.New(rand.NewPCG(9, uint64(os.Getpid())))
	some := func() (seqs []uint64) {
		c.DeadLetters(func(d DeadLetter) error {
			if random.IntN(10) == 0 {
				seqs = append(seqs, d.Record.Seq)
			}
			return nil
		})
		return seqs
	}
	for ctx.Err() == nil {
		switch random.IntN(8) {
		case 0:
			tail := int64(max(c.log.Tail(), 1))
			_, err = c.Rewind(ctx, 1000*(tail-random.Int64N(min(tail, 3000))), true, false)
		case 1:
			_, err = c.ReplayDead(some())
		case 2:
			_, err = c.DropDead(some())
		case 3:
			err = c.SetEnabled(random.IntN(4) > 0)
		case 4:
			if err = c.Pause(); err == nil {
				err = c.Resume()
			}
		case 5:
			c.SetBound(200<<10, true)
			err = c.discardNow()
			c.SetBound(0, false)
		default:
			err = c.Flush()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		did()
	}
	return c.SetEnabled(true)
}

// discardNow is what Run does about once a second.
func (c *Consumer) discardNow() error {
	c.operating.Lock()
	defer c.operating.Unlock()
	return c.discardOldest()
}

// settleSomehow ends a claim in one of all ways.
func settleSomehow(cl *Claim, random *rand.Rand) {
	out := delivered(len(cl.Records()))
	for i := range out {
		if random.IntN(4) == 0 {
			out[i] = Outcome{Ending: Ending(2 + random.IntN(2)), Reason: "so"}
		}
	}
	switch random.IntN(6) {
	case 0:
		cl.Return()
	case 1:
		cl.Settle(out[:random.IntN(len(out)+1)], time.Duration(random.IntN(20))*time.Millisecond, "again")
	default:
		cl.Finish(out)
	}
}

func init() {
	// Is as busy as can be until it is killed.
	roles["busy"] = func(dir string) {
		o, co := busyOptions(dir)
		l, err := Open(o)
		if err != nil {
			fmt.Println("open:", err)
			return
		}
		c, err := OpenConsumer(l, co)
		if err != nil {
			fmt.Println("open:", err)
			return
		}
		ctx := context.Background()
		go func() { fmt.Println("log:", l.Run(ctx)) }()
		go func() { fmt.Println("consumer:", c.Run(ctx)) }()
		busy(ctx, l, c, func(err error) { fmt.Println("busy:", err) }, func() { fmt.Println("did") }).Wait()
	}
}

// A process that is killed at any moment, an operator's verbs among it, leaves books that
// balance. The moment is counted from what it has done, so that it does as much on a slow
// machine.
func TestAuditAfterKills(t *testing.T) {
	dir := t.TempDir()
	lives := 8
	if testing.Short() || raceEnabled {
		lives = 3
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var most Audit
	shows := func() bool { return most.Aside > 0 && most.DeadLetters > 0 && most.Books.Rewound > 0 }
	for life := 0; life < lives || !shows() && life < 10*lives; life++ { // what it does is left to chance
		cmd := child(t, "busy", dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		says := bufio.NewScanner(out)
		for range 5 + random.IntN(30) {
			if !says.Scan() || says.Text() != "did" {
				t.Fatalf("life %d: %s", life, says.Text())
			}
		}
		time.Sleep(time.Duration(random.IntN(20_000)) * time.Microsecond) // into the next one
		must(t, cmd.Process.Signal(syscall.SIGKILL))
		for says.Scan() {
			if line := says.Text(); line != "did" {
				t.Fatalf("life %d: %s", life, line)
			}
		}
		cmd.Wait()
		all, err := AuditFiles(t.Context(), dir)
		must(t, err)
		for _, a := range all {
			mustBalance(t, a)
			most.Aside, most.DeadLetters, most.Books = max(most.Aside, a.Aside), max(most.DeadLetters, a.DeadLetters), a.Books
		}
	}
	t.Logf("up to %d in the side place, %d dead letters; %+v", most.Aside, most.DeadLetters, most.Books)
	if !shows() {
		t.Error("that shows nothing")
	}
}

// A look at the ledger that lasts, as an audit's, holds up no checkpoint, however much
// the ledger grows meanwhile, and no look that comes later.
func TestALookHoldsUpNoCheckpoint(t *testing.T) {
	h, cs := mustOpen(t, options(t.TempDir()), "p")
	c := cs["p"]
	looking, enough := make(chan struct{}), make(chan struct{})
	looked := make(chan error, 1)
	go func() {
		looked <- c.view(func(*bolt.Tx) error { close(looking); <-enough; return nil })
	}()
	<-looking
	grown := make(chan error, 1)
	go func() {
		for i := range 20 {
			c.mu.Lock()
			c.sentNew[fmt.Sprintf("id:%d", i)] = make([]byte, 5<<20)
			c.touch()
			c.mu.Unlock()
			if err := c.Flush(); err != nil {
				grown <- err
				return
			}
		}
		_, err := c.sent("id:0")
		grown <- err
	}()
	select {
	case err := <-grown:
		must(t, err)
	case <-time.After(60 * time.Second):
		t.Error("a checkpoint waits for the look")
	}
	close(enough)
	must(t, <-looked)
	if st := mustStats(t, c); st.LedgerBytes < 90<<20 {
		t.Errorf("the ledger has only %d bytes: that shows nothing", st.LedgerBytes)
	}
	h.close(cs)
}

// A ledger is not written anew while an audit reads it, and is afterwards.
func TestAnAuditAndACompaction(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(options(dir))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	for i, size := range []int{40 << 20, 1, 1, 1} {
		c.mu.Lock()
		c.sentNew["id:1"] = make([]byte, size)
		c.sentNew[fmt.Sprintf("id:%d", 2+i)] = []byte("small") // bbolt gives pages free one transaction later
		c.touch()
		c.mu.Unlock()
		must(t, c.Flush())
	}
	size := func() int64 {
		b, err := diskBytes(ledgerPath(dir, "p"))
		must(t, err)
		return b
	}
	must(t, c.view(func(*bolt.Tx) error {
		c.looking.RLock() // as an audit does
		defer c.looking.RUnlock()
		return c.compact()
	}))
	if size() < 20<<20 {
		t.Error("it was written anew under the audit")
	}
	must(t, c.compact())
	if n := size(); n > 1<<20 {
		t.Errorf("it has %d bytes still", n)
	}
	a, err := c.Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	must(t, c.Close())
	must(t, l.Close())
}
