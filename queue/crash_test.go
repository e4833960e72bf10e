package queue

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	// Appends and delivers until it is killed. Says "acked TEXT" and "claimed TEXT".
	roles["work"] = func(dir string) {
		o := small(dir)
		o.Keep, o.KeepBytes = time.Hour, 1<<40 // the test looks at all records later
		l, err := Open(o)
		if err != nil {
			fmt.Println("open:", err)
			return
		}
		c, err := OpenConsumer(l, consumerOptions("p"))
		if err != nil {
			fmt.Println("open:", err)
			return
		}
		seed, _ := strconv.ParseUint(os.Getenv("QUEUE_TEST_SEED"), 10, 64)
		ctx := context.Background()
		go func() { fmt.Println("log:", l.Run(ctx)) }()
		go func() { fmt.Println("consumer:", c.Run(ctx)) }()
		for w := range 2 {
			random := rand.New(rand.NewPCG(seed, uint64(w)))
			go func() {
				for {
					cl, err := c.Claim(ctx)
					if err != nil {
						return
					}
					text := ""
					for _, r := range cl.Records() {
						text += "claimed " + string(r.Body) + "\n"
					}
					os.Stdout.WriteString(text)
					out := delivered(len(cl.Records()))
					for i := range out {
						out[i].Ending = Ending(1 + random.IntN(3))
					}
					switch random.IntN(5) {
					case 0:
						cl.Return()
					case 1:
						cl.Settle(out[:random.IntN(len(out)+1)], time.Duration(random.IntN(20))*time.Millisecond, "again")
					default:
						cl.Finish(out)
					}
				}
			}()
		}
		for n := l.Tail() + 1; ; n++ {
			text := fmt.Sprintf("%d:%08d", n%8, n)
			if err := l.Append(ctx, batch(text)); err != nil {
				fmt.Println("append:", err)
				return
			}
			os.Stdout.WriteString("acked " + text + "\n")
		}
	}
}

// A process that is killed at any moment, many times over: what was acknowledged is
// there, once; each lane is claimed in order; what was not durably ended is claimed
// again; the books balance.
func TestKilledAtRandomMoments(t *testing.T) {
	dir := t.TempDir()
	lives := 5
	if testing.Short() || raceEnabled {
		lives = 3
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var acked []string
	reached := map[string]string{} // by lane: the furthest that was ever claimed
	for life := range lives {
		cmd := child(t, "work", dir)
		cmd.Env = append(cmd.Env, fmt.Sprintf("QUEUE_TEST_SEED=%d", seed+uint64(life)))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines, after := 0, 50+random.IntN(1000)
		here := map[string]string{} // by lane: the last that was claimed in this life
		for s := bufio.NewReader(out); ; {
			line, err := s.ReadString('\n')
			if err != nil {
				break // a last line without its end was cut by the kill
			}
			what, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			switch what {
			case "acked":
				acked = append(acked, text)
			case "claimed":
				lane := laneOf(text)
				// Within a life a record may come again (it was given back), a later one is the
				// next; over lives nothing is left out.
				if text > reached[lane] {
					if prev := previous(text); reached[lane] != prev {
						t.Errorf("life %d: %s was claimed, %q before it", life, text, reached[lane])
					}
					reached[lane] = text
				}
				here[lane] = text
			default:
				t.Fatalf("child: %s", line)
			}
			if lines++; lines == after {
				must(t, cmd.Process.Signal(syscall.SIGKILL))
			}
		}
		cmd.Wait()
		_, off, err := Inspect(dir)
		must(t, err)
		if off[0].Books.Difference() != 0 {
			t.Fatalf("life %d: %+v", life, off[0].Books)
		}
	}
	o := small(dir)
	o.Keep, o.KeepBytes = time.Hour, 1<<40
	h, cs := mustOpen(t, o, "p")
	before := mustStats(t, cs["p"]).Books
	_, texts := readAll(t, h.log, 0)
	stored := map[string]int{}
	for _, text := range texts {
		stored[text]++
	}
	for _, text := range acked {
		if stored[text] != 1 {
			t.Errorf("%s was acknowledged, and is there %d times", text, stored[text])
		}
	}
	got := drain(t, cs["p"])
	n := uint64(0)
	for lane, texts := range got {
		for i, text := range texts {
			if i > 0 && previous(text) != texts[i-1] {
				t.Errorf("lane %s: %s behind %s", lane, text, texts[i-1])
			}
			n++
		}
	}
	st := mustStats(t, cs["p"])
	if n != before.Pending || st.Books.Taken != uint64(len(stored)) || st.Books.Lost != 0 {
		t.Errorf("%d claimed at the end, %+v before, %+v now, %d stored", n, before, st.Books, len(stored))
	}
	h.close(cs)
}

// previous is the text before another in its lane, "" for the first.
func previous(text string) string {
	n, _ := strconv.Atoi(text[2:])
	if n <= 8 {
		return ""
	}
	return fmt.Sprintf("%d:%08d", n%8, n-8)
}

// The folder as a power cut would leave it, taken at any moment while all runs: files
// are copied one after the other, ledger first.
func TestCopiesOfARunningFolder(t *testing.T) {
	dir := t.TempDir()
	o := small(dir)
	o.Keep, o.KeepBytes = time.Hour, 1<<40
	h, cs := mustOpen(t, o, "p")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; ctx.Err() == nil; n++ {
			h.append(fmt.Sprintf("%d:%08d", n%8, n))
			if cl := cs["p"].TryClaim(); cl != nil && n%3 > 0 {
				cl.Finish(delivered(len(cl.Records())))
			} else if cl != nil {
				cl.Return()
			}
		}
	}()
	copies := 8
	if testing.Short() {
		copies = 3
	}
	at := uint64(0)
	for i := range copies {
		eventually(t, "it has gone on", func() bool { return h.log.Tail() > at })
		to := filepath.Join(t.TempDir(), "copy")
		copyTree(t, filepath.Join(dir, "sync"), filepath.Join(to, "sync"))
		at = h.log.Tail()
		copyTree(t, filepath.Join(dir, "log"), filepath.Join(to, "log"))
		o := o
		o.Dir = to
		copied, ccs := mustOpen(t, o, "p")
		if tail := copied.log.Tail(); tail < at {
			t.Fatalf("copy %d: tail %d, %d was acknowledged", i, tail, at)
		}
		drain(t, ccs["p"])
		st := mustStats(t, ccs["p"])
		if st.Books.Taken != copied.log.Tail() || st.Books.Lost > uint64(len(copied.log.SetAside()))*1000 {
			t.Fatalf("copy %d: %+v", i, st.Books)
		}
		copied.close(ccs)
	}
	stop()
	<-done
	h.close(cs)
}
