package queue

import (
	"context"
	"errors"
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

// What the reserve gives is for the ledgers. New events that took it would leave no space for the checkpoint that
// ends old ones, and the disk would stay full for good.
func TestNewEventsDoNotTakeWhatTheReserveGave(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	storage := filepath.Join(dir, "ampcio")
	h, cs := mustOpen(t, options(storage))
	defer h.close(cs)
	var full *FullError
	for n := 0; ; n++ {
		if err := h.log.Append(context.Background(), batch("a:"+noise(uint64(n), 20_000))); errors.As(err, &full) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !h.log.GiveReserve() {
		t.Fatal("there was no reserve")
	}
	before, err := freeBytes(storage)
	must(t, err)
	for range 3 {
		if err := h.log.Append(context.Background(), batch("a:"+noise(0, 20_000))); !errors.As(err, &full) || !strings.Contains(err.Error(), "4.0 MiB are kept for what is being delivered") {
			t.Errorf("answered %v", err)
		}
	}
	if after, err := freeBytes(storage); after < min(before, reserveBytes) || err != nil {
		t.Errorf("%d bytes were free, now %d, %v", before, after, err)
	}
}
