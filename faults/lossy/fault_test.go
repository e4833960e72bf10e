package lossy

import (
	"syscall"
	"testing"
)

// life is one without a mount.
func life(ops ...Op) *Life {
	l := &Life{cut: make(chan struct{}), disk: NewDisk(false)}
	for _, o := range ops {
		l.do(o)
	}
	return l
}

func dead(l *Life) bool {
	select {
	case <-l.Dead():
		return true
	default:
		return false
	}
}

func TestTheCutIsAmongTheOperationsOfOneFile(t *testing.T) {
	l := life(create("a", 2), create("b", 3))
	l.CutAtFile(3, 2)
	for _, o := range []Op{write(2, 0, "x"), syncTwo, write(3, 0, "x"), write(2, 1, "y"), syncTwo} {
		if errno := l.do(o); errno != 0 || dead(l) {
			t.Fatalf("%v: %v", o, errno)
		}
	}
	if errno := l.do(Op{Kind: Sync, Node: 3}); errno != syscall.EIO || !dead(l) {
		t.Errorf("%v", errno)
	}
}

func TestAFaultMeetsSomeFilesAlone(t *testing.T) {
	l := life(create("a", 2), create("b", 3))
	id, ok := l.Node("b")
	if !ok || id != 3 {
		t.Fatal(id, ok)
	}
	l.Inject(&Fault{Kinds: []Kind{Write}, N: 1, Sticky: true, Errno: syscall.ENOSPC, Nodes: []uint64{id}})
	if errno := l.do(write(2, 0, "x")); errno != 0 {
		t.Errorf("the other file: %v", errno)
	}
	if errno := l.do(write(3, 0, "x")); errno != syscall.ENOSPC {
		t.Errorf("%v", errno)
	}
	if node, fired := l.Failed(); node != 3 || !fired || l.Fired() != 1 {
		t.Errorf("%d %t", node, fired)
	}
}

// As on other disks: what counts is what was written, and what was removed counts no more.
func TestADiskIsFullOfWhatFilesOccupy(t *testing.T) {
	l := life(create("a", 2), create("b", 3), write(2, 0, "12345678"))
	l.Fill(4)
	for _, c := range []struct {
		o    Op
		want syscall.Errno
	}{
		{Op{Kind: Truncate, Node: 3, Off: 1 << 20}, 0}, // a hole
		{write(2, 4, "5678"), 0},                       // over what is there
		{write(3, 0, "12345"), syscall.ENOSPC},
		{write(3, 0, "1234"), 0},
		{write(3, 4, "5"), syscall.ENOSPC},
		{Op{Kind: Remove, Node: Root, Name: "a", Child: 2}, 0},
		{write(3, 4, "5"), 0},
	} {
		if errno := l.do(c.o); errno != c.want {
			t.Errorf("%v: %v, want %v", c.o, errno, c.want)
		}
	}
}
