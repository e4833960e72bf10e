package lossy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// AckFile is a file of each life that is none of the disk's: lines that a program writes into it are acknowledgements,
// in one order with what it did to the disk. Each line is one write.
const AckFile = "ack"

// Mount is where lives are led. The process that serves it must never use it: a page fault or a stop of the world, while
// the thread that would serve waits, is a deadlock. Programs that use it are processes of their own.
type Mount struct {
	dir    string
	server *fuse.Server

	mu    sync.Mutex
	lives map[string]*Life
	began int
}

// NewMount mounts a lossy file system at dir, which is made.
func NewMount(dir string) (*Mount, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, lives: map[string]*Life{}}
	hour := time.Hour // whatever comes to have a name, or has none any more, does so through the kernel: it need not ask again
	server, err := fs.Mount(dir, &top{m: m}, &fs.Options{
		EntryTimeout: &hour, AttrTimeout: &hour, NegativeTimeout: &hour,
		MountOptions: fuse.MountOptions{FsName: "lossy", Name: "lossy", DirectMountStrict: true, MaxWrite: 1 << 20, DisableXAttrs: true, IgnoreSecurityLabels: true, DisableSplice: true},
	})
	if err != nil {
		return nil, fmt.Errorf("mount a lossy file system: %w", err)
	}
	m.server = server
	return m, nil
}

// Close takes the mount away, also from processes that still use it.
func (m *Mount) Close() error {
	m.mu.Lock()
	for _, l := range m.lives {
		l.Cut()
	}
	m.mu.Unlock()
	// By force: a container that was started meanwhile may have a copy of the mount, a loop device or a process that was killed
	// may still hold a file; none of them is waited for.
	if err := syscall.Unmount(m.dir, syscall.MNT_FORCE|syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); m.server.Wait() }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s was unmounted, and still has requests", m.dir)
	}
	return os.Remove(m.dir)
}

// Life is a disk from one start of the power to its cut: a folder of the mount, of which no inode is ever used again,
// since the kernel may still have its old pages.
type Life struct {
	Path string // where programs find it

	number uint64
	cut    chan struct{}

	mu       sync.Mutex
	disk     *Disk
	next     uint64 // file or folder
	attrs    map[uint64]attr
	dead     bool
	readOnly bool
	capacity int64
	fault    *Fault
	cutAt    int
	// cutFile is the file in whose cutAtOfFile-th operation from now the power goes; 0 = in none.
	cutFile     uint64
	cutAtOfFile int
	ops         int
	counts      [Ack + 1]int
	recording   bool
	log         []Op
	ack         []byte // a line that has not ended yet
	acks        int
	onAck       func(line string)
}

type attr struct {
	mode     uint32
	uid, gid uint32
	changed  time.Time
}

// LifeOptions of a life.
type LifeOptions struct {
	Strict bool              // the directories: see Disk
	Record bool              // keep a log of all operations
	OnAck  func(line string) // called for each line of AckFile, before the program that wrote it goes on
}

// Begin begins a life with what an image has.
func (m *Mount) Begin(im Image, o LifeOptions) *Life {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := fmt.Sprintf("e%d", m.began)
	m.began++
	l := &Life{Path: filepath.Join(m.dir, name), number: uint64(m.began), cut: make(chan struct{}), disk: NewDisk(o.Strict), attrs: map[uint64]attr{}, recording: o.Record, onAck: o.OnAck}
	l.disk.From(im)
	l.next = Root + uint64(len(im.Files)+len(im.Folders))
	for n, old := range m.lives {
		old.mu.Lock()
		if old.dead {
			delete(m.lives, n)
		}
		old.mu.Unlock()
	}
	m.lives[name] = l
	return l
}

// Image is what a cut would leave now, or has left.
func (l *Life) Image(r *rand.Rand, way Way, survive float64) Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disk.Image(r, way, survive)
}

// Unsynced is how many operations are not durable.
func (l *Life) Unsynced() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disk.Unsynced()
}

// Log is what was done, when it is recorded. NewDisk, From with the life's first image, and Apply do it again.
func (l *Life) Log() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log[:len(l.log):len(l.log)]
}

// Acks is how many lines were written into AckFile.
func (l *Life) Acks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// acknowledge takes what was written into AckFile: a write that crosses a page arrives as two.
func (l *Life) acknowledge(b []byte) syscall.Errno {
	if l.dead {
		return syscall.EIO
	}
	l.ack = append(l.ack, b...)
	for {
		line, rest, whole := bytes.Cut(l.ack, []byte("\n"))
		if !whole {
			return 0
		}
		l.ack = rest
		l.acks++
		if l.recording {
			l.log = append(l.log, Op{Kind: Ack, Data: bytes.Clone(line)})
		}
		if l.onAck != nil {
			l.onAck(string(line))
		}
	}
}
