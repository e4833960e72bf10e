package queue

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	bolt "go.etcd.io/bbolt"
)

// A backup is one tar of what a storage folder holds, with a manifest as its last entry:
// one that was cut off is told by that. What is in it comes in this order:
//
//	sync/   the ledgers, each as of one transaction
//	        forgotten.jsonl (tombstone.go)
//	        users.db and the like, which the caller adds
//	log/    the files of the log, oldest first; the newest as of one transaction
//	manifest.json
//
// The log comes last, so whatever a ledger or users.db knows of the log is in it. What
// ended after its ledger was copied is pending in the backup: it is sent again, under the
// same ids. While a backup is made, the log keeps the files that are still to be copied.
const (
	backupFormat = 1
	manifestName = "manifest.json"
)

// Manifest is what a backup says of itself.
type Manifest struct {
	Format  int            `json:"format"`
	Version string         `json:"version"` // of the ampcio that made it
	Time    time.Time      `json:"time"`
	Tail    uint64         `json:"tail"` // the log's last record
	Syncs   []ManifestSync `json:"syncs"`
	Files   []ManifestFile `json:"files"` // all of them, in the order of the tar
}

// ManifestSync is where a ledger stands in a backup. One that is damaged is not among them.
type ManifestSync struct {
	Name    string `json:"name"`
	Project string `json:"project"`
	Low     uint64 `json:"low"`     // every record up to here has ended, or is in the side place
	Pending uint64 `json:"pending"` // by the ledger's counts
}

// ManifestFile is one file of a backup.
type ManifestFile struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// BackupOptions of a backup.
type BackupOptions struct {
	Version string
	Now     func() time.Time
	// Consumers calls copy with all consumers that are open, and sees to it that none is
	// opened or closed meanwhile. It is not called for a backup of files.
	Consumers func(copy func([]*Consumer) error) error
	// Others, if set, adds what is neither a ledger nor of the log.
	Others func(*BackupWriter) error
}

// BackupWriter writes a backup. It is for one goroutine.
type BackupWriter struct {
	ctx      context.Context
	tw       *tar.Writer
	dir      string
	minFree  int64
	manifest Manifest
	states   []ledgerState // of manifest.Syncs
	end      logEnd
}

func newBackupWriter(ctx context.Context, w io.Writer, dir string, minFree int64, o BackupOptions) *BackupWriter {
	b := &BackupWriter{ctx: ctx, tw: tar.NewWriter(w), dir: dir, minFree: minFree}
	b.manifest = Manifest{Format: backupFormat, Version: o.Version, Time: o.Now().UTC().Truncate(time.Second), Syncs: []ManifestSync{}, Files: []ManifestFile{}}
	return b
}

// Backup writes a backup of the running storage to w. Appends and deliveries go on,
// however slowly w takes it: ledgers are copied first, into files without a name in the
// storage folder, so that no transaction on them lasts.
func (l *Log) Backup(ctx context.Context, w io.Writer, o BackupOptions) (Manifest, error) {
	b := newBackupWriter(ctx, w, l.o.Dir, l.limits.Load().MinFree, o)
	l.backups.RLock()
	defer l.backups.RUnlock()
	letGo := l.holdFor("a backup", 0)
	defer func() { letGo() }()
	if err := b.addLedgers(o); err != nil {
		return b.manifest, fmt.Errorf("back up the ledgers: %w", err)
	}
	// Nobody is being forgotten meanwhile.
	if err := b.AddFile(tombstoneFile); err != nil {
		return b.manifest, fmt.Errorf("back up: %w", err)
	}
	if o.Others != nil {
		if err := o.Others(b); err != nil {
			return b.manifest, fmt.Errorf("back up: %w", err)
		}
	}
	files := l.list()
	for i, f := range files {
		var err error
		if i < len(files)-1 {
			err = b.addPath(logEntry(f), f.path)
			before := letGo
			letGo = l.holdFor("a backup", files[i+1].first-1)
			before()
		} else {
			err = b.addNewest(f)
		}
		if err != nil {
			return b.manifest, fmt.Errorf("back up the log: %w", err)
		}
	}
	return b.close()
}

// BackupFiles writes a backup of a folder that no process uses: ErrLocked when one does.
func BackupFiles(ctx context.Context, dir string, w io.Writer, o BackupOptions) (Manifest, error) {
	lock, err := lockForLook(dir)
	if err != nil {
		return Manifest{}, err
	}
	defer lock.Close() // nil is harmless
	b := newBackupWriter(ctx, w, dir, 0, o)
	add := func(folder string) error {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			name := folder + "/" + e.Name()
			if err == nil && isBackupName(name) {
				err = b.AddFile(name)
			}
		}
		return err
	}
	err = add("sync")
	if err == nil {
		err = b.AddFile(tombstoneFile)
	}
	if err == nil && o.Others != nil {
		err = o.Others(b)
	}
	if err == nil {
		err = add("log")
	}
	if err != nil {
		return b.manifest, fmt.Errorf("back up: %w", err)
	}
	b.lookAt(dir)
	return b.close()
}

// lookAt learns from the files what the manifest says; what is damaged says nothing.
func (b *BackupWriter) lookAt(dir string) {
	files, _ := listLog(filepath.Join(dir, "log"))
	l := newLog(Options{Dir: dir})
	l.files = files
	b.end = l.storedEnd(len(files))
	for _, f := range files {
		f.close()
	}
	names, _ := Ledgers(dir)
	for _, name := range names {
		if s, err := peekLedger(dir, name); err == nil {
			b.noteLedger(name, s)
		}
	}
}

func (b *BackupWriter) noteLedger(name string, s ledgerState) {
	b.manifest.Syncs = append(b.manifest.Syncs, ManifestSync{Name: name, Project: s.project, Low: s.low})
	b.states = append(b.states, s)
}

func logEntry(f *logFile) string { return "log/" + filepath.Base(f.path) }

// addLedgers copies all ledgers, while none is opened or closed, and then adds them.
func (b *BackupWriter) addLedgers(o BackupOptions) error {
	copies := map[string]*os.File{}
	defer func() {
		for _, f := range copies {
			f.Close()
		}
	}()
	err := o.Consumers(func(consumers []*Consumer) error {
		names, err := Ledgers(b.dir)
		if err != nil {
			return err
		}
		for _, c := range consumers {
			// Otherwise more would be sent again; where the disk is full it is.
			if err := c.Flush(); err != nil && !NoSpace(err) {
				return err
			}
			var s ledgerState
			c.looking.RLock() // it may last
			copied, err := b.copyDB(c.o.Name+".db", c.view, func(tx *bolt.Tx) (err error) {
				s, err = stateOf(tx)
				return err
			})
			c.looking.RUnlock()
			if err != nil {
				return fmt.Errorf("sync %s: %w", c.o.Name, err)
			}
			copies[c.o.Name] = copied
			b.noteLedger(c.o.Name, s)
		}
		for _, name := range names { // those that nobody has open
			if copies[name] == nil {
				if copies[name], err = os.Open(ledgerPath(b.dir, name)); err != nil {
					return err
				}
				if s, err := peekLedger(b.dir, name); err == nil {
					b.noteLedger(name, s)
				}
			}
		}
		return nil
	})
	for _, name := range sortedKeys(copies) {
		if err == nil {
			err = b.add("sync/"+name+".db", copies[name])
		}
		if err == nil {
			err = b.addMarker("sync/"+name+".db", ledgerPath(b.dir, name))
		}
	}
	return err
}

// AddDB adds a bbolt file that is in use, as of one transaction.
func (b *BackupWriter) AddDB(name string, db *bolt.DB) error {
	view := func(look func(*bolt.Tx) error) error { return Guard(func() error { return db.View(look) }) }
	copied, err := b.copyDB(name, view, func(*bolt.Tx) error { return nil })
	if err != nil {
		return err
	}
	defer copied.Close()
	return b.add(name, copied)
}

// copyDB copies a bbolt file as of one transaction, in which it calls look.
func (b *BackupWriter) copyDB(name string, view func(func(*bolt.Tx) error) error, look func(*bolt.Tx) error) (*os.File, error) {
	to, err := os.CreateTemp(b.dir, "backup-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(to.Name()) // it is there until it is closed, or the process ends
	if err == nil {
		err = view(func(tx *bolt.Tx) error {
			if err := errors.Join(b.hasRoom(tx.Size(), name), look(tx)); err != nil {
				return err
			}
			_, err := tx.WriteTo(stoppable{b.ctx, to})
			return err
		})
	}
	if err == nil {
		_, err = to.Seek(0, io.SeekStart)
	}
	if gone := b.ctx.Err(); err != nil && gone != nil {
		err = gone // bbolt makes a text of it
	}
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

func (b *BackupWriter) hasRoom(bytes int64, name string) error {
	free, err := freeBytes(b.dir)
	if err != nil {
		return err
	}
	if free-bytes < b.minFree+2*reserveBytes {
		return &FullError{Reason: fmt.Sprintf("a copy of %s (%s) is needed for a moment, and %s are free on the disk of storage.dir: make room, or stop ampcio first",
			name, humanize.IBytes(uint64(bytes)), humanize.IBytes(uint64(free)))}
	}
	return nil
}

// addNewest adds the file that is written, or was a moment ago. Nothing else is kept
// from it: what the log writes meanwhile only goes to new pages.
func (b *BackupWriter) addNewest(f *logFile) error {
	db, ok, err := f.acquire()
	if !ok || errors.Is(err, ErrDamaged) {
		return b.addPath(logEntry(f), f.path)
	}
	if err != nil {
		return err
	}
	defer f.release()
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			if v, err := unseal(keyEnd, tx.Bucket(bucketMeta).Get(keyEnd)); err == nil {
				b.end, _ = readLogEnd(v)
			}
			return b.addFrom(logEntry(f), tx.Size(), func(w io.Writer) error {
				_, err := tx.WriteTo(w)
				return err
			})
		})
	})
	if err != nil {
		return err
	}
	return b.addMarker(logEntry(f), f.path)
}

// AddFile adds a file of the storage folder that nobody writes in place; one that is not
// there is passed over. Of a bbolt file the empty end is left out.
func (b *BackupWriter) AddFile(name string) error {
	err := b.addPath(name, filepath.Join(b.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *BackupWriter) addPath(name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := b.add(name, f); err != nil {
		return err
	}
	return b.addMarker(name, path)
}

// addMarker adds the marker by which damage that was met in a file is remembered.
func (b *BackupWriter) addMarker(name, path string) error {
	if suspected(path) == nil || !isBackupName(name+suspectSuffix) {
		return nil
	}
	return b.addFrom(name+suspectSuffix, 0, func(io.Writer) error { return nil })
}

func (b *BackupWriter) add(name string, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if m, err := newestMeta(f); err == nil && strings.HasSuffix(name, ".db") {
		size = min(size, m.pages*m.pageSize)
	}
	return b.addFrom(name, size, func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(f, 0, size))
		return err
	})
}

func (b *BackupWriter) addFrom(name string, size int64, write func(io.Writer) error) error {
	for _, f := range b.manifest.Files {
		if f.Name == name { // a marker, in a backup of files
			return nil
		}
	}
	if !isBackupName(name) {
		return fmt.Errorf("%q has no place in a backup", name)
	}
	sum := sha256.New()
	err := b.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: b.manifest.Time, Format: tar.FormatPAX})
	if err == nil {
		err = write(stoppable{b.ctx, io.MultiWriter(b.tw, sum)})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b.manifest.Files = append(b.manifest.Files, ManifestFile{Name: name, Bytes: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return b.tw.Flush() // an error when it was shorter
}

// close writes the manifest, behind it a line with its own checksum, and the tar's end.
func (b *BackupWriter) close() (Manifest, error) {
	b.manifest.Tail = b.end.seq
	for i, s := range b.states {
		books := booksOf(&s, b.end.counts[s.project], 0)
		b.manifest.Syncs[i].Pending = uint64(max(books.Difference(), 0))
	}
	text, err := json.Marshal(&b.manifest)
	if err != nil {
		return b.manifest, err
	}
	text = append(text, '\n')
	text = fmt.Appendf(text, "%x\n", sha256.Sum256(text))
	err = b.tw.WriteHeader(&tar.Header{Name: manifestName, Mode: 0o600, Size: int64(len(text)), ModTime: b.manifest.Time, Format: tar.FormatPAX})
	if err == nil {
		_, err = b.tw.Write(text)
	}
	return b.manifest, errors.Join(err, b.tw.Close())
}

// backupName is what may be in a backup, and so what a restore creates.
var backupName = regexp.MustCompile(`^(sync/(relay\.)?[a-z0-9_-]{1,32}\.db|log/[0-9]{20}\.db)(\.suspect|\.salvage)?$|^[a-z0-9_][a-z0-9_.-]*$`)

func isBackupName(name string) bool { return backupName.MatchString(name) && name != manifestName }

// stoppable ends a long copy when ctx has ended.
type stoppable struct {
	ctx context.Context
	w   io.Writer
}

func (s stoppable) Write(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(b)
}
