package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
)

// Which times of one sync are worth a word. A commit takes two of them, and an SDK waits
// ten seconds at most.
const (
	slowSync    = 50 * time.Millisecond
	hopelessFor = time.Second
	noDiskSync  = 20 * time.Microsecond // no disk is so fast
)

func (d *doctor) diskSpeed(ctx context.Context) {
	const check = "disk speed"
	dir := d.cfg.Storage.Dir
	if _, err := os.Stat(dir); err != nil {
		return // it is said already
	}
	if disk, err := diskOf(dir); err == nil && disk.kind != "" {
		verdict := warning
		if disk.lost {
			verdict = wrong
		}
		d.say(check, verdict, dir+" "+disk.kind, disk.todo)
	}
	took, err := d.tryDisk(ctx, dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.say(check, skipped, "you may not write into "+dir, "run this as root: sudo ampcio doctor")
		return
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		d.say(check, skipped, "the disk is full", "")
		return
	case errors.Is(err, syscall.EROFS):
		d.say(check, wrong, dir+" cannot be written to: the disk is read-only", "a broken disk becomes so by itself: dmesg | tail; mount | grep ' ro,'")
		return
	case err != nil:
		d.say(check, wrong, "a write to "+dir+" fails: "+err.Error(), "look at the disk: dmesg | tail")
		return
	case len(took) == 0:
		return
	}
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	commits := rounded(int64(max(1, time.Second/max(2*p50, time.Microsecond))))
	says := fmt.Sprintf("a sync takes %s, p99 %s: about %s commits/s, each with all that wait. Senders of 10 events, one after the other: about %s events/s; many at once: far more",
		milli(p50), milli(p99), humanize.Comma(commits), humanize.Comma(10*commits))
	verdict, todo := fine, ""
	switch {
	case p99 >= hopelessFor:
		verdict, todo = wrong, "find what keeps the disk busy (iostat -x 1), or use another; SDKs give up after 10 s and send again"
	case p99 >= slowSync:
		verdict, todo = warning, "find what else writes there (iostat -x 1); a cheap network disk is often so: take one with guaranteed IOPS"
	case p50 < noDiskSync:
		verdict = warning
		says += ". No disk is so fast"
		todo = "does a sync reach the disk? (mount options, a virtual machine's cache mode such as unsafe): else a power failure loses what was accepted"
	}
	f := d.say(check, verdict, says, todo)
	f.Exact = map[string]any{"syncs": len(took), "p50_us": p50.Microseconds(), "p99_us": p99.Microseconds(), "commits_per_second": commits}
}

// rounded is a number with two digits that count.
func rounded(n int64) int64 {
	unit := int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return n / unit * unit
}

func milli(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2g ms", max(float64(d.Microseconds())/1000, 0.001))
}

// diskSpace is a disk as a folder on it sees it.
type diskSpace struct {
	free, size       int64  // bytes
	files, freeFiles uint64 // inodes; 0 files = it makes them as it needs them
	kind, todo       string // what is wrong with this kind of disk, and what to do; "" = nothing
	lost             bool   // what is stored there does not last
}

// lowInodes is how few files may still be created before it is worth a word. ampcio
// needs some dozen.
const lowInodes = 1000

func (d *doctor) space(context.Context) {
	const check = "disk space"
	dir := d.cfg.Storage.Dir
	at := dir
	disk, err := diskOf(at)
	for errors.Is(err, fs.ErrNotExist) && at != "/" { // the first start makes it
		at = filepath.Dir(at)
		disk, err = diskOf(at)
	}
	if err != nil {
		d.say(check, skipped, "the disk of "+dir+" cannot be asked: "+err.Error(), "")
		return
	}
	free, size := disk.free, disk.size
	minFree, maxBytes, used := int64(d.cfg.Storage.MinFree), int64(d.cfg.Storage.MaxBytes), int64(0)
	full := ""
	if d.snap != nil {
		used, full = d.snap.Disk.Used, d.snap.Disk.Full
		if d.running {
			minFree, maxBytes = d.snap.Disk.MinFree, d.snap.Disk.Max
		}
	}
	bytes := func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
	says := fmt.Sprintf("%s of %s are free; ampcio uses %s of %s (max_bytes)", bytes(free), bytes(size), bytes(used), bytes(maxBytes))
	verdict, todo := fine, ""
	switch {
	case full != "":
		verdict, says, todo = wrong, "new events are refused: "+full, d.snap.Disk.Advice
	case free < minFree:
		verdict, says = wrong, fmt.Sprintf("%s are free, less than storage.min_free (%s): new events are refused", bytes(free), bytes(minFree))
		todo = fmt.Sprintf("free space (df -h %s), or lower storage.min_free, then: ampcio reload", dir)
	case free < 2*minFree:
		verdict, todo = warning, fmt.Sprintf("below %s free (storage.min_free) new events are refused: free space (df -h %s)", bytes(minFree), dir)
	case maxBytes > 0 && used > maxBytes/10*8:
		verdict, todo = warning, "at max_bytes new events are refused: see what waits (ampcio queue-stats), or raise storage.max_bytes, then: ampcio reload"
	case used+free-minFree < maxBytes:
		says += fmt.Sprintf("; the disk has room for %s of that before storage.min_free (%s) is met", bytes(used+free-minFree), bytes(minFree))
	}
	f := d.say(check, verdict, says, todo)
	f.Exact = map[string]any{"free_bytes": free, "size_bytes": size, "used_bytes": used, "max_bytes": maxBytes, "min_free_bytes": minFree}
	if disk.files == 0 {
		return // this file system makes them as it needs them
	}
	says = fmt.Sprintf("%s of %s are free", humanize.Comma(int64(disk.freeFiles)), humanize.Comma(int64(disk.files)))
	verdict, todo = fine, ""
	if disk.freeFiles < lowInodes {
		verdict, todo = warning, "no more files can be created soon, whatever space is free: df -i "+at
		if disk.freeFiles < 20 {
			verdict = wrong
		}
	}
	f = d.say("inodes", verdict, says, todo)
	f.Exact = map[string]any{"free": disk.freeFiles, "all": disk.files}
}

// fewFiles is how many files a daemon may open at least that keeps a connection for each
// sender.
const fewFiles = 4096

func (d *doctor) fileLimits(context.Context) {
	const check = "file limit"
	if d.pid == 0 {
		return // a stopped one has none
	}
	limits, err := os.Open(fmt.Sprintf("/proc/%d/limits", d.pid))
	if err != nil {
		d.say(check, skipped, "only root can see the daemon's limits", "")
		return
	}
	defer limits.Close()
	most := int64(-1)
	for s := bufio.NewScanner(limits); s.Scan(); {
		rest, ok := strings.CutPrefix(s.Text(), "Max open files")
		if soft := strings.Fields(rest); ok && len(soft) > 0 {
			if most, err = strconv.ParseInt(soft[0], 10, 64); err != nil {
				most = -1 // unlimited
			}
		}
	}
	if most < 0 {
		d.say(check, fine, "the daemon may open as many files as it likes", "")
		return
	}
	open := -1
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid)); err == nil {
		open = len(entries)
	}
	says := fmt.Sprintf("the daemon may open %s files", humanize.Comma(most))
	if open >= 0 {
		says += fmt.Sprintf(", and has %s open", humanize.Comma(int64(open)))
	}
	verdict, todo := fine, ""
	raise := "systemctl edit ampcio, [Service], LimitNOFILE=65536; then: systemctl restart ampcio"
	switch {
	case open >= 0 && int64(open) > most/10*9:
		verdict, todo = wrong, "connections are about to be refused: "+raise
	case most < fewFiles || open >= 0 && int64(open) > most/10*7:
		verdict, todo = warning, "each connection takes one: "+raise
	}
	f := d.say(check, verdict, says, todo)
	f.Exact = map[string]any{"limit": most, "open": open}
}

func ownerOf(info fs.FileInfo) (uint32, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Uid, true
}

func ownerName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
