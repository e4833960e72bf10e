package power

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ampcio-faults/child"
	"ampcio-faults/lossy"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// plan is what a child is to do with a storage folder.
type plan struct {
	Life   string // folder of the lossy mount, where acknowledgements go
	Dir    string // the storage folder
	Seed   uint64 // of the whole story
	Chance uint64 // of this life
	From   [writers]int
	Events int     // each writer appends so many
	Again  [][]int // requests that were never answered, or whose answer was lost: they are sent again first
}

// goOn makes it the plan of the next life: again are requests that were not answered, and are not stored.
func (p *plan) goOn(b *book, again [][]int) {
	p.Again = again
	used := func(n int) { p.From[n%writers] = max(p.From[n%writers], n+writers) }
	for n := range b.events {
		used(n)
	}
	for _, r := range again {
		for _, n := range r {
			used(n)
		}
	}
}

// storage is the folder of a life, and of an image, that ampcio works in.
const storage = "storage"

const recordWork = "power-record"

func init() { child.Register(recordWork, recordChild) }

// noSync says that the child lies: for a look at whether the trials notice.
const noSync = "AMPCIO_FAULTS_ACK_BEFORE_SYNC"

// logOptions: in flight may be both writers' requests, and of each an impatient repeat, of some 500 kB where its events are
// short.
func logOptions(dir string) queue.Options {
	return queue.Options{Dir: dir, RotateBytes: 48 << 10, RotateAfter: time.Hour, InFlightBytes: 4 << 20, Now: time.Now}
}

func usersOptions(dir string) users.Options {
	return users.Options{Path: filepath.Join(dir, "users.db"), CacheBytes: 1 << 20, CheckpointEvery: 10 * time.Millisecond}
}

func consumerOptions() queue.ConsumerOptions {
	return queue.ConsumerOptions{Name: "a", Project: project, Enabled: true, WindowBytes: 24 << 10, Now: time.Now}
}

// house is a storage folder with all that works on it, as the daemon has it.
type house struct {
	log      *queue.Log
	store    *users.Store
	consumer *queue.Consumer
}

func openHouse(ctx context.Context, dir string) (h house, err error) {
	if h.log, err = queue.Open(logOptions(dir)); err != nil {
		return h, err
	}
	if h.store, err = users.Open(ctx, h.log, usersOptions(dir)); err != nil {
		return h, errors.Join(err, h.close())
	}
	if h.consumer, err = queue.OpenConsumer(h.log, consumerOptions()); err != nil {
		return h, errors.Join(err, h.close())
	}
	h.consumer.Flowing(true)
	return h, nil
}

func (h *house) close() error {
	var errs []error
	if h.consumer != nil {
		errs = append(errs, h.consumer.Close())
	}
	if h.store != nil {
		errs = append(errs, h.store.Close())
	}
	return errors.Join(append(errs, h.log.Close())...)
}

// recorder is a child at work. What it says of itself are lines of lossy.AckFile:
//
//	put N…      these are about to be appended, in one request
//	have N…     they are stored
//	ends N…     these are about to end for the first time; ends2: dead letters that were tried again
//	durable N…  their first end is on the disk; durable2
//	replay N… / replayed N…, drop N… / dropped N…   dead letters
//	forget J, forgot J (the tombstone is durable), forgotten J (nothing of the user is left)
type recorder struct {
	plan
	house
	ack  *os.File
	rand *rand.Rand // the deliverer's

	mu    sync.Mutex
	ended [2][]int // first and second ends that were entered and not flushed
}

func recordChild(args []string) error {
	var r recorder
	if err := json.Unmarshal([]byte(args[0]), &r.plan); err != nil {
		return err
	}
	r.rand = rand.New(rand.NewPCG(r.Chance, 1))
	var err error
	if r.ack, err = os.OpenFile(filepath.Join(r.Life, lossy.AckFile), os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if r.house, err = openHouse(ctx, r.Dir); err != nil {
		return err
	}
	if err := r.finishForgetting(ctx); err != nil {
		return err
	}
	running, halt := context.WithCancel(ctx)
	defer halt()
	var parts, all errgroup.Group
	parts.Go(func() error { return r.log.Run(running) })
	var rest errgroup.Group
	rest.Go(func() error { return r.store.Run(running) })
	rest.Go(func() error { return r.consumer.Run(running) })
	for w := range writers {
		all.Go(func() error { return r.write(ctx, w) })
	}
	delivering, enough := context.WithCancel(ctx)
	defer enough()
	var deliveries errgroup.Group
	deliveries.Go(func() error { return r.deliver(delivering) })
	deliveries.Go(func() error { return r.operate(delivering) })
	err = all.Wait()
	enough()
	err = errors.Join(err, deliveries.Wait())
	halt()
	return errors.Join(err, parts.Wait(), rest.Wait(), r.close())
}

// say writes a line. It is one write, so lines never mix.
func (r *recorder) say(word string, numbers ...int) error {
	var b strings.Builder
	b.WriteString(word)
	for _, n := range numbers {
		b.WriteString(" " + strconv.Itoa(n))
	}
	_, err := r.ack.WriteString(b.String() + "\n")
	return err
}

// write appends a writer's events, in requests of one to four.
func (r *recorder) write(ctx context.Context, w int) error {
	c := rand.New(rand.NewPCG(r.Chance, 2+uint64(w)))
	for _, numbers := range r.Again {
		if numbers[0]%writers == w {
			if err := r.append(ctx, numbers); err != nil {
				return err
			}
		}
	}
	var last []int
	for n, left := r.From[w], r.Events; left > 0; {
		var numbers []int
		for range min(left, 1+c.IntN(4)) {
			numbers = append(numbers, n)
			n += writers
		}
		left -= len(numbers)
		var impatience errgroup.Group
		if c.IntN(3) == 0 {
			after := time.Duration(c.Int64N(int64(2 * time.Millisecond)))
			impatience.Go(func() error { return r.repeat(ctx, numbers, after) })
		}
		if err := errors.Join(r.append(ctx, numbers), impatience.Wait()); err != nil {
			return err
		}
		if c.IntN(8) == 0 && last != nil { // an answer was lost on the way
			if err := r.append(ctx, last); err != nil {
				return err
			}
		}
		last = numbers
		if w == 0 && numbers[0]/victimsEvery != n/victimsEvery {
			if block := n/victimsEvery - 1; block*victimsEvery >= r.From[0] {
				if err := r.forget(ctx, block); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *recorder) append(ctx context.Context, numbers []int) error {
	a, err := arrivalOf(r.Seed, time.Now().UnixMilli(), numbers)
	if err != nil {
		return err
	}
	return r.send(ctx, a, numbers)
}

// largeBytes is so much that the log resolves it while the commit before is on its way to the disk.
const largeBytes = 192 << 10

// repeat is of an impatient sender: before a request is answered it comes again, its events over and over, so that it is large and
// becomes no record.
func (r *recorder) repeat(ctx context.Context, numbers []int, after time.Duration) error {
	a, err := arrivalOf(r.Seed, time.Now().UnixMilli(), numbers)
	if err != nil {
		return err
	}
	once := a.Events
	for size := 0; size < largeBytes; {
		for _, e := range once {
			a.Events, size = append(a.Events, e), size+len(e.Raw)
		}
	}
	time.Sleep(after) // so that it mostly meets the commit of the first, which takes some ms on this disk
	return r.send(ctx, a, numbers)
}

// send appends an arrival of these events.
func (r *recorder) send(ctx context.Context, a mapping.Arrival, numbers []int) error {
	if err := r.say("put", numbers...); err != nil {
		return err
	}
	if os.Getenv(noSync) != "" {
		if err := r.say("have", numbers...); err != nil {
			return err
		}
	}
	if _, err := r.store.Append(ctx, a); err != nil {
		return err
	}
	return r.say("have", numbers...)
}

// deliver claims and ends, until ctx does.
func (r *recorder) deliver(ctx context.Context) error {
	for {
		cl, err := r.consumer.Claim(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return r.flush()
			}
			return err
		}
		if err := r.settle(cl); err != nil {
			return err
		}
		if r.rand.IntN(3) == 0 {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
}

func (r *recorder) settle(cl *queue.Claim) error {
	if r.rand.IntN(20) == 0 {
		cl.Return()
		return nil
	}
	records := cl.Records()
	if n := 1 + r.rand.IntN(6); n < len(records) {
		cl.Trim(n)
		records = cl.Records()
	}
	var outcomes []queue.Outcome
	var first, second []int
	fails := false
	for i := range records {
		n, _, err := read(r.Seed, &records[i])
		if err != nil {
			return err
		}
		if _, again := cl.Replay(i); again {
			outcomes = append(outcomes, queue.Outcome{Ending: queue.Delivered})
			second = append(second, n)
			continue
		}
		attempts := 0
		if i == 0 {
			attempts = cl.Attempts()
		}
		if fails = attempts < failuresOf(n); fails {
			break
		}
		o := queue.Outcome{Ending: endingOf(n), Tallies: []queue.Tally{{Key: "event/" + endingOf(n).String()}}}
		switch o.Ending {
		case queue.Delivered:
			o.SentKey = identifier(userOf(r.Seed, n))
			if !cl.Hold(o.SentKey) {
				return fmt.Errorf("%s is held by another claim", o.SentKey)
			}
			o.Sent = []byte(strconv.Itoa(n))
		default:
			o.Reason = "as the story says"
			o.Results = []byte("results")
		}
		outcomes = append(outcomes, o)
		first = append(first, n)
	}
	if len(first) > 0 {
		if err := r.say("ends", first...); err != nil {
			return err
		}
	}
	if len(second) > 0 {
		if err := r.say("ends2", second...); err != nil {
			return err
		}
	}
	wait, why := time.Duration(0), ""
	if fails {
		wait, why = time.Millisecond, "not yet"
	}
	cl.Settle(outcomes, wait, why)
	r.mu.Lock()
	r.ended[0] = append(r.ended[0], first...)
	r.ended[1] = append(r.ended[1], second...)
	r.mu.Unlock()
	return nil
}

// flush makes durable what was settled, and says so.
func (r *recorder) flush() error {
	r.mu.Lock()
	ended := r.ended
	r.ended = [2][]int{}
	r.mu.Unlock()
	if err := r.consumer.Flush(); err != nil {
		return err
	}
	for i, word := range []string{"durable", "durable2"} {
		if len(ended[i]) > 0 {
			if err := r.say(word, ended[i]...); err != nil {
				return err
			}
		}
	}
	return nil
}

// operate is an operator who looks at dead letters: even ones are tried again, odd ones dropped.
func (r *recorder) operate(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		byNumber := map[int]uint64{}
		err := r.consumer.DeadLetters(func(d queue.DeadLetter) error {
			n, _, err := read(r.Seed, &d.Record)
			if err == nil {
				byNumber[n] = d.Record.Seq
			}
			return err
		})
		if err != nil {
			return err
		}
		for odd, words := range [][2]string{{"replay", "replayed"}, {"drop", "dropped"}} {
			var numbers []int
			var seqs []uint64
			for n, seq := range byNumber {
				if n%2 == odd && userOf(r.Seed, n)[0] == 'u' {
					numbers, seqs = append(numbers, n), append(seqs, seq)
				}
			}
			if len(numbers) == 0 {
				continue
			}
			if err := r.say(words[0], numbers...); err != nil {
				return err
			}
			change := r.consumer.ReplayDead
			if odd == 1 {
				change = r.consumer.DropDead
			}
			if _, err := change(seqs); err != nil {
				return err
			}
			if err := r.say(words[1], numbers...); err != nil {
				return err
			}
		}
	}
}

// forget forgets a user of whom everything is stored.
func (r *recorder) forget(ctx context.Context, block int) error {
	if err := r.say("forget", block); err != nil {
		return err
	}
	lanes := []string{users.LaneOfUser(victim(block))}
	_, err := r.log.ForgetLanes(ctx, project, queue.Forgetting{Lanes: lanes, Sent: []string{identifier(victim(block))}},
		func(uint64) error { return r.store.Forget(project, lanes) })
	if err != nil {
		return err
	}
	if err := r.say("forgot", block); err != nil {
		return err
	}
	return r.finishForgetting(ctx)
}

// finishForgetting does what is left to do of it, as each start of the daemon does.
func (r *recorder) finishForgetting(ctx context.Context) error {
	for _, t := range r.log.Unfinished() {
		if _, err := r.consumer.Forget(ctx, t.Unfinished.Sent); err != nil {
			return err
		}
		if err := r.store.Flush(ctx); err != nil {
			return err
		}
		if _, err := r.store.Rewrite(ctx); err != nil {
			return err
		}
		if err := r.log.FinishForgetting(t.ID); err != nil {
			return err
		}
		user, _ := users.OfLane(t.Unfinished.Lanes[0])
		block, err := strconv.Atoi(strings.TrimPrefix(user, "v"))
		if err != nil {
			return err
		}
		if err := r.say("forgotten", block); err != nil {
			return err
		}
	}
	return nil
}

// recordLife lets a child lead a life, to its end or until the power is cut.
func recordLife(ctx context.Context, l *lossy.Life, p plan) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	cmd := child.Command(recordWork, string(b))
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-l.Dead():
		case <-ctx.Done():
		case <-done:
			return
		}
		cmd.Process.Kill()
	}()
	err = cmd.Wait()
	select {
	case <-l.Dead():
		return ctx.Err() // it cannot end well
	default:
	}
	if err != nil {
		return fmt.Errorf("the child: %w: %s", errors.Join(err, ctx.Err()), said.String())
	}
	return nil
}

// numbersIn are those of a line.
func numbersIn(fields []string) (all []int, err error) {
	for _, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}
