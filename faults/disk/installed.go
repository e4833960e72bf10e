package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"ampcio-faults/lossy"
	"ampcio-faults/scoreboard"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// installedShare is the share of the I/O errors' cases that are tried on the built program; see scenes.
const installedShare = 2

// exitIO is the code with which ampcio ends when its disk fails.
const exitIO = 74

// installation is the built program, with senders and a Customer.io.
type installation struct {
	*rehearsal.Rehearsal
	c     *scoreboard.Case
	tr    *rehearsal.Traffic
	allow chan struct{} // an element for each request that may be sent
	sent  chan error    // how the senders ended
	stop  func()
	sizes *rand.Rand // of the filler's texts
	fill  int        // events of the filler
}

// requestsOfAPoint may be sent at each point.
const requestsOfAPoint = 4

// install sets an installation up that has so many requests to send in all, and starts nothing.
func install(ctx context.Context, c *scoreboard.Case, points int, storage string) (*installation, error) {
	r, err := rehearsal.New(c.Dir, c.Ampcio, rehearsal.Settings{
		Sandbox: sandbox.Options{Seed: c.Seed},
		Storage: storage + "keep = \"0s\"\nrotate_bytes = \"1MiB\"\n",
		Sync:    "retry_initial = \"20ms\"\nbatch_operations = 25\nrequests_per_second = 1000\n",
	})
	if err != nil {
		return nil, err
	}
	in := &installation{Rehearsal: r, c: c, allow: make(chan struct{}, requestsOfAPoint), sent: make(chan error, 1), sizes: rand.New(rand.NewPCG(c.Seed, 3))}
	in.tr = rehearsal.NewTraffic(r, 20, points*requestsOfAPoint*25, c.Seed)
	in.tr.Allow = in.allow
	var sending context.Context
	sending, in.stop = context.WithCancel(ctx)
	go func() { in.sent <- in.tr.Run(sending, 0) }()
	return in, nil
}

func (in *installation) end() error {
	in.stop()
	return errors.Join(in.Kill(), in.Close())
}

// more lets the senders send as many requests as a point may have, those included that they have not sent yet. Each takes one while
// this goes on: what there is room for is looked at once, or they would have nothing left to send before the last point.
func (in *installation) more() {
	for range cap(in.allow) - len(in.allow) {
		in.allow <- struct{}{} // there is room: nobody else puts any
	}
}

// ended looks how the daemon has ended by itself: as it should where its disk fails, and whether it has said why.
func (in *installation) ended(err error, errno error) error {
	in.Daemon = nil
	log := in.LogTail()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitIO {
		return fmt.Errorf("the daemon ended with %v, and not with exit code %d\n%s", err, exitIO, log)
	}
	if !strings.Contains(log, errno.Error()) {
		return fmt.Errorf("the daemon ended, and has not said that it was for %q\n%s", errno, log)
	}
	return nil
}

// judge lets the senders send the rest, and the installation end well.
func (in *installation) judge(ctx context.Context) error {
	close(in.allow)
	in.Sandbox.SetFaults(sandbox.Faults{})
	if in.Daemon == nil {
		if err := in.Start(ctx); err != nil {
			return err
		}
	}
	if err := <-in.sent; err != nil {
		return fmt.Errorf("the senders ended with %w\n%s", err, in.LogTail())
	}
	books, err := in.Drained(ctx)
	if err != nil {
		return err
	}
	for _, problem := range in.tr.Verdict(nil, books).Problems {
		err = errors.Join(err, errors.New(problem))
	}
	if err != nil {
		return err
	}
	if err := in.Stop(); err != nil {
		return fmt.Errorf("stop: %w\n%s", err, in.LogTail())
	}
	if out, err := in.c.Ampcio("audit", "--config", in.ConfigPath).CombinedOutput(); err != nil {
		return fmt.Errorf("ampcio audit: %w\n%s", err, out)
	}
	return nil
}

// on lets the installation's storage be another folder.
func (in *installation) on(path string) error {
	link := filepath.Join(in.Dir, storage)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// installedErrors is ioErrors on the built program: each point is a life of the daemon, and what one has left is where the
// next begins.
func installedErrors(ctx context.Context, c *scoreboard.Case, f lossy.Fault) (n int, err error) {
	const most = 24
	m, err := lossy.NewMount(filepath.Join(c.Memory, "lossy"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	in, err := install(ctx, c, most+1, "min_free = \"0\"\n")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.end()) }()
	im := lossy.Image{Folders: []string{storage}, Files: map[string]lossy.Content{storage + "/reserve": reserve()}}
	begin := func() (*lossy.Life, error) {
		l := m.Begin(im, lossy.LifeOptions{Strict: c.Rand.IntN(2) == 0})
		return l, in.on(filepath.Join(l.Path, storage))
	}
	for f.N = 1; n < min(most, c.Left); n++ {
		l, err := begin()
		if err != nil {
			return n, err
		}
		f.Sticky = !f.Sticky
		l.Inject(&f)
		in.more()
		err = in.meet(ctx, l, f)
		if err != nil {
			return n, fmt.Errorf("operation %d of %v fails with %v (for ever: %t): %w", f.N, f.Kinds, f.Errno, f.Sticky, err)
		}
		way, survive := lossy.AnyWay(c.Rand)
		im = l.Image(c.Rand, way, survive)
		l.Cut()
		f.N += 1 + c.Rand.IntN(3)
	}
	if _, err := begin(); err != nil {
		return n, err
	}
	return n, in.judge(ctx)
}

// meet is a life of the daemon while something fails. It ends by that, or goes on when that is over.
func (in *installation) meet(ctx context.Context, l *lossy.Life, f lossy.Fault) error {
	starting, failed := context.WithCancel(ctx)
	defer failed()
	if err := in.Start(starting); err != nil {
		if l.Fired() == 0 || in.Daemon != nil {
			return err
		}
		// Start has waited for its end, and its error tells of that in words alone.
		if !strings.Contains(err.Error(), fmt.Sprintf("exit status %d\n", exitIO)) || !strings.Contains(err.Error(), f.Errno.Error()) {
			return err
		}
		return nil
	}
	// Until it has met the fault and ends, or there is nothing more to do.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; {
		select {
		case err := <-in.Ended:
			if l.Fired() == 0 {
				in.Daemon = nil
				return fmt.Errorf("the daemon ended with %w without having met it\n%s", err, in.LogTail())
			}
			return in.ended(err, f.Errno)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if idle := len(in.allow) == 0; idle && time.Since(begun) > 60*time.Millisecond || time.Since(begun) > 300*time.Millisecond {
			break
		}
	}
	// What was a full disk is none any more: the same process takes the rest.
	l.Inject(nil)
	for len(in.allow) > 0 {
		select {
		case err := <-in.Ended:
			return in.ended(err, f.Errno) // it had met it
		case err := <-in.sent:
			return fmt.Errorf("the senders have ended (%v), and may still send %d requests\n%s", err, len(in.allow), in.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("%w: the senders are not heard\n%s", context.Cause(ctx), in.LogTail())
		case <-tick.C:
		}
	}
	return in.Kill()
}

// sendFiller sends events that are nobody's, of so many bytes each, and gives how it was answered.
func (in *installation) sendFiller(ctx context.Context, events, size int) (status int, header http.Header, err error) {
	var list []map[string]any
	for range events {
		in.fill++
		pad := make([]byte, size) // another one for each: the log keeps what repeats once
		for i := range pad {
			pad[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[in.sizes.IntN(64)]
		}
		list = append(list, map[string]any{"event_type": "Filler", "user_id": "filler", "device_id": "filler", "insert_id": fmt.Sprint(in.fill),
			"event_properties": map[string]any{"pad": string(pad)}})
	}
	body, err := json.Marshal(map[string]any{"api_key": recordings.Key, "events": list})
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+in.Listen+"/2/httpapi", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, nil, err
	}
	if resp.StatusCode == http.StatusOK {
		in.tr.Sent.Add(int64(events))
	}
	return resp.StatusCode, resp.Header, nil
}

// tool runs a program, for half a minute at most.
func tool(name string, args ...string) error {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
