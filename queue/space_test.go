package queue

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// storage.dir may be a link to a larger disk: what is behind it counts for max_bytes as it does elsewhere.
func TestMaxBytesHoldsWhereTheFolderIsALink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "storage")
	must(t, os.Symlink(t.TempDir(), link))
	o := options(link)
	o.RotateBytes = 128 << 10
	h, cs := mustOpen(t, o, "p")
	defer h.close(cs)
	h.fill("app", 200, 400)
	used := h.log.Stats().Used
	if used < 200*400 {
		t.Errorf("%d bytes are used, after 200 records of 400", used)
	}
	tight := o
	tight.MaxBytes = used
	h.log.SetLimits(tight)
	eventually(t, "it refuses", func() bool { return isFull(h.log.Append(context.Background(), batch("a:1"))) })
}
