package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ampcio/config"
	"ampcio/queue"
	"ampcio/users"
)

func init() { verbs["backup"] = backupVerb }

func backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "copy everything that is stored into one file, while the daemon runs or not",
		UsageText: "ampcio backup FILE|- [--force] [--json]",
		Description: "FILE is a tar; - is stdout. Events are taken and delivered meanwhile. It holds what was accepted before it began;\n" +
			"after a restore, deliveries of the time around it may repeat, under the same ids. The configuration is not in it.",
		Flags: []cli.Flag{configFlag, &cli.BoolFlag{Name: "force", Usage: "replace a FILE that is there"}, &cli.BoolFlag{Name: "json", Usage: "one JSON object; not with -"}},
		Action: func(c *cli.Context) error {
			if c.Args().Len() != 1 {
				return exit(exitUsage, errors.New("backup takes one argument: the file to write, or - for stdout"))
			}
			o, err := newOperator(c)
			if err != nil {
				return err
			}
			ctx := c.Context
			bar := newProgress(c, "copied", "", 0)
			bar.count = func(n uint64) string { return humanize.IBytes(n) }
			if name := c.Args().First(); name != "-" {
				return o.backupToFile(c, name, bar)
			}
			if c.Bool("json") {
				return exit(exitUsage, errors.New("--json wants a file: with - the backup itself is what is written"))
			}
			if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return exit(exitUsage, errors.New("a backup is no text for a terminal: name a file, or send it somewhere"))
			}
			_, err = o.makeBackup(ctx, &counting{w: c.App.Writer, bar: o.expectBackup(ctx, bar)})
			bar.whole(err)
			return endedBackup(ctx, err, "what was written is no whole backup, and a restore refuses it")
		},
	}
}

// backupToFile writes a backup under another name and, once all of it is on the disk,
// gives it its own: a file of that name is a whole backup.
func (o *operator) backupToFile(c *cli.Context, name string, bar *progress) error {
	ctx, force, say := c.Context, c.Bool("force"), c.App.Writer
	if _, err := os.Lstat(name); err == nil && !force {
		return exit(exitCantCreate, fmt.Errorf("%s is there already: give another name, or --force to replace it", name))
	}
	partial := name + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return exit(exitCantCreate, err)
	}
	m, err := o.makeBackup(ctx, &counting{w: &syncedFile{f: f}, bar: o.expectBackup(ctx, bar)})
	bar.whole(err)
	err = endedBackup(ctx, err, name+" was not written, and nothing was changed; the same command begins again")
	err = errors.Join(err, exit(exitIO, errors.Join(f.Sync(), f.Close())))
	if err == nil {
		err = exit(exitIO, renameSynced(partial, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	size := int64(0)
	for _, file := range m.Files {
		size += file.Bytes
	}
	if c.Bool("json") {
		return tell(say, struct {
			File  string `json:"file"`
			Bytes int64  `json:"bytes"`
			queue.Manifest
		}{name, size, m})
	}
	fmt.Fprintf(say, "%s: %s in %s, up to record %s.\n", name, humanize.IBytes(uint64(size)), counted(uint64(len(m.Files)), "file", "files"), humanize.Comma(int64(m.Tail)))
	for _, y := range m.Syncs {
		fmt.Fprintf(say, "  %s: %s pending\n", y.Name, humanize.Comma(int64(y.Pending)))
	}
	return nil
}

// expectBackup tells a backup's progress how much is to come, about: as much as is stored.
func (o *operator) expectBackup(ctx context.Context, bar *progress) *progress {
	if snap, err := o.takeSnapshot(ctx, &statsQuestion{}); err == nil {
		bar.total = uint64(max(snap.Disk.Used, 0))
	}
	return bar
}

// endedBackup says what is left of a backup, or a restore, that its operator has ended.
func endedBackup(ctx context.Context, err error, left string) error {
	if err != nil && ctx.Err() != nil {
		return exit(exitTemporary, fmt.Errorf("%w: %s", errEndedByOperator, left))
	}
	return err
}

// counting tells how much goes through it.
type counting struct {
	w   io.Writer
	r   io.Reader
	bar *progress
}

func (t *counting) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	t.bar.add(uint64(n))
	return n, err
}

func (t *counting) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	t.bar.add(uint64(n))
	return n, err
}

// syncedFile is synced again and again while it is written: if much of it waited for the
// disk, the log's commits would wait behind it.
type syncedFile struct {
	f     *os.File
	since int // bytes
}

func (s *syncedFile) Write(b []byte) (int, error) {
	if s.since += len(b); s.since >= 8<<20 {
		s.since = 0
		if err := s.f.Sync(); err != nil {
			return 0, err
		}
	}
	return s.f.Write(b)
}

func renameSynced(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// backupPart is a line of the answer of the verb backup: bytes of the backup, or, at the
// end, its manifest.
type backupPart struct {
	Bytes    []byte          `json:"bytes,omitempty"`
	Manifest *queue.Manifest `json:"manifest,omitempty"`
}

// makeBackup has the daemon make a backup, or makes it of the files when none runs.
func (o *operator) makeBackup(ctx context.Context, w io.Writer) (m queue.Manifest, err error) {
	whole := false
	err = o.ask(ctx, "backup", []byte("{}"), func(line []byte) error {
		var part backupPart
		if err := json.Unmarshal(line, &part); err != nil {
			return err
		}
		if part.Manifest != nil {
			m, whole = *part.Manifest, true
		}
		_, err := w.Write(part.Bytes)
		return exit(exitIO, err)
	})
	switch {
	case err == nil && !whole:
		return m, exit(exitUnavailable, errors.New("the daemon has not finished the backup"))
	case !notRunning(err):
		return m, err
	}
	if o.broken != nil {
		return m, o.broken
	}
	dir := o.cfg.Storage.Dir
	if _, err := os.Stat(dir); err != nil {
		return m, filesError(o.cfg, err)
	}
	m, err = queue.BackupFiles(ctx, dir, w, queue.BackupOptions{Version: version().version, Now: time.Now, Others: func(b *queue.BackupWriter) error {
		return errors.Join(users.BackupFiles(b), addSmallFiles(b))
	}})
	if err != nil {
		return m, filesError(o.cfg, err)
	}
	return m, nil
}

// addSmallFiles adds what main keeps in the storage folder, where it is there.
func addSmallFiles(b *queue.BackupWriter) error {
	return errors.Join(b.AddFile(hashKeyFile), b.AddFile(doorBook))
}

// backupBuffer is how many bytes of a backup go into one line.
const backupBuffer = 256 << 10

func backupVerb(ctx context.Context, h house, in json.RawMessage, out io.Writer) error {
	if err := readInput(in, &struct{}{}); err != nil {
		return err
	}
	d, ok := h.(*daemon)
	if !ok {
		return exit(exitUsage, errors.New("the files of a stopped ampcio are backed up without it"))
	}
	lines := &backupLines{out: out}
	m, err := d.records.Backup(ctx, lines, queue.BackupOptions{
		Version: version().version, Now: time.Now,
		Consumers: func(copy func([]*queue.Consumer) error) error {
			return d.operate(func() error {
				var all []*queue.Consumer
				for _, name := range d.names() {
					all = append(all, d.consumer(name))
				}
				return copy(all)
			})
		},
		Others: func(b *queue.BackupWriter) error {
			return errors.Join(d.users.Backup(b), addSmallFiles(b))
		},
	})
	if err == nil {
		err = lines.flush()
	}
	if full, is := errors.AsType[*queue.FullError](err); is {
		return exit(exitUnavailable, errors.New(full.Reason))
	}
	if err != nil {
		return exit(exitIO, err)
	}
	return tell(out, backupPart{Manifest: &m})
}

// backupLines makes lines of what is written to it.
type backupLines struct {
	out io.Writer
	buf []byte
}

func (l *backupLines) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), backupBuffer-len(l.buf))
		l.buf, rest = append(l.buf, rest[:n]...), rest[n:]
		if len(l.buf) == backupBuffer {
			if err := l.flush(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

func (l *backupLines) flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	err := tell(l.out, backupPart{Bytes: l.buf})
	l.buf = l.buf[:0]
	return err
}

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "make the storage folder of a backup, where there is none",
		UsageText: "ampcio restore FILE|- [--json]",
		Description: "Writes into storage.dir of the configuration, which must be empty or not there yet. A backup that is not whole changes\n" +
			"nothing. Stop ampcio before; start it afterwards, and it delivers what was pending.",
		Flags: []cli.Flag{configFlag, &cli.BoolFlag{Name: "json", Usage: "one JSON object"}},
		Action: func(c *cli.Context) error {
			if c.Args().Len() != 1 {
				return exit(exitUsage, errors.New("restore takes one argument: the backup, or - for stdin"))
			}
			cfg, err := readConfig(c, false)
			if err != nil {
				return err
			}
			bar := newProgress(c, "read", "", 0)
			bar.count = func(n uint64) string { return humanize.IBytes(n) }
			from := io.Reader(os.Stdin)
			if name := c.Args().First(); name != "-" {
				f, err := os.Open(name)
				if err != nil {
					return exit(exitUsage, err)
				}
				defer f.Close()
				from = f
				if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
					bar.total = uint64(st.Size())
				}
			}
			return restore(c, cfg, &counting{r: from, bar: bar})
		},
	}
}

func restore(c *cli.Context, cfg *config.Config, from *counting) error {
	dir, ctx, say := cfg.Storage.Dir, c.Context, c.App.Writer
	m, err := queue.Restore(ctx, from, dir, func(folder string) error { return users.Check(filepath.Join(folder, "users.db")) })
	from.bar.whole(err)
	err = endedBackup(ctx, err, "nothing was written to "+dir+"; the same command begins again")
	switch {
	case errors.Is(err, errEndedByOperator):
		return err
	case err == nil:
	case errors.Is(err, queue.ErrNotEmpty):
		return exit(exitCantCreate, fmt.Errorf("storage.dir %s is not empty, and nothing in it was changed: stop ampcio, move the folder away (mv %s %s.old), and restore again", dir, dir, dir))
	case errors.Is(err, queue.ErrBadBackup):
		return exit(exitData, fmt.Errorf("%w; nothing was written", err))
	case errors.Is(err, queue.ErrNewerFormat):
		return exit(exitData, fmt.Errorf("%w: install that version, or a later one; nothing was written", err))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return exit(exitCantCreate, fmt.Errorf("%w: restore as root, or as a user that may create %s", err, dir))
	default:
		return exit(exitIO, err)
	}
	if c.Bool("json") {
		return tell(say, struct {
			Dir string `json:"dir"`
			queue.Manifest
			Note string `json:"note"`
		}{dir, m, ownerNote(dir)})
	}
	fmt.Fprintf(say, "%s is as it was on %s, up to record %s.\n", dir, m.Time.Format("2006-01-02 15:04:05 UTC"), humanize.Comma(int64(m.Tail)))
	for _, y := range m.Syncs {
		fmt.Fprintf(say, "  %s: %s pending\n", y.Name, humanize.Comma(int64(y.Pending)))
	}
	fmt.Fprintf(say, "What was delivered after that is delivered again when ampcio starts, under the same ids: Customer.io ignores the events that it has.\n")
	if note := ownerNote(dir); note != "" {
		fmt.Fprintln(say, note)
	}
	return nil
}

// ownerNote says what to do when the folder belongs to root, as which no service runs.
func ownerNote(dir string) string {
	st, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return ""
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || owner.Uid != 0 {
		return ""
	}
	return fmt.Sprintf("It belongs to root. Give it to the user that runs ampcio before you start it: chown -R ampcio:ampcio %s", dir)
}
