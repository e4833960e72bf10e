package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/ingest"
	"ampcio/mapping"
	"ampcio/queue"
	"ampcio/users"
)

// How a stop goes: requests that have come are answered within answerGrace, requests
// to Customer.io may end within deliveryGrace. Both begin at once; what does not end
// stays in the queue. The systemd unit waits longer than both.
const (
	answerGrace   = 10 * time.Second
	deliveryGrace = 20 * time.Second
)

// Memory that grows with traffic, not with the backlog. Bytes.
const (
	appendBytes = 64 << 20 // requests that wait to be committed
	windowBytes = 8 << 20  // what a sync reads ahead
)

// gcPercent trades a little CPU for memory: what lives in the heap is small, and half
// of it again is enough room for garbage.
const gcPercent = 50

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the daemon", Flags: []cli.Flag{configFlag},
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c, true)
			if err != nil {
				return err
			}
			rules, err := compileRules(cfg)
			if err != nil {
				return err
			}
			return serve(c.Context, cfg, rules, newLog(c.App.ErrWriter, cfg.Log))
		},
	}
}

// serve runs the daemon until ctx ends and everything has gone home, or until a part
// of it fails. The configuration is checked before a byte of the storage is touched.
func serve(ctx context.Context, cfg *config.Config, rules map[string]*mapping.Rules, log *slog.Logger) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	d := &daemon{cfg: cfg, log: log, started: time.Now(), pulse: newPulse()}
	if err := d.openStorage(rules); err != nil {
		return errors.Join(err, d.closeStorage())
	}
	listeners, err := d.listen()
	if err != nil {
		return errors.Join(err, d.closeStorage())
	}
	err = d.run(ctx, listeners)
	return errors.Join(err, d.closeStorage())
}

// daemon is the rooms, wired.
type daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	started time.Time
	pulse   *pulse
	rates   admin.Rates

	records   *queue.Log
	consumers map[string]*queue.Consumer // by sync; those of syncs that are gone from the config too
	users     *users.Store
	syncs     map[string]*delivery.Sync // those that deliver
	door      *ingest.Handler
	address   string // that the public listener really has
}

// openStorage opens what is on disk, in the order in which it depends on another.
func (d *daemon) openStorage(rules map[string]*mapping.Rules) error {
	s := d.cfg.Storage
	var err error
	d.records, err = queue.Open(queue.Options{
		Dir: s.Dir, MaxBytes: int64(s.MaxBytes), MinFree: int64(s.MinFree),
		Keep: time.Duration(s.Keep), KeepBytes: int64(s.KeepBytes),
		RotateBytes: int64(s.RotateBytes), RotateAfter: time.Duration(s.RotateAfter),
		InFlightBytes: appendBytes, Now: time.Now, Beat: d.pulse.part("log"),
	})
	if err != nil {
		return storageError(s.Dir, err)
	}
	if err := d.openConsumers(); err != nil {
		return storageError(s.Dir, err)
	}
	carry := map[string][]*mapping.Rules{} // by project
	for _, name := range d.cfg.Sync.Names() {
		y := d.cfg.Sync[name]
		carry[y.Project] = append(carry[y.Project], rules[name])
	}
	d.users, err = users.Open(context.Background(), d.records, users.Options{
		Path: filepath.Join(s.Dir, "users.db"),
		Carry: func(project, property string) bool {
			for _, r := range carry[project] {
				if r.Names(property) {
					return true
				}
			}
			return false
		},
	})
	if err != nil {
		return storageError(s.Dir, err)
	}
	if w := d.users.Warning(); w != nil {
		d.log.Warn("users.db had to be repaired", "what", w)
	}
	d.syncs = map[string]*delivery.Sync{}
	for _, name := range d.cfg.Sync.Names() {
		y := d.cfg.Sync[name]
		if !y.Enabled {
			continue
		}
		o := accountOptions(y)
		o.StopGrace, o.Now, o.Log, o.Beat = deliveryGrace, time.Now, d.log, d.pulse.part("delivery "+name)
		d.syncs[name] = delivery.New(d.consumers[name], rules[name], o)
	}
	keys := map[string][]string{}
	for _, p := range d.cfg.Project.Names() {
		keys[p] = d.cfg.Project[p].AmplitudeAPIKeys
	}
	d.door = ingest.New(ingest.Options{Projects: keys, CORSOrigins: d.cfg.Server.CORSOrigins, InFlightBytes: appendBytes, Log: d.log}, d.users)
	return nil
}

// openConsumers opens the ledger of each sync, and those that no sync of the
// configuration owns any more: what they hold is kept until somebody decides.
func (d *daemon) openConsumers() error {
	d.consumers = map[string]*queue.Consumer{}
	open := func(o queue.ConsumerOptions) error {
		o.WindowBytes, o.Now = windowBytes, time.Now
		c, err := queue.OpenConsumer(d.records, o)
		if err != nil {
			return err
		}
		d.consumers[o.Name] = c
		if a := c.SetAside(); a != nil {
			d.log.Error("a damaged ledger was set aside; what could not be read of it is sent again, under the same ids",
				"sync", o.Name, "file", a.Path, "entries", a.Saved, "reason", a.Reason)
		}
		return nil
	}
	for _, name := range d.cfg.Sync.Names() {
		y := d.cfg.Sync[name]
		if err := open(queue.ConsumerOptions{Name: name, Project: y.Project, Enabled: y.Enabled, Beat: d.pulse.part("ledger " + name)}); err != nil {
			return err
		}
	}
	orphans, err := d.orphans()
	if err != nil {
		return err
	}
	for name, project := range orphans {
		d.log.Warn("this sync is gone from the configuration; what it has not delivered is kept", "sync", name)
		if err := open(queue.ConsumerOptions{Name: name, Project: project}); err != nil {
			return err
		}
	}
	for _, a := range d.records.SetAside() {
		d.log.Error("a damaged log file was set aside; what could be read of it was taken over", "file", a.Path, "records", a.Saved, "reason", a.Reason)
	}
	return nil
}

// orphans gives the ledgers without a sync, with their projects.
func (d *daemon) orphans() (map[string]string, error) {
	names, err := queue.Ledgers(d.cfg.Storage.Dir)
	if err != nil {
		return nil, err
	}
	orphans := map[string]string{}
	for _, name := range names {
		if _, known := d.cfg.Sync[name]; known {
			continue
		}
		if orphans[name], err = queue.LedgerProject(d.cfg.Storage.Dir, name); err != nil {
			return nil, err
		}
	}
	return orphans, nil
}

// closeStorage closes what openStorage opened, last first.
func (d *daemon) closeStorage() error {
	var errs []error
	if d.users != nil {
		errs = append(errs, d.users.Close())
	}
	for _, c := range d.consumers {
		errs = append(errs, c.Close())
	}
	if d.records != nil {
		errs = append(errs, d.records.Close())
	}
	return errors.Join(errs...)
}

// storageError says what to do about a storage folder that cannot be used.
func storageError(dir string, err error) error {
	switch {
	case errors.Is(err, queue.ErrLocked):
		return exit(exitTemporary, fmt.Errorf("%w: stop it first, or give this one another storage.dir", err))
	case errors.Is(err, queue.ErrNewerFormat):
		return exit(exitConfig, fmt.Errorf("%w: install that version again; nothing was changed", err))
	case errors.Is(err, fs.ErrPermission):
		return exit(exitCantCreate, fmt.Errorf("%w: storage.dir %s must belong to the user that runs ampcio (uid %d)", err, dir, os.Getuid()))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EROFS):
		return exit(exitCantCreate, fmt.Errorf("%w: storage.dir %s must be a folder that ampcio can create files in", err, dir))
	}
	return exit(exitIO, err)
}

// listeners are the doors of the daemon.
type listeners struct {
	public []net.Listener
	admin  net.Listener // nil = off
	socket net.Listener
}

// listen opens the doors. A socket that systemd passed is the public one: it stays
// open while the daemon restarts, so no connection is refused.
func (d *daemon) listen() (ls listeners, err error) {
	defer func() {
		if err != nil {
			for _, l := range append(ls.public, ls.admin, ls.socket) {
				if l != nil {
					l.Close()
				}
			}
		}
	}()
	passed, err := activation.Listeners()
	if err != nil {
		return ls, exit(exitUnavailable, fmt.Errorf("take the socket of systemd: %w", err))
	}
	for _, l := range passed {
		if l != nil {
			ls.public = append(ls.public, l)
		}
	}
	if len(ls.public) == 0 {
		l, err := net.Listen("tcp", d.cfg.Server.Listen)
		if err != nil {
			return ls, listenError("server.listen", err)
		}
		ls.public = append(ls.public, l)
	}
	if d.cfg.Server.Admin != "" {
		if ls.admin, err = net.Listen("tcp", d.cfg.Server.Admin); err != nil {
			return ls, listenError("server.admin", err)
		}
	}
	if ls.socket, err = admin.ListenSocket(socketPath(d.cfg)); err != nil {
		return ls, listenError("server.socket", err)
	}
	return ls, nil
}

func listenError(key string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: another program listens there; stop it, or change %s", err, key)
	}
	return exit(exitUnavailable, fmt.Errorf("%s: %w", key, err))
}

// socketPath is where the admin socket is: as configured, else in the runtime folder
// of the service where there is one, else with the storage.
func socketPath(cfg *config.Config) string {
	if cfg.Server.Socket != "" {
		return cfg.Server.Socket
	}
	const runtime = "/run/ampcio"
	if st, err := os.Stat(runtime); err == nil && st.IsDir() {
		return filepath.Join(runtime, "admin.sock")
	}
	return filepath.Join(cfg.Storage.Dir, "admin.sock")
}

// run starts the parts and, when ctx ends or one of them fails, stops them in the
// order of the flow: what comes in, what goes out, then the books and the log.
func (d *daemon) run(ctx context.Context, ls listeners) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	storing, stopStoring := context.WithCancel(context.Background())
	defer stopStoring()
	var storage, flow errgroup.Group
	watch := func(g *errgroup.Group, code int, f func() error) {
		g.Go(func() error {
			err := exit(code, f())
			if err != nil {
				stop(err)
			}
			return err
		})
	}
	watch(&storage, exitIO, func() error { return d.records.Run(storing) })
	watch(&storage, exitIO, func() error { return d.users.Run(storing) })
	for _, c := range d.consumers {
		watch(&storage, exitIO, func() error { return c.Run(storing) })
	}
	for name, s := range d.syncs {
		watch(&flow, exitIO, func() error {
			if err := s.Run(ctx); err != nil {
				return fmt.Errorf("sync %s: %w", name, err)
			}
			return nil
		})
	}
	d.address = ls.public[0].Addr().String()
	public := ingest.NewServer(d.door, d.log)
	for _, l := range ls.public {
		watch(&flow, exitUnavailable, func() error { return serveHTTP(public, l) })
	}
	if ls.admin != nil {
		watch(&storage, exitUnavailable, func() error { return admin.Serve(storing, ls.admin, admin.Handler(d)) })
	}
	watch(&storage, exitUnavailable, func() error { return admin.Serve(storing, ls.socket, admin.SocketHandler(d)) })
	storage.Go(func() error { d.keepRates(storing); return nil })
	storage.Go(func() error { d.keepDoorBook(storing); return nil })
	storage.Go(func() error { d.notify(storing); return nil })

	d.log.Info("ampcio takes events", "version", version().version, "listen", d.address, "storage", d.cfg.Storage.Dir, "pid", os.Getpid())
	d.ready(ctx)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for waiting := true; waiting; {
		select {
		case <-hup:
			d.log.Warn("SIGHUP: reloading the configuration is not in this version yet; restart ampcio to apply it, nothing is lost by that")
		case <-ctx.Done():
			waiting = false
		}
	}

	d.stopping()
	grace, cancel := context.WithTimeout(context.Background(), answerGrace)
	defer cancel()
	if err := public.Shutdown(grace); err != nil {
		public.Close()
	}
	flowErr := flow.Wait()
	stopStoring()
	storageErr := storage.Wait()
	var err error
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	} else {
		err = errors.Join(flowErr, storageErr)
	}
	if err != nil {
		return fmt.Errorf("stopped; what was accepted is on disk, and the next start goes on from there: %w", err)
	}
	d.log.Info("ampcio has stopped; what is pending stays in the queue")
	return nil
}

func serveHTTP(s *ingest.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen on %s: %w", l.Addr(), err)
	}
	return nil
}
