package power

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// What a whole installation goes through in one case.
const (
	cutsOfAnInstallation = 25
	requestsOfALife      = 12 // that may be sent in each; what is not stays for the next
	eventsOfARequest     = 8
)

// cuts is one installation whose power is cut again and again, while senders send and Customer.io fails now and then. Its
// storage folder is a link to the life that is led.
func cuts(ctx context.Context, c *scoreboard.Case) (n int, err error) {
	faults, err := sandbox.ParseFaults("500=3%,429=1%,cut_after=2%")
	if err != nil {
		return 0, err
	}
	m, err := lossy.NewMount(filepath.Join(c.Dir, "m"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	r, err := rehearsal.New(c.Dir, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed, Faults: faults},
		Storage: "min_free = \"16MiB\"\nkeep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    "retry_initial = \"20ms\"\nbatch_operations = 25\nrequests_per_second = 1000\n",
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Kill(), r.Close()) }()
	want := min(cutsOfAnInstallation, c.Left)
	tr := rehearsal.NewTraffic(r, 50, want*requestsOfALife*eventsOfARequest, c.Seed)
	allow := make(chan struct{}, requestsOfALife)
	tr.Allow = allow
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- tr.Run(sending, 0) }()
	im := lossy.Image{Folders: []string{storage}}
	if c.Rand.IntN(4) > 0 { // else each life has 4 MiB of zeros more
		im.Files = map[string]lossy.Content{storage + "/reserve": {Size: 4 << 20}}
	}
	for ; n < want; n++ {
		l, err := begin(m, r, c, im)
		if err != nil {
			return n, err
		}
		for len(allow) < cap(allow) { // nobody else puts any
			allow <- struct{}{}
		}
		most := 24 // the start alone
		if c.Rand.IntN(3) > 0 {
			most = 160
		}
		l.CutAt(1 + c.Rand.IntN(most))
		if err := live(ctx, r, l); err != nil {
			return n, fmt.Errorf("life %d: %w", n, err)
		}
		way, survive := lossy.AnyWay(c.Rand)
		im = l.Image(c.Rand, way, survive)
	}
	close(allow)
	r.Sandbox.SetFaults(sandbox.Faults{})
	if _, err := begin(m, r, c, im); err != nil {
		return n, err
	}
	if err := r.Start(ctx); err != nil {
		return n, err
	}
	if err := <-sent; err != nil {
		return n, fmt.Errorf("the senders ended with %w", err)
	}
	books, err := r.Drained(ctx)
	if err != nil {
		return n, err
	}
	for _, problem := range tr.Verdict(nil, books).Problems {
		err = errors.Join(err, errors.New(problem))
	}
	if err != nil {
		return n, err
	}
	if err := r.Stop(); err != nil {
		return n, fmt.Errorf("stop: %w\n%s", err, r.LogTail())
	}
	if out, err := c.Ampcio("audit", "--config", r.ConfigPath).CombinedOutput(); err != nil {
		return n, fmt.Errorf("ampcio audit: %w\n%s", err, out)
	}
	return n, nil
}

// begin lets the installation's storage be a new life.
func begin(m *lossy.Mount, r *rehearsal.Rehearsal, c *scoreboard.Case, im lossy.Image) (*lossy.Life, error) {
	for p := range im.Files {
		if damaged(p) {
			return nil, fmt.Errorf("damage was met: there is %s\n%s", p, r.LogTail())
		}
	}
	l := m.Begin(im, lossy.LifeOptions{Strict: c.Rand.IntN(2) == 0})
	link := filepath.Join(r.Dir, storage)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return l, os.Symlink(filepath.Join(l.Path, storage), link)
}

// live starts the daemon and waits for the cut. Where nothing more happens to the disk it is cut all the same.
func live(ctx context.Context, r *rehearsal.Rehearsal, l *lossy.Life) error {
	starting, cut := context.WithCancel(ctx)
	defer cut()
	go func() {
		select {
		case <-l.Dead():
		case <-starting.Done():
		}
		cut()
	}()
	err := r.Start(starting)
	patience := time.NewTimer(300 * time.Millisecond)
	defer patience.Stop()
	for err == nil {
		select {
		case <-l.Dead():
			return r.Kill()
		case <-patience.C:
			l.Cut()
		case err := <-r.Ended:
			r.Daemon = nil
			select {
			case <-l.Dead():
				return nil
			case <-time.After(100 * time.Millisecond):
				return fmt.Errorf("the daemon ended by itself: %w\n%s", err, r.LogTail())
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case <-l.Dead():
		return r.Kill()
	default:
		return err
	}
}
