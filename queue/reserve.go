package queue

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	bolterrors "go.etcd.io/bbolt/errors"
)

// The reserve is a file of zeros in the storage folder. When another program has
// filled the disk to the last byte it is given up, so that ledgers can be written and
// deliveries, which free the log's files, go on; once there is space it comes back.
// It is no file that anything is read from: a crash at any point leaves it or not.
const (
	reserveName  = "reserve"
	reserveBytes = 4 << 20
)

// GiveReserve gives the reserve up and says whether there was one: whoever could not
// write for lack of space may try again. Safe for concurrent use.
func (l *Log) GiveReserve() bool {
	return os.Remove(filepath.Join(l.o.Dir, reserveName)) == nil
}

// keepReserve makes the reserve where there is none, when there is space for it
// beside what has to stay free. What it could not write it tries again later.
func (l *Log) keepReserve() {
	path := filepath.Join(l.o.Dir, reserveName)
	if exists(path) {
		return
	}
	free, err := freeBytes(l.o.Dir)
	if err != nil || free < l.limits.Load().MinFree+2*reserveBytes {
		return
	}
	if os.WriteFile(path+newSuffix, make([]byte, reserveBytes), 0o600) != nil || os.Rename(path+newSuffix, path) != nil {
		os.Remove(path + newSuffix)
	}
}

// NoSpace says that a write failed since the disk, or a quota on it, is full. Unlike
// after other errors, going on is safe: what was to be written is still wanted, and
// is written again to the same keys.
//
// A transaction's fsync that fails is no such error, whatever it names. bbolt goes on
// from what it wrote last, durable or not, and so overwrites pages that the durable
// state still needs: a power cut would then leave a damaged file. bbolt gives the error
// of an fsync bare, and that of a write with the path. Behind a meta page that was not
// written (Unknown) the file has to be opened anew before it is written to.
func NoSpace(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		return true
	}
	return (errors.As(err, &path) || errors.As(err, &link)) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
}
