package lossy

import (
	"slices"
	"strings"
	"syscall"
)

// Fault lets operations fail. What fails changes nothing.
type Fault struct {
	Kinds  []Kind // which are counted, and fail; none = all that change something
	N      int    // the how-manieth of them fails, from 1 on, counted from when the fault is set
	Sticky bool   // and all after it
	Errno  syscall.Errno
	// Forgets is for a Sync: what was not synced never will be, and is read all the same.
	Forgets bool
	// Nodes are the only files and folders of which operations fail; none = all.
	Nodes []uint64

	seen, fired int
	node        uint64 // of the file or folder that it met first
}

// meets counts an operation and says how it fails; 0 = it does not.
func (f *Fault) meets(o Op) syscall.Errno {
	if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, o.Kind) || len(f.Nodes) > 0 && !slices.Contains(f.Nodes, o.Node) {
		return 0
	}
	f.seen++
	if f.seen == f.N || f.Sticky && f.seen > f.N {
		if f.fired++; f.fired == 1 {
			f.node = o.Node
		}
		return f.Errno
	}
	return 0
}

// Inject sets the life's only fault; nil takes it away.
func (l *Life) Inject(f *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = nil
	if f != nil {
		set := *f
		l.fault = &set
	}
}

// Fired is how many operations failed by the fault that is set.
func (l *Life) Fired() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		return 0
	}
	return l.fault.fired
}

// Node is the number of what is at a path now; false when there is nothing.
func (l *Life) Node(path string) (id uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id = Root
	for name := range strings.SplitSeq(path, "/") {
		if id, _, ok = l.disk.Lookup(id, name); !ok {
			return 0, false
		}
	}
	return id, true
}

// Failed is the file or folder that the fault which is set has met first.
func (l *Life) Failed() (node uint64, fired bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil || l.fault.fired == 0 {
		return 0, false
	}
	return l.fault.node, true
}

// ReadOnly lets everything that would change the disk fail with EROFS, as after a remount.
func (l *Life) ReadOnly(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readOnly = yes
}

// SetCapacity bounds the bytes that all files occupy; beyond it there is ENOSPC. 0 = 64 GiB, which is never reached.
func (l *Life) SetCapacity(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.capacity = bytes
}

// Fill leaves so many bytes free, until SetCapacity is called again.
func (l *Life) Fill(free int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.capacity = max(1, l.disk.Used()+free)
}

// CutAt cuts the power in the n-th operation from now that changes something.
func (l *Life) CutAt(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutAt = l.ops + n
}

// CutAtFile cuts the power in the n-th operation from now on one file.
func (l *Life) CutAtFile(node uint64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutFile, l.cutAtOfFile = node, n
}

// Cut cuts the power now. Everything that is still asked of this life fails with EIO.
func (l *Life) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.die()
}

func (l *Life) die() {
	if !l.dead {
		l.dead = true
		close(l.cut)
	}
}

// Dead is closed when the power was cut.
func (l *Life) Dead() <-chan struct{} { return l.cut }

// Count is how many operations of these kinds there were; of all that change something, when none is named.
func (l *Life) Count(kinds ...Kind) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(kinds) == 0 {
		return l.ops
	}
	for _, k := range kinds {
		n += l.counts[k]
	}
	return n
}

// do does an operation that changes something, unless it is to fail. The lock is held.
func (l *Life) do(o Op) syscall.Errno {
	if l.dead {
		return syscall.EIO
	}
	l.ops++
	l.counts[o.Kind]++
	if l.readOnly {
		return syscall.EROFS
	}
	if l.fault != nil {
		if errno := l.fault.meets(o); errno != 0 {
			if l.fault.Forgets && o.Kind == Sync {
				o.Forgets = true
				l.apply(o)
			}
			return errno
		}
	}
	if o.Kind == Write {
		grows := o.Off + int64(len(o.Data)) - int64(len(l.disk.Content(o.Node).Data))
		if grows > 0 && l.capacity > 0 && l.disk.Used()+grows > l.capacity {
			return syscall.ENOSPC
		}
	}
	if o.Node == l.cutFile && l.cutAtOfFile > 0 {
		if l.cutAtOfFile--; l.cutAtOfFile == 0 {
			l.cutAt = l.ops
		}
	}
	if l.ops == l.cutAt {
		if o.Kind != Sync && o.Kind != SyncDir { // a sync that is cut has synced nothing; another may have come to the disk
			l.apply(o)
		}
		l.die()
		return syscall.EIO
	}
	l.apply(o)
	return 0
}

func (l *Life) apply(o Op) {
	l.disk.Apply(o)
	if l.recording {
		l.log = append(l.log, o)
	}
}
