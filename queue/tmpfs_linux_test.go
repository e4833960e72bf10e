package queue

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// smallDisk is a folder on a disk of its own, as long as the test runs. Only root can make one, and not in every container.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, size); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestAFullDisk(t *testing.T) {
	dir := smallDisk(t, "size=2m")
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
	dir := smallDisk(t, "size=16m")
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

// Where there is no room for what can be read of a ledger, one damaged dead letter keeps nobody from starting; and the
// first start that has room mends it.
func TestADamagedLedgerOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, "size=32m")
	storage := filepath.Join(dir, "ampcio")
	h, cs := mustOpen(t, options(storage), "p")
	for n := range 40 {
		h.append("a:" + noise(uint64(n), 30_000))
		mustClaim(t, cs["p"]).Finish([]Outcome{{Ending: Dead, Reason: "too_long"}})
	}
	must(t, cs["p"].Flush())
	h.close(cs)
	editLedger(t, storage, func(tx *bolt.Tx) { must(t, tx.Bucket(bucketDead).Put(seqKey(7), []byte("spoilt"))) })
	free, err := freeBytes(storage)
	must(t, err)
	filler := filepath.Join(dir, "filler")
	must(t, os.WriteFile(filler, make([]byte, free-400<<10), 0o600))

	h, cs = mustOpen(t, options(storage), "p")
	if away := cs["p"].SetAside(); away != nil || cs["p"].Unmended() == nil {
		t.Errorf("set aside %+v, unmended: %v", away, cs["p"].Unmended())
	}
	if left, err := freeBytes(storage); err != nil || left < 200<<10 {
		t.Errorf("%d bytes are free, %v", left, err)
	}
	h.append("a:1")
	mustClaim(t, cs["p"]).Finish(delivered(1))
	h.close(cs)

	must(t, os.Remove(filler))
	h, cs = mustOpen(t, options(storage), "p")
	defer h.close(cs)
	if st := mustStats(t, cs["p"]); cs["p"].SetAside() == nil || cs["p"].Unmended() != nil || st.Books.Dead != 39 || st.Books.Lost != 1 || st.Books.Delivered != 1 {
		t.Errorf("with room: set aside %+v, %+v", cs["p"].SetAside(), st.Books)
	}
}
