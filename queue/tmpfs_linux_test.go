package queue

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	storage := filepath.Join(dir, "ampcio")
	acked, run := runAppender(t, child(t, "append", storage))
	if !strings.Contains(run, "no space left") {
		t.Errorf("run: %s", run)
	}
	// No ballast, so no start before there is space again; and then nothing is missing.
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"))
	checkAfterFailure(t, storage, acked)
}
