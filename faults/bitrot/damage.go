package bitrot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const page = 4096

// flip is one change of a file.
type flip struct {
	path string // below the storage folder
	at   int64
	text string // what is done, for people
	do   func(f *os.File) error
}

// pick chooses a file and what happens to it. The same chances choose the same.
func pick(r *rand.Rand, dir string) (flip, error) {
	files, err := filesOf(dir)
	if err != nil {
		return flip{}, err
	}
	path := files[r.IntN(len(files))]
	if st, err := os.Stat(filepath.Join(dir, path)); err == nil && st.Size() < page && r.IntN(2) == 0 {
		return flipSmall(r, path, st.Size()), nil
	}
	at, size, err := place(r, filepath.Join(dir, path))
	if err != nil {
		return flip{}, err
	}
	f := flip{path: path}
	switch what := r.IntN(20); {
	case what < 10:
		bit := byte(1) << r.IntN(8)
		f.text = fmt.Sprintf("%s: bit %#x of byte %d flips", path, bit, at)
		f.do = change(at, 1, func(b []byte) { b[0] ^= bit })
	case what < 13:
		n := 1 + r.IntN(64)
		f.text = fmt.Sprintf("%s: %d bytes at %d are others", path, n, at)
		f.do = change(at, n, func(b []byte) {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		})
	case what < 15:
		n := page * (1 + r.IntN(3))
		at -= at % page
		f.text = fmt.Sprintf("%s: %d bytes at %d are zero", path, n, at)
		f.do = change(at, n, func(b []byte) { clear(b) })
	case what < 16:
		at -= at % 512
		f.text = fmt.Sprintf("%s: the sector at %d is zero", path, at)
		f.do = change(at, 512, func(b []byte) { clear(b) })
	case what < 18:
		from, _, err := place(r, filepath.Join(dir, path))
		if err != nil {
			return flip{}, err
		}
		at, from = at-at%page, from-from%page
		f.text = fmt.Sprintf("%s: the page at %d has what stands at %d", path, at, from)
		f.do = func(file *os.File) error {
			b := make([]byte, page)
			n, err := file.ReadAt(b, from)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return change(at, n, func(to []byte) { copy(to, b) })(file)
		}
	case what < 19:
		f.text = fmt.Sprintf("%s ends at %d of %d", path, at, size)
		f.do = func(file *os.File) error { return file.Truncate(at) }
	default:
		f.text = fmt.Sprintf("%s: everything behind %d is zero", path, at)
		f.do = change(at, int(min(size-at, 1<<20)), func(b []byte) { clear(b) })
	}
	f.at = at
	return f, nil
}

// flipSmall is what happens to a small file: what would be a page elsewhere is all of it here.
func flipSmall(r *rand.Rand, path string, size int64) flip {
	f := flip{path: path, at: r.Int64N(size)}
	switch r.IntN(4) {
	case 0:
		f.text = fmt.Sprintf("%s ends at %d of %d", path, f.at, size)
		f.do = func(file *os.File) error { return file.Truncate(f.at) }
	case 1:
		f.text = fmt.Sprintf("%s: %d bytes of zero", path, size)
		f.do = change(0, int(size), func(b []byte) { clear(b) })
	default:
		bit := byte(1) << r.IntN(8)
		f.text = fmt.Sprintf("%s: bit %#x of byte %d of %d flips", path, bit, f.at, size)
		f.do = change(f.at, 1, func(b []byte) { b[0] ^= bit })
	}
	return f
}

// filesOf lists the files that are damaged, in an order that is always the same. The log has most of them.
func filesOf(dir string) (files []string, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "log", "*.db"))
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err != nil || st.Size() == 0 || e.Name() == "lock" || e.Name() == "reserve" { // nobody reads these
			return err
		}
		rel, err := filepath.Rel(dir, path)
		times := 1
		if strings.HasPrefix(rel, "sync/") && strings.HasSuffix(rel, ".db") || rel == "users.db" {
			times = 4
		}
		if len(logs) == 1 && rel == filepath.Join("log", filepath.Base(logs[0])) { // else the small files would get nearly all of it
			times = 12
		}
		for range times {
			files = append(files, rel)
		}
		return err
	})
	sort.Strings(files)
	return files, err
}

// place is somewhere in what a file holds: anywhere, in its first pages, or at the begin of a page.
func place(r *rand.Rand, path string) (at, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	size, err = f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	full := min(size, dataEnd(f, size))
	at = r.Int64N(full)
	switch r.IntN(4) {
	case 0:
		at = r.Int64N(min(full, 8*page))
	case 1:
		at = min(at-at%page+r.Int64N(96), full-1)
	}
	return at, size, nil
}

// dataEnd is where a file's last hole begins.
func dataEnd(f *os.File, size int64) int64 {
	end := int64(0)
	for {
		from, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if err != nil {
			break
		}
		if end, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return size
		}
	}
	if end == 0 {
		return size
	}
	return end
}

// change changes n bytes of a file.
func change(at int64, n int, how func([]byte)) func(*os.File) error {
	return func(f *os.File) error {
		b := make([]byte, n)
		got, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		how(b[:got])
		_, err = f.WriteAt(b[:got], at)
		return err
	}
}

// copyFolder copies a folder. Holes stay holes: bbolt's files are large and mostly empty.
func copyFolder(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copySparse(path, filepath.Join(to, rel))
	})
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, at-data)); err != nil {
			return err
		}
	}
	return nil
}
