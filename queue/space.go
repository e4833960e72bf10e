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
// The lock ends with the process, however it ends.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("storage folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(f.Name())
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by process %s: %w", dir, strings.TrimSpace(string(holder)), ErrLocked)
		}
		return nil, fmt.Errorf("lock storage folder %s: %w", dir, err)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("storage folder: %w", err), f.Close())
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// diskSpace answers whether the storage may take more. It is the committer's.
type diskSpace struct {
	dir               string
	maxBytes, minFree int64
	used              int64
	usedAt            time.Time
}

// usedFor is how long a walk over the folder is believed; what was appended since
// is added, so that a burst cannot run past the cap unseen.
const usedFor = 250 * time.Millisecond

// full says why more bytes must not be stored now; nil when they may.
func (d *diskSpace) full(more int64) *FullError {
	if d.maxBytes > 0 {
		if since := time.Since(d.usedAt); since > usedFor {
			d.used, d.usedAt = folderBytes(d.dir), time.Now()
		}
		if d.used+more > d.maxBytes {
			return &FullError{RetryAfter: 30 * time.Second, Reason: fmt.Sprintf("%s used of storage.max_bytes %s",
				humanize.IBytes(uint64(d.used)), humanize.IBytes(uint64(d.maxBytes)))}
		}
		d.used += more
	}
	free, err := freeBytes(d.dir)
	if err != nil {
		return &FullError{RetryAfter: 30 * time.Second, Reason: "free space cannot be read: " + err.Error()}
	}
	// Twice: bbolt writes the pages around the data anew with each commit.
	if free-2*more < d.minFree {
		return &FullError{RetryAfter: 30 * time.Second, Reason: fmt.Sprintf("%s free on the disk of storage.dir, storage.min_free is %s",
			humanize.IBytes(uint64(free)), humanize.IBytes(uint64(d.minFree)))}
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

// folderBytes is what the files below dir occupy. Files that vanish meanwhile count nothing.
func folderBytes(dir string) (sum int64) {
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if b, err := diskBytes(path); err == nil {
				sum += b
			}
		}
		return nil
	})
	return sum
}

// Hold registers a holder of the log: no file with a record behind upTo is deleted
// before the holder has released it. It is called before Run, or with a position
// at the tail. A holder that knows of a sequence behind the tail, as after the log
// was restored from an older copy, keeps that sequence from being used again.
func (l *Log) Hold(holder string, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[holder] = upTo
}

// Release says that the holder needs nothing at or below upTo any more, and that
// it will still know so after a power cut.
func (l *Log) Release(holder string, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[holder] = max(l.holders[holder], upTo)
}

// Forget removes a holder.
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
			l.clean(false)
		}
	}
}

// pressure deletes every file that is kept only for later use: space is needed now.
func (l *Log) pressure() {
	if l.clean(true) {
		l.disk.usedAt = time.Time{}
	}
}

// clean deletes what may go and says whether anything went. The file that is
// written stays.
func (l *Log) clean(needSpace bool) bool {
	l.mu.Lock()
	done := l.tail
	for _, upTo := range l.holders {
		done = min(done, upTo)
	}
	// free counts the files, from the oldest, whose last record is at or below done.
	free, keptBytes := 0, int64(0)
	for free < len(l.files)-1 && l.files[free+1].first-1 <= done {
		keptBytes += l.files[free].bytes.Load()
		free++
	}
	drop := 0
	for drop < free {
		f := l.files[drop]
		young := false
		if st, err := os.Stat(f.path); err == nil {
			young = l.o.Now().Sub(st.ModTime()) < l.o.Keep
		}
		if young && keptBytes <= l.o.KeepBytes && !needSpace {
			break
		}
		keptBytes -= f.bytes.Load()
		drop++
	}
	gone := l.files[:drop:drop]
	l.files = l.files[drop:]
	l.mu.Unlock()
	for _, f := range gone {
		// A file that cannot be removed is found again, and removed, at the next start.
		f.remove(filepath.Join(l.o.Dir, "damaged"))
	}
	if drop > 0 {
		syncDir(l.dir)
	}
	return drop > 0
}
