package queue

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	bolterrors "go.etcd.io/bbolt/errors"
)

// After a failed fsync bbolt would overwrite what the durable state needs, so nothing is tried again.
func TestOnlyAWriteThatFoundNoSpaceIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"a write":               {&os.PathError{Op: "write", Path: "x.db", Err: syscall.ENOSPC}, true},
		"a quota":               {fmt.Errorf("checkpoint: %w", &os.PathError{Op: "write", Path: "x.db", Err: syscall.EDQUOT}), true},
		"a rename":              {&os.LinkError{Op: "rename", Old: "a", New: "b", Err: syscall.ENOSPC}, true},
		"a file that is bound":  {bolterrors.ErrMaxSizeReached, true},
		"a transaction's fsync": {fmt.Errorf("checkpoint: %w", syscall.ENOSPC), false},
		"a write and an error":  {&os.PathError{Op: "write", Path: "x.db", Err: syscall.EIO}, false},
		"another error":         {errors.New("no space left on device"), false},
	} {
		if got := NoSpace(c.err); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
