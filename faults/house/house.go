package house

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ampcio/queue"
	"ampcio/users"
)

// Settings of a house.
type Settings struct {
	Dir  string
	Keep time.Duration // of log files that nobody needs any more
}

// House is what the daemon has of a storage folder, open and running.
type House struct {
	Log    *queue.Log
	Users  *users.Store
	Ledger *queue.Consumer

	stop  []func() // in the order of a stop: who writes last stops last
	mu    sync.Mutex
	err   error // the first error of what runs
	ended chan struct{}
}

// rotateBytes is small, so that a short life has many files.
const rotateBytes = 96 << 10

// Open opens all that there is, in the order of the daemon, and lets it run.
func Open(ctx context.Context, s Settings) (_ *House, err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	// The 4 MiB that a log holds in reserve for a full disk would be most of what is written here. An empty file stands in.
	reserve := filepath.Join(s.Dir, "reserve")
	if _, err := os.Stat(reserve); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(reserve, nil, 0o600); err != nil {
			return nil, err
		}
	}
	h := &House{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	// No process is started while a house is open here or being closed: between fork and exec it would have a copy of each file
	// that is open, with its lock, and the next to open the house would find it taken. So a case is a process of its own.
	h.Log, err = queue.Open(queue.Options{Dir: s.Dir, RotateBytes: rotateBytes, RotateAfter: time.Hour, Keep: s.Keep, KeepBytes: 1 << 30, InFlightBytes: 64 << 20, Now: time.Now})
	if err != nil {
		return nil, err
	}
	if h.Ledger, err = queue.OpenConsumer(h.Log, queue.ConsumerOptions{Name: Sync, Project: Project, Enabled: true, WindowBytes: 64 << 10, Now: time.Now}); err != nil {
		return nil, err
	}
	if h.Users, err = users.Open(ctx, h.Log, users.Options{Path: filepath.Join(s.Dir, "users.db"), CheckpointEvery: 20 * time.Millisecond, CacheBytes: 1 << 20}); err != nil {
		return nil, err
	}
	if err := h.forgetUnfinished(ctx); err != nil {
		return nil, err
	}
	h.Ledger.Flowing(true)
	h.run(h.Ledger.Run)
	h.run(h.Log.Run)
	h.run(h.Users.Run)
	return h, nil
}

// forgetUnfinished is what a start does about people who were being forgotten.
func (h *House) forgetUnfinished(ctx context.Context) error {
	for _, t := range h.Log.Unfinished() {
		if _, err := h.Ledger.Forget(ctx, t.Unfinished.Sent); err != nil {
			return err
		}
		if err := h.Log.FinishForgetting(t.ID); err != nil {
			return err
		}
	}
	return nil
}

func (h *House) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			h.Fail(err)
		}
	}()
	h.stop = append(h.stop, func() { cancel(); <-done })
}

// Fail ends the house by an error, as the daemon ends with 74.
func (h *House) Fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
		close(h.ended)
	}
}

// Failed is closed when something that runs has ended by an error.
func (h *House) Failed() <-chan struct{} { return h.ended }

// Err is why.
func (h *House) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Close stops all, and closes the files. It gives the first error of what ran.
func (h *House) Close() error {
	for _, stop := range h.stop {
		stop()
	}
	return errors.Join(h.Err(), h.close())
}

func (h *House) close() error {
	var errs []error
	if h.Users != nil {
		errs = append(errs, h.Users.Close())
	}
	if h.Ledger != nil {
		errs = append(errs, h.Ledger.Close())
	}
	if h.Log != nil {
		errs = append(errs, h.Log.Close())
	}
	return errors.Join(errs...)
}
