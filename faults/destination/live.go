package destination

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ampcio-faults/scoreboard"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// contextOfNobody is of requests that are processed although their client has gone.
var contextOfNobody = context.Background()

// Poisoned events are refused for good whenever they arrive; nothing else may die.
const poisoned = "Poisoned"

// A story is one installation whose Customer.io fails in one way after the other.
type story struct {
	c     *scoreboard.Case
	r     *rehearsal.Rehearsal
	front *front
	usual string // faults that are always there: the poisoned events
	reads string // the configuration, as it should be

	workspace int          // how many the account has had before this one
	poison    atomic.Int64 // poisoned events that were acknowledged
}

// faultsOfAStory happen to one installation.
const faultsOfAStory = 25

// live is one installation and up to so many faults, one after the other, under traffic; then all is well.
func live(ctx context.Context, c *scoreboard.Case) (done int, err error) {
	s, err := newStory(c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.r.Kill(), s.r.Close()); s.front.close() }()
	if err := s.r.Start(ctx); err != nil {
		return 0, err
	}
	want := min(faultsOfAStory, c.Left)
	const each = 150 * time.Millisecond // of a fault: reckoned, for the traffic alone
	tr := rehearsal.NewTraffic(s.r, 40, want*80, c.Seed)
	sending, stop := context.WithCancel(ctx)
	defer stop()
	var senders sync.WaitGroup
	defer senders.Wait()
	defer stop()
	var sent, poisonSent error
	senders.Go(func() { sent = tr.Run(sending, time.Duration(want)*each) })
	senders.Go(func() { poisonSent = s.sendPoison(sending, 2*want, time.Duration(want)*each) })

	var told []string
	// Where the last few are wanted of a slow machine, several in a row may be over before anybody has met them.
	for tries := 0; done < want && tries < 3*want+30; tries++ {
		k := &kinds[c.Rand.IntN(len(kinds))]
		// What is forbidden, then not, then forbidden again, and then not, within one batch, is taken for poisoned, as it must be.
		twice := strings.HasPrefix(k.name, "403") && slices.ContainsFunc(told, func(name string) bool { return strings.HasPrefix(name, "403") })
		if twice || k.tls && s.front.scheme != "https" {
			k = &kinds[0]
		}
		told = append(told, k.name)
		met, err := s.fault(ctx, k, c.Rand)
		if err != nil {
			return done, fmt.Errorf("%w\n\tin the last of: %s", err, strings.Join(told, ", "))
		}
		if met {
			done++
		}
		if c.Rand.IntN(12) == 0 {
			told = append(told, "kill -9")
			if err := errors.Join(s.r.Kill(), s.r.Start(ctx)); err != nil {
				return done, err
			}
		}
	}
	senders.Wait()
	if err := errors.Join(sent, poisonSent); err != nil {
		return done, fmt.Errorf("the senders ended with %w", err)
	}
	if err := s.verdict(ctx, tr); err != nil {
		return done, fmt.Errorf("%w\n\tafter (%s, HTTP/2 %t): %s", err, s.front.scheme, s.front.http2, strings.Join(told, ", "))
	}
	return done, nil
}

func newStory(c *scoreboard.Case) (*story, error) {
	s := &story{c: c}
	s.usual = "refuse_event=" + poisoned + ",refuse_how=" + []string{"207", "207", "400", "422"}[c.Rand.IntN(4)]
	healthy, err := sandbox.ParseFaults(s.usual)
	if err != nil {
		return nil, err
	}
	trusted := filepath.Join(c.Dir, "authority.pem")
	command := func(args ...string) *exec.Cmd {
		cmd := c.Ampcio(args...)
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+trusted)
		return cmd
	}
	s.r, err = rehearsal.New(c.Dir, command, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed, Faults: healthy},
		Storage: "min_free = \"16MiB\"\nkeep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    fmt.Sprintf("retry_initial = \"10ms\"\nrequests_per_second = 2000\ntimeout = %q\nbatch_operations = %d\n", timeout, []int{1, 10, 25, 500}[c.Rand.IntN(4)]),
	})
	if err != nil {
		return nil, err
	}
	if s.front, err = newFront([]string{"http", "https", "https"}[c.Rand.IntN(3)], c.Rand.IntN(2) == 0, s.r.Sandbox); err != nil {
		return nil, errors.Join(err, s.r.Close())
	}
	config, err := os.ReadFile(s.r.ConfigPath)
	if err == nil {
		s.reads = strings.NewReplacer(fmt.Sprintf("%q", s.r.SandboxURL), fmt.Sprintf("%q", s.front.url()), `retry_max = "2s"`, `retry_max = "200ms"`).Replace(string(config))
		err = os.WriteFile(s.r.ConfigPath, []byte(s.reads), 0o600)
	}
	if err == nil {
		err = os.WriteFile(trusted, s.front.keys.authority, 0o600)
	}
	if err != nil {
		s.front.close()
		return nil, errors.Join(err, s.r.Close())
	}
	return s, nil
}

// sendPoison sends events that Customer.io will never take, of users who have good ones too.
func (s *story) sendPoison(ctx context.Context, n int, spread time.Duration) error {
	rng := rand.New(rand.NewPCG(s.c.Seed, 1<<32))
	for i := range n {
		u := rng.IntN(40)
		body := fmt.Appendf(nil, `{"api_key":%q,"events":[{"event_type":%q,"user_id":%q,"device_id":"device-%05d","insert_id":"poison-%d-%d","time":%d}]}`,
			recordings.Key, poisoned, rehearsal.UserName(u), u, s.c.Seed, i, time.Now().UnixMilli())
		if err := s.r.Post(ctx, "/2/httpapi", [][2]string{{"Content-Type", "application/json"}}, body); err != nil {
			return err
		}
		s.poison.Add(1)
		select {
		case <-time.After(spread / time.Duration(n)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// fault lets Customer.io fail in one way until some requests have met it, or for a while, and mends it. met is false when
// it was over before anybody came: while the gate is closed only a probe comes now and then.
func (s *story) fault(ctx context.Context, k *kind, rng *rand.Rand) (met bool, err error) {
	share := []string{"100%", "60%", "30%"}[rng.IntN(3)]
	want := int64(1 + rng.IntN(6)) // connections and requests
	limit := 30 + rng.IntN(300)    // ms: nothing at all may come while the gate is closed
	well, err := sandbox.ParseFaults(s.usual)
	if err != nil {
		return false, err
	}
	if k.faults != "" {
		spec := strings.ReplaceAll(k.faults, "HERE", s.front.url()+followedPath)
		spec = strings.ReplaceAll(spec, "SHARE", share)
		f, err := sandbox.ParseFaults(s.usual + "," + spec)
		if err != nil {
			return false, err
		}
		s.r.Sandbox.SetFaults(f)
		s.front.met.Store(0)
	}
	switch {
	case k.front != nil:
		err = s.front.become(k.front(rng))
	case k.workspace:
		s.workspace++
		s.r.Sandbox.SetEnvironmentID(1 + s.workspace)
		s.front.met.Store(0)
	case k.dns:
		err = s.endpoint(strings.ReplaceAll(s.reads, fmt.Sprintf("endpoint     = %q", s.front.url()), `endpoint     = "https://customerio.invalid"`))
	}
	if err == nil && k.anew {
		err = errors.Join(s.r.Kill(), s.r.Start(ctx))
	}
	if err != nil {
		return false, err
	}
	for began := time.Now(); s.front.met.Load() < want && time.Since(began) < time.Duration(limit)*time.Millisecond; {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	met = s.front.met.Load() > 0 || k.dns || k.name == "refused" // nobody sees who finds nothing
	if met && k.silent {
		// Whoever has come is not answered, and must not take that for an answer: what mends this cuts connections, and that would be
		// told from silence.
		select {
		case <-time.After(timeout + timeout/4):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	s.r.Sandbox.SetFaults(well)
	switch {
	case k.front != nil:
		err = s.front.become(shape{})
	case k.dns:
		err = s.endpoint(s.reads)
	case k.workspace:
		s.adopt()
	}
	if err == nil && k.blocks {
		s.retry()
	}
	if s.front.followed.Load() > 0 {
		err = errors.Join(err, errors.New("a redirect was followed"))
	}
	return met, err
}

// endpoint puts another configuration in force, as a person does.
func (s *story) endpoint(config string) error {
	if err := os.WriteFile(s.r.ConfigPath, []byte(config), 0o600); err != nil {
		return err
	}
	if out, err := s.r.Command("reload", "--config", s.r.ConfigPath).CombinedOutput(); err != nil {
		return fmt.Errorf("reload: %v\n%s", err, out)
	}
	return nil
}

// adopt is what a person does who sees that deliveries wait since the account has another workspace, and wants them there.
// It may fail: where nothing was pending that has been entered already; what comes to wait later is adopted in the end.
func (s *story) adopt() {
	_ = s.r.Command("sync", "adopt", rehearsal.Sync, "--yes", "--config", s.r.ConfigPath).Run()
}

// retry is what a person does who has mended keys or the address. It may fail: what waits is asked again in the end.
func (s *story) retry() {
	_ = s.r.Command("sync", "retry", rehearsal.Sync, "--config", s.r.ConfigPath).Run()
}

// verdict waits until nothing is pending, now that all is well, and looks at everything.
func (s *story) verdict(ctx context.Context, tr *rehearsal.Traffic) error {
	// All that is answered is in time from now on, however slow the machine is.
	patient := strings.ReplaceAll(s.reads, fmt.Sprintf("timeout = %q", timeout), `timeout = "30s"`)
	if err := s.endpoint(patient); err != nil {
		return err
	}
	for {
		s.retry()
		if s.workspace > 0 {
			s.adopt()
		}
		some, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := s.r.Drained(some)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w\n%s", err, s.r.LogTail())
		}
	}
	books, err := s.r.Stats(ctx)
	if err != nil {
		return err
	}
	if err := audit(s.c, s.r); err != nil {
		return err
	}
	buried, err := s.dead()
	if err != nil {
		return err
	}
	// What is dead has been looked at; the verdict on the others knows nothing of it.
	y := &books.Syncs[0]
	if y.Totals.Dead != uint64(buried) || int64(buried) != s.poison.Load() {
		return fmt.Errorf("%d poisoned events were acknowledged, %d are listed as dead, %d counted", s.poison.Load(), buried, y.Totals.Dead)
	}
	y.Totals.Dead = 0
	tr.Sent.Add(s.poison.Load())
	for _, problem := range tr.Verdict(nil, books).Problems {
		err = errors.Join(err, errors.New(problem))
	}
	return err
}

// dead counts the dead letters, each of which must be poisoned and know why it is dead.
func (s *story) dead() (n int, err error) {
	out, err := s.r.Command("dead-letters", "list", "--json", "--config", s.r.ConfigPath).Output()
	if err != nil {
		return 0, fmt.Errorf("dead-letters list: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var d struct{ Event, Reason, Message string }
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			return n, fmt.Errorf("dead-letters list: %w", err)
		}
		if d.Event != poisoned || d.Reason == "" {
			return n, fmt.Errorf("this must not be dead: %s", lines.Bytes())
		}
		n++
	}
	return n, nil
}
