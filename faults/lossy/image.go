package lossy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Image is what a disk has after the power went: its files by path, and its folders, outer ones first. Data is not to be
// changed: images share it.
type Image struct {
	Files   map[string]Content
	Folders []string
}

// Way is how a disk loses what was not synced.
type Way uint8

const (
	DropAll Way = iota // only what was synced is there
	KeepAll            // all is there, as after a kill
	Torn               // all up to some moment, and the last write in part
	Writes             // each operation by chance
	Pages              // each 4 KiB page of each write by chance
	Sectors            // each 512 bytes of each write by chance
	Ways               // how many there are
)

func (w Way) String() string {
	return [...]string{"drop all", "keep all", "torn", "some writes", "some pages", "some sectors"}[w]
}

const (
	pageSize   = 4096
	sectorSize = 512
)

// Chances of an operation to have survived, that are tried.
var Chances = []float64{0.05, 0.5, 0.95}

// AnyWay is a way and a chance by chance.
func AnyWay(r *rand.Rand) (Way, float64) {
	return Way(r.IntN(int(Ways))), Chances[r.IntN(len(Chances))]
}

// Image makes the image that a loss of power leaves. survive is the chance of each piece, for the ways that have one.
func (d *Disk) Image(r *rand.Rand, way Way, survive float64) Image {
	until := d.at // Torn: the operation that is cut in two; those after it are lost
	if way == Torn {
		until = d.someLoose(r)
	}
	keeps := func(l loose) bool {
		switch way {
		case DropAll:
			return false
		case KeepAll:
			return true
		case Torn:
			return l.at < until
		}
		return r.Float64() < survive
	}
	im := Image{Files: map[string]Content{}}
	for _, at := range d.survivingNames(keeps) {
		if at.folder {
			im.Folders = append(im.Folders, at.path)
			continue
		}
		f := d.files[at.id]
		if f == nil {
			continue
		}
		if len(f.loose) == 0 {
			f.shared = true
			im.Files[at.path] = f.safe
			continue
		}
		c := Content{copyOf(f.safe.Data, len(f.now.Data)), f.safe.Size}
		for _, l := range f.loose {
			c = survivor(c, l, way, until, survive, keeps, r)
		}
		im.Files[at.path] = c
	}
	return im
}

// found is a file or folder, and a path that leads to it.
type found struct {
	path   string
	id     uint64
	folder bool
}

// survivingNames lists what the durable names lead to, and those of the others that are kept, in the order of paths. Most
// images have no others, and then it is the last list again.
func (d *Disk) survivingNames(keeps func(loose) bool) (list []found) {
	if len(d.names) == 0 && d.listed != nil {
		return d.listed
	}
	tree := make(map[uint64]map[string]uint64, len(d.folders))
	for id, f := range d.folders {
		tree[id] = maps.Clone(f.safe)
	}
	for _, l := range d.names {
		if keeps(l) {
			apply(l.Op, func(folder uint64) map[string]uint64 {
				if tree[folder] == nil {
					tree[folder] = map[string]uint64{}
				}
				return tree[folder]
			})
		}
	}
	d.walk(tree, Root, "", func(path string, id uint64) {
		_, is := d.folders[id]
		list = append(list, found{path, id, is})
	})
	if len(d.names) == 0 {
		d.listed = list
	}
	return list
}

// survivor gives a file's content after what survived of an operation.
func survivor(c Content, l loose, way Way, until int, survive float64, keeps func(loose) bool, r *rand.Rand) Content {
	if l.Kind == Truncate || way < Torn || way == Writes || way == Torn && l.at != until {
		if keeps(l) {
			return l.on(c)
		}
		return c
	}
	unit := int64(sectorSize)
	if way == Pages {
		unit = pageSize
	}
	end := l.Off + int64(len(l.Data))
	torn := l.Off
	if way == Torn {
		torn += r.Int64N(int64(len(l.Data)) + 1)
		torn -= torn % unit
	}
	for from := l.Off; from < end; {
		to := min(end, from-from%unit+unit)
		if way == Torn && to <= torn || way != Torn && r.Float64() < survive {
			c = Op{Kind: Write, Off: from, Data: l.Data[from-l.Off : to-l.Off]}.on(c)
		}
		from = to
	}
	return c
}

// someLoose is the place of one of the operations that are not durable.
func (d *Disk) someLoose(r *rand.Rand) int {
	n := d.Unsynced()
	if n == 0 {
		return d.at
	}
	all := make([]int, 0, n)
	for _, f := range d.files {
		for _, l := range f.loose {
			all = append(all, l.at)
		}
	}
	for _, l := range d.names {
		all = append(all, l.at)
	}
	slices.Sort(all) // maps have no order, and a seed must mean the same again
	return all[r.IntN(n)]
}

// walk goes through a tree of names, in the order of paths.
func (d *Disk) walk(tree map[uint64]map[string]uint64, dir uint64, path string, f func(path string, id uint64)) {
	if strings.Count(path, "/") > 50 {
		return // a folder in itself: two renames of which one survived
	}
	for _, name := range slices.Sorted(maps.Keys(tree[dir])) {
		id := tree[dir][name]
		p := filepath.Join(path, name)
		f(p, id)
		if _, is := d.folders[id]; is {
			d.walk(tree, id, p, f)
		}
	}
}

// WriteTo puts an image into a folder, which is made.
func (im Image) WriteTo(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, p := range im.Folders {
		if err := os.Mkdir(filepath.Join(dir, p), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(im.Files)) {
		path := filepath.Join(dir, p)
		if err := os.WriteFile(path, im.Files[p].Data, 0o600); err != nil {
			return err
		}
		if c := im.Files[p]; c.Size > int64(len(c.Data)) {
			if err := os.Truncate(path, c.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadImage takes over what a folder has.
func ReadImage(dir string) (Image, error) {
	im := Image{Files: map[string]Content{}}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		p, err := filepath.Rel(dir, path)
		switch {
		case err != nil || p == ".":
			return err
		case e.IsDir():
			im.Folders = append(im.Folders, p)
		case e.Type().IsRegular():
			im.Files[p], err = readSparse(path)
		default:
			return fmt.Errorf("%s is neither file nor folder", path)
		}
		return err
	})
	return im, err
}

// readSparse reads a file up to where its last data are.
func readSparse(path string) (c Content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return c, err
	}
	c.Size = st.Size()
	end := int64(0)
	for end < c.Size {
		if _, err := f.Seek(end, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			break
		} else if err != nil {
			return c, err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err == nil {
			end, err = f.Seek(at, unix.SEEK_HOLE)
		}
		if err != nil {
			return c, err
		}
	}
	c.Data = make([]byte, min(end, c.Size))
	_, err = f.ReadAt(c.Data, 0)
	return c, err
}

// From fills an empty disk with an image, all of it durable.
func (d *Disk) From(im Image) {
	next := uint64(Root)
	ids := map[string]uint64{".": Root}
	put := func(path string, kind Kind) uint64 {
		next++
		ids[path] = next
		d.Apply(Op{Kind: kind, Node: ids[filepath.Dir(path)], Name: filepath.Base(path), Child: next})
		return next
	}
	for _, p := range im.Folders {
		put(p, Mkdir)
	}
	for _, p := range slices.Sorted(maps.Keys(im.Files)) {
		f, c := d.files[put(p, Create)], im.Files[p]
		f.safe, f.shared = c, true
		f.now = Content{copyOf(c.Data, 0), c.Size}
	}
	d.keepNames(func(loose) bool { return true })
}
