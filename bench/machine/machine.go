// Package machine reads from /proc what a process and a disk have used.
package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the seconds that a process has computed, its own and the kernel's for it.
func CPU(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // USER_HZ is 100 wherever Go runs
}

// Anonymous is the bytes of memory that are backed by no file.
func Anonymous(pid int) int64 { return field(fmt.Sprintf("/proc/%d/status", pid), "RssAnon:") << 10 }

func field(file, name string) int64 {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// Descriptors is how many files and connections a process has open.
func Descriptors(pid int) int {
	all, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(all)
}

// Busy is the seconds that all cores together have been busy since the machine was started.
func Busy() (sum float64) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, word := range strings.Fields(line)[1:] {
		if v, err := strconv.ParseFloat(word, 64); err == nil && i != 3 && i != 4 && i < 8 { // neither idle nor waiting for disks
			sum += v / 100
		}
	}
	return sum
}

// Written is the bytes that the disk of dir was sent by anybody, journals included; of all disks where the one of dir is
// not known, as in an overlay.
func Written(dir string) (n int64, whose string) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil {
		whose = fmt.Sprintf("%d %d", unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	b, _ := os.ReadFile("/proc/diskstats")
	all := int64(0)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		sectors, _ := strconv.ParseInt(f[9], 10, 64)
		if f[0]+" "+f[1] == whose {
			return sectors * 512, f[2]
		}
		if _, err := os.Stat("/sys/block/" + f[2]); err == nil && !strings.HasPrefix(f[2], "loop") {
			all += sectors * 512
		}
	}
	return all, "all disks"
}

// Used is the bytes of disk that dir has, and how many files.
func Used(dir string) (n int64, files int) {
	// Files go while it looks: what is gone uses nothing.
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(path, &st) != nil {
			return nil
		}
		if n += st.Blocks * 512; !d.IsDir() {
			files++
		}
		return nil
	})
	return n, files
}

// Flush writes everything of dir's file system to its disk, so that bytes are counted in the run that made them.
func Flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// DropCaches forgets what memory holds of files. Only root can.
func DropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// OnDisk says that dir is no memory file system, where durability costs nothing.
func OnDisk(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && int64(st.Type) != unix.TMPFS_MAGIC && int64(st.Type) != unix.RAMFS_MAGIC
}

// Name is processor, cores, memory and kernel.
func Name() string {
	model := "unknown processor"
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Sprintf("%s, %d cores, %.0f GiB, %s %s", model, runtime.NumCPU(), float64(field("/proc/meminfo", "MemTotal:"))/(1<<20), unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]))
}

// Peak watches the anonymous memory of a process until Stop, which returns the most.
type Peak struct {
	most atomic.Int64
	end  chan struct{}
	done sync.WaitGroup
}

// Watch begins.
func Watch(pid int) *Peak {
	p := &Peak{end: make(chan struct{})}
	p.done.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			p.most.Store(max(p.most.Load(), Anonymous(pid)))
			select {
			case <-tick.C:
			case <-p.end:
				return
			}
		}
	})
	return p
}

// Stop ends watching. Bytes.
func (p *Peak) Stop() int64 {
	close(p.end)
	p.done.Wait()
	return p.most.Load()
}
