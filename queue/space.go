package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// lockFolder takes the storage folder for this process, until the file is closed.
// The lock ends with the process, however it ends. Somebody who only looks (Inspect)
// is waited for.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("storage folder: %w", err)
	}
	if err := takeFolder(f); err != nil {
		holder, _ := os.ReadFile(f.Name())
		f.Close()
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("%s is in use by process %s: %w", dir, strings.TrimSpace(string(holder)), ErrLocked)
		}
		return nil, fmt.Errorf("storage folder %s: %w", dir, err)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil && !NoSpace(err) { // it is for people only
		return nil, errors.Join(fmt.Errorf("storage folder: %w", err), f.Close())
	}
	return f, nil
}

func takeFolder(f *os.File) error {
	err := lockFile(f, unix.LOCK_EX, 0)
	if !errors.Is(err, ErrLocked) {
		return err
	}
	// Another daemon holds it alone; one who looks shares it.
	if err := lockFile(f, unix.LOCK_SH, 0); err != nil {
		return err
	}
	return lockFile(f, unix.LOCK_EX, lockWait)
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// diskSpace answers whether the storage may take more. It is the resolver's.
type diskSpace struct {
	dir               string
	maxBytes, minFree int64
	used              int64
	usedAt            time.Time
	usedFor           time.Duration // how long a walk over the folder is believed
	spare             int64         // what would be deleted to make room
}

// walkFor is how long a walk over the folder is believed; what was appended since
// is added, so that a burst cannot run past the cap unseen.
const walkFor = 250 * time.Millisecond

// full says why more bytes must not be stored now; nil when they may. unwritten are those
// of which it has said so before, and that are not on the disk yet.
func (d *diskSpace) full(more, unwritten int64) *FullError {
	if d.maxBytes > 0 {
		if since := time.Since(d.usedAt); since > d.usedFor {
			d.used, d.usedAt = folderBytes(d.dir)+unwritten, time.Now()
		}
		if d.used-d.spare+more > d.maxBytes {
			return &FullError{RetryAfter: 30 * time.Second, Reason: fmt.Sprintf("%s used of storage.max_bytes %s",
				humanize.IBytes(uint64(d.used)), humanize.IBytes(uint64(d.maxBytes)))}
		}
		d.used += more
	}
	free, err := freeBytes(d.dir)
	if err != nil {
		return &FullError{RetryAfter: 30 * time.Second, Reason: "free space cannot be read: " + err.Error()}
	}
	// What the reserve has given is for the ledgers: taken by new events, it would leave
	// nothing for the checkpoints that end old ones, and the disk would stay full for good.
	keep, forLedgers := d.minFree, ""
	if !exists(filepath.Join(d.dir, reserveName)) {
		keep, forLedgers = keep+reserveBytes, ", and "+humanize.IBytes(reserveBytes)+" are kept for what is being delivered"
	}
	// Twice: bbolt writes the pages around the data anew with each commit.
	if free+d.spare-2*(more+unwritten) < keep {
		return &FullError{RetryAfter: 30 * time.Second, Reason: fmt.Sprintf("%s free on the disk of storage.dir, storage.min_free is %s%s",
			humanize.IBytes(uint64(free)), humanize.IBytes(uint64(d.minFree)), forLedgers)}
	}
	return nil
}

// freeBytes is what an ordinary user may still write on the file system of dir.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// folderBytes is what the files below dir occupy, the reserve and trials apart. Files that vanish meanwhile count nothing.
func folderBytes(dir string) (sum int64) {
	// With the slash also what a link leads to is walked: storage.dir may be one, to a larger disk.
	filepath.WalkDir(dir+string(filepath.Separator), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path == filepath.Join(dir, TrialsFolder) {
			return fs.SkipDir // what a trial writes never makes new events refused
		}
		if err == nil && e.Type().IsRegular() && e.Name() != reserveName {
			if b, err := diskBytes(path); err == nil {
				sum += b
			}
		}
		return nil
	})
	return sum
}

// roomFor says whether more bytes may be written beside the log, for what could as well
// stay in it. The bounds bind what is new; beyond them there is some room for this, since
// where it does not leave the log it pins files there, and nothing would ever become free.
func (l *Log) roomFor(more int64) bool {
	limits := l.limits.Load()
	free, err := freeBytes(l.o.Dir)
	return err == nil && free-2*more > limits.MinFree/2+2*reserveBytes && (limits.MaxBytes == 0 || folderBytes(l.o.Dir)+more < limits.MaxBytes+limits.MaxBytes/16+4*reserveBytes)
}

// Crowded says why somebody who can wait should not store anything now; "" = they may. Half of MaxBytes, and as much
// again as MinFree, are left to those who cannot wait. Files that are kept for later use do not count: they go first.
func (l *Log) Crowded() string {
	limits := l.limits.Load()
	l.mu.Lock()
	kept := int64(0)
	for _, f := range l.files[:l.released()] {
		kept += f.bytes.Load()
	}
	l.mu.Unlock()
	if used := folderBytes(l.o.Dir) - kept; limits.MaxBytes > 0 && used > limits.MaxBytes/2 {
		return fmt.Sprintf("%s of storage.max_bytes %s are used", humanize.IBytes(uint64(used)), humanize.IBytes(uint64(limits.MaxBytes)))
	}
	if free, err := freeBytes(l.o.Dir); err == nil && free+kept < 2*limits.MinFree {
		return fmt.Sprintf("%s are free on the disk of storage.dir, and storage.min_free is %s", humanize.IBytes(uint64(free)), humanize.IBytes(uint64(limits.MinFree)))
	}
	return ""
}

// Hold registers a holder of the log: no file with a record behind upTo is deleted
// before the holder has released it. It is called before Run, or with a position at
// the tail: what was deleted before is not brought back.
func (l *Log) Hold(holder string, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[holder] = upTo
}

// Release says that the holder needs nothing at or below upTo any more, and that
// it will still know so after a power cut. Of a holder that has not registered it
// changes nothing.
func (l *Log) Release(holder string, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held, ok := l.holders[holder]; ok {
		l.holders[holder] = max(held, upTo)
	}
}

// Forget removes a holder: it keeps no file any more.
func (l *Log) Forget(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.holders, holder)
}

// keepHouse deletes files that no holder needs and no rule keeps, about once a second.
func (l *Log) keepHouse(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.clean()
			l.dropTombstones()
			l.keepReserve()
		}
	}
}

// clean deletes the files that no holder needs and no rule keeps. A file that cannot
// be removed is found again, and removed, after the next start.
func (l *Log) clean() {
	limits := l.limits.Load()
	l.mu.Lock()
	released := l.released()
	bytes := int64(0)
	for _, f := range l.files[:released] {
		bytes += f.bytes.Load()
	}
	drop := 0
	for drop < released && (bytes > limits.KeepBytes || l.age(l.files[drop]) >= limits.Keep) {
		bytes -= l.files[drop].bytes.Load()
		drop++
	}
	l.drop(drop)
}

// dropOldestKept deletes the oldest file that stays only for later use, because space
// is needed now, and says whether there was one.
func (l *Log) dropOldestKept() bool {
	l.mu.Lock()
	n := min(l.released(), 1)
	l.drop(n)
	l.disk.usedAt = time.Time{}
	return n > 0
}

// drop deletes the oldest n files. The caller holds l.mu, which drop gives up.
func (l *Log) drop(n int) {
	gone := l.files[:n:n]
	l.files = l.files[n:]
	l.mu.Unlock()
	for _, f := range gone {
		l.retract(f)
	}
	if n > 0 {
		syncDir(l.dir)
	}
}

// released counts the files, from the oldest, whose last record is at or below every
// holder's mark. The one that is written is never among them. The caller holds l.mu.
func (l *Log) released() int {
	done := l.end.seq
	for _, upTo := range l.holders {
		done = min(done, upTo)
	}
	n := 0
	for n < len(l.files)-1 && l.files[n+1].first-1 <= done {
		n++
	}
	return n
}

// age is how long ago the file was last written.
func (l *Log) age(f *logFile) time.Duration {
	st, err := os.Stat(f.path)
	if err != nil {
		return l.limits.Load().Keep
	}
	return l.o.Now().Sub(st.ModTime())
}
