package lossy

import (
	"context"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// top is the mount's outermost folder, which has the lives.
type top struct {
	fs.Inode
	m *Mount
}

func (t *top) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	t.m.mu.Lock()
	l := t.m.lives[name]
	t.m.mu.Unlock()
	if l == nil {
		out.SetEntryTimeout(time.Nanosecond) // a life that the kernel does not know of may begin yet
		return nil, syscall.ENOENT
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inode(ctx, &t.Inode, Root, true, &out.Attr), 0
}

// acks is the number of the node of AckFile.
const acks = 1 << 31

// node is a file or folder of a life.
type node struct {
	fs.Inode
	l      *Life
	id     uint64
	folder bool
}

var _ interface {
	fs.NodeLookuper
	fs.NodeReaddirer
	fs.NodeGetattrer
	fs.NodeSetattrer
	fs.NodeOpener
	fs.NodeReader
	fs.NodeWriter
	fs.NodeFsyncer
	fs.NodeFlusher
	fs.NodeAllocater
	fs.NodeCreater
	fs.NodeMkdirer
	fs.NodeLinker
	fs.NodeUnlinker
	fs.NodeRmdirer
	fs.NodeRenamer
	fs.NodeStatfser
} = (*node)(nil)

// inode gives the kernel a file or folder. The lock is held.
func (l *Life) inode(ctx context.Context, parent *fs.Inode, id uint64, folder bool, out *fuse.Attr) *fs.Inode {
	mode := uint32(syscall.S_IFREG)
	if folder {
		mode = syscall.S_IFDIR
	}
	l.attr(id, folder, out)
	return parent.NewInode(ctx, &node{l: l, id: id, folder: folder}, fs.StableAttr{Mode: mode, Ino: l.number<<32 | id})
}

// attr fills in what is known of a file. The lock is held.
func (l *Life) attr(id uint64, folder bool, out *fuse.Attr) {
	a, known := l.attrs[id]
	if !known {
		a = attr{mode: 0o600, changed: time.Unix(1, 0)}
		if folder {
			a.mode = 0o700
		}
	}
	out.Mode = syscall.S_IFREG | a.mode
	if folder {
		out.Mode = syscall.S_IFDIR | a.mode
	}
	out.Nlink = 1
	out.Uid, out.Gid = a.uid, a.gid
	out.Size = uint64(l.disk.Content(id).Size)
	out.Blksize = pageSize
	out.Blocks = (out.Size + pageSize - 1) / pageSize * (pageSize / sectorSize)
	out.SetTimes(nil, &a.changed, &a.changed)
}

func (l *Life) touch(id uint64, folder bool, f func(*attr)) {
	a, known := l.attrs[id]
	if !known {
		a.mode = 0o600
		if folder {
			a.mode = 0o700
		}
	}
	a.changed = time.Now()
	if f != nil {
		f(&a)
	}
	l.attrs[id] = a
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return nil, syscall.EIO
	}
	if n.id == Root && name == AckFile {
		return n.l.inode(ctx, &n.Inode, acks, false, &out.Attr), 0
	}
	id, folder, ok := n.l.disk.Lookup(n.id, name)
	if !ok {
		return nil, syscall.ENOENT
	}
	return n.l.inode(ctx, &n.Inode, id, folder, &out.Attr), 0
}

func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return nil, syscall.EIO
	}
	names := n.l.disk.Names(n.id)
	var all []fuse.DirEntry
	for _, name := range slices.Sorted(maps.Keys(names)) {
		mode := uint32(syscall.S_IFREG)
		if _, folder, _ := n.l.disk.Lookup(n.id, name); folder {
			mode = syscall.S_IFDIR
		}
		all = append(all, fuse.DirEntry{Name: name, Ino: n.l.number<<32 | names[name], Mode: mode})
	}
	return fs.NewListDirStream(all), 0
}

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return syscall.EIO
	}
	n.l.attr(n.id, n.folder, &out.Attr)
	return 0
}

func (n *node) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return syscall.EIO
	}
	if size, ok := in.GetSize(); ok && n.id != acks {
		if errno := n.l.do(Op{Kind: Truncate, Node: n.id, Off: int64(size)}); errno != 0 {
			return errno
		}
	}
	n.l.touch(n.id, n.folder, func(a *attr) {
		if mode, ok := in.GetMode(); ok {
			a.mode = mode & 0o7777
		}
		if uid, ok := in.GetUID(); ok {
			a.uid = uid
		}
		if gid, ok := in.GetGID(); ok {
			a.gid = gid
		}
		if t, ok := in.GetMTime(); ok {
			a.changed = t
		}
	})
	n.l.attr(n.id, n.folder, &out.Attr)
	return 0
}

// Open leaves the pages to the kernel, which writes them through: bbolt maps its file.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	switch {
	case n.l.dead:
		return nil, 0, syscall.EIO
	case n.l.readOnly && flags&syscall.O_ACCMODE != syscall.O_RDONLY:
		return nil, 0, syscall.EROFS
	case flags&syscall.O_TRUNC != 0 && n.id != acks:
		if errno := n.l.do(Op{Kind: Truncate, Node: n.id}); errno != 0 {
			return nil, 0, errno
		}
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *node) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n.l.disk.Content(n.id).ReadAt(dest, off)]), 0
}

func (n *node) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.id == acks {
		return uint32(len(data)), n.l.acknowledge(data)
	}
	if errno := n.l.do(Op{Kind: Write, Node: n.id, Off: off, Data: slices.Clone(data)}); errno != 0 {
		// The kernel has it in its pages already, and shows it to who maps the file until it forgets them: now, or a little
		// later, and not before this write has ended, which holds them.
		go n.NotifyContent(off, int64(len(data)))
		return 0, errno
	}
	n.l.touch(n.id, false, nil)
	return uint32(len(data)), 0
}

func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	switch {
	case n.id == acks:
		return 0
	case n.folder:
		return n.l.do(Op{Kind: SyncDir, Node: n.id})
	}
	return n.l.do(Op{Kind: Sync, Node: n.id})
}

// Flush is a close, which syncs nothing, and always succeeds: processes that die close too. The kernel, told that nobody is
// there for it, lets it succeed and does not ask again.
func (n *node) Flush(context.Context, fs.FileHandle) syscall.Errno { return syscall.ENOSYS }

func (n *node) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode != 0 {
		return syscall.EOPNOTSUPP
	}
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	end := int64(off + size)
	if n.l.disk.Content(n.id).Size >= end {
		return 0
	}
	return n.l.do(Op{Kind: Truncate, Node: n.id, Off: end})
}

// add makes a new name for a new file or folder. The lock is held.
func (n *node) add(ctx context.Context, kind Kind, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	id := n.l.next + 1
	if errno := n.l.do(Op{Kind: kind, Node: n.id, Name: name, Child: id}); errno != 0 {
		return nil, errno
	}
	n.l.next = id
	n.l.touch(id, kind == Mkdir, func(a *attr) { a.mode = mode & 0o7777 })
	return n.l.inode(ctx, &n.Inode, id, kind == Mkdir, &out.Attr), 0
}

func (n *node) Create(ctx context.Context, name string, _ uint32, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	in, errno := n.add(ctx, Create, name, mode, out)
	return in, nil, fuse.FOPEN_KEEP_CACHE, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	return n.add(ctx, Mkdir, name, mode, out)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	t, is := target.(*node)
	if !is || t.l != n.l || t.folder {
		return nil, syscall.EXDEV
	}
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if errno := n.l.do(Op{Kind: Link, Node: n.id, Name: name, Child: t.id}); errno != 0 {
		return nil, errno
	}
	return n.l.inode(ctx, &n.Inode, t.id, false, &out.Attr), 0
}

func (n *node) Unlink(_ context.Context, name string) syscall.Errno { return n.remove(name) }

func (n *node) Rmdir(_ context.Context, name string) syscall.Errno { return n.remove(name) }

func (n *node) remove(name string) syscall.Errno {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	id, folder, ok := n.l.disk.Lookup(n.id, name)
	switch {
	case n.l.dead:
		return syscall.EIO
	case !ok:
		return syscall.ENOENT
	case folder && len(n.l.disk.Names(id)) > 0:
		return syscall.ENOTEMPTY
	}
	return n.l.do(Op{Kind: Remove, Node: n.id, Name: name, Child: id})
}

func (n *node) Rename(_ context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	p, is := parent.(*node)
	if !is || p.l != n.l {
		return syscall.EXDEV
	}
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.dead {
		return syscall.EIO
	}
	id, folder, ok := n.l.disk.Lookup(n.id, name)
	if !ok {
		return syscall.ENOENT
	}
	old, oldFolder, exists := n.l.disk.Lookup(p.id, newName)
	switch {
	case flags&^unix.RENAME_NOREPLACE != 0:
		return syscall.EINVAL
	case exists && flags&unix.RENAME_NOREPLACE != 0:
		return syscall.EEXIST
	case exists && old == id:
		return 0
	case exists && oldFolder && (!folder || len(n.l.disk.Names(old)) > 0):
		return syscall.ENOTEMPTY
	case exists && folder && !oldFolder:
		return syscall.ENOTDIR
	}
	return n.l.do(Op{Kind: Rename, Node: n.id, Name: name, To: p.id, New: newName, Child: id})
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	total := n.l.capacity
	if total == 0 {
		total = 64 << 30
	}
	out.Bsize, out.Frsize, out.NameLen = pageSize, pageSize, 255
	out.Blocks = uint64(total) / pageSize
	out.Bfree = uint64(max(0, total-n.l.disk.Used())) / pageSize
	out.Bavail = out.Bfree
	out.Files, out.Ffree = 1<<20, 1<<20
	return 0
}
