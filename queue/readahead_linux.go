package queue

import (
	"os"

	"golang.org/x/sys/unix"
)

// readAhead asks for bytes of a file that are about to be read, and does not wait for them.
// What comes of it shows in the read.
func readAhead(f *os.File, at, bytes int64) {
	_ = unix.Fadvise(int(f.Fd()), at, bytes, unix.FADV_WILLNEED)
}
