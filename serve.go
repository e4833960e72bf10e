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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/delivery"
	"ampcio/ingest"
	"ampcio/logbook"
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
			// From here on a SIGHUP waits its turn instead of ending the process.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			cfg, err := loadConfig(c, true)
			if err != nil {
				return asInstalled(c.String("config"), err)
			}
			first, err := newGeneration(cfg)
			if err != nil {
				return err
			}
			file, err := filepath.Abs(c.String("config"))
			if err != nil {
				return exit(exitUsage, fmt.Errorf("--config: %w", err))
			}
			log, level := newLog(c.App.ErrWriter, cfg.Log)
			d := &daemon{log: log, level: level, configFile: file, started: time.Now(), pulse: newPulse(), alerting: newAlerting(), repeats: logbook.New(log, time.Now), streams: map[string]*stream{}}
			d.inForce.Store(first)
			return d.serve(c.Context, hup)
		},
	}
}

// daemon is the rooms, wired.
type daemon struct {
	log        *slog.Logger
	level      *slog.LevelVar // of log
	configFile string         // what a reload reads; absolute, since systemd's working directory is not the operator's
	started    time.Time
	pulse      *pulse
	rates      admin.Rates
	history    admin.History
	repeats    *logbook.Book // what happens again and again, in log
	alerting   *alerting
	filling    admin.Filling
	lastLooks  lastLooks

	records   *queue.Log
	users     *users.Store
	door      *ingest.Handler
	address   string     // that the public listener really has
	addresses []net.Addr // all of them: systemd may pass several
	passed    bool       // by systemd: then server.listen counts for nothing

	certificate *certificate // of the public listener; nil = plain HTTP

	inForce atomic.Pointer[generation]

	operating sync.Mutex // held by what changes which syncs there are: one operation at a time
	closed    bool       // no more operations; guarded by operating

	closing sync.RWMutex // held by who closes a ledger, and for reading by who needs it open; before mu
	mu      sync.RWMutex
	streams map[string]*stream // by sync; those that are gone from the configuration too
	between []*queue.Consumer  // of syncs that the operation that goes on has taken out of streams, or is about to put there

	meters map[string]*delivery.Meter // by sync, for as long as the process lives; guarded by mu

	runs *runs // nil until run
}

// forbidCores: a core would hold events and keys. The unit says so too; this is for those who run ampcio without it. A
// limit of one byte is too little for a file, and unlike none it is also what keeps Linux from piping a core to a
// program (core(5)), such as those that report crashes.
func forbidCores() error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &now); err != nil {
		return err
	}
	most := min(1, now.Max)
	return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: most, Max: most})
}

// serve runs the daemon until ctx ends and everything has gone home, or until a part
// of it fails. The configuration is checked before a byte of the storage is touched.
func (d *daemon) serve(ctx context.Context, hup <-chan os.Signal) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if err := forbidCores(); err != nil {
		return exit(exitFailed, fmt.Errorf("forbid core dumps: %w", err))
	}
	for _, w := range d.config().Warnings {
		d.log.Warn("the configuration is taken, but may not be what is meant", "what", w)
	}
	if s := d.config().Server; s.TLSCert != "" {
		c, err := openCertificate(s.TLSCert, s.TLSKey, time.Now, d.log)
		if err != nil {
			return err
		}
		d.certificate = c
	}
	if err := d.openStorage(); err != nil {
		return errors.Join(err, d.closeStorage())
	}
	listeners, err := d.listen()
	if err != nil {
		return errors.Join(err, d.closeStorage())
	}
	err = d.run(ctx, listeners, hup)
	return errors.Join(err, d.closeStorage())
}

// openStorage opens what is on disk, in the order in which it depends on another.
func (d *daemon) openStorage() error {
	dir := d.config().Storage.Dir
	usersPath := filepath.Join(dir, "users.db")
	early := users.LookEarly(usersPath)
	var err error
	o := logLimits(d.config().Storage)
	o.Dir, o.InFlightBytes, o.Now, o.Beat = dir, appendBytes, time.Now, d.pulse.part("log")
	if d.records, err = queue.Open(o); err != nil {
		return storageError(dir, err)
	}
	if err := d.openStreams(); err != nil {
		return storageError(dir, err)
	}
	d.users, err = users.Open(context.Background(), d.records, users.Options{
		Path: usersPath, Early: early,
		Carry: func(project, property string) bool { return d.inForce.Load().carries(project, property) },
	})
	if err != nil {
		return storageError(dir, err)
	}
	d.forgetUnfinished()
	if w := d.users.Warning(); w != nil {
		d.log.Warn("users.db had to be repaired", "what", w)
	}
	d.door = ingest.New(ingest.Options{Projects: apiKeys(d.config()), CORSOrigins: d.config().Server.CORSOrigins,
		TrustedProxies: d.config().Server.TrustedProxies,
		InFlightBytes:  appendBytes, Log: d.log, Repeats: d.repeats}, d.users)
	d.door.SetWebhookSecrets(webhookSecrets(d.config()))
	return nil
}

// logLimits are what bounds the log, as far as it may change while it runs.
func logLimits(s config.Storage) queue.Options {
	return queue.Options{
		MaxBytes: int64(s.MaxBytes), MinFree: int64(s.MinFree),
		Keep: time.Duration(s.Keep), KeepBytes: int64(s.KeepBytes),
		RotateBytes: int64(s.RotateBytes), RotateAfter: time.Duration(s.RotateAfter),
	}
}

// apiKeys are the keys by which senders are known, by project.
func apiKeys(cfg *config.Config) map[string][]string {
	keys := map[string][]string{}
	for _, p := range cfg.Project.Names() {
		keys[p] = cfg.Project[p].AmplitudeAPIKeys
	}
	return keys
}

// webhookSecrets are the secrets by which the webhooks of Amplitude are known, by project.
func webhookSecrets(cfg *config.Config) map[string]string {
	secrets := map[string]string{}
	for _, p := range cfg.Project.Names() {
		if s := cfg.Project[p].WebhookSecret; !s.IsZero() {
			secrets[p] = s.Reveal()
		}
	}
	return secrets
}

// closeStorage closes what openStorage opened, last first.
func (d *daemon) closeStorage() error {
	var errs []error
	if d.users != nil {
		errs = append(errs, d.users.Close())
	}
	for _, name := range d.allNames() {
		if b := d.book(name); b != nil {
			b.close()
		}
		errs = append(errs, d.consumer(name).Close())
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
	return exit(exitIO, roomMaker(dir, err))
}

// roomMaker adds to an error of a disk that is full what to do.
func roomMaker(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w. Free space on the disk of storage.dir (df -h %s) and start ampcio again; under systemd it comes back by itself. What was accepted is safe", err, dir)
	}
	return err
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
	if d.passed = len(ls.public) > 0; !d.passed {
		l, err := net.Listen("tcp", d.config().Server.Listen)
		if err != nil {
			return ls, listenError("server.listen", err)
		}
		ls.public = append(ls.public, l)
	}
	if d.certificate != nil {
		for i, l := range ls.public {
			ls.public[i] = d.door.Encrypted(l, d.certificate.tls())
		}
	}
	if d.config().Server.Admin != "" {
		if ls.admin, err = net.Listen("tcp", d.config().Server.Admin); err != nil {
			return ls, listenError("server.admin", err)
		}
	}
	if ls.socket, err = admin.ListenSocket(socketPath(d.config())); err != nil {
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
func (d *daemon) run(ctx context.Context, ls listeners, hup <-chan os.Signal) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	storing, stopStoring := context.WithCancel(context.Background())
	defer stopStoring()
	d.runs = &runs{flow: ctx, storage: storing, fail: stop}
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
	d.startStreams()
	d.address = ls.public[0].Addr().String()
	for _, l := range ls.public {
		d.addresses = append(d.addresses, l.Addr())
	}
	public := ingest.NewServer(d.door, mostConnections(), d.log, d.repeats)
	for _, l := range ls.public {
		watch(&flow, exitUnavailable, func() error { return serveHTTP(public, l) })
	}
	if ls.admin != nil {
		watch(&storage, exitUnavailable, func() error { return admin.Serve(storing, ls.admin, d.adminHandler()) })
	}
	watch(&storage, exitUnavailable, func() error { return admin.Serve(storing, ls.socket, operatorHandler(d)) })
	storage.Go(func() error { d.keepRates(storing); return nil })
	storage.Go(func() error { d.keepFilling(storing); return nil })
	storage.Go(func() error { d.keepDoorBook(storing); return nil })
	storage.Go(func() error { d.keepDryRuns(storing); return nil })
	storage.Go(func() error { d.keepAlerts(storing); return nil })
	storage.Go(func() error { d.notify(storing); return nil })
	flow.Go(func() error { d.watchWorkspaces(ctx); return nil })

	d.log.Info("ampcio takes events", "version", version().version, "listen", d.address, "storage", d.config().Storage.Dir, "pid", os.Getpid())
	d.ready(ctx)
	flow.Go(func() error { d.reloadOnHangup(ctx, hup); return nil })
	<-ctx.Done()

	d.stopping()
	grace, cancel := context.WithTimeout(context.Background(), answerGrace)
	defer cancel()
	if err := public.Shutdown(grace); err != nil {
		public.Close()
	}
	d.noMoreOperations()
	flowErr := errors.Join(flow.Wait(), d.awaitDeliveries())
	stopStoring()
	storageErr := errors.Join(storage.Wait(), d.awaitLedgers())
	var err error
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	} else {
		err = errors.Join(flowErr, storageErr)
	}
	if err != nil {
		d.repeats.Close()
		return fmt.Errorf("stopped; what was accepted is on disk, and the next start goes on from there: %w", roomMaker(d.config().Storage.Dir, err))
	}
	d.repeats.Close()
	d.log.Info("ampcio has stopped; what is pending stays in the queue")
	return nil
}

// mostConnections are those of senders at a time. A quarter of what this process may open stays for the queue's files,
// deliveries and operators. An idle connection takes 22 kB.
func mostConnections() int {
	const enough = 16_384
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur > 2*enough {
		return enough
	}
	return min(enough, int(files.Cur)/4*3)
}

func serveHTTP(s *ingest.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen on %s: %w", l.Addr(), err)
	}
	return nil
}
