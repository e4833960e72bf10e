package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ampcio/config"
	"ampcio/delivery"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// stoppedHouse is an installation whose daemon does not run. It opens what serve
// opens, but runs none of it, so that a daemon that is started meanwhile finds the
// folder in use and is started again.
type stoppedHouse struct {
	cfg     *config.Config
	records *queue.Log // nil = nothing is open: only reads
	rules   map[string]*mapping.Rules
	say     io.Writer // stderr

	mu   sync.Mutex // of open
	open map[string]*queue.Consumer
}

// doStopped does a verb in this process.
func doStopped(ctx context.Context, o *operator, name string, body []byte, each func(line []byte) error) error {
	cfg := o.cfg
	do, known := verbs[name]
	if !known {
		return exit(exitUsage, fmt.Errorf("there is no %q", name))
	}
	dir := cfg.Storage.Dir
	if _, err := os.Stat(dir); err != nil {
		return filesError(cfg, err)
	}
	if err := becomeOwner(dir); err != nil {
		return err
	}
	rules, err := compileRules(cfg)
	if err != nil {
		return err
	}
	h := &stoppedHouse{cfg: cfg, rules: rules, say: o.say, open: map[string]*queue.Consumer{}}
	if !readsOnly[name] {
		err = h.openStorage()
	}
	if err == nil {
		err = do(ctx, h, body, &lines{each: each})
	}
	if errors.Is(err, queue.ErrLocked) {
		err = filesError(cfg, err)
	}
	return errors.Join(err, h.close())
}

// becomeOwner makes this process the user that owns the storage folder, if it is
// root's: a file that root creates in there would be closed to the daemon.
func becomeOwner(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return exit(exitIO, err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	err = syscall.Setgroups([]int{int(owner.Gid)})
	if err == nil {
		err = syscall.Setgid(int(owner.Gid))
	}
	if err == nil {
		err = syscall.Setuid(int(owner.Uid))
	}
	if err != nil {
		return exit(exitUnavailable, fmt.Errorf("become uid %d, to which %s belongs: %w: run this as that user", owner.Uid, dir, err))
	}
	return nil
}

// openStorage opens the log and every ledger that there is.
func (h *stoppedHouse) openStorage() error {
	dir := h.cfg.Storage.Dir
	o := logLimits(h.cfg.Storage)
	o.Dir, o.InFlightBytes, o.Now = dir, appendBytes, time.Now
	var err error
	h.records, err = queue.Open(o)
	if errors.Is(err, queue.ErrLocked) {
		return err
	}
	if err != nil {
		return storageError(dir, err)
	}
	for _, a := range h.records.SetAside() {
		fmt.Fprintf(h.say, "a damaged log file is kept at %s (%d of its records were taken over)\n", a.Path, a.Saved)
	}
	for _, name := range h.names() {
		if err := h.openLedger(name); err != nil {
			return storageError(dir, err)
		}
	}
	return nil
}

func (h *stoppedHouse) openLedger(name string) error {
	set := settingsOf(h.cfg, name)
	o := queue.ConsumerOptions{Name: name, Enabled: set.delivers(), WindowBytes: windowBytes, Now: time.Now}
	var err error
	if set != nil {
		o.Project = set.project
	} else if o.Project, err = queue.LedgerProject(h.cfg.Storage.Dir, name); err != nil {
		return err
	}
	c, err := queue.OpenConsumer(h.records, o)
	if err != nil {
		return err
	}
	if a := c.SetAside(); a != nil {
		fmt.Fprintf(h.say, "the ledger of sync %s was damaged and is kept at %s; what could be read of it is sent again, under the same ids\n", name, a.Path)
	}
	bind(c, set, h.cfg.DeadLetters)
	h.mu.Lock()
	h.open[name] = c
	h.mu.Unlock()
	return nil
}

func (h *stoppedHouse) close() error {
	var errs []error
	for _, c := range h.open {
		errs = append(errs, c.Close())
	}
	if h.records != nil {
		errs = append(errs, h.records.Close())
	}
	return exit(exitIO, errors.Join(errs...))
}

func (h *stoppedHouse) running() bool                      { return false }
func (h *stoppedHouse) config() *config.Config             { return h.cfg }
func (h *stoppedHouse) recordLog() *queue.Log              { return h.records }
func (h *stoppedHouse) userStore() *users.Store            { return nil }
func (h *stoppedHouse) delivery(string) *delivery.Sync     { return nil }
func (h *stoppedHouse) rulesOf(name string) *mapping.Rules { return h.rules[name] }
func (h *stoppedHouse) operate(f func() error) error       { return f() }

func (h *stoppedHouse) whileOpen(name string, f func(*queue.Consumer) error) error {
	return f(h.consumer(name))
}

func (h *stoppedHouse) names() []string {
	names, _ := queue.Ledgers(h.cfg.Storage.Dir) // sorted; without a folder there are none
	return names
}

func (h *stoppedHouse) consumer(name string) *queue.Consumer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[name]
}

func (h *stoppedHouse) stopSync(_ context.Context, name string) error {
	h.mu.Lock()
	c := h.open[name]
	delete(h.open, name)
	h.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

func (h *stoppedHouse) startSync(_ context.Context, name string) error { return h.openLedger(name) }

// filesError says what to do when the files of a daemon that does not answer cannot be
// used either.
func filesError(cfg *config.Config, err error) error {
	dir := cfg.Storage.Dir
	switch {
	case errors.Is(err, queue.ErrLocked):
		return exit(exitTemporary, fmt.Errorf("another process%s uses %s: an ampcio that is starting, or another command; try again in a moment. If it lasts: is server.socket the same as when it was started? It is %s",
			lockedBy(dir), dir, socketPath(cfg)))
	case errors.Is(err, fs.ErrNotExist):
		return exit(exitUnavailable, fmt.Errorf("ampcio is not running and has never run with storage.dir %s: start it with ampcio serve", dir))
	case errors.Is(err, syscall.ENOTDIR):
		return exit(exitUnavailable, fmt.Errorf("%w: storage.dir %s must be the folder that ampcio serve writes to", err, dir))
	case errors.Is(err, fs.ErrPermission):
		return exit(exitUnavailable, fmt.Errorf("ampcio is not running, and its files cannot be read: %w: try as root or as the user that runs ampcio", err))
	}
	return exit(exitIO, err)
}

// lockedBy names the process that holds the lock of a storage folder, as far as that can
// be found out: it has written itself into the file, unless it is no ampcio.
func lockedBy(dir string) string {
	path := filepath.Join(dir, "lock")
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil && pid > 0 && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return fmt.Sprintf(" (%d)", pid)
	}
	if pid = lockHolder(path); pid <= 0 {
		return ""
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf(" (%d)", pid)
	}
	return fmt.Sprintf(" (%d, %s)", pid, clipText(strings.TrimSpace(string(name)), 40))
}

// lockHolder is the process that Linux says to hold a lock on a file; 0 when it says
// nothing, as when the process is in another container.
func lockHolder(path string) int {
	var st syscall.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || syscall.Stat(path, &st) != nil {
		return 0
	}
	inode := fmt.Sprintf(":%d", st.Ino)
	for line := range strings.Lines(string(locks)) { // 1: FLOCK ADVISORY WRITE 4711 fe:01:1234 0 EOF
		if f := strings.Fields(line); len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], inode) {
			if pid, err := strconv.Atoi(f[4]); err == nil {
				return pid
			}
		}
	}
	return 0
}
