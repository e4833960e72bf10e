package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// peerPID is the process that listens on a socket; 0 when that cannot be told.
func peerPID(socket string) int {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// clockIsKept says whether the kernel knows of somebody who keeps its clock right.
func clockIsKept() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t) // it asks for no change
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
}

func diskOf(path string) (d diskSpace, err error) {
	var fsys unix.Statfs_t
	if err := unix.Statfs(path, &fsys); err != nil {
		return d, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	d = diskSpace{free: int64(fsys.Bavail) * fsys.Bsize, size: int64(fsys.Blocks) * fsys.Bsize, files: fsys.Files, freeFiles: fsys.Ffree}
	switch uint32(fsys.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		d.kind, d.todo, d.lost = "is in memory (tmpfs): nothing of it survives a restart of the machine", "set storage.dir to a folder on a disk", true
	case unix.OVERLAYFS_SUPER_MAGIC:
		d.kind, d.todo = "is in a container's own layer (overlayfs), and goes when the container does", "mount a volume there"
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		d.kind, d.todo = "is on a network file system: locks and syncs are only as good as its server", "use a local disk"
	}
	return d, nil
}

// The disk is tried with a file that has no name and is gone with the process: syncs of
// pages that are there already, as bbolt writes them, with pauses, so that the daemon's
// own commits come between.
const (
	tryPage   = 4 << 10
	tryPages  = 64
	tryAtMost = 60
	tryFor    = 800 * time.Millisecond
	tryPause  = 2 * time.Millisecond
)

// trySyncs measures single syncs in a folder.
func trySyncs(ctx context.Context, dir string) (took []time.Duration, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	var f *os.File
	switch {
	case err == nil:
		f = os.NewFile(uintptr(fd), filepath.Join(dir, "(no name)"))
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT): // this file system knows no such files
		if f, err = os.CreateTemp(dir, ".doctor-"); err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	default:
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer f.Close()
	page := make([]byte, tryPage)
	for i := range tryPages {
		if _, err := f.WriteAt(page, int64(i)*tryPage); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	end := time.Now().Add(tryFor)
	for i := range tryAtMost {
		page[0] = byte(i)
		began := time.Now()
		if _, err := f.WriteAt(page, int64(i*7%tryPages)*tryPage); err != nil {
			return took, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
		if ctx.Err() != nil || time.Now().After(end) {
			break
		}
		time.Sleep(tryPause)
	}
	return took, nil
}
