// Package lossy is a file system that forgets what was not synced, as a disk does when its power goes, and that fails
// when it is told to. Disk is its memory, without a kernel; Mount puts it under a running program.
package lossy

import (
	"fmt"
	"maps"
	"slices"
)

// Kind is what a program did to a disk.
type Kind uint8

const (
	Write    Kind = iota + 1
	Truncate      // also one that makes the file longer
	Sync          // of a file
	Create        // of a file
	Mkdir
	Link
	Remove // of a file or folder
	Rename
	SyncDir
	Ack // a line of the file of acknowledgements, which is none of the disk's
)

// Mutating are the kinds that change something, or make it durable.
var Mutating = []Kind{Write, Truncate, Sync, Create, Mkdir, Link, Remove, Rename, SyncDir}

func (k Kind) String() string {
	return [...]string{"nothing", "write", "truncate", "fsync", "create", "mkdir", "link", "remove", "rename", "fsync of a folder", "ack"}[k]
}

// Root is the number of a disk's outermost folder.
const Root = 1

// Op is one operation. Its data is never changed.
type Op struct {
	Kind  Kind
	Node  uint64 // the file, or the folder of Name
	Name  string
	To    uint64 // Rename: the folder of NewName
	New   string
	Child uint64 // the file or folder that Name is the name of
	Off   int64  // Write: where; Truncate: the new size
	Data  []byte // Write: what; Ack: the line, without its end
	// Forgets is of a Sync that failed and after which the kernel believes the pages clean: what was not synced will never be.
	Forgets bool
}

func (o Op) String() string {
	switch o.Kind {
	case Write:
		return fmt.Sprintf("write of %d bytes at %d into %d", len(o.Data), o.Off, o.Node)
	case Truncate:
		return fmt.Sprintf("truncate of %d to %d", o.Node, o.Off)
	case Sync, SyncDir:
		return fmt.Sprintf("%v %d", o.Kind, o.Node)
	case Rename:
		return fmt.Sprintf("rename of %s to %s", o.Name, o.New)
	case Ack:
		return fmt.Sprintf("ack %q", o.Data)
	}
	return fmt.Sprintf("%v %s (%d)", o.Kind, o.Name, o.Child)
}

// loose is an operation that is not durable yet, with its place in the order of all.
type loose struct {
	Op
	at int
}

// Content is what a file has: Data, and zeros behind it up to Size. bbolt makes files much larger than what it writes.
type Content struct {
	Data []byte
	Size int64
}

type file struct {
	now, safe Content // as it is read, and as it is durable
	loose     []loose // what leads from safe to now, unless a sync has forgotten some
	shared    bool    // an image has safe's data
}

type folder struct {
	now, safe map[string]uint64
}

// Disk is what a program sees of a disk, and what the disk would have if the power went now.
type Disk struct {
	// Strict keeps a new file's name only by a sync of its folder. Else a sync of the file keeps it too, as ext4 and XFS do.
	Strict bool

	files   map[uint64]*file
	folders map[uint64]*folder
	names   []loose // changes of names that are not durable yet
	at      int     // operations so far
	listed  []found // what all durable names lead to, in the order of paths; nil = not known
}

// NewDisk is an empty disk.
func NewDisk(strict bool) *Disk {
	return &Disk{Strict: strict, files: map[uint64]*file{}, folders: map[uint64]*folder{Root: newFolder()}}
}

func newFolder() *folder { return &folder{map[string]uint64{}, map[string]uint64{}} }

// Apply does an operation. Those of the kernel are always possible: it has looked before.
func (d *Disk) Apply(o Op) {
	d.at++
	switch o.Kind {
	case Write, Truncate:
		f := d.files[o.Node]
		f.now = o.on(f.now)
		f.loose = append(f.loose, loose{o, d.at})
	case Sync:
		f := d.files[o.Node]
		if !o.Forgets && len(f.loose) > 0 {
			if f.shared {
				f.safe.Data, f.shared = copyOf(f.safe.Data, 0), false
			}
			for _, l := range f.loose {
				f.safe = l.on(f.safe)
			}
		}
		f.loose = f.loose[:0]
		if !d.Strict && !o.Forgets {
			d.keepNames(func(l loose) bool { return l.Child == o.Node })
		}
	case SyncDir:
		d.keepNames(func(l loose) bool { return l.Node == o.Node || l.Kind == Rename && l.To == o.Node })
	case Create, Mkdir, Link, Remove, Rename:
		if o.Kind == Create {
			d.files[o.Child] = &file{}
		}
		if o.Kind == Mkdir {
			d.folders[o.Child] = newFolder()
		}
		d.name(o, func(f *folder) map[string]uint64 { return f.now })
		d.names = append(d.names, loose{o, d.at})
	}
}

// keepNames makes durable what chosen says of the changes of names, in their order.
func (d *Disk) keepNames(chosen func(loose) bool) {
	rest, before := d.names[:0], len(d.names)
	for _, l := range d.names {
		if chosen(l) {
			d.name(l.Op, func(f *folder) map[string]uint64 { return f.safe })
		} else {
			rest = append(rest, l)
		}
	}
	if len(rest) < before {
		d.listed = nil
	}
	clear(d.names[len(rest):])
	d.names = rest
	d.letGo()
}

// letGo forgets files and folders that no name leads to any more, and none could after a cut.
func (d *Disk) letGo() {
	used := map[uint64]bool{Root: true}
	for _, f := range d.folders {
		for _, m := range []map[string]uint64{f.now, f.safe} {
			for _, id := range m {
				used[id] = true
			}
		}
	}
	for _, l := range d.names {
		used[l.Child] = true
	}
	for id := range d.files {
		if !used[id] {
			d.files[id].safe = Content{} // it may still be open: what is written into it has no name
		}
	}
	maps.DeleteFunc(d.folders, func(id uint64, _ *folder) bool { return !used[id] })
}

// name does what an operation does to names, in those that of picks.
func (d *Disk) name(o Op, of func(*folder) map[string]uint64) {
	in := func(id uint64) map[string]uint64 {
		if f := d.folders[id]; f != nil {
			return of(f)
		}
		return map[string]uint64{} // the folder is gone
	}
	apply(o, in)
}

func apply(o Op, in func(folder uint64) map[string]uint64) {
	switch o.Kind {
	case Create, Mkdir, Link:
		in(o.Node)[o.Name] = o.Child
	case Remove:
		if names := in(o.Node); names[o.Name] == o.Child {
			delete(names, o.Name)
		}
	case Rename:
		if names := in(o.Node); names[o.Name] == o.Child {
			delete(names, o.Name)
		}
		in(o.To)[o.New] = o.Child
	}
}

// on gives a file's content after a write or truncate. It may change c's data.
func (o Op) on(c Content) Content {
	end := o.Off + int64(len(o.Data))
	n := int64(len(c.Data))
	if o.Kind == Truncate {
		return Content{c.Data[:min(n, end)], end}
	}
	if end > n {
		c.Data = slices.Grow(c.Data, int(end-n))[:end]
		clear(c.Data[n:])
	}
	copy(c.Data[o.Off:], o.Data)
	c.Size = max(c.Size, end)
	return c
}

// ReadAt reads what is at a place, and gives how many bytes that are.
func (c Content) ReadAt(b []byte, off int64) int {
	n := max(0, min(int64(len(b)), c.Size-off))
	b = b[:n]
	clear(b[copy(b, c.Data[min(off, int64(len(c.Data))):]):])
	return int(n)
}

// Lookup gives what a name stands for.
func (d *Disk) Lookup(dir uint64, name string) (id uint64, isFolder, ok bool) {
	f := d.folders[dir]
	if f == nil {
		return 0, false, false
	}
	id, ok = f.now[name]
	_, isFolder = d.folders[id]
	return id, isFolder, ok
}

// Content is what is read from a file now. It may only be read, and until the next Apply.
func (d *Disk) Content(id uint64) Content {
	if f := d.files[id]; f != nil {
		return f.now
	}
	return Content{}
}

// Names are what a folder has now.
func (d *Disk) Names(dir uint64) map[string]uint64 {
	if f := d.folders[dir]; f != nil {
		return f.now
	}
	return nil
}

// Used is how many bytes all files that have a name occupy: one that is only made longer takes nothing, on this disk as on others.
func (d *Disk) Used() (n int64) {
	counted := map[uint64]bool{}
	for _, f := range d.folders {
		for _, id := range f.now {
			if file := d.files[id]; file != nil && !counted[id] {
				counted[id] = true
				n += int64(len(file.now.Data))
			}
		}
	}
	return n
}

// Unsynced is how many operations are not durable.
func (d *Disk) Unsynced() int {
	n := len(d.names)
	for _, f := range d.files {
		n += len(f.loose)
	}
	return n
}
